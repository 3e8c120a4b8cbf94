"""Run one benchmark: ``python -m benchmarks dense``."""

import sys
from importlib import import_module

# A command is a module of this package, "_" for "-", with ``main(arguments) -> exit status``.
COMMANDS = (
    "dense", "second-order", "transforms", "output", "network", "native", "compile", "dropout", "kernels", "train",
    "sizes", "day", "report",
)  # fmt: skip


def main(arguments: list[str]) -> int:
    """Hand the arguments to the command they name; return its exit status."""
    usage = f"usage: python -m benchmarks {{{','.join(COMMANDS)}}} [--help]"
    if arguments and arguments[0] in ("-h", "--help"):
        print(usage)
        return 0
    if not arguments or arguments[0] not in COMMANDS:
        came = repr(arguments[0]) if arguments else "nothing"
        from manual_mlp.nearest import did_you_mean

        near = did_you_mean(arguments[0], COMMANDS) if arguments else ""
        told = f"expected a command, one of {', '.join(COMMANDS)}, got {came}{near}"
        print(f"python -m benchmarks: {told}", file=sys.stderr)
        return 2
    status: int = import_module(f"benchmarks.{arguments[0].replace('-', '_')}").main(arguments[1:])
    return status


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
