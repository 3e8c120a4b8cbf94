"""What looks right and is not: wrong formulas near the right one, unlucky numbers, and memory between calls."""

import pytest
import torch

from manual_mlp import activations
from manual_mlp.explain import check_my_backward

SIZES = [(3, 2, 4), (3, 3, 3), (1, 1, 1), (30, 1, 1), (300, 1, 1), (2, 7, 1), (40, 3, 20)]


def learner(activation="sigmoid", loss="squared-error", dtype=torch.float64, inside=torch.float64, **times):
    """Write a right backward, computed in one dtype and returned in another; a result may be multiplied."""
    f, df = activations.get(activation).f, activations.get(activation).df

    def fn(H, W, B, target):
        H, W, B, target = (t.to(inside) for t in (H, W, B, target))
        Z = H @ W + B
        Y = f(Z)
        d = ((Y if loss == "squared-error" else torch.softmax(Y, 1)) - target) * df(Z) * times.get("d", 1)
        found = {"delta": d, "dB": d.sum(0), "dW": H.T @ d, "dH": d @ W.T}
        return {name: (times.get(name, 1) * value).to(dtype) for name, value in found.items()}

    return fn


def turns(activation, every_case):
    """Take the sizes, the losses and some seeds in turn; of every four sizes one, unless all cases are asked for."""
    first, step = (0, 1) if every_case else (activations.names().index(activation) % 4, 4)
    for turn, (inputs, outputs, batch) in [*enumerate(SIZES)][first::step]:
        loss = "cross-entropy" if outputs > 1 and turn % 2 else "squared-error"
        yield loss, {"inputs": inputs, "outputs": outputs, "batch": batch, "seed": turn, "activation": activation}


@pytest.mark.parametrize("activation", activations.names())
def test_a_factor_near_one_does_not_pass_in_float32(activation, every_case):
    for loss, given in turns(activation, every_case):
        for turn, factor in enumerate((1.001, 1.01, 0.999)):
            for name in ("d", ("dW", "dB", "dH")[turn]):
                fn = learner(activation, loss, torch.float32, **{name: factor})
                grade = check_my_backward(fn, loss=loss, **given)
                assert not grade.passed, (loss, given, name, factor)


@pytest.mark.parametrize("activation", activations.names())
def test_what_is_computed_in_float32_passes_as_float32(activation, every_case):
    for loss, given in turns(activation, every_case):
        fn = learner(activation, loss, torch.float32, torch.float32)
        grade = check_my_backward(fn, loss=loss, **given)
        assert grade.passed, (loss, given, str(grade))
        assert grade.hints == ()


def test_rounding_is_measured_by_the_terms_of_each_entry():
    # An error that the largest entry would hide.
    def fn(*arguments):
        found = learner(dtype=torch.float32, inside=torch.float32)(*arguments)
        least = found["dW"].abs().argmin()
        found["dW"].view(-1)[least] *= 1 + 1e-4
        return found

    assert not check_my_backward(fn).passed


def mixed_up(H, W, B, target):
    p = torch.softmax(H @ W + B, 1)
    p[:, target.argmax(1)] -= 1
    return {"dW": H.T @ p, "dB": p.sum(0)}


@pytest.mark.parametrize(("batch", "seed"), [(4, 6), (4, 13), (4, 21), (2, 0), (2, 1), (3, 2)])
def test_an_index_for_all_rows_does_not_pass_whatever_the_classes_drawn(batch, seed):
    assert not check_my_backward(mixed_up, loss="cross-entropy", batch=batch, seed=seed).passed


def magnitude(H, W, B, target):
    Z = H @ W + B
    delta = (torch.relu(Z) - target).abs() * (Z > 0)
    return H.T @ delta, delta.sum(0)


def test_numbers_that_happen_to_be_right_are_tried_on_further_draws(every_case):
    for sizes in ({"inputs": 3, "outputs": 2, "batch": 1}, {"inputs": 1, "outputs": 1, "batch": 1}):
        for seed in range(10 if every_case else 3):
            assert not check_my_backward(magnitude, activation="relu", seed=seed, **sizes).passed, (sizes, seed)


@pytest.mark.parametrize("activation", ["sigmoid", "tanh", "identity", "relu"])
@pytest.mark.parametrize("name", ["dB", "dW"])
def test_a_sum_that_is_kept_between_calls_is_told(activation, name):
    sums = {}

    def fn(*arguments):
        found = learner(activation)(*arguments)
        sums[name] = sums.get(name, 0) + found[name]
        return {**found, name: sums[name]}

    grade = check_my_backward(fn, activation=activation)
    assert len(grade.hints) == 1
    assert "keeps something between calls" in grade.hints[0]


def of_steps(activation="sigmoid", loss="squared-error", names=("dB", "dW", "dH"), **made):
    """Write a backward in raw torch; a mistake replaces a step."""
    f, df = activations.get(activation).f, activations.get(activation).df

    def fn(H, W, B, target):
        Z = H @ W + B
        Y = f(Z)
        E = (Y if loss == "squared-error" else torch.softmax(Y, 1)) - target
        d = made["delta"](E, Z, Y) if "delta" in made else E * df(Z)
        found = {"delta": d, "dB": d.sum(0), "dW": H.T @ d, "dH": d @ W.T}
        found |= {name: made[name](H, W, d) for name in ("dB", "dW", "dH") if name in made}
        return {name: found[name] for name in names}

    return fn


COINCIDENCES = {
    "a slope that ends": (of_steps("relu", delta=lambda e, z, y: e * ((z > 0) & (z < 1))), {"activation": "relu"}),
    "a multiple of (1, -1)": (
        of_steps("identity", "cross-entropy", ("dW", "dB", "delta"), dB=lambda h, w, d: (d[1:] * (1 + d[1:])).sum(0)),
        {"loss": "cross-entropy"},
    ),
    "one number": (of_steps(delta=lambda e, z, y: torch.sin(e + 1) * y), {"outputs": 1, "batch": 1}),
    "zeros": (of_steps("relu", delta=lambda e, z, y: e * (e > 0)), {"activation": "relu"}),
}


@pytest.mark.parametrize("case", COINCIDENCES)
def test_what_explains_one_draw_alone_is_no_diagnosis(case):
    fn, given = COINCIDENCES[case]
    grade = check_my_backward(fn, **given)
    assert not grade.passed
    assert grade.mistakes == (), str(grade)
    assert "I do not recognise this." in grade.hints


def test_any_factor_of_a_single_number_is_named_if_it_is_that_of_others_too():
    sizes = {"inputs": 1, "outputs": 1, "batch": 1}
    grade = check_my_backward(of_steps(names=("dW",), dW=lambda h, w, d: 7 * h.T @ d), **sizes)
    assert grade.mistakes == ("constant-factor",)
    assert "7 times" in grade.hints[0]
    assert not check_my_backward(of_steps(names=("dW",), dW=lambda h, w, d: d.exp()), **sizes).mistakes


@pytest.mark.parametrize(("factor", "name"), [(-1, "sign"), (1 / 3, "mean-for-sum")])
def test_a_usual_factor_is_known_beside_a_rounded_constant(factor, name):
    def fn(H, W, B, target):
        Z = H @ W + B
        d = (torch.where(Z > 0, Z, 0.01 * Z) - target) * torch.where(Z > 0, 1.0, 0.01)
        return {"dB": d.float().sum(0), "dW": factor * H.T @ d, "dH": d @ W.T}

    grade = check_my_backward(fn, activation="leaky_relu", inputs=3, outputs=3, batch=3)
    assert grade.mistakes == (name,), str(grade)


def test_a_line_that_raises_beside_right_results_is_told_as_that():
    def fn(H, W, B, target):
        found = of_steps()(H, W, B, target)
        found["delta"] = (torch.sigmoid(H @ W + B) - target) @ W
        return found["dW"], found["dB"]

    told = check_my_backward(fn).hints[0]
    assert "what it returns is right" in told
    assert "a transpose is missing, or a size is written into it" in told


@pytest.mark.parametrize(
    ("name", "formula", "wrong"),
    [
        ("dB", lambda h, w, d: d.mean(0), "∂J/∂B = Σₙ δₙ / N"),
        ("dH", lambda h, w, d: d @ w.T / len(d), "∂J/∂H = δ Wᵀ / N"),
    ],
)
def test_a_mean_is_told_by_the_formula_of_its_step(name, formula, wrong):
    told = check_my_backward(of_steps(**{name: formula})).hints[0]
    assert wrong in told
    assert "D_out" not in told
    assert "∂J/∂W" not in told


def test_half_of_what_is_sent_back_is_no_mean_of_two_rows():
    fn = of_steps(dH=lambda h, w, d: 0.5 * d @ w.T)
    assert check_my_backward(fn, batch=2).mistakes == ("constant-factor",)


@pytest.mark.parametrize("names", [("dB", "dW"), ("dW", "dB", "dH")])
@pytest.mark.parametrize("sizes", [(1, 3, 4), (1, 1, 1), (3, 2, 4)])
@pytest.mark.parametrize("activation", ["sigmoid", "relu"])
def test_results_in_another_order_are_named_where_their_shapes_are_alike(names, sizes, activation):
    fn = of_steps(activation)

    def tuples(*arguments):
        return tuple(fn(*arguments)[name] for name in names)

    given = dict(zip(("inputs", "outputs", "batch"), sizes, strict=True))
    assert check_my_backward(tuples, activation=activation, **given).mistakes == ("wrong-order",)


def test_what_a_function_sets_for_all_of_torch_is_set_back():
    def fn(*arguments):
        torch.manual_seed(0)
        torch.set_default_dtype(torch.float64)
        return of_steps()(*arguments)

    state, dtype = torch.get_rng_state(), torch.get_default_dtype()
    try:
        assert check_my_backward(fn).passed
        assert torch.equal(torch.get_rng_state(), state)
        assert torch.get_default_dtype() == dtype
    finally:
        torch.set_default_dtype(dtype)


def test_the_line_that_raised_is_told():
    def fn(H, W, B, target):
        return {"dW": H.T @ unknown_name}  # noqa: F821

    told = " ".join(str(check_my_backward(fn)).split())
    assert "NameError" in told
    assert 'return {"dW": H.T @ unknown_name}' in told


def test_a_target_taken_for_indices_is_told_to_be_one_hot():
    def fn(H, W, B, target):
        p = torch.softmax(H @ W + B, 1)
        p[torch.arange(len(p)), target] -= 1
        return H.T @ p, p.sum(0)

    assert "target.argmax(1)" in check_my_backward(fn, loss="cross-entropy").hints[0]


@pytest.mark.parametrize(("name", "meant"), [("dE", "dY"), ("dloss_dW", "dW"), ("dE_dW", "dW"), ("dcost_dB", "dB")])
def test_a_derivative_of_the_loss_by_another_name_is_guessed(name, meant):
    with pytest.raises(ValueError, match=rf"got {name} \(did you mean {meant}\?\)"):
        check_my_backward(lambda *a: {name: a[0]})


def error_in_y(H, W, B, target):
    Y = torch.sigmoid(H @ W + B)
    slope = Y * (1 - Y)
    E = Y
    E -= target
    return {"Y": Y, "dY": E, "delta": E * slope}


def delta_in_error(H, W, B, target):
    Y = torch.sigmoid(H @ W + B)
    E = Y - target
    delta = E
    delta *= Y * (1 - Y)
    return {"Y": Y, "dY": E, "delta": delta}


@pytest.mark.parametrize(("fn", "which"), [(error_in_y, "Y and dY"), (delta_in_error, "dY and delta")])
def test_two_results_that_are_one_tensor_are_told(fn, which):
    grade = check_my_backward(fn)
    assert grade.mistakes == ("result-overwritten",), str(grade)
    assert f"{which} are one tensor" in grade.hints[0]


def test_a_slope_taken_twice_is_not_called_the_slope_of_tanh():
    fn = of_steps("sin", delta=lambda e, z, y: e * torch.cos(z) ** 2)
    assert check_my_backward(fn, activation="sin").mistakes == ("slope-twice",)


def test_one_reason_for_two_mistakes_is_given_once():
    def fn(H, W, B, target):
        Y = torch.sigmoid(H @ W + B)
        E = Y - target
        delta = E * Y * (1 - Y)
        return {"delta": delta, "dB": E.sum(0), "dW": H.T @ E, "dH": delta @ W.T}

    grade = check_my_backward(fn)
    assert set(grade.mistakes) == {"slope-forgotten-in-dB", "slope-forgotten-in-dW"}
    assert " ".join(grade.hints).count("serves all three") == 1
