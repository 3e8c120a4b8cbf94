"""How a row that was measured on a GPU is laid out: no threads and no mallocs, but the card's ceiling and the host."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from benchmarks.command import interval
from benchmarks.layers import BASELINE, OURS
from benchmarks.report.runs import Run
from benchmarks.report.tables import FEW, Row, figure, markdown, megabytes, micros, ratio

Read = Callable[[Row], str]  # writes a cell of a row
Rows = Callable[[Run], Sequence[Row]]  # chooses those that a table shows
Write = Callable[[Run], str]  # lays a run out; as "" where it has no row for the table
NONE = "–"


def speed(name: str = OURS) -> Read:
    """Write torch's time over a provider's with its interval; of few rounds without one, and marked."""

    def read(row: Row) -> str:
        if name not in row["providers"]:
            return NONE
        few = row["rounds"] < FEW
        return figure(row, ratio(name)) if few else interval(row["providers"][name]["ratio"], ".2f")

    return read


def over(peer: str) -> Read:
    """Write a peer's time over ours."""
    return lambda row: figure(row, ratio(OURS, peer)) if peer in row["providers"] else NONE


def both(field: str, write: Callable[[Any], str]) -> Read:
    """Write a field of torch and of ours, if both have it."""

    def read(row: Row) -> str:
        found = [row["providers"].get(name, {}).get(field) for name in (BASELINE, OURS)]
        return NONE if None in found else ", ".join(map(write, found))

    return read


def per_cent(share: float) -> str:
    """Write a share in % with two digits or so."""
    return f"{100 * share:.0f}" if share >= 0.1 else f"{100 * share:.2g}"


def kept(counts: Mapping[str, float]) -> str:
    """Write what is kept for backward, in MB."""
    return megabytes(counts["total"] + counts["attributes"])


# Of every table whose rows have providers; a column in which nothing was measured is left out.
SPEED: Mapping[str, Read] = {"torch µs": lambda row: micros(row["providers"][BASELINE]["median_us"]), "speed": speed()}
LIMITS: Mapping[str, Read] = {
    "% of the ceiling: torch, ours": both("products_share", per_cent),
    "host µs: torch, ours": both("host_us", micros),
    "peak MB: torch, ours": both("peak_bytes", megabytes),
}


def all_rows(run: Run) -> Sequence[Row]:
    """Choose all rows of a run."""
    found: Sequence[Row] = run["rows"]
    return found


def lines(about: Mapping[str, str], more: Mapping[str, Read] | None = None, rows: Rows = all_rows) -> Write:
    """Make the writer of a table with a line a row.

    Args:
        about: the fields that tell rows apart, by the titles of their columns.
        more: further columns, behind the speed.
        rows: chooses the rows.
    """
    columns = {**SPEED, **(more or {}), **LIMITS}

    def write(run: Run) -> str:
        found = [
            (*(str(row[field]) or NONE for field in about.values()), *(read(row) for read in columns.values()))
            for row in rows(run)
        ]
        return table((*about, *columns), found)

    return write


def table(titles: Sequence[str], found: Sequence[Sequence[Any]]) -> str:
    """Write a table, or nothing if it has no lines."""
    return markdown(titles, found) if found else ""
