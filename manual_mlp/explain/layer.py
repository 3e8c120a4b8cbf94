"""Steps 0 to 5: one layer, from its shapes to the gradients of a batch."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from manual_mlp.explain.blocks import (
    Bars,
    Block,
    Boxes,
    Formula,
    Matrix,
    Numbers,
    Refused,
    Step,
    Table,
    Text,
    Tile,
    Tiles,
    number,
)
from manual_mlp.explain.compare import (
    DIFFERENCE,
    agree,
    attempt,
    autograd,
    central_difference,
    jacobian,
    shape,
)
from manual_mlp.explain.story import Story, row_of, spelled_out

_SHOWN = 4  # matrices of a family


def shapes(story: Story) -> Step:
    """Step 0: what multiplies what, in the textbook's layout and in PyTorch's."""
    net = story.network
    rows, inputs, outputs = net.shape
    a, b, h = net.y[0], net.target[0], net.h[0]
    weight, bias = net.w.mT.contiguous(), net.b
    dw = story.true_dh_dw_db[1]
    stored = autograd(lambda weight: net.cost_of(net.f.f(F.linear(net.h, weight, bias))), weight)[0]
    return Step(
        0,
        "Shapes",
        (
            Text(
                f"A row of {inputs} numbers enters the layer, H. A row of {outputs} numbers leaves it, Y. "
                f"{rows} such rows make a batch and go through together. The layer has a weight `W` and a bias `B`, "
                f"and a function f, here {net.f.name}. J is one number, the cost: it says how far Y is from what it "
                "should be, `Y*`."
            ),
            Formula("Z = HW + B", "F1"),
            Formula("Y = f(Z)", "F2"),
            Boxes(
                f"Sides to scale. The {inputs} columns of H meet the {inputs} rows of W.",
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
                "occur below. They are easily mixed up, for all four multiply two arrays:"
            ),
            Table(
                ("product", "what it does", "for example", "shape"),
                (
                    ("dot", "same places: multiply, add all", f"Y₁ · Y*₁: {spelled_out(a, b, 2)}", "1×1"),
                    ("Hadamard ⊙", "same places: multiply", _list(a * b), shape(a)),
                    ("outer", "each with each: multiply", "H₁ᵀ Y₁", shape(h[:, None] * a)),
                    ("matrix", "rows with columns: dot products", "H W", shape(net.h @ net.w)),
                ),
            ),
            Text(
                "PyTorch stores the weight the other way round, as `weight` = `Wᵀ`. This page keeps the textbook's W. "
                "The numbers are the same, only their places differ:"
            ),
            Table(
                ("", "textbook", "shape", "PyTorch", "shape"),
                (
                    ("input", "H", shape(net.h), "input", shape(net.h)),
                    ("weight", "W", shape(net.w), "weight", shape(weight)),
                    ("bias", "B", shape(net.b), "bias", str(outputs)),
                    ("derivative by the weight", "∂J/∂W = Hᵀδ", shape(dw), "weight.grad = δᵀH", shape(stored)),
                ),
            ),
            Text(
                "The last line is what the next steps find. Its shape is settled now. J is one number, so each of "
                f"the {inputs * outputs} entries of W has one derivative, and it is written where that entry stands. "
                "So every derivative of J has the shape of what it is the derivative by. A step of training is then "
                "`W − η ∂J/∂W`, entry by entry."
            ),
            agree("Z = HW + B, and F.linear(H, weight, bias)", F.linear(net.h, weight, bias), net.z, "PyTorch"),
            agree("∂J/∂W has W's shape, and is the transpose of weight.grad", stored.mT, dw),
        ),
    )


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
    name = f"W{_low(k)}{_low(l)}"
    return Step(
        1,
        "One weight nudged",
        (
            Text(
                f"Take one weight, `{name}`, from input {k + 1} to output {l + 1}. Raise it from "
                f"{number(float(net.w[k, l]))} by a tiny ε = {number(size)}, and leave all else alone. How far did "
                "each entry of Z move? Divide by ε:"
            ),
            Numbers(
                (
                    Matrix("ΔZ / ε", moved, "n", "l", formula != 0),
                    "beside",
                    Matrix(f"column k={k + 1} of H", net.h[:, k : k + 1], "n", ""),
                )
            ),
            Tiles(
                f"Column {l + 1} moved, and it moved by column {k + 1} of H. Nothing else moved.",
                (Tile("ΔZ / ε", moved, ("n", "l")), "", Tile("H", net.h, ("n", "k"))),
            ),
            Text(
                f"A weight of column {l + 1} reaches output {l + 1} and no other. In row n it is multiplied by "
                f"`H{'ₙ'}{_low(k)}`, so that is how much Z moves there. As a formula:"
            ),
            Formula("∂Zₙᵢ/∂Wₖₗ = Hₙₖ δᵢₗ"),
            Text(
                "`δᵢₗ` is the Kronecker delta. It is 1 if i and l are the same number, and 0 if they are not. "
                "It only says: the other columns stand still."
            ),
            agree("ΔZ / ε, and the formula", moved, formula, "finite difference", DIFFERENCE),
        ),
    )


def total(story: Story) -> Step:
    """Step 2: a small change of J is a dot product, which is where the chain rule's sum comes from."""
    net = story.network
    (u,) = story.directions(*net.y.shape)
    u = (10 * u).round() / 10
    here = float(net.cost_of(net.y))
    slope = central_difference(net.cost_of, net.y, u)
    formula = "∂J/∂Y = Y − Y*" if net.loss == "squared-error" else "∂J/∂Y = p − Y*,   p = softmax(Y)"
    blocks: list[Block] = [
        Text(
            f"J is one number, made of all {net.y.numel()} entries of Y. Here it is {number(here)}: "
            + (
                "half the sum of the squared differences of Y and `Y*`."
                if net.loss == "squared-error"
                else "the cross-entropy of softmax(Y) and `Y*`, summed over the rows."
            )
            + " Its derivatives by the entries of Y are"
        ),
        Formula(formula),
    ]
    if net.loss == "cross-entropy":
        blocks.append(Text("Step 9 shows why. Here autograd confirms it."))
    blocks.append(
        Text(
            "Now move every entry of Y a little, each its own way: `ΔY = εU`, with any U. To first order each move "
            "counts for itself, by ∂J/∂Y times how far it went, and small moves add up:"
        )
    )
    dot = attempt(lambda dy: (dy * u).sum(), story.dy)
    blocks.append(
        Numbers(
            (
                Matrix("∂J/∂Y", story.dy, "n", "i"),
                "⊙",
                Matrix("U", u, "n", "i"),
                "=",
                Matrix("∂J/∂Y ⊙ U", attempt(lambda dy: dy * u, story.dy), "n", "i"),
            )
        )
    )
    if not isinstance(dot, Refused):
        changes = [(size, (float(net.cost_of(net.y + size * u)) - here) / size) for size in (0.1, 0.01, 0.001)]
        blocks += [
            Text(
                f"The sum of all entries on the right is {number(float(dot))}. That is a dot product, of the "
                "derivatives with the moves. And this is what J really does:"
            ),
            Table(
                ("ε", "ΔJ / ε", "∂J/∂Y · U", "apart by"),
                tuple(
                    (f"{size:g}", number(change, 6), number(float(dot), 6), number(abs(change - float(dot)), 6))
                    for size, change in changes
                ),
            ),
            Bars(
                "What each entry of Y adds to ΔJ / ε; the sum is the dot product.",
                tuple(
                    (f"n={n + 1} i={i + 1}", float(story.dy[n, i] * u[n, i]))  # type: ignore[index]
                    for n in range(min(_SHOWN, len(u)))
                    for i in range(min(_SHOWN, u.shape[1]))
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
            "This is why the chain rule sums over all outputs: a knob may move all of them, and J feels each. And yes, "
            "the sum is a dot product. Whether many of its terms are zero is another question, and the next step's."
        ),
        agree(formula.split(",")[0], story.dy, story.true_dy),
        agree(
            "∂J/∂Y · U, and the slope of J along U", dot, torch.tensor(slope).double(), "central difference", DIFFERENCE
        ),
    ]
    return Step(2, "J feels every output", tuple(blocks))


def bias(story: Story) -> Step:
    """Step 3: ∂Y/∂B in full is diagonal, so that the sum leaves a Hadamard product."""
    net, n = story.network, story.row
    outputs = net.shape[2]
    identity = torch.eye(outputs, dtype=torch.float64)
    slope, dy = story.slope[n], story.true_dy[n]
    full = slope[:, None] * identity
    by_autograd = jacobian(lambda b: net.f.f(net.h[n] @ net.w + b), net.b)
    l = story.knob[1]  # noqa: E741
    return Step(
        3,
        "∂Y/∂B in full",
        (
            Text(
                f"Take one row alone, row {n + 1}: Y has {outputs} entries, and so has B. Each entry of Y may depend "
                f"on each entry of B. That makes {outputs}·{outputs} derivatives, a matrix: row i, column l holds "
                "`∂Yᵢ/∂Bₗ`."
            ),
            Numbers(
                (
                    Matrix("∂Y/∂B", full, "i", "l", identity.bool()),
                    "=",
                    Matrix("f′(Z)", slope[:, None], "i", ""),
                    "times rows of",
                    Matrix("δᵢₗ", identity, "i", "l", identity.bool()),
                )
            ),
            Tiles(
                "On the diagonal f′(Zᵢ). Elsewhere nothing: f works entry by entry, and a bias reaches one output.",
                (Tile("∂Y/∂B", full, ("i", "l")), "", Tile("δᵢₗ, the identity", identity, ("i", "l"))),
            ),
            Formula("∂Yᵢ/∂Bₗ = f′(Zᵢ) δᵢₗ"),
            Text(
                "The Kronecker delta of the proof is this identity matrix, entry by entry. Now the chain rule of "
                "step 2, for this row: sum over i."
            ),
            Formula("∂J/∂Bₗ = Σᵢ ∂J/∂Yᵢ f′(Zᵢ) δᵢₗ = ∂J/∂Yₗ f′(Zₗ)"),
            Text(
                f"For l = {l + 1} the terms are {spelled_out(dy * slope, identity[:, l])}. The zeros have killed all "
                "terms but one. What is left multiplies entry l by entry l and adds nothing. For all l together that "
                "is the Hadamard product. A vector times a diagonal matrix is an entrywise product."
            ),
            Text(
                "The result is used again and again, so it has a name: δ, with one index or none. It is not "
                "Kronecker's, which has two. A bias is added to Z as it is, so the same numbers are ∂J/∂Z."
            ),
            Formula("δ = ∂J/∂Z = ∂J/∂Y ⊙ f′(Z)", "B1"),
            Numbers(
                (
                    Matrix("∂J/∂Y", row_of(story.dy, n), "", "l"),
                    "⊙",
                    Matrix("f′(Z)", slope[None], "", "l"),
                    "=",
                    Matrix("δ", row_of(story.delta, n), "", "l"),
                )
            ),
            agree("∂Y/∂B, and the Jacobian", full, by_autograd),
            agree(
                "δ of the row, and the sum over i with the full matrix",
                row_of(story.delta, n),
                (dy @ full)[None],
                "index sum",
            ),
            agree("δ of all rows, and ∂J/∂Z", story.delta, story.true_delta),
        ),
    )


def weight(story: Story) -> Step:
    """Step 4: ∂Y/∂W in full is mostly zeros; contracted with ∂J/∂Y it leaves an outer product."""
    net, n = story.network, story.row
    _, inputs, outputs = net.shape
    k, l = story.knob  # noqa: E741
    identity = torch.eye(outputs, dtype=torch.float64)
    h, slope, dy = net.h[n], story.slope[n], story.true_dy[n]
    full = torch.einsum("i,k,il->ikl", slope, h, identity)
    by_autograd = jacobian(lambda w: net.f.f(h @ w + net.b), net.w)
    index_sum = (dy[:, None, None] * full).sum(0)
    with_identity = torch.einsum("i,i,il,k->kl", dy, slope, identity, h)
    delta = row_of(story.delta, n)
    product = attempt(story.formulas.weight, h[None], delta)
    of_row = autograd(lambda w: _row_cost(story, h @ w + net.b, n), net.w)[0]
    elsewhere = int((~identity.bool()).sum()) * inputs
    return Step(
        4,
        "∂Y/∂W in full",
        (
            Text(
                f"Row {n + 1} again. Y has {outputs} entries, and W has {inputs}·{outputs}. Each may depend on each: "
                f"{outputs}·{inputs}·{outputs} = {full.numel()} numbers with three indices, i, k and l. Here they "
                "are, a matrix for each output i:"
            ),
            Numbers(
                tuple(
                    Matrix(f"∂Y{_low(i)}/∂W", full[i], "k", "l", _column(full[i], i))
                    for i in range(min(_SHOWN, outputs))
                )
                + (("…",) if outputs > _SHOWN else ())
            ),
            Tiles(
                "Slice i has one column that is not zero: column i. It is f′(Zᵢ) times H.",
                tuple(Tile(f"∂Y{_low(i)}/∂W", full[i], ("k", "l")) for i in range(min(_SHOWN, outputs))),
            ),
            Text(
                f"{elsewhere} of the {full.numel()} are zero whatever the numbers, because a weight of column l does "
                "not reach output i unless i = l. The chain rule of one variable gives the others:"
            ),
            Formula("∂Yᵢ/∂Wₖₗ = f′(Zᵢ) Hₖ δᵢₗ"),
            Text("Contract this with ∂J/∂Y: for each k and l multiply by `∂J/∂Yᵢ` and sum over i."),
            Formula("∂J/∂Wₖₗ = Σᵢ ∂J/∂Yᵢ f′(Zᵢ) Hₖ δᵢₗ = Hₖ δₗ"),
            Text(
                f"For k = {k + 1} and l = {l + 1}: {spelled_out(dy, full[:, k, l])}. And `H{_low(k)} δ{_low(l)}` is "
                f"{spelled_out(h[k : k + 1], (dy * slope)[l : l + 1])}."
            ),
            Text(
                "One number for each pair (k, l), and nothing is left to sum: an outer product. Multiply each entry "
                "of H with each entry of δ. To write it as a matrix product, k must number rows. H is a row, so "
                "stand it up: that is `Hᵀ`, and this is all the transpose does."
            ),
            Formula("∂J/∂W = Hᵀ δ", "B3"),
            Numbers(
                (
                    Matrix("Hᵀ", h[:, None], "k", ""),
                    "·",
                    Matrix("δ", delta, "", "l"),
                    "=",
                    Matrix("∂J/∂W of this row", product, "k", "l"),
                )
            ),
            Text(
                "So ∂Y/∂W does not “become” Hᵀ. It is the whole array above. Multiplied by ∂J/∂Y and summed, its "
                "zeros drop out, and Hᵀδ is what remains. Three ways lead to the same matrix: the sum over i "
                "of the array above, an einsum in which the identity is written out, and the product."
            ),
            agree("∂Y/∂W, and the Jacobian", full, by_autograd),
            agree("the sum over i, and einsum with the identity", with_identity, index_sum, "index sum"),
            agree("Hᵀδ of the row, and the sum over i", product, index_sum, "index sum"),
            agree("Hᵀδ of the row, and ∂J/∂W of this row alone", product, of_row),
        ),
    )


def batch(story: Story) -> Step:
    """Step 5: over a batch the outer products add up."""
    net = story.network
    rows, inputs, outputs = net.shape
    _, dw, db = story.true_dh_dw_db
    true = story.true_delta
    outer = [net.h[n, :, None] * true[n] for n in range(min(_SHOWN, rows))]
    summed = torch.einsum("nk,nl->kl", net.h, true)
    product, biases = attempt(story.formulas.weight, net.h, story.delta), attempt(story.formulas.bias, story.delta)
    stored = attempt(story.formulas.stored_weight, net.h, story.delta)
    signs: list[Matrix | str] = []
    for n, matrix in enumerate(outer):
        signs += ["+"] * (n > 0) + [Matrix(f"row {n + 1}: H{_low(n)}ᵀ δ{_low(n)}", matrix, "k", "l")]
    if rows > _SHOWN:
        signs += ["+", "…"]
    tiles: list[Tile | str] = []
    for n, matrix in enumerate(outer):
        tiles += ["+"] * (n > 0) + [Tile(f"row {n + 1}", matrix, ("k", "l"))]
    return Step(
        5,
        "A batch",
        (
            Text(
                f"All {rows} rows again. One W serves them all, so the chain rule sums over the rows too. Row n adds "
                "its outer product:"
            ),
            Formula("∂J/∂Wₖₗ = Σₙ Hₙₖ δₙₗ = (Hᵀ δ)ₖₗ", "B3"),
            Numbers((*signs, "=", Matrix("the sum", summed, "k", "l"))),
            Tiles(
                "Each row's matrix is δ times a number, row by row: its rank is at most 1. "
                f"{'The sum of ' + str(rows) + ' has a rank of ' if rows > 1 else 'Here its rank is '}"
                f"{int(torch.linalg.matrix_rank(summed))}.",
                (*tiles, *(("+ …",) if rows > _SHOWN else ()), "=", Tile("the sum", summed, ("k", "l"))),
            ),
            Text(
                "A matrix product does this adding by itself. It sums over the index where its factors meet. In "
                f"`Hᵀδ` that is n: the columns of Hᵀ are the rows of H, and they meet the rows of δ, {inputs}×{rows} "
                f"times {rows}×{outputs}. In `HW` it was k. So a transpose brings the index to be summed to the "
                "middle."
            ),
            Numbers(
                (
                    Matrix("Hᵀ", net.h.mT, "k", "n"),
                    "·",
                    Matrix("δ", story.delta, "n", "l"),
                    "=",
                    Matrix("∂J/∂W", product, "k", "l"),
                )
            ),
            Text(
                "B is a weight whose input is always 1. Put 1 for `Hₙₖ`, and its derivative is the sum of δ over the "
                "rows. For a single row that is δ itself, the textbook's formula."
            ),
            Formula("∂J/∂Bₗ = Σₙ δₙₗ", "B4"),
            Numbers((Matrix("∂J/∂B", biases if _is_matrix(biases) else attempt(lambda b: b[None], biases), "", "l"),)),
            Text(
                f"PyTorch's weight lies the other way round, and so does its derivative: `δᵀH`, {outputs}×{inputs}. "
                "It is the same matrix, transposed."
            ),
            agree("Hᵀδ, and the sum of the outer products", product, summed, "index sum"),
            agree("Hᵀδ, and ∂J/∂W", product, dw),
            agree("Σₙ δₙ, and ∂J/∂B", biases, db),
            agree("δᵀH, and weight.grad", stored, dw.mT),
        ),
    )


def _is_matrix(values: Tensor | Refused) -> bool:
    return not isinstance(values, Refused) and values.dim() == 2


def _row_cost(story: Story, z: Tensor, n: int) -> Tensor:
    """Return what row n contributes to J, for its z (D_out,)."""
    net = story.network
    y = net.y.clone()
    y[n] = net.f.f(z)
    return net.cost_of(y)


def _column(matrix: Tensor, l: int) -> Tensor:  # noqa: E741
    mark = torch.zeros_like(matrix, dtype=torch.bool)
    mark[:, l] = True
    return mark


def _low(index: int) -> str:
    """Write an index below the line, counted from 1."""
    return str(index + 1).translate(str.maketrans("0123456789", "₀₁₂₃₄₅₆₇₈₉"))


def _list(row: Tensor) -> str:
    shown = [number(value) for value in row.tolist()[:_SHOWN]]
    return ", ".join(shown) + (", …" if len(row) > _SHOWN else "")
