"""The cross-entropy of a softmax, for some rows of its logits z."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from manual_mlp.formulas.losses import Loss, flush_
from manual_mlp.precision import autocasting, cast, widen
from manual_mlp.transforms import operations_are_watched

aten = torch.ops.aten


Subtract = Callable[[Tensor], Tensor]  # takes the target rows a off, in place


@dataclass(eq=False)
class CrossEntropy(Loss):
    """(Σa) ln Σeᶻ − a·z of each row, with a the target row after smoothing and class weights; its y is z.

    Attributes:
        target: classes (n,), or probabilities (n, V).
        weight: of the classes (V,), or None.
        ignore_index: a class whose rows count for nothing.
        label_smoothing: ε.
    """

    target: Tensor
    weight: Tensor | None
    ignore_index: int
    label_smoothing: float
    _found: tuple[Tensor, Tensor, Tensor] | None = field(default=None, init=False)
    by_entry: ClassVar[bool] = False
    promoting: ClassVar[tuple[str, ...]] = ("target", "weight")
    held: ClassVar[tuple[str, ...]] = ("target", "weight")

    def unchanging(self) -> CrossEntropy:
        smoothed = self.label_smoothing and self.target.is_floating_point()
        return replace(self, target=self.target.clone()) if smoothed else self

    def values(self, y: Tensor, at: slice, need_dy: bool) -> tuple[Tensor, Tensor | None]:
        log_p = torch.log_softmax(y, -1, out=y)
        if self._all_count:
            t = self.target[at]
            values, total, subtract = F.nll_loss(log_p, t, reduction="none"), None, _one_hot(t)
        else:
            values, total, subtract = self._compared(log_p, at)
        return values, delta_of_softmax(_exp_(log_p), total, subtract) if need_dy else None

    def reduced(self, y: Tensor, mean: bool, g: Tensor | float | None) -> tuple[Tensor, Tensor]:
        log_p, t = torch.log_softmax(y, -1, out=y), self.target
        if self._is_hard():
            value, count = aten.nll_loss_forward.default(log_p, t, None, 1 if mean else 2, self.ignore_index)
            if count.item() == t.size(0) > 0:
                epsilon, scale = self.label_smoothing, 1 / t.size(0) if mean else 1.0
                share = self._share(log_p)
                if epsilon:
                    value = (1 - epsilon) * value - share * scale * log_p.sum()
                delta = delta_of_softmax(_exp_(log_p), None, _one_hot(t, 1 - epsilon, share))
                delta = delta.mul_(scale) if mean else delta
                return value, delta if g is None else delta.mul_(g)
        # ln p is its own logarithm of the softmax.
        return super().reduced(log_p, mean, g)

    def curvature(self, y: Tensor, q: Tensor, at: slice) -> tuple[Tensor, Tensor]:
        p, total, subtract = self._shares(y, at)
        r = (q - self._whole((p * q).sum(-1, keepdim=True))).mul_(p).mul_(total)  # (O4)
        return delta_of_softmax(p, total, subtract), r

    def _shares(self, y: Tensor, at: slice) -> tuple[Tensor, Tensor, Subtract]:
        """Return p, in the memory of y, Σa (n, 1), and what takes a off."""
        log_p = torch.log_softmax(y, -1, out=y)
        _, total, subtract = self._compared(log_p, at)
        return _exp_(log_p), total, subtract

    def _whole(self, sums: Tensor) -> Tensor:
        """Return sums over all classes from those over the classes at hand, which here are all."""
        return sums

    def _compared(self, log_p: Tensor, at: slice) -> tuple[Tensor, Tensor, Subtract]:
        """Return −a · ln p and Σa (n, 1) of some rows, and what takes a off."""
        epsilon, t, weight = self.label_smoothing, self.target[at], self.weight
        if weight is not None:
            weight = cast(weight, log_p.dtype)
        share = self._share(log_p)
        if t.is_floating_point():
            a = (1 - epsilon) * cast(t, log_p.dtype) + share
            a = a if weight is None else a * weight
            return -(a * log_p).sum(-1), a.sum(-1, keepdim=True), lambda rows: rows.sub_(a)
        values = F.nll_loss(log_p, t, weight, reduction="none", ignore_index=self.ignore_index)
        known, column, total = (of_all[at] for of_all in self._classes())
        total = cast(total, log_p.dtype)
        hard = total if not epsilon else (1 - epsilon) * total

        def subtract(rows: Tensor) -> Tensor:
            return rows.scatter_(1, column, rows.gather(1, column) - hard)

        if not epsilon:
            return values, total, subtract
        soft = log_p.new_full((log_p.shape[-1],), share) if weight is None else share * weight
        values = (1 - epsilon) * values - torch.where(known, log_p @ soft, 0.0)
        soft_rows = known[:, None] * soft
        return values, hard + soft_rows.sum(-1, keepdim=True), lambda rows: subtract(rows.sub_(soft_rows))

    def _share(self, log_p: Tensor) -> float:
        """Return what smoothing gives to each class."""
        return self.label_smoothing / max(log_p.shape[-1], 1)

    def _classes(self) -> tuple[Tensor, Tensor, Tensor]:
        """Tell which rows count (N,), the class of each (N, 1), and its weight (N, 1): 0 where the row does not."""
        if self._found is None:
            known = self.target != self.ignore_index
            column = torch.where(known, self.target, 0).long()[:, None]
            # A class that is out of range is left to nll_loss, which raises torch's own error.
            weight = known[:, None] if self.weight is None else self.weight.take(column.clamp(0, len(self.weight) - 1))
            self._found = known, column, torch.where(known[:, None], weight.double(), 0.0)
        return self._found

    @cached_property
    def _all_count(self) -> bool:
        """Tell whether the target is a class for every row, and all count alike."""
        plain = self._is_hard() and not self.label_smoothing and self.ignore_index < 0
        return plain and len(self.target) > 0 and int(self.target.min()) >= 0

    def _is_hard(self) -> bool:
        """Tell whether all classes count alike, and the target can be looked at: a tracer forbids it, a GPU waits."""
        t = self.target
        looked_at = type(t) is Tensor and t.is_cpu and not operations_are_watched()
        return looked_at and t.dtype is torch.int64 and self.weight is None

    def mean(self) -> tuple[Tensor | float, Tensor | float]:
        if self.target.is_floating_point():
            return super().mean()
        known, _, total = self._classes()
        count = total.sum()
        # Where every row is ignored, the mean is 0/0, but there is no gradient.
        return count, torch.where(known.any(), 1 / count, 0.0)

    def mean_now(self) -> tuple[Tensor | float, Tensor | float]:
        return super().mean() if self._all_count else self.mean()

    def counted(self, g: Tensor, at: slice) -> Tensor:
        return g if self.target.is_floating_point() else torch.where(self._classes()[0][at], g, 0.0)

    def composite(self, y: Tensor, reduction: str) -> Tensor:
        # torch raises for log_softmax where forward mode meets create_graph, and its ONNX export of cross_entropy is
        # wrong with class weights and smoothing.
        z = widen(y)
        if z.shape[-1]:
            z = z - z.detach().amax(-1, keepdim=True)
        values, *_ = self._compared(z - z.exp().sum(-1, keepdim=True).log(), slice(None))
        result = values if reduction == "none" else values.sum()
        if reduction == "mean":
            result = result / self.mean()[0]
        return self.as_torchs(result, y)

    def quick_composite(self, y: Tensor, reduction: str) -> Tensor:
        z, weight = y, self.weight
        if self.label_smoothing and y.dtype is torch.float16 and not autocasting(y):
            # torch adds up the logarithms in float16, past its range.
            z, weight = y.float(), None if weight is None else widen(weight)
        value = F.cross_entropy(z, self.target, weight, None, self.ignore_index, None, reduction, self.label_smoothing)
        return value if z is y else self.as_torchs(value, y)


def _exp_(log_p: Tensor) -> Tensor:
    return flush_(log_p).exp_()


def delta_of_softmax(p: Tensor, total: Tensor | None, subtract: Subtract) -> Tensor:
    """Compute δ over p; a total Σa that is None is 1."""
    return subtract(p if total is None else p.mul_(total))  # (O2)


def _one_hot(t: Tensor, hot: float = 1.0, share: float = 0.0) -> Subtract:
    """Return what takes off ``hot`` at the class of each row, and a share at all of them."""

    def subtract(rows: Tensor) -> Tensor:
        rows = rows.scatter_(1, t.unsqueeze(1), -hot, reduce="add")
        return rows.sub_(share) if share else rows

    return subtract
