"""The last layer and its loss in one step, with δ in closed form."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd import Function

from manual_mlp.activations import Activation, get
from manual_mlp.activations.record import cast, slope, times_slope, value, widen
from manual_mlp.dense import autocasting, check_layer
from manual_mlp.rules import gradients, plus, tangent
from manual_mlp.transforms import caller, needed_now, plain, without_jvp


def dense_squared_error(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    target: Tensor,
    activation: str | nn.Module | Activation | None = None,
    reduction: str = "sum",
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

    Shape:
        - input: :math:`(*, D_{in})`
        - weight: :math:`(D_{out}, D_{in})`
        - bias: :math:`(D_{out})`
        - target: :math:`(*, D_{out})`
        - Output: scalar; :math:`(*, D_{out})` if ``reduction`` is ``"none"``.

    Raises:
        ValueError: shapes or devices do not fit together, or a name is not known.
        TypeError: dtypes differ or are not floating point, or the activation is of a wrong type.
    """
    if not isinstance(activation, Activation):
        activation = get(activation)
    check_layer(input, weight, bias)
    _check_target(input, weight, target)
    if reduction not in ("none", "mean", "sum"):
        raise ValueError(f"expected reduction 'none', 'mean' or 'sum', got {reduction!r}")
    args = input, weight, bias, target, activation, reduction
    who = caller()
    if who == "composite":
        loss, _ = _loss_and_z(*args)
    else:
        function = DenseSquaredErrorFunction if who == "transform" else _QuickDenseSquaredErrorFunction
        loss, _ = function.apply(*args)
    return loss


class DenseSquaredErrorFunction(Function):
    """The step under any transform; t is the target Y*."""

    generate_vmap_rule = True

    @staticmethod
    def forward(
        h: Tensor, w: Tensor, b: Tensor | None, t: Tensor, activation: Activation, reduction: str
    ) -> tuple[Tensor, Tensor]:
        loss, z = _loss_and_z(h, w, b, t, activation, reduction)
        # z is an output, as in DenseFunction, for second derivatives. Where vmap maps over t alone, z has to be batched
        # as the loss is: else its cotangent is added once for each of the batch.
        return loss, z + torch.zeros_like(t, dtype=z.dtype)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        h, w, _, t, ctx.activation, ctx.reduction = inputs
        ctx.loss_dtype = output[0].dtype
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(h, w, t, output[1])
        ctx.save_for_forward(h, w, t, output[1])

    @staticmethod
    def backward(ctx: Any, dloss: Tensor | None, dz: Tensor | None) -> Any:
        h, w, t, z = ctx.saved_tensors
        quick = not (torch.is_grad_enabled() or torch.compiler.is_compiling()) and plain(dloss, dz)
        needed = needed_now(ctx, 3) if quick else ctx.needs_input_grad
        delta, dt = dz, None
        if dloss is not None:
            y = ctx.activation.f(z) if quick else value(z, ctx.activation)
            dy = dloss * (widen(y) - t)
            if ctx.reduction == "mean":
                dy = dy / z.numel()
            if quick:
                kept = z if ctx.activation.df_y is None else y
                delta = times_slope(dy, kept, ctx.activation, plain=True)  # (O1)
            else:
                delta = dy * slope(z, ctx.activation)  # (O1)
            delta = plus(cast(delta, z.dtype), dz)
            dt = -cast(dy, t.dtype) if ctx.needs_input_grad[3] else None
        return *gradients(delta, h, w, needed), dt, None, None

    @staticmethod
    def jvp(
        ctx: Any, h_dot: Tensor | None, w_dot: Tensor | None, b_dot: Tensor | None, t_dot: Tensor | None, *_: None
    ) -> Any:
        h, w, t, z = ctx.saved_tensors
        z_dot = tangent(h_dot, w_dot, b_dot, h, w, z)
        y_dot = cast(z_dot * slope(z, ctx.activation), z.dtype)  # (J2)
        e_dot = y_dot if t_dot is None else y_dot - t_dot
        loss_dot = _reduce((widen(value(z, ctx.activation)) - t) * e_dot, ctx.reduction)
        return cast(loss_dot, ctx.loss_dtype), z_dot


def _loss_and_z(
    h: Tensor, w: Tensor, b: Tensor | None, t: Tensor, activation: Activation, reduction: str
) -> tuple[Tensor, Tensor]:
    z = F.linear(h, w, b)  # (F1)
    y = activation.f(z)  # (F2)
    loss = 0.5 * _reduce((widen(y) - t).square(), reduction)
    if not autocasting(h):  # which gives losses in float32
        loss = cast(loss, torch.promote_types(y.dtype, t.dtype))
    return loss, z


_QuickDenseSquaredErrorFunction = without_jvp(DenseSquaredErrorFunction, _loss_and_z)


def _reduce(t: Tensor, reduction: str) -> Tensor:
    return t if reduction == "none" else t.mean() if reduction == "mean" else t.sum()


def _check_target(input: Tensor, weight: Tensor, target: Tensor) -> None:
    if not isinstance(target, Tensor) or not target.is_floating_point():
        got = target.dtype if isinstance(target, Tensor) else type(target).__name__
        raise TypeError(f"expected target to be a floating-point tensor, got {got}")
    shape = (*input.shape[:-1], weight.shape[0])
    if target.shape != shape:
        raise ValueError(f"expected target {tuple(shape)}, got {tuple(target.shape)}")
    if target.device != input.device:
        raise ValueError(f"expected target on {input.device}, got {target.device}")
    if target.dtype is not input.dtype and not autocasting(input):
        raise TypeError(f"expected target of dtype {input.dtype}, got {target.dtype}")
