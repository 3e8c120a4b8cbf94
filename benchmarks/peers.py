"""Time against memory of an output layer with its loss, over the number of chunks: ``output --peers``.

Each row of the JSON, under ``output-peers``, holds:
    case, shape [N, D, V], dtype, bias, threads, malloc, left_out (providers that do not run, and why);
    load (average of the last minute), others_cores (that other processes took meanwhile), busy (marked for these);
    number (calls a block), rounds (paired blocks), flops (operations of the three products of torch's step),
    products_us (their time at this run's ceiling for the dtype);
    least_bytes (gradients, and dW in float32 where its dtype is narrower: what a step in chunks cannot do without);
    providers: points of the curves. torch and torch compiled hold all logits; manual_mlp, manual_mlp compiled, torch
    chunked and torch chunked compiled are told the number of chunks; ours also chooses for itself, as Liger-Kernel and
    cut-cross-entropy do. For each, curve (whose it is), chunks (0: it is not told), median_us, p20_us,
    p80_us, host_us (on CUDA: what a call takes on the host alone, until it is enqueued), ratio and extra_us (torch over
    it; it minus torch; both as [median, low, high] with a 95 % interval), products_share (products_us over its median),
    error (largest absolute, against float64: output (the loss), dinput, dweight, dbias), peak_bytes, peak_ratio
    (torch's over its), wrong (an error more than twice torch's own and a millionth of the largest entry).
Errors and peaks are taken under the first malloc, behind the time.
"""

import argparse
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from types import FunctionType
from typing import Any

import torch
from torch import Tensor

from benchmarks import command, memory, output, products
from benchmarks.harness import Layer, Step, errors, fix, gradients, in_float64, negligible, training_step
from benchmarks.layers import BASELINE, OURS
from benchmarks.left_out import runnable

COMPILED = " compiled"
CHUNKED = "torch chunked"
TOLD = (OURS, OURS + COMPILED, CHUNKED, CHUNKED + COMPILED)  # those that are told the number of chunks
UNTOLD = (BASELINE, BASELINE + COMPILED, OURS, OURS + COMPILED, "Liger-Kernel", "cut-cross-entropy")
CHUNKS = (1, 2, 4, 8, 16, 32, 64)
CASES = (output.Case(2048, 64, 4096), output.Case(1024, 256, 32000))
CUDA_CASES = (output.Case(4096, 512, 32000, "bfloat16"), output.Case(4096, 4096, 128256, "bfloat16"))
QUICK_CASES = (output.Case(1024, 64, 1024),)

Point = tuple[str, int]  # whose curve, and the number of chunks; 0 where it is not told


def name_of(curve: str, chunks: int) -> str:
    """Name a point as in ``manual_mlp, 4 chunks``."""
    return f"{curve}, {chunks} chunk{'s' * (chunks > 1)}" if chunks else curve


def points(rows: int, counts: Sequence[int]) -> dict[str, Point]:
    """List the points of all curves; of numbers of chunks that no rows tell apart, the first."""
    told = {-(-rows // count): count for count in sorted(counts, reverse=True)}
    found = [(curve, 0) for curve in UNTOLD if curve.removesuffix(COMPILED) in output.PROVIDERS]
    found += [(c, n) for c in TOLD if c.removesuffix(COMPILED) in output.PROVIDERS for n in sorted(told.values())]
    return {name_of(*point): point for point in found}


def alone(loss: output.Loss) -> output.Loss:
    """Copy a function with code of its own: the compiler keeps the graphs of one code together, and only so many."""
    assert isinstance(loss, FunctionType)
    parts = loss.__globals__, loss.__name__, loss.__defaults__, loss.__closure__
    return FunctionType(loss.__code__.replace(), *parts)


def loss_of(point: Point, rows: int) -> output.Loss:
    """Make the loss of a point."""
    curve, chunks = point
    make = output.PROVIDERS[curve.removesuffix(COMPILED)]
    loss = make(-(-rows // chunks)) if chunks else make()
    if not curve.endswith(COMPILED):
        return loss
    # Of sizes that differ, the compiler would make symbols.
    compiled: output.Loss = torch.compile(alone(loss), dynamic=False)
    return compiled


def take(case: output.Case, options: argparse.Namespace, malloc: str, threads: int) -> dict[str, Any]:
    """Time all points of a case against each other, and check them under the first malloc."""
    fix(threads)
    torch.compiler.reset()
    device = options.device
    tensors, target = case.tensors(device)
    one = torch.ones((), device=device)
    of = points(case.rows, options.chunks or CHUNKS)
    layers: dict[str, Layer] = {}

    def made(name: str) -> Step:
        layers[name] = output.layer_of(loss_of(of[name], case.rows), target)
        step = training_step(layers[name], tensors, one)
        # What is compiled is compiled now, and not while it is timed.
        step()
        return step

    makers = {name: partial(made, name) for name in of}
    steps, missing = runnable(makers, [name for name, (curve, _) in of.items() if curve in (BASELINE, OURS)])
    row = {"case": str(case), "shape": list(case[:3]), "dtype": case.dtype, "bias": case.bias, "malloc": malloc}
    row |= {"left_out": missing, "least_bytes": output.least_bytes(tensors)} | products.operations(steps[BASELINE])
    row |= command.time_row(steps, BASELINE, options, threads, share=len(steps) * case.time)
    for name, provider in row["providers"].items():
        provider["curve"], provider["chunks"] = of[name]
    if malloc == options.malloc[0]:
        check(row, layers, tensors, one)
    torch.compiler.reset()
    return row


def check(row: dict[str, Any], layers: Mapping[str, Layer], tensors: dict[str, Tensor], one: Tensor) -> None:
    """Add to a row what does not depend on time: errors against float64, peak bytes."""
    truth = gradients(layers[BASELINE], in_float64(tensors), one.double())
    for name, provider in row["providers"].items():
        provider["error"] = errors(gradients(layers[name], tensors, one), truth)
        step = training_step(layers[name], tensors, one)
        provider["peak_bytes"] = memory.peak_bytes(step, tensors.values(), one.device, warm=False)
        provider["peak_ratio"] = row["providers"][BASELINE]["peak_bytes"] / provider["peak_bytes"]
    command.judge(row, BASELINE, negligible(truth))


def measure(options: argparse.Namespace, malloc: str) -> tuple[list[dict[str, Any]], dict[int, dict[str, float]]]:
    """Take every row under the malloc this process has; return rows, and ceilings by thread count."""
    keys, rows = [(case, threads) for case in options.case for threads in options.threads], []
    for done, (case, threads) in command.turns(keys):
        rows.append(take(case, options, malloc, threads))
        command.progress(done, len(keys), f"{case}, {threads} threads, {malloc} malloc")
    return rows, products.ceilings(options, rows)


def lines(row: Mapping[str, Any]) -> Iterator[tuple[str, ...]]:
    """Write the points of a row, each with its curve's name."""
    for provider in row["providers"].values():
        yield (
            row["case"],
            str(row["threads"]),
            row["malloc"],
            output.short(provider["curve"]).replace(OURS, "ours"),
            str(provider["chunks"] or "–"),
            f"{provider['median_us'] / 1e3:,.2f}",
            output.ratio(row["rounds"], provider),
            f"{provider['peak_bytes'] / 1e6:,.2f}",
            f"{provider['peak_ratio']:.2f}",
            f"{max(provider['error'].values()):.1e}",
            "WRONG" if provider["wrong"] else f"load {row['load']:.1f}" if row["busy"] else "",
        )


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Lay out the curves: a line a point."""
    titles = (
        "case", "threads", "malloc", "provider", "chunks", "ms", "torch/it [95 %]", "peak MB", "torch/it", "error", "",
    )  # fmt: skip
    return command.table(titles, [line for row in rows for line in lines(row)])


def main(options: argparse.Namespace) -> int:
    """Measure, print, draw, write; return 1 if a point of ours is wrong."""
    run = command.whole_run("output-peers", measure, options)
    rows = run["rows"]
    print(
        "\nTime of forward + .backward() against the MB it holds at its peak, by the number of chunks.\n" + table(rows)
    )
    if options.picture:
        from benchmarks.report import plot

        print(f"\ndrawn: {plot.draw_peers(run, options.picture)}")
    if options.json:
        print(f"\nwritten: {command.save('output-peers', run, options)}")
    ours = {name for row in rows for name, p in row["providers"].items() if p["curve"].startswith(OURS)}
    return int(command.any_wrong(rows, tuple(ours)))
