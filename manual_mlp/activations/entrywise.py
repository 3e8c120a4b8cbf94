"""f and f′ as functions whose own derivative is the record's, whatever autograd would make of them."""

from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from manual_mlp.activations.record import Activation, Map
from manual_mlp.precision import cast, widen


def value(z: Tensor, activation: Activation) -> Tensor:
    """Compute f(z), so that its derivative is the record's f′: some of torch's own have none in forward mode."""
    if torch.compiler.is_compiling():
        return activation.f(z)
    of_z = activation.by_z
    return _EntrywiseFunction.apply(z, activation.f, lambda t: slope(t, of_z))  # type: ignore[no-any-return]


def slope(kept: Tensor, activation: Activation, plain: bool = False) -> Tensor:
    """Compute f′ from what a layer keeps, in float32 at least, so that its own derivative is the record's f″.

    ``plain`` allows a result that is a constant to further derivatives.
    """
    (df, d2f), wide = activation.of_kept(), widen(kept)
    # A compiled graph has no second derivative, and the compiler refuses a Function that defines jvp.
    if plain or torch.compiler.is_compiling():
        return df(wide)
    return _EntrywiseFunction.apply(wide, df, d2f)  # type: ignore[no-any-return]


class _EntrywiseFunction(Function):
    # f with the derivative it is given, whatever autograd would make of f.
    generate_vmap_rule = True

    @staticmethod
    def forward(t: Tensor, f: Map, df: Map) -> Tensor:
        y = f(t)
        return y.clone() if y is t else y

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Tensor) -> None:
        t, _, ctx.df = inputs
        ctx.save_for_backward(t)
        ctx.save_for_forward(t)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> Any:
        (t,) = ctx.saved_tensors
        return cast(dy * ctx.df(widen(t)), t.dtype), None, None

    @staticmethod
    def jvp(ctx: Any, dt: Tensor, *_: None) -> Tensor:
        (t,) = ctx.saved_tensors
        return cast(dt * ctx.df(widen(t)), t.dtype)
