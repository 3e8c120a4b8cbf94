"""What a mistake is to the grader: a formula of one step, from what is at hand there."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from manual_mlp.activations import Activation
from manual_mlp.explain.formulas import MISTAKES, RIGHT
from manual_mlp.losses import by_flag


@dataclass(frozen=True, eq=False)
class At:
    """Hold what is at hand at a step: what was given, and what the steps before found.

    Attributes:
        h, w, b, t: the arguments, W in the textbook's layout.
        after: the same, and W as "W", after the call: a function may write over them.
        z1: the pre-activation of the layer before.
        stored: whether W is PyTorch's, (D_out, D_in).
    """

    h: Tensor
    w: Tensor
    b: Tensor
    t: Tensor
    f: Activation
    loss: str
    z1: Tensor
    after: dict[str, Tensor]
    stored: bool
    z: Tensor
    y: Tensor
    dy: Tensor
    delta: Tensor


Step = Callable[[At], Tensor]

RIGHTLY: dict[str, Step] = {
    "Z": lambda at: at.h @ at.w + at.b,
    "Y": lambda at: at.f.f(at.z),
    "dY": lambda at: by_flag(at.loss).gradient_of(at.y, at.t),
    "delta": lambda at: at.dy * at.f.df(at.z),
    "dB": lambda at: RIGHT.bias(at.delta)[0],
    "dW": lambda at: RIGHT.weight(at.h, at.delta),
    "dH": lambda at: RIGHT.input(at.delta, at.w),
}


def _no_formula(at: At) -> Tensor:
    raise TypeError("it is told by other means than a formula")


@dataclass(frozen=True, eq=False)
class Known:
    """One mistake that the grader knows.

    Attributes:
        name: for a report; several rows may share one.
        of: the step whose formula it changes; empty where it is told by other means than a formula.
        wrong, right: the formula as it was written, and as it should be, for the textbook's W.
        why: what is the matter with it.
        formula: what it computes; dW in the textbook's layout, whichever the learner's.
        aside: whether it is only returned, and the steps after it do not rest on it.
    """

    name: str
    of: str
    wrong: str
    right: str
    why: str
    formula: Step = _no_formula
    aside: bool = False

    def says(self, stored: bool) -> tuple[str, str]:
        """Return what is wrong and right as one writes it in a layout."""
        return (in_torch(self.wrong), in_torch(self.right)) if stored else (self.wrong, self.right)


# What one writes where the weight is stored the other way round.
_PHRASES = {
    "Hᵀ ∂J/∂Y": "(∂J/∂Y)ᵀ H",
    "∂J/∂Y Wᵀ": "∂J/∂Y W",
    "Hᵀ δ": "δᵀ H",
    "δᵀ H": "Hᵀ δ",
    "H δᵀ": "δ Hᵀ",
    "H δ": "δ H",
    "δ Wᵀ": "δ W",
    "δ W": "δ Wᵀ",
    "W δᵀ": "Wᵀ δᵀ",
    "H Wᵀ": "H W",
    "H W": "H Wᵀ",
    "hₙᵀ δₙ": "δₙᵀ hₙ",
    "(Σₙ hₙ)ᵀ Σₙ δₙ": "(Σₙ δₙ)ᵀ Σₙ hₙ",
}


def in_torch(text: str) -> str:
    """Write a formula of the textbook's W for W as PyTorch stores it."""
    return re.sub("|".join(map(re.escape, _PHRASES)), lambda found: _PHRASES[found[0]], text)


SPOILT = "The argument was changed in place, and what is computed after that sees its new numbers. Work on a copy."

# What no formula of a single step tells.
BY_OTHER_MEANS = {
    row.name: row
    for row in (
        Known("sign", "", "−1 times what it should be", "", "There is a minus too many, or Y* − Y stands for Y − Y*."),
        Known("mean-for-sum", "", "1/N times what it should be", "", MISTAKES["mean-for-sum"].why),
        Known("constant-factor", "", "a multiple of what it should be", "", "J is summed over rows and outputs."),
        Known("all-zeros", "", "all zeros", "", "Was it filled in? Or is it added up in a copy?"),
        Known("wrong-shape", "", "right numbers in another shape", "", "A gradient has its parameter's shape."),
        Known("wrong-order", "", "right results under each other's names", "", "A tuple is (dW, dB) or (dH, dW, dB)."),
        Known("argument-overwritten", "", "an argument changed in place", "", SPOILT),
        Known(
            "result-overwritten", "", "two results are one tensor", "", "What is written into it later changes both."
        ),
        Known("another-activation", "", "right for another activation", "", "Say which f it computes, by activation=."),
        Known("another-loss", "", "right for another loss", "", "Say which loss it computes, by loss=."),
        Known("another-layout", "", "right for W stored the other way round", "", "Say how W is stored, by layout=."),
        Known("float32-inside", "", "right to 6 or 7 digits", "", "Something was computed in float32."),
    )
}

LAST = "In a loop over the terms each is written over the one before. Begin with zeros, and add with +=."


def one_of_eight(name: str, of: str, formula: Step, why: str = "") -> Known:
    mistake = MISTAKES[name]
    return Known(name, of, mistake.wrong, mistake.right, why or mistake.why, formula)


def last_term(of: str, wrong: str, right: str, formula: Step) -> Known:
    return Known("last-term-only", of, wrong, right, LAST, formula)


def spoilt(of: str, name: str, right: str, formula: Step) -> Known:
    return Known("argument-overwritten", of, f"{right}, with {name} changed", right, SPOILT, formula)
