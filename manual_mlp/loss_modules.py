"""Modules that hold the last layer and compare its output with a target: no formula lives here."""

from typing import Any, SupportsIndex

import torch
from torch import Tensor, nn

from manual_mlp.checks import check_options
from manual_mlp.formulas.cross_entropy import Stats
from manual_mlp.language import loss_of
from manual_mlp.loss_checks import (
    capping,
    check_class_weight,
    check_smoothing,
    check_torchs_options,
    check_z_loss,
    ignored_class,
    shift_of,
)
from manual_mlp.modules import ActivationLike, Dense, Linear, check_size
from manual_mlp.output import dense_squared_error


class DenseSquaredError(Dense):
    """Apply a dense layer and compare its output with a target: the textbook's J = ½Σ(Y − Y*)².

    Args:
        in_features, out_features, activation, bias: as in :class:`Dense`, whose state_dict it has.
        reduction, chunk_rows: as in :func:`manual_mlp.dense_squared_error`.

    Shape:
        - Input: :math:`(*, D_{in})`
        - Target: :math:`(*, D_{out})`
        - Output: scalar; :math:`(*, D_{out})` if ``reduction`` is ``"none"``.

    Example::

        layer = DenseSquaredError(4, 3, "sigmoid")
        layer(torch.randn(5, 4), torch.rand(5, 3)).backward()
        assert layer.weight.grad.shape == (3, 4)
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        activation: ActivationLike = None,
        bias: bool = True,
        *,
        reduction: str = "sum",
        chunk_rows: int | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(in_features, out_features, activation, bias, device, dtype)
        check_options(reduction, chunk_rows)
        self.reduction, self.chunk_rows = reduction, chunk_rows

    def forward(self, input: Tensor, target: Tensor) -> Tensor:  # type: ignore[override]
        return dense_squared_error(
            input, self.weight, self.bias, target, self.activation, self.reduction, self.chunk_rows
        )

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, reduction={self.reduction!r}, chunk_rows={self.chunk_rows}"


class LinearCrossEntropyLoss(nn.Module):
    """Hold the linear layer whose softmax is compared with classes: logits exist a few rows at a time.

    It takes torch's place: the same arguments (no ``out_features``, and ``chunk_rows`` beside ``options``) and the same
    state_dict, with ``linear.weight``, ``linear.bias`` and, if it was given, ``weight``. Where ``linear`` was replaced,
    hooked or parametrised (an adapter, say), it is called as it is, and all logits exist at once. So it is under
    ``ColwiseParallel``, whose ``output_layouts`` have to be ``Replicate()``; a weight that was cut along its classes
    without hooks, by ``distribute_tensor``, is taken as :func:`manual_mlp.linear_cross_entropy` takes it.

    Args:
        in_features: D.
        num_classes: V.
        bias: whether the layer adds a learnt bias.
        reduction, weight, ignore_index, label_smoothing, z_loss, softcap, shift, return_stats, chunk_rows, options: as
            in :func:`manual_mlp.linear_cross_entropy`; ``row_weight`` comes with the input.

    Shape:
        - Input: :math:`(*, D)`; :math:`(*, T, D)` with a shift
        - Target: :math:`(*)`, or :math:`(*, V)` for probabilities
        - Row weights: :math:`(*)`, or None
        - Output: scalar; :math:`(*)` if ``reduction`` is ``"none"``, where T is T − shift; with ``return_stats``,
          that and the statistics :math:`(*)`.

    Raises:
        ValueError: a size is negative, or an option is out of range.
        TypeError: a size is not an int.

    Example::

        head = LinearCrossEntropyLoss(64, 1000)
        head(torch.randn(8, 64), torch.randint(1000, (8,))).backward()
        assert head.linear.weight.grad.shape == (1000, 64)
    """

    weight: Tensor | None

    def __init__(
        self,
        in_features: int,
        num_classes: int,
        *,
        bias: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        reduction: str = "mean",
        weight: Tensor | None = None,
        ignore_index: SupportsIndex | None = None,
        label_smoothing: float = 0.0,
        z_loss: float = 0.0,
        softcap: float | None = None,
        shift: bool | int = 0,
        return_stats: bool = False,
        chunk_rows: int | None = None,
        options: Any = None,
    ) -> None:
        super().__init__()
        check_options(reduction, chunk_rows)
        check_smoothing(label_smoothing)
        check_z_loss(z_loss)
        capping(softcap)
        check_class_weight(weight, num_classes)
        check_torchs_options(options)
        self.linear = Linear(
            check_size("in_features", in_features), check_size("num_classes", num_classes), bias, device, dtype
        )
        self.register_buffer("weight", weight)
        self.ignore_index = ignored_class(ignore_index)
        self.reduction, self.label_smoothing = reduction, label_smoothing
        self.z_loss, self.softcap, self.shift = z_loss, softcap, shift_of(shift)
        self.return_stats, self.chunk_rows, self.options = return_stats, chunk_rows, options

    def forward(self, input: Tensor, target: Tensor, row_weight: Tensor | None = None) -> Tensor | tuple[Tensor, Stats]:
        options: dict[str, Any] = {
            "weight": self.weight,
            "reduction": self.reduction,
            "ignore_index": self.ignore_index,
            "label_smoothing": self.label_smoothing,
            "row_weight": row_weight,
            "z_loss": self.z_loss,
            "softcap": self.softcap,
            "shift": self.shift,
            "return_stats": self.return_stats,
            "chunk_rows": self.chunk_rows,
            "options": self.options,
        }
        return loss_of(self.linear, input, target, **options)  # type: ignore[no-any-return]

    def extra_repr(self) -> str:
        told = "reduction", "ignore_index", "label_smoothing", "chunk_rows", "z_loss", "softcap", "shift"
        return ", ".join(f"{name}={getattr(self, name)!r}" for name in told)
