"""Steps 3 to 5: ∂Y/∂B and ∂Y/∂W written out in full, for one row, and then a batch."""

from __future__ import annotations

from dataclasses import replace

from manual_mlp.explain.blocks import Fold, Formula, Numbers, Part, Step, Table, Text, Tiles
from manual_mlp.explain.story import Story
from manual_mlp.explain.writing import count, low

_SHOWN = 4  # matrices of a family


def bias(story: Story) -> Step:
    """Step 3: ∂Y/∂B in full is diagonal, so that the sum leaves a Hadamard product."""
    s, l, outputs = story, story.looked_at[2], story.network.shape[2]  # noqa: E741
    killed = (
        "With one output there is one term, and nothing to remove."
        if outputs == 1
        else "The zeros of I have removed all terms but that of i = l."
    )
    return Step(
        3,
        "∂Y/∂B in full",
        (
            s.text(
                f"Row {{r + 1:whole}} alone. Each entry of Y may depend on each of B: {outputs}·{outputs} derivatives, "
                "a matrix that holds `∂Yᵢ/∂Bₗ` in row i, column l. All derivatives of one array by another are called "
                "a Jacobian."
            ),
            Numbers(
                (
                    s.matrix("∂Y/∂B", "diag(row(S, r))", "i", "l", "I"),
                    ": row i is",
                    s.matrix("f′(Z)", "row(S, r).T", "i", ""),
                    "times row i of",
                    s.matrix("I", "I", "i", "l", "I"),
                )
            ),
            Tiles(
                "The Jacobian of an entrywise f, and the identity matrix: both are diagonal.",
                (s.tile("∂Y/∂B", "diag(row(S, r))", ("i", "l")), "", s.tile("I", "I", ("i", "l"))),
            ),
            Text(
                "It is diagonal, because f works entry by entry, and a bias reaches one output. So is `δᵢₖ` in a proof "
                "an identity matrix? Yes: one entry of it at a time."
            ),
            Formula("∂Yᵢ/∂Bₗ = f′(Zᵢ) Iᵢₗ"),
            Text("Now the chain rule of step 2: sum over i."),
            Formula("∂J/∂Bₗ = Σᵢ ∂J/∂Yᵢ f′(Zᵢ) Iᵢₗ = ∂J/∂Yₗ f′(Zₗ)"),
            s.text(
                f"For l = {l + 1}, with `∂J/∂Yᵢ f′(Zᵢ)` first and `Iᵢₗ` second in each term: "
                f"{{pair(row(dY * S, r), row(I, l)):terms}}. {killed} For all l together, a row times a diagonal "
                "matrix is an entrywise product, and that is all there is to it:"
            ),
            Numbers(
                (
                    s.matrix("∂J/∂Y", "row(dY, r)", "", "i"),
                    "·",
                    s.matrix("∂Y/∂B", "diag(row(S, r))", "i", "l", "I"),
                    "=",
                    s.matrix("∂J/∂B of the row", "row(dY, r) @ diag(row(S, r))", "", "l"),
                )
            ),
            Text(
                "Its name is δ: how much J minds each entry of Z. A bias is added to Z as it is, so for one row ∂J/∂Z "
                "and ∂J/∂B are the same."
            ),
            Formula("δ = ∂J/∂Z = ∂J/∂Y ⊙ f′(Z)", "B1"),
            Numbers(
                (
                    s.matrix("∂J/∂Y", "row(dY, r)", "", "l"),
                    "⊙",
                    s.matrix("f′(Z)", "row(S, r)", "", "l"),
                    "=",
                    s.matrix("δ", "row(delta, r)", "", "l"),
                )
            ),
            s.slope("f′(Zᵢ) Iᵢₗ = ∂Y/∂B", "diag(row(S, r))" if outputs > 1 else "row(S, r)", "row(Y, r)", "B"),
            s.same(
                "δ of the row = the sum over i", "row(delta, r)", "row(dY_, r) @ diag(row(S, r))", "the full matrix"
            ),
            s.slope("δ = ∂J/∂Z", "delta", "J", "Z"),
        ),
    )


def weight(story: Story) -> Step:
    """Step 4: ∂Y/∂W in full is mostly zeros; contracted with ∂J/∂Y it leaves an outer product."""
    s, (_, k, l) = story, story.looked_at  # noqa: E741
    _, inputs, outputs = story.network.shape
    all_of_them, elsewhere = inputs * outputs**2, inputs * outputs * (outputs - 1)
    slices = [(f"∂Y{low(i)}/∂W", f"(row(H, r).T @ row(I, {i})) * row(S, r)") for i in range(min(_SHOWN, outputs))]
    zeros = (
        f"{elsewhere:,} of the {all_of_them:,} are zero whatever the numbers of the network are: a weight of column l "
        "does not reach output i unless i = l. The chain rule of one variable gives the others:"
        if elsewhere
        else "With one output there is one slice, and no zero in it need be. The chain rule of one variable:"
    )
    everything = "row(S, r).T * kron(row(H, r), I)"
    return Step(
        4,
        "∂Y/∂W in full",
        (
            s.text(
                f"Row {{r + 1:whole}} again. Each entry of Y may depend on each of W: {outputs}·{inputs}·{outputs} = "
                f"{count(all_of_them, 'number')} with three indices, i, k and l. Here they are, a matrix for each i:"
            ),
            Numbers(
                tuple(s.matrix(name, text, "k", "l", f"abs({text})") for name, text in slices)
                + (("…",) if outputs > _SHOWN else ())
            ),
            Tiles(
                "Of slice i only column i can be other than zero. It is f′(Zᵢ) times H.",
                tuple(s.tile(name, text, ("k", "l")) for name, text in slices),
            ),
            Text(zeros),
            Formula("∂Yᵢ/∂Wₖₗ = f′(Zᵢ) Hₖ Iᵢₗ"),
            Text("Now the chain rule: for each k and l multiply by `∂J/∂Yᵢ` and sum over i."),
            Formula("∂J/∂Wₖₗ = Σᵢ ∂J/∂Yᵢ f′(Zᵢ) Hₖ Iᵢₗ = Hₖ δₗ"),
            s.text(
                f"For k = {k + 1} and l = {l + 1}, with `∂J/∂Yᵢ` first: "
                "{pair(row(dY, r), row(S, r) * row(I, l) * at(H, r, k)):terms}. And `Hₖ δₗ` is "
                "{pair(at(H, r, k), at(delta, r, l)):terms}."
            ),
            Text(
                "Nothing is left to sum: each entry of H times each entry of δ, an outer product. To write it as a "
                "matrix product, k must number rows. H is a row, so stand it up: that is `Hᵀ`, and this is all the "
                "transpose does. So `∂Y/∂W` does not “become” `Hᵀ`. It is the array above, and `Hᵀδ` is what remains "
                "when ∂J/∂Y has been multiplied in and its zeros have dropped out."
            ),
            Formula("∂J/∂W = Hᵀ δ", "B3"),
            Numbers(
                (
                    s.matrix("Hᵀ", "row(H, r).T", "k", ""),
                    "·",
                    s.matrix("δ", "row(delta, r)", "", "l"),
                    "=",
                    s.matrix("∂J/∂W of this row", "dWr", "k", "l"),
                )
            ),
            s.slope("f′(Zᵢ) Hₖ Iᵢₗ = ∂Y/∂W", everything if outputs > 1 else f"({everything}).T", "row(Y, r)", "W"),
            s.same("Hᵀδ of the row = the sum over i", "flat(dWr)", f"row(dY_, r) @ ({everything})", "the full array"),
            s.slope("Hᵀδ of the row = ∂J/∂W of this row alone", "dWr", "J(row(Y, r), row(T, r))", "W"),
        ),
    )


def batch(story: Story) -> Step:
    """Step 5: over a batch the outer products add up."""
    s = story
    rows, inputs, outputs = s.network.shape
    outer = [f"row(H, {n}).T @ row(delta, {n})" for n in range(_SHOWN)]
    return Step(
        5,
        "A batch",
        (
            s.text(
                "Now the whole batch, {rows(H):row}, counted by n. One W serves them all, so the chain rule sums over "
                "the rows too. Each adds its outer product:"
            ),
            Formula("∂J/∂Wₖₗ = Σₙ Hₙₖ δₙₗ = (Hᵀ δ)ₖₗ", "B3"),
            s.when(f"rows(H) > {_SHOWN}", f"The first {_SHOWN} rows are shown. The sum has all of them:"),
            Numbers(
                (
                    *_between(
                        [_from(n + 1, s.matrix(f"row {n + 1}", text, "k"), rows) for n, text in enumerate(outer)]
                    ),
                    "=",
                    s.matrix("the sum", "H.T @ delta_", "k"),
                )
            ),
            Tiles(
                "An outer product of each row, and their sum.",
                (
                    *_between([_from(n + 1, s.tile(f"row {n + 1}", text), rows) for n, text in enumerate(outer)]),
                    "=",
                    s.tile("the sum", "H.T @ delta_"),
                ),
            ),
            s.text(
                "A matrix product does this adding by itself: it sums over the index where its factors meet. In `Hᵀδ`, "
                "{H.T:shape} times {delta_:shape}, that is n; in `HW` it was k. So a transpose brings the index to be "
                "summed to the middle. And this is why it is a matrix product: not with ∂J/∂Y itself, but with `δ = "
                "∂J/∂Y ⊙ f′(Z)`."
            ),
            Numbers((s.matrix("Hᵀ", "H.T", "k", "n"), "·", s.matrix("δ", "delta"), "=", s.matrix("∂J/∂W", "dW", "k"))),
            Text(
                "B is a weight whose input is always 1. Put 1 for `Hₙₖ`: its derivative is the sum of δ over the rows. "
                "For a single row that is δ, the textbook's formula."
            ),
            Formula("∂J/∂Bₗ = Σₙ δₙₗ", "B4"),
            Numbers((s.matrix("∂J/∂B", "dB", ""),)),
            Fold(
                "The same in PyTorch",
                (
                    Text("PyTorch stores the weight the other way round, as `Wᵀ`, and so its derivative:"),
                    Table(
                        ("", "textbook", "shape", "PyTorch", "shape"),
                        (
                            ("input", "H", s.say("{H:shape}"), "input", s.say("{H:shape}")),
                            ("weight", "W", f"{inputs}×{outputs}", "weight", f"{outputs}×{inputs}"),
                            ("bias", "B", f"1×{outputs}", "bias", f"{outputs}"),
                            (
                                "its derivative",
                                "∂J/∂W = Hᵀδ",
                                f"{inputs}×{outputs}",
                                "weight.grad = δᵀH",
                                f"{outputs}×{inputs}",
                            ),
                        ),
                    ),
                    Numbers((s.matrix("weight.grad", "G", "l", "k"),)),
                ),
            ),
            s.same("Hᵀδ = the sum of the outer products", "dW", "H.T @ delta_", "index sum"),
            s.slope("Hᵀδ = ∂J/∂W", "dW", "J", "W"),
            s.slope("Σₙ δₙₗ = ∂J/∂B", "dB", "J", "B"),
            s.slope("δᵀH = weight.grad", "G", "J(f(H @ Wt.T + B), T)", "Wt"),
        ),
    )


def _from(when: int, part: Part, rows: int) -> Part:
    return replace(part, when=when, shown=when <= rows)


def _between(parts: list[Part]) -> list[Part | str]:
    return [each for part in parts for each in ("+", part)][1:]
