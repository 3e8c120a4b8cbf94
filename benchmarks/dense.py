"""Time one dense layer, forward + backward, against ``F.linear`` and its activation.

Each row of the JSON holds:
    case, shape [N, D_in, D_out], activation, input_grad, threads, malloc;
    load (average of the last minute), others_cores (that other processes took meanwhile), busy (marked for these);
    number (calls a block), rounds (paired blocks), flops (operations of the products in torch's step), products_us
    (their time at this run's ceiling);
    providers: for each, median_us, p20_us, p80_us, host_us (on CUDA: what a call takes on the host alone, until it is
    enqueued), ratio and extra_us (torch over it; it minus torch; both as [median, low, high] with a 95 % interval),
    products_share (products_us over its median),
    error (largest absolute, against float64: output, dinput, dweight, dbias),
    kept_bytes (for backward: input, weight, bias, output, other, total; attributes), peak_bytes, wrong.
"""

import argparse
import re
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from benchmarks import command, products
from benchmarks.harness import Layer, fix, training_step
from benchmarks.layers import ACTIVATIONS, BASELINE, PROVIDERS


class Case(NamedTuple):
    """One layer: batch, widths, and whether its input requires a gradient (a first layer's does not)."""

    rows: int
    d_in: int
    d_out: int
    input_grad: bool = True

    def __str__(self) -> str:
        """Write the case as in ``64×784→128 first``."""
        return f"{self.rows}×{self.d_in}→{self.d_out}" + ("" if self.input_grad else " first")

    def tensors(self, device: torch.device, dtype: torch.dtype) -> tuple[dict[str, Tensor], Tensor]:
        """Make the layer's leaves, with nn.Linear's own initialisation, and the cotangent of its output."""
        torch.manual_seed(0)
        layer = torch.nn.Linear(self.d_in, self.d_out)
        made = {"input": torch.randn(self.rows, self.d_in), "weight": layer.weight, "bias": layer.bias}
        leaves = {name: tensor.detach().to(device, dtype).requires_grad_() for name, tensor in made.items()}
        leaves["input"].requires_grad_(self.input_grad)
        return leaves, torch.randn(self.rows, self.d_out).to(device, dtype)


# From small to large: a large block, once freed, changes how malloc treats all that come after it.
CASES = (
    Case(1, 4, 4),
    Case(32, 64, 64),
    Case(128, 256, 10),
    Case(64, 784, 128, input_grad=False),
    Case(64, 784, 128),
    Case(128, 512, 256),
    Case(128, 784, 512, input_grad=False),
    Case(128, 784, 512),
    Case(512, 1024, 4096),
)
QUICK_CASES = (*CASES[:2], CASES[3])


def read_case(text: str) -> Case:
    """Read a case from ``NxD_INxD_OUT``, with ``-first`` behind it for a first layer."""
    found = re.fullmatch(r"([1-9]\d*)x([1-9]\d*)x([1-9]\d*)(-first)?", text)
    if not found:
        raise argparse.ArgumentTypeError(f"expected NxD_INxD_OUT or NxD_INxD_OUT-first, got {text!r}")
    return Case(int(found[1]), int(found[2]), int(found[3]), input_grad=not found[4])


def read_options(arguments: Sequence[str]) -> argparse.Namespace:
    """Read the command line."""
    flags = command.parser("dense", "One dense layer, forward + backward, against F.linear and its activation.")
    flags.add_argument("--activation", nargs="+", choices=tuple(ACTIVATIONS), default=("relu", "gelu"))
    shape = "NxD_INxD_OUT[-first]"
    flags.add_argument("--case", type=read_case, nargs="+", metavar=shape, help="first: the input needs no gradient")
    options = flags.parse_args(arguments)
    command.complete(flags, options)
    options.case = command.cases_of(options, CASES, QUICK_CASES, options.case)
    return options


def measure(options: argparse.Namespace, malloc: str) -> tuple[list[dict[str, Any]], dict[int, dict[str, float]]]:
    """Take every row under the malloc this process has; return rows, and ceilings by thread count."""
    device, dtype = options.device, command.DTYPES[options.dtype]
    keys = [(c, a, t) for c in options.case for a in options.activation for t in options.threads]
    rows: list[dict[str, Any]] = []
    for done, (case, activation, threads) in command.turns(keys):
        tensors, cotangent = case.tensors(device, dtype)
        steps = {name: training_step(layer, tensors, cotangent) for name, layer in providers(activation).items()}
        about = {"case": str(case), "shape": list(case[:3]), "activation": activation, "input_grad": case.input_grad}
        about |= {"malloc": malloc, **products.operations(steps[BASELINE])}
        rows.append(about | command.time_row(steps, BASELINE, options, threads))
        command.progress(done, len(keys), f"{case} {activation}, {threads} threads, {malloc} malloc")
    # All timing comes first: the checks and ceilings free blocks larger than any row's, which malloc remembers.
    limits = products.ceilings(options, rows)
    for row, (case, activation, threads) in zip(rows, keys, strict=True):
        fix(threads)
        command.check_row(row, providers(activation), BASELINE, *case.tensors(device, dtype))
    return rows, limits


def providers(activation: str) -> dict[str, Layer]:
    """Make the layer of each provider."""
    return {name: provider(activation) for name, provider in PROVIDERS.items()}


def spread(provider: dict[str, Any]) -> str:
    """Write a median time with its 20th and 80th percentile, in µs."""
    return "{median_us:.1f} ({p20_us:.1f}–{p80_us:.1f})".format_map(provider)


def times_table(rows: Sequence[dict[str, Any]]) -> str:
    """Lay out times, ratios and errors: a line a row."""
    titles = (
        "case", "f", "threads", "malloc", "torch µs (p20–p80)", "ours µs (p20–p80)", "torch/ours [95 %]",
        "ours−torch µs [95 %]", "bare−torch µs", "products: torch, ours", "error: torch, ours", "",
    )  # fmt: skip
    lines = []
    for row in rows:
        torch_, ours, bare = (row["providers"][name] for name in (BASELINE, "manual_mlp", "bare"))
        lines.append(
            (
                row["case"],
                row["activation"],
                str(row["threads"]),
                row["malloc"],
                spread(torch_),
                spread(ours),
                command.interval(ours["ratio"], ".3f"),
                command.interval(ours["extra_us"], "+.1f"),
                f"{bare['extra_us'][0]:+.1f}",
                f"{torch_['products_share']:.0%}, {ours['products_share']:.0%}",
                f"{max(torch_['error'].values()):.1e}, {max(ours['error'].values()):.1e}",
                command.notes(row),
            )
        )
    return command.table(titles, lines)


def memory_table(rows: Sequence[dict[str, Any]]) -> str:
    """Lay out bytes: a line for each case and activation."""
    kinds = ("input", "weight", "bias", "output", "other", "total", "attributes")
    titles = ("case", "f", *(f"{kind}: torch, ours" for kind in kinds), "peak: torch, ours")
    lines = {}
    for row in rows:
        sides = [row["providers"][name] for name in (BASELINE, "manual_mlp")]
        counts = [[side["kept_bytes"][kind] for side in sides] for kind in kinds]
        counts.append([side["peak_bytes"] for side in sides])
        cells = (f"{a:,} {b:,}" if a != b else f"{a:,}" for a, b in counts)
        lines[row["case"], row["activation"]] = (row["case"], row["activation"], *cells)
    return command.table(titles, list(lines.values()))


def main(arguments: Sequence[str]) -> int:
    """Measure, print, write; return 1 if any row is wrong."""
    options = read_options(arguments)
    run = command.record(options)
    print(command.heading("dense", run, options), flush=True)
    rows, limits = command.take_rows(measure, options)
    print("\nTime of forward + .backward(); above 1, ours is faster.\n" + times_table(rows))
    print("\nBytes kept for backward, and the peak of a step; one figure where both are equal.\n" + memory_table(rows))
    if options.json:
        run |= {"ceilings": limits, "rows": rows}
        print(f"\nwritten: {command.save('dense', run, options)}")
    return int(command.any_wrong(rows))
