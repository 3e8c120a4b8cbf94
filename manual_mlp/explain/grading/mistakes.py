"""The mistakes that the grader knows by name, as data: to teach it another one, add a row."""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor

from manual_mlp import activations
from manual_mlp.explain.formulas import MISTAKES
from manual_mlp.explain.grading.gradients import OF_GRADIENTS
from manual_mlp.explain.grading.known import BY_OTHER_MEANS, RIGHTLY, Known, Step, last_term, one_of_eight, spoilt

_Z, _Y, _DELTA = "Z = H W + B", "Y = f(Z)", "δ = ∂J/∂Y ⊙ f′(Z)"
_SQUARED, _CROSSED = "∂J/∂Y = Y − Y*", "∂J/∂Y = p − t"
_NOT_DERIVED = "This is the loss, and its derivative is wanted: the square comes down as a factor 2, which ½ cancels."
_PER_ROW = "A row's probabilities add up to 1: the softmax runs along dim=1."
_ROW_SUM = "A row's probabilities add up to 1: exp(Y).sum(1, keepdim=True) sums each row by itself."


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
    why = "The slope is that of the function which the layer applies, at the same place."
    return (
        Known(
            *("another-function", "Y", f"Y = {name}(Z)", _Y, "The layer applies another function."),
            lambda at: activations.get(name).f(at.z),
        ),
        Known(
            *("slope-of-another-function", "delta", f"δ = ∂J/∂Y ⊙ {name}′(Z)", _DELTA, why),
            lambda at: at.dy * activations.get(name).df(at.z),
        ),
    )


def all_known() -> tuple[Known, ...]:
    """List the mistakes that are tried; of two that give the same numbers the one that stands first is named."""
    # Those that one writes most come first, then the others in the usual order of the names.
    functions = sorted(activations.names(), key=lambda name: name not in ("sigmoid", "tanh", "relu"))
    return _known(tuple(name for name in functions if name != "identity"))


@cache
def _known(functions: tuple[str, ...]) -> tuple[Known, ...]:
    return (
        Known("bias-forgotten", "Z", "Z = H W", _Z, "The bias is added to every row.", lambda at: at.h @ at.w),
        Known("sign", "Z", "Z = H W − B", _Z, "The bias is added.", lambda at: at.h @ at.w - at.b),
        Known("sign", "Z", "Z = −(H W + B)", _Z, "There is a minus too many.", lambda at: -(at.h @ at.w + at.b)),
        Known(
            "weight-transposed", "Z", "Z = H Wᵀ + B", _Z, "W is the other way round.", lambda at: at.h @ at.w.mT + at.b
        ),
        last_term("Z", "Z = the last input's share + B", _Z, lambda at: at.h[:, -1:] * at.w[-1:] + at.b),
        spoilt("Z", "H", _Z, lambda at: at.after["H"] @ at.w + at.b),
        spoilt("Z", "W", _Z, lambda at: at.h @ at.after["W"] + at.b),
        spoilt("Z", "B", _Z, lambda at: at.h @ at.w + at.after["B"]),
        Known("activation-forgotten", "Y", "Y = Z", _Y, "The layer applies f to what it adds up.", lambda at: at.z),
        Known("sign", "Y", "Y = −f(Z)", _Y, "There is a minus too many.", lambda at: -at.f.f(at.z)),
        *(_of_another(name)[0] for name in functions),
        _shown("softmax-axis", "Y = softmax(HW + B, dim=0)", _PER_ROW, lambda at: torch.softmax(at.f.f(at.z), 0)),
        _shown("softmax-no-axis", "Y = exp(Z) / exp(Z).sum()", _ROW_SUM, lambda at: _over_all(at.f.f(at.z))),
        _squared("target-forgotten", "∂J/∂Y = Y", "The error is what the output has too much.", lambda at: at.y),
        _squared("sign", "∂J/∂Y = Y + Y*", "The target is subtracted.", lambda at: at.y + at.t),
        _squared(
            "loss-not-differentiated",
            "∂J/∂Y = (Y − Y*)²",
            _NOT_DERIVED,
            lambda at: (at.y - at.t) ** 2,
        ),
        _squared(
            "loss-not-differentiated",
            "∂J/∂Y = ½ (Y − Y*)²",
            _NOT_DERIVED,
            lambda at: 0.5 * (at.y - at.t) ** 2,
        ),
        _squared(
            "another-loss",
            "∂J/∂Y = softmax(Y) − Y*",
            'The loss here is the squared error. For softmax and cross-entropy pass loss="cross-entropy".',
            lambda at: _p(at.y) - at.t,
        ),
        spoilt("dY", "target", _SQUARED, _loss("squared-error", lambda at: at.y - at.after["target"])),
        Known(
            *(
                "softmax-as-diagonal",
                "dY",
                MISTAKES["softmax-as-diagonal"].wrong,
                MISTAKES["softmax-as-diagonal"].right,
            ),
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
            "softmax-not-normalised",
            "∂J/∂Y = exp(Y) − t",
            "p is exp(Y) over its row's sum.",
            lambda at: at.y.exp() - at.t,
        ),
        _crossed(
            "sigmoid-for-softmax",
            "p = sigmoid(Y)",
            "Of several classes one is right: p is the softmax, whose row adds up to 1.",
            lambda at: torch.sigmoid(at.y) - at.t,
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
        spoilt("dY", "target", _CROSSED, _loss("cross-entropy", lambda at: _p(at.y) - at.after["target"])),
        one_of_eight("slope-forgotten", "delta", lambda at: at.dy),
        one_of_eight("slope-at-output", "delta", lambda at: at.dy * at.f.df(at.y)),
        one_of_eight("product-for-hadamard", "delta", lambda at: at.dy @ at.f.df(at.z)),
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
            *("slope-twice", "delta", "δ = ∂J/∂Y ⊙ f′(Z) ⊙ f′(Z)", _DELTA),
            "The slope is a factor once.",
            lambda at: at.dy * at.f.df(at.z) ** 2,
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
        *(_of_another(name)[1] for name in functions),
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
            *("error-forgotten", "delta", "δ = f′(Z)", _DELTA),
            "The slope is one factor, ∂J/∂Y the other.",
            lambda at: at.f.df(at.z),
        ),
        *OF_GRADIENTS,
    )


# Each name, and the first row that bears it.
KNOWN: dict[str, Known] = {row.name: row for row in reversed((*BY_OTHER_MEANS.values(), *all_known()))}
