"""The literature's MLPs on MNIST: ``python -m benchmarks train --table``.

Each recipe of ``manual_mlp.training.recipes`` is trained with several seeds, by the trainer of train.py, on the images
that it asks for: all 60,000, or Nielsen's 50,000. The network is judged once, after its last step: on the test images,
or on those that were held out where the source reports these. No epoch is chosen by what it is judged on.

With ``--checkpoints`` a run that was stopped goes on from the end of its last epoch, in another call.

With ``--json`` several calls of a day may share the recipes: each adds its rows. A row holds: recipe, source, metric,
reported (%), error (ours, [mean, min, max], %), tolerance (points by which the mean may miss what is reported), reached
(whether it misses by no more), seeds, seconds (of training, [median, min, max]; of a run that went on, as if all its
epochs had been as long as those of its last call), epochs (of_epochs: the recipe's, which ``--epochs`` changes),
threads.
"""

import argparse
import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks import command, machine
from benchmarks.images import few
from benchmarks.tiny import shrunk
from manual_mlp.training import build, state
from manual_mlp.training.config import Config
from manual_mlp.training.data import Data, load
from manual_mlp.training.interrupt import Interrupt
from manual_mlp.training.log import NoLog
from manual_mlp.training.loop import Trainer
from manual_mlp.training.recipes import RECIPES


def flags_of(name: str, options: argparse.Namespace) -> dict[str, Any]:
    """Return the flags of a recipe, with the epochs that are given; in a dry run those of a small network."""
    flags = shrunk(RECIPES[name].flags) if options.tiny else RECIPES[name].flags
    epochs = options.epochs or (1 if options.tiny else flags["epochs"])
    return {**flags, "epochs": epochs}


def train(name: str, seed: int, options: argparse.Namespace) -> tuple[float, float]:
    """Train a recipe; return its error, %, and the seconds of training."""
    recipe, flags = RECIPES[name], flags_of(name, options)
    config = Config(recipe=name, seed=seed, data_dir=options.data_dir, check_every=0, **flags)
    folder = options.checkpoints and options.checkpoints / f"{name}-{config.epochs}-{config.dataset}-{seed}"
    trainer, data, seconds = fit(config, options.device, folder)
    judged = data.validation if recipe.metric == "validation accuracy" else data.read_test()
    return 100 * (1 - trainer.evaluate(judged).accuracy), seconds


def fit(config: Config, device: torch.device, folder: Path | None = None) -> tuple[Trainer, Data, float]:
    """Train as train.py does, without a log; return the trainer, its images, and the seconds of training.

    Args:
        folder: where a checkpoint goes after each epoch, and from where the run goes on if there is one.
    """
    torch.manual_seed(config.seed)
    data = load(config.dataset, config.data_dir, device, config.held_out, config.normalised)
    trainer = Trainer(build.build_model(config, data, device), data, config)
    if folder:
        folder.mkdir(parents=True, exist_ok=True)
        if (folder / state.LAST).exists():
            trainer.resume(folder)
    done, taken = trainer.epoch, folder and folder / "seconds.txt"
    if taken and taken.exists() and done == config.epochs:
        return trainer, data, float(taken.read_text())
    with NoLog() as log:
        seconds = trainer.fit(log, Interrupt(), folder).seconds * config.epochs / max(1, config.epochs - done)
    if taken:
        taken.write_text(str(seconds))
    return trainer, data, seconds


def measure(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Train each recipe with each seed; return a row a recipe."""
    rows = []
    for name in options.recipes:
        recipe = RECIPES[name]
        found = [train(name, seed, options) for seed in range(options.seeds)]
        errors, seconds = zip(*found, strict=True)
        rows.append(
            {
                "recipe": name,
                "source": recipe.source,
                "metric": recipe.metric,
                "reported": recipe.reported,
                "error": [statistics.mean(errors), min(errors), max(errors)],
                "tolerance": recipe.tolerance,
                "reached": statistics.mean(errors) <= recipe.reported_error + recipe.tolerance,
                "seeds": options.seeds,
                "seconds": [statistics.median(seconds), min(seconds), max(seconds)],
                "epochs": flags_of(name, options)["epochs"],
                "of_epochs": recipe.flags["epochs"],
                "threads": torch.get_num_threads(),
                "date": time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()),
                "machine": machine.describe(options.device),
            }
        )
        print(table(rows[-1:]), flush=True)
    return rows


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Lay out what is reported and what came of it: a line a recipe, all as errors."""
    titles = ("recipe", "reported error, %", "ours, mean [min, max], %", "seeds", "epochs", "seconds", "")
    return command.table(
        titles,
        [
            (
                row["recipe"],
                f"{RECIPES[row['recipe']].reported_error:.2f}",
                "{:.2f} [{:.2f}, {:.2f}]".format(*row["error"]),
                str(row["seeds"]),
                str(row["epochs"]) + (f" of {row['of_epochs']}" if row["epochs"] != row["of_epochs"] else ""),
                f"{row['seconds'][0]:.0f}",
                ("reached" if row["reached"] else "missed") + (f" (±{row['tolerance']})" if row["tolerance"] else ""),
            )
            for row in rows
        ],
    )


def read_options(arguments: Sequence[str]) -> argparse.Namespace:
    """Read the command line."""
    flags = command.Parser(prog="python -m benchmarks train", description="The literature's MLPs on MNIST.")
    flags.add_argument("--table", action="store_true", required=True)
    flags.add_argument("--recipes", nargs="+", choices=tuple(RECIPES), metavar="NAME", help="(all but the long ones)")
    flags.add_argument("--seeds", type=command.positive_int, help="runs of each recipe (5)")
    flags.add_argument(
        "--epochs", type=command.positive_int, help="instead of the recipe's; its schedule then ends there"
    )
    flags.add_argument("--checkpoints", type=Path, metavar="DIR", help="runs go on from there")
    command.add_data(flags)
    options = flags.parse_args(arguments)
    command.pick_device(flags, options)
    usual = [name for name, recipe in RECIPES.items() if options.tiny or not recipe.is_long]
    options.recipes, options.seeds = options.recipes or usual, options.seeds or (1 if options.tiny else 5)
    return options


def main(arguments: Sequence[str]) -> int:
    """Train, print, write; return 1 if a reported figure is missed."""
    options = read_options(arguments)
    with few(options):
        rows = measure(options)
    print("\nThe literature's MLPs.\n" + table(rows))
    if options.json:
        run = {
            "date": time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()),
            "machine": machine.describe(options.device),
            "settings": command.briefly(options),
            "load": machine.load(),
            "rows": rows,
        }
        print(f"\nwritten: {command.save('literature', run, options, 'recipe')}")
    return int(not options.tiny and not all(row["reached"] for row in rows))
