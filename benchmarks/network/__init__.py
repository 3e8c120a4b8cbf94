"""Time whole networks, forward + backward: ``backprop`` and ``MLP`` against torch's own layers.

Each row of the JSON holds:
    case, sizes, rows, activation, loss, dtype (bfloat16: of autocast, over float32), threads, malloc;
    load (average of the last minute), others_cores (that other processes took meanwhile), busy (marked for these);
    number (calls a block), rounds (paired blocks), tile_rows (what ``backprop`` chose; all of them: one tile);
    flops (operations of the products in torch's step), products_us (their time at this run's ceiling for the dtype),
    floor_us (that, or where it is longer the time to move input, target, parameters and gradients at the rate of a
    copy); left_out (providers that do not run, and why);
    providers: torch; manual_mlp (``backprop``); manual_mlp autograd (``MLP.forward`` and ``.backward``); compile and
    compile max-autotune; checkpoint (of the whole) and checkpoint segments; cuda graph; torch float32 (in rows of
    another dtype). For each, median_us, p20_us, p80_us, host_us (on CUDA: what a call takes on the host alone, until it
    is enqueued), ratio and extra_us (torch over it; it minus torch; both as [median, low, high] with a 95 % interval),
    ratios (for ours: each other provider over it), products_share and floor_share (products_us and floor_us over its
    median), error (largest absolute, against float64: loss and the gradient dweight0, dbias0, … of each parameter),
    relative_error (the largest of a gradient over its largest entry), kept_bytes (for backward, beside input, target
    and parameters, of those that build a graph), peak_bytes (the most bytes of new tensors a step holds, on a CPU as
    the profiler sees them on its own thread; what a CUDA graph holds from step to step is not new), wrong (an error
    more than twice torch's own and a millionth of the largest entry), shares (on a CPU, of torch and ours, on one
    thread: products, tensors, which is other work on them, python).
Errors and bytes do not depend on the malloc: they are taken under the first one. Large cases get twice the seconds.

Beside the rows:
    by_batch: time and bytes of torch and ``backprop`` against the batch, 64 wide. Fields as in rows, and
    resident_bytes, on a CPU: how far a step raises the memory of a fresh process (with --tiny: of this one);
    kept: kept_bytes of the network alone, without a loss, in one tile, by provider;
    huge (with --huge): one step at 2^24 rows: input_bytes, seconds, resident_bytes;
    goals: goal (what is compared), case, ours, against, malloc, threads, at_least, value (against over ours, with its
    interval), reached, limit (the shares of a missed one).
"""

import argparse
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from benchmarks import command, machine, memory, products
from benchmarks.harness import errors, fix, negligible
from benchmarks.layers import BASELINE, OURS
from benchmarks.network import goals, studies, tables
from benchmarks.network.cases import CASES, QUICK_CASES, SYNTAX, Case, read_case
from benchmarks.network.providers import (
    AUTOGRAD,
    GRAPHS,
    PROVIDERS,
    USUAL,
    forward_of,
    kept_bytes,
    outcome,
    step_of,
    steps_of,
    that_serve,
)
from benchmarks.shares import shares

STUDIES = ("batch", "kept")


def read_options(arguments: Sequence[str]) -> argparse.Namespace:
    """Read the command line."""
    flags = command.parser("network", "Whole networks, forward + backward, against torch's layers.", dtype=False)
    flags.add_argument("--case", type=read_case, nargs="+", metavar=SYNTAX, help="as in 64-64-10x32-gelu-cross_entropy")
    flags.add_argument(
        "--providers", nargs="+", choices=PROVIDERS,
        help="beside torch and manual_mlp (all but checkpoint segments, and compile max-autotune, which tunes long)",
    )  # fmt: skip
    flags.add_argument("--studies", nargs="*", choices=STUDIES, help="beside the rows (all; with --case, none)")
    flags.add_argument("--huge", action="store_true", help="also one step at 2^24 rows: it needs 5 GB, and a minute")
    options = flags.parse_args(arguments)
    command.complete(flags, options, seconds=1.0)
    if options.studies is None:
        options.studies = () if options.case else STUDIES
    if options.huge and options.device.type != "cpu":
        flags.error(f"--huge: expected --device cpu, whose memory it measures, got {options.device}")
    options.case = command.cases_of(options, CASES, QUICK_CASES, options.case)
    asked = options.providers or (PROVIDERS if options.tiny else USUAL)
    options.providers = [name for name in PROVIDERS if name in (BASELINE, OURS, *asked)]
    options.dtype = ", ".join(dict.fromkeys(case.dtype for case in options.case))
    return options


def time_case(case: Case, options: argparse.Namespace, malloc: str, threads: int) -> dict[str, Any]:
    """Time a row, and take its shares."""
    fix(threads)
    problem = case.problem(options.device)
    steps, missing = steps_of(that_serve(options.providers, case), problem)
    about = {**case._asdict(), "case": str(case), "sizes": list(case.sizes), "malloc": malloc, "left_out": missing}
    about |= {"tile_rows": studies.chosen_rows(problem), **products.operations(steps[BASELINE])}
    row = about | command.time_row(steps, BASELINE, options, threads, case.time, ours=(OURS, AUTOGRAD))
    if threads == options.threads[0] and options.device.type == "cpu":
        fix(1)
        for name in (BASELINE, OURS, AUTOGRAD):
            if name in steps:
                row["providers"][name]["shares"] = shares(steps[name], options.tiny)
    return row


def add_floor(row: dict[str, Any], case: Case, limits: Mapping[str, float]) -> None:
    """Add to a row what its products or its bytes take at least at this run's ceilings, and each provider's share."""
    row["floor_us"] = max(row["products_us"], case.least_bytes / limits["copy_gbs"] / 1e3)
    for provider in row["providers"].values():
        provider["floor_share"] = row["floor_us"] / provider["median_us"]


def check(rows: Sequence[dict[str, Any]], case: Case, device: torch.device) -> None:
    """Add to the rows of a case what does not depend on time: errors against float64, bytes kept, peak bytes."""
    fix(rows[-1]["threads"])
    problem = case.problem(device)
    exact = problem.double()
    truth = outcome(step_of(BASELINE, exact), exact)
    slack = negligible(truth)
    for row in rows:
        fix(row["threads"])
        steps, _ = steps_of(list(row["providers"]), problem)
        for name, step in steps.items():
            provider = row["providers"][name]
            provider["error"] = errors(outcome(step, problem), truth)
            provider["relative_error"] = max(
                provider["error"][part] / (1e6 * slack[part] or 1.0) for part in slack if part != "loss"
            )
            provider["peak_bytes"] = memory.peak_bytes(step, problem.mlp.parameters(), device, warm=False)
            if name in GRAPHS:
                provider["kept_bytes"] = kept_bytes(forward_of(name, problem), problem)
        command.judge(row, BASELINE, slack)


def measure(options: argparse.Namespace, malloc: str) -> tuple[list[dict[str, Any]], dict[int, dict[str, float]]]:
    """Take every row under the malloc this process has; return rows, and ceilings by thread count."""
    keys = [(case, threads) for case in options.case for threads in options.threads]
    rows: list[dict[str, Any]] = []
    for done, (case, threads) in command.turns(keys):
        rows.append(time_case(case, options, malloc, threads))
        command.progress(done, len(keys), f"{case}, {threads} threads, {malloc} malloc")
    # All timing comes first: the checks and ceilings free blocks larger than any row's, which malloc remembers.
    limits = products.ceilings(options, rows)
    for row, (case, threads) in zip(rows, keys, strict=True):
        add_floor(row, case, limits[threads])
    for case in dict.fromkeys(case for case, _ in keys):
        of = [row for row, key in zip(rows, keys, strict=True) if key[0] == case]
        for name, provider in of[0]["providers"].items():
            if "shares" in provider:  # they are those of one thread
                for row in of[1:]:
                    row["providers"].get(name, {})["shares"] = provider["shares"]
        if malloc == options.malloc[0]:
            check(of, case, options.device)
    return rows, limits


def show(rows: Sequence[dict[str, Any]], found: Mapping[str, Any]) -> None:
    """Print the tables."""
    print("\nTime of forward + backward; above 1, ours is faster.\n" + tables.times(rows))
    print("\nMB kept for backward and held at most, and errors against float64.\n" + tables.checks(rows))
    if any("shares" in row["providers"][OURS] for row in rows):
        print("\nWhat the time goes to, on one thread.\n" + tables.shares(rows))
    titles = {
        "by_batch": ("Against the batch.", tables.by_batch),
        "kept": ("Kept for backward by the network alone, in one tile, beside input and parameters.", tables.kept),
        "goals": ("Goals.", tables.of_goals),
    }
    for name, (title, write) in titles.items():
        if found.get(name):
            print(f"\n{title}\n{write(found[name])}")
    if "huge" in found:
        print("\n{case}: {seconds:.1f} s, {0:,.0f} MB beside the input's {1:,.0f} MB".format(
            found["huge"]["resident_bytes"] / 1e6, found["huge"]["input_bytes"] / 1e6, **found["huge"]
        ))  # fmt: skip


def main(arguments: Sequence[str]) -> int:
    """Measure, print, write; return 1 if ours is wrong in any row."""
    options = read_options(arguments)
    run = command.whole_run("network", measure, options)
    rows, found = run["rows"], {} if command.PARTIAL.is_set() else studies.take(options)
    amx = options.device.type == "cpu" and machine.features()["amx_bf16"]
    found["goals"] = goals.of_times(rows, amx) + goals.of_bytes(found.get("by_batch", []), found.get("kept", []))
    show(rows, found)
    if options.json:
        print(f"\nwritten: {command.save('network', run | found, options)}")
    return int(command.any_wrong(rows, (OURS, AUTOGRAD)))
