"""The cross-entropy of a softmax, for some rows of its logits z."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import ClassVar, NamedTuple, SupportsIndex

import torch
import torch.nn.functional as F
from torch import Tensor

from manual_mlp.formulas.losses import Loss, exp_, total_of
from manual_mlp.precision import cast, widen, widened
from manual_mlp.transforms import operations_are_watched

aten = torch.ops.aten
Subtract = Callable[[Tensor], Tensor]  # takes the target rows a off, in place


class Options(NamedTuple):
    """What a cross-entropy is asked for with, by the names of :func:`manual_mlp.linear_cross_entropy`."""

    weight: Tensor | None = None
    ignore_index: SupportsIndex | None = None
    label_smoothing: float = 0.0
    row_weight: Tensor | None = None
    z_loss: float = 0.0


class Stats(NamedTuple):
    """What is seen of each row beside its loss, detached.

    Attributes:
        logsumexp: ln Σeᶻ of its logits ``(*)``, in float32 at least.
        correct: whether its largest logit is that of its class, or of the likeliest one ``(*)``; of a row that is
            ignored, False.
    """

    logsumexp: Tensor
    correct: Tensor


@dataclass(eq=False)
class CrossEntropy(Loss):
    """u((Σa)ℓ − a·z + ζℓ²) of each row, with ℓ = ln Σeᶻ, and a the target row after smoothing and class weights.

    Its y is z.

    Attributes:
        target: classes (n,), or probabilities (n, V).
        weight: of the classes (V,), or None.
        ignore_index: a class whose rows count for nothing.
        label_smoothing: ε.
        row_weight: u (n,), or None. Below, u is in the a and the ζ of its row.
        z_loss: ζ.
    """

    target: Tensor
    weight: Tensor | None
    ignore_index: int
    label_smoothing: float
    row_weight: Tensor | None = None
    z_loss: float = 0.0
    _found: tuple[Tensor, Tensor, Tensor] | None = field(default=None, init=False)
    seen: Stats | None = field(default=None, init=False)
    by_entry: ClassVar[bool] = False
    promoting: ClassVar[tuple[str, ...]] = ("target", "weight")
    held: ClassVar[tuple[str, ...]] = ("target", "weight", "row_weight")
    of_any_dtype: ClassVar[tuple[str, ...]] = ("row_weight",)

    def unchanging(self) -> CrossEntropy:
        if not (self.label_smoothing and self.target.is_floating_point()):
            return self
        copy = replace(self, target=self.target.clone())
        copy.seen = self.seen
        return copy

    def watched(self, h: Tensor) -> Stats:
        """Return what the next pass over all rows of this input fills in."""
        n = len(self.target)
        self.seen = Stats(h.new_empty(n, dtype=widened(h.dtype)), h.new_empty(n, dtype=torch.bool))
        return self.seen

    def values(self, y: Tensor, at: slice, need_dy: bool) -> tuple[Tensor, Tensor | None]:
        return self._values(*self._logarithms(y, at, y), at, need_dy)

    def _values(self, log_p: Tensor, lse: Tensor | None, at: slice, need_dy: bool) -> tuple[Tensor, Tensor | None]:
        if self._all_count:
            t = self.target[at]
            values, total, subtract = F.nll_loss(log_p, t, reduction="none"), None, _one_hot(t)
        else:
            values, total, subtract = self._compared(log_p, lse, at)
        return values, delta_of_softmax(exp_(log_p), total, subtract) if need_dy else None

    def reduced(self, y: Tensor, mean: bool, g: Tensor | float | None) -> tuple[Tensor, Tensor]:
        (log_p, lse), t = self._logarithms(y, slice(None), y), self.target
        if self._is_hard():
            value, count = aten.nll_loss_forward.default(log_p, t, None, 1 if mean else 2, self.ignore_index)
            if count.item() == t.size(0) > 0:
                epsilon, scale = self.label_smoothing, 1 / t.size(0) if mean else 1.0
                share = self._share(log_p)
                if epsilon:
                    value = (1 - epsilon) * value - share * scale * log_p.sum()
                delta = delta_of_softmax(exp_(log_p), None, _one_hot(t, 1 - epsilon, share))
                delta = delta.mul_(scale) if mean else delta
                return value, delta if g is None else delta.mul_(g)
        values, dy = self._values(log_p, lse, slice(None), True)
        assert dy is not None
        return self.scaled(total_of(values), dy, mean, g)

    def curvature(self, y: Tensor, q: Tensor, at: slice) -> tuple[Tensor, Tensor]:
        p, total, subtract = self._shares(y, at)
        q_mean = self.whole((p * q).sum(-1, keepdim=True))
        r = (q - q_mean).mul_(p).mul_(total)  # (O4)
        if self.z_loss:
            r.addcmul_(p, q_mean.mul_(2 * self.z_loss * self._row_weights(at, p.dtype)))  # (O6)
        return delta_of_softmax(p, total, subtract), r

    def _shares(self, y: Tensor, at: slice) -> tuple[Tensor, Tensor, Subtract]:
        """Return p, in the memory of y, its factor (n, 1) in δ, and what takes a off."""
        log_p, lse = self._logarithms(y, at, y)
        _, total, subtract = self._compared(log_p, lse, at)
        return exp_(log_p), total, subtract

    def _logarithms(self, y: Tensor, at: slice, out: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Compute ln p, and ln Σeᶻ (n, 1) where somebody wants it."""
        if not self.z_loss and self.seen is None:
            return torch.log_softmax(y, -1, out=out), None
        largest, place = y.max(-1, keepdim=True)
        log_p = torch.log_softmax(y, -1, out=out)
        # At the largest logit ln p is small, and the sum exact.
        lse = largest - log_p.gather(1, place)
        if self.seen is not None:
            self.seen.logsumexp[at] = lse[:, 0]
            self.seen.correct[at] = self._is_right(place[:, 0], at)
        return log_p, lse

    def _is_right(self, place: Tensor, at: slice) -> Tensor:
        t = self.target[at]
        return place == t.argmax(-1) if t.is_floating_point() else (place == t) & (t != self.ignore_index)

    def _compared(self, log_p: Tensor, lse: Tensor | None, at: slice) -> tuple[Tensor, Tensor, Subtract]:
        """Return the values of some rows, the factor of p (n, 1) in δ, and what takes a off."""
        values, total, subtract = self._beside(log_p, at)
        return *self._squared(values, total, lse, at), subtract

    def _beside(self, log_p: Tensor, at: slice) -> tuple[Tensor, Tensor, Subtract]:
        """Return −a · ln p and Σa (n, 1) of some rows, and what takes a off."""
        return (self._with_probabilities if self.target.is_floating_point() else self._with_classes)(log_p, at)

    def _squared(self, values: Tensor, total: Tensor, lse: Tensor | None, at: slice) -> tuple[Tensor, Tensor]:
        """Add the z-loss to the values of some rows, and its slope to the factor of p."""
        if not self.z_loss:
            return values, total
        assert lse is not None
        zeta = self.z_loss * self._row_weights(at, lse.dtype)
        if not self.target.is_floating_point():
            lse = torch.where(self._classes()[0][at, None], lse, 0.0)
        return values + (zeta * lse.square()).sum(-1), total + 2 * zeta * lse  # (O5)

    def _with_probabilities(self, log_p: Tensor, at: slice) -> tuple[Tensor, Tensor, Subtract]:
        a = (1 - self.label_smoothing) * cast(self.target[at], log_p.dtype) + self._share(log_p)
        a = a if self.weight is None else a * cast(self.weight, log_p.dtype)
        a = a if self.row_weight is None else a * self._row_weights(at, log_p.dtype)
        return -(a * log_p).sum(-1), a.sum(-1, keepdim=True), lambda rows: rows.sub_(a)

    def _with_classes(self, log_p: Tensor, at: slice) -> tuple[Tensor, Tensor, Subtract]:
        epsilon, t, weight = self.label_smoothing, self.target[at], self.weight
        if weight is not None:
            weight = cast(weight, log_p.dtype)
        share = self._share(log_p)
        known, column, total = (of_all[at] for of_all in self._classes())
        total = cast(total, log_p.dtype)
        hard = total if not epsilon else (1 - epsilon) * total
        u = self._row_weights(at, log_p.dtype)
        values = F.nll_loss(log_p, t, weight, reduction="none", ignore_index=self.ignore_index)
        values = values if self.row_weight is None else values * u[:, 0]
        if torch.compiler.is_exporting():
            # torch 2.14 takes what nll_loss has for each row for one number in its ONNX export.
            values = torch.where(known, -(total * log_p.gather(1, column))[:, 0], 0.0)

        def subtract(rows: Tensor) -> Tensor:
            return rows.scatter_(1, column, rows.gather(1, column) - hard)

        if not epsilon:
            return values, total, subtract
        # A sum is more exact than a product with as many shares.
        soft = log_p.new_full((1,), share) if weight is None else share * weight
        of_soft = share * log_p.sum(-1) if weight is None else log_p @ soft
        values = (1 - epsilon) * values - torch.where(known, of_soft, 0.0) * u[:, 0]
        soft_rows = u * soft
        total = hard + u * (share * log_p.shape[-1] if weight is None else soft.sum())
        return values, total, lambda rows: subtract(rows.sub_(soft_rows))

    def _share(self, log_p: Tensor) -> float:
        """Return what smoothing gives to each class."""
        return self.label_smoothing / max(log_p.shape[-1], 1)

    def _row_weights(self, at: slice, dtype: torch.dtype) -> Tensor:
        """Return the weights of some rows (n, 1), 0 where one is ignored."""
        known = None if self.target.is_floating_point() else self._classes()[0][at, None]
        if self.row_weight is None:
            return self.target.new_ones((), dtype=dtype) if known is None else cast(known, dtype)
        u = cast(self.row_weight[at, None], dtype)
        return u if known is None else torch.where(known, u, 0.0)

    def _classes(self) -> tuple[Tensor, Tensor, Tensor]:
        """Tell which rows are not ignored (N,), the class of each (N, 1), and Σa before smoothing (N, 1)."""
        if self._found is None:
            known = self.target != self.ignore_index
            column = torch.where(known, self.target, 0).long()[:, None]
            # A class that is out of range is left to nll_loss, which raises torch's own error.
            total = known[:, None] if self.weight is None else self.weight.take(column.clamp(0, len(self.weight) - 1))
            total = total.double() if self.row_weight is None else total.double() * self.row_weight[:, None]
            self._found = known, column, torch.where(known[:, None], total, 0.0)
        return self._found

    @cached_property
    def _all_count(self) -> bool:
        """Tell whether the target is a class for every row, and all count alike."""
        plain = self._is_hard() and not self.label_smoothing and self.ignore_index < 0
        return plain and len(self.target) > 0 and int(self.target.min()) >= 0

    def _is_hard(self) -> bool:
        """Tell whether classes and rows count alike, and a target may be looked at: tracers forbid it, a GPU waits."""
        t = self.target
        looked_at = type(t) is Tensor and t.is_cpu and not operations_are_watched()
        alike = self.weight is None and self.row_weight is None and not self.z_loss
        return looked_at and t.dtype is torch.int64 and alike

    def mean(self) -> tuple[Tensor | float, Tensor | float]:
        if self.target.is_floating_point() and self.row_weight is None:
            return super().mean()
        count = self._row_weights(slice(None), torch.float64) if self.target.is_floating_point() else self._classes()[2]
        count = count.sum()
        # Where no row counts, the mean is 0/0, but there is no gradient.
        return count, torch.where(self._some_count(), 1 / count, 0.0)

    def mean_now(self) -> tuple[Tensor | float, Tensor | float]:
        return super().mean() if self._all_count else self.mean()

    def counted(self, g: Tensor, at: slice) -> Tensor:
        return g if self.target.is_floating_point() else torch.where(self._classes()[0][at], g, 0.0)

    def _some_count(self) -> Tensor:
        """Tell whether there is a row that is not ignored, and whose weight is not 0."""
        return self._row_weights(slice(None), torch.float64).any()

    def composite(self, y: Tensor, reduction: str) -> Tensor:
        # torch raises for log_softmax where forward mode meets create_graph, and its ONNX export of cross_entropy is
        # wrong with class weights and smoothing.
        z = widen(y)
        largest = z.detach().amax(-1, keepdim=True) if z.shape[-1] else z.new_zeros(())
        z = z - largest
        lse = z.exp().sum(-1, keepdim=True).log()
        return self._together(z - lse, lse + largest, y, reduction)

    def quick_composite(self, y: Tensor, reduction: str) -> Tensor:
        # torch rounds the logarithms to half precision, under CUDA's autocast too, and adds them up in it.
        z = widen(y)
        if self.row_weight is None and not self.z_loss:
            weight = self.weight if z is y or self.weight is None else widen(self.weight)
            options = weight, None, self.ignore_index, None, reduction, self.label_smoothing
            value = F.cross_entropy(z, self.target, *options)
            return value if z is y else self.as_torchs(value, y)
        z = widen(y)
        log_p, place = torch.log_softmax(z, -1), z.detach().argmax(-1, keepdim=True)
        return self._together(log_p, z.gather(1, place) - log_p.gather(1, place), y, reduction)

    def _together(self, log_p: Tensor, lse: Tensor, y: Tensor, reduction: str) -> Tensor:
        """Compute the loss of all rows y from ln p and ln Σeᶻ (N, 1)."""
        return self._of_values(self._compared(log_p, lse, slice(None))[0], y, reduction)

    def _of_values(self, values: Tensor, y: Tensor, reduction: str) -> Tensor:
        """Compute the loss of all rows y from their values."""
        result = values if reduction == "none" else values.sum()
        if reduction == "mean":
            count, some = self.mean()[0], None if self.row_weight is None else self._some_count()
            mean = result / (count if some is None else torch.where(some, count, 1.0))
            result = cast(mean if some is None else torch.where(some, mean, torch.nan), result.dtype)
        return self.as_torchs(result, y)


def delta_of_softmax(p: Tensor, total: Tensor | None, subtract: Subtract) -> Tensor:
    """Compute δ over p; a total Σa that is None is 1."""
    return subtract(p if total is None else p.mul_(total))  # (O2)


def _one_hot(t: Tensor, hot: float = 1.0, share: float = 0.0) -> Subtract:
    """Return what takes off ``hot`` at the class of each row, and a share at all of them."""

    def subtract(rows: Tensor) -> Tensor:
        rows = rows.scatter_(1, t.unsqueeze(1), -hot, reduce="add")
        return rows.sub_(share) if share else rows

    return subtract
