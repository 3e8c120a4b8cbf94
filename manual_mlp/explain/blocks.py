"""What a step of the explanation is made of: data, which the terminal and the page each show in their own way."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TypeAlias, TypeVar

from torch import Tensor

from manual_mlp.explain.expressions import Tree


@dataclass(frozen=True)
class Refused:
    """Hold why a formula gave no numbers, in torch's words.

    Attributes:
        reason: the message of the error.
    """

    reason: str


Values: TypeAlias = Tensor | Refused


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


@dataclass(frozen=True)
class Fold:
    """Blocks that a page unfolds when it is asked to."""

    title: str
    blocks: tuple[Block, ...]


Block: TypeAlias = (
    Text | Heading | Formula | Numbers | Table | Tiles | Curve | Bars | Areas | Check | When | Fold | Exercise | OfF
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
        if isinstance(block, When | Fold):
            yield from _shown(block.blocks) if isinstance(block, Fold) or block.shown else ()
        else:
            yield block


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
