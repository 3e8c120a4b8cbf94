"""Time to an accuracy: ``python -m benchmarks train --time-to 98``, on MNIST.

Each seed trains in a process of its own, with the settings of :data:`GOALS` and on all 60,000 images. The test images
are read once, after the last step. Providers:
    manual_mlp: ``manual_mlp.training.Trainer``, which train.py runs, without TensorBoard; on a GPU with --cuda-graph;
    logged: the same with TensorBoard, as train.py runs it;
    torch: the same network in nn.Linear, the same optimiser, schedule and batches, all images in memory; no graph;
    DataLoader: the same by torchvision's MNIST with ToTensor and Normalize, and a DataLoader that shuffles.

Each row of the JSON holds: goal, settings, provider, threads, seeds; accuracy ([mean, min, max], %); reached (whether
the mean is the goal, or above); seconds (of training, from the first batch on) and ready (seconds from the start of the
process to the first batch), both as [median, min, max]; ratio (of the median seconds, torch over it).
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks import command, machine
from benchmarks.harness import now
from benchmarks.images import few
from benchmarks.tiny import shrunk
from manual_mlp import MLP
from manual_mlp.training import build, checkpoint
from manual_mlp.training.config import Config
from manual_mlp.training.data import Data, load
from manual_mlp.training.errors import InputError
from manual_mlp.training.interrupt import Interrupt
from manual_mlp.training.log import Log, NoLog
from manual_mlp.training.loop import Trainer

Batches = Iterable[tuple[Tensor, Tensor]]

# What reaches an accuracy on the test images quickly; chosen on validation images.
_COMMON: dict[str, Any] = {
    "precision": "bf16",
    "batch_size": 512,
    "betas": (0.8, 0.95),
    "held_out": 0,
    "check_every": 0,
    "shift": 0.0,
}
GOALS: dict[float, dict[str, Any]] = {
    98.0: {**_COMMON, "hidden": (256,), "epochs": 2, "lr": 1.2e-2, "batch_size": 640},
    98.4: {**_COMMON, "hidden": (512,), "epochs": 3, "lr": 8e-3},
    99.0: {
        **_COMMON,
        "hidden": (512, 256),
        "epochs": 12,
        "lr": 6e-3,
        "rotation": 15.0,
        "scaling": 0.15,
        "shear": 10.0,
        "translation": 1.0,
    },
}
PROVIDERS = ("manual_mlp", "logged", "torch", "DataLoader")
_SLOW_SEEDS = 2


def settings(goal: float, tiny: bool) -> dict[str, Any]:
    """Return what a goal is trained with; in a dry run a small network, for an epoch."""
    return {**shrunk(GOALS[goal]), "epochs": 1} if tiny else GOALS[goal]


def train(provider: str, seed: int, device: torch.device, flags: Mapping[str, Any], began: float) -> dict[str, float]:
    """Train once; return accuracy (%), seconds of training, and seconds from ``began`` to the first batch.

    ``flags`` are those of a :class:`Config`, its folder of images among them.
    """
    torch.manual_seed(seed)
    config = Config(seed=seed, dataset="mnist", cuda_graph=_has_graph(provider, device), **flags)
    data = load("mnist", config.data_dir, device, config.held_out)
    model = build.build_model(config, data, device)
    if provider in ("manual_mlp", "logged"):
        trainer, logged = Trainer(model, data, config), provider == "logged"
        with tempfile.TemporaryDirectory() as folder, Log(Path(folder)) if logged else NoLog() as log:
            log.start(checkpoint.settings(config, data), model, data)
            ready = time.time()
            seconds = trainer.fit(log, Interrupt()).seconds
    else:
        ready = time.time()
        seconds = plain_loop(model, config, in_memory(data, config) if provider == "torch" else loader(data, config))
    test = data.read_test()
    model.eval()
    with torch.no_grad():
        correct = sum(int((model(images).argmax(1) == labels).sum()) for images, labels in test.batches(2000))
    return {"accuracy": 100 * correct / len(test), "seconds": seconds, "ready": ready - began}


def plain_loop(model: MLP, config: Config, epoch: Callable[[], Batches]) -> float:
    """Train the same network in torch's layers as its tutorials do; return the seconds."""
    network = model.to_sequential()
    # Of torch's own class, with the same settings.
    optimizer = torch.optim.AdamW(build.make_optimizer(config, network).param_groups)
    step, steps = 0, config.epochs * -(-60_000 // config.batch_size)
    device = next(network.parameters()).device
    start = now()
    for _ in range(config.epochs):
        for batch in epoch():
            images, labels = (t.to(device) for t in batch)
            for group in optimizer.param_groups:
                group["lr"] = build.learning_rate(config, step, steps)
            optimizer.zero_grad()
            with torch.autocast(device.type, torch.bfloat16, config.precision == "bf16"):
                loss = F.cross_entropy(network(images), labels, label_smoothing=config.label_smoothing)
            loss.backward()
            optimizer.step()
            step += 1
    return now() - start


def in_memory(data: Data, config: Config) -> Callable[[], Batches]:
    """Return what yields the batches of an epoch from tensors in memory."""

    def epoch() -> Iterator[tuple[Tensor, Tensor]]:
        for rows in torch.split(torch.randperm(len(data.train), device=data.train.labels.device), config.batch_size):
            yield data.train.images[rows], data.train.labels[rows]

    return epoch


def loader(data: Data, config: Config) -> Callable[[], Batches]:
    """Return what yields the batches of an epoch as the usual script has them."""
    from torchvision import transforms
    from torchvision.datasets import MNIST

    steps = (transforms.ToTensor(), transforms.Normalize(data.mean, data.std), transforms.Lambda(torch.flatten))
    images = MNIST(str(config.data_dir), transform=transforms.Compose(steps))
    return lambda: torch.utils.data.DataLoader(images, config.batch_size, shuffle=True)


def measure(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Train with every seed and provider, in turn; return a row for each provider."""
    runs: dict[str, list[dict[str, float]]] = {name: [] for name in options.providers}
    for seed in range(options.seeds):
        for name in options.providers:
            # The usual script takes so long that a few seeds must do.
            if name != "DataLoader" or seed < _SLOW_SEEDS:
                runs[name].append(in_a_process(name, seed, options))
                found = runs[name][-1]
                command.progress(
                    seed + 1, options.seeds, f"{name}: {found['accuracy']:.2f} %, {found['seconds']:.2f} s"
                )
    rows = []
    for name, found in runs.items():
        accuracy = [run["accuracy"] for run in found]
        rows.append(
            {
                "goal": options.time_to,
                "settings": {
                    **settings(options.time_to, options.tiny),
                    "cuda_graph": _has_graph(name, options.device),
                },
                "provider": name,
                "threads": options.threads,
                "seeds": len(found),
                "accuracy": [statistics.mean(accuracy), min(accuracy), max(accuracy)],
                "reached": statistics.mean(accuracy) >= options.time_to,
                "seconds": _spread([run["seconds"] for run in found]),
                "ready": _spread([run["ready"] for run in found]),
            }
        )
    base = next((row["seconds"][0] for row in rows if row["provider"] == "torch"), None)
    return [{**row, "ratio": base and base / row["seconds"][0]} for row in rows]


def _has_graph(provider: str, device: torch.device) -> bool:
    return device.type == "cuda" and provider in ("manual_mlp", "logged")


def _spread(values: list[float]) -> list[float]:
    return [statistics.median(values), min(values), max(values)]


def in_a_process(provider: str, seed: int, options: argparse.Namespace) -> dict[str, float]:
    """Train in a new process, whose start counts too."""
    environment = {**os.environ, "OMP_NUM_THREADS": str(options.threads), "GOMP_SPINCOUNT": "3000"}
    tiny = ["tiny"] * options.tiny
    arguments = (provider, options.time_to, seed, options.device, options.data_dir, repr(time.time()), *tiny)
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.time_to", *map(str, arguments)],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode == 2:
        raise InputError(done.stderr.strip())
    if done.returncode:
        raise RuntimeError(f"expected {provider} to train, got: {done.stderr.strip()}")
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Lay out accuracy and seconds: a line a provider."""
    titles = ("provider", "seeds", "test accuracy, %", "training, s", "torch's time over it", "start to first batch, s")
    return command.table(
        titles,
        [
            (
                row["provider"],
                str(row["seeds"]),
                "{:.2f} [{:.2f}, {:.2f}]".format(*row["accuracy"]),
                "{:.2f} [{:.2f}, {:.2f}]".format(*row["seconds"]),
                f"{row['ratio']:.2f}" if row["ratio"] else "–",
                "{:.1f} [{:.1f}, {:.1f}]".format(*row["ready"]),
            )
            for row in rows
        ],
    )


def read_options(arguments: Sequence[str]) -> argparse.Namespace:
    """Read the command line."""
    flags = command.Parser(
        prog="python -m benchmarks train", description="The time to an accuracy on MNIST's test images."
    )
    flags.add_argument("--time-to", type=float, choices=tuple(GOALS), required=True, help="mean test accuracy, %%")
    flags.add_argument("--seeds", type=command.positive_int, help="runs of each provider (10)")
    flags.add_argument("--threads", type=command.positive_int, default=min(2, machine.cores()), help="of each run (2)")
    flags.add_argument("--providers", nargs="+", choices=PROVIDERS, default=list(PROVIDERS))
    command.add_data(flags)
    options = flags.parse_args(arguments)
    command.pick_device(flags, options)
    options.seeds = options.seeds or (1 if options.tiny else 10)
    return options


def main(arguments: Sequence[str]) -> int:
    """Measure, print, write; return 1 if the goal is not reached, unless in a dry run."""
    options = read_options(arguments)
    with few(options):
        rows = measure(options)
    print(f"\nTraining to a mean test accuracy of {options.time_to:g} %.\n" + table(rows))
    if options.json:
        run = {
            "date": time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()),
            "machine": machine.describe(options.device),
            "settings": {"seeds": options.seeds, "threads": options.threads, **command.briefly(options)},
            "load": machine.load(),
            "rows": rows,
        }
        print(f"\nwritten: {command.save(f'time-to-{options.time_to:g}', run, options)}")
    return int(not options.tiny and not all(row["reached"] for row in rows if row["provider"] == "manual_mlp"))


if __name__ == "__main__":
    provider, goal, seed, device, data_dir, began, *tiny = sys.argv[1:]
    flags = {"data_dir": Path(data_dir), **settings(float(goal), bool(tiny))}
    try:
        print(json.dumps(train(provider, int(seed), torch.device(device), flags, float(began))))
    except InputError as error:
        print(error, file=sys.stderr)
        sys.exit(2)
