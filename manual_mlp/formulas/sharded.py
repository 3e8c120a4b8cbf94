"""The cross-entropy of a softmax whose classes are shared out among processes, for some rows of this one's logits."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, fields
from functools import cached_property
from typing import Any, NamedTuple

import torch
from torch import Tensor

from manual_mlp.formulas.cross_entropy import CrossEntropy, Subtract, delta_of_softmax
from manual_mlp.formulas.losses import Loss, flush_, flush_shares_
from manual_mlp.precision import widen


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
    then finds the logarithm of the softmax from these by itself.

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
        delta = None
        if need_dy:
            # One pass over e for two factors.
            delta = delta_of_softmax(flush_shares_(e.mul_(scale * total)), None, subtract)
        return values, delta

    def reduced(self, y: Tensor, mean: bool, g: Tensor | float | None) -> tuple[Tensor, Tensor]:
        return Loss.reduced(self, y, mean, g)

    def composite(self, y: Tensor, reduction: str) -> Tensor:
        z = widen(y)
        top = self.share.gather(_largest(z.detach())[:, None]).amax(0)
        z = z - top
        cost, total, _ = self._part.compared(z, slice(None))
        everywhere = self.share.add
        values = everywhere(total)[:, 0] * everywhere(z.exp().sum(-1)).log() + everywhere(cost)
        values = self._counting(values, slice(None))
        result = values if reduction == "none" else values.sum()
        if reduction == "mean":
            result = result / self.mean()[0]
        return self.as_torchs(result, y)

    def quick_composite(self, y: Tensor, reduction: str) -> Tensor:
        return self.composite(y, reduction)

    def _met(self, y: Tensor, at: slice) -> tuple[Tensor, Tensor, Tensor, Tensor, Subtract]:
        """Meet the others; return the values, e and a scale (n, 1) with p = scale · e, Σa (n, 1), and what takes a off.

        e is in the memory of y.
        """
        largest = _largest(y)
        y = y.sub_(_finite(largest)[:, None])
        cost, total, subtract = self._part.compared(y, at)
        e = flush_(y).exp_()
        known = torch.stack([largest, e.sum(-1), cost, total[:, 0]], -1)
        of_all = self.share.gather(known)  # (processes, n, 4)
        each, sums, costs, totals = of_all.unbind(-1)
        top = each.amax(0)
        total_sum = (sums * (each - top).exp()).sum(0)
        total = totals.sum(0)
        values = total * total_sum.log() + (costs + totals * (top - _finite(each))).sum(0)
        scale = (largest - top).exp() / total_sum
        return self._counting(values, at), e, scale[:, None], total[:, None], subtract

    def _shares(self, y: Tensor, at: slice) -> tuple[Tensor, Tensor, Subtract]:
        _, e, scale, total, subtract = self._met(y, at)
        return flush_shares_(e.mul_(scale)), total, subtract

    def _whole(self, sums: Tensor) -> Tensor:
        return self.share.add(sums)

    def _counting(self, values: Tensor, at: slice) -> Tensor:
        return values if self.target.is_floating_point() else torch.where(self._classes()[0][at], values, 0.0)

    def _is_hard(self) -> bool:
        return False

    @cached_property
    def _part(self) -> _Part:
        """What is compared with the columns of this process."""
        (at, classes, *_), weight, target = self.share, self.weight, self.target
        options: dict[str, Any] = {"classes": classes, "label_smoothing": self.label_smoothing, "ignore_index": -100}
        options["weight"] = None if weight is None else weight[at]
        if target.is_floating_point():
            return _Part(target[:, at], found=None, **options)
        rows, column, total = self._classes()
        # A class that is no class is nobody's, so it is looked for among all.
        column.new_zeros(1).expand(classes)[torch.where(column < 0, classes, column)]
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
            return self._compared(z, at)
        none = z.new_zeros(len(z))
        return none, none[:, None], lambda rows: rows

    def _share(self, log_p: Tensor) -> float:
        return self.label_smoothing / self.classes

    def _classes(self) -> tuple[Tensor, Tensor, Tensor]:
        assert self.found is not None
        return self.found


def _largest(z: Tensor) -> Tensor:
    """Return the largest entry of each row, −∞ where there is none."""
    return z.amax(-1) if z.size(1) else z.new_full((len(z),), -torch.inf)


def _finite(largest: Tensor) -> Tensor:
    """Return what to take off the rows: 0 where all entries are −∞."""
    return torch.where(largest == -torch.inf, 0.0, largest)
