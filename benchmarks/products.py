"""The matrix products of a step: how many operations, what they take at this run's ceilings, and they alone."""

import argparse
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import command, machine
from benchmarks.harness import Step

PRODUCT_CALLS = {torch.ops.aten.mm.default: 0, torch.ops.aten.addmm.default: 1}  # where their factors begin


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


class _Seen(TorchDispatchMode):
    """Note the factors of every product of matrices."""

    def __init__(self) -> None:
        super().__init__()
        self.factors: list[tuple[Tensor, Tensor]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in PRODUCT_CALLS:
            start = PRODUCT_CALLS[func]
            # Of the same shape and strides, but empty.
            left, right = (t.detach().to("meta") for t in args[start : start + 2])
            self.factors.append((left, right))
        return func(*args, **(kwargs or {}))


def products_of(step: Step, device: torch.device) -> Step:
    """Make a step of the matrix products of another, and of nothing else, into memory that is there."""
    with _Seen() as seen:
        step()
    held: dict[tuple[Any, ...], Tensor] = {}

    def one(like: Tensor, role: str) -> Tensor:
        key = (role, like.shape, like.stride(), like.dtype)
        if key not in held:
            held[key] = torch.empty_strided(like.shape, like.stride(), dtype=like.dtype, device=device).normal_()
        return held[key]

    calls = [(one(a, "left"), one(b, "right"), one(a @ b, "out")) for a, b in seen.factors]

    def run() -> None:
        for a, b, out in calls:
            torch.mm(a, b, out=out)

    return run
