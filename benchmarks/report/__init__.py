"""Write the tables of README and docs/figures.md, and pictures, from the results: no figure is copied by hand.

A table stands between ``<!-- report: NAME -->`` and ``<!-- end -->``, each a line of its own; over it stand the
commands that measured it, the machine, and the day. It is made from the newest run of its commands on a CPU, whichever
file they are in; the literature's, of which a run has some rows, from the newest row of each recipe, of all its epochs
where there is one, on whichever machine. What was measured on GPUs stands under ``gpu``, each model by itself, and
beside the CPU's in the tables of a dozen steps and of the time to an accuracy. Runs with ``--quick`` are for ``--from``
alone.
"""

import argparse
import re
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from benchmarks import command
from benchmarks.report import engines, gpu, plot, summary, tables, training
from benchmarks.report.runs import Problem, Run, by_card, laid_out, newest, told, told_briefly

ROOT = Path(__file__).parents[2]
DOCUMENTS = ROOT / "README.md", ROOT / "docs" / "figures.md"
MARKED = re.compile(r"(^<!-- report: ([\w-]+) -->\n)(.*?)(^<!-- end -->$)", re.MULTILINE | re.DOTALL)


class Table(NamedTuple):
    """A table: the commands whose runs it shows, what lays them out, and what stands over it."""

    commands: Sequence[str]
    write: Callable[..., str]
    caption: Callable[[Iterable[Run]], str] = told
    everywhere: bool = False  # GPUs' runs too, behind those of CPUs
    unseen: str = ""  # what is said where there are none


# By the name in the marker.
TABLES = {
    "summary": Table(summary.COMMANDS, summary.summary, told_briefly, everywhere=True, unseen=f" {gpu.NOTHING}."),
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
    "time-to": Table(training.TIMES, training.time_to, everywhere=True),
    "literature": Table(["literature"], training.literature),
}


def captioned(name: str, runs: Mapping[str, Run], of_cards: Mapping[str, Mapping[str, Run]]) -> str:
    """Lay out a table under what it was measured by."""
    table = TABLES[name]
    devices = [runs, *of_cards.values()] if table.everywhere else [runs]
    shown = [found[of] for found in devices for of in table.commands if of in found]
    laid = laid_out(name, table.write, *shown)
    return f"{table.caption(shown)}{'' if of_cards else table.unseen}\n\n{laid}"


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


def written(runs: Mapping[str, Run], of_cards: Mapping[str, Mapping[str, Run]]) -> dict[str, str]:
    """Lay out every table of which there are runs, by the name in its marker."""
    there = [name for name, table in TABLES.items() if runs.keys() >= {*table.commands}]
    return {name: captioned(name, runs, of_cards) for name in there} | {gpu.NAME: gpu.section(of_cards)}


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
    laid = written(runs, by_card(options.files, options.quick))
    if options.show:
        for name, table in laid.items():
            print(f"{name}\n\n{table}\n")
        return 0
    texts = {path: path.read_text(encoding="utf-8") for path in options.documents}
    found = {path: rewritten(text, laid) for path, text in texts.items()}
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
