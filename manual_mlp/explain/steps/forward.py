"""Steps 0 to 2: the question and its signs, one weight nudged, and the cost as a function of all outputs."""

from __future__ import annotations

import torch
from torch import Tensor

from manual_mlp.layer import dense
from manual_mlp.explain.blocks import Block, Boxes, Curve, Formula, Heading, Numbers, OfF, Step, Table, Text, Tiles, low
from manual_mlp.explain.compare import agree
from manual_mlp.explain.formulas import in_words
from manual_mlp.explain.story import Story
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
    ends = torch.linspace(-6, 6, 97, dtype=torch.float64)
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
                    ("`H`", f"the row that enters, here {inputs} numbers. Hₖ is number k"),
                    ("`W`", "the weights: Wₖₗ says how much input k counts for output l"),
                    ("`B`", f"the biases, one for each output, here {outputs}"),
                    ("`HW`", "a matrix product: for each l multiply Hₖ by Wₖₗ for every k, and add"),
                    ("`Z`", "short for HW + B, the layer before f"),
                    ("`f`", "a function of one number, used on each entry by itself"),
                    ("`Y`", "f(Z), the row that leaves; `Y*` is what it should be"),
                    ("`f′`", "the slope of f: how fast f(z) rises at z. f′(Z) has one for each entry"),
                    ("`J`", "the cost, one number: how far Y is from `Y*`"),
                    (
                        "`∂J/∂B`",
                        "for each entry of B, how fast J changes if this entry is nudged and all else stands still",
                    ),
                    ("`∂J/∂W`", "the same for each entry of W. Each derivative is written where its entry stands"),
                    ("`∗`, `⊙`", "entry by entry: multiply what stands in the same place"),
                    ("`Hᵀ`", "H transposed: stood up, so that its row becomes a column"),
                    ("`Σᵢ`", "add up what follows, for every i"),
                    ("`δ`", "short for `∂J/∂Y ⊙ f′(Z)`, which is `(Y − Y*) ∗ f′(Z)` for the textbook's J"),
                    ("`σ`", "the sigmoid, `σ(z) = 1/(1 + exp(−z))`, where exp(x) is e to the power x, and ln undoes it"),
                ),
            ),
            OfF(net.name_of_f, in_words(net.f)),
            s.text("The numbers, row {r + 1:whole} of H first:"),
            Numbers((s.matrix("H", "row(H, r)", "", "k"), "·", s.matrix("W", "W", "k"), "+", s.matrix("B", "B", ""))),
            Text("And what the layer makes of them, with the slope of f below each entry:"),
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
                "f, with a dot for each entry of this Z: across stands Z, up stands Y, and the dash has the slope f′(Z).",
                z,
                y,
                slope,
                torch.stack([ends, net.f.f(ends)], 1),
            ),
            Numbers((s.matrix("Y", "row(Y, r)", ""), "should be", s.matrix("Y*", "row(T, r)", ""))),
            s.text("With {rows(H):row} in all, J is {J}. It is this J that everything below takes derivatives of."),
            s.when("se == 0", "The textbook's J is half the squared error, which gives Y − `Y*`. With another J, such "
                   "as this one, `∂J/∂Y` stands there instead: step 2 tells how fast J changes with each entry of Y."),
            Heading("Four products"),
            Text(
                "All four multiply two arrays, and tutorials confuse them. On your numbers, with the row of Y and of "
                "`Y*`, and with H:"
            ),
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
            Text("J is one number, so a derivative of J has the shape of what it is by: W has as many as it has entries."),
            Boxes(
                "Sides to scale, for all rows at once: the columns of H meet the rows of W, and both are counted by k.",
                (
                    ("H", net.shape[0], inputs),
                    "·",
                    ("W", inputs, outputs),
                    "+",
                    ("B", 1, outputs),
                    "=",
                    ("Z", net.shape[0], outputs),
                ),
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
                f"{{at(W, k, l)}} by a tiny ε, a millionth, and leave all else alone. How far did each entry of Z "
                "move, divided by ε? One row n of Z for each row of H:"
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
                f"A weight of column {l + 1} reaches output {l + 1} and no other, and there it is multiplied by Hₖ, "
                f"with k = {k + 1}. So that is how much Z moves. As a formula, with i for any output:"
            ),
            Formula("∂Zᵢ/∂Wₖₗ = Hₖ Iᵢₗ"),
            Text(
                "`Iᵢₗ` is 1 if i and l are the same number, and 0 if not: the entries of the identity matrix I. Proofs "
                "write it `δᵢₗ`, whatever the letters, and call it the Kronecker delta. This page writes I, because δ "
                "is something else. A full proof has two of them. Differentiate the sum `Zᵢ = Σⱼ Hⱼ Wⱼᵢ + Bᵢ`, and "
                "`∂Wⱼᵢ/∂Wₖₗ` is 1 only where both letters agree:"
            ),
            Formula("∂Zᵢ/∂Wₖₗ = Σⱼ Hⱼ Iⱼₖ Iᵢₗ = Hₖ Iᵢₗ"),
            Text("The first delta, `δⱼₖ`, removes the sum over j. The second, `δᵢₗ`, stays: the other outputs stand still."),
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
            "Now move every entry of Y a little, each its own way: Y + εU, with any U. If the moves are small enough, "
            "each counts for itself, by its derivative times how far it went, and they add up:"
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
            "The sum of all entries on the right is {sum(dY * moves(Y, 0))}. Multiply the same places, add: that is a "
            "dot product. And this is what J really does, ΔJ being how far it moved:"
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
        Text(
            "So much for any move of Y. Now one knob θ, any weight or bias, moves Y: entry `Yᵢ` goes by `ε ∂Yᵢ/∂θ`. Put "
            "that in the place of U:"
        ),
        Formula("∂J/∂θ = Σᵢ ∂J/∂Yᵢ · ∂Yᵢ/∂θ"),
        Text(
            "This is the chain rule, and this is why it sums over all outputs: a knob may move each `Yᵢ`, and J depends "
            "on every one. `∂J/∂Bₗ` sums over i for that reason alone. The sum is a dot product of two rows, ∂J/∂Y and "
            "∂Y/∂θ. How many of its terms are 0 is the next question."
        ),
        Text(
            "To check a derivative without calculus, nudge up and down by ε and divide the difference of J by 2ε: a "
            "central difference. This page does so for every derivative of J when you change a number."
        ),
        Tiles(
            "How J feels each entry of Y, and what each adds.",
            (s.tile("∂J/∂Y", "dY", ("n", "i")), "", s.tile("∂J/∂Y ⊙ U", "dY * moves(Y, 0)", ("n", "i"))),
        ),
        s.slope("∂J/∂Y", "dY", "J", "Y"),
        s.slope("∂J/∂Y · U = the slope of J along U", "sum(dY * moves(Y, 0))", "J(Y + e * moves(Y, 0), T)", "e"),
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
