"""Steps 3 to 5: ∂Y/∂B and ∂Y/∂W written out in full, for one row, and then a batch."""

from __future__ import annotations

from typing import TypeVar

import torch
from torch import Tensor

from manual_mlp.explain.blocks import (
    Block,
    Formula,
    Matrix,
    Numbers,
    Step,
    Text,
    Tile,
    Tiles,
    count,
    low,
)
from manual_mlp.explain.compare import agree, attempt, autograd, jacobian
from manual_mlp.explain.story import Story, as_row, row_of, spelled_out

_SHOWN = 4  # matrices of a family
Part = TypeVar("Part", Matrix, Tile)


def bias(story: Story) -> Step:
    """Step 3: ∂Y/∂B in full is diagonal, so that the sum leaves a Hadamard product."""
    net, n = story.network, story.row
    outputs = net.shape[2]
    identity = torch.eye(outputs, dtype=torch.float64)
    slope, dy = story.slope[n], story.true_dy[n]
    full = slope[:, None] * identity
    l = story.knob[1]  # noqa: E741
    killed = (
        "With one output there is one term, and nothing to kill."
        if outputs == 1
        else "The zeros of I have killed all terms but that of i = l."
    )
    return Step(
        3,
        "∂Y/∂B in full",
        (
            Text(
                f"Take one row alone, row {n + 1}: Y has {count(outputs, 'entry')}, and so has B. Each entry of Y may "
                f"depend on each entry of B. That makes {outputs}·{outputs} derivatives, a matrix: row i, column l "
                "holds `∂Yᵢ/∂Bₗ`. Such a table of all derivatives of one array by another is called a Jacobian."
            ),
            Numbers(
                (
                    Matrix("∂Y/∂B", full, "i", "l", identity.bool()),
                    ": row i is",
                    Matrix("f′(Z)", slope[:, None], "i", ""),
                    "times row i of",
                    Matrix("I", identity, "i", "l", identity.bool()),
                )
            ),
            Tiles(
                "The Jacobian of an entrywise f, and the identity matrix: both are diagonal.",
                (Tile("∂Y/∂B", full, ("i", "l")), "", Tile("I", identity, ("i", "l"))),
            ),
            Text(
                "It is diagonal for two reasons: f works entry by entry, and a bias reaches one output. The "
                "Kronecker delta of the proof is the identity matrix you see, entry by entry."
            ),
            Formula("∂Yᵢ/∂Bₗ = f′(Zᵢ) Iᵢₗ"),
            Text("Now the chain rule of step 2, for this row: sum over i."),
            Formula("∂J/∂Bₗ = Σᵢ ∂J/∂Yᵢ f′(Zᵢ) Iᵢₗ = ∂J/∂Yₗ f′(Zₗ)"),
            Text(
                f"For l = {l + 1}, with `∂J/∂Yᵢ f′(Zᵢ)` first and `Iᵢₗ` second in each term: "
                f"{spelled_out(dy * slope, identity[:, l])}. {killed} What is left multiplies entry l by entry l and "
                "adds nothing. For all l together that is the Hadamard product. So the entrywise product is a vector "
                "times a diagonal matrix."
            ),
            Text(
                "The result is used again and again, so it has a name, δ: how much J minds each entry of Z. A bias "
                "is added to Z as it is, so for this row ∂J/∂Z and ∂J/∂B are the same."
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
            agree("f′(Zᵢ) Iᵢₗ = ∂Y/∂B", full, jacobian(lambda b: net.f.f(net.h[n] @ net.w + b), net.b)),
            agree("δ of the row = the sum over i", row_of(story.delta, n), (dy @ full)[None], "the full matrix"),
            agree("δ of all rows = ∂J/∂Z", story.delta, story.true_delta),
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
    index_sum = (dy[:, None, None] * full).sum(0)
    with_identity = torch.einsum("i,i,il,k->kl", dy, slope, identity, h)
    delta = row_of(story.delta, n)
    product = attempt(story.formulas.weight, h[None], delta)
    (of_row,) = autograd(lambda w: _row_cost(story, h @ w + net.b, n), net.w)
    elsewhere = inputs * outputs * (outputs - 1)
    d = delta[0, l] if isinstance(delta, Tensor) else dy[l] * slope[l]
    return Step(
        4,
        "∂Y/∂W in full",
        (
            Text(
                f"Row {n + 1} again. Y has {count(outputs, 'entry')}, and W has {inputs}·{outputs}. Each may depend "
                f"on each: {outputs}·{inputs}·{outputs} = {count(full.numel(), 'number')} with three indices, i, k "
                "and l. Here they are, a matrix for each output i:"
            ),
            Numbers(
                tuple(Matrix(f"∂Y{low(i)}/∂W", m, "k", "l", _column(m, i)) for i, m in enumerate(full[:_SHOWN]))
                + (("…",) if outputs > _SHOWN else ())
            ),
            Tiles(
                "Of slice i only column i can be other than zero. It is f′(Zᵢ) times H.",
                tuple(Tile(f"∂Y{low(i)}/∂W", full[i], ("k", "l")) for i in range(min(_SHOWN, outputs))),
            ),
            *_zeros(elsewhere, full.numel()),
            Formula("∂Yᵢ/∂Wₖₗ = f′(Zᵢ) Hₖ Iᵢₗ"),
            Text("Now the chain rule: for each k and l multiply by `∂J/∂Yᵢ` and sum over i."),
            Formula("∂J/∂Wₖₗ = Σᵢ ∂J/∂Yᵢ f′(Zᵢ) Hₖ Iᵢₗ = Hₖ δₗ"),
            Text(
                f"For k = {k + 1} and l = {l + 1}: {spelled_out(dy, full[:, k, l])}. And `Hₖ δₗ` is "
                f"{spelled_out(h[k : k + 1], d.reshape(1))}."
            ),
            Text(
                "One number for each pair of k and l, and nothing is left to sum: an outer product. Multiply each "
                "entry of H with each entry of δ. To write it as a matrix product, k must number rows. H is a row, "
                "so stand it up: that is `Hᵀ`, and this is all the transpose does. So `∂Y/∂W` does not “become” "
                "`Hᵀ`. It is the whole array above, and `Hᵀδ` is what remains when ∂J/∂Y has been multiplied in and "
                "its zeros have dropped out."
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
                "Three ways lead to the same matrix: the sum over i of the array above, torch.einsum with the "
                "identity written out as one of its factors, and the product."
            ),
            agree(
                "f′(Zᵢ) Hₖ Iᵢₗ = ∂Y/∂W",
                full,
                jacobian(lambda w: net.f.f(h @ w + net.b), net.w),
            ),
            agree("einsum with the identity = the sum over i", with_identity, index_sum, "the full array"),
            agree("Hᵀδ of the row = the sum over i", product, index_sum, "the full array"),
            agree("Hᵀδ of the row = ∂J/∂W of this row alone", product, of_row),
        ),
    )


def batch(story: Story) -> Step:
    """Step 5: over a batch the outer products add up."""
    net = story.network
    rows, inputs, outputs = net.shape
    _, dw, db = net.gradients
    delta = story.delta if isinstance(story.delta, Tensor) else story.true_delta
    outer = [net.h[n, :, None] * delta[n] for n in range(min(_SHOWN, rows))]
    summed = torch.einsum("nk,nl->kl", net.h, story.true_delta)
    stored = attempt(story.formulas.stored_weight, net.h, story.delta)
    dots = ("+", "…") if rows > _SHOWN else ()
    rank = int(torch.linalg.matrix_rank(summed))
    return Step(
        5,
        "A batch",
        (
            Text(
                f"Now the whole batch, {count(rows, 'row')}. One W serves them all, so the chain rule sums over the "
                "rows too. Each row adds its outer product:"
            ),
            Formula("∂J/∂Wₖₗ = Σₙ Hₙₖ δₙₗ = (Hᵀ δ)ₖₗ", "B3"),
            Numbers(
                (
                    *_between("+", [Matrix(f"row {n + 1}", m, "k", "l") for n, m in enumerate(outer)]),
                    *dots,
                    "=",
                    Matrix("the sum", summed, "k", "l"),
                )
            ),
            Tiles(
                "An outer product of each row, and their sum.",
                (
                    *_between("+", [Tile(f"row {n + 1}", m, ("k", "l")) for n, m in enumerate(outer)]),
                    *dots,
                    "=",
                    Tile("the sum", summed, ("k", "l")),
                ),
            ),
            Text(
                "In the matrix of one row all rows are multiples of δ, which is called rank 1, or 0 if it is all "
                f"zero. The rank of the sum is {rank}."
            ),
            Text(
                "A matrix product does this adding by itself. It sums over the index where its factors meet. In "
                f"`Hᵀδ` that is n: the columns of Hᵀ are the rows of H, and they meet the rows of δ, {inputs}×{rows} "
                f"times {rows}×{outputs}. In `HW` it was k. So a transpose brings the index to be summed to the "
                "middle. And this is why it is a matrix product: not with ∂J/∂Y itself, but with `δ = ∂J/∂Y ⊙ f′(Z)`."
            ),
            Numbers(
                (
                    Matrix("Hᵀ", net.h.mT, "k", "n"),
                    "·",
                    Matrix("δ", story.delta, "n", "l"),
                    "=",
                    Matrix("∂J/∂W", story.dw, "k", "l"),
                )
            ),
            Text(
                "B is a weight whose input is always 1. Put 1 for `Hₙₖ`, and its derivative is the sum of δ over the "
                "rows. For a single row that is δ itself, the textbook's formula."
            ),
            Formula("∂J/∂Bₗ = Σₙ δₙₗ", "B4"),
            Numbers((Matrix("∂J/∂B", as_row(story.db), "", "l"),)),
            Text(
                f"PyTorch's weight lies the other way round, and so does its derivative, `δᵀH`, {outputs}×{inputs}. "
                "It is the same matrix, transposed:"
            ),
            Numbers((Matrix("weight.grad", stored, "l", "k"),)),
            agree("Hᵀδ = the sum of the outer products", story.dw, summed, "index sum"),
            agree("Hᵀδ = ∂J/∂W", story.dw, dw),
            agree("Σₙ δₙₗ = ∂J/∂B", story.db, db),
            agree("δᵀH = weight.grad", stored, dw.mT),
        ),
    )


def _zeros(elsewhere: int, numbers: int) -> list[Block]:
    if not elsewhere:
        return [Text("With one output there is one slice, and no zero in it need be. The chain rule of one variable:")]
    return [
        Text(
            f"{count(elsewhere, 'number')} of the {numbers:,} are zero whatever the numbers of the network are: a "
            "weight of column l does not reach output i unless i = l. The chain rule of one variable gives the "
            "others:"
        )
    ]


def _row_cost(story: Story, z: Tensor, n: int) -> Tensor:
    """Return J for another z (D_out,) of row n."""
    net = story.network
    y = net.y.clone()
    y[n] = net.f.f(z)
    return net.cost_of(y)


def _column(matrix: Tensor, l: int) -> Tensor:  # noqa: E741
    mark = torch.zeros_like(matrix, dtype=torch.bool)
    mark[:, l] = True
    return mark


def _between(sign: str, parts: list[Part]) -> list[Part | str]:
    return [each for part in parts for each in (sign, part)][1:]
