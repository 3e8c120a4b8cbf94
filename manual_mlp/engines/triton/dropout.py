"""Dropout in one pass over memory: the hash of :mod:`manual_mlp.dropout`, computed where the entries are."""

from __future__ import annotations

from typing import Any

import torch
import triton  # type: ignore[import-untyped]
import triton.language as tl  # type: ignore[import-untyped]
from torch import Tensor

_ENTRIES = 2048  # of a program: at most so many columns, and rows to go with them


def drop(t: Tensor, mask: Any) -> Tensor:
    """Multiply ``(*, D)`` by a :class:`~manual_mlp.dropout.Mask`."""
    t = t.contiguous()
    y = torch.empty_like(t)
    if not t.numel():
        return y
    d = t.shape[-1]
    n = t.numel() // d
    columns = min(triton.next_power_of_2(d), _ENTRIES)
    grid = triton.cdiv(n, _ENTRIES // columns), triton.cdiv(d, columns)
    least, scale = mask.rule()
    with torch.cuda.device_of(t):  # type: ignore[no-untyped-call]
        _drop[grid](
            t,
            y,
            mask.seed.to(t.device),
            mask.layer,
            mask.row,
            least,
            n,
            d,
            scale,
            _ENTRIES // columns,
            columns,
        )
    return y


@triton.jit
def _mix(u):  # type: ignore[no-untyped-def]
    u ^= u >> 16
    u *= 0x7FEB352D
    u ^= u >> 15
    return u * 0x846CA68B


@triton.jit(do_not_specialize=["layer", "first", "least"])  # type: ignore[untyped-decorator]
def _drop(  # type: ignore[no-untyped-def]
    t, y, seed, layer, first, least, n, d, SCALE: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr
):
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    inside = (row < n)[:, None] & (column < d)[None, :]
    bits = tl.load(seed)
    key = _mix(_mix(bits.to(tl.uint32) + layer.to(tl.uint32) * 0x9E3779B9) + (bits >> 32).to(tl.uint32))
    u = _mix(_mix(key + (first + row).to(tl.uint32))[:, None] + _mix(column.to(tl.uint32))[None, :])
    at = row.to(tl.int64)[:, None]
    value = tl.load(t + at * d + column[None, :], inside)
    wide = value if value.dtype == tl.float64 else value.to(tl.float32)
    dropped = wide * tl.where(u.to(tl.int32, bitcast=True) >= least, tl.full((), SCALE, wide.dtype), 0.0)
    tl.store(y + at * d + column[None, :], dropped.to(value.dtype), inside)
