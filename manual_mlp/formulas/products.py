"""The matrix products that the formulas are made of: of any layout, into memory that is there, or added to a total."""

import torch
from torch import Tensor

from manual_mlp.transforms import operations_are_watched


def product(a: Tensor, b: Tensor, out: Tensor | None = None, plus: Tensor | None = None) -> Tensor:
    """Compute ab, or ab + plus, in memory that is there if ``out`` is given.

    A mode that watches operations sees torch's usual products, which it may know how to count or to replace.
    """
    if out is None:
        return torch.addmm(plus, a, b) if plus is not None else torch.mm(a, b) if a.dim() == 2 else a @ b
    if operations_are_watched():
        return out.copy_(torch.mm(a, b) if plus is None else torch.addmm(plus, a, b))
    return torch.mm(a, b, out=out) if plus is None else torch.addmm(plus, a, b, out=out)


def add_linear(z: Tensor, h: Tensor, w: Tensor) -> Tensor:
    """Add h wᵀ to z (*, D_out), over it."""
    flat = z.view(z.shape[:-1].numel(), z.shape[-1])
    product(rows(h), w.t(), flat, flat)
    return z


def add_product(total: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """Add ab to a total, in the dtype of that.

    A product that were rounded to a narrower dtype before it is added would lose more than twice torch's accuracy, so
    on a CPU its operands are widened. On a GPU that would cost far more than the rest, and a block of the product, no
    larger than a, is added as it is.
    """
    if total.dtype == a.dtype:
        return product(a, b, total, total)
    if a.is_cpu and total.dtype.itemsize > a.dtype.itemsize:
        return product(a.to(total.dtype), b.to(total.dtype), total, total)
    size = max(1, a.numel() // max(1, b.shape[1]))
    for start in range(0, len(total), size):
        total[start : start + size] += a[start : start + size] @ b
    return total


def rows(t: Tensor) -> Tensor:
    """View ``(*, D)`` as ``(N, D)``."""
    return t if t.dim() == 2 else t.reshape(t.shape[:-1].numel(), t.shape[-1])


def plus(a: Tensor | None, b: Tensor | None) -> Tensor | None:
    """Add two tensors; one that is None stands for zeros."""
    return b if a is None else a if b is None else a + b
