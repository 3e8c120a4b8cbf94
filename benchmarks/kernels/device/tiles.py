# mypy: disable-error-code="assignment, no-untyped-def, untyped-decorator"
# Triton reads neither an unpacked list nor code after a return.
# ruff: noqa: RUF005, RET505
"""A tile of rows inside a kernel: where its entries lie, and every product of a layer.

``WIDTHS`` are the network's, ``PADS`` those of the tiles: powers of two from 16 up. With ``LEFT`` the weights stand on
the left, z = w h, and a tile is (features, rows); else z = h wᵀ, and a tile is (rows, features). ``HOW`` is what
:func:`benchmarks.kernels.launch.common` makes of a form; what it holds stands at the numbers below.
"""

import triton  # type: ignore[import-untyped]
import triton.language as tl  # type: ignore[import-untyped]

STAYS = tl.constexpr(0)  # the weights stay in shared memory
ON_LEFT = tl.constexpr(1)
HIDDEN = tl.constexpr(2)  # that products follow each other is hidden from the compiler
PRECISION = tl.constexpr(3)  # of products of float32


@triton.jit
def along(v, LEFT: tl.constexpr):
    """Turn a vector of features so that it broadcasts over the rows of a tile."""
    if LEFT:
        return v[:, None]
    else:
        return v[None, :]


@triton.jit
def grid(count, TILE: tl.constexpr, WIDTH: tl.constexpr, PAD: tl.constexpr, LEFT: tl.constexpr):
    """Return the offset of every entry of a tile of a matrix (N, WIDTH), and whether the entry exists."""
    rows, columns = tl.arange(0, TILE), tl.arange(0, PAD)
    if LEFT:
        rows, columns = rows[None, :], columns[:, None]
    else:
        rows, columns = rows[:, None], columns[None, :]
    inside = rows < count
    # A mask that says nothing is none.
    if PAD != WIDTH:
        inside = inside & (columns < WIDTH)
    return rows * WIDTH + columns, inside


@triton.jit
def weight(p, OUT: tl.constexpr, OUT_PAD: tl.constexpr, IN: tl.constexpr, IN_PAD: tl.constexpr):
    """Load a weight (OUT, IN), as nn.Linear holds it."""
    at, inside = grid(OUT, OUT_PAD, IN, IN_PAD, False)
    if OUT_PAD == OUT and IN_PAD == IN:
        return tl.load(p + at)
    else:
        return tl.load(p + at, mask=inside, other=0.0)


@triton.jit
def resident(weights, LAYERS: tl.constexpr, WIDTHS: tl.constexpr, PADS: tl.constexpr, HOW: tl.constexpr):
    """Load the weights that stay; none of them, where they are read again at each use."""
    ws = ()
    for k in tl.static_range(LAYERS):
        if HOW[STAYS]:
            ws = ws + (weight(weights[k], WIDTHS[k + 1], PADS[k + 1], WIDTHS[k], PADS[k]),)
    return ws


@triton.jit
def _held(ws, weights, K: tl.constexpr, none, WIDTHS: tl.constexpr, PADS: tl.constexpr, HOW: tl.constexpr):
    if HOW[STAYS]:
        return ws[K]
    else:
        return weight(weights[K] + none, WIDTHS[K + 1], PADS[K + 1], WIDTHS[K], PADS[K])


@triton.jit
def _dot(a, b, acc, once, HOW: tl.constexpr):
    """Compute acc + a b, with ``HIDE`` in a loop of one turn.

    Where one product feeds another, Triton deals the columns of both to all warps alike, who then do the same work
    twice. It does not see through a loop whose end it does not know.
    """
    if HOW[HIDDEN]:
        for _ in range(once):
            acc = tl.dot(a, b, acc, out_dtype=acc.dtype, input_precision=HOW[PRECISION])
    else:
        acc = tl.dot(a, b, acc, out_dtype=acc.dtype, input_precision=HOW[PRECISION])
    return acc


@triton.jit
def affine(
    ws, weights, biases, K: tl.constexpr, h, none, once,
    WIDTHS: tl.constexpr, PADS: tl.constexpr, TILE: tl.constexpr, SUM: tl.constexpr, HOW: tl.constexpr,
):  # fmt: skip
    """Compute z = h wᵀ + b of layer K; ``none`` is a 0 and ``once`` a 1 that the compiler does not know."""
    w, outs = _held(ws, weights, K, none, WIDTHS, PADS, HOW), tl.arange(0, PADS[K + 1])
    b = tl.load(biases[K] + none + outs, mask=outs < WIDTHS[K + 1], other=0.0).to(SUM)
    if HOW[ON_LEFT]:
        return _dot(w, h, tl.broadcast_to(b[:, None], (PADS[K + 1], TILE)), once, HOW)  # (F1)
    else:
        return _dot(h, tl.trans(w), tl.broadcast_to(b[None, :], (TILE, PADS[K + 1])), once, HOW)  # (F1)


@triton.jit
def ahead(
    ws, weights, K: tl.constexpr, h, none, once,
    WIDTHS: tl.constexpr, PADS: tl.constexpr, TILE: tl.constexpr, SUM: tl.constexpr, HOW: tl.constexpr,
):  # fmt: skip
    """Compute h wᵀ of layer K, without its bias."""
    w = _held(ws, weights, K, none, WIDTHS, PADS, HOW)
    if HOW[ON_LEFT]:
        return _dot(w, h, tl.full((PADS[K + 1], TILE), 0.0, SUM), once, HOW)
    else:
        return _dot(h, tl.trans(w), tl.full((TILE, PADS[K + 1]), 0.0, SUM), once, HOW)


@triton.jit
def across(
    ws, weights, K: tl.constexpr, delta, none, once,
    WIDTHS: tl.constexpr, PADS: tl.constexpr, TILE: tl.constexpr, SUM: tl.constexpr, HOW: tl.constexpr,
):  # fmt: skip
    """Compute dh = δ w of layer K."""
    w = _held(ws, weights, K, none, WIDTHS, PADS, HOW)
    if HOW[ON_LEFT]:
        return _dot(tl.trans(w), delta, tl.full((PADS[K], TILE), 0.0, SUM), once, HOW)  # (B2)
    else:
        return _dot(delta, w, tl.full((TILE, PADS[K]), 0.0, SUM), once, HOW)  # (B2)


@triton.jit
def outer(delta, h, acc, HOW: tl.constexpr):
    """Compute acc + δᵀ h: dw, tile by tile (T1)."""
    if HOW[ON_LEFT]:
        return tl.dot(delta, tl.trans(h), acc, out_dtype=acc.dtype, input_precision=HOW[PRECISION])  # (B3)
    else:
        return tl.dot(tl.trans(delta), h, acc, out_dtype=acc.dtype, input_precision=HOW[PRECISION])  # (B3)


@triton.jit
def drop(t, seed, start, k, TILE: tl.constexpr, PAD: tl.constexpr, P: tl.constexpr, LEFT: tl.constexpr):
    """Apply dropout to a tile, of which a share ``P`` becomes 0.

    An entry's number is the first word of Philox 4×32-10 (Salmon et al., 2011), keyed on the seed, which counts (row,
    its upper half, column, layer): forward and backward agree whatever the tiles.
    """
    rows, columns = start + tl.arange(0, TILE), tl.arange(0, PAD)
    if LEFT:
        rows, columns = rows[None, :], columns[:, None]
    else:
        rows, columns = rows[:, None], columns[None, :]
    none = tl.zeros_like(rows * columns).to(tl.int32)
    bits, _, _, _ = tl.philox(
        seed, none + rows.to(tl.int32), none + (rows >> 32).to(tl.int32), none + columns, none + k
    )
    return tl.where(bits >= tl.full((), int(P * 4294967296), tl.uint32), t * (1 / (1 - P)), 0.0)
