"""What the matrix products of a step take at this run's ceilings."""

import argparse
from collections.abc import Sequence
from typing import Any

from torch.utils.flop_counter import FlopCounterMode

from benchmarks import command, machine
from benchmarks.harness import Step


def operations(step: Step) -> dict[str, int]:
    """Count the operations of the products in a step, by torch's own counter; of what is compiled it sees none."""
    with FlopCounterMode(display=False) as counter:
        step()
    return {"flops": counter.get_total_flops()}


def ceilings(options: argparse.Namespace, rows: Sequence[dict[str, Any]]) -> dict[int, dict[str, float]]:
    """Measure the ceilings of every thread count; add to the rows that were timed what their products take at these.

    Products are measured in each dtype of the rows; the others are those of the first. A row without counted
    operations gets nothing.
    """
    dtypes = tuple(dict.fromkeys(row.get("dtype", options.dtype) for row in rows)) or (options.dtype,)
    limits = {}
    for threads in options.threads:
        found = {d: machine.ceilings(options.device, command.DTYPES[d], threads, options.tiny) for d in dtypes}
        limits[threads] = found[dtypes[0]] | {f"gflops_{dtype}": limit["gflops"] for dtype, limit in found.items()}
    for row in (row for row in rows if "flops" in row):
        dtype = row.get("dtype", options.dtype)
        row["products_us"] = row["flops"] / limits[row["threads"]][f"gflops_{dtype}"] / 1e3
        for provider in row["providers"].values():
            provider["products_share"] = row["products_us"] / provider["median_us"]
    return limits
