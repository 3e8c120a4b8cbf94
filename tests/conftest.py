"""Fixtures of the whole suite: devices, seeds, and memory that is NaN until it is written."""

import os
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
if "PYTEST_XDIST_WORKER" in os.environ:
    # Several processes share the cores.
    os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
import torch
from torch import Tensor

import covering

# Where there is a GPU, every test that asks for a device is run on it too.
DEVICES = ["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"]
ERRORS = pytest.StashKey[dict[tuple[str, str], dict[str, float]]]()


@pytest.fixture(params=DEVICES)
def device(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def every_case(request: pytest.FixtureRequest) -> bool:
    """Tell whether all cases are asked for, in a test that otherwise takes a part of its own."""
    return request.config.getoption("--cases") in ("all", "rest")


@pytest.fixture(autouse=True)
def _seeded_and_poisoned() -> Iterator[None]:
    # In deterministic mode torch fills the memory of torch.empty with NaN.
    torch.manual_seed(0)
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture
def forget() -> Iterator[Callable[[], None]]:
    """Forget at the end of a test, or when called, the activations, losses and recipes that it added."""
    from manual_mlp.activations.registry import ENTRIES
    from manual_mlp.losses import LOSSES
    from manual_mlp.training.recipes import RECIPES

    tables: list[dict[str, Any]] = [ENTRIES, LOSSES, RECIPES]
    before = [dict(table) for table in tables]

    def forgotten() -> None:
        for table, kept in zip(tables, before, strict=True):
            table.clear()
            table.update(kept)

    yield forgotten
    forgotten()


@pytest.fixture
def draw(device: str) -> Callable[..., Tensor]:
    """Draw a float64 tensor of unit variance that requires grad."""

    def normal(*shape: int, dtype: torch.dtype = torch.float64, requires_grad: bool = True) -> Tensor:
        return torch.randn(*shape, dtype=torch.float64).to(device, dtype).requires_grad_(requires_grad)

    return normal


# The suite draws the same cases every time, and "make fuzz" others: so many of each test.
DRAWN = {"quick": 30, "covering": 100, "all": 300, "rest": 300, "fuzz": 1000}
with suppress(ImportError):
    from hypothesis import HealthCheck, settings

    for name, count in DRAWN.items():
        # Every setting is named: a profile inherits the rest, which Hypothesis itself changes where it sees a CI.
        settings.register_profile(
            name,
            max_examples=count,
            derandomize=name != "fuzz",
            database=None,
            print_blob=name == "fuzz",
            # How long a draw takes is a matter of the machine.
            deadline=None,
            suppress_health_check=[HealthCheck.too_slow],
        )


def pytest_report_header() -> str:
    from manual_mlp.engines import native

    return f"devices: {', '.join(DEVICES)}; engine: {f'plain, {native.why()}' if native.why() else 'native'}"


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    covering.select(config, items)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--cases", choices=covering.CHOICES, default=covering.CHOICES[0], help=covering.__doc__)
    parser.addoption(
        "--part", type=covering.read_part, default=(1, 1), help="K/N: of the tests, every N-th from the K-th"
    )
    parser.addoption("--kills", type=int, help="how often a training run is killed, and resumed: 1, or 3 in all cases")
    parser.addoption("--error-table", action="store_true", help="print the largest error of every gradient proof")


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "each_value: each value of a parameter is enough, for its runs are expensive")
    config.addinivalue_line("markers", "processes: starts processes of its own, which takes seconds")
    config.addinivalue_line("markers", "rest: a row that is run where all cases are asked for, and not else")
    config.addinivalue_line("markers", "product: of its tables of parameters, every column is an axis of a product")
    config.stash[ERRORS] = defaultdict(dict)
    if not config.getoption("--hypothesis-profile", None):
        with suppress(NameError):  # without Hypothesis
            settings.load_profile(config.getoption("--cases"))


@pytest.fixture
def record_error(request: pytest.FixtureRequest) -> Callable[[str, str, str, float], None]:
    """Note an error for the table, and keep the largest of each cell."""

    def record(activation: str, bias: str, order: str, error: float) -> None:
        row = request.config.stash[ERRORS][activation, bias]
        row[order] = max(error, row.get(order, 0.0))

    return record


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    rows = config.stash[ERRORS]
    if not rows or not config.getoption("--error-table"):
        return
    orders = list(next(iter(rows.values())))
    write = terminalreporter.write_line
    terminalreporter.section("largest error against central differences, float64")
    write(f"{'activation':14}{'bias':6}" + "".join(f"{order:>22}" for order in orders))
    for (activation, bias), row in rows.items():
        write(f"{activation:14}{bias:6}" + "".join(f"{row[order]:22.1e}" for order in orders))
    write(f"{'largest':20}" + "".join(f"{max(row[order] for row in rows.values()):22.1e}" for order in orders))
