"""How a learner's function is called and answers: NumPy, layouts, arguments written over, names, order, nothing."""

import re

import pytest
import torch

from manual_mlp.explain import check_my_backward

np = pytest.importorskip("numpy")


def right(H, W, B, target):
    Y = torch.sigmoid(H @ W + B)
    delta = (Y - target) * Y * (1 - Y)
    return {"delta": delta, "dB": delta.sum(0), "dW": H.T @ delta, "dH": delta @ W.T}


def numpy_functions(H, W, B, target):
    Y = 1 / (1 + np.exp(-(np.dot(H, W) + B)))
    delta = np.multiply(Y - target, Y * (1 - Y))
    return {"delta": delta, "dB": np.sum(delta, axis=0), "dW": H.T @ delta, "dH": np.matmul(delta, np.transpose(W))}


def numpy_here_and_there(H, W, B, target):
    Y = 1 / (1 + np.exp(-(H @ W + B)))
    delta = (Y - target) * Y * (1 - Y)
    return H.T @ delta, delta.sum(axis=0)


def numpy_loops(H, W, B, target):
    dW, dB = np.zeros_like(W), np.zeros(B.shape)
    for h, t in zip(H, target, strict=True):
        y = 1.0 / (1.0 + np.exp(-(h @ W + B)))
        delta = (y - t) * y * (1 - y)
        dW += np.outer(h, delta)
        dB += delta
    return {"dW": dW, "dB": dB[np.newaxis]}


def numpy_methods(H, W, B, target):
    """Without naming NumPy: a tensor has no astype, and no copy."""
    delta = H.astype(float) @ W + B
    delta = 1 / (1 + 2.718281828459045 ** (-delta))
    error = delta.copy() - target
    return {"dB": (error * delta * (1 - delta)).sum(axis=0, keepdims=True)}


def numpy_reversed(H, W, B, target):
    """Of negative strides."""
    return {name: value[::-1].copy()[::-1] for name, value in numpy_functions(H, W, B, target).items()}


def numpy_in_the_middle(H, W, B, target):
    Y = torch.sigmoid(H @ W + B).numpy()
    delta = (Y - target.numpy()) * Y * (1 - Y)
    return {"dB": np.sum(delta, axis=0), "dW": H.numpy().T @ delta}


def numpy_imported_inside(H, W, B, target):
    import numpy

    Y = 1 / (1 + numpy.exp(-(H @ W + B)))
    delta = (Y - target) * Y * (1 - Y)
    return {"dW": H.T @ delta}


def numpy_and_torch(H, W, B, target):
    """NumPy's function of a tensor is a tensor, and a warning."""
    Y = 1 / (1 + np.exp(-(H @ W + B)))
    delta = (Y - target) * Y * (1 - Y)
    return {"dB": torch.sum(delta, 0), "dW": torch.einsum("nk,ni->ki", H, delta)}


def sigmoid(z):
    return 1 / (1 + np.exp(-z))


def numpy_in_a_helper(H, W, B, target):
    Y = sigmoid(H @ W + B)
    delta = (Y - target) * Y * (1 - Y)
    return {"dB": delta.sum(0), "dW": H.T.dot(delta)}


class NumpyLayer:
    def forward(self, H, W, B):
        self.H, self.Y = H, sigmoid(H @ W + B)

    def __call__(self, H, W, B, target):
        self.forward(H, W, B)
        delta = (self.Y - target) * self.Y * (1 - self.Y)
        return {"dW": np.einsum("nk,ni->ki", self.H, delta), "dB": np.einsum("ni->i", delta)}


def numpy_float32(H, W, B, target):
    return {name: value.astype(np.float32) for name, value in numpy_functions(H, W, B, target).items()}


def numpy_lists(H, W, B, target):
    return {name: value.tolist() for name, value in numpy_functions(H, W, B, target).items()}


NUMPY = [
    *(numpy_functions, numpy_here_and_there, numpy_loops, numpy_methods, numpy_reversed, numpy_in_the_middle),
    numpy_and_torch,
    *(numpy_imported_inside, numpy_in_a_helper, NumpyLayer(), numpy_float32, numpy_lists),
]


@pytest.mark.parametrize("fn", NUMPY)
def test_a_function_written_with_numpy_passes(fn, every_case):
    for sizes in ({}, {"inputs": 3, "outputs": 3, "batch": 3}, {"outputs": 1}, {"batch": 1}):
        for seed in range(2 if every_case else 1):
            grade = check_my_backward(fn, seed=seed, **sizes)
            assert grade.passed, str(grade)
            assert grade.hints == ()


def test_a_mistake_written_with_numpy_is_named():
    def wrong_axis(H, W, B, target):
        return {**numpy_functions(H, W, B, target), "dB": np.sum(numpy_functions(H, W, B, target)["delta"], axis=1)}

    def not_transposed(H, W, B, target):
        return {"dW": np.dot(H, numpy_functions(H, W, B, target)["delta"])}

    assert check_my_backward(wrong_axis).mistakes == ("sum-axis",)
    grade = check_my_backward(not_transposed)
    assert grade.mistakes == ("transpose-dropped",)
    assert "ValueError: shapes (4,3) and (4,2) not aligned" in str(grade)


def test_an_error_is_told_as_the_library_that_the_function_uses_tells_it():
    def of_numpy(H, W, B, target):
        return np.concatenate([H, W], axis=0) @ B

    def of_torch(H, W, B, target):
        return torch.cat([H, W], dim=1) @ B

    assert "ValueError: all the input array dimensions" in " ".join(str(check_my_backward(of_numpy)).split())
    assert "RuntimeError: Sizes of tensors must match" in " ".join(str(check_my_backward(of_torch)).split())


def test_without_numpy_a_function_and_an_error_are_graded_all_the_same(monkeypatch):
    def missing(self):
        raise RuntimeError("Numpy is not available")

    monkeypatch.setattr(torch.Tensor, "numpy", missing)
    assert check_my_backward(right).passed
    assert check_my_backward(lambda *a: {"dW": -right(*a)["dW"]}).mistakes == ("sign",)
    told = str(check_my_backward(lambda H, W, B, target: H @ target))
    assert "shapes cannot be multiplied" in " ".join(told.split())
    assert "Numpy" not in told


def test_what_numpy_cannot_hold_is_an_error_in_words():
    for value in (np.array([["a"]]), np.array([None])):
        with pytest.raises(TypeError, match="expected a tensor for dW, got ndarray"):
            check_my_backward(lambda *_, value=value: {"dW": value})
    with pytest.raises(TypeError, match=r"expected real numbers for dW, got torch\.complex128"):
        check_my_backward(lambda *_: {"dW": np.zeros((3, 2)) * 1j})


def test_a_function_that_is_right_and_writes_over_an_argument_passes_and_is_told():
    def spoils(H, W, B, target):
        Y = torch.sigmoid(H @ W + B)
        target -= Y
        delta = -target * Y * (1 - Y)
        return {"dB": delta.sum(0), "dW": H.T @ delta}

    def numpy_spoils(H, W, B, target):
        found = numpy_functions(H, W, B, target)
        H *= 0
        B += 1
        return found

    grade = check_my_backward(spoils)
    assert grade.passed
    assert grade.mistakes == ()
    assert grade.hints[0].startswith("It changes target in place")
    grade = check_my_backward(numpy_spoils)
    assert grade.passed
    assert grade.hints[0].startswith("It changes H and B in place")
    assert str(grade).endswith("All is right.")


def test_a_shape_that_is_changed_in_place_is_told():
    def turned(H, W, B, target):
        found = right(H, W, B, target)
        W.t_()
        return found

    assert check_my_backward(turned).hints[0].startswith("It changes W in place")


def spoil_h(H, W, B, target):
    delta = right(H, W, B, target)["delta"]
    H *= H * (1 - H)
    return {"delta": delta, "dB": delta.sum(0), "dW": H.T @ delta}


def spoil_h_before_z(H, W, B, target):
    H -= H.mean(0)
    return right(H, W, B, target)


def spoil_w(H, W, B, target):
    found = right(H, W, B, target)
    W -= 0.1 * found["dW"]
    return {**found, "dH": found["delta"] @ W.T}


def spoil_b(H, W, B, target):
    B *= 2
    return {"Z": H @ W + B}


def spoil_target(H, W, B, target):
    target.clamp_(0.3, 0.7)
    Y = torch.sigmoid(H @ W + B)
    return {"dY": Y - target, "delta": (Y - target) * Y * (1 - Y)}


def spoil_target_unseen(H, W, B, target):
    target.mul_(2)
    found = right(H, W, B, target)
    return found["dW"], found["dB"]


def spoil_p(H, W, B, target):
    p = torch.softmax(H @ W + B, 1)
    target /= 2
    return {"dB": (p - target).sum(0)}


@pytest.mark.parametrize(
    ("fn", "name"),
    [
        (spoil_h, "H"),
        (spoil_w, "W"),
        (spoil_b, "B"),
        (spoil_target, "target"),
        (spoil_target_unseen, "target"),
        (spoil_h_before_z, "H"),
    ],
)
def test_an_argument_that_was_written_over_is_named_where_it_makes_results_wrong(fn, name):
    grade = check_my_backward(fn)
    assert not grade.passed
    assert grade.mistakes == ("argument-overwritten",), str(grade)
    assert name in grade.hints[0]
    assert "I do not recognise" not in str(grade)


def test_an_argument_that_was_written_over_is_named_where_the_numbers_are_not_recognised():
    def fn(H, W, B, target):
        W *= 3
        found = right(H, W, B, target)
        W -= found["dW"]
        return {"dB": found["dB"], "dW": found["dW"]}

    grade = check_my_backward(fn)
    assert grade.mistakes == ("argument-overwritten",)
    assert "the function changes W" in grade.hints[0]
    assert "I do not recognise" not in str(grade)


def test_a_target_that_was_written_over_is_named_with_a_softmax():
    assert check_my_backward(spoil_p, loss="cross-entropy").mistakes == ("argument-overwritten",)


def test_an_argument_that_was_written_over_is_told_beside_another_mistake():
    def wrong_and_spoils(H, W, B, target):
        Y = torch.sigmoid(H @ W + B)
        target -= Y
        return {"dY": target, "delta": target * Y * (1 - Y)}

    grade = check_my_backward(wrong_and_spoils)
    assert grade.mistakes == ("sign",)
    assert any(hint.startswith("It changes target in place") for hint in grade.hints)


@pytest.mark.parametrize(
    ("order", "told"),
    [
        (("dB", "dW"), "dW came as dB and dB came as dW"),
        (("dW", "dB", "dH"), "dH came as dB"),
        (("dB", "dW", "dH"), ""),
        (("dH", "dB", "dW"), "dW came as dB and dB came as dW"),
        (("dW", "dH", "dB"), "dH came as dW and dW came as dH"),
    ],
)
@pytest.mark.parametrize("side", [None, 3])
def test_results_in_another_order_are_named(order, told, side):
    def fn(*arguments):
        return tuple(right(*arguments)[name] for name in order)

    sizes = {} if side is None else {"inputs": side, "outputs": side, "batch": side}
    grade = check_my_backward(fn, **sizes)
    assert not grade.passed
    assert grade.mistakes == ("wrong-order",)
    assert told in grade.hints[0]
    assert "(dW, dB) or (dH, dW, dB)" in grade.hints[0]


def test_results_under_each_others_names_are_named():
    def fn(*arguments):
        found = right(*arguments)
        return {"dH": found["dW"], "dW": found["dH"], "dB": found["dB"], "delta": found["delta"]}

    assert check_my_backward(fn).mistakes == ("wrong-order",)


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        *[(name, "dW") for name in ("dw", "DW", "dweight", "dWeights", "grad_W", "W_grad", "weight_grad", "dL_dW")],
        *[(name, "dW") for name in ("dJ/dW", "∂J/∂W", "gradient_w", "W", "d_w", "gW")],
        *[(name, "dB") for name in ("db", "dbias", "grad_b", "bias_grad", "b", "d_biases")],
        *[(name, "dH") for name in ("dh", "dx", "dX", "grad_input", "dHidden")],
        *[(name, "dY") for name in ("dy", "dyhat", "dout", "grad_y")],
        *[(name, "delta") for name in ("δ", "Delta", "dZ", "dz", "detla", "error")],
        *[(name, "Y") for name in ("y", "y_pred", "output")],
        *[(name, "Z") for name in ("z", "logits")],
    ],
)
def test_a_result_under_another_name_is_an_error_that_guesses_which(name, meant):
    with pytest.raises(ValueError, match=re.escape(f"got {name} (did you mean {meant}?)")):
        check_my_backward(lambda *a: {name: right(*a)["dW"]})


def test_a_name_that_means_nothing_is_an_error_without_a_guess():
    with pytest.raises(ValueError, match=r"got momentum$"):
        check_my_backward(lambda *a: {**right(*a), "momentum": 1})


def test_a_forgotten_return_is_an_error_that_says_so():
    def forgets(H, W, B, target):
        right(H, W, B, target)

    with pytest.raises(TypeError, match="got NoneType: did you forget `return`"):
        check_my_backward(forgets)


def test_a_single_tensor_is_an_error_that_shows_a_dict():
    for single in (torch.zeros(3, 2), np.zeros((3, 2))):
        with pytest.raises(TypeError, match=re.escape("return a dict, as in {'dW': dW}")):
            check_my_backward(lambda *_, single=single: single)


def in_torchs_layout(H, W, B, target):
    Y = torch.sigmoid(torch.nn.functional.linear(H, W, B))
    delta = (Y - target) * Y * (1 - Y)
    return {"delta": delta, "dB": delta.sum(0), "dW": delta.T @ H, "dH": delta @ W}


@pytest.mark.parametrize("sizes", [{}, {"inputs": 3, "outputs": 3}, {"inputs": 5, "outputs": 7, "batch": 3}])
def test_the_layout_is_told_if_it_is_the_other_one(sizes):
    assert check_my_backward(in_torchs_layout, layout="torch", **sizes).passed
    for fn, layout, says in ((in_torchs_layout, "textbook", 'Pass layout="torch"'), (right, "torch", "Leave layout")):
        grade = check_my_backward(fn, layout=layout, **sizes)
        assert not grade.passed
        assert grade.mistakes == ("another-layout",), str(grade)
        assert says in grade.hints[0]


def test_a_mistake_in_the_other_layout_is_named_with_it():
    def fn(*arguments):
        found = in_torchs_layout(*arguments)
        return {**found, "dB": found["delta"][-1]}

    for sizes in ({}, {"inputs": 3, "outputs": 3}):
        assert check_my_backward(fn, **sizes).mistakes == ("another-layout", "last-term-only")


TURNED = {
    "convention-swapped": ("dW", lambda H, W, delta: H.T @ delta, "∂J/∂W = Hᵀ δ", "∂J/∂W = δᵀ H"),
    "transpose-dropped": ("dW", lambda H, W, delta: delta @ H, "∂J/∂W = δ H", "∂J/∂W = δᵀ H"),
    "transpose-misplaced": ("dW", lambda H, W, delta: delta @ H.T, "∂J/∂W = δ Hᵀ", "∂J/∂W = δᵀ H"),
    "weight-not-transposed": ("dH", lambda H, W, delta: delta @ W.T, "∂J/∂H = δ Wᵀ", "∂J/∂H = δ W"),
    "last-term-only": ("dW", lambda H, W, delta: torch.outer(delta[-1], H[-1]), "of the last row", "∂J/∂W = δᵀ H"),
    "mean-for-sum": ("dW", lambda H, W, delta: delta.T @ H / len(H), "∂J/∂W = δᵀ H / N", "∂J/∂W = δᵀ H."),
    "sum-axis": ("dB", lambda H, W, delta: delta.sum(1), "δ.sum(1)", "Σₙ δₙ"),
    "sign": ("dH", lambda H, W, delta: -delta @ W, "dH is −1 times", ""),
    "result-transposed": ("dH", lambda H, W, delta: W.T @ delta.T, "∂J/∂H = Wᵀ δᵀ", "∂J/∂H = δ W"),
}


@pytest.mark.parametrize("side", [None, 3])
@pytest.mark.parametrize("name", TURNED)
def test_a_mistake_is_named_in_torchs_layout_as_one_writes_it_there(name, side):
    of, formula, wrong, should = TURNED[name]

    def fn(H, W, B, target):
        found = in_torchs_layout(H, W, B, target)
        return {**found, of: formula(H, W, found["delta"])}

    sizes = {} if side is None else {"inputs": side, "outputs": side, "batch": side}
    grade = check_my_backward(fn, layout="torch", **sizes)
    assert grade.mistakes == (name,), str(grade)
    assert wrong in grade.hints[0]
    assert should in grade.hints[0]


def test_an_unknown_layout_is_an_error_in_words():
    with pytest.raises(ValueError, match="expected a layout among textbook, torch, got 'nn'"):
        check_my_backward(right, layout="nn")


def test_a_call_with_too_few_arguments_and_a_wrong_dtype_get_a_hint():
    assert "It is called as fn(H, W, B, target)." in check_my_backward(lambda H, W: H).hints
    grade = check_my_backward(lambda H, W, B, target: {"dW": H.T @ torch.zeros(4, 2)})
    assert "torch.zeros(3, 2) is float32" in grade.hints[0]


def test_a_function_that_ends_the_program_is_graded():
    grade = check_my_backward(lambda *_: exit())
    assert not grade.passed
    assert "SystemExit" in str(grade)


def test_a_function_that_remembers_passes_and_is_told():
    class Remembers:
        dW = 0

        def __call__(self, H, W, B, target):
            Z = H @ W + B
            self.dW = self.dW + H.T @ ((torch.relu(Z) - target) * (Z > 0))
            return {"dW": self.dW}

    # The kinks of relu hide mistakes, and other numbers are tried.
    grade = check_my_backward(Remembers(), activation="relu")
    assert grade.passed, str(grade)
    assert len(grade.hints) == 1
    assert "keeps something between calls" in grade.hints[0]


def test_a_buffer_that_is_used_again_is_read_before_that():
    buffer, calls = torch.empty(3, 2, dtype=torch.float64), []

    def fn(H, W, B, target):
        calls.append(H)
        Z = H @ W + B
        return {"dW": torch.mm(H.T, (torch.relu(Z) - target) * (Z > 0), out=buffer)}

    assert check_my_backward(fn, activation="relu").passed
    assert len(calls) > 1
