"""Numbers and texts as a reader sees them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from manual_mlp.explain.expressions import Tree

ALL_SHOWN = 6  # rows and columns of a matrix: where there are more, the first few
_BACKTICK = "\ue000"  # of Unicode's private use


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
