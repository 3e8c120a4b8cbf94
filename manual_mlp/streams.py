"""Standard streams that take whatever is said: a line that cannot be written is no reason to end a program."""

from __future__ import annotations

import io
import os
import select
import sys
from typing import Any, TextIO

_PATIENCE = 1.0  # seconds for a pipe that is full and does not block
_NEVER_RAISE = ("backslashreplace", "ignore", "namereplace", "xmlcharrefreplace")  # ways to write what is lacking


def forgive(encoding: str | None = None) -> None:
    """Let stdout and stderr replace what their encoding lacks, and drop what cannot be written.

    So a stream that was closed, a reader that went away and a full disk behind a redirect go unnoticed, here and when
    Python flushes at its end. Streams that somebody has replaced are left alone.

    Args:
        encoding: of both; None: their own.
    """
    # Where 0, 1 or 2 is free, the next file that is opened takes it, and what is written to stderr lands in that.
    while (descriptor := os.open(os.devnull, os.O_RDWR)) < 3:
        os.set_inheritable(descriptor, True)
    os.close(descriptor)
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, io.TextIOWrapper(io.BufferedWriter(io.FileIO(os.devnull, "w")), "utf-8", "replace"))
        elif stream is getattr(sys, f"__{name}__"):
            setattr(sys, name, _forgiving(stream, encoding or stream.encoding))


def _forgiving(stream: Any, encoding: str) -> TextIO:
    # Under python -u there is no buffer between the text and the file.
    unbuffered = not hasattr(stream.buffer, "raw")
    raw: Any = _Forgiving(stream.buffer if unbuffered else stream.buffer.raw)
    return io.TextIOWrapper(
        raw if unbuffered else io.BufferedWriter(raw),
        encoding,
        stream.errors if stream.errors in _NEVER_RAISE else "replace",
        line_buffering=stream.line_buffering,
        write_through=stream.write_through,
    )


class _Forgiving(io.RawIOBase):
    """Write to another raw stream, and count what it refuses as written."""

    def __init__(self, raw: Any) -> None:
        self.raw, self.patience = raw, _PATIENCE

    def writable(self) -> bool:
        return True

    def fileno(self) -> int:
        return int(self.raw.fileno())

    def isatty(self) -> bool:
        return bool(self.raw.isatty())

    def write(self, data: Any) -> int:
        size = memoryview(data).nbytes
        try:
            written = self.raw.write(data)
            if written is None:  # it would have to wait
                select.select((), (self.raw,), (), self.patience)
                written = self.raw.write(data)
            # Who waited in vain waits no more until somebody reads.
            self.patience = 0.0 if written is None else _PATIENCE
        except (OSError, ValueError):  # ValueError: somebody has closed it
            written = None
        return size if written is None else int(written)
