"""The words of the page: every symbol is told before it is used, and the question's own formulas are there."""

import re

import pytest

from manual_mlp.explain import draw_network, explain
from manual_mlp.explain.terminal import render

# Each symbol, and the words that tell it. Where a symbol stands by itself earlier, these words are in the same line.
TOLD = {
    "H": "A layer takes a row of numbers H",
    "Y": "and makes a row Y",
    "W": "the weights: Wₖₗ says how much input k counts for output l",
    "k": "input k counts",
    "l": "for output l",
    "B": "the biases, one for each output",
    "HW": "their matrix product: for each l multiply",
    "Z": "short for HW + B",
    "f": "a function of one number, used on each entry by itself",
    "Y*": "what Y should be",
    "f′": "the slope of f: how fast",
    "J": "the cost, one number: how far",
    "∂J/∂B": "how fast J changes if one entry of B is nudged",
    "∂J/∂W": "the same for each entry of W and of Y",
    "∗": "entry by entry: multiply what stands in the same place",
    "⊙": "entry by entry: multiply what stands in the same place",
    "Hᵀ": "H transposed: its row stood up as a column",
    "Σᵢ": "add up what follows, for every i",
    "i": "for every i",
    "δ": "short for ∂J/∂Y ⊙ f′(Z)",
    "σ": "the sigmoid, 1/(1 + exp(−z)) at z",
    "exp": "exp(x) is e to the power x",
    "ln": "and ln undoes it",
    "n": "All rows n at once",
    "ε": "by a tiny ε",
    "Iᵢₗ": "Iᵢₗ is 1 if i and l are the same number, else 0",
    "δᵢₗ": "Proofs write it δᵢₗ",
    "δⱼₖ": "The first, δⱼₖ, removes the sum over j",
    "∂J/∂Y": "the same for each entry of W and of Y",
    "N": "Dividing by N, the number of rows",
    "U": "each its own way: Y + εU, with any U",
    "ΔJ": "this is how far J really moves, ΔJ",
    "θ": "one knob θ, any weight or bias",
    "Jacobian": "All derivatives of one array by another are called a Jacobian",
    "⟨A, D⟩": "add all. Write ⟨A, D⟩ for that",
    "X": "with data X of",
    "V": "a weight V",
    "C": "and a bias C",
    "γ": "Call its δ by another letter, γ",
    "η": "to θ − η ∂J/∂θ. With η =",
    "S": "It turns a row S into shares p",
    "p": "into shares p that add up to 1",
    "t": "Write t for the row that is 1 at the right class",
}
# Those that the question's formulas use before the table that tells all of their signs.
ASKED = {"Y", "H", "f", "HW", "B", "W", "J", "∂J/∂B", "∂J/∂W", "Y*", "∗", "f′", "Hᵀ"}


@pytest.fixture(scope="module")
def said():
    """The steps as one line, without the head of questions."""
    text = render(explain(draw_network()), 10_000)
    return " ".join(text[text.index("0. The question") :].split())


@pytest.mark.parametrize("symbol", TOLD)
def test_every_symbol_is_told_before_it_is_used(said, symbol):
    told = said.index(TOLD[symbol])
    used = re.search(rf"(?<![\w∂/′]){re.escape(symbol)}(?![\w*′ᵀ])", said)
    begin = said.index("First, what each sign means") if symbol in ASKED else 0
    first = re.compile(rf"(?<![\w∂/′]){re.escape(symbol)}(?![\w*′ᵀ])").search(said, begin)
    assert used
    # The sign itself stands in front of its line of the table, and other signs may be told with its help.
    assert told - first.start() < 120 or symbol in ("δ", "i", "n", "N"), (
        symbol,
        said[first.start() - 40 : first.start() + 80],
    )


def test_the_list_has_every_letter_that_the_page_uses(said):
    letters = set(re.findall(r"(?<![\w.])[A-Za-zΑ-Ωα-ω](?![\w.])", said)) - set("asAIDezxjm")
    assert letters <= set(TOLD) | {"E"}, letters - set(TOLD)


def test_the_three_lines_in_front_have_no_symbols():
    from manual_mlp.explain.page import _ANSWER

    assert len(_ANSWER) == 3
    for line in _ANSWER:
        assert not re.search(r"[∂δΣ⊙∗′ᵀ=]|\b[A-Z]\b(?<!A)", line)


def test_the_story_begins_with_one_row_and_the_questions_own_formulas(said):
    for formula in ("∂J/∂B = (Y − Y*) ∗ f′(HW + B)", "∂J/∂W = Hᵀ((Y − Y*) ∗ f′(HW + B))"):
        assert said.index(formula) < 400
    assert "A layer takes a row of numbers H" in said[:120]
