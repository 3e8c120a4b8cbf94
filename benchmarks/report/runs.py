"""The runs that tables are made of: the newest of each command, those of each device by themselves, and their words."""

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.machine import brief

Run = Mapping[str, Any]
CPU = "cpu"


class Problem(Exception):
    """What is wrong with the results or a document, in a line."""


def newest(files: Iterable[Path], quick: bool = False) -> dict[str, Run]:
    """Read the newest run of each command that CPUs have; of the literature the newest rows, on whichever machine."""
    runs = read(files, quick)
    everywhere = chosen(run for run in runs if run["name"] == "literature")
    return chosen(run for run in runs if device_of(run) == CPU) | everywhere


def by_card(files: Iterable[Path], quick: bool = False) -> dict[str, dict[str, Run]]:
    """Read the newest run of each command by the model of the GPU that has it."""
    runs = [run for run in read(files, quick) if device_of(run) != CPU]
    return {card: chosen(run for run in runs if device_of(run) == card) for card in sorted({*map(device_of, runs)})}


def device_of(run: Run) -> str:
    """Return the model of the GPU that a run was taken on, or "cpu"."""
    device: str = run["machine"]["device"]
    return device


def read(files: Iterable[Path], quick: bool = False) -> list[Run]:
    """Read all runs, each with the name of its command; those with ``--quick`` only if they are asked for."""
    found: list[Run] = []
    for file in sorted(files, key=lambda file: file.name):
        try:
            runs = json.loads(file.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise Problem(f"expected results as JSON, got {file}: {error}") from None
        found += [{"name": name} | run for name, run in runs.items() if quick or not run["settings"]["quick"]]
    return found


def chosen(runs: Iterable[Run]) -> dict[str, Run]:
    """Choose the newest run of each command; the literature's has the newest row of each recipe, a whole one first."""
    found: dict[str, Run] = {}
    recipes: dict[str, dict[str, Any]] = {}
    for run in runs:
        name = run["name"]
        if name not in found or run["date"] >= found[name]["date"]:
            found[name] = run
        for row in run["rows"] if name == "literature" else ():
            row = {"date": run["date"], "machine": run["machine"], **row, "typed": _typed(run)}
            if _worth(row) >= _worth(recipes.get(row["recipe"], row)):
                recipes[row["recipe"]] = row
    if recipes:
        found["literature"] = {**found["literature"], "rows": list(recipes.values())}
    return found


def _worth(row: Mapping[str, Any]) -> tuple[bool, str]:
    return row["epochs"] == row["of_epochs"], row["date"]


def _typed(run: Run) -> str:
    return f"`{run['command']}`" if "command" in run else f"`python -m benchmarks {run['name']} --json`"


def told(runs: Iterable[Run]) -> str:
    """Say what runs were taken by, on and when, and how many of their rows beside other work."""
    commands: dict[str, list[str]] = {}
    for run in runs:
        by_command: dict[str, list[Mapping[str, Any]]] = {}
        for row in run["rows"]:
            by_command.setdefault(row["typed"] if "typed" in row else _typed(run), []).append(row)
        for typed, rows in by_command.items():
            busy = sum(row.get("busy", False) for row in rows)
            beside = f" ({busy} of {len(rows)} rows beside other work)" if busy else ""
            commands.setdefault(_where(run, rows), []).append(typed + beside)
    return "Measured by " + "; ".join(f"{', '.join(those)} on {where}" for where, those in commands.items()) + "."


def told_briefly(runs: Iterable[Run]) -> str:
    """Say what machines runs were taken on, and when."""
    runs = list(runs)
    rows = [row for run in runs for row in run["rows"]]
    busy = sum(row.get("busy", False) for row in rows)
    where = "; ".join(dict.fromkeys(_where(run, run["rows"]) for run in runs))
    return f"Measured on {where}{f'; {busy} of {len(rows)} rows beside other work' if busy else ''}."


def _where(run: Run, rows: Sequence[Mapping[str, Any]]) -> str:
    whole = [{"machine": run["machine"], "date": run["date"], **row} for row in rows]
    machines = dict.fromkeys(_hardware(row["machine"]) for row in whole)
    days = sorted({row["date"][:10] for row in whole})
    return f"{' and '.join(machines)}, {' to '.join(dict.fromkeys((days[0], days[-1])))}"


def _hardware(machine: Mapping[str, Any]) -> str:
    if machine["device"] != CPU:
        return f"one {machine['device']}, torch {machine['torch']}"
    amx = " and AMX" if machine.get("features", {}).get("amx_bf16") else ""
    cpu = f"{machine['cores']} cores of {brief(machine['cpu'])} with {machine['capability']}{amx}"
    return f"{cpu}, torch {machine['torch']}"


def laid_out(what: str, write: Callable[..., str], *runs: Run) -> str:
    """Lay runs out; say what they lack.

    Raises:
        Problem: if rows or fields of a table are not there.
    """
    try:
        return write(*runs)
    except KeyError as error:
        raise Problem(f"expected whole runs for {what}, got none of {error}") from None
