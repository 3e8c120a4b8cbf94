"""One picture: time and memory of a step against the batch."""

import importlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks.layers import BASELINE, OURS

LINES = {BASELINE: ("torch", "#8a8a8a"), OURS: ("backprop", "#b0413e")}


def draw(run: Mapping[str, Any], path: Path) -> Path:
    """Draw time and resident bytes against the batch, under the default malloc, into a file."""
    try:
        matplotlib: Any = importlib.import_module("matplotlib")
    except ImportError:
        raise ImportError("expected matplotlib for the plot: pip install matplotlib") from None
    matplotlib.use("Agg")
    pyplot: Any = importlib.import_module("matplotlib.pyplot")
    rows = [row for row in run["by_batch"] if row["malloc"] == "default"]
    figure, panels = pyplot.subplots(1, 2, figsize=(9, 3.6), layout="constrained")
    threads = "1 thread" if rows[0]["threads"] == 1 else f"{rows[0]['threads']} threads"
    measures = (
        (f"Time of a step in ms, {threads}", lambda p: p["median_us"] / 1e3),
        ("Memory of a step beside its batch, in MB", lambda p: p.get("resident_bytes", p["peak_bytes"]) / 1e6),
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
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150, facecolor="white", metadata={"Software": None})
    pyplot.close(figure)
    return path
