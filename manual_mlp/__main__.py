"""The commands: ``python -m manual_mlp explain | export | build | doctor``."""

import argparse
import sys
from collections.abc import Sequence
from typing import NoReturn

from manual_mlp import doctor, streams
from manual_mlp.engines.native import build
from manual_mlp.explain import cli
from manual_mlp.training import export
from manual_mlp.training.errors import one_line


class _Parser(argparse.ArgumentParser):
    """An argument parser whose errors are one line."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"error: {message}\n")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command and return its exit status."""
    parser = _Parser(prog="python -m manual_mlp", description="Dense layers whose backward is by hand.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    cli.add_command(commands)
    export.add_command(commands)
    build.add_command(commands)
    doctor.add_command(commands)
    options = parser.parse_args(arguments)
    try:
        return int(options.run(options))
    except (ValueError, ImportError, OSError) as error:
        print(f"error: {one_line(error)}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    # The formulas need more than ASCII, whatever the locale.
    streams.forgive("utf-8")
    sys.exit(main())
