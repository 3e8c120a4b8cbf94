"""Study kernels for small networks in Triton: whether they are right, how fast they are, what they compile to.

They are a study, not an engine: nothing in the package calls them. A whole network stays on chip (docs/kernels.md), in
several forms, of which a card has to tell the best. Without a GPU they run in Triton's interpreter, which tells what is
right, and with ``--tiny`` that each row's code runs; ``--compiled`` needs no card either.

The JSON holds, beside command, date, machine, settings, load and ceilings (gflops_tf32: of float32 with 10 bits):
    right: rows (what; dtype, of the products; cases; error and torch_error, the largest of any, by norms and relative
    to float64), wrong (cases with an error of more than twice torch's and eight roundings, or other bits when run
    again), failed (cases that did not run, and why), no_room (those that this card's shared
    memory is too small for), left_out (dtypes that this device has none of, and why);
    rows, as the other commands': case, kind (step; cut, a step of a network cut in two; infer; field, a value with its
    gradient by the input; backward, that and the backward of both; sums, adding up the programs' shares), sizes, rows,
    activation, loss, dropout, dtype, malloc, threads, load, others_cores, busy, number, rounds, forms (by name, what
    differs from the first in benchmarks/kernels/forms.py), left_out, products_us, floor_us (that, or the time of the
    bytes that have to move at the rate of a copy);
    providers of a row: torch, manual_mlp (``backprop``, or ``MLP``), cuda graph (torch's step), compile (torch.compile,
    in some rows), and each form of the kernel, as it is and captured, a CUDA graph of it. For each, median_us, p20_us,
    p80_us, host_us (on CUDA), ratio, extra_us, ratios (of kernels), products_share, floor_share, error (largest
    absolute, against float64; none with dropout), relative_error (the largest over its tensor's largest entry), wrong;
    compiled (with --compiled): triton, architecture, and rows: case, form, kernels (kernel, registers, spill_bytes,
    shared_kb, wgmma, mma, barriers, reds, instructions of the loop over tiles, serialised if products wait for each
    other, model: a guess of its time on an H100 in µs, by limit, and us with its launches), model_us (of them all),
    measured_us and captured_us (where the case was timed on such a card);
    decisions: question, case, answer, us (by form), over_first (the time of each other form over the first's).
"""

import argparse
import contextlib
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from importlib.util import find_spec
from typing import Any

from benchmarks import command, left_out, machine
from benchmarks.kernels.cases import CASES, DTYPES, QUICK, captured_name

INTERPRET = "TRITON_INTERPRET"


def read_options(arguments: Sequence[str]) -> argparse.Namespace:
    """Read the command line; refuse what Triton cannot do here."""
    flags = command.parser("kernels", "Study kernels for small networks in Triton.", dtype=False)
    flags.add_argument("--all", action="store_true", help="every combination is held, not pairs: an hour of compiling")
    flags.add_argument(
        "--compiled", action="store_true", help="also what they compile to for an H100, and a model of time"
    )
    options: argparse.Namespace = flags.parse_args(arguments)
    if options.threads or options.malloc:
        flags.error("expected neither --threads nor --malloc: kernels run on a GPU, or in Triton's interpreter")
    command.complete(flags, options, seconds=1.0)
    options.threads, options.malloc = [1], ("default",)
    if find_spec("triton") is None:
        flags.error("expected Triton 3.6 or newer, got none: it comes with torch for CUDA, or by pip install triton")
    interpreted = os.environ.get(INTERPRET) == "1"
    if options.device.type == "cuda" and interpreted:
        flags.error(f"--device cuda: expected {INTERPRET} not to be set, got 1")
    if options.device.type == "cpu" and not interpreted and "triton" in sys.modules:
        flags.error(f"--device cpu: expected a process of its own, or {INTERPRET}=1, got one that has imported Triton")
    options.dtype = ", ".join(DTYPES[options.device.type])
    return options


@contextlib.contextmanager
def interpreter(on: bool) -> Iterator[None]:
    """Ask Triton for its interpreter, or not to; it listens when it is first imported."""
    before = os.environ.get(INTERPRET)
    os.environ[INTERPRET] = "1" if on else "0"
    try:
        yield
    finally:
        del os.environ[INTERPRET]
        if before is not None:
            os.environ[INTERPRET] = before


def run_all(options: argparse.Namespace, keep: Callable[[dict[str, Any]], None]) -> dict[str, Any]:
    """Hold, time and compile the kernels, print what was found, and keep it after each part."""
    from benchmarks.kernels import decisions, right, tables, timed

    cases = QUICK if options.quick else CASES
    cuda = options.device.type == "cuda"
    found: dict[str, Any] = {"right": right.measure(options), "ceilings": {}, "rows": []}
    print("\nAgainst float64 autograd, by norms.\n" + tables.right(found["right"]), flush=True)
    keep(found)
    if cuda or options.tiny:
        rows, limits = timed.measure([case.tiny(not cuda) for case in cases] if options.tiny else cases, options)
        found |= {"rows": rows, "ceilings": {options.malloc[0]: limits}}
        where = "" if cuda else " In Triton's interpreter: it shows that the code runs, not how fast."
        print(f"\nTimes; above 1, it is faster than torch.{where}\n" + tables.timed(rows))
        print("\n".join(left_out.lines(rows)), flush=True)
        keep(found)
    else:
        print("\nleft out: times (they need CUDA; --tiny shows that their code runs)", flush=True)
    if options.compiled:
        found["compiled"] = compile_all(found["rows"] if cuda else [], options)
        print(f"\nCompiled for an H100; the model's times are guesses{'' if cuda else ', and nothing is measured'}.")
        print(tables.compiled(found["compiled"]))
    found["decisions"] = decisions.decide(found["rows"])
    if found["decisions"]:
        print(f"\nWhat decides the kernels to come{'' if cuda else ' (nothing, as nothing ran on a card)'}.")
        print(tables.decided(found["decisions"]))
    return found


def compile_all(rows: Sequence[dict[str, Any]], options: argparse.Namespace) -> dict[str, Any]:
    """Compile in a process without the interpreter, and put beside each model what was measured."""
    from benchmarks.kernels import compiled

    try:
        with interpreter(False):
            found = machine.fresh(options.malloc[0], compiled.measure, QUICK if options.quick else CASES)
    except RuntimeError as error:
        return {"rows": [], "left_out": f"{error}, which comes with Triton for CUDA"}
    providers = {row["case"]: row["providers"] for row in rows}
    for row in found["rows"]:
        for field, name in (("measured_us", row["form"]), ("captured_us", captured_name(row["form"]))):
            if name in providers.get(row["case"], {}):
                row[field] = providers[row["case"]][name]["median_us"]
    return found


def main(arguments: Sequence[str]) -> int:
    """Hold, time, print, write; return 1 if a kernel is wrong anywhere."""
    options = read_options(arguments)
    run: dict[str, Any] = command.record(options)
    print(command.heading("kernels", run, options), flush=True)

    def keep(found: dict[str, Any]) -> None:
        if options.json:
            print(f"\nwritten: {command.save('kernels', run | found, options)}", flush=True)

    with interpreter(options.device.type == "cpu"):
        run |= run_all(options, keep)
    keep({})
    kernels = {name for row in run["rows"] for name in row["providers"] if name.startswith(tuple(row["forms"]))}
    return int(bool(run["right"]["wrong"] or run["right"]["failed"]) or command.any_wrong(run["rows"], sorted(kernels)))
