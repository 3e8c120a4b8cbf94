# mypy: disable-error-code="no-untyped-def, untyped-decorator"
# Triton reads neither an unpacked list nor code after a return.
# ruff: noqa: RET505
"""Activations inside a kernel: f, f′ and f″ by name, in float32 or float64, entry by entry.

They are written for few instructions: an activation costs a small network more time than its products do.
"""

import triton  # type: ignore[import-untyped]
import triton.language as tl  # type: ignore[import-untyped]


@triton.jit
def _tanh(z):
    """Compute tanh z from one exponential that cannot overflow: near 0 right absolutely, not relatively."""
    e = tl.exp(-2 * tl.abs(z))
    return tl.where(z < 0, -1.0, 1.0) * (1 - e) / (1 + e)


@triton.jit
def sigmoid(z):
    """Compute 1 / (1 + exp(−z)) from an exponential that cannot overflow."""
    e = tl.exp(-tl.abs(z))
    return tl.where(z < 0, e, 1.0) / (1 + e)


@triton.jit
def softplus(z):
    """Compute log(1 + exp z) from an exponential that cannot overflow."""
    return tl.maximum(z, 0.0) + tl.log(1 + tl.exp(-tl.abs(z)))


@triton.jit
def _sine(z, COSINE: tl.constexpr):
    """Compute sin z or cos z; in float32 for |z| < 10⁴, in a sixth of the instructions of tl.sin, which holds to any z.

    z less its nearest multiple of π, taken off in three parts (Cody and Waite, 1980), and there a polynomial.
    """
    if z.dtype == tl.float64:
        return tl.cos(z) if COSINE else tl.sin(z)
    else:
        HALF: tl.constexpr = 0.5 if COSINE else 0.0
        # 1.5 · 2²³: a float32 as large has no place for a fraction, and so rounds; its last bit tells odd from even.
        turns = (z * 0.3183098861837907 - HALF) + 12582912.0
        turn = (turns - 12582912.0) + HALF
        r = tl.fma(turn, -3.140625, z)
        r = tl.fma(turn, -9.676535e-04, r)
        r2 = r * r
        s = tl.fma(r2, 2.6083159809786593e-06, -1.981069071916863e-04)
        s = tl.fma(r2, s, 8.3330785855650902e-03)
        s = tl.fma(r2, s, -1.6666659712791443e-01)
        s = tl.fma(r2 * r, s, r)
        odd = (turns.to(tl.int32, bitcast=True) + (1 if COSINE else 0)) << 31
        return (s.to(tl.int32, bitcast=True) ^ odd).to(tl.float32, bitcast=True)


@triton.jit
def _normal(z):
    """Return Φ(z) and φ(z) of the normal distribution; in float32 from one exponential.

    Φ is formula 7.1.26 of Abramowitz and Stegun (1964), right to 1.5e-7.
    """
    e = tl.exp(-0.5 * z * z)
    if z.dtype == tl.float64:
        total = 0.5 * (1 + tl.erf(z * 0.7071067811865476))
    else:
        t = 1 / (1 + 0.23164189 * tl.abs(z))
        tail = tl.fma(t, 0.5307027145, -0.7265760135)
        tail = tl.fma(t, tail, 0.7107068705)
        tail = tl.fma(t, tail, -0.142248368)
        tail = tl.fma(t, tail, 0.127414796) * t * e
        total = tl.where(z < 0, tail, 1 - tail)
    return total, 0.3989422804014327 * e


@triton.jit
def f(z, ACT: tl.constexpr):
    """Compute f(z)."""
    if ACT == "relu":
        return tl.maximum(z, 0.0)
    elif ACT == "gelu":
        total, _ = _normal(z)
        return z * total
    elif ACT == "silu":
        return z * sigmoid(z)
    elif ACT == "tanh":
        return _tanh(z)
    elif ACT == "sin":
        return _sine(z, False)
    else:
        tl.static_assert(ACT == "softplus")
        return softplus(z)


@triton.jit
def df(z, ACT: tl.constexpr):
    """Compute f′(z)."""
    if ACT == "relu":
        return tl.where(z > 0, 1.0, 0.0).to(z.dtype)
    elif ACT == "gelu":
        total, density = _normal(z)
        return total + z * density
    elif ACT == "silu":
        s = sigmoid(z)
        return s * (1 + z * (1 - s))
    elif ACT == "tanh":
        t = _tanh(z)
        return 1 - t * t
    elif ACT == "sin":
        return _sine(z, True)
    else:
        tl.static_assert(ACT == "softplus")
        return sigmoid(z)


@triton.jit
def d2f(z, ACT: tl.constexpr):
    """Compute f″(z), of a smooth activation."""
    if ACT == "gelu":
        return 0.3989422804014327 * tl.exp(-0.5 * z * z) * (2 - z * z)
    elif ACT == "silu":
        s = sigmoid(z)
        return s * (1 - s) * (2 + z * (1 - 2 * s))
    elif ACT == "tanh":
        t = _tanh(z)
        return -2 * t * (1 - t * t)
    elif ACT == "sin":
        return -_sine(z, False)
    else:
        tl.static_assert(ACT == "softplus")
        s = sigmoid(z)
        return s * (1 - s)
