"""One writer at a time for the folder of a run."""

from __future__ import annotations

import dataclasses
import json
import os
import socket
import stat
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from manual_mlp.training.errors import InputError

_LOCK = "writer.lock"
_MOST = 4096  # bytes of what a holder says of itself


@dataclass(frozen=True)
class _Holder:
    """Who holds a lock."""

    host: str
    process: int
    since: str

    def __str__(self) -> str:
        return f"process {self.process} on {self.host} since {self.since}"

    @classmethod
    def read(cls, descriptor: int) -> _Holder | None:
        """Read who says to hold it, if somebody does."""
        try:
            found = cls(**json.loads(os.pread(descriptor, _MOST, 0)))
        except (ValueError, TypeError, RecursionError):
            return None
        return found if isinstance(found.process, int) and f"{found.host}{found.since}".isprintable() else None


@contextmanager
def writer(folder: Path) -> Iterator[None]:
    """Be the only process that writes into the folder of a run; reading takes no lock.

    The kernel frees the lock with the process, however that ends. Where the file system has no locks, or may keep those
    of each machine apart, a line on stderr says so, and the run goes on.

    Raises:
        InputError: another process holds it, or the folder cannot be written.
    """
    if sys.platform == "win32":
        _warn(folder, "it cannot be locked, Windows has no flock")
        yield
        return
    path = folder / _LOCK
    with ExitStack() as opened:
        try:
            whole = os.open(folder, os.O_RDONLY)
            opened.callback(os.close, whole)
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666)
            opened.callback(os.close, descriptor)
        except OSError as error:
            said = f"expected the folder of a run that can be written, got {path}: {error.strerror}"
            raise InputError(said) from None
        _take(whole, descriptor, path)
        try:
            yield
        finally:
            with suppress(OSError):
                os.ftruncate(descriptor, 0)  # nobody holds it


def _take(whole: int, descriptor: int, path: Path) -> None:
    """Lock a folder and the file in it, and say there who holds the lock.

    Who deletes the file is still stopped by the folder. Who sees the folder by a network, where it may have no lock but
    those of each machine, is stopped by the file.

    Raises:
        InputError: another process holds it, or the file is none that says so.
    """
    found = os.fstat(descriptor)
    if not stat.S_ISREG(found.st_mode) or found.st_nlink != 1:
        raise InputError(f"expected a file of the run's own as its lock, got {path}, which is none, or a link")
    here, doubts = socket.gethostname(), []
    try:
        with suppress(OSError):
            _flock(whole)
        _flock(descriptor)
    except _HeldError:
        raise InputError(
            f"expected a run that no other process writes, got {path.parent}, which is written by "
            f"{_Holder.read(descriptor) or 'a process that has not said which'}: "
            "wait until that has ended, or end it, and --resume again"
        ) from None
    except OSError as error:  # of a file system without locks, a network's above all
        doubts.append(f"it cannot be locked, {error.strerror}")
    before = _Holder.read(descriptor)
    if before is None and os.fstat(descriptor).st_size:
        raise InputError(f"expected a file of the run's own as its lock, got {path}, which holds something else")
    if before and (doubts or before.host != here):
        # It was killed. Or the locks are none, or those of this machine alone, as a network's file system may have it.
        doubts.append(f"{before} did not say that it has ended")
    if doubts:
        _warn(path.parent, "; ".join(doubts))
    said = dataclasses.asdict(_Holder(here, os.getpid(), f"{datetime.now().astimezone():%Y-%m-%d %H:%M:%S %z}"))
    # Never empty in between: who comes second may read it at any moment.
    os.ftruncate(descriptor, os.pwrite(descriptor, json.dumps(said).encode(), 0))


class _HeldError(Exception):
    """Another process holds a lock."""


def _flock(descriptor: int) -> None:
    import fcntl

    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise _HeldError from None


def _warn(folder: Path, reason: str) -> None:
    print(f"WARNING: see to it that no other process writes {folder} meanwhile: {reason}", file=sys.stderr)
