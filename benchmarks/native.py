"""Time the native engine against torch and against the plain engine, and hold its goals.

Each row of the JSON holds:
    group (layer, layer by grad, backprop, backprop with dropout, MLP, head, second order), case, of (activation or
    loss), dtype, threads, malloc;
    load (average of the last minute), others_cores (that other processes took meanwhile), busy (marked for these);
    number (calls a block), rounds (paired blocks), flops (operations of the products in torch's step), products_us
    (their time at this run's ceiling for the dtype);
    goal (what torch over manual_mlp is to be), reached (whether it is);
    providers: torch; manual_mlp (native, where it is on); plain (manual_mlp without it); products (the matrix products
    of torch's step alone, into memory that is there: the limit of every other). For each, median_us, p20_us, p80_us,
    host_us (on CUDA: what a call takes on the host alone, until it is enqueued), ratio and extra_us (torch over it; it
    minus torch; both as [median, low, high] with a 95 % interval), products_share (products_us over its median), wrong;
    and for all but products error (largest absolute, against float64), peak_bytes. manual_mlp has ratios too, against
    each other provider.
On CUDA the goals are others: where the host is what torch waits for, 1.5 by ``backprop`` and 1.2 else; and else 1.
With dropout, masks are plain's, so that errors are held to plain's, and torch has none.
"""

import argparse
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import torch

from benchmarks import command, memory, products
from benchmarks.harness import errors, fix, negligible
from benchmarks.layers import BASELINE, OURS
from benchmarks.native_rows import (
    GROUPS,
    PLAIN,
    PRODUCTS,
    ROWS,
    TRUTH,
    Made,
    Row,
    plainly,
    rows_of,
)
from benchmarks.tiny import shrunk
from manual_mlp.engines import native

HOST_BOUND = 0.9


def read_options(arguments: Sequence[str]) -> argparse.Namespace:
    """Read the command line."""
    flags = command.parser("native", "The native engine against torch and plain, and its goals.", dtype=False)
    flags.add_argument("--group", nargs="+", choices=GROUPS, default=GROUPS)
    flags.add_argument("--only", metavar="TEXT", default="", help="rows whose name holds this")
    options = flags.parse_args(arguments)
    command.complete(flags, options, seconds=1.5)
    if native.doors is None:
        flags.error(f"native is off: {native.why()}")
    options.rows = [
        row
        for row in (rows_of(shrunk) if options.tiny else ROWS)
        if row.group in options.group and options.only in str(row) and (row.quick or not options.quick)
    ]
    if not options.rows:
        flags.error(f"--only: expected a part of a row's name, got {options.only!r}")
    options.dtype = "float32"
    return options


def of_launches(row: Row, taken: Mapping[str, Any]) -> float:
    """Return the goal of a row on CUDA: ours can save launches alone, where the host takes as long as the step."""
    torch_ = taken["providers"][BASELINE]
    bound = torch_["host_us"] >= HOST_BOUND * torch_["median_us"]
    return 1.0 if not bound else 1.5 if row.group.startswith("backprop") else 1.2


def measure(options: argparse.Namespace, malloc: str) -> tuple[list[dict[str, Any]], dict[int, dict[str, float]]]:
    """Take every row under the malloc this process has; return rows, and ceilings by thread count."""
    keys, rows = [(row, threads) for row in options.rows for threads in options.threads], []
    for done, (row, threads) in command.turns(keys):
        fix(threads)
        made = row.make(options.device)
        steps = {
            **made.steps,
            PLAIN: plainly(made.steps[OURS]),
            PRODUCTS: products.products_of(made.steps[BASELINE], options.device),
        }
        taken = command.time_row(steps, BASELINE, options, threads, ours=(OURS,))
        goal = row.goal.at(malloc, threads) if options.device.type == "cpu" else of_launches(row, taken)
        reached = taken["providers"][OURS]["ratio"][0] >= goal
        about = {"group": row.group, "case": row.case, "of": row.of, "dtype": row.dtype, "malloc": malloc}
        about |= products.operations(made.steps[BASELINE])
        rows.append(about | taken | {"goal": goal, "reached": reached})
        command.progress(done, len(keys), f"{row}, {threads} threads, {malloc} malloc")
    # All timing comes first: the checks and ceilings free blocks larger than any row's, which malloc remembers.
    limits = products.ceilings(options, rows)
    if malloc == options.malloc[0]:
        for taken, (row, threads) in zip(rows, keys, strict=True):
            fix(threads)
            check(taken, row.make(options.device), options.device)
    return rows, limits


def check(taken: dict[str, Any], made: Made, device: torch.device) -> None:
    """Add to a row what does not depend on time: errors against float64, peak bytes."""
    truth = made.outcome(TRUTH)
    slack = negligible(truth)
    providers = taken["providers"]
    for name in (BASELINE, OURS, PLAIN):
        outcome, step = (partial(made.outcome, OURS), made.steps[OURS]) if name == PLAIN else (None, None)
        found = plainly(outcome)() if outcome else made.outcome(name)
        providers[name]["error"] = errors(found, truth)
        providers[name]["peak_bytes"] = memory.peak_bytes(
            plainly(step) if step else made.steps[name], made.leaves, device
        )
    if made.against != BASELINE:
        del providers[BASELINE]["error"]
    held = {name: providers[name] for name in (BASELINE, OURS, PLAIN) if "error" in providers[name]}
    command.judge({"providers": held}, made.against, slack)
    providers[PRODUCTS]["wrong"] = False
    providers[BASELINE].setdefault("wrong", False)


def verdict(row: Mapping[str, Any]) -> str:
    """Say whether a goal is missed, and by what the row is bound; and whether it is below plain."""
    ours, found = row["providers"][OURS], []
    if not row["reached"]:
        clearly = ours["ratio"][2] < row["goal"]
        found.append(f"MISSED{'' if clearly else ' within the interval'}")
        if row["providers"][PRODUCTS]["ratio"][0] < row["goal"]:
            found.append("its products alone miss it")
    if ours["ratios"][PLAIN][2] < 1:
        found.append("BELOW PLAIN")
    if ours.get("peak_bytes", 0) > 1.01 * row["providers"][PLAIN].get("peak_bytes", float("inf")):
        found.append("PEAK ABOVE PLAIN")
    return ", ".join(note for note in (*found, command.notes(row)) if note)


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Lay out times, ratios, goals and errors: a line a row."""
    titles = (
        "case", "of", "threads", "malloc", "torch µs", "ours µs", "products µs", "torch/ours [95 %]", "goal",
        "torch/products", "plain/ours", "error: torch, ours, plain", "",
    )  # fmt: skip
    lines = []
    for row in rows:
        torch_, ours, plain, products = (row["providers"][name] for name in (BASELINE, OURS, PLAIN, PRODUCTS))
        largest = (f"{max(p['error'].values()):.1e}" if "error" in p else "–" for p in (torch_, ours, plain))
        lines.append(
            (
                f"{row['group']} {row['case']}",
                row["of"],
                str(row["threads"]),
                row["malloc"],
                *(f"{p['median_us']:,.1f}" for p in (torch_, ours, products)),
                command.interval(ours["ratio"], ".3f"),
                f"{row['goal']:.2f}",
                f"{products['ratio'][0]:.2f}",
                f"{ours['ratios'][PLAIN][0]:.2f}",
                ", ".join(largest),
                verdict(row),
            )
        )
    return command.table(titles, lines)


def main(arguments: Sequence[str]) -> int:
    """Measure, print, write; return 1 if any row is wrong."""
    options = read_options(arguments)
    run = command.whole_run("native", measure, options)
    rows = run["rows"]
    print("\nTime of forward + backward; above 1, ours is faster. torch/products: what a step of products alone would "
          "reach.\n" + table(rows))  # fmt: skip
    missed = [row for row in rows if not row["reached"]]
    print(f"\n{len(rows) - len(missed)} of {len(rows)} goals are reached.")
    if options.json:
        print(f"\nwritten: {command.save('native', run, options)}")
    return int(command.any_wrong(rows))
