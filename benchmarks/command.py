"""What every command shares: its flags, its tables, its JSON."""

import argparse
import json
import os
import platform
import signal
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import datetime, timezone
from pathlib import Path
from threading import Event
from typing import Any, TypeVar

import torch
from torch import Tensor

from benchmarks import left_out, machine, memory, tiny
from benchmarks.flags import Parser as Parser
from benchmarks.flags import positive_int as positive_int
from benchmarks.flags import positive_seconds
from benchmarks.harness import (
    BLOCK_SECONDS,
    MIN_ROUNDS,
    Layer,
    Step,
    errors,
    fix,
    frozen,
    gradients,
    in_float64,
    now,
    summarise,
    time_rounds,
    training_step,
    wrong,
)
from benchmarks.layout import layout
from benchmarks.layout import table as table

C = TypeVar("C")

RESULTS = Path(__file__).parent / "results"
PARTIAL = Event()  # a run that was stopped has some of its rows
TINY = "all cases and providers, but small, in seconds: it shows that they run, not how fast"
DTYPES = {name: getattr(torch, name) for name in ("float32", "float64", "bfloat16", "float16")}


def parser(command: str, description: str, dtype: bool = True) -> Parser:
    """Make the parser with the flags every command has; ``dtype``: whether all its rows are of one dtype, to choose."""
    flags = Parser(prog=f"python -m benchmarks {command}", description=description)
    flags.add_argument("--json", action="store_true", help="also write <results>/<machine>-<date>.json")
    flags.add_argument("--results", type=Path, default=RESULTS, metavar="DIR", help="where --json writes")
    brief = flags.add_mutually_exclusive_group()
    brief.add_argument("--quick", action="store_true", help="small cases only, less time a row: a look, not a result")
    brief.add_argument("--tiny", action="store_true", help=TINY)
    flags.add_argument("--seconds", type=positive_seconds, help="time a row; --quick 0.2, --tiny 0.001")
    flags.add_argument("--threads", type=positive_int, nargs="+", metavar="N", help="thread counts (1 2)")
    flags.add_argument("--malloc", nargs="+", choices=machine.mallocs(), help="CPU allocators (all)")
    add_device(flags)
    if dtype:
        flags.add_argument("--dtype", choices=tuple(DTYPES), default="float32")
    return flags


def add_data(flags: Parser) -> None:
    """Add the flags of a command that trains on images."""
    add_device(flags)
    flags.add_argument("--data-dir", type=Path, default=Path(os.environ.get("MANUAL_MLP_DATA") or "data"))
    flags.add_argument("--json", action="store_true", help="also write <results>/<machine>-<date>.json")
    flags.add_argument("--results", type=Path, default=RESULTS, metavar="DIR", help="where --json writes")
    flags.add_argument("--tiny", action="store_true", help=f"{TINY}; one seed, an epoch, a few embedded images")


def add_device(flags: Parser) -> None:
    """Add ``--device``, for :func:`pick_device`."""
    flags.add_argument("--device", choices=("cpu", "cuda"), help="cuda where there is one")


def pick_device(flags: Parser, options: argparse.Namespace) -> None:
    """Turn ``--device`` into a device; refuse one that is not there, and results that could not be written."""
    cuda = torch.cuda.is_available()
    if options.device == "cuda" and not cuda:
        flags.error("--device cuda: torch finds no CUDA device here")
    options.device = torch.device(options.device or ("cuda" if cuda else "cpu"))
    if options.json and options.results and options.results.exists() and not options.results.is_dir():
        flags.error(f"--results: expected a directory, got the file {options.results}")


def complete(flags: Parser, options: argparse.Namespace, seconds: float = 2.5) -> None:
    """Fill in the defaults that depend on the machine and on each other; refuse what it cannot do."""
    pick_device(flags, options)
    on_cpu = options.device.type == "cpu"
    if not on_cpu and (options.threads or options.malloc):
        flags.error("--threads and --malloc are for --device cpu")
    cores = machine.cores()
    both = on_cpu and not options.tiny
    options.threads = sorted(set(options.threads or ((1, min(2, cores)) if both else (1,))))
    if options.threads[-1] > cores:
        flags.error(f"--threads: expected at most {cores} (the cores there are), got {options.threads[-1]}")
    options.malloc = tuple(dict.fromkeys(options.malloc or (machine.mallocs() if both else ("default",))))
    options.seconds = options.seconds or (tiny.SECONDS if options.tiny else 0.2 if options.quick else seconds)


def cases_of(
    options: argparse.Namespace, usual: Iterable[C], quick: Iterable[C] = (), given: Iterable[C] | None = None
) -> list[C]:
    """List the cases that are given, or those of ``--quick`` or the usual ones, each once, shrunk with ``--tiny``."""
    cases = dict.fromkeys(given or (options.quick and quick) or usual)
    return [tiny.shrunk(case) if options.tiny else case for case in cases]


def briefly(options: argparse.Namespace) -> dict[str, bool]:
    """Say for the settings of a run whether it is no result."""
    return {"quick": options.tiny or getattr(options, "quick", False), "tiny": options.tiny}


def record(options: argparse.Namespace) -> dict[str, object]:
    """Describe a run: when, on what, how."""
    return {
        "date": datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M UTC"),
        "machine": machine.describe(options.device),
        "settings": {
            "dtype": options.dtype,
            "threads": options.threads,
            "malloc": {name: machine.MALLOCS[name] for name in options.malloc},
            "seconds_a_row": options.seconds,
            "block_seconds": BLOCK_SECONDS,
            "min_rounds": MIN_ROUNDS,
            "flush_denormal": False,
            "tf32": False,
            **briefly(options),
        },
        "load": machine.load(),
    }


def turns(keys: list[C]) -> Iterator[tuple[int, C]]:
    """Number the keys of a run's rows from 1 on; at SIGINT drop those that are left, so that the others are kept."""
    interrupts: list[int] = []
    before = signal.signal(signal.SIGINT, lambda number, _: interrupts.append(number))
    try:
        for done, key in enumerate([*keys], 1):
            if interrupts and done > 1:
                print(f"stopped: {done - 1} of {len(keys)} rows were taken", file=sys.stderr, flush=True)
                del keys[done - 1 :]
                PARTIAL.set()
                return
            yield done, key
    finally:
        signal.signal(signal.SIGINT, before)


def time_row(
    steps: Mapping[str, Step],
    baseline: str,
    options: argparse.Namespace,
    threads: int,
    share: float = 1.0,
    ours: Sequence[str] = (),
) -> dict[str, Any]:
    """Time the steps of a row against each other, for a share of a row's seconds; return the fields every row has."""
    fix(threads)
    start, others = now(), machine.others_seconds()
    timing = time_rounds(steps, share * options.seconds)
    others = max(0.0, machine.others_seconds() - others) / (now() - start)
    load = machine.load()
    found = summarise(timing, baseline, ours, host=options.device.type == "cuda")
    if not sys.stderr.isatty():
        # A log has them even if the run is cut.
        print({name: f"{of['median_us']:.6g} µs" for name, of in found.items()}, file=sys.stderr, flush=True)
    return {
        "threads": threads,
        "load": load,
        "others_cores": others,
        "busy": machine.busy(load, others, options.threads[-1]),
        "number": timing.number,
        "rounds": len(timing.seconds[baseline]),
        "providers": found,
    }


def check_row(
    row: dict[str, Any],
    layers: Mapping[str, Layer],
    baseline: str,
    tensors: dict[str, Tensor],
    cotangent: Tensor,
) -> None:
    """Add to a row what does not depend on time: errors against float64, bytes kept, peak bytes."""
    truth = gradients(layers[baseline], in_float64(tensors), cotangent.double())
    for name, layer in layers.items():
        provider = row["providers"][name]
        provider["error"] = errors(gradients(layer, tensors, cotangent), truth)
        provider["kept_bytes"] = memory.kept_bytes(layer, tensors)
        step = training_step(layer, tensors, cotangent)
        provider["peak_bytes"] = memory.peak_bytes(step, tensors.values(), cotangent.device)
    judge(row, baseline)


def judge(row: dict[str, Any], baseline: str, slack: Mapping[str, float] | None = None) -> None:
    """Add to each provider of a row whether its errors are wrong beside the baseline's."""
    for provider in row["providers"].values():
        provider["wrong"] = wrong(provider["error"], row["providers"][baseline]["error"], slack)


def take_rows(
    measure: Callable[[argparse.Namespace, str], tuple[list[dict[str, Any]], dict[int, dict[str, float]]]],
    options: argparse.Namespace,
) -> tuple[list[dict[str, Any]], dict[str, dict[int, dict[str, float]]]]:
    """Measure under every malloc; return the rows, those of one case together, and the ceilings, which are printed."""
    taken, limits = [], {}
    for malloc in options.malloc:
        measured, limits[malloc] = machine.under_malloc(malloc, frozen, measure, options, malloc)
        taken.append(measured)
        for threads, limit in limits[malloc].items():
            print(
                "ceilings, {0} malloc, {1} threads: products {gflops:.0f} GFLOP/s, copy {copy_gbs:.1f} GB/s, "
                "an empty autograd call {empty_call_us:.1f} µs, a launch {launch_us:.1f} µs".format(
                    malloc, threads, **limit
                )
            )
    return [row for mallocs in zip(*taken, strict=True) for row in mallocs], limits


def share_checks(rows: Sequence[dict[str, Any]], mallocs: int) -> None:
    """Give the rows of every malloc the errors and bytes that were taken under the first."""
    for at, row in enumerate(rows):
        checked = rows[at - at % mallocs]["providers"]
        for name, provider in row["providers"].items():
            row["providers"][name] = checked.get(name, {}) | provider


def whole_run(
    command: str,
    measure: Callable[[argparse.Namespace, str], tuple[list[dict[str, Any]], dict[int, dict[str, float]]]],
    options: argparse.Namespace,
) -> dict[str, Any]:
    """Measure under every malloc and describe it all; say what is run, and what is left out."""
    run: dict[str, Any] = record(options)
    print(heading(command, run, options), flush=True)
    rows, limits = take_rows(measure, options)
    share_checks(rows, len(options.malloc))
    for line in left_out.lines(rows):
        print(line)
    return run | {"ceilings": limits, "rows": rows}


def interval(estimate: Sequence[float], spec: str) -> str:
    """Write a median with its interval."""
    value, low, high = (format(number, spec) for number in estimate)
    return f"{value} [{low}, {high}]"


def notes(row: Mapping[str, Any]) -> str:
    """Mark a row that is wrong or was taken under load."""
    found = [f"WRONG {name}" for name, provider in row["providers"].items() if provider.get("wrong")]
    if row["busy"]:
        found.append(f"load {row['load']:.1f}, others {row['others_cores']:.1f} cores")
    return ", ".join(found)


def any_wrong(rows: Sequence[dict[str, Any]], names: Sequence[str] = ()) -> bool:
    """Tell whether any provider of any row is wrong, or any of those named."""
    found = (item for row in rows for item in row["providers"].items())
    return any(provider["wrong"] for name, provider in found if not names or name in names)


def save(command: str, run: dict[str, Any], options: argparse.Namespace, key: str | None = None) -> Path:
    """Write the run under its command's name into this machine's file of today, beside the other commands.

    With a key, rows of an earlier run of today stay where this one has none of that key.
    """
    date = datetime.now(timezone.utc).strftime("%Y-%m-%d")
    if PARTIAL.is_set():
        run = run | {"settings": run["settings"] | {"partial": True}}
    path: Path = options.results / f"{machine.slug(options.device)}-{date}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    whole = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    if key and command in whole:
        new = {row[key] for row in run["rows"]}
        run = run | {"rows": [*(row for row in whole[command]["rows"] if row[key] not in new), *run["rows"]]}
    path.write_text(layout(whole | {command: {"command": options.command, **run}}) + "\n", encoding="utf-8")
    return path


def heading(command: str, run: dict[str, object], options: argparse.Namespace) -> str:
    """Say in one line what was run, on what and when."""
    hardware = machine.describe(options.device)
    where = f"{hardware['device']}, {hardware['cpu']}, {hardware['cores']} cores"
    return (
        f"{command}: {options.dtype}, {where}, torch {torch.__version__}, python {platform.python_version()}, "
        f"{run['date']}, load {run['load']:.2f}"
    )


def progress(done: int, total: int, what: str) -> None:
    """Show how far a run is: on a terminal over what was there, into a log as a line."""
    begin, end = ("\x1b[2K", "\r" if done < total else "\n") if sys.stderr.isatty() else ("", "\n")
    print(f"{begin}[{done}/{total}] {what}", end=end, file=sys.stderr, flush=True)
