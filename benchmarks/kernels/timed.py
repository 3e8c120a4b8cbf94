"""Time the kernels in their forms against torch, its compiler, a CUDA graph, and ours."""

import argparse
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import torch

from benchmarks import command, harness, machine
from benchmarks.harness import Step, errors, fix, negligible, time_rounds
from benchmarks.kernels.cases import Case, captured_name
from benchmarks.kernels.model import ROWS
from benchmarks.kernels.works import Work, make, tf32_where_asked
from benchmarks.layers import BASELINE
from benchmarks.left_out import runnable

# Of a tiny run: two tiles and more, the last of them not full.
TINY_ROWS = 70


def measure(
    cases: Sequence[Case], options: argparse.Namespace
) -> tuple[list[dict[str, Any]], dict[int, dict[str, float]]]:
    """Time and check every case; return the rows, and ceilings by thread count."""
    rows, limits = [], ceilings(cases, options)
    with single_calls() if options.tiny else nullcontext():
        for done, case in enumerate(cases, 1):
            rows.append(row_of(case, options, limits))
            command.progress(done, len(cases), str(case))
    return rows, {options.threads[0]: limits}


@contextmanager
def single_calls() -> Iterator[None]:
    """Time call by call: a block of torch's quickest calls would be minutes of the interpreter's."""
    before = harness.BLOCK_SECONDS, harness.WARMUP_SECONDS
    harness.BLOCK_SECONDS = harness.WARMUP_SECONDS = 0.0
    try:
        yield
    finally:
        harness.BLOCK_SECONDS, harness.WARMUP_SECONDS = before


def row_of(case: Case, options: argparse.Namespace, limits: dict[str, float]) -> dict[str, Any]:
    """Time a case, hold its providers against float64, and add what the ceilings allow."""
    torch.manual_seed(0)
    torch.compiler.reset()
    count = TINY_ROWS if options.tiny else ROWS
    work = make(case, count, options.device)
    steps, missing = runnable(tf32_where_asked(case, work.makers), (BASELINE,))
    row: dict[str, Any] = {
        "case": str(case),
        "kind": case.kind,
        "sizes": list(case.shape.widths),
        "rows": count,
        "activation": case.shape.activation,
        "loss": case.task.loss,
        "dropout": case.task.dropout,
        "dtype": case.dtype,
        "malloc": options.malloc[0],
        "forms": {name: case.form(name).told() for name in case.forms},
        "left_out": missing,
    }
    ours = [name for name in steps if name in (*case.forms, *map(captured_name, case.forms))]
    row |= command.time_row(steps, BASELINE, options, options.threads[0], ours=ours)
    add_floor(row, work, limits)
    check(row, work, steps, random=case.task.dropout > 0)
    return row


def add_floor(row: dict[str, Any], work: Work, limits: dict[str, float]) -> None:
    """Add what a row's products and its bytes take at this run's ceilings, and each provider's share."""
    row["products_us"] = work.flops / limits[f"gflops_{row['dtype']}"] / 1e3
    row["floor_us"] = max(row["products_us"], work.least_bytes / limits["copy_gbs"] / 1e3)
    for provider in row["providers"].values():
        provider["products_share"] = row["products_us"] / provider["median_us"]
        provider["floor_share"] = row["floor_us"] / provider["median_us"]


def check(row: dict[str, Any], work: Work, steps: dict[str, Step], random: bool) -> None:
    """Add each provider's errors against float64, unless each drops others' entries: then there are none to compare."""
    fix(1)
    truth = {} if random else work.truth()
    slack = negligible(truth)
    for name, step in steps.items():
        provider = row["providers"][name]
        provider["error"] = errors(work.outcome(step), truth)
        provider["relative_error"] = max(
            (error / (1e6 * slack[part] or 1.0) for part, error in provider["error"].items()), default=0.0
        )
    command.judge(row, BASELINE, slack)


def ceilings(cases: Sequence[Case], options: argparse.Namespace) -> dict[str, float]:
    """Measure this machine's ceilings, of the products in every dtype of the cases."""
    dtypes = [name for name in dict.fromkeys(case.dtype for case in cases) if name != "tf32"]
    found = {name: machine.ceilings(options.device, command.DTYPES[name], options.threads[0]) for name in dtypes}
    gflops = {f"gflops_{name}": limits["gflops"] for name, limits in found.items()}
    if any(case.tf32 for case in cases):
        gflops["gflops_tf32"] = tf32_gflops(options)
    return found[dtypes[0]] | gflops


def tf32_gflops(options: argparse.Namespace) -> float:
    """Measure the products of float32 that keep 10 bits, as :func:`benchmarks.machine.ceilings` does the others."""
    size = 64 if options.tiny else 8192
    a, b, out = (torch.randn(size, size, device=options.device) for _ in range(3))

    def product() -> None:
        torch.mm(a, b, out=out)

    torch.set_float32_matmul_precision("high")
    seconds = time_rounds({"product": product}, options.seconds).seconds["product"].min().item()
    torch.set_float32_matmul_precision("highest")
    return 2 * size**3 / seconds / 1e9
