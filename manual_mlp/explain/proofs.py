"""The short proofs of the tags, as data, in the notation of the page. The long ones stand in docs/derivation.md."""

from __future__ import annotations

from dataclasses import dataclass

from manual_mlp.explain.blocks import Formula, Text


@dataclass(frozen=True)
class Proof:
    """Hold the proof of a tag.

    Attributes:
        tag: as in docs/derivation.md.
        title: what is proved, in a few words.
        lines: the proof; the last one says where the long one stands.
    """

    tag: str
    title: str
    lines: tuple[Text | Formula, ...]


PROOFS: tuple[Proof, ...] = (
    Proof(
        "F1",
        "`Z = HW + B`, and its derivatives",
        (
            Text(
                "This is a definition. Entry (n, i) of `HW` is row n of H times column i of W, and B is added to every "
                "row. So the same with its entries:"
            ),
            Formula("Zₙᵢ = Σⱼ Hₙⱼ Wⱼᵢ + Bᵢ"),
            Text(
                "Take the derivative of each term. Entries of W are different knobs, so `∂Wⱼᵢ/∂Wₖₗ` is 1 if j = k and "
                "i = l, else 0, which is `Iⱼₖ Iᵢₗ`. It is the same for H and B. `Iⱼₖ` leaves one term of the sum, that "
                "with j = k:"
            ),
            Formula("∂Zₙᵢ/∂Wₖₗ = Σⱼ Hₙⱼ Iⱼₖ Iᵢₗ = Hₙₖ Iᵢₗ,   ∂Zₙᵢ/∂Bₗ = Iᵢₗ,   ∂Zₙᵢ/∂Hₙₖ = Σⱼ Iⱼₖ Wⱼᵢ = Wₖᵢ"),
            Text("The long proof: section 2 of docs/derivation.md."),
        ),
    ),
    Proof(
        "F2",
        "`Y = f(Z)`, and its derivative",
        (
            Text("This is a definition: f is a function of one number, and takes each entry by itself:"),
            Formula("Yₙᵢ = f(Zₙᵢ)"),
            Text(
                "If i = l, the derivative of this by `Zₙₗ` is the slope of f. If not, `Zₙₗ` does not occur in it, and "
                "the derivative is 0. With I for the two cases:"
            ),
            Formula("∂Yₙᵢ/∂Zₙₗ = f′(Zₙᵢ) Iᵢₗ"),
            Text("The long proof: section 2 of docs/derivation.md."),
        ),
    ),
    Proof(
        "B1",
        "`δ = ∂J/∂Y ⊙ f′(Z)`",
        (
            Text(
                "δ is the name of ∂J/∂Z. `Zₙₗ` reaches J through the outputs of its row n alone, so the chain rule "
                "adds up these, and its second factor is known by F2:"
            ),
            Formula("∂J/∂Zₙₗ = Σᵢ ∂J/∂Yₙᵢ · ∂Yₙᵢ/∂Zₙₗ = Σᵢ ∂J/∂Yₙᵢ · f′(Zₙᵢ) Iᵢₗ"),
            Text("`Iᵢₗ` is 0 in every term but the one with i = l:"),
            Formula("δₙₗ = ∂J/∂Yₙₗ · f′(Zₙₗ)"),
            Text(
                "Entry times entry in the same place, and no sum: that is the entrywise product, `δ = ∂J/∂Y ⊙ f′(Z)`. "
                "The long proof: section 4 of docs/derivation.md."
            ),
        ),
    ),
    Proof(
        "B2",
        "`∂J/∂H = δ Wᵀ`",
        (
            Text(
                "`Hₙₖ` reaches J through all entries of row n of Z. The chain rule adds them up. `∂J/∂Zₙᵢ` is `δₙᵢ` by "
                "its name, and `∂Zₙᵢ/∂Hₙₖ` is `Wₖᵢ` by F1:"
            ),
            Formula("∂J/∂Hₙₖ = Σᵢ ∂J/∂Zₙᵢ · ∂Zₙᵢ/∂Hₙₖ = Σᵢ δₙᵢ Wₖᵢ"),
            Text(
                "There is no I, so the sum stays. A matrix product adds up the second letter of its left factor and "
                "the first of its right one. In `Wₖᵢ` the letter i is the second, so W is transposed:"
            ),
            Formula("Σᵢ δₙᵢ Wₖᵢ = Σᵢ δₙᵢ (Wᵀ)ᵢₖ = (δ Wᵀ)ₙₖ"),
            Text("The long proof: section 4 of docs/derivation.md, and section 5 for a batch."),
        ),
    ),
    Proof(
        "B3",
        "`∂J/∂W = Hᵀ δ`",
        (
            Text(
                "`Wₖₗ` serves every row, so the chain rule adds up all entries of Z. `∂J/∂Zₙᵢ` is `δₙᵢ` by its name, "
                "and `∂Zₙᵢ/∂Wₖₗ` is `Hₙₖ Iᵢₗ` by F1. Then I leaves one term of the sum over i, that with i = l:"
            ),
            Formula("∂J/∂Wₖₗ = Σₙ Σᵢ ∂J/∂Zₙᵢ · ∂Zₙᵢ/∂Wₖₗ = Σₙ Σᵢ δₙᵢ Hₙₖ Iᵢₗ = Σₙ Hₙₖ δₙₗ"),
            Text(
                "The sum over the rows stays. A matrix product adds up the second letter of its left factor, and in "
                "`Hₙₖ` the letter n is the first, so H is transposed:"
            ),
            Formula("Σₙ Hₙₖ δₙₗ = Σₙ (Hᵀ)ₖₙ δₙₗ = (Hᵀ δ)ₖₗ"),
            Text("The long proof: section 4 of docs/derivation.md, and section 5 for a batch."),
        ),
    ),
    Proof(
        "B4",
        "`∂J/∂B = Σₙ δₙ`",
        (
            Text(
                "`Bₗ` serves every row, so the chain rule adds up all entries of Z. `∂J/∂Zₙᵢ` is `δₙᵢ` by its name, "
                "and `∂Zₙᵢ/∂Bₗ` is `Iᵢₗ` by F1, which leaves the terms with i = l:"
            ),
            Formula("∂J/∂Bₗ = Σₙ Σᵢ ∂J/∂Zₙᵢ · ∂Zₙᵢ/∂Bₗ = Σₙ Σᵢ δₙᵢ Iᵢₗ = Σₙ δₙₗ"),
            Text(
                "For one row this is δ itself. The long proof: section 4 of docs/derivation.md, and section 5 for a "
                "batch."
            ),
        ),
    ),
    Proof(
        "O1",
        "`δ = (Y − Y*) ⊙ f′(Z)`, for the squared error",
        (
            Text(
                "Let J be half the sum of all squared differences `Y − Y*`, and move `Yₙₗ` alone. One square contains "
                "it. The derivative of a square is twice what is squared, times the derivative of that, which is 1 "
                "here, as `Y*` does not move:"
            ),
            Formula("∂J/∂Yₙₗ = ½ · 2 (Yₙₗ − Y*ₙₗ) = Yₙₗ − Y*ₙₗ"),
            Text("Put this into B1:"),
            Formula("δ = ∂J/∂Y ⊙ f′(Z) = (Y − Y*) ⊙ f′(Z)"),
            Text("The long proof: section 9 of docs/derivation.md."),
        ),
    ),
    Proof(
        "O2",
        "`p − t`, for a softmax and the cross-entropy",
        (
            Text(
                "Take one row. S enters the softmax, `pᵢ = exp(Sᵢ) / Σⱼ exp(Sⱼ)`, and J is minus the sum of all "
                "`tᵢ ln(pᵢ)`, where t adds up to 1. The logarithm of a quotient is a difference, and what does not "
                "contain i comes out of the sum with the factor `Σᵢ tᵢ`, which is 1:"
            ),
            Formula("J = −Σᵢ tᵢ (Sᵢ − ln(Σⱼ exp(Sⱼ))) = ln(Σⱼ exp(Sⱼ)) − Σᵢ tᵢ Sᵢ"),
            Text(
                "Take the derivative by `Sₗ`. The slope of ln is 1 over its argument, of whose terms only `exp(Sₗ)` "
                "moves, and exp is its own slope. In the last sum `∂Sᵢ/∂Sₗ` is `Iᵢₗ`, which leaves `tₗ`:"
            ),
            Formula("∂J/∂Sₗ = exp(Sₗ) / Σⱼ exp(Sⱼ) − Σᵢ tᵢ Iᵢₗ = pₗ − tₗ"),
            Text(
                "Where S is Z, this is δ. The long proof, which goes by the full Jacobian, and weights and other "
                "options: section 13 of docs/derivation.md."
            ),
        ),
    ),
    Proof(
        "O3",
        "`p − t`, for a sigmoid and the binary cross-entropy",
        (
            Text(
                "Each entry S is by itself: `p = σ(S) = 1 / (1 + exp(−S))`, and `J = −(t ln(p) + (1 − t) ln(1 − p))`. "
                "Since `1 − p` is `exp(−S) / (1 + exp(−S))`, its logarithm is `ln(p) − S`. So `t ln(p)` occurs with "
                "both signs and goes:"
            ),
            Formula("J = −t ln(p) − (1 − t) (ln(p) − S) = (1 − t) S − ln(p) = (1 − t) S + ln(1 + exp(−S))"),
            Text(
                "Take the derivative by S. The slope of ln is 1 over its argument, and that of `exp(−S)` is "
                "`−exp(−S)`. So the second term gives `−(1 − p)`:"
            ),
            Formula("∂J/∂S = (1 − t) − exp(−S) / (1 + exp(−S)) = (1 − t) − (1 − p) = p − t"),
            Text("Where S is Z, this is δ. The long proof, and a weight of the yes: section 13 of docs/derivation.md."),
        ),
    ),
)
