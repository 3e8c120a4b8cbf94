"""Numbers as words: how a value is written in a sentence."""

from __future__ import annotations

import re
from collections.abc import Callable

from torch import Tensor

from manual_mlp.explain.blocks import Refused, Values
from manual_mlp.explain.expressions import Tree, parse
from manual_mlp.explain.writing import Live, Slot, count, number

_SLOT = re.compile(r"\{([^{}:]+)(?::([^{}]+))?\}")
_TERMS = 4  # of a sum that are written out


def say(text: str, compute: Callable[[Tree], Values]) -> Live:
    """Write a sentence whose numbers stand between braces, as in ``J is {J}`` and ``{sum(Y):6}``.

    Args:
        compute: a tree to its value.
    """
    pieces: list[str | Slot] = []
    end = 0
    for found in _SLOT.finditer(text):
        tree, form = parse(found[1]), found[2] or ""
        parts = tree[1:] if form == "terms" else [tree]
        pieces += [text[end : found.start()], Slot(tree, form, written(form, *map(compute, parts)))]
        end = found.end()
    return Live([piece for piece in (*pieces, text[end:]) if piece])


def written(form: str, *values: Values) -> str:
    """Write values.

    Args:
        form: empty for a number; digits for so many of them after the point; ``list`` for the first three of a row,
            ``all`` for all; ``terms`` for the sum of two rows' products, term by term; ``shape``; ``whole`` for a whole
            number; and any other word for how many of that there are.
    """
    first = values[0]
    if any(isinstance(value, Refused) for value in values) or not isinstance(first, Tensor):
        return "none"
    if form == "terms":
        second = values[1]
        assert isinstance(second, Tensor)
        return _terms(first.reshape(-1), second.reshape(-1))
    if form == "shape":
        return "×".join(map(str, first.shape))
    if form in ("list", "all"):
        most = first.numel() if form == "all" else 3
        shown = [number(value) for value in first.reshape(-1)[:most].tolist()]
        return ", ".join(shown) + (", …" if first.numel() > most else "")
    value = float(first.reshape(-1)[0])
    if form == "whole":
        return f"{value:,.0f}"
    if not form or form.isdigit():
        return number(value, int(form) if form else None)
    return count(int(value), form)


def _terms(a: Tensor, b: Tensor) -> str:
    """Write a dot product term by term, and its result; of many terms the largest and the first few."""
    if len(a) != len(b):
        return "none"
    shown = list(range(len(a)))
    if len(a) > _TERMS:
        shown = sorted({*range(_TERMS - 1), int((a * b).abs().argmax())})
    words: list[str] = []
    for before, i in zip([-1, *shown], shown, strict=False):
        words += ["…"] * (i > before + 1) + [f"{_factor(float(a[i]))} · {_factor(float(b[i]))}"]
    words += ["…"] * (shown[-1] < len(a) - 1)
    return " + ".join(words) + f" = {number(float(a @ b))}"


def _factor(value: float) -> str:
    return number(value) if value >= 0 else f"({number(value)})"
