"""Providers that do not run on this machine: leave them out, and say why."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

from benchmarks.harness import Step, now

S = TypeVar("S", bound=Step)


def attempt(make: Callable[[], S]) -> tuple[S | None, str]:
    """Make a step and run it once; return it, or None and why it does not run, in a line."""
    try:
        step = make()
        step()
        # What goes wrong on a GPU shows when it is waited for.
        now()
    except Exception as error:  # whatever a package raises where it cannot run
        return None, (str(error).strip() or type(error).__name__).splitlines()[0][:100]
    return step, ""


def runnable(makers: Mapping[str, Callable[[], S]], needed: Sequence[str]) -> tuple[dict[str, S], dict[str, str]]:
    """Make steps and run each once; return those that run, and why the others do not. The needed ones have to."""
    steps, missing = {}, {}
    for name, make in makers.items():
        if name in needed:
            steps[name] = make()
            steps[name]()
            continue
        step, why = attempt(make)
        if step is None:
            missing[name] = why
        else:
            steps[name] = step
    return steps, missing


def lines(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Say in a line each which providers are left out, of which cases and why."""
    found: dict[tuple[str, str], dict[str, None]] = {}
    for row in rows:
        for name, why in row.get("left_out", {}).items():
            found.setdefault((name, why), {})[row["case"]] = None
    cases = {row["case"] for row in rows}
    return [
        f"left out{'' if len(where) == len(cases) else ' of ' + '; '.join(where)}: {name} ({why})"
        for (name, why), where in found.items()
    ]
