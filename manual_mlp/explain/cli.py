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
from manual_mlp.explain.engine import explain
from manual_mlp.explain.formulas import MISTAKES, RIGHT
from manual_mlp.explain.given import read_numbers
from manual_mlp.explain.network import draw_network
from manual_mlp.explain.serve import serve
from manual_mlp.explain.steps.digit import embedded_picture, trained_picture

_WIDEST = 110  # characters of a line
_DRAWN = ("inputs", "outputs", "batch", "activation", "loss")  # the options of numbers that are drawn

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
    add("--serve", action="store_true", help="open the page in a browser, from this machine alone, until Ctrl-C")
    add("--numbers", type=Path, metavar="FILE", help="numbers of your own: JSON with H (or X, V, C), W, B, Y*, f, loss")
    add("--inputs", type=int, metavar="N", help="entries of a row of H (default: 3)")
    add("--outputs", type=int, metavar="N", help="entries of a row of Y (default: 2)")
    add("--batch", type=int, metavar="N", help="rows that go through together (default: 4)")
    names = ", ".join(activations.names())
    add("--activation", metavar="NAME", help=f"the function f: {names} (default: sigmoid)")
    add("--loss", choices=losses.flags(), help="J as a function of Y (default: squared-error)")
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
    if options.data_dir is not None and options.checkpoint is None:
        raise ValueError("expected --checkpoint with --data-dir: without a run the image is an embedded one")
    if options.numbers is None:
        # What is left out is as draw_network has it.
        given = {name: getattr(options, name) for name in _DRAWN if getattr(options, name) is not None}
        network = draw_network(**given, seed=options.seed)
    else:
        drawn = [f"--{name}" for name in _DRAWN if getattr(options, name) is not None]
        if drawn:
            raise ValueError(f"expected no {', '.join(drawn)} with --numbers: the file tells")
        network = read_numbers(options.numbers)
    if options.checkpoint is None:
        picture = embedded_picture(options.digit, options.seed)
    else:
        picture = trained_picture(options.checkpoint, options.digit, options.data_dir)
    mistake = MISTAKES.get(options.mistake)
    explanation = explain(
        network,
        RIGHT if mistake is None else mistake.formulas,
        # A page lets its reader make the others too.
        mistaken=tuple(MISTAKES) if mistake is None or options.html or options.serve else (mistake.name,),
        picture=picture,
        seed=options.seed,
    )
    failed = any(step.failed for step in explanation)
    if options.html is not None:
        try:
            explanation.save(options.html, _about(options))
        except ValueError as error:
            raise ValueError(str(error).replace("a path that can be written", "a writable --html", 1)) from None
        print(f"wrote {options.html}: {explanation.verdict}", flush=True)
    if options.serve:
        serve(explanation.html(_about(options)))
    if options.html is None and not options.serve:
        width = min(_WIDEST, shutil.get_terminal_size().columns)
        print(explanation.text(width, _colour()), end="", flush=True)
    if failed:
        print(f"failed: {explanation.verdict}", file=sys.stderr)
    return int(failed)


def _about(options: argparse.Namespace) -> str:
    given = ("numbers", *_DRAWN, "seed", "break", "digit", "checkpoint")
    values = {**vars(options), "break": options.mistake}
    words = " ".join(f"--{name} {values[name]}" for name in given if values[name] is not None)
    return f"Made by: python -m manual_mlp explain {words}, in float64, with torch {torch.__version__}."


def _colour() -> bool:
    return sys.stdout.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"
