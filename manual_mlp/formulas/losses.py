"""The losses at the end of a network, for some rows of its output y: the value, its gradient, and the gradient of that.

``docs/derivation.md`` proves each formula under its tag.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor

from manual_mlp.precision import autocasting, cast, widen, widened

Self = TypeVar("Self", bound="Loss")


class RowLoss(ABC):
    """Hold what the rows of y are compared with, in ``target`` and in the weights that a loss has.

    Below, y are some of the rows, in float32 at least, and ``at`` says which; dy is the gradient by them.

    Attributes:
        by_entry: whether there is a value for each entry of y, instead of each row.
        spares: whether ``values``, ``reduced`` and ``weighted`` leave y as it is, where it is all rows.
        promoting: the names of the tensors whose dtype the value takes on, beside a target that is floating-point.
    """

    target: Tensor
    by_entry: ClassVar[bool] = True
    spares: ClassVar[bool] = False
    promoting: ClassVar[tuple[str, ...]] = ("target",)

    @abstractmethod
    def values(self, y: Tensor, at: slice, need_dy: bool) -> tuple[Tensor, Tensor | None]:
        """Compute the values before any reduction, and dy of their sum; y may be overwritten."""

    def summed(self, y: Tensor, at: slice) -> tuple[Tensor, Tensor]:
        """Compute the sum of the values, and dy of that; y may be overwritten."""
        values, dy = self.values(y, at, True)
        assert dy is not None
        return total_of(values), dy

    def reduced(self, y: Tensor, mean: bool, g: Tensor | float | None) -> tuple[Tensor, Tensor]:
        """Compute the sum or the mean over all rows, and dy for its upstream gradient g or 1; y may be overwritten."""
        return self.scaled(*self.summed(y, slice(None)), mean, g)

    def scaled(self, total: Tensor, dy: Tensor, mean: bool, g: Tensor | float | None) -> tuple[Tensor, Tensor]:
        """Compute the same from the sum of all values, and dy of that, which is overwritten."""
        count, scale = self.mean() if mean else (1.0, 1.0)
        dy = dy.mul_(scale)
        return total / count, dy if g is None else dy.mul_(g)

    def weighted(self, y: Tensor, at: slice, g: Tensor) -> tuple[Tensor, Tensor]:
        """Compute the values, and dy for upstream gradients g of rows (n,) or entries; y may be overwritten."""
        values, dy = self.values(y, at, True)
        assert dy is not None
        return values, dy.mul_(g if self.by_entry else self.counted(g, at)[:, None])

    def mean(self) -> tuple[Tensor | float, Tensor | float]:
        """Return what a mean divides the sum of the values by, and what it multiplies their gradient by."""
        # An export takes len() for a constant.
        count = self.target.numel() if self.by_entry else self.target.size(0)
        return count, 1 / max(count, 1)

    def mean_now(self) -> tuple[Tensor | float, Tensor | float]:
        """Return the same, with a look at the target: nothing traces or transforms."""
        return self.mean()

    def dtype_of(self, dtype: torch.dtype) -> torch.dtype:
        """Return the dtype of torch's loss for an output of this one."""
        for name in self.promoting if self.target.is_floating_point() else ():
            t: Tensor | None = getattr(self, name)
            dtype = dtype if t is None else torch.promote_types(dtype, t.dtype)
        return dtype

    def counted(self, g: Tensor, at: slice) -> Tensor:
        """Let no upstream gradient (n,) through to a row that does not count."""
        return g


class Loss(RowLoss):
    """A loss that every mode of differentiation may ask for.

    Attributes:
        held: the names of what are tensors, or None.
        of_any_dtype: the names of those among them that are turned into the dtype of y where they are used.
    """

    held: ClassVar[tuple[str, ...]] = ("target",)
    of_any_dtype: ClassVar[tuple[str, ...]] = ()

    @abstractmethod
    def curvature(self, y: Tensor, q: Tensor, at: slice) -> tuple[Tensor, Tensor]:
        """Compute dy, and the gradient of Σ q ⊙ dy by y; y may be overwritten."""

    @abstractmethod
    def composite(self, y: Tensor, reduction: str) -> Tensor:
        """Compute the loss of an output by torch's own operations: right in every mode."""

    def quick_composite(self, y: Tensor, reduction: str) -> Tensor:
        """Compute the same for eager autograd and the compiler alone, in fewer operations where torch has them."""
        return self.composite(y, reduction)

    def whole(self, sums: Tensor) -> Tensor:
        """Return sums over all entries of a row from those over the entries at hand, which here are all."""
        return sums

    def tensors(self) -> list[Tensor | None]:
        """List the target and the weights, None where one is missing."""
        return [getattr(self, name) for name in self.held]

    def unchanging(self: Self) -> Self:
        """Copy what torch's loss does not read again, and so lets change before backward."""
        return self

    def emptied(self: Self) -> Self:
        """Copy the loss without its tensors, for a node that saves them."""
        return self.holding([None] * len(self.held))

    def holding(self: Self, tensors: Sequence[Tensor | None]) -> Self:
        """Copy the loss with another target and other weights, in the order of :meth:`tensors`."""
        return replace(self, **dict(zip(self.held, tensors, strict=True)))  # type: ignore[type-var]

    def as_torchs(self, value: Tensor, y: Tensor) -> Tensor:
        """Give a value of this output the dtype that torch's loss has."""
        return value if autocasting(y) else cast(value, self.dtype_of(y.dtype))


@dataclass(eq=False)
class SquaredError(Loss):
    """½(y − t)² of each entry."""

    target: Tensor

    def values(self, y: Tensor, at: slice, need_dy: bool) -> tuple[Tensor, Tensor | None]:
        error = self._error(y, at)
        return error.square().mul_(0.5), error

    def summed(self, y: Tensor, at: slice) -> tuple[Tensor, Tensor]:
        error = self._error(y, at)
        # Row by row, and then in float64: one running sum of all entries would lose half of float32's digits.
        return torch.linalg.vector_norm(error, dim=-1).double().square().sum().mul_(0.5), error

    def curvature(self, y: Tensor, q: Tensor, at: slice) -> tuple[Tensor, Tensor]:
        return self._error(y, at), q

    def _error(self, y: Tensor, at: slice) -> Tensor:
        t = self.target[at]
        return y.sub_(t) if widened(t.dtype) == y.dtype else y - t  # (O1)

    def composite(self, y: Tensor, reduction: str) -> Tensor:
        # float16 has no room for squares; in bfloat16 what is kept is no wider than it has to be.
        narrow = y.dtype is torch.bfloat16 and not autocasting(y)
        values = 0.5 * ((y if narrow else widen(y)) - self.target).square()
        result = values if reduction == "none" else values.mean() if reduction == "mean" else values.sum()
        return self.as_torchs(result, y)

    def quick_composite(self, y: Tensor, reduction: str) -> Tensor:
        if y.requires_grad and not torch.compiler.is_compiling() and self.target.is_inference():
            raise RuntimeError("Inference tensors cannot be saved for backward: expected a target made elsewhere")
        return self.composite(y, reduction)


@dataclass(eq=False)
class BinaryCrossEntropy(Loss):
    """−v(ρ t ln σ(z) + (1 − t) ln(1 − σ(z))) of each entry; its y is z.

    Attributes:
        weight: v (n or 1, V or 1), or None.
        pos_weight: ρ (n or 1, V or 1), or None.
    """

    target: Tensor
    weight: Tensor | None
    pos_weight: Tensor | None
    held: ClassVar[tuple[str, ...]] = ("target", "weight", "pos_weight")

    def values(self, y: Tensor, at: slice, need_dy: bool) -> tuple[Tensor, Tensor | None]:
        t, positive, total = self._shares(at, y.dtype)
        # ln σ(z) = min(z, 0) − ln(1 + exp(−|z|)); the value is (1 − t) z − (1 + (ρ − 1) t) ln σ(z).
        log1p = flush_(y.abs().neg_()).exp_().log1p_()
        values = log1p.sub_(y.clamp(max=0)).mul_(total).addcmul_(1 - t, y)
        delta = self._delta(flush_(y).sigmoid_(), positive, total) if need_dy else None
        return self._weighed(values, at), None if delta is None else self._weighed(delta, at)

    def curvature(self, y: Tensor, q: Tensor, at: slice) -> tuple[Tensor, Tensor]:
        _, positive, total = self._shares(at, y.dtype)
        p = flush_(y).sigmoid_()
        r = q * total * p * (1 - p)
        return self._weighed(self._delta(p, positive, total), at), self._weighed(r, at)

    def _delta(self, p: Tensor, positive: Tensor, total: Tensor | float) -> Tensor:
        return p.mul_(total).sub_(positive)  # (O3)

    def _shares(self, at: slice, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor | float]:
        """Return t, ρt and 1 + (ρ − 1)t, which is 1 where ρ is."""
        t = cast(self.target[at], dtype)
        if self.pos_weight is None:
            return t, t, 1.0
        positive = _rows_at(self.pos_weight, at) * t
        return t, positive, positive + (1 - t)

    def _weighed(self, t: Tensor, at: slice) -> Tensor:
        return t if self.weight is None else t.mul_(_rows_at(self.weight, at))

    def composite(self, y: Tensor, reduction: str) -> Tensor:
        return F.binary_cross_entropy_with_logits(y, self.target, self.weight, None, None, reduction, self.pos_weight)


@dataclass(eq=False)
class Pair(RowLoss):
    """A user's loss of each row, and its gradient.

    Attributes:
        value: (y, target) -> (n,).
        delta: (y, target) -> (n, D_out), the gradient of the value's sum by y.
    """

    target: Tensor
    value: Callable[[Tensor, Tensor], Tensor]
    delta: Callable[[Tensor, Tensor], Tensor]
    by_entry: ClassVar[bool] = False

    def values(self, y: Tensor, at: slice, need_dy: bool) -> tuple[Tensor, Tensor | None]:
        t = self.target[at]
        values, delta = self.value(y, t), self.delta(y, t) if need_dy else None
        for name, found in (("value", values), ("delta", delta)):
            if not isinstance(found, Tensor) and (name == "value" or need_dy):
                raise TypeError(f"expected {name} to return a tensor, got {type(found).__name__}")
        if values.shape != y.shape[:1]:
            raise ValueError(f"expected a value for each of {len(y)} rows, got {tuple(values.shape)}")
        if delta is not None and delta.shape != y.shape:
            raise ValueError(f"expected delta {tuple(y.shape)}, got {tuple(delta.shape)}")
        # A copy, for it may be the user's own tensor, and is overwritten.
        return values, None if delta is None else delta.clone()


def total_of(values: Tensor) -> Tensor:
    """Add up the values of rows or entries: rows in their own dtype, which is quick, and then in float64."""
    return (values if values.dim() == 1 else values.sum(-1)).sum(dtype=torch.float64)


def _rows_at(weight: Tensor, at: slice) -> Tensor:
    """Take the weights of some rows, of which all may have the same."""
    return weight if len(weight) == 1 else weight[at]


def flush_(z: Tensor) -> Tensor:
    """Let what would come out of an exponential below e⁻⁶⁴ come out as 0, in place.

    On a CPU, a product with denormal operands is up to 190 times slower. Even a millionth of e⁻⁶⁴ is a normal float32,
    and what is flushed is far below its rounding.
    """
    return torch.threshold_(z, -64.0, -torch.inf) if _is_slow_below(z) else z


def _is_slow_below(z: Tensor) -> bool:
    return z.is_cpu and z.dtype is not torch.float64


def exp_(log_p: Tensor) -> Tensor:
    """Compute an exponential, flushed, in place."""
    return flush_(log_p).exp_()


def flush_shares_(p: Tensor) -> Tensor:
    """Let shares of a softmax that come of no exponential at hand, but of a product, come out as 0 below e⁻⁶⁴ too."""
    return torch.threshold_(p, 1.6e-28, 0.0) if _is_slow_below(p) else p
