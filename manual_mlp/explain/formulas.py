"""The formulas that the explanation computes, which are the package's own, and eight usual mistakes in them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from manual_mlp.activations import Activation
from manual_mlp.formulas.layer import db_of, delta_of, dh_of, dw_of
from manual_mlp.losses import Criterion, by_flag


def cost(loss: str, y: Tensor, target: Tensor) -> Tensor:
    """Return J, summed over rows and outputs, by torch's own operations; y may be complex if the loss lets it.

    Shape:
        y, target: (N, D_out) -> ()
    """
    known = by_flag(loss)
    return Criterion(known, target, "sum", {}).torchs(y) if known.cost is None else known.cost(y, target)


def cost_gradient(loss: str, y: Tensor, target: Tensor) -> Tensor:
    """Return ∂J/∂Y: Y − Y* of the squared error, p − Y* of both cross-entropies.

    Shape:
        y, target: (N, D_out) -> (N, D_out)
    """
    dy: Tensor = by_flag(loss).make(y, target).values(y.clone(), slice(None), True)[1]
    return dy


def back_through_f(dy: Tensor, z: Tensor, activation: Activation) -> Tensor:
    """Return δ = ∂J/∂Y ⊙ f′(Z)."""
    kept = z if activation.df_y is None else activation.f(z)
    delta = delta_of(dy, kept, activation)
    assert delta is not None
    return delta


def stored_weight(h: Tensor, delta: Tensor) -> Tensor:
    """Return the weight's gradient in PyTorch's layout, δᵀh.

    Shape:
        h: (N, D_in), delta: (N, D_out) -> (D_out, D_in)
    """
    return dw_of(delta, h)


def weight(h: Tensor, delta: Tensor) -> Tensor:
    """Return ∂J/∂W = Hᵀδ, (D_in, D_out)."""
    return stored_weight(h, delta).mT


def bias(delta: Tensor) -> Tensor:
    """Return ∂J/∂B, the sum of δ over the rows, (D_out,)."""
    return db_of(delta)


def input(delta: Tensor, w: Tensor) -> Tensor:
    """Return ∂J/∂H = δWᵀ, for the textbook's W (D_in, D_out): (N, D_in)."""
    return dh_of(delta, w.mT)


def through_softmax(s: Tensor, target: Tensor) -> Tensor:
    """Return p − t, what softmax and cross-entropy together send back to what enters the softmax.

    Shape:
        s, target: (N, D_out) -> (N, D_out)
    """
    return cost_gradient("cross-entropy", s, target)


@dataclass(frozen=True)
class Formulas:
    """Hold the formulas of one explanation; a mistake replaces some of them."""

    cost_gradient: Callable[[str, Tensor, Tensor], Tensor] = cost_gradient
    delta: Callable[[Tensor, Tensor, Activation], Tensor] = back_through_f
    weight: Callable[[Tensor, Tensor], Tensor] = weight
    stored_weight: Callable[[Tensor, Tensor], Tensor] = stored_weight
    bias: Callable[[Tensor], Tensor] = bias
    input: Callable[[Tensor, Tensor], Tensor] = input
    softmax: Callable[[Tensor, Tensor], Tensor] = through_softmax


RIGHT = Formulas()


@dataclass(frozen=True)
class Mistake:
    """One usual mistake.

    Attributes:
        name: for the command line and for a report.
        wrong, right: the formula as it was written, and as it should be.
        why: how one comes to write it, and what is the matter with it.
        of: the field of Formulas whose numbers it changes first.
        formulas: those of an explanation that makes it.
    """

    name: str
    wrong: str
    right: str
    why: str
    of: str
    formulas: Formulas


def _mistake(name: str, wrong: str, right: str, why: str, **formulas: Callable[..., Tensor]) -> Mistake:
    return Mistake(name, wrong, right, why, next(iter(formulas)), replace(RIGHT, **formulas))


def _diagonal_softmax(z: Tensor, target: Tensor) -> Tensor:
    return -target * (1 - torch.softmax(z, 1))


MISTAKES = {
    mistake.name: mistake
    for mistake in (
        _mistake(
            "transpose-dropped",
            "∂J/∂W = H δ",
            "∂J/∂W = Hᵀ δ",
            "H stands in the formula, so H is written down. But the sum runs over the rows of H, and only a transpose "
            "puts those where a matrix product sums.",
            weight=lambda h, delta: h @ delta,
        ),
        _mistake(
            "product-for-hadamard",
            "δ = ∂J/∂Y f′(Z)",
            "δ = ∂J/∂Y ⊙ f′(Z)",
            "The chain rule says “times”, and for matrices that looks like a matrix product. The matrix it means is "
            "the diagonal one of step 3.",
            delta=lambda dy, z, f: dy @ f.df(z),
        ),
        _mistake(
            "slope-forgotten",
            "δ = ∂J/∂Y",
            "δ = ∂J/∂Y ⊙ f′(Z)",
            "The error at the output is taken for the error before f. It is so only where f is the identity.",
            delta=lambda dy, z, f: dy,
        ),
        _mistake(
            "slope-at-output",
            "δ = ∂J/∂Y ⊙ f′(Y)",
            "δ = ∂J/∂Y ⊙ f′(Z)",
            "Y is at hand and Z is not. A slope can sometimes be had from Y, as Y(1 − Y) for the sigmoid, but that is "
            "another function of Y than f′.",
            delta=lambda dy, z, f: dy * f.df(f.f(z)),
        ),
        _mistake(
            "mean-for-sum",
            "∂J/∂W = Hᵀ δ / N",
            "∂J/∂W = Hᵀ δ",
            "J adds up the rows. Its derivative does so too. Dividing by N is right only where J was divided by N.",
            weight=lambda h, delta: weight(h, delta) / len(h),
            stored_weight=lambda h, delta: stored_weight(h, delta) / len(h),
            bias=lambda delta: bias(delta) / len(delta),
        ),
        _mistake(
            "bias-not-summed",
            "∂J/∂B = δ",
            "∂J/∂B = Σₙ δₙ",
            "For one row it is δ, as the textbook says. With a batch the one bias serves all rows, and every row has "
            "its say.",
            bias=lambda delta: delta,
        ),
        _mistake(
            "convention-swapped",
            "weight.grad = Hᵀ δ",
            "weight.grad = δᵀ H",
            "The textbook's formula is handed to PyTorch, which stores the weight the other way round.",
            stored_weight=lambda h, delta: weight(h, delta),
        ),
        _mistake(
            "softmax-as-diagonal",
            "δ = ∂J/∂p ⊙ p ⊙ (1 − p)",
            "δ = p − t",
            "Step 3 worked for an entrywise f, so its diagonal is used once more. But every pᵢ depends on all entries "
            "of Z.",
            softmax=_diagonal_softmax,
            cost_gradient=lambda loss, y, t: (
                _diagonal_softmax(y, t) if loss == "cross-entropy" else cost_gradient(loss, y, t)
            ),
        ),
    )
}
