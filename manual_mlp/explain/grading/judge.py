"""The judgement: a function is called, its numbers are compared, and what is wrong is named once."""

from __future__ import annotations

from dataclasses import replace

from manual_mlp.explain.blocks import Check, Refused
from manual_mlp.explain.grading.call import Answer, mentions
from manual_mlp.explain.grading.case import Case, Grade, checks_of, runs
from manual_mlp.explain.grading.diagnosis import diagnose, in_other_layout, overwritten, solve
from manual_mlp.explain.grading.numbers import hidden, probes, start, truth
from manual_mlp.explain.grading.rounding import rounding
from manual_mlp.explain.grading.search import Search
from manual_mlp.explain.network import draw_network

_ENOUGH, _MANY = 6, 12


def judge(case: Case) -> Grade:
    """Judge a function by its numbers as tensors or as NumPy arrays, whichever it is written for."""
    uses = mentions(case.fn, "numpy")
    first = replace(case, arrays=uses and not mentions(case.fn, "torch"))
    if uses and not runs(first) and runs(other := replace(first, arrays=not first.arrays)):
        return _passed(other) if other.right else diagnose(other)
    answer = first.answer
    if first.right:
        return _passed(first)
    if uses or isinstance(answer, Refused) or answer.arrays:
        second = replace(first, arrays=not first.arrays)
        # The first is what its author meant, unless it does not run, or the second is right.
        if runs(second) and (second.right or isinstance(answer, Refused)):
            return _passed(second) if second.right else diagnose(second)
    return _refused(first, answer) if isinstance(answer, Refused) else diagnose(first)


def _passed(case: Case) -> Grade:
    """Rule out what would not show in these numbers, by others of the same sizes."""
    answer = case.answer
    assert isinstance(answer, Answer)
    if not replace(case).right:
        return Grade(checks_of(case), (), (*overwritten(answer), _STATE))
    left = hidden(case.search)
    rows, _, outputs = case.network.shape
    # The fewer numbers there are, the more often all of them happen to be right.
    always = 2 if rows * outputs >= _ENOUGH else _MANY
    for turn, network in enumerate(probes(case.network)):
        if turn >= always and not left:
            break
        other = replace(case, network=network)
        near = rounding(network, case.layout, answer.dtypes)
        untold = Search(start(network, None, case.layout), answer.results, *truth(network, case.layout, {}, near))
        still = hidden(untold, left)
        if turn >= always and len(still) == len(left):
            continue
        left = still
        if not other.right and not replace(case).right:
            return Grade(checks_of(case), (), (*overwritten(answer), _STATE))
        if not other.right:
            grade = diagnose(other) if isinstance(other.answer, Answer) else _refused(other, other.answer)
            return replace(grade, hints=(_OTHER_NUMBERS, *grade.hints))
    return Grade(checks_of(case), (), overwritten(answer))


_OTHER_NUMBERS = "With the first numbers it looked right. With these, of the same sizes, it is not."
_STATE = (
    "It gives other results when it is called again with the same numbers: it keeps something between calls. "
    "Begin every sum with new zeros."
)


def _refused(case: Case, refused: Refused) -> Grade:
    """Judge a function that raised: equal sides accept every product, and show what was meant."""
    checks = (Check("the function runs", "calling it", None, 0.0, refused.reason),)
    square = replace(case, network=draw_network(3, 3, 3, case.network.f, case.network.loss))
    found = solve(square) if runs(square) and not square.right else ()
    turned = in_other_layout(case, found)
    if turned is not None:
        return Grade(checks, *turned)
    if not runs(square):
        return Grade(checks, (), _why_it_raised(case, refused.reason))
    if square.right:
        return Grade(checks, (), (_FITS,))
    grade = diagnose(square)
    return replace(grade, checks=checks, hints=(*grade.hints, _SQUARE))


_FITS = (
    "With 3 rows, 3 inputs and 3 outputs what it returns is right. The line that raised multiplies or adds sides that "
    "do not fit: a transpose is missing, or a size is written into it."
)
_SQUARE = "These are its numbers with 3 rows, 3 inputs and 3 outputs, where it runs."


def _why_it_raised(case: Case, reason: str) -> tuple[str, ...]:
    lower = reason.lower()
    if "positional argument" in lower:
        return ("It is called as fn(H, W, B, target).",)
    if "dtype" in lower or "scalar type" in lower:
        return (
            "H, W, B and target are float64, and torch multiplies equal dtypes alone. torch.zeros(3, 2) is float32, "
            "torch.zeros_like(W) has W's dtype.",
        )
    if case.network.loss == "cross-entropy" and ("indexerror" in lower or "index" in lower):
        return ("The target is one-hot, a row for each row of H: target.argmax(1) are the indices of the classes.",)
    return ("It does not run with 3 rows, 3 inputs and 3 outputs either.",)
