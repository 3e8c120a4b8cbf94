"""The mistakes in the gradients that the grader knows by name, as data."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from manual_mlp.explain.formulas import RIGHT
from manual_mlp.explain.grading.known import RIGHTLY, At, Known, Step, last_term, one_of_eight, spoilt

_DW, _DB, _DH = "∂J/∂W = Hᵀ δ", "∂J/∂B = Σₙ δₙ", "∂J/∂H = δ Wᵀ"
_ALONE = "δ itself is right. Here something else stands in its place: δ has the factor f′(Z), and serves all three."
_FIRST = "A return inside the loop ends it after the first row."
_AXIS = "The bias is shared by the rows, so the sum runs over them, along axis 0: one number for each output."
_NO_AXIS = "Every output has a bias of its own: the sum runs over the rows alone, along axis 0."
_ROWS = "H has a row for each row of δ, and so has its gradient: only what the rows share is added up over them."


def _as_stored(at: At, dw: Tensor) -> Tensor:
    """Turn what will be turned back."""
    return dw.mT if at.stored else dw


def _kept(delta: Tensor, rows: slice) -> Tensor:
    """Keep some rows, and put 0 in the others."""
    kept = torch.zeros_like(delta)
    kept[rows] = delta[rows]
    return kept


def _left_out(of: str, result: str, right: str, formula: Callable[[At, slice], Tensor]) -> tuple[Known, Known]:
    """Leave a row out, the first or the last."""
    why = "A row is left out: range(len(H)) runs over all of them."
    return (
        Known("row-missed", of, f"{result} without row 1", right, why, lambda at: formula(at, slice(1, None))),
        Known("row-missed", of, f"{result} without the last row", right, why, lambda at: formula(at, slice(-1))),
    )


def _plus_one(of: str) -> Step:
    return lambda at: RIGHTLY[of](at) + 1


OF_GRADIENTS: tuple[Known, ...] = (
    one_of_eight("bias-not-summed", "dB", lambda at: at.delta),
    Known(
        *("sum-axis", "dB", "∂J/∂B = δ.sum(1)", _DB),
        _AXIS,
        lambda at: at.delta.sum(1),
    ),
    Known(
        *("sum-axis", "dB", "∂J/∂B = δ.sum(1, keepdim=True)", _DB),
        _AXIS,
        lambda at: at.delta.sum(1, keepdim=True),
    ),
    Known(
        *("sum-no-axis", "dB", "∂J/∂B = δ.sum()", _DB),
        _NO_AXIS,
        lambda at: at.delta.sum(),
    ),
    Known(
        *("sum-no-axis", "dB", "∂J/∂B = δ.sum(), for every output", _DB),
        _NO_AXIS,
        lambda at: at.delta.sum().expand(at.delta.shape[1]),
    ),
    last_term("dB", "∂J/∂B = δₙ of the last row", _DB, lambda at: at.delta[-1]),
    Known("first-term-only", "dB", "∂J/∂B = δ₁", _DB, _FIRST, lambda at: at.delta[0]),
    Known("slope-forgotten-in-dB", "dB", "∂J/∂B = Σₙ (∂J/∂Y)ₙ", _DB, _ALONE, lambda at: at.dy.sum(0)),
    one_of_eight(
        *("transpose-dropped", "dW", lambda at: _as_stored(at, at.delta @ at.h if at.stored else at.h @ at.delta)),
        "The sum runs over the rows, and only a transpose puts those where a matrix product sums.",
    ),
    Known(
        *("weight-not-summed", "dW", "∂J/∂W = hₙᵀ δₙ, for every row", _DW),
        "Each row has its outer product, and they are added up: the one W serves all rows.",
        lambda at: at.h[:, :, None] * at.delta[:, None, :],
    ),
    Known(
        *("transpose-misplaced", "dW", "∂J/∂W = H δᵀ", _DW),
        "The sum runs over the rows: the transpose belongs to the other factor.",
        lambda at: _as_stored(at, at.delta @ at.h.mT if at.stored else at.h @ at.delta.mT),
    ),
    Known(
        *("convention-swapped", "dW", "∂J/∂W = δᵀ H", _DW),
        "It is right in the other layout. A gradient has its parameter's shape.",
        lambda at: RIGHT.weight(at.h, at.delta).mT,
    ),
    last_term("dW", "∂J/∂W = hₙᵀ δₙ of the last row", _DW, lambda at: torch.outer(at.h[-1], at.delta[-1])),
    Known(
        "first-term-only", "dW", "∂J/∂W = hₙᵀ δₙ of row 1", _DW, _FIRST, lambda at: torch.outer(at.h[0], at.delta[0])
    ),
    Known("slope-forgotten-in-dW", "dW", "∂J/∂W = Hᵀ ∂J/∂Y", _DW, _ALONE, lambda at: at.h.mT @ at.dy),
    Known(
        *("sum-before-product", "dW", "∂J/∂W = (Σₙ hₙ)ᵀ Σₙ δₙ", _DW),
        "Each row has its own product, and the products are added up.",
        lambda at: torch.outer(at.h.sum(0), at.delta.sum(0)),
    ),
    spoilt("dW", "H", _DW, lambda at: RIGHT.weight(at.after["H"], at.delta)),
    Known(
        *("weight-not-transposed", "dH", "∂J/∂H = δ W", _DH),
        "Going forward W maps inputs to outputs. Going back it maps outputs to inputs, the other way round.",
        lambda at: at.delta @ at.w,
    ),
    Known("slope-forgotten-in-dH", "dH", "∂J/∂H = ∂J/∂Y Wᵀ", _DH, _ALONE, lambda at: at.dy @ at.w.mT),
    Known(
        *("result-transposed", "dH", "∂J/∂H = W δᵀ", _DH),
        "A gradient has the shape of what it belongs to: a row for each row of H.",
        lambda at: at.w @ at.delta.mT,
    ),
    last_term("dH", "∂J/∂H = the last output's share", _DH, lambda at: at.delta[:, -1:] * at.w[:, -1]),
    Known(
        *("step-too-far", "dH", "∂J/∂H = δ Wᵀ ⊙ f′(Z of the layer before)", _DH),
        "That is the error before the f of the layer before. ∂J/∂H is the one after it.",
        lambda at: at.delta @ at.w.mT * at.f.df(at.z1),
    ),
    spoilt("dH", "W", _DH, lambda at: at.delta @ at.after["W"].mT),
    *_left_out("dB", "∂J/∂B", _DB, lambda at, rows: at.delta[rows].sum(0)),
    *_left_out("dW", "∂J/∂W", _DW, lambda at, rows: at.h[rows].mT @ at.delta[rows]),
    *_left_out("dH", "∂J/∂H", _DH, lambda at, rows: _kept(at.delta, rows) @ at.w.mT),
    *(
        Known("begun-at-one", of, f"{right}, plus 1", right, "A sum begins with zeros.", _plus_one(of))
        for of, right in (("dB", _DB), ("dW", _DW), ("dH", _DH))
    ),
    Known(
        *("bias-repeated", "dB", "∂J/∂B = Σₙ δₙ, once for every row", _DB),
        "A gradient has its parameter's shape: one number for each output.",
        lambda at: at.delta.sum(0).expand(at.delta.shape),
    ),
    Known(
        *("outer-product-forgotten", "dW", "∂J/∂W = Σₙ hₙ ⊙ δₙ, in every row", _DW),
        "hₙᵀ δₙ is an outer product. The .T of one axis changes nothing: write torch.outer(H[n], delta[n]).",
        lambda at: _as_stored(at, (at.h * at.delta).sum(0).expand(at.w.shape)),
    ),
    last_term("dH", "∂J/∂H = δₙ Wᵀ of the last row", _DH, lambda at: at.delta[-1] @ at.w.mT),
    last_term(
        "dH", "∂J/∂H = δₙ Wᵀ of the last row, in every row", _DH, lambda at: (at.delta[-1] @ at.w.mT).expand(at.h.shape)
    ),
    Known("first-term-only", "dH", "∂J/∂H = δₙ Wᵀ of row 1", _DH, _FIRST, lambda at: at.delta[0] @ at.w.mT),
    Known(
        "first-term-only",
        "dH",
        "∂J/∂H = δ Wᵀ in row 1, and 0 in the others",
        _DH,
        _FIRST,
        lambda at: _kept(at.delta, slice(1)) @ at.w.mT,
    ),
    Known("rows-in-one", "dH", "∂J/∂H = Σₙ δₙ Wᵀ", _DH, _ROWS, lambda at: at.delta.sum(0) @ at.w.mT),
    Known(
        "rows-in-one",
        "dH",
        "∂J/∂H = Σₙ δₙ Wᵀ, in every row",
        _DH,
        _ROWS,
        lambda at: (at.delta.sum(0) @ at.w.mT).expand(at.h.shape),
    ),
)
