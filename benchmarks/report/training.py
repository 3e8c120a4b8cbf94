"""Tables of training: steps with an optimiser, accuracies, the time to one, and the literature's MLPs."""

import re

from benchmarks.command import interval
from benchmarks.layers import BASELINE, OURS
from benchmarks.machine import brief
from benchmarks.network.providers import AUTOGRAD
from benchmarks.report.runs import CPU, Run
from benchmarks.report.tables import first, grouped, markdown, pair, ratio
from manual_mlp.training.recipes import RECIPES

TIMES = ("time-to-98", "time-to-98.4", "time-to-99")
TRAINERS = {
    OURS: "train.py, no TensorBoard",
    "logged": "train.py",
    BASELINE: "nn.Linear, the same loop",
    "DataLoader": "nn.Linear, DataLoader",
}


def train(run: Run) -> str:
    """Lay out training steps: a line for each case and optimiser."""
    lines = [
        (
            case,
            optimiser,
            f"{first(of)['providers'][BASELINE]['steps_per_second']:,.0f}",
            *(pair(of, threads, ratio(name)) for name in (OURS, AUTOGRAD) for threads in (1, 2)),
        )
        for (case, optimiser), of in grouped(run["rows"], "case", "optimiser").items()
    ]
    titles = ("network", "optimiser", "torch steps/s", "1 thread", "2 threads", "autograd path: 1", "2")
    return markdown(titles, lines)


def accuracy(run: Run) -> str:
    """Lay out the defaults of train.py: a line a set of images."""
    lines = [
        (
            row["dataset"],
            ", ".join(f"{one:.2f}" for one in row["accuracies"]),
            f"{row['accuracy'][0]:.2f}",
            interval(row["seconds"], ".1f"),
        )
        for row in run["rows"]
    ]
    return markdown(("images", "test accuracy of each seed, %", "mean, %", "training, s: median [min, max]"), lines)


def on(machine: Run, threads: int) -> str:
    """Name a machine in a cell: a GPU, or a CPU with the threads it used."""
    return f"{brief(machine['cpu'])}, {threads}" if machine["device"] == CPU else str(machine["device"])


def time_to(*runs: Run) -> str:
    """Lay out the time to an accuracy: a line for each goal, machine and provider; one machine is not named."""
    rows = [(row, on(run["machine"], row["threads"])) for run in runs for row in run["rows"]]
    devices = {run["machine"]["device"] for run in runs}
    lines = [
        (
            f"{row['goal']:g} %",
            machine if len(devices) > 1 else "–",
            TRAINERS[row["provider"]],
            str(row["seeds"]),
            interval(row["accuracy"], ".2f"),
            interval(row["seconds"], ".2f"),
            interval(row["ready"], ".1f"),
        )
        for row, machine in sorted(rows, key=lambda found: found[0]["goal"])
    ]
    titles = (
        "goal", "machine, threads", "trained by", "seeds", "test accuracy, %", "training, s", "start to first batch, s",
    )  # fmt: skip
    return markdown(titles, lines)


def literature(run: Run) -> str:
    """Lay out the literature's MLPs: a line a recipe, all figures as errors."""
    rows, lines = {row["recipe"]: row for row in run["rows"]}, []
    for name, recipe in RECIPES.items():
        if name not in rows:
            continue
        row = rows[name]
        epochs, machine = row["epochs"], row["machine"]
        source, year = re.match(r"([^ ,]+).*?(\d{4})", recipe.source).groups()
        widths = "-".join(map(str, recipe.flags["hidden"]))
        lines.append(
            (
                f"`{name}`",
                f"{source} {year}",
                widths,
                f"{recipe.reported_error:.2f}",
                "{:.2f} [{:.2f}, {:.2f}]".format(*row["error"]),
                str(row["seeds"]),
                f"{epochs}" if epochs == row["of_epochs"] else f"{epochs} of {row['of_epochs']}",
                f"{row['seconds'][0]:.0f}",
                on(machine, row["threads"]),
            )
        )
    titles = ("recipe", "source", "hidden", "its error, %", "ours: mean [min, max]", "seeds", "epochs", "seconds")
    return markdown((*titles, "machine, threads"), lines)
