"""f and f′ as a Function that a compiler follows, which refuses one that defines ``jvp``."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from manual_mlp.precision import cast, widen
from manual_mlp.transforms import constant

Map = Callable[[Tensor], Tensor]


def traced(f: Map, df: Map, z: Tensor) -> Tensor:
    """Compute f(z), whose derivative is f′, whatever autograd would make of f; an export is of f alone."""
    if _exporting():
        return f(z)
    return _TracedFunction.apply(z, f, df)  # type: ignore[no-any-return]


@constant
def _exporting() -> bool:
    """Tell whether torch.export asks: where torch 2.11 traces the question itself, it answers True."""
    return torch.compiler.is_exporting()


class _TracedFunction(Function):
    @staticmethod
    def forward(ctx: Any, z: Tensor, f: Map, df: Map) -> Tensor:
        ctx.df = df
        ctx.save_for_backward(z)
        # torch 2.11 compiles an f that ends in a no-op to zero gradients.
        return f(z).clone()

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> Any:
        (z,) = ctx.saved_tensors
        return cast(dy * ctx.df(widen(z)), z.dtype), None, None
