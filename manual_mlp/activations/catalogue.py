"""The activations: f, f′ and f″, each written beside its formula.

The conventions at kinks and the stable forms are those of ``torch.nn.functional``.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from manual_mlp.activations.record import FACTORIES, Activation, Map, register
from manual_mlp.precision import cast, widen

aten = torch.ops.aten
Triple = tuple[Tensor, Tensor, Tensor]


@register
def identity() -> Activation:
    """f = z."""
    return Activation(
        f=lambda z: z,
        df=torch.ones_like,
        d2f=torch.zeros_like,
        df_y=torch.ones_like,
        d2f_y=torch.zeros_like,
        kernel=lambda dy, _: dy,
    )


@register
def relu() -> Activation:
    """f = max(z, 0); f′(0) = 0."""
    return Activation(
        f=torch.relu,
        df=lambda z: _step(z, 0.0),
        d2f=torch.zeros_like,
        df_y=lambda y: _step(y, 0.0),
        d2f_y=torch.zeros_like,
        kernel=lambda dy, y: aten.threshold_backward.default(dy, y, 0),
        kernel_out=lambda dy, y: aten.threshold_backward.grad_input(dy, y, 0, grad_input=dy),
        f_out=lambda z, out: torch.relu_(z) if out is z else torch.clamp_min(z, 0, out=out),
    )


@register
def leaky_relu(negative_slope: float = 0.01) -> Activation:
    """f = z if z > 0 else a z; f′(0) = a."""
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
        kernel_out=lambda dy, kept: aten.leaky_relu_backward.grad_input(dy, kept, a, one_to_one, grad_input=dy),
        f_out=lambda z, out: aten.leaky_relu.out(z, a, out=out),
    )


@register
def elu(alpha: float = 1.0) -> Activation:
    """f = z if z > 0 else α(eᶻ − 1); f′(0) = α."""
    return _exponential(lambda z: F.elu(z, alpha), alpha, 1.0, 1.0)


@register
def celu(alpha: float = 1.0) -> Activation:
    """f = z if z > 0 else α(exp(z/α) − 1)."""
    if alpha == 0:
        raise ValueError(f"expected alpha other than 0, got {alpha}")
    # The derivative of F.celu itself rounds 1/α to float32.
    f = F.celu if alpha == 1 else lambda z: aten.elu.default(z, alpha, 1.0, 1.0 / alpha)
    return _exponential(f, alpha, 1.0, 1.0 / alpha)


@register
def selu() -> Activation:
    """f = s z if z > 0 else s α(eᶻ − 1), with the constants of Klambauer et al. (2017)."""
    return _exponential(F.selu, 1.6732632423543772, 1.0507009873554805, 1.0)


@register
def sigmoid() -> Activation:
    """f = σ(z) = 1/(1 + e⁻ᶻ); f′ = y(1 − y); f″ = y(1 − y)(1 − 2y)."""

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
        kernel_out=lambda dy, y: aten.sigmoid_backward.grad_input(dy, y, grad_input=dy),
        f_out=lambda z, out: torch.sigmoid(z, out=out),
        kernel2=lambda dy, q, y: (
            aten.sigmoid_backward.default(dy, y),
            aten.sigmoid_backward.default(q, y),
            q.mul_(dy).mul_(1 - 2 * y),
        ),
    )


@register
def logsigmoid() -> Activation:
    """f = ln σ(z); f′ = σ(−z); f″ = −σ(z) σ(−z)."""
    # f′ = 1 − eʸ is not taken from y: in float16 it loses more than twice torch's accuracy.
    return Activation(
        f=F.logsigmoid,
        df=lambda z: torch.sigmoid(-z),
        d2f=lambda z: -torch.sigmoid(z) * torch.sigmoid(-z),
    )


@register
def tanh() -> Activation:
    """f = tanh z; f′ = 1 − y²; f″ = −2y(1 − y²)."""

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
        kernel_out=lambda dy, y: aten.tanh_backward.grad_input(dy, y, grad_input=dy),
        f_out=lambda z, out: torch.tanh(z, out=out),
        kernel2=lambda dy, q, y: (
            aten.tanh_backward.default(dy, y),
            aten.tanh_backward.default(q, y),
            q.mul_(dy).mul_(y).mul_(-2),
        ),
    )


@register
def softplus(beta: float = 1.0, threshold: float = 20.0) -> Activation:
    """f = ln(1 + exp(βz))/β, and z itself past βz > threshold; f′ = σ(βz); f″ = β σ(βz) σ(−βz)."""

    def kernel2(dy: Tensor, q: Tensor, z: Tensor) -> Triple:
        u = beta * z
        slope = torch.sigmoid(u).masked_fill_(u > threshold, 1.0)
        curvature = (1 - slope).mul_(slope).mul_(beta).masked_fill_(u == threshold, 0.0)
        return _terms(dy, q, slope, curvature)

    return Activation(
        f=lambda z: F.softplus(z, beta, threshold),
        df=lambda z: torch.sigmoid(beta * z).masked_fill(beta * z > threshold, 1.0),
        d2f=lambda z: (beta * torch.sigmoid(beta * z) * torch.sigmoid(-beta * z)).masked_fill(
            beta * z >= threshold, 0.0
        ),
        kernel=lambda dy, z: aten.softplus_backward.default(dy, z, beta, threshold),
        kernel_out=lambda dy, z: aten.softplus_backward.grad_input(dy, z, beta, threshold, grad_input=dy),
        f_out=lambda z, out: aten.softplus.out(z, beta, threshold, out=out),
        kernel2=kernel2,
    )


@register
def softsign() -> Activation:
    """f = z/(1 + |z|); f′ = 1/(1 + |z|)²; f″ = −2 sgn(z)/(1 + |z|)³."""
    # f′ = (1 − |y|)² is not taken from y: in float16 it loses more than twice torch's accuracy.
    return Activation(
        f=F.softsign,
        df=lambda z: (1 + z.abs()) ** -2,
        d2f=lambda z: -2 * z.sgn() * (1 + z.abs()) ** -3,
    )


@register
def hardtanh(min_val: float = -1.0, max_val: float = 1.0) -> Activation:
    """f = min(max(z, a), b); f′ = 1 strictly between a and b, else 0."""
    if not min_val <= max_val:
        raise ValueError(f"expected min_val <= max_val, got min_val={min_val}, max_val={max_val}")
    # f′ is not taken from y: half precision rounds the bounds, and y with them.
    return Activation(
        f=lambda z: F.hardtanh(z, min_val, max_val),
        df=lambda z: _between(z, min_val, max_val),
        d2f=torch.zeros_like,
        kernel=lambda dy, z: aten.hardtanh_backward.default(dy, z, min_val, max_val),
        kernel_out=lambda dy, z: aten.hardtanh_backward.grad_input(dy, z, min_val, max_val, grad_input=dy),
        f_out=lambda z, out: aten.hardtanh.out(z, min_val, max_val, out=out),
    )


@register
def relu6() -> Activation:
    """f = min(max(z, 0), 6); f′ = 1 strictly between 0 and 6, else 0."""
    return Activation(
        f=F.relu6,
        df=lambda z: _between(z, 0.0, 6.0),
        d2f=torch.zeros_like,
        df_y=lambda y: _between(y, 0.0, 6.0),
        d2f_y=torch.zeros_like,
        kernel=lambda dy, y: aten.hardtanh_backward.default(dy, y, 0.0, 6.0),
        kernel_out=lambda dy, y: aten.hardtanh_backward.grad_input(dy, y, 0.0, 6.0, grad_input=dy),
        f_out=lambda z, out: aten.hardtanh.out(z, 0.0, 6.0, out=out),
    )


@register
def hardsigmoid() -> Activation:
    """f = min(max(z/6 + ½, 0), 1); f′ = 1/6 strictly between −3 and 3, else 0."""

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


@register
def hardswish() -> Activation:
    """f = z min(max(z/6 + ½, 0), 1); f′ = z/3 + ½ between −3 and 3, then 0 below and 1 above."""
    return Activation(
        f=F.hardswish,
        df=lambda z: (z / 3 + 0.5).masked_fill(z <= -3, 0.0).masked_fill(z >= 3, 1.0),
        d2f=lambda z: _between(z, -3.0, 3.0) / 3,
        kernel=aten.hardswish_backward.default,
        f_out=lambda z, out: aten.hardswish.out(z, out=out),
    )


@register
def gelu(approximate: str = "none") -> Activation:
    """f = z Φ(z), Φ the normal distribution function (Hendrycks & Gimpel, 2016).

    "none": f′ = Φ + zφ; f″ = φ(2 − z²), φ the normal density.
    "tanh": f = ½z(1 + t), t = tanh u, u = √(2/π)(z + 0.044715 z³).
    """
    if approximate not in ("none", "tanh"):
        raise ValueError(f"expected approximate 'none' or 'tanh', got {approximate!r}")

    def df(z: Tensor) -> Tensor:
        return 0.5 * torch.erfc(-z * math.sqrt(0.5)) + z * density(z)

    def d2f(z: Tensor) -> Tensor:
        return density(z) * (2 - z * z)

    def density(z: Tensor) -> Tensor:
        return torch.exp(-0.5 * z * z) / math.sqrt(2 * math.pi)

    def kernel2(dy: Tensor, q: Tensor, z: Tensor) -> Triple:
        curvature = z * z
        normal = torch.mul(curvature, -0.5).exp_().mul_(1 / math.sqrt(2 * math.pi))
        slope = torch.mul(z, math.sqrt(0.5)).erf_().add_(1).mul_(0.5).addcmul_(z, normal)
        curvature.neg_().add_(2).mul_(normal)
        return _terms(dy, q, slope, curvature)

    # 1 + t = 2σ(2u) and 1 − t² = 4σ(2u)σ(−2u): the difference itself loses its digits where t is close to ±1.
    def df_tanh(z: Tensor) -> Tensor:
        p, n, du, _ = inner(z)
        return p + 2 * z * p * n * du

    def d2f_tanh(z: Tensor) -> Tensor:
        p, n, du, d2u = inner(z)
        return 4 * p * n * (du + 0.5 * z * d2u - z * (p - n) * du * du)

    def inner(z: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        k, c = math.sqrt(2 / math.pi), 0.044715
        u = k * (z + c * z**3)
        return torch.sigmoid(2 * u), torch.sigmoid(-2 * u), k * (1 + 3 * c * z * z), 6 * k * c * z

    return Activation(
        f=lambda z: F.gelu(z, approximate=approximate),
        df=df if approximate == "none" else df_tanh,
        d2f=d2f if approximate == "none" else d2f_tanh,
        kernel=lambda dy, z: aten.gelu_backward.default(dy, z, approximate=approximate),
        kernel_out=lambda dy, z: aten.gelu_backward.grad_input(dy, z, approximate=approximate, grad_input=dy),
        f_out=lambda z, out: aten.gelu.out(z, approximate=approximate, out=out),
        kernel2=kernel2 if approximate == "none" else None,
    )


def gelu_tanh() -> Activation:
    """GELU in its tanh form: ``gelu("tanh")`` by a name."""
    return gelu("tanh")


FACTORIES["gelu_tanh"] = gelu_tanh


@register
def silu() -> Activation:
    """f = zσ(z); f′ = σ(1 + z(1 − σ)); f″ = σ(1 − σ)(2 + z(1 − 2σ))."""

    def df(z: Tensor) -> Tensor:
        s = torch.sigmoid(z)
        return s * (1 + z * (1 - s))

    def d2f(z: Tensor) -> Tensor:
        s = torch.sigmoid(z)
        return s * (1 - s) * (2 + z * (1 - 2 * s))

    def kernel2(dy: Tensor, q: Tensor, z: Tensor) -> Triple:
        s = torch.sigmoid(z)
        slope = 1 - s
        curvature = torch.sub(slope, s).mul_(z).add_(2).mul_(s).mul_(slope)
        slope.mul_(z).add_(1).mul_(s)
        return _terms(dy, q, slope, curvature)

    return Activation(
        f=F.silu,
        df=df,
        d2f=d2f,
        kernel=aten.silu_backward.default,
        kernel_out=lambda dy, z: aten.silu_backward.grad_input(dy, z, grad_input=dy),
        f_out=lambda z, out: aten.silu.out(z, out=out),
        kernel2=kernel2,
    )


@register
def mish() -> Activation:
    """f = zt, t = tanh(ln(1 + eᶻ)) (Misra, 2019); t′ = σ(1 − t²); f′ = t + zt′; f″ = 2t′ + zt″."""

    def df(z: Tensor) -> Tensor:
        t, s = torch.tanh(F.softplus(z)), torch.sigmoid(z)
        return t + z * s * (1 - t * t)

    def d2f(z: Tensor) -> Tensor:
        t, s = torch.tanh(F.softplus(z)), torch.sigmoid(z)
        return s * (1 - t * t) * (2 + z * (1 - s - 2 * s * t))

    return Activation(
        f=F.mish,
        df=df,
        d2f=d2f,
        kernel=aten.mish_backward.default,
        f_out=lambda z, out: aten.mish.out(z, out=out),
    )


@register
def squared_relu() -> Activation:
    """f = max(z, 0)² (So et al., 2021); f′ = 2 max(z, 0); f″ = 2 where z > 0."""
    # f′ = 2√y is not taken from y: its own derivative is infinite at 0.
    return Activation(
        f=lambda z: torch.relu(z).square(),
        df=lambda z: 2 * torch.relu(z),
        d2f=lambda z: 2 * _step(z, 0.0),
    )


@register
def sin(omega: float = 1.0) -> Activation:
    """f = sin(ωz) (SIREN, Sitzmann et al., 2020: ω = 30); f′ = ω cos(ωz); f″ = −ω² sin(ωz)."""

    def kernel2(dy: Tensor, q: Tensor, z: Tensor) -> Triple:
        curvature = omega * z
        slope = torch.cos(curvature).mul_(omega)
        curvature.sin_().mul_(-(omega**2))
        return _terms(dy, q, slope, curvature)

    return Activation(
        f=lambda z: cast(torch.sin(omega * widen(z)), z.dtype),
        df=lambda z: omega * torch.cos(omega * z),
        d2f=lambda z: -(omega**2) * torch.sin(omega * z),
        kernel=lambda dy, z: cast(torch.mul(widen(z), omega).cos_().mul_(dy).mul_(omega), z.dtype),
        kernel2=kernel2,
    )


@register
def lecun_tanh() -> Activation:
    """f = a tanh(bz), a = 1.7159, b = ⅔ (LeCun et al., 1998); f′ = ab(1 − t²), t = tanh(bz); f″ = −2ab² t(1 − t²)."""
    a, b = 1.7159, 2 / 3

    def df(z: Tensor) -> Tensor:
        t = torch.tanh(b * z)
        return a * b * (1 - t * t)

    def d2f(z: Tensor) -> Tensor:
        t = torch.tanh(b * z)
        return -2 * a * b * b * t * (1 - t * t)

    # f′ is not taken from y: y is rounded past a, and 1 − (y/a)² below 0.
    return Activation(f=lambda z: a * torch.tanh(b * z), df=df, d2f=d2f)


def _terms(dy: Tensor, q: Tensor, slope: Tensor, curvature: Tensor) -> Triple:
    """Multiply with f′ and f″, which are overwritten."""
    return dy * slope, slope.mul_(q), curvature.mul_(q).mul_(dy)


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
        kernel_out=lambda dy, z: aten.elu_backward.grad_input(dy, alpha, scale, rate, False, z, grad_input=dy),
        f_out=lambda z, out: aten.elu.out(z, alpha, scale, rate, out=out),
    )
