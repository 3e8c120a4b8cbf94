"""Which rows of a product of parameters are run: by default so few that every pair of values occurs.

A test that is parametrised along several axes stands for the whole product. `--cases covering` runs a covering array of
it, `--cases all` all of it, and `--cases rest` what the covering array leaves out. `--cases quick` runs so few that
every value occurs, as the covering array does of a test marked with `each_value`, and starts no processes that learn or
compute together. Whatever is named by its id is run. Of these, `--part 2/3` runs every third test, from the second.
"""

import argparse
import heapq
import random
import re
from collections import defaultdict
from collections.abc import Hashable, Iterator, Sequence
from itertools import combinations_with_replacement

import pytest

CHOICES = ("covering", "quick", "all", "rest")
Row = tuple[Hashable, ...]


def parts(row: Row, strength: int = 2) -> Iterator[Hashable]:
    """List the pairs of values of a row, each value beside itself too; for a strength of 1, the values."""
    return combinations_with_replacement(enumerate(row), strength)


def covering(rows: Sequence[Row], strength: int = 2) -> list[int]:
    """Choose rows, greedily, until every pair of values that occurs in one of them has been chosen: their positions."""
    left = {part for row in rows for part in parts(row, strength)}
    # What a row adds only ever falls, so that the first of the queue is the best one as soon as its number holds. Of
    # equals the order is a shuffled one: else the first value of an axis would stand beside most of another's.
    queue = [(-len(left), turn, k) for turn, k in enumerate(random.Random(0).sample(range(len(rows)), len(rows)))]
    chosen = []
    while left:
        claimed, turn, k = queue[0]
        adds = sum(part in left for part in parts(rows[k], strength))
        if -claimed == adds:
            heapq.heappop(queue)
            left.difference_update(parts(rows[k], strength))
            chosen.append(k)
        else:
            heapq.heapreplace(queue, (-adds, turn, k))
    return sorted(chosen)


def row_of(item: pytest.Item) -> Row:
    """List the values of a test, one for each of its decorators, and one for each fixture that has several.

    A decorator of several names is a table, and so one axis, unless the test is marked as a `product`: then every name
    is an axis, and the table lists the rows that there are.
    """
    if not hasattr(item, "callspec"):
        return ()
    tables = [mark.args[0] for mark in item.iter_markers("parametrize")]
    axes = [table.replace(" ", "").split(",") if isinstance(table, str) else list(table) for table in tables]
    if item.get_closest_marker("product"):
        axes = [[name] for axis in axes for name in axis]
    axes += [[name] for name in item.callspec.params if name not in {name for axis in axes for name in axis}]
    return tuple(tuple(_key(item.callspec.params[name]) for name in axis) for axis in axes)


def _key(value: object) -> Hashable:
    """Tell values apart: of other kinds than these, the product holds the same objects again and again."""
    return (type(value), value) if isinstance(value, str | int | float | None) else id(value)


def covered(items: Sequence[pytest.Item], quick: bool) -> list[pytest.Item]:
    """Keep the tests of the covering arrays; one without parameters is one of them."""
    tests: dict[str, list[pytest.Item]] = defaultdict(list)
    for item in items:
        tests[item.nodeid.partition("[")[0]].append(item)
    kept = set()
    for rows in tests.values():
        # A row may be marked as one that stands in no covering array.
        rows = [item for item in rows if not item.get_closest_marker("rest")]
        if not rows or (quick and rows[0].get_closest_marker("processes")):
            continue
        strength = 1 if quick or rows[0].get_closest_marker("each_value") else 2
        values = [row_of(item) for item in rows]
        kept |= {rows[k] for k in covering(values, strength)} if values[0] else set(rows)
    return [item for item in items if item in kept]


def takes_more(item: pytest.Item) -> bool:
    """Tell whether a test does more of its own where all cases are asked for: then it is one of the rest too."""
    return "every_case" in item.fixturenames or item.get_closest_marker("hypothesis") is not None


def read_part(text: str) -> tuple[int, int]:
    """Read K/N."""
    found = re.fullmatch(r"(\d+)/(\d+)", text)
    k, n = (int(number) for number in found.groups()) if found else (0, 0)
    if not 1 <= k <= n:
        raise argparse.ArgumentTypeError(f"expected K/N with K from 1 to N, got {text}")
    return k, n


def select(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Keep the tests that the options --cases and --part ask for."""
    cases, (k, n) = config.getoption("--cases"), config.getoption("--part")
    kept = items
    if cases != "all" and not any("[" in argument for argument in config.args):
        kept = covered(items, cases == "quick")
        if cases == "rest":
            done = {item for item in kept if not takes_more(item)}
            kept = [item for item in items if item not in done]
    chosen = dict.fromkeys(kept[k - 1 :: n])
    config.hook.pytest_deselected(items=[item for item in items if item not in chosen])
    items[:] = chosen
