"""The explanation as one HTML page that needs nothing else."""

from __future__ import annotations

import json
from collections.abc import Sequence
from html import escape
from importlib.resources import files

from manual_mlp.explain.blocks import Check, Formula, Step
from manual_mlp.explain.live import checks_of, data_of
from manual_mlp.explain.markup import Markup, links
from manual_mlp.explain.mathml import typeset
from manual_mlp.explain.proofs import PROOFS
from manual_mlp.explain.questions import questions
from manual_mlp.explain.story import Story
from manual_mlp.explain.terminal import result_of, verdict_of
from manual_mlp.explain.trees import Trees

_MOST_NUMBERS = 2000  # that a page computes
_OPEN = 6  # steps that are unfolded
_ANSWER = (
    "The function of a layer takes each number by itself. So what an output did wrong is multiplied by its own slope, "
    "and by no other: that is its blame, and a product entry by entry.",
    "A weight hands one input to one output. So its blame is that input times the blame of that output: every input "
    "times every blame, a table.",
    "To write this table as a product of matrices, the row of inputs must stand upright. Standing every row upright is "
    "what a transpose does.",
)


def render(steps: Sequence[Step], about: str, note: str = "", story: Story | None = None) -> str:
    """Write the page, which is well-formed XML too.

    Args:
        about: how the numbers were made, for the foot of the page.
        note: what to know before reading, for its head.
        story: what the steps are made of; with it, and with formulas that a script can compute, the page is live.
    """
    return _Page(steps, story).render(about, note)


class _Page:
    def __init__(self, steps: Sequence[Step], story: Story | None) -> None:
        self.still = "" if story is None else _why_still(story)
        self.steps, self.told, self.story = steps, story, None if self.still else story
        self.markup = Markup(self.story is not None)

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
            '<p class="soft">Blue is positive, orange negative.</p>'
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
        data = json.dumps(data_of(self.story, self.steps, self.markup.trees), ensure_ascii=False, separators=(",", ":"))
        data = data.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e")
        return (
            '<aside id="why" role="status" hidden="hidden"></aside>'
            f'<script type="application/json" id="data">{data}</script>\n'
            f"<script>/*<![CDATA[*/\n{script}/*]]>*/</script>"
        )

    def _tools(self) -> str:
        if self.story is None:
            return f'<p class="soft">{self.still}</p>' if self.still else ""
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
            + f'<span>rows {button("fewer", "−", "one row less")} <b id="rows"></b> '
            + f"{button('more', '+', 'one row more')}</span>"
            + button("random", "random")
            + button("reset", "reset")
            + button("link", "copy link")
            + button("layer", "H from the layer below")
            + '<span id="said" role="status"></span></div>'
            '<p class="soft help" data-script="" hidden="hidden">Change any underlined number: type, drag it sideways, '
            "or press ↑ and ↓. Point at another to see where it comes from.</p>\n"
        )

    def _questions(self) -> str:
        if self.told is None:
            return ""
        answers = "".join(
            f"<dt>{typeset(asked)}</dt><dd>{typeset(answer)} {links(numbers)}{self.markup.block(here)}</dd>"
            for asked, answer, here, numbers in questions(self.told)
        )
        return f'<section id="questions"><h2>Six questions, answered in short</h2><dl>{answers}</dl></section>'

    def _proofs(self) -> str:
        proofs = "".join(
            f'<div id="proof-{proof.tag}" tabindex="-1"><h3>({proof.tag}) {typeset(proof.title)}</h3>'
            + "".join(map(self.markup.block, proof.lines))
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
        lines = [self.markup.block(block) for block in step.blocks if not isinstance(block, Check)]
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
        numbers = " ".join(str(n) for n, (other, _, _) in enumerate(checks_of(self.steps)) if other is step)
        ways = list(dict.fromkeys(check.against for check in made))
        word = "check" if len(made) == 1 else "checks"
        if step.failed:
            first = step.failed[0]
            said = (
                f"✗ {len(step.failed)} of {len(made)} {word} failed: {typeset(first.name)}, by {escape(first.against)}"
            )
        else:
            said = f"✓ {len(made)} {word}, in Python, by {escape(' and '.join(ways[:2]))}"
        return f'<p class="check {"failed" if step.failed else "ok"}" data-checks="{numbers}">{said}</p>'


def _why_still(story: Story) -> str:
    """Say why a page cannot compute a story anew; nothing if it can."""
    net = story.network
    if sum(t.numel() for t in (net.x, net.v, net.c, net.w, net.b, net.target)) > _MOST_NUMBERS:
        return "With so many numbers this page stands still. Those of a smaller layer can be changed."
    if not story.is_data:
        return "The numbers of this page stand still: f, J or a formula is a function that it does not know."
    return ""


def _tagged(steps: Sequence[Step], tag: str) -> str:
    """Find where a formula of a tag stands first."""
    for step in steps:
        if any(isinstance(block, Formula) and block.tag == tag for block in step.shown):
            return f"step-{step.number}"
    return "step-0"
