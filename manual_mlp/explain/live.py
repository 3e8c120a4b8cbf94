"""What a page needs to compute the explanation itself, as data."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from manual_mlp import activations, losses
from manual_mlp.explain.blocks import Check, Step, When
from manual_mlp.explain.expressions import Tree, is_data, parse
from manual_mlp.explain.formulas import CHAIN, MISTAKES, RIGHT, in_words, of_activation, of_loss
from manual_mlp.explain.mathml import typeset
from manual_mlp.explain.story import INPUTS, Story, definitions
from manual_mlp.explain.terminal import of_f, verdict_of
from manual_mlp.explain.trees import Trees

# How a name is shown to a reader.
NAMES = {
    "T": "Y*",
    "delta": "δ",
    "gamma": "γ",
    "S": "f′(Z)",
    "S1": "f′(XV + C)",
    "Z1": "(XV + C)",
    "G": "weight.grad",
    "E": "S",
    "dWr": "∂J/∂W",
    "dE": "∂J/∂S",
    "P": "p",
} | {f"d{letter}": f"∂J/∂{letter}" for letter in "YWBHVCX"}
# With the sum over i of the chain rule, and the identity matrix whose zeros end it.
FULL = {
    "delta": "(dY * S) @ I",
    "dB": "sum0((dY * S) @ I)",
    "dW": "H.T @ ((dY * S) @ I)",
    "dWr": "row(H, r).T @ ((row(dY, r) * row(S, r)) @ I)",
}


def checks_of(steps: Sequence[Step]) -> list[tuple[Step, Check, Tree]]:
    """List all checks of the steps that a page shows, with the condition under which they are made."""
    found: list[tuple[Step, Check, Tree]] = []
    for step in steps:
        for block in step.blocks:
            inside = block.blocks if isinstance(block, When) else (block,)
            condition = block.tree if isinstance(block, When) else None
            shown = not isinstance(block, When) or block.shown or block.tree is not None
            found += [(step, check, condition) for check in inside if isinstance(check, Check) and shown]
    return found


def data_of(story: Story, steps: Sequence[Step], trees: Trees) -> dict[str, Any]:
    """Return the numbers, the formulas and the words that a page's script reads.

    Args:
        trees: of the page, all that are shown.
    """
    net = story.network
    found = {"X": net.x, "V": net.v, "C": net.c[None], "W": net.w, "B": net.b[None], "T": net.target}
    if not net.linked:
        found["H"] = net.h
    thrown = [name for name, mistake in MISTAKES.items() if mistake.formulas == story.formulas]
    known = {name: activations.get(name) for name in activations.names()}
    known = {net.name_of_f: net.f} | {name: f for name, f in known.items() if f is not net.f or name == net.name_of_f}
    functions = {name: of_activation(f) for name, f in known.items()}
    functions = {name: made for name, made in functions.items() if all(is_data(body) for _, body in made.values())}
    right = definitions(RIGHT, net)
    checks = [
        {
            "name": check.name,
            "step": step.name,
            "against": check.against,
            "got": None if check.got is None else trees.number(check.got),
            "want": None if check.want is None else trees.number(check.want),
            "by": check.by,
            "when": None if condition is None else trees.number(condition),
        }
        for step, check, condition in checks_of(steps)
    ]
    return {
        "state": {name: t.tolist() for name, t in found.items()}
        | {"f": net.name_of_f, "loss": net.loss, "mistakes": thrown},
        "inputs": INPUTS,
        "focus": story.looked_at,
        "definitions": right,
        "chain": [*CHAIN, "dr"],
        "activations": functions,
        "words": {name: typeset(of_f(name, in_words(known[name]))) for name in functions},
        "losses": {flag: of_loss(flag) for flag in _losses(net.shape[2])},
        "mistakes": {
            name: {key: tree for key, tree in mistake.formulas.chain(net.loss, net.f).items() if tree != right[key]}
            for name, mistake in MISTAKES.items()
        },
        "full": {name: parse(text) for name, text in FULL.items()},
        "names": NAMES,
        "checks": checks,
        "verdict": verdict_of(steps),
        "failed": any(step.failed for step in steps),
        "trees": trees.trees,
    }


def _losses(outputs: int) -> list[str]:
    return [
        flag
        for flag in losses.flags()
        if losses.by_flag(flag).written is not None and (outputs > 1 or not losses.by_flag(flag).of_classes)
    ]
