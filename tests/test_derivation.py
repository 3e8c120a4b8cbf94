"""Hold docs/derivation.md against the code: its tags, its letters, its worked numbers, its formulas."""

import ast
import builtins
import io
import math
import re
import tokenize
import unicodedata
from collections.abc import Iterator
from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from manual_mlp import MLP, activations, backprop
from manual_mlp.activations.registry import parameters_of
from truths import scalar_of

ROOT = Path(__file__).parents[1]
DOCUMENT = (ROOT / "docs" / "derivation.md").read_text(encoding="utf-8")
TAG = re.compile(r"\b[A-Z]\d\b")


def tags_in_code() -> set[str]:
    """Collect the tags in comments such as "# (B1)"."""
    tags: set[str] = set()
    for path in (ROOT / "manual_mlp").rglob("*.py"):
        for token in tokenize.generate_tokens(io.StringIO(path.read_text(encoding="utf-8")).readline):
            if token.type == tokenize.COMMENT:
                for parenthesis in re.findall(r"\(([^()]*)\)", token.string):
                    tags.update(TAG.findall(parenthesis))
    return tags


def tags_of_headings() -> list[str]:
    return re.findall(r"^#+ \(([A-Z]\d)\) ", DOCUMENT, re.MULTILINE)


def test_every_tag_in_the_code_is_proved_in_the_document_and_the_reverse() -> None:
    assert sorted(tags_in_code()) == sorted(tags_of_headings())


def test_the_code_computes_every_formula_of_first_and_second_order() -> None:
    first = {"F1", "F2", "B1", "B2", "B3", "B4", "J1", "J2", "O1", "O2", "O3"}
    assert first | {"S1", "S2", "S3", "S4", "S5", "S6", "O4"} <= tags_in_code()


def test_the_opening_table_lists_every_proof() -> None:
    assert sorted(re.findall(r"^\| ([A-Z]\d) \|.*\(#", DOCUMENT, re.MULTILINE)) == sorted(tags_of_headings())


def test_every_link_within_the_document_leads_to_a_heading() -> None:
    headings = re.findall(r"^#+ (.*)", DOCUMENT, re.MULTILINE)
    anchors = {re.sub(r"[^\w -]", "", heading).lower().replace(" ", "-") for heading in headings}
    assert set(re.findall(r"\]\(#(.*?)\)", DOCUMENT)) <= anchors


def section(heading: str) -> str:
    """Return what stands between a heading and the next."""
    return DOCUMENT.split(f"# {heading}\n")[1].split("\n#")[0]


def letters(formula: str) -> set[str]:
    """Take a formula, of LaTeX or plain, apart into its letters and those of its indices."""
    formula = re.sub(r"\\(?:text|begin|end)\{.*?\}", " ", formula)
    formula = re.sub(r"\\([A-Za-z]+)", lambda command: f" {greek(command[1])} ", formula.replace("ᵀ", " "))
    normalize, is_index = unicodedata.normalize, lambda sign: unicodedata.category(sign) == "Lm"
    spaced = "".join(f" {normalize('NFKD', sign)} " if is_index(sign) else normalize("NFD", sign) for sign in formula)
    plain = "".join(sign for sign in spaced if unicodedata.category(sign) not in ("Mn", "No"))
    words = re.findall(r"[^\W\d_]+", plain)
    # A longer word of plain text is a name, as exp is.
    return {letter for word in words if len(word) < 3 or not word.isascii() for letter in word if word != "ln"}


def greek(command: str) -> str:
    """Return the letter of a command; of another, such as sum, nothing."""
    size = "CAPITAL" if command[0].isupper() else "SMALL"
    name = command.removeprefix("var").upper().replace("LAMBDA", "LAMDA")
    try:
        return "ℓ" if command == "ell" else unicodedata.lookup(f"GREEK {size} LETTER {name}")
    except KeyError:
        return ""


def letters_of_formulas(text: str) -> set[str]:
    """Collect the letters in blocks, in backticks, and in sentences, where they are Greek or have an index."""
    left_out = r"^```text\n.*?^```|<!-- table.*?<!-- end -->|\]\(.*?\)|Other texts write δᵢₗ"
    text = re.sub(left_out, "", text, flags=re.MULTILINE | re.DOTALL)
    blocks = re.findall(r"^```math\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    # All letters of an index such as nlk are letters.
    found = [re.sub(r"_\{(\w+)\}", lambda index: " ".join(index[1]), block) for block in blocks]
    found += re.findall(r"(?<!`)`([^`\n]+)`(?!`)", text)
    found += re.findall(r"[^\W\d_]\u0307?\u0303?[ₐ-ₜᵢᵣᵤᵥⱼ]+|[α-ωΑ-Ωℓ]", text)
    return set().union(*map(letters, found))


def letters_told(heading: str) -> list[str]:
    """Return the letters in the first column of a table."""
    cells = re.findall(r"^\| (.*?) \|", section(heading), re.MULTILINE)
    names = [name.replace("\\", "") for cell in cells for name in cell.split(", ")]
    return [name for name in names if len(name.removesuffix("*")) == 1]


def test_every_letter_stands_once_in_the_tables_of_letters() -> None:
    early, late = (letters_told(heading) for heading in ("1. Four products and a delta", "Letters that come later"))
    assert len(set(early + late)) == len(early + late)
    first, second = DOCUMENT.split("\n## 1. ")[1].split("\n## 8. ")[0].split("\n### Letters that come later\n")
    # Σ is told below the first table, among the signs.
    assert letters_of_formulas(first + second.split("\n## ", 1)[1]) <= {*early, "Σ"}
    assert letters_of_formulas(DOCUMENT) <= {*early, *late, "Σ"}


def test_the_kronecker_delta_is_never_written_as_the_layers_error() -> None:
    assert all(index[0] == "n" for index in re.findall(r"\\delta_\{(\w\w)\}", DOCUMENT))
    assert set(re.findall(r"δ(?!ₙ)[ₐ-ₜᵢᵣᵤᵥⱼ]{2}", DOCUMENT)) == {"δᵢₗ"}
    assert DOCUMENT.count("δᵢₗ") == 1


def test_every_link_to_the_page_leads_to_a_step_and_each_of_the_first_ten_has_one() -> None:
    links = re.findall(r"\[step (\d+)\]\(\.\./explain\.html#step-(\d+)\)", DOCUMENT)
    assert len(links) == DOCUMENT.count("explain.html#")
    assert all(told == target for told, target in links)
    assert set(range(10)) <= {int(step) for step, _ in links} <= set(range(14))


def test_a_learner_is_told_where_to_stop() -> None:
    assert "**Where to stop.**" in DOCUMENT.split("\n## ")[0]
    assert "**You may stop here.**" in section("5. A batch")
    assert "**Here the textbook's part ends.**" in section("(O1) The textbook's δ")


def test_the_example_of_small_moves_is_exact() -> None:
    told = re.search(r"which is (.*?) for an ε\s+of (.*?)\. It goes", section("Why small moves add up"), re.DOTALL)
    moved, moves = ([Fraction(number) for number in re.findall(r"\d\.\d+", numbers)] for numbers in told.groups())
    assert moved == [((2 + move) * (3 + 2 * move) - 2 * 3) / move for move in moves]
    assert len(moves) == 3


def test_small_moves_add_up_but_for_a_rest_that_shrinks_as_they_do() -> None:
    def J(first: float, second: float) -> float:
        return math.exp(first) * math.sin(second)

    def slopes(first: float, second: float) -> tuple[float, float]:
        return math.exp(first) * math.sin(second), math.exp(first) * math.cos(second)

    def Y(theta: float) -> tuple[float, float]:
        return theta**2, 3 * theta

    theta, rests = 0.4, []
    start = Y(theta)
    chain_rule = sum(slope * speed for slope, speed in zip(slopes(*start), (2 * theta, 3), strict=True))
    for move in (1e-2, 1e-3, 1e-4):
        end = Y(theta + move)
        corners = start, (end[0], start[1]), end
        steps = [J(*after) - J(*before) for before, after in pairwise(corners)]
        for i, step in enumerate(steps):
            # The slope that the mean value theorem finds on the way lies between those at its ends.
            low, high = sorted(slopes(*corner)[i] for corner in corners[i : i + 2])
            assert low <= step / (end[i] - start[i]) <= high
        assert sum(steps) == pytest.approx(J(*end) - J(*start), rel=1e-9)
        rests.append((J(*end) - J(*start)) / move - chain_rule)
    assert rests[0] / rests[1] == pytest.approx(10, rel=0.05)
    assert rests[1] / rests[2] == pytest.approx(10, rel=0.05)


def test_small_moves_do_not_add_up_at_the_kink_of_the_counterexample() -> None:
    def J(first: float, second: float) -> float:
        return math.sqrt(abs(first * second))

    for move in (1e-2, -1e-3, 1e-4):
        assert J(move, 0.0) == J(0.0, move) == J(0.0, 0.0) == 0
        assert J(move, move) / move == pytest.approx(math.copysign(1, move))


def worked_numbers(heading: str) -> dict[str, torch.Tensor]:
    """Read the lines "name = value" of a worked example."""
    found = {}
    for block in re.findall(r"^```text\n(.*?)^```", section(heading), re.MULTILINE | re.DOTALL):
        for line in block.splitlines():
            name, value = re.fullmatch(r"(.*?) += (\S+(?: \S+)*)(?:  .*)?", line).groups()
            found[name] = torch.tensor(ast.literal_eval(value), dtype=torch.float64)
    return found


def misprints(told: dict[str, torch.Tensor], found: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return what was found where the document, which prints six decimals, tells something else."""
    return {name: value for name, value in found.items() if not torch.allclose(told[name], value, rtol=0, atol=5.1e-7)}


EXAMPLES = (
    "7. With numbers",
    "With numbers, once more",
    "With numbers, for three classes",
    "With numbers, in two tiles",
)
WORKED = {heading: worked_numbers(heading) for heading in EXAMPLES}


def test_no_worked_number_stands_elsewhere() -> None:
    assert DOCUMENT.count("```text\n") == sum(section(heading).count("```text\n") for heading in WORKED)


def cost(H: torch.Tensor, W: torch.Tensor, B: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    return (torch.sigmoid(H @ W + B) - target).square().sum() / 2


def test_the_worked_example_is_what_autograd_finds() -> None:
    told = WORKED["7. With numbers"]
    W, B = (told[name].clone().requires_grad_() for name in ("W", "B"))

    H = told["H"].clone().requires_grad_()
    Z = H @ W + B
    Y = torch.sigmoid(Z)
    J = cost(H, W, B, told["Y*"])
    dY, delta = torch.autograd.grad((Y - told["Y*"]).square().sum() / 2, (Y, Z))
    dH, dW, dB = torch.autograd.grad(J, (H, W, B))
    nudge = torch.zeros_like(W)
    nudge[1, 1] = 0.0001

    # The bias of one row alone has the derivative δ.
    delta_2, dW_2 = torch.autograd.grad(cost(told["H of row 2"], W, B, told["Y* of row 2"]), (B, W))
    h, t = (torch.stack((told[name], told[f"{name} of row 2"])) for name in ("H", "Y*"))
    dW_both, dB_both = torch.autograd.grad(cost(h, W, B, t), (W, B))

    given = ("H", "W", "B", "Y*", "H of row 2", "Y* of row 2")
    found = {"Z": Z, "Y": Y, "J": J, "∂J/∂Y": dY, "f′(Z)": Y * (1 - Y), "δ": delta}
    found |= {"∂J/∂B": dB, "∂J/∂W": dW, "∂J/∂H": dH, "ΔJ/ΔW₂₂": (cost(H, W + nudge, B, told["Y*"]) - J) / 0.0001}
    found |= {"δ of row 2": delta_2, "Hᵀδ of row 2": dW_2, "∂J/∂W of both": dW_both, "∂J/∂B of both": dB_both}
    assert set(found) | set(given) == set(told)
    assert not misprints(told, found)


def test_the_second_order_example_is_what_autograd_finds() -> None:
    first, told = WORKED["7. With numbers"], WORKED["With numbers, once more"]
    h, w, b, y_star = first["H"], told["w"], first["B"], first["Y*"]

    def K(dy: torch.Tensor | None, h: torch.Tensor, w: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        z = h @ w.T + b
        dy = torch.sigmoid(z) - y_star if dy is None else dy
        (dh,) = torch.autograd.grad(torch.sigmoid(z), h, dy, create_graph=True)
        return dh.sum()

    leaves = [t.clone().requires_grad_() for t in (h, w, b)]
    z = leaves[0] @ leaves[1].T + leaves[2]
    y = torch.sigmoid(z)
    dy = (y - y_star).detach().requires_grad_()
    held = K(dy, *leaves)
    ddy, ddh, ddw, ddb = torch.autograd.grad(held, (dy, *leaves))
    (ddb_moving,) = torch.autograd.grad(K(None, *leaves), leaves[2])
    nudge = torch.zeros_like(w)
    nudge[1, 1] = 0.0001
    (slope,) = torch.autograd.grad(y.sum(), z, create_graph=True)
    (curvature,) = torch.autograd.grad(slope.sum(), z, retain_graph=True)
    delta = (dy * slope).detach().requires_grad_()
    (q,) = torch.autograd.grad((delta @ w).sum(), delta)

    found = {"K": held, "q": q, "f″(z)": curvature, "r": q * dy * curvature, "∂K/∂dy": ddy, "∂K/∂b": ddb, "∂K/∂h": ddh}
    found |= {"∂K/∂w": ddw, "ΔK/Δw₂₂": (K(dy, leaves[0], w + nudge, b) - held) / 0.0001, "∂K/∂b, dy moving": ddb_moving}
    assert set(found) | {"w", "h̃"} == set(told)
    assert torch.equal(w, first["W"].T)
    assert torch.equal(told["h̃"], torch.ones_like(h))
    assert not misprints(told, found)


def test_the_example_of_three_classes_is_what_autograd_finds() -> None:
    first, told = WORKED["7. With numbers"], WORKED["With numbers, for three classes"]
    target, v, epsilon = torch.tensor(1), told["v"], 0.3

    def loss(z: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.cross_entropy(z, target, v, reduction="sum", label_smoothing=epsilon)

    def J(h: torch.Tensor, w: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        return loss(h @ w.T + b)

    def K(g: torch.Tensor, h: torch.Tensor, w: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        (dh,) = torch.autograd.grad(J(h, w, b), h, g, create_graph=True)
        return dh.sum()

    h, w, b = leaves = [told[name].clone().requires_grad_() for name in "hwb"]
    dh, dw, db = torch.autograd.grad(J(*leaves), leaves)
    z = (h @ w.T + b).detach().requires_grad_()
    (delta,) = torch.autograd.grad(loss(z), z, create_graph=True)
    g = torch.ones((), dtype=torch.float64, requires_grad=True)
    dg, ddh, ddw, ddb = torch.autograd.grad(K(g, *leaves), (g, *leaves))
    (q,) = torch.autograd.grad((delta @ w).sum(), delta, retain_graph=True)
    (r,) = torch.autograd.grad(delta, z, q)
    p = torch.softmax(z, -1)
    a = v * ((1 - epsilon) * torch.eye(3, dtype=torch.float64)[target] + epsilon / 3)
    nudge = torch.zeros_like(w)
    nudge[1, 1] = 0.0001
    dJ, dK = (f(h, w + nudge, b) - f(h, w, b) for f in (J, lambda *leaves: K(g, *leaves)))

    found = {"a": a, "Σa": a.sum(), "z": z, "Σeᶻ": z.exp().sum(), "p": p, "J": J(*leaves), "δ": delta}
    found |= {"∂p/∂z": torch.autograd.functional.jacobian(lambda z: torch.softmax(z, -1), z)}
    found |= {"dh": dh, "dw": dw, "db": db, "ΔJ/Δw₂₂": dJ / 0.0001, "K": K(g, *leaves), "q": q, "p · q": p @ q, "r": r}
    found |= {"∂K/∂g": dg, "∂K/∂h": ddh, "∂K/∂w": ddw, "∂K/∂b": ddb, "ΔK/Δw₂₂": dK / 0.0001}
    assert set(found) | {"h", "w", "b", "v", "h̃"} == set(told)
    assert torch.equal(h, first["H"])
    assert torch.equal(w[:2], first["W"].T)
    assert torch.equal(b[:2], first["B"])
    assert torch.equal(told["h̃"], torch.ones_like(h))
    assert not misprints(told, found)


def test_the_example_in_two_tiles_is_what_autograd_finds() -> None:
    first, told = WORKED["7. With numbers"], WORKED["With numbers, in two tiles"]
    names = "w₁", "b₁", "w₂", "b₂"
    w_1, b_1, w_2, b_2 = leaves = [told[name].clone().requires_grad_() for name in names]
    nudge = torch.zeros_like(w_1)
    nudge[1, 1] = 0.0001

    def network(h: torch.Tensor, w_1: torch.Tensor = w_1) -> tuple[torch.Tensor, ...]:
        z_1 = h @ w_1.T + b_1
        h_2 = torch.sigmoid(z_1)
        return z_1, h_2, h_2 @ w_2.T + b_2

    def J(y_2: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        return (y_2 - t).square().sum() / 2

    found = {}
    for n in (1, 2):
        z_1, h_2, y_2 = network(told[f"h₁ of tile {n}"])
        J_n = J(y_2, told[f"t of tile {n}"])
        dw_1, dw_2, delta_1, dy_1, delta_2 = torch.autograd.grad(J_n, (w_1, w_2, z_1, h_2, y_2))
        of_tile = {"h₂": h_2, "y₂": y_2, "J": J_n, "δ₂": delta_2, "dy₁": dy_1, "δ₁": delta_1}
        of_tile |= {"δ₂ᵀh₂": dw_2, "δ₁ᵀh₁": dw_1}
        found |= {f"{name} of tile {n}": value for name, value in of_tile.items()}

    # All rows at once: that the tiles' gradients add up to these is the claim.
    h, t = (torch.stack([told[f"{name} of tile {n}"] for n in (1, 2)]) for name in ("h₁", "t"))
    h.requires_grad_()
    both = J(network(h)[-1], t)
    *gradients, dh = torch.autograd.grad(both, (*leaves, h))
    of_both = {f"d{name}": gradient for name, gradient in zip(names, gradients, strict=True)}
    shares = {"dw₂": "δ₂ᵀh₂", "db₂": "δ₂", "dw₁": "δ₁ᵀh₁", "db₁": "δ₁"}
    for name, share in shares.items():
        torch.testing.assert_close(found[f"{share} of tile 1"] + found[f"{share} of tile 2"], of_both[name])
    found |= of_both | {"J": both, "dh": dh, "ΔJ/Δ(w₁)₂₂": (J(network(h, w_1 + nudge)[-1], t) - both) / 0.0001}

    given = {f"{name} of tile {n}" for name in ("h₁", "t") for n in (1, 2)}
    assert set(found) | set(names) | given == set(told)
    assert torch.equal(w_1, first["W"].T)
    assert torch.equal(b_1, first["B"])
    assert torch.equal(h, torch.stack((first["H"], first["H of row 2"])))
    assert torch.equal(t, torch.stack((first["Y*"], first["Y* of row 2"])))
    assert not misprints(told, found)


def table_after(heading: str) -> dict[str, list[str]]:
    """Read the first table after a heading: the name in its first column, the other cells."""
    rows = re.findall(r"^\| (`.*) \|$", section(heading), re.MULTILINE)
    cells = [[cell.strip().replace(r"\|", "|") for cell in re.split(r"(?<!\\)\|", row)] for row in rows]
    return {name: rest for name, *rest in cells}


OF_Z = table_after("10. The activations")
OF_Y = table_after("f′ from y")
COSTS = table_after("What it costs")
ARGUMENTS: dict[str, tuple[float, ...]] = {
    "leaky_relu": (0.1,),
    "elu": (1.5,),
    "celu": (0.7,),
    "softplus": (2.0, 4.0),
    "hardtanh": (-0.5, 2.0),
    "sin": (3.0,),
}
# Every kink and threshold of the functions with these arguments is among them.
POINTS = [-40.0, -6.5, -3.0, -1.0, -0.5, 0.0, 0.3, 1.0, 2.0, 3.0, 6.0, 7.5, 15.0]


def name_and_parameters(cell: str) -> tuple[str, dict[str, float]]:
    name, symbols = re.match(r"`(\w+)(?:\((.*?)\))?`", cell).groups()
    given = ARGUMENTS.get(name) or parameters_of(activations.get(name)).values()
    return name, dict(zip(symbols.split(", ") if symbols else (), given, strict=True))


def evaluate(formula: str, variables: dict[str, float]) -> float:
    """Compute a formula as the document writes it."""
    formula = re.sub(r"\|(.+?)\|", r"abs(\1)", formula)
    for written, meant in zip("−·≤≥²³√", ("-", "*", "<=", ">=", "**2", "**3", "sqrt"), strict=True):
        formula = formula.replace(written, meant)
    functions = {
        **{name: f for name, f in vars(math).items() if callable(f)},
        **{name: getattr(builtins, name) for name in ("abs", "min", "max")},
        "π": math.pi,
        "ln": math.log,
        "sign": lambda x: (x > 0) - (x < 0),
        "σ": lambda x: 1 / (1 + math.exp(-x)),
        "φ": lambda x: math.exp(-(x**2) / 2) / math.sqrt(2 * math.pi),
        "Φ": lambda x: (1 + math.erf(x / math.sqrt(2))) / 2,
    }
    return float(eval(formula.replace(", else", " else"), {"__builtins__": {}}, functions | variables))


def with_abbreviations(where: str, variables: dict[str, float]) -> dict[str, float]:
    """Add what a cell such as "a = 2/3, t = tanh(a·z)" defines."""
    for definition in re.split(r", (?=\w = )", where) if where else ():
        symbol, formula = definition.split(" = ")
        variables = variables | {symbol: evaluate(formula, variables)}
    return variables


@pytest.mark.parametrize("cell", OF_Z)
def test_the_table_of_activations_gives_f_and_its_two_derivatives(cell: str) -> None:
    name, parameters = name_and_parameters(cell)
    scalar = scalar_of(name, *parameters.values())
    *formulas, where = OF_Z[cell]
    for z in POINTS:
        variables = with_abbreviations(where, parameters | {"z": z})
        told = [evaluate(formula, variables) for formula in formulas]
        assert told == pytest.approx([scalar.f(z), scalar.df(z), scalar.d2f(z)], rel=1e-11, abs=1e-12), f"z = {z}"


@pytest.mark.parametrize("cell", OF_Y)
def test_the_table_of_slopes_from_y_gives_both_derivatives(cell: str) -> None:
    name, parameters = name_and_parameters(cell)
    scalar = scalar_of(name, *parameters.values())
    where = next(row[-1] for other, row in OF_Z.items() if name_and_parameters(other)[0] == name)
    # Constants of the first table hold in the second; z does not.
    constants = with_abbreviations(where, parameters | {"z": math.nan})
    for z in POINTS:
        variables = {**constants, "y": scalar.f(z)}
        df, df_by_y = (evaluate(formula, variables) for formula in OF_Y[cell])
        assert [df, df_by_y * df] == pytest.approx([scalar.df(z), scalar.d2f(z)], rel=1e-11, abs=1e-12), f"z = {z}"


def test_the_table_of_activations_lists_every_name() -> None:
    assert sorted(name_and_parameters(cell)[0] for cell in OF_Z) == sorted(activations.names())


def test_the_table_of_slopes_from_y_lists_the_activations_that_keep_y() -> None:
    keep_y = [name for name in activations.names() if activations.get(name).df_y is not None]
    assert sorted(name_and_parameters(cell)[0] for cell in OF_Y) == sorted(keep_y)


class Products(TorchDispatchMode):
    """Count the matrix products."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(
        self, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        self.count += function.overloadpacket in (torch.ops.aten.mm, torch.ops.aten.addmm, torch.ops.aten.addmm_)
        return function(*args, **(kwargs or {}))


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Keep all tiles on the thread that counts."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("cell", COSTS)
@pytest.mark.parametrize("L", [1, 2, 5])
@pytest.mark.parametrize("input_too", [False, True])
def test_the_table_of_costs_counts_the_products_of_a_step(cell: str, L: int, input_too: bool) -> None:
    tiles, rows = 3, 4
    mlp = MLP([5] * (L + 1), "tanh", tile_rows=rows)
    autograd = mlp.to_sequential()
    h, t = torch.randn(tiles * rows, 5, requires_grad=input_too), torch.randn(tiles * rows, 5)
    with Products() as products:
        if cell.startswith("`autograd`"):
            autograd(h).sub(t).square().sum().backward()
            tiles = 1
        elif cell == "`MLP` in tiles":
            mlp(h).sub(t).square().sum().backward()
            tiles = 1 if L == 1 else tiles  # one linear layer keeps its input alone, and is not cut
        else:
            assert cell == "`backprop` in tiles"
            backprop(mlp, h, t, "squared_error", tile_rows=rows)
    assert products.count == tiles * (evaluate(COSTS[cell][0], {"L": L}) + input_too)


@pytest.mark.parametrize("cell", COSTS)
def test_the_table_of_costs_tells_the_example_of_five_layers(cell: str) -> None:
    formula, *told = COSTS[cell]
    products = evaluate(formula, {"L": 5})
    rows = 1024 if cell.endswith("in tiles") else 131072
    assert told == [
        f"{products:.0f}",
        f"{products * 2 * 64 * 64 * 131072 / 1e9:.1f}",
        f"{rows * 5 * 64 * 4 / 1e6:.3g} MB",
    ]
