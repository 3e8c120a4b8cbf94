"""Each mistake that the grader knows, written in raw torch as learners write it, is named, and named once."""

import pytest
import torch

from manual_mlp.explain import MISTAKES as EIGHT
from manual_mlp.explain import check_my_backward
from manual_mlp.explain.grading.mistakes import KNOWN, all_known

KINDS = {
    "all": ("Z", "Y", "dY", "delta", "dB", "dW", "dH"),
    "gradients": ("dB", "dW", "dH"),
    "weights": ("dW", "dB"),
}
FUNCTIONS = {
    "sigmoid": (torch.sigmoid, lambda z: torch.sigmoid(z) * (1 - torch.sigmoid(z))),
    "tanh": (torch.tanh, lambda z: 1 - torch.tanh(z) ** 2),
    "silu": (lambda z: z / (1 + torch.exp(-z)), lambda z: torch.sigmoid(z) * (1 + z * (1 - torch.sigmoid(z)))),
    "identity": (lambda z: z, torch.ones_like),
    "relu6": (torch.nn.functional.relu6, lambda z: ((z > 0) & (z < 6)).to(z.dtype)),
}
UNKNOWN = "I do not recognise this"


class Learner:
    """Write a backward in raw torch, a method for each step; a mistake replaces one.

    A step gets this object, which holds what was computed before: H, W, B, T, Z, Y, dY, delta.
    """

    def __init__(self, activation="sigmoid", loss="squared-error", returns="all", stored=False, **made):
        self.f, self.df = FUNCTIONS[activation]
        self.loss, self.names, self.stored, self.made = loss, KINDS.get(returns, (returns,)), stored, made

    def __call__(self, H, W, B, target):
        self.H, self.W, self.B, self.T = H, W, B, target
        for name in KINDS["all"]:
            setattr(self, name, self.made.get(name, getattr(type(self), f"_{name}"))(self))
        return {name: getattr(self, name) for name in self.names}

    def _Z(self):
        return self.H @ (self.W.T if self.stored else self.W) + self.B

    def _Y(self):
        return self.f(self.Z)

    def _dY(self):
        if self.loss == "squared-error":
            return self.Y - self.T
        return torch.exp(self.Y) / torch.exp(self.Y).sum(1, keepdim=True) - self.T

    def _delta(self):
        return self.dY * self.df(self.Z)

    def _dB(self):
        return self.delta.sum(0)

    def _dW(self):
        return self.delta.T @ self.H if self.stored else self.H.T @ self.delta

    def _dH(self):
        return self.delta @ (self.W if self.stored else self.W.T)


def last_row_for_w(s):
    for n in range(len(s.H)):
        dW = torch.outer(s.H[n], s.delta[n])
    return dW


def first_row_for_w(s):
    dW = torch.zeros_like(s.W)
    for n in range(len(s.H)):
        dW += torch.outer(s.H[n], s.delta[n])
        break  # as a return in the loop would
    return dW


def last_row_for_b(s):
    dB = torch.zeros_like(s.B)
    for n in range(len(s.H)):
        dB = s.delta[n]
    return dB


def last_output_for_h(s):
    dH = torch.zeros_like(s.H)
    for n in range(len(s.H)):
        for k in range(s.W.shape[0]):
            for i in range(s.W.shape[1]):
                dH[n, k] = s.delta[n, i] * s.W[k, i]
    return dH


def entries_for_w(s):
    dW = torch.zeros_like(s.W)
    for n in range(len(s.H)):
        for k in range(s.H.shape[1]):
            for i in range(s.delta.shape[1]):
                dW[k, i] = s.H[n, k] * s.delta[n, i]
    return dW


def last_input_for_z(s):
    Z = torch.zeros(len(s.H), len(s.B), dtype=torch.float64)
    for k in range(len(s.W)):
        Z = torch.outer(s.H[:, k], s.W[k])
    return Z + s.B


def first_row_for_b(s):
    dB = torch.zeros_like(s.B)
    for row in s.delta:
        dB += row
        break
    return dB


def numbers_for_b(s):
    dB = torch.zeros_like(s.B)
    for n in range(len(s.H)):
        dB += s.delta[n].sum()
    return dB


def rows_of_h(s, rows):
    dH = torch.zeros_like(s.H)
    for n in rows:
        dH[n] = s.delta[n] @ s.W.T
    return dH


def p_over(dim):
    return lambda s: torch.softmax(s.Y, dim)


# (the name, the step that is written wrongly, how)
MISTAKES = {
    "bias left out": ("bias-forgotten", "Z", lambda s: s.H @ s.W),
    "bias subtracted": ("sign", "Z", lambda s: s.H @ s.W - s.B),
    "Z negated": ("sign", "Z", lambda s: -(s.H @ s.W + s.B)),
    "Z = in a loop": ("last-term-only", "Z", last_input_for_z),
    "f left out": ("activation-forgotten", "Y", lambda s: s.Z),
    "Y negated": ("sign", "Y", lambda s: -s.f(s.Z)),
    "tanh for sigmoid": ("another-function", "Y", lambda s: torch.tanh(s.Z)),
    "target minus output": ("sign", "dY", lambda s: s.T - s.Y),
    "output plus target": ("sign", "dY", lambda s: s.Y + s.T),
    "output alone": ("target-forgotten", "dY", lambda s: s.Y),
    "twice the error": ("constant-factor", "dY", lambda s: 2 * (s.Y - s.T)),
    "a factor nobody knows": ("constant-factor", "dY", lambda s: 2 * (s.Y - s.T) / s.Y.numel() ** 2),
    "mean over the rows": ("mean-for-sum", "dY", lambda s: (s.Y - s.T) / len(s.Y)),
    "softmax for sigmoid": ("another-loss", "dY", lambda s: torch.softmax(s.Y, 1) - s.T),
    "the loss itself": ("loss-not-differentiated", "dY", lambda s: (s.Y - s.T) ** 2),
    "half the loss itself": ("loss-not-differentiated", "dY", lambda s: (s.Y - s.T) ** 2 / 2),
    "no slope": ("slope-forgotten", "delta", lambda s: s.dY),
    "slope at Y": ("slope-at-output", "delta", lambda s: s.dY * s.df(s.Y)),
    "delta negated": ("sign", "delta", lambda s: -s.dY * s.df(s.Z)),
    "delta doubled": ("constant-factor", "delta", lambda s: 2 * s.dY * s.df(s.Z)),
    "delta a bit large": ("constant-factor", "delta", lambda s: 1.001 * s.dY * s.df(s.Z)),
    "delta times N": ("constant-factor", "delta", lambda s: len(s.H) * s.dY * s.df(s.Z)),
    "slope of tanh": ("slope-of-another-function", "delta", lambda s: s.dY * (1 - torch.tanh(s.Z) ** 2)),
    "slope of relu": ("slope-of-another-function", "delta", lambda s: s.dY * (s.Z > 0)),
    "tanh's formula": ("slope-of-another-function", "delta", lambda s: s.dY * (1 - s.Y**2)),
    "formula of Z": ("slope-formula-at-z", "delta", lambda s: s.dY * s.Z * (1 - s.Z)),
    "tanh's formula of Z": ("slope-formula-at-z", "delta", lambda s: s.dY * (1 - s.Z**2)),
    "slope without bias": ("bias-forgotten", "delta", lambda s: s.dY * s.df(s.H @ s.W)),
    "f for its slope": ("function-for-slope", "delta", lambda s: s.dY * s.f(s.Z)),
    "slope twice": ("slope-twice", "delta", lambda s: s.dY * s.df(s.Z) ** 2),
    "slope alone": ("error-forgotten", "delta", lambda s: s.df(s.Z)),
    "no sum": ("bias-not-summed", "dB", lambda s: s.delta),
    "sum over outputs": ("sum-axis", "dB", lambda s: s.delta.sum(1)),
    "sum over outputs kept": ("sum-axis", "dB", lambda s: s.delta.sum(1, keepdim=True)),
    "sum over all": ("sum-no-axis", "dB", lambda s: s.delta.sum()),
    "sums over all": ("sum-no-axis", "dB", numbers_for_b),
    "b = in a loop": ("last-term-only", "dB", last_row_for_b),
    "b returned in the loop": ("first-term-only", "dB", first_row_for_b),
    "b without slope": ("slope-forgotten-in-dB", "dB", lambda s: s.dY.sum(0)),
    "b negated": ("sign", "dB", lambda s: -s.delta.sum(0)),
    "b a mean": ("mean-for-sum", "dB", lambda s: s.delta.mean(0)),
    "b left at zero": ("all-zeros", "dB", lambda s: torch.zeros_like(s.B)),
    "w swapped": ("convention-swapped", "dW", lambda s: s.delta.T @ s.H),
    "w not summed": ("weight-not-summed", "dW", lambda s: s.H[:, :, None] * s.delta[:, None, :]),
    "w = in a loop": ("last-term-only", "dW", last_row_for_w),
    "w = in a loop of entries": ("last-term-only", "dW", entries_for_w),
    "w returned in the loop": ("first-term-only", "dW", first_row_for_w),
    "w without slope": ("slope-forgotten-in-dW", "dW", lambda s: s.H.T @ (s.Y - s.T)),
    "w of sums": ("sum-before-product", "dW", lambda s: torch.outer(s.H.sum(0), s.delta.sum(0))),
    "w negated": ("sign", "dW", lambda s: -s.H.T @ s.delta),
    "w a mean": ("mean-for-sum", "dW", lambda s: s.H.T @ s.delta / len(s.H)),
    "w a seventh": ("constant-factor", "dW", lambda s: s.H.T @ s.delta / 7),
    "w left at zero": ("all-zeros", "dW", lambda s: torch.zeros_like(s.W)),
    "w flattened": ("wrong-shape", "dW", lambda s: (s.H.T @ s.delta).flatten()),
    "h without slope": ("slope-forgotten-in-dH", "dH", lambda s: s.dY @ s.W.T),
    "h transposed": ("result-transposed", "dH", lambda s: s.W @ s.delta.T),
    "h = in a loop": ("last-term-only", "dH", last_output_for_h),
    "h a layer on": ("step-too-far", "dH", lambda s: s.delta @ s.W.T * s.H * (1 - s.H)),
    "b without row 1": ("row-missed", "dB", lambda s: sum(s.delta[n] for n in range(1, len(s.H)))),
    "b without the last row": ("row-missed", "dB", lambda s: sum(s.delta[n] for n in range(len(s.H) - 1))),
    "b in every row": ("bias-repeated", "dB", lambda s: s.delta.sum(0).expand(len(s.H), -1)),
    "b from ones": ("begun-at-one", "dB", lambda s: torch.ones_like(s.B) + s.delta.sum(0)),
    "w without row 1": ("row-missed", "dW", lambda s: s.H[1:].T @ s.delta[1:]),
    "w without the last row": ("row-missed", "dW", lambda s: s.H[:-1].T @ s.delta[:-1]),
    "w from ones": ("begun-at-one", "dW", lambda s: torch.ones_like(s.W).addmm(s.H.T, s.delta)),
    "h from ones": ("begun-at-one", "dH", lambda s: torch.ones_like(s.H) + s.delta @ s.W.T),
    "h = row by row": ("last-term-only", "dH", lambda s: [d @ s.W.T for d in s.delta][-1]),
    "h += into one row": ("rows-in-one", "dH", lambda s: sum(d @ s.W.T for d in s.delta)),
    "h += into all rows": ("rows-in-one", "dH", lambda s: torch.zeros_like(s.H) + sum(d @ s.W.T for d in s.delta)),
    "h returned in the loop": ("first-term-only", "dH", lambda s: rows_of_h(s, range(1))),
    "h without row 1": ("row-missed", "dH", lambda s: rows_of_h(s, range(1, len(s.H)))),
    "h without the last row": ("row-missed", "dH", lambda s: rows_of_h(s, range(len(s.H) - 1))),
    "h negated": ("sign", "dH", lambda s: -s.delta @ s.W.T),
}
SQUARE = {
    **MISTAKES,
    "weight transposed": ("weight-transposed", "Z", lambda s: s.H @ s.W.T + s.B),
    "slope at H": ("slope-of-another-layer", "delta", lambda s: s.dY * s.df(s.H)),
    "slope from H": ("slope-of-another-layer", "delta", lambda s: s.dY * s.H * (1 - s.H)),
    "matrix product": ("product-for-hadamard", "delta", lambda s: s.dY @ s.df(s.Z)),
    "transpose misplaced": ("transpose-misplaced", "dW", lambda s: s.H @ s.delta.T),
    "no transpose": ("transpose-dropped", "dW", lambda s: s.H @ s.delta),
    "w of one axis": (
        "outer-product-forgotten",
        "dW",
        lambda s: sum(h * d for h, d in zip(s.H, s.delta, strict=True)).expand(3, 3),
    ),
    "W not transposed": ("weight-not-transposed", "dH", lambda s: s.delta @ s.W),
}
CROSSED = {
    "p alone": ("target-forgotten", "dY", lambda s: p_over(1)(s)),
    "t minus p": ("sign", "dY", lambda s: s.T - p_over(1)(s)),
    "p plus t": ("sign", "dY", lambda s: p_over(1)(s) + s.T),
    "softmax over rows": ("softmax-axis", "dY", lambda s: p_over(0)(s) - s.T),
    "softmax over all": ("softmax-no-axis", "dY", lambda s: s.Y.exp() / s.Y.exp().sum() - s.T),
    "softmax summed over rows": ("softmax-axis", "dY", lambda s: s.Y.exp() / s.Y.exp().sum(0) - s.T),
    "no normaliser": ("softmax-not-normalised", "dY", lambda s: s.Y.exp() - s.T),
    "sigmoid": ("sigmoid-for-softmax", "dY", lambda s: torch.sigmoid(s.Y) - s.T),
    "no softmax": ("softmax-forgotten", "dY", lambda s: s.Y - s.T),
    "two softmaxes": ("softmax-twice", "dY", lambda s: torch.softmax(p_over(1)(s), 1) - s.T),
    "diagonal": ("softmax-as-diagonal", "dY", lambda s: -s.T / p_over(1)(s) * p_over(1)(s) * (1 - p_over(1)(s))),
    "by p": ("stopped-at-p", "delta", lambda s: -s.T / p_over(1)(s)),
    "softmax's slope too": ("softmax-slope-added", "delta", lambda s: s.dY * p_over(1)(s) * (1 - p_over(1)(s))),
    "mean over the batch": ("mean-for-sum", "dY", lambda s: (p_over(1)(s) - s.T) / len(s.T)),
}


def graded(name, step, formula, *, returns="all", activation="sigmoid", loss="squared-error", **options):
    fn = Learner(activation, loss, returns, **{step: formula})
    grade = check_my_backward(fn, activation=activation, loss=loss, **options)
    told = str(grade)
    assert not grade.passed, told
    assert grade.mistakes == (name,), told
    assert grade.hints[0].startswith(f"{name}: ")
    assert UNKNOWN not in told
    assert max(map(len, told.splitlines())) <= 120
    return grade


def shown(cases):
    """A case with every kind of results in which it shows."""
    return [(case, kind) for case in cases for kind in KINDS if cases[case][1] in (*KINDS[kind], *KINDS["all"][:4])]


@pytest.mark.parametrize(("case", "returns"), shown(MISTAKES))
def test_a_mistake_is_named(case, returns):
    name, step, formula = MISTAKES[case]
    grade = graded(name, step, formula, returns=returns)
    if step in KINDS[returns]:
        first = next(check.name.split(":")[0] for check in grade.checks if not check.passed)
        assert first == step
        assert grade.picture.split(",")[0].strip() == step or name == "weight-not-summed"


@pytest.mark.parametrize(("case", "returns"), shown(SQUARE))
def test_a_mistake_is_named_where_all_sides_are_equal(case, returns):
    name, step, formula = SQUARE[case]
    graded(name, step, formula, returns=returns, inputs=3, outputs=3, batch=3)


@pytest.mark.parametrize("case", sorted(set(SQUARE) - set(MISTAKES)))
def test_a_mistake_that_unequal_sides_refuse_is_named(case):
    name, step, formula = SQUARE[case]
    grade = graded(name, step, formula)
    assert [check.name for check in grade.checks] == ["the function runs"]


@pytest.mark.parametrize("returns", KINDS)
@pytest.mark.parametrize("case", CROSSED)
def test_a_mistake_in_a_softmax_is_named(case, returns):
    name, step, formula = CROSSED[case]
    graded(name, step, formula, returns=returns, activation="identity", loss="cross-entropy", outputs=3)


def test_the_table_names_every_mistake_that_is_tried_and_no_other():
    tried = {name for cases in (MISTAKES, SQUARE, CROSSED) for name, _, _ in cases.values()}
    of_calls = {"wrong-order", "argument-overwritten", "another-activation", "another-layout", "float32-inside"}
    of_calls |= {"result-overwritten"}
    assert set(KNOWN) == tried | of_calls
    assert set(EIGHT) <= set(KNOWN)
    for row in all_known():
        assert row.name in KNOWN
        assert row.wrong != row.right
        assert row.why.endswith(".")


@pytest.mark.parametrize("step", ["Z", "Y", "dY", "delta"])
def test_a_step_that_is_returned_in_another_shape_is_named(step):
    for change in (torch.flatten, lambda t: t.T, lambda t: t[None]):

        def fn(*arguments, change=change):
            found = Learner()(*arguments)
            return {**found, step: change(found[step])}

        grade = check_my_backward(fn)
        assert grade.mistakes == ("wrong-shape",)
        assert f"{step} has the right numbers in another shape" in grade.hints[0]
        assert len(grade.hints) == 1


def test_a_factor_is_told():
    for factor, told in (
        (2, "2 times"),
        (0.5, "1/2"),
        (7, "7 times"),
        (1.001, "1.001 times"),
        (1 / 12, "1/(N · D_out)"),
    ):
        fn = Learner(returns="weights", dY=lambda s, factor=factor: factor * (s.Y - s.T))
        grade = check_my_backward(fn, outputs=3)
        assert grade.mistakes == ("constant-factor",)
        assert f"dB and dW are {told}" in grade.hints[0]


def test_the_mean_that_torch_takes_of_a_squared_error_is_told():
    def mse(H, W, B, target):
        Z = H @ W.requires_grad_() + B.requires_grad_()
        torch.nn.functional.mse_loss(torch.sigmoid(Z), target).backward()
        return W.grad, B.grad

    grade = check_my_backward(mse, outputs=3)
    assert grade.mistakes == ("constant-factor",)
    assert "2/(N · D_out) times" in grade.hints[0]


@pytest.mark.parametrize("returns", KINDS)
def test_another_activation_is_told_with_how_to_say_so(returns):
    for activation in ("tanh", "silu", "identity"):
        grade = check_my_backward(Learner(activation, returns=returns))
        assert grade.mistakes == ("another-activation",)
        assert f"pass activation='{activation}'" in grade.hints[0]


def test_another_activation_is_told_where_all_its_results_are_zero():
    # All Z are below 0 here: a slope of relu alone would give these numbers too, but no others.
    def relu(H, W, B, target):
        Z = H @ W + B
        delta = (torch.relu(Z) - target) * (Z > 0)
        return H.T @ delta, delta.sum(0)

    grade = check_my_backward(relu)
    assert grade.picture.count("0*") == 2
    assert grade.mistakes == ("another-activation",)


def test_a_softmax_along_the_wrong_axis_is_told_if_it_is_returned_as_y():
    for name, p in (
        ("softmax-axis", lambda Z: torch.softmax(Z, 0)),
        ("softmax-no-axis", lambda Z: Z.exp() / Z.exp().sum()),
    ):

        def fn(H, W, B, target, p=p):
            Y = p(H @ W + B)
            delta = Y - target
            return {"Y": Y, "delta": delta, "dW": H.T @ delta, "dB": delta.sum(0)}

        grade = check_my_backward(fn, loss="cross-entropy", outputs=3)
        assert grade.mistakes == (name,)
        assert "Likewise" not in grade.hints[0]


def test_what_lacks_its_slope_is_named_where_it_lacks_it():
    def fn(H, W, B, target):
        Y = torch.sigmoid(H @ W + B)
        delta = (Y - target) * Y * (1 - Y)
        return {"delta": delta, "dB": delta.sum(0), "dW": H.T @ (Y - target), "dH": delta @ W.T}

    grade = check_my_backward(fn)
    assert grade.mistakes == ("slope-forgotten-in-dW",)
    assert "∂J/∂W = Hᵀ ∂J/∂Y" in grade.hints[0]
    assert "δ itself is right" in grade.hints[0]
    assert len(grade.hints) == 1


def test_one_mistake_in_two_gradients_is_told_once():
    grade = check_my_backward(Learner(dB=last_row_for_b, dW=last_row_for_w))
    assert grade.mistakes == ("last-term-only",)
    assert len(grade.hints) == 1
    assert "Likewise" in grade.hints[0]


PAIRS = {
    "sign, no sum": (
        {"dY": MISTAKES["target minus output"][2], "dB": MISTAKES["no sum"][2]},
        {"sign", "bias-not-summed"},
    ),
    "no bias, swapped": (
        {"Z": MISTAKES["bias left out"][2], "dW": MISTAKES["w swapped"][2]},
        {"bias-forgotten", "convention-swapped"},
    ),
    "no slope, axis": (
        {"delta": MISTAKES["no slope"][2], "dB": MISTAKES["sum over outputs"][2]},
        {"slope-forgotten", "sum-axis"},
    ),
    "twice, last row": (
        {"delta": MISTAKES["delta doubled"][2], "dW": last_row_for_w},
        {"constant-factor", "last-term-only"},
    ),
    "no target, no slope": (
        {"dY": MISTAKES["output alone"][2], "delta": MISTAKES["no slope"][2]},
        {"target-forgotten", "slope-forgotten"},
    ),
    "swapped and negated": ({"dW": lambda s: -s.delta.T @ s.H}, {"convention-swapped", "sign"}),
}


@pytest.mark.parametrize("returns", ["all", "weights"])
@pytest.mark.parametrize("case", PAIRS)
def test_two_mistakes_that_give_the_numbers_together_are_both_named(case, returns):
    made, names = PAIRS[case]
    grade = check_my_backward(Learner(returns=returns, **made))
    assert set(grade.mistakes) == names, str(grade)
    assert UNKNOWN not in str(grade)


def test_what_is_not_recognised_gets_no_name_beside():
    # The first is not known: what is made of it may be known, and has to wait.
    grade = check_my_backward(Learner(delta=lambda s: s.dY + 0.1, dW=lambda s: s.delta.T @ s.H))
    assert grade.mistakes == ()
    assert grade.hints[0] == "I do not recognise this."
    assert "dW is wrong too. Mend this first." in grade.hints


@pytest.mark.parametrize("returns", ["all", "gradients"])
def test_what_is_recognised_first_is_named_and_the_rest_has_to_wait(returns):
    for made, name, rest in (
        ({"delta": lambda s: -s.dY * s.df(s.Z), "dH": lambda s: s.delta @ torch.linalg.pinv(s.W)}, "sign", "dH"),
        ({"dB": lambda s: s.delta[-1], "dH": lambda s: s.delta @ torch.linalg.pinv(s.W)}, "last-term-only", "dH"),
        ({"dB": lambda s: s.delta[-1] + 1, "dH": lambda s: -s.delta @ s.W.T}, "sign", "dB"),
    ):
        if returns == "gradients" and "delta" in made:
            continue
        grade = check_my_backward(Learner(returns=returns, **made))
        assert grade.mistakes == (name,)
        assert f"{rest} is wrong too. Mend this first." in grade.hints
        assert UNKNOWN not in str(grade)


def test_a_step_that_was_not_returned_is_not_blamed_for_a_part_of_the_numbers():
    # A slope of relu would give zeros too, but not the rest.
    fn = Learner(returns="weights", dW=lambda s: torch.zeros_like(s.W), dB=lambda s: s.B + 1)
    grade = check_my_backward(fn)
    assert grade.mistakes == ("all-zeros",)
    assert "dB is wrong too. Mend this first." in grade.hints


def test_two_mistakes_that_give_the_same_numbers_are_told_apart_by_others():
    # relu6 is off here, with −Z as with W transposed, and in the first of the other numbers too.
    fn = Learner("relu6", returns="gradients", Z=lambda s: s.H @ s.W.T + s.B)
    sizes = {"inputs": 2, "outputs": 2, "batch": 2}
    assert check_my_backward(fn, activation="relu6", seed=994421, **sizes).mistakes == ("weight-transposed",)
