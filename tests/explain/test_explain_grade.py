"""A learner's backward, as learners write it: graded, and its usual mistakes named."""

import re
import textwrap
from typing import NamedTuple

import pytest
import torch

from manual_mlp import Activation, activations
from manual_mlp.explain import MISTAKES, Grade, check_my_backward

CUBIC = Activation(f=lambda z: z**3, df=lambda z: 3 * z**2, d2f=lambda z: 6 * z, name="cubic")
KINDS = {
    "all": ("Z", "Y", "dY", "delta", "dB", "dW", "dH"),
    "gradients": ("delta", "dB", "dW", "dH"),
    "weights": ("dW", "dB"),
}

# f and f′ as one writes them by hand.
FUNCTIONS = {
    "sigmoid": (torch.sigmoid, lambda z: torch.exp(-z) / (1 + torch.exp(-z)) ** 2),
    "tanh": (torch.tanh, lambda z: 1 - torch.tanh(z) ** 2),
    "relu": (lambda z: z.clamp(min=0), lambda z: (z > 0).double()),
    "identity": (lambda z: z, torch.ones_like),
    "silu": (lambda z: z / (1 + torch.exp(-z)), lambda z: torch.sigmoid(z) * (1 + z * (1 - torch.sigmoid(z)))),
    "sin": (torch.sin, torch.cos),
}


def backward(
    activation="sigmoid",
    loss="squared-error",
    returns="gradients",
    dy=None,
    delta=lambda dy, z, f, df: dy * df(z),
    db=lambda delta: delta.sum(0),
    dw=lambda h, delta: h.T @ delta,
    dh=lambda delta, w: delta @ w.T,
):
    """Write a backward in raw torch, with the mistakes that are handed in."""
    f, df = FUNCTIONS[activation]
    squared, crossed = (lambda y, t: y - t), (lambda y, t: torch.softmax(y, 1) - t)
    loss_gradient = dy or {"squared-error": squared, "cross-entropy": crossed}[loss]

    def fn(H, W, B, target):
        Z = H @ W + B
        Y = f(Z)
        dY = loss_gradient(Y, target)
        d = delta(dY, Z, f, df)
        found = {"Z": Z, "Y": Y, "dY": dY, "delta": d, "dB": db(d), "dW": dw(H, d), "dH": dh(d, W)}
        return {name: found[name] for name in KINDS[returns]}

    return fn


WRONG = {
    "transpose-dropped": {"dw": lambda h, delta: h @ delta},
    "product-for-hadamard": {"delta": lambda dy, z, f, df: dy @ df(z)},
    "slope-forgotten": {"delta": lambda dy, z, f, df: dy},
    "slope-at-output": {"delta": lambda dy, z, f, df: dy * df(f(z))},
    "mean-for-sum": {"dw": lambda h, delta: h.T @ delta / len(h), "db": lambda delta: delta.mean(0)},
    "bias-not-summed": {"db": lambda delta: delta},
    "convention-swapped": {"dw": lambda h, delta: delta.T @ h},
}
DIAGONAL = {"dy": lambda y, t: -t * (1 - torch.softmax(y, 1))}


def right(H, W, B, target):
    Y = torch.sigmoid(H @ W + B)
    delta = (Y - target) * Y * (1 - Y)
    return {"delta": delta, "dB": delta.sum(0), "dW": H.T @ delta, "dH": delta @ W.T}


class Pair(NamedTuple):
    dW: torch.Tensor
    dB: torch.Tensor


def by_autograd(H, W, B, target):
    leaves = [t.requires_grad_() for t in (H, W, B)]
    cost = 0.5 * ((torch.sigmoid(H @ W + B) - target) ** 2).sum()
    cost.backward()
    return tuple(leaf.grad for leaf in leaves)


def by_loops(H, W, B, target):
    """The index sums, over lists of floats."""
    H, W, B, target = (t.tolist() for t in (H, W, B, target))
    inputs, outputs = range(len(W)), range(len(B))
    Z = [[sum(h[k] * W[k][i] for k in inputs) + B[i] for i in outputs] for h in H]
    Y = [[1 / (1 + 2.718281828459045**-z) for z in row] for row in Z]
    delta = [[(y - t) * y * (1 - y) for y, t in zip(ys, ts, strict=True)] for ys, ts in zip(Y, target, strict=True)]
    dW = [[sum(h[k] * d[i] for h, d in zip(H, delta, strict=True)) for i in outputs] for k in inputs]
    return {"delta": delta, "dW": dW, "dB": [sum(d[i] for d in delta) for i in outputs]}


@pytest.mark.parametrize(
    "fn",
    [
        right,
        by_autograd,
        lambda *a: (right(*a)["dW"], right(*a)["dB"]),
        lambda *a: [right(*a)["dW"], right(*a)["dB"]],
        lambda *a: (right(*a)["dH"], right(*a)["dW"], right(*a)["dB"]),
        lambda *a: Pair(right(*a)["dW"], right(*a)["dB"]),
        lambda *a: {"dB": right(*a)["dB"][None]},  # the textbook's row
        lambda *a: {"dW": right(*a)["dW"]},
        lambda *a: {**right(*a), "dW": right(*a)["dW"].T.contiguous().T},
    ],
)
def test_a_right_backward_passes_however_it_returns_its_results(fn):
    for sizes in ({}, {"inputs": 5, "outputs": 7, "batch": 3}, {"inputs": 1, "outputs": 1, "batch": 1}):
        grade = check_my_backward(fn, **sizes)
        assert grade.passed, str(grade)
        assert grade.mistakes == grade.hints == ()
        assert str(grade).endswith("All is right.")


def test_lists_of_floats_are_float64_and_pass():
    grade = check_my_backward(by_loops)
    assert grade.passed, str(grade)


def test_numpy_arrays_pass():
    pytest.importorskip("numpy")
    assert check_my_backward(lambda *a: {name: t.numpy() for name, t in right(*a).items()}).passed


def test_a_right_backward_in_float32_is_not_called_wrong_without_a_word():
    grade = check_my_backward(lambda *a: {name: t.float() for name, t in right(*a).items()})
    assert grade.passed or "float32" in str(grade), str(grade)


@pytest.mark.parametrize("loss", ["squared-error", "cross-entropy"])
@pytest.mark.parametrize("activation", FUNCTIONS)
def test_a_right_backward_passes_for_other_functions_and_losses(activation, loss):
    for seed in range(3):
        grade = check_my_backward(
            backward(activation, loss, "all"), activation=activation, loss=loss, seed=seed, inputs=4, outputs=3, batch=5
        )
        assert grade.passed, str(grade)
        assert [check.name.split(":")[0] for check in grade.checks] == list(KINDS["all"])


def test_an_activation_of_ones_own_and_a_module_are_graded():
    def cubic(H, W, B, target):
        Z = H @ W + B
        delta = (Z**3 - target) * 3 * Z**2
        return H.T @ delta, delta.sum(0)

    assert check_my_backward(cubic, activation=CUBIC).passed
    assert not check_my_backward(cubic, activation="tanh").passed
    assert check_my_backward(backward("tanh"), activation=torch.nn.Tanh()).passed


@pytest.mark.parametrize("returns", KINDS)
@pytest.mark.parametrize("name", WRONG)
def test_each_usual_mistake_is_named(name, returns):
    grade = check_my_backward(backward(returns=returns, **WRONG[name]))
    assert not grade.passed
    assert grade.mistakes == (name,)
    assert len(grade.hints) >= 1
    if name == "convention-swapped":
        assert "dW is δᵀH, in PyTorch's layout" in grade.hints[0]
    else:
        assert all(part in grade.hints[0] for part in (name, MISTAKES[name].wrong, MISTAKES[name].right))


@pytest.mark.parametrize("activation", ["tanh", "silu", "sin"])
@pytest.mark.parametrize("loss", ["squared-error", "cross-entropy"])
@pytest.mark.parametrize("name", WRONG)
def test_each_usual_mistake_is_named_for_other_functions_losses_and_sizes(name, activation, loss):
    for sizes in ({"inputs": 3, "outputs": 3, "batch": 3}, {"inputs": 5, "outputs": 4, "batch": 7}):
        fn = backward(activation, loss, **WRONG[name])
        assert check_my_backward(fn, activation=activation, loss=loss, seed=2, **sizes).mistakes == (name,), sizes


@pytest.mark.parametrize("activation", ["sigmoid", "identity"])
def test_a_softmax_taken_as_diagonal_is_named(activation):
    for returns in KINDS:
        fn = backward(activation, "cross-entropy", returns, **DIAGONAL)
        grade = check_my_backward(fn, activation=activation, loss="cross-entropy")
        assert grade.mistakes == ("softmax-as-diagonal",)


@pytest.mark.parametrize("returns", ["gradients", "weights"])
@pytest.mark.parametrize(
    "names",
    [
        ("slope-forgotten", "convention-swapped"),
        ("slope-forgotten", "bias-not-summed"),
        ("slope-forgotten", "mean-for-sum"),
        ("slope-at-output", "convention-swapped"),
        ("slope-at-output", "bias-not-summed"),
        ("bias-not-summed", "convention-swapped"),
        ("transpose-dropped", "slope-forgotten"),
        ("transpose-dropped", "bias-not-summed"),
        ("product-for-hadamard", "bias-not-summed"),
    ],
)
def test_two_mistakes_at_once_are_both_named(names, returns):
    made = {key: formula for name in names for key, formula in WRONG[name].items()}
    assert set(check_my_backward(backward(returns=returns, **made)).mistakes) == set(names)


def test_a_mean_and_a_swapped_convention_are_both_named():
    made = {"dw": lambda h, delta: delta.T @ h / len(h), "db": lambda delta: delta.mean(0)}
    assert set(check_my_backward(backward(**made)).mistakes) == {"mean-for-sum", "convention-swapped"}


@pytest.mark.parametrize("made", [{"dw": lambda h, d: h.T @ d / len(h)}, {"db": lambda d: d.mean(0)}])
def test_a_mean_in_one_of_the_gradients_is_named(made):
    assert check_my_backward(backward(**made)).mistakes == ("mean-for-sum",)


@pytest.mark.parametrize("name", ["delta", "dB", "dW", "dH"])
def test_a_cost_that_was_averaged_is_named_in_every_result(name):
    def averaged(*arguments):
        return {name: right(*arguments)[name] / 4}

    assert check_my_backward(averaged).mistakes == ("mean-for-sum",)


def test_what_is_right_for_a_wrong_delta_is_said_to_be_so():
    # What is made of δ is made as it should be, whether or not δ is recognised.
    for wrong, first in ((lambda dy, z, f, df: -dy * df(z), "sign: "), (lambda dy, z, f, df: dy + 0.1, "I do not")):
        grade = check_my_backward(backward(delta=wrong))
        assert grade.hints[0].startswith(first)
        assert grade.hints[1:] == ("Mend δ: dB, dW, dH follow from it as they should.",)


def test_where_shapes_are_refused_the_square_case_names_the_mistake():
    for name in ("transpose-dropped", "product-for-hadamard"):
        grade = check_my_backward(backward(**WRONG[name]))
        assert grade.mistakes == (name,)
        assert [check.name for check in grade.checks] == ["the function runs"]
        assert "shapes cannot be multiplied" in " ".join(str(grade).split())


@pytest.mark.parametrize(
    "made",
    [
        {"delta": lambda dy, z, f, df: dy * df(z) + 0.01},
        {"db": lambda d: d.sum(0) ** 2},
        {"dh": lambda d, w: d @ torch.linalg.pinv(w)},
        {"dw": lambda h, d: torch.linalg.pinv(h) @ d},
    ],
)
def test_an_error_of_another_kind_fails_and_gets_no_name(made):
    grade = check_my_backward(backward(**made))
    assert not grade.passed
    assert grade.mistakes == ()
    assert grade.hints[0] == "I do not recognise this."


@pytest.mark.parametrize("of", ["dW", "dB"])
def test_shapes_that_only_fit_the_square_case_are_no_mistake_of_the_eight(of):
    def reshaped(H, W, B, target):
        return {of: right(H.reshape(3, 3), W, B, target)[of]}

    grade = check_my_backward(reshaped)
    assert not grade.passed
    assert grade.mistakes == ()
    assert "a size is written into it" in grade.hints[0]


def test_an_exception_of_the_function_is_its_grade():
    def broken(H, W, B, target):
        raise KeyError("missing")

    def too_few(H, W):
        return H, W

    for fn, expected in ((broken, "KeyError: 'missing'"), (too_few, "TypeError: test")):
        grade = check_my_backward(fn)
        assert not grade.passed
        assert grade.mistakes == ()
        assert expected in " ".join(str(grade).split())
        assert str(grade).endswith("Not right yet.")


@pytest.mark.each_value
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("name", ["delta", "dB", "dW", "dH"])
def test_results_that_are_not_finite_do_not_pass(name, bad):
    def spoiled(*arguments):
        found = right(*arguments)
        found[name].view(-1)[0] = bad
        return found

    grade = check_my_backward(spoiled)
    assert not grade.passed
    assert [check.name.split(":")[0] for check in grade.checks if not check.passed] == [name]
    assert grade.mistakes == ()


def test_an_imaginary_part_does_not_pass():
    def imaginary(*arguments):
        return {name: torch.complex(t, torch.ones_like(t)) for name, t in right(*arguments).items()}

    with pytest.raises(TypeError, match="real numbers"):
        check_my_backward(imaginary)


def test_a_function_that_changes_its_arguments_cannot_change_the_truth():
    def spoils(H, W, B, target):
        target.copy_(torch.sigmoid(H @ W + B))
        for t in (H, W, B):
            t.zero_()
        return torch.zeros(3, 2), torch.zeros(2)

    def right_then_spoils(H, W, B, target):
        found = right(H, W, B, target)
        for t in (H, W, B, target):
            t.fill_(float("nan"))
        return found

    assert not check_my_backward(spoils).passed
    assert check_my_backward(right_then_spoils).passed


def test_zeros_never_pass():
    # Numbers that are drawn so that every gradient is 0 would teach nothing.
    def zeros(H, W, B, target):
        return torch.zeros_like(H), torch.zeros_like(W), torch.zeros_like(B)

    for activation in activations.names():
        assert not check_my_backward(zeros, activation=activation).passed, activation


@pytest.mark.parametrize(
    ("returned", "error", "expected"),
    [
        (None, TypeError, "expected a dict of results or a tuple, got NoneType"),
        (torch.zeros(3, 2), TypeError, "expected a dict of results or a tuple, got Tensor"),
        ("dW", TypeError, "got str"),
        ({}, TypeError, "got dict"),
        ((), TypeError, "expected (dW, dB) or (dH, dW, dB), got 0 results"),
        ((1,), TypeError, "got 1 results"),
        ((1, 2, 3, 4), TypeError, "got 4 results"),
        ({"dw": 1}, ValueError, "expected results among Z, Y, dY, delta, dB, dW, dH, got dw"),
        ({"dW": 1, 3: 2}, ValueError, "got 3"),
        ({"dW": "zero"}, TypeError, "expected a tensor for dW, got str"),
        ({"dW": None}, TypeError, "expected a tensor for dW, got NoneType"),
        ((None, [0.0, 0.0]), TypeError, "expected a tensor for dW, got NoneType"),
        ({"dW": [[1.0], [1.0, 2.0]]}, TypeError, "expected a tensor for dW, got list"),
    ],
)
def test_what_is_no_result_is_an_error_in_words(returned, error, expected):
    with pytest.raises(error, match=re.escape(expected)):
        check_my_backward(lambda *_: returned)


@pytest.mark.parametrize("fn", [None, 3, "backward", right(*torch.rand(4, 2, 2))])
def test_what_is_no_function_is_an_error_in_words(fn):
    with pytest.raises(TypeError, match=r"expected a function \(H, W, B, target\) -> results, got \w+"):
        check_my_backward(fn)


def test_wrong_options_are_errors_in_words():
    for options, expected in (
        ({"inputs": 0}, "at least 1"),
        ({"activation": "sine"}, "expected an activation among"),
        ({"loss": "l2"}, "expected a loss among"),
        ({"outputs": 1, "loss": "cross-entropy"}, "at least 2 outputs"),
    ):
        with pytest.raises(ValueError, match=expected):
            check_my_backward(right, **options)


def test_a_shape_that_is_wrong_is_told():
    grade = check_my_backward(lambda *a: {"dW": right(*a)["dW"].flatten()})
    assert "the shape is (6,), and should be (3, 2)" in str(grade)


def test_a_grade_reads_well():
    grade = check_my_backward(backward(**WRONG["slope-forgotten"]))
    assert isinstance(grade, Grade)
    lines = str(grade).splitlines()
    assert lines[-1] == "Not right yet."
    assert sum(line.startswith("  FAILED ") for line in lines) == 4
    assert "\033" not in str(grade)
    assert max(map(len, lines)) <= 120, max(lines, key=len)
    assert "nothing" not in str(check_my_backward(right))
    assert str(check_my_backward(right)).count("  ok     ") == 4


def test_the_examples_in_its_docstring_pass():
    code = textwrap.dedent(check_my_backward.__doc__.split("Example::")[1])
    printed = []
    exec(code, {"torch": torch, "check_my_backward": check_my_backward, "print": printed.append})
    (grade,) = printed
    assert grade.passed


def test_it_can_be_graded_where_gradients_are_off():
    with torch.no_grad():
        assert check_my_backward(right).passed


def test_grading_draws_nothing_from_the_readers_generator():
    before = torch.get_rng_state()
    check_my_backward(right)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("seed", range(10))
@pytest.mark.parametrize("name", ["slope-forgotten", "mean-for-sum", "bias-not-summed", "convention-swapped"])
def test_a_mistake_passes_for_no_draw_of_numbers(name, seed):
    # relu has outputs that are all off, or all on: then a slope that was forgotten does not show.
    grade = check_my_backward(backward("relu", returns="weights", **WRONG[name]), activation="relu", seed=seed)
    assert not grade.passed
    assert name in grade.mistakes
