"""The suite in forks of a process that has torch loaded: some of its tests, in an order, to the first that is red."""

import json
import os
import signal
import sys
import time
import traceback
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

import pytest

LEAST = 300  # seconds that a test may take before it hangs, on a busy machine too, or twenty times what it took before


@dataclass
class Plan:
    """What one process runs.

    Attributes:
        files: the test files, in order.
        tests: those that are run, in order within a file, by the names of cases or of functions; None for all.
        but: cases, functions and files that are left out.
        seconds: what each case took before.
        cases: how many of each function are run, all of them to the end; 0 to run all to the first that is red.
        trace: whether what they reach is noted.
    """

    files: list[str]
    tests: list[str] | None = None
    but: set[str] = field(default_factory=set)
    seconds: dict[str, float] = field(default_factory=dict)
    cases: int = 0
    trace: bool = False


@dataclass
class Outcome:
    """What came of it.

    Attributes:
        red: the tests that failed, or the files that could not be read.
        seconds: what each test took that was run.
        reached: the functions that each of them calls, as (path, first line), if asked for.
        error: what went wrong besides.
    """

    red: list[str] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=dict)
    reached: dict[str, list[tuple[str, int]]] = field(default_factory=dict)
    error: str = ""


class Watch:
    """A plugin of pytest: choose and order the tests, stop one that hangs, note what they reach."""

    def __init__(self, plan: Plan, tree: Path, outcome: Outcome, now: Path) -> None:
        self.plan, self.outcome, self.now = plan, outcome, now
        self.package = f"{tree}/manual_mlp/"
        self.prefix = len(f"{tree}/")
        self.codes: dict[int, tuple[Any, tuple[str, int] | None]] = {}
        self.reached: set[tuple[str, int]] = set()
        self.ran: Counter[str] = Counter()

    @pytest.hookimpl(wrapper=True)
    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> Iterator[None]:
        yield  # the suite itself leaves cases out, by what it sees of all
        items[:] = [
            item for item in items if not {item.nodeid, function_of(item.nodeid), file_of(item.nodeid)} & self.plan.but
        ]
        if self.plan.tests is not None:
            files = {name: k for k, name in enumerate(self.plan.files)}
            chosen = {name: k for k, name in enumerate(self.plan.tests)}
            places = [chosen.get(item.nodeid, chosen.get(function_of(item.nodeid))) for item in items]
            found = [
                (files[file_of(item.nodeid)], place, k)
                for k, (item, place) in enumerate(zip(items, places, strict=True))
                if place is not None
            ]
            items[:] = [items[k] for *_, k in sorted(found)]
        if self.plan.cases:
            functions = defaultdict(list)
            for item in items:
                functions[function_of(item.nodeid)].append(item)
            # Some are skipped as they begin, so that there must be more than are asked for.
            some = (Random(0).sample(of_one, min(len(of_one), 4 * self.plan.cases)) for of_one in functions.values())
            items[:] = [item for of_one in some for item in of_one]

    def pytest_runtest_setup(self, item: pytest.Item) -> None:
        if self.plan.cases and self.ran[function_of(item.nodeid)] >= self.plan.cases:
            pytest.skip("enough of this function")

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Iterator[None]:
        name = item.nodeid
        self.now.write_text(name)

        def hangs(*_: object) -> None:
            raise TimeoutError(f"{name} hangs")

        signal.signal(signal.SIGALRM, hangs)
        signal.setitimer(signal.ITIMER_REAL, max(LEAST, 20 * self.plan.seconds.get(name, 0.0)))
        start, self.reached = time.perf_counter(), set()
        if self.plan.trace:
            sys.settrace(self._trace)
        try:
            return (yield)
        finally:
            sys.settrace(None)
            signal.setitimer(signal.ITIMER_REAL, 0.0)
            if self.reached or self.ran[function_of(name)]:
                self.outcome.seconds[name] = round(time.perf_counter() - start, 4)
                self.outcome.reached[name] = sorted(self.reached)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        self.ran[function_of(report.nodeid)] += report.when == "call" and not report.skipped
        if report.failed:
            self.outcome.red.append(report.nodeid)

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        if report.failed:
            self.outcome.red.append(report.nodeid)

    def _trace(self, frame: Any, event: str, argument: Any) -> None:
        code = frame.f_code
        known = self.codes.get(id(code))
        if known is None:
            ours = code.co_filename.startswith(self.package)
            # The code is kept, that its id be no other's.
            known = code, (code.co_filename[self.prefix :], code.co_firstlineno) if ours else None
            self.codes[id(code)] = known
        if known[1] is not None:
            self.reached.add(known[1])


def fork(plan: Plan, tree: Path, output: Path) -> tuple[int, int]:
    """Start a process that runs a plan in a tree; return its id, and what can be read of when it ends.

    What comes of it is written beside, and read by `outcome`.
    """
    ends, held = os.pipe()
    pid = os.fork()
    if pid:
        os.close(held)
        return pid, ends
    try:
        os.setpgid(0, 0)
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        log = os.open(output.with_suffix(".log"), os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        for stream in (1, 2):
            os.dup2(log, stream)
        found = _run(plan, tree, output)
        output.with_suffix(".part").write_text(json.dumps(vars(found)))
        output.with_suffix(".part").rename(output)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(0)


def outcome(output: Path) -> Outcome:
    """Read what came of a plan; of a process that died, the test that it died in is red."""
    now, log = output.with_suffix(".now"), output.with_suffix(".log")
    if output.exists():
        found = Outcome(**json.loads(output.read_text()))
    elif now.exists():
        found = Outcome([now.read_text()])
    else:
        found = Outcome(error=log.read_text(errors="replace")[-2000:] if log.exists() else "no process was started")
    for file in (output, now, log):
        file.unlink(missing_ok=True)
    return found


def _run(plan: Plan, tree: Path, output: Path) -> Outcome:
    found = Outcome()
    os.chdir(tree)
    ours = str(Path(__file__).parents[1])
    sys.path[:] = [str(tree), *(path for path in sys.path if path not in ("", ours, str(Path(ours).parent)))]
    sys.dont_write_bytecode = True
    os.environ.update(PYTHONPATH=str(tree), PYTHONDONTWRITEBYTECODE="1")
    options = ["-p", "no:cacheprovider", "-p", "no:xdist", "-W", "ignore::pytest.PytestAssertRewriteWarning"]
    options += ["--quiet", "--tb=line", *([] if plan.cases else ["-x"])]
    options += [f"--rootdir={tree}", f"--basetemp={output.with_suffix('')}"]
    watch = Watch(plan, tree, found, output.with_suffix(".now"))
    status = pytest.main([*options, *plan.files], plugins=[watch])
    if status not in (0, pytest.ExitCode.TESTS_FAILED, pytest.ExitCode.NO_TESTS_COLLECTED) and not found.red:
        found.error = f"pytest's exit status is {int(status)}"
    return found


def function_of(test: str) -> str:
    return test.partition("[")[0]


def file_of(test: str) -> str:
    return test.partition("::")[0]
