"""The six questions of a reader, and their answers in short."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from manual_mlp.explain.blocks import Text
from manual_mlp.explain.story import Story
from manual_mlp.explain.writing import low


class Question(NamedTuple):
    """What a reader of a textbook asks: the question, its answer, the answer in numbers, and the steps that show it."""

    asked: str
    answer: str
    here: Text
    steps: tuple[int, ...]


# What is said of the numbers; what stands between double braces is computed.
_ASKED = (
    (
        "How do the derivatives by B and W turn into an entrywise product?",
        "f works entry by entry, so the Jacobian is diagonal, and a row times a diagonal matrix is an entrywise "
        "product. With W the same diagonal occurs, once for each input.",
        "Row {{r + 1:whole}}: ({{row(dY, r):list}}) ⊙ ({{row(S, r):list}}) = ({{row(delta, r):list}}).",
        (3, 4),
    ),
    (
        "Why does every derivative have its parameter's shape?",
        "J is one number. So there is one derivative for each entry, and it is written where the entry stands.",
        "W is {{W:shape}}, and so is ∂J/∂W.",
        (0,),
    ),
    (
        "How does `∂Y/∂W` result in the transpose of H?",
        "It does not. It is an array with three indices. When `∂J/∂Y` is multiplied in, `Hₖ δₗ` is left, and `Hᵀ` is "
        "H stood up, so that k counts rows.",
        "In this row `H{k} δ{l}` is {{pair(at(H, r, k), at(delta, r, l)):terms}}.",
        (4, 6),
    ),
    (
        "Why is that a matrix product with `∂J/∂Y`?",
        "It is one with `δ = ∂J/∂Y ⊙ f′(Z)`. Each row of a batch gives an outer product, and a matrix product adds "
        "them up.",
        "Over all rows `∂J/∂W{k}{l}` is {{pair(col(H, k), col(delta, l)):terms}}.",
        (4, 5),
    ),
    (
        "Why does the chain rule sum over all outputs, and is that sum a dot product?",
        "A knob may move all outputs, and J feels each. And yes: of `∂J/∂Y` with the derivatives of Y by the knob.",
        "By the knob `H{felt}`: {{pair(row(dY, r), row(S, r) * {weights}):terms}}.",
        (2, 8),
    ),
    (
        "What are the `δᵢₖ` in the proof?",
        "Entries of the identity matrix: 1 where the two letters are the same number, else 0. They remove all other "
        "terms from a sum.",
        "For `∂J/∂B{l}`: {{pair(row(dY * S, r), row(I, l)):terms}}.",
        (1, 3),
    ),
)


def questions(story: Story) -> Sequence[Question]:
    """Answer the six questions, on the row, the input and the output of a story that are looked at."""
    _, k, l = story.looked_at  # noqa: E741
    felt = int(story.network.w.abs().amin(1).argmax())  # the input that every output feels most
    shown = {"k": low(k), "l": low(l), "felt": low(felt), "weights": f"row(W, {felt})"}
    return [Question(asked, answer, story.text(here.format(**shown)), steps) for asked, answer, here, steps in _ASKED]
