"""From the command line to a Config, and from an error to one line."""

from __future__ import annotations

import contextlib
import importlib.util
import io
import sys
from collections.abc import Iterator, Sequence

from manual_mlp.training.config import Config
from manual_mlp.training.errors import DivergedError, InputError

_EXTRA = ("safetensors", "sklearn", "tensorboard", "torchvision", "tqdm", "tyro")


def parse(args: Sequence[str] | None = None) -> Config:
    """Read the flags, those of the process by default.

    Raises:
        InputError: a flag is unknown or its value is nonsense, or the extra `train` is not installed.
    """
    missing = [module for module in _EXTRA if importlib.util.find_spec(module) is None]
    if missing:
        raise InputError(
            f"expected the packages for training, got no {', '.join(missing)}: pip install 'manual_mlp[train]'"
        )
    import tyro

    complaint = io.StringIO()
    try:
        with contextlib.redirect_stderr(complaint):
            return tyro.cli(Config, args=args, config=(tyro.conf.FlagCreatePairsOff,))
    except SystemExit as exit:
        if not exit.code:
            raise
        raise InputError(_one_line(complaint.getvalue())) from None


@contextlib.contextmanager
def one_line_errors() -> Iterator[None]:
    """Print what went wrong as one line on stderr.

    The exit status is 2 for bad input, 1 for a loss that diverged or a disk that failed.
    """
    try:
        yield
    except (InputError, DivergedError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2 if isinstance(error, InputError) else 1)


def _one_line(box: str) -> str:
    """Return the first paragraph of tyro's framed message."""
    inside = [line.strip("│ ") for line in box.splitlines()[1:]]
    paragraph = " ".join(line for line in inside[: _index_of_rule(inside)])
    return paragraph.removeprefix("Error parsing Config: ") or box.strip()


def _index_of_rule(lines: list[str]) -> int:
    return next((i for i, line in enumerate(lines) if line.startswith(("─", "╰"))), len(lines))
