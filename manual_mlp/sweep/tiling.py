"""How many rows at once, and how many threads take tiles? One model of the time that a choice costs.

Plain runs one tile after the other, and all of torch's threads share each operation. An engine in C++ may share the
tiles out instead: then each of w threads has one of its own.

A step over N rows of a network of L layers and P weights, whose layers have S outputs, the widest W of them, takes, c
rows at a time with t threads, with b bytes an entry, about::

    T(c) = 6 N P / (products t)              three products a layer: z, dh and dw
         + 10 b N S / (bandwidth t)          what is read and written in between
         + 4 N V / loss                      what is done to V logits of a loss, in float32
         + N/(c w) (L call + 3 b P / memory) the calls; each tile reads w again, and adds to dw
         + w c b (S + 2 W) / fresh           the memory of the tiles, which the system hands out in fresh pages
         + wake + 3 b P w / memory           if w > 1: to wake the others, and to add up what they found

seconds, with w = 1 where tiles are not shared. ``bandwidth`` is that of the cache that the tiles fit into: the second
level, the third, or none. torch's own threads share an operation at the cost of a tenth of it. With all rows as one
tile there is nothing to add up, and there are fresh pages for 3 b N S bytes, but for those that malloc has at hand.
Where several tiles are run forward once more (a network under autograd), products take 8 N P and what is between them
half as much again.

A layer with its loss is a network of one layer whose tiles, each wide, have all of torch's threads. There, what is done
to the logits stands for all that is in between, a tile of c rows has 4 c V bytes of them, and its calls take 0.14 ms.

Chosen is the smallest power of two whose T is within 5 % of the least, or all rows: bytes are worth that. No more than
``FEW`` rows, or ``FEW_LOGITS`` logits, are cut into tiles: there, calls count for more than caches.

The figures for CPUs were fitted to networks of four to six layers, 64 to 256 wide, with 2¹⁵ to 2¹⁷ rows in float32, on
one and two cores with AVX-512; ``python -m benchmarks sizes`` holds the choice against a sweep. Those of a loss were
fitted to 92 steps with N from 256 to 8192, D from 64 to 768 and V from 512 to 32000 in a model of their own, whose
choices the ones here match to 0.2 % of the time on average, and 6 % at worst. Fresh pages count for half of what they
cost under glibc's default malloc, since under a tuned one they cost nothing. A GPU runs as many rows at once as
``LIMIT`` bytes allow, or ``LIMIT_OF_LOGITS``, since its tiles leave the cache between any two operations; this has not
been checked on one.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from itertools import pairwise
from math import ceil
from typing import NamedTuple

import torch
from torch import Tensor

from manual_mlp.formulas.layer import Layer
from manual_mlp.formulas.products import rows as rows_of
from manual_mlp.precision import capabilities, speed_of

# Operations or bytes a second on one core, then seconds.
PRODUCTS, SECOND_LEVEL, THIRD_LEVEL, MEMORY, FRESH, LOSS = 92e9, 80e9, 60e9, 18e9, 6e9, 2e9
CALL, CALL_IN_C, WIDE_CALLS, WAKE = 20e-6, 8e-6, 0.14e-3, 0.2e-3
FEW = 256
FEW_LOGITS, FEW_LOGITS_OF_CUDA = 230_000, 22_500_000
# Bytes: of the third level, of what malloc has at hand, of all tiles at once (or 512 rows each), of a GPU's tile.
THIRD_LEVEL_BYTES, AT_HAND, TILES, LIMIT = 2**25, 2**25, 2**23, 2**30
# Bytes of a tile of logits, on a CPU and on a GPU.
LOGITS, LIMIT_OF_LOGITS = 2**31, 2**28


class Tiling(NamedTuple):
    """The rows of a tile, and the threads that share the tiles."""

    rows: int
    workers: int = 1


class Work(NamedTuple):
    """What is to be done: the rows, the widths of all layers, the dtype of the products, and by how many threads.

    On a GPU there are none. ``shared`` tells that each thread may take tiles of its own; ``recompute`` that several
    tiles are run forward once more, and one is not; ``loss`` that a single layer is run with its loss.
    """

    n: int
    widths: tuple[int, ...]
    dtype: torch.dtype
    threads: int
    shared: bool = False
    recompute: bool = False
    loss: bool = False


def tiling_of(
    layers: Sequence[Layer], h: Tensor, rows: int | None = None, recompute: bool = False, shared: bool = False
) -> Tiling:
    """Choose a tiling for the rows h (N, D_in) of a network, with the rows of a tile if they are given.

    ``recompute`` tells that several tiles are run forward once more; ``shared`` that threads may share them.
    """
    n = h.size(0)
    if rows is None and n <= FEW:
        return Tiling(n)
    threads = torch.get_num_threads() if h.is_cpu else 0
    if rows is not None:
        return Tiling(min(rows, n), max(1, min(threads, ceil(n / rows))) if shared else 1)
    widths = (h.size(1), *[layer.w.size(0) for layer in layers])
    return tiling_for(Work(n, widths, h.dtype, threads, shared, recompute))


def shared_tiling(
    layers: Sequence[Layer], input: Tensor, tile_rows: int | None, recompute: bool = False
) -> Tiling | None:
    """Choose a tiling whose tiles threads may share; None for all rows at once."""
    if tile_rows is None and input.numel() <= FEW * layers[0].w.shape[-1]:
        return None
    h = rows_of(input)
    tiling = tiling_of(layers, h, tile_rows, recompute, shared=True)
    return tiling if tiling.rows < h.size(0) else None


def tiling_of_loss(h: Tensor, d_out: int, dtype: torch.dtype, rows: int | None = None) -> Tiling:
    """Choose a tiling for the rows h (N, D_in) of a layer with its loss, whose products are in a dtype."""
    n, d_in = h.shape
    if rows is not None:
        return Tiling(max(1, min(rows, n)))
    return tiling_for(Work(n, (d_in, d_out), dtype, torch.get_num_threads() if h.is_cpu else 0, loss=True))


def few_logits(n: int, v: int, cuda: bool) -> bool:
    """Tell whether torch's own operations, which keep all logits, are quicker than any tiles."""
    return n * v < (FEW_LOGITS_OF_CUDA if cuda else FEW_LOGITS)


def bytes_on_gpu(work: Work) -> int:
    """Count the bytes of a row of a tile on a GPU: its logits in float32, or what a network makes and keeps of it."""
    entries, size = sum(work.widths[1:]), work.dtype.itemsize
    return max(4, size) * entries if work.loss else 3 * size * entries


def fitting(n: int, row_bytes: int, limit: int) -> int:
    """Return all n rows, or the largest power of two of them whose bytes are within a limit; one at least."""
    most = max(1, limit // row_bytes)
    return n if n <= most else 1 << (most.bit_length() - 1)


@lru_cache(maxsize=256)
def tiling_for(work: Work) -> Tiling:
    """Choose the tiling whose time is least, or nearly so with fewer rows."""
    n, widths, dtype, threads, shared, recompute, loss = work
    if not threads:
        return Tiling(fitting(n, bytes_on_gpu(work), LIMIT_OF_LOGITS if loss else LIMIT))
    size, entries = dtype.itemsize, sum(widths[1:])
    # A tile of logits exists in float32.
    row_bytes = max(4, size) * entries if loss else size * (entries + 2 * max(widths[1:]))
    weights = sum(d_in * d_out for d_in, d_out in pairwise(widths))
    flops, weight_bytes = 6 * weights / (PRODUCTS * speed_of(dtype)), weights * (size if size >= 4 else 8)
    between, of_loss = (0, 4 * entries / LOSS) if loss else (10 * size * entries, 0.0)
    calls = WIDE_CALLS if loss else len(widths) * (CALL_IN_C if shared else CALL)
    together = 1.1 if threads > 1 else 1.0  # what torch's own threads lose

    def workers_of(rows: int) -> int:
        return min(threads, ceil(n / rows)) if shared else 1

    def seconds(rows: int) -> float:
        tiles, workers = ceil(n / rows), workers_of(rows)
        of_row = between / _bandwidth(rows * row_bytes, workers)
        fresh = workers * rows * row_bytes
        if tiles == 1 and not loss:
            fresh = max(0, 3 * n * size * entries - AT_HAND)
        again, half_again = (4 / 3, 3 / 2) if recompute and tiles > 1 else (1, 1)
        # All threads share each operation, or each has tiles of its own.
        busy = n / threads * together if workers == 1 else ceil(tiles / workers) * rows
        time = busy * (again * flops + half_again * of_row) + n * of_loss + fresh / FRESH
        if tiles > 1 or loss:
            time += ceil(tiles / workers) * (calls + 3 * weight_bytes / MEMORY)
        else:
            time += calls
        return time + (WAKE + 3 * weight_bytes * workers / MEMORY if workers > 1 else 0.0)

    least, most = (
        (4, max(16, LOGITS // row_bytes)) if loss else (6, max(512, TILES // ((threads if shared else 1) * row_bytes)))
    )
    powers = [1 << k for k in range(least, (n - 1).bit_length()) if 1 << k <= most]
    whole = [] if loss and n > most and powers else [n]
    times = {rows: seconds(rows) for rows in [*whole, *powers]}
    rows = min(rows for rows, time in times.items() if time <= 1.05 * min(times.values()))
    return Tiling(rows, workers_of(rows))


def _bandwidth(tile_bytes: int, workers: int) -> float:
    """Tell how many bytes a second a core gets, of a tile that it works on beside others."""
    if tile_bytes <= capabilities().get("l2_cache_size", 2**20):
        return SECOND_LEVEL
    return THIRD_LEVEL if workers * tile_bytes <= THIRD_LEVEL_BYTES else MEMORY
