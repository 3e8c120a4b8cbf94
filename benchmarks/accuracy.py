"""The accuracy of train.py's defaults on the test images: ``python -m benchmarks train --accuracy mnist``.

Each seed is a run of the trainer of train.py with no flag but ``--dataset`` and ``--seed``; the network is judged once,
after its last step. Each row of the JSON holds: dataset, accuracy ([mean, min, max], %), accuracies (of each seed),
seeds, seconds (of training, [median, min, max]), epochs, threads.
"""

import argparse
import statistics
import time
from collections.abc import Sequence
from typing import Any

import torch

from benchmarks import command, literature, machine
from benchmarks.images import few
from manual_mlp.training.config import Config

DATASETS = ("mnist", "fashion-mnist", "digits")


def measure(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Train on each set of images with each seed; return a row a set."""
    rows, flags = [], {"data_dir": options.data_dir, "epochs": 1 if options.tiny else Config.epochs}
    for dataset in options.accuracy:
        found = [
            literature.fit(Config(dataset=dataset, seed=seed, **flags), options.device) for seed in range(options.seeds)
        ]
        accuracies = [100 * trainer.evaluate(data.read_test()).accuracy for trainer, data, _ in found]
        seconds = [seconds for *_, seconds in found]
        rows.append(
            {
                "dataset": dataset,
                "accuracy": [statistics.mean(accuracies), min(accuracies), max(accuracies)],
                "accuracies": accuracies,
                "seeds": options.seeds,
                "seconds": [statistics.median(seconds), min(seconds), max(seconds)],
                "epochs": flags["epochs"],
                "threads": torch.get_num_threads(),
            }
        )
    return rows


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Lay out accuracy and seconds: a line a set of images."""
    titles = ("images", "seeds", "epochs", "test accuracy, mean [min, max], %", "training, s")
    return command.table(
        titles,
        [
            (
                row["dataset"],
                str(row["seeds"]),
                str(row["epochs"]),
                command.interval(row["accuracy"], ".2f"),
                command.interval(row["seconds"], ".1f"),
            )
            for row in rows
        ],
    )


def read_options(arguments: Sequence[str]) -> argparse.Namespace:
    """Read the command line."""
    flags = command.Parser(prog="python -m benchmarks train", description="The accuracy of train.py's defaults.")
    flags.add_argument("--accuracy", nargs="+", choices=DATASETS, required=True, metavar="DATASET")
    flags.add_argument("--seeds", type=command.positive_int, help="runs on each (5)")
    command.add_data(flags)
    options = flags.parse_args(arguments)
    command.pick_device(flags, options)
    options.seeds = options.seeds or (1 if options.tiny else 5)
    return options


def main(arguments: Sequence[str]) -> int:
    """Train, print, write."""
    options = read_options(arguments)
    with few(options):
        rows = measure(options)
    print("\nThe defaults of train.py.\n" + table(rows))
    if options.json:
        run = {
            "date": time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()),
            "machine": machine.describe(options.device),
            "settings": command.briefly(options),
            "load": machine.load(),
            "rows": rows,
        }
        print(f"\nwritten: {command.save('accuracy', run, options, 'dataset')}")
    return 0
