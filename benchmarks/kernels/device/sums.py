# mypy: disable-error-code="no-untyped-call, no-untyped-def, untyped-decorator"
"""Sums over all rows: each program has a share of its own in memory, and a second kernel adds the shares up.

A share holds dW and db of each layer in turn, and last the loss. What is added to it is always added by the same
thread, and the shares are added in a fixed order: two runs give the same bits.
"""

from collections.abc import Sequence
from itertools import accumulate, pairwise
from typing import Any

import triton  # type: ignore[import-untyped]
import triton.language as tl  # type: ignore[import-untyped]
from torch import Tensor

from benchmarks.kernels.device.tiles import grid

BLOCK, SHARES = 128, 32  # of `_add_up`: entries of a program, and shares it loads at once
ALIGN = 32  # a share begins at so many entries, or a multiple: where four are added at once


@triton.jit
def put(p, v, WIDTH: tl.constexpr, PAD: tl.constexpr):
    """Write a vector into a share."""
    at = tl.arange(0, PAD)
    tl.store(p + at, v, mask=at < WIDTH)


@triton.jit
def add(p, v, WIDTH: tl.constexpr, PAD: tl.constexpr):
    """Add a vector to what a share holds, in the L2 cache."""
    at = tl.arange(0, PAD)
    tl.atomic_add(p + at, v, mask=at < WIDTH, sem="relaxed")


@triton.jit
def put_matrix(p, v, OUT: tl.constexpr, OUT_PAD: tl.constexpr, IN: tl.constexpr, IN_PAD: tl.constexpr):
    """Write a matrix into a share."""
    at, inside = grid(OUT, OUT_PAD, IN, IN_PAD, False)
    tl.store(p + at, v, mask=inside)


@triton.jit
def add_matrix(p, v, OUT: tl.constexpr, OUT_PAD: tl.constexpr, IN: tl.constexpr, IN_PAD: tl.constexpr):
    """Add a matrix to what a share holds, in the L2 cache."""
    at, inside = grid(OUT, OUT_PAD, IN, IN_PAD, False)
    tl.atomic_add(p + at, v, mask=inside, sem="relaxed")


@triton.jit
def _add_up(
    shares, total, loss, programs, TOTAL: tl.constexpr, STRIDE: tl.constexpr, BLOCK: tl.constexpr, SHARES: tl.constexpr
):
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    found = tl.full((BLOCK,), 0.0, shares.dtype.element_ty)
    for first in range(0, programs, SHARES):
        share = first + tl.arange(0, SHARES)
        inside = (share < programs)[:, None] & (at <= TOTAL)[None, :]
        found += tl.sum(tl.load(shares + share.to(tl.int64)[:, None] * STRIDE + at[None, :], mask=inside, other=0.0), 0)
    tl.store(total + at, found.to(total.dtype.element_ty), mask=at < TOTAL)
    tl.store(loss + at - TOTAL, found, mask=at == TOTAL)


def sizes_of(widths: Sequence[int]) -> list[int]:
    """List the entries of every weight and bias, in turn."""
    return [size for d_in, d_out in pairwise(widths) for size in (d_in * d_out, d_out)]


def constants(widths: Sequence[int]) -> dict[str, Any]:
    """Say where each weight and bias begins in a share (``AT``), and how far shares are apart (``STRIDE``)."""
    sizes = sizes_of(widths)
    return {"AT": tuple(accumulate(sizes, initial=0)), "STRIDE": triton.cdiv(sum(sizes) + 1, ALIGN) * ALIGN}


def add_up(shares: Tensor, weights: Sequence[Tensor]) -> tuple[Tensor, list[Tensor], list[Tensor]]:
    """Add up the shares (programs, STRIDE); return the loss, and dW and db of each layer, views of one tensor."""
    sizes = [size for w in weights for size in (w.numel(), len(w))]
    total, loss = shares.new_empty(sum(sizes), dtype=weights[0].dtype), shares.new_empty(())
    blocks = (triton.cdiv(len(total) + 1, BLOCK),)
    _add_up[blocks](shares, total, loss, len(shares), len(total), shares.shape[1], BLOCK, SHARES)
    found = total.split(sizes)
    return loss, [t.view_as(w) for t, w in zip(found[::2], weights, strict=True)], list(found[1::2])
