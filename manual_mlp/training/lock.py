"""One writer at a time for the folder of a run."""

from __future__ import annotations

import json
import os
import socket
import stat
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path

from manual_mlp.training.errors import InputError

_LOCK = "writer.lock"
_MOST = 4096  # bytes of what a holder says of itself


@contextmanager
def writer(folder: Path) -> Iterator[None]:
    """Be the only process that writes into the folder of a run; reading takes no lock.

    The kernel frees the lock with the process, however that ends. Where the file system has no locks, a line on stderr
    says so, and the run goes on.

    Raises:
        InputError: another process holds it, or the folder cannot be written.
    """
    path = folder / _LOCK
    flags = os.O_RDWR | os.O_CREAT | sum(getattr(os, name, 0) for name in ("O_NOFOLLOW", "O_NONBLOCK"))
    try:
        descriptor = os.open(path, flags, 0o666)
    except OSError as error:
        raise InputError(f"expected the folder of a run that can be written, got {path}: {error.strerror}") from None
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise InputError(f"expected the folder of a run that can be written, got {path}, which is no file")
        _take(descriptor, folder)
        try:
            yield
        finally:
            with suppress(OSError):
                os.ftruncate(descriptor, 0)  # nobody holds it
    finally:
        os.close(descriptor)


def _take(descriptor: int, folder: Path) -> None:
    """Lock, and say who holds the lock.

    Raises:
        InputError: another process holds it.
    """
    if sys.platform == "win32":
        _warn(folder, "Windows has no flock")
        return
    import fcntl

    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise InputError(
            f"expected a run that no other process writes, got {folder}, which is written by "
            f"{_holder(os.pread(descriptor, _MOST, 0))}: wait until that has ended, or end it, and --resume again"
        ) from None
    except OSError as error:  # of a file system without locks, a network's above all
        _warn(folder, str(error.strerror))
        return
    said = {
        "host": socket.gethostname(),
        "process": os.getpid(),
        "since": f"{datetime.now().astimezone():%Y-%m-%d %H:%M:%S %z}",
    }
    # Never empty in between: who comes second may read it at any moment.
    os.ftruncate(descriptor, os.pwrite(descriptor, json.dumps(said).encode(), 0))


def _warn(folder: Path, reason: str) -> None:
    print(
        f"WARNING: {folder} lies where files cannot be locked ({reason}): "
        "see to it that no other process writes this run meanwhile",
        file=sys.stderr,
    )


def _holder(said: bytes) -> str:
    """Return who holds a lock, in words."""
    try:
        found = json.loads(said)
        host, process, since = found["host"], found["process"], found["since"]
        if not (isinstance(process, int) and f"{host}{since}".isprintable()):
            raise ValueError
    except (ValueError, KeyError, TypeError, RecursionError):
        return "a process that has not said which"
    return f"process {process} on {host} since {since}"
