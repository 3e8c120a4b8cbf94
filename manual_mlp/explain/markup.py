"""The blocks of a step as HTML."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from torch import Tensor

from manual_mlp.explain import pictures
from manual_mlp.explain.blocks import (
    Areas,
    Bars,
    Block,
    Check,
    Curve,
    Exercise,
    Fold,
    Formula,
    Heading,
    Matrix,
    Numbers,
    OfF,
    Refused,
    Table,
    Text,
    Tiles,
    When,
)
from manual_mlp.explain.compare import shape
from manual_mlp.explain.mathml import mathml, typeset
from manual_mlp.explain.terminal import answer_of, is_numeric, label, of_f, picked
from manual_mlp.explain.trees import Trees
from manual_mlp.explain.writing import ALL_SHOWN, Live, Slot, decimals, number

_ROWS, _COLUMNS = ALL_SHOWN, 10  # of a matrix that are shown


class Markup:
    """Write blocks for a page that is live or not.

    Attributes:
        live: whether the page computes its numbers.
        trees: what it computes, as far as it has been written.
    """

    def __init__(self, live: bool) -> None:
        self.live, self.trees = live, Trees()

    def block(self, block: Block) -> str:
        """Write a block; a check is written elsewhere."""
        match block:
            case Text(text, only):
                return f"<p{_only(only)}>{self.say(text)}</p>"
            case Heading(text, switch):
                return f"<h3>{escape(text)}{self._switch(switch)}</h3>"
            case Formula(text, tag):
                shown = f'<a class="tag" href="#proof-{tag}">{tag}</a>' if tag else ""
                return f'<div class="formula">{mathml(text, display=True)}{shown}</div>'
            case Numbers(parts):
                return f'<div class="parts">{pictures.paired(parts, self._matrix)}</div>'
            case Table(header, rows):
                return self._table(header, rows)
            case Tiles():
                return pictures.tiles(block, self.trees if self.live else None)
            case Curve():
                return pictures.curve(block)
            case Bars():
                return pictures.bars(block)
            case Areas():
                return pictures.areas(block)
            case When(tree, shown, blocks):
                inside = "".join(self.block(one) for one in blocks if not isinstance(one, Check))
                hidden = "" if shown else ' hidden="hidden"'
                kind = 'class="python"' if tree is None else f'data-when="{self.trees.number(tree)}"'
                return f"<div {kind}{hidden}>{inside}</div>"
            case Fold(title, blocks):
                inside = "".join(self.block(one) for one in blocks if not isinstance(one, Check))
                return f"<details><summary>{typeset(title)}</summary>{inside}</details>"
            case OfF(name, text):
                return f'<p data-of="f">{typeset(of_f(name, text))}</p>'
            case Exercise():
                return self._exercise(block)
        raise TypeError(type(block).__name__)

    def _switch(self, name: str) -> str:
        if not name or not self.live:
            return ""
        return (
            f' <button type="button" data-mistake="{name}" aria-pressed="false" data-script="" hidden="hidden">make it'
            '</button><span class="caught"></span>'
        )

    def say(self, text: str) -> str:
        """Write a sentence, with a place for each number that a page computes."""
        if not isinstance(text, Live):
            return typeset(text)
        slots = [piece for piece in text.pieces if isinstance(piece, Slot)]
        numbers = iter(range(len(slots)))
        marked = "".join(piece if isinstance(piece, str) else chr(0xE100 + next(numbers)) for piece in text.pieces)
        made = typeset(marked)
        for n, slot in enumerate(slots):
            form = f' data-f="{slot.form}"' if slot.form else ""
            shown = (
                f'<output aria-live="off" data-x="{self.trees.number(slot.tree)}"{form}>{escape(slot.text)}</output>'
            )
            made = made.replace(chr(0xE100 + n), shown)
        return made

    def _matrix(self, matrix: Matrix) -> str:
        values, rows, columns = matrix.values, matrix.rows, matrix.columns
        live = matrix.tree is not None and self.live
        named = "".join(
            f' data-{key}="{value}"'
            for key, value in (
                ("x", self.trees.number(matrix.tree) if live else ""),
                ("r", rows),
                ("c", columns),
                ("m", self.trees.number(matrix.marked) if live and matrix.marked is not None else ""),
            )
            if value != ""
        )
        size = "" if isinstance(values, Refused) else shape(values)
        caption = f"<caption>{typeset(matrix.name)} <small>{size}</small></caption>"
        body = (
            f'<tr><td class="refused">none: {escape(values.reason)}</td></tr>'
            if isinstance(values, Refused)
            else _body(matrix, values)
        )
        return _scrolled(f'<table class="matrix"{named}>{caption}<tbody>{body}</tbody></table>', matrix.name)

    def _table(self, header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
        numeric = [is_numeric(rows, i) for i in range(len(header))]
        head = "" if not any(header) else "".join(f'<th scope="col">{typeset(cell)}</th>' for cell in header)
        body = "".join(
            "<tr>"
            + "".join(
                f'<td class="{"number" if right else "word"}">{self.say(cell)}</td>'
                for cell, right in zip(row, numeric, strict=True)
            )
            + "</tr>"
            for row in rows
        )
        return _scrolled(f'<table class="words">{f"<tr>{head}</tr>" if head else ""}{body}</table>', "table")

    def _exercise(self, exercise: Exercise) -> str:
        hint = f"<details><summary>hint</summary><p>{typeset(exercise.hint)} {links((exercise.step,))}</p></details>"
        question = f"<p>{self.say(exercise.question)}</p>"
        if not self.live:
            return f"{question}{hint}<details><summary>answer</summary><p>{typeset(answer_of(exercise))}</p></details>"
        tree = self.trees.number(exercise.tree)
        if exercise.choices:
            field = "".join(
                f'<label><input type="radio" name="answer" value="{n}"/> {typeset(choice)}</label>'
                for n, choice in enumerate(exercise.choices)
            )
        else:
            field = '<label>answer <input name="answer" inputmode="decimal" autocomplete="off" size="9"/></label>'
        kind = ' data-picks="1"' if exercise.choices else ""
        return (
            f'<form data-answer="{tree}"{kind}>{question}<div data-script="" hidden="hidden">{field} '
            f'<button type="submit">check</button> <output></output></div>{hint}</form>'
        )


def links(numbers: Sequence[int]) -> str:
    """Write links to steps."""
    return " ".join(f'<a href="#step-{n}">step\u00a0{n}</a>' for n in numbers)


def _body(matrix: Matrix, values: Tensor) -> str:
    rows, columns = picked(values.shape[0], _ROWS), picked(values.shape[1], _COLUMNS)
    most, digits = float(values.abs().max()) or 1.0, decimals(values)
    lines = []
    if matrix.columns:
        corner = "<th></th>" if matrix.rows else ""
        lines.append(
            "<tr>" + corner + "".join(f'<th scope="col">{label(matrix.columns, c)}</th>' for c in columns) + "</tr>"
        )
    for r in rows:
        side = f'<th scope="row">{label(matrix.rows, r)}</th>' if matrix.rows else ""
        lines.append("<tr>" + side + "".join(_cell(matrix, values, r, c, most, digits) for c in columns) + "</tr>")
    return "".join(lines)


def _cell(matrix: Matrix, values: Tensor, r: int | None, c: int | None, most: float, digits: int) -> str:
    if r is None or c is None:
        return "<td>…</td>"
    value = float(values[r, c])
    mark = " mark" if matrix.mark is not None and bool(matrix.mark[r, c]) else ""
    shade = f"{55 * abs(value) / most:.0f}%" if abs(value) < float("inf") else "0%"
    return f'<td class="{"neg" if value < 0 else "pos"}{mark}" style="--s:{shade}">{number(value, digits)}</td>'


def _only(only: str) -> str:
    return ' data-script="" hidden="hidden"' if only == "script" else ""


def _scrolled(table: str, name: str) -> str:
    return f'<div class="scroll" tabindex="0" role="group" aria-label="{escape(name, quote=True)}">{table}</div>'
