"""Which numbers pass: no wrong formula does, in whatever dtype; and how those that do not are shown."""

import re

import pytest
import torch

from manual_mlp import activations, losses
from manual_mlp.explain import check_my_backward

COARSE = [torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.int64, torch.int8, torch.bool]
SIZES = [(3, 2, 4), (2, 3, 3), (3, 3, 3), (5, 4, 6)]


def right(H, W, B, target):
    Y = torch.sigmoid(H @ W + B)
    delta = (Y - target) * Y * (1 - Y)
    return {"delta": delta, "dB": delta.sum(0), "dW": H.T @ delta, "dH": delta @ W.T}


def learner(activation, loss, dy=None, slope=None, delta=None, db=None, dw=None, dh=None):
    """Write a backward with the package's f and f′, and the mistakes that are handed in."""
    f, df = activations.get(activation).f, activations.get(activation).df

    def fn(H, W, B, target):
        Z = H @ W + B
        Y = f(Z)
        p = losses.by_flag(loss).shares(Y)
        dY = dy(p, Y, target) if dy else p - target
        s = slope(H, W, B, Z, Y, df) if slope else df(Z)
        d = delta(dY, s) if delta else dY * s
        return {
            "dB": db(d, dY) if db else d.sum(0),
            "dW": dw(H, d, dY) if dw else H.T @ d,
            "dH": dh(d, W, dY) if dh else d @ W.T,
        }

    return fn


# Some are none for some functions, which is said beside them.
WRONG = {
    "sign": {"dy": lambda p, y, t: t - p},
    "twice": {"dy": lambda p, y, t: 2 * (p - t)},
    "mean": {"dy": lambda p, y, t: (p - t) / len(t)},
    "a bit": {"dy": lambda p, y, t: 1.001 * (p - t)},
    "no target": {"dy": lambda p, y, t: p},
    "no slope": {"delta": lambda dy, s: dy},
    "slope twice": {"delta": lambda dy, s: dy * s * s},
    "slope at Y": {"slope": lambda h, w, b, z, y, df: df(y)},
    "no bias": {"slope": lambda h, w, b, z, y, df: df(h @ w)},
    "last row for b": {"db": lambda d, dy: d[-1]},
    "b without slope": {"db": lambda d, dy: dy.sum(0)},
    "last row for w": {"dw": lambda h, d, dy: torch.outer(h[-1], d[-1])},
    "w without slope": {"dw": lambda h, d, dy: h.T @ dy},
    "w of sums": {"dw": lambda h, d, dy: torch.outer(h.sum(0), d.sum(0))},
    "last output for h": {"dh": lambda d, w, dy: d[:, -1:] * w[:, -1]},
    "h without slope": {"dh": lambda d, w, dy: dy @ w.T},
}
NONE = {
    "identity": (
        *("no slope", "slope twice", "slope at Y", "no bias"),
        *("b without slope", "w without slope", "h without slope"),
    ),
    # f′ is 0 or 1, and the same at f(Z) as at Z.
    "relu": ("slope twice", "slope at Y"),
    "leaky_relu": ("slope at Y",),
    "hardtanh": ("slope twice", "slope at Y"),
    "relu6": ("slope twice", "slope at Y"),
}


DTYPES, LOSSES = (torch.float64, torch.float32), losses.flags()


def options(turn, activation):
    """Take sizes, a loss, a dtype and a seed in turn: over the functions all meet all."""
    inputs, outputs, batch = SIZES[turn % len(SIZES)]
    odd = turn + activations.names().index(activation)
    sizes = {"inputs": inputs, "outputs": outputs, "batch": batch}
    return {**sizes, "activation": activation, "loss": LOSSES[odd % len(LOSSES)], "seed": turn}, DTYPES[
        odd // len(LOSSES) % 2
    ]


def cast(fn, dtype):
    return lambda *arguments: {name: value.to(dtype) for name, value in fn(*arguments).items()}


@pytest.mark.parametrize("activation", activations.names())
def test_no_mistake_passes_for_any_function_loss_dtype_or_draw(activation, every_case):
    for turn, (case, made) in enumerate(WRONG.items()):
        if not every_case and (turn + activations.names().index(activation)) % 3:
            continue  # so that over any three functions all mistakes are made
        if case in NONE.get(activation, ()):
            continue
        given, dtype = options(turn, activation)
        grade = check_my_backward(cast(learner(activation, given["loss"], **made), dtype), **given)
        assert not grade.passed, (case, given, str(grade))


@pytest.mark.parametrize("activation", activations.names())
def test_what_is_right_passes_for_every_function_loss_and_dtype(activation, every_case):
    for turn in range(8 if every_case else 3):
        given, dtype = options(turn, activation)
        grade = check_my_backward(cast(learner(activation, given["loss"]), dtype), **given)
        assert grade.passed, (given, str(grade))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize(
    ("activation", "seed", "slope"),
    [
        ("relu", 0, lambda h, w, b, z, y, df: df(h @ w)),
        ("relu6", 0, lambda h, w, b, z, y, df: (z > 0).to(z.dtype)),
        ("hardsigmoid", 0, lambda h, w, b, z, y, df: torch.full_like(z, 1 / 6)),
        ("hardsigmoid", 0, lambda h, w, b, z, y, df: df(y)),
        ("selu", 19, lambda h, w, b, z, y, df: df(y)),
    ],
)
def test_a_mistake_that_the_first_numbers_hide_shows_in_others(activation, seed, slope, dtype):
    wrong = learner(activation, "squared-error", slope=slope)
    calls = []

    def fn(*arguments):
        calls.append(arguments)
        return {name: wrong(*arguments)[name].to(dtype) for name in ("dW", "dB")}

    grade = check_my_backward(fn, activation=activation, seed=seed)
    H, W, B, target = calls[0]
    assert torch.equal(wrong(H, W, B, target)["dW"], learner(activation, "squared-error")(H, W, B, target)["dW"])
    assert not grade.passed
    assert "With the first numbers it looked right" in grade.hints[0]
    assert "All is right" not in str(grade)


@pytest.mark.parametrize("dtype", COARSE, ids=str)
def test_a_coarse_dtype_is_refused_with_a_sentence(dtype):
    for factor in (1, 1.005, -1):
        grade = check_my_backward(lambda *a, c=factor: {name: (c * v).to(dtype) for name, v in right(*a).items()})
        assert not grade.passed
        assert grade.mistakes == ()
        assert grade.hints == ("Return float64 or float32.",)
        kind = "too coarse" if dtype.is_floating_point else "no digits after the point"
        assert str(dtype).removeprefix("torch.") in str(grade)
        assert kind in " ".join(str(grade).split())


def test_one_coarse_result_among_others_is_refused():
    grade = check_my_backward(lambda *a: {**right(*a), "dW": right(*a)["dW"].half()})
    assert [check.name.split(":")[0] for check in grade.checks if not check.passed] == ["dW"]


@pytest.mark.parametrize("value", [[[0, 0], [0, 0], [0, 0]], [[False] * 2] * 3, 0, True])
def test_lists_of_whole_numbers_are_refused(value):
    grade = check_my_backward(lambda *_: {"dW": value})
    assert not grade.passed
    assert "no digits after the point" in str(grade)


def test_whole_numbers_among_others_are_read():
    def fn(*arguments):
        dW = right(*arguments)["dW"].tolist()
        return {"dW": [[dW[0][0], dW[0][1]], dW[1], torch.tensor(dW[2], dtype=torch.float64)]}

    assert check_my_backward(fn).passed
    grade = check_my_backward(lambda *a: {"dW": [[0, 0.5], [0, 1], [2, 3]]})
    assert not grade.passed
    assert grade.checks[0].error is not None


@pytest.mark.parametrize("times", [1 + 1e-6, 1 - 1e-8, 1 + 3e-5])
def test_float64_is_compared_as_float64(times):
    grade = check_my_backward(lambda *a: {name: times * value for name, value in right(*a).items()})
    assert not grade.passed
    assert grade.mistakes == (("constant-factor",) if abs(times - 1) > 1e-5 else ("float32-inside",))


def test_float32_inside_float64_is_named():
    grade = check_my_backward(lambda *a: {name: value.float().double() for name, value in right(*a).items()})
    assert not grade.passed
    assert grade.mistakes == ("float32-inside",)
    assert "computed in float32" in grade.hints[0]


def test_float32_beside_float64_is_compared_as_float32():
    # The buffer that a beginner makes: the rest is as good as that.
    def fn(H, W, B, target):
        delta = torch.zeros(4, 2)
        delta += right(H, W, B, target)["delta"]
        return {"delta": delta, "dB": delta.double().sum(0), "dW": H.T @ delta.double()}

    assert check_my_backward(fn).passed


@pytest.mark.each_value
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("name", ["delta", "dB", "dW", "dH"])
def test_one_wrong_entry_does_not_pass_and_is_marked(name, dtype):
    def fn(*arguments):
        found = {key: value.to(dtype) for key, value in right(*arguments).items()}
        found[name].view(-1)[-1] += 1e-4
        return found

    grade = check_my_backward(fn)
    assert [check.name.split(":")[0] for check in grade.checks if not check.passed] == [name]
    assert grade.mistakes == ()
    assert "I do not recognise this." in grade.hints
    assert re.search(r"1 of \d+ entries differs, marked \*\.", grade.picture)
    assert grade.picture.count("*") == 2


def test_an_entry_where_the_right_one_is_zero_is_compared_too():
    seen = []

    def fn(H, W, B, target):
        Z = H @ W + B
        seen.append(Z)
        delta = (Z.clamp(min=0) - target) * (Z > 0)
        return {"delta": torch.where(delta == 0, 1e-6, delta)}

    assert not check_my_backward(fn, activation="relu").passed
    assert (seen[0] < 0).any()


def test_numbers_that_are_not_finite_are_counted():
    def fn(*arguments):
        found = right(*arguments)
        found["dW"][0] = float("nan")
        return found

    grade = check_my_backward(fn)
    assert grade.hints == ("I do not recognise this.", "2 of 6 entries of dW are not finite.")
    assert grade.picture.count("nan*") == 2


def test_the_learners_matrix_stands_beside_the_right_one():
    grade = check_my_backward(lambda *a: {**right(*a), "dW": -right(*a)["dW"]})
    head, *rows, count = grade.picture.splitlines()
    assert re.fullmatch(r"  dW, yours  3×2 +dW, right  3×2", head)
    assert count.strip() == "6 of 6 entries differ, marked *."
    seen = []
    check_my_backward(lambda *a: seen.append(right(*a)["dW"]) or {"dW": seen[0]})
    numbers = [[float(word.strip("*").replace("−", "-")) for word in row.split()] for row in rows]
    torch.testing.assert_close(torch.tensor(numbers).double(), torch.cat([-seen[0], seen[0]], 1), atol=1e-4, rtol=0)
    assert all(len(re.findall(r"\*", row)) == 2 for row in rows)
    assert grade.picture in str(grade)


@pytest.mark.parametrize(
    ("change", "shape"), [(lambda w: w.T, "2×3"), (lambda w: w[0], "1×2"), (lambda w: w.sum(), "one number")]
)
def test_a_wrong_shape_is_shown(change, shape):
    grade = check_my_backward(lambda *a: {"dW": change(right(*a)["dW"]) + 0.1})
    assert grade.picture.splitlines()[0].startswith(f"  dW, yours  {shape}")
    assert "dW, right  3×2" in grade.picture
    assert "*" not in grade.picture


def test_a_shape_that_is_no_matrix_is_told():
    for value in (torch.zeros(2, 1, 3), torch.zeros(0, 2), torch.zeros(1, 1, 1, 1)):
        grade = check_my_backward(lambda *_, value=value: {"dW": value.double()})
        assert f"the shape is {tuple(value.shape)}, and should be (3, 2)" in str(grade)
        assert grade.picture == ""


def test_differences_that_are_small_are_written_out():
    def fn(*arguments):
        found = right(*arguments)
        found["dW"][1, 1] += 3e-7
        return {"dW": found["dW"]}

    grade = check_my_backward(fn)
    marked = re.findall(r"(\S+)\*", grade.picture)
    assert marked[0] not in grade.picture.replace(marked[0] + "*", "")


@pytest.mark.parametrize("sizes", [(40, 30, 20), (2, 60, 3), (60, 2, 3), (7, 9, 8)])
def test_a_large_matrix_is_cut_where_it_is_wrong_and_says_so(sizes):
    inputs, outputs, batch = sizes

    def fn(*arguments):
        found = right(*arguments)
        found["dW"][-1, -1] += 1234.5678
        return found

    grade = check_my_backward(fn, inputs=inputs, outputs=outputs, batch=batch)
    lines = str(grade).splitlines()
    assert max(map(len, lines)) <= 120
    assert len(lines) < 25
    assert "Not all rows and columns are shown." in grade.picture
    assert grade.picture.count("*") == 2
    assert "123" in grade.picture


def test_the_readers_generator_and_modes_are_left_alone():
    before = torch.get_rng_state()
    with torch.inference_mode():
        assert check_my_backward(right, activation="sigmoid").passed
        assert not check_my_backward(lambda *a: {"dW": -right(*a)["dW"]}).passed
        assert torch.is_inference_mode_enabled()
    assert torch.equal(torch.get_rng_state(), before)
