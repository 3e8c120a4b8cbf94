"""The smooth activations that fall and rise: one y belongs to several z, so f′ and f″ are of z alone."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from manual_mlp.activations.monotone import Triple, terms
from manual_mlp.activations.record import Activation
from manual_mlp.activations.registry import register
from manual_mlp.precision import cast, widen

aten = torch.ops.aten


@register(module=nn.GELU)
def gelu(approximate: str = "none") -> Activation:
    """Gaussian error linear unit (Hendrycks & Gimpel, 2016), Φ and φ the normal distribution and its density.

    f = z·Φ(z)
    f′ = Φ(z) + z·φ(z)
    f″ = (2 − z²)·φ(z)

    Example::

        assert gelu().f(torch.tensor([-99.0, 0.0, 99.0])).tolist() == [0.0, 0.0, 99.0]
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
        return terms(dy, q, slope, curvature)

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
        kernel2=kernel2 if approximate == "none" else None,
    )


@register
def gelu_tanh() -> Activation:
    """GELU in its tanh form: ``gelu("tanh")`` by a name.

    f = z·(1 + t)/2
    f′ = (1 + t)/2 + z·s·v/2
    f″ = s·v + z·s·(6·a·c·z − 2·t·v²)/2
    where c = √(2/π), a = 0.044715, t = tanh(c·(z + a·z³)), s = 1 − t², v = c·(1 + 3·a·z²)

    Example::

        assert gelu_tanh() is manual_mlp.activations.get(torch.nn.GELU("tanh"))
    """
    return gelu("tanh")


@register(module=nn.SiLU)
def silu() -> Activation:
    """Sigmoid linear unit, or swish.

    f = z·s
    f′ = s·(1 + z·(1 − s))
    f″ = s·(1 − s)·(2 + z·(1 − 2·s))
    where s = σ(z)

    Example::

        assert silu().df(torch.tensor(0.0)) == 0.5
    """

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
        return terms(dy, q, slope, curvature)

    return Activation(
        f=F.silu,
        df=df,
        d2f=d2f,
        kernel=aten.silu_backward.default,
        kernel2=kernel2,
    )


@register(module=nn.Mish)
def mish() -> Activation:
    """Mish (Misra, 2019).

    f = z·t
    f′ = t + z·r
    f″ = r·(2 + z·(1 − s − 2·s·t))
    where t = tanh(ln(1 + exp(z))), s = σ(z), r = s·(1 − t²)

    Example::

        assert abs(mish().df(torch.tensor(0.0)) - 0.6) < 1e-6
    """

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
    )


@register(source="torch.sin(omega * z)")
def sin(omega: float = 1.0) -> Activation:
    """Sine; SIREN takes ω = 30 (Sitzmann et al., 2020).

    f = sin(omega·z)
    f′ = omega·cos(omega·z)
    f″ = −omega²·sin(omega·z)

    Example::

        assert sin(30.0).df(torch.tensor(0.0)) == 30
    """

    def kernel2(dy: Tensor, q: Tensor, z: Tensor) -> Triple:
        curvature = omega * z
        slope = torch.cos(curvature).mul_(omega)
        curvature.sin_().mul_(-(omega**2))
        return terms(dy, q, slope, curvature)

    return Activation(
        f=lambda z: cast(torch.sin(omega * widen(z)), z.dtype),
        df=lambda z: omega * torch.cos(omega * z),
        d2f=lambda z: -(omega**2) * torch.sin(omega * z),
        kernel=lambda dy, z: cast(torch.mul(widen(z), omega).cos_().mul_(dy).mul_(omega), z.dtype),
        kernel2=kernel2,
    )
