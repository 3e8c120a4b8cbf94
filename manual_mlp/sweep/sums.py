"""What gradients are added up in: the ``grad`` of a parameter, or what stands for it until all tiles are done."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeAlias

import torch
from torch import Tensor

from manual_mlp.formulas.layer import Layer, add_tile
from manual_mlp.formulas.products import plus
from manual_mlp.precision import widened
from manual_mlp.transforms import has_class, has_gradient_hooks


class Total:
    """What stands for a parameter where tiles are added up: it has a ``grad`` too."""

    __slots__ = ("dtype", "grad")

    def __init__(self, dtype: torch.dtype, grad: Tensor | None = None) -> None:
        self.dtype, self.grad = dtype, grad

    @classmethod
    def of(cls, parameter: Tensor) -> Total:
        """Start from zeros, in float32 at least."""
        dtype = widened(parameter.dtype)
        return cls(dtype, parameter.new_zeros(parameter.shape, dtype=dtype))


Sum: TypeAlias = "Tensor | Total"  # whose ``grad`` terms are added to
Sums: TypeAlias = "Sequence[tuple[Sum | None, Sum | None]]"  # of the weight and the bias of each layer


def add(to: Sum, term: Callable[..., Tensor], *factors: Tensor) -> None:
    """Add a term, such as δᵀh, by its formula, which takes the factors and the total."""
    if to.grad is not None:
        add_tile(to.grad, term, *factors)
    elif isinstance(to, Total) or to.is_contiguous() or to.dim() != 2 or not to.t().is_contiguous():
        to.grad = fitted(term(*factors), to)
    else:
        # δᵀh = (hᵀδ)ᵀ has the strides; detach(), for a gradient that is a view could not be changed in place.
        to.grad = fitted(term(*reversed(factors)).t().detach(), to)


def fitted(grad: Tensor, of: Sum) -> Tensor:
    """Give a gradient the dtype that a parameter's has, and its strides where these are dense, as autograd does.

    torch lets a user choose the dtype, and fused optimizers count on the strides.
    """
    dtype = getattr(of, "grad_dtype", None) or of.dtype
    grad = grad if grad.dtype is dtype else grad.to(dtype)
    if isinstance(of, Total) or of.is_contiguous() or of.stride() == grad.stride():
        return grad
    dense = torch.ops.aten.is_non_overlapping_and_dense(of)
    return torch.empty_like(of, dtype=grad.dtype).copy_(grad) if dense else grad


def sums_of(layers: Sequence[Layer], one: bool) -> tuple[Sums, dict[Tensor, Total]]:
    """Make a sum for each parameter that requires grad, and list what is not added to ``.grad`` itself.

    That is what many tiles are added to, what a hook waits for, and what a gradient cannot take in as it is.
    """
    totals: dict[Tensor, Total] = {}

    def of(p: Tensor | None) -> Sum | None:
        if p is None or not p.requires_grad:
            return None
        if one and not has_gradient_hooks(p) and (p.grad is None or _is_addable(p.grad)):
            return p
        if p not in totals:
            totals[p] = Total(p.dtype) if one else Total.of(p)
        return totals[p]

    return [(of(w), of(b)) for w, b, *_ in layers], totals


def _is_addable(grad: Tensor) -> bool:
    """Tell whether a gradient can be added to in place."""
    return not (
        grad.layout is not torch.strided
        or has_class(grad)
        or grad.is_inference()
        or any(stride == 0 and size > 1 for size, stride in zip(grad.shape, grad.stride(), strict=True))
    )


def accumulate(totals: dict[Tensor, Total], watched: dict[Tensor, Tensor]) -> None:
    """Add the totals to ``.grad``; through autograd, in one pass with what is watched, where a hook waits for them."""
    for p, total in totals.items():
        if total.grad is None:
            continue
        if p.grad is not None and not _is_addable(p.grad):
            p.grad = fitted(p.grad.to_dense().clone(memory_format=torch.contiguous_format), p)
        if has_gradient_hooks(p):
            grad = fitted(total.grad, p)
            watched[p] = watched[p] + grad if p in watched else grad
        elif p.grad is None:
            p.grad = fitted(total.grad, p)
        else:
            p.grad += total.grad
    if watched:
        torch.autograd.backward(list(watched), list(watched.values()))


def finish(input: Tensor, dh: Tensor | None, gradients: Sequence[tuple[Tensor, Tensor]]) -> None:
    """Add the gradients of the input and of the parameters that native has left to their ``.grad``, or hand them on."""
    totals: dict[Tensor, Total] = {}
    watched: dict[Tensor, Tensor] = {}
    if dh is not None:
        if input.is_leaf:
            gradients = [*gradients, (input, dh)]
        else:
            watched[input] = dh
    for p, grad in gradients:
        total = totals.setdefault(p, Total(p.dtype))
        total.grad = plus(total.grad, grad)
    accumulate(totals, watched)
