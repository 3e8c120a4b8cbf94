"""Time dropout by the hash of :mod:`manual_mlp.dropout` against ``F.dropout``: alone, and in a step of a network.

- forward: a layer's output (rows, width) without gradients;
- backward: the same with gradients, forward and backward;
- step: forward and backward of an MLP rows × sizes, 784-width-width-10 if none are given, with dropout on its hidden
  layers;
- backprop: the same by ``backprop``, against autograd.

Each row of the JSON holds: case, way (of the four above), p (that is dropped), threads, malloc; load, others_cores,
busy, number and rounds as the other commands' rows; flops (operations of the products in torch's step: none in dropout
alone) and products_us (their time at this run's ceiling); providers: torch and manual_mlp, of each median_us, p20_us,
p80_us, host_us (on CUDA: what a call takes on the host alone, until it is enqueued), ratio and extra_us, products_share
(products_us over its median). manual_mlp has ratios too, against each other provider.
"""

import argparse
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks import command
from benchmarks.harness import Step
from benchmarks.layers import BASELINE, OURS
from benchmarks.products import ceilings, operations
from benchmarks.tiny import shrunk
from manual_mlp import MLP, backprop
from manual_mlp.dropout import Mask, draw_seed, drop

Pair = tuple[Step, Step]  # torch's, ours


def alone(x: Tensor, p: float) -> dict[str, Pair]:
    """Drop a tensor, without gradients and with them."""
    dy = torch.ones_like(x)

    def ours(t: Tensor) -> Tensor:
        return drop(t, Mask(draw_seed(t.device), 0, p))

    def backward(f: Callable[[Tensor], Tensor]) -> Step:
        t = x.clone().requires_grad_()
        return lambda: torch.autograd.grad(f(t), t, dy)

    def theirs(t: Tensor) -> Tensor:
        return F.dropout(t, p)

    return {"forward": (lambda: theirs(x), lambda: ours(x)), "backward": (backward(theirs), backward(ours))}


def network(rows: int, sizes: Sequence[int], p: float, device: torch.device) -> dict[str, Pair]:
    """Take a step of a network without an optimizer."""
    mlp = MLP(sizes, dropout=p, device=device)
    model, x = mlp.to_sequential(), torch.randn(rows, sizes[0], device=device)
    t = torch.randint(sizes[-1], (rows,), device=device)

    def step(of: torch.nn.Module) -> Step:
        return lambda: torch.autograd.grad(F.cross_entropy(of(x), t), list(of.parameters()))

    def explicit() -> None:
        mlp.zero_grad()
        backprop(mlp, x, t)

    return {"step": (step(model), step(mlp)), "backprop": (step(model), explicit)}


def read_options(arguments: Sequence[str]) -> argparse.Namespace:
    """Read the command line."""
    flags = command.parser("dropout", "Dropout by the hash against F.dropout: alone, and in a step.", dtype=False)
    flags.add_argument("--rows", type=command.positive_int, default=4096)
    flags.add_argument("--width", type=command.positive_int, default=512)
    flags.add_argument("--sizes", type=command.positive_int, nargs="+", help="of the network")
    flags.add_argument("--p", type=float, default=0.5)
    options = flags.parse_args(arguments)
    if not 0 < options.p < 1:
        flags.error(f"--p: expected a share between 0 and 1, got {options.p}")
    if options.sizes and len(options.sizes) < 2:
        flags.error(f"--sizes: expected two or more, got {options.sizes}")
    command.complete(flags, options, seconds=1.0)
    options.sizes = options.sizes or [784, options.width, options.width, 10]
    if options.tiny:
        options.rows, options.width, *options.sizes = map(shrunk, (options.rows, options.width, *options.sizes))
    options.dtype = "float32"
    return options


def measure(options: argparse.Namespace, malloc: str) -> tuple[list[dict[str, Any]], dict[int, dict[str, float]]]:
    """Take every row under the malloc this process has; return rows, and ceilings by thread count."""
    pairs = {
        f"{options.rows}×{options.width}": alone(
            torch.randn(options.rows, options.width, device=options.device), options.p
        ),
        f"{'→'.join(map(str, options.sizes))}, {options.rows} rows": network(
            options.rows, options.sizes, options.p, options.device
        ),
    }
    rows = []
    for case, ways in pairs.items():
        for way, steps in ways.items():
            for threads in options.threads:
                both = dict(zip((BASELINE, OURS), steps, strict=True))
                about = {"case": case, "way": way, "p": options.p, "malloc": malloc, **operations(steps[0])}
                rows.append(about | command.time_row(both, BASELINE, options, threads, ours=(OURS,)))
    return rows, ceilings(options, rows)


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Lay out times and ratios: a line a row."""
    titles = ("case", "what", "threads", "malloc", "torch µs", "ours µs", "torch/ours [95 %]")
    lines = []
    for row in rows:
        both = [row["providers"][name] for name in (BASELINE, OURS)]
        micros = (f"{provider['median_us']:,.0f}" for provider in both)
        about = (row["case"], row["way"], str(row["threads"]), row["malloc"])
        lines.append((*about, *micros, command.interval(both[1]["ratio"], ".2f")))
    return command.table(titles, lines)


def main(arguments: Sequence[str]) -> int:
    """Measure, print, write; masks are random, so that there is no error to find."""
    options = read_options(arguments)
    run = command.whole_run("dropout", measure, options)
    print("\nAbove 1, ours is faster.\n" + table(run["rows"]))
    if options.json:
        print(f"\nwritten: {command.save('dropout', run, options)}")
    return 0
