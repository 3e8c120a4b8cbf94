"""The tiles of all rows, dealt out to threads."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed, wait
from functools import lru_cache
from itertools import islice
from threading import Barrier, Event, current_thread
from typing import NamedTuple

import torch
from torch import Tensor

from manual_mlp.formulas.layer import Layer, merge
from manual_mlp.precision import cast
from manual_mlp.sweep.passes import Masks, Trace, Wanted, Workspace, backward, forward, forward_again, masks_of
from manual_mlp.sweep.sums import Sums, grads_of
from manual_mlp.sweep.tiling import Tiling
from manual_mlp.transforms import operations_are_watched

_NAME = "manual_mlp"  # of the worker threads


class Tile(NamedTuple):
    """Some of the rows: which, h of them, who computes them, in what memory, and dropout's masks."""

    at: slice
    h: Tensor
    worker: int
    space: Workspace | None
    masks: Masks


class Sweep:
    """Passes over all rows h (N, D_in) of a network, a tile at a time, without grad mode.

    Args:
        layers: in the dtype of the products.
        seed: of dropout's masks; None where there are none.
    """

    def __init__(self, layers: Sequence[Layer], h: Tensor, tiling: Tiling, seed: Tensor | None = None) -> None:
        self.layers, self.h, self.seed = layers, h, seed
        self.dtype = layers[0].w.dtype
        self.rows, self.workers = tiling

    def forward(self) -> Tensor:
        """Compute y (N, D_out)."""
        y = self.h.new_empty(len(self.h), len(self.layers[-1].w))

        def work(tile: Tile) -> None:
            y[tile.at] = self.trace(tile).y

        self.run(work)
        return y

    def backward(
        self, dy: Tensor | Callable[[Trace, Tile], Tensor], sums: Sequence[Sums], lowest: int
    ) -> Tensor | None:
        """Run forward and backward; return dh if the lowest layer is -1, the input.

        Every worker adds to sums of its own, and those of the first take in the others'.

        Args:
            dy: the gradient by y (N, D_out), or what makes that of a tile, to be overwritten, from its forward pass.
        """
        dh = self.h.new_empty(self.h.shape, dtype=self.dtype) if lowest < 0 else None

        def work(tile: Tile) -> None:
            if isinstance(dy, Tensor):
                trace, dy_here, own = forward_again(self.layers, tile.h, tile.space, tile.masks), dy[tile.at], False
            else:
                trace = self.trace(tile)
                dy_here, own = dy(trace, tile), True
            wanted = Wanted(sums[tile.worker], lowest, None if dh is None else dh[tile.at])
            backward(self.layers, trace, dy_here, wanted, tile.space, own)

        self.run(work, backward=True)
        for first, *others in zip(*map(grads_of, sums), strict=True):
            for other in others:
                merge(first, other)
        return dh

    def trace(self, tile: Tile) -> Trace:
        """Run the network on a tile."""
        return forward(self.layers, tile.h, tile.space, tile.masks)

    def run(self, work: Callable[[Tile], None], backward: bool = False) -> None:
        """Deal the tiles out to the workers, always in the same way, so that sums come out the same.

        A worker is a thread, and its operations stay on it. One alone is the calling thread, with all of torch's own.
        """
        watched, inference, stopped = operations_are_watched(), torch.is_inference_mode_enabled(), Event()
        # Memory is made here: what a new thread allocates comes from an arena of its own. A mode may know only those
        # operations that make their own.
        rows = min(self.rows, len(self.h))
        spaces = [None if watched else Workspace.of(self.layers, rows, backward) for _ in range(self.workers)]

        def part(k: int) -> None:
            with torch.inference_mode(inference), torch.no_grad():
                for at in islice(self._slices(), k, None, self.workers):
                    if stopped.is_set():
                        return
                    space, h = spaces[k], cast(self.h[at], self.dtype)
                    if space is not None and len(h) != rows:
                        space = space.first(len(h))
                    work(Tile(at, h, k, space, masks_of(self.layers, self.seed, at.start)))

        # A mode that watches operations sees its own thread alone, and a worker may not wait for the others.
        if self.workers == 1 or watched or current_thread().name.startswith(_NAME):
            for k in range(self.workers):
                part(k)
            return
        pool = _pool(torch.get_num_threads(), os.getpid())
        jobs = [pool.submit(part, k) for k in range(self.workers)]
        try:
            for job in as_completed(jobs):
                job.result()
        except BaseException:
            stopped.set()
            wait(jobs)
            raise

    def _slices(self) -> Iterator[slice]:
        n = len(self.h)
        return (slice(start, min(start + self.rows, n)) for start in range(0, n, self.rows))


@lru_cache(maxsize=1)
def _pool(threads: int, process: int) -> ThreadPoolExecutor:
    # A forked process has none of its parent's threads, and makes its own.
    pool, all_started = ThreadPoolExecutor(threads, _NAME), Barrier(threads)

    def start() -> None:
        torch.get_num_threads()  # who is first asked later would begin with what all others have, and not with 1
        torch.set_num_threads(1)
        all_started.wait()

    for started in [pool.submit(start) for _ in range(threads)]:
        started.result()
    # What one thread sets is also what threads made later begin with.
    torch.set_num_threads(threads)
    return pool
