"""Formulas as data: what is read, what each operation computes, what a scope finds, and how a number is written."""

import math
import re
from itertools import product
from pathlib import Path

import pytest
import torch

from manual_mlp import explain
from manual_mlp.activations.registry import ENTRIES
from manual_mlp.explain.blocks import Refused
from manual_mlp.explain.evaluate import Scope, evaluate
from manual_mlp.explain.expressions import from_docstring, is_data, names_in, parse, substitute
from manual_mlp.explain.trees import Trees
from manual_mlp.explain.words import say, written
from shown import same

SCRIPT = (Path(explain.__file__).parent / "page.js").read_text(encoding="utf-8")
SQRT2 = math.sqrt(2)


def tensor(*rows):
    return torch.tensor(rows, dtype=torch.float64)


def at(text, **given):
    return evaluate(parse(text), {name: torch.as_tensor(t, dtype=torch.float64) for name, t in given.items()}.get)


def number(text, **given):
    """A formula of numbers."""
    found = at(text, **{name: tensor([x]) for name, x in given.items()})
    assert found.shape == (1, 1)
    return found.item()


# Reading.


@pytest.mark.parametrize(
    "text",
    [
        "x + y * z - 2",
        "x - y - z",
        "x / y / z",
        "x - (y - z)",
        "-x**2 * y",
        "(-x)**2",
        "x**-2 + 2**x**y",
        "-x - -y",
        "x * -y",
        "(x + y) * (x - z) / 3.5",
        "x if x < y else z",
        "1 if x > y else 2 if y > z else 3",
        "x * (y if y >= z else z) + 1",
        "2 * (x == y) + (x <= y)",
        "(x < y < z) + 2 * (z > y > x) + 4 * (x <= x < y <= 2)",
        "x if y < x < z else -x",
        "abs(x - z) * max(x, y) - min(y, z + 1)",
        "True + x",
    ],
)
@pytest.mark.parametrize("given", [(0.7, 1.3, 2.9), (1.3, 0.7, -0.2), (-1.5, 2.0, 0.4)])
def test_a_formula_of_numbers_is_what_python_makes_of_it(text, given):
    named = dict(zip("xyz", given, strict=True))
    assert number(text, **named) == pytest.approx(float(eval(text, {**named})), rel=1e-15)


@pytest.mark.parametrize(
    ("text", "tree"),
    [
        ("A", "A"),
        ("2.5", 2.5),
        ("-x**2", ["neg", ["**", "x", 2]]),
        ("A.T @ B.T.T", ["@", ["T", "A"], ["T", ["T", "B"]]]),
        ("A @ B + C * D", ["+", ["@", "A", "B"], ["*", "C", "D"]]),
        ("f(row(A, 2) @ W)", ["f", ["@", ["row", "A", 2], "W"]]),
        ("x if c else y", ["if", "c", "x", "y"]),
        ("a < b <= c", ["*", ["<", "a", "b"], ["<=", "b", "c"]]),
        ("\n  (x +\n y) ", ["+", "x", "y"]),
    ],
)
def test_a_tree_is_an_operation_and_its_arguments(text, tree):
    assert parse(text) == tree


@pytest.mark.parametrize(
    "text",
    ["", "x +", "x y", "x = 1", "f(x", "lambda x: x", "x and y", "x % y", "x != y", "~x", "+x", "not x", "x.y", "x[0]"]
    + ["[x]", "'x'", "1j", "f(a=1)", "f(*x)", "x.f(1)", "f(1)(2)", "x in y", "(x, y)", "x // y", "{x}", "..."]
    + ["+".join("x" * 20000)],
)
def test_what_is_no_formula_is_refused_in_words(text):
    with pytest.raises(ValueError, match=r"^expected a formula, got "):
        parse(text)


def test_names_are_found_and_replaced_everywhere_but_where_a_function_is_called():
    tree = parse("x + f(x, y if x < 2 else sum(z))")
    assert names_in(tree) == {"x", "y", "z"}
    assert names_in(2.0) == set()
    assert substitute(tree, {"x": ["T", "y"], "f": "g", "y": 3}) == parse("y.T + f(y.T, 3 if y.T < 2 else sum(z))")


def test_data_is_what_json_can_hold():
    assert is_data(parse("a + f(2.5) * b.T"))
    assert is_data(True)
    for part in (math.sin, math.inf, -math.inf, math.nan):
        assert not is_data(["+", "a", ["*", part, "b"]])


@pytest.mark.parametrize(
    ("text", "x", "exact"),
    [
        # The last is by the series: what a naive sum loses, or makes infinite.
        ("ln(1 + x)", 1e-18, 1e-18),
        ("exp(x) - 1", 1e-18, 1e-18),
        ("exp(x) - 1", -800.0, -1.0),
        ("ln(1 + exp(x))", 800.0, 800.0),
        ("ln(1 + exp(x))", -50.0, math.exp(-50) - math.exp(-100) / 2),
        ("ln(1 + exp(2*x))/2", 800.0, 800.0),
        ("ln(sigmoid(x))", -800.0, -800.0),
        ("ln(sigmoid(x))", 50.0, -math.exp(-50) + math.exp(-100) / 2),
        ("1/(1 + exp(-x))", -50.0, math.exp(-50) - math.exp(-100)),
        ("1/(1 + exp(-x))", -800.0, 0.0),
    ],
)
def test_rewritten_formulas_keep_their_digits_and_have_slopes_far_out(text, x, exact):
    assert number(text, x=x) == pytest.approx(exact, rel=1e-14)
    (slope,) = Scope({"x": tensor([x])}, {}, {}).slopes(parse(text), "x").view(-1).tolist()
    assert math.isfinite(slope)
    assert slope == pytest.approx({"ln(1 + x)": 1, "exp(x) - 1": math.exp(x)}.get(text, slope), rel=1e-14)


@pytest.mark.parametrize("text", ["ln(2 + x)", "exp(x) - 2", "ln(x + 1) + 1", "1 - exp(x)", "2/(1 + exp(-x))"])
def test_what_only_resembles_them_is_left_as_it_is(text):
    assert not names_of_operations(parse(text)) & {"log1p", "expm1", "softplus", "sigmoid"}
    named = {"ln": math.log, "exp": math.exp, "x": 0.3}
    assert number(text, x=0.3) == pytest.approx(eval(text, named), rel=1e-15)


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
    found = evaluate(from_docstring(formula, where, {"alpha": 1.7}), {"z": tensor([z])}.get).item()
    assert found == pytest.approx(eval(python, {"z": z, "alpha": 1.7, "math": math}), rel=1e-14)


def test_no_sign_of_a_known_docstring_is_missing_among_these_forms():
    signs = set(re.sub(r"[\w\s().,+*/=<>-]|[α-ω]", "", "".join((*FORMS, *(where for where, _ in FORMS.values())))))
    for entry in ENTRIES.values():
        for of, text in entry.formulas.items():
            if of in ("f", "f′", "where"):
                assert set(re.sub(r"[\w\s().,+*/=<>-]|[α-ω]", "", text)) <= signs, text


@pytest.mark.parametrize(
    ("formula", "where", "words"),
    [
        ("a·z + b", "a = 2", "^expected a formula of z, got 'a·z \\+ b' with b$"),
        ("u·z", "t = tanh(z)", "with u$"),
        ("y·(1 − x)", "", "with x, y$"),
        ("u", "u = v·z, v = 2", "with v$"),
        ("the slope of it", "", "^expected a formula, got "),
        ("u·z", "u = so much", "^expected a formula, got "),
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


def sigma(x):
    return 1 / (1 + math.exp(-x))


def times(a, b):
    return [[math.fsum(a[i][m] * b[m][j] for m in range(len(b))) for j in range(len(b[0]))] for i in range(len(a))]


def shares(row):
    return [math.exp(x) / math.fsum(map(math.exp, row)) for x in row]


def moves(a, draw):
    count = iter(range(1, 100))
    return [[round(10 * math.cos(next(count) * (draw + 2) * 1.7)) / 10 for _ in row] for row in a]


def cofactors(q):
    """The inverse of a 3×3 matrix, by Cramer's rule."""
    minor = [[q[i - 2][j - 2] * q[i - 1][j - 1] - q[i - 2][j - 1] * q[i - 1][j - 2] for j in range(3)] for i in range(3)]
    return [[minor[j][i] / math.fsum(q[0][k] * minor[0][k] for k in range(3)) for j in range(3)] for i in range(3)]


SIDES = {"A": A, "r": ROW, "c": COLUMN, "s": NUMBER}
PAIRS = {
    "{} + {}": lambda x, y: x + y,
    "{} - {}": lambda x, y: x - y,
    "{} * {}": lambda x, y: x * y,
    "{} / {}": lambda x, y: x / y,
    "{} < {}": lambda x, y: x < y,
    "{} <= {}": lambda x, y: x <= y,
    "{} > {}": lambda x, y: x > y,
    "{} >= {}": lambda x, y: x >= y,
    "{} == {}": lambda x, y: x == y,
    "max({}, {})": max,
    "min({}, {})": min,
}
OPERATIONS = {
    **{text.format(*s): both(f, *map(SIDES.get, s)) for text, f in PAIRS.items() for s in product("Arcs", repeat=2)},
    **{text.format(*"AB"): both(f, A, B) for text, f in PAIRS.items()},
    "P ** B": both(lambda x, y: x**y, P, B),
    "A ** 3": each(lambda x: x**3, A),
    "A < B < r": both(lambda x, y: x * y, both(lambda x, y: x < y, A, B), both(lambda x, y: x < y, B, ROW)),
    "r if A else B": [[ROW[0][j] if A[i][j] else B[i][j] for j in range(4)] for i in range(3)],
    "c if A > B else 7": [[COLUMN[i][0] if A[i][j] > B[i][j] else 7.0 for j in range(4)] for i in range(3)],
    "A if s else B": A,
    "A if s < 2 else s": [[2.0] * 4] * 3,
    "-A": each(lambda x: -x, A),
    **{f"{name}(A)": each(getattr(math, name), A) for name in ("exp", "expm1", "tanh", "sin", "cos")},
    **{f"{name}(P)": each(getattr(math, name), P) for name in ("log1p", "sqrt")},
    "ln(P)": each(math.log, P),
    "abs(A)": P,
    "sigmoid(A)": each(sigma, A),
    "softplus(A)": each(lambda x: math.log(1 + math.exp(x)), A),
    "Phi(A)": each(lambda x: (1 + math.erf(x / SQRT2)) / 2, A),
    "phi(A)": each(lambda x: (math.erf((x + 1e-5) / SQRT2) - math.erf((x - 1e-5) / SQRT2)) / 4e-5, A),
    "A.T": [[A[i][j] for i in range(3)] for j in range(4)],
    "A @ M": times(A, M),
    "sum(A)": [[math.fsum(map(math.fsum, A))]],
    "sum0(A)": [[math.fsum(row[j] for row in A) for j in range(4)]],
    "sum1(A)": [[math.fsum(row)] for row in A],
    "softmax(A)": [*map(shares, A)],
    "lse(A)": [[math.log(math.fsum(map(math.exp, row)))] for row in A],
    "lse(1000 * A)": [[1000 * max(row)] for row in A],
    "hottest(A)": [[float(x == max(row)) for x in row] for row in A],
    "hottest(U)": [[0.0, 1.0, 0.0], [1.0, 0.0, 0.0]],
    "choice(A)": [[float(row.index(max(row)))] for row in A],
    "choice(U)": [[1.0], [0.0]],
    "eye(A)": [[float(i == j) for j in range(4)] for i in range(4)],
    "diag(r)": [[ROW[0][i] * (i == j) for j in range(4)] for i in range(4)],
    "kron(Q, M)": [[Q[i // 4][j // 2] * M[i % 4][j % 2] for j in range(6)] for i in range(12)],
    "row(A, 2)": [A[2]],
    "row(A, s)": [A[2]],
    "col(A, 1)": [[row[1]] for row in A],
    "at(A, 1, 3)": [[A[1][3]]],
    "basis(A, 1, 3)": [[float((i, j) == (1, 3)) for j in range(4)] for i in range(3)],
    "head(A, 2, 3)": [row[:3] for row in A[:2]],
    "head(A, 3, 4)": A,
    "pad(A, 0.5)": [[*row, 0.5] for row in A],
    "flat(A)": [[x for row in A for x in row]],
    "rows(A)": [[3.0]],
    "cols(A)": [[4.0]],
    "moves(A, 0)": moves(A, 0),
    "moves(M, 3)": moves(M, 3),
    "inv(Q)": cofactors(Q),
}
HIDDEN = "ln(1 + x), exp(x) - 1"  # as which the rewritten ones are found


@pytest.mark.parametrize("text", OPERATIONS)
def test_an_operation_is_what_a_loop_over_floats_makes_of_it(text):
    same(at(text, **GIVEN), OPERATIONS[text], 1e-9 if text.startswith("phi") else 1e-12)


def test_the_table_of_operations_is_that_of_the_page():
    listed = re.search(r"const operations = \{(.*?)\n  \};", SCRIPT, re.DOTALL)[1]
    names = set(re.findall(r'(?<=[\s{,])"?([a-zA-Z]\w*|[^\w\s"]+)"?(?=: (?:pair|each|fold|product|inverse|\())', listed))
    names |= {"@", "lse", "inv"} & set(re.findall(r"[@\w]+", listed))
    tried = set().union(*(names_of_operations(parse(text)) for text in OPERATIONS))
    assert tried == names | {"softplus", "expm1", "log1p"}
    assert len(names) > 40


@pytest.mark.parametrize(
    ("text", "compute"),
    [
        ("A + M", lambda t: t["A"] + t["M"]),
        ("A * c.T", lambda t: t["A"] * t["c"].T),
        ("A @ B", lambda t: t["A"] @ t["B"]),
        ("A < M", lambda t: t["A"] < t["M"]),
        ("max(A, Q)", lambda t: torch.maximum(t["A"], t["Q"])),
        ("A if Q else 0", lambda t: torch.where(t["Q"] != 0, t["A"], tensor([0.0]))),
        ("inv(A)", lambda t: torch.linalg.inv(t["A"])),
        ("inv(Q * 0)", lambda t: torch.linalg.inv(t["Q"] * 0)),
        ("pad(A, r)", lambda t: t["r"].item()),
    ],
)
def test_what_does_not_fit_is_refused_in_torchs_words(text, compute):
    given = {name: torch.tensor(values, dtype=torch.float64) for name, values in GIVEN.items()}
    with pytest.raises(RuntimeError) as error:
        compute(given)
    assert Scope(given, {}, {}).compute(parse(text)) == Refused(str(error.value).splitlines()[0])


@pytest.mark.parametrize("of", ["row(A, {})", "col(A, {})", "at(A, {}, 0)", "at(A, 0, {})", "basis(A, {}, 0)"])
@pytest.mark.parametrize("entry", [-1, 4, 100])
def test_an_entry_that_is_not_there_is_refused(of, entry):
    assert Scope({"A": tensor(*A)}, {}, {}).compute(parse(of.format(entry))) == Refused("there is no such entry")
    for text in ("head(A, 4, 1)", "head(A, 1, 5)"):
        assert Scope({"A": tensor(*A)}, {}, {}).compute(parse(text)) == Refused("there is no such entry")
