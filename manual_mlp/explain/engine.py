"""The steps in their order, and what holds them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from html import escape
from pathlib import Path
from typing import overload

import torch

from manual_mlp.explain import page, terminal
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
from manual_mlp.explain.writing import count
from manual_mlp.nearest import did_you_mean

_STEPS = (question, nudge, total, bias, weight, batch, transpose, size, below, softmax, verdict)


class Explanation(Sequence[Step]):
    """Hold the steps of an explanation: printed it is text, in a notebook the live page.

    Attributes:
        story: the network, the formulas that are told, and all that they find.
        note: what to know before reading; empty if all is right.

    Example::

        from manual_mlp.explain import draw_network, explain

        explanation = explain(draw_network()).check()  # raises where a step is wrong
        explanation.save("explain.html")
        print(explanation[0].title)
    """

    def __init__(self, story: Story, steps: Sequence[Step]) -> None:
        self.story, self.steps = story, tuple(steps)
        told = [mistake for mistake in MISTAKES.values() if mistake.formulas == story.formulas]
        self.note = "".join(
            f"Told with a mistake, {mistake.name}: {mistake.wrong}, instead of {mistake.right}." for mistake in told
        )

    @overload
    def __getitem__(self, index: int) -> Step: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Step]: ...
    def __getitem__(self, index: int | slice) -> Step | Sequence[Step]:
        return self.steps[index]

    def __iter__(self) -> Iterator[Step]:
        return iter(self.steps)

    def __len__(self) -> int:
        return len(self.steps)

    def __str__(self) -> str:
        return self.text()

    def __repr__(self) -> str:
        rows, inputs, outputs = self.story.network.shape
        layer = f"{inputs} -> {outputs}, {self.story.network.f!r}, {self.story.network.loss}, {count(rows, 'row')}"
        return f"<Explanation of a layer {layer}: {self.verdict}>"

    def _repr_html_(self) -> str:
        # A frame of its own: neither the page's style nor its script meets the notebook's.
        page = escape(self.html(), quote=True)
        return f'<iframe srcdoc="{page}" style="width:100%;height:80vh;border:0" title="the explanation"></iframe>'

    @property
    def verdict(self) -> str:
        """How many checks passed, and where the first failed."""
        return terminal.verdict_of(self.steps)

    def text(self, width: int = 80, colour: bool = False) -> str:
        """Return it as lines of text."""
        return f"{self.note}{terminal.render(self.steps, width, colour, self.story)}\n{self.verdict}\n"

    def html(self, about: str = "") -> str:
        """Return it as one page that needs nothing else.

        Args:
            about: how the numbers were made, for the foot of the page.
        """
        about = about or f"Made by manual_mlp.explain, in float64, with torch {torch.__version__}."
        return page.render(self.steps, about, self.note, self.story)

    def save(self, path: str | Path, about: str = "") -> None:
        """Write the page to a file.

        Raises:
            ValueError: the file cannot be written.
        """
        try:
            Path(path).write_text(self.html(about), encoding="utf-8")
        except OSError as error:
            raise ValueError(f"expected a path that can be written, got {path}: {error.strerror}") from None

    def check(self) -> Explanation:
        """Raise an error unless every check of every step has passed, and return this.

        Raises:
            ValueError: the first check that failed, in words.
        """
        for step in self.steps:
            for failed in step.failed:
                said = terminal.result_of(failed)
                raise ValueError(f"{step.name}: {failed.name}, by {failed.against}: {said}. {self.verdict}")
        return self


def explain(
    network: Network,
    formulas: Formulas = RIGHT,
    *,
    mistaken: Sequence[str] = tuple(MISTAKES),
    picture: Picture | None = None,
    seed: int = 0,
) -> Explanation:
    """Compute all steps of the explanation for a network.

    Args:
        formulas: what is told; those of a :class:`Mistake` fail some checks.
        mistaken: the names of the mistakes that step 11 makes.
        picture: what step 12 looks at; an embedded digit by default.
        seed: of the random numbers that are not the network's.

    Raises:
        ValueError: a mistake of another name.
        TypeError: no network, or no formulas.

    Example::

        from manual_mlp.explain import draw_network

        print(explain(draw_network(activation="gelu", batch=2)))
    """
    if not isinstance(network, Network):
        raise TypeError(f"expected network to be a Network, as draw_network makes one, got {type(network).__name__}")
    if not isinstance(formulas, Formulas):
        raise TypeError(f"expected formulas to be Formulas, got {type(formulas).__name__}")
    unknown = [name for name in mistaken if name not in MISTAKES]
    if unknown:
        near = did_you_mean(unknown[0], MISTAKES)
        raise ValueError(f"expected mistaken among {', '.join(MISTAKES)}, got {', '.join(map(str, unknown))}{near}")
    with torch.inference_mode(False), torch.enable_grad():
        # The mistakes are made on the right formulas, whatever is told.
        right = Story(network, RIGHT, seed)
        found = _first(right)
        story = right if formulas is RIGHT else Story(network, formulas, seed)
        return Explanation(
            story,
            [
                *(found if story is right else _first(story)),
                mistakes(right, found, _first, mistaken),
                digit(embedded_picture(seed=seed) if picture is None else picture, formulas),
                exercises(right),
            ],
        )


def _first(story: Story) -> Sequence[Step]:
    return [step(story) for step in _STEPS]
