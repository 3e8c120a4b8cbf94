"""The losses known by name: how each is checked, made for the rows of a layer's output, and called as torch's own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, SupportsIndex

import torch
from torch import Tensor

from manual_mlp.checks import check_binary_cross_entropy, check_cross_entropy, check_squared_error, ignored_class
from manual_mlp.composite import torchs_binary_cross_entropy, torchs_cross_entropy, torchs_squared_error
from manual_mlp.engines import engine_for
from manual_mlp.formulas.losses import BinaryCrossEntropy, Loss, SquaredError
from manual_mlp.formulas.products import rows


class Known(NamedTuple):
    """A loss that has a name. What follows the first three arguments of each function are the options, by name.

    Attributes:
        check: ``(input, d_out, target)``: raise an error unless the target fits what a layer makes of this input.
        make: ``(input, target)``: make the loss of the rows of that, checked before.
        torchs: ``(y, target, reduction)``: call torch's own loss of an output ``(*, D_out)``, checked before; None
            where torch has none.
        options: their names.
    """

    check: Callable[..., None]
    make: Callable[..., Any]
    torchs: Callable[..., Tensor] | None = None
    options: tuple[str, ...] = ()


def _cross_entropy(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    ignore_index: SupportsIndex | None = None,
    label_smoothing: float = 0.0,
) -> Loss:
    if target.dtype is torch.uint8:
        target = target.long()  # torch takes an ignore_index below 0 for a class of uint8
    flat = rows(target) if target.is_floating_point() else target if target.dim() == 1 else target.reshape(-1)
    return engine_for(input).cross_entropy(flat, weight, ignored_class(ignore_index), float(label_smoothing))


def _binary_cross_entropy(
    input: Tensor, target: Tensor, weight: Tensor | None = None, pos_weight: Tensor | None = None
) -> Loss:
    return BinaryCrossEntropy(rows(target), _entries(weight, target), _entries(pos_weight, target))


def _squared_error(input: Tensor, target: Tensor) -> Loss:
    return SquaredError(rows(target if target.is_floating_point() else target.to(input.dtype)))


def _entries(t: Tensor | None, target: Tensor) -> Tensor | None:
    """Give a weight of the entries a row for each row of the target, or one for all."""
    if t is None:
        return None
    if t.shape[:-1].numel() == 1:
        return t.reshape(1, -1)
    return rows(t.expand(*target.shape[:-1], t.shape[-1]))


LOSSES: dict[str, Known] = {
    "cross_entropy": Known(
        check_cross_entropy, _cross_entropy, torchs_cross_entropy, ("weight", "ignore_index", "label_smoothing")
    ),
    "squared_error": Known(check_squared_error, _squared_error, torchs_squared_error),
    "binary_cross_entropy": Known(
        check_binary_cross_entropy, _binary_cross_entropy, torchs_binary_cross_entropy, ("weight", "pos_weight")
    ),
}


class Criterion(NamedTuple):
    """A loss, with the target, the reduction and the options that it is asked for with."""

    loss: Known
    target: Tensor
    reduction: str
    options: dict[str, Any]

    def tensors(self) -> list[Tensor]:
        """List the target and the options that are tensors."""
        return [self.target, *[t for t in self.options.values() if isinstance(t, Tensor)]]

    def check(self, input: Tensor, d_out: int) -> None:
        """Raise an error unless the target and the options fit what a layer makes of this input."""
        self.loss.check(input, d_out, self.target, **self.options)

    def make(self, input: Tensor) -> Any:
        """Make the loss of the rows of that."""
        return self.loss.make(input, self.target, **self.options)

    def torchs(self, y: Tensor) -> Tensor:
        """Check, and call torch's own loss of an output ``(*, D_out)``."""
        assert self.loss.torchs is not None
        self.check(y, y.shape[-1])
        return self.loss.torchs(y, self.target, self.reduction, **self.options)
