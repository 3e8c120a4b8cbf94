"""The steps of the explanation: their numbers are right, and every check of theirs can fail."""

# The index l is the textbook's.
# ruff: noqa: E741
import math
import re
from dataclasses import replace

import pytest
import torch
from torch import nn

import reference
from manual_mlp import Activation, activations
from manual_mlp.explain import Formulas, Network, draw_network, explain
from manual_mlp.explain.blocks import Bars, Boxes, Check, Formula, Matrix, Numbers, Table, Text, Tiles, number
from manual_mlp.explain.compare import agree, attempt, central_difference, complex_step
from manual_mlp.explain.steps.mistakes import mistakes
from manual_mlp.explain.story import Story
from manual_mlp.explain.terminal import verdict_of

RIGHT = Formulas()
LOSSES = ("squared-error", "cross-entropy")
ANALYTIC = ("identity", "sigmoid", "tanh", "lecun_tanh", "sin")  # and torch's operations of them take complex numbers
CUBIC = Activation(f=lambda z: z**3, df=lambda z: 3 * z**2, d2f=lambda z: 6 * z, name="cubic")

# The steps that a formula slightly wrong turns red.
RED = {
    "cost_gradient": {2, 3, 4, 5, 6, 8, 10, 12},
    "delta": {3, 4, 5, 6, 8, 10, 12},
    "weight": {4, 5, 6, 7, 8, 10, 12},
    "stored_weight": {5},
    "bias": {5, 8, 10, 12},
    "input": {8, 10},
    "softmax": {9},
}


def wrong(field):
    right = getattr(RIGHT, field)
    return replace(RIGHT, **{field: lambda *arguments: 1.001 * right(*arguments)})


def matrices(step):
    parts = [part for block in step.blocks if isinstance(block, Numbers) for part in block.parts]
    return [part for part in parts if isinstance(part, Matrix)]


def shown(step, name):
    """The first matrix whose name starts so."""
    return next(matrix.values for matrix in matrices(step) if matrix.name.startswith(name))


def tables(step):
    return [block for block in step.blocks if isinstance(block, Table)]


def words(step):
    return " ".join(block.text for block in step.blocks if isinstance(block, Text))


def value(text):
    return float(text.replace("−", "-").replace(",", ""))


def red(steps):
    return {step.number for step in steps if step.failed}


def same(got, want, tolerance=1e-12):
    torch.testing.assert_close(got, torch.as_tensor(want, dtype=torch.float64), rtol=0, atol=tolerance)


@pytest.fixture(scope="module")
def net():
    return draw_network()


@pytest.fixture(scope="module")
def steps(net):
    return explain(net)


@pytest.fixture(scope="module")
def truth(net):
    """The textbook's sums over indices: Z, Y, dY, δ and the gradients, row by row."""
    f = reference.ACTIVATIONS["sigmoid"]()
    X, V, C, W, B, T = (t.tolist() for t in (net.x, net.v, net.c, net.w, net.b, net.target))
    H = [reference.row_forward(x, V, C, f) for x in X]
    Z = [reference.row_z(h, W, B) for h in H]
    Y = [reference.row_forward(h, W, B, f) for h in H]
    dY = [reference.dJ_dY(y, t) for y, t in zip(Y, T, strict=True)]
    rows = [reference.row_backward(h, W, B, dy, f) for h, dy in zip(H, dY, strict=True)]
    hidden = [reference.row_backward(x, V, C, row.dH, f) for x, row in zip(X, rows, strict=True)]
    found = {"f": f, "H": H, "W": W, "B": B, "T": T, "Z": Z, "Y": Y, "dY": dY, "rows": rows, "hidden": hidden}
    return {**found, "delta": [row.dB for row in rows]}


@pytest.fixture(scope="module")
def row(net, truth):
    """The row that steps 3, 4 and 9 look at: the one with most to show."""
    sizes = [math.fsum(map(abs, h)) * math.fsum(map(abs, d)) for h, d in zip(truth["H"], truth["delta"], strict=True)]
    return sizes.index(max(sizes))


def test_there_are_the_steps_0_to_12_and_each_ends_in_a_check_that_passes(steps):
    assert [step.number for step in steps] == list(range(13))
    for step in steps:
        assert isinstance(step.blocks[-1], Check), step.name
        assert step.checks
        assert not step.failed, step.name
    assert verdict_of(steps) == f"All {sum(len(step.checks) for step in steps)} checks passed."


def test_every_step_of_the_derivation_has_words_a_formula_or_table_numbers_and_a_picture(steps):
    for step in steps:
        kinds = {type(block) for block in step.blocks}
        assert Text in kinds, step.name
        assert kinds & {Formula, Table}, step.name
        assert kinds & {Numbers, Table}, step.name
        assert any(type(block).__name__ in ("Tiles", "Boxes", "Bars", "Areas") for block in step.blocks), step.name


def test_a_check_compares_different_things(steps):
    # A check that two rounding-free copies of one number agree would say nothing: somewhere rounding shows.
    errors = [check.error for step in steps for check in step.checks]
    assert any(error > 0 for error in errors)
    for step in steps[1:11]:
        # Step 7 multiplies two large matrices, as autograd does, and on some processors the same bits come out. That
        # its check can fail is said by RED.
        assert any(check.error > 0 for check in step.checks) or step.number in (7, 9), step.name


def test_step_0_multiplies_h_and_w(steps, net, truth):
    step = steps[0]
    same(shown(step, "H"), truth["H"])
    same(shown(step, "W"), truth["W"])
    same(shown(step, "Z"), truth["Z"])
    products, layouts = tables(step)
    y, t = truth["Y"][0], truth["T"][0]
    assert products.rows[0][2] == number(math.fsum(a * b for a, b in zip(y, t, strict=True)))
    assert products.rows[1][2] == ", ".join(number(a * b) for a, b in zip(y, t, strict=True))
    assert [r[-1] for r in products.rows] == ["1×1", "1×2", "3×2", "4×2"]
    assert [r[2::2] for r in layouts.rows] == [("4×3", "4×3"), ("3×2", "2×3"), ("1×2", "2"), ("3×2", "2×3")]


def test_step_1_moves_one_column_by_a_column_of_h(steps, truth):
    moved, h = shown(steps[1], "ΔZ"), shown(steps[1], "column")
    k = max(range(3), key=lambda k: sum(abs(row[k]) for row in truth["H"]))
    l = max(range(2), key=lambda l: sum(abs(row[l]) for row in truth["delta"]))
    same(h, [[row[k]] for row in truth["H"]])
    expected = [[row[k] * reference.kronecker(i, l) for i in range(2)] for row in truth["H"]]
    same(moved, expected, 1e-8)
    assert f"from input {k + 1} to output {l + 1}" in words(steps[1])


def test_step_2_is_a_dot_product_with_the_change_of_y(steps, truth):
    step = steps[2]
    u = shown(step, "U")
    same(shown(step, "∂J/∂Y"), truth["dY"])
    products = [[a * b for a, b in zip(dy, us, strict=True)] for dy, us in zip(truth["dY"], u.tolist(), strict=True)]
    same(shown(step, "∂J/∂Y ⊙ U"), products)
    dot = math.fsum(map(math.fsum, products))

    def cost(size):
        pairs = zip(truth["Y"], u.tolist(), truth["T"], strict=True)
        return math.fsum(
            reference.row_cost([a + size * b for a, b in zip(y, us, strict=True)], t) for y, us, t in pairs
        )

    (table,) = tables(step)
    assert [value(r[0]) for r in table.rows] == [0.1, 0.01, 0.001]
    for size, change, line, apart in (map(value, r) for r in table.rows):
        assert line == pytest.approx(dot, abs=1e-6)
        assert change == pytest.approx((cost(size) - cost(0)) / size, abs=1e-6)
        assert apart == pytest.approx(abs(change - dot), abs=2e-6)
    assert f"Here it is {number(cost(0))}, half the sum" in words(step)


def test_step_3_is_diagonal_and_its_delta_is_the_identity(steps, truth, row):
    step, Z = steps[3], truth["Z"][row]
    same(shown(step, "∂Y/∂B"), [[reference.dY_dB(i, l, Z, truth["f"]) for l in range(2)] for i in range(2)])
    same(shown(step, "I"), [[reference.kronecker(i, l) for l in range(2)] for i in range(2)])
    same(shown(step, "f′(Z)"), [[truth["f"].df(z)] for z in Z])
    same(shown(step, "∂J/∂Y"), [truth["dY"][row]])
    assert f"row {row + 1}:" in words(step)
    deltas = [matrix.values for matrix in matrices(step) if matrix.name == "δ"]
    same(deltas[0], [truth["delta"][row]])


def test_step_4_shows_the_whole_rank_3_array_and_what_is_left_of_it(steps, truth, row):
    step, H, Z = steps[4], truth["H"][row], truth["Z"][row]
    for i, name in enumerate(("∂Y₁/∂W", "∂Y₂/∂W")):
        array = [[reference.dY_dW(i, k, l, H, Z, truth["f"]) for l in range(2)] for k in range(3)]
        same(shown(step, name), array)
    same(shown(step, "∂J/∂W of this row"), truth["rows"][row].dW)
    same(shown(step, "Hᵀ"), [[h] for h in H])
    assert "= 12 numbers" in words(step)
    assert "6 numbers of the 12 are zero" in words(step)


def test_step_5_adds_the_outer_products_row_by_row(steps, truth):
    step = steps[5]
    for n, of_row in enumerate(truth["rows"]):
        outer = [[h * d for d in truth["delta"][n]] for h in truth["H"][n]]
        same(shown(step, f"row {n + 1}"), outer)
        same(shown(step, f"row {n + 1}"), of_row.dW)
    total = [[math.fsum(r.dW[k][l] for r in truth["rows"]) for l in range(2)] for k in range(3)]
    same(shown(step, "the sum"), total)
    same(shown(step, "∂J/∂W"), total)
    same(shown(step, "δ"), truth["delta"])
    same(shown(step, "∂J/∂B"), [[math.fsum(d[l] for d in truth["delta"]) for l in range(2)]])


def test_step_6_the_transpose_passes_and_both_inverses_fail(steps):
    step = steps[6]
    (table,) = tables(step)
    assert len(table.rows) == 3
    for line in table.rows:
        forward, transpose, pseudo = map(value, line[1:])
        assert forward == pytest.approx(transpose, abs=1e-6)
        assert abs(pseudo - forward) > 1e-2
    worst = max(abs(value(line[3]) - value(line[1])) for line in table.rows)
    off = re.search(r"pseudo-inverse is off by up to ([\d.]+)", words(step))
    assert float(off[1].rstrip(".")) == pytest.approx(worst, abs=1e-4)
    side, same_side, inverse = re.search(
        r"`⟨δ, H dW⟩` is (\S+)\. With the transpose it is (\S+), and with the inverse (\S+)\.", words(step)
    ).groups()
    assert side == same_side != inverse
    assert "The inverse is off." in words(step)


def test_step_7_counts_what_a_jacobian_would_hold(steps):
    (table,) = tables(steps[7])
    rows, inputs, outputs = 64, 784, 128
    jacobian = (rows * outputs) * (inputs * outputs)
    assert [line[1] for line in table.rows] == [
        f"{jacobian:,}",
        f"{rows * inputs * outputs:,}",
        f"{inputs * outputs:,}",
    ]
    assert table.rows[0][2] == f"{4 * jacobian / 1e9:.3g} GB"
    assert table.rows[1][2] == f"{4 * rows * inputs * outputs / 1e6:.3g} MB"
    assert "one in 128" in table.rows[1][0]
    assert table.rows[2][2] == f"{4 * inputs * outputs / 1e3:.3g} kB"


def test_step_8_is_the_layer_below_and_a_step_down_lowers_the_cost(steps, net, truth):
    step = steps[8]
    same(shown(step, "∂J/∂H"), [row.dH for row in truth["rows"]])
    same(shown(step, "γ"), [row.dB for row in truth["hidden"]])
    gradient = [[math.fsum(row.dW[k][l] for row in truth["hidden"]) for l in range(3)] for k in range(5)]
    same(shown(step, "∂J/∂V"), gradient)
    before, after = map(value, re.search(r"takes J from (\S+) to (\S+?)\.?$", words(step)).groups())
    assert (
        after
        < before
        == pytest.approx(
            math.fsum(reference.row_cost(y, t) for y, t in zip(truth["Y"], truth["T"], strict=True)), abs=1e-6
        )
    )
    parameters = [net.v, net.c, net.w, net.b]
    leaves = [t.clone().requires_grad_() for t in parameters]
    gradients = torch.autograd.grad(net.whole_cost(net.x, *leaves), leaves)
    moved = net.whole_cost(net.x, *(t - g for t, g in zip(parameters, gradients, strict=True)))
    assert after == pytest.approx(float(moved), abs=1e-6)


def test_step_9_the_softmax_jacobian_is_full_and_delta_is_p_minus_t(steps, truth, row):
    step = steps[9]
    p = reference.softmax(truth["Z"][row])
    answer = truth["T"][row].index(max(truth["T"][row]))
    jacobian = [[reference.dp_dZ(i, l, p) for l in range(2)] for i in range(2)]
    same(shown(step, "∂p/∂S"), jacobian)
    assert all(entry != 0 for line in jacobian for entry in line)
    same(shown(step, "p"), [p])
    by_sum = [-reference.dp_dZ(answer, l, p) / p[answer] for l in range(2)]
    same(shown(step, "∂J/∂S"), [by_sum])
    assert f"here class {answer + 1}." in words(step)
    assert f"`∂J/∂p` is {number(-1 / p[answer])} there" in words(step)


def test_step_10_compares_five_derivatives_three_ways(steps):
    (table,) = tables(steps[10])
    ways = ("autograd", "central difference", "complex step")
    assert [line[:2] for line in table.rows] == [(f"∂J/∂{x}", way) for x in "WBVCX" for way in ways]
    for _, way, apart, places in table.rows:
        assert value(apart) <= (1e-6 if way == "central difference" else 1e-12)
        # Units in the last place of numbers that are not tiny: few where nothing was subtracted.
        assert value(places) >= 0
    assert len(steps[10].checks) == 15


def test_units_in_the_last_place_are_counted_in_the_gaps_of_float64():
    from manual_mlp.explain.compare import last_places

    one = torch.tensor([1.0, -2.0, 0.0], dtype=torch.float64)
    assert last_places(one, one) == 0
    assert last_places(torch.nextafter(one, torch.full_like(one, 9.0))[:2], one[:2]) == pytest.approx(1, abs=0.51)
    assert last_places(torch.tensor([1 + 3 * 2.0**-52], dtype=torch.float64), one[:1]) == 3


def test_step_12_moves_the_weights_by_the_image_times_delta(steps):
    step = steps[12]
    (table,) = tables(step)
    delta = [value(line[1]) for line in table.rows]
    assert [i for i, d in enumerate(delta) if d < 0] == [7]
    assert sum(delta) == pytest.approx(0, abs=1e-3)
    image, updates = (block for block in step.blocks if isinstance(block, Tiles))
    assert len(updates.parts) == 10
    for tile, d in zip(updates.parts, delta, strict=True):
        torch.testing.assert_close(tile.values, -d * image.parts[0].values, rtol=0, atol=1e-4)
    before, after = map(value, re.search(r"goes from (\S+) to (\S+?)\.?$", words(step)).groups())
    assert before < after


@pytest.mark.parametrize("digit", range(10))
def test_every_embedded_digit_is_the_one_of_scikit_learn(digit):
    datasets = pytest.importorskip("sklearn.datasets")
    from manual_mlp.explain.digits import image_of

    found = datasets.load_digits()
    first = found.images[list(found.target).index(digit)]
    image = image_of(digit)
    torch.testing.assert_close(image / image.max(), torch.tensor(first).double() / first.max())


@pytest.mark.parametrize("field", RED)
def test_a_formula_a_thousandth_off_turns_its_steps_red_and_the_first_is_named(net, field):
    found = explain(net, wrong(field), mistaken=())
    assert red(found) == RED[field]
    first = found[min(RED[field])]
    failed = [check for step in found for check in step.failed]
    total = sum(len(step.checks) for step in found)
    assert verdict_of(found).startswith(
        f"{len(failed)} of {total} checks failed, first in {first.name}: {failed[0].name}"
    )


def test_a_wrong_slope_turns_every_step_red_that_rests_on_it():
    sigmoid = activations.get("sigmoid")
    crooked = Activation(torch.sigmoid, lambda z: 1.001 * sigmoid.df(z), sigmoid.d2f)
    assert red(explain(draw_network(activation=crooked), mistaken=())) == {3, 4, 5, 6, 8, 10}


def test_a_wrong_z_is_found_at_once():
    crooked = draw_network()
    vars(crooked)["z"] = 1.001 * crooked.z
    assert {0, 1} <= red(explain(crooked, mistaken=()))


def test_a_mistake_that_no_step_catches_fails_step_11(net):
    step = mistakes(Story(net), [], lambda story: [], ["slope-forgotten", "convention-swapped"])
    assert [check.name for check in step.failed] == [
        "slope-forgotten",
        "convention-swapped",
    ]


def test_every_check_goes_red_for_some_wrong_formula(net, steps):
    sigmoid, crooked_z = activations.get("sigmoid"), draw_network()
    vars(crooked_z)["z"] = 1.001 * crooked_z.z
    crooked = Activation(torch.sigmoid, lambda z: 1.001 * sigmoid.df(z), sigmoid.d2f)
    runs = [explain(net, wrong(field), mistaken=()) for field in RED]
    runs += [explain(crooked_z, mistaken=()), explain(draw_network(activation=crooked), mistaken=())]
    fell = {(step.number, check.name, check.against) for run in runs for step in run for check in step.failed}
    every = {(step.number, check.name, check.against) for step in steps if step.number != 11 for check in step.checks}
    # What these compare takes none of the formulas: it is mathematics, and autograd against autograd.
    fixed = {"einsum with the identity = the sum over i", "pᵢ (Iᵢₗ − pₗ) = ∂p/∂S"}
    fixed |= {"∂J/∂W, in W's shape, = the transpose of weight.grad"}
    assert {name for _, name, _ in every - fell} <= fixed


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize(
    "sizes", [(1, 1, 1), (1, 2, 1), (3, 1, 4), (3, 2, 1), (5, 7, 3), (4, 3, 4), (3, 3, 3), (1, 6, 2)]
)
@pytest.mark.parametrize("activation", ["gelu"])
def test_all_checks_pass_at_other_sizes(sizes, loss, activation):
    if sizes[1] == 1 and loss == "cross-entropy":
        with pytest.raises(ValueError, match="at least 2 outputs"):
            draw_network(*sizes, activation, loss)
        return
    found = explain(draw_network(*sizes, activation, loss, seed=1), mistaken=(), seed=1)
    assert verdict_of(found).startswith("All"), verdict_of(found)
    assert [step.number for step in found] == list(range(13))


@pytest.mark.parametrize("name", activations.names())
def test_all_checks_pass_for_every_activation_by_name(name):
    for sizes, loss, seed in (
        ((3, 2, 4), "squared-error", 2),
        ((5, 7, 3), "cross-entropy", 3),
        ((2, 1, 6), LOSSES[0], 4),
    ):
        found = explain(draw_network(*sizes, name, loss, seed), mistaken=(), seed=seed)
        assert verdict_of(found).startswith("All"), (sizes, verdict_of(found))


@pytest.mark.parametrize(
    "activation",
    [
        CUBIC,
        nn.LeakyReLU(0.3),
        nn.Hardtanh(-0.2, 0.3),
        nn.ELU(2.0),
        nn.Softplus(beta=3.0, threshold=2.0),
        nn.GELU(approximate="tanh"),
        nn.CELU(0.5),
        None,
    ],
    ids=repr,
)
def test_all_checks_pass_for_modules_and_for_an_activation_of_ones_own(activation):
    for loss in LOSSES:
        found = explain(draw_network(4, 3, 5, activation, loss), mistaken=())
        assert verdict_of(found).startswith("All"), verdict_of(found)


@pytest.mark.parametrize(
    ("activation", "said"), [("gelu_tanh", "tanh"), (nn.GELU(approximate="tanh"), "tanh"), (nn.LeakyReLU(0.3), "0.3")]
)
def test_the_function_is_told_from_its_namesakes(activation, said):
    assert said in words(explain(draw_network(activation=activation), mistaken=())[0])


@pytest.mark.parametrize("seed", [-1, 1, 2, 3, 2**40, -(2**63), 2**63 - 1])
def test_all_checks_pass_for_any_seed(seed):
    found = explain(draw_network(seed=seed), mistaken=(), seed=seed)
    assert verdict_of(found).startswith("All"), verdict_of(found)


def test_a_larger_layer_passes_and_shows_only_a_part_of_its_matrices():
    found = explain(draw_network(30, 12, 25, "silu", "cross-entropy"), mistaken=())
    assert verdict_of(found).startswith("All"), verdict_of(found)
    slices = [matrix for matrix in matrices(found[4]) if re.fullmatch("∂Y[₁-₉]/∂W", matrix.name)]
    assert [matrix.values.shape for matrix in slices] == [(30, 12)] * 4


@pytest.mark.parametrize("loss", LOSSES)
def test_all_checks_pass_for_numbers_of_ones_own(loss):
    draw = torch.Generator().manual_seed(5)
    x, v, c, w, b, t = (
        torch.randn(*sides, generator=draw, dtype=torch.float64)
        for sides in ((6, 2), (2, 4), (4,), (4, 3), (3,), (6, 3))
    )
    target = torch.softmax(t, 1) if loss == "cross-entropy" else t
    found = explain(Network(x, v, c, w, b, target, "tanh", loss), mistaken=())
    assert verdict_of(found).startswith("All"), verdict_of(found)


def test_lists_of_whole_numbers_are_numbers_too():
    found = explain(Network([[1, 2]], [[1], [2]], [0], [[3, -1]], [1, 0], [[0, 1]]), mistaken=())
    assert verdict_of(found).startswith("All"), verdict_of(found)


def test_logits_far_apart_do_not_spoil_the_softmax():
    one, w = torch.ones(1, 1), torch.tensor([[900.0, -900.0]])
    own = Network(one, one, torch.zeros(1), w, torch.zeros(2), torch.tensor([[0.0, 1.0]]), "identity")
    assert not explain(own, mistaken=())[9].failed


def test_the_complex_step_is_taken_for_analytic_functions_alone():
    for activation in (*ANALYTIC, "relu", "gelu", "silu", "softsign", CUBIC, nn.Tanh(), nn.Hardtanh()):
        step = explain(draw_network(activation=activation), mistaken=())[10]
        name = activations.get(activation).name
        taken = {line[0] for line in tables(step)[0].rows if line[1] == "complex step"}
        assert taken == ({f"∂J/∂{x}" for x in "WBVCX"} if name in ANALYTIC else set()), name
        assert ("at hand for this f" in words(step)) == (name in ANALYTIC)


def test_no_false_reason_is_given_where_there_is_no_complex_step():
    # SiLU is z σ(z), and x³ is x³, for complex numbers as well: it is only not computed here.
    for activation in ("silu", "softplus", CUBIC):
        said = words(explain(draw_network(activation=activation), mistaken=())[10])
        assert "has no form for complex numbers" not in said, activation


def test_a_complex_step_is_exact():
    at = torch.tensor([[0.3, -1.2], [2.0, 0.0]], dtype=torch.float64)
    found, entries = complex_step(lambda x: (x.sin() * x).sum(), at)
    assert entries.tolist() == [0, 1, 2, 3]
    same(found, [math.sin(x) + x * math.cos(x) for x in at.flatten().tolist()], 1e-15)
    with pytest.raises(RuntimeError, match="complex"):
        complex_step(lambda x: torch.heaviside(x, x).sum(), at)  # it is taken in complex numbers, or not at all
    found, entries = complex_step(lambda x: (x**3).sum(), torch.arange(100.0, dtype=torch.float64), most=5)
    assert entries.tolist() == [0, 25, 50, 74, 99]
    torch.testing.assert_close(found, 3 * entries.double() ** 2)


@pytest.mark.parametrize("distance", [1e-2, 1e-4, 1e-5, 2e-6, -2e-6, -1e-5, -1e-4])
@pytest.mark.parametrize("name", ["relu", "leaky_relu", "softsign", "elu", "squared_relu"])
def test_a_kink_nearby_does_not_spoil_a_central_difference(name, distance):
    f, at = activations.get(name), torch.tensor([distance], dtype=torch.float64)
    slope = central_difference(lambda z: f.f(z).sum(), at, torch.ones(1, dtype=torch.float64))
    assert slope == pytest.approx(reference.ACTIVATIONS[name]().df(distance), abs=1e-6)


@pytest.mark.parametrize(
    "name", ["relu", "hardtanh", "relu6", "hardsigmoid", "hardswish", "softsign", "leaky_relu", "selu"]
)
def test_the_numbers_that_are_drawn_lie_on_no_kink(name):
    f = activations.get(name)
    for seed in range(40):
        drawn = draw_network(4, 3, 5, name, seed=seed)
        for z in (drawn.z1, drawn.z):
            assert torch.allclose(f.df(z - 5e-7), f.df(z + 5e-7), atol=1e-4, rtol=0), seed


@pytest.mark.parametrize("name", ["relu", "relu6", "squared_relu", "hardtanh", "hardsigmoid", "tanh"])
def test_the_numbers_that_are_drawn_have_something_to_show(name):
    for seed in range(10):
        drawn = draw_network(activation=name, seed=seed)
        slopes = drawn.f.df(drawn.z)
        assert slopes.abs().max() > 0, f"every gradient is 0, of seed {seed}"
        if "relu" in name:
            assert slopes.min() < slopes.max(), f"f could be a straight line, of seed {seed}"


def test_a_network_is_drawn_of_numbers_with_one_decimal():
    for seed in range(3):
        for activation in ("sigmoid", "tanh"):
            drawn = draw_network(activation=activation, seed=seed)
            for name in ("x", "v", "w", "target"):
                given = getattr(drawn, name)
                # As good as float64 has them, or 0.2 is shown and 0.20000000298 is meant.
                same(given, (10 * given).round() / 10, 1e-15)


def test_the_same_seed_draws_the_same_whatever_torch_is_set_to():
    before = torch.get_rng_state()
    first = draw_network(seed=3, activation="relu")
    explain(first, mistaken=())
    assert torch.equal(torch.get_rng_state(), before)
    torch.set_default_dtype(torch.float64)
    try:
        second = draw_network(seed=3, activation="relu")
    finally:
        torch.set_default_dtype(torch.float32)
    for name in ("x", "v", "c", "w", "b", "target"):
        assert torch.equal(getattr(first, name), getattr(second, name)), name


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_it_can_be_explained_where_gradients_are_off(net, mode):
    with mode():
        assert verdict_of(explain(net, mistaken=())).startswith("All")


def test_the_same_network_is_explained_in_the_same_numbers(net):
    first, second = (explain(net, mistaken=()) for _ in range(2))
    assert [check.error for step in first for check in step.checks] == [
        check.error for step in second for check in step.checks
    ]


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ({"inputs": 0}, "expected inputs, outputs and batch of at least 1, got 0, 2, 4"),
        ({"outputs": -1}, "at least 1, got 3, -1, 4"),
        ({"batch": 0}, "at least 1, got 3, 2, 0"),
        ({"outputs": 5000}, "expected inputs · outputs² of at most 1,048,576"),
        ({"batch": 10**8}, "expected batch · (inputs + outputs) of at most 1,048,576"),
        ({"inputs": 100_000}, "at most"),
        ({"activation": "sine"}, "expected an activation among"),
        ({"loss": "l1"}, "expected a loss among squared-error, cross-entropy, got 'l1'"),
        ({"outputs": 1, "loss": "cross-entropy"}, "at least 2 outputs"),
    ],
)
def test_a_network_that_cannot_be_drawn_is_an_error_in_words(arguments, expected):
    with pytest.raises(ValueError, match=re.escape(expected)):
        draw_network(**arguments)


@pytest.mark.parametrize("name", ["v", "c", "b", "target"])
def test_shapes_that_do_not_fit_are_an_error_in_words(net, name):
    with pytest.raises(ValueError, match=rf"expected {name} \(.*got \(9, 9\)"):
        replace(net, **{name: torch.zeros(9, 9)})


def test_a_row_that_is_no_probability_is_an_error_in_words(net):
    # The formula p − Y* rests on rows that add up to 1: with others correct code would be called wrong.
    with pytest.raises(ValueError, match="target"):
        replace(net, loss="cross-entropy", target=torch.full((4, 2), 3.0))


def test_numbers_that_are_not_finite_are_an_error_in_words(net):
    with pytest.raises(ValueError, match="finite"):
        explain(replace(net, w=torch.full((3, 2), math.nan)), mistaken=())


def test_an_unknown_mistake_is_an_error_in_words(net):
    with pytest.raises(ValueError, match="slope-forgotten"):
        explain(net, mistaken=("slope",))


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.0, "0"),
        (-0.0, "0"),
        (2.0, "2"),
        (-0.5, "−0.5"),
        (0.12345, "0.1235"),
        (0.3 - 0.2, "0.1"),
        (1 - 1e-13, "1"),
        (1 + 1e-13, "1"),
        (-(0.3 - 0.2), "−0.1"),
        (1e-5, "1.00e−05"),
        (-3e7, "−3.00e+07"),
        (math.nan, "nan"),
        (math.inf, "inf"),
    ],
)
def test_a_number_is_written_as_a_reader_would(value, text):
    assert number(value) == text


def test_nan_and_other_shapes_never_agree():
    want = torch.zeros(2, 3)
    assert not agree("", torch.full((2, 3), math.nan), want).passed
    assert not agree("", torch.zeros(2, 3), torch.full((2, 3), math.nan)).passed
    assert not agree("", torch.zeros(3, 2), want).passed
    assert not agree("", torch.zeros(3), want).passed
    assert not agree("", attempt(torch.mm, want, want), want).passed
    assert agree("", torch.zeros(2, 3), want).passed


def test_a_picture_never_has_an_empty_part(steps):
    for step in steps:
        for block in step.blocks:
            if isinstance(block, (Tiles, Boxes)):
                assert block.parts, step.name
            if isinstance(block, Bars):
                assert block.bars, step.name
