"""The losses at the end of a network, for a few rows of ``z = h wᵀ + b``: formulas O1 to O4."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import ClassVar, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor

from manual_mlp.activations import IDENTITY, Activation
from manual_mlp.activations.record import cast, times_slope, widen
from manual_mlp.dense import autocasting
from manual_mlp.transforms import operations_are_watched

aten = torch.ops.aten
Self = TypeVar("Self", bound="Loss")


class RowLoss(ABC):
    """Hold what the rows of a layer's z are compared with, in ``target`` and in the weights that a loss has.

    Below, z are some of the rows, in float32 at least, and ``at`` says which.

    Attributes:
        by_entry: whether there is a value for each entry of z, instead of each row.
    """

    target: Tensor
    by_entry: ClassVar[bool] = True

    def overwrites(self, z: Tensor) -> bool:
        """Tell whether z may be overwritten."""
        return True

    @abstractmethod
    def values(self, z: Tensor, at: slice, need_delta: bool) -> tuple[Tensor, Tensor | None]:
        """Compute the values before any reduction, and δ, the gradient of their sum by z; z may be overwritten."""

    def summed(self, z: Tensor, at: slice) -> tuple[Tensor, Tensor]:
        """Compute the sum of the values, and δ, the gradient of that; z may be overwritten."""
        values, delta = self.values(z, at, True)
        assert delta is not None
        return values.sum(dtype=torch.float64), delta

    def reduced(self, z: Tensor, mean: bool, g: Tensor | float | None) -> tuple[Tensor, Tensor]:
        """Compute the sum or the mean over all rows, and δ for its upstream gradient g or 1; z may be overwritten."""
        total, delta = self.summed(z, slice(None))
        count, scale = self.mean() if mean else (1.0, 1.0)
        delta = delta.mul_(scale)
        return total / count, delta if g is None else delta.mul_(g)

    @abstractmethod
    def mean(self) -> tuple[Tensor | float, Tensor | float]:
        """Return what a mean divides the sum of the values by, and what it multiplies their gradient by."""

    def mean_now(self) -> tuple[Tensor | float, Tensor | float]:
        """Return the same, with a look at the target: nothing traces or transforms."""
        return self.mean()

    def weighted(self, z: Tensor, at: slice, g: Tensor) -> tuple[Tensor, Tensor]:
        """Compute the values, and δ for upstream gradients g of rows (n,) or entries; z may be overwritten."""
        values, delta = self.values(z, at, True)
        assert delta is not None
        return values, delta.mul_(g if self.by_entry else self.counted(g, at)[:, None])

    def counted(self, g: Tensor, at: slice) -> Tensor:
        """Let no upstream gradient (n,) through to a row that does not count."""
        return g


class Loss(RowLoss):
    """A loss that every mode of differentiation may ask for.

    Attributes:
        activation: f of the layer, whose y = f(z) the loss compares with the target.
        held: the names of what are tensors, or None.
    """

    activation: Activation = IDENTITY
    held: ClassVar[tuple[str, ...]] = ("target",)

    @abstractmethod
    def curvature(self, z: Tensor, q: Tensor, at: slice) -> tuple[Tensor, Tensor]:
        """Compute δ, and the gradient of Σ q ⊙ δ by z; z may be overwritten."""

    @abstractmethod
    def composite(self, y: Tensor, reduction: str) -> Tensor:
        """Compute the loss of an output by torch's own operations: right in every mode."""

    def quick_composite(self, y: Tensor, reduction: str) -> Tensor:
        """Compute the same for eager autograd and the compiler alone, in fewer operations where torch has them."""
        return self.composite(y, reduction)

    def mean(self) -> tuple[Tensor | float, Tensor | float]:
        entries = self.target.numel()
        return entries, 1 / max(entries, 1)

    def _as_torchs(self, value: Tensor, y: Tensor) -> Tensor:
        """Give a value of this output the dtype that torch's loss has."""
        if autocasting(y):
            return value
        dtype = y.dtype
        for t in self.tensors() if self.target.is_floating_point() else ():
            if t is not None and t.dtype is not dtype:
                dtype = torch.promote_types(dtype, t.dtype)
        return cast(value, dtype)

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


@dataclass(eq=False)
class SquaredError(Loss):
    """½(y − t)² of each entry, y = f(z).

    Attributes:
        activation: f.
    """

    target: Tensor
    activation: Activation

    def values(self, z: Tensor, at: slice, need_delta: bool) -> tuple[Tensor, Tensor | None]:
        y = self.activation.f(z)  # (F2)
        error = y - self.target[at]
        kept = z if self.activation.df_y is None else y
        delta = times_slope(error, kept, self.activation, plain=True) if need_delta else None  # (O1)
        return error.square().mul_(0.5), delta

    def summed(self, z: Tensor, at: slice) -> tuple[Tensor, Tensor]:
        if self.activation is not IDENTITY:
            return super().summed(z, at)
        error = z.sub_(self.target[at]).reshape(-1)  # (O1)
        return torch.dot(error, error).double().mul_(0.5), error.view(z.shape)

    def curvature(self, z: Tensor, q: Tensor, at: slice) -> tuple[Tensor, Tensor]:
        error, slope = self.activation.f(z) - self.target[at], self.activation.df(z)
        r = q * (slope.square() + error * self.activation.d2f(z))  # (S2)
        return error * slope, r  # (O1)

    def composite(self, y: Tensor, reduction: str) -> Tensor:
        # float16 has no room for squares; in bfloat16 what is kept is no wider than it has to be.
        narrow = y.dtype is torch.bfloat16 and not autocasting(y)
        values = 0.5 * ((y if narrow else widen(y)) - self.target).square()
        result = values if reduction == "none" else values.mean() if reduction == "mean" else values.sum()
        return self._as_torchs(result, y)

    def quick_composite(self, y: Tensor, reduction: str) -> Tensor:
        if y.requires_grad and not torch.compiler.is_compiling() and self.target.is_inference():
            raise RuntimeError("Inference tensors cannot be saved for backward: expected a target made elsewhere")
        return self.composite(y, reduction)


@dataclass(eq=False)
class CrossEntropy(Loss):
    """(Σa) ln Σeᶻ − a·z of each row, with a the target row after smoothing and class weights.

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
    held: ClassVar[tuple[str, ...]] = ("target", "weight")

    def unchanging(self) -> CrossEntropy:
        smoothed = self.label_smoothing and self.target.is_floating_point()
        return replace(self, target=self.target.clone()) if smoothed else self

    def values(self, z: Tensor, at: slice, need_delta: bool) -> tuple[Tensor, Tensor | None]:
        log_p = torch.log_softmax(z, -1, out=z)
        if self._is_plain:
            t = self.target[at]
            return F.nll_loss(log_p, t, reduction="none"), _minus_one_hot(log_p, t) if need_delta else None
        values, total, subtract = self._compared(log_p, at)
        return values, subtract(_flush_(log_p).exp_().mul_(total)) if need_delta else None  # (O2)

    def overwrites(self, z: Tensor) -> bool:
        return z.is_cpu

    def summed(self, z: Tensor, at: slice) -> tuple[Tensor, Tensor]:
        return super().summed(z, at) if z.is_cpu else self._by_kernels(torch.log_softmax(z, -1), self.target[at], "sum")

    def weighted(self, z: Tensor, at: slice, g: Tensor) -> tuple[Tensor, Tensor]:
        if z.is_cpu:
            return super().weighted(z, at, g)
        return self._by_kernels(torch.log_softmax(z, -1), self.target[at], "none", g)

    def reduced(self, z: Tensor, mean: bool, g: Tensor | float | None) -> tuple[Tensor, Tensor]:
        if not z.is_cpu:
            return self._by_kernels(torch.log_softmax(z, -1), self.target, "mean" if mean else "sum", g)
        log_p, t = torch.log_softmax(z, -1, out=z), self.target
        if self._is_hard():
            value, count = aten.nll_loss_forward.default(log_p, t, None, 1 if mean else 2, self.ignore_index)
            if count.item() == t.size(0) > 0:
                scale = 1 / t.size(0) if mean else 1.0
                share = self._share(log_p)
                if share:
                    value = (1 - self.label_smoothing) * value - share * scale * log_p.sum()
                delta = _minus_one_hot(log_p, t, 1 - self.label_smoothing)
                delta = delta.sub_(share) if share else delta  # (O2)
                delta = delta.mul_(scale) if mean else delta
                return value, delta if g is None else delta.mul_(g)
        # ln p is its own logarithm of the softmax.
        return super().reduced(log_p, mean, g)

    def _by_kernels(
        self, log_p: Tensor, t: Tensor, reduction: str, g: Tensor | float | None = None
    ) -> tuple[Tensor, Tensor]:
        """Compute the value, and δ for its upstream gradient or 1, on a GPU: in few operations, without a look at t.

        The slope by ln p is −a, of which the last kernel makes (Σa) p − a. On a CPU it would make denormal numbers.
        """
        epsilon, mean = self.label_smoothing, reduction == "mean"
        weight = None if self.weight is None else cast(self.weight, log_p.dtype)
        g = cast(g, log_p.dtype) if isinstance(g, Tensor) else g
        share = self._share(log_p)
        if t.is_floating_point():
            a = cast(t, log_p.dtype)
            a = a if not epsilon else (1 - epsilon) * a + share
            a = a if weight is None else a * weight
            if reduction == "none":
                assert isinstance(g, Tensor)
                slope, value = a * -g[:, None], -(a * log_p).sum(-1)
            else:
                slope = a.mul(-1 / max(len(t), 1) if mean else -1.0)
                value = (slope * log_p).sum()
                slope = slope if g is None else slope.mul_(g)
            if mean and not len(t):
                value = value + torch.nan
            return value, aten._log_softmax_backward_data.default(slope, log_p, -1, log_p.dtype)  # (O2)
        number = ("none", "mean", "sum").index(reduction)
        value, total = aten.nll_loss_forward.default(log_p, t, weight, number, self.ignore_index)
        g = g if isinstance(g, Tensor) else log_p.new_full((), 1.0 if g is None else g)
        hard = (1 - epsilon) * g if epsilon else g
        slope = aten.nll_loss_backward.default(hard, log_p, t, weight, number, self.ignore_index, total)
        if epsilon:
            ignored = t == self.ignore_index
            rest = (log_p.sum(-1) if weight is None else log_p @ weight).masked_fill_(ignored, 0.0)
            rest = rest if reduction == "none" else rest.sum() / total if mean else rest.sum()
            value = (1 - epsilon) * value - share * rest
            soft = (share * g / total if mean else share * g).expand(len(t))
            soft = soft.masked_fill(ignored, 0.0)[:, None]
            slope.sub_(soft if weight is None else soft * weight)
        return value, aten._log_softmax_backward_data.default(slope, log_p, -1, log_p.dtype)  # (O2)

    def curvature(self, z: Tensor, q: Tensor, at: slice) -> tuple[Tensor, Tensor]:
        log_p = torch.log_softmax(z, -1, out=z)
        _, total, subtract = self._compared(log_p, at)
        p = _flush_(log_p).exp_()
        total_p = p * total
        r = (q - (p * q).sum(-1, keepdim=True)).mul_(total_p)  # (O4)
        return subtract(total_p), r  # (O2)

    def _compared(self, log_p: Tensor, at: slice) -> tuple[Tensor, Tensor, Callable[[Tensor], Tensor]]:
        """Return −a·ln p and Σa (n, 1) of each row, and what subtracts a from such rows in place."""
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
    def _is_plain(self) -> bool:
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
            rows = len(self.target)
            return rows, 1 / max(rows, 1)
        known, _, total = self._classes()
        count = total.sum()
        # Where every row is ignored, the mean is 0/0, but there is no gradient.
        return count, torch.where(known.any(), 1 / count, 0.0)

    def mean_now(self) -> tuple[Tensor | float, Tensor | float]:
        return (len(self.target), 1 / len(self.target)) if self._is_plain else self.mean()

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
        return self._as_torchs(result, y)

    def quick_composite(self, y: Tensor, reduction: str) -> Tensor:
        z, weight = y, self.weight
        if self.label_smoothing and y.dtype is torch.float16 and not autocasting(y):
            # torch adds up the logarithms in float16, past its range.
            z, weight = y.float(), None if weight is None else widen(weight)
        value = F.cross_entropy(z, self.target, weight, None, self.ignore_index, None, reduction, self.label_smoothing)
        return value if z is y else self._as_torchs(value, y)


@dataclass(eq=False)
class BinaryCrossEntropy(Loss):
    """−v(ρ t ln σ(z) + (1 − t) ln(1 − σ(z))) of each entry.

    Attributes:
        weight: v (n or 1, V or 1), or None.
        pos_weight: ρ (n or 1, V or 1), or None.
    """

    target: Tensor
    weight: Tensor | None
    pos_weight: Tensor | None
    held: ClassVar[tuple[str, ...]] = ("target", "weight", "pos_weight")

    def values(self, z: Tensor, at: slice, need_delta: bool) -> tuple[Tensor, Tensor | None]:
        t, positive, total = self._shares(at, z.dtype)
        # ln σ(z) = min(z, 0) − ln(1 + exp(−|z|)); the value is (1 − t) z − (1 + (ρ − 1) t) ln σ(z).
        log1p = _flush_(z.abs().neg_()).exp_().log1p_()
        values = log1p.sub_(z.clamp(max=0)).mul_(total).addcmul_(1 - t, z)
        delta = _flush_(z).sigmoid_().mul_(total).sub_(positive) if need_delta else None  # (O3)
        if self.weight is not None:
            weight = _rows_at(self.weight, at)
            values.mul_(weight)
            delta = None if delta is None else delta.mul_(weight)
        return values, delta

    def curvature(self, z: Tensor, q: Tensor, at: slice) -> tuple[Tensor, Tensor]:
        _, positive, total = self._shares(at, z.dtype)
        p = _flush_(z).sigmoid_()
        delta = total * p - positive  # (O3)
        r = q * total * p * (1 - p)  # (S2)
        if self.weight is None:
            return delta, r
        weight = _rows_at(self.weight, at)
        return delta.mul_(weight), r.mul_(weight)

    def _shares(self, at: slice, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor | float]:
        """Return t, ρt and ρt + 1 − t, which is 1 where ρ is."""
        t = cast(self.target[at], dtype)
        if self.pos_weight is None:
            return t, t, 1.0
        positive = _rows_at(self.pos_weight, at) * t
        return t, positive, positive + (1 - t)

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

    def values(self, z: Tensor, at: slice, need_delta: bool) -> tuple[Tensor, Tensor | None]:
        t = self.target[at]
        values, delta = self.value(z, t), self.delta(z, t) if need_delta else None
        for name, found in (("value", values), ("delta", delta)):
            if not isinstance(found, Tensor) and (name == "value" or need_delta):
                raise TypeError(f"expected {name} to return a tensor, got {type(found).__name__}")
        if values.shape != z.shape[:1]:
            raise ValueError(f"expected a value for each of {len(z)} rows, got {tuple(values.shape)}")
        if delta is not None and delta.shape != z.shape:
            raise ValueError(f"expected delta {tuple(z.shape)}, got {tuple(delta.shape)}")
        # A copy, for it may be the user's own tensor, and is overwritten.
        return values, None if delta is None else delta.clone()

    def mean(self) -> tuple[Tensor | float, Tensor | float]:
        rows = len(self.target)
        return rows, 1 / max(rows, 1)


def _rows_at(weight: Tensor, at: slice) -> Tensor:
    """Take the weights of some rows, of which all may have the same."""
    return weight if len(weight) == 1 else weight[at]


def _minus_one_hot(log_p: Tensor, t: Tensor, hot: float = 1.0) -> Tensor:
    """Compute p − a over ln p, where a is ``hot`` at the class t of each row."""
    return _flush_(log_p).exp_().scatter_(1, t.unsqueeze(1), -hot, reduce="add")  # (O2)


def _flush_(z: Tensor) -> Tensor:
    """Let what would come out of an exponential below e⁻⁶⁴ come out as 0, in place.

    A product with denormal operands is up to 190 times slower. Even a millionth of e⁻⁶⁴ is a normal float32, and what
    is flushed is far below its rounding.
    """
    return z if z.dtype == torch.float64 else torch.threshold_(z, -64.0, -torch.inf)
