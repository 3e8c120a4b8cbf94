"""Two pictures: time and memory of a step against the batch, and against each other by the number of chunks."""

import importlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks.layers import BASELINE, OURS

LINES = {BASELINE: ("torch", "#8a8a8a"), OURS: ("backprop", "#b0413e")}
PEERS = {
    BASELINE: ("torch", "#8a8a8a"),
    f"{BASELINE} compiled": ("torch compiled", "#3a3a3a"),
    OURS: ("ours", "#b0413e"),
    f"{OURS} compiled": ("ours compiled", "#e08a5b"),
    "torch chunked": ("torch chunked", "#4a78a8"),
    "torch chunked compiled": ("torch chunked, compiled", "#8fb4d9"),
    "Liger-Kernel": ("Liger-Kernel", "#5a9e6f"),
    "cut-cross-entropy": ("cut-cross-entropy", "#8e6bb0"),
}


def pyplot_without_display() -> Any:
    """Import matplotlib's pyplot to draw into files."""
    try:
        matplotlib: Any = importlib.import_module("matplotlib")
    except ImportError:
        raise ImportError("expected matplotlib for the plot: pip install matplotlib") from None
    matplotlib.use("Agg")
    return importlib.import_module("matplotlib.pyplot")


def write(pyplot: Any, figure: Any, path: Path) -> Path:
    """Write a figure into a file, and close it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150, facecolor="white", metadata={"Software": None})
    pyplot.close(figure)
    return path


def draw(run: Mapping[str, Any], path: Path) -> Path:
    """Draw time and resident bytes against the batch, under the default malloc, into a file."""
    pyplot = pyplot_without_display()
    rows = [row for row in run["by_batch"] if row["malloc"] == "default"]
    figure, panels = pyplot.subplots(1, 2, figsize=(9, 3.6), layout="constrained")
    threads = "1 thread" if rows[0]["threads"] == 1 else f"{rows[0]['threads']} threads"
    measures = (
        (f"Time of a step in ms, {threads}", lambda p: p["median_us"] / 1e3),
        ("Resident memory that a step adds, in MB", lambda p: p.get("resident_bytes", p["peak_bytes"]) / 1e6),
    )
    for panel, (title, read) in zip(panels, measures, strict=True):
        for name, (label, colour) in LINES.items():
            batches = [row["rows"] for row in rows]
            values = [read(row["providers"][name]) for row in rows]
            panel.plot(batches, values, color=colour, marker="o", markersize=4, linewidth=2)
            panel.annotate(
                label, (batches[-1], values[-1]), xytext=(7, 0), textcoords="offset points", color=colour,
                va="center", weight="bold",
            )  # fmt: skip
        panel.set_xscale("log", base=2)
        panel.set_yscale("log")
        panel.yaxis.set_major_formatter(lambda value, _: f"{value:,g}")
        panel.set_title(title, loc="left", fontsize=11)
        panel.set_xlabel("rows of the batch")
        panel.grid(axis="y", color="#e5e5e5", linewidth=0.8)
        panel.set_axisbelow(True)
        panel.spines[["top", "right"]].set_visible(False)
        panel.margins(x=0.03)
    figure.suptitle(rows[0]["case"].split(",")[0] + ", relu, forward + backward", x=0.01, ha="left", fontsize=9)
    return write(pyplot, figure, path)


def draw_peers(run: Mapping[str, Any], path: Path) -> Path:
    """Draw the time of a step against its peak bytes: a panel for each case, a curve for each provider, into a file."""
    pyplot = pyplot_without_display()
    # A case is drawn once: with its fewest threads, under its first malloc.
    rows = list({row["case"]: row for row in reversed(run["rows"])}.values())[::-1]
    figure, panels = pyplot.subplots(
        1, len(rows), figsize=(1 + 5 * len(rows), 4.4), layout="constrained", squeeze=False
    )
    for panel, row in zip(panels[0], rows, strict=True):
        for curve, (label, colour) in PEERS.items():
            of = [p for p in row["providers"].values() if p["curve"] == curve]
            told = sorted((p for p in of if p["chunks"]), key=lambda p: p["chunks"])
            x, y = ([read(p) for p in told] for read in (megabytes, milliseconds))
            panel.plot(x, y, color=colour, marker="o", markersize=4, linewidth=1.5, label=label if told else None)
            for p in told[:: max(1, len(told) - 1)]:
                panel.annotate(
                    f"{p['chunks']}", (megabytes(p), milliseconds(p)), xytext=(0, 5), textcoords="offset points",
                    color=colour, fontsize=8, ha="center",
                )  # fmt: skip
            for p in (p for p in of if not p["chunks"]):
                label = label if not told else f"{label}, its own choice"
                panel.plot([megabytes(p)], [milliseconds(p)], color=colour, marker="D", linestyle="", label=label)
        panel.set_xscale("log")
        panel.set_ylim(bottom=0)
        panel.xaxis.set_major_formatter(lambda value, _: f"{value:,g}")
        panel.xaxis.set_minor_formatter(lambda value, _: "")
        threads = f"{row['threads']} thread{'s' * (row['threads'] > 1)}"
        panel.set_title(f"{row['case']}, {threads}: ms of a step", loc="left", fontsize=10)
        panel.set_xlabel("peak of new tensors in MB; numbers are chunks")
        panel.grid(color="#e5e5e5", linewidth=0.8)
        panel.set_axisbelow(True)
        panel.spines[["top", "right"]].set_visible(False)
    panels[0][-1].legend(fontsize=8, frameon=False, loc="center left", bbox_to_anchor=(1, 0.5))
    return write(pyplot, figure, path)


def megabytes(point: Mapping[str, Any]) -> float:
    """Read the peak of a point."""
    return point["peak_bytes"] / 1e6


def milliseconds(point: Mapping[str, Any]) -> float:
    """Read the time of a point."""
    return point["median_us"] / 1e3
