"""Steps 8 and 9: the layer below, and the softmax, whose Jacobian is not diagonal."""

from __future__ import annotations

from manual_mlp.explain.blocks import Formula, Numbers, Step, Text, Tiles
from manual_mlp.explain.story import Story


def below(story: Story) -> Step:
    """Step 8: ∂J/∂H, and the same formulas for the hidden layer."""
    s, width = story, story.network.x.shape[1]
    _, k, _ = s.looked_at
    return Step(
        8,
        "One layer down",
        (
            s.text(
                "An entry `Hₙₖ` reaches every output of its row, by the weights in row k of W. So there is no I in the "
                "chain rule, and the whole sum stays:"
            ),
            Formula("∂J/∂Hₙₖ = Σᵢ δₙᵢ Wₖᵢ = (δ Wᵀ)ₙₖ", "B2"),
            s.text(f"For n = {{r + 1:whole}} and k = {k + 1}: {{pair(row(delta, r), row(W, k)):terms}}."),
            Numbers(
                (
                    s.matrix("δ", "delta", "n", "i"),
                    "·",
                    s.matrix("Wᵀ", "W.T", "i", "k"),
                    "=",
                    s.matrix("∂J/∂H", "dH", "n", "k"),
                )
            ),
            Text(
                "This H did not fall from the sky. It is the output of a hidden layer, `H = f(XV + C)`, with data X of "
                f"{width} numbers a row, counted by m, a weight V and a bias C:"
            ),
            Tiles(
                "The whole network, forward.",
                (s.tile("X", "X"), "→", s.tile("H", "H"), "→", s.tile("Y", "Y"), "→", s.tile("J", "J")),
            ),
            Numbers(
                (s.matrix("X", "X", "n", "m"), "·", s.matrix("V", "V", "m", "k"), "+", s.matrix("C", "C", "", "k"))
            ),
            s.when(
                "linked == 0",
                "H has been given by hand, so X, V and C do not reach J now. The formulas say what would go back to "
                "them.",
            ),
            Text(
                "For the hidden layer ∂J/∂H is what ∂J/∂Y was for the layer above. So the same formulas hold again. "
                "Call its δ by another letter, γ:"
            ),
            Formula("γ = ∂J/∂H ⊙ f′(XV + C)", "B1"),
            Formula("∂J/∂V = Xᵀ γ", "B3"),
            Formula("∂J/∂C = Σₙ γₙ", "B4"),
            Numbers(
                (
                    s.matrix("∂J/∂H", "dH", "n", "k"),
                    "⊙",
                    s.matrix("f′(XV + C)", "S1", "n", "k"),
                    "=",
                    s.matrix("γ", "gamma", "n", "k"),
                )
            ),
            Numbers((s.matrix("∂J/∂V", "dV", "m", "k"), "and", s.matrix("∂J/∂C", "dC", "", "k"))),
            Text(
                "That is the tutorial's whole network. Each layer takes what comes back and makes its δ, then Hᵀδ for "
                "its weight and the sum of δ for its bias, then δWᵀ for the layer below: with more layers this is "
                "repeated, and it is called backpropagation."
            ),
            Text(
                "And this is what it is for: move every parameter θ a little against its derivative, to θ − η ∂J/∂θ, "
                "where η says how far."
            ),
            s.when(
                "linked",
                "With η = {eta} this takes J from {J:6} to {next:6}.",
                s.slope("δWᵀ = ∂J/∂H", "dH", "J", "H"),
                s.slope("Xᵀγ = ∂J/∂V", "dV", "J", "V"),
                s.slope("Σₙ γₙ = ∂J/∂C", "dC", "J", "C"),
            ),
            s.when("linked == 0", s.slope("δWᵀ = ∂J/∂H, with H given", "dH", "J", "H")),
        ),
    )


def softmax(story: Story) -> Step:
    """Step 9: softmax mixes the entries of a row, and what goes back is p − t all the same."""
    s, alone = story, story.network.shape[2] == 1
    second = " It needs a second class to compare with: 0 enters for it." if alone else ""
    full = "diag(row(p, r)) - row(p, r).T @ row(p, r)"
    # A share too small for a number would make 0/0 of what is 1.
    kept = full.replace("row(p, r)", "max(row(p, r), 1e-300)")
    return Step(
        9,
        "The exception that proves it",
        (
            s.text(
                "All this rested on one thing: f works entry by entry, so its Jacobian is diagonal. A softmax does "
                "not. It turns a row S into shares p that add up to 1, and every share depends on every entry."
                f"{second}"
            ),
            s.when("ce", "In step 2 the J of this network put one behind Y, so S is Y."),
            s.when("ce == 0", "Forget f for a moment, and let a softmax stand in its place: S is Z."),
            Formula("pᵢ = exp(Sᵢ) / Σₗ exp(Sₗ)"),
            Numbers(
                (
                    s.matrix("S", "row(E, r)", "", "i"),
                    "→",
                    s.matrix("p", "row(p, r)", "", "i"),
                    "and",
                    s.matrix("∂p/∂S", full, "i", "l"),
                )
            ),
            Tiles(
                "The softmax's Jacobian is full. That of an entrywise f would be diagonal.",
                (
                    s.tile("∂p/∂S", full, ("i", "l")),
                    "",
                    s.tile("its diagonal alone", f"({full}) * diag(row(p, r) / row(p, r))", ("i", "l")),
                ),
            ),
            Formula("∂pᵢ/∂Sₗ = pᵢ (Iᵢₗ − pₗ)"),
            s.text(
                "Now the sum has all its terms. Take the cross-entropy, J = −ln p of the right class. Right is where "
                "`Y*` is largest, here class {choice(row(t, r)) + 1:whole}. So `∂J/∂p` is {sum(-row(t, r) / row(p, r))}"
                " there, which is −1/p, and 0 elsewhere. Multiply by the matrix and add: p cancels, and what is left "
                "is short again. Write t for the row that is 1 at the right class and 0 elsewhere:"
            ),
            Formula("∂J/∂Sₗ = Σᵢ ∂J/∂pᵢ pᵢ (Iᵢₗ − pₗ) = pₗ − tₗ", "O2"),
            Numbers(
                (
                    s.matrix("p", "row(p, r)", "", "l"),
                    "−",
                    s.matrix("t", "row(t, r)", "", "l"),
                    "=",
                    s.matrix("∂J/∂S", "row(dE, r)", "", "l"),
                )
            ),
            s.when(
                "ce",
                "Where `Y*` is such a row t, this is the ∂J/∂Y of step 2, and from there f takes over.",
            ),
            s.when(
                "ce == 0",
                "This is the δ of a layer that ends in a softmax. From there nothing is new: its ∂J/∂B sums δ, and its "
                "∂J/∂W is Hᵀδ.",
            ),
            s.slope("pᵢ (Iᵢₗ − pₗ) = ∂p/∂S", full, "softmax(Er)", "Er"),
            s.same(
                "p − t of the row = the sum over i",
                "row(dE, r)",
                f"(-row(t, r) / max(row(p, r), 1e-300)) @ ({kept})",
                "the full matrix",
            ),
            s.slope("p − t of all rows = ∂J/∂S of the cross-entropy", "dE", "sum(lse(E) - sum1(t * E))", "E"),
        ),
    )
