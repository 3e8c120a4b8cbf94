"""Ask every provider for every derivative in every mode, and write the table: ``make grid``."""

import argparse
import datetime
import importlib.metadata
import multiprocessing
import os
import platform
import re
import sys
import warnings
from collections import defaultdict
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch

from manual_mlp import activations
from modes import COLUMNS, FEW, GROUPS, LIMITS, MODES
from modes.compiled import judge_compiled
from modes.judge import OUTCOMES, Verdict, judge
from modes.providers import losses
from modes.subjects import SUBJECTS, WITHOUT_ACTIVATION, Subject

OURS, TORCHS = "manual_mlp", "nn.Linear + activation"
COMPILED_OURS, COMPILED_TORCHS = f"{OURS}, compiled", f"{TORCHS}, compiled"
PACKAGES = "onnx", "onnxscript", "onnxruntime", "triton", "liger-kernel", "cut-cross-entropy"
INDUCTOR = ("dense", "relu"), ("dense", "gelu")
OUTPUT = Path(__file__).parent.parent / "docs" / "modes.md"


@dataclass(frozen=True)
class Case:
    """Hold a verdict, and of whom it is."""

    subject: str
    activation: str
    verdict: Verdict


Row = dict[str, list[Case]]


@cache
def subjects(quick: bool) -> list[Subject]:
    """List the layers and losses with each activation."""
    chosen = FEW if quick else activations.names()
    return [
        make(name)
        for subject, make in SUBJECTS.items()
        for name in (("identity",) if subject in WITHOUT_ACTIVATION else chosen)
    ]


@cache
def fused() -> dict[str, Subject]:
    return losses()


def quiet() -> None:
    """Silence a worker: torch prints and logs what it cannot compile."""
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    with open(os.devnull, "w") as nowhere:
        os.dup2(nowhere.fileno(), sys.stdout.fileno())
        os.dup2(nowhere.fileno(), sys.stderr.fileno())


def fill(name: str, quick: bool, device: str, columns: bool = True) -> Row:
    """Judge every provider in one mode, and those of the columns that are compiled first."""
    mode, row = MODES[name], defaultdict(list)
    for subject in subjects(quick):
        if mode.compiles and not (compiles(name, subject) and (not quick or is_quick(subject))):
            continue
        for provider, candidate in ((OURS, subject), (TORCHS, subject.of_torch())):
            row[provider].append(Case(subject.name, subject.activation, judge(mode, candidate, device)))
        if columns and not mode.compiles and is_compiled(subject):
            verdicts = judge_compiled(mode, subject, device)
            for provider, verdict in zip((COMPILED_OURS, COMPILED_TORCHS), verdicts, strict=True):
                row[provider].append(Case(subject.name, subject.activation, verdict))
    for provider, subject in fused().items():
        row[provider].append(Case("", "", judge(mode, subject, device)))
    return dict(row)


def compiles(name: str, subject: Subject) -> bool:
    """Tell whether a slow mode runs a subject."""
    if "inductor" in name:
        return subject.name == "linear_cross_entropy" or (subject.name, subject.activation) in INDUCTOR
    return subject.name in ("dense", *WITHOUT_ACTIVATION) or subject.activation in ("tanh", "silu")


def is_quick(subject: Subject) -> bool:
    """Tell whether --quick compiles a subject too."""
    return subject.name == "dense" or is_compiled(subject)


def is_compiled(subject: Subject) -> bool:
    """Tell whether a subject is compiled in the modes that compile nothing themselves."""
    return subject.name in COLUMNS and subject.activation in ("identity", "silu")


def allowed(name: str, case: Case) -> bool:
    """Tell whether docs/limits.md lets ours answer this."""
    names, message = LIMITS.get(name, ((), ""))
    return case.verdict.outcome == "equal" or (
        case.verdict.outcome == "raises"
        and case.activation in names
        and re.search(message, case.verdict.detail) is not None
    )


def worst(cases: list[Case]) -> Verdict:
    """Find the worst verdict."""
    return max((case.verdict for case in cases), key=lambda v: (OUTCOMES.index(v.outcome), v.error))


def notes(cases: list[Case], total: int) -> list[str]:
    """Say who is not equal and why: one note for each message."""
    who: dict[tuple[str, str], list[Case]] = defaultdict(list)
    for case in cases:
        if case.verdict.outcome != "equal":
            who[case.verdict.outcome, case.verdict.detail].append(case)
    lines = []
    for (outcome, detail), several in sorted(who.items()):
        names = list(dict.fromkeys(case.activation for case in several if case.activation))
        layers = list(dict.fromkeys(case.subject for case in several if case.subject))
        share = f"{len(several)} of {total}" if total > 1 else ""
        of = "; ".join(filter(None, (share, _list(layers), _list(names))))
        lines.append(f"{outcome}{f' ({of})' if of else ''}{': ' + _short(detail) if detail else ''}")
    return lines


def _list(names: list[str]) -> str:
    return ", ".join(names[:6]) + (f" and {len(names) - 6} more" if len(names) > 6 else "")


def _short(message: str) -> str:
    message = re.sub(r"/\S*/(?=\w+\.onnx)", "", re.sub(r"\x1b\[\d*m", "", message))
    return message if len(message) <= 200 else message[:197] + "..."


def cell(cases: list[Case]) -> str:
    """Word a cell: the worst outcome, and how many share it."""
    if not cases:
        return "–"
    verdict = worst(cases)
    if verdict.outcome == "equal":
        both = all(case.verdict.detail.startswith("both raise") for case in cases)
        return "equal: both raise" if both else "equal"
    several = sum(case.verdict.outcome == verdict.outcome for case in cases)
    error = f" {verdict.error:.0e}" if verdict.error != 0 else ""
    return f"{verdict.outcome}{error}{f', {several} of {len(cases)}' if len(cases) > several else ''}"


def providers_of(rows: dict[str, Row]) -> list[str]:
    """List the providers that any row has, in their order."""
    found = {provider for row in rows.values() for provider in row}
    ordered = [OURS, TORCHS, COMPILED_OURS, COMPILED_TORCHS, *fused()]
    return [provider for provider in ordered if provider in found]


def page(rows: dict[str, Row], quick: bool, device: str) -> str:
    """Write the table in Markdown, with a note for every cell that is not equal."""
    providers = providers_of(rows)
    numbers: dict[str, dict[str, int]] = {provider: {} for provider in providers}
    table: list[str] = []
    for group, modes in GROUPS.items():
        names = [mode.name for mode in modes if mode.name in rows]
        if not names:
            continue
        table += ["", f"## {group}", "", f"| mode | {' | '.join(providers)} |", "|---" * (len(providers) + 1) + "|"]
        for name in names:
            words = []
            for k, provider in enumerate(providers):
                cases = rows[name].get(provider, [])
                marks = [
                    f"{chr(ord('a') + k)}{numbers[provider].setdefault(note, len(numbers[provider]) + 1)}"
                    for note in notes(cases, len(cases))
                ]
                text = cell(cases)
                words.append(" ".join([text.replace("WRONG", "**WRONG**"), *marks]))
            table.append(f"| {name} | {' | '.join(words)} |")
    below = ["", "## Notes"]
    for k, provider in enumerate(providers):
        if numbers[provider]:
            below += ["", f"**{provider}**", ""]
            below += [f"- {chr(ord('a') + k)}{number}: {note}" for note, number in numbers[provider].items()]
    return "\n".join([*_preface(rows, quick, device), *table, *below]) + "\n"


def _preface(rows: dict[str, Row], quick: bool, device: str) -> list[str]:
    chosen = f"{len(FEW) if quick else len(activations.names())} activations"
    total = sum(len(cases) for row in rows.values() for cases in row.values())
    versions = [f"torch {torch.__version__}", f"Python {platform.python_version()}", _device_name(device)]
    installed = {item.name.lower(): item.version for item in importlib.metadata.distributions()}
    versions += [f"{package} {installed[package]}" for package in PACKAGES if package in installed]
    return [
        "# Every mode of differentiation",
        "",
        f"Written by `make grid` on {datetime.date.today()}: {', '.join(versions)}. {total:,} comparisons.",
        "",
        "How to read it: a row is one way of asking PyTorch for a derivative, and a cell is the worst that came of it; "
        f"for `{OURS}` and `{TORCHS}` over {', '.join(f'`{name}`' for name in SUBJECTS)} and {chosen}.",
        "",
        "- *equal*: the truth's answer, which is computed by elementary operations in float64: within 1e-9, or, under "
        "autocast, with a mean error of at most twice torch's own. *both raise*: torch refuses, and so does the "
        "candidate.",
        "- *raises*: an error, where torch's elementary operations have an answer.",
        "- *detached*: no gradient, or a result that cannot be differentiated further although the truth's can.",
        "- **WRONG**: another answer, without an error. The number is the largest error, relative to 1 + the largest "
        "entry of the truth.",
        "",
        "The compiled modes and the exports are slow: they run every activation with `dense` alone, tanh and silu with "
        "the others; inductor runs relu and gelu with `dense`, and `linear_cross_entropy`.",
        "",
        f"`{COMPILED_OURS}` and `{COMPILED_TORCHS}` are compiled before a mode that compiles nothing itself asks them: "
        f"{', '.join(f'`{name}`' for name in COLUMNS)}, with silu. That both raise the same is no fault there.",
        "",
        "Under two levels of forward mode, functionalize, a transform inside torch.compile, an export, over a tensor's "
        f"class, in a function mode, and where grad mode is off, `{OURS}` hands over to torch's own operations on "
        "purpose: those rows show that it does.",
    ]


def _device_name(device: str) -> str:
    if device == "cpu":
        return f"CPU ({platform.machine()})"
    return torch.cuda.get_device_name(device)


def show(rows: dict[str, Row]) -> None:
    """Print the table on the terminal."""
    providers = providers_of(rows)
    lines = [
        ["", *providers],
        *([name, *(cell(row.get(provider, [])) for provider in providers)] for name, row in rows.items()),
    ]
    widths = [max(map(len, column)) + 2 for column in zip(*lines, strict=True)]
    for line in lines:
        print("".join(text.ljust(width) for text, width in zip(line, widths, strict=True)).rstrip())


def main() -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, default=OUTPUT, help="where the page is written")
    parser.add_argument("--quick", action="store_true", help=f"{', '.join(FEW)} instead of every activation")
    parser.add_argument("--mode", default="", help="only the modes whose name contains this")
    parser.add_argument(
        "--compiled",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="also the modes that compile, and the columns of what is compiled first, which take long",
    )
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="processes at once")
    args = parser.parse_args()

    names = [name for name, mode in MODES.items() if args.mode in name and (args.compiled or not mode.compiles)]
    if not names:
        parser.error(f"no mode's name contains {args.mode!r}")
    if args.device == "cuda" and not torch.cuda.is_available():
        parser.error("expected a CUDA device for --device cuda, got none")
    if args.jobs < 1:
        parser.error(f"expected --jobs to be at least 1, got {args.jobs}")
    # The slow ones first, so that no process is left with them at the end.
    order = sorted(names, key=lambda name: not MODES[name].compiles)
    done: dict[str, Row] = {}
    with ProcessPoolExecutor(args.jobs, multiprocessing.get_context("spawn"), quiet) as pool:
        work = {pool.submit(fill, name, args.quick, args.device, args.compiled): name for name in order}
        for future in as_completed(work):
            done[work[future]] = future.result()
            if sys.stderr.isatty():
                print(f"\r{len(done)} of {len(names)} modes", end="", file=sys.stderr, flush=True)
    if sys.stderr.isatty():
        print(file=sys.stderr)
    rows = {name: done[name] for name in names}

    show(rows)
    args.output.parent.mkdir(parents=True, exist_ok=True)
    args.output.write_text(page(rows, args.quick, args.device))
    print(f"\nwritten to {args.output}")
    faults = 0
    for name, row in rows.items():
        for provider in (OURS, COMPILED_OURS):
            bad = [case for case in row.get(provider, []) if not allowed(name, case)]
            faults += len(bad)
            for note in notes(bad, len(row.get(provider, []))):
                print(f"{provider}, {name}: {note}", file=sys.stderr)
    return int(faults > 0)


if __name__ == "__main__":
    sys.exit(main())
