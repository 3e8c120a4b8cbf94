"""The diagnosis of numbers that are wrong: what gives them is named once, or said not to be recognised."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor

from manual_mlp.explain.grading.call import LAYOUTS, STEPS, Answer
from manual_mlp.explain.grading.case import Case, Grade, checks_of, runs
from manual_mlp.explain.grading.known import BY_OTHER_MEANS
from manual_mlp.explain.grading.numbers import probes, truth, worlds
from manual_mlp.explain.grading.rounding import is_fine, of_float32, same
from manual_mlp.explain.grading.search import CHAIN, Explanation, Found, Search, all_steps
from manual_mlp.explain.grading.show import beside, listed, not_finite, told

UNKNOWN = "I do not recognise this."


def diagnose(case: Case) -> Grade:
    """Name the mistakes in a function that runs, or say that they are not recognised."""
    search, answer = case.search, case.answer
    assert isinstance(answer, Answer)
    checks = checks_of(case)
    rough = [name for name, dtype in answer.dtypes.items() if not is_fine(dtype)]
    if rough:
        return Grade(checks, (), ("Return float64 or float32.",))
    wrong = search.wrong()
    value, want = search.given[wrong[0]], search.truth[wrong[0]]
    picture = beside(wrong[0], value, want, search.allowed.of[wrong[0]])
    mistakes, hints = _diagnosis(case, answer)
    return Grade(checks, mistakes, hints, picture)


def _diagnosis(case: Case, answer: Answer) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return the names of the mistakes, and what to say of them."""
    search, network = case.search, case.network
    _, roughly = truth(network, case.layout, search.given, of_float32(network, case.layout))
    if all(same(value, search.truth[name], roughly.of[name]) for name, value in search.given.items()):
        return ("float32-inside",), (f"float32-inside: {_FLOAT32}",)
    found = solve(case)
    inputs, outputs = network.w.shape
    if inputs == outputs:
        turned = in_other_layout(case, found)
        if turned is not None:
            return turned
    if found:
        return _said(search, answer, found, ())
    return _partly(search, answer)


_FLOAT32 = (
    "it agrees to 6 or 7 digits, and float64 has 16. Something was computed in float32, as torch.zeros(3, 2) is, "
    "or by finite differences, or with a rounded constant, as torch's own hardsigmoid is. torch.zeros_like(W) has W's "
    "dtype."
)


def solve(case: Case) -> Explanation:
    """Find the fewest mistakes that give all the numbers."""
    return _explained(case, (1,)) or _order(case) or _world(case) or _explained(case, (2, 3))


def in_other_layout(case: Case, found: Explanation) -> tuple[tuple[str, ...], tuple[str, ...]] | None:
    """Tell whether a function is right, or nearer to it, if it is given W in the other layout."""
    other = replace(case, layout=next(name for name in LAYOUTS if name != case.layout))
    if not runs(other):
        return None
    stored = (
        'it takes W as the textbook stores it, (D_in, D_out). Leave layout="torch" out.'
        if case.layout == "torch"
        else 'it takes W as PyTorch stores it, (D_out, D_in). Pass layout="torch".'
    )
    if other.right:
        return ("another-layout",), (f"another-layout: {stored} Then all is right.",)
    # With the layout it would be two mistakes at least.
    more = solve(other) if not found or len(_names(found)) > 2 else ()
    if not more or (found and len(_names(more)) + 1 >= len(_names(found))):
        return None
    return ("another-layout", *_names(more)), (f"another-layout: {stored}", *told(more, other.search.start))


def _names(found: Explanation) -> tuple[str, ...]:
    return tuple(dict.fromkeys(mistake.row.name for mistake in found))


def _explained(case: Case, sizes: tuple[int, ...]) -> Explanation:
    """Find the fewest mistakes that give all the numbers; of several ways one that gives others too."""
    for size in sizes:
        found = case.search.explanations(size)
        for network in itertools.islice(probes(case.network), 6 if size == 1 else 2):
            other = replace(case, network=network)
            if len(found) < 2 or not runs(other):
                break
            if not other.right:
                keys = {tuple(mistake.key for mistake in made) for made in other.search.explanations(size)}
                found = [made for made in found if tuple(mistake.key for mistake in made) in keys]
        if found:
            return found[0]
    return ()


def _order(case: Case) -> Explanation:
    """Try the results under each other's names."""
    search, names = case.search, tuple(case.search.given)
    if len(names) > 4:
        swaps = [tuple({a: b, b: a}.get(name, name) for name in names) for a, b in itertools.combinations(names, 2)]
    else:
        swaps = list(itertools.permutations(names))
    for swap in swaps:
        if swap != names and all(
            same(search.given[mine], search.truth[name], search.allowed.of[name])
            for mine, name in zip(names, swap, strict=True)
        ):
            moved = [f"{name} came as {mine}" for mine, name in zip(names, swap, strict=True) if mine != name]
            row = replace(BY_OTHER_MEANS["wrong-order"], wrong=listed(moved))
            return (Found(row, ()),)
    return ()


def _world(case: Case) -> Explanation:
    """Try the results of another function or loss."""
    search = case.search
    for f, loss in worlds(case.network):
        values = all_steps(replace(search.start, f=f, loss=loss))
        options = {name: [value] for name, value in values.items()}
        if loss == "cross-entropy":
            options["Y"].append(torch.softmax(values["Y"], 1))
        if all(any(search.is_like(name, way) for way in options[name]) for name in search.given):
            name = "another-activation" if loss == case.network.loss else "another-loss"
            said = [f"activation={f.name!r}"] if f is not case.network.f else []
            said += [f"loss={loss!r}"] if loss != case.network.loss else []
            row = replace(
                BY_OTHER_MEANS[name],
                wrong=f"these are the right numbers for f = {f.name} and the {loss}",
                why=f"If that is what you mean, pass {' and '.join(said)}.",
            )
            return (Found(row, ()),)
    return ()


def _said(
    search: Search, answer: Answer, found: Explanation, rest: tuple[str, ...]
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    hints = [*told(found, search.start), *_after(search, found, rest)]
    names = _names(found)
    spoilt = () if "argument-overwritten" in names else overwritten(answer)
    return names, (*hints, *spoilt)


def _after(search: Search, found: Explanation, rest: tuple[str, ...]) -> list[str]:
    """Say which results are wrong only because an earlier one is, and which may be so for themselves."""
    placed = {step for mistake in found for step in mistake.steps}
    wrong = search.wrong()
    first = next((step for step in wrong if step in CHAIN), None)
    hints = []
    # A mistake that has no place is none of a step.
    if first is not None and (placed or not found):
        later = [step for step in wrong if step not in placed and step != first and search.follows(step)]
        if later:
            name = "δ" if first == "delta" else first
            follow = "follows from it as it should" if len(later) == 1 else "follow from it as they should"
            hints.append(f"Mend {name}: {', '.join(later)} {follow}.")
    if rest:
        hints.append(f"{listed(rest)} {'is' if len(rest) == 1 else 'are'} wrong too. Mend this first.")
    return hints


def _partly(search: Search, answer: Answer) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Name what is wrong first, if it is known; else an argument that was changed; else say that it is not known."""
    wrong = search.wrong()
    right = [step for step in search.given if step not in wrong]
    first = wrong[0]
    if first in CHAIN:
        tries = [[step for step in search.given if step in CHAIN and STEPS.index(step) <= STEPS.index(first)]]
    else:
        tries = [[*right, step] for step in wrong]
    # What is not explained would have to bear out a mistake in a step that was not returned.
    unseen = 2 if first in CHAIN else 0
    for steps in tries:
        part = replace(search, given=_only(search.given, steps))
        found = next((found[0] for size in (1, 2) if (found := part.explanations(size, unseen))), ())
        if found:
            rest = [step for step in wrong if step not in steps and not search.follows(step)]
            return _said(search, answer, found, tuple(rest))
    if answer.changed:
        row = replace(BY_OTHER_MEANS["argument-overwritten"], wrong=f"the function changes {listed(answer.changed)}")
        return ("argument-overwritten",), told((Found(row, ()),), search.start)
    hints = [not_finite(step, search.given[step]) for step in wrong if not search.given[step].isfinite().all()]
    others = [step for step in wrong if STEPS.index(step) > STEPS.index(first) and not search.follows(step)]
    return (), (UNKNOWN, *hints, *_after(search, (), tuple(others) if first in CHAIN else ()))


def _only(given: Mapping[str, Tensor], steps: list[str]) -> dict[str, Tensor]:
    return {step: value for step, value in given.items() if step in steps}


def overwritten(answer: Answer) -> tuple[str, ...]:
    """Say which arguments the function changed."""
    if not answer.changed:
        return ()
    it = "it" if len(answer.changed) == 1 else "them"
    return (
        f"It changes {listed(answer.changed)} in place, and the caller finds other numbers in {it} afterwards: "
        "work on a copy, as clone() makes one.",
    )
