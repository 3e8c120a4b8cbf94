"""The cross-entropy of a softmax whose classes are shared out among processes, for some rows of this one's logits."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, fields
from functools import cached_property
from typing import Any, NamedTuple

import torch
from torch import Tensor

from manual_mlp.formulas.cross_entropy import CrossEntropy, Subtract, delta_of_softmax
from manual_mlp.formulas.losses import Loss, exp_, flush_shares_
from manual_mlp.precision import cast, widen


class Share(NamedTuple):
    """The classes that this process has, of how many, and how it hears of the others'.

    Attributes:
        at: which classes.
        classes: how many there are.
        widest: how many a process has at most.
        gather: from what this process knows of each row (n, k), what every one does (processes, n, k): one exchange.
        add: the sum over the processes, which can be differentiated.
    """

    at: slice
    classes: int
    widest: int
    gather: Callable[[Tensor], Tensor]
    add: Callable[[Tensor], Tensor]


@dataclass(eq=False)
class ShardedCrossEntropy(CrossEntropy):
    """The same of logits of which this process has the columns of its classes; values, and what counts, are of all.

    Of each row a process tells the others its largest logit m, Σeᶻ⁻ᵐ, −a · (z − m) and Σa over its own classes. Each
    then finds ln p from these by itself.

    Attributes:
        target, weight: whole, the same in each process.
        share: the classes of this one.
    """

    share: Share = field(kw_only=True)

    @classmethod
    def of(cls, loss: CrossEntropy, share: Share) -> ShardedCrossEntropy:
        """Make it of a loss of all classes."""
        return cls(**{each.name: getattr(loss, each.name) for each in fields(loss) if each.init}, share=share)

    def values(self, y: Tensor, at: slice, need_dy: bool) -> tuple[Tensor, Tensor | None]:
        values, e, scale, total, subtract = self._met(y, at)
        return values, delta_of_softmax(flush_shares_(e.mul_(scale)), total, subtract) if need_dy else None

    def reduced(self, y: Tensor, mean: bool, g: Tensor | float | None) -> tuple[Tensor, Tensor]:
        return Loss.reduced(self, y, mean, g)

    def composite(self, y: Tensor, reduction: str) -> Tensor:
        z, everywhere = widen(y), self.share.add
        largest, place = self._largest(z.detach())
        known = torch.stack([largest, place, self._told(slice(None), z.dtype)], -1)
        each, places, told = self.share.gather(known).unbind(-1)
        top = each.amax(0)[:, None]
        z = z - top - _unless_one(told)[:, None]
        cost, total, _ = self._part.compared(z, slice(None))
        lse = everywhere(z.exp().sum(-1, keepdim=True)).log()
        total = everywhere(total)
        values = self._known_only((total * lse)[:, 0] + everywhere(cost), slice(None))
        lse = lse + top
        if self.seen is not None:
            self._see(lse.detach(), each, places, slice(None))
        values, _ = self._squared(values, total, lse, slice(None))
        return self._of_values(values, y, reduction)

    def quick_composite(self, y: Tensor, reduction: str) -> Tensor:
        return self.composite(y, reduction)

    def _met(self, y: Tensor, at: slice) -> tuple[Tensor, Tensor, Tensor, Tensor, Subtract]:
        """Meet the others; return the values, e, scale with p = scale · e, p's factor in δ, and what takes a off.

        e is in the memory of y.
        """
        largest, place = self._largest(y)
        y = y.sub_(_finite(largest)[:, None])
        cost, total, subtract = self._part.compared(y, at)
        e = exp_(y)
        known = torch.stack([largest, place, self._told(at, y.dtype), e.sum(-1), cost, total[:, 0]], -1)
        each, places, told, sums, costs, totals = self.share.gather(known).unbind(-1)  # (processes, n)
        top = each.amax(0)
        added = (sums * (each - top).exp()).sum(0) + _unless_one(told)
        of_a = totals.sum(0)
        values = of_a * added.log() + (costs + totals * (top - _finite(each))).sum(0)
        values, total, lse = self._known_only(values, at), of_a[:, None], (top + added.log())[:, None]
        if self.seen is not None:
            self._see(lse, each, places, at)
        values, total = self._squared(values, total, lse, at)
        scale = (largest - top).exp() / added
        return values, e, scale[:, None], total, subtract

    def _shares(self, y: Tensor, at: slice) -> tuple[Tensor, Tensor, Subtract]:
        _, e, scale, total, subtract = self._met(y, at)
        return flush_shares_(e.mul_(scale)), total, subtract

    def whole(self, sums: Tensor) -> Tensor:
        return self.share.add(sums)

    def _see(self, lse: Tensor, each: Tensor, places: Tensor, at: slice) -> None:
        """Fill in what is seen, from the largest logits of each process (processes, n) and their classes."""
        assert self.seen is not None
        # The first of equal ones, as in one process.
        place = torch.where(each == each.amax(0), places, self.share.classes).amin(0)
        self.seen.logsumexp[at] = lse[:, 0]
        self.seen.correct[at] = self._is_right(place, at)

    def _largest(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """Return the largest entry of each row, −∞ where there is none, and its class, which a float32 can tell."""
        if not z.size(1):
            return z.new_full((len(z),), -torch.inf), z.new_full((len(z),), self.share.classes)
        if self.seen is None:
            return z.amax(-1), z.new_zeros(len(z))
        largest, place = z.max(-1)
        return largest, cast(place + self.share.at.start, z.dtype)

    def _told(self, at: slice, dtype: torch.dtype) -> Tensor:
        """Return what should be the same in each process, as much as the target tells."""
        t = self.target[at]
        return t.new_zeros(len(t), dtype=dtype) if t.is_floating_point() else cast(t, dtype)

    def _known_only(self, values: Tensor, at: slice) -> Tensor:
        return values if self.target.is_floating_point() else torch.where(self._classes()[0][at], values, 0.0)

    def _is_hard(self) -> bool:
        return False

    @cached_property
    def _part(self) -> _Part:
        """What is compared with the columns of this process."""
        (at, classes, *_), weight, target = self.share, self.weight, self.target
        options: dict[str, Any] = {"classes": classes, "label_smoothing": self.label_smoothing, "ignore_index": -100}
        options |= {"weight": None if weight is None else weight[at], "row_weight": self.row_weight}
        if target.is_floating_point():
            return _Part(target[:, at], found=None, **options)
        rows, column, total = self._classes()
        wrong = (column < 0) | (column >= classes)
        if wrong.is_cpu and wrong.any():
            raise IndexError(f"Target {int(column[wrong][0])} is out of bounds.")
        # Of a class that is nobody's a GPU tells by an assertion.
        column.new_zeros(1).expand(classes)[torch.where(wrong, classes, column)]
        ours = rows[:, None] & (column >= at.start) & (column < at.stop)
        column = column - at.start
        found = rows, torch.where(ours, column, 0), torch.where(ours, total, 0.0)
        return _Part(torch.where(ours, column, -100)[:, 0], found=found, **options)


@dataclass(eq=False)
class _Part(CrossEntropy):
    """What the columns of one process are compared with.

    Attributes:
        classes: how many there are in all.
        found: as ``_classes`` returns it; a row counts whether its class is here or not.
    """

    classes: int = field(kw_only=True)
    found: tuple[Tensor, Tensor, Tensor] | None = field(kw_only=True)

    def compared(self, z: Tensor, at: slice) -> tuple[Tensor, Tensor, Subtract]:
        """Return −a · z and Σa (n, 1) of some rows, and what takes a off."""
        if z.size(1):
            return self._beside(z, at)
        none = z.new_zeros(len(z))
        return none, none[:, None], lambda rows: rows

    def _share(self, log_p: Tensor) -> float:
        return self.label_smoothing / self.classes

    def _classes(self) -> tuple[Tensor, Tensor, Tensor]:
        assert self.found is not None
        return self.found


def _unless_one(told: Tensor) -> Tensor:
    """Return 0 for each row, or NaN where it differs among the processes (processes, n); a CPU raises an error."""
    differs = (told != told[0]).any(0)
    if differs.is_cpu and differs.any():
        raise ValueError(
            "expected the same input and target in each process, for the classes are shared out among them; "
            f"got targets that differ in {int(differs.sum())} of {len(differs)} rows"
        )
    return torch.where(differs, torch.nan, told.new_zeros(()))


def _finite(largest: Tensor) -> Tensor:
    """Return what to take off the rows: 0 where all entries are −∞."""
    return torch.where(largest == -torch.inf, 0.0, largest)
