# mypy: disable-error-code="no-untyped-def, untyped-decorator"
"""The end of a network inside a kernel: the rows' losses, and δ of the last layer."""

import triton  # type: ignore[import-untyped]
import triton.language as tl  # type: ignore[import-untyped]

from benchmarks.kernels.device.activations import df, sigmoid, softplus
from benchmarks.kernels.device.tiles import along, grid


@triton.jit
def objective(
    z, target, start, n, scale,
    WIDTH: tl.constexpr, PAD: tl.constexpr, TILE: tl.constexpr, ACT: tl.constexpr, LOSS: tl.constexpr,
    OPEN: tl.constexpr, SUM: tl.constexpr, LEFT: tl.constexpr,
):  # fmt: skip
    """Return the losses (TILE,) of a tile's rows, and δ, both multiplied by ``scale``.

    The target is one of entries, that of "cross_entropy" one of labels (N,), and that of "dy" is ∂J/∂y, for a loss of
    which nothing else is known: there are no losses then, and with ``OPEN`` y = f(z).
    """
    FEATURES: tl.constexpr = 0 if LEFT else 1
    at, inside = grid(n - start, TILE, WIDTH, PAD, LEFT)
    if LOSS == "cross_entropy":
        rows, classes = tl.arange(0, TILE), tl.arange(0, PAD)
        label = tl.load(target + start + rows, mask=rows < n - start, other=-1).to(tl.int32)
        z = tl.where(along(classes < WIDTH, LEFT), z, -float("inf"))
        z = z - tl.expand_dims(tl.max(z, FEATURES), FEATURES)
        e = tl.exp(z)
        total = tl.sum(e, FEATURES)
        hit = along(classes, LEFT) == tl.expand_dims(label, FEATURES)
        entry = tl.log(total) - tl.sum(tl.where(hit, z, 0.0), FEATURES)
        p = e / tl.expand_dims(total, FEATURES)
        losses = tl.where(rows < n - start, entry, 0.0)
        delta = tl.where(inside, p - tl.where(hit, 1.0, 0.0), 0.0)  # (O2)
    else:
        t = tl.load(target + start * WIDTH + at, mask=inside, other=0.0).to(SUM)
        if LOSS == "dy":
            losses = tl.full((TILE,), 0.0, SUM)
            delta = t * df(z, ACT) if OPEN else t  # (B1)
        elif LOSS == "squared_error":
            delta = tl.where(inside, z - t, 0.0)  # (O1)
            losses = 0.5 * tl.sum(delta * delta, FEATURES)
        else:
            tl.static_assert(LOSS == "binary_cross_entropy")
            losses = tl.sum(tl.where(inside, softplus(z) - z * t, 0.0), FEATURES)
            delta = tl.where(inside, sigmoid(z) - t, 0.0)  # (O3)
    return losses * scale, delta * scale
