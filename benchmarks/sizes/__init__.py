"""How many rows at once: hold the choices of ``manual_mlp/sweep/tiling.py`` against a sweep on this machine.

Swept are ``chunk_rows`` of ``linear_cross_entropy``, with unfused torch beside it, and ``tile_rows`` of ``backprop``:
each from a small tile to all rows, by powers of two.

Each row of the JSON holds:
    argument (chunk_rows or tile_rows), case, rows, row_bytes (that the model for a GPU counts for a row), threads,
    malloc;
    load (average of the last minute), others_cores (that other processes took meanwhile), busy (marked for these);
    number (calls a block), rounds (paired blocks); left_out (sizes that do not run, and why);
    chosen (by the model; torch: its own operations), best (of all), over_best (the time of the choice over the best,
    with a 95 % interval);
    providers, by the rows at once, and torch: for each, median_us, p20_us, p80_us, ratio and extra_us (the choice over
    it; it minus the choice; both as [median, low, high] with a 95 % interval), peak_bytes.

Beside the rows of a GPU:
    constants: of the model: constant, rows (that tell of it), in_code (its value there), fits (the smallest power of
    two whose choices are within 5 % of the best in every row, or else the least bad), and of both the cost,
    in_code_cost and fits_cost: worst and mean (of the time of its choices over the best), peak_bytes (the most of its
    choices).
"""

import argparse
from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks import command
from benchmarks.sizes import fit, sweeps

ARGUMENTS = ("chunk_rows", "tile_rows")


def read_options(arguments: Sequence[str]) -> argparse.Namespace:
    """Read the command line."""
    flags = command.parser("sizes", "Rows of a chunk and of a tile: the model's choice, and the best.", dtype=False)
    flags.add_argument("--only", nargs="+", choices=ARGUMENTS, default=ARGUMENTS, help="what is swept (both)")
    options = flags.parse_args(arguments)
    command.complete(flags, options, seconds=1.0)
    options.dtype = "float32, bfloat16"
    return options


def measure(options: argparse.Namespace, malloc: str) -> tuple[list[dict[str, Any]], dict[int, dict[str, float]]]:
    """Take every sweep under the malloc this process has; there are no ceilings to hold it against."""
    keys = [(make, threads) for make in sweeps.subjects(options) for threads in options.threads]
    rows: list[dict[str, Any]] = []
    for done, (make, threads) in command.turns(keys):
        rows.append(sweeps.sweep(make(), options, malloc, threads))
        command.progress(done, len(keys), f"{rows[-1]['argument']}, {rows[-1]['case']}, {threads} threads")
    return rows, {}


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Lay out what the rows at once cost: a line a sweep."""
    titles = (
        "case", "of", "threads", "malloc", "chosen", "best", "over the best [95 %]", "peak MB: chosen, best",
        "ms by the rows at once", "",
    )  # fmt: skip
    lines = []
    for row in rows:
        providers = row["providers"]
        peaks = (providers[row[which]]["peak_bytes"] / 1e6 for which in ("chosen", "best"))
        times = (f"{name}: {provider['median_us'] / 1e3:.3g}" for name, provider in providers.items())
        lines.append(
            (
                row["case"],
                row["argument"],
                str(row["threads"]),
                row["malloc"],
                row["chosen"],
                row["best"],
                command.interval([x - 1 for x in row["over_best"]], "+.1%"),
                ", ".join(f"{peak:,.1f}" for peak in peaks),
                ", ".join(times),
                command.notes(row),
            )
        )
    return command.table(titles, lines)


def constants_table(found: Sequence[Mapping[str, Any]]) -> str:
    """Lay out the constants: a line each for what is in the code and for what fits."""
    titles = ("constant", "rows", "", "value", "over the best: worst", "mean", "most MB")
    lines = []
    for one in found:
        for which in ("in_code", "fits"):
            value, cost = one[which], one[f"{which}_cost"]
            told = ("–", "–", "–")
            if cost:
                told = (f"{cost['worst'] - 1:+.1%}", f"{cost['mean'] - 1:+.1%}", f"{cost['peak_bytes'] / 1e6:,.1f}")
            lines.append((one["constant"], str(one["rows"]), which.replace("_", " "), written(value), *told))
    return command.table(titles, lines)


def written(value: int | None) -> str:
    """Write a power of two as such."""
    if value is None:
        return "none was measured"
    return f"2^{value.bit_length() - 1}" if value & (value - 1) == 0 else f"{value:,}"


def main(arguments: Sequence[str]) -> int:
    """Measure, print, write."""
    options = read_options(arguments)
    run = command.whole_run("sizes", measure, options)
    print("\nRows at once: the model's choice, and the best.\n" + table(run["rows"]))
    if options.device.type == "cuda":
        run["constants"] = fit.constants(run["rows"])
        print("\nConstants of manual_mlp/sweep/tiling.py.\n" + constants_table(run["constants"]))
    if options.json:
        print(f"\nwritten: {command.save('sizes', run, options)}")
    return 0
