"""Step 11: eight usual mistakes, what each does to the numbers, and which check catches it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from torch import Tensor

from manual_mlp.explain.blocks import (
    Block,
    Check,
    Heading,
    Matrix,
    Numbers,
    Refused,
    Step,
    Table,
    Text,
    Tile,
    Tiles,
    Values,
)
from manual_mlp.explain.compare import agree, attempt
from manual_mlp.explain.formulas import MISTAKES, RIGHT, Formulas, Mistake
from manual_mlp.explain.network import draw_network
from manual_mlp.explain.story import Story
from manual_mlp.explain.terminal import result_of

_NAMES = {
    "delta": "δ",
    "weight": "∂J/∂W",
    "stored_weight": "weight.grad",
    "bias": "∂J/∂B",
    "softmax": "δ",
}


def mistakes(
    story: Story,
    right: Sequence[Step],
    earlier: Callable[[Story], Sequence[Step]],
    names: Sequence[str] = tuple(MISTAKES),
) -> Step:
    """Make each mistake in turn, run the earlier steps with it, and tell which check failed first.

    Args:
        right: the earlier steps without a mistake.
    """
    # A check that fails without a mistake, say at a kink of f, catches none.
    failing = {(step.number, check.name) for step in right for check in step.failed}
    blocks: list[Block] = [
        Text(
            "Each of these is written often, and some run without a complaint. So here they are made on purpose. The "
            "steps above were computed once more with the mistake in, and their checks say where it shows."
            if len(names) > 1
            else "It is made on purpose. The steps above were computed with it, and their checks say where it shows."
        )
    ]
    for name in names:
        blocks += _made(story, MISTAKES[name], earlier, failing)
    return Step(11, "Eight usual mistakes" if len(names) > 1 else "A usual mistake", tuple(blocks))


def _made(
    story: Story, mistake: Mistake, earlier: Callable[[Story], Sequence[Step]], failing: set[tuple[int, str]]
) -> list[Block]:
    wrong = replace(story, formulas=mistake.formulas)
    failed = [
        (step, check) for step in earlier(wrong) for check in step.failed if (step.number, check.name) not in failing
    ]
    right = _numbers_of(story, RIGHT, mistake.of)
    differs = not agree("", _numbers_of(story, mistake.formulas, mistake.of), right).passed
    here = "" if differs else "At these sizes, and with this f, the numbers are right all the same. "
    if failed:
        step, check = failed[0]
        more = {1: "", 2: ", and one check more"}.get(len(failed), f", and {len(failed) - 1} checks more")
        found = f"{here}Caught in {step.name}: {check.name}, by {check.against}: {result_of(check)}{more}."
    else:
        found = here or "No check has caught it."
    result = "caught" if failed else "not caught" if differs else "harmless here"
    return [
        Heading(mistake.name),
        Text(mistake.why),
        Table(("", ""), (("written", mistake.wrong), ("should be", mistake.right))),
        *_numbers(story, mistake),
        Text(found.strip()),
        Check(mistake.name, "the steps above", float(differs and not failed), 0.0, result),
    ]


def _numbers(story: Story, mistake: Mistake) -> list[Block]:
    """Show what the mistake gives beside what is right; if torch refuses it, once more where all sides are equal."""
    right, wrong = (_numbers_of(story, formulas, mistake.of) for formulas in (RIGHT, mistake.formulas))
    name = _NAMES[mistake.of]
    if isinstance(wrong, Refused):
        net = replace(story, network=draw_network(3, 3, 3, story.network.f, story.network.loss, story.seed))
        return [
            Text(f"Here torch refuses: {wrong.reason}. That is luck."),
            Text("With 3 rows, 3 inputs and 3 outputs nothing complains:"),
            *_numbers(net, mistake),
        ]
    assert isinstance(right, Tensor)
    right, wrong = (t[None] if t.dim() == 1 else t for t in (right, wrong))
    return [
        Numbers((Matrix(f"{name}, wrong", wrong, "", ""), "and", Matrix(f"{name}, right", right, "", ""))),
        Tiles("As it was written, and as it should be.", (Tile("wrong", wrong), "", Tile("right", right))),
    ]


def _numbers_of(story: Story, formulas: Formulas, field: str) -> Values:
    """Compute what one of the formulas gives on a story's network."""
    net, told = story.network, replace(story, formulas=formulas)
    match field:
        case "softmax":
            return attempt(formulas.softmax, *told.classes)
        case "delta":
            return told.delta
        case "bias":
            return told.db
        case "stored_weight":
            return attempt(formulas.stored_weight, net.h, told.delta)
        case _:
            return told.dw
