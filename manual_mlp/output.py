"""The last layer and its loss in one step: δ is known in closed form, and logits exist a few rows at a time."""

from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn
from torch.compiler import is_dynamo_compiling

from manual_mlp.activations import IDENTITY, Activation, get
from manual_mlp.activations.entrywise import value as entrywise
from manual_mlp.checks import REDUCTIONS, check_layer, check_options
from manual_mlp.composite import torchs_activation, torchs_layer
from manual_mlp.engines import native
from manual_mlp.formulas.cross_entropy import Stats
from manual_mlp.formulas.products import rows
from manual_mlp.head.functions import loss_of_step
from manual_mlp.head.logits import loss_of_logits
from manual_mlp.head.operations import by_operation, loss_by_operation
from manual_mlp.head.plan import Head, step_for
from manual_mlp.head.sharded import sharded_loss
from manual_mlp.head.traced import usual_logits
from manual_mlp.losses import LOSSES, Criterion
from manual_mlp.transforms import Caller, caller


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
        chunk_rows: as in :func:`manual_mlp.linear_cross_entropy`.

    Shape:
        - input: :math:`(*, D)`
        - linear_weight: :math:`(V, D)`
        - target: :math:`(*, V)`
        - linear_bias: :math:`(V)`
        - Output: scalar; :math:`(*, V)` if ``reduction`` is ``"none"``.

    Raises:
        ValueError: shapes or devices do not fit together, or an option is out of range.
        TypeError: dtypes differ or are not floating point.

    Example::

        h, w, t = torch.randn(6, 4), torch.randn(3, 4, requires_grad=True), torch.rand(6, 3)
        linear_binary_cross_entropy(h, w, t, reduction="sum").backward()
        assert torch.allclose(w.grad, (torch.sigmoid(h @ w.T) - t).T @ h, atol=1e-5)
    """
    usual = weight is None and pos_weight is None and chunk_rows is None
    if is_dynamo_compiling() and usual and reduction in REDUCTIONS:
        logits = usual_logits(input, linear_weight, linear_bias, target, of_classes=False)
        if logits is not None:
            return F.binary_cross_entropy_with_logits(logits, target, reduction=reduction)
    if not is_dynamo_compiling() and native.doors is not None:
        of = ("binary_cross_entropy", target, weight, pos_weight, None, None, 0.0, 0.0, False)
        value = native.doors.head(input, linear_weight, linear_bias, IDENTITY, reduction, chunk_rows, *of)
        if value is not None:
            return value  # type: ignore[no-any-return]
    options = {"weight": weight, "pos_weight": pos_weight}
    criterion = Criterion(LOSSES["binary_cross_entropy"], target, reduction, options)
    # Not by the default: torch 2.11 compiles no record that it finds as the default of a field.
    head = Head(input, linear_weight, linear_bias, IDENTITY)
    return loss_of_head(head, criterion, chunk_rows)  # type: ignore[no-any-return]


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
        chunk_rows: as in :func:`manual_mlp.linear_cross_entropy`.

    Shape:
        - input: :math:`(*, D_{in})`
        - weight: :math:`(D_{out}, D_{in})`
        - bias: :math:`(D_{out})`
        - target: :math:`(*, D_{out})`
        - Output: scalar; :math:`(*, D_{out})` if ``reduction`` is ``"none"``.

    Raises:
        ValueError: shapes or devices do not fit together, an option is out of range, or a name is not known.
        TypeError: dtypes differ or are not floating point, or the activation is of a wrong type.

    Example::

        h, w, t = torch.randn(5, 4), torch.randn(3, 4), torch.rand(5, 3)
        b = torch.randn(3, requires_grad=True)
        dense_squared_error(h, w, b, t, "sigmoid").backward()
        y = torch.sigmoid(h @ w.T + b).detach()
        assert torch.allclose(b.grad, ((y - t) * y * (1 - y)).sum(0), atol=1e-6)  # Σδ
    """
    if not isinstance(activation, Activation):
        activation = get(activation)
    if is_dynamo_compiling() and chunk_rows is None and reduction in REDUCTIONS:
        z = usual_logits(input, weight, bias, target, of_classes=False)
        if z is not None:
            return 0.5 * F.mse_loss(activation.traced(z), target, reduction=reduction)
    if not is_dynamo_compiling() and native.doors is not None:
        of = ("squared_error", target, None, None, None, None, 0.0, 0.0, False)
        value = native.doors.head(input, weight, bias, activation, reduction, chunk_rows, *of)
        if value is not None:
            return value  # type: ignore[no-any-return]
    criterion = Criterion(LOSSES["squared_error"], target, reduction, {})
    return loss_of_head(Head(input, weight, bias, activation), criterion, chunk_rows)  # type: ignore[no-any-return]


def loss_of_output(z: Tensor, criterion: Criterion, activation: Activation = IDENTITY) -> Any:
    """Compute a loss of an output f(z) (*, D_out), where z exists, whoever asks for its derivatives."""
    check_options(criterion.reduction)
    who = caller(z, *criterion.tensors())
    if who == "torch":
        return _by_torch(torchs_activation(z, activation), criterion)
    y = z if activation is IDENTITY else entrywise(z, activation)
    criterion.check(y, y.shape[-1])
    loss, whole = criterion.make(y), rows(y)
    return _answer(loss_of_logits(loss, whole, criterion.reduction, who), criterion.seen(whole, loss.target), y)


def shaped(loss: Tensor, input: Tensor) -> Tensor:
    """Give the losses of rows or entries the leading dimensions of the input."""
    return loss if input.dim() == 2 or not loss.dim() else loss.reshape(input.shape[:-1] + loss.shape[1:])


def _answer(loss: Tensor, seen: Stats | None, input: Tensor) -> Any:
    """Return the loss, and what was seen of the rows beside it if that is asked for."""
    loss = shaped(loss, input)
    return loss if seen is None else (loss, Stats(*(shaped(t, input) for t in seen)))


def loss_of_head(head: Head, criterion: Criterion, chunk_rows: int | None) -> Any:
    """Compute a loss of a layer, whoever asks for its derivatives, and what is seen of its rows if the loss asks."""
    check_options(criterion.reduction, chunk_rows)
    who = caller(*head[:3], *criterion.tensors())
    if who == "torch":
        found = sharded_loss(head, criterion, chunk_rows)
        return _by_torch(torchs_layer(*head), criterion) if found is None else _answer(*found, head.h)
    return _ours(who, head, criterion, chunk_rows)


def _by_torch(y: Tensor, criterion: Criterion) -> Any:
    loss, seen = criterion.torchs(y), criterion.seen(y)
    return loss if seen is None else (loss, seen)


def _ours(who: Caller, head: Head, criterion: Criterion, chunk_rows: int | None) -> Any:
    check_layer(*head[:3])
    criterion.check(head.h, head.w.shape[0])
    loss, of_rows, reduction = criterion.make(head.h), head._replace(h=rows(head.h)), criterion.reduction
    if who == "eager" and (step := step_for(loss, of_rows, reduction, chunk_rows)):
        seen = loss.watched(of_rows.h) if criterion.stats else None
        return _answer(loss_of_step(step, of_rows), seen, head.h)
    if who == "compiler" and by_operation(of_rows, loss, chunk_rows):
        value, *stats = loss_by_operation(of_rows, loss, reduction, chunk_rows, criterion.stats)
        return _answer(value, Stats(*stats) if criterion.stats else None, head.h)
    y = of_rows.output(who)
    return _answer(loss_of_logits(loss, y, reduction, who), criterion.seen(y, loss.target), head.h)
