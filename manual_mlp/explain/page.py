"""The explanation as one HTML page that needs nothing else."""

from __future__ import annotations

import json
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
    Check,
    Curve,
    Exercise,
    Formula,
    Heading,
    Live,
    Matrix,
    Numbers,
    OfF,
    Refused,
    Slot,
    Step,
    Table,
    Text,
    Tiles,
    When,
    answer_of,
    decimals,
    number,
)
from manual_mlp.explain.compare import shape
from manual_mlp.explain.live import checks_of, data_of
from manual_mlp.explain.mathml import mathml, typeset
from manual_mlp.explain.proofs import PROOFS
from manual_mlp.explain.story import Story
from manual_mlp.explain.terminal import is_numeric, label, picked, result_of, verdict_of
from manual_mlp.explain.trees import Trees

_ROWS, _COLUMNS = ALL_SHOWN, 10  # of a matrix that are shown
_OPEN = 6  # steps that are unfolded
_ANSWER = (
    "f takes each number by itself. So what an output did wrong is multiplied by its own slope and by no other: that is "
    "the product entry by entry.",
    "A weight hands one input to one output. So its share of the blame is that input times that output's error: every "
    "input times every error, a table.",
    "To write this table as a product of matrices, the row of inputs must stand upright. Standing a row upright is what "
    "the transpose does, and nothing more.",
)


def render(steps: Sequence[Step], about: str, note: str = "", story: Story | None = None) -> str:
    """Write the page, which is well-formed XML too.

    Args:
        about: how the numbers were made, for the foot of the page.
        note: what to know before reading, for its head.
        story: what the steps are made of; with it, and with formulas that a script can compute, the page is live.
    """
    return _Page(steps, None if story is None or not story.is_data else story).render(about, note)


class _Page:
    def __init__(self, steps: Sequence[Step], story: Story | None) -> None:
        self.steps, self.story, self.trees = steps, story, Trees()

    def render(self, about: str, note: str) -> str:
        style, script = (
            files("manual_mlp.explain").joinpath(name).read_text(encoding="utf-8") for name in ("page.css", "page.js")
        )
        warning = f'<p class="verdict failed">{typeset(note)}</p>' if note else ""
        failed = any(step.failed for step in self.steps)
        first, *rest = [self._step(step) for step in self.steps] or [""]
        contents = "".join(
            f'<li value="{step.number}"><a href="#step-{step.number}">{typeset(step.title)}</a></li>'
            for step in self.steps
        )
        answers = "".join(f"<li>{escape(line)}</li>" for line in _ANSWER)
        body = (
            "<header><h1>Why entry by entry, and why a transpose?</h1>"
            '<p class="soft">The gradients of a dense layer, one number at a time. Blue is positive, orange negative.</p>'
            f"<ol>{answers}</ol>"
            f'<p id="verdict" class="verdict {"failed" if failed else "ok"}">{escape(verdict_of(self.steps))}</p>'
            f"{warning}</header>\n{self._tools()}<main>\n{first}\n"
            f"{self._questions()}\n<nav><details><summary>The steps</summary><ol>{contents}</ol></details></nav>\n"
            + "\n".join(rest)
            + f"\n{self._proofs()}\n{self._all_checks()}</main>\n<footer><p>{escape(about)}</p></footer>"
        )
        return (
            '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8"/>'
            '<meta name="viewport" content="width=device-width, initial-scale=1"/>'
            f"<title>Why entry by entry, and why a transpose?</title><style>{style}</style></head><body>\n"
            f"{body}{self._script(script)}</body></html>\n"
        )

    def _script(self, script: str) -> str:
        if self.story is None:
            return ""
        data = json.dumps(data_of(self.story, self.steps, self.trees), ensure_ascii=False, separators=(",", ":"))
        data = data.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e")
        return (
            '<aside id="why" role="status" hidden="hidden"></aside>'
            f'<script type="application/json" id="data">{data}</script>\n'
            f"<script>/*<![CDATA[*/\n{script}/*]]>*/</script>"
        )

    def _tools(self) -> str:
        if self.story is None:
            return ""
        data = data_of(self.story, self.steps, Trees())

        def choose(name: str, label: str, options: Sequence[str]) -> str:
            inside = "".join(f"<option>{escape(option)}</option>" for option in options)
            return f'<label>{label} <select name="{name}">{inside}</select></label>'

        def button(does: str, text: str, says: str = "") -> str:
            told = f' aria-label="{says}"' if says else ""
            return f'<button type="button" data-does="{does}"{told}>{text}</button>'

        return (
            '<div class="tools" role="group" aria-label="The numbers" data-script="" hidden="hidden">'
            + choose("f", "f", list(data["activations"]))
            + choose("loss", "J", list(data["losses"]))
            + f'<span>rows {button("fewer", "−", "one row less")} <b id="rows"></b> {button("more", "+", "one row more")}</span>'
            + button("random", "random")
            + button("reset", "reset")
            + button("link", "copy link")
            + button("layer", "H from the layer below")
            + '<span id="said" role="status"></span></div>'
            '<p class="soft help" data-script="" hidden="hidden">Change any underlined number: type, drag it sideways, or '
            "press ↑ and ↓. Point at another to see where it comes from.</p>\n"
        )

    def _questions(self) -> str:
        questions = "".join(
            f"<dt>{typeset(question)}</dt><dd>{typeset(answer)} {_links(numbers)}</dd>"
            for question, answer, numbers in QUESTIONS
        )
        return f'<section id="questions"><h2>Six questions, answered in short</h2><dl>{questions}</dl></section>'

    def _proofs(self) -> str:
        proofs = "".join(
            f'<div id="proof-{proof.tag}" tabindex="-1"><h3>({proof.tag}) {typeset(proof.title)}</h3>'
            + "".join(map(self._block, proof.lines))
            + f'<p><a href="#{_tagged(self.steps, proof.tag)}">back to the step</a></p></div>'
            for proof in PROOFS
        )
        return (
            '<section id="proofs"><details><summary><h2>The proofs by tag</h2></summary>'
            f"{proofs}<p>The long ones stand in docs/derivation.md of the project.</p></details></section>"
        )

    def _all_checks(self) -> str:
        items = []
        for n, (step, check, condition) in enumerate(checks_of(self.steps)):
            kind, sign = ("ok", "✓") if check.passed else ("failed", "✗")
            said = f"{sign} {typeset(check.name)}, by {typeset(check.against)}: {escape(result_of(check))}"
            hidden = ' hidden="hidden"' if condition is not None and check not in step.checks else ""
            items.append(f'<li class="{kind}" data-check="{n}"{hidden}>{said}</li>')
        return (
            '<section id="checks"><details><summary><h2>All checks</h2></summary>'
            f"<ul>{''.join(items)}</ul></details></section>"
        )

    def _step(self, step: Step) -> str:
        lines = [self._block(block) for block in step.blocks if not isinstance(block, Check)]
        lines.append(self._quiet(step))
        title = f'<span class="no">{step.number}</span>{typeset(step.title)}'
        opened = ' open="open"' if step.number < _OPEN else ""
        return (
            f'<section id="step-{step.number}" tabindex="-1"><details{opened}><summary><h2>{title}</h2></summary>\n'
            + "\n".join(lines)
            + "</details></section>"
        )

    def _quiet(self, step: Step) -> str:
        """Write the line of a step's checks."""
        made = step.checks
        if not made:
            return ""
        numbers = " ".join(
            str(n) for n, (other, _, _) in enumerate(checks_of(self.steps)) if other is step
        )
        ways = list(dict.fromkeys(check.against for check in made))
        word = "check" if len(made) == 1 else "checks"
        if step.failed:
            first = step.failed[0]
            said = f"✗ {len(step.failed)} of {len(made)} {word} failed: {typeset(first.name)}, by {escape(first.against)}"
        else:
            said = f"✓ {len(made)} {word}, in Python, by {escape(' and '.join(ways[:2]))}"
        return f'<p class="check {"failed" if step.failed else "ok"}" data-checks="{numbers}">{said}</p>'

    def _block(self, block: Block) -> str:
        match block:
            case Text(text, only):
                return f'<p{_only(only)}>{self._say(text)}</p>'
            case Heading(text, switch):
                return f"<h3>{escape(text)}{self._switch(switch)}</h3>"
            case Formula(text, tag):
                shown = f'<a class="tag" href="#proof-{tag}">{tag}</a>' if tag else ""
                return f'<div class="formula">{mathml(text, display=True)}{shown}</div>'
            case Numbers(parts):
                return f'<div class="parts">{self._parts(parts)}</div>'
            case Table(header, rows):
                return self._table(header, rows)
            case Tiles():
                return pictures.tiles(block, None if self.story is None else self.trees)
            case Curve():
                return pictures.curve(block)
            case Bars():
                return pictures.bars(block)
            case Areas():
                return pictures.areas(block)
            case When(tree, shown, blocks):
                inside = "".join(self._block(one) for one in blocks if not isinstance(one, Check))
                hidden = "" if shown else ' hidden="hidden"'
                kind = 'class="python"' if tree is None else f'data-when="{self.trees.number(tree)}"'
                return f"<div {kind}{hidden}>{inside}</div>"
            case OfF(name, text):
                return f'<p data-of="f">{typeset(f"Here f is {name}" + (f": {text}." if text else "."))}</p>'
            case Exercise():
                return self._exercise(block)
        raise TypeError(type(block).__name__)

    def _switch(self, name: str) -> str:
        if not name or self.story is None:
            return ""
        return (
            f' <button type="button" data-mistake="{name}" aria-pressed="false" data-script="" hidden="hidden">make it'
            '</button><span class="caught"></span>'
        )

    def _say(self, text: str) -> str:
        if not isinstance(text, Live):
            return typeset(text)
        slots = [piece for piece in text.pieces if isinstance(piece, Slot)]
        numbers = iter(range(len(slots)))
        marked = "".join(piece if isinstance(piece, str) else chr(0xE100 + next(numbers)) for piece in text.pieces)
        made = typeset(marked)
        for n, slot in enumerate(slots):
            form = f' data-f="{slot.form}"' if slot.form else ""
            shown = f'<output data-x="{self.trees.number(slot.tree)}"{form}>{escape(slot.text)}</output>'
            made = made.replace(chr(0xE100 + n), shown)
        return made

    def _parts(self, parts: Sequence[Matrix | str]) -> str:
        made = []
        for n, part in enumerate(parts):
            after = next((other for other in parts[n:] if isinstance(other, Matrix)), None)
            inside = f'<span class="sign">{escape(part)}</span>' if isinstance(part, str) else self._matrix(part)
            made.append(pictures.from_rows(inside, after))
        return "".join(made)

    def _matrix(self, matrix: Matrix) -> str:
        values, rows, columns = matrix.values, matrix.rows, matrix.columns
        live = matrix.tree is not None and self.story is not None
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
                f'<td class="{"number" if right else "word"}">{self._say(cell)}</td>'
                for cell, right in zip(row, numeric, strict=True)
            )
            + "</tr>"
            for row in rows
        )
        return _scrolled(f'<table class="words">{f"<tr>{head}</tr>" if head else ""}{body}</table>', "table")

    def _exercise(self, exercise: Exercise) -> str:
        hint = (
            f"<details><summary>hint</summary><p>{typeset(exercise.hint)} {_links((exercise.step,))}</p></details>"
        )
        question = f"<p>{self._say(exercise.question)}</p>"
        if self.story is None:
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


def _links(numbers: Sequence[int]) -> str:
    return " ".join(f'<a href="#step-{n}">step\u00a0{n}</a>' for n in numbers)


def _tagged(steps: Sequence[Step], tag: str) -> str:
    """Find where a formula of a tag stands first."""
    for step in steps:
        if any(isinstance(block, Formula) and block.tag == tag for block in step.shown):
            return f"step-{step.number}"
    return "step-0"


def _scrolled(table: str, name: str) -> str:
    return f'<div class="scroll" tabindex="0" role="group" aria-label="{escape(name, quote=True)}">{table}</div>'
