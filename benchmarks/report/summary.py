"""The README's table: a dozen steps, those where torch is faster among them."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from benchmarks.layers import BASELINE, OURS
from benchmarks.report.runs import CPU, Run, device_of
from benchmarks.report.tables import MALLOCS, Row, figure, markdown, megabytes, micros, milliseconds, ratio

COMMANDS = ("native", "dense", "network", "compile", "transforms")


class Line(NamedTuple):
    """One line: what it says, and the rows of a command that it shows."""

    says: str
    command: str
    which: Mapping[str, Any]


LINES = (
    Line("layer 32×64→64, relu", "native", {"group": "layer", "case": "32×64→64", "of": "relu"}),
    Line("layer 512×1024→4096, gelu", "dense", {"case": "512×1024→4096", "activation": "gelu"}),
    Line(
        "`backprop`, 784→128→10, 64 rows, dropout", "native",
        {"group": "backprop with dropout", "case": "784→128→10, 64 rows"},
    ),
    Line(
        "`backprop`, 64→64×2→10, 32 rows", "native",
        {"group": "backprop", "case": "64→64×2→10, 32 rows", "of": "relu"},
    ),
    Line(
        "`backprop`, 64→64×4→64, 131072 rows", "native",
        {"group": "backprop", "case": "64→64×4→64, 131072 rows", "of": "relu"},
    ),
    Line(
        "the same by `MLP` and `.backward()`", "native",
        {"group": "MLP", "case": "64→64×4→64, 131072 rows", "of": "relu"},
    ),
    Line("`backprop`, 1024→4096→1024, 512 rows", "network", {"case": "1024→4096→1024, 512 rows, relu"}),
    Line(
        "cross-entropy of 2048×64→4096", "native",
        {"group": "head", "case": "2048×64→4096 float32", "of": "cross-entropy"},
    ),
    Line(
        "cross-entropy of 4096×512→32000", "native",
        {"group": "head", "case": "4096×512→32000 float32", "of": "cross-entropy"},
    ),
    Line("PINN 4 × 64, first derivatives in the loss", "native", {"group": "second order", "case": "pinn 64"}),
    Line("the same with second derivatives", "native", {"group": "second order", "case": "poisson 64"}),
    Line(
        "`torch.compile`, MLP 784→512→256→10", "compile",
        {"case": "784→512→256→10, 256 rows", "way": "step", "mode": "default"},
    ),
    Line(
        "`torch.func.grad`, 64→64→64→10, gelu", "transforms",
        {"case": "grad", "net": "64→64→64→10", "activation": "gelu"},
    ),
)  # fmt: skip


def row_of(line: Line, runs: Mapping[str, Run], malloc: str) -> Row | None:
    """Find the row of a line, of one thread, if it was measured."""
    rows: Sequence[Row] = runs[line.command]["rows"] if line.command in runs else ()
    asked = {"threads": 1, "malloc": malloc, **line.which}
    return next((row for row in rows if asked.items() <= row.items()), None)


def summary(*runs: Run) -> str:
    """Lay out a dozen steps of one thread: torch's time, torch's time over ours under each malloc, and on each GPU."""
    devices: dict[str, dict[str, Run]] = {}
    for run in runs:
        devices.setdefault(device_of(run), {})[run["name"]] = run
    here = devices.pop(CPU)
    lines = []
    for line in LINES:
        rows = {malloc: row for malloc in MALLOCS if (row := row_of(line, here, malloc))}
        both = [rows[MALLOCS[0]]["providers"][name] for name in (BASELINE, OURS)]
        lines.append(
            (
                line.says,
                milliseconds(both[0]),
                *(figure(rows[malloc], ratio(OURS)) if malloc in rows else "–" for malloc in MALLOCS),
                ", ".join(megabytes(one["peak_bytes"]) for one in both) if "peak_bytes" in both[1] else "–",
                *(on_card(row_of(line, of, MALLOCS[0])) for of in devices.values()),
            )
        )
    titles = ("forward + backward", "torch ms", "speed", "speed, tuned malloc", "peak MB: torch, ours")
    return markdown((*titles, *(f"{card}: torch µs, speed" for card in devices)), lines)


def on_card(row: Row | None) -> str:
    """Write torch's time on a GPU, and torch's over ours."""
    return f"{micros(row['providers'][BASELINE]['median_us'])}, {figure(row, ratio(OURS))}" if row else "–"
