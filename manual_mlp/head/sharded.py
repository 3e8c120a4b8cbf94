"""The cross-entropy of a layer whose classes are shared out among processes: its weight is a DTensor cut along V."""

from __future__ import annotations

import sys
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd import Function

from manual_mlp.checks import check_layer
from manual_mlp.formulas.cross_entropy import Stats
from manual_mlp.formulas.products import rows
from manual_mlp.formulas.sharded import ShardedCrossEntropy, Share
from manual_mlp.head.functions import loss_of_step
from manual_mlp.head.plan import Head, Step, is_usual
from manual_mlp.losses import LOSSES, Criterion
from manual_mlp.precision import autocast_dtype, product_dtype
from manual_mlp.sweep.tiling import Tiling, Work, tiling_for
from manual_mlp.transforms import caller, has_class, is_plain

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh


def sharded_loss(head: Head, criterion: Criterion, chunk_rows: int | None) -> tuple[Tensor, Stats | None] | None:
    """Compute a cross-entropy whose classes are shared out, and what is seen; None for torch's own operations.

    Each process knows its own logits alone. For the rows of a chunk there is one exchange, and one for dh in the end.
    """
    plan = _Plan.of(head, criterion)
    if plan is None:
        return None
    h, w, b, activation = head
    options = {name: plan.copy(t) for name, t in criterion.options.items()}
    local = criterion._replace(target=plan.copy(criterion.target), options=options)
    input = plan.shared(plan.copy(h))
    check_layer(input, w, b)
    local.check(input, w.shape[0])
    loss = ShardedCrossEntropy.of(local.make(input), plan.share())
    of_rows = Head(rows(input), plan.part(w), None if b is None else plan.part(b), activation)
    step = step_for(loss, of_rows, criterion.reduction, chunk_rows)
    seen = loss.watched(of_rows.h) if criterion.stats else None
    value = loss_of_step(step, of_rows) if step else loss.composite(of_rows.output(), criterion.reduction)
    return plan.like(value, h), seen if seen is None else Stats(*(plan.like(t, h) for t in seen))


class _Plan(NamedTuple):
    """Where the parts of the weight are."""

    mesh: DeviceMesh
    group: Any
    rank: int
    ranks: int
    classes: int

    @classmethod
    def of(cls, head: Head, criterion: Criterion) -> _Plan | None:
        """Find it out, if this is such a weight and nothing else is unusual."""
        tensor = sys.modules.get("torch.distributed.tensor")
        if tensor is None or criterion.loss is not LOSSES["cross_entropy"] or caller() != "eager":
            return None
        h, w, b, _ = head
        if not isinstance(w, tensor.DTensor) or w.device_mesh.ndim != 1 or w.dim() != 2:
            return None
        mesh: DeviceMesh = w.device_mesh

        def lies(t: Any, kind: Any) -> bool:
            placed = isinstance(t, tensor.DTensor) and t.device_mesh == mesh and type(t.placements[0]) is kind
            return placed and (kind is not tensor.Shard or t.placements[0].dim == 0)

        copies = [h, *criterion.tensors()]
        if not (lies(w, tensor.Shard) and (b is None or lies(b, tensor.Shard))) or any(
            t.requires_grad for t in criterion.tensors()
        ):
            return None
        if not all(lies(t, tensor.Replicate) or not has_class(t) or hasattr(t, "trigger_wait") for t in copies):
            return None
        return cls(mesh, mesh.get_group(), mesh.get_local_rank(), mesh.size(), w.shape[0])

    def share(self) -> Share:
        """Tell which classes this process has: torch cuts a DTensor as ``torch.chunk`` does."""
        most = -(-self.classes // self.ranks)
        start = min(self.rank * most, self.classes)
        at = slice(start, min(start + most, self.classes))
        return Share(at, self.classes, most, partial(_gathered, self), lambda t: _Summed.apply(t, self.group))

    def copy(self, t: Any) -> Any:
        """Return what is the same in each process as a plain tensor."""
        return t.to_local() if hasattr(t, "to_local") else t

    def part(self, t: Tensor) -> Tensor:
        """Return the part of this process, whose gradient is a part too."""
        local: Tensor = t.to_local()  # type: ignore[attr-defined]
        at = self.share().at
        if len(local) != at.stop - at.start:
            raise ValueError(
                f"expected rows {at.start} to {at.stop} of a DTensor in this process, got {len(local)} rows"
            )
        return local

    def shared(self, t: Tensor) -> Tensor:
        """Let the gradient by a tensor be the sum of what the processes find."""
        return _Shared.apply(t, self.group)  # type: ignore[no-any-return]

    def like(self, value: Tensor, h: Tensor) -> Tensor:
        """Return a DTensor if the input is one."""
        if not hasattr(h, "to_local"):
            return value
        from torch.distributed.tensor import DTensor, Replicate

        return DTensor.from_local(value, self.mesh, [Replicate()], run_check=False)


def step_for(loss: ShardedCrossEntropy, head: Head, reduction: str, chunk_rows: int | None) -> Step | None:
    """Plan a step, the same in each process; None for torch's operations, where a dtype or a size is unusual."""
    h = head.h
    if not is_usual(loss, head):
        return None
    n, d_in = h.shape
    region = autocast_dtype(h)
    dtype = product_dtype(region or h.dtype, h.device)
    # The chunks may not depend on the width of this process's part, nor on its threads, nor on what its CPU can do.
    widest = max(loss.share.widest, 1)
    tiling = tiling_for(Work(n, (d_in, widest), torch.float32, 1 if h.is_cpu else 0, loss=True))
    tiling = tiling if chunk_rows is None else Tiling(min(chunk_rows, n))
    again = tiling.rows < n and (reduction == "none" or dtype is torch.float16)
    return Step(loss, reduction, head.activation, tiling, dtype, region, again)


def _gathered(plan: _Plan, known: Tensor) -> Tensor:
    of_all = known.new_zeros(plan.ranks, *known.shape)
    of_all[plan.rank] = known
    dist.all_reduce(of_all, group=plan.group)
    return of_all


class _Shared(Function):
    # A tensor that is the same in each process, of whose gradient each finds a part. Its adjoint is the next.

    @staticmethod
    def forward(ctx: Any, t: Tensor, group: Any) -> Tensor:
        ctx.group = group
        # A layer before it may still be waiting for the others.
        waiting: Any = t
        return waiting.wait() if hasattr(t, "trigger_wait") else t.view_as(t)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Any:
        return _Summed.apply(g, ctx.group), None


class _Summed(Function):
    # The sum of what the processes have.

    @staticmethod
    def forward(ctx: Any, t: Tensor, group: Any) -> Tensor:
        if not is_plain(t):
            raise RuntimeError("expected one gradient at a time for a weight that is shared out, got a batch of them")
        ctx.group = group
        total = t.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total, group=group)
        return total

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Any:
        return _Shared.apply(g, ctx.group), None
