"""The command: a module under the stand-in; without one, the CUDA half of the suite."""

import os
import sys

from standin import HERE, environment

GRAPH, WAITS = "test_training_graph.py", "test_training_waits.py"
PYTEST = (
    # Inductor compiles for a driver that is not there.
    *("-k", "(cuda or a_gpu) and not inductor and not report"),
    # Triton's interpreter waits for the device, and multiplies NaN by NumPy, which says so.
    *("--deselect", f"tests/training/{GRAPH}::test_a_gpu_replays_what_it_would_have_computed[dropout]"),
    *("--deselect", f"tests/training/{WAITS}::test_a_gpu_is_not_waited_for[dropout]"),
    *("-W", "ignore:invalid value encountered:RuntimeWarning"),
)


def main(arguments: list[str]) -> None:
    """Become the process that runs the module."""
    module, *rest = arguments or ["pytest"]
    if module == "pytest":
        rest = [*PYTEST, "-p", "no:cacheprovider", *rest]
    os.chdir(HERE.parents[1])
    os.execve(sys.executable, [sys.executable, "-m", module, *rest], environment())


main(sys.argv[1:])
