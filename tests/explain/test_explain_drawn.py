"""The network that is explained: how its numbers are drawn, written and refused."""

import math
import re
from dataclasses import replace

import pytest
import torch

from manual_mlp import activations
from manual_mlp.explain import draw_network, explain
from manual_mlp.explain.blocks import Bars, Tiles
from manual_mlp.explain.compare import agree, attempt
from manual_mlp.explain.terminal import verdict_of
from manual_mlp.explain.writing import number
from shown import same


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
        ({"loss": "l1"}, "expected a loss among cross-entropy, squared-error, binary-cross-entropy, got 'l1'"),
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
        for block in step.shown:
            if isinstance(block, Tiles):
                assert block.parts, step.name
            if isinstance(block, Bars):
                assert block.bars, step.name
