"""Time dropout by the hash of :mod:`manual_mlp.dropout` against ``F.dropout``: alone, and in a step of a network.

- forward: a layer's output (rows, width) without gradients;
- backward: the same with gradients, forward and backward;
- step: forward and backward of an MLP rows × sizes, 784-width-width-10 if none are given, with dropout on its hidden
  layers;
- backprop: the same by ``backprop``, against autograd.
"""

import argparse
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks import command, machine
from benchmarks.harness import Step, fix, paired_ratio, percentile, time_rounds
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


def main(arguments: Sequence[str]) -> int:
    """Measure and print."""
    flags = command.Parser(prog="python -m benchmarks dropout", description=__doc__.splitlines()[0])
    flags.add_argument("--rows", type=command.positive_int, default=4096)
    flags.add_argument("--width", type=command.positive_int, default=512)
    flags.add_argument("--sizes", type=command.positive_int, nargs="+", help="of the network")
    flags.add_argument("--p", type=float, default=0.5)
    flags.add_argument("--threads", type=command.positive_int, nargs="+", default=[1])
    flags.add_argument("--seconds", type=command.positive_seconds, default=2.0, help="time a row")
    command.add_device(flags)
    options = flags.parse_args(arguments)
    if not 0 < options.p < 1:
        flags.error(f"--p: expected a share between 0 and 1, got {options.p}")
    if options.sizes and len(options.sizes) < 2:
        flags.error(f"--sizes: expected two or more, got {options.sizes}")
    command.pick_device(flags, options)
    print(f"{machine.describe(options.device)}\n")
    lines = [line for threads in options.threads for line in measured(options, threads)]
    print(command.table(("what", "threads", "torch µs", "ours µs", "ours/torch", "torch/ours [95 %]"), lines))
    return 0


def measured(options: argparse.Namespace, threads: int) -> list[tuple[str, ...]]:
    """Time every pair with so many threads."""
    fix(threads)
    pairs = alone(torch.randn(options.rows, options.width, device=options.device), options.p)
    sizes = options.sizes or [784, options.width, options.width, 10]
    pairs |= network(options.rows, sizes, options.p, options.device)
    lines = []
    for name, (theirs, ours) in pairs.items():
        seconds = time_rounds({"torch": theirs, "ours": ours}, options.seconds).seconds
        both = [percentile(seconds[who], 50) for who in ("torch", "ours")]
        ratio = paired_ratio(seconds["torch"], seconds["ours"])
        micros = (f"{1e6 * value:,.0f}" for value in both)
        lines.append((name, str(threads), *micros, f"{both[1] / both[0]:.2f}", command.interval(ratio, ".2f")))
    return lines
