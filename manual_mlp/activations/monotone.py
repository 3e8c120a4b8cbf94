"""The smooth activations that only rise: f, f′ and f″, each in a form that is stable far out."""

from math import inf

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from manual_mlp.activations.record import Activation
from manual_mlp.activations.registry import register

aten = torch.ops.aten
Triple = tuple[Tensor, Tensor, Tensor]


@register(module=nn.Sigmoid)
def sigmoid() -> Activation:
    """Logistic function.

    f = 1/(1 + exp(−z))
    f′ = y·(1 − y)
    f″ = y·(1 − y)·(1 − 2·y)
    f′ of y = y·(1 − y)
    ∂f′/∂y = 1 − 2·y
    where y = σ(z)

    Example::

        assert sigmoid().df(torch.tensor(0.0)) == 0.25
    """

    def df_y(y: Tensor) -> Tensor:
        return y * (1 - y)

    def d2f(z: Tensor) -> Tensor:
        y = torch.sigmoid(z)
        return y * (1 - y) * (1 - 2 * y)

    return Activation(
        f=torch.sigmoid,
        df=lambda z: df_y(torch.sigmoid(z)),
        d2f=d2f,
        df_y=df_y,
        d2f_y=lambda y: 1 - 2 * y,
        kernel=aten.sigmoid_backward.default,
        kernel2=lambda dy, q, y: (
            aten.sigmoid_backward.default(dy, y),
            aten.sigmoid_backward.default(q, y),
            q.mul_(dy).mul_(1 - 2 * y),
        ),
    )


@register(module=nn.LogSigmoid)
def logsigmoid() -> Activation:
    """Logarithm of the logistic function σ.

    f = ln(σ(z))
    f′ = σ(−z)
    f″ = −σ(z)·σ(−z)

    Example::

        assert logsigmoid().f(torch.tensor(-1e4)) == -1e4  # the logarithm of σ alone would be −∞
    """
    # f′ = 1 − eʸ is not taken from y: in float16 it loses more than twice torch's accuracy.
    return Activation(
        f=F.logsigmoid,
        df=lambda z: torch.sigmoid(-z),
        d2f=lambda z: -torch.sigmoid(z) * torch.sigmoid(-z),
    )


@register(module=nn.Tanh)
def tanh() -> Activation:
    """Hyperbolic tangent.

    f = tanh(z)
    f′ = 1 − y²
    f″ = −2·y·(1 − y²)
    f′ of y = 1 − y²
    ∂f′/∂y = −2·y
    where y = tanh(z)

    Example::

        assert tanh().df(torch.tensor(0.0)) == 1
    """

    def df_y(y: Tensor) -> Tensor:
        return 1 - y * y

    def d2f(z: Tensor) -> Tensor:
        y = torch.tanh(z)
        return -2 * y * (1 - y * y)

    return Activation(
        f=torch.tanh,
        df=lambda z: df_y(torch.tanh(z)),
        d2f=d2f,
        df_y=df_y,
        d2f_y=lambda y: -2 * y,
        kernel=aten.tanh_backward.default,
        kernel2=lambda dy, q, y: (
            aten.tanh_backward.default(dy, y),
            aten.tanh_backward.default(q, y),
            q.mul_(dy).mul_(y).mul_(-2),
        ),
    )


@register(source="cap * torch.tanh(z / cap)")
def softcap(cap: float = 30.0) -> Activation:
    """Hyperbolic tangent scaled to a slope of 1 and a largest value, as of the logits of Gemma 2 (2024).

    f = c·tanh(z/c)
    f′ = 1 − (y/c)²
    f″ = −2·y/c²·(1 − (y/c)²)
    f′ of y = 1 − (y/c)²
    ∂f′/∂y = −2·y/c²
    where c = cap, y = c·tanh(z/c)

    Example::

        assert softcap(30.0).f(torch.tensor([-1e6, 0.0])).tolist() == [-30.0, 0.0]
    """
    if not 0 < cap < inf:
        raise ValueError(f"expected cap above 0, and finite, got {cap}")

    def f(z: Tensor) -> Tensor:
        return torch.tanh(z / cap) * cap

    def df_y(y: Tensor) -> Tensor:
        t = y / cap
        return 1 - t * t

    def kernel2(dy: Tensor, q: Tensor, y: Tensor) -> Triple:
        slope, bend = df_y(y), y * (-2 / cap**2)
        return dy * slope, slope.mul_(q), bend.mul_(q).mul_(dy)

    return Activation(
        f=f,
        df=lambda z: df_y(f(z)),
        d2f=lambda z: -2 / cap**2 * f(z) * df_y(f(z)),
        df_y=df_y,
        d2f_y=lambda y: -2 / cap**2 * y,
        kernel=lambda dy, y: aten.tanh_backward.default(dy, y / cap),
        kernel2=kernel2,
    )


@register(module=nn.Softplus)
def softplus(beta: float = 1.0, threshold: float = 20.0) -> Activation:
    """Smooth form of ``relu``, and z itself past its threshold.

    f = z if beta·z > threshold, else ln(1 + exp(beta·z))/beta
    f′ = 1 if beta·z > threshold, else σ(beta·z)
    f″ = beta·σ(beta·z)·σ(−beta·z) if beta·z < threshold, else 0

    Example::

        assert softplus(beta=2.0).f(torch.tensor(99.0)) == 99
    """

    def kernel2(dy: Tensor, q: Tensor, z: Tensor) -> Triple:
        u = beta * z
        slope = torch.sigmoid(u).masked_fill_(u > threshold, 1.0)
        curvature = (1 - slope).mul_(slope).mul_(beta).masked_fill_(u == threshold, 0.0)
        return terms(dy, q, slope, curvature)

    return Activation(
        f=lambda z: F.softplus(z, beta, threshold),
        df=lambda z: torch.sigmoid(beta * z).masked_fill(beta * z > threshold, 1.0),
        d2f=lambda z: (beta * torch.sigmoid(beta * z) * torch.sigmoid(-beta * z)).masked_fill(
            beta * z >= threshold, 0.0
        ),
        kernel=lambda dy, z: aten.softplus_backward.default(dy, z, beta, threshold),
        kernel2=kernel2,
    )


@register(module=nn.Softsign)
def softsign() -> Activation:
    """Sign that is reached slowly.

    f = z/(1 + |z|)
    f′ = 1/(1 + |z|)²
    f″ = −2·sign(z)/(1 + |z|)³

    Example::

        assert softsign().f(torch.tensor([-1.0, 3.0])).tolist() == [-0.5, 0.75]
    """
    # f′ = (1 − |y|)² is not taken from y: in float16 it loses more than twice torch's accuracy.
    return Activation(
        f=F.softsign,
        df=lambda z: (1 + z.abs()) ** -2,
        d2f=lambda z: -2 * z.sgn() * (1 + z.abs()) ** -3,
    )


@register(source="1.7159 * torch.tanh(2 / 3 * z)")
def lecun_tanh() -> Activation:
    """Hyperbolic tangent scaled to f(1) = 1 (LeCun et al., 1998).

    f = a·t
    f′ = a·b·(1 − t²)
    f″ = −2·a·b²·t·(1 − t²)
    where a = 1.7159, b = 2/3, t = tanh(b·z)

    Example::

        assert abs(lecun_tanh().f(torch.tensor(1.0)) - 1) < 1e-4
    """
    a, b = 1.7159, 2 / 3

    def df(z: Tensor) -> Tensor:
        t = torch.tanh(b * z)
        return a * b * (1 - t * t)

    def d2f(z: Tensor) -> Tensor:
        t = torch.tanh(b * z)
        return -2 * a * b * b * t * (1 - t * t)

    # f′ is not taken from y: y is rounded past a, and 1 − (y/a)² below 0.
    return Activation(f=lambda z: a * torch.tanh(b * z), df=df, d2f=d2f)


def terms(dy: Tensor, q: Tensor, slope: Tensor, curvature: Tensor) -> Triple:
    """Multiply with f′ and f″, which are overwritten."""
    return dy * slope, slope.mul_(q), curvature.mul_(q).mul_(dy)
