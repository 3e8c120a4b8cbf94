"""A command as a process of its own: with a limit, a log, and nothing of it left behind."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[2]
PAUSE = 0.1  # seconds between two looks
GRACE = 90.0  # seconds that a process is given to tell what it has, after SIGINT


class Ended(NamedTuple):
    """How a process ended: its exit status, None where it was stopped, and the seconds it ran."""

    status: int | None
    seconds: float


def run(
    words: Sequence[str], log: Path, limit: float, tell: Callable[[str], None], stopped: Callable[[], object]
) -> Ended:
    """Run Python with these words, in the clone, all output into the log; stop it at the limit, in seconds.

    It is the first of a process group. To stop it is to send it SIGINT, so that it tells what it has, and after
    ``GRACE`` seconds SIGKILL to the whole group, which is sent too when it ends by itself.

    Args:
        tell: is given what is written, as it is written, in whole lines.
        stopped: asks whether to stop before the limit.
    """
    start = time.monotonic()
    with log.open("wb") as output, log.open(encoding="utf-8", errors="replace") as written:
        process = subprocess.Popen(
            [sys.executable, *words], cwd=ROOT, stdin=subprocess.DEVNULL, stdout=output, stderr=output,
            start_new_session=True,
        )  # fmt: skip
        rest = ""
        try:
            while process.poll() is None and time.monotonic() - start < limit and not stopped():
                time.sleep(PAUSE)
                *lines, rest = (rest + written.read()).split("\n")
                for line in lines:
                    tell(line)
            status = process.poll()
        finally:
            end(process)
        for line in (rest + written.read()).splitlines():
            tell(line)
    return Ended(status, time.monotonic() - start)


def end(process: "subprocess.Popen[bytes]") -> None:
    """End a process and its group."""
    try:
        if process.poll() is None:
            process.send_signal(signal.SIGINT)
            with suppress(subprocess.TimeoutExpired):
                process.wait(GRACE)
    finally:
        # Where it has ended, those that it started may be there still.
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
