"""What beside the rows is measured of a network: time and bytes against batch, bytes kept."""

import argparse
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch

from benchmarks import command, machine, memory
from benchmarks.harness import Step, fix, frozen
from benchmarks.layers import BASELINE, OURS
from benchmarks.network import cases
from benchmarks.network.cases import Case, Problem
from benchmarks.network.goals import PEAK_ROWS
from benchmarks.network.providers import AUTOGRAD, by_hand, kept_bytes, step_of
from manual_mlp.engines import native
from manual_mlp.formulas.layer import Layer
from manual_mlp.precision import product_dtype
from manual_mlp.sweep.tiling import tiling_of

BATCHES = (*(1 << k for k in range(10, 18)), 1 << 20)
QUICK_BATCHES = (1 << 12,)
KEPT = tuple(Case((64,) * 6, 1 << 12, f) for f in ("gelu", "silu"))
HUGE = cases.NARROW._replace(rows=1 << 24)
WARM_ROWS = 64


def chosen_rows(problem: Problem) -> int:
    """Return the rows of a tile that ``backprop`` takes by its own choice."""
    input, dtype = problem.input, command.DTYPES[problem.case.dtype]
    narrow = product_dtype(dtype, input.device)
    each: Any = problem.mlp.layers
    layers = [Layer(layer.weight, layer.bias, layer.activation, 0.0) for layer in each]
    shared = native.doors is not None and input.is_cpu
    return tiling_of(layers, input.new_empty(1, 1, dtype=narrow).expand(input.shape), shared=shared).rows


def against_batch(case: Case, options: argparse.Namespace, malloc: str) -> dict[str, Any]:
    """Time eager and ``backprop`` at a batch, with the most threads asked for."""
    threads = options.threads[-1]
    fix(threads)
    problem = case.problem(options.device)
    steps: dict[str, Step] = {name: step_of(name, problem) for name in (BASELINE, OURS)}
    about = {"case": str(case), "rows": case.rows, "malloc": malloc, "tile_rows": chosen_rows(problem)}
    row = about | command.time_row(steps, BASELINE, options, threads)
    for name, step in steps.items():
        row["providers"][name]["peak_bytes"] = memory.peak_bytes(step, problem.mlp.parameters(), options.device)
    return row


def measure(options: argparse.Namespace, malloc: str) -> dict[str, list[dict[str, Any]]]:
    """Take times against batch under the malloc this process has."""
    of_batch, quick = ([cases.NARROW._replace(rows=rows) for rows in rows_of] for rows_of in (BATCHES, QUICK_BATCHES))
    of_batch = command.cases_of(options, of_batch, quick)
    if malloc != options.malloc[0]:  # once is enough for what takes eager seconds
        of_batch = [case for case in of_batch if case.rows <= cases.NARROW.rows]
    found: dict[str, list[dict[str, Any]]] = {}
    if "batch" in options.studies:
        found["by_batch"] = [against_batch(case, options, malloc) for case in of_batch]
    return found


def resident_step(name: str, case: Case, device: torch.device, threads: int) -> tuple[Step, Step]:
    """Make a step, and what comes before it: the same over few rows, for what a first call alone allocates."""
    fix(threads)
    problem = case.problem(device)
    few = Problem(case, problem.mlp, problem.input[:WARM_ROWS].clone(), problem.target[:WARM_ROWS].clone())
    return step_of(name, few), step_of(name, problem)


def resident(name: str, case: Case, options: argparse.Namespace) -> float:
    """Measure the resident bytes of a provider's step in a fresh process, under the default malloc.

    How far ours breaks up malloc's heap differs from run to run: where a goal is at stake, the largest of three counts.
    """
    call: Callable[..., dict[str, float]] = memory.resident_bytes
    tries = 3 if name == OURS and case.rows in PEAK_ROWS else 1
    args = (resident_step, name, case, options.device, options.threads[-1])
    if options.tiny:  # a process takes seconds
        return call(*args)["resident_bytes"]
    return max(machine.fresh("default", call, *args)["resident_bytes"] for _ in range(tries))


def add_resident(by_batch: Sequence[dict[str, Any]], options: argparse.Namespace) -> None:
    """Add to the rows of the default malloc the bytes that are resident at most, in a fresh process each."""
    (narrow,) = command.cases_of(options, [cases.NARROW], [cases.NARROW])
    for row in by_batch:
        if row["malloc"] == "default" and options.device.type == "cpu":
            for name, provider in row["providers"].items():
                case = narrow._replace(rows=row["rows"])
                provider["resident_bytes"] = resident(name, case, options)
                command.progress(0, 1, f"resident bytes, {case}, {name}")


def kept(case: Case, device: torch.device) -> dict[str, Any]:
    """Count the bytes that a network alone keeps for backward in one tile, for eager and our autograd path."""
    problem = case.problem(device, tile_rows=case.rows)
    nets = {BASELINE: problem.sequential(), AUTOGRAD: problem.mlp}
    counts = {name: kept_bytes(partial(net, problem.input), problem) for name, net in nets.items()}
    return {"case": str(case), "rows": case.rows, "providers": counts}


def huge_step(case: Case, device: torch.device, threads: int) -> tuple[Step, Step]:
    """Make a step of the largest batch: its rows repeat, and the target is the input, so that there is no second."""
    fix(threads)
    few = case._replace(rows=min(case.rows, 1 << 16)).problem(device)
    input = few.input.new_empty(case.rows, case.sizes[0])
    input.view(-1, *few.input.shape).copy_(few.input)
    return by_hand(few._replace(target=few.input)), by_hand(Problem(case, few.mlp, input, input))


def huge(options: argparse.Namespace) -> dict[str, Any]:
    """Run one step at the largest batch, in a fresh process."""
    threads = options.threads[-1]
    call: Callable[..., dict[str, float]] = memory.resident_bytes
    (case,) = command.cases_of(options, [HUGE])
    found = machine.fresh("default", call, huge_step, case, options.device, threads)
    bytes_ = 4 * case.rows * case.sizes[0]
    return {"case": str(case), "rows": case.rows, "threads": threads, "input_bytes": bytes_, **found}


def take(options: argparse.Namespace) -> dict[str, Any]:
    """Take the studies that are asked for."""
    found: dict[str, Any] = {}
    for malloc in options.malloc:
        measured = machine.under_malloc(malloc, frozen, measure, options, malloc)
        for name, rows in measured.items():
            found.setdefault(name, []).extend(rows)
    add_resident(found.get("by_batch", []), options)
    if "kept" in options.studies:
        found["kept"] = [kept(case, options.device) for case in command.cases_of(options, KEPT)]
    if options.huge:
        found["huge"] = huge(options)
    return found
