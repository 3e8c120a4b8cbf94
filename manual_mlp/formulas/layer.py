"""The formulas of a dense layer, one function each: every path of every engine calls these, or is held to them.

``docs/derivation.md`` proves each of them under its tag. A tensor that is None stands for zeros. What a layer keeps for
its backward pass is called ``kept``: y where f′ comes from y, else z, and None for the identity. ``plain`` tells that
nobody looks into what is done (no transform, no graph for a further derivative).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from manual_mlp.activations import Activation
from manual_mlp.activations.entrywise import slope
from manual_mlp.formulas.products import add_linear, add_product, plus, rows
from manual_mlp.precision import cast, widen

Three = tuple[Tensor | None, Tensor | None, Tensor | None]  # of h, w and b
Some = Sequence[Tensor | None]  # likewise


class Layer(NamedTuple):
    """A layer: y = f(h wᵀ + b), of whose entries dropout zeroes a share."""

    w: Tensor
    b: Tensor | None
    activation: Activation
    dropout: float = 0.0

    def to(self, dtype: torch.dtype) -> Layer:
        """Turn the operands of the products into a dtype."""
        return self._replace(w=cast(self.w, dtype), b=None if self.b is None else cast(self.b, dtype))


def z_of(h: Tensor, w: Tensor, b: Tensor | None) -> Tensor:
    """Compute z (*, D_out), the pre-activation."""
    return F.linear(h, w, b)  # (F1)


def y_of(z: Tensor, activation: Activation) -> Tensor:
    """Compute y, the output."""
    return activation.f(z)  # (F2)


def delta_of(
    dy: Tensor | None,
    kept: Tensor | None,
    activation: Activation,
    plain: bool = False,
    dz: Tensor | None = None,
) -> Tensor | None:
    """Compute δ; ``dz`` is the cotangent that reaches z itself."""
    if dy is None or kept is None:
        return plus(dy, dz)
    kernel = activation.kernel if plain and dy.dtype == kept.dtype else None
    delta = kernel(dy, kept) if kernel else cast(widen(dy) * slope(kept, activation, plain), kept.dtype)  # (B1)
    return delta if dz is None else delta + dz


def dh_of(delta: Tensor, w: Tensor, total: Tensor | None = None) -> Tensor:
    """Compute dh (*, D_in), or its sum with a total."""
    return delta @ w if total is None else torch.addmm(total, delta, w)  # (B2)


def dw_of(delta: Tensor, h: Tensor, total: Tensor | None = None) -> Tensor:
    """Compute dw (D_out, D_in) of rows (N, ·), or add it to a total."""
    return torch.mm(delta.t(), h) if total is None else add_product(total, delta.t(), h)  # (B3)


def db_of(delta: Tensor, total: Tensor | None = None) -> Tensor:
    """Compute db (D_out,) of rows (N, D_out), or add it to a total."""
    return delta.sum(0) if total is None else total.add_(delta.sum(0, dtype=total.dtype))  # (B4)


def gradients(delta: Tensor | None, h: Tensor | None, w: Tensor | None, needed: Sequence[bool]) -> Three:
    """Compute dh, dw and db from δ, each if it is needed: dh takes w, and dw takes h.

    The products run in δ's dtype: under autocast h and w may be wider.
    """
    if delta is None:
        return None, None, None
    dh = dw = None
    if needed[0]:
        assert w is not None
        dh = dh_of(delta, cast(w, delta.dtype))
    delta = rows(delta)
    if needed[1]:
        assert h is not None
        dw = dw_of(delta, cast(rows(h), delta.dtype))
    return dh, dw, db_of(delta) if needed[2] else None


def add_tile(total: Tensor, term: Callable[..., Tensor], delta: Tensor, *h: Tensor) -> Tensor:
    """Add what a tile has for a parameter, δᵀh or δᵀ1, to the sum of what others have."""
    return term(delta, *h, total)  # (T1)


def z_dot_of(h: Tensor, w: Tensor, dots: Some, like: Tensor) -> Tensor:
    """Compute ż, in memory of its own, from the tangents of h, w and b; ``like`` is z."""
    z_dot = _change(h, w, dots)  # (J1)
    return torch.zeros_like(like) if z_dot is None else z_dot.expand_as(like).clone()


def y_dot_of(z_dot: Tensor, z: Tensor, activation: Activation) -> Tensor | None:
    """Compute ẏ, so that its own derivatives are right."""
    return delta_of(z_dot, z, activation.by_z)  # (J2)


def q_of(h: Tensor | None, w: Tensor | None, tildes: Some, like: Tensor, plain: bool = False) -> Tensor | None:
    """Compute q, the cotangent of δ, in memory of its own, from those of dh, dw and db; ``like`` has δ's shape.

    The cotangent of dh takes w, and that of dw takes h.
    """
    q = _change(h, w, tildes, plain)  # (S1)
    return q.expand(like.shape).clone() if q is not None and q is tildes[2] else q


def second_of_delta(
    dy: Tensor, q: Tensor, kept: Tensor, activation: Activation, plain: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Compute δ, the cotangent of dy, and r, the cotangent of what the layer kept, from q.

    Where that is y, r has f″/f′ in place of f″. ``plain`` allows a kernel that makes all three, and q to be
    overwritten.
    """
    wide_dy, wide_q, wide = widen(dy), widen(q), widen(kept)
    if plain and activation.kernel2 is not None:
        three = activation.kernel2(wide_dy, wide_q, wide)
        return cast(three[0], kept.dtype), cast(three[1], dy.dtype), cast(three[2], kept.dtype)
    first = delta_of(dy, kept, activation, plain)
    dy_cotangent = delta_of(q, kept, activation, plain)  # (S3)
    _, d2f = activation.of_kept()
    # Zeros, and not None, where f″ is 0: torch's answer is no different, and what it reaches is not unused.
    r = torch.zeros_like(kept) if d2f is torch.zeros_like else cast(wide_q * wide_dy * d2f(wide), kept.dtype)  # (S2)
    assert first is not None
    assert dy_cotangent is not None
    return first, cast(dy_cotangent, dy.dtype), r


def h_cotangent_of(
    delta: Tensor | None, w_tilde: Tensor | None, r: Tensor | None = None, w: Tensor | None = None
) -> Tensor | None:
    """Compute the cotangent of h: as a factor of dw, and through z."""
    return _sum(dh_of, (delta, w_tilde), (r, w))  # (S4)


def w_cotangent_of(
    delta: Tensor | None,
    h_tilde: Tensor | None,
    r: Tensor | None = None,
    h: Tensor | None = None,
    total: Tensor | None = None,
) -> Tensor | None:
    """Compute the cotangent of w, of rows (N, ·): as a factor of dh, and through z; or add it to a total."""
    return _sum(dw_of, (delta, h_tilde), (r, h), total=total)  # (S5)


def b_cotangent_of(r: Tensor, total: Tensor | None = None) -> Tensor:
    """Compute the cotangent of b, which is through z alone; or add it to a total."""
    return db_of(r, total)  # (S6)


def _change(h: Tensor | None, w: Tensor | None, dots: Some, plain: bool = False) -> Tensor | None:
    """Compute ḣ wᵀ + h ẇᵀ + ḃ, the change of h wᵀ + b, without the terms whose dot is None."""
    h_dot, w_dot, b_dot = dots
    first = b_dot
    if h_dot is not None:
        assert w is not None
        first = F.linear(h_dot, cast(w, h_dot.dtype), b_dot)
    if w_dot is None:
        return first
    assert h is not None
    h = cast(h, w_dot.dtype)
    if h_dot is None or first is None:
        return F.linear(h, w_dot, b_dot)
    return add_linear(first, h, w_dot) if plain else first + F.linear(h, w_dot)


def _sum(
    term: Callable[[Tensor, Tensor, Tensor | None], Tensor],
    *pairs: tuple[Tensor | None, Tensor | None],
    total: Tensor | None = None,
) -> Tensor | None:
    """Add up the terms of the pairs that are whole."""
    for a, b in pairs:
        if a is not None and b is not None:
            total = term(a, b, total)
    return total
