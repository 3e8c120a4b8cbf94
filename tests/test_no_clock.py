"""No test of the suite holds a clock: a busy machine fails none."""

import ast
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest

CLOCKS = {"perf_counter", "monotonic", "process_time", "thread_time", "default_timer", "time", "now", "utcnow"}
CLOCKS |= {f"{name}_ns" for name in CLOCKS}
LEAST = 300  # seconds: a wait that a busy machine does not outlast
# What may stand where, and why.
LET = {
    ("test_training_resume.py", "sleep"): "a run is killed at any moment, and whichever it is must do",
    ("test_training_data_download.py", "waits"): "a server of the test's own is as slow as it is told to be",
}


def is_clock(node: ast.AST) -> bool:
    """Tell whether a call reads a clock: `time.monotonic()`, or `perf_counter()` by its bare name."""
    if not isinstance(node, ast.Call):
        return False
    if isinstance(node.func, ast.Name):
        return node.func.id in CLOCKS - {"time", "now", "utcnow"}
    return isinstance(node.func, ast.Attribute) and node.func.attr in CLOCKS


def tells_time(node: ast.AST, timed: set[str]) -> bool:
    """Tell whether an expression reads a clock, or a name that holds what one said."""
    return any(is_clock(part) or (isinstance(part, ast.Name) and part.id in timed) for part in ast.walk(node))


def timed_names(function: ast.AST) -> set[str]:
    """List the names that hold what a clock said, or what was computed from that."""
    timed: set[str] = set()
    assigned = [node for node in ast.walk(function) if isinstance(node, (ast.Assign, ast.AugAssign, ast.NamedExpr))]
    while True:
        found = set(timed)
        for node in assigned:
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            if tells_time(node.value, timed):
                found |= {name.id for target in targets for name in ast.walk(target) if isinstance(name, ast.Name)}
        if found == timed:
            return timed
        timed = found


def clocks(source: str) -> Iterator[str]:
    """List the lines of a test file that hold a clock: asserts, sleeps, and waits that a busy machine outlasts."""
    tree = ast.parse(source)
    for function in (node for node in ast.walk(tree) if isinstance(node, (ast.FunctionDef, ast.Module))):
        timed = timed_names(function) if isinstance(function, ast.FunctionDef) else set()
        for node in ast.walk(function):
            if isinstance(node, ast.Assert) and any(
                isinstance(part, ast.Compare) and tells_time(part, timed) for part in ast.walk(node.test)
            ):
                yield f"{node.lineno}: assert of a clock"
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        name = getattr(node.func, "attr", getattr(node.func, "id", None))
        waits = [word.value for word in node.keywords if word.arg in ("timeout", "deadline")]
        waits += node.args if name in ("join", "wait", "alarm") else []
        if name == "sleep":
            yield f"{node.lineno}: sleep"
        for wait in waits:
            if isinstance(wait, ast.Constant) and isinstance(wait.value, (int, float)) and wait.value < LEAST:
                yield f"{node.lineno}: waits for {wait.value} s"


@pytest.mark.parametrize("path", sorted(Path(__file__).parent.rglob("*.py")), ids=lambda path: path.name)
def test_no_test_holds_a_clock(path: Path) -> None:
    found = sorted(set(clocks(path.read_text())))
    assert [line for line in found if (path.name, line.split()[1]) not in LET] == []


@pytest.mark.parametrize(
    "source",
    [
        "start = time.perf_counter()\nwork()\nassert time.perf_counter() - start < 5",
        "start = time.monotonic()\nwork()\nseconds = time.monotonic() - start\nassert 0 < seconds < 5",
        "since = perf_counter_ns()\nwork()\nassert not perf_counter_ns() > since + 5",
        "a, b = time.time(), 1\nwork()\nassert all([time.time() < a + b])",
        "a = datetime.now()\nwork()\nassert datetime.now() - a < limit",
        "a = time.process_time()\nb = time.thread_time() - a\nratio = b / 2\nassert ratio <= 1.2, 'slow'",
        "time.sleep(1.0)",
        "subprocess.run(command, timeout=30)",
        "thread.join(60)",
        "signal.alarm(20)",
        "process.wait(20)",
    ],
)
def test_a_clock_that_is_put_back_is_found(source: str) -> None:
    assert list(clocks("def test_it():\n" + textwrap.indent(source, "    ")))


@pytest.mark.parametrize(
    "source",
    [
        "start = time.perf_counter()\nassert work() < 5",
        "assert counted.operations < 100",
        "assert found['seconds'] > 0",
        "subprocess.run(command, timeout=SECONDS)\nthread.join()\nprocess.wait(900)",
        "words = ' '.join(('a', 'b'))",
    ],
)
def test_what_is_counted_is_let_through(source: str) -> None:
    assert not list(clocks("def test_it():\n" + textwrap.indent(source, "    ")))
