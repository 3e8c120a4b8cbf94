"""Eight usual mistakes: each is caught by name, where it should be, or told to be harmless where it is."""

import pytest
import torch

from manual_mlp.__main__ import main
from manual_mlp.explain import MISTAKES, Formulas, draw_network, explain
from manual_mlp.explain.blocks import Heading, Matrix, Numbers, Refused, Text, Tiles
from manual_mlp.explain.terminal import verdict_of

NAMES = [
    "transpose-dropped",
    "product-for-hadamard",
    "slope-forgotten",
    "slope-at-output",
    "mean-for-sum",
    "bias-not-summed",
    "convention-swapped",
    "softmax-as-diagonal",
]
# The step that catches it, at the default sizes.
CAUGHT = dict(zip(NAMES, (4, 3, 3, 3, 5, 5, 5, 9), strict=True))


def parts(step):
    """The blocks of step 11, by the mistake they are about."""
    found = {}
    for block in step.shown:
        if isinstance(block, Heading):
            found[block.text] = []
        elif found:
            found[list(found)[-1]].append(block)
    return found


def told(blocks):
    return " ".join(block.text for block in blocks if isinstance(block, Text))


def numbers(blocks):
    """The wrong matrix and the right one; where torch refuses here, those of the square case."""
    pairs = [
        [part for part in block.parts if isinstance(part, Matrix)] for block in blocks if isinstance(block, Numbers)
    ]
    assert all(pair[0].name.endswith(", wrong") and pair[1].name.endswith(", right") for pair in pairs)
    here, *square = [tuple(part.values for part in pair) for pair in pairs]
    assert len(square) == isinstance(here[0], Refused)
    return square[0] if square else here


def first_red(network, name):
    steps = explain(network, MISTAKES[name].formulas, mistaken=(name,))
    return next((step.number for step in steps if step.failed), None)


@pytest.fixture(scope="module")
def eleven(net):
    return parts(explain(net)[11])


@pytest.fixture(scope="module")
def square():
    """Where all sides are equal torch refuses nothing."""
    return draw_network(3, 3, 3)


def test_there_are_eight_and_each_says_what_is_wrong_and_why(eleven):
    assert list(MISTAKES) == list(eleven) == NAMES
    for name, mistake in MISTAKES.items():
        assert mistake.name == name
        assert mistake.wrong != mistake.right
        assert mistake.formulas != Formulas()
        assert getattr(mistake.formulas, mistake.of) is not getattr(Formulas(), mistake.of)
        assert mistake.why in told(eleven[name])


@pytest.mark.parametrize("name", NAMES)
def test_step_11_names_the_step_that_catches_it(eleven, name):
    assert f"Caught in step {CAUGHT[name]}, " in told(eleven[name])
    assert all(check.passed for check in eleven[name] if hasattr(check, "passed"))


@pytest.mark.parametrize("name", NAMES)
def test_the_explanation_told_with_it_fails_there_first(net, name):
    assert first_red(net, name) == CAUGHT[name]


@pytest.mark.parametrize("name", NAMES)
def test_the_command_fails_with_status_1_and_names_the_step(capsys, name):
    assert main(["explain", "--break", name]) == 1
    out, err = capsys.readouterr()
    assert err.startswith("failed: ")
    assert err.count("\n") == 1
    assert f"first in step {CAUGHT[name]}, " in err
    assert out.startswith(f"Told with a mistake, {name}: {MISTAKES[name].wrong}, instead of {MISTAKES[name].right}.")
    assert "FAILED" in out
    assert out.splitlines()[-1] == err.strip().removeprefix("failed: ")


@pytest.mark.parametrize("loss", ["squared-error", "cross-entropy"])
def test_the_first_step_of_a_diagonal_softmax_is_that_of_its_loss(loss):
    caught = {"squared-error": 9, "cross-entropy": 2}[loss]
    assert first_red(draw_network(loss=loss), "softmax-as-diagonal") == caught


def test_the_numbers_shown_are_what_the_mistake_gives(square):
    shown = {name: numbers(blocks) for name, blocks in parts(explain(square)[11]).items()}
    h, z, y, t = square.h, square.z, square.y, square.target
    slope = y * (1 - y)
    delta, one_hot = (y - t) * slope, torch.nn.functional.one_hot(t.argmax(1), 3)
    p = torch.exp(z) / torch.exp(z).sum(1, keepdim=True)
    expected = {
        "transpose-dropped": (h @ delta, h.T @ delta),
        "product-for-hadamard": ((y - t) @ slope, delta),
        "slope-forgotten": (y - t, delta),
        "slope-at-output": ((y - t) * torch.sigmoid(y) * torch.sigmoid(-y), delta),
        "mean-for-sum": (h.T @ delta / 3, h.T @ delta),
        "bias-not-summed": (delta, delta.sum(0, keepdim=True)),
        "convention-swapped": (h.T @ delta, delta.T @ h),
        "softmax-as-diagonal": (-one_hot * (1 - p), p - one_hot),
    }
    for name, (wrong, right) in expected.items():
        torch.testing.assert_close(shown[name][0], wrong, rtol=0, atol=1e-12)
        torch.testing.assert_close(shown[name][1], right, rtol=0, atol=1e-12)
        assert wrong.shape != right.shape or not torch.allclose(wrong, right), name


@pytest.mark.parametrize("name", NAMES)
def test_where_all_sides_are_equal_it_is_caught_as_well(square, name):
    blocks = parts(explain(square, mistaken=(name,))[11])[name]
    assert f"Caught in step {CAUGHT[name]}, " in told(blocks)
    assert "refuses" not in told(blocks)


def test_where_torch_refuses_the_square_case_shows_what_would_come_out(eleven, square):
    refused = {name for name, blocks in eleven.items() if "Torch refuses" in told(blocks)}
    assert refused == {"transpose-dropped", "product-for-hadamard"}
    for name in refused:
        wrong, right = numbers(eleven[name])
        assert "With 3 rows, 3 inputs and 3 outputs" in told(eleven[name])
        assert wrong.shape == right.shape == (3, 3)
        assert not torch.allclose(wrong, right)
        wanted = square.h.T @ square.f.df(square.z).mul(square.y - square.target)
        if name == "transpose-dropped":
            torch.testing.assert_close(right, wanted, rtol=0, atol=1e-12)
        assert "mat1 and mat2" in told(eleven[name])
        here = next(block.parts[0] for block in eleven[name] if isinstance(block, Numbers))
        assert "mat1 and mat2" in here.values.reason


def test_no_number_is_missing_in_what_step_11_shows(eleven):
    for name, blocks in eleven.items():
        assert not any(isinstance(matrix, Refused) for matrix in numbers(blocks)), name
        assert any(isinstance(block, Tiles) for block in blocks), name


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("slope-forgotten", ["--activation", "identity"]),
        ("slope-at-output", ["--activation", "relu"]),
        ("slope-at-output", ["--activation", "identity"]),
        # The textbook's formula is for one row, and step 5 says so.
        ("bias-not-summed", ["--batch", "1"]),
    ],
)
def test_a_mistake_that_does_no_harm_is_said_to_do_none(capsys, name, options):
    assert main(["explain", "--break", name, *options]) == 0
    out, err = capsys.readouterr()
    assert "the numbers are right all the same." in " ".join(out.split())
    assert "harmless here" in out
    assert "FAILED" not in out
    assert err == ""


def test_with_one_row_a_mean_is_the_sum_and_only_the_step_of_64_rows_objects():
    net = draw_network(batch=1)
    steps = explain(net, MISTAKES["mean-for-sum"].formulas, mistaken=("mean-for-sum",))
    assert [step.number for step in steps if step.failed] == [7]
    wrong, right = numbers(parts(steps[11])["mean-for-sum"])
    assert torch.equal(wrong, right)


@pytest.mark.parametrize("loss", ["squared-error", "cross-entropy"])
@pytest.mark.parametrize("activation", ["identity", "relu", "leaky_relu", "gelu"])
def test_for_other_functions_each_is_caught_or_harmless(activation, loss):
    step = explain(draw_network(2, 3, 3, activation, loss, seed=1), seed=1)[11]
    assert not step.failed
    blocks = parts(step)
    harmless = {name for name in NAMES if "the numbers are right all the same." in told(blocks[name])}
    assert (
        harmless
        == {
            "identity": {"slope-forgotten", "slope-at-output"},
            "relu": {"slope-at-output"},
            "leaky_relu": {"slope-at-output"},
            "gelu": set(),
        }[activation]
    )


@pytest.mark.parametrize("name", NAMES)
def test_with_one_of_everything_nothing_breaks(name):
    steps = explain(draw_network(1, 1, 1), MISTAKES[name].formulas, mistaken=(name,))
    assert len(steps) == 14
    assert not steps[11].failed


@pytest.mark.parametrize("activation", ["relu", "hardtanh", "softplus", "sin", "squared_relu"])
def test_every_function_but_the_identity_has_a_slope_to_forget(activation):
    assert first_red(draw_network(activation=activation, seed=2), "slope-forgotten") == 3


def test_the_mistakes_are_made_on_right_formulas_whatever_is_told(net, eleven):
    steps = explain(net, MISTAKES["slope-forgotten"].formulas, mistaken=("bias-not-summed",))
    wrong, right = numbers(parts(steps[11])["bias-not-summed"])
    torch.testing.assert_close(wrong, numbers(eleven["bias-not-summed"])[0])
    torch.testing.assert_close(right, numbers(eleven["bias-not-summed"])[1])


def test_the_verdict_of_a_broken_story_counts_its_checks(net):
    steps = explain(net, MISTAKES["convention-swapped"].formulas, mistaken=("convention-swapped",))
    total = sum(len(step.checks) for step in steps)
    assert verdict_of(steps) == f"1 of {total} checks failed, first in step 5, A batch: δᵀH = weight.grad, by autograd"
