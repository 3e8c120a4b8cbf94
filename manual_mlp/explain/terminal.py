"""The explanation as text."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Callable, Iterable, Sequence
from typing import TypeAlias

from torch import Tensor

from manual_mlp.explain.blocks import (
    Areas,
    Bars,
    Block,
    Check,
    Curve,
    Exercise,
    Formula,
    Heading,
    Matrix,
    Numbers,
    OfF,
    Refused,
    Step,
    Table,
    Text,
    Tile,
    Tiles,
    there,
)
from manual_mlp.explain.compare import shape
from manual_mlp.explain.questions import questions
from manual_mlp.explain.story import Story
from manual_mlp.explain.writing import ALL_SHOWN, decimals, number, unprotected

_ROWS, _COLUMNS = ALL_SHOWN, 8  # of a matrix that are shown; where there are more, the last of them is a row of dots
Paint: TypeAlias = Callable[[str, str], str]

_BOLD, _DIM, _RED, _GREEN, _BLUE, _YELLOW = "1", "2", "31", "32", "34", "33"
_POSITIVE, _NEGATIVE = " ░▒▓█", " .-=#"


def render(steps: Iterable[Step], width: int = 80, colour: bool = False, story: Story | None = None) -> str:
    """Write the steps as lines of at most ``width`` characters, where words and matrices allow it.

    Args:
        story: what the steps are made of; with it the six questions and their answers stand in front.
    """
    paint = _paint if colour else _plain
    lines: list[str] = []
    for asked, answer, here, numbers in questions(story) if story else ():
        shown = ("step " if len(numbers) == 1 else "steps ") + " and ".join(map(str, numbers))
        lines += ["", *_wrapped(asked, width, paint, _BOLD), *_wrapped(f"{answer} {here.text} ({shown})", width)]
    for step in steps:
        lines += ["", paint(f"{step.number}. {step.title}", _BOLD), ""]
        for block in step.shown:
            lines += _block(block, width, paint)
    return "\n".join(lines) + "\n"


def result_of(check: Check) -> str:
    """Say in words how a check ended."""
    if check.reason:
        return check.reason
    difference = "no difference" if check.error == 0 else f"largest difference {check.error:.1e}"
    return (f"{difference}, allowed {check.allowed:.0e}" if check.allowed else difference).replace("e-", "e−")


def render_check(check: Check, width: int = 100, paint: Paint | None = None) -> list[str]:
    """Write a check and how it ended."""
    paint = _plain if paint is None else paint
    text = f"{check.name}, by {check.against}: {result_of(check)}"
    first, *rest = textwrap.wrap(text, max(20, width - 9))
    sign = paint("ok    ", _GREEN) if check.passed else paint("FAILED", _RED)
    return [f"  {sign} {first}", *(" " * 9 + line for line in rest)]


def verdict_of(steps: Iterable[Step]) -> str:
    """Say how many checks passed, and where the first failed."""
    checks = [check for step in steps for check in step.checks]
    failed = [f"{step.name}: {check.name}, by {check.against}" for step in steps for check in step.failed]
    if failed:
        return f"{len(failed)} of {len(checks)} checks failed, first in {failed[0]}"
    return f"All {len(checks)} checks passed."


def is_numeric(rows: Sequence[Sequence[str]], column: int) -> bool:
    """Tell whether a table's column holds numbers alone."""
    return all(re.fullmatch(r"[−\d.,e+-]*|none", row[column]) for row in rows)


def _block(block: Block, width: int, paint: Paint) -> list[str]:
    match block:
        case Text(text, only):
            return [] if only else [*_wrapped(text, width), ""]
        case OfF(name, text):
            return [*_wrapped(of_f(name, text), width), ""]
        case Exercise(question, _, _, hint, number, choices):
            told = f" Is it {', or '.join(choices)}?" if choices else ""
            answer = f"({hint} Step {number}. The answer: {answer_of(block)}.)"
            return [*_wrapped(question + told, width), *_wrapped(answer, width, paint, _DIM), ""]
        case Formula(text, tag):
            return [f"    {paint(text, _YELLOW)}" + (f"    ({tag})" if tag else ""), ""]
        case Numbers(parts):
            return _numbers(there(parts), width, paint)
        case Table(header, rows):
            return [*_table(header, rows, width, paint), ""]
        case Tiles(says, _, False) | Areas(says) | Curve(says):
            return [*_wrapped(says, width, paint, _DIM), ""]
        case Tiles(says, parts, True):
            return _images(says, [part for part in parts if isinstance(part, Tile)], width, paint)
        case Bars(says, bars, False):
            return _bars(says, bars, paint)
        case Heading(text, _):
            return ["", paint(text, _BOLD), ""]
        case Check():
            return render_check(block, width, paint)
    return []


def _numbers(parts: Sequence[Matrix | str], width: int, paint: Paint) -> list[str]:
    """Set matrices side by side, and begin a new band where the width ends."""
    bands: list[list[list[str]]] = [[]]
    used = 2
    for part in parts:
        picture = ["", part] if isinstance(part, str) else _matrix(part, paint)
        wide = max(_length(line) for line in picture) + 2
        if bands[-1] and used + wide > width:
            bands.append([])
            used = 2
        bands[-1].append(picture)
        used += wide
    lines = []
    for band in bands:
        tall = max(map(len, band))
        padded = [_pad(picture, tall) for picture in band]
        lines += ["  " + "  ".join(row).rstrip() for row in zip(*padded, strict=True)]
        lines.append("")
    return lines


def _matrix(matrix: Matrix, paint: Paint) -> list[str]:
    if isinstance(matrix.values, Refused):
        return [paint(matrix.name, _BOLD), paint("none:", _RED), *textwrap.wrap(matrix.values.reason, 34)]
    values = matrix.values
    rows, columns, digits = picked(values.shape[0], _ROWS), picked(values.shape[1], _COLUMNS), decimals(values)
    head = [label(matrix.columns, c) if matrix.columns else "" for c in columns]
    body = [["…" if r is None or c is None else number(float(values[r, c]), digits) for c in columns] for r in rows]
    widths = [max(len(line[i]) for line in [head, *body]) for i in range(len(columns))]
    names = [label(matrix.rows, r) if matrix.rows else "" for r in rows]
    side = max(map(len, names)) + 1 if matrix.rows else 0
    lines = [paint(f"{matrix.name}  {shape(values)}", _BOLD)]
    if matrix.columns:
        lines.append(" " * side + paint(" ".join(cell.rjust(w) for cell, w in zip(head, widths, strict=True)), _DIM))
    for name, line, r in zip(names, body, rows, strict=True):
        shown = [_entry(cell.rjust(w), matrix, r, c, paint) for cell, w, c in zip(line, widths, columns, strict=True)]
        lines.append(paint(name.ljust(side), _DIM) + " ".join(shown))
    return lines


def _entry(cell: str, matrix: Matrix, r: int | None, c: int | None, paint: Paint) -> str:
    marked = matrix.mark is not None and r is not None and c is not None and bool(matrix.mark[r, c])
    return paint(cell, _BLUE) if marked else cell


def answer_of(exercise: Exercise) -> str:
    """Write what is right."""
    return exercise.choices[int(exercise.answer)] if exercise.choices else number(exercise.answer)


def of_f(name: str, text: str) -> str:
    """Say which function f is, and its formula where there is one."""
    return f"Here f is {name}" + (f": {text}." if text else ".")


def picked(count: int, most: int) -> list[int | None]:
    """List the rows or columns to be shown; None is a row of dots."""
    return [*range(count)] if count <= most else [*range(most - 1), None]


def label(letter: str, index: int | None) -> str:
    """Write the label of a row or column, counted from 1."""
    return "…" if index is None else f"{letter}={index + 1}"


def _table(header: Sequence[str], rows: Sequence[Sequence[str]], width: int, paint: Paint) -> list[str]:
    header, rows = [cell.replace("`", "") for cell in header], [[cell.replace("`", "") for cell in row] for row in rows]
    widths = [max(len(line[i]) for line in (header, *rows)) for i in range(len(header))]
    if len(header) == 2 and widths[0] + 24 < width < sum(widths) + 4:
        wrap = textwrap.TextWrapper(width, subsequent_indent=" " * (widths[0] + 4))
        return [part for first, rest in rows for part in wrap.wrap(f"  {first.ljust(widths[0])}  {rest}")]
    if sum(widths) + 2 * len(widths) > width:
        # Too wide: a line for each cell.
        cells = [(title, cell) for row in rows for title, cell in zip(header, row, strict=True)]
        lines = [f"{title}: {cell}" if title else f"- {cell}" for title, cell in cells]
        wrap = textwrap.TextWrapper(max(20, width), initial_indent="  ", subsequent_indent="    ")
        return [part for line in lines for part in wrap.wrap(line)]
    numeric = [is_numeric(rows, i) for i in range(len(header))]

    def line(cells: Sequence[str]) -> str:
        set_cells = [c.rjust(w) if right else c.ljust(w) for c, w, right in zip(cells, widths, numeric, strict=True)]
        return ("  " + "  ".join(set_cells)).rstrip()

    return [*([paint(line(header), _DIM)] if any(header) else []), *(line(row) for row in rows)]


def _wrapped(text: str, width: int, paint: Paint | None = None, code: str = "") -> list[str]:
    lines = textwrap.wrap(unprotected(text.replace("`", "")), max(20, width))
    return lines if paint is None else [paint(line, code) for line in lines]


def _bars(says: str, bars: Sequence[tuple[str, float]], paint: Paint) -> list[str]:
    most = max((abs(value) for _, value in bars), default=0.0) or 1.0
    wide = max(len(name) for name, _ in bars)
    lines = [f"  {paint(says, _DIM)}"]
    for name, value in bars:
        bar = ("█" if value > 0 else "░") * round(30 * abs(value) / most)
        lines.append(
            f"  {name.ljust(wide)}  {number(value).rjust(10)}  {paint(bar, _BLUE if value > 0 else _YELLOW)}".rstrip()
        )
    return [*lines, ""]


def _images(says: str, tiles: Sequence[Tile], width: int, paint: Paint) -> list[str]:
    lines = [f"  {paint(says, _DIM)}", f"  {paint('Dark shades are positive, strokes negative.', _DIM)}"]
    most = max((float(tile.values.abs().max()) for tile in tiles), default=0.0) or 1.0
    pictures = [[tile.caption, *_shades(tile.values, most)] for tile in tiles]
    each = max(_length(line) for picture in pictures for line in picture) + 2
    a_band = max(1, (width - 2) // each)
    for start in range(0, len(pictures), a_band):
        band = pictures[start : start + a_band]
        padded = [_pad(picture, max(map(len, band)), each - 2) for picture in band]
        lines += ["  " + "  ".join(row).rstrip() for row in zip(*padded, strict=True)]
        lines.append("")
    return lines


def _shades(values: Tensor, most: float) -> list[str]:
    """Draw an image, a pair of characters for each pixel of a small one."""
    twice = 2 if values.shape[1] <= 16 else 1

    def shade(value: float) -> str:
        ramp = _POSITIVE if value >= 0 else _NEGATIVE
        return ramp[min(len(ramp) - 1, round(abs(value) / most * (len(ramp) - 1)))] * twice

    return ["".join(map(shade, row)) for row in values.tolist()]


def _pad(picture: list[str], tall: int, wide: int | None = None) -> list[str]:
    wide = max(_length(line) for line in picture) if wide is None else wide
    return [line + " " * (wide - _length(line)) for line in [*picture, *[""] * (tall - len(picture))]]


def _length(line: str) -> int:
    return len(re.sub("\033\\[[0-9;]*m", "", line))


def _paint(text: str, code: str) -> str:
    return f"\033[{code}m{text}\033[0m"


def _plain(text: str, code: str) -> str:
    return text
