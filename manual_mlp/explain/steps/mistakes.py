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
    When,
)
from manual_mlp.explain.compare import agree
from manual_mlp.explain.expressions import Tree
from manual_mlp.explain.formulas import CHAIN, MISTAKES, Function, Mistake
from manual_mlp.explain.network import draw_network
from manual_mlp.explain.story import Story
from manual_mlp.explain.terminal import result_of

# The name, and the letters, of what a field makes; the right values are those of the name with _.
_NAMES = {
    "delta": ("delta", "δ", "nl"),
    "weight": ("dW", "∂J/∂W", "kl"),
    "stored_weight": ("G", "weight.grad", "lk"),
    "bias": ("dB", "∂J/∂B", "nl"),
    "softmax": ("dE", "δ", "nl"),
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
            "Each of these is written often, and some run without a complaint. So here they are made on purpose, and "
            "the checks of the steps above say where each shows."
            if len(names) > 1
            else "It is made on purpose, and the checks of the steps above say where it shows."
        )
    ]
    blocks.append(
        Text("Throw a switch: wrong numbers turn red everywhere, and so do the checks that catch it.", "script")
    )
    for name in names:
        blocks += _made(story, MISTAKES[name], earlier, failing)
    return Step(11, "Eight usual mistakes" if len(names) > 1 else "A usual mistake", tuple(blocks))


def _made(
    story: Story, mistake: Mistake, earlier: Callable[[Story], Sequence[Step]], failing: set[tuple[int, str]]
) -> list[Block]:
    wrong = replace(story, formulas=mistake.formulas, focus=story.looked_at)
    failed = [
        (step, check) for step in earlier(wrong) for check in step.failed if (step.number, check.name) not in failing
    ]
    name = _NAMES[mistake.of][0]
    differs = not agree("", story.scope.compute(_wrong(mistake)), story.value(f"{name}_")).passed
    here = "" if differs else "At these sizes, and with this f, the numbers are right all the same. "
    if failed:
        step, check = failed[0]
        more = {1: "", 2: ", and one check more"}.get(len(failed), f", and {len(failed) - 1} checks more")
        found = f"{here}Caught in {step.name}: {check.name}, by {check.against}: {result_of(check)}{more}."
    else:
        found = here or "No check has caught it."
    result = "caught" if failed else "not caught" if differs else "harmless here"
    return [
        Heading(mistake.name, mistake.name),
        Text(mistake.why),
        Table(("", ""), (("written", f"`{mistake.wrong}`"), ("should be", f"`{mistake.right}`"))),
        *_numbers(story, mistake),
        When(
            None,
            True,
            (
                Text(found.strip()),
                Check(mistake.name, "the steps above", float(differs and not failed), 0.0, result),
            ),
        ),
    ]


def _wrong(mistake: Mistake) -> Tree:
    """Return what the mistake gives, if all before it is right."""
    name, _, _ = _NAMES[mistake.of]
    formula = getattr(mistake.formulas, mistake.of)
    assert isinstance(formula, Function)
    return formula.on(*(f"{one}_" if one in CHAIN else one for one in CHAIN[name][1:]))


def _numbers(story: Story, mistake: Mistake) -> list[Block]:
    """Show what the mistake gives beside what is right; if torch refuses it, once more where all sides are equal."""
    name, shown, letters = _NAMES[mistake.of]
    tree, right = _wrong(mistake), story.matrix(f"{shown}, right", f"{name}_", letters[0], letters[1])
    wrong = Matrix(f"{shown}, wrong", story.scope.compute(tree), letters[0], letters[1], tree=tree)
    if isinstance(wrong.values, Refused):
        net = draw_network(3, 3, 3, story.network.f, story.network.loss, story.seed)
        square = _numbers(replace(story, network=net, focus=None), mistake)
        return [
            Numbers((wrong, "and", right)),
            When(
                None,
                True,
                (
                    Text("Torch refuses, and that is luck. With 3 rows, 3 inputs and 3 outputs nothing complains:"),
                    *(_still(block) for block in square),
                ),
            ),
        ]
    tiles = [
        Tile(word, m.values, tree=m.tree)
        for word, m in (("wrong", wrong), ("right", right))
        if isinstance(m.values, Tensor)
    ]
    return [
        Numbers((wrong, "and", right)),
        Tiles("As it was written, and as it should be.", (tiles[0], "", tiles[1])),
    ]


def _still(block: Block) -> Block:
    """Keep a block's numbers as they are: they are of another network."""
    if isinstance(block, Numbers):
        return Numbers(tuple(part if isinstance(part, str) else replace(part, tree=None) for part in block.parts))
    if isinstance(block, Tiles):
        return replace(
            block, parts=tuple(part if isinstance(part, str) else replace(part, tree=None) for part in block.parts)
        )
    return block
