"""Time ``torch.compile`` of ours against ``torch.compile`` of torch's own, and count the graphs of both.

Each row of the JSON holds:
    group (Linear, Dense, MLP, loss), case, of (activation or loss), way (step: forward + ``.backward()``; forward:
    that alone, in no_grad), mode (of torch.compile), threads, malloc;
    load (average of the last minute), others_cores (that other processes took meanwhile), busy (marked for these);
    number (calls a block), rounds (paired blocks), flops (operations of the products in torch's step), products_us
    (their time at this run's ceiling);
    reached (whether the interval of torch over manual_mlp, both compiled, reaches 0.97);
    providers: torch (compiled); manual_mlp (compiled); manual_mlp eager (not compiled). For each, median_us, p20_us,
    p80_us, host_us (on CUDA: what a call takes on the host alone, until it is enqueued), ratio and extra_us (torch over
    it; it minus torch; both as [median, low, high] with a 95 % interval), products_share (products_us over its median),
    error (largest absolute, against float64: output, dinput, dweight, …), peak_bytes (the most bytes of new tensors a
    step holds: under max-autotune on CUDA few, since its graphs hold theirs from step to step), wrong (an error more
    than twice torch's own and a millionth of the largest entry). manual_mlp has ratios too, against each other
    provider, and peak_over_eager (its peak over that of manual_mlp eager).
What is compiled is forgotten before every row. Errors and peaks are taken under the first malloc, behind the time.

Beside the rows, graphs: subject, pattern (of calls), torch and manual_mlp: graphs (of the first call), recompiled
(graphs that later calls add), breaks; more (whether ours makes more of any).
"""

import argparse
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from benchmarks import command, memory, products
from benchmarks.compile import graphs
from benchmarks.compile.rows import EAGER, GROUPS, MODES, ROWS, WAYS, Row, outcome, rows_of, step_of, steps_of
from benchmarks.harness import errors, fix, negligible
from benchmarks.layers import BASELINE, OURS
from benchmarks.tiny import shrunk

LEAST = 0.97
MOST_PEAK = 1.2
PARTS = ("rows", "graphs")


def read_options(arguments: Sequence[str]) -> argparse.Namespace:
    """Read the command line."""
    flags = command.parser("compile", "torch.compile of ours against torch.compile of torch's own.", dtype=False)
    flags.add_argument("--group", nargs="+", choices=GROUPS, default=GROUPS)
    flags.add_argument("--way", nargs="+", choices=WAYS, default=WAYS)
    flags.add_argument("--mode", nargs="+", choices=MODES, default=MODES, help="of torch.compile")
    flags.add_argument("--only", metavar="TEXT", default="", help="rows whose name holds this")
    flags.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS, help="what is measured (all)")
    options = flags.parse_args(arguments)
    command.complete(flags, options, seconds=1.5)
    options.rows = [
        row
        for row in (rows_of(shrunk) if options.tiny else ROWS)
        if row.group in options.group
        and row.way in options.way
        and row.mode in options.mode
        and options.only in str(row)
        and (row.quick or not options.quick)
        and "rows" in options.parts
    ]
    if not options.rows and "rows" in options.parts:
        flags.error(f"--only: expected a part of a row's name, got {options.only!r}")
    options.dtype = "float32"
    return options


def take(row: Row, options: argparse.Namespace, malloc: str, threads: int) -> dict[str, Any]:
    """Compile, time, and check under the first malloc."""
    fix(threads)
    torch.compiler.reset()
    made = row.make(options.device, torch.float32)
    steps = steps_of(made, row)
    about = {"group": row.group, "case": row.case, "of": row.of, "way": row.way, "mode": row.mode, "malloc": malloc}
    # Not of what is compiled, whose products are not seen.
    about |= products.operations(step_of(made.functions[BASELINE], made, row.way))
    taken = about | command.time_row(steps, BASELINE, options, threads, ours=(OURS,))
    providers = taken["providers"]
    taken["reached"] = providers[OURS]["ratio"][2] >= LEAST
    if malloc != options.malloc[0]:
        return taken
    # It is not compiled a second time to be checked.
    exact = row.make(options.device, torch.float64)
    truth = outcome(step_of(exact.functions[BASELINE], exact, row.way), exact)
    for name, step in steps.items():
        providers[name]["error"] = errors(outcome(step, made), truth)
        providers[name]["peak_bytes"] = memory.peak_bytes(step, made.leaves.values(), options.device)
    providers[OURS]["peak_over_eager"] = providers[OURS]["peak_bytes"] / max(1, providers[EAGER]["peak_bytes"])
    command.judge(taken, BASELINE, negligible(truth))
    return taken


def measure(options: argparse.Namespace, malloc: str) -> tuple[list[dict[str, Any]], dict[int, dict[str, float]]]:
    """Take every row under the malloc this process has; return rows, and ceilings by thread count."""
    keys = [(row, threads) for row in options.rows for threads in options.threads]
    rows = []
    for done, (row, threads) in command.turns(keys):
        rows.append(take(row, options, malloc, threads))
        command.progress(done, len(keys), f"{row}, {threads} threads, {malloc} malloc")
    torch.compiler.reset()
    return rows, products.ceilings(options, rows)


def verdict(row: Mapping[str, Any]) -> str:
    """Say what falls short: the time of a compiled twin; for a loss also the time and the peak of eager ours."""
    ours, found = row["providers"][OURS], []
    if not row["reached"]:
        found.append(f"BELOW {LEAST}")
    if row["group"] == "loss":
        if ours["ratios"][EAGER][2] < LEAST:
            found.append("SLOWER THAN EAGER")
        if ours["peak_over_eager"] > MOST_PEAK:
            found.append("PEAK ABOVE EAGER'S")
    return ", ".join(note for note in (*found, command.notes(row)) if note)


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Lay out times, ratios, peaks and errors: a line a row."""
    titles = (
        "case", "of", "way", "mode", "threads", "malloc", "torch µs", "ours µs", "eager µs", "torch/ours [95 %]",
        f"reaches {LEAST}", "eager/ours [95 %]", "peak MB: torch, ours, eager", "ours/eager", "error: torch, ours", "",
    )  # fmt: skip
    lines = []
    for row in rows:
        torch_, ours, eager = (row["providers"][name] for name in (BASELINE, OURS, EAGER))
        lines.append(
            (
                f"{row['group']} {row['case']}",
                *(row[key] for key in ("of", "way", "mode")),
                str(row["threads"]),
                row["malloc"],
                *(f"{p['median_us']:,.1f}" for p in (torch_, ours, eager)),
                command.interval(ours["ratio"], ".3f"),
                "yes" if row["reached"] else "NO",
                command.interval(ours["ratios"][EAGER], ".2f"),
                ", ".join(f"{p['peak_bytes'] / 1e6:,.2f}" for p in (torch_, ours, eager)),
                f"{ours['peak_over_eager']:.2f}",
                f"{max(torch_['error'].values()):.1e}, {max(ours['error'].values()):.1e}",
                verdict(row),
            )
        )
    return command.table(titles, lines)


def graphs_table(found: Sequence[Mapping[str, Any]]) -> str:
    """Lay out the counts: a line for each subject and pattern."""
    titles = ("subject", "pattern", "graphs: torch, ours", "recompiled", "breaks", "")
    lines = [(f["subject"], f["pattern"], *graphs.cells(f), "MORE" if f["more"] else "") for f in found]
    return command.table(titles, lines)


def main(arguments: Sequence[str]) -> int:
    """Measure, print, write; return 1 if ours is wrong in any row."""
    options = read_options(arguments)
    run = command.whole_run("compile", measure, options)
    rows = run["rows"]
    if rows:
        print("\nBoth compiled; above 1, ours is faster. eager: ours without a compiler.\n" + table(rows))
        short = [row for row in rows if not row["reached"]]
        print(f"\n{len(rows) - len(short)} of {len(rows)} rows reach {LEAST}.")
    run["graphs"] = graphs.count_all(device=options.device) if "graphs" in options.parts else []
    if run["graphs"]:
        print("\nGraphs of a pattern of calls; one figure where both are equal.\n" + graphs_table(run["graphs"]))
        more = sum(found["more"] for found in run["graphs"])
        print(f"\nOurs makes more graphs, breaks or recompilations in {more} of {len(run['graphs'])} patterns.")
    if options.json:
        print(f"\nwritten: {command.save('compile', run, options)}")
    return int(command.any_wrong(rows, (OURS, EAGER)))
