"""The diagnosis of numbers that are wrong: what gives them is named once, or said not to be recognised."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace

import torch
from torch import Tensor

from manual_mlp.activations import Activation
from manual_mlp.explain.grading.call import LAYOUTS, STEPS, Answer
from manual_mlp.explain.grading.case import Case, Grade, checks_of, runs
from manual_mlp.explain.grading.known import BY_OTHER_MEANS
from manual_mlp.explain.grading.numbers import probes, truth, worlds
from manual_mlp.explain.grading.rounding import is_fine, of_float32, same
from manual_mlp.explain.grading.search import CHAIN, Explanation, Found, Search, all_steps
from manual_mlp.explain.grading.show import beside, listed, not_finite, told

_DRAWS = 6
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
    search = case.search
    if _holds(case, _is_roughly_right):
        return ("float32-inside",), (f"float32-inside: {_FLOAT32}",)
    found = solve(case)
    _, inputs, outputs = case.network.shape
    if inputs == outputs:
        turned = in_other_layout(case, found)
        if turned is not None:
            return turned
    if found:
        return _said(search, answer, found, ())
    return _partly(case, answer)


_FLOAT32 = (
    "it agrees to 6 or 7 digits, and float64 has 16. Something was computed in float32, as torch.zeros(3, 2) is, "
    "or by finite differences, or with a rounded constant, as torch's own hardsigmoid is. torch.zeros_like(W) has W's "
    "dtype."
)


def _is_roughly_right(case: Case) -> bool:
    """Tell whether a function would be right if its results came as float32."""
    search = case.search
    _, roughly = truth(case.network, case.layout, search.given, of_float32(case.network, case.layout))
    return all(same(value, search.truth[name], roughly.of[name]) for name, value in search.given.items())


def solve(case: Case) -> Explanation:
    """Find the fewest mistakes that give all the numbers."""
    rows, _, outputs = case.network.shape
    few = rows * outputs == 1  # three mistakes would explain any numbers
    return _order(case) or _explained(case, (1,)) or _world(case) or _explained(case, (2,) if few else (2, 3))


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
    """Find the fewest mistakes that give all the numbers, and others too."""
    for size in sizes:
        found = _borne_out(case, case.search.explanations(size), size)
        if found:
            return found[0]
    return ()


def _further(case: Case) -> Iterator[Case]:
    """Call the function with other numbers, and keep those in which it is wrong."""
    for network in itertools.islice(probes(case.network), _DRAWS):
        other = replace(case, network=network)
        if not runs(other):
            return
        if not other.right and not torch.equal(network.w, case.network.w):
            yield other


def _borne_out(
    case: Case, found: list[Explanation], size: int, unseen: int = 2, steps: list[str] | None = None
) -> list[Explanation]:
    """Keep the explanations that give other numbers too; of several as many draws as there are, to tell them apart.

    Args:
        steps: the results that are explained, by default all.
    """
    tried, least = 0, 2 if steps is None else 4
    rows = {mistake.row for made in found for mistake in made}
    for other in _further(case):
        if not found or (tried >= least and len(found) < 2):
            break
        search = other.search
        if steps is not None:
            search = replace(search, given=_only(search.given, steps))
        if not search.wrong():
            continue
        tried += 1
        only = {step: tuple(row for row in known if row in rows) for step, known in search.rows.items()}
        again = replace(search, rows=only).explanations(size, unseen)
        found = [made for made in found if any(_is_like(made, another) for another in again)]
    return found


def _is_like(made: Explanation, another: Explanation) -> bool:
    """Tell whether the same mistakes explain other numbers; one of several may not show in them."""
    return bool(another) and all(any(one.is_like(other) for one in made) for other in another)


def _order(case: Case) -> Explanation:
    """Try the results under each other's names."""
    names = tuple(case.search.given)
    if len(names) > 4:
        swaps = [tuple({a: b, b: a}.get(name, name) for name in names) for a, b in itertools.combinations(names, 2)]
    else:
        swaps = list(itertools.permutations(names))
    for swap in swaps:
        if swap != names and _holds(case, functools.partial(_moved, pairs=tuple(zip(names, swap, strict=True)))):
            moved = [f"{name} came as {mine}" for mine, name in zip(names, swap, strict=True) if mine != name]
            row = replace(BY_OTHER_MEANS["wrong-order"], wrong=listed(moved))
            return (Found(row, ()),)
    return ()


def _holds(case: Case, claim: Callable[[Case], bool]) -> bool:
    """Tell whether a claim holds of the numbers at hand, and of further ones."""
    return claim(case) and all(map(claim, itertools.islice(_further(case), 1)))


def _moved(case: Case, pairs: tuple[tuple[str, str], ...]) -> bool:
    search = case.search
    for mine, name in pairs:
        value, want = search.given[mine], search.truth[name]
        # A row and a column of the same length are told apart by nothing else than their names.
        if value.numel() != want.numel() or not same(value.reshape(want.shape), want, search.allowed.of[name]):
            return False
    return True


def _world(case: Case) -> Explanation:
    """Try the results of another function or loss."""
    network = case.network
    for f, loss in worlds(network):
        if _holds(case, functools.partial(_is_of, f=f, loss=loss)):
            name = "another-activation" if loss == network.loss else "another-loss"
            said = [f"activation={f.name!r}"] if f is not network.f else []
            said += [f"loss={loss!r}"] if loss != network.loss else []
            row = replace(
                BY_OTHER_MEANS[name],
                wrong=f"these are the right numbers for f = {f.name} and the {loss}",
                why=f"If that is what you mean, pass {' and '.join(said)}.",
            )
            return (Found(row, ()),)
    return ()


def _is_of(case: Case, f: Activation, loss: str) -> bool:
    """Tell whether the results are right for a function and a loss."""
    search = case.search
    values = all_steps(replace(search.start, f=f, loss=loss))
    options = {name: [value] for name, value in values.items()}
    if loss == "cross-entropy":
        options["Y"].append(torch.softmax(values["Y"], 1))
    return all(any(search.is_like(name, way) for way in options[name]) for name in search.given)


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


def _partly(case: Case, answer: Answer) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Name what is wrong first, if it is known; else an argument that was changed; else say that it is not known."""
    search = case.search
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
        found = next(
            (
                found[0]
                for size in (1, 2)
                if (found := _borne_out(case, part.explanations(size, unseen), size, unseen, steps))
            ),
            (),
        )
        if found:
            rest = [step for step in wrong if step not in steps and not search.follows(step)]
            return _said(search, answer, found, tuple(rest))
    both = next((pair for pair in answer.shared if set(pair) & set(wrong)), None)
    if both:
        row = replace(BY_OTHER_MEANS["result-overwritten"], wrong=f"{both[0]} and {both[1]} are one tensor")
        return ("result-overwritten",), told((Found(row, ()),), search.start)
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
