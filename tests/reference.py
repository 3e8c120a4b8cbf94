"""The textbook's sums over indices, as loops over floats: the ground truth the package is held against.

Nothing here is fast, and nothing is shared with the rest of the package. Numbers go in and come out as lists, so a
tensor is handed in by ``tensor.tolist()``. Python's floats are float64.

Two layouts appear. The textbook's functions (`row_…`) take one row and write `Z = HW + B`, with `W` of shape `h×y`.
The layer's functions (`layer_…`) take a batch and PyTorch's stored layout: `w[l][k]` is the textbook's `W[k][l]`.
"""

# The index l is the textbook's.
# ruff: noqa: E741
import math
from collections.abc import Callable, Sequence
from math import fsum
from typing import NamedTuple, TypeAlias

Vector: TypeAlias = Sequence[float]
Matrix: TypeAlias = Sequence[Sequence[float]]


class Scalar(NamedTuple):
    """Hold one activation as three functions of a float: f, f′ and f″."""

    f: Callable[[float], float]
    df: Callable[[float], float]
    d2f: Callable[[float], float]


class RowGradients(NamedTuple):
    """Hold ∂J/∂H, ∂J/∂W and ∂J/∂B of one row, each in the shape of what it is the derivative of."""

    dH: list[float]
    dW: list[list[float]]
    dB: list[float]


class LayerGradients(NamedTuple):
    """Hold dh, dw and db of a batch, in the stored layout; db is None where there is no bias."""

    dh: list[list[float]]
    dw: list[list[float]]
    db: list[float] | None


class LayerSecondGradients(NamedTuple):
    """Hold the derivatives of a further cost K by dy, h, w and b of a batch; by_b is None where there is no bias."""

    by_dy: list[list[float]]
    by_h: list[list[float]]
    by_w: list[list[float]]
    by_b: list[float] | None


def kronecker(i: int, l: int) -> float:
    """Return δᵢₗ: 1 where the two indices are equal, 0 where they are not."""
    return 1.0 if i == l else 0.0


def row_z(H: Vector, W: Matrix, B: Vector) -> list[float]:
    """Return Zᵢ = Σₖ Hₖ Wₖᵢ + Bᵢ."""
    return [fsum(H[k] * W[k][i] for k in range(len(H))) + B[i] for i in range(len(B))]


def row_forward(H: Vector, W: Matrix, B: Vector, activation: Scalar) -> list[float]:
    """Return Yᵢ = f(Zᵢ)."""
    return [activation.f(z) for z in row_z(H, W, B)]


def row_cost(Y: Vector, target: Vector) -> float:
    """Return J = ½ Σᵢ (Yᵢ − Yᵢ*)²."""
    return fsum((y - t) ** 2 for y, t in zip(Y, target, strict=True)) / 2


def dJ_dY(Y: Vector, target: Vector) -> list[float]:
    """Return ∂J/∂Yₗ = Σᵢ (Yᵢ − Yᵢ*) δᵢₗ."""
    outputs = range(len(Y))
    return [fsum((Y[i] - target[i]) * kronecker(i, l) for i in outputs) for l in outputs]


def dY_dB(i: int, l: int, Z: Vector, activation: Scalar) -> float:
    """Return ∂Yᵢ/∂Bₗ = f′(Zᵢ) δᵢₗ."""
    return activation.df(Z[i]) * kronecker(i, l)


def dY_dW(i: int, k: int, l: int, H: Vector, Z: Vector, activation: Scalar) -> float:
    """Return ∂Yᵢ/∂Wₖₗ = f′(Zᵢ) Σₘ Hₘ δₘₖ δᵢₗ."""
    return activation.df(Z[i]) * fsum(H[m] * kronecker(m, k) * kronecker(i, l) for m in range(len(H)))


def dY_dH(i: int, k: int, W: Matrix, Z: Vector, activation: Scalar) -> float:
    """Return ∂Yᵢ/∂Hₖ = f′(Zᵢ) Σₘ δₘₖ Wₘᵢ."""
    return activation.df(Z[i]) * fsum(kronecker(m, k) * W[m][i] for m in range(len(W)))


def row_backward(H: Vector, W: Matrix, B: Vector, dY: Vector, activation: Scalar) -> RowGradients:
    """Return ∂J/∂θ = Σᵢ ∂J/∂Yᵢ ∂Yᵢ/∂θ for every entry θ of H, W and B, given any ∂J/∂Y."""
    Z = row_z(H, W, B)
    inputs, outputs = range(len(H)), range(len(B))
    return RowGradients(
        dH=[fsum(dY[i] * dY_dH(i, k, W, Z, activation) for i in outputs) for k in inputs],
        dW=[[fsum(dY[i] * dY_dW(i, k, l, H, Z, activation) for i in outputs) for l in outputs] for k in inputs],
        dB=[fsum(dY[i] * dY_dB(i, l, Z, activation) for i in outputs) for l in outputs],
    )


def row_jvp(
    H: Vector, W: Matrix, B: Vector, H_dot: Vector, W_dot: Matrix, B_dot: Vector, activation: Scalar
) -> list[float]:
    """Return Ẏᵢ = Σ_θ ∂Yᵢ/∂θ θ̇ over every entry θ of H, W and B."""
    Z = row_z(H, W, B)
    inputs, outputs = range(len(H)), range(len(B))
    return [
        fsum(dY_dH(i, k, W, Z, activation) * H_dot[k] for k in inputs)
        + fsum(dY_dW(i, k, l, H, Z, activation) * W_dot[k][l] for k in inputs for l in outputs)
        + fsum(dY_dB(i, l, Z, activation) * B_dot[l] for l in outputs)
        for i in outputs
    ]


def transpose(w: Matrix, rows: int) -> list[list[float]]:
    """Return the matrix whose entry [k][l] is w[l][k]; `rows` of them, so that an empty w has a transpose too."""
    return [[row[k] for row in w] for k in range(rows)]


def layer_forward(h: Matrix, w: Matrix, b: Vector | None, activation: Scalar) -> list[list[float]]:
    """Return y, each row on its own.

    Shape:
        h: (N, D_in), w: (D_out, D_in), b: (D_out,) or None -> (N, D_out)
    """
    B = [0.0] * len(w) if b is None else b
    return [row_forward(H, transpose(w, len(H)), B, activation) for H in h]


def layer_backward(h: Matrix, w: Matrix, b: Vector | None, dy: Matrix, activation: Scalar) -> LayerGradients:
    """Return dh row by row, and dw and db as sums over the rows.

    Shape:
        h: (N, D_in), w: (D_out, D_in), b: (D_out,) or None, dy: (N, D_out) -> as h, w, b
    """
    B = [0.0] * len(w) if b is None else b
    rows = [row_backward(H, transpose(w, len(H)), B, dY, activation) for H, dY in zip(h, dy, strict=True)]
    return LayerGradients(
        dh=[row.dH for row in rows],
        dw=[[fsum(row.dW[k][l] for row in rows) for k in range(len(w[l]))] for l in range(len(w))],
        db=None if b is None else [fsum(row.dB[l] for row in rows) for l in range(len(w))],
    )


def layer_jvp(
    h: Matrix, w: Matrix, b: Vector | None, h_dot: Matrix, w_dot: Matrix, b_dot: Vector | None, activation: Scalar
) -> list[list[float]]:
    """Return ẏ, each row on its own.

    Shape:
        h_dot, w_dot, b_dot: as h, w, b -> (N, D_out)
    """
    B = [0.0] * len(w) if b is None else b
    B_dot = [0.0] * len(w) if b_dot is None else b_dot
    return [
        row_jvp(H, transpose(w, len(H)), B, H_dot, transpose(w_dot, len(H)), B_dot, activation)
        for H, H_dot in zip(h, h_dot, strict=True)
    ]


def layer_second_order(
    h: Matrix,
    w: Matrix,
    b: Vector | None,
    dy: Matrix,
    h_tilde: Matrix | None,
    w_tilde: Matrix | None,
    b_tilde: Vector | None,
    activation: Scalar,
) -> LayerSecondGradients:
    """Return the derivatives of K by all that :func:`layer_backward` takes, given those by all that it returns.

    h̃, w̃ and b̃ are ∂K/∂dh, ∂K/∂dw and ∂K/∂db, and None is a zero.

    Shape:
        h_tilde, w_tilde, b_tilde: as h, w, b -> as dy, h, w, b
    """
    rows, outputs = range(len(h)), range(len(w))
    B = [0.0] * len(w) if b is None else b
    ht = [[0.0] * len(H) for H in h] if h_tilde is None else h_tilde
    wt = [[0.0] * len(column) for column in w] if w_tilde is None else w_tilde
    bt = [0.0] * len(w) if b_tilde is None else b_tilde

    z = [row_z(H, transpose(w, len(H)), B) for H in h]
    slope = [[activation.df(z[n][l]) for l in outputs] for n in rows]
    curvature = [[activation.d2f(z[n][l]) for l in outputs] for n in rows]
    delta = [[dy[n][l] * slope[n][l] for l in outputs] for n in rows]
    # qₙₗ = Σₖ (h̃ₙₖ wₗₖ + w̃ₗₖ hₙₖ) + b̃ₗ is ∂K/∂δₙₗ, and rₙₗ = qₙₗ dyₙₗ f″(zₙₗ) is ∂K/∂zₙₗ.
    q = [
        [fsum(ht[n][k] * w[l][k] + wt[l][k] * h[n][k] for k in range(len(h[n]))) + bt[l] for l in outputs] for n in rows
    ]
    r = [[q[n][l] * dy[n][l] * curvature[n][l] for l in outputs] for n in rows]
    return LayerSecondGradients(
        by_dy=[[q[n][l] * slope[n][l] for l in outputs] for n in rows],
        by_h=[
            [fsum(delta[n][l] * wt[l][k] + r[n][l] * w[l][k] for l in outputs) for k in range(len(h[n]))] for n in rows
        ],
        by_w=[
            [fsum(delta[n][l] * ht[n][k] + r[n][l] * h[n][k] for n in rows) for k in range(len(w[l]))] for l in outputs
        ],
        by_b=None if b is None else [fsum(r[n][l] for n in rows) for l in outputs],
    )


def layer_squared_error(
    h: Matrix, w: Matrix, b: Vector | None, target: Matrix, activation: Scalar
) -> tuple[float, LayerGradients]:
    """Return J = ½ Σ (Y − Y*)² over all rows, and its gradients.

    Shape:
        target: (N, D_out) -> (), as h, w, b
    """
    y = layer_forward(h, w, b, activation)
    cost = fsum(row_cost(Y, T) for Y, T in zip(y, target, strict=True))
    dy = [dJ_dY(Y, T) for Y, T in zip(y, target, strict=True)]
    return cost, layer_backward(h, w, b, dy, activation)


def softmax(Z: Vector) -> list[float]:
    """Return pᵢ = exp(Zᵢ) / Σₗ exp(Zₗ), with the largest Z subtracted from all, which changes no p."""
    powers = [math.exp(z - max(Z)) for z in Z]
    return [power / fsum(powers) for power in powers]


def dp_dZ(i: int, l: int, p: Vector) -> float:
    """Return ∂pᵢ/∂Zₗ = pᵢ (δᵢₗ − pₗ)."""
    return p[i] * (kronecker(i, l) - p[l])


def layer_cross_entropy(
    h: Matrix, w: Matrix, b: Vector | None, a: Matrix
) -> tuple[list[float], list[list[float]], LayerGradients]:
    """Return J = −Σᵢ aᵢ ln pᵢ of each row, δₗ = Σᵢ ∂J/∂pᵢ ∂pᵢ/∂Zₗ, and the gradients of the sum over all rows.

    Shape:
        a: (N, D_out) -> (N,), (N, D_out), as h, w, b
    """
    identity, outputs = ACTIVATIONS["identity"](), range(len(w))
    p = [softmax(Z) for Z in layer_forward(h, w, b, identity)]
    costs = [-fsum(A[i] * math.log(P[i]) for i in outputs) for P, A in zip(p, a, strict=True)]
    dp = [[-A[i] / P[i] for i in outputs] for P, A in zip(p, a, strict=True)]
    delta = [[fsum(dP[i] * dp_dZ(i, l, P) for i in outputs) for l in outputs] for P, dP in zip(p, dp, strict=True)]
    return costs, delta, layer_backward(h, w, b, delta, identity)


def layer_binary_cross_entropy(
    h: Matrix, w: Matrix, b: Vector | None, target: Matrix, weight: Matrix, pos_weight: Vector
) -> tuple[list[list[float]], list[list[float]], LayerGradients]:
    """Return J = −v (ρ t ln p + (1 − t) ln(1 − p)) of each entry, p = σ(z), δ = ∂J/∂p ∂p/∂z, and gradients as above.

    Shape:
        target, weight (v): (N, D_out), pos_weight (ρ): (D_out,) -> (N, D_out), (N, D_out), as h, w, b
    """

    def cost(z: float, t: float, v: float, rho: float) -> float:
        return -v * (rho * t * math.log(_sigma(z)) + (1 - t) * math.log(1 - _sigma(z)))

    def slope(z: float, t: float, v: float, rho: float) -> float:
        p = _sigma(z)
        return -v * (rho * t / p - (1 - t) / (1 - p)) * (p * (1 - p))

    identity = ACTIVATIONS["identity"]()
    rows = list(zip(layer_forward(h, w, b, identity), target, weight, strict=True))
    costs, delta = ([list(map(f, *row, pos_weight)) for row in rows] for f in (cost, slope))
    return costs, delta, layer_backward(h, w, b, delta, identity)


# The activations. Where f has a kink, f′ and f″ are torch's there. No exponent is ever large and positive: math.exp
# raises where torch.exp returns inf.


def _sigma(z: float) -> float:
    return 1 / (1 + math.exp(-z)) if z > 0 else math.exp(z) / (1 + math.exp(z))


def _log1p_exp(z: float) -> float:
    return max(z, 0.0) + math.log1p(math.exp(-abs(z)))


def _sech2(z: float) -> float:
    return 4 * _sigma(2 * z) * _sigma(-2 * z)


def _two_slopes(below: float) -> Scalar:
    return Scalar(lambda z: z if z > 0 else below * z, lambda z: 1.0 if z > 0 else below, lambda z: 0.0)


def _clamped(low: float, high: float) -> Scalar:
    return Scalar(lambda z: min(max(z, low), high), lambda z: 1.0 if low < z < high else 0.0, lambda z: 0.0)


def _exponential_unit(scale: float, alpha: float, rate: float) -> Scalar:
    return Scalar(
        f=lambda z: scale * (z if z > 0 else alpha * math.expm1(rate * z)),
        df=lambda z: scale * (1.0 if z > 0 else alpha * rate * math.exp(rate * z)),
        d2f=lambda z: scale * alpha * rate**2 * math.exp(rate * z) if z < 0 else 0.0,
    )


def _sigmoid() -> Scalar:
    return Scalar(
        f=_sigma,
        df=lambda z: _sigma(z) * _sigma(-z),
        d2f=lambda z: _sigma(z) * _sigma(-z) * (_sigma(-z) - _sigma(z)),
    )


def _logsigmoid() -> Scalar:
    return Scalar(
        f=lambda z: -_log1p_exp(-z),
        df=lambda z: _sigma(-z),
        d2f=lambda z: -_sigma(z) * _sigma(-z),
    )


def _scaled_tanh(height: float, rate: float) -> Scalar:
    return Scalar(
        f=lambda z: height * math.tanh(rate * z),
        df=lambda z: height * rate * _sech2(rate * z),
        d2f=lambda z: -2 * height * rate**2 * math.tanh(rate * z) * _sech2(rate * z),
    )


def _softplus(beta: float, threshold: float) -> Scalar:
    return Scalar(
        f=lambda z: z if beta * z > threshold else _log1p_exp(beta * z) / beta,
        df=lambda z: 1.0 if beta * z > threshold else _sigma(beta * z),
        d2f=lambda z: beta * _sigma(beta * z) * _sigma(-beta * z) if beta * z < threshold else 0.0,
    )


def _softsign() -> Scalar:
    return Scalar(
        f=lambda z: z / (1 + abs(z)),
        df=lambda z: (1 + abs(z)) ** -2,
        d2f=lambda z: -2 * ((z > 0) - (z < 0)) * (1 + abs(z)) ** -3,
    )


def _hardsigmoid() -> Scalar:
    return Scalar(
        f=lambda z: min(max(z + 3, 0.0), 6.0) / 6,
        df=lambda z: 1 / 6 if -3 < z < 3 else 0.0,
        d2f=lambda z: 0.0,
    )


def _hardswish() -> Scalar:
    return Scalar(
        f=lambda z: z * min(max(z + 3, 0.0), 6.0) / 6,
        df=lambda z: z / 3 + 1 / 2 if -3 < z < 3 else float(z > 0),
        d2f=lambda z: 1 / 3 if -3 < z < 3 else 0.0,
    )


def _gelu(approximate: str) -> Scalar:
    if approximate == "tanh":
        return _gelu_tanh()

    def cumulative(z: float) -> float:
        return math.erfc(-z / math.sqrt(2)) / 2

    def density(z: float) -> float:
        return math.exp(-z * z / 2) / math.sqrt(2 * math.pi)

    return Scalar(
        f=lambda z: z * cumulative(z),
        df=lambda z: cumulative(z) + z * density(z),
        d2f=lambda z: (2 - z * z) * density(z),
    )


def _gelu_tanh() -> Scalar:
    # ½(1 + tanh u) is σ(2u), which loses nothing where tanh u is near −1.
    c, a = math.sqrt(2 / math.pi), 0.044715

    def p(z: float) -> float:
        return _sigma(2 * c * (z + a * z**3))

    def q(z: float) -> float:
        return _sigma(-2 * c * (z + a * z**3))

    def du(z: float) -> float:
        return c * (1 + 3 * a * z**2)

    return Scalar(
        f=lambda z: z * p(z),
        df=lambda z: p(z) + 2 * z * p(z) * q(z) * du(z),
        d2f=lambda z: p(z) * q(z) * (4 * du(z) + 12 * c * a * z**2 + 4 * z * (q(z) - p(z)) * du(z) ** 2),
    )


def _silu() -> Scalar:
    return Scalar(
        f=lambda z: z * _sigma(z),
        df=lambda z: _sigma(z) * (1 + z * _sigma(-z)),
        d2f=lambda z: _sigma(z) * _sigma(-z) * (2 + z * (_sigma(-z) - _sigma(z))),
    )


def _mish() -> Scalar:
    def t(z: float) -> float:
        return math.tanh(_log1p_exp(z))

    def dt(z: float) -> float:
        return _sech2(_log1p_exp(z)) * _sigma(z)

    return Scalar(
        f=lambda z: z * t(z),
        df=lambda z: t(z) + z * dt(z),
        d2f=lambda z: dt(z) * (2 + z * _sigma(-z) - 2 * z * t(z) * _sigma(z)),
    )


def _sin(omega: float) -> Scalar:
    return Scalar(
        f=lambda z: math.sin(omega * z),
        df=lambda z: omega * math.cos(omega * z),
        d2f=lambda z: -(omega**2) * math.sin(omega * z),
    )


# Constants: selu from Klambauer et al. (2017), lecun_tanh from LeCun et al., Efficient BackProp (1998).
ACTIVATIONS: dict[str, Callable[..., Scalar]] = {
    "identity": lambda: _two_slopes(1.0),
    "relu": lambda: _two_slopes(0.0),
    "leaky_relu": lambda negative_slope=0.01: _two_slopes(negative_slope),
    "elu": lambda alpha=1.0: _exponential_unit(1.0, alpha, 1.0),
    "celu": lambda alpha=1.0: _exponential_unit(1.0, alpha, 1 / alpha),
    "selu": lambda: _exponential_unit(1.0507009873554804934193349852946, 1.6732632423543772848170429916717, 1.0),
    "sigmoid": _sigmoid,
    "logsigmoid": _logsigmoid,
    "tanh": lambda: _scaled_tanh(1.0, 1.0),
    "lecun_tanh": lambda: _scaled_tanh(1.7159, 2 / 3),
    "softplus": lambda beta=1.0, threshold=20.0: _softplus(beta, threshold),
    "softsign": _softsign,
    "hardtanh": lambda min_val=-1.0, max_val=1.0: _clamped(min_val, max_val),
    "relu6": lambda: _clamped(0.0, 6.0),
    "hardsigmoid": _hardsigmoid,
    "hardswish": _hardswish,
    "gelu": lambda approximate="none": _gelu(approximate),
    "gelu_tanh": _gelu_tanh,
    "silu": _silu,
    "mish": _mish,
    "squared_relu": lambda: Scalar(lambda z: max(z, 0.0) ** 2, lambda z: 2 * max(z, 0.0), lambda z: 2.0 * (z > 0)),
    "sin": lambda omega=1.0: _sin(omega),
}
