"""One dense layer, ``Y = f(HW + B)``, with its derivatives written out.

A tag names the formula that its line computes; ``docs/derivation.md`` proves each of them.
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd import Function

from manual_mlp.activations import IDENTITY, Activation, get
from manual_mlp.activations.record import cast, slope, times_slope_and_curvature, value
from manual_mlp.rules import delta_cotangent, delta_of, gradients, plus, second_gradients, tangent
from manual_mlp.transforms import (
    below_functions,
    caller,
    is_dispatched,
    may_autocast,
    needed_now,
    plain,
    without_jvp,
)


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
    """
    if not isinstance(activation, Activation):
        activation = get(activation)
    who = caller(input, weight, bias)
    if who in ("eager", "no grad") and _fits(input, weight, bias):
        try:
            if who == "no grad":
                return activation.f(F.linear(input, weight, bias))
            y = _EagerDenseFunction.apply(input, weight, bias, activation)
        except RuntimeError:
            check_layer(input, weight, bias)
            raise
        return y if activation.df_y is not None else y[0]  # type: ignore[no-any-return]
    if who != "torch":
        check_layer(input, weight, bias)
    if who in ("torch", "composite", "no grad"):
        z = F.linear(input, weight, bias)
        # Of some activations' own backward such a class knows nothing, but the record's f′ is made of what it knows.
        return value(z, activation) if who == "torch" and is_dispatched(z) else activation.f(z)
    function = _CompiledDenseFunction if who == "compiler" else DenseFunction
    y, _ = function.apply(input, weight, bias, activation)
    return y  # type: ignore[no-any-return]


class MisfitError(ValueError, RuntimeError):
    """Shapes or devices do not fit together: what ``F.linear`` would raise, and said as an error of a value."""


class DtypeError(TypeError, RuntimeError):
    """Dtypes do not fit together: what ``F.linear`` would raise, and said as an error of a type."""


class DenseFunction(Function):
    """The layer under any transform. Inputs: h (*, D_in), w (D_out, D_in), b (D_out,) or None."""

    generate_vmap_rule = True

    @staticmethod
    def forward(h: Tensor, w: Tensor, b: Tensor | None, activation: Activation) -> tuple[Tensor, Tensor]:
        z = F.linear(h, w, b)  # (F1)
        y = activation.f(z)  # (F2)
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
        delta = dz
        if dy is not None:
            delta = plus(cast(dy * slope(z, ctx.activation), z.dtype), dz)  # (B1)
        return *gradients(delta, h, w, ctx.needs_input_grad), None

    @staticmethod
    def jvp(ctx: Any, h_dot: Tensor | None, w_dot: Tensor | None, b_dot: Tensor | None, _: None) -> Any:
        h, w, z = ctx.saved_tensors
        z_dot = tangent(h_dot, w_dot, b_dot, h, w, z)
        return cast(z_dot * slope(z, ctx.activation), z.dtype), z_dot  # (J2)


_CompiledDenseFunction = without_jvp(DenseFunction)


class _EagerDenseFunction(Function):
    # The layer outside of any transform, where a call must be quick and keep little: no setup_context (25 µs a
    # call), nothing kept that only the gradient of a frozen input would need, and y kept instead of z, which then is no
    # output, where f′ comes from y.

    @staticmethod
    def forward(ctx: Any, h: Tensor, w: Tensor, b: Tensor | None, activation: Activation) -> Any:
        z = F.linear(h, w, b)  # (F1)
        y = activation.f(z)  # (F2)
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
        h, w, kept = ctx.saved_tensors
        return *layer_gradients(h, w, kept, dy, dz, ctx.activation, needed_now(ctx, 3), plain(dy, dz)), None


class _GradientsFunction(Function):
    # What backward computes, as a function of h, w, kept, dy and dz: create_graph asks for its derivatives. That z
    # depends on h, w and b is left to the layer: r is the cotangent of z (or its counterpart of y), and the products
    # (B2), (B3) and (B4) of the layer take it in together with whatever else reaches z.

    @staticmethod
    def forward(
        ctx: Any,
        h: Tensor | None,
        w: Tensor | None,
        kept: Tensor,
        dy: Tensor | None,
        dz: Tensor | None,
        activation: Activation,
        needed: Sequence[bool],
    ) -> Any:
        ctx.activation = activation
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(h, w, kept, dy, dz)
        return gradients(delta_of(dy, dz, kept, activation, plain=True), h, w, needed)

    @staticmethod
    @below_functions
    def backward(ctx: Any, *tilde: Tensor | None) -> Any:
        h, w, kept, dy, dz = ctx.saved_tensors
        opaque = not torch.is_grad_enabled() and plain(*tilde)
        q = delta_cotangent(tilde, h, w, kept.shape, opaque)
        if q is None:
            return (None,) * 7
        delta, dy_cotangent, r = dz, None, None
        if dy is not None:
            # With dz, q is that one's cotangent too, and must last.
            terms = times_slope_and_curvature(dy, q, kept, ctx.activation, plain=opaque and dz is None)
            delta, dy_cotangent, r = plus(cast(terms[0], kept.dtype), dz), *terms[1:]
        absent = [k for k, t in enumerate((h, w)) if t is None]
        h_cotangent, w_cotangent = second_gradients(delta, tilde[0], tilde[1], needed_now(ctx, 2, absent))
        return h_cotangent, w_cotangent, r, dy_cotangent, None if dz is None else q, None, None


def layer_gradients(
    h: Tensor | None,
    w: Tensor | None,
    kept: Tensor | None,
    dy: Tensor | None,
    dz: Tensor | None,
    activation: Activation,
    needed: Sequence[bool],
    plain: bool,
) -> Any:
    """Compute dh, dw and db, each if it is needed, so that what differentiates them is right.

    ``kept`` and ``dz`` are as in :func:`manual_mlp.rules.delta_of`; ``plain`` tells that no transform looks inside.
    """
    if plain and torch.is_grad_enabled() and kept is not None:
        return _GradientsFunction.apply(h, w, kept, dy, dz, activation, needed)
    return gradients(delta_of(dy, dz, kept, activation, plain), h, w, needed)


def autocasting(t: Tensor) -> bool:
    """Tell whether autocast is on for the tensor's device."""
    if not may_autocast():
        return False
    kind = t.device.type
    return kind != "meta" and torch.is_autocast_enabled(kind)


def _fits(input: Tensor, weight: Tensor, bias: Tensor | None) -> bool:
    """Look, with few questions, only for what ``F.linear`` itself would let pass."""
    try:
        return (
            weight.dim() == 2
            and input.is_floating_point()
            and input.layout is weight.layout is torch.strided
            and not input.is_nested
            and weight.is_meta is input.is_meta
            and (bias is None or (bias.dim() == 1 and bias.size(0) == weight.size(0)))
        )
    except AttributeError:
        return False


def _fit_together(input: Tensor, weight: Tensor, bias: Tensor | None) -> bool:
    """Tell, with few questions, whether the three are as usual: nothing else has to be asked then."""
    try:
        (d_out, d_in), dtype, device = weight.shape, weight.dtype, weight.device
        return (
            input.shape[-1] == d_in
            and input.dtype is dtype
            and input.device == device
            and input.layout is weight.layout is torch.strided
            and dtype.is_floating_point
            and not input.is_nested
            and (
                bias is None
                or (
                    bias.shape == (d_out,)
                    and bias.dtype is dtype
                    and bias.device == device
                    and bias.layout is torch.strided
                )
            )
        )
    except (AttributeError, IndexError, RuntimeError, ValueError):  # no tensors, nested ones, or of other dimensions
        return False


def check_tensor(name: str, t: Tensor) -> None:
    """Raise an error unless it is a tensor."""
    if not isinstance(t, Tensor):
        raise TypeError(f"expected {name} to be a tensor, got {type(t).__name__}")


def check_layer(input: Tensor, weight: Tensor, bias: Tensor | None) -> None:
    """Raise an error that says what was expected and what came, unless the three fit together."""
    if _fit_together(input, weight, bias):
        return
    given = {"input": input, "weight": weight} | ({} if bias is None else {"bias": bias})
    for name, t in given.items():
        check_tensor(name, t)
        if not t.is_floating_point():
            raise TypeError(f"expected {name} of a floating-point dtype, got {t.dtype}")
        if t.layout is not torch.strided or t.is_nested:
            got = "a nested tensor" if t.is_nested else t.layout
            raise TypeError(f"expected {name} of layout torch.strided, got {got}")
    if weight.dim() != 2:
        raise MisfitError(f"expected weight (D_out, D_in), got {tuple(weight.shape)}")
    d_out, d_in = weight.shape
    if input.dim() == 0 or input.shape[-1] != d_in:
        raise MisfitError(f"expected input (*, {d_in}) for weight ({d_out}, {d_in}), got {tuple(input.shape)}")
    if bias is not None and tuple(bias.shape) != (d_out,):
        raise MisfitError(f"expected bias ({d_out},) for weight ({d_out}, {d_in}), got {tuple(bias.shape)}")
    if len({t.device for t in given.values()}) > 1:
        raise MisfitError(f"expected one device, got {_list(given, 'device')}")
    if len({t.dtype for t in given.values()}) > 1 and not autocasting(input):
        raise DtypeError(f"expected one dtype, got {_list(given, 'dtype')}")


def _list(given: dict[str, Tensor], attribute: str) -> str:
    return ", ".join(f"{name} {getattr(t, attribute)}" for name, t in given.items())
