"""A learner's function with what it is called with, and what came of it."""

from __future__ import annotations

import textwrap
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from manual_mlp.explain.blocks import Check, Refused
from manual_mlp.explain.grading.call import Answer, Backward, ask
from manual_mlp.explain.grading.numbers import start, truth
from manual_mlp.explain.grading.rounding import is_fine, rounding
from manual_mlp.explain.grading.search import Search
from manual_mlp.explain.network import Network
from manual_mlp.explain.terminal import render_check

_MEANING = {
    "Z": "HW + B",
    "Y": "f(Z)",
    "dY": "∂J/∂Y",
    "delta": "δ = ∂J/∂Y ⊙ f′(Z)",
    "dB": "∂J/∂B = Σₙ δₙ",
    "dW": "∂J/∂W = Hᵀδ",
    "dH": "∂J/∂H = δWᵀ",
}
_IN_TORCH = {"Z": "HWᵀ + B", "dW": "∂J/∂W = δᵀH", "dH": "∂J/∂H = δW"}


@dataclass(frozen=True)
class Grade:
    """What became of a learner's backward pass.

    Attributes:
        checks: a comparison for each result that was returned, in the order of the derivation.
        mistakes: the names of the mistakes that together give its numbers, the first to be mended first: those of
            :data:`manual_mlp.explain.MISTAKES`, and the others in ``manual_mlp.explain.grading.mistakes.KNOWN``.
            Empty if it is right, or if they are not recognised.
        hints: what to change, in words.
        picture: the first result that is wrong beside the right one, as lines of text, or empty.

    Example::

        from manual_mlp.explain import check_my_backward

        mine = lambda H, W, B, target: {"delta": torch.sigmoid(H @ W + B) - target}
        grade = check_my_backward(mine)
        assert grade.mistakes == ("slope-forgotten",)
    """

    checks: tuple[Check, ...]
    mistakes: tuple[str, ...] = ()
    hints: tuple[str, ...] = ()
    picture: str = ""

    @property
    def passed(self) -> bool:
        """Whether every result is right."""
        return all(check.passed for check in self.checks)

    def __str__(self) -> str:
        lines = [line for check in self.checks for line in render_check(check)]
        picture = ["", *self.picture.splitlines(), ""] if self.picture else []
        hints = [line for hint in self.hints for line in textwrap.wrap(hint, 100)]
        return "\n".join([*lines, *picture, *hints, "All is right." if self.passed else "Not right yet."])


@dataclass(frozen=True, eq=False)
class Case:
    """Hold a learner's function, and what it is called with."""

    fn: Backward
    network: Network
    layout: str
    arrays: bool = False

    @cached_property
    def answer(self) -> Answer | Refused:
        """What the function returned."""
        return ask(self.fn, self.network, self.layout, self.arrays)

    @cached_property
    def search(self) -> Search:
        """The numbers returned, and the right ones."""
        assert isinstance(self.answer, Answer)
        given, allowed = self.answer.results, rounding(self.network, self.layout, self.answer.dtypes)
        right, allowed = truth(self.network, self.layout, given, allowed)
        return Search(start(self.network, self.answer, self.layout), given, right, allowed)

    @property
    def right(self) -> bool:
        """Whether every number is right, and fine enough to say so."""
        answer = self.answer
        return isinstance(answer, Answer) and all(map(is_fine, answer.dtypes.values())) and not self.search.wrong()


def runs(case: Case) -> bool:
    try:
        return isinstance(case.answer, Answer)
    except (TypeError, ValueError):  # what it returns are no results
        return False


def checks_of(case: Case) -> tuple[Check, ...]:
    search, answer = case.search, case.answer
    assert isinstance(answer, Answer)
    meaning = {**_MEANING, **(_IN_TORCH if case.layout == "torch" else {})}
    if search.truth["Y"] is not case.network.y:
        meaning["Y"] = "p, the softmax of the logits f(Z)"
    checks = []
    for name, value in search.given.items():
        check = _compared(f"{name}: {meaning[name]}", value, search.truth[name], search.allowed.of[name])
        dtype = answer.dtypes[name]
        if not is_fine(dtype):
            check = replace(check, error=None, reason=_too_coarse(dtype))
        checks.append(check)
    return tuple(checks)


def _compared(name: str, value: Tensor, want: Tensor, allowed: Tensor) -> Check:
    """Compare where most of what is allowed is used up."""
    if value.shape != want.shape:
        reason = f"the shape is {tuple(value.shape)}, and should be {tuple(want.shape)}"
        return Check(name, "autograd", None, float(allowed.max()), reason)
    error = (value - want).abs()
    worst = int((error / allowed).argmax())
    return Check(name, "autograd", float(error.flatten()[worst]), float(allowed.flatten()[worst]))


def _too_coarse(dtype: torch.dtype) -> str:
    kind = str(dtype).removeprefix("torch.")
    if dtype.is_floating_point:
        return f"{kind} is too coarse to tell a wrong formula from a right one"
    return f"{kind} has no digits after the point"
