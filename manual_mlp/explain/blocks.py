"""What a step of the explanation is made of: data, which the terminal and the page each show in their own way."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TypeAlias, TypeVar

import torch
from torch import Tensor

from manual_mlp.explain.expressions import Tree

_BACKTICK = "\ue000"  # of Unicode's private use
ALL_SHOWN = 6  # rows and columns of a matrix: where there are more, the first few


# What a reader of a textbook asks: the question, its answer, and the steps that show it.
QUESTIONS = (
    (
        "How do the derivatives by B and W turn into an entrywise product?",
        "f works entry by entry, so the Jacobian is diagonal, and a row times a diagonal matrix is an entrywise "
        "product. With W the same diagonal occurs, once for each input.",
        (3, 4),
    ),
    (
        "Why does every derivative have its parameter's shape?",
        "J is one number. So there is one derivative for each entry, and it is written where the entry stands.",
        (0,),
    ),
    (
        "How does `∂Y/∂W` result in the transpose of H?",
        "It does not. It is an array with three indices. When `∂J/∂Y` is multiplied in, `Hₖ δₗ` is left, and `Hᵀ` is "
        "H stood up, so that k counts rows.",
        (4, 6),
    ),
    (
        "Why is that a matrix product with `∂J/∂Y`?",
        "It is one with `δ = ∂J/∂Y ⊙ f′(Z)`. Each row of a batch gives an outer product, and a matrix product adds "
        "them up.",
        (4, 5),
    ),
    (
        "Why does the chain rule sum over all outputs, and is that sum a dot product?",
        "A knob may move all outputs, and J feels each. And yes: of `∂J/∂Y` with the derivatives of Y by the knob.",
        (2, 8),
    ),
    (
        "What are the `δᵢₖ` in the proof?",
        "Entries of the identity matrix: 1 where the two letters are the same number, else 0. They remove all other "
        "terms from a sum.",
        (1, 3),
    ),
)


@dataclass(frozen=True)
class Refused:
    """Hold why a formula gave no numbers, in torch's words.

    Attributes:
        reason: the message of the error.
    """

    reason: str


Values: TypeAlias = Tensor | Refused


@dataclass(frozen=True)
class Slot:
    """A number in a sentence.

    Attributes:
        tree: what it is.
        form: how it is written, as :func:`manual_mlp.explain.words.written` says.
        text: as it is written now.
    """

    tree: Tree
    form: str
    text: str


class Live(str):
    """A text that holds numbers. A page computes them anew.

    Attributes:
        pieces: its parts in their order.
    """

    pieces: tuple[str | Slot, ...]

    def __new__(cls, pieces: Sequence[str | Slot]) -> Live:
        made = super().__new__(cls, "".join(part if isinstance(part, str) else part.text for part in pieces))
        made.pieces = tuple(pieces)
        return made


@dataclass(frozen=True)
class Text:
    """A paragraph of plain words. What stands between backticks is a formula.

    Attributes:
        only: "script" for what is true of a page with its script alone.
    """

    text: str
    only: str = ""


@dataclass(frozen=True)
class Heading:
    """The head of a part of a step.

    Attributes:
        switch: the name of the mistake that it is about, which a page lets its reader make.
    """

    text: str
    switch: str = ""


@dataclass(frozen=True)
class Formula:
    """A formula on a line of its own.

    Attributes:
        tag: of its proof in docs/derivation.md, or empty.
    """

    text: str
    tag: str = ""


@dataclass(frozen=True)
class Matrix:
    """A matrix with its name, and the letters that number its rows and columns.

    Attributes:
        values: (R, C), or why there are none.
        rows, columns: the letters; an empty one labels nothing.
        mark: (R, C), true for the entries that the text speaks of.
        tree: what the values are, or None: then a page leaves them as they are.
        marked: what ``mark`` is, likewise: not 0 where an entry is marked.
        when: how many rows of a batch it takes for this matrix, and for the sign before it, to be there.
        shown: whether there are so many.
    """

    name: str
    values: Values
    rows: str = "n"
    columns: str = "l"
    mark: Tensor | None = None
    tree: Tree = None
    marked: Tree = None
    when: int = 1
    shown: bool = True


@dataclass(frozen=True)
class Numbers:
    """Matrices side by side, with signs between them."""

    parts: tuple[Matrix | str, ...]


@dataclass(frozen=True)
class Table:
    """Rows of words and numbers under a header."""

    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


@dataclass(frozen=True)
class Tile:
    """A matrix drawn as coloured squares.

    Attributes:
        values: (R, C).
        labels: of the rows and of the columns.
    """

    caption: str
    values: Tensor
    labels: tuple[str, str] = ("", "")
    tree: Tree = None
    when: int = 1
    shown: bool = True


@dataclass(frozen=True)
class Tiles:
    """A picture: tiles in one scale of colours, with signs between them. The terminal only says what there is to see.

    Attributes:
        says: what there is to see, in a sentence.
        images: whether the tiles are images, which the terminal draws too.
    """

    says: str
    parts: tuple[Tile | str, ...]
    images: bool = False


@dataclass(frozen=True)
class Curve:
    """A picture: f, and a point with its slope for each entry of Z, (N, D_out)."""

    says: str
    z: Tensor
    y: Tensor
    slope: Tensor
    line: Tensor  # (M, 2), points of f


@dataclass(frozen=True)
class Exercise:
    """A question that the reader answers.

    Attributes:
        answer: the number, or the index of the right choice, now.
        tree: what the answer is.
        step: where it is told.
    """

    question: str
    answer: float
    tree: Tree
    hint: str
    step: int
    choices: tuple[str, ...] = ()


@dataclass(frozen=True)
class OfF:
    """Which function f is, and its formula where there is one."""

    name: str
    text: str


@dataclass(frozen=True)
class Bars:
    """A picture: numbers as bars.

    Attributes:
        logarithmic: whether a bar's length is the number's order of magnitude; zeros have no bar then.
    """

    says: str
    bars: tuple[tuple[str, float], ...]
    logarithmic: bool = False


@dataclass(frozen=True)
class Areas:
    """A picture: two counts as squares, their areas to scale."""

    says: str
    large: tuple[str, int]
    small: tuple[str, int]


@dataclass(frozen=True)
class Check:
    """Two ways to the same numbers, compared.

    Attributes:
        name: what is compared.
        against: with what.
        error: the largest difference of two entries, or None where they could not be compared.
        allowed: the largest error that passes.
        reason: how it ended, in words, where numbers would not tell.
        got: what is compared, or None where only Python can.
        want: what should have the same values; or, with ``by``, slopes of the same values.
        by: the name of what the slopes are by.
    """

    name: str
    against: str
    error: float | None
    allowed: float
    reason: str = ""
    got: Tree = None
    want: Tree = None
    by: str = ""

    @property
    def passed(self) -> bool:
        # Written so that NaN and infinity fail.
        return self.error is not None and self.error <= self.allowed < math.inf


@dataclass(frozen=True)
class When:
    """Blocks that are there under a condition.

    Attributes:
        tree: not 0 where they are there; None for what only Python computes, which is there until a number is changed.
        shown: whether they are there now.
    """

    tree: Tree
    shown: bool
    blocks: tuple[Block, ...]


Block: TypeAlias = (
    Text | Heading | Formula | Numbers | Table | Tiles | Curve  | Bars | Areas | Check | When | Exercise | OfF
)


@dataclass(frozen=True)
class Step:
    """One step of the explanation."""

    number: int
    title: str
    blocks: tuple[Block, ...]

    @property
    def shown(self) -> tuple[Block, ...]:
        """List the blocks that are there now."""
        return tuple(_shown(self.blocks))

    @property
    def checks(self) -> list[Check]:
        """List the step's checks."""
        return [block for block in self.shown if isinstance(block, Check)]

    @property
    def failed(self) -> list[Check]:
        """List the checks that did not pass."""
        return [check for check in self.checks if not check.passed]

    @property
    def name(self) -> str:
        """Return what the step is called where it fails."""
        return f"step {self.number}, {self.title}"


def _shown(blocks: Sequence[Block]) -> Iterator[Block]:
    for block in blocks:
        if not isinstance(block, When):
            yield block
        elif block.shown:
            yield from _shown(block.blocks)


def literal(text: str) -> str:
    """Protect a text that is not ours: its backticks enclose no formulas."""
    return text.replace("`", _BACKTICK)


def unprotected(text: str) -> str:
    """Give a text that was shown its own backticks back."""
    return text.replace(_BACKTICK, "`")


def count(n: int, thing: str) -> str:
    """Write how many of a thing there are: 1 row, 2 rows."""
    return f"{n:,} {thing}" if n == 1 else f"{n:,} {'entries' if thing == 'entry' else thing + 's'}"


def low(*indices: int) -> str:
    """Write indices below the line, counted from 1; with a comma where one has two digits."""
    digits = str.maketrans("0123456789", "₀₁₂₃₄₅₆₇₈₉")
    return ("," if max(indices) > 8 else "").join(str(i + 1).translate(digits) for i in indices)


def number(value: float, digits: int | None = None) -> str:
    """Write a number as a reader would, with a true minus sign: 4 decimals, or fewer if those are all it has."""
    if value == 0:
        return "0"
    if digits is None:
        digits = decimals(torch.tensor([value], dtype=torch.float64))
    plain = 10.0**-digits <= abs(round(value, digits)) < 10**6
    return (f"{value:.{digits}f}" if plain else f"{value:.2e}").replace("-", "−")


def decimals(values: Tensor, most: int = 4) -> int:
    """Return how many decimals are enough for all the values, or the most that are shown."""
    for digits in range(most):
        if torch.allclose(values, values.round(decimals=digits), rtol=0, atol=1e-12):
            return digits
    return most


Part = TypeVar("Part", Matrix, Tile)


def there(parts: Sequence[Part | str]) -> list[Part | str]:
    """List the parts that are there now, without the sign before one that is not."""
    kept: list[Part | str] = []
    for part in parts:
        if isinstance(part, str) or part.shown:
            kept.append(part)
        elif kept and isinstance(kept[-1], str):
            kept.pop()
    return kept


def answer_of(exercise: Exercise) -> str:
    """Write what is right."""
    return exercise.choices[int(exercise.answer)] if exercise.choices else number(exercise.answer)
