"""The constants of the model for a GPU that fit what was measured on one.

A constant's choice in a row has a cost: its time over that of the best. The constant that fits is the smallest power of
two whose worst cost is within 5 % of the best; where there is none, the one whose worst cost is least.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from math import exp, log
from typing import Any, NamedTuple

from benchmarks.layers import BASELINE
from manual_mlp.sweep import tiling

Row = Mapping[str, Any]
Choose = Callable[[Row, int], str]  # of a row, by a value of the constant: the name of what it takes

WITHIN = 1.05
LIMITS = [1 << k for k in range(16, 41)]  # bytes
FEWS = [1 << k for k in range(41)]  # logits


class Cost(NamedTuple):
    """What the choices of a constant cost over all rows: time over the best, worst and in the mean; most bytes."""

    worst: float
    mean: float
    peak_bytes: int


def cost_of(value: int, choose: Choose, rows: Sequence[Row]) -> Cost | None:
    """Return what a value costs; None where one of its choices was not measured."""
    ratios, peak = [], 0
    for row in rows:
        providers, chosen = row["providers"], choose(row, value)
        if chosen not in providers:
            return None
        ratios.append(providers[chosen]["median_us"] / min(p["median_us"] for p in providers.values()))
        peak = max(peak, providers[chosen]["peak_bytes"])
    return Cost(max(ratios), exp(sum(map(log, ratios)) / len(ratios)), peak)


def fit(values: Iterable[int], choose: Choose, rows: Sequence[Row]) -> int | None:
    """Return the smallest value that is within 5 % of the best in every row, or the least bad; None without any."""
    costs = {value: cost.worst for value in values if (cost := cost_of(value, choose, rows))}
    enough = max(WITHIN, min(costs.values(), default=WITHIN))
    return min((value for value, worst in costs.items() if worst <= enough), default=None)


def by_limit(row: Row, limit: int) -> str:
    """Name the rows at once that a limit in bytes allows."""
    return str(tiling.fitting(row["rows"], row["row_bytes"], limit))


def without_torch(row: Row) -> Row:
    """Leave out of a row what is not ours."""
    return {**row, "providers": {name: p for name, p in row["providers"].items() if name != BASELINE}}


def by_few(limit: int) -> Choose:
    """Make the choice between torch and chunks of a limit, by the logits that are few."""

    def choose(row: Row, few: int) -> str:
        # A row of a tile has four bytes a logit.
        return BASELINE if row["rows"] * (row["row_bytes"] // 4) < few else by_limit(row, limit)

    return choose


def constants(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """Fit the constants of the model for a GPU; return each beside the one in the code, with what both cost."""
    found = []

    def hold(name: str, values: Iterable[int], choose: tuple[Choose, Choose], of: Sequence[Row]) -> int | None:
        """Fit one, by its own choice; that in the code may stand beside others."""
        value, in_code = fit(values, choose[0], of), getattr(tiling, name)
        costs = {
            "fits_cost": None if value is None else cost_of(value, choose[0], of),
            "in_code_cost": cost_of(in_code, choose[1], of),
        }
        told = {name: cost and cost._asdict() for name, cost in costs.items()}
        found.append({"constant": name, "rows": len(of), "in_code": in_code, "fits": value, **told})
        return value

    tiles, chunks = ([row for row in rows if row["argument"] == name] for name in ("tile_rows", "chunk_rows"))
    if tiles:
        hold("LIMIT", LIMITS, (by_limit, by_limit), tiles)
    if chunks:
        limit = hold("LIMIT_OF_LOGITS", LIMITS, (by_limit, by_limit), [without_torch(row) for row in chunks])
        of_code = by_few(tiling.LIMIT_OF_LOGITS)
        hold("FEW_LOGITS_OF_CUDA", FEWS, (of_code if limit is None else by_few(limit), of_code), chunks)
    return found
