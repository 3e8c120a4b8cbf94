"""Is what a candidate answers equal to the truth?"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from torch import Tensor

from modes.mode import Map, Mode, Run
from modes.subjects import Shapes, Subject, draw

# From the best to the worst.
OUTCOMES = ["equal", "raises", "detached", "WRONG"]
DETACHED = "does not require grad", "appears to not have been used in the graph"

# In low precision the mean error over several draws counts; a close call is decided by more of them.
DRAWS, MORE_DRAWS = 10, 100


@dataclass(frozen=True)
class Verdict:
    """Hold an outcome, and what there is to say about it."""

    outcome: str
    detail: str = ""
    error: float = 0.0


@dataclass(frozen=True)
class Answer:
    """Hold what came of asking: results, or an exception."""

    results: Any = None
    error: Exception | None = None


def judge(mode: Mode, subject: Subject, device: str = "cpu") -> Verdict:
    """Compare what a subject answers with the truth."""
    if mode.tolerance is None:
        verdict = _judge_low_precision(mode, subject, device, DRAWS)
        return verdict if verdict.outcome != "WRONG" else _judge_low_precision(mode, subject, device, MORE_DRAWS)
    mine, truth = ask(mode, subject.ours, _given(mode, subject, device)), true_answer(mode, subject, device)
    if truth.error and not mine.error and mode.instead:
        truth = ask(mode, subject.truth, _given(mode, subject, device), run=mode.instead)
    if mine.error or truth.error:
        return _judge_errors(mine.error, truth.error)
    return compare(mine.results, truth.results, mode.tolerance)


def ask(mode: Mode, f: Map, inputs: tuple[Tensor, ...], run: Run | None = None) -> Answer:
    """Run a mode, and catch what it raises."""
    try:
        return Answer(results=(run or mode.run)(f, inputs))
    # Any exception is an answer.
    except Exception as error:
        return Answer(error=error)


def true_answer(mode: Mode, subject: Subject, device: str, seed: int = 0) -> Answer:
    """Ask the truth, in float64."""
    return _true_answer(mode, subject.truth, subject.shapes, device, seed)


# The candidates of a subject share its truth.
@lru_cache(maxsize=256)
def _true_answer(mode: Mode, truth: Map, shapes: Shapes, device: str, seed: int) -> Answer:
    inputs = tuple(t.to(mode.dtype).double() for t in draw(shapes, seed, device))
    answer = ask(mode, truth, inputs, run=mode.plain)
    if answer.error is not None and not mode.may_raise:
        raise AssertionError(f"the truth of {mode.name!r} raises") from answer.error
    return answer


def _given(mode: Mode, subject: Subject, device: str, seed: int = 0) -> tuple[Tensor, ...]:
    return tuple(t.to(mode.dtype) for t in draw(subject.shapes, seed, device))


def compare(mine: Any, truth: Any, tolerance: float) -> Verdict:
    """Compare nested results, entry by entry, and return the worst verdict."""
    verdicts = [_compare_entries(a, b, tolerance) for a, b in _pairs(mine, truth)]
    return max(verdicts, key=lambda v: (OUTCOMES.index(v.outcome), v.error), default=Verdict("equal"))


def _compare_entries(a: Any, b: Any, tolerance: float) -> Verdict:
    verdict = _compare_kinds(a, b)
    if verdict.outcome != "equal" or not isinstance(b, Tensor) or not b.numel():
        return verdict
    error = _distance(a, b) / (1 + b.detach().abs().max().item())
    # A comparison with NaN is false.
    return Verdict("equal") if error <= tolerance else Verdict("WRONG", "", error)


def _judge_errors(mine: Exception | None, truth: Exception | None) -> Verdict:
    if mine is None:
        return Verdict("WRONG", f"no error, where torch raises {first_line(truth)}")
    if truth is not None and first_line(mine)[:40] == first_line(truth)[:40]:
        return Verdict("equal", f"both raise: {first_line(mine)}")
    detached = any(phrase in str(mine) for phrase in DETACHED)
    return Verdict("detached" if detached else "raises", first_line(mine))


def _judge_low_precision(mode: Mode, subject: Subject, device: str, count: int) -> Verdict:
    """Hold the largest error of each result, in the mean over all draws, against torch's own."""
    totals: list[list[float]] = []
    for seed in range(count):
        inputs = _given(mode, subject, device, seed)
        mine, torchs = ask(mode, subject.ours, inputs), ask(mode, subject.torchs, inputs)
        truth = true_answer(mode, subject, device, seed)
        if mine.error:
            return _judge_errors(mine.error, None)
        if torchs.error:
            torchs = ask(mode, subject.truth, inputs)
        pairs = list(_pairs(mine.results, torchs.results))
        totals = totals or [[0.0, 0.0] for _ in pairs]
        for total, (a, c), (_, b) in zip(totals, pairs, _pairs(mine.results, truth.results), strict=True):
            verdict = _compare_kinds(a, c)
            # What is no tensor may also be the truth's: a gradient scaler halves its scale where torch overflows.
            if verdict.outcome != "equal" and (isinstance(c, Tensor) or a != b):
                return verdict
            if isinstance(b, Tensor):
                total[:] = total[0] + _distance(a, b) / count, total[1] + _distance(c, b) / count
    for ours, theirs in totals:
        # A comparison with NaN is false.
        if not ours <= 2 * theirs + 1e-6:
            return Verdict("WRONG", f"torch's own error is {theirs:.0e}", ours)
    return Verdict("equal")


def _pairs(a: Any, b: Any) -> Iterator[tuple[Any, Any]]:
    """Walk two nested results side by side; where their structures differ, the pair is of unlike kinds."""
    if isinstance(a, list | tuple) and isinstance(b, list | tuple) and len(a) == len(b):
        for x, y in zip(a, b, strict=True):
            yield from _pairs(x, y)
    else:
        yield a, b


def _compare_kinds(a: Any, b: Any) -> Verdict:
    if not isinstance(b, Tensor):
        same = type(a) is type(b) and a == b
        return Verdict("equal") if same else Verdict("WRONG", f"{a!r} instead of {b!r}")
    if a is None:
        return Verdict("detached", "None instead of a tensor")
    if not isinstance(a, Tensor):
        return Verdict("WRONG", f"{type(a).__name__} instead of a tensor")
    if a.shape != b.shape:
        return Verdict("WRONG", f"shape {tuple(a.shape)} instead of {tuple(b.shape)}")
    if a.dtype != b.dtype:
        return Verdict("WRONG", f"{a.dtype} instead of {b.dtype}")
    if b.requires_grad and not a.requires_grad:
        return Verdict("detached", "the result does not require grad")
    return Verdict("equal")


def _distance(a: Tensor, b: Tensor) -> float:
    return (a.detach().double() - b.detach().double()).abs().max().item() if b.numel() else 0.0


def first_line(error: Exception | None) -> str:
    """Shorten an exception to its first line."""
    lines = str(error).strip().splitlines() or [""]
    return f"{type(error).__name__}: {lines[0]}"
