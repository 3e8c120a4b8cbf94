"""The short proofs: each formula is computed as it is written, on both sides of each of its signs of equality."""

import itertools
import math
import re
from pathlib import Path
from xml.etree import ElementTree

import pytest
import torch
from torch.autograd.functional import jacobian

import reference
from faces import HIGH, LOW
from manual_mlp.explain import draw_network
from manual_mlp.explain.blocks import Formula, Text
from manual_mlp.explain.mathml import mathml, typeset
from manual_mlp.explain.proofs import PROOFS

DOCUMENT = (Path(__file__).parents[2] / "docs" / "derivation.md").read_text(encoding="utf-8")
TAGS = ("F1", "F2", "B1", "B2", "B3", "B4", "O1", "O2", "O3")
LOSSES = {"O2": "cross-entropy", "O3": "binary-cross-entropy"}
LETTERS = dict(zip("ᵢⱼₖₗₙ", "ijkln", strict=True))
INDICES = "[ᵢⱼₖₗₙ]"
TOKEN = re.compile(
    rf"(?P<slope>∂[A-Z]{INDICES}*/∂[A-Z]{INDICES}*)|(?P<product>\([^()]*\){INDICES}+)|(?P<sum>Σ{INDICES})"
    rf"|(?P<function>(?:exp|ln|f′|f)(?=\())|(?P<name>(?:[A-Z]\*?|[δpt]){INDICES}*)|(?P<number>\d+|½)"
    r"|(?P<sign>[+−·/⊙()])|(?P<gap> +)"
)
FORMULAS = [(p.tag, line.text) for p in PROOFS for line in p.lines if isinstance(line, Formula)]


class Numbers:
    """The numbers of a proof: forward by the textbook's sums, every slope by autograd."""

    def __init__(self, tag):
        net = draw_network(4, 2, 3, "identity" if tag in LOSSES else "sigmoid", LOSSES.get(tag, "squared-error"))
        f = reference.ACTIVATIONS[net.f.name]()
        H, W, B, T = (t.tolist() for t in (net.h, net.w, net.b, net.target))
        stored, ones = reference.transpose(W, len(B)), [[1.0] * len(B)] * len(H)
        Z = [reference.row_z(h, W, B) for h in H]
        slopes = {
            "JZ": jacobian(lambda z: net.cost_of(net.f.f(z)), net.z),
            "JY": jacobian(net.cost_of, net.y),
            "JH": jacobian(lambda h: net.cost(h, net.w, net.b), net.h),
            "JW": jacobian(lambda w: net.cost(net.h, w, net.b), net.w),
            "JB": jacobian(lambda b: net.cost(net.h, net.w, b), net.b),
            "YZ": jacobian(net.f.f, net.z),
            "ZH": jacobian(lambda h: h @ net.w + net.b, net.h),
            "ZW": jacobian(lambda w: net.h @ w + net.b, net.w),
            "ZB": jacobian(lambda b: net.h @ net.w + b, net.b),
        }
        self.slopes = {name: slope.tolist() for name, slope in slopes.items()}
        self.slopes["JS"] = self.slopes["JZ"]
        self.names = {"H": H, "W": W, "B": B, "Z": Z, "S": Z, "Y*": T, "t": T, "δ": self.slopes["JZ"]}
        self.names["Y"] = [reference.row_forward(h, W, B, f) for h in H]
        if tag == "O2":
            self.names["p"] = [reference.softmax(z) for z in Z]
            self.names["J"] = reference.layer_cross_entropy(H, stored, B, T)[0]
        if tag == "O3":
            self.names["p"] = [[1 / (1 + math.exp(-z)) for z in row] for row in Z]
            self.names["J"] = reference.layer_binary_cross_entropy(H, stored, B, T, ones, ones[0])[0]
        self.functions = {"exp": math.exp, "ln": math.log, "f": f.f, "f′": f.df}
        rows, inputs, outputs = net.shape
        self.ranges = {"n": rows, "k": inputs, "j": outputs if tag == "O2" else inputs, "i": outputs, "l": outputs}

    def matrix(self, name):
        found = self.names[name.removesuffix("ᵀ")]
        return reference.transpose(found, len(found[0])) if name.endswith("ᵀ") else found


class Reader:
    """Read one side of a formula, and compute it by loops.

    Args:
        left_out: the letters that number what the formula writes without them.
    """

    def __init__(self, text, numbers, left_out):
        self.tokens = [(found.lastgroup, found[0]) for found in TOKEN.finditer(text) if found.lastgroup != "gap"]
        assert "".join(part for _, part in self.tokens).replace(" ", "") == text.replace(" ", "")
        self.numbers, self.left_out = numbers, left_out

    def indices(self, written):
        return self.left_out + "".join(LETTERS[sign] for sign in written if sign in LETTERS)

    def next_is(self, *signs):
        return bool(self.tokens) and self.tokens[0][1] in signs

    def expression(self):
        minus = [self.next_is("−") and bool(self.tokens.pop(0))]
        terms = [self.term()]
        while self.next_is("+", "−"):
            minus.append(self.tokens.pop(0)[1] == "−")
            terms.append(self.term())
        return lambda at: math.fsum(-t(at) if m else t(at) for m, t in zip(minus, terms, strict=True))

    def term(self):
        over, under = [self.factor()], []
        while self.tokens and not self.next_is("+", "−", ")"):
            side = under if self.next_is("/") else over
            if self.next_is("/", "·", "⊙"):
                self.tokens.pop(0)
            side.append(self.factor())
        return lambda at: math.prod(f(at) for f in over) / math.prod(f(at) for f in under)

    def factor(self):
        kind, text = self.tokens.pop(0)
        letters = [LETTERS[sign] for sign in text if sign in LETTERS]
        if kind == "sum":
            term = self.term()
            (letter,), size = letters, self.numbers.ranges[letters[0]]
            return lambda at: math.fsum(term({**at, letter: i}) for i in range(size))
        if kind == "product":
            return self.product(text[1:].partition(")")[0].split(), letters)
        if kind == "slope":
            of, by = text.replace("∂", "").split("/")
            places = ("" if of == "J" else self.indices(of)) + self.indices(by)
            return lambda at: entry(self.numbers.slopes[of[0] + by[0]], [at[i] for i in places])
        if kind == "number":
            return lambda at: 0.5 if text == "½" else float(text)
        if text.startswith("I"):
            return lambda at: reference.kronecker(*(at[i] for i in letters))
        if kind == "name":
            name = text.rstrip("".join(LETTERS))
            return lambda at: entry(self.numbers.names[name], [at[i] for i in self.indices(text)])
        if kind == "function":
            self.tokens.pop(0)
        else:
            assert text == "("
        inside = self.expression()
        assert self.tokens.pop(0)[1] == ")"
        function = self.numbers.functions[text] if kind == "function" else float
        return lambda at: function(inside(at))

    def product(self, names, letters):
        """An entry of a product of matrices."""
        first, *rest = map(self.numbers.matrix, names)
        for matrix in rest:
            inner = range(len(matrix))
            first = [[math.fsum(row[m] * matrix[m][c] for m in inner) for c in range(len(matrix[0]))] for row in first]
        return lambda at: entry(first, [at[i] for i in letters])


def entry(values, places):
    for place in places:
        values = values[place]
    return values


def claims(tag, formula):
    """Compute all sides of a formula, for all values of its letters."""
    numbers = Numbers(tag)
    for equation in formula.split(",   "):
        written = {LETTERS[sign] for sign in equation if sign in LETTERS}
        left_out = {"O2": "n", "O3": "nl"}.get(tag, "" if written else "nl")
        bound = {LETTERS[sign] for sign in re.findall(f"Σ({INDICES})", equation)}
        free = sorted((written - bound) | set(left_out))
        readers = [Reader(side, numbers, left_out) for side in equation.split(" = ")]
        sides = [reader.expression() for reader in readers]
        assert not any(reader.tokens for reader in readers)
        for values in itertools.product(*(range(numbers.ranges[letter]) for letter in free)):
            yield [side(dict(zip(free, values, strict=True))) for side in sides]


@pytest.mark.parametrize(("tag", "formula"), FORMULAS)
def test_every_equality_of_a_proof_holds_on_drawn_numbers(tag, formula):
    found = list(claims(tag, formula))
    assert found
    for first, *others in found:
        assert others
        assert others == pytest.approx([first] * len(others), rel=1e-9, abs=1e-12)


@pytest.mark.parametrize(
    ("tag", "formula"),
    [
        ("F1", "∂Zₙᵢ/∂Hₙₖ = Σⱼ Iⱼₖ Wⱼᵢ = Wₖₗ"),
        ("B1", "δₙₗ = ∂J/∂Yₙₗ"),
        ("B2", "Σᵢ δₙᵢ Wₖᵢ = Σᵢ δₙᵢ"),
        ("B3", "Σₙ Hₙₖ δₙₗ = (Hᵀ δ)ₖₗ + 1"),
        ("B4", "∂J/∂Bₗ = Σₙ Σᵢ δₙᵢ"),
        ("O1", "δ = Y − Y*"),
        ("O2", "∂J/∂Sₗ = pₗ − 2 tₗ"),
        ("O3", "J = (1 − t) S + ln(1 + exp(S))"),
    ],
)
def test_an_equality_that_is_wrong_is_seen(tag, formula):
    assert any(side != pytest.approx(first, rel=1e-3) for first, *others in claims(tag, formula) for side in others)


@pytest.mark.parametrize("tag", ["B1", "B2", "B3", "B4", "O1"])
def test_the_proofs_end_where_the_textbooks_sums_do(truth, tag):
    last = [line.text for proof in PROOFS if proof.tag == tag for line in proof.lines if isinstance(line, Formula)][-1]
    wanted = {"B1": "∂J/∂Yₙₗ · f′(Zₙₗ)", "B2": "(δ Wᵀ)ₙₖ", "B3": "(Hᵀ δ)ₖₗ", "B4": "Σₙ δₙₗ", "O1": "(Y − Y*) ⊙ f′(Z)"}
    assert last.split(" = ")[-1] == wanted[tag]
    summed = {name: [getattr(row, name) for row in truth["rows"]] for name in ("dH", "dW", "dB")}
    rows, inputs, outputs = (range(len(truth[name])) for name in ("H", "W", "B"))
    H, W, delta = truth["H"], truth["W"], truth["delta"]
    slope = [[truth["f"].df(z) for z in row] for row in truth["Z"]]
    claimed, want = {
        "B1": ([[truth["dY"][n][i] * slope[n][i] for i in outputs] for n in rows], delta),
        "B2": ([[math.fsum(delta[n][i] * W[k][i] for i in outputs) for k in inputs] for n in rows], summed["dH"]),
        "B3": (
            [[math.fsum(H[n][k] * delta[n][i] for n in rows) for i in outputs] for k in inputs],
            torch.tensor(summed["dW"], dtype=torch.float64).sum(0).tolist(),
        ),
        "B4": (
            [[math.fsum(delta[n][i] for n in rows) for i in outputs]],
            [torch.tensor(summed["dB"], dtype=torch.float64).sum(0).tolist()],
        ),
        "O1": ([[(truth["Y"][n][i] - truth["T"][n][i]) * slope[n][i] for i in outputs] for n in rows], delta),
    }[tag]
    for got, right in zip(claimed, want, strict=True):
        assert got == pytest.approx(right, rel=1e-12)


def test_there_is_a_proof_for_each_tag_of_two_to_five_lines():
    assert tuple(proof.tag for proof in PROOFS) == TAGS
    for proof in PROOFS:
        assert 2 <= len(proof.lines) <= 5
        assert all(isinstance(line, (Text, Formula)) for line in proof.lines)
        # A formula is given its reasons before it.
        assert isinstance(proof.lines[0], Text)


@pytest.mark.parametrize("proof", PROOFS, ids=TAGS)
def test_each_proof_names_the_section_of_the_long_one(proof):
    sections = re.split(r"^## (?=\d)", DOCUMENT, flags=re.MULTILINE)
    (holding,) = [
        section.partition(".")[0] for section in sections if re.search(rf"^### \({proof.tag}\)", section, re.M)
    ]
    said = re.search(r"The long proof.*: section (\d+) of docs/derivation\.md", proof.lines[-1].text)
    assert said[1] == holding


@pytest.mark.parametrize("proof", PROOFS, ids=TAGS)
def test_every_formula_of_a_proof_is_set(proof):
    pieces = [typeset(proof.title)]
    pieces += [mathml(x.text, display=True) if isinstance(x, Formula) else typeset(x.text) for x in proof.lines]
    for piece in pieces:
        root = ElementTree.fromstring(f"<p>{piece}</p>")
        assert not set("".join(root.itertext())) & set(LOW + HIGH + "ⱼ`"), piece
