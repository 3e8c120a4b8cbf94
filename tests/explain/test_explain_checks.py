"""The checks of the explanation: they pass for every network, and go red for a formula slightly wrong."""

import math
import re

import pytest
import torch
from torch import nn

import reference
from manual_mlp import Activation, activations
from manual_mlp.explain import Network, draw_network, explain, story
from manual_mlp.explain.compare import central_difference, complex_step
from manual_mlp.explain.steps.mistakes import mistakes
from manual_mlp.explain.story import Story
from manual_mlp.explain.terminal import verdict_of
from shown import ANALYTIC, CUBIC, LOSSES, RED, matrices, red, same, tables, words, wrong


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
    assert red(explain(draw_network(activation=crooked), mistaken=())) == {0, 3, 4, 5, 6, 8, 10}


@pytest.mark.parametrize(("name", "wrong"), [("Z", "1.001 * (H @ W + B)"), ("Y", "1.001 * f(Z)")])
def test_a_wrong_z_or_y_is_found_at_once(monkeypatch, name, wrong):
    monkeypatch.setitem(story._FORWARD, name, wrong)
    assert min(red(explain(draw_network(), mistaken=()))) == 0


def test_a_mistake_that_no_step_catches_fails_step_11(net):
    step = mistakes(Story(net), [], lambda story: [], ["slope-forgotten", "convention-swapped"])
    assert [check.name for check in step.failed] == [
        "slope-forgotten",
        "convention-swapped",
    ]


def test_every_check_goes_red_for_some_wrong_formula(net, steps, monkeypatch):
    sigmoid = activations.get("sigmoid")
    crooked = Activation(torch.sigmoid, lambda z: 1.001 * sigmoid.df(z), sigmoid.d2f)
    runs = [explain(net, wrong(field), mistaken=()) for field in RED]
    runs.append(explain(draw_network(activation=crooked), mistaken=()))
    monkeypatch.setitem(story._FORWARD, "Z", "1.001 * (H @ W + B)")
    runs.append(explain(net, mistaken=()))
    fell = {(step.number, check.name, check.against) for run in runs for step in run for check in step.failed}
    every = {(step.number, check.name, check.against) for step in steps if step.number != 11 for check in step.checks}
    # What these compare takes none of the formulas: it is mathematics, and autograd against autograd.
    fixed = {"Hₙₖ Iᵢₗ = ∂Zₙᵢ/∂Wₖₗ", "pᵢ (Iᵢₗ − pₗ) = ∂p/∂S"}
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
    assert [step.number for step in found] == list(range(14))


@pytest.mark.parametrize("name", activations.names())
def test_all_checks_pass_for_every_activation_by_name(name):
    for sizes, loss, seed in (
        ((3, 2, 4), "squared-error", 2),
        ((5, 7, 3), "cross-entropy", 3),
        ((2, 1, 6), "binary-cross-entropy", 4),
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


@pytest.mark.parametrize(
    ("activation", "said"),
    [
        ("gelu", "Here f is gelu: `f(z) = z·Φ(z)`."),
        ("gelu_tanh", "Here f is gelu('tanh'): `f(z) = z·(1 + t)/2`, where `c = √(2/π)`, `a = 0.044715`, `t = tanh("),
        (
            nn.LeakyReLU(0.3),
            "Here f is leaky_relu(0.3): `f(z) = z if z > 0, else negative_slope·z`, where `negative_slope = 0.3`",
        ),
        ("sigmoid", "Here f is sigmoid: `f(z) = 1/(1 + exp(−z))`."),
    ],
)
def test_the_function_is_told_with_its_formula_and_the_numbers_in_it(activation, said):
    assert said in words(explain(draw_network(activation=activation), mistaken=())[0])
    assert "`f(z) = " not in words(explain(draw_network(activation=CUBIC), mistaken=())[0])


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
    for activation in (*ANALYTIC, "relu", "gelu", "softsign", CUBIC, nn.Tanh(), nn.Hardtanh()):
        step = explain(draw_network(activation=activation), mistaken=())[10]
        name = activations.get(activation).name
        taken = {line[0] for line in tables(step)[0].rows if line[1] == "complex step"}
        analytic = name in ANALYTIC or activation is CUBIC
        assert taken == ({f"∂J/∂{x}" for x in "WBVCX"} if analytic else set()), name
        assert ("at hand for this f" in words(step)) == analytic


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
