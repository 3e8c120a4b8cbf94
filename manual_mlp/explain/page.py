"""The explanation as one HTML page that needs nothing else."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from importlib.resources import files

from torch import Tensor

from manual_mlp.explain import pictures
from manual_mlp.explain.blocks import (
    ALL_SHOWN,
    QUESTIONS,
    Areas,
    Bars,
    Block,
    Boxes,
    Check,
    Formula,
    Heading,
    Matrix,
    Numbers,
    Refused,
    Step,
    Table,
    Text,
    Tiles,
    decimals,
    number,
)
from manual_mlp.explain.compare import shape
from manual_mlp.explain.mathml import mathml, typeset
from manual_mlp.explain.terminal import is_numeric, label, picked, result_of, verdict_of

_ROWS, _COLUMNS = ALL_SHOWN, 10  # of a matrix that are shown


def render(steps: Sequence[Step], about: str, note: str = "") -> str:
    """Write the page, which is well-formed XML too.

    Args:
        about: how the numbers were made, for the foot of the page.
        note: what to know before reading, for its head.
    """
    style = files("manual_mlp.explain").joinpath("page.css").read_text(encoding="utf-8")
    warning = f'<p class="verdict failed">{typeset(note)}</p>' if note else ""
    failed = any(step.failed for step in steps)
    questions = "".join(
        f"<dt>{typeset(question)}</dt><dd>{typeset(answer)} {_links(numbers)}</dd>"
        for question, answer, numbers in QUESTIONS
    )
    contents = "".join(
        f'<li value="{step.number}"><a href="#step-{step.number}">{typeset(step.title)}</a></li>' for step in steps
    )
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8"/>'
        '<meta name="viewport" content="width=device-width, initial-scale=1"/>'
        f"<title>Where ∂J/∂W = Hᵀδ comes from</title><style>{style}</style></head><body>\n"
        f"<header><h1>Where {mathml('∂J/∂W = Hᵀδ')} comes from</h1>"
        '<p class="soft">The gradients of a dense layer, one number at a time. Every number here was computed when '
        "this page was made, and every step ends in a check. Blue is positive, orange negative, and the deeper the "
        "larger.</p>"
        f'<p class="verdict {"failed" if failed else "ok"}">{escape(verdict_of(steps))}</p>'
        f"{warning}</header>\n"
        f"<dl>{questions}</dl>\n<nav><p>The steps:</p><ol>{contents}</ol></nav>\n<main>\n"
        + "\n".join(map(_step, steps))
        + f"\n</main>\n<footer><p>{escape(about)}</p></footer></body></html>\n"
    )


def _links(numbers: Sequence[int]) -> str:
    return " ".join(f'<a href="#step-{n}">step\u00a0{n}</a>' for n in numbers)


def _step(step: Step) -> str:
    inside = "\n".join(_block(block) for block in step.blocks)
    title = f'<span class="no">{step.number}</span>{typeset(step.title)}'
    return f'<section id="step-{step.number}"><h2>{title}</h2>\n{inside}\n</section>'


def _block(block: Block) -> str:
    match block:
        case Text(text):
            return f"<p>{typeset(text)}</p>"
        case Heading(text):
            return f"<h3>{escape(text)}</h3>"
        case Formula(text, tag):
            shown = f'<span class="tag">{tag}</span>' if tag else ""
            return f'<div class="formula">{mathml(text, display=True)}{shown}</div>'
        case Numbers(parts):
            inside = "".join(
                f'<span class="sign">{escape(part)}</span>' if isinstance(part, str) else _matrix(part)
                for part in parts
            )
            return f'<div class="parts">{inside}</div>'
        case Table(header, rows):
            return _table(header, rows)
        case Tiles():
            return pictures.tiles(block)
        case Boxes():
            return pictures.boxes(block)
        case Bars():
            return pictures.bars(block)
        case Areas():
            return pictures.areas(block)
        case Check():
            return _check(block)


def _matrix(matrix: Matrix) -> str:
    if isinstance(matrix.values, Refused):
        return f'<div class="refused"><b>{escape(matrix.name)}</b><br/>none: {escape(matrix.values.reason)}</div>'
    values = matrix.values
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
    caption = f"{escape(matrix.name)} <small>{shape(values)}</small>"
    return _scrolled(f'<table class="matrix"><caption>{caption}</caption>{"".join(lines)}</table>')


def _cell(matrix: Matrix, values: Tensor, r: int | None, c: int | None, most: float, digits: int) -> str:
    if r is None or c is None:
        return "<td>…</td>"
    value = float(values[r, c])
    mark = " mark" if matrix.mark is not None and bool(matrix.mark[r, c]) else ""
    shade = f"{55 * abs(value) / most:.0f}%" if abs(value) < float("inf") else "0%"
    return f'<td class="{"neg" if value < 0 else "pos"}{mark}" style="--shade:{shade}">{number(value, digits)}</td>'


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    numeric = [is_numeric(rows, i) for i in range(len(header))]
    head = "" if not any(header) else "".join(f'<th scope="col">{typeset(cell)}</th>' for cell in header)
    body = "".join(
        "<tr>"
        + "".join(
            f'<td class="{"number" if right else "word"}">{typeset(cell)}</td>'
            for cell, right in zip(row, numeric, strict=True)
        )
        + "</tr>"
        for row in rows
    )
    return _scrolled(f'<table class="words">{f"<tr>{head}</tr>" if head else ""}{body}</table>')


def _scrolled(table: str) -> str:
    return f'<div class="scroll" tabindex="0">{table}</div>'


def _check(check: Check) -> str:
    kind, sign = ("ok", "✓") if check.passed else ("failed", "✗")
    said = f"{typeset(check.name)}, by {typeset(check.against)}: {escape(result_of(check))}"
    return f'<div class="check {kind}"><span class="sign">{sign}</span><span>{said}</span></div>'
