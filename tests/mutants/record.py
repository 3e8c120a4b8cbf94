"""Which tests reach which functions, how long they take, and which have found mutants: what to run first."""

import json
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

from mutants.source import Mutant, Source
from mutants.suite import Outcome, Plan, file_of, function_of

OURS = "tests/test_mutants.py"  # reads the package, and runs nothing of it
FEW = 20.0  # seconds of tests that a mutant meets first
SEEN = 6  # cases that saw another mutant of a file, before those
EACH = 4.0  # of one file


class Record:
    """What the suite without a mutant showed, and what mutants have met since: it orders, and judges nothing.

    Attributes:
        seconds: what a few cases of every test function took.
        red: those that failed.
        reached: by path and function of the package, the test functions that call it.
        killers: by path, and by path and function, the cases that have seen a mutant there.
    """

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self.red: set[str] = set()
        self.reached: dict[str, dict[str, list[str]]] = defaultdict(lambda: defaultdict(list))
        self.killers: dict[str, list[str]] = defaultdict(list)

    def add(self, outcome: Outcome, sources: dict[str, Source]) -> None:
        self.seconds |= outcome.seconds
        self.red |= {*outcome.red}
        found = {(path, line, function_of(test)) for test, places in outcome.reached.items() for path, line in places}
        for path, scope, test in {(path, sources[path].scope_of(line), test) for path, line, test in found}:
            self.reached[path][scope].append(test)

    def plans(self, mutant: Mutant) -> Iterator[Plan]:
        """Deal the suite out to four processes: what saw others there, a few quick cases, all that may, all others."""
        cases, reaching = defaultdict(list), self.reaching(mutant)
        for case in self.seconds:
            if function_of(case) in reaching:
                cases[function_of(case)].append(case)
        mean = {test: sum(map(self.seconds.__getitem__, some)) / len(some) for test, some in cases.items()}
        quickest = sorted(mean, key=mean.__getitem__)
        spent, few = defaultdict[str, float](float), []
        for test in quickest:
            for case in cases[test]:
                spent[file_of(test)] += self.seconds[case]
                if spent[file_of(test)] < EACH and sum(spent.values()) < FEW:
                    few.append(case)
        seen = [*self.killers[mutant.path], *self.killers[f"{mutant.path} {mutant.scope}"]]
        seen = [*dict.fromkeys(seen[::-1])][:SEEN]
        yield self._plan(seen, self.red)
        yield self._plan(few, self.red | {*seen})
        yield self._plan(quickest, self.red | {*seen, *few})
        yield Plan(["tests"], None, self.red | {OURS, *seen, *few, *quickest}, self.seconds)

    def _plan(self, tests: list[str], but: set[str]) -> Plan:
        return Plan([*dict.fromkeys(map(file_of, tests))], tests, but, self.seconds)

    def reaching(self, mutant: Mutant) -> set[str]:
        """List the tests that call the function of a mutant; for what no function holds, all that reach the file."""
        scopes = self.reached[mutant.path]
        exact = scopes.get(mutant.scope, []) if mutant.scope else []
        within = [test for scope, tests in scopes.items() if scope.startswith(f"{mutant.scope}.") for test in tests]
        return {*(exact or within or [test for tests in scopes.values() for test in tests])}

    def killed(self, mutant: Mutant, test: str) -> None:
        for key in (mutant.path, f"{mutant.path} {mutant.scope}"):
            self.killers[key].append(test)

    def save(self, file: Path) -> None:
        file.write_text(json.dumps({**vars(self), "red": sorted(self.red)}))

    @classmethod
    def load(cls, file: Path) -> "Record":
        found, record = json.loads(file.read_text()), cls()
        record.seconds, record.red = found["seconds"], {*found["red"]}
        for path, scopes in found["reached"].items():
            record.reached[path].update(scopes)
        record.killers.update(found["killers"])
        return record
