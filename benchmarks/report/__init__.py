"""Write the tables of README and docs/figures.md, and pictures, from the results: no figure is copied by hand.

A table stands between ``<!-- report: NAME -->`` and ``<!-- end -->``, each a line of its own; over it stand the
commands that measured it, the machine, and the day. It is made from the newest run of its commands, whichever file
they are in; the literature's, of which a run has some rows, from the newest row of each recipe, of all its epochs where
there is one. Runs with ``--quick`` are for ``--from`` alone.
"""

import argparse
import json
import re
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks import command
from benchmarks.machine import brief
from benchmarks.report import engines, plot, summary, tables, training

ROOT = Path(__file__).parents[2]
DOCUMENTS = ROOT / "README.md", ROOT / "docs" / "figures.md"
MARKED = re.compile(r"(^<!-- report: ([\w-]+) -->\n)(.*?)(^<!-- end -->$)", re.MULTILINE | re.DOTALL)


class Problem(Exception):
    """What is wrong with the results or a document, in a line."""


def newest(files: Iterable[Path], quick: bool = False) -> dict[str, dict[str, Any]]:
    """Read the newest run of each command; of those with ``--quick`` only if they are asked for."""
    found: dict[str, dict[str, Any]] = {}
    recipes: dict[str, dict[str, Any]] = {}
    for file in sorted(files):
        try:
            runs = json.loads(file.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise Problem(f"expected results as JSON, got {file}: {error}") from None
        for name, run in runs.items():
            if run["settings"]["quick"] and not quick:
                continue
            if name not in found or run["date"] >= found[name]["date"]:
                found[name] = run
            for row in run["rows"] if name == "literature" else ():
                row = {"date": run["date"], "machine": run["machine"], **row}
                if _worth(row) >= _worth(recipes.get(row["recipe"], row)):
                    recipes[row["recipe"]] = row
    if recipes:
        found["literature"] = {**found["literature"], "rows": list(recipes.values())}
    return found


def _worth(row: Mapping[str, Any]) -> tuple[bool, str]:
    return row["epochs"] == row["of_epochs"], row["date"]


def told(runs: Mapping[str, Mapping[str, Any]]) -> str:
    """Say what runs were taken by, on and when, and how many of their rows beside other work."""
    commands: dict[str, list[str]] = {}
    for name, run in runs.items():
        busy = sum(row.get("busy", False) for row in run["rows"])
        typed = f"`{run.get('command', f'python -m benchmarks {name} --json')}`"
        beside = f" ({busy} of {len(run['rows'])} rows beside other work)" if busy else ""
        commands.setdefault(_where(run), []).append(typed + beside)
    return "Measured by " + "; ".join(f"{', '.join(those)} on {where}" for where, those in commands.items()) + "."


def told_briefly(runs: Mapping[str, Mapping[str, Any]]) -> str:
    """Say what machines runs were taken on, and when."""
    rows = [row for run in runs.values() for row in run["rows"]]
    busy = sum(row.get("busy", False) for row in rows)
    where = "; ".join(dict.fromkeys(_where(run) for run in runs.values()))
    return f"Measured on {where}{f'; {busy} of {len(rows)} rows beside other work' if busy else ''}."


def _where(run: Mapping[str, Any]) -> str:
    rows = [{"machine": run["machine"], "date": run["date"], **row} for row in run["rows"]]
    machines = dict.fromkeys(_hardware(row["machine"]) for row in rows)
    days = sorted({row["date"][:10] for row in rows})
    return f"{' and '.join(machines)}, {' to '.join(dict.fromkeys((days[0], days[-1])))}"


def _hardware(machine: Mapping[str, Any]) -> str:
    if machine["device"] != "cpu":
        return f"one {machine['device']}, torch {machine['torch']}"
    amx = " and AMX" if machine.get("features", {}).get("amx_bf16") else ""
    cpu = f"{machine['cores']} cores of {brief(machine['cpu'])} with {machine['capability']}{amx}"
    return f"{cpu}, torch {machine['torch']}"


class Table(NamedTuple):
    """A table: the commands whose runs it shows, what lays it out, and what stands over it."""

    commands: Sequence[str]
    write: Callable[..., str]
    caption: Callable[[Mapping[str, Mapping[str, Any]]], str] = told


# By the name in the marker.
TABLES = {
    "summary": Table(summary.COMMANDS, summary.summary, told_briefly),
    "layers": Table(["native"], engines.layers),
    "networks": Table(["native"], engines.native("backprop", "backprop with dropout", "MLP")),
    "heads": Table(["native"], engines.native("head")),
    "derivatives": Table(["native"], engines.native("second order")),
    "dense": Table(["dense"], tables.dense),
    "second-order": Table(["second-order"], tables.second_order),
    "output": Table(["output"], tables.output),
    "network": Table(["network"], tables.network),
    "compile": Table(["compile"], engines.compiled),
    "dropout": Table(["dropout"], engines.dropout),
    "transforms": Table(["transforms"], tables.transforms),
    "train": Table(["train"], training.train),
    "accuracy": Table(["accuracy"], training.accuracy),
    "time-to": Table(["time-to-98", "time-to-98.4", "time-to-99"], training.time_to),
    "literature": Table(["literature"], training.literature),
}


def captioned(name: str, runs: Mapping[str, Mapping[str, Any]]) -> str:
    """Lay out a table under what it was measured by."""
    table = TABLES[name]
    shown = {of: runs[of] for of in table.commands}
    try:
        return f"{table.caption(shown)}\n\n{table.write(*shown.values())}"
    except KeyError as error:
        raise Problem(f"expected whole runs for {name}, got none of {error}") from None


def rewritten(text: str, tables: Mapping[str, str]) -> str:
    """Put the tables between their markers."""

    def put(found: re.Match[str]) -> str:
        if found[2] not in tables:
            raise Problem(f"expected a marker of one of {', '.join(tables) or 'no run'}, got {found[2]!r}")
        return f"{found[1]}\n{tables[found[2]]}\n\n{found[4]}"

    unclosed = len(re.findall(r"^<!-- report: ", text, re.MULTILINE)) - len(MARKED.findall(text))
    if unclosed or any("<!-- report: " in inside for _, _, inside, _ in MARKED.findall(text)):
        raise Problem("expected <!-- end --> behind every <!-- report: NAME -->")
    return MARKED.sub(put, text)


def read_options(arguments: Sequence[str]) -> argparse.Namespace:
    """Read the command line."""
    flags = command.Parser(prog="python -m benchmarks report", description="Tables and pictures from results.")
    flags.add_argument("--results", type=Path, default=command.RESULTS, metavar="DIR", help="where results are read")
    flags.add_argument("--from", type=Path, nargs="+", dest="files", metavar="FILE", help="these files instead")
    flags.add_argument(
        "--documents", type=Path, nargs="+", default=DOCUMENTS, metavar="FILE",
        help="what is rewritten (README.md docs/figures.md)",
    )  # fmt: skip
    flags.add_argument("--check", action="store_true", help="change nothing; exit 1 if a document is not up to date")
    flags.add_argument("--print", action="store_true", dest="show", help="print the tables, change nothing")
    options: argparse.Namespace = flags.parse_args(arguments)
    options.quick = bool(options.files)
    options.files = options.files or sorted(options.results.glob("*.json"))
    if not options.files:
        flags.error(f"--results: expected a folder with *.json, got {options.results}")
    for path in () if options.show else options.documents:
        if not path.is_file():
            flags.error(f"--documents: expected a file, got {path}")
    return options


def report(options: argparse.Namespace) -> int:
    """Print, check, or rewrite."""
    runs = newest(options.files, options.quick)
    written = {name: captioned(name, runs) for name, table in TABLES.items() if runs.keys() >= {*table.commands}}
    if options.show:
        for name, table in written.items():
            print(f"{name}\n\n{table}\n")
        return 0
    texts = {path: path.read_text(encoding="utf-8") for path in options.documents}
    found = {path: rewritten(text, written) for path, text in texts.items()}
    if options.check:
        late = [path.name for path, text in texts.items() if found[path] != text]
        print(f"{', '.join(late)}: python -m benchmarks report" if late else "the documents are up to date")
        return int(bool(late))
    for path, text in found.items():
        path.write_text(text, encoding="utf-8")
        print(f"{path.name}: {len(MARKED.findall(text))} tables")
    if runs.get("network", {}).get("by_batch"):
        print(f"drawn: {plot.draw(runs['network'], options.results / 'batch.png')}")
    if runs.get("output-peers"):
        print(f"drawn: {plot.draw_peers(runs['output-peers'], options.results / 'peers.png')}")
    return 0


def main(arguments: Sequence[str]) -> int:
    """Rewrite the documents and draw the pictures; return 1 if ``--check`` finds a difference."""
    options = read_options(arguments)
    try:
        return report(options)
    except (Problem, ImportError) as error:
        print(f"python -m benchmarks report: {error}", file=sys.stderr)
        return 2
