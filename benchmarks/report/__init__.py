"""Write the README's tables, and a picture, from the results: no figure is copied by hand.

A table stands between ``<!-- report: NAME -->`` and ``<!-- end -->``, each a line of its own, NAME a command's. It is
made from the newest run of that command, whichever file it is in; the literature's, of which a run has some rows, from
the newest row of each recipe, of all its epochs where there is one. Runs with ``--quick`` are for ``--from`` alone.
"""

import argparse
import json
import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks import command
from benchmarks.report import plot
from benchmarks.report.tables import TABLES

README = Path(__file__).parents[2] / "README.md"
MARKED = re.compile(r"(^<!-- report: ([\w-]+) -->\n)(.*?)(^<!-- end -->$)", re.MULTILINE | re.DOTALL)


class Problem(Exception):
    """What is wrong with the results or the README, in a line."""


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
    flags = command.Parser(prog="python -m benchmarks report", description="The README's tables and plot from results.")
    flags.add_argument("--results", type=Path, default=command.RESULTS, metavar="DIR", help="where results are read")
    flags.add_argument("--from", type=Path, nargs="+", dest="files", metavar="FILE", help="these files instead")
    flags.add_argument("--readme", type=Path, default=README, metavar="FILE", help="what is rewritten")
    flags.add_argument("--check", action="store_true", help="change nothing; exit 1 if the README is not up to date")
    flags.add_argument("--print", action="store_true", dest="show", help="print the tables, change nothing")
    options: argparse.Namespace = flags.parse_args(arguments)
    options.quick = bool(options.files)
    options.files = options.files or sorted(options.results.glob("*.json"))
    if not options.files:
        flags.error(f"--results: expected a folder with *.json, got {options.results}")
    if not options.show and not options.readme.is_file():
        flags.error(f"--readme: expected a file, got {options.readme}")
    return options


def report(options: argparse.Namespace) -> int:
    """Print, check, or rewrite."""
    runs = newest(options.files, options.quick)
    tables = {name: write(runs[of]) for name, (of, write) in TABLES.items() if of in runs}
    if options.show:
        for name, table in tables.items():
            print(f"{name}, {runs[TABLES[name][0]]['date']}\n\n{table}\n")
        return 0
    before = options.readme.read_text(encoding="utf-8")
    after = rewritten(before, tables)
    if options.check:
        print("the README is up to date" if before == after else "the README differs: python -m benchmarks report")
        return int(before != after)
    options.readme.write_text(after, encoding="utf-8")
    print(f"{options.readme.name}: {len(MARKED.findall(after))} tables")
    if runs.get("network", {}).get("by_batch"):
        print(f"drawn: {plot.draw(runs['network'], options.results / 'batch.png')}")
    if runs.get("output-peers"):
        print(f"drawn: {plot.draw_peers(runs['output-peers'], options.results / 'peers.png')}")
    return 0


def main(arguments: Sequence[str]) -> int:
    """Rewrite the README's tables and draw the plot; return 1 if ``--check`` finds a difference."""
    options = read_options(arguments)
    try:
        return report(options)
    except (Problem, ImportError) as error:
        print(f"python -m benchmarks report: {error}", file=sys.stderr)
        return 2
