"""Copies of a tree, in each of which one mutant at a time meets the suite."""

import os
import select
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Generator, Iterable
from contextlib import suppress
from pathlib import Path

from mutants.source import Mutant
from mutants.suite import Outcome, Plan, fork, outcome

Job = Generator[Plan, Outcome, None]
LONGEST = 900.0  # seconds of a process that hears no signal, and twenty times what its tests took before


class Slot:
    """A copy of a tree, and the job that runs in it: plans, each in a process of its own, for what came of the last."""

    def __init__(self, tree: Path) -> None:
        self.tree = tree
        self.job: Job | None = None
        self.runs = 0

    def begin(self, mutant: Mutant | None, job: Job) -> None:
        """Begin a job, with a mutant in the tree until it is over."""
        self.file = self.tree / mutant.path if mutant else None
        if mutant and self.file:
            self.clean, self.at = self.file.read_bytes(), self.file.stat().st_mtime_ns
            self.file.write_bytes(mutant.applied(self.clean))
        self.job = job
        self.advance(None)

    def advance(self, found: Outcome | None) -> None:
        """Start the process of the next plan, or end the job."""
        try:
            plan = self.job.send(found)  # type: ignore[union-attr, arg-type]
        except StopIteration:
            if self.file:
                self.file.write_bytes(self.clean)
                os.utime(self.file, ns=(self.at, self.at))
            self.job = None
            return
        self.runs += 1
        self.output = self.tree.with_name(f"{self.tree.name}-{self.runs}.json")
        self.pid, self.ends = fork(plan, self.tree, self.output)
        self.deadline = time.monotonic() + LONGEST + 20 * sum(map(plan.seconds.__getitem__, plan.seconds))

    def look(self) -> None:
        """Go on where the process is through; end it where it hangs."""
        if os.waitpid(self.pid, os.WNOHANG)[0]:
            self.end()
        elif time.monotonic() > self.deadline:
            self.end()
            os.waitpid(self.pid, 0)
        else:
            return
        os.close(self.ends)
        found = outcome(self.output)
        shutil.rmtree(self.output.with_suffix(""), ignore_errors=True)
        self.advance(found)

    def end(self) -> None:
        """End the process, and what it started and left."""
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, signal.SIGKILL)


def deal(jobs: Iterable[tuple[Mutant | None, Job]], trees: list[Path]) -> None:
    """Run jobs in copies of the tree, one at a time in each."""
    waiting, slots = iter(jobs), [Slot(tree) for tree in trees]
    try:
        while True:
            for slot in slots:
                while slot.job is None and (following := next(waiting, None)):
                    slot.begin(*following)
            busy = [slot for slot in slots if slot.job]
            if not busy:
                return
            select.select([slot.ends for slot in busy], [], [], 1.0)
            for slot in busy:
                slot.look()
    finally:
        for slot in slots:
            if slot.job:
                slot.end()


def copy_of(root: Path, to: Path) -> Path:
    """Copy what git knows of a tree and what it does not ignore; where there is no git, everything."""
    command = ["git", "-C", str(root), "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, capture_output=True, text=True, check=False)
    if listed.returncode:
        shutil.copytree(root, to)
    for name in listed.stdout.split("\0"):
        if name and (root / name).is_file():
            (to / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(root / name, to / name)
    # What is compiled here is compiled once; a mutant's own file never is, for its time is another.
    subprocess.run([sys.executable, "-m", "compileall", "-q", str(to / "manual_mlp")], check=False)
    return to
