"""The losses known by name: how each is checked, made for the rows of a layer's output, and called as torch's own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from manual_mlp.composite import stats_of, torchs_binary_cross_entropy, torchs_cross_entropy, torchs_squared_error
from manual_mlp.engines import engine_for
from manual_mlp.formulas.cross_entropy import Options, Stats
from manual_mlp.formulas.losses import BinaryCrossEntropy, Loss, SquaredError
from manual_mlp.formulas.products import rows
from manual_mlp.loss_checks import check_binary_cross_entropy, check_cross_entropy, check_squared_error, ignored_class
from manual_mlp.nearest import did_you_mean


def _as_it_is(y: Tensor) -> Tensor:
    return y


class Known(NamedTuple):
    """A loss that has a name: all that the package knows of it, and the commands too.

    What follows the named arguments of the first three functions are the options, by name. The explanation writes Y for
    the output and `Y*` for the target, formulas between backticks.

    Attributes:
        check: ``(input, d_out, target)``: raise an error unless the target fits what a layer makes of this input.
        make: ``(input, target)``: make the loss of the rows of that, checked before.
        torchs: ``(y, target, reduction)``: call torch's own loss of an output ``(*, D_out)``, checked before; None
            where torch has none.
        options: their names.
        of_classes: whether a target may be a class for each row, instead of a number for each entry. The rows of
            numbers are probabilities then.
        shares: y to what it says of the classes, from 0 to 1 where the network is right.
        words: what J is, for a reader.
        slope: ∂J/∂Y, as a formula.
        gradient: ``(y, target)`` to that; None where it is shares − target.
        cost: ``(y, target)``, both ``(N, D_out)``, to J, their sum, in operations that take complex numbers; None for
            torch's own.
        written: J, ∂J/∂Y and the shares as formulas of Y and of T, the target, in the syntax of
            :mod:`manual_mlp.explain.expressions`, for a page that computes them; None where there are none.
    """

    check: Callable[..., None]
    make: Callable[..., Any]
    torchs: Callable[..., Tensor] | None = None
    options: tuple[str, ...] = ()
    of_classes: bool = False
    shares: Callable[[Tensor], Tensor] = _as_it_is
    words: str = "the loss"
    slope: str = "what the loss says"
    gradient: Callable[[Tensor, Tensor], Tensor] | None = None
    cost: Callable[[Tensor, Tensor], Tensor] | None = None
    written: tuple[str, str, str] | None = None

    def gradient_of(self, y: Tensor, target: Tensor) -> Tensor:
        """Compute ∂J/∂Y as a reader would write it."""
        return self.shares(y) - target if self.gradient is None else self.gradient(y, target)

    @property
    def has_shares(self) -> bool:
        """Whether the output is something else than what it says of the classes, such as logits."""
        return self.shares is not _as_it_is


def _cross_entropy(input: Tensor, target: Tensor, **options: Any) -> Loss:
    weight, ignored, label_smoothing, row_weight, z_loss = Options(**options)
    if target.dtype is torch.uint8:
        target = target.long()  # torch takes an ignore_index below 0 for a class of uint8
    flat = rows(target) if target.is_floating_point() else target if target.dim() == 1 else target.reshape(-1)
    given = flat, weight, ignored_class(ignored), float(label_smoothing)
    return engine_for(input).cross_entropy(
        *given, None if row_weight is None else row_weight.reshape(-1), float(z_loss)
    )


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


def _cost_of_softmax(y: Tensor, target: Tensor) -> Tensor:
    # Subtracting a constant from a row changes no softmax.
    y = y - y.real.detach().amax(1, keepdim=True)
    return (target.sum(1) * y.exp().sum(1).log() - (target * y).sum(1)).sum()


LOSSES: dict[str, Known] = {
    "cross_entropy": Known(
        check_cross_entropy,
        _cross_entropy,
        torchs_cross_entropy,
        ("weight", "ignore_index", "label_smoothing", "row_weight", "z_loss"),
        of_classes=True,
        shares=lambda y: y.softmax(-1),
        words="the cross-entropy: minus the logarithm of the share that softmax(Y) gives to the right class, added "
        "over rows. A softmax turns a row into shares p; step 9 takes it apart",
        slope="p − Y*,   p = softmax(Y)",
        cost=_cost_of_softmax,
        written=("sum(sum1(T) * lse(Y) - sum1(T * Y))", "softmax(Y) - T", "softmax(Y)"),
    ),
    "squared_error": Known(
        check_squared_error,
        _squared_error,
        torchs_squared_error,
        words="half the sum of the squared differences of Y and `Y*`",
        slope="Y − Y*",
        cost=lambda y, target: 0.5 * (y - target).square().sum(),
        written=("sum((Y - T)**2) / 2", "Y - T", "Y"),
    ),
    "binary_cross_entropy": Known(
        check_binary_cross_entropy,
        _binary_cross_entropy,
        torchs_binary_cross_entropy,
        ("weight", "pos_weight"),
        shares=torch.sigmoid,
        words="the binary cross-entropy: each entry of Y answers yes or no by itself, p = sigmoid(Y) is its share of "
        "yes, and J adds up minus the logarithm of the share of the right answer",
        slope="p − Y*,   p = sigmoid(Y)",
        cost=lambda y, target: (((1 + (-y).exp()).log() + y) - target * y).sum(),
        written=("sum(softplus(Y) - T * Y)", "sigmoid(Y) - T", "sigmoid(Y)"),
    ),
}


def flags() -> tuple[str, ...]:
    """List the names as a command line has them."""
    return tuple(name.replace("_", "-") for name in LOSSES)


def by_flag(flag: str) -> Known:
    """Find a loss by its name, as a command line has it.

    Raises:
        ValueError: the name is not known.
    """
    if flag not in flags():
        raise ValueError(f"expected a loss among {', '.join(flags())}, got {flag!r}{did_you_mean(flag, flags())}")
    return LOSSES[flag.replace("-", "_")]


class Criterion(NamedTuple):
    """A loss, with the target, the reduction and the options that it is asked for with.

    ``stats`` tells that what is seen of each row is asked for too.
    """

    loss: Known
    target: Tensor
    reduction: str
    options: dict[str, Any]
    stats: bool = False

    def tensors(self) -> list[Tensor]:
        """List the target and the options that are tensors."""
        return [self.target, *[t for t in self.options.values() if isinstance(t, Tensor)]]

    def check(self, input: Tensor, d_out: int) -> None:
        """Raise an error unless the target and the options fit what a layer makes of this input."""
        self.loss.check(input, d_out, self.target, **self.options)

    def make(self, input: Tensor) -> Any:
        """Make the loss of the rows of that."""
        return self.loss.make(input, self.target, **self.options)

    def seen(self, y: Tensor, target: Tensor | None = None) -> Stats | None:
        """Look at an output and its target, or this one's, if that is asked for."""
        if not self.stats:
            return None
        return stats_of(y, self.target if target is None else target, self.options["ignore_index"])

    def torchs(self, y: Tensor) -> Tensor:
        """Check, and call torch's own loss of an output ``(*, D_out)``, or its formula in torch's operations."""
        self.check(y, y.shape[-1])
        if self.loss.torchs is None:
            value: Tensor = self.make(y).composite(rows(y), self.reduction)
            return value.reshape(y.shape[:-1] + value.shape[1:]) if value.dim() else value
        return self.loss.torchs(y, self.target, self.reduction, **self.options)
