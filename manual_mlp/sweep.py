"""The rows of a network, tile by tile, forward and backward: the loops of explicit backpropagation.

A tag names the formula that its line computes; ``docs/derivation.md`` proves each of them.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed, wait
from functools import lru_cache
from itertools import islice
from threading import Barrier, Event, current_thread
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from manual_mlp.activations import IDENTITY, Activation
from manual_mlp.activations.record import cast, times_slope, times_slope_, widen
from manual_mlp.dropout import Mask, drop
from manual_mlp.rules import add_outer, product
from manual_mlp.tiles import Tiling
from manual_mlp.transforms import operations_are_watched

_NAME = "manual_mlp"  # of the worker threads


class Layer(NamedTuple):
    """One layer of a network: y = f(h wᵀ + b), of whose entries dropout zeroes a share."""

    w: Tensor
    b: Tensor | None
    activation: Activation
    dropout: float

    def to(self, dtype: torch.dtype) -> Layer:
        """Turn the operands of the products into a dtype."""
        return self._replace(w=cast(self.w, dtype), b=None if self.b is None else cast(self.b, dtype))


class Trace(NamedTuple):
    """What forward leaves for backward, an entry a layer: h; y or z, None for a last identity; and dropout's masks."""

    h: list[Tensor]
    kept: list[Tensor | None]
    masks: Sequence[Mask | None]
    y: Tensor


class Workspace(NamedTuple):
    """What a tile needs, an entry a layer: wᵀ; z; y where z is kept and f can write to it, else z; δ for backward."""

    wt: Sequence[Tensor]
    z: Sequence[Tensor]
    y: Sequence[Tensor]
    delta: Sequence[Tensor]

    @classmethod
    def of(cls, layers: Sequence[Layer], rows: int, backward: bool) -> Workspace:
        """Allocate for so many rows. Two δ at a time are enough."""
        new = layers[0].w.new_empty
        widths = [len(layer.w) for layer in layers]
        z = [new(rows, width) for width in widths]
        y = [
            new(rows, len(w)) if f.df_y is None and f.f_out is not None else t
            for (w, _, f, _), t in zip(layers, z, strict=True)
        ]
        two = [new(rows * max(widths)) for _ in range(2 if backward else 0)]
        delta = [two[k % 2][: rows * width].view(-1, width) for k, width in enumerate(widths) if backward]
        return cls([layer.w.t() for layer in layers], z, y, delta)

    def first(self, rows: int) -> Workspace:
        """Take the part that a smaller tile needs."""
        return Workspace(self.wt, *([t[:rows] for t in some] for some in self[1:]))


class Total:
    """What stands for a parameter where tiles are added up: it has a ``grad`` too."""

    __slots__ = ("dtype", "grad")

    def __init__(self, dtype: torch.dtype, grad: Tensor | None) -> None:
        self.dtype, self.grad = dtype, grad

    @classmethod
    def of(cls, parameter: Tensor) -> Total:
        """Start from zeros, in float32 at least."""
        dtype = widen(parameter[:0]).dtype
        return cls(dtype, parameter.new_zeros(parameter.shape, dtype=dtype))


class Sum:
    """The gradient of a parameter, added to the ``grad`` of the parameter itself or of what stands for it."""

    __slots__ = ("of",)

    def __init__(self, of: Tensor | Total) -> None:
        self.of = of

    def add_outer(self, delta: Tensor, h: Tensor) -> None:
        """Add δᵀh."""
        grad = self.of.grad
        if grad is None:
            across = isinstance(self.of, Tensor) and not self.of.is_contiguous() and self.of.t().is_contiguous()
            # detach(), for a gradient that is a view could not be changed in place.
            found = torch.mm(h.t(), delta).t().detach() if across else torch.mm(delta.t(), h)  # (B3)
            self.of.grad = cast(found, grad_dtype(self.of))
        elif grad.dtype is delta.dtype:
            product(delta.t(), h, out=grad, plus=grad)  # (B3)
        else:
            add_outer(grad, delta, h)  # (B3)

    def add_rows(self, delta: Tensor) -> None:
        """Add δᵀ1."""
        grad = self.of.grad
        if grad is None:
            self.of.grad = cast(delta.sum(0), grad_dtype(self.of))  # (B4)
        else:
            grad.add_(delta.sum(0) if grad.dtype is delta.dtype else delta.sum(0, dtype=grad.dtype))  # (B4)


Sums = Sequence[tuple[Sum | None, Sum | None]]


def laid_out(grad: Tensor, of: Tensor | Total) -> Tensor:
    """Give a gradient the strides of its parameter where these are dense, as autograd does: optimizers count on it."""
    if isinstance(of, Total) or of.is_contiguous() or not torch.ops.aten.is_non_overlapping_and_dense(of):
        return grad
    return torch.empty_like(of, dtype=grad.dtype).copy_(grad)


def grad_dtype(of: Tensor | Total) -> torch.dtype:
    """Return the dtype of a parameter's gradient, which torch lets a user choose."""
    return getattr(of, "grad_dtype", None) or of.dtype


def masks_of(layers: Sequence[Layer], seed: Tensor | None, row: int = 0) -> list[Mask | None]:
    """List dropout's masks of rows from this one on, None where nothing is zeroed."""
    if seed is None:
        return [None] * len(layers)
    return [Mask(seed, k, layer.dropout, row) if layer.dropout else None for k, layer in enumerate(layers)]


def forward(layers: Sequence[Layer], h: Tensor, space: Workspace | None, masks: Sequence[Mask | None]) -> Trace:
    """Run the network on rows h (n, D_in)."""
    inputs: list[Tensor] = []
    kept: list[Tensor | None] = []
    made: list[Mask | None] = []
    for k, (w, b, activation, _) in enumerate(layers):
        inputs.append(h)
        if space is None:
            z = F.linear(h, w, b)  # (F1)
            y = activation.f(z)  # (F2)
        else:
            wt, z, f_out = space.wt[k], space.z[k], activation.f_out
            z = torch.mm(h, wt, out=z) if b is None else torch.addmm(b, h, wt, out=z)  # (F1)
            y = activation.f(z) if f_out is None else f_out(z, space.y[k])  # (F2)
        kept.append(z if activation.df_y is None else y)
        mask = masks[k]
        mask = mask.made(y) if mask else None
        made.append(mask)
        h = drop(y, mask) if mask else y
    if activation is IDENTITY:
        kept[-1] = None
    return Trace(inputs, kept, made, h)


def forward_again(layers: Sequence[Layer], h: Tensor, space: Workspace | None, masks: Sequence[Mask | None]) -> Trace:
    """Run the network on rows as far as backward needs it: a last identity needs no z."""
    if layers[-1].activation is not IDENTITY:
        return forward(layers, h, space, masks)
    trace = Trace([], [], [], h) if len(layers) == 1 else forward(layers[:-1], h, space, masks)
    return Trace([*trace.h, trace.y], [*trace.kept, None], [*trace.masks, None], trace.y)


def backward(
    layers: Sequence[Layer],
    trace: Trace,
    dy: Tensor,
    sums: Sums,
    lowest: int,
    space: Workspace | None,
    dh_out: Tensor | None = None,
    own: bool = True,
) -> Tensor:
    """Add to the sums of every layer down to the lowest; return its dh if that is -1, the input.

    ``own`` allows dy to be overwritten.
    """
    may_overwrite = not operations_are_watched()
    own = own and may_overwrite
    for k in range(len(layers) - 1, max(lowest, 0) - 1, -1):
        w, _, activation, _ = layers[k]
        kept, delta = trace.kept[k], dy
        if kept is not None:
            delta = times_slope_(dy, kept, activation) if own else times_slope(dy, kept, activation, plain=True)  # (B1)
        dw, db = sums[k]
        if dw is not None:
            dw.add_outer(delta, trace.h[k])
        if db is not None:
            db.add_rows(delta)
        if k > lowest:
            own = may_overwrite
            out = dh_out if k == 0 else space.delta[k - 1] if space is not None else None
            dy = torch.mm(delta, w) if out is None else product(delta, w, out=out)  # (B2)
            mask = trace.masks[k - 1] if k else None
            if mask is not None:
                drop(dy, mask, out=dy)
    return dy


def share_memory(a: Tensor, b: Tensor) -> bool:
    """Tell whether to overwrite one tensor may be to overwrite the other."""
    return a is b or a.untyped_storage().data_ptr() == b.untyped_storage().data_ptr() != 0


class Tile(NamedTuple):
    """Some of the rows: which, who computes them, in what memory, and dropout's masks."""

    at: slice
    worker: int
    space: Workspace | None
    masks: Sequence[Mask | None]


class Sweep:
    """Passes over all rows h (N, D_in) of a network, a tile at a time, without grad mode.

    Args:
        layers: in the dtype of h.
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
            y[tile.at] = forward(self.layers, self._rows(tile.at), tile.space, tile.masks).y

        self._run(work, backward=False)
        return y

    def backward(
        self, dy: Tensor | Callable[[Trace, slice], Tensor], sums: Sequence[Sums], lowest: int
    ) -> Tensor | None:
        """Run forward and backward; return dh if the lowest layer is -1, the input.

        Every worker adds to sums of its own, and those of the first take in the others'.

        Args:
            dy: the gradient by y (N, D_out), or what makes that of a tile, to be overwritten, from its forward pass.
        """
        dh = self.h.new_empty(self.h.shape, dtype=self.dtype) if lowest < 0 else None

        def work(tile: Tile) -> None:
            h = self._rows(tile.at)
            if isinstance(dy, Tensor):
                trace, dy_here, own = forward_again(self.layers, h, tile.space, tile.masks), dy[tile.at], False
            else:
                trace = forward(self.layers, h, tile.space, tile.masks)
                dy_here, own = dy(trace, tile.at), True
            dh_out = None if dh is None else dh[tile.at]
            backward(self.layers, trace, dy_here, sums[tile.worker], lowest, tile.space, dh_out, own)

        self._run(work, backward=True)
        for first, *others in zip(*map(_grads, sums), strict=True):
            for other in others:
                first += other  # (T1)
        return dh

    def _run(self, work: Callable[[Tile], None], backward: bool) -> None:
        """Deal the tiles out to the workers, always in the same way, so that sums come out the same.

        A worker is a thread, and its operations stay on it. One alone is the calling thread, with all of torch's own.
        """
        watched, inference, stopped = operations_are_watched(), torch.is_inference_mode_enabled(), Event()
        # Memory is made here: what a new thread allocates comes from an arena of its own. A mode may know only those
        # operations that make their own.
        spaces = [None if watched else Workspace.of(self.layers, self.rows, backward) for _ in range(self.workers)]

        def part(k: int) -> None:
            with torch.inference_mode(inference), torch.no_grad():
                for at in islice(self._slices(), k, None, self.workers):
                    if stopped.is_set():
                        return
                    rows = at.stop - at.start
                    space = spaces[k]
                    if space is not None and rows != self.rows:
                        space = space.first(rows)
                    work(Tile(at, k, space, masks_of(self.layers, self.seed, at.start)))

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

    def _rows(self, at: slice) -> Tensor:
        return cast(self.h[at], self.dtype)

    def _slices(self) -> Iterator[slice]:
        n = len(self.h)
        return (slice(start, min(start + self.rows, n)) for start in range(0, n, self.rows))


def _grads(sums: Sums) -> list[Tensor]:
    """List what is added up, each once, though layers may share it."""
    found = {id(each.of): each.of.grad for layer in sums for each in layer if each is not None}
    return [grad for grad in found.values() if grad is not None]


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
