"""How the command line of a benchmark is read, and refused in one line."""

import argparse
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn


class Parser(argparse.ArgumentParser):
    """An argument parser whose errors are one line, and whose options tell the command that they were read from."""

    def parse_args(self, args: Sequence[str] | None = None, namespace: Any = None) -> Any:  # type: ignore[override]
        """Read the options; ``command`` is the line to type for them, without the folders of this machine."""
        options = super().parse_args(args, namespace)
        folders = {str(value) for value in vars(options).values() if isinstance(value, Path)}
        words = [*self.prog.split()]
        for word in sys.argv[1:] if args is None else args:
            if word in folders:
                words.pop()  # its flag
            elif word.partition("=")[2] not in folders:
                words.append(word)
        options.command = shlex.join(words)
        return options

    def error(self, message: str) -> NoReturn:
        """Print what is wrong in one line and exit with status 2."""
        self.exit(2, f"{self.prog}: {message}\n")


def positive_int(text: str) -> int:
    """Read a whole number from 1 up."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected a whole number from 1 up, got {text!r}")
    return int(text)


def positive_seconds(text: str) -> float:
    """Read a positive, finite number of seconds."""
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"expected a positive number of seconds, got {text!r}")
    return value
