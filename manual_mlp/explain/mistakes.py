"""Step 11: eight usual mistakes, what each does to the numbers, and which check catches it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace

from torch import Tensor

from manual_mlp.explain.blocks import (
    Block,
    Check,
    Formula,
    Heading,
    Matrix,
    Numbers,
    Refused,
    Step,
    Text,
    Tile,
    Tiles,
    Values,
)
from manual_mlp.explain.compare import agree, attempt
from manual_mlp.explain.formulas import MISTAKES, RIGHT, Formulas, Mistake
from manual_mlp.explain.network import draw_network
from manual_mlp.explain.story import Story

_NAMES = {
    "delta": "δ",
    "weight": "∂J/∂W",
    "stored_weight": "weight.grad",
    "bias": "∂J/∂B",
    "softmax": "δ",
}


def mistakes(story: Story, earlier: Callable[[Story], Sequence[Step]], names: Iterable[str] = MISTAKES) -> Step:
    """Make each mistake in turn, run the earlier steps with it, and tell which check failed first."""
    blocks: list[Block] = [
        Text(
            "Each of these is written often, and some run without a complaint. So here each is made on purpose. All "
            "the steps above were computed once more with it, and their checks say where it shows."
        )
    ]
    for name in names:
        blocks += _made(story, MISTAKES[name], earlier)
    return Step(11, "Eight usual mistakes", tuple(blocks))


def _made(story: Story, mistake: Mistake, earlier: Callable[[Story], Sequence[Step]]) -> list[Block]:
    wrong = replace(story, formulas=mistake.formulas)
    blocks: list[Block] = [
        Heading(mistake.name),
        Text(mistake.why),
        Formula(f"{mistake.wrong}   instead of   {mistake.right}"),
        *_numbers(story, mistake),
    ]
    failed = [(step, check) for step in earlier(wrong) for check in step.failed]
    if failed:
        step, check = failed[0]
        found = check.reason or f"off by {check.error:.2g}, where {check.allowed:.0e} is allowed"
        more = {1: "", 2: " One more check fails after it."}.get(
            len(failed), f" {len(failed) - 1} more checks fail after it."
        )
        blocks.append(Text(f"Caught by {step.name}: “{check.name}”, against {check.against}: {found}.{more}"))
    else:
        rows, inputs, outputs = story.network.shape
        blocks.append(
            Text(
                f"No check fails. With {rows} rows, {inputs} inputs, {outputs} outputs and f = {story.network.f.name} "
                "this gives the right numbers, by luck."
            )
        )
    right = numbers_of(story, RIGHT, mistake.of)
    assert isinstance(right, Tensor)
    differs = not agree("", numbers_of(story, mistake.formulas, mistake.of), right).passed
    uncaught = float(differs and not failed)
    blocks.append(Check(f"{mistake.name} is caught, or harmless", "the steps above", uncaught, 0.0))
    return blocks


def _numbers(story: Story, mistake: Mistake) -> list[Block]:
    """Show what the mistake gives beside what is right; if torch refuses it, once more where all sides are equal."""
    right, wrong = (numbers_of(story, formulas, mistake.of) for formulas in (RIGHT, mistake.formulas))
    name = _NAMES[mistake.of]
    if isinstance(wrong, Refused):
        net = replace(story, network=draw_network(3, 3, 3, story.network.f, story.network.loss, story.seed))
        return [
            Text(f"Here torch refuses: “{wrong.reason}”. That is luck."),
            Text("With 3 rows, 3 inputs and 3 outputs nothing complains, and this comes out:"),
            *_numbers(net, mistake),
        ]
    assert isinstance(right, Tensor)
    right, wrong = (t[None] if t.dim() == 1 else t for t in (right, wrong))
    return [
        Numbers((Matrix(f"{name}, wrong", wrong, "", ""), "beside", Matrix(f"{name}, right", right, "", ""))),
        Tiles(f"{name} by {mistake.wrong}, and as it should be.", (Tile("wrong", wrong), "", Tile("right", right))),
    ]


def numbers_of(story: Story, formulas: Formulas, field: str) -> Values:
    """Compute what one of the formulas gives on a story's network."""
    net, told = story.network, replace(story, formulas=formulas)
    match field:
        case "softmax":
            return attempt(formulas.softmax, *told.classes)
        case "delta":
            return told.delta
        case "bias":
            return attempt(formulas.bias, told.delta)
        case "stored_weight":
            return attempt(formulas.stored_weight, net.h, told.delta)
        case _:
            return attempt(formulas.weight, net.h, told.delta)
