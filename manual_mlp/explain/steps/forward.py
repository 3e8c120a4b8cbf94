"""Steps 0 to 2: the question and its signs, one weight nudged, and the cost as a function of all outputs."""

from __future__ import annotations

import torch
from torch import Tensor

from manual_mlp.explain.blocks import (
    Block,
    Curve,
    Fold,
    Formula,
    Heading,
    Numbers,
    OfF,
    Step,
    Table,
    Text,
    Tiles,
)
from manual_mlp.explain.compare import agree
from manual_mlp.explain.formulas import in_words
from manual_mlp.explain.story import Story
from manual_mlp.explain.writing import count, low
from manual_mlp.layer import dense
from manual_mlp.losses import by_flag, flags

_FLAG = {"squared-error": "se", "cross-entropy": "ce", "binary-cross-entropy": "bce"}  # names in the scope


def question(story: Story) -> Step:
    """Step 0: the textbook's formulas for one row, what each sign means, and four products on the reader's numbers."""
    net, s = story.network, story
    inputs, outputs = net.w.shape
    z, y, slope = (s.value(name) for name in ("row(Z, r)", "row(Y, r)", "row(S, r)"))
    assert isinstance(z, Tensor)
    assert isinstance(y, Tensor)
    assert isinstance(slope, Tensor)
    wide = max(6.0, float(z.abs().max()))
    ends = torch.linspace(-wide, wide, 97, dtype=torch.float64)
    return Step(
        0,
        "The question, and what its signs mean",
        (
            Text("A layer takes a row of numbers H and makes a row Y. A textbook gives its derivatives like this:"),
            Formula("Y = f(HW + B)"),
            Formula("∂J/∂B = (Y − Y*) ∗ f′(HW + B)"),
            Formula("∂J/∂W = Hᵀ((Y − Y*) ∗ f′(HW + B))"),
            Text("Why entry by entry? Why a transpose? First, what each sign means:"),
            Table(
                ("sign", "is"),
                (
                    ("`H`", f"the row that enters, here {count(inputs, 'number')}; Hₖ is number k"),
                    ("`W`", "the weights: Wₖₗ says how much input k counts for output l"),
                    ("`B`", "the biases, one for each output"),
                    ("`HW`", "their matrix product: for each l multiply Hₖ by Wₖₗ for every k, and add"),
                    ("`f`", "a function of one number, used on each entry by itself"),
                    ("`Z`", "short for `HW + B`, the layer before f"),
                    ("`Y`", "`f(Z)`, the row that leaves"),
                    ("`Y*`", "what Y should be"),
                    ("`f′`", "the slope of f: how fast `f(z)` rises at z"),
                    ("`J`", "the cost, one number: how far Y is from `Y*`"),
                    (
                        "`∂J/∂B`",
                        "how fast J changes if one entry of B is nudged and all else stands still: one for each",
                    ),
                    ("`∂J/∂W`, `∂J/∂Y`", "the same for each entry of W and of Y, written where that entry stands"),
                    ("`∗`, `⊙`", "entry by entry: multiply what stands in the same place"),
                    ("`Hᵀ`", "H transposed: every row stood up as a column"),
                    ("`Σᵢ`", "add up what follows, for every i"),
                    ("`δ`", "short for `∂J/∂Y ⊙ f′(Z)`, the textbook's `(Y − Y*) ∗ f′(Z)`"),
                    ("`σ`", "the sigmoid, `1/(1 + exp(−z))` at z; `exp(x)` is e to the power x, and ln undoes it"),
                ),
            ),
            OfF(net.name_of_f, in_words(net.f)),
            s.text("Row {r + 1:whole} of H, and W and B:"),
            Numbers((s.matrix("H", "row(H, r)", "", "k"), "·", s.matrix("W", "W", "k"), "+", s.matrix("B", "B", ""))),
            Text("What the layer makes of them, and the slope of f at each entry of Z:"),
            Numbers(
                (
                    s.matrix("Z", "row(Z, r)", ""),
                    "→",
                    s.matrix("Y", "row(Y, r)", ""),
                    "with",
                    s.matrix("f′(Z)", "row(S, r)", ""),
                )
            ),
            Curve(
                "The curve of f. Each dot is an entry: Z across, Y up. The dash has the slope f′(Z).",
                z,
                y,
                slope,
                torch.stack([ends, net.f.f(ends)], 1),
            ),
            Numbers((s.matrix("Y", "row(Y, r)", ""), "should be", s.matrix("Y*", "row(T, r)", ""))),
            s.text("Over {rows(H):row}, J is {J}."),
            s.when("se == 0", "With this J another `∂J/∂Y` stands where the textbook has Y − `Y*`: see step 2."),
            Heading("Four products"),
            Text("All four multiply two arrays, and tutorials confuse them. With these rows of H, Y and `Y*`:"),
            Table(
                ("product", "what it does", "here", "shape"),
                (
                    ("dot, `Y · Y*`", "multiply the same places, add", s.say("{row(Y, r) @ row(T, r).T}"), "1×1"),
                    (
                        "Hadamard, `Y ⊙ Y*`",
                        "multiply the same places",
                        s.say("{row(Y, r) * row(T, r):list}"),
                        s.say("{row(Y, r):shape}"),
                    ),
                    (
                        "outer, `HᵀY`",
                        "multiply each with each",
                        s.say("{flat(row(H, r).T @ row(Y, r)):list}"),
                        s.say("{W:shape}"),
                    ),
                    (
                        "matrix, `HW`",
                        "dot products of rows with columns",
                        s.say("{row(H, r) @ W:list}"),
                        s.say("{row(Z, r):shape}"),
                    ),
                ),
            ),
            Text("J is one number. So `∂J/∂W` has one entry for each entry of W: the shape of W."),
            Tiles(
                "All rows n at once. The columns of H meet the rows of W: k counts both, and l the columns of W.",
                (s.tile("H", "H"), "·", s.tile("W", "W"), "+", s.tile("B", "B"), "=", s.tile("Z", "Z")),
            ),
            s.slope("f′(Z) = the slope of f", "diag(row(S, r))" if outputs > 1 else "row(S, r)", "f(Zr)", "Zr"),
            agree("Y = f(HW + B)", s.value("Y"), dense(net.h, net.w.mT, net.b, net.f), "the package's layer"),
        ),
    )


def nudge(story: Story) -> Step:
    """Step 1: one weight nudged moves one column of Z."""
    s, (_, k, l) = story, story.looked_at  # noqa: E741
    alone = story.network.shape[2] == 1
    still = "There is no other output." if alone else "The others stood still."
    moved = "(H @ (W + basis(W, k, l) / 1048576) + B - Z) * 1048576"
    return Step(
        1,
        "One weight nudged",
        (
            s.text(
                f"Take one weight, `W{low(k, l)}`, from input {k + 1} to output {l + 1}. Raise it from "
                f"{{at(W, k, l)}} by a tiny ε, and leave all else alone. How far did each entry of Z move, divided by "
                "ε? Row n of Z comes from row n of H:"
            ),
            Numbers(
                (
                    s.matrix("ΔZ / ε", moved, mark="abs(col(H, k)) @ row(I, l)"),
                    "and",
                    s.matrix(f"column {k + 1} of H", "col(H, k)", "n", ""),
                )
            ),
            Tiles(
                f"Column {l + 1} of Z moved by column {k + 1} of H. {still}",
                (s.tile("ΔZ / ε", moved, ("n", "l")), "", s.tile("H", "H", ("n", "k"))),
            ),
            Text(
                f"A weight of column {l + 1} reaches output {l + 1} and no other, and there it is multiplied by Hₖ, k "
                f"= {k + 1}. As a formula, where i is any output, and `Iᵢₗ` is 1 if i and l are the same number, "
                "else 0:"
            ),
            Formula("∂Zᵢ/∂Wₖₗ = Hₖ Iᵢₗ"),
            Text(
                "I is the identity matrix. Proofs write its entries `δᵢₗ`, whatever the letters, the Kronecker delta; "
                "here δ is something else. A full proof has two. In `Zᵢ = Σⱼ Hⱼ Wⱼᵢ + Bᵢ` the "
                "derivative of `Wⱼᵢ` by `Wₖₗ` is 1 only where both letters agree:"
            ),
            Formula("∂Zᵢ/∂Wₖₗ = Σⱼ Hⱼ Iⱼₖ Iᵢₗ = Hₖ Iᵢₗ"),
            Text("The first, `δⱼₖ`, removes the sum over j. The second, `δᵢₗ`, stays: other outputs stand still."),
            s.slope(
                "Hₙₖ Iᵢₗ = ∂Zₙᵢ/∂Wₖₗ",
                "flat(col(H, k) @ row(I, l)).T",
                "H @ (W + e * basis(W, k, l)) + B",
                "e",
            ),
        ),
    )


def total(story: Story) -> Step:
    """Step 2: a small change of J is a dot product, which is where the chain rule's sum comes from."""
    net, s = story.network, story
    own = by_flag(net.loss)
    known = [flag for flag in flags() if flag in _FLAG and by_flag(flag).written is not None]
    blocks: list[Block] = [
        Text("J depends on every entry of Y, so it has a derivative by each: together `∂J/∂Y`."),
        *(s.when(_FLAG[flag], *_slope(story, flag)) for flag in known),
        *(() if net.loss in known else (Text(f"J is {own.words}."), Formula(f"∂J/∂Y = {own.slope}"))),
        s.when("se", _given(story, "Y", "Y")),
        s.when("se == 0", _given(story, "p" if own.has_shares or own.written else "Y", "P")),
        Text(
            "Now nudge one knob θ, any weight or bias, by a tiny ε: `Yᵢ` goes by `ε ∂Yᵢ/∂θ`. Each of these moves J "
            "by its derivative times how far it went, and small moves add up:"
        ),
        Formula("∂J/∂θ = Σᵢ ∂J/∂Yᵢ · ∂Yᵢ/∂θ"),
        Text(
            "This is the chain rule. It sums over all outputs because a knob may move each `Yᵢ`, as an input does; a "
            "bias moves one, and its other terms are 0. The sum is a dot product of two rows, ∂J/∂Y and ∂Y/∂θ."
        ),
        Fold(
            "Small moves add up: try it",
            (
                Text(
                    "Move every entry of Y a little, each its own way: `Y + εU`, with any U. Each moves J by its "
                    "derivative times how far it went:"
                ),
                Numbers(
                    (
                        s.matrix("∂J/∂Y", "dY", columns="i"),
                        "⊙",
                        s.matrix("U", "moves(Y, 0)", columns="i"),
                        "=",
                        s.matrix("∂J/∂Y ⊙ U", "dY * moves(Y, 0)", columns="i"),
                    )
                ),
                s.text(
                    "All entries on the right add up to {sum(dY * moves(Y, 0))}: a dot product. And this is how far J "
                    "really moves, ΔJ:"
                ),
                Table(
                    ("ε", "ΔJ / ε", "the dot product", "apart by"),
                    tuple(
                        (
                            size,
                            s.say(f"{{(J(Y + {size} * moves(Y, 0), T) - J) / {size}:6}}"),
                            s.say("{sum(dY * moves(Y, 0)):6}"),
                            s.say(f"{{abs((J(Y + {size} * moves(Y, 0), T) - J) / {size} - sum(dY * moves(Y, 0))):6}}"),
                        )
                        for size in ("0.1", "0.01", "0.001")
                    ),
                ),
                Tiles(
                    "How J feels each entry of Y, and what each adds.",
                    (s.tile("∂J/∂Y", "dY", ("n", "i")), "", s.tile("∂J/∂Y ⊙ U", "dY * moves(Y, 0)", ("n", "i"))),
                ),
            ),
        ),
        Text(
            "To check a derivative without calculus, nudge up and down by ε, and divide the difference of J by 2ε: a "
            "central difference."
        ),
        s.slope("∂J/∂Y", "dY", "J", "Y"),
        s.difference("∂J/∂Y · U = the slope of J along U", "sum(dY * moves(Y, 0))", "J(Y + e * moves(Y, 0), T)", "e"),
    ]
    return Step(2, "J feels every output", tuple(blocks))


def _slope(story: Story, flag: str) -> tuple[Block, ...]:
    known = by_flag(flag)
    return story.text(f"Here J is {known.words}."), Formula(f"∂J/∂Y = {known.slope}")


def _given(story: Story, name: str, text: str) -> Numbers:
    s = story
    return Numbers(
        (
            s.matrix(name, text, columns="i"),
            "and",
            s.matrix("Y*", "T", columns="i"),
            "give",
            s.matrix("∂J/∂Y", "dY", columns="i"),
        )
    )
