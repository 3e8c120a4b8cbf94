"""The words of the page: every symbol is told before it is used, and the question's own formulas are there."""

import re

import pytest

from faces import lines, tree
from manual_mlp.explain import Network, draw_network, explain
from manual_mlp.explain.page import _ANSWER
from shown import words

# Each symbol, and the words that tell it: nothing on the page uses it before these words begin.
TOLD = {
    "H": "H the row that enters",
    "k": "Hₖ is number k",
    "W": "W the weights: Wₖₗ says",
    "l": "Wₖₗ says how much input k counts for output l",
    "B": "B the biases, one for each output",
    "HW": "HW their matrix product: for each l multiply",
    "f": "f a function of one number, used on each entry by itself",
    "Z": "Z short for HW + B",
    "Y": "Y f(Z), the row that leaves",
    "Y*": "Y* what Y should be",
    "f′": "f′ the slope of f",
    "z": "how fast f(z) rises at z",
    "J": "J the cost, one number: how far",
    "∂": "∂J/∂B how fast J changes if one entry of B is nudged",
    "∂J/∂B": "∂J/∂B how fast J changes if one entry of B is nudged",
    "∂J/∂W": "∂J/∂W, ∂J/∂Y the same for each entry of W and of Y",
    "∂J/∂Y": "∂J/∂Y the same for each entry of W and of Y",
    "∗": "∗, ⊙ entry by entry: multiply what stands in the same place",
    "⊙": "⊙ entry by entry: multiply what stands in the same place",
    "ᵀ": "Hᵀ H transposed: every row stood up as a column",
    "Σ": "Σᵢ add up what follows, for every i",
    "i": "Σᵢ add up what follows, for every i",
    "δ": "δ short for ∂J/∂Y ⊙ f′(Z)",
    "σ": "σ the sigmoid, 1/(1 + exp(−z)) at z",
    "exp": "exp(−z)) at z; exp(x) is e to the power x",
    "x": "exp(x) is e to the power x",
    "e": "e to the power x",
    "ln": "and ln undoes it",
    "n": "All rows n at once",
    "ε": "by a tiny ε, and leave all else alone",
    "Δ": "How far did each entry of Z move, divided by ε?",
    "I": "Iᵢₗ is 1 if i and l are the same number, else 0",
    "j": "Zᵢ = Σⱼ Hⱼ Wⱼᵢ + Bᵢ",
    "δᵢₗ": "Proofs write its entries δᵢₗ, whatever the letters, the Kronecker delta",
    "U": "each its own way: Y + εU, with any U",
    "ΔJ": "this is how far J really moves, ΔJ",
    "θ": "one knob θ, any weight or bias",
    "∂Y/∂B": "a matrix that holds ∂Yᵢ/∂Bₗ in row i, column l",
    "∂Y/∂W": "Each entry of Y may depend on each of W",
    "∂J/∂Z": "δ: how much J minds each entry of Z",
    "⟨": "multiply the entries that stand in the same place and add all. Write ⟨A, D⟩ for that",
    "D": "Write ⟨A, D⟩ for that",
    "∂J/∂H": "An entry Hₙₖ reaches every output of its row",
    "X": "H = f(XV + C), with data X of",
    "V": "V + C), with data X of",
    "C": "C), with data X of",
    "m": "counted by m, a weight V and a bias C",
    "γ": "Call its δ by another letter, γ",
    "η": "to θ − η ∂J/∂θ, where η says how far",
    "S": "It turns a row S into shares p that add up to 1",
    "p": "shares p that add up to 1",
    "t": "Write t for the row that is 1 at the right class",
    "N": "Dividing by N, the number of rows",
}
INDICES = dict(zip("ijklnm", "ᵢⱼₖₗₙₘ", strict=True))
UNUSED = {"σ", "ln", "e", "x", "D"}  # that tell others, or are told for other activations and losses


def spaced(text):
    """A pattern of the text, however it is spaced."""
    return r"\s*".join(map(re.escape, text.replace(" ", "")))


def used(symbol):
    """A pattern of a symbol where it is used."""
    if re.fullmatch("[A-Za-z]+", symbol):
        alone = r"(?<![A-Za-z0-9'’.])" + r"\s?".join(symbol) + r"(?![A-Za-z0-9*])"
        return f"{alone}|{INDICES[symbol]}" if symbol in INDICES else alone
    return r"[₀-₉ᵢₖₗₙ]*\s*".join(map(re.escape, symbol))


def read(network):
    """The page's steps and what stands below them, line by line, from where the question's signs are told."""
    main = tree(explain(network).html()).find(".//main")
    sections = [section for section in main.findall("section") if section.get("id") != "questions"]
    said = " \n ".join(filter(None, (line for section in sections for line in lines(section))))
    return said[said.index("First, what each sign means:") :]


@pytest.fixture(scope="module")
def said():
    return read(draw_network())


def first_use(symbol, said):
    return re.search(used(symbol), said).start()


@pytest.mark.parametrize("symbol", TOLD)
def test_every_symbol_is_told_before_it_is_used(said, symbol):
    told = re.search(spaced(TOLD[symbol]), said)
    assert told, f"nothing says {TOLD[symbol]!r}"
    early = said[: told.start()]
    use = re.search(used(symbol), early)
    assert not use, early[max(0, use.start() - 60) : use.end() + 60]
    assert symbol in UNUSED or re.search(used(symbol), said[told.end() :]), "told, and never used"


@pytest.mark.parametrize(
    ("network", "more"),
    [
        (lambda: draw_network(loss="cross-entropy"), {"p": "A softmax turns a row into shares p"}),
        (lambda: draw_network(loss="binary-cross-entropy"), {"p": "p = sigmoid(Y) is its share of yes"}),
        (lambda: draw_network(1, 1, 1), {}),
        (lambda: draw_network(12, 11, 9, "relu"), {}),
        (lambda: Network.of_layer([[0.5, 0.6, 0.8]], [[0.1], [-0.9], [0.8]], [-0.1], [[1.0]], "tanh"), {}),
    ],
    ids=["cross-entropy", "binary-cross-entropy", "one of each", "many", "H given"],
)
def test_so_it_is_for_other_layers(network, more):
    said = read(network())
    early = {}
    for symbol, phrase in (TOLD | more).items():
        told, use = re.search(spaced(phrase), said), re.search(used(symbol), said)
        if use and not (told and told.start() <= use.start()):
            early[symbol] = said[max(0, use.start() - 40) : use.end() + 40]
    assert early == {}


def test_the_list_has_every_letter_that_the_page_uses(said):
    letters = set(re.findall(r"(?<![A-Za-z0-9'’.])[A-Za-z](?![A-Za-z0-9])|[Α-Ωα-ω∂]", said))
    assert letters - {"a", "A"} <= set(TOLD), letters - set(TOLD)
    assert not set(re.findall("[ₐ-ₜᵢ-ᵥ]", said)) - set(INDICES.values())


def test_the_three_lines_in_front_have_no_symbols(written):
    shown = ["".join(item.itertext()) for item in tree(written).findall(".//header/ol/li")]
    assert shown == list(_ANSWER)
    assert len(shown) == 3
    for line in shown:
        assert re.fullmatch(r"[A-Za-z ,.:']+", line), line
        assert set(re.findall(r"\b[A-Za-z]\b", line)) <= {"a", "A", "s"}, line


def test_the_story_begins_with_one_row_and_the_questions_own_formulas(written, steps):
    first = tree(written).find(".//section[@id='step-0']/details")
    asked = [line for line in lines(first) if line]
    assert asked[0].startswith("A layer takes a row of numbers H")
    formulas = ["Y = f(HW + B)", "∂J/∂B = (Y − Y*) ∗ f′(HW + B)", "∂J/∂W = Hᵀ((Y − Y*) ∗ f′(HW + B))"]
    for found, formula in zip(asked[1:4], formulas, strict=True):
        assert re.fullmatch(spaced(formula), found)
    assert "Why entry by entry? Why a transpose?" in words(steps[0])
