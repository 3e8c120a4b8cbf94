"""End a run when Ctrl-C, SIGTERM or SIGHUP asks for it, at a point of our choice."""

from __future__ import annotations

import signal
from types import FrameType, TracebackType
from typing import Any


class Interrupt:
    """Turn the first Ctrl-C, SIGTERM or SIGHUP into a note; the second acts as if this class were not there.

    Attributes:
        signal: what arrived, 0 so far.
    """

    def __init__(self) -> None:
        self.signal = 0
        self._before: dict[signal.Signals, Any] = {}

    @property
    def exit_status(self) -> int:
        """The shell's convention: 128 + signal, 0 without one."""
        return 128 + self.signal if self.signal else 0

    def __enter__(self) -> Interrupt:
        for name in ("SIGINT", "SIGTERM", "SIGHUP"):  # the last, which Windows lacks, as a terminal is closed
            number = getattr(signal, name, None)
            # Under nohup it is ignored.
            if number is not None and (name != "SIGHUP" or signal.getsignal(number) is not signal.SIG_IGN):
                self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *exception: type[BaseException] | BaseException | TracebackType | None) -> None:
        for number, handler in self._before.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.signal = number
        self.__exit__()
