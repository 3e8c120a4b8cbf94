"""A loss of logits that exist already: of narrow ones nothing wider is kept."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from manual_mlp.composite import gradients_by_autograd
from manual_mlp.formulas.losses import Loss, total_of
from manual_mlp.head.functions import weights
from manual_mlp.precision import autocasting, cast, uncast, widen, widened
from manual_mlp.sweep.tiling import few_logits
from manual_mlp.transforms import Caller, below_functions, is_plain

LOGITS = 2**20  # at once


def loss_of_logits(loss: Loss, y: Tensor, reduction: str, who: Caller) -> Tensor:
    """Compute the loss of logits y (N, V) for whoever asks, in float32 at least."""
    if who in ("transform", "composite"):
        return loss.composite(y, reduction)
    narrow = y.dtype in (torch.float16, torch.bfloat16) and not loss.by_entry
    alone = not any(t is not None and t.requires_grad for t in loss.tensors())
    if who == "compiler" or not (narrow and alone) or few_logits(len(y), y.shape[1], y.is_cuda):
        return loss.quick_composite(y, reduction)
    value: Tensor = _LogitsFunction.apply(y, loss.unchanging(), reduction)
    return cast(value, torch.float32) if autocasting(y) else loss.as_torchs(value, y)


class _LogitsFunction(Function):
    # The value of each row or of all, in float32; y is kept, and the logits are widened a few rows at a time.

    @staticmethod
    def forward(ctx: Any, y: Tensor, loss: Loss, reduction: str) -> Tensor:
        values = y.new_empty(len(y), dtype=widened(y.dtype))
        with uncast(y):
            for at in _tiles(y):
                values[at] = loss.values(widen(y[at]), at, False)[0]
            count, ctx.scale = loss.mean_now() if reduction == "mean" else (1.0, 1.0)
        ctx.save_for_backward(y, *loss.tensors())
        ctx.loss, ctx.reduction = loss.emptied(), reduction
        return values if reduction == "none" else cast(total_of(values) / count, values.dtype)

    @staticmethod
    @below_functions
    def backward(ctx: Any, upstream: Tensor) -> Any:
        y, *held = ctx.saved_tensors
        loss: Loss = ctx.loss.holding(held)
        if torch.is_grad_enabled() or not is_plain(upstream):

            def compute(y: Tensor) -> Tensor:
                return cast(loss.composite(widen(y), ctx.reduction), upstream.dtype)

            return *gradients_by_autograd(compute, (y,), upstream, (True,)), None, None
        g = weights(loss, upstream, ctx.scale)
        g, dy = g if g.dim() else g.expand(len(y)), torch.empty_like(y)
        with uncast(y):
            for at in _tiles(y):
                dy[at] = loss.weighted(widen(y[at]), at, g[at])[1]
        return dy, None, None


def _tiles(y: Tensor) -> list[slice]:
    n, rows = len(y), max(1, LOGITS // y.shape[1])
    return [slice(start, min(start + rows, n)) for start in range(0, n, rows)]
