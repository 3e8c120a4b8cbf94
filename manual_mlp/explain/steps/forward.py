"""Steps 0 to 2: shapes, one weight nudged, and the cost as a function of all outputs."""

from __future__ import annotations

import re

import torch
import torch.nn.functional as F
from torch import Tensor

from manual_mlp.activations.registry import formulas_of, parameters_of
from manual_mlp.explain.blocks import (
    Bars,
    Block,
    Boxes,
    Formula,
    Matrix,
    Numbers,
    Step,
    Table,
    Text,
    Tile,
    Tiles,
    count,
    low,
    number,
)
from manual_mlp.explain.compare import DIFFERENCE, agree, attempt, autograd, central_difference, shape
from manual_mlp.explain.network import Network
from manual_mlp.explain.story import Story
from manual_mlp.losses import by_flag

_BARS = 12


def shapes(story: Story) -> Step:
    """Step 0: what multiplies what, in the textbook's layout and in PyTorch's."""
    net = story.network
    rows, inputs, outputs = net.shape
    a, b, h = net.y[0], net.target[0], net.h[0]
    weight, dw = net.w.mT.contiguous(), net.gradients[1]
    (stored,) = autograd(lambda weight: net.cost_of(net.f.f(F.linear(net.h, weight, net.b))), weight)
    return Step(
        0,
        "Shapes",
        (
            Text(
                f"A row H of {count(inputs, 'number')} enters the layer, and a row Y of {count(outputs, 'number')} "
                f"leaves it. A batch of {count(rows, 'row')} goes through together. The layer has a weight W and a "
                f"bias B, and a function f that works entry by entry, here {net.name_of_f}. J is one number, the cost: "
                "it says how far Y is from what it should be, `Y*`. The question is how J changes when an entry of W "
                "or B does: the derivatives `∂J/∂W` and `∂J/∂B`."
            ),
            Formula("Z = HW + B", "F1"),
            Formula("Y = f(Z)", "F2"),
            *_formula_of_f(net),
            Boxes(
                "Sides to scale. The columns of H meet the rows of W: both are counted by k.",
                (("H", rows, inputs), "·", ("W", inputs, outputs), "+", ("B", 1, outputs), "=", ("Z", rows, outputs)),
            ),
            Numbers(
                (
                    Matrix("H", net.h, "n", "k"),
                    "·",
                    Matrix("W", net.w, "k", "l"),
                    "+",
                    Matrix("B", net.b[None], "", "l"),
                    "=",
                    Matrix("Z", net.z, "n", "l"),
                )
            ),
            Text(
                "Letters that count: n is a row of the batch, k an input, and i and l are outputs. Four products "
                "occur below. They are easily mixed up, for all four multiply two arrays. With the first rows of H, "
                "Y and `Y*`:"
            ),
            Table(
                ("product", "what it does", "here", "shape"),
                (
                    ("dot, ·", "multiply the same places, add", number(float(a @ b)), "1×1"),
                    ("Hadamard, ⊙", "multiply the same places", _list(a * b), shape(a)),
                    ("outer", "multiply each with each", "Hᵀ Y", shape(h[:, None] * a)),
                    ("matrix", "dot products of rows with columns", "H W", shape(net.h @ net.w)),
                ),
            ),
            Text(
                "PyTorch stores the weight the other way round, as `weight` = `Wᵀ`. This page keeps the textbook's W. "
                "The numbers are the same, only their places differ:"
            ),
            Numbers((Matrix("W", net.w, "k", "l"), "and", Matrix("weight", weight, "l", "k"))),
            Table(
                ("", "textbook", "shape", "PyTorch", "shape"),
                (
                    ("input", "H", shape(net.h), "input", shape(net.h)),
                    ("weight", "W", shape(net.w), "weight", shape(weight)),
                    ("bias", "B", shape(net.b), "bias", str(outputs)),
                    ("its derivative", "∂J/∂W = Hᵀδ", shape(dw), "weight.grad = δᵀH", shape(stored)),
                ),
            ),
            Text(
                "The last line is what the next steps find. Its shape is settled now. J is one number, so an entry "
                f"of W has one derivative, and it is written where that entry stands: {inputs}·{outputs} of them in "
                "all. So every derivative of J has the shape of what it is the derivative by. Checks that say “by "
                "autograd” compare with PyTorch's own derivatives."
            ),
            agree("Z = HW + B = F.linear(H, weight, bias)", F.linear(net.h, weight, net.b), net.z, "PyTorch"),
            agree("∂J/∂W, in W's shape, = the transpose of weight.grad", stored.mT, dw),
        ),
    )


def _formula_of_f(net: Network) -> tuple[Text, ...]:
    """Write f as its docstring has it; nothing where it has none."""
    found = formulas_of(net.f)
    if "f" not in found:
        return ()
    where: list[str] = []
    for letter in reversed(re.split(r", (?=\w = )", found.get("where", ""))):
        if letter and re.search(rf"\b{letter[0]}\b", " ".join((found["f"], *where))):  # of f, and not of f′ alone
            where.insert(0, letter)
    where += [f"{name} = {value}" for name, value in parameters_of(net.f).items()]
    told = ", ".join(f"`{part}`" for part in where)
    return (Text(f"For {net.name_of_f}, `f(z) = {found['f']}`" + (f", where {told}." if told else ".")),)


def nudge(story: Story) -> Step:
    """Step 1: one weight nudged moves one column of Z."""
    net = story.network
    k, l = story.knob  # noqa: E741
    size = 2.0**-20
    nudged = net.w.clone()
    nudged[k, l] += size
    moved = ((net.h @ nudged + net.b) - net.z) / size
    formula = torch.zeros_like(net.z)
    formula[:, l] = net.h[:, k]
    still = "There is no other column." if net.shape[2] == 1 else "The others stood still."
    return Step(
        1,
        "One weight nudged",
        (
            Text(
                f"Take one weight, `W{low(k, l)}`, from input {k + 1} to output {l + 1}. Raise it from "
                f"{number(float(net.w[k, l]))} by a tiny `ε = {number(size)}`, and leave all else alone. How far did "
                "each entry of Z move, divided by ε?"
            ),
            Numbers(
                (
                    Matrix("ΔZ / ε", moved, "n", "l", formula != 0),
                    "and",
                    Matrix(f"column k={k + 1} of H", net.h[:, k : k + 1], "n", ""),
                )
            ),
            Tiles(
                f"Column {l + 1} of Z moved by column {k + 1} of H. {still}",
                (Tile("ΔZ / ε", moved, ("n", "l")), "", Tile("H", net.h, ("n", "k"))),
            ),
            Text(
                f"A weight of column {l + 1} reaches output {l + 1} and no other. In row n it is multiplied by `Hₙₖ`, "
                f"here with k = {k + 1}, so that is how much Z moves there. As a formula:"
            ),
            Formula("∂Zₙᵢ/∂Wₖₗ = Hₙₖ Iᵢₗ"),
            Text(
                "`Iᵢₗ` is 1 if i and l are the same number, and 0 if they are not. Proofs write it `δᵢₗ`, or `δᵢₖ`, "
                "whatever the letters, and call it the Kronecker delta. It only says: the other columns stand still. "
                "This page writes I, because δ will be something else."
            ),
            agree("ΔZ / ε = Hₙₖ Iᵢₗ", moved, formula, "finite difference", DIFFERENCE),
        ),
    )


def total(story: Story) -> Step:
    """Step 2: a small change of J is a dot product, which is where the chain rule's sum comes from."""
    net = story.network
    (u,) = story.directions(*net.y.shape)
    u = (10 * u).round() / 10
    here = float(net.cost_of(net.y))
    loss = by_flag(net.loss)
    apart, gives = ("−", "=") if loss.gradient is None else ("and", "give")
    products = attempt(lambda dy: dy * u, story.dy)
    dot = attempt(torch.sum, products)
    blocks: list[Block] = [
        Text(
            f"J is one number, made of the {count(net.y.numel(), 'entry')} of Y. Here it is {number(here)}, "
            f"{loss.words}. Its derivatives by the entries of Y are"
        ),
        Formula(f"∂J/∂Y = {loss.slope}"),
        Numbers(
            (
                Matrix("p" if loss.has_shares else "Y", loss.shares(net.y), "n", "i"),
                apart,
                Matrix("Y*", net.target, "n", "i"),
                gives,
                Matrix("∂J/∂Y", story.dy, "n", "i"),
            )
        ),
        Text(
            "Now move every entry of Y a little, each its own way: `ΔY = εU`, with any U. If the moves are small "
            "enough, each counts for itself, by its derivative times how far it went, and they add up:"
        ),
        Numbers(
            (
                Matrix("∂J/∂Y", story.dy, "n", "i"),
                "⊙",
                Matrix("U", u, "n", "i"),
                "=",
                Matrix("∂J/∂Y ⊙ U", products, "n", "i"),
            )
        ),
    ]
    if isinstance(dot, Tensor) and isinstance(products, Tensor):
        value = float(dot)
        changes = [(size, (float(net.cost_of(net.y + size * u)) - here) / size) for size in (0.1, 0.01, 0.001)]
        blocks += [
            Text(
                f"The sum of all entries on the right is {number(value)}. That is a dot product, of the derivatives "
                "with the moves. And this is what J really does:"
            ),
            Table(
                ("ε", "ΔJ / ε", "∂J/∂Y · U", "apart by"),
                tuple(
                    (f"{size:g}", number(change, 6), number(value, 6), number(abs(change - value), 6))
                    for size, change in changes
                ),
            ),
            Bars(
                "What each entry of Y adds to ΔJ / ε."
                + (f" The first {_BARS} of {products.numel()}." if products.numel() > _BARS else ""),
                tuple(
                    (f"n={i // u.shape[1] + 1} i={i % u.shape[1] + 1}", float(products.reshape(-1)[i]))
                    for i in range(min(_BARS, products.numel()))
                ),
            ),
        ]
    blocks += [
        Text(
            "So much for any move of Y. Now let one knob θ, any weight or bias, move Y. It moves entry `Yₙᵢ` by "
            "`ε ∂Yₙᵢ/∂θ`. Put that in the place of the moves:"
        ),
        Formula("∂J/∂θ = Σₙᵢ ∂J/∂Yₙᵢ · ∂Yₙᵢ/∂θ"),
        Text(
            "This is the chain rule, and this is why it sums over all outputs: a knob may move all of them, and J "
            "feels each. And yes, the sum is a dot product. How many of its terms are zero is the next step's "
            "question. To check a derivative without calculus, nudge up and down by ε and divide the difference by "
            "2ε: a central difference."
        ),
        agree(f"∂J/∂Y = {loss.slope.partition(',   ')[0]}", story.dy, story.true_dy),
        agree(
            "∂J/∂Y · U = the slope of J along U",
            dot,
            central_difference(net.cost_of, net.y, u),
            "central difference",
            DIFFERENCE,
        ),
    ]
    return Step(2, "J feels every output", tuple(blocks))


def _list(row: Tensor) -> str:
    shown = [number(value) for value in row.tolist()[:3]]
    return ", ".join(shown) + (", …" if len(row) > 3 else "")
