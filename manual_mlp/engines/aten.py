"""The cross-entropy by torch's own kernels for a GPU: few operations, and no look at the target."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from manual_mlp.formulas.cross_entropy import CrossEntropy
from manual_mlp.precision import cast

aten = torch.ops.aten
REDUCTIONS = "none", "mean", "sum"


class KernelCrossEntropy(CrossEntropy):
    """A cross-entropy that has, of all rows at once, its value and gradient from nll_loss and log_softmax's own kernel.

    With weights of rows or a z-loss it is computed by the formulas.

    The slope by ln p is −a, of which the last kernel makes (Σa) p − a. On a CPU it would make denormal numbers.
    """

    spares: ClassVar[bool] = True

    def values(self, y: Tensor, at: slice, need_dy: bool) -> tuple[Tensor, Tensor | None]:
        # A tile takes less memory in place.
        if at != slice(None):
            return super().values(y, at, need_dy)
        if need_dy and not self._has_more():
            return self._by_kernels(y, "none", y.new_ones(len(y)))
        return super().values(y.clone(), at, need_dy)

    def reduced(self, y: Tensor, mean: bool, g: Tensor | float | None) -> tuple[Tensor, Tensor]:
        if self._has_more():
            return super().reduced(y.clone(), mean, g)
        return self._by_kernels(y, "mean" if mean else "sum", g)

    def weighted(self, y: Tensor, at: slice, g: Tensor) -> tuple[Tensor, Tensor]:
        if at != slice(None) or self._has_more():
            return super().weighted(y, at, g)
        return self._by_kernels(y, "none", g)

    def _has_more(self) -> bool:
        return self.row_weight is not None or bool(self.z_loss)

    def _by_kernels(self, z: Tensor, reduction: str, g: Tensor | float | None) -> tuple[Tensor, Tensor]:
        """Compute the value, and δ for its upstream gradient or 1, of all rows."""
        (log_p, _), t = self._logarithms(z, slice(None), None), self.target
        g = cast(g, log_p.dtype) if isinstance(g, Tensor) else g
        of_target = self._of_probabilities if t.is_floating_point() else self._of_classes
        value, slope = of_target(log_p, t, reduction, g)
        return value, aten._log_softmax_backward_data.default(slope, log_p, -1, log_p.dtype)  # (O2)

    def _of_probabilities(
        self, log_p: Tensor, t: Tensor, reduction: str, g: Tensor | float | None
    ) -> tuple[Tensor, Tensor]:
        epsilon = self.label_smoothing
        a = cast(t, log_p.dtype)
        a = a if not epsilon else (1 - epsilon) * a + self._share(log_p)
        a = a if self.weight is None else a * cast(self.weight, log_p.dtype)
        if reduction == "none":
            assert isinstance(g, Tensor)
            return -(a * log_p).sum(-1), a * -g[:, None]
        mean = reduction == "mean"
        slope = a.mul(-1 / max(len(t), 1) if mean else -1.0)
        value = (slope * log_p).sum()
        if mean and not len(t):
            value = value + torch.nan
        return value, slope if g is None else slope.mul_(g)

    def _of_classes(self, log_p: Tensor, t: Tensor, reduction: str, g: Tensor | float | None) -> tuple[Tensor, Tensor]:
        epsilon, mean = self.label_smoothing, reduction == "mean"
        weight = None if self.weight is None else cast(self.weight, log_p.dtype)
        number = REDUCTIONS.index(reduction)
        value, total = aten.nll_loss_forward.default(log_p, t, weight, number, self.ignore_index)
        g = g if isinstance(g, Tensor) else log_p.new_full((), 1.0 if g is None else g)
        hard = (1 - epsilon) * g if epsilon else g
        slope = aten.nll_loss_backward.default(hard, log_p, t, weight, number, self.ignore_index, total)
        if epsilon:
            ignored, share = t == self.ignore_index, self._share(log_p)
            rest = (log_p.sum(-1) if weight is None else log_p @ weight).masked_fill_(ignored, 0.0)
            rest = rest if reduction == "none" else rest.sum() / total if mean else rest.sum()
            value = (1 - epsilon) * value - share * rest
            soft = (share * g / total if mean else share * g).expand(len(t))
            soft = soft.masked_fill(ignored, 0.0)[:, None]
            slope.sub_(soft if weight is None else soft * weight)
        return value, slope
