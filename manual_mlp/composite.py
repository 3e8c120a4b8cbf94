"""Gradients by torch's own operations: what transforms, compilers and classes of tensors look into."""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from typing import Any, SupportsIndex

import torch
import torch.nn.functional as F
from torch import Tensor

from manual_mlp.activations import Activation
from manual_mlp.activations.entrywise import value
from manual_mlp.formulas.cross_entropy import Options, Stats
from manual_mlp.formulas.layer import y_of, z_of
from manual_mlp.formulas.losses import SquaredError
from manual_mlp.precision import widen
from manual_mlp.transforms import is_dispatched

Found = tuple[Tensor | None, ...]


def gradients_by_autograd(
    compute: Callable[..., Any],
    operands: Sequence[Tensor | None],
    dy: Any,
    needed: Sequence[bool],
    unused: bool = False,
) -> Found:
    """Compute what is needed of the gradients of ``compute(*operands)`` by these, from those by its outputs.

    ``dy`` may be a function of the outputs; ``unused`` gives zeros where none of these depends on an operand. In grad
    mode the gradients can be differentiated further.
    """
    create = torch.is_grad_enabled()
    with torch.enable_grad():
        # A name of its own in the graph, so that what one operand does to another before stays out of it.
        given = [None if t is None else t.view_as(t) if t.requires_grad else t for t in operands]
        y = compute(*given)
        asked = [t for t, need in zip(given, needed, strict=True) if need and t is not None]
        dy = dy(y) if callable(dy) else dy
        found = iter(torch.autograd.grad(y, asked, dy, create_graph=create, materialize_grads=unused))
    return tuple(next(found) if need else None for need in needed)


# Below, torch's own functions, by their names and with the tensors that came: a class, a mode or a tracer sees both.
def torchs_layer(h: Tensor, w: Tensor, b: Tensor | None, activation: Activation) -> Tensor:
    """Call ``F.linear`` and f."""
    return torchs_activation(z_of(h, w, b), activation)


def torchs_activation(z: Tensor, activation: Activation) -> Tensor:
    """Call f."""
    # Of some activations' own backward such a class knows nothing, but the record's f′ is made of what it knows.
    return value(z, activation) if is_dispatched(z) else y_of(z, activation)


def torchs_cross_entropy(z: Tensor, target: Tensor, reduction: str, **options: Any) -> Tensor:
    """Call ``F.cross_entropy`` for logits (*, V), and ``torch.logsumexp`` for a z-loss."""
    weight, ignored, label_smoothing, row_weight, z_loss = Options(**options)
    whole = z
    if z.dim() > 2:
        whole, target = z.flatten(0, -2), target.flatten(0, -2) if target.is_floating_point() else target.flatten()
    target = target.long() if target.dtype is torch.uint8 else target
    ignore = -100 if ignored is None else operator.index(ignored)
    apart = row_weight is not None or z_loss
    by_torch = weight, None, ignore, None, "none" if apart else reduction, float(label_smoothing)
    value = F.cross_entropy(whole, target, *by_torch)
    if not apart:
        return value if whole is z or not value.dim() else value.reshape(z.shape[:-1])
    hard = not target.is_floating_point()
    known = target != ignore if hard else torch.ones_like(value, dtype=torch.bool)
    if z_loss:
        lse = torch.where(known, whole.logsumexp(-1), 0.0)
        value = value + z_loss * lse.square()
    counts = known.to(value.dtype)
    if row_weight is not None:
        counts = torch.where(known, row_weight.reshape(value.shape).to(value.dtype), 0.0)
        value = value * counts
    if reduction == "none":
        return value.reshape(z.shape[:-1])
    if hard and weight is not None:
        counts = counts * weight[torch.where(known, target, 0)].to(counts.dtype)
    return value.sum() if reduction == "sum" else value.sum() / counts.sum()


def stats_of(z: Tensor, target: Tensor, ignored: SupportsIndex | None) -> Stats:
    """Compute what is seen of logits (*, V), and cannot be differentiated."""
    z = widen(z.detach())
    largest = z.argmax(-1)
    if target.is_floating_point():
        return Stats(z.logsumexp(-1), largest == target.argmax(-1))
    return Stats(
        z.logsumexp(-1), (largest == target) & (target != (-100 if ignored is None else operator.index(ignored)))
    )


def torchs_binary_cross_entropy(
    z: Tensor, target: Tensor, reduction: str, weight: Tensor | None = None, pos_weight: Tensor | None = None
) -> Tensor:
    """Call ``F.binary_cross_entropy_with_logits`` for logits (*, V)."""
    # torch 2.14 is wrong where it takes the mean over a DTensor that is cut into unequal parts.
    late = is_dispatched(z) and reduction == "mean"
    value = F.binary_cross_entropy_with_logits(z, target, weight, None, None, "none" if late else reduction, pos_weight)
    return value.mean() if late else value


def torchs_squared_error(y: Tensor, target: Tensor, reduction: str) -> Tensor:
    """Call ``F.mse_loss`` for an output (*, D_out)."""
    if is_dispatched(y):
        # torch 2.14 has wrong gradients for mse_loss's mean over a DTensor that is cut.
        return SquaredError(target).composite(y, reduction)
    return 0.5 * F.mse_loss(y, target, reduction=reduction)
