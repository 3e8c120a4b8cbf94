"""Step 13: five questions for the reader, judged on the numbers at hand."""

from __future__ import annotations

from torch import Tensor

from manual_mlp.explain.blocks import Exercise, Step, Text
from manual_mlp.explain.expressions import parse
from manual_mlp.explain.story import Story
from manual_mlp.explain.writing import low


def exercises(story: Story) -> Step:
    """Step 13: five questions, three of which ask for a number."""
    _, k, l = story.looked_at  # noqa: E741

    def ask(question: str, answer: str, hint: str, step: int, *choices: str) -> Exercise:
        found = story.value(answer)
        value = float(found.reshape(-1)[0]) if isinstance(found, Tensor) else float("nan")
        return Exercise(story.say(question), value, parse(answer), hint, step, choices)

    shapes = ("that of H", "that of W", "that of W, once for each row", "that of Y")
    return Step(
        13,
        "Five questions for you",
        (
            Text("With a pencil, and the numbers above. Two per cent off is near enough."),
            ask(
                f"In row {{r + 1:whole}} `∂J/∂Y` is {{at(dY_, r, l)}} at output {l + 1}, and `f′(Z)` is {{at(S, r, l)}}"
                f" there. What is `δ{low(l)}`?",
                "at(delta_, r, l)",
                "An entrywise product: the two numbers that stand in the same place.",
                3,
            ),
            ask(
                f"In that row `H{low(k)}` is {{at(H, r, k)}}. What does this row alone add to `∂J/∂W{low(k, l)}`?",
                "at(H, r, k) * at(delta_, r, l)",
                "An outer product: one entry of H, and one of δ. The δ is that of the question before.",
                4,
            ),
            ask(
                f"The column of δ for output {l + 1} is {{flat(col(delta_, l)):all}}. What is `∂J/∂B{low(l)}`?",
                "at(dB_, 0, l)",
                "A bias serves every row of the batch.",
                5,
            ),
            ask(
                "The batch has {rows(H):row}. Which shape has `∂J/∂W` for all of it?",
                "1",
                "J is one number. Which numbers does one nudge?",
                0,
                *shapes,
            ),
            ask(
                f"Suppose `H{low(k)}` were 0 in every row. What would be 0 for certain?",
                "2",
                "Look for Hₙₖ in the formula of ∂J/∂W.",
                5,
                "nothing",
                f"`∂J/∂B{low(l)}`",
                f"row {k + 1} of `∂J/∂W`",
                f"`δ{low(l)}`",
            ),
        ),
    )
