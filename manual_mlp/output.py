"""The last layer and its loss in one step: δ is known in closed form, and logits exist a few rows at a time."""

import operator
from typing import Any, SupportsIndex

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from manual_mlp.activations import IDENTITY, Activation, get
from manual_mlp.dense import autocasting, check_layer, dense
from manual_mlp.fused import fused
from manual_mlp.losses import BinaryCrossEntropy, CrossEntropy, SquaredError
from manual_mlp.rules import rows
from manual_mlp.transforms import caller, has_class, is_dispatched

REDUCTIONS = "none", "mean", "sum"


def linear_cross_entropy(
    input: Tensor,
    linear_weight: Tensor,
    target: Tensor,
    *,
    linear_bias: Tensor | None = None,
    weight: Tensor | None = None,
    reduction: str = "mean",
    ignore_index: SupportsIndex | None = None,
    label_smoothing: float = 0.0,
    chunk_rows: int | None = None,
) -> Tensor:
    r"""Compute the cross-entropy of a linear layer's softmax, whose gradient is δ = (Σa)p − a, a few rows at a time.

    The value and every derivative equal those of ``F.cross_entropy(F.linear(input, linear_weight, linear_bias),
    target, …)``, where ``input`` may have any number of dimensions, classes in the last.

    Args:
        input: floating-point tensor.
        linear_weight: of the input's dtype and device; under autocast dtypes may differ.
        target: classes (int64 or uint8), or probabilities of the classes, which may require grad.
        linear_bias: as ``linear_weight``, or None.
        weight: of the classes; of the input's dtype where the target is classes, unless autocast is on.
        reduction: ``"mean"`` (over the rows that count, by their class weights; over all rows for probabilities),
            ``"sum"`` or ``"none"``.
        ignore_index: a class whose rows count for nothing; None is -100.
        label_smoothing: ε of the target (1 − ε)t + ε/V, from 0 to 1.
        chunk_rows: the rows of logits to hold at once; None for what :mod:`manual_mlp.chunks` finds best.

    Shape:
        - input: :math:`(*, D)`
        - linear_weight: :math:`(V, D)`
        - target: :math:`(*)`, or :math:`(*, V)` for probabilities
        - linear_bias, weight: :math:`(V)`
        - Output: scalar; :math:`(*)` if ``reduction`` is ``"none"``.

    Raises:
        ValueError: shapes or devices do not fit together, or an option is out of range.
        TypeError: dtypes differ or are not those named here.
        IndexError: a class is out of range (on a CPU; CUDA reports it as torch does, by an assertion).
    """
    who = caller(input, linear_weight, linear_bias, target, weight)
    check_options(reduction, chunk_rows)
    options = weight, ignore_index, label_smoothing
    if who == "torch":
        return torchs_cross_entropy(F.linear(input, linear_weight, linear_bias), target, reduction, *options)
    check_layer(input, linear_weight, linear_bias)
    loss = cross_entropy(input, linear_weight.shape[0], target, *options)
    return shaped(fused(loss, rows(input), linear_weight, linear_bias, reduction, chunk_rows, who), input)


def linear_binary_cross_entropy(
    input: Tensor,
    linear_weight: Tensor,
    target: Tensor,
    *,
    linear_bias: Tensor | None = None,
    weight: Tensor | None = None,
    pos_weight: Tensor | None = None,
    reduction: str = "mean",
    chunk_rows: int | None = None,
) -> Tensor:
    r"""Compute the logistic cross-entropy of a linear layer, whose gradient is δ = σ(z)(1 + (ρ − 1)t) − ρt.

    The value and every derivative equal those of ``F.binary_cross_entropy_with_logits(F.linear(input, linear_weight,
    linear_bias), target, …)``.

    Args:
        input: floating-point tensor.
        linear_weight: of the input's dtype and device; under autocast dtypes may differ.
        target: floating-point, from 0 to 1. It may require grad.
        linear_bias: as ``linear_weight``, or None.
        weight: of the entries, of a shape that broadcasts to the target's.
        pos_weight: ρ, the weight of positive answers, of a shape that broadcasts to the target's.
        reduction: ``"mean"`` over all entries, ``"sum"`` or ``"none"``.
        chunk_rows: as in :func:`linear_cross_entropy`.

    Shape:
        - input: :math:`(*, D)`
        - linear_weight: :math:`(V, D)`
        - target: :math:`(*, V)`
        - linear_bias: :math:`(V)`
        - Output: scalar; :math:`(*, V)` if ``reduction`` is ``"none"``.

    Raises:
        ValueError: shapes or devices do not fit together, or an option is out of range.
        TypeError: dtypes differ or are not floating point.
    """
    who = caller(input, linear_weight, linear_bias, target, weight, pos_weight)
    check_options(reduction, chunk_rows)
    if who == "torch":
        z = F.linear(input, linear_weight, linear_bias)
        return torchs_binary_cross_entropy(z, target, reduction, weight, pos_weight)
    check_layer(input, linear_weight, linear_bias)
    loss = binary_cross_entropy(input, linear_weight.shape[0], target, weight, pos_weight)
    return shaped(fused(loss, rows(input), linear_weight, linear_bias, reduction, chunk_rows, who), input)


def dense_squared_error(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    target: Tensor,
    activation: str | nn.Module | Activation | None = None,
    reduction: str = "sum",
    chunk_rows: int | None = None,
) -> Tensor:
    r"""Compute the textbook's J = ½Σ(Y − Y*)² of a dense layer, whose gradient is δ = (Y − Y*) ⊙ f′(Z).

    The value and every derivative equal those of ``0.5 * F.mse_loss(y, target, reduction=reduction)``
    with ``y = f(F.linear(input, weight, bias))``.

    Args:
        input: floating-point tensor.
        weight: of the input's dtype and device; under autocast dtypes may differ.
        bias: likewise, or None.
        target: Y*, on the same device. It may require grad.
        activation: as in :func:`manual_mlp.dense`.
        reduction: ``"sum"`` over all entries, ``"mean"`` over all entries, or ``"none"``.
        chunk_rows: as in :func:`linear_cross_entropy`.

    Shape:
        - input: :math:`(*, D_{in})`
        - weight: :math:`(D_{out}, D_{in})`
        - bias: :math:`(D_{out})`
        - target: :math:`(*, D_{out})`
        - Output: scalar; :math:`(*, D_{out})` if ``reduction`` is ``"none"``.

    Raises:
        ValueError: shapes or devices do not fit together, an option is out of range, or a name is not known.
        TypeError: dtypes differ or are not floating point, or the activation is of a wrong type.
    """
    if not isinstance(activation, Activation):
        activation = get(activation)
    who = caller(input, weight, bias, target)
    check_options(reduction, chunk_rows)
    if who == "torch":
        return torchs_squared_error(dense(input, weight, bias, activation), target, reduction)
    check_layer(input, weight, bias)
    loss = squared_error(input, len(weight), target, activation)
    return shaped(fused(loss, rows(input), weight, bias, reduction, chunk_rows, who), input)


def cross_entropy_of(
    z: Tensor,
    target: Tensor,
    reduction: str,
    weight: Tensor | None,
    ignore_index: SupportsIndex | None,
    label_smoothing: float,
) -> Tensor:
    """Compute the cross-entropy of logits (*, V) that exist, whoever asks for its derivatives."""
    check_reduction(reduction)
    who, options = caller(z, target, weight), (weight, ignore_index, label_smoothing)
    if who == "torch":
        return torchs_cross_entropy(z, target, reduction, *options)
    loss, whole = cross_entropy(z, z.shape[-1], target, *options), rows(z)
    by_kernels = who not in ("transform", "composite")
    return shaped(loss.quick_composite(whole, reduction) if by_kernels else loss.composite(whole, reduction), z)


# torch's own losses, by their names and with the tensors that came: a class, a mode or a tracer sees both.
def torchs_cross_entropy(
    z: Tensor,
    target: Tensor,
    reduction: str,
    weight: Tensor | None = None,
    ignore_index: SupportsIndex | None = None,
    label_smoothing: float = 0.0,
) -> Tensor:
    """Call ``F.cross_entropy`` for logits (*, V)."""
    ignore_index = ignored_class(ignore_index)
    _check_cross_entropy(z, z.shape[-1], target, weight, ignore_index, label_smoothing)
    whole = z
    if z.dim() > 2:
        whole, target = z.flatten(0, -2), target.flatten(0, -2) if target.is_floating_point() else target.flatten()
    target = target.long() if target.dtype is torch.uint8 else target
    value = F.cross_entropy(whole, target, weight, None, ignore_index, None, reduction, float(label_smoothing))
    return shaped(value, z) if whole is not z else value


def torchs_binary_cross_entropy(
    z: Tensor, target: Tensor, reduction: str, weight: Tensor | None = None, pos_weight: Tensor | None = None
) -> Tensor:
    """Call ``F.binary_cross_entropy_with_logits`` for logits (*, V)."""
    _check_binary_cross_entropy(z, z.shape[-1], target, weight, pos_weight)
    # torch 2.14 is wrong where it takes the mean over a DTensor that is cut into unequal parts.
    late = is_dispatched(z) and reduction == "mean"
    value = F.binary_cross_entropy_with_logits(z, target, weight, None, None, "none" if late else reduction, pos_weight)
    return value.mean() if late else value


def torchs_squared_error(y: Tensor, target: Tensor, reduction: str) -> Tensor:
    """Call ``F.mse_loss`` for an output (*, D_out)."""
    _check_squared_error(y, y.shape[-1], target)
    if is_dispatched(y):
        # torch 2.14 has wrong gradients for mse_loss's mean over a DTensor that is cut.
        return SquaredError(target, IDENTITY).composite(y, reduction)
    return 0.5 * F.mse_loss(y, target, reduction=reduction)


def cross_entropy(
    input: Tensor,
    classes: int,
    target: Tensor,
    weight: Tensor | None = None,
    ignore_index: SupportsIndex | None = None,
    label_smoothing: float = 0.0,
) -> CrossEntropy:
    """Make the loss of a layer's rows, or raise an error that says what does not fit the layer's input or output."""
    ignore_index = ignored_class(ignore_index)
    _check_cross_entropy(input, classes, target, weight, ignore_index, label_smoothing)
    if target.dtype is torch.uint8:
        target = target.long()  # torch takes an ignore_index below 0 for a class of uint8
    return CrossEntropy(_flat(target), weight, ignore_index, float(label_smoothing))


def binary_cross_entropy(
    input: Tensor, d_out: int, target: Tensor, weight: Tensor | None = None, pos_weight: Tensor | None = None
) -> BinaryCrossEntropy:
    """Make the loss of a layer's rows, or raise an error that says what does not fit the layer's input or output."""
    _check_binary_cross_entropy(input, d_out, target, weight, pos_weight)
    return BinaryCrossEntropy(rows(target), _entries(weight, target), _entries(pos_weight, target))


def squared_error(input: Tensor, d_out: int, target: Tensor, activation: Activation = IDENTITY) -> SquaredError:
    """Make the loss of a layer's rows, or raise an error that says what does not fit the layer's input or output."""
    _check_squared_error(input, d_out, target)
    if not target.is_floating_point():
        target = target.to(input.dtype)
    return SquaredError(rows(target), activation)


def shaped(loss: Tensor, input: Tensor) -> Tensor:
    """Give the losses of rows or entries the leading dimensions of the input."""
    return loss if input.dim() == 2 or not loss.dim() else loss.reshape(input.shape[:-1] + loss.shape[1:])


def _flat(target: Tensor) -> Tensor:
    return rows(target) if target.is_floating_point() else target if target.dim() == 1 else target.reshape(-1)


def _check_broadcast(name: str, t: Tensor | None, target: Tensor, mask: bool = False) -> None:
    if t is None:
        return
    _check_real(name, t, mask)
    _check_beside(target, **{name: t})
    pairs = zip(reversed(t.shape), reversed(target.shape), strict=False)
    if t.dim() > target.dim() or any(size not in (1, whole) for size, whole in pairs):
        raise ValueError(f"expected {name} to broadcast to {tuple(target.shape)}, got {tuple(t.shape)}")


def _entries(t: Tensor | None, target: Tensor) -> Tensor | None:
    """Give a weight of the entries a row for each row of the target, or one for all."""
    if t is None:
        return None
    if t.shape[:-1].numel() == 1:
        return t.reshape(1, -1)
    return rows(t.expand(*target.shape[:-1], t.shape[-1]))


def check_options(reduction: str, chunk_rows: int | None) -> None:
    """Raise an error unless a loss can be reduced and chunked so."""
    check_reduction(reduction)
    check_rows("chunk_rows", chunk_rows)


def check_reduction(reduction: str) -> None:
    """Raise an error unless it names a reduction."""
    if reduction not in REDUCTIONS:
        raise ValueError(f"expected reduction 'none', 'mean' or 'sum', got {reduction!r}")


def check_rows(name: str, rows: int | None) -> None:
    """Raise an error unless so many rows can be computed at once."""
    if rows is not None and (type(rows) is not int or rows < 1):
        raise ValueError(f"expected {name} to be an int from 1 up, or None, got {rows!r}")


def check_smoothing(label_smoothing: float) -> None:
    """Raise an error unless targets can be smoothed so."""
    if not hasattr(label_smoothing, "__float__"):
        raise TypeError(f"expected label_smoothing to be a number, got {label_smoothing!r}")
    if not 0 <= label_smoothing <= 1:
        raise ValueError(f"expected label_smoothing from 0 to 1, got {label_smoothing}")


def ignored_class(ignore_index: SupportsIndex | None) -> int:
    """Return the class that counts for nothing, or raise an error unless it can name one."""
    if ignore_index is None:
        return -100
    try:
        if not isinstance(ignore_index, bool):
            return operator.index(ignore_index)
    except TypeError:
        pass
    raise TypeError(f"expected ignore_index to be an int or None, got {ignore_index!r}")


def check_class_weight(weight: Tensor | None, classes: int, dtype: torch.dtype | None = None) -> None:
    """Raise an error unless there is a weight for each class, of a dtype or of any."""
    if weight is None:
        return
    _check_real("weight", weight, mask=True)
    if tuple(weight.shape) != (classes,):
        raise ValueError(f"expected weight ({classes},), one for each class, got {tuple(weight.shape)}")
    if dtype is not None and weight.dtype is not dtype:
        raise TypeError(f"expected weight of dtype {dtype}, as the layer's, got {weight.dtype}")


def _check_cross_entropy(
    input: Tensor, classes: int, target: Tensor, weight: Tensor | None, ignore_index: int, label_smoothing: float
) -> None:
    check_smoothing(label_smoothing)
    _check_classes(input, classes, target, ignore_index)
    if weight is not None:
        check_class_weight(weight, classes, None if target.is_floating_point() or autocasting(input) else input.dtype)
    _check_beside(input, target=target, weight=weight)


def _check_binary_cross_entropy(
    input: Tensor, d_out: int, target: Tensor, weight: Tensor | None, pos_weight: Tensor | None
) -> None:
    _check_float("target", target)
    _check_shape(input, target, d_out)
    _check_beside(input, target=target)
    _check_broadcast("weight", weight, target, mask=True)
    _check_broadcast("pos_weight", pos_weight, target)


def _check_squared_error(input: Tensor, d_out: int, target: Tensor) -> None:
    _check_real("target", target, mask=True)
    _check_shape(input, target, d_out)
    _check_beside(input, target=target)


def _check_classes(input: Tensor, classes: int, target: Tensor, ignore_index: int) -> None:
    if not isinstance(target, Tensor) or not (target.is_floating_point() or target.dtype in (torch.int64, torch.uint8)):
        expected = "a tensor of int64 or uint8 classes, or of probabilities"
        raise TypeError(f"expected target to be {expected}, got {_kind(target)}")
    if target.is_floating_point():
        _check_shape(input, target, classes)
        if ignore_index >= 0:
            raise ValueError(f"expected no ignore_index for a target of probabilities, got {ignore_index}")
    elif target.shape != input.shape[:-1]:
        raise ValueError(f"expected target {tuple(input.shape[:-1])} of classes, got {tuple(target.shape)}")


def _check_shape(input: Tensor, target: Tensor, d_out: int) -> None:
    shape = (*input.shape[:-1], d_out)
    if target.shape != shape:
        raise ValueError(f"expected target {shape}, got {tuple(target.shape)}")


def _check_real(name: str, t: Tensor, mask: bool = False) -> None:
    if not isinstance(t, Tensor) or t.is_complex() or (t.dtype is torch.bool and not mask):
        raise TypeError(f"expected {name} to be a tensor of real numbers, got {_kind(t)}")


def _check_float(name: str, t: Tensor) -> None:
    if not isinstance(t, Tensor) or not t.is_floating_point():
        raise TypeError(f"expected {name} to be a floating-point tensor, got {_kind(t)}")


def _kind(t: Any) -> str:
    return str(t.dtype) if isinstance(t, Tensor) else type(t).__name__


def _check_beside(input: Tensor, **others: Tensor | None) -> None:
    for name, t in others.items():
        if t is None:
            continue
        if t.device != input.device:
            raise ValueError(f"expected {name} on {input.device}, got {t.device}")
        if t.layout is not torch.strided and not has_class(t):
            raise TypeError(f"expected {name} of layout torch.strided, got {t.layout}")
