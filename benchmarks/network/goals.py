"""What a step of a network is meant to reach, as data, and whether it does."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from benchmarks.layers import BASELINE, OURS
from benchmarks.network import cases
from benchmarks.network.cases import Case
from benchmarks.network.providers import AUTOGRAD, FLOAT32


class Goal(NamedTuple):
    """In a case, the time of a peer over ours."""

    case: Case
    ours: str
    against: str
    malloc: str
    threads: int
    at_least: float


def _goals(ours: str, eager: float, tuned: tuple[float, float], compiled: float, *of: Case) -> Iterator[Goal]:
    """List the goals against eager under the default malloc and the tuned one (2 and 1 threads), and compile."""
    for case in of:
        yield Goal(case, ours, BASELINE, "default", 2, eager)
        yield Goal(case, ours, BASELINE, "tuned", 2, tuned[0])
        yield Goal(case, ours, BASELINE, "tuned", 1, tuned[1])
        yield Goal(case, ours, "compile", "default", 2, compiled)


GOALS = (
    *_goals(OURS, 2.8, (1.6, 1.9), 1.8, cases.NARROW),
    *_goals(OURS, 2.4, (1.4, 1.6), 1.5, cases.NARROW_GELU),
    *_goals(OURS, 2.5, (1.4, 1.6), 1.6, cases.FIELD),
    *_goals(OURS, 2.0, (1.2, 1.2), 1.3, cases.POINTS),
    *_goals(OURS, 1.8, (1.8, 1.8), 2.2, cases.TINY),
    *_goals(OURS, 1.2, (1.2, 1.2), 1.5, cases.MNIST[0]),
    *_goals(OURS, 1.05, (1.05, 1.05), 1.05, cases.MNIST[1]),
    *_goals(OURS, 1.0, (1.0, 1.0), 1.0, cases.WIDE),
    *_goals(AUTOGRAD, 1.7, (1.0, 1.0), 1.1, cases.NARROW, cases.NARROW_GELU, cases.FIELD, cases.POINTS),
    *_goals(AUTOGRAD, 1.0, (1.0, 1.0), 1.2, cases.TINY, *cases.MNIST),
)
AMX = tuple(Goal(cases.BFLOAT16, OURS, FLOAT32, "default", threads, 1.8) for threads in (1, 2))
PEAK_ROWS = (1 << 17, 1 << 20)
PEAK_RATIO = 20.0
KEPT_RATIO = 1 / 0.55


def _verdict(about: dict[str, Any], at_least: float, value: Sequence[float]) -> dict[str, Any]:
    return about | {"at_least": at_least, "value": list(value), "reached": value[0] >= at_least}


def of_times(rows: Sequence[Mapping[str, Any]], amx: bool) -> list[dict[str, Any]]:
    """Hold the goals in time that these rows can answer against them; the limit of a missed one is its row's shares."""
    found = []
    by_key = {(row["case"], row["malloc"], row["threads"]): row["providers"] for row in rows}
    for goal in (*GOALS, *(AMX if amx else ())):
        providers = by_key.get((str(goal.case), goal.malloc, goal.threads), {})
        if goal.ours in providers and goal.against in providers:
            ours = providers[goal.ours]
            about = {"goal": "time", **goal._asdict(), "case": str(goal.case)}
            verdict = _verdict(about, goal.at_least, ours["ratios"][goal.against])
            found.append(verdict | ({} if verdict["reached"] else {"limit": ours.get("shares")}))
    return found


def of_bytes(by_batch: Sequence[Mapping[str, Any]], kept: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Hold the goals in bytes against what was measured."""
    found = []
    for row in by_batch:
        if row["rows"] in PEAK_ROWS and "resident_bytes" in row["providers"][BASELINE]:
            theirs, ours = (row["providers"][name]["resident_bytes"] for name in (BASELINE, OURS))
            about = {"goal": "resident bytes", "case": row["case"], "ours": OURS, "against": BASELINE}
            found.append(_verdict(about, PEAK_RATIO, [theirs / max(ours, 1)]))
    for row in kept:
        about = {"goal": "kept bytes", "case": row["case"], "ours": AUTOGRAD, "against": BASELINE}
        found.append(_verdict(about, KEPT_RATIO, [row["providers"][BASELINE] / row["providers"][AUTOGRAD]]))
    return found


def describe(goal: Mapping[str, Any]) -> tuple[str, ...]:
    """Write a goal as a line of a table."""
    where = f"{goal['malloc']}, {goal['threads']}" if "malloc" in goal else "–"
    shares = goal.get("limit")
    limit = ", ".join(f"{name} {share:.0%}" for name, share in shares.items()) if shares else ""
    return (
        goal["case"], goal["goal"], goal["ours"], goal["against"], where, f"{goal['at_least']:.2f}",
        f"{goal['value'][0]:.2f}", "reached" if goal["reached"] else "missed", limit,
    )  # fmt: skip


TITLES = ("case", "goal", "ours", "against", "malloc, threads", "at least", "is", "", "its time on one thread")
