"""The activations that are written piece by piece: f, f′ and f″, each with torch's convention at the kinks."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from manual_mlp.activations.record import Activation, Map
from manual_mlp.activations.registry import register
from manual_mlp.precision import cast, widen

aten = torch.ops.aten


def _step(z: Tensor, below: float) -> Tensor:
    """1 where z > 0, else ``below``; 1 at NaN, as torch has it."""
    return torch.ones_like(z).masked_fill(z <= 0, below)


def _between(z: Tensor, low: float, high: float) -> Tensor:
    """1 strictly between ``low`` and ``high``, else 0."""
    return ((z > low) & (z < high)).to(z.dtype)


def _exponential(f: Map, alpha: float, scale: float, rate: float) -> Activation:
    """f = s z if z > 0 else s α(exp(rz) − 1); f′ = s or s α r exp(rz); f″ = 0 or s α r² exp(rz)."""
    # f′ = y + sα is not taken from y: in float16 it loses twice torch's accuracy.
    tail = scale * alpha * rate
    return Activation(
        f=f,
        df=lambda z: (tail * torch.exp(rate * z.clamp(max=0))).masked_fill(z > 0, scale),
        d2f=lambda z: (tail * rate * torch.exp(rate * z.clamp(max=0))).masked_fill(z >= 0, 0.0),
        kernel=lambda dy, z: aten.elu_backward.default(dy, alpha, scale, rate, False, z),
    )


@register(module=nn.Identity)
def identity() -> Activation:
    """Identity.

    f = z
    f′ = 1
    f″ = 0
    f′ of y = 1
    ∂f′/∂y = 0

    Example::

        assert identity() is manual_mlp.activations.get(None)
    """
    return Activation(
        f=lambda z: z,
        df=torch.ones_like,
        d2f=torch.zeros_like,
        df_y=torch.ones_like,
        d2f_y=torch.zeros_like,
        kernel=lambda dy, _: dy,
    )


IDENTITY = identity()


@register(module=nn.ReLU)
def relu() -> Activation:
    """Rectified linear unit.

    f = z if z > 0, else 0
    f′ = 1 if z > 0, else 0
    f″ = 0
    f′ of y = 1 if y > 0, else 0
    ∂f′/∂y = 0

    Example::

        assert relu().f(torch.tensor([-2.0, 3.0])).tolist() == [0.0, 3.0]
    """
    return Activation(
        f=torch.relu,
        df=lambda z: _step(z, 0.0),
        d2f=torch.zeros_like,
        df_y=lambda y: _step(y, 0.0),
        d2f_y=torch.zeros_like,
        kernel=lambda dy, y: aten.threshold_backward.default(dy, y, 0),
    )


@register(module=nn.LeakyReLU)
def leaky_relu(negative_slope: float = 0.01) -> Activation:
    """Rectified linear unit that leaks.

    f = z if z > 0, else negative_slope·z
    f′ = 1 if z > 0, else negative_slope
    f″ = 0
    f′ of y = 1 if y > 0, else negative_slope
    ∂f′/∂y = 0

    Example::

        assert leaky_relu(0.5).f(torch.tensor([-2.0, 3.0])).tolist() == [-1.0, 3.0]
    """
    a = negative_slope
    # With a < 0 the function falls and rises: y does not tell which side z was on.
    one_to_one = a >= 0
    return Activation(
        f=lambda z: F.leaky_relu(z, a),
        df=lambda z: _step(z, a),
        d2f=torch.zeros_like,
        df_y=(lambda y: _step(y, a)) if one_to_one else None,
        d2f_y=torch.zeros_like if one_to_one else None,
        kernel=lambda dy, kept: aten.leaky_relu_backward.default(dy, kept, a, one_to_one),
    )


@register(module=nn.ELU)
def elu(alpha: float = 1.0) -> Activation:
    """Exponential linear unit (Clevert et al., 2016).

    f = z if z > 0, else alpha·(exp(z) − 1)
    f′ = 1 if z > 0, else alpha·exp(z)
    f″ = alpha·exp(z) if z < 0, else 0

    Example::

        assert elu(0.5).f(torch.tensor([-99.0, 3.0])).tolist() == [-0.5, 3.0]
    """
    return _exponential(lambda z: F.elu(z, alpha), alpha, 1.0, 1.0)


@register(module=nn.CELU)
def celu(alpha: float = 1.0) -> Activation:
    """Exponential linear unit whose slope does not jump (Barron, 2017).

    f = z if z > 0, else alpha·(exp(z/alpha) − 1)
    f′ = 1 if z > 0, else exp(z/alpha)
    f″ = exp(z/alpha)/alpha if z < 0, else 0

    Example::

        assert celu(2.0).f(torch.tensor([-99.0, 3.0])).tolist() == [-2.0, 3.0]
    """
    if alpha == 0:
        raise ValueError(f"expected alpha other than 0, got {alpha}")
    # The derivative of F.celu itself rounds 1/α to float32.
    f = F.celu if alpha == 1 else lambda z: aten.elu.default(z, alpha, 1.0, 1.0 / alpha)
    return _exponential(f, alpha, 1.0, 1.0 / alpha)


@register(module=nn.SELU)
def selu() -> Activation:
    """Exponential linear unit that normalises itself (Klambauer et al., 2017).

    f = s·z if z > 0, else s·α·(exp(z) − 1)
    f′ = s if z > 0, else s·α·exp(z)
    f″ = s·α·exp(z) if z < 0, else 0
    where s = 1.0507009873554805, α = 1.6732632423543772

    Example::

        assert abs(selu().f(torch.randn(10**6)).std() - 1) < 0.01  # as before it
    """
    return _exponential(F.selu, 1.6732632423543772, 1.0507009873554805, 1.0)


@register(module=nn.Hardtanh)
def hardtanh(min_val: float = -1.0, max_val: float = 1.0) -> Activation:
    """Identity within bounds.

    f = min(max(z, min_val), max_val)
    f′ = 1 if min_val < z < max_val, else 0
    f″ = 0

    Example::

        assert hardtanh(-2.0, 2.0).f(torch.tensor([-3.0, 1.0])).tolist() == [-2.0, 1.0]
    """
    if not min_val <= max_val:
        raise ValueError(f"expected min_val <= max_val, got min_val={min_val}, max_val={max_val}")
    # f′ is not taken from y: half precision rounds the bounds, and y with them.
    return Activation(
        f=lambda z: F.hardtanh(z, min_val, max_val),
        df=lambda z: _between(z, min_val, max_val),
        d2f=torch.zeros_like,
        kernel=lambda dy, z: aten.hardtanh_backward.default(dy, z, min_val, max_val),
    )


@register(module=nn.ReLU6)
def relu6() -> Activation:
    """Rectified linear unit up to 6.

    f = min(max(z, 0), 6)
    f′ = 1 if 0 < z < 6, else 0
    f″ = 0
    f′ of y = 1 if 0 < y < 6, else 0
    ∂f′/∂y = 0

    Example::

        assert relu6().f(torch.tensor([-1.0, 9.0])).tolist() == [0.0, 6.0]
    """
    return Activation(
        f=F.relu6,
        df=lambda z: _between(z, 0.0, 6.0),
        d2f=torch.zeros_like,
        df_y=lambda y: _between(y, 0.0, 6.0),
        d2f_y=torch.zeros_like,
        kernel=lambda dy, y: aten.hardtanh_backward.default(dy, y, 0.0, 6.0),
    )


@register(module=nn.Hardsigmoid)
def hardsigmoid() -> Activation:
    """Sigmoid of three straight pieces.

    f = min(max(z + 3, 0), 6)/6
    f′ = 1/6 if −3 < z < 3, else 0
    f″ = 0

    Example::

        assert hardsigmoid().f(torch.tensor([-3.0, 0.0, 3.0])).tolist() == [0.0, 0.5, 1.0]
    """

    def df(z: Tensor) -> Tensor:
        return _between(z, -3.0, 3.0) / 6

    # torch's F.hardsigmoid has no second derivative, and a first one that holds 1/6 in float32 even for float64.
    # f′ is not taken from y: close to a corner y rounds to 0 or 1 before z gets there.
    return Activation(
        f=lambda z: cast(F.relu6(widen(z) + 3) / 6, z.dtype),
        df=df,
        d2f=torch.zeros_like,
        kernel=lambda dy, z: dy * df(z) if z.dtype is torch.float64 else aten.hardsigmoid_backward.default(dy, z),
    )


@register(module=nn.Hardswish)
def hardswish() -> Activation:
    """Swish over that sigmoid (Howard et al., 2019).

    f = z·min(max(z + 3, 0), 6)/6
    f′ = 0 if z ≤ −3, else 1 if z ≥ 3, else z/3 + 1/2
    f″ = 1/3 if −3 < z < 3, else 0

    Example::

        assert hardswish().f(torch.tensor([-3.0, 0.0, 3.0])).tolist() == [0.0, 0.0, 3.0]
    """
    return Activation(
        f=F.hardswish,
        df=lambda z: (z / 3 + 0.5).masked_fill(z <= -3, 0.0).masked_fill(z >= 3, 1.0),
        d2f=lambda z: _between(z, -3.0, 3.0) / 3,
        kernel=aten.hardswish_backward.default,
    )


@register(source="torch.relu(z).square()")
def squared_relu() -> Activation:
    """Square of ``relu`` (So et al., 2021).

    f = max(z, 0)²
    f′ = 2·max(z, 0)
    f″ = 2 if z > 0, else 0

    Example::

        assert squared_relu().f(torch.tensor([-2.0, 3.0])).tolist() == [0.0, 9.0]
    """
    # f′ = 2√y is not taken from y: its own derivative is infinite at 0.
    return Activation(
        f=lambda z: torch.relu(z).square(),
        df=lambda z: 2 * torch.relu(z),
        d2f=lambda z: 2 * _step(z, 0.0),
    )
