"""In which tiles, in which dtype, and whether at all: how a loss is computed together with its layer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from manual_mlp.activations import IDENTITY, Activation
from manual_mlp.composite import Found
from manual_mlp.engines.native.handed import DTYPES, Asked, answers
from manual_mlp.formulas.layer import Layer, z_of
from manual_mlp.formulas.losses import Loss
from manual_mlp.layer import COMPUTE, dense
from manual_mlp.precision import FLOATS, autocast_dtype, cast, product_dtype, speed_of
from manual_mlp.sweep.objective import Objective
from manual_mlp.sweep.tiling import Tiling, few_logits, tiling_of_loss
from manual_mlp.transforms import Caller


class Head(NamedTuple):
    """The last layer of a network, and rows of its input."""

    h: Tensor
    w: Tensor
    b: Tensor | None
    activation: Activation = IDENTITY

    def output(self, who: Caller | None = None) -> Tensor:
        """Compute y, so that every mode is right; for this caller, if it was asked who it is."""
        h, w, b, activation = self
        if activation is IDENTITY:
            return z_of(h, w, b)
        return dense(h, w, b, activation) if who is None else COMPUTE[who](h, w, b, activation)


class Step(NamedTuple):
    """How a loss is computed: in which tiles, with products in which dtype, under which autocast dtype or none."""

    loss: Loss
    reduction: str
    activation: Activation
    tiling: Tiling
    dtype: torch.dtype
    region: torch.dtype | None
    again: bool  # whether backward makes the output once more

    def layers(self, w: Tensor, b: Tensor | None) -> list[Layer]:
        """List the one layer, in the dtype of the products."""
        return [Layer(w, b, self.activation).to(self.dtype)]

    def objective(self, h: Tensor, w: Tensor) -> Objective:
        """Make the objective whose upstream gradients are 1: the sum, or the values apart."""
        apart = None
        if self.reduction == "none":
            apart = (len(h), len(w)) if self.loss.by_entry else (len(h),)
        return Objective(self.loss, h, apart=apart)


def step_for(loss: Loss, head: Head, reduction: str, tile_rows: int | None) -> Step | None:
    """Plan a step, or leave it to the composite, where that is quicker or keeps less."""
    h, w, b, activation = head
    if tile_rows is None and few_logits(len(h), len(w), h.is_cuda):
        return None
    held = {name: t for name, t in zip(loss.held, loss.tensors(), strict=True) if t is not None}
    typed = [t for name, t in held.items() if name not in loss.of_any_dtype]
    dtypes = {t.dtype for t in (h, w, b, *typed) if t is not None and t.is_floating_point()}
    region = autocast_dtype(h)
    mixed = torch.float64 in dtypes if region else len(dtypes) > 1
    if (
        mixed
        or not FLOATS.issuperset(dtypes)
        or any(t.requires_grad for t in held.values())
        or not h.numel()
        or not len(w)
    ):
        return None
    dtype = product_dtype(region or h.dtype, h.device)
    tiling = tiling_of_loss(h, len(w), dtype, tile_rows)
    # An upstream gradient of each row comes before the products; float16, whose range is small, asks for its scale too.
    again = tiling.rows < len(h) and (reduction == "none" or dtype is torch.float16)
    step = Step(loss, reduction, activation, tiling, dtype, region, again)
    if torch.is_grad_enabled() and not (h.requires_grad and w.requires_grad) and _keeps_more(step, h, w, b):
        return None
    return step


def _keeps_more(step: Step, h: Tensor, w: Tensor, b: Tensor | None) -> bool:
    """Tell whether a step with frozen operands keeps more than torch: the logits, h for dw and w for dh."""
    logits, need_dh, need_dw = len(h) * len(w), h.requires_grad, w.requires_grad
    if step.again:
        return h.numel() * (not need_dw) + w.numel() * (not need_dh) + (0 if b is None else len(b)) > logits
    made = logits if step.tiling.rows >= len(h) else h.numel() * need_dh + w.numel() * need_dw
    # create_graph asks for h, whoever needs it besides; w, a parameter, is there in any case.
    return made + h.numel() * (not need_dw) > logits


def in_dtypes(found: Sequence[Tensor | None], dtypes: Sequence[torch.dtype | None]) -> Found:
    """Turn what was found for each operand into its dtype."""
    pairs = zip(found, dtypes, strict=True)
    return tuple(None if t is None or dtype is None else cast(t, dtype) for t, dtype in pairs)


@answers
def rows_of_loss(asked: Asked) -> int:
    """Choose the rows of a tile of many logits, from the input, the width of a row, and the dtype of the products."""
    d_out, dtype = asked.numbers
    return tiling_of_loss(asked.tensors[0], d_out, DTYPES[dtype]).rows  # type: ignore[arg-type]


@answers
def bfloat16_is_fast(_: Asked) -> bool:
    """Tell whether products in bfloat16 are quicker than in float32 on this CPU."""
    return speed_of(torch.bfloat16) > 1
