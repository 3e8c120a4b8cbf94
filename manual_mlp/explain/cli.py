"""The command ``python -m manual_mlp explain``."""

from __future__ import annotations

import argparse
import os
import shutil
import sys
from pathlib import Path
from typing import Any

import torch

from manual_mlp import activations, losses
from manual_mlp.explain import page, terminal
from manual_mlp.explain.engine import explain
from manual_mlp.explain.formulas import MISTAKES, RIGHT
from manual_mlp.explain.network import draw_network
from manual_mlp.explain.steps.digit import embedded_picture, trained_picture

_WIDEST = 110  # characters of a line

_DESCRIPTION = """\
Derive the gradients of a dense layer step by step, on numbers that are computed in this run, and check each step
against autograd or a finite difference.

The exit status is 0 if all checks pass, 1 if one fails (its step is named), and 2 for bad options."""


def add_command(commands: argparse._SubParsersAction[Any]) -> None:
    """Add the command and its options to those of ``python -m manual_mlp``."""
    parser = commands.add_parser(
        "explain",
        help="derive the gradients of a dense layer, checked step by step",
        description=_DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--html", type=Path, metavar="FILE", help="write one self-contained page instead of text")
    add("--inputs", type=int, default=3, metavar="N", help="entries of a row of H (default: 3)")
    add("--outputs", type=int, default=2, metavar="N", help="entries of a row of Y (default: 2)")
    add("--batch", type=int, default=4, metavar="N", help="rows that go through together (default: 4)")
    names = ", ".join(activations.names())
    add("--activation", default="sigmoid", metavar="NAME", help=f"the function f: {names} (default: sigmoid)")
    add("--loss", choices=losses.flags(), default="squared-error", help="J as a function of Y (default: squared-error)")
    add("--seed", type=int, default=0, metavar="N", help="of all random numbers (default: 0)")
    add(
        "--break",
        dest="mistake",
        choices=tuple(MISTAKES),
        metavar="NAME",
        help=f"make a usual mistake in the formulas, and see which checks fail: {', '.join(MISTAKES)}",
    )
    add("--digit", type=int, choices=range(10), default=7, metavar="0-9", help="the image of step 12 (default: 7)")
    add("--checkpoint", type=Path, metavar="RUN", help="a folder written by train.py: step 12 looks at its first layer")
    add("--data-dir", type=Path, metavar="DIR", help="images for --checkpoint (default: MANUAL_MLP_DATA, or the run's)")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Print the explanation, or write its page, and return the exit status.

    Raises:
        ValueError, ImportError, OSError: bad options, in words for a user.
    """
    threads = torch.get_num_threads()
    # The arrays are small: threads would only wait for each other.
    torch.set_num_threads(1)
    try:
        return _run(options)
    finally:
        torch.set_num_threads(threads)


def _run(options: argparse.Namespace) -> int:
    network = draw_network(
        options.inputs, options.outputs, options.batch, options.activation, options.loss, options.seed
    )
    if options.data_dir is not None and options.checkpoint is None:
        raise ValueError("expected --checkpoint with --data-dir: without a run the image is an embedded one")
    if options.checkpoint is None:
        picture = embedded_picture(options.digit, options.seed)
    else:
        picture = trained_picture(options.checkpoint, options.digit, options.data_dir)
    mistake = MISTAKES.get(options.mistake)
    steps = explain(
        network,
        RIGHT if mistake is None else mistake.formulas,
        mistaken=tuple(MISTAKES) if mistake is None else (mistake.name,),
        picture=picture,
        seed=options.seed,
    )
    verdict = terminal.verdict_of(steps)
    note = (
        "" if mistake is None else f"Told with a mistake, {mistake.name}: {mistake.wrong}, instead of {mistake.right}."
    )
    failed = any(step.failed for step in steps)
    if options.html is not None:
        _write(options.html, page.render(steps, _about(options), note))
        print(f"wrote {options.html}: {verdict}", flush=True)
    else:
        width = min(_WIDEST, shutil.get_terminal_size().columns)
        print(note + terminal.render(steps, width, _colour()) + "\n" + verdict, flush=True)
    if failed:
        print(f"failed: {verdict}", file=sys.stderr)
    return int(failed)


def _write(path: Path, text: str) -> None:
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise ValueError(f"expected a writable --html, got {path}: {error.strerror}") from None


def _about(options: argparse.Namespace) -> str:
    given = ("inputs", "outputs", "batch", "activation", "loss", "seed", "break", "digit", "checkpoint")
    values = {**vars(options), "break": options.mistake}
    words = " ".join(f"--{name} {values[name]}" for name in given if values[name] is not None)
    return f"Made by: python -m manual_mlp explain {words}, in float64, with torch {torch.__version__}."


def _colour() -> bool:
    return sys.stdout.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"
