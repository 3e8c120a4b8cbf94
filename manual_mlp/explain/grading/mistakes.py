"""The mistakes that the grader knows by name, as data: to teach it another one, add a row."""

from __future__ import annotations

import torch
from torch import Tensor

from manual_mlp import activations
from manual_mlp.explain.formulas import MISTAKES, RIGHT
from manual_mlp.explain.grading.known import BY_OTHER_MEANS, RIGHTLY, SPOILT, At, Known, Step

_Z, _Y, _DELTA = "Z = H W + B", "Y = f(Z)", "δ = ∂J/∂Y ⊙ f′(Z)"
_DW, _DB, _DH = "∂J/∂W = Hᵀ δ", "∂J/∂B = Σₙ δₙ", "∂J/∂H = δ Wᵀ"
_SQUARED, _CROSSED = "∂J/∂Y = Y − Y*", "∂J/∂Y = p − t"
_ALONE = "δ itself is right. Here something else stands in its place: δ has the factor f′(Z), and serves all three."
_LAST = "In a loop over the terms each is written over the one before. Begin with zeros, and add with +=."
_FIRST = "A return inside the loop ends it after the first row."
_PER_ROW = "A row's probabilities add up to 1: the softmax runs along dim=1."
_ROW_SUM = "A row's probabilities add up to 1: exp(Y).sum(1, keepdim=True) sums each row by itself."


def _one_of_eight(name: str, of: str, formula: Step, why: str = "") -> Known:
    mistake = MISTAKES[name]
    return Known(name, of, mistake.wrong, mistake.right, why or mistake.why, formula)


def _loss(loss: str, formula: Step, of: str = "dY") -> Step:
    """Make a mistake of one loss: with the other it is none."""
    return lambda at: formula(at) if at.loss == loss else RIGHTLY[of](at)


def _squared(name: str, wrong: str, why: str, formula: Step) -> Known:
    return Known(name, "dY", wrong, _SQUARED, why, _loss("squared-error", formula))


def _crossed(name: str, wrong: str, why: str, formula: Step) -> Known:
    return Known(name, "dY", wrong, _CROSSED, why, _loss("cross-entropy", formula))


def _shown(name: str, wrong: str, why: str, formula: Step) -> Known:
    """Make a mistake in p, where p is returned as Y. ∂J/∂Y rests on the logits."""
    return Known(name, "Y", wrong, "Y = f(Z), or p = softmax(Y)", why, _loss("cross-entropy", formula, "Y"), aside=True)


def _p(y: Tensor) -> Tensor:
    return torch.softmax(y, 1)


def _over_all(y: Tensor) -> Tensor:
    return torch.softmax(y.flatten(), 0).view_as(y)


def _of_another(name: str) -> tuple[Known, Known]:
    """Take the value, or the slope, of another function."""
    g = activations.get(name)
    why = "The slope is that of the function which the layer applies, at the same place."
    return (
        Known(
            "another-function", "Y", f"Y = {name}(Z)", _Y, "The layer applies another function.", lambda at: g.f(at.z)
        ),
        Known(
            *("slope-of-another-function", "delta", f"δ = ∂J/∂Y ⊙ {name}′(Z)", _DELTA, why),
            lambda at: at.dy * g.df(at.z),
        ),
    )


def _last(of: str, wrong: str, right: str, formula: Step) -> Known:
    return Known("last-term-only", of, wrong, right, _LAST, formula)


def _spoilt(of: str, name: str, right: str, formula: Step) -> Known:
    return Known("argument-overwritten", of, f"{right}, with {name} changed", right, SPOILT, formula)


# In the usual order of the names: those that one writes most.
_FUNCTIONS = sorted(activations.names(), key=lambda name: name not in ("sigmoid", "tanh", "relu"))


def _as_stored(at: At, dw: Tensor) -> Tensor:
    """Turn what will be turned back."""
    return dw.mT if at.stored else dw


# Of two that give the same numbers the one that stands first is named.
ROWS: tuple[Known, ...] = (
    Known("bias-forgotten", "Z", "Z = H W", _Z, "The bias is added to every row.", lambda at: at.h @ at.w),
    Known("sign", "Z", "Z = H W − B", _Z, "The bias is added.", lambda at: at.h @ at.w - at.b),
    Known("sign", "Z", "Z = −(H W + B)", _Z, "There is a minus too many.", lambda at: -(at.h @ at.w + at.b)),
    Known("weight-transposed", "Z", "Z = H Wᵀ + B", _Z, "W is the other way round.", lambda at: at.h @ at.w.mT + at.b),
    _last("Z", "Z = the last input's share + B", _Z, lambda at: at.h[:, -1:] * at.w[-1:] + at.b),
    _spoilt("Z", "H", _Z, lambda at: at.after["H"] @ at.w + at.b),
    _spoilt("Z", "W", _Z, lambda at: at.h @ at.after["W"] + at.b),
    _spoilt("Z", "B", _Z, lambda at: at.h @ at.w + at.after["B"]),
    Known("activation-forgotten", "Y", "Y = Z", _Y, "The layer applies f to what it adds up.", lambda at: at.z),
    Known("sign", "Y", "Y = −f(Z)", _Y, "There is a minus too many.", lambda at: -at.f.f(at.z)),
    *(_of_another(name)[0] for name in _FUNCTIONS if name != "identity"),
    _shown("softmax-axis", "Y = softmax(HW + B, dim=0)", _PER_ROW, lambda at: torch.softmax(at.f.f(at.z), 0)),
    _shown("softmax-no-axis", "Y = exp(Z) / exp(Z).sum()", _ROW_SUM, lambda at: _over_all(at.f.f(at.z))),
    _squared("target-forgotten", "∂J/∂Y = Y", "The error is what the output has too much.", lambda at: at.y),
    _squared("sign", "∂J/∂Y = Y + Y*", "The target is subtracted.", lambda at: at.y + at.t),
    _squared(
        "loss-not-differentiated",
        "∂J/∂Y = (Y − Y*)²",
        "This is the loss, and its derivative is wanted: the square comes down as a factor 2, which ½ cancels.",
        lambda at: (at.y - at.t) ** 2,
    ),
    _squared(
        "loss-not-differentiated",
        "∂J/∂Y = ½ (Y − Y*)²",
        "This is the loss, and its derivative is wanted: the square comes down as a factor 2, which ½ cancels.",
        lambda at: 0.5 * (at.y - at.t) ** 2,
    ),
    _squared(
        "another-loss",
        "∂J/∂Y = softmax(Y) − Y*",
        'The loss here is the squared error. For softmax and cross-entropy pass loss="cross-entropy".',
        lambda at: _p(at.y) - at.t,
    ),
    _spoilt("dY", "target", _SQUARED, _loss("squared-error", lambda at: at.y - at.after["target"])),
    Known(
        *("softmax-as-diagonal", "dY", MISTAKES["softmax-as-diagonal"].wrong, MISTAKES["softmax-as-diagonal"].right),
        MISTAKES["softmax-as-diagonal"].why,
        _loss("cross-entropy", lambda at: -at.t * (1 - _p(at.y))),
    ),
    _crossed("target-forgotten", "∂J/∂Y = p", "The one-hot target is subtracted from p.", lambda at: _p(at.y)),
    _crossed("sign", "∂J/∂Y = p + t", "The target is subtracted.", lambda at: _p(at.y) + at.t),
    _crossed(
        "softmax-axis",
        "p = softmax(Y, dim=0)",
        _PER_ROW,
        lambda at: torch.softmax(at.y, 0) - at.t,
    ),
    _crossed(
        "softmax-no-axis",
        "p = exp(Y) / exp(Y).sum()",
        _ROW_SUM,
        lambda at: _over_all(at.y) - at.t,
    ),
    _crossed(
        "softmax-not-normalised", "∂J/∂Y = exp(Y) − t", "p is exp(Y) over its row's sum.", lambda at: at.y.exp() - at.t
    ),
    _crossed("softmax-forgotten", "∂J/∂Y = Y − t", "p is the softmax of Y.", lambda at: at.y - at.t),
    _crossed(
        "softmax-twice",
        "p = softmax(softmax(Y))",
        "The cross-entropy takes logits, and has the softmax in it.",
        lambda at: _p(_p(at.y)) - at.t,
    ),
    _crossed(
        "stopped-at-p",
        "∂J/∂Y = −t / p",
        "This is the derivative by p. The way back to what enters the softmax is still to go.",
        lambda at: -at.t / _p(at.y),
    ),
    _spoilt("dY", "target", _CROSSED, _loss("cross-entropy", lambda at: _p(at.y) - at.after["target"])),
    _one_of_eight("slope-forgotten", "delta", lambda at: at.dy),
    _one_of_eight("slope-at-output", "delta", lambda at: at.dy * at.f.df(at.y)),
    _one_of_eight("product-for-hadamard", "delta", lambda at: at.dy @ at.f.df(at.z)),
    Known(
        *("function-for-slope", "delta", "δ = ∂J/∂Y ⊙ f(Z)", _DELTA),
        "The error goes back through the slope f′, not through f.",
        lambda at: at.dy * at.f.f(at.z),
    ),
    Known(
        *("softmax-slope-added", "delta", "δ = (p − t) ⊙ p ⊙ (1 − p)", "δ = p − t"),
        "p − t is what softmax and cross-entropy send back together: the softmax's slope is in it.",
        _loss("cross-entropy", lambda at: at.dy * _p(at.y) * (1 - _p(at.y)), "delta"),
    ),
    Known(
        *("stopped-at-p", "delta", "δ = −t / p", "δ = p − t"),
        "That is the derivative by p. The way back to what enters the softmax is still to go.",
        _loss("cross-entropy", lambda at: -at.t / _p(at.y), "delta"),
    ),
    Known(
        *("slope-formula-at-z", "delta", "δ = ∂J/∂Y ⊙ Z(1 − Z)", _DELTA),
        "Y(1 − Y) is the sigmoid's slope where Y is its output. Here Z stands in Y's place.",
        lambda at: at.dy * at.z * (1 - at.z),
    ),
    Known(
        *("slope-formula-at-z", "delta", "δ = ∂J/∂Y ⊙ (1 − Z²)", _DELTA),
        "1 − Y² is the slope of tanh where Y is its output. Here Z stands in Y's place.",
        lambda at: at.dy * (1 - at.z**2),
    ),
    Known(
        *("slope-of-another-function", "delta", "δ = ∂J/∂Y ⊙ Y(1 − Y)", _DELTA),
        "Y(1 − Y) is the slope of the sigmoid alone.",
        lambda at: at.dy * at.y * (1 - at.y),
    ),
    Known(
        *("slope-of-another-function", "delta", "δ = ∂J/∂Y ⊙ (1 − Y²)", _DELTA),
        "1 − Y² is the slope of tanh alone.",
        lambda at: at.dy * (1 - at.y**2),
    ),
    *(_of_another(name)[1] for name in _FUNCTIONS if name != "identity"),
    Known(
        *("slope-of-another-layer", "delta", "δ = ∂J/∂Y ⊙ f′(H)", _DELTA),
        "The slope is taken where this layer's f is met, at its own Z.",
        lambda at: at.dy * at.f.df(at.h),
    ),
    Known(
        *("slope-of-another-layer", "delta", "δ = ∂J/∂Y ⊙ f′(Z of the layer before)", _DELTA),
        "That slope, had from H, belongs to the layer before. This one's is at its own Z.",
        lambda at: at.dy * at.f.df(at.z1),
    ),
    Known(
        *("bias-forgotten", "delta", "δ = ∂J/∂Y ⊙ f′(H W)", _DELTA),
        "Z has the bias in it, in the slope too.",
        lambda at: at.dy * at.f.df(at.h @ at.w),
    ),
    Known(
        *("slope-twice", "delta", "δ = ∂J/∂Y ⊙ f′(Z) ⊙ f′(Z)", _DELTA),
        "The slope is a factor once.",
        lambda at: at.dy * at.f.df(at.z) ** 2,
    ),
    Known(
        *("error-forgotten", "delta", "δ = f′(Z)", _DELTA),
        "The slope is one factor, ∂J/∂Y the other.",
        lambda at: at.f.df(at.z),
    ),
    _one_of_eight("bias-not-summed", "dB", lambda at: at.delta),
    Known(
        *("sum-axis", "dB", "∂J/∂B = δ.sum(1)", _DB),
        "The bias is shared by the rows, so the sum runs over them, along axis 0: one number for each output.",
        lambda at: at.delta.sum(1),
    ),
    Known(
        *("sum-axis", "dB", "∂J/∂B = δ.sum(1, keepdim=True)", _DB),
        "The bias is shared by the rows, so the sum runs over them, along axis 0: one number for each output.",
        lambda at: at.delta.sum(1, keepdim=True),
    ),
    Known(
        *("sum-no-axis", "dB", "∂J/∂B = δ.sum()", _DB),
        "Every output has a bias of its own: the sum runs over the rows alone, along axis 0.",
        lambda at: at.delta.sum(),
    ),
    Known(
        *("sum-no-axis", "dB", "∂J/∂B = δ.sum(), for every output", _DB),
        "Every output has a bias of its own: the sum runs over the rows alone, along axis 0.",
        lambda at: at.delta.sum().expand(at.delta.shape[1]),
    ),
    _last("dB", "∂J/∂B = δₙ of the last row", _DB, lambda at: at.delta[-1]),
    Known("first-term-only", "dB", "∂J/∂B = δ₁", _DB, _FIRST, lambda at: at.delta[0]),
    Known("slope-forgotten-in-dB", "dB", "∂J/∂B = Σₙ (∂J/∂Y)ₙ", _DB, _ALONE, lambda at: at.dy.sum(0)),
    _one_of_eight(
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
    _last("dW", "∂J/∂W = hₙᵀ δₙ of the last row", _DW, lambda at: torch.outer(at.h[-1], at.delta[-1])),
    Known(
        "first-term-only", "dW", "∂J/∂W = hₙᵀ δₙ of row 1", _DW, _FIRST, lambda at: torch.outer(at.h[0], at.delta[0])
    ),
    Known("slope-forgotten-in-dW", "dW", "∂J/∂W = Hᵀ ∂J/∂Y", _DW, _ALONE, lambda at: at.h.mT @ at.dy),
    Known(
        *("sum-before-product", "dW", "∂J/∂W = (Σₙ hₙ)ᵀ Σₙ δₙ", _DW),
        "Each row has its own product, and the products are added up.",
        lambda at: torch.outer(at.h.sum(0), at.delta.sum(0)),
    ),
    _spoilt("dW", "H", _DW, lambda at: RIGHT.weight(at.after["H"], at.delta)),
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
    _last("dH", "∂J/∂H = the last output's share", _DH, lambda at: at.delta[:, -1:] * at.w[:, -1]),
    Known(
        *("step-too-far", "dH", "∂J/∂H = δ Wᵀ ⊙ f′(Z of the layer before)", _DH),
        "That is the error before the f of the layer before. ∂J/∂H is the one after it.",
        lambda at: at.delta @ at.w.mT * at.f.df(at.z1),
    ),
    _spoilt("dH", "W", _DH, lambda at: at.delta @ at.after["W"].mT),
)


# Each name, and the first row that bears it.
KNOWN: dict[str, Known] = {row.name: row for row in reversed((*BY_OTHER_MEANS.values(), *ROWS))}
