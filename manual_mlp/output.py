"""The last layer and its loss in one step: δ is known in closed form, and logits exist a few rows at a time."""

from collections.abc import Callable
from typing import Any, SupportsIndex

import torch
from torch import Tensor, nn

from manual_mlp.activations import IDENTITY, Activation, get
from manual_mlp.activations.entrywise import value as entrywise
from manual_mlp.checks import check_layer, check_options
from manual_mlp.composite import torchs_activation, torchs_layer
from manual_mlp.engines import native
from manual_mlp.formulas.cross_entropy import Options, Stats
from manual_mlp.formulas.products import rows
from manual_mlp.head.functions import loss_of_step
from manual_mlp.head.plan import Head, step_for
from manual_mlp.head.sharded import sharded_loss
from manual_mlp.loss_checks import capping, chunk_rows_of, shifted
from manual_mlp.losses import LOSSES, Criterion
from manual_mlp.transforms import Caller, caller


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
    row_weight: Tensor | None = None,
    z_loss: float = 0.0,
    softcap: float | None = None,
    shift: int = 0,
    return_stats: bool = False,
    chunk_rows: int | None = None,
    options: Any = None,
) -> Any:
    r"""Compute the cross-entropy of a linear layer's softmax, whose gradient is δ = (Σa)p − a, a few rows at a time.

    The value and every derivative equal those of ``F.cross_entropy(F.linear(input, linear_weight, linear_bias),
    target, …)``, where ``input`` may have any number of dimensions, classes in the last.

    The classes may be shared out among processes: ``linear_weight`` is a DTensor whose placement is ``Shard(0)`` on a
    mesh of one dimension, and so is ``linear_bias``. Each process computes the logits of its own classes, a chunk of
    rows at a time, and the processes exchange a few numbers of each row: one all-reduce a chunk, and one for the
    gradient of ``input`` in the end. (``reduction="none"`` and float16 make the logits twice, and exchange twice.)
    ``input``, ``target`` and the weights are DTensors that are replicated, or plain tensors **that are the same in each
    process**, as they are after the layers of tensor parallelism. The loss, and the gradient of ``input``, are plain
    where ``input`` is, and those of weight and bias are cut as these are. All processes call it with the same options,
    and ask for the same gradients.

    Args:
        input: floating-point tensor.
        linear_weight: of the input's dtype and device; under autocast dtypes may differ. See above for a DTensor.
        target: classes (int64 or uint8), or probabilities of the classes, which may require grad.
        linear_bias: as ``linear_weight``, or None.
        weight: of the classes; of the input's dtype where the target is classes, unless autocast is on.
        reduction: ``"mean"`` (over the rows that count, by their class weights; over all rows for probabilities),
            ``"sum"`` or ``"none"``.
        ignore_index: a class whose rows count for nothing; None is -100.
        label_smoothing: ε of the target (1 − ε)t + ε/V, from 0 to 1.
        chunk_rows: the rows of logits to hold at once; None for what :mod:`manual_mlp.sweep.tiling` finds best.

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
    input, target, row_weight = shifted(shift, input, target, row_weight)
    activation, chunk_rows = capping(softcap), chunk_rows_of(options, chunk_rows, input, linear_weight)
    given = Options(weight, ignore_index, label_smoothing, row_weight, z_loss)
    if not torch.compiler.is_dynamo_compiling() and native.doors is not None:
        of = ("cross_entropy", target, weight, None, row_weight, ignore_index, label_smoothing, z_loss, return_stats)
        value = native.doors.head(input, linear_weight, linear_bias, activation, reduction, chunk_rows, *of)
        if value is not None:
            return (value[0], Stats(*value[1:])) if return_stats else value
    criterion = Criterion(LOSSES["cross_entropy"], target, reduction, given._asdict(), return_stats)
    return _loss(Head(input, linear_weight, linear_bias, activation), criterion, chunk_rows)


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
    if not torch.compiler.is_dynamo_compiling() and native.doors is not None:
        of = ("binary_cross_entropy", target, weight, pos_weight, None, None, 0.0, 0.0, False)
        value = native.doors.head(input, linear_weight, linear_bias, IDENTITY, reduction, chunk_rows, *of)
        if value is not None:
            return value  # type: ignore[no-any-return]
    options = {"weight": weight, "pos_weight": pos_weight}
    criterion = Criterion(LOSSES["binary_cross_entropy"], target, reduction, options)
    return _loss(Head(input, linear_weight, linear_bias), criterion, chunk_rows)


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
    if not torch.compiler.is_dynamo_compiling() and native.doors is not None:
        of = ("squared_error", target, None, None, None, None, 0.0, 0.0, False)
        value = native.doors.head(input, weight, bias, activation, reduction, chunk_rows, *of)
        if value is not None:
            return value  # type: ignore[no-any-return]
    criterion = Criterion(LOSSES["squared_error"], target, reduction, {})
    return _loss(Head(input, weight, bias, activation), criterion, chunk_rows)


def loss_of_output(z: Tensor, criterion: Criterion, activation: Activation = IDENTITY) -> Any:
    """Compute a loss of an output f(z) (*, D_out), where z exists, whoever asks for its derivatives."""
    check_options(criterion.reduction)
    who = caller(z, *criterion.tensors())
    if who == "torch":
        return _by_torch(torchs_activation(z, activation), criterion)
    y = z if activation is IDENTITY else entrywise(z, activation)
    criterion.check(y, y.shape[-1])
    loss, whole = criterion.make(y), rows(y)
    by_kernels = who not in ("transform", "composite")
    compute = loss.quick_composite if by_kernels else loss.composite
    return _answer(compute(whole, criterion.reduction), criterion.seen(whole, loss.target), y)


def shaped(loss: Tensor, input: Tensor) -> Tensor:
    """Give the losses of rows or entries the leading dimensions of the input."""
    return loss if input.dim() == 2 or not loss.dim() else loss.reshape(input.shape[:-1] + loss.shape[1:])


def _answer(loss: Tensor, seen: Stats | None, input: Tensor) -> Any:
    """Return the loss, and what was seen of the rows beside it if that is asked for."""
    loss = shaped(loss, input)
    return loss if seen is None else (loss, Stats(*(shaped(t, input) for t in seen)))


def _loss(head: Head, criterion: Criterion, chunk_rows: int | None) -> Any:
    check_options(criterion.reduction, chunk_rows)
    who = caller(*head[:3], *criterion.tensors())
    return _DOORS[who](who, head, criterion, chunk_rows)


def _torchs(_: Caller, head: Head, criterion: Criterion, chunk_rows: int | None) -> Any:
    found = sharded_loss(head, criterion, chunk_rows)
    return _by_torch(torchs_layer(*head), criterion) if found is None else _answer(*found, head.h)


def _by_torch(y: Tensor, criterion: Criterion) -> Any:
    loss, seen = criterion.torchs(y), criterion.seen(y)
    return loss if seen is None else (loss, seen)


def _by_rows(who: Caller, head: Head, criterion: Criterion, chunk_rows: int | None) -> Any:
    check_layer(*head[:3])
    criterion.check(head.h, head.w.shape[0])
    loss, of_rows, reduction = criterion.make(head.h), head._replace(h=rows(head.h)), criterion.reduction
    step = None if who == "compiler" else step_for(loss, of_rows, reduction, chunk_rows)
    if step is not None:
        seen = loss.watched(of_rows.h) if criterion.stats else None
        return _answer(loss_of_step(step, of_rows), seen, head.h)
    y = of_rows.output(who)
    return _answer(loss.quick_composite(y, reduction), criterion.seen(y, loss.target), head.h)


def _composed(who: Caller, head: Head, criterion: Criterion, _: int | None) -> Any:
    check_layer(*head[:3])
    criterion.check(head.h, head.w.shape[0])
    y, loss = head._replace(h=rows(head.h)).output(who), criterion.make(head.h)
    return _answer(loss.composite(y, criterion.reduction), criterion.seen(y, loss.target), head.h)


_DOORS: dict[Caller, Callable[[Caller, Head, Criterion, int | None], Any]] = {
    "eager": _by_rows,
    "compiler": _by_rows,
    "transform": _composed,
    "composite": _composed,
    "torch": _torchs,
}
