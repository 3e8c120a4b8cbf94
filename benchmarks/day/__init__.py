"""The day on a GPU, as one command: everything that waits for one runs, and is kept.

Each stage of ``benchmarks/day/stages.py`` is a process of its own with a limit in seconds, and fails alone. What it
writes goes into a log; what it measures into the results, under its own command's name; and after each of them what
became of the stages is written there too, under ``day``. ``--device cpu --tiny`` is the dry run: the same code, in a
few minutes.

Each row of the JSON holds: stage; command; limit and seconds (that it may take, and took); status (ok; failed; out of
time; left out); why (of the last three); of stages that run tests outcomes (how many PASSED, FAILED, …) and failures
(the names of those that failed).
"""

import argparse
import re
import shlex
import sys
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks import command, machine
from benchmarks.day import process
from benchmarks.day.stages import NAMES, STAGES, Stage, duration

LOGS = process.ROOT / "runs" / "day"
MOST_WORKERS = 14
BYTES_OF_A_WORKER = 2 << 30  # of the GPU's memory, most of it CUDA's own
OUTCOME = re.compile(r"\[gw\d+\] \[ *\d+%\] ([A-Z]+) (.+?)\s*$|(ERROR) (\S+\.py)")
BAD = ("failed", "out of time")


def read_options(arguments: Sequence[str]) -> argparse.Namespace:
    """Read the command line."""
    flags = command.Parser(prog="python -m benchmarks day", description="All that waits for a GPU, stage by stage.")
    flags.add_argument("--list", action="store_true", help="print the stages, their limits and what they tell")
    part = flags.add_mutually_exclusive_group()
    part.add_argument("--only", nargs="+", choices=NAMES, metavar="STAGE", help="these stages")
    part.add_argument("--from", choices=NAMES, dest="first", metavar="STAGE", help="this stage, and those after it")
    flags.add_argument("--long", action="store_true", help="also what takes hours")
    flags.add_argument("--seconds", type=command.positive_seconds, help="of all stages together (the sum of limits)")
    flags.add_argument("--logs", type=Path, default=LOGS, metavar="DIR", help="what the stages say, and checkpoints")
    command.add_data(flags)
    flags.set_defaults(json=True, results=None)
    options = flags.parse_args(arguments)
    options.stages = chosen(options)
    if options.list:
        return options
    if options.device is None and not torch.cuda.is_available():
        flags.error("expected a CUDA device, and torch finds none; a dry run: --device cpu --tiny")
    command.pick_device(flags, options)
    if options.device.type == "cpu" and not options.tiny:
        flags.error("--device cpu: expected --tiny with it, for a dry run")
    if options.logs.exists() and not options.logs.is_dir():
        flags.error(f"--logs: expected a directory, got the file {options.logs}")
    # What is no measurement stays out of the results that are kept.
    options.results = options.results or (options.logs if options.tiny else command.RESULTS)
    options.seconds = options.seconds or sum(stage.limit for stage in options.stages)
    for name in ("data_dir", "logs", "results"):
        setattr(options, name, getattr(options, name).absolute())
    return options


def chosen(options: argparse.Namespace) -> list[Stage]:
    """List the stages that are asked for; by name, the long ones too."""
    if options.only:
        return [stage for stage in STAGES if stage.name in options.only]
    rest = STAGES[NAMES.index(options.first) if options.first else 0 :]
    return [stage for stage in rest if options.long or not stage.long or stage.name == options.first]


def workers(device: torch.device) -> int:
    """Count the processes that run tests: no more than cores, and than fit beside each other on the GPU."""
    most = min(MOST_WORKERS, machine.cores())
    if device.type == "cuda":
        most = min(most, torch.cuda.get_device_properties(device).total_memory // BYTES_OF_A_WORKER)
    return max(1, most)


def command_of(stage: Stage, options: argparse.Namespace, told: bool = False) -> str:
    """Write the command of a stage out; one that is told names no folder of this machine."""
    kind = options.device.type
    measured = f"--device {kind} --json" + (" --tiny" if options.tiny else "")
    folders = {"results": options.results, "data": options.data_dir, "logs": options.logs}
    at = {name: name.upper() if told else shlex.quote(str(folder)) for name, folder in folders.items()}
    measured += "" if told else f" --results {at['results']}"
    return ((stage.tiny if options.tiny else "") or stage.command).format(
        measured=measured,
        trained=measured + ("" if told else f" --data-dir {at['data']}"),
        device=kind,
        workers=workers(options.device),
        gpus=torch.cuda.device_count() if kind == "cuda" else stage.gpus,
        **at,
    )


def without_folders(text: str) -> str:
    """Leave of each absolute path its last part."""
    return re.sub(r"(?<![\w.:/~-])~?/(?:[^\s/:'\"]+/)*", "", text)


def take(stage: Stage, options: argparse.Namespace, limit: float, interrupt: Any) -> dict[str, Any]:
    """Run a stage; return its row."""
    words = shlex.split(command_of(stage, options))
    row: dict[str, Any] = {"stage": stage.name, "command": command_of(stage, options, told=True), "limit": round(limit)}
    if options.device.type == "cuda" and torch.cuda.device_count() < stage.gpus:
        return row | left_out(f"expected {stage.gpus} GPUs, got {torch.cuda.device_count()}")
    if limit <= 0:
        return row | left_out(f"nothing is left of {duration(options.seconds)}")
    outcomes: Counter[str] = Counter()
    failures: dict[str, None] = {}
    said = ""

    def tell(line: str) -> None:
        nonlocal said
        said = line if line.strip() and not line.startswith("written: ") else said
        found = OUTCOME.match(line) if "pytest" in words else None
        if found:
            outcome, name = found[1] or found[3], found[2] or found[4]
            outcomes[outcome] += bool(found[1])
            if outcome in ("FAILED", "ERROR") and name not in failures:
                failures[name] = None
                print(f"  {outcome} {name}", flush=True)

    log = options.logs / f"{stage.name}.log"
    ended = process.run(words[1:], log, limit, tell, lambda: interrupt.signal)
    row["seconds"] = round(ended.seconds, 1)
    if "pytest" in words:
        row |= {"outcomes": dict(outcomes), "failures": list(failures)}
    if ended.status == 0:
        return row | {"status": "ok"}
    if ended.status is not None:
        return row | {"status": "failed", "why": f"exit status {ended.status}: {without_folders(said.strip())[:200]}"}
    if interrupt.signal:
        return row | {"status": "failed", "why": "interrupted"}
    return row | {"status": "out of time", "why": f"stopped after {duration(limit)}"}


def left_out(why: str) -> dict[str, Any]:
    """Make the fields of a stage that does not run."""
    return {"seconds": 0.0, "status": "left out", "why": why}


def save(rows: Sequence[dict[str, Any]], options: argparse.Namespace) -> Path:
    """Write what became of the stages beside what they measured; stages of an earlier call of today stay."""
    run = {
        "date": time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()),
        "machine": machine.describe(options.device),
        "settings": {"quick": options.tiny, "tiny": options.tiny, "seconds": options.seconds},
        "load": machine.load(),
        "rows": list(rows),
    }
    return command.save("day", run, options, "stage")


def columns(lines: Sequence[Sequence[str]]) -> str:
    """Align all columns to the left, but for the last, which is a text."""
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)][:-1]
    return "\n".join("  ".join((*map(str.ljust, line, widths), line[-1])).rstrip() for line in lines)


def listed() -> str:
    """Lay out the stages: a line each."""
    return columns([(s.name, duration(s.limit), "long" if s.long else "", s.tells) for s in STAGES])


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Lay out what became of the stages: a line each."""
    lines = []
    for row in rows:
        tests = ", ".join(f"{count} {outcome.lower()}" for outcome, count in row.get("outcomes", {}).items())
        told = "; ".join(filter(None, (tests, row.get("why"))))
        lines.append((row["stage"], row["status"], f"{row['seconds']:.0f} of {row['limit']} s", told))
    return columns(lines)


def main(arguments: Sequence[str]) -> int:
    """Run the stages; return 1 if any failed or was out of time, or 128 and the signal that ended them."""
    options = read_options(arguments)
    if options.list:
        print(listed())
        return 0
    from manual_mlp.training.interrupt import Interrupt

    options.logs.mkdir(parents=True, exist_ok=True)
    most = sum(stage.limit for stage in options.stages)
    print(f"{len(options.stages)} stages, at most {duration(min(most, options.seconds))}", flush=True)
    began, end = time.time() - 1, time.monotonic() + options.seconds
    rows: list[dict[str, Any]] = []
    with Interrupt() as interrupt:
        for stage in options.stages:
            print(f"{stage.name}: at most {duration(stage.limit)}", flush=True)
            row = take(stage, options, min(stage.limit, end - time.monotonic()), interrupt)
            rows.append(row)
            path = save(rows, options)
            print(f"  {row['status']}, {row['seconds']:.0f} s  {row.get('why', '')}".rstrip(), flush=True)
            if interrupt.signal:
                break
    # A day that goes on after midnight has two files.
    files = sorted(file for file in {path, *path.parent.glob("*.json")} if file.stat().st_mtime >= began)
    print(f"\n{table(rows)}\n\nto be sent: {', '.join(map(str, files))}")
    bad = [row["stage"] for row in rows if row["status"] in BAD]
    if bad:
        print(f"and of what failed: {', '.join(str(options.logs / f'{name}.log') for name in bad)}")
    if interrupt.signal:
        print(f"to go on: the same command with --from {rows[-1]['stage']}", file=sys.stderr)
    return interrupt.exit_status or int(bool(bad))
