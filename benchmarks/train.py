"""Time whole training steps, optimiser included: eager, ``MLP`` with autograd, and ``backprop``.

Every step copies the next batch of random data of MNIST's shape (or of a regression's) into place, runs forward and
backward, and lets torch's fused optimiser change the parameters.

Each row of the JSON holds:
    case, sizes, rows, activation, loss, dtype, optimiser, threads, malloc;
    load (average of the last minute), others_cores (that other processes took meanwhile), busy (marked for these);
    number (calls a block), rounds (paired blocks), steps (that were compared), flops (operations of the products in
    torch's step), products_us (their time at this run's ceiling for the dtype); left_out (providers that do not run,
    and why);
    providers: torch; manual_mlp (``backprop``); manual_mlp autograd; compile, if it is asked for, and with --tiny. For
    each, median_us, p20_us, p80_us, host_us (on CUDA: what a call takes on the host alone, until it is enqueued), ratio
    and extra_us (torch over it; it minus torch; both as [median, low, high] with a 95 % interval), products_share
    (products_us over its median), steps_per_second, loss_difference (the largest from torch's loss, over the steps,
    from the same weights on the same data), loss_difference_float64 (the same in float64), wrong (that is more than a
    millionth of the loss).
"""

import argparse
import sys
from collections.abc import Sequence
from importlib import import_module
from typing import Any

import torch
from torch import Tensor

from benchmarks import command, products
from benchmarks.harness import Step, fix
from benchmarks.layers import BASELINE, OURS
from benchmarks.left_out import runnable
from benchmarks.network.cases import MNIST, NARROW, SYNTAX, Case, read_case
from benchmarks.network.providers import AUTOGRAD, step_of
from benchmarks.tiny import shrunk

CASES = (MNIST[0], Case((784, 512, 256, 10), 256, loss="cross_entropy"), NARROW._replace(rows=1 << 15))
QUICK_CASES = CASES[:1]
OPTIMISERS: dict[str, Any] = {
    "AdamW": lambda parameters: torch.optim.AdamW(parameters, lr=1e-3, fused=True),
    "SGD": lambda parameters: torch.optim.SGD(parameters, lr=0.05, momentum=0.9, fused=True),
}
PROVIDERS = (BASELINE, OURS, AUTOGRAD, "compile")
BATCHES = 8  # that are there, in turn
STEPS = 50  # whose losses are compared; with --tiny fewer


def trainer(name: str, case: Case, optimiser: str, device: torch.device) -> Step:
    """Make the training step of a provider, with weights and data of its own that are the same for all."""
    problem = case.problem(device)
    data = [(torch.randn_like(problem.input), case.target(device)) for _ in range(BATCHES)]
    gradients = step_of(name, problem)
    update = OPTIMISERS[optimiser](problem.mlp.parameters())
    done = 0

    def step() -> Tensor:
        nonlocal done
        input, target = data[done % BATCHES]
        done += 1
        problem.input.copy_(input)
        problem.target.copy_(target)
        loss = gradients()
        update.step()
        return loss.detach()

    return step


def trainers(
    names: Sequence[str], case: Case, optimiser: str, device: torch.device
) -> tuple[dict[str, Step], dict[str, str]]:
    """Make the training steps of the providers that run; and say why others do not."""
    torch.compiler.reset()
    makers = {name: lambda name=name: trainer(name, case, optimiser, device) for name in names}
    return runnable(makers, (BASELINE, OURS, AUTOGRAD))


def losses(name: str, case: Case, optimiser: str, device: torch.device, steps: int) -> Tensor:
    """Train for some steps; return the loss of each."""
    step: Any = trainer(name, case, optimiser, device)
    return torch.stack([step().double() for _ in range(steps)])


def check(row: dict[str, Any], case: Case, device: torch.device) -> None:
    """Add to a row how far the losses of each provider are from torch's."""
    fix(row["threads"])
    torch.compiler.reset()
    for suffix, of in (("", case), ("_float64", case._replace(dtype="float64"))):
        about = of, row["optimiser"], device, row["steps"]
        truth = losses(BASELINE, *about)
        for name, provider in row["providers"].items():
            difference = (losses(name, *about) - truth).abs().max().item()
            provider[f"loss_difference{suffix}"] = difference
    for provider in row["providers"].values():
        provider["wrong"] = not provider["loss_difference_float64"] <= 1e-6 * truth[0].item()


def measure(options: argparse.Namespace, malloc: str) -> tuple[list[dict[str, Any]], dict[int, dict[str, float]]]:
    """Take every row under the malloc this process has; return rows, and ceilings by thread count."""
    keys = [(case, name, threads) for case in options.case for name in options.optimiser for threads in options.threads]
    rows: list[dict[str, Any]] = []
    for done, (case, optimiser, threads) in command.turns(keys):
        fix(threads)
        steps, missing = trainers(options.providers, case, optimiser, options.device)
        about = {**case._asdict(), "case": str(case), "sizes": list(case.sizes), "optimiser": optimiser}
        about |= {
            "malloc": malloc,
            "steps": shrunk(STEPS) if options.tiny else STEPS,
            "left_out": missing,
            **products.operations(steps[BASELINE]),
        }
        rows.append(about | command.time_row(steps, BASELINE, options, threads))
        for provider in rows[-1]["providers"].values():
            provider["steps_per_second"] = 1e6 / provider["median_us"]
        command.progress(done, len(keys), f"{case} {optimiser}, {threads} threads, {malloc} malloc")
    limits = products.ceilings(options, rows)
    if malloc == options.malloc[0]:
        for row, (case, *_) in zip(rows, keys, strict=True):
            check(row, case, options.device)
    return rows, limits


# Commands of their own, which need the packages for training: a flag, and the module that has it.
OTHERS = {
    "--time-to": "time_to",
    "--table": "literature",
    "--accuracy": "accuracy",
    "--cuda-graph": "cuda_graph",
}


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Lay out steps per second, ratios and differences: a line a row."""
    names = [name for name in PROVIDERS if any(name in row["providers"] for row in rows)]
    titles = (
        "case", "optimiser", "threads", "malloc", *(f"{name} steps/s" for name in names),
        *(f"torch/{name} [95 %]" for name in names[1:]), "loss: differs by", "",
    )  # fmt: skip
    lines = []
    for row in rows:
        providers = [row["providers"].get(name) for name in names]
        lines.append(
            (
                row["case"],
                row["optimiser"],
                str(row["threads"]),
                row["malloc"],
                *(f"{p['steps_per_second']:,.0f}" if p else "–" for p in providers),
                *(command.interval(p["ratio"], ".2f") if p else "–" for p in providers[1:]),
                ", ".join(f"{p['loss_difference']:.1e}" if p else "–" for p in providers[1:]),
                command.notes(row),
            )
        )
    return command.table(titles, lines)


def read_options(arguments: Sequence[str]) -> argparse.Namespace:
    """Read the command line."""
    flags = command.parser("train", "Training steps with an optimiser, against torch's layers.", dtype=False)
    flags.add_argument("--case", type=read_case, nargs="+", metavar=SYNTAX, help="as in 64-64-10x32-gelu-cross_entropy")
    flags.add_argument("--optimiser", nargs="+", choices=tuple(OPTIMISERS), default=tuple(OPTIMISERS))
    flags.add_argument("--compile", action="store_true", help="also torch.compile")
    options = flags.parse_args(arguments)
    command.complete(flags, options, seconds=1.0)
    options.case = command.cases_of(options, CASES, QUICK_CASES, options.case)
    options.providers = [name for name in PROVIDERS if name != "compile" or options.compile or options.tiny]
    options.dtype = ", ".join(dict.fromkeys(case.dtype for case in options.case))
    return options


def main(arguments: Sequence[str]) -> int:
    """Measure, print, write; return 1 if ours is wrong in any row."""
    asked = [flag for flag in OTHERS if any(argument.split("=")[0] == flag for argument in arguments)]
    if len(asked) > 1:
        print(
            f"python -m benchmarks train: expected one of {', '.join(OTHERS)}, got {', '.join(asked)}", file=sys.stderr
        )
        return 2
    for flag in asked:
        from manual_mlp.training.errors import InputError

        try:
            return int(import_module(f"benchmarks.{OTHERS[flag]}").main(arguments))
        except InputError as error:
            print(f"python -m benchmarks train: {error}", file=sys.stderr)
            return 2
    options = read_options(arguments)
    run = command.whole_run("train", measure, options)
    print("\nTraining steps; above 1, the other is faster than torch.\n" + table(run["rows"]))
    if options.json:
        print(f"\nwritten: {command.save('train', run, options)}")
    return int(command.any_wrong(run["rows"], (OURS, AUTOGRAD)))
