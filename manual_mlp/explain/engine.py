"""The steps in their order."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from manual_mlp.explain.blocks import Step
from manual_mlp.explain.formulas import MISTAKES, RIGHT, Formulas
from manual_mlp.explain.network import Network
from manual_mlp.explain.steps.below import below, softmax
from manual_mlp.explain.steps.digit import Picture, digit, embedded_picture
from manual_mlp.explain.steps.exercises import exercises
from manual_mlp.explain.steps.forward import nudge, question, total
from manual_mlp.explain.steps.full import batch, bias, weight
from manual_mlp.explain.steps.mistakes import mistakes
from manual_mlp.explain.steps.transpose import size, transpose
from manual_mlp.explain.steps.verdict import verdict
from manual_mlp.explain.story import Story

_STEPS = (question, nudge, total, bias, weight, batch, transpose, size, below, softmax, verdict)


def explain(
    network: Network,
    formulas: Formulas = RIGHT,
    *,
    mistaken: Sequence[str] = tuple(MISTAKES),
    picture: Picture | None = None,
    seed: int = 0,
) -> list[Step]:
    """Compute all steps of the explanation for a network.

    Args:
        formulas: what is told; those of a :class:`Mistake` fail some checks.
        mistaken: the names of the mistakes that step 11 makes.
        picture: what step 12 looks at; an embedded digit by default.
        seed: of the random directions.

    Raises:
        ValueError: a mistake of another name.
    """
    unknown = [name for name in mistaken if name not in MISTAKES]
    if unknown:
        raise ValueError(f"expected mistakes among {', '.join(MISTAKES)}, got {', '.join(unknown)}")
    with torch.inference_mode(False), torch.enable_grad():
        # The mistakes are made on the right formulas, whatever is told.
        right = Story(network, RIGHT, seed)
        found = _first(right)
        return [
            *(found if formulas is RIGHT else _first(Story(network, formulas, seed))),
            mistakes(right, found, _first, mistaken),
            digit(embedded_picture(seed=seed) if picture is None else picture, formulas),
            exercises(right),
        ]


def _first(story: Story) -> Sequence[Step]:
    return [step(story) for step in _STEPS]
