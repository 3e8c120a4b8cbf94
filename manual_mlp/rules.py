"""The formulas of a dense layer as functions of tensors: every path calls these.

A tag names the formula that its line computes; ``docs/derivation.md`` proves each of them. An argument
that is None stands for zeros.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from manual_mlp.activations import Activation
from manual_mlp.activations.record import cast, times_slope
from manual_mlp.transforms import operations_are_watched


def delta_of(
    dy: Tensor | None, dz: Tensor | None, kept: Tensor | None, activation: Activation, plain: bool
) -> Tensor | None:
    """Compute δ from what the layer kept: y where f′ comes from y, else z, and None for the identity.

    ``dz`` is the cotangent that reaches z itself; ``plain`` allows the activation's kernel.
    """
    if dy is None:
        return dz
    return plus(dy if kept is None else cast(times_slope(dy, kept, activation, plain), kept.dtype), dz)  # (B1)


def gradients(
    delta: Tensor | None, h: Tensor | None, w: Tensor | None, needed: Sequence[bool]
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """Compute dh, dw and db from δ, each if it is needed: dh takes w, and dw takes h.

    At second order r comes in as a part of δ, and these are the terms of S4, S5 and S6 with r.
    The products run in δ's dtype: under autocast h and w may be wider.
    """
    if delta is None:
        return None, None, None
    dh = dw = None
    if needed[0]:
        assert w is not None
        dh = delta @ cast(w, delta.dtype)  # (B2, S4)
    if delta.dim() != 2:
        delta = rows(delta)
    if needed[1]:
        assert h is not None
        dw = delta.mT @ cast(rows(h), delta.dtype)  # (B3, S5)
    db = delta.sum(0) if needed[2] else None  # (B4, S6)
    return dh, dw, db


def add_outer(total: Tensor, delta: Tensor, h: Tensor) -> None:
    """Add δᵀh in the dtype of the total.

    A product that were rounded to a narrower dtype before it is added would lose more than twice torch's accuracy, so
    on a CPU its operands are widened. On a GPU that would cost far more than the rest, and a block of the product, no
    larger than δ, is added as it is.
    """
    if total.dtype == delta.dtype:
        product(delta.mT, h, out=total, plus=total)  # (B3, S5)
    elif delta.is_cpu and total.dtype.itemsize > delta.dtype.itemsize:
        product(delta.mT.to(total.dtype), h.to(total.dtype), out=total, plus=total)  # (B3, S5)
    else:
        columns = max(1, delta.numel() // max(1, h.shape[1]))
        for start in range(0, len(total), columns):
            total[start : start + columns] += delta[:, start : start + columns].mT @ h  # (B3, S5)


def product(a: Tensor, b: Tensor, out: Tensor, plus: Tensor | None = None) -> Tensor:
    """Compute ab, and what it is added to, in memory that is there.

    A mode that watches operations sees torch's usual products, which it may know how to count or to replace.
    """
    if operations_are_watched():
        return out.copy_(torch.mm(a, b) if plus is None else torch.addmm(plus, a, b))
    return torch.mm(a, b, out=out) if plus is None else torch.addmm(plus, a, b, out=out)


def tangent(
    h_dot: Tensor | None, w_dot: Tensor | None, b_dot: Tensor | None, h: Tensor, w: Tensor, z: Tensor
) -> Tensor:
    """Compute ż from the tangents of h, w and b."""
    z_dot = torch.zeros_like(z)
    if h_dot is not None:
        z_dot = z_dot + F.linear(h_dot, w)  # (J1)
    if w_dot is not None:
        z_dot = z_dot + F.linear(h, w_dot)  # (J1)
    if b_dot is not None:
        z_dot = z_dot + b_dot  # (J1)
    return z_dot


def delta_cotangent(
    tilde: Sequence[Tensor | None], h: Tensor | None, w: Tensor | None, shape: Sequence[int], in_place: bool
) -> Tensor | None:
    """Compute q, the cotangent of δ, which has this shape, from those of dh, dw and db; it shares no memory.

    That of dh takes w, and that of dw takes h.
    """
    h_tilde, w_tilde, b_tilde = tilde
    if h_tilde is None:
        if w_tilde is None:
            return None if b_tilde is None else b_tilde.expand(shape).clone()  # (S1)
        assert h is not None
        return F.linear(cast(h, w_tilde.dtype), w_tilde, b_tilde)  # (S1)
    assert w is not None
    q = F.linear(h_tilde, cast(w, h_tilde.dtype), b_tilde)  # (S1)
    if w_tilde is None:
        return q
    assert h is not None
    h = cast(h, h_tilde.dtype)
    if not in_place:
        return q + F.linear(h, w_tilde)  # (S1)
    flat = q.view(q.shape[:-1].numel(), q.shape[-1])
    product(rows(h), w_tilde.mT, out=flat, plus=flat)  # (S1)
    return q


def second_gradients(
    delta: Tensor | None, h_tilde: Tensor | None, w_tilde: Tensor | None, needed: Sequence[bool]
) -> tuple[Tensor | None, Tensor | None]:
    """Compute the cotangents that h and w have as factors of B2 and B3, each if it is needed.

    What they and b get through z is B2, B3 and B4 with r in place of δ.
    """
    if delta is None:
        return None, None
    h_cotangent = delta @ w_tilde if needed[0] and w_tilde is not None else None  # (S4)
    w_cotangent = rows(delta).mT @ rows(h_tilde) if needed[1] and h_tilde is not None else None  # (S5)
    return h_cotangent, w_cotangent


def plus(delta: Tensor, dz: Tensor | None) -> Tensor:
    """Add the cotangent that reaches z itself."""
    return delta if dz is None else delta + dz


def rows(t: Tensor) -> Tensor:
    """View ``(*, D)`` as ``(N, D)``."""
    return t if t.dim() == 2 else t.reshape(t.shape[:-1].numel(), t.shape[-1])
