"""Training with and without ``--cuda-graph``, on the same seeds: ``python -m benchmarks train --cuda-graph``.

Each run is the trainer of train.py, without a log, and the two take turns; what comes first, and sets CUDA up, does not
count. Accuracy is on the test images, after the last step.

Each row of the JSON holds: case; flags (of train.py); cuda_graph (whether steps were captured); seeds; steps; seconds
(of training, the capture included, [median, min, max]); accuracy ([mean, min, max], %); ratio (of the median seconds,
without a graph over it). Where the trainer refuses, left_out says why instead of the last four.
Beside the rows: quicker (the cases in which a graph is quicker, and as accurate).
"""

import argparse
import statistics
import time
from collections.abc import Sequence
from typing import Any

from benchmarks import command, literature, machine
from benchmarks.images import few
from benchmarks.tiny import shrunk
from manual_mlp.training.config import Config
from manual_mlp.training.errors import InputError

# From what Python keeps waiting most to what the GPU is busy with.
CASES: dict[str, dict[str, Any]] = {
    "small": {"hidden": (128,), "batch_size": 64},
    "defaults": {},
    "bf16": {"precision": "bf16", "batch_size": 512, "epochs": 10},
    "deformed": {"rotation": 15.0, "scaling": 0.15, "shear": 10.0, "translation": 1.0},
    "wide": {"hidden": (2500, 2000, 1500, 1000, 500), "precision": "bf16", "batch_size": 1024},
}


def run(flags: dict[str, Any], seed: int, graph: bool, options: argparse.Namespace) -> dict[str, Any]:
    """Train; return steps, seconds and accuracy (%), or why the trainer refuses, in a line."""
    given = shrunk(flags) | {"epochs": 1} if options.tiny else flags
    about = {"dataset": "mnist", "data_dir": options.data_dir, "held_out": 0, "check_every": 0}
    config = Config(seed=seed, cuda_graph=graph, **about, **given)
    try:
        trainer, data, seconds = literature.fit(config, options.device)
    except InputError as error:
        return {"left_out": str(error)}
    accuracy = 100 * trainer.evaluate(data.read_test()).accuracy
    return {"steps": trainer.step, "seconds": seconds, "accuracy": accuracy}


def typed(flags: dict[str, Any]) -> str:
    """Write flags as they are typed."""
    values = {name: value if isinstance(value, tuple) else (value,) for name, value in flags.items()}
    return " ".join(" ".join([f"--{name.replace('_', '-')}", *map(str, value)]) for name, value in values.items())


def measure(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Train with every case and seed, without a graph and with one in turn; return a row for each of the two."""
    rows = []
    for done, (case, flags) in enumerate(CASES.items(), 1):
        runs: dict[bool, list[dict[str, Any]]] = {False: [], True: []}
        for graph in runs:
            run(flags | {"epochs": 1}, 0, graph, options)
        for seed in range(options.seeds):
            for graph, of in runs.items():
                of.append(run(flags, seed, graph, options))
        about = {"case": case, "flags": typed(flags), "seeds": options.seeds}
        rows += [about | {"cuda_graph": graph} | summary(of, runs[False]) for graph, of in runs.items()]
        command.progress(done, len(CASES), case)
    return rows


def summary(runs: Sequence[dict[str, Any]], base: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Bring the runs of all seeds together, against those without a graph; one that was refused stands for all."""
    refused = [each for each in (*runs, *base) if "left_out" in each]
    if refused:
        return refused[0]
    seconds, accuracy = ([each[name] for each in runs] for name in ("seconds", "accuracy"))
    median = statistics.median(seconds)
    return {
        "steps": runs[0]["steps"],
        "seconds": [median, min(seconds), max(seconds)],
        "accuracy": [statistics.mean(accuracy), min(accuracy), max(accuracy)],
        "ratio": statistics.median(each["seconds"] for each in base) / median,
    }


def quicker(rows: Sequence[dict[str, Any]]) -> list[str]:
    """List the cases in which a graph is quicker, and its mean accuracy no less than the least without one."""
    pairs = [(of, with_graph) for of, with_graph in zip(rows[::2], rows[1::2], strict=True) if "ratio" in with_graph]
    return [
        of["case"]
        for of, with_graph in pairs
        if with_graph["ratio"] > 1 and with_graph["accuracy"][0] >= of["accuracy"][1]
    ]


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Lay out seconds and accuracy: a line a row."""
    titles = ("case", "graph", "seeds", "steps", "training, s", "test accuracy, %", "without over it", "")
    lines = []
    for row in rows:
        told = ("–", "–", "–", "–", row["left_out"]) if "left_out" in row else (
            f"{row['steps']:,}", command.interval(row["seconds"], ".2f"), command.interval(row["accuracy"], ".2f"),
            f"{row['ratio']:.2f}", "",
        )  # fmt: skip
        lines.append((row["case"], "yes" if row["cuda_graph"] else "no", str(row["seeds"]), *told))
    return command.table(titles, lines)


def read_options(arguments: Sequence[str]) -> argparse.Namespace:
    """Read the command line."""
    flags = command.Parser(prog="python -m benchmarks train", description="Training with and without --cuda-graph.")
    flags.add_argument("--cuda-graph", action="store_true", required=True)
    flags.add_argument("--seeds", type=command.positive_int, help="runs of each (5)")
    command.add_data(flags)
    options = flags.parse_args(arguments)
    command.pick_device(flags, options)
    options.seeds = options.seeds or (1 if options.tiny else 5)
    return options


def main(arguments: Sequence[str]) -> int:
    """Train, print, write; return 1 where the trainer refuses a graph on a GPU, or to train at all."""
    options = read_options(arguments)
    with few(options):
        rows = measure(options)
    print("\nTraining with and without --cuda-graph.\n" + table(rows))
    found = quicker(rows)
    print(f"\nquicker with a graph, and as accurate: {', '.join(found) or 'none'} of {', '.join(CASES)}")
    if options.json:
        run = {
            "date": time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()),
            "machine": machine.describe(options.device),
            "settings": {"seeds": options.seeds, **command.briefly(options)},
            "load": machine.load(),
            "rows": rows,
            "quicker": found,
        }
        print(f"\nwritten: {command.save('cuda-graph', run, options)}")
    return int(any("left_out" in row and (options.device.type == "cuda" or not row["cuda_graph"]) for row in rows))
