"""The command: a module under the stand-in; without one, the CUDA half of the suite."""

import os
import sys

from standin import HERE, environment

# Inductor compiles for a driver that is not there. Triton's interpreter multiplies NaN by NumPy, which says so.
PYTEST = ("-k", "(cuda or a_gpu) and not inductor and not report", "-W", "ignore:invalid value encountered:RuntimeWarning")


def main(arguments: list[str]) -> None:
    """Become the process that runs the module."""
    module, *rest = arguments or ["pytest"]
    if module == "pytest":
        rest = [*PYTEST, "-p", "no:cacheprovider", *rest]
    os.chdir(HERE.parents[1])
    os.execve(sys.executable, [sys.executable, "-m", module, *rest], environment())


main(sys.argv[1:])
