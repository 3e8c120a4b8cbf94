"""The matrix products of the formulas that are added to what is there, and of any layout."""

import torch
from torch import Tensor

from manual_mlp.transforms import operations_are_watched


def add_linear(z: Tensor, h: Tensor, w: Tensor) -> Tensor:
    """Add h wᵀ to z (*, D_out), over it."""
    flat = z.view(z.shape[:-1].numel(), z.shape[-1])
    flat.addmm_(rows(h), w.t())
    return z


def add_product(total: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """Add ab to a total, in the dtype of that.

    A product that were rounded to a narrower dtype before it is added would lose more than twice torch's accuracy, so
    on a CPU its operands are widened. On a GPU that would cost far more than the rest, and a block of the product, no
    larger than a, is added as it is.
    """
    if total.dtype == a.dtype:
        return _add(total, a, b)
    if a.is_cpu and total.dtype.itemsize > a.dtype.itemsize:
        return _add(total, a.to(total.dtype), b.to(total.dtype))
    size = max(1, a.numel() // max(1, b.shape[1]))
    for start in range(0, len(total), size):
        total[start : start + size] += a[start : start + size] @ b
    return total


def _add(total: Tensor, a: Tensor, b: Tensor) -> Tensor:
    # A mode that watches operations sees torch's usual product, which it may know how to count or to replace.
    return total.copy_(torch.addmm(total, a, b)) if operations_are_watched() else total.addmm_(a, b)


def rows(t: Tensor) -> Tensor:
    """View ``(*, D)`` as ``(N, D)``."""
    return t if t.dim() == 2 else t.reshape(t.shape[:-1].numel(), t.shape[-1])


def plus(a: Tensor | None, b: Tensor | None) -> Tensor | None:
    """Add two tensors; one that is None stands for zeros."""
    return b if a is None else a if b is None else a + b
