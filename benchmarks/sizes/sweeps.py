"""A network, or a layer with its loss, by the rows that are computed at once."""

import argparse
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from benchmarks import command, memory, output
from benchmarks.harness import Step, fix, training_step
from benchmarks.layers import BASELINE, OURS
from benchmarks.left_out import runnable
from benchmarks.network import cases, studies
from benchmarks.network.providers import by_hand
from manual_mlp.precision import product_dtype
from manual_mlp.sweep.tiling import Work, bytes_on_gpu

SMALLEST = 16
OF_ROWS, OF_CHOICE = 128, 4  # the first of a sweep is the smaller of so many parts

LOSSES = tuple(case for case in output.CASES if not case.saturated and not case.bias)
LOSSES_OF_CUDA = (
    output.Case(256, 512, 4096, "bfloat16"),
    output.Case(1024, 1024, 32000, "bfloat16"),
    output.Case(16384, 768, 50257, "bfloat16"),
    output.CUDA_CASES[-1],
)
WIDE = cases.Case((1024,) * 4, 1 << 12)
NETWORKS = (cases.POINTS, cases.FIELD, cases.NARROW, cases.NARROW_GELU, WIDE)
NETWORKS_OF_CUDA = (cases.NARROW._replace(rows=1 << 21), WIDE._replace(rows=1 << 17))


class Subject(NamedTuple):
    """What is swept: by which argument, over how many rows, and what the model chooses (0: torch's own operations).

    ``row_bytes`` are those that the model for a GPU counts for a row; ``step`` makes a step from the rows at once.
    """

    argument: str
    case: str
    rows: int
    chosen: int
    row_bytes: int
    step: Callable[[int], Step]
    others: dict[str, Callable[[], Step]]
    leaves: Sequence[Tensor]


def of_network(case: cases.Case, device: torch.device) -> Subject:
    """Sweep ``tile_rows`` of ``backprop``."""
    problem = case.problem(device)
    dtype = product_dtype(command.DTYPES[case.dtype], device)
    row_bytes = bytes_on_gpu(Work(case.rows, case.sizes, dtype, 0))
    step, leaves = partial(by_hand, problem), list(problem.mlp.parameters())
    return Subject("tile_rows", str(case), case.rows, studies.chosen_rows(problem), row_bytes, step, {}, leaves)


def of_loss(case: output.Case, device: torch.device) -> Subject:
    """Sweep ``chunk_rows`` of ``linear_cross_entropy``, unfused torch beside it."""
    tensors, target = case.tensors(device)
    one = torch.ones((), device=device)
    dtype = product_dtype(command.DTYPES[case.dtype], device)
    row_bytes = bytes_on_gpu(Work(case.rows, (case.d_in, case.classes), dtype, 0, loss=True))

    def step(name: str, *rows: int) -> Step:
        return training_step(output.layer_of(output.PROVIDERS[name](*rows), target), tensors, one)

    return Subject(
        "chunk_rows", str(case), case.rows, output.chosen_rows(case, device), row_bytes, partial(step, OURS),
        {BASELINE: partial(step, BASELINE)}, list(tensors.values()),
    )  # fmt: skip


def subjects(options: argparse.Namespace) -> list[Callable[[], Subject]]:
    """List what is swept, to be made when its turn comes: from small to large."""
    cuda = options.device.type == "cuda"
    losses = command.cases_of(options, LOSSES + (LOSSES_OF_CUDA if cuda else ()), LOSSES[:1])
    networks = command.cases_of(options, NETWORKS + (NETWORKS_OF_CUDA if cuda else ()), cases.QUICK_CASES[1:2])
    made = {
        "chunk_rows": [partial(of_loss, case, options.device) for case in losses],
        "tile_rows": [partial(of_network, case, options.device) for case in networks],
    }
    return [make for argument in options.only for make in made[argument]]


def candidates(chosen: int, rows: int) -> list[int]:
    """List the rows at once to try: powers of two, from a small part of all rows or of the choice on; these too."""
    chosen = chosen or rows
    least = max(SMALLEST, min(rows // OF_ROWS, chosen // OF_CHOICE))
    return sorted({1 << k for k in range(rows.bit_length()) if least <= 1 << k < rows} | {chosen, rows})


def sweep(subject: Subject, options: argparse.Namespace, malloc: str, threads: int) -> dict[str, Any]:
    """Time a subject by the rows at once; return how far the model's choice is from the best."""
    fix(threads)
    chosen = str(subject.chosen or BASELINE)
    makers = {str(size): partial(subject.step, size) for size in candidates(subject.chosen, subject.rows)}
    steps, missing = runnable(subject.others | makers, (chosen,))
    about = {name: getattr(subject, name) for name in ("argument", "case", "rows", "row_bytes")}
    row = about | {"malloc": malloc, "left_out": missing} | command.time_row(steps, chosen, options, threads)
    providers = row["providers"]
    for name, step in steps.items():
        providers[name]["peak_bytes"] = memory.peak_bytes(step, subject.leaves, options.device, warm=False)
    best = min(providers, key=lambda name: providers[name]["median_us"])
    return row | {"chosen": chosen, "best": best, "over_best": providers[best]["ratio"]}
