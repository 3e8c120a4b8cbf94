"""One dense layer, ``Y = f(HW + B)``: its door, and a Function for each who may ask for its derivatives."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd import Function
from torch.compiler import is_dynamo_compiling

from manual_mlp.activations import IDENTITY, Activation, get
from manual_mlp.checks import check_layer, looks_fit
from manual_mlp.composite import torchs_layer
from manual_mlp.engines import native
from manual_mlp.engines.native.handed import Asked, Tensors, answers, record_of
from manual_mlp.formulas.layer import (
    Some,
    Three,
    delta_of,
    gradients,
    h_cotangent_of,
    q_of,
    second_of_delta,
    w_cotangent_of,
    y_dot_of,
    y_of,
    z_dot_of,
    z_of,
)
from manual_mlp.formulas.products import plus, rows
from manual_mlp.transforms import Caller, below_functions, caller, is_plain, needed_now

Compute = Callable[[Tensor, Tensor, Tensor | None, Activation], Tensor]


def dense(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    activation: str | nn.Module | Activation | None = None,
) -> Tensor:
    r"""Compute ``f(input @ weight.T + bias)``, whose gradients are written by hand.

    The value and every derivative equal those of ``f(F.linear(input, weight, bias))``.

    Args:
        input: floating-point tensor.
        weight: of the input's dtype and device; under autocast dtypes may differ.
        bias: likewise, or None.
        activation: a name among :func:`manual_mlp.activations.names`, an ``nn`` module, an
            :class:`~manual_mlp.Activation`, or None for the identity.

    Shape:
        - input: :math:`(*, D_{in})`
        - weight: :math:`(D_{out}, D_{in})`
        - bias: :math:`(D_{out})`
        - Output: :math:`(*, D_{out})`

    Raises:
        ValueError: shapes or devices do not fit together, or the activation is not known.
        TypeError: dtypes differ or are not floating point, or the activation is of a wrong type.

    Example::

        h, w, b = torch.randn(5, 4), torch.randn(3, 4, requires_grad=True), torch.randn(3)
        y = dense(h, w, b, "tanh")  # torch.tanh(torch.nn.functional.linear(h, w, b))
        y.sum().backward()
        assert torch.allclose(w.grad, (1 - y.detach() ** 2).T @ h, atol=1e-6)  # dw = δᵀ h
    """
    if not isinstance(activation, Activation):
        activation = get(activation)
    if is_dynamo_compiling():
        return compiled(input, weight, bias, activation)
    if native.doors is not None:
        y = native.doors.dense(input, weight, bias, activation)
        if y is not None:
            return y  # type: ignore[no-any-return]
    return _DOORS[caller(input, weight, bias)](input, weight, bias, activation)


def compiled(input: Tensor, weight: Tensor, bias: Tensor | None, activation: Activation) -> Tensor:
    """Compute the layer for a compiler: torch's own operations, which it fuses best, whoever asks inside of it."""
    # Each call asks again for every name that was looked up, so all questions are to the tensors themselves.
    fit = input.shape[-1:] == weight.shape[1:] and input.dtype is weight.dtype and input.is_floating_point()
    if not (fit and (bias is None or bias.shape == weight.shape[:1])) and caller(input, weight, bias) != "torch":
        check_layer(input, weight, bias)
    return activation.traced(z_of(input, weight, bias))


def _eager(input: Tensor, weight: Tensor, bias: Tensor | None, activation: Activation) -> Tensor:
    if not torch.is_grad_enabled():
        return y_of(z_of(input, weight, bias), activation)
    y = _EagerDenseFunction.apply(input, weight, bias, activation)
    return y if activation.df_y is not None else y[0]  # type: ignore[no-any-return]


def _transformed(input: Tensor, weight: Tensor, bias: Tensor | None, activation: Activation) -> Tensor:
    return DenseFunction.apply(input, weight, bias, activation)[0]  # type: ignore[no-any-return]


def _composed(input: Tensor, weight: Tensor, bias: Tensor | None, activation: Activation) -> Tensor:
    return y_of(z_of(input, weight, bias), activation)


def _checked(compute: Compute) -> Compute:
    def run(input: Tensor, weight: Tensor, bias: Tensor | None, activation: Activation) -> Tensor:
        check_layer(input, weight, bias)
        return compute(input, weight, bias, activation)

    return run


def _tried(input: Tensor, weight: Tensor, bias: Tensor | None, activation: Activation) -> Tensor:
    # What does not fit raises by itself, and only then is asked why.
    if not looks_fit(input, weight, bias):
        check_layer(input, weight, bias)
    try:
        return _eager(input, weight, bias, activation)
    except RuntimeError:
        check_layer(input, weight, bias)
        raise


# Of operands that fit together, by who asks.
COMPUTE: dict[Caller, Compute] = {
    "eager": _eager,
    "transform": _transformed,
    "compiler": compiled,
    "composite": _composed,
}
_DOORS: dict[Caller, Compute] = {who: _checked(compute) for who, compute in COMPUTE.items()} | {
    "eager": _tried,
    "torch": torchs_layer,
}


class DenseFunction(Function):
    """The layer under any transform. Inputs: h (*, D_in), w (D_out, D_in), b (D_out,) or None."""

    generate_vmap_rule = True

    @staticmethod
    def forward(h: Tensor, w: Tensor, b: Tensor | None, activation: Activation) -> tuple[Tensor, Tensor]:
        z = z_of(h, w, b)
        y = y_of(z, activation)
        # Two outputs must be two tensors, and torch 2.11 compiles an f that ends in a no-op to zero gradients.
        if y is z or torch.compiler.is_compiling():
            y = y.clone()
        # z is an output, which dense() hides: were it only saved, second derivatives would see a constant.
        return y, z

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        h, w, _, ctx.activation = inputs
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(h, w, output[1])
        ctx.save_for_forward(h, w, output[1])

    @staticmethod
    def backward(ctx: Any, dy: Tensor | None, dz: Tensor | None) -> Any:
        h, w, z = ctx.saved_tensors
        delta = delta_of(dy, z, ctx.activation.by_z, dz=dz)
        return *gradients(delta, h, w, ctx.needs_input_grad[:3]), None

    @staticmethod
    def jvp(ctx: Any, h_dot: Tensor | None, w_dot: Tensor | None, b_dot: Tensor | None, _: None) -> Any:
        h, w, z = ctx.saved_tensors
        z_dot = z_dot_of(h, w, (h_dot, w_dot, b_dot), z)
        return y_dot_of(z_dot, z, ctx.activation), z_dot


class _EagerDenseFunction(Function):
    # The layer outside of any transform, where a call must be quick and keep little: no setup_context (25 µs a
    # call), nothing kept that only the gradient of a frozen input would need, and y kept instead of z, which then is no
    # output, where f′ comes from y.

    @staticmethod
    def forward(ctx: Any, h: Tensor, w: Tensor, b: Tensor | None, activation: Activation) -> Any:
        z = z_of(h, w, b)
        y = y_of(z, activation)
        ctx.activation = activation
        ctx.set_materialize_grads(False)
        needed = ctx.needs_input_grad
        for_dw, for_dh = h if needed[1] else None, w if needed[0] else None
        if activation.df_y is None:
            ctx.save_for_backward(for_dw, for_dh, z)
            return y.clone() if y is z else y, z
        if activation is IDENTITY:
            ctx.save_for_backward(for_dw, for_dh, None)
            # F.linear's result may be a view, and what a Function returns as one could not be changed in place.
            return y if y.dim() == 2 else y.detach()
        ctx.save_for_backward(for_dw, for_dh, y)
        return y

    @staticmethod
    @below_functions
    def backward(ctx: Any, dy: Tensor | None, dz: Tensor | None = None) -> Any:
        return *layer_backward(
            Kept(ctx.activation, *ctx.saved_tensors), dy, dz, needed_now(ctx, 3), is_plain(dy, dz)
        ), None


class Kept(NamedTuple):
    """What a layer keeps for its backward pass: h for dw, w for dh, and z or y for f′, or None for each."""

    activation: Activation
    h: Tensor | None
    w: Tensor | None
    kept: Tensor | None


def layer_backward(of: Kept, dy: Tensor | None, dz: Tensor | None, needed: Sequence[bool], plain: bool) -> Three:
    """Compute dh, dw and db of a layer, each if it is needed, so that what differentiates them is right.

    ``dz`` is the cotangent that reaches z itself; ``plain`` tells that no transform looks inside.
    """
    if plain and torch.is_grad_enabled() and of.kept is not None:
        return _GradientsFunction.apply(*of[1:], dy, dz, of.activation, needed)  # type: ignore[no-any-return]
    return gradients(delta_of(dy, of.kept, of.activation, plain, dz=dz), of.h, of.w, needed)


class _GradientsFunction(Function):
    # What backward computes, as a function of h, w, kept, dy and dz: create_graph asks for its derivatives. That z
    # depends on h, w and b is left to the layer: r is the cotangent of z (or its counterpart of y), and the products
    # B2, B3 and B4 of the layer take it in together with whatever else reaches z.

    @staticmethod
    def forward(ctx: Any, *args: Any) -> Any:
        h, w, kept, dy, dz, ctx.activation, needed = args
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(h, w, kept, dy, dz)
        return gradients(delta_of(dy, kept, ctx.activation, plain=True, dz=dz), h, w, needed)

    @staticmethod
    @below_functions
    def backward(ctx: Any, *tildes: Tensor | None) -> Any:
        saved = ctx.saved_tensors
        absent = [k for k, t in enumerate(saved[:2]) if t is None]
        return *_second(saved, tildes, ctx.activation, needed_now(ctx, 2, absent)), None, None


def _second(of: Sequence[Tensor | None], tildes: Some, activation: Activation, needed: Sequence[bool]) -> Tensors:
    """Compute the cotangents of h, w, kept, dy and dz from those of dh, dw and db."""
    h, w, kept, dy, dz = of
    like = dy if dz is None else dz
    assert kept is not None
    assert like is not None
    plain = not torch.is_grad_enabled() and is_plain(*tildes)
    q = q_of(h, w, tildes, like, plain)
    if q is None:
        return (None,) * 5
    delta, dy_cotangent, r = dz, None, None
    if dy is not None:
        # With dz, q is that one's cotangent too, and must last.
        delta, dy_cotangent, r = second_of_delta(dy, q, kept, activation, plain and dz is None)
        delta = plus(delta, dz)
    h_cotangent = h_cotangent_of(delta, tildes[1]) if needed[0] else None
    w_cotangent = w_cotangent_of(_rows(delta), _rows(tildes[0])) if needed[1] else None
    return h_cotangent, w_cotangent, r, dy_cotangent, None if dz is None else q


def _rows(t: Tensor | None) -> Tensor | None:
    return None if t is None else rows(t)


@answers
def layer_gradients(asked: Asked) -> Tensors:
    """Compute dh, dw and db from h, w, kept, dy and dz, so that what differentiates them is right."""
    h, w, kept, dy, dz = asked.tensors
    return layer_backward(Kept(record_of(asked.numbers[0]), h, w, kept), dy, dz, asked.needed, is_plain(dy, dz))


@answers
def second_gradients(asked: Asked) -> Tensors:
    """Compute the cotangents of h, w, kept, dy and dz, from these and the cotangents of dh, dw and db."""
    return _second(asked.tensors[:5], asked.tensors[5:], record_of(asked.numbers[0]), asked.needed)
