"""The tables that ``python -m benchmarks network`` prints."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from benchmarks import command
from benchmarks.layers import BASELINE, OURS
from benchmarks.network import goals
from benchmarks.network.providers import AUTOGRAD, PROVIDERS

Row = Mapping[str, Any]


def short(name: str) -> str:
    """Name a provider in a title."""
    return name.replace(OURS, "ours")


def who(rows: Sequence[Row]) -> list[str]:
    """List the providers that any of the rows has, in their order."""
    return [name for name in PROVIDERS if any(name in row["providers"] for row in rows)]


def cell(row: Row, name: str, write: Callable[[Any], str]) -> str:
    """Write a cell of a provider; a dash where the row has not got it."""
    return write(row["providers"][name]) if name in row["providers"] else "–"


def times(rows: Sequence[dict[str, Any]]) -> str:
    """Lay out times and ratios: a line a row."""
    names = who(rows)
    peers = [name for name in names if name not in (BASELINE, OURS)]
    titles = (
        "case", "threads", "malloc", "tile", "torch ms (p20–p80)", "ours ms (p20–p80)", "torch/ours [95 %]",
        *(f"{short(name)}/ours" for name in peers), f"torch/{short(AUTOGRAD)}", "share of floor: torch, ours", "",
    )  # fmt: skip
    lines = []
    for row in rows:
        torch_, ours = (row["providers"][name] for name in (BASELINE, OURS))
        lines.append(
            (
                row["case"],
                str(row["threads"]),
                row["malloc"],
                f"{row['tile_rows']:,}" if row["tile_rows"] < row["rows"] else "all",
                *(spread(provider) for provider in (torch_, ours)),
                command.interval(ours["ratio"], ".2f"),
                *(f"{ours['ratios'][name][0]:.2f}" if name in ours["ratios"] else "–" for name in peers),
                cell(row, AUTOGRAD, lambda p: f"{p['ratio'][0]:.2f}"),
                f"{torch_['floor_share']:.0%}, {ours['floor_share']:.0%}",
                command.notes(row),
            )
        )
    return command.table(titles, lines)


def spread(provider: Row) -> str:
    """Write a median time with its 20th and 80th percentile, in ms."""
    median, low, high = (f"{provider[f'{name}_us'] / 1e3:.3g}" for name in ("median", "p20", "p80"))
    return f"{median} ({low}–{high})"


def checks(rows: Sequence[dict[str, Any]]) -> str:
    """Lay out bytes and errors: a line for each case, thread count and provider."""
    titles = ("case", "threads", "provider", "kept MB", "peak MB", "error: loss", "gradients / largest", "")
    lines = {}
    for row in rows:
        for name, provider in row["providers"].items():
            lines[row["case"], row["threads"], name] = (
                row["case"],
                str(row["threads"]),
                short(name),
                f"{provider['kept_bytes'] / 1e6:,.2f}" if "kept_bytes" in provider else "–",
                f"{provider['peak_bytes'] / 1e6:,.2f}",
                f"{provider['error']['loss']:.1e}",
                f"{provider['relative_error']:.1e}",
                "WRONG" if provider["wrong"] else "",
            )
    return command.table(titles, list(lines.values()))


def shares(rows: Sequence[dict[str, Any]]) -> str:
    """Lay out what a step's time is spent on, on one thread: a line for each case and malloc."""
    names = [name for name in (BASELINE, OURS, AUTOGRAD) if any(name in row["providers"] for row in rows)]
    titles = ("case", "malloc", *(f"{short(name)}: products, tensors, Python" for name in names))
    lines = {
        (row["case"], row["malloc"]): (
            row["case"],
            row["malloc"],
            *(cell(row, name, lambda p: ", ".join(f"{x:.0%}" for x in p["shares"].values())) for name in names),
        )
        for row in rows
    }
    return command.table(titles, list(lines.values()))


def by_batch(found: Sequence[Row]) -> str:
    """Lay out time and bytes against batch: a line a batch and malloc."""
    titles = (
        "rows", "malloc", "threads", "torch ms", "ours ms", "torch/ours", "peak MB: torch, ours",
        "resident MB: torch, ours", "",
    )  # fmt: skip
    lines = []
    for row in found:
        both = [row["providers"][name] for name in (BASELINE, OURS)]
        resident = [f"{p['resident_bytes'] / 1e6:,.1f}" for p in both if "resident_bytes" in p]
        lines.append(
            (
                f"{row['rows']:,}",
                row["malloc"],
                str(row["threads"]),
                *(f"{p['median_us'] / 1e3:.3g}" for p in both),
                f"{both[1]['ratio'][0]:.2f}",
                ", ".join(f"{p['peak_bytes'] / 1e6:,.1f}" for p in both),
                ", ".join(resident) or "–",
                command.notes(row),
            )
        )
    return command.table(titles, lines)


def kept(found: Sequence[Row]) -> str:
    """Lay out the bytes kept in one tile."""
    lines = [
        (row["case"], *(f"{row['providers'][name] / 1e6:.2f}" for name in (BASELINE, AUTOGRAD)),
         f"{row['providers'][AUTOGRAD] / row['providers'][BASELINE]:.2f}")
        for row in found
    ]  # fmt: skip
    return command.table(("case", "torch MB", "ours MB", "ours/torch"), lines)


def of_goals(found: Sequence[Row]) -> str:
    """Lay out the goals: a line each."""
    return command.table(goals.TITLES, [goals.describe(goal) for goal in found])
