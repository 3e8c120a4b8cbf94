"""The commands: ``python -m manual_mlp explain | export | build | doctor``."""

import argparse
import re
import sys
from collections.abc import Sequence
from typing import Any, NoReturn

from manual_mlp import doctor, streams
from manual_mlp.engines.native import build
from manual_mlp.explain import cli
from manual_mlp.nearest import did_you_mean
from manual_mlp.training import export
from manual_mlp.training.errors import one_line


class _Parser(argparse.ArgumentParser):
    """An argument parser whose errors are one line, and tell which name was meant."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"error: {message}\n")

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        """Refuse what is not among the choices; argparse's own words differ from Python to Python."""
        if action.choices is not None and value not in action.choices:
            names = [*map(str, action.choices)]
            what = f"{action.option_strings[0]} to be" if action.option_strings else "a command,"
            self.error(f"expected {what} one of {', '.join(names)}, got {value!r}{did_you_mean(value, names)}")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command and return its exit status."""
    parser = _Parser(prog="python -m manual_mlp", description="Dense layers whose backward is by hand.")
    parser.add_argument("--version", action="version", version=doctor.version(), help="print the versions and exit")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND")
    cli.add_command(commands)
    export.add_command(commands)
    build.add_command(commands)
    doctor.add_command(commands)
    options, unknown = parser.parse_known_args(arguments)
    if unknown:
        of = parser if options.command is None else commands.choices[options.command]
        flags = re.findall("--[a-z][a-z-]*", of.format_usage())
        among = f" among {', '.join(flags)}" if flags else ""
        near = did_you_mean(unknown[0].partition("=")[0], flags, "--")
        parser.error(f"expected a flag{among}, got {unknown[0]}{near}")
    if options.command is None:
        parser.error(f"expected a command, one of {', '.join(commands.choices)}, got nothing")
    try:
        return int(options.run(options))
    except (ValueError, ImportError, OSError) as error:
        print(f"error: {one_line(error)}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    # The formulas need more than ASCII, whatever the locale.
    streams.forgive("utf-8")
    sys.exit(main())
