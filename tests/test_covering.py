"""A product of parameters is run in part, and no pair of its values is left out."""

import argparse
import itertools
import re
import textwrap
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import pytest

from covering import CHOICES, covering, parts, read_part

pytest_plugins = ("pytester",)

PRODUCTS = [(3,), (2, 5), (2, 3, 4), (3, 3, 3, 3), (2,) * 8, (22, 2, 3, 5), (1, 4, 1, 2)]


@pytest.mark.parametrize("sizes", PRODUCTS, ids=str)
def test_every_pair_of_values_is_chosen(sizes: Sequence[int]) -> None:
    rows = list(itertools.product(*map(range, sizes)))
    chosen = [rows[k] for k in covering(rows)]
    for (i, some), (j, others) in itertools.combinations_with_replacement(enumerate(map(range, sizes)), 2):
        for a, b in itertools.product(some, others):
            assert any(row[i] == a and row[j] == b for row in chosen) or (i == j and a != b)


@pytest.mark.parametrize("sizes", PRODUCTS, ids=str)
def test_few_rows_are_chosen(sizes: Sequence[int]) -> None:
    rows = list(itertools.product(*map(range, sizes)))
    least, *_ = sorted((a * b for a, b in itertools.combinations((*sizes, 1), 2)), reverse=True)
    assert least <= len(covering(rows)) <= 2 * least + 2


def test_of_rows_that_are_no_product_every_pair_that_occurs_is_chosen() -> None:
    rows: list[tuple[Any, ...]] = [(a, b, c) for a in range(4) for b in range(4) for c in range(3) if (a + b) % 3 != c]
    chosen = {pair for k in covering(rows) for pair in parts(rows[k])}
    assert chosen == {pair for row in rows for pair in parts(row)}
    assert len(covering(rows)) < len(rows)


SUITE = """
    import itertools
    import pytest

    @pytest.fixture(params=["x", "y"])
    def made(request):
        return request.param

    @pytest.mark.parametrize("a", [0, 1, 2])
    @pytest.mark.parametrize("b", [[], {}])
    @pytest.mark.parametrize(("c", "d"), [(0, 0), (0, 1), (1, 0), (1, 1)])
    def test_of_axes(a, b, c, d, made):
        pass

    @pytest.mark.parametrize(
        ("a", "b", "c"), [(0, 0, 0), (0, 1, 1), (1, 0, 1), (1, 1, 0), pytest.param(1, 1, 1, marks=pytest.mark.rest)]
    )
    def test_of_a_table(a, b, c):
        pass

    @pytest.mark.product
    @pytest.mark.parametrize(("a", "b", "c"), itertools.product((0, 1), repeat=3))
    def test_of_columns(a, b, c):
        pass

    @pytest.mark.each_value
    @pytest.mark.parametrize("a", [0, 1, 2])
    @pytest.mark.parametrize("b", [0, 1, 2, 3])
    def test_of_values(a, b):
        pass

    @pytest.mark.processes
    def test_alone():
        pass

    @pytest.mark.parametrize("a", [0, 1])
    def test_in_part(a, every_case):
        pass
"""


@pytest.fixture
def passed(pytester: pytest.Pytester, request: pytest.FixtureRequest) -> Callable[..., dict[str, int]]:
    """Run the small suite under this one's conftest: how many tests of each name passed."""
    pytester.makeconftest((request.config.rootpath / "tests" / "conftest.py").read_text())
    pytester.makepyfile(test_it=textwrap.dedent(SUITE))

    def run(*arguments: str) -> dict[str, int]:
        passed, skipped, failed = pytester.inline_run("-p", "no:cacheprovider", *arguments).listoutcomes()
        assert not skipped + failed
        return Counter(re.match(r".*::(\w+)", report.nodeid)[1] for report in passed)

    return run


# Of a test, how many rows there are, how many at the least hold all pairs, or what is asked for, and all values.
ROWS = {
    "test_of_axes": (48, 3 * 4, 4),
    "test_of_a_table": (5, 4, 4),
    "test_of_columns": (8, 2 * 2, 2),
    "test_of_values": (12, 4, 4),
    "test_alone": (1, 1, 1),
}


def test_a_decorator_is_an_axis_and_so_is_a_fixture(passed: Callable[..., dict[str, int]]) -> None:
    found, quick, every, rest = (passed(f"--cases={cases}") for cases in CHOICES)
    assert found == passed()
    # Where a test asks itself whether every case is to be run, it is a part of the rest too.
    assert found.pop("test_in_part") == every.pop("test_in_part") == rest.pop("test_in_part") == 2
    # In the quick part every value occurs; what starts processes is left out.
    assert "test_alone" not in quick
    assert quick | {"test_alone": 1} == {name: longest for name, (_, _, longest) in ROWS.items()} | {"test_in_part": 2}
    assert every == {name: rows for name, (rows, *_) in ROWS.items()}
    assert all(least <= found[name] <= 1.5 * least for name, (_, least, _) in ROWS.items())
    assert found["test_of_values"] == 4
    assert {name: found[name] + rest.get(name, 0) for name in found} == every


def test_what_is_named_by_its_id_is_run(passed: Callable[..., dict[str, int]]) -> None:
    names = [f"test_it.py::test_of_axes[{made}-{row}-b{b}-2]" for made in "xy" for row in ("0-1", "1-0") for b in "01"]
    assert passed(*names) == {"test_of_axes": 8}


def test_the_parts_of_the_cases_are_the_cases(passed: Callable[..., dict[str, int]]) -> None:
    parts = [passed("--cases=rest", f"--part={k}/3") for k in (1, 2, 3)]
    assert sum(parts, Counter()) == passed("--cases=rest")
    assert max(part.total() for part in parts) - min(part.total() for part in parts) <= 1


@pytest.mark.parametrize("text", ["0/3", "4/3", "1/0", "1", "a/b", "-1/3"])
def test_what_is_no_part_is_refused(text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError, match=f"expected K/N with K from 1 to N, got {text}"):
        read_part(text)
