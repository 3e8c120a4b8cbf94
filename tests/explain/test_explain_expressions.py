"""Formulas as data: what is read, what each operation computes, what a scope finds, and how a number is written."""

import math
import operator as op
import re
from itertools import product

import pytest
import torch

import reference
from manual_mlp.activations.registry import ENTRIES
from manual_mlp.explain import evaluate as computed
from manual_mlp.explain.blocks import Refused
from manual_mlp.explain.evaluate import Scope
from manual_mlp.explain.expressions import from_docstring, names_in, parse, substitute
from manual_mlp.explain.words import say, written
from shown import same

SQRT2 = math.sqrt(2)


def tensor(*rows):
    return torch.tensor(rows, dtype=torch.float64)


def compute(text, **given):
    """A formula of matrices, each a list of rows."""
    return Scope({name: tensor(*rows) for name, rows in given.items()}, {}, {}).compute(parse(text))


# Reading.

NUMBERS = """
x + y * z - 2; x - y - z; x / y / z; x - (y - z); -x**2 * y; (-x)**2; x**-2 + 2**x**y; -x - -y; x * -y; True + x
(x + y) * (x - z) / 3.5; x if x < y else z; 1 if x > y else 2 if y > z else 3; x * (y if y >= z else z) + 1
2 * (x == y) + (x <= y); (x < y < z) + 2 * (z > y > x) + 4 * (x <= x < y <= 2); x if y < x < z else -x
abs(x - z) * max(x, y) - min(y, z + 1)
"""


@pytest.mark.parametrize("text", NUMBERS.strip().replace("\n", "; ").split("; "))
@pytest.mark.parametrize("given", [(0.7, 1.3, 2.9), (1.3, 0.7, -0.2), (-1.5, 2.0, 0.4)])
def test_a_formula_of_numbers_is_what_python_makes_of_it(text, given):
    named = dict(zip("xyz", given, strict=True))
    found = compute(text, **{name: [[x]] for name, x in named.items()})
    assert found.item() == pytest.approx(float(eval(text, {**named})), rel=1e-15)


TREES = {
    "-x**2": ["neg", ["**", "x", 2]],
    "A.T @ B.T.T": ["@", ["T", "A"], ["T", ["T", "B"]]],
    "A @ B + C * D": ["+", ["@", "A", "B"], ["*", "C", "D"]],
    "f(row(A, 2) @ W)": ["f", ["@", ["row", "A", 2], "W"]],
    "x if c else 2.5": ["if", "c", "x", 2.5],
    "a < b <= c": ["*", ["<", "a", "b"], ["<=", "b", "c"]],
    "\n  (x +\n y) ": ["+", "x", "y"],
}


@pytest.mark.parametrize("text", TREES)
def test_a_tree_is_an_operation_and_its_arguments(text):
    assert parse(text) == TREES[text]


NO_FORMULAS = """
|x +|x y|x = 1|f(x|lambda x: x|x and y|x % y|x != y|~x|+x|not x|x.y|x[0]|[x]|'x'|1j|f(a=1)|f(*x)|x.f(1)|f(1)(2)|x in y
(x, y)|x // y|{x}|...|x < y != z
"""


DEEP = pytest.param("+".join("x" * 20000), id="deep")


@pytest.mark.parametrize("text", [*NO_FORMULAS.strip().replace("\n", "|").split("|"), DEEP])
def test_what_is_no_formula_is_refused_in_words(text):
    with pytest.raises(ValueError, match=r"^expected a formula, got ") as error:
        parse(text)
    assert repr(text) in str(error.value)


def test_names_are_found_and_replaced_everywhere_but_where_a_function_is_called():
    tree = parse("x + f(x, y if x < 2 else sum(z))")
    assert names_in(tree) == {"x", "y", "z"}
    assert names_in(2.0) == set()
    assert substitute(tree, {"x": ["T", "y"], "f": "g", "y": 3}) == parse("y.T + f(y.T, 3 if y.T < 2 else sum(z))")


# By the series: the text as it stands loses these digits, or is infinite.
@pytest.mark.parametrize(
    ("text", "x", "exact", "slope"),
    [
        ("ln(1 + x)", 1e-18, 1e-18, 1.0),
        ("exp(x) - 1", 1e-18, 1e-18, 1.0),
        ("exp(x) - 1", -800.0, -1.0, 0.0),
        ("ln(1 + exp(x))", 800.0, 800.0, 1.0),
        ("ln(1 + exp(x))", -50.0, math.exp(-50) - math.exp(-100) / 2, math.exp(-50) - math.exp(-100)),
        ("ln(1 + exp(2*x))/2", 800.0, 800.0, 1.0),
        ("ln(sigmoid(x))", -800.0, -800.0, 1.0),
        ("ln(sigmoid(x))", 50.0, -math.exp(-50) + math.exp(-100) / 2, math.exp(-50) - math.exp(-100)),
        ("1/(1 + exp(-x))", -50.0, math.exp(-50) - math.exp(-100), math.exp(-50) - 2 * math.exp(-100)),
        ("1/(1 + exp(-x))", -800.0, 0.0, 0.0),
    ],
)
def test_rewritten_formulas_keep_their_digits_and_their_slopes(text, x, exact, slope):
    found = [compute(text, x=[[x]]), Scope({"x": tensor([x])}, {}, {}).slopes(parse(text), "x")]
    assert [one.item() for one in found] == pytest.approx([exact, slope], rel=1e-14, abs=0)


@pytest.mark.parametrize("text", ["ln(2 + x)", "exp(x) - 2", "ln(x + 1) + 1", "1 - exp(x)", "2/(1 + exp(-x))"])
def test_what_only_resembles_them_is_left_as_it_is(text):
    assert not names_of_operations(parse(text)) & {"log1p", "expm1", "softplus", "sigmoid"}
    wanted = eval(text, {"ln": math.log, "exp": math.exp, "x": 0.3})
    assert compute(text, x=[[0.3]]).item() == pytest.approx(wanted, rel=1e-15)


def names_of_operations(tree):
    return {tree[0]}.union(*map(names_of_operations, tree[1:])) if isinstance(tree, list) else set()


# Every form that a docstring has, and the same in Python.
FORMS = {
    "z if z > 0, else z·alpha": ("", "z if z > 0 else alpha * z"),
    "0 if z ≤ −3, else 1 if z ≥ 3, else z/3 + 1/2": ("", "0 if z <= -3 else 1 if z >= 3 else z / 3 + 1 / 2"),
    "1 if −3 < z < 3, else 0": ("", "1 if -3 < z < 3 else 0"),
    "z/(1 + |z|)²": ("", "z / (1 + abs(z)) ** 2"),
    "−2·y·(1 − y²)": ("y = tanh(z)", "-2 * math.tanh(z) * (1 - math.tanh(z) ** 2)"),
    "ln(σ(z))": ("", "math.log(1 / (1 + math.exp(-z)))"),
    "Φ(z) + z·φ(z)": ("", "math.erfc(-z / 2**0.5) / 2 + z * math.exp(-z * z / 2) / math.sqrt(2 * math.pi)"),
    "c·u": ("c = √(2/π), a = 0.044715, u = z + a·z³", "math.sqrt(2 / math.pi) * (z + 0.044715 * z**3)"),
    "s·v": ("t = tanh(z), s = 1 − t², v = s + t", "(1 - math.tanh(z) ** 2) * (1 - math.tanh(z) ** 2 + math.tanh(z))"),
    "−alpha²·sin(alpha·z)": ("", "-(alpha**2) * math.sin(alpha * z)"),
    "π·z": ("of no letter", "math.pi * z"),
}


@pytest.mark.parametrize("formula", FORMS)
@pytest.mark.parametrize("z", [-3.3, -0.4, 0.6, 4.1])
def test_a_docstrings_signs_are_read_as_pythons(formula, z):
    where, python = FORMS[formula]
    found = Scope({"z": tensor([z])}, {}, {}).compute(from_docstring(formula, where, {"alpha": 1.7})).item()
    assert found == pytest.approx(eval(python, {"z": z, "alpha": 1.7, "math": math}), rel=1e-14)


def test_no_sign_of_a_known_docstring_is_missing_among_these_forms():
    def signs(*texts):
        return set(re.sub(r"[\w\s().,+*/=<>-]|[α-ω]", "", "".join(texts)))

    known = [entry.formulas.get(of, "") for entry in ENTRIES.values() for of in ("f", "f′", "where")]
    assert signs(*known) <= signs(*FORMS, *(where for where, _ in FORMS.values()))


@pytest.mark.parametrize(
    ("formula", "where", "words"),
    [
        ("a·z + b", "a = 2", "^expected a formula of z, got 'a·z \\+ b' with b$"),
        *(("u·z", "t = tanh(z)", "with u$"), ("y·(1 − x)", "", "with x, y$"), ("u", "u = v·z, v = 2", "with v$")),
        *(("the slope of it", "", "^expected a formula, got "), ("u·z", "u = so much", "^expected a formula, got ")),
    ],
)
def test_a_letter_that_nobody_tells_and_a_text_that_is_no_formula_are_refused(formula, where, words):
    with pytest.raises(ValueError, match=words):
        from_docstring(formula, where, {"alpha": 1.0})


# Computing: each operation, by Python's floats.

A = [[0.5, -1.25, 2.0, 0.25], [1.5, 0.75, -0.5, 2.25], [-2.0, 0.125, 3.0, -0.75]]
B = [[1.5, -1.25, 0.5, 1.0], [0.25, 2.0, -0.5, 3.0], [-1.0, 0.5, 1.0, -2.0]]
M = [[1.0, -2.0], [0.5, 3.0], [-1.5, 0.25], [2.0, 1.0]]
P = [[abs(a) for a in row] for row in A]
Q = [[4.0, 1.0, -0.5], [0.5, -3.0, 1.0], [0.0, 2.0, 5.0]]
TIED = [[1.0, 3.0, 3.0], [2.0, 2.0, 0.0]]
ROW, COLUMN, NUMBER = [[2.0, -1.0, 0.5, 4.0]], [[3.0], [-2.0], [0.5]], [[2.0]]
GIVEN = {"A": A, "B": B, "M": M, "P": P, "Q": Q, "U": TIED, "r": ROW, "c": COLUMN, "s": NUMBER}


def each(f, a):
    return [[f(x) for x in row] for row in a]


def both(f, a, b):
    rows, columns = max(len(a), len(b)), max(len(a[0]), len(b[0]))
    side = [lambda i, j, m=m: m[i % len(m)][j % len(m[0])] for m in (a, b)]
    return [[float(f(side[0](i, j), side[1](i, j))) for j in range(columns)] for i in range(rows)]


def moves(a, draw):
    count = iter(range(1, 100))
    return [[round(10 * math.cos(next(count) * (draw + 2) * 1.7)) / 10 for _ in row] for row in a]


SIDES = {"A": A, "r": ROW, "c": COLUMN, "s": NUMBER}
SIGNS = {"+": op.add, "-": op.sub, "*": op.mul, "/": op.truediv, "<": op.lt, "<=": op.le, ">": op.gt, ">=": op.ge}
PAIRS = {f"{{}} {sign} {{}}": f for sign, f in SIGNS.items()}
PAIRS |= {"{} == {}": op.eq, "max({}, {})": max, "min({}, {})": min}
OPERATIONS = {
    **{text.format(*s): both(f, *map(SIDES.get, s)) for text, f in PAIRS.items() for s in product("Arcs", repeat=2)},
    **{text.format(*"AB"): both(f, A, B) for text, f in PAIRS.items()},
    "A < B < r": both(op.mul, both(op.lt, A, B), both(op.lt, B, ROW)),
    "r if A else B": [[ROW[0][j] if A[i][j] else B[i][j] for j in range(4)] for i in range(3)],
    "c if A > B else 7": [[COLUMN[i][0] if A[i][j] > B[i][j] else 7.0 for j in range(4)] for i in range(3)],
    **{f"{name}(A)": each(getattr(math, name), A) for name in ("exp", "expm1", "tanh", "sin", "cos")},
    **{f"{name}(P)": each(getattr(math, name), P) for name in ("log1p", "sqrt")},
    "sigmoid(A)": each(lambda x: 1 / (1 + math.exp(-x)), A),
    "softplus(A)": each(lambda x: math.log(1 + math.exp(x)), A),
    "Phi(A)": each(lambda x: (1 + math.erf(x / SQRT2)) / 2, A),
    "phi(A)": each(lambda x: (math.erf((x + 1e-5) / SQRT2) - math.erf((x - 1e-5) / SQRT2)) / 4e-5, A),
    "A.T": [[A[i][j] for i in range(3)] for j in range(4)],
    "A @ M": [[math.fsum(row[m] * M[m][j] for m in range(4)) for j in range(2)] for row in A],
    "sum0(A)": [[math.fsum(row[j] for row in A) for j in range(4)]],
    "softmax(A)": [*map(reference.softmax, A)],
    "lse(A)": [[math.log(math.fsum(map(math.exp, row)))] for row in A],
    "eye(A)": [[float(i == j) for j in range(4)] for i in range(4)],
    "diag(r)": [[ROW[0][i] * (i == j) for j in range(4)] for i in range(4)],
    "kron(Q, M)": [[Q[i // 4][j // 2] * M[i % 4][j % 2] for j in range(6)] for i in range(12)],
    "basis(A, 1, 3)": [[float((i, j) == (1, 3)) for j in range(4)] for i in range(3)],
    "inv(Q) @ Q": [[float(i == j) for j in range(3)] for i in range(3)],
}
OPERATIONS |= {"-A": each(lambda x: -x, A), "abs(A)": P, "ln(P)": each(math.log, P), "A if s else B": A}
OPERATIONS |= {"A if s < 2 else s": [[2.0] * 4] * 3, "P ** B": both(pow, P, B), "sum(A)": [[sum(map(math.fsum, A))]]}
OPERATIONS |= {"sum1(A)": [[math.fsum(row)] for row in A], "lse(1000 * A)": [[1000 * max(row)] for row in A]}
OPERATIONS |= {"hottest(U)": [[0.0, 1.0, 0.0], [1.0, 0.0, 0.0]], "choice(U)": [[1.0], [0.0]]}
OPERATIONS |= {"row(A, s)": [A[2]], "col(A, 1)": [[row[1]] for row in A], "at(A, 1, 3)": [[A[1][3]]]}
OPERATIONS |= {"head(A, 2, 3)": [row[:3] for row in A[:2]], "pad(A, 0.5)": [[*row, 0.5] for row in A]}
OPERATIONS |= {"flat(A)": [[x for row in A for x in row]], "rows(A)": [[3.0]], "cols(A)": [[4.0]]}
OPERATIONS |= {"moves(A, 0)": moves(A, 0), "moves(M, 3)": moves(M, 3)}


@pytest.mark.parametrize("text", OPERATIONS)
def test_an_operation_is_what_a_loop_over_floats_makes_of_it(text):
    same(compute(text, **GIVEN), OPERATIONS[text], 1e-9 if text.startswith("phi") else 1e-12)


def test_no_operation_is_missing_among_these():
    tried = set().union(*(names_of_operations(parse(text)) for text in OPERATIONS))
    assert tried == {*computed._OPERATIONS, "if"}


ILL = ("A + M", "A * c.T", "A @ B", "A < M", "max(A, Q)", "A if Q else 0", "inv(A)", "inv(Q * 0)", "pad(A, r)")


@pytest.mark.parametrize("text", ILL)
def test_what_does_not_fit_is_refused_in_torchs_words(text):
    torchs = {name: tensor(*rows) for name, rows in GIVEN.items()}
    torchs |= {"max": torch.maximum, "inv": torch.linalg.inv, "pad": lambda a, value: value.item()}
    with pytest.raises(RuntimeError) as error:
        eval(text.replace("A if Q else 0", "A.where(Q != 0, A)"), torchs)
    assert compute(text, **GIVEN) == Refused(str(error.value).splitlines()[0])


ABSENT = "row(A, -1) row(A, 3) col(A, -1) col(A, 4) at(A, 3, 0) at(A, 0, 4) at(A, -1, 0) basis(A, 0, 4) head(A, 4, 1)"


@pytest.mark.parametrize("text", re.findall(r"\w+\(.*?\)", ABSENT))
def test_an_entry_that_is_not_there_is_refused(text):
    assert compute(text, A=A) == Refused("there is no such entry")


# Finding: what has a name.

X = tensor([0.5, -1.0, 0.25], [1.5, 0.75, -0.5])
W = tensor([1.0, -2.0], [0.5, 0.25], [-1.5, 3.0])
DEFINED = {"Z": parse("X @ W"), "Y": parse("g(Z)"), "J": parse("sum(Y**2) / 2")}
FUNCTIONS = {"g": (("z",), parse("tanh(z) + z")), "twice": (("a", "b"), parse("g(a) - b"))}
SCOPE = Scope({"X": X, "W": W}, DEFINED, FUNCTIONS)


def test_a_definition_is_computed_when_it_is_asked_for_and_once():
    asked = []

    def count(name):
        return ["call", lambda x: asked.append(name) or 2 * x, {"a": "X", "b": "a", "c": "X"}[name]]

    scope = Scope({"X": X}, {name: count(name) for name in "abc"}, {})
    assert asked == []
    same(scope["b"], 4 * X)
    same(scope["a"], 2 * X)
    same(scope.compute(parse("a + b")), 6 * X)
    assert asked == ["a", "b"]


def test_a_function_is_called_with_values_and_sees_no_other_name():
    scope = SCOPE.at(a=100 * X, b=X)
    same(scope.compute(parse("twice(b, 3 * X)")), X.tanh() - 2 * X)
    with pytest.raises(KeyError):
        Scope({"X": X}, {}, {"g": (("z",), parse("z + X"))}).compute(parse("g(X)"))


def test_in_another_scope_names_have_other_values_or_definitions_and_the_first_keeps_its_own():
    before = SCOPE["J"].clone()
    moved = SCOPE.at(W=2 * W, Z=X)
    same(moved["Y"], X.tanh() + X)
    same(moved["J"], (X.tanh() + X).square().sum().view(1, 1) / 2)
    same(SCOPE.at(W=2 * W)["Z"], 2 * X @ W)
    told = SCOPE.told({"Z": parse("X @ W + 1"), "more": "Z"})
    same(told["more"], X @ W + 1)
    same(told["J"], ((X @ W + 1).tanh() + X @ W + 1).square().sum().view(1, 1) / 2)
    same(SCOPE["J"], before, 0)


def test_what_is_made_of_a_refused_value_is_refused_for_the_same_reason():
    scope = SCOPE.told({"Z": parse("W @ X.T @ X.T"), "other": parse("sum(X)")})
    assert isinstance(scope["Z"], Refused)
    assert "mat1 and mat2 shapes cannot be multiplied" in scope["Z"].reason
    for found in (scope["J"], scope["Z"], scope.compute(parse("X @ W + Z")), scope.slopes("J", "X")):
        assert found == Refused(scope["Z"].reason)
    assert scope.differences("J", "X") == scope.differences("J", "Z") == scope.slopes("X", "Z") == scope["Z"]
    same(scope["other"], X.sum().view(1, 1))


@pytest.mark.parametrize("by", ["X", "W", "Z", "Y"])
def test_slopes_are_the_explicit_derivatives_and_differences_agree(by):
    Z = X @ W
    Y, g = Z.tanh() + Z, 2 - Z.tanh() ** 2
    wanted = {"Y": Y, "Z": Y * g, "W": X.T @ (Y * g), "X": (Y * g) @ W.T}[by]
    with torch.inference_mode():
        found = SCOPE.slopes("J", by)
    same(found, wanted)
    same(SCOPE.differences("J", by), wanted, 1e-7)


def test_slopes_have_the_shape_of_the_value_or_a_row_for_each_entry_of_the_tree():
    jacobian = torch.kron(X, torch.eye(2, dtype=torch.float64))  # of the entries of XW, row by row
    same(SCOPE.slopes("Z", "W"), jacobian)
    same(SCOPE.differences("Z", "W"), jacobian, 1e-9)
    for text, by in (("at(Z, 1, 0)", "W"), ("sum(Z)", "X")):
        assert SCOPE.slopes(parse(text), by).shape == SCOPE.differences(parse(text), by).shape == SCOPE[by].shape
    same(SCOPE.slopes("W", "X"), torch.zeros(6, 6))
    same(SCOPE.slopes(parse("X < 0.1"), "X"), torch.zeros(6, 6))
    same(SCOPE.slopes(parse("sum(W)"), "X"), torch.zeros(2, 3))


SIDED = ("z if z > 0 else exp(z) - 1", "sqrt(z) if z > 0 else 2 * z", "3 * z if z < 9 else ln(z)")


@pytest.mark.parametrize("text", SIDED)
def test_a_side_that_an_if_does_not_choose_has_no_slope_there_be_it_infinite(text):
    def f(z):
        return eval(text, {"exp": math.exp, "sqrt": math.sqrt, "ln": math.log, "z": z})

    z = tensor([-1000.0, -2.0, 0.25], [4.0, 900.0, 1000.0])
    found = Scope({"z": z}, {}, {}).slopes(["sum", parse(text)], "z")
    same(found, each(lambda x: (f(x + 1e-6) - f(x - 1e-6)) / 2e-6, z.tolist()), 1e-6)


def test_a_side_of_an_if_that_mixes_entries_keeps_all_its_slopes():
    scope = Scope({"z": X}, {}, {})
    tree = parse("sum(softmax(z) * z if z > 0 else z @ z.T @ z)")
    same(scope.slopes(tree, "z"), scope.differences(tree, "z"), 1e-8)


# Writing.

FOUR = [[1.0, -0.5], [0.25, 9.0]]
WRITTEN = {
    "": {"−1.5": [[-1.5]], "0.3333": [[1 / 3, 2.0]], "2.00e−07": [[2e-7]], "0": [[0.0]], "−inf": [[-math.inf]]},
    "6": {"0.333333": [[1 / 3]], "−2.000000": [[-2.0]], "nan": [[math.nan]], "1.00e+06": [[1e6]]},
    "list": {"1, −0.5, 0.25, …": FOUR, "1, 2, 3": [[1.0, 2.0, 3.0]]},
    "all": {"1, −0.5, 0.25, 9": FOUR},
    "shape": {"2×2": FOUR, "1×3": [[1.0, 2.0, 3.0]]},
    "whole": {"12,345": [[12345.0]]},
    "row": {"1 row": [[1.0]], "2,048 rows": [[2048.0]], "0 rows": [[0.0]]},
    "entry": {"1 entry": [[1.0]], "3 entries": [[3.0]]},
}


@pytest.mark.parametrize("form", WRITTEN)
def test_a_value_is_written_in_its_form(form):
    for text, values in WRITTEN[form].items():
        assert written(form, tensor(*values)) == text


TERMS = {
    "2 · (−3) = −6": ([2.0], [-3.0]),
    "1 · 4 + (−0.5) · 2 + 2 · 0.25 + 0 · 7 = 3.5": ([1.0, -0.5, 2.0, 0.0], [4.0, 2.0, 0.25, 7.0]),
    "1 · 1 + 1 · 1 + 1 · 1 + … + 1 · (−9) + … = −4": ([1.0] * 6, [1.0, 1.0, 1.0, 1.0, -9.0, 1.0]),
    "1 · 1 + 1 · 1 + 1 · 1 + … + 1 · 9 = 17": ([1.0] * 5, [1.0, 1.0, 1.0, 5.0, 9.0]),
    "3 · 1 + 1 · 1 + 1 · 1 + … = 7": ([3.0, 1.0, 1.0, 1.0, 1.0], [1.0] * 5),
    "none": ([1.0, 2.0], [1.0, 2.0, 3.0]),
}


@pytest.mark.parametrize("text", TERMS)
def test_a_sum_is_written_term_by_term_and_of_a_long_one_the_first_and_the_largest(text):
    a, b = map(tensor, TERMS[text])
    assert written("terms", a, b) == written("terms", a.T, b) == text


def test_a_sentence_holds_its_numbers_and_a_refused_one_is_none():
    said = say(
        "J is {J:2}, and {cols(X):whole} of {pair(row(X, 0), row(X, 1)):terms}; {Q}{X:shape}",
        SCOPE.told({"J": parse("sum(X)"), "Q": parse("X @ X")}).compute,
    )
    assert said == "J is 1.50, and 3 of 0.5 · 1.5 + (−1) · 0.75 + 0.25 · (−0.5) = −0.125; none2×3"
    slots = [piece for piece in said.pieces if not isinstance(piece, str)]
    assert [(slot.tree, slot.form) for slot in slots[:2]] == [("J", "2"), (["cols", "X"], "whole")]
    assert [slot.text for slot in slots[3:]] == ["none", "2×3"]
    assert written("terms", tensor([1.0]), Refused("so")) == written("shape", Refused("so")) == "none"
