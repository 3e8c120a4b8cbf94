"""The search for the fewest mistakes that give a learner's numbers."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cache
from typing import Any

import torch
from torch import Tensor

from manual_mlp.explain.grading.known import BY_OTHER_MEANS, RIGHTLY, At, Known, Step
from manual_mlp.explain.grading.mistakes import all_known
from manual_mlp.explain.grading.rounding import Rounding, same

# A step of the chain rests on the one before; the gradients rest on the chain alone.
CHAIN = {"Z": "z", "Y": "y", "dY": "dy", "delta": "delta"}
GRADIENTS = ("dB", "dW", "dH")
_MOST = 64  # explanations of which the simplest is chosen


@cache
def _by_step(known: tuple[Known, ...]) -> dict[str, tuple[Known, ...]]:
    return {step: tuple(row for row in known if row.of == step) for step in RIGHTLY}


@cache
def _ranks(known: tuple[Known, ...]) -> dict[Known, int]:
    return {row: rank for rank, row in enumerate((*known, *BY_OTHER_MEANS.values()))}


@dataclass(frozen=True, eq=False)
class Found:
    """Hold one mistake that was found.

    Attributes:
        steps: where it shows.
        factor: how many times what it should be they are, if that is the mistake.
    """

    row: Known
    steps: tuple[str, ...]
    factor: float | None = None

    @property
    def key(self) -> tuple[object, ...]:
        """What makes it the same mistake with other numbers."""
        return self.row.name, self.row.of, self.row.wrong if self.row.of else "", self.steps

    def is_like(self, other: Found) -> bool:
        """Tell whether it is the same mistake in other numbers: a factor that changes with them is none."""
        alike = self.factor == other.factor or math.isclose(self.factor or 0, other.factor or 0, rel_tol=1e-4)
        return self.key == other.key and alike


Explanation = tuple[Found, ...]


def tell(step: str, formula: Step, at: At) -> Tensor | None:
    """Compute a formula of a step as the learner would return it, or return None where it cannot be computed."""
    try:
        value = formula(at)
    except (RuntimeError, IndexError):
        return None
    if step == "dW" and at.stored and value.dim() >= 2:
        return value.mT
    return value[0] if step == "dB" and value.shape == (1, len(at.b)) else value


def put(at: At, step: str, value: Tensor) -> At:
    """Go on from a value of a step of the chain."""
    changed: dict[str, Any] = {CHAIN[step]: value}
    return replace(at, **changed)


def all_steps(at: At) -> dict[str, Tensor]:
    """Compute every result by the right formulas, from H, W, B and the target."""
    told = {}
    for step, rightly in RIGHTLY.items():
        value = tell(step, rightly, at)
        assert value is not None
        told[step] = value
        at = put(at, step, value) if step in CHAIN else at
    return told


@dataclass(frozen=True, eq=False)
class Search:
    """Hold a learner's numbers and the right ones.

    Attributes:
        start: what is at hand, the chain right.
        given: the learner's results.
        truth: the right ones.
        allowed: the differences that count as none.
        rows: the mistakes that are tried in each step.
    """

    start: At
    given: Mapping[str, Tensor]
    truth: Mapping[str, Tensor]
    allowed: Rounding
    rows: Mapping[str, tuple[Known, ...]] = field(default_factory=lambda: _by_step(all_known()))

    def explanations(self, most: int, unseen: int = 2) -> list[Explanation]:
        """List the explanations of all the numbers by so many mistakes, the simplest first.

        Args:
            unseen: how many may be in steps that were not returned.
        """
        # Two such and a third are too many to try.
        unseen = min(unseen, 2 if most < 3 else 1)
        found: dict[tuple[object, ...], Explanation] = {}
        for made in itertools.islice(self._walk(self.start, list(CHAIN), most, unseen, ()), _MOST):
            found.setdefault(tuple(mistake.key for mistake in made), made)
        return sorted(found.values(), key=_plainness)

    def wrong(self) -> list[str]:
        """List the results that are not right."""
        return [step for step, value in self.given.items() if not self.is_right(step)]

    def at_hand(self) -> At:
        """Return what the gradients rest on: the learner's own chain, as far as it was returned."""
        at = self.start
        for step in CHAIN:
            value = self.given.get(step)
            if value is None or self.is_right(step):
                told = tell(step, RIGHTLY[step], at) if value is None else getattr(self.start, CHAIN[step])
                at = at if told is None else put(at, step, told)
            elif value.shape == self.start.z.shape:
                at = put(at, step, value)
        return at

    def follows(self, step: str) -> bool:
        """Tell whether a result is what the right formula makes of the learner's own numbers."""
        return self.is_like(step, tell(step, RIGHTLY[step], self.at_hand()))

    def is_right(self, step: str) -> bool:
        """Tell whether a result is what it should be."""
        return same(self.given[step], self.truth[step], self.allowed.of[step])

    def is_like(self, step: str, want: Tensor | None) -> bool:
        """Tell whether a result is what a formula gives."""
        return want is not None and same(self.given[step], want, self.allowed.around(step, want, self.truth[step]))

    def _walk(self, at: At, steps: list[str], left: int, unseen: int, made: Explanation) -> Iterator[Explanation]:
        """Go along the chain: from the learner's numbers where there are some, else from every formula in turn."""
        if not steps:
            yield from self._ends(at, left, made)
            return
        step, rest = steps[0], steps[1:]
        told = tell(step, RIGHTLY[step], at)
        if told is None:
            return
        if step in self.given:
            value = self.given[step]
            right = self.is_right(step)
            for found in self._of_one(step, at, left, made):
                aside = any(mistake.row.aside for mistake in found)
                on = (
                    getattr(self.start, CHAIN[step]) if right else told if aside or value.shape != told.shape else value
                )
                yield from self._walk(put(at, step, on), rest, left - len(found), unseen, (*made, *found))
            return
        yield from self._walk(put(at, step, told), rest, left, unseen, made)
        if not left or not unseen or not any(later in self.given for later in (*rest, *GRADIENTS)):
            return
        for row in self.rows[step]:
            wrong = None if row.aside else tell(step, row.formula, at)
            if wrong is not None and wrong.shape == told.shape and not torch.equal(wrong, told):
                mistake = Found(row, (step,))
                yield from self._walk(put(at, step, wrong), rest, left - 1, unseen - 1, (*made, mistake))

    def _ends(self, at: At, left: int, made: Explanation) -> Iterator[Explanation]:
        """Explain the gradients, one by one, or all by one factor of the δ that was not returned."""
        steps = [step for step in GRADIENTS if step in self.given]
        yield from self._each(steps, at, left, made)
        if "delta" in self.given or not left or len(steps) < 2:
            return
        factors = (self._multiple(step, tell(step, RIGHTLY[step], at)) for step in steps)
        common = next((found for found in factors if found is not None), None)
        if common is not None and common.factor is not None:
            shared = replace(common, steps=("delta",))
            scaled = put(at, "delta", common.factor * at.delta)
            for found in self._each(steps, scaled, left - 1, (*made, shared)):
                yield (*made, replace(shared, steps=tuple(steps)), *found[len(made) + 1 :])

    def _each(self, steps: list[str], at: At, left: int, made: Explanation) -> Iterator[Explanation]:
        options: list[list[Explanation]] = []
        least = 0
        for step in steps:
            options.append(self._of_one(step, at, left - least, made))
            if not options[-1]:
                return
            least += min(map(len, options[-1]))
        for chosen in itertools.product(*options):
            found = tuple(itertools.chain(*chosen))
            if len(found) <= left:
                yield (*made, *found)

    def _of_one(self, step: str, at: At, left: int, made: Explanation) -> list[Explanation]:
        """List the ways to a result from what is at hand: none for a right one, else with fewest mistakes."""
        value, told = self.given[step], tell(step, RIGHTLY[step], at)
        # What is returned wrong may have been right where it was used. What is only supposed to be wrong was not.
        supposed = any(step not in self.given for mistake in made for step in mistake.steps)
        if self.is_like(step, told) or (not supposed and self.is_right(step)):
            return [()]
        if left < 1:
            return []
        told_by = [(row, tell(step, row.formula, at)) for row in self.rows[step]]
        found: list[Explanation] = [(Found(row, (step,)),) for row, wrong in told_by if self.is_like(step, wrong)]
        multiple = self._multiple(step, told)
        if multiple is not None:
            found.append((multiple,))
        if not found and told is not None and value.shape != told.shape and value.numel() == told.numel():
            ways = (told.reshape(value.shape), told.mT.reshape(value.shape) if told.dim() == 2 else told)
            loosely = self.allowed.around(step, told, self.truth[step])
            close = float(loosely.max()) if isinstance(loosely, Tensor) else loosely
            if any(same(value, way, close) for way in ways):
                shape = f"{step} has the right numbers in another shape: {tuple(value.shape)} for {tuple(told.shape)}"
                found.append((Found(replace(BY_OTHER_MEANS["wrong-shape"], wrong=shape), (step,)),))
        if found or left < 2:
            return found
        multiples = ((row, self._multiple(step, wrong)) for row, wrong in told_by)
        return [(Found(row, (step,)), times) for row, times in multiples if times is not None]

    def _multiple(self, step: str, told: Tensor | None) -> Found | None:
        """Find by how much a result is a multiple of another, and which mistake that is."""
        value = self.given[step]
        if told is None or value.shape != told.shape or not value.isfinite().all() or not told.any():
            return None
        if not value.any():
            return Found(BY_OTHER_MEANS["all-zeros"], (step,), 0.0)
        factor = float((value * told).sum() / told.square().sum())
        rows = len(self.start.h)
        usual = (-1.0, float(rows), 1 / rows, *factors(self.start).values())
        simple = next((c for c in usual if self.is_like(step, c * told)), None)
        factor = factor if simple is None else simple
        near = abs(factor) < 100 * self.allowed.relative or factor == 1
        if near or not self.is_like(step, factor * told):
            return None
        # In ∂J/∂H nothing is summed over the rows: there 1/2 is no mean of two.
        mean = rows > (2 if step == "dH" else 1) and factor == 1 / rows and step not in ("Z", "Y")
        name = "sign" if factor == -1 else "mean-for-sum" if mean else "constant-factor"
        return Found(BY_OTHER_MEANS[name], (step,), factor)


def factors(at: At) -> dict[str, float]:
    """List the usual factors, by how one writes them."""
    rows, outputs = at.z.shape
    return {
        "2": 2.0,
        "1/2": 0.5,
        "N": rows,
        "1/N": 1 / rows,
        "2/N": 2 / rows,
        "D_out": outputs,
        "1/D_out": 1 / outputs,
        "2/D_out": 2 / outputs,
        "1/(N · D_out)": 1 / (rows * outputs),
        "2/(N · D_out)": 2 / (rows * outputs),
    }


def _plainness(made: Explanation) -> tuple[int, int, list[int]]:
    # A row that was written for these numbers ranks as the others that no formula tells.
    return (
        len({mistake.row.name for mistake in made}),
        len(made),
        [_ranks(all_known()).get(mistake.row, len(all_known())) for mistake in made],
    )
