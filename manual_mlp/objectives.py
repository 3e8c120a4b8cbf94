"""The loss of an explicit step: by its name or as a pair of functions, over all rows of an output."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from manual_mlp.checks import check_tensor
from manual_mlp.formulas.losses import Pair
from manual_mlp.formulas.products import rows
from manual_mlp.loss_checks import check_gradient
from manual_mlp.losses import LOSSES, Criterion, Known
from manual_mlp.nearest import did_you_mean
from manual_mlp.sweep.objective import Objective

OfRows = Callable[[Tensor, Tensor], Tensor]  # of some rows of output and target


def known(loss: str | tuple[OfRows, OfRows], options: dict[str, Any]) -> Known:
    """Find a loss by its name, or make one of a pair, and see that it knows the options."""
    if isinstance(loss, str):
        if loss not in LOSSES:
            near = did_you_mean(loss, LOSSES)
            raise ValueError(f"expected a loss among {', '.join(LOSSES)}, or a pair of functions, got {loss!r}{near}")
        found = LOSSES[loss]
    elif isinstance(loss, tuple) and len(loss) == 2 and all(map(callable, loss)):
        found = Known(_check_rows_of_target, lambda like, target: Pair(_target_rows(like, target), *loss))
    else:
        raise TypeError(f"expected a loss by name, or a pair of functions (value, delta), got {loss!r}")
    for name, option in options.items():
        if isinstance(option, Tensor) and option.requires_grad:
            raise ValueError(f"expected {name} that requires no grad: loss.backward() would give it one")
        if name not in found.options:
            told = ", ".join(found.options) or "none"
            near = did_you_mean(name, found.options)
            raise TypeError(f"expected options among {told} for loss {loss!r}, got {name}{near}")
    return found


def _check_rows_of_target(like: Tensor, _: int, target: Tensor) -> None:
    """Raise an error unless the target of a pair has the rows of the input."""
    check_tensor("target", target)
    leading = like.shape[:-1]
    if target.shape[: len(leading)] != leading:
        raise ValueError(f"expected target {(*leading, '...')}, got {tuple(target.shape)}")


def _target_rows(like: Tensor, target: Tensor) -> Tensor:
    leading = like.dim() - 1
    return target.reshape(target.shape[:leading].numel(), *target.shape[leading:])


def objective_of(criterion: Criterion, like: Tensor, d_out: int, gradient: Tensor | float | None) -> Objective:
    """Make the loss of all rows of an output like this, or of this input, and see that the gradient fits its value."""
    criterion.check(like, d_out)
    loss = criterion.make(like)
    if loss.target.requires_grad:
        raise ValueError("expected a target that requires no grad: loss.backward() would give it one")
    check_gradient(gradient, like)
    whole, mean = rows(like), criterion.reduction == "mean"
    if isinstance(gradient, int):
        gradient = float(gradient)
    apart = criterion.reduction == "none"
    shape = (*like.shape[:-1], *[d_out] * loss.by_entry) if apart else ()
    if apart or isinstance(gradient, Tensor):
        if not isinstance(gradient, Tensor) or gradient.shape != shape:
            got = tuple(gradient.shape) if isinstance(gradient, Tensor) else gradient
            raise ValueError(f"expected a gradient {shape} for the loss, got {got}")
        gradient = gradient.detach()
    if not apart:
        return Objective(loss, whole, mean, gradient=gradient)
    assert isinstance(gradient, Tensor)
    gradient = rows(gradient) if loss.by_entry else gradient.reshape(-1)
    return Objective(loss, whole, apart=tuple(gradient.shape), gradient=gradient)
