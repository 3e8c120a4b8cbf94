"""How many rows of a network at once, and how many threads share them? A model of the time that a choice costs.

A step over N rows of a network of L layers and P parameters, whose layers have S outputs, the widest W of them, takes,
c rows at a time on each of w threads, with b bytes an entry, about::

    T(c) = 6 N P / (products w)             three products a layer: z, dh and dw
         + 10 b N S / (bandwidth w)         what is read and written in between
         + N/c (L call + 3 b P / memory)    the calls, one thread at a time; each tile adds to dw
         + w c b (S + 2 W) / fresh          the memory of the tiles, which the system hands out in fresh pages
         + wake + 3 b P w / memory          if w > 1: to wake the others, and to add up what they found

seconds. ``bandwidth`` is that of the cache that the tiles fit into: the second level, the third, or none. With all rows
as one tile there is nothing to add up, torch's own threads share each operation, at the cost of a tenth of it, and
there are fresh pages for 3 b N S bytes, but for those that malloc has at hand. Where several tiles are run forward once
more (a network under autograd), products take 8 N P and what is between them half as much again. Chosen is the smallest
power of two whose T is within 5 % of the least, or all rows. No more than ``FEW`` rows are one tile: there, calls count
for more than caches.

The figures for CPUs were fitted to networks of four to six layers, 64 to 256 wide, with 2¹⁵ to 2¹⁷ rows in float32, on
one and two cores with AVX-512; ``python -m benchmarks network`` holds the choice against a sweep. Fresh pages count for
half of what they cost under glibc's default malloc, since under a tuned one they cost nothing. A GPU runs as many rows
at once as ``LIMIT`` bytes allow, since its tiles leave the cache between any two operations; this has not been checked
on one.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from itertools import pairwise
from math import ceil
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from manual_mlp.chunks import capabilities, speed_of

if TYPE_CHECKING:
    from manual_mlp.sweep import Layer

# Operations or bytes a second on one core, then seconds.
PRODUCTS, SECOND_LEVEL, THIRD_LEVEL, MEMORY, FRESH = 92e9, 80e9, 60e9, 18e9, 6e9
CALL, SHARED_CALL, WAKE = 20e-6, 40e-6, 0.2e-3
FEW = 256
# Bytes: of the third level, of what malloc has at hand, of all tiles at once (or 512 rows each), of a GPU's tile.
THIRD_LEVEL_BYTES, AT_HAND, TILES, LIMIT = 2**25, 2**25, 2**23, 2**30


class Tiling(NamedTuple):
    """The rows of a tile, and the threads that share the tiles."""

    rows: int
    workers: int


def tiling_of(layers: Sequence[Layer], h: Tensor, rows: int | None, recompute: bool = False) -> Tiling:
    """Choose a tiling for the rows h (N, D_in) of a network, with the rows of a tile if they are given.

    ``recompute`` tells that several tiles are run forward once more, and one is not.
    """
    n, on_cpu = h.size(0), h.is_cpu
    threads = torch.get_num_threads() if on_cpu else 1
    if rows is None:
        if n <= FEW:
            return Tiling(n, 1)
        widths = (h.size(1), *[layer.w.size(0) for layer in layers])
        return _chosen(n, widths, h.dtype, threads, on_cpu, recompute)
    return Tiling(rows, max(1, min(threads, -(-n // rows))))


@lru_cache(maxsize=256)
def _chosen(n: int, widths: tuple[int, ...], dtype: torch.dtype, threads: int, on_cpu: bool, recompute: bool) -> Tiling:
    size, entries = dtype.itemsize, sum(widths[1:])
    row_bytes = size * (entries + 2 * max(widths[1:]))
    if not on_cpu:
        fitting = max(1, LIMIT // (3 * size * entries))
        return Tiling(n if n <= fitting else 1 << (fitting.bit_length() - 1), 1)
    weights = size * sum(d_in * d_out for d_in, d_out in pairwise(widths))
    flops, products = 6 * weights / size, PRODUCTS * speed_of(dtype)
    between = 10 * size * entries

    def seconds(rows: int) -> float:
        tiles = ceil(n / rows)
        workers = min(threads, tiles)
        of_row = between / _bandwidth(rows * row_bytes, workers)
        if tiles == 1:
            busy = n * (flops / products + of_row) / threads * (1.1 if threads > 1 else 1)
            return busy + max(0, 3 * n * size * entries - AT_HAND) / FRESH + len(widths) * CALL
        again, half_again = (4 / 3, 3 / 2) if recompute else (1, 1)
        busy = ceil(tiles / workers) * rows * (again * flops / products + half_again * of_row)
        calls = tiles * (len(widths) * (SHARED_CALL if workers > 1 else CALL) + 3 * weights / MEMORY)
        shared = (WAKE + 3 * weights * workers / MEMORY) if workers > 1 else 0.0
        return busy + calls + shared + workers * rows * row_bytes / FRESH

    most = max(512, TILES // (threads * row_bytes))
    powers = [1 << k for k in range(6, (n - 1).bit_length()) if 1 << k <= most]
    times = {rows: seconds(rows) for rows in [n, *powers]}
    rows = min(rows for rows, time in times.items() if time <= 1.05 * min(times.values()))
    return Tiling(rows, min(threads, ceil(n / rows)))


def _bandwidth(tile_bytes: int, workers: int) -> float:
    """Tell how many bytes a second a core gets, of a tile that it works on beside others."""
    if tile_bytes <= capabilities().get("l2_cache_size", 2**20):
        return SECOND_LEVEL
    return THIRD_LEVEL if workers * tile_bytes <= THIRD_LEVEL_BYTES else MEMORY
