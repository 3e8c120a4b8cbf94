"""The losses at the end of a network, for a few rows of ``z = h wᵀ + b``: formulas O1 to O4."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import ClassVar, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor

from manual_mlp.activations import Activation
from manual_mlp.activations.record import cast, times_slope, widen
from manual_mlp.dense import autocasting, dense

Self = TypeVar("Self", bound="Loss")


@dataclass(eq=False)
class Loss(ABC):
    """Hold what rows are compared with: the target, and the weights that a loss has.

    Attributes:
        target: one row or entry for each of z.
        by_entry: whether there is a value for each entry of z, instead of each row.
    """

    target: Tensor
    by_entry: ClassVar[bool] = True

    @abstractmethod
    def values(self, z: Tensor, need_delta: bool) -> tuple[Tensor, Tensor | None]:
        """Compute the values before any reduction, and δ, the gradient of their sum by z; z is overwritten."""

    @abstractmethod
    def curvature(self, z: Tensor, q: Tensor) -> tuple[Tensor, Tensor]:
        """Compute δ, and the gradient of Σ q ⊙ δ by z; z is overwritten."""

    @abstractmethod
    def composite(self, h: Tensor, w: Tensor, b: Tensor | None, reduction: str) -> Tensor:
        """Compute the loss of a layer by operations that are right in every mode of differentiation."""

    def mean(self) -> tuple[Tensor | float, Tensor | float]:
        """Return what a mean divides the sum of the values by, and what it multiplies their gradient by."""
        entries = self.target.numel()
        return entries, 1 / entries

    def chunk(self: Self, at: slice) -> Self:
        """Take some of the rows."""
        return self.map(lambda t: t[at])

    def tensors(self) -> list[Tensor]:
        """List the tensors."""
        held = (getattr(self, field.name) for field in fields(self))
        return [t for t in held if isinstance(t, Tensor)]

    def map(self: Self, change: Callable[[Tensor], Tensor]) -> Self:
        """Change every tensor."""
        held = {field.name: getattr(self, field.name) for field in fields(self)}
        return replace(self, **{name: change(t) for name, t in held.items() if isinstance(t, Tensor)})


@dataclass(eq=False)
class SquaredError(Loss):
    """½(y − t)² of each entry, y = f(z).

    Attributes:
        activation: f.
    """

    activation: Activation

    def values(self, z: Tensor, need_delta: bool) -> tuple[Tensor, Tensor | None]:
        y = self.activation.f(z)  # (F2)
        error = y - self.target
        kept = z if self.activation.df_y is None else y
        delta = times_slope(error, kept, self.activation, plain=True) if need_delta else None  # (O1)
        return 0.5 * error.square(), delta

    def curvature(self, z: Tensor, q: Tensor) -> tuple[Tensor, Tensor]:
        error, slope = self.activation.f(z) - self.target, self.activation.df(z)
        r = q * (slope.square() + error * self.activation.d2f(z))  # (S2)
        return error * slope, r  # (O1)

    def composite(self, h: Tensor, w: Tensor, b: Tensor | None, reduction: str) -> Tensor:
        y = dense(h, w, b, self.activation)
        values = 0.5 * (widen(y) - self.target).square()
        result = values if reduction == "none" else values.mean() if reduction == "mean" else values.sum()
        return result if autocasting(h) else cast(result, torch.promote_types(y.dtype, self.target.dtype))


@dataclass(eq=False)
class CrossEntropy(Loss):
    """(Σa) ln Σeᶻ − a·z of each row, with a the target row after smoothing and class weights.

    Attributes:
        target: classes (n,), or probabilities (n, V).
        weight: of the classes (V,), or None.
        ignore_index: a class whose rows count for nothing.
        label_smoothing: ε.
    """

    weight: Tensor | None
    ignore_index: int
    label_smoothing: float
    by_entry: ClassVar[bool] = False

    def values(self, z: Tensor, need_delta: bool) -> tuple[Tensor, Tensor | None]:
        z.sub_(z.amax(-1, keepdim=True))  # p stays, and no exponential overflows
        total, inner, subtract = self._row(z)
        e = _flushed(z).exp_()
        norm = e.sum(-1)
        values = total * norm.log() - inner
        if not self.target.is_floating_point():
            values = values.masked_fill(self.target == self.ignore_index, 0.0)
        return values, subtract(e.mul_((total / norm)[:, None])) if need_delta else None  # (O2)

    def curvature(self, z: Tensor, q: Tensor) -> tuple[Tensor, Tensor]:
        z.sub_(z.amax(-1, keepdim=True))
        total, _, subtract = self._row(z)
        p = _flushed(z).exp_()
        p.div_(p.sum(-1, keepdim=True))
        total_p = p * total[:, None]
        r = (q - (p * q).sum(-1, keepdim=True)).mul_(total_p)  # (O4)
        return subtract(total_p), r  # (O2)

    def _row(self, z: Tensor) -> tuple[Tensor, Tensor, Callable[[Tensor], Tensor]]:
        """Return Σa and a·z of each row, and what subtracts a from such rows in place."""
        epsilon, t, weight = self.label_smoothing, self.target, self.weight
        share = epsilon / z.shape[-1]
        if t.is_floating_point():
            a = (1 - epsilon) * t + share
            a = a if weight is None else a * weight
            return a.sum(-1), (a * z).sum(-1), lambda rows: rows.sub_(a)
        # nll_loss looks z up and weighs it, and raises torch's own error for a class out of range.
        hard = F.nll_loss(z, t, weight, reduction="none", ignore_index=self.ignore_index)
        at, known, each = self._classes(z.dtype)
        inner, each = (epsilon - 1) * hard, (1 - epsilon) * each

        def subtract(rows: Tensor) -> Tensor:
            return rows.scatter_(1, at, rows.gather(1, at) - each[:, None])

        if not share:
            return each, inner, subtract
        soft = z.new_full((z.shape[-1],), share) if weight is None else share * weight
        inner = inner + (z @ soft) * known
        return each + soft.sum() * known, inner, lambda rows: subtract(rows.sub_(torch.outer(known, soft)))

    def _classes(self, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
        """Return the class of each row (n, 1), whether it counts, and its weight; 0 for a row that is ignored."""
        ignored = self.target == self.ignore_index
        at, known = self.target.masked_fill(ignored, 0).long(), (~ignored).to(dtype)
        if self.weight is None:
            return at[:, None], known, known
        return at[:, None], known, self.weight.take(at).to(dtype).masked_fill(ignored, 0.0)

    def mean(self) -> tuple[Tensor | float, Tensor | float]:
        if self.target.is_floating_point():
            return len(self.target), 1 / len(self.target)
        _, known, each = self._classes(torch.float64)
        count = each.sum()
        # Where every row is ignored, the mean is 0/0, but there is no gradient.
        return count, torch.where(known.any(), 1 / count, 0.0)

    def chunk(self, at: slice) -> "CrossEntropy":
        return replace(self, target=self.target[at])

    def composite(self, h: Tensor, w: Tensor, b: Tensor | None, reduction: str) -> Tensor:
        z = F.linear(h, w, b)
        return F.cross_entropy(
            z, self.target, self.weight, None, self.ignore_index, None, reduction, self.label_smoothing
        )


@dataclass(eq=False)
class BinaryCrossEntropy(Loss):
    """−v(ρ t ln σ(z) + (1 − t) ln(1 − σ(z))) of each entry.

    Attributes:
        weight: v (n, V), or None.
        pos_weight: ρ (n, V), or None.
    """

    weight: Tensor | None
    pos_weight: Tensor | None

    def values(self, z: Tensor, need_delta: bool) -> tuple[Tensor, Tensor | None]:
        positive, total = self._shares()
        values = (1 - self.target) * z - total * F.logsigmoid(z)
        delta = _flushed(z).sigmoid_().mul_(total).sub_(positive) if need_delta else None  # (O3)
        if self.weight is not None:
            values, delta = values * self.weight, None if delta is None else delta.mul_(self.weight)
        return values, delta

    def curvature(self, z: Tensor, q: Tensor) -> tuple[Tensor, Tensor]:
        positive, total = self._shares()
        p = _flushed(z).sigmoid_()
        delta, r = total * p - positive, q * total * p * (1 - p)  # (O3, S2)
        return (delta, r) if self.weight is None else (delta.mul_(self.weight), r.mul_(self.weight))

    def _shares(self) -> tuple[Tensor, Tensor | float]:
        """Return ρt and ρt + 1 − t, which is 1 where ρ is."""
        if self.pos_weight is None:
            return self.target, 1.0
        positive = self.pos_weight * self.target
        return positive, positive + (1 - self.target)

    def composite(self, h: Tensor, w: Tensor, b: Tensor | None, reduction: str) -> Tensor:
        z = F.linear(h, w, b)
        return F.binary_cross_entropy_with_logits(z, self.target, self.weight, None, None, reduction, self.pos_weight)


def _flushed(z: Tensor) -> Tensor:
    """Let what would come out of an exponential below e⁻⁶⁴ come out as 0, in place.

    A product with denormal operands is up to 190 times slower. Even a millionth of e⁻⁶⁴ is a normal float32, and what
    is flushed is far below its rounding.
    """
    return z if z.dtype == torch.float64 else F.threshold(z, -64.0, -torch.inf, inplace=True)
