"""Tables of a GPU whose rows are not torch against ours: rows at once, CUDA graphs, the study of kernels."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from benchmarks.command import interval
from benchmarks.report.gpu.columns import NONE, Read, lines, per_cent, speed, table
from benchmarks.report.runs import Run
from benchmarks.report.tables import Row, micros

AT_ONCE = ("rows at once", "the best", "its time over the best's", "µs by the rows at once")


def _at_once(row: Row, medians: Mapping[str, float]) -> tuple[str, ...]:
    times = "; ".join(f"{size}: {micros(median)}" for size, median in medians.items())
    return str(row["chosen"]), str(row["best"]), interval(row["over_best"], ".2f"), times


def tiles(run: Run) -> str:
    """Lay out the sweeps of ``network`` over the rows of a tile: a line each."""
    found = [(row["case"], *_at_once(row, row["median_us"])) for row in run.get("sweep", ())]
    return table(("network", *AT_ONCE), found)


def sizes(run: Run) -> str:
    """Lay out the sweeps over chunks and tiles, a line each, and the constants of the model that fit them."""
    found = []
    for row in run["rows"]:
        medians = {size: provider["median_us"] for size, provider in row["providers"].items()}
        found.append((row["case"], f"`{row['argument']}`", *_at_once(row, medians)))
    constants = [
        (f"`{one['constant']}`", *(f"{one[which]:,}" if one[which] else NONE for which in ("in_code", "fits")))
        for one in run.get("constants", ())
    ]
    both = table(("case", "of", *AT_ONCE), found), table(("constant", "in the code", "fits"), constants)
    return "\n\n".join(filter(None, both))


def graphs(run: Run) -> str:
    """Lay out train.py with and without a CUDA graph: a line a case and way."""
    found = []
    for row in run["rows"]:
        if "left_out" in row:
            told = row["left_out"], NONE, NONE
        else:
            told = interval(row["seconds"], ".1f"), f"{row['ratio']:.2f}", interval(row["accuracy"], ".2f")
        flags = f"`{row['flags']}`" if row["flags"] else "none"
        found.append((row["case"], flags, "yes" if row["cuda_graph"] else "no", *told))
    return table(("case", "flags", "graph", "training, s", "speed", "test accuracy, %"), found)


def _quickest(write: Callable[[str, Mapping[str, Any]], str]) -> Read:
    """Write something of a row's quickest kernel, as it is or captured, of which it gives name and provider."""

    def read(row: Row) -> str:
        kernels = {name: of for name, of in row["providers"].items() if name.startswith(tuple(row["forms"]))}
        return write(*min(kernels.items(), key=lambda item: item[1]["median_us"])) if kernels else NONE

    return read


_KERNELS = lines(
    {"case": "case", "products": "dtype"},
    {
        "CUDA graph": speed("cuda graph"),
        "compile": speed("compile"),
        "quickest kernel": _quickest(lambda name, _: name),
        "its speed": _quickest(lambda _, kernel: interval(kernel["ratio"], ".2f")),
        "% of its floor": _quickest(lambda _, kernel: per_cent(kernel["floor_share"])),
    },
)


def kernels(run: Run) -> str:
    """Lay out the study of kernels: whether they are right, a line a case, and what is decided."""
    right = run["right"]
    cases = sum(row["cases"] for row in right["rows"])
    held = f"Against float64: {cases} cases, {len(right['wrong'])} wrong; {len(right['failed'])} did not run."
    decided: Sequence[tuple[str, ...]] = [
        (one["question"], one["case"], one["answer"]) for one in run.get("decisions", ())
    ]
    return "\n\n".join(filter(None, (held, _KERNELS(run), table(("question", "case", "answer"), decided))))
