"""The steps of the explanation: their numbers are those of sums over indices."""

# The index l is the textbook's.
# ruff: noqa: E741
import math
import re

import pytest
import torch

import reference
from faces import Counted
from manual_mlp.explain import draw_network
from manual_mlp.explain.blocks import Areas, Bars, Check, Curve, Exercise, Formula, Numbers, Table, Text, Tiles
from manual_mlp.explain.steps.forward import nudge
from manual_mlp.explain.story import Story
from manual_mlp.explain.terminal import verdict_of
from manual_mlp.explain.writing import number
from shown import matrices, same, shown, tables, value, words


def test_there_are_the_steps_0_to_13_and_each_but_the_exercises_ends_in_a_check_that_passes(steps):
    assert [step.number for step in steps] == list(range(14))
    assert all(isinstance(block, Exercise) for block in steps[13].blocks[1:])
    for step in steps[:13]:
        assert isinstance(step.shown[-1], Check), step.name
        assert step.checks
        assert not step.failed, step.name
    assert verdict_of(steps) == f"All {sum(len(step.checks) for step in steps)} checks passed."


def test_every_step_of_the_derivation_has_words_a_formula_or_table_numbers_and_a_picture(steps):
    for step in steps[:13]:
        kinds = {type(block) for block in step.shown}
        assert Text in kinds, step.name
        assert kinds & {Formula, Table}, step.name
        assert kinds & {Numbers, Table}, step.name
        assert kinds & {Tiles, Curve, Bars, Areas}, step.name


def test_a_check_compares_different_things(steps):
    # A check that two rounding-free copies of one number agree would say nothing: somewhere rounding shows.
    errors = [check.error for step in steps for check in step.checks]
    assert any(error > 0 for error in errors)
    for step in steps[1:11]:
        # Step 1 takes the slope of a straight line, and step 7 multiplies two large matrices, as autograd does: on some
        # processors the same bits come out. That its check can fail is said by RED.
        assert any(check.error > 0 for check in step.checks) or step.number in (1, 7, 9), step.name


def test_step_0_says_what_each_sign_means_on_a_row_of_numbers(steps, truth, row):
    step = steps[0]
    same(shown(step, "H"), [truth["H"][row]])
    same(shown(step, "W"), truth["W"])
    same(shown(step, "Z"), [truth["Z"][row]])
    same(shown(step, "Y"), [truth["Y"][row]])
    same(shown(step, "f′(Z)"), [[truth["f"].df(z) for z in truth["Z"][row]]])
    curve = next(block for block in step.blocks if isinstance(block, Curve))
    same(curve.y, [truth["Y"][row]])
    assert all(y == pytest.approx(1 / (1 + math.exp(-z)), abs=1e-12) for z, y in curve.line.tolist())
    _, products = tables(step)
    layouts = tables(steps[5])[0]
    h, y, t = truth["H"][row], truth["Y"][row], truth["T"][row]
    assert products.rows[0][2] == number(math.fsum(a * b for a, b in zip(y, t, strict=True)))
    assert products.rows[1][2] == ", ".join(number(a * b) for a, b in zip(y, t, strict=True))
    assert products.rows[2][2] == ", ".join(number(h[k] * y[l]) for k, l in ((0, 0), (0, 1), (1, 0))) + ", …"
    sums = [math.fsum(h[k] * truth["W"][k][l] for k in range(3)) for l in range(2)]
    assert products.rows[3][2] == ", ".join(map(number, sums))
    assert [r[-1] for r in products.rows] == ["1×1", "1×2", "3×2", "1×2"]
    assert [r[2::2] for r in layouts.rows] == [("4×3", "4×3"), ("3×2", "2×3"), ("1×2", "2"), ("3×2", "2×3")]


def test_step_1_moves_one_column_by_a_column_of_h(steps, truth):
    moved, h = shown(steps[1], "ΔZ"), shown(steps[1], "column")
    k = max(range(3), key=lambda k: sum(abs(row[k]) for row in truth["H"]))
    l = max(range(2), key=lambda l: sum(abs(row[l]) for row in truth["delta"]))
    same(h, [[row[k]] for row in truth["H"]])
    expected = [[row[k] * reference.kronecker(i, l) for i in range(2)] for row in truth["H"]]
    same(moved, expected, 1e-8)
    assert f"from input {k + 1} to output {l + 1}" in words(steps[1])


def test_step_1_takes_no_more_operations_for_a_large_layer():
    counts = []
    for sizes in ((3, 2, 4), (200, 30, 50)):
        story = Story(draw_network(*sizes))
        assert story.looked_at
        with Counted() as counted:
            assert not nudge(story).failed
        counts.append(counted.operations)
    assert counts[0] == counts[1] < 1000


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
    assert f"Over 4 rows, J is {number(cost(0))}." in words(steps[0])
    assert "Here J is half the sum" in words(step)


def test_step_3_is_diagonal_and_its_delta_is_the_identity(steps, truth, row):
    step, Z = steps[3], truth["Z"][row]
    same(shown(step, "∂Y/∂B"), [[reference.dY_dB(i, l, Z, truth["f"]) for l in range(2)] for i in range(2)])
    same(shown(step, "I"), [[reference.kronecker(i, l) for l in range(2)] for i in range(2)])
    same(shown(step, "f′(Z)"), [[truth["f"].df(z)] for z in Z])
    same(shown(step, "∂J/∂Y"), [truth["dY"][row]])
    assert f"Row {row + 1} alone" in words(step)
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
    assert "6 of the 12 are zero" in words(step)


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


def test_step_6_the_transpose_passes_and_the_inverse_fails(steps, net, truth):
    step = steps[6]
    (table,) = tables(step)
    assert len(table.rows) == 3
    assert len({line[1] for line in table.rows}) == 3
    for line in table.rows:
        forward, transpose = map(value, line[1:])
        assert forward == pytest.approx(transpose, abs=1e-6)
    same_side, other, off = re.search(
        r"With the transpose `⟨Hᵀδ, U⟩` is (\S+), as .* in its place it is (\S+), off by (\S+)\. \(", words(step)
    ).groups()
    h, delta = net.h[:3], torch.tensor(truth["delta"], dtype=torch.float64)[:3]
    u = (10 * torch.cos(1.7 * 3 * torch.arange(1.0, 7, dtype=torch.float64)).view(3, 2)).round() / 10
    assert same_side == number(float((delta * (h @ u)).sum()))
    assert other == number(float((torch.linalg.solve(h, delta) * u).sum()))
    assert value(off) > 0.1
    assert "H is 4×3, so it has none. Its first rows and columns, 3×3, may have one:" in words(step)


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
    assert len(steps[10].checks) == 20


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
