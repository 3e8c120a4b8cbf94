"""Hold reference.py against finite differences and autograd, then the layer against reference.py."""

import ast
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import forward_ad

import manual_mlp
import reference
from manual_mlp import activations

PARAMETERS: dict[str, dict[str, float | str]] = {
    "leaky_relu": {"negative_slope": 0.1},
    "elu": {"alpha": 1.5},
    # 0.75 is exact in float32, to which torch's celu rounds it.
    "celu": {"alpha": 0.75},
    "softplus": {"beta": 2.0, "threshold": 4.0},
    "hardtanh": {"min_val": -0.5, "max_val": 2.0},
    "gelu": {"approximate": "tanh"},
    "sin": {"omega": 3.0},
}
CASES = [(name, {}) for name in reference.ACTIVATIONS] + list(PARAMETERS.items())
EVERY_ACTIVATION = pytest.mark.parametrize(
    ("name", "parameters"), CASES, ids=["-".join(map(str, (name, *parameters.values()))) for name, parameters in CASES]
)

TORCH: dict[str, Callable[..., Tensor]] = {
    "identity": lambda z: z.clone(),
    "lecun_tanh": lambda z: 1.7159 * torch.tanh(2 / 3 * z),
    "gelu_tanh": lambda z: F.gelu(z, approximate="tanh"),
    "squared_relu": lambda z: F.relu(z) ** 2,
    "sin": lambda z, omega=1.0: torch.sin(omega * z),
    "sigmoid": torch.sigmoid,
    "tanh": torch.tanh,
    # F.hardsigmoid has a slope of 1/6 in float32's precision, and no second derivative.
    "hardsigmoid": lambda z: F.relu6(z + 3) / 6,
}
# The kinks and thresholds of every case, and far from all of them.
KINKS = [-6.0, -3.0, -1.0, -0.5, 0.0, 1.0, 2.0, 3.0, 6.0, 20.0]
FAR = [-1e4, -710.0, -100.0, -20.5, 20.5, 100.0, 710.0, 1e4]
SMOOTH = [-7.3, -4.1, -2.2, -1.3, -0.7, -0.2, 0.3, 0.8, 1.7, 2.4, 4.9, 7.1]


def scalar(name: str, parameters: dict[str, float | str]) -> reference.Scalar:
    return reference.ACTIVATIONS[name](**parameters)


def composite(name: str, parameters: dict[str, float | str]) -> Callable[[Tensor], Tensor]:
    f = TORCH.get(name) or getattr(F, name)
    return lambda z: f(z, **parameters)


def tensor(values: object) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def assert_close(actual: Tensor, expected: object, tolerance: float = 1e-12) -> None:
    expected = torch.as_tensor(expected, dtype=torch.float64).reshape(actual.shape)
    torch.testing.assert_close(actual.detach().cpu(), expected, rtol=tolerance, atol=tolerance)


def layer(bias: bool, rows: int = 4, d_in: int = 5, d_out: int = 3) -> tuple[Tensor, Tensor, Tensor | None, Tensor]:
    """Draw h, w, b and one more array in the shape of the output."""
    draw = torch.Generator().manual_seed(2)
    shapes = (rows, d_in), (d_out, d_in), (d_out,), (rows, d_out)
    h, w, b, dy = (torch.randn(shape, generator=draw, dtype=torch.float64) for shape in shapes)
    return h, w, b if bias else None, dy


def lists(*tensors: Tensor | None) -> list[list]:
    return [None if t is None else t.tolist() for t in tensors]


def on(device: str, *tensors: Tensor | None) -> list[Tensor | None]:
    return [None if t is None else t.to(device).requires_grad_() for t in tensors]


# The reference by itself.


def test_the_reference_imports_nothing_but_the_standard_library() -> None:
    tree = ast.parse(Path(reference.__file__).read_text(encoding="utf-8"))
    imported = {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    imported |= {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    assert imported == {"collections.abc", "math", "typing"}


def test_the_reference_knows_activations_that_there_are_with_their_parameters() -> None:
    assert set(reference.ACTIVATIONS) <= set(activations.names())
    for name, parameters in PARAMETERS.items():
        getattr(activations, name)(**parameters)


@EVERY_ACTIVATION
def test_first_and_second_derivative_agree_with_central_differences(name: str, parameters: dict) -> None:
    f, df, d2f = scalar(name, parameters)
    step = 1e-5
    for z in SMOOTH:
        assert df(z) == pytest.approx((f(z + step) - f(z - step)) / (2 * step), rel=2e-9, abs=2e-9), f"z = {z}"
        assert d2f(z) == pytest.approx((df(z + step) - df(z - step)) / (2 * step), rel=2e-9, abs=2e-9), f"z = {z}"


@EVERY_ACTIVATION
def test_value_and_slope_are_torch_s_at_kinks_and_in_saturation(name: str, parameters: dict) -> None:
    f, df, _ = scalar(name, parameters)
    z = tensor(KINKS + FAR).requires_grad_()
    y = composite(name, parameters)(z)
    (slope,) = torch.autograd.grad(y.sum(), z)
    assert_close(y, [f(x) for x in z.tolist()], 1e-11)
    assert_close(slope, [df(x) for x in z.tolist()], 1e-11)


@EVERY_ACTIVATION
def test_second_derivative_is_torch_s_at_kinks_and_in_saturation(name: str, parameters: dict) -> None:
    *_, d2f = scalar(name, parameters)
    # torch's mish has NaN far out.
    z = tensor(KINKS + [x for x in FAR if name != "mish" or abs(x) < 50]).requires_grad_()
    (slope,) = torch.autograd.grad(composite(name, parameters)(z).sum(), z, create_graph=True)
    found = torch.zeros_like(z)
    if slope.requires_grad:
        (found,) = torch.autograd.grad(slope.sum(), z, materialize_grads=True)
    assert_close(found, [d2f(x) for x in z.tolist()], 1e-11)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("name", ["tanh", "silu", "leaky_relu"])
def test_reference_gradients_are_autograd_s(name: str, bias: bool) -> None:
    h, w, b, dy = layer(bias)
    leaves = on("cpu", h, w, b)
    y = composite(name, {})(F.linear(*leaves))
    expected = torch.autograd.grad(y, [leaf for leaf in leaves if leaf is not None], dy)
    assert_close(y, reference.layer_forward(*lists(h, w, b), scalar(name, {})))
    found = reference.layer_backward(*lists(h, w, b, dy), scalar(name, {}))
    assert (found.db is not None) == bias
    for gradient, told in zip(expected, found, strict=False):
        assert_close(gradient, told)


def test_reference_forward_mode_and_backward_satisfy_the_adjoint_identity() -> None:
    h, w, b, dy = layer(bias=True)
    h_dot, w_dot, b_dot = (torch.cos(t * 7) for t in (h, w, b))
    y_dot = reference.layer_jvp(*lists(h, w, b, h_dot, w_dot, b_dot), scalar("tanh", {}))
    dh, dw, db = map(tensor, reference.layer_backward(*lists(h, w, b, dy), scalar("tanh", {})))
    assert_close((dy * tensor(y_dot)).sum(), (dh * h_dot).sum() + (dw * w_dot).sum() + (db * b_dot).sum())


def second_order(
    name: str, parameters: dict, h: Tensor, w: Tensor, b: Tensor | None, dy: Tensor, tildes: Sequence[Tensor | None]
) -> list[Tensor]:
    told = reference.layer_second_order(*lists(h, w, b, dy, *tildes), scalar(name, parameters))
    assert (told.by_b is not None) == (b is not None)
    return [tensor(gradient) for gradient in told if gradient is not None]


def twice_by_autograd(
    f: Callable[[Tensor, Tensor, Tensor | None], Tensor],
    device: str,
    h: Tensor,
    w: Tensor,
    b: Tensor | None,
    dy: Tensor,
    tildes: Sequence[Tensor | None],
) -> list[Tensor]:
    """Differentiate the backward pass of y = f(h, w, b), without the outputs whose tilde is None."""
    leaves = on(device, h, w, b, dy)
    given = [leaf for leaf in leaves[:3] if leaf is not None]
    gradients = torch.autograd.grad(f(*leaves[:3]), given, leaves[3], create_graph=True)
    kept = [(gradient, t.to(device)) for gradient, t in zip(gradients, tildes, strict=False) if t is not None]
    gradients, tildes = zip(*kept, strict=True)
    return list(torch.autograd.grad(gradients, [leaves[3], *given], tildes, materialize_grads=True))


@EVERY_ACTIVATION
@pytest.mark.parametrize("bias", [True, False])
def test_reference_second_order_is_autograd_s_through_the_backward_pass(
    name: str, parameters: dict, bias: bool
) -> None:
    *arrays, dy = layer(bias, d_out=7)
    tildes = [None if t is None else torch.cos(t * 7) for t in arrays]
    expected = twice_by_autograd(lambda *a: composite(name, parameters)(F.linear(*a)), "cpu", *arrays, dy, tildes)
    for gradient, told in zip(expected, second_order(name, parameters, *arrays, dy, tildes), strict=True):
        assert_close(gradient, told, 1e-11)


@pytest.mark.parametrize("given", ["h", "w", "b", "hw", "hb", "wb"])
def test_reference_second_order_takes_a_missing_tilde_for_a_zero(given: str) -> None:
    h, w, b, dy = layer(bias=True, d_out=7)
    tildes = [torch.cos(t * 7) if name in given else None for name, t in zip("hwb", (h, w, b), strict=True)]
    expected = twice_by_autograd(lambda *a: torch.tanh(F.linear(*a)), "cpu", h, w, b, dy, tildes)
    zeros = [torch.zeros_like(t) if tilde is None else tilde for t, tilde in zip((h, w, b), tildes, strict=True)]
    missing, zero = (second_order("tanh", {}, h, w, b, dy, some) for some in (tildes, zeros))
    for gradient, told, same in zip(expected, missing, zero, strict=True):
        assert_close(gradient, told)
        assert_close(same, told, 0.0)


@pytest.mark.parametrize("name", ["tanh", "silu", "sin"])
def test_reference_second_order_is_adjoint_to_central_differences_of_the_backward_pass(name: str) -> None:
    h, w, b, dy = layer(bias=True, d_out=7)
    tildes = [torch.cos(t * 7) for t in (h, w, b)]
    by_dy, by_h, by_w, by_b = second_order(name, {}, h, w, b, dy, tildes)
    for by, moved in ((by_dy, 3), (by_h, 0), (by_w, 1), (by_b, 2)):
        start = [h, w, b, dy]
        direction = torch.sin(start[moved] * 5)

        def K(step: float, start: list = start, moved: int = moved, direction: Tensor = direction) -> float:
            point = [t + step * direction if i == moved else t for i, t in enumerate(start)]
            found = reference.layer_backward(*lists(*point), scalar(name, {}))
            return sum((tilde * tensor(gradient)).sum().item() for tilde, gradient in zip(tildes, found, strict=True))

        assert (by * direction).sum().item() == pytest.approx((K(1e-5) - K(-1e-5)) / 2e-5, rel=1e-8)


@pytest.mark.parametrize("name", ["tanh", "gelu", "leaky_relu"])
def test_reference_second_order_is_a_symmetric_hessian(name: str) -> None:
    # With dy held, J = ⟨dy, y⟩, and dh, dw, db are its first derivatives.
    h, w, b, dy = layer(bias=True, d_out=7)
    u, v = ([wave(t * 7) for t in (h, w, b)] for wave in (torch.sin, torch.cos))
    uHv, vHu = (
        sum((t * by).sum() for t, by in zip(left, second_order(name, {}, h, w, b, dy, right)[1:], strict=True))
        for left, right in ((u, v), (v, u))
    )
    assert_close(uHv, vHu)


def test_reference_cost_falls_as_its_gradient_says() -> None:
    h, w, b, target = layer(bias=True)
    _, gradients = reference.layer_squared_error(*lists(h, w, b, target), scalar("sigmoid", {}))

    def cost(k: int, l: int, step: float) -> float:  # noqa: E741
        moved = w.clone()
        moved[l, k] += step
        return reference.layer_squared_error(*lists(h, moved, b, target), scalar("sigmoid", {}))[0]

    for l in range(w.shape[0]):  # noqa: E741
        for k in range(w.shape[1]):
            quotient = (cost(k, l, 1e-5) - cost(k, l, -1e-5)) / 2e-5
            assert gradients.dw[l][k] == pytest.approx(quotient, abs=1e-9)


OPTIONS = {
    "plain": {},
    "weights": {"weight": [0.5, 2.0, 1.5]},
    "smoothing": {"label_smoothing": 0.3},
    "ignored": {"ignore_index": 1},
    "all of them": {"weight": [0.5, 2.0, 1.5], "label_smoothing": 0.3, "ignore_index": 1},
}
every_option = pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
CLASSES = [2, 0, 1, 0]
PROBABILITIES = [[0.2, 0.3, 0.5], [1.0, 0.0, 0.0], [0.4, 0.4, 0.2], [0.0, 0.1, 0.9]]
every_target = pytest.mark.parametrize("target", [CLASSES, PROBABILITIES], ids=["classes", "probabilities"])


def rows_of(target: list, options: dict) -> list[list[float]]:
    """Return aₙᵢ = vᵢ ((1 − ε) tₙᵢ + ε/V) of each row n; a row to be ignored is zero."""
    v, epsilon = options.get("weight", [1.0] * 3), options.get("label_smoothing", 0.0)
    a = []
    for t in target:
        one_hot = [float(t == i) for i in range(3)] if isinstance(t, int) else t
        counts = isinstance(t, list) or t != options.get("ignore_index")
        a.append([counts * v[i] * ((1 - epsilon) * one_hot[i] + epsilon / 3) for i in range(3)])
    return a


def as_keywords(target: list, options: dict, device: str) -> dict:
    """Return the options for torch; a target of probabilities has no class to ignore."""
    known = {name: value for name, value in options.items() if name != "ignore_index" or target is CLASSES}
    return known | ({"weight": tensor(known["weight"]).to(device)} if "weight" in known else {})


def as_target(target: list, device: str) -> Tensor:
    return (torch.tensor(target) if target is CLASSES else tensor(target)).to(device)


@every_target
@every_option
@pytest.mark.parametrize("bias", [True, False])
def test_reference_cross_entropy_is_autograd_s(bias: bool, options: dict, target: list) -> None:
    h, w, b, _ = layer(bias)
    leaves = on("cpu", h, w, b)
    z = F.linear(*leaves)
    values = F.cross_entropy(z, as_target(target, "cpu"), reduction="none", **as_keywords(target, options, "cpu"))
    expected = torch.autograd.grad(values.sum(), [z, *(leaf for leaf in leaves if leaf is not None)])
    costs, delta, gradients = reference.layer_cross_entropy(*lists(h, w, b), rows_of(target, options))
    assert_close(values, costs)
    for gradient, told in zip(expected, (delta, *gradients), strict=False):
        assert_close(gradient, told)


@pytest.mark.parametrize("bias", [True, False])
def test_reference_logistic_cross_entropy_is_autograd_s(bias: bool) -> None:
    h, w, b, _ = layer(bias)
    leaves = on("cpu", h, w, b)
    t, v, rho = tensor(PROBABILITIES), tensor(PROBABILITIES) + 0.5, tensor([0.5, 2.0, 1.5])
    z = F.linear(*leaves)
    values = F.binary_cross_entropy_with_logits(z, t, v, pos_weight=rho, reduction="none")
    expected = torch.autograd.grad(values.sum(), [z, *(leaf for leaf in leaves if leaf is not None)])
    costs, delta, gradients = reference.layer_binary_cross_entropy(*lists(h, w, b, t, v, rho))
    assert_close(values, costs)
    for gradient, told in zip(expected, (delta, *gradients), strict=False):
        assert_close(gradient, told)


# The layer against the reference.


@EVERY_ACTIVATION
@pytest.mark.parametrize("bias", [True, False])
def test_dense_is_the_sum_over_indices(name: str, parameters: dict, bias: bool, device: str) -> None:
    h, w, b, dy = layer(bias)
    leaves = on(device, h, w, b)
    y = manual_mlp.dense(*leaves, getattr(activations, name)(**parameters))
    y.backward(dy.to(device))
    assert_close(y, reference.layer_forward(*lists(h, w, b), scalar(name, parameters)))
    for leaf, told in zip(leaves, reference.layer_backward(*lists(h, w, b, dy), scalar(name, parameters)), strict=True):
        if leaf is not None:
            assert_close(leaf.grad, told, 1e-12)


@EVERY_ACTIVATION
@pytest.mark.parametrize("bias", [True, False])
def test_dense_second_order_is_the_sum_over_indices(name: str, parameters: dict, bias: bool, device: str) -> None:
    *arrays, dy = layer(bias, d_out=7)
    tildes = [None if t is None else torch.cos(t * 7) for t in arrays]
    activation = getattr(activations, name)(**parameters)
    found = twice_by_autograd(lambda *a: manual_mlp.dense(*a, activation), device, *arrays, dy, tildes)
    for gradient, told in zip(found, second_order(name, parameters, *arrays, dy, tildes), strict=True):
        assert_close(gradient, told, 1e-11)


@EVERY_ACTIVATION
def test_dense_is_the_sum_over_indices_at_kinks_and_in_saturation(name: str, parameters: dict, device: str) -> None:
    # One input of weight 1: z is h.
    h, w, dy = tensor([[z] for z in KINKS + FAR]), tensor([[1.0]]), tensor([[2.0]] * len(KINKS + FAR))
    leaves = on(device, h, w, tensor([0.0]))
    y = manual_mlp.dense(*leaves, getattr(activations, name)(**parameters))
    y.backward(dy.to(device))
    assert_close(y, reference.layer_forward(*lists(h, w), [0.0], scalar(name, parameters)))
    told = reference.layer_backward(*lists(h, w), [0.0], dy.tolist(), scalar(name, parameters))
    for leaf, gradient in zip(leaves, told, strict=True):
        assert_close(leaf.grad, gradient, 1e-11)


@EVERY_ACTIVATION
def test_dense_forward_mode_is_the_sum_over_indices(name: str, parameters: dict, device: str) -> None:
    h, w, b, _ = layer(bias=True)
    dots = [torch.cos(t * 7) for t in (h, w, b)]
    with forward_ad.dual_level():
        duals = [forward_ad.make_dual(t.to(device), dot.to(device)) for t, dot in zip((h, w, b), dots, strict=True)]
        y = manual_mlp.dense(*duals, getattr(activations, name)(**parameters))
        y_dot = forward_ad.unpack_dual(y).tangent
    assert_close(y_dot, reference.layer_jvp(*lists(h, w, b, *dots), scalar(name, parameters)))


# Of the four rows two at a time, all at once, or as it is found best.
every_chunk = pytest.mark.parametrize("chunk_rows", [2, 8, None])


@EVERY_ACTIVATION
@pytest.mark.parametrize("bias", [True, False])
@every_chunk
def test_dense_squared_error_is_the_sum_over_indices(
    name: str, parameters: dict, bias: bool, chunk_rows: int | None, device: str
) -> None:
    h, w, b, target = layer(bias)
    leaves, activation = on(device, h, w, b), getattr(activations, name)(**parameters)
    loss = manual_mlp.dense_squared_error(*leaves, target.to(device), activation, chunk_rows=chunk_rows)
    loss.backward()
    cost, gradients = reference.layer_squared_error(*lists(h, w, b, target), scalar(name, parameters))
    assert_close(loss, cost)
    for leaf, told in zip(leaves, gradients, strict=True):
        if leaf is not None:
            assert_close(leaf.grad, told, 1e-12)


@every_chunk
@every_target
@every_option
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("reduction", ["sum", "mean", "none"])
def test_linear_cross_entropy_is_the_sum_over_indices(
    reduction: str, bias: bool, options: dict, target: list, chunk_rows: int | None, device: str
) -> None:
    h, w, b, _ = layer(bias)
    a, upstream = rows_of(target, options), [1.0] * 4
    if reduction == "mean":
        v, ignored = options.get("weight", [1.0] * 3), options.get("ignore_index")
        upstream = [1 / (sum(v[t] for t in CLASSES if t != ignored) if target is CLASSES else 4)] * 4
    if reduction == "none":
        upstream = [0.7, -1.3, 0.4, 2.0]
    leaves, keywords = on(device, h, w, b), as_keywords(target, options, device)
    loss = manual_mlp.linear_cross_entropy(
        *leaves[:2],
        as_target(target, device),
        linear_bias=leaves[2],
        reduction=reduction,
        chunk_rows=chunk_rows,
        **keywords,
    )
    loss.backward(tensor(upstream).to(device) if reduction == "none" else None)

    costs, *_ = reference.layer_cross_entropy(*lists(h, w, b), a)
    assert_close(loss, costs if reduction == "none" else sum(costs) * upstream[0])
    # The cost is linear in a, so what multiplies a row's cost may multiply its a.
    multiplied = [[g * share for share in row] for g, row in zip(upstream, a, strict=True)]
    *_, gradients = reference.layer_cross_entropy(*lists(h, w, b), multiplied)
    for leaf, told in zip(leaves, gradients, strict=True):
        if leaf is not None:
            assert_close(leaf.grad, told)


@every_chunk
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("pos_weight", [[1.0, 1.0, 1.0], [0.5, 2.0, 1.5]], ids=["plain", "pos_weight"])
@pytest.mark.parametrize("reduction", ["sum", "mean", "none"])
def test_linear_binary_cross_entropy_is_the_sum_over_indices(
    reduction: str, pos_weight: list[float], bias: bool, chunk_rows: int | None, device: str
) -> None:
    h, w, b, upstream = layer(bias)
    t, rho, v = tensor(PROBABILITIES), tensor(pos_weight), tensor(PROBABILITIES) + 0.5
    leaves = on(device, h, w, b)
    loss = manual_mlp.linear_binary_cross_entropy(
        *leaves[:2],
        t.to(device),
        linear_bias=leaves[2],
        weight=v.to(device),
        pos_weight=None if pos_weight == [1.0] * 3 else rho.to(device),
        reduction=reduction,
        chunk_rows=chunk_rows,
    )
    loss.backward(upstream.to(device) if reduction == "none" else None)

    costs = tensor(reference.layer_binary_cross_entropy(*lists(h, w, b, t, v, rho))[0])
    assert_close(loss, {"sum": costs.sum(), "mean": costs.mean(), "none": costs}[reduction])
    # The cost is linear in v.
    upstream = {"sum": torch.ones(()), "mean": torch.tensor(1 / 12, dtype=torch.float64), "none": upstream}[reduction]
    *_, gradients = reference.layer_binary_cross_entropy(*lists(h, w, b, t, v * upstream, rho))
    for leaf, told in zip(leaves, gradients, strict=True):
        if leaf is not None:
            assert_close(leaf.grad, told)


def test_mean_divides_the_textbook_s_sum_by_the_number_of_entries(device: str) -> None:
    h, w, b, target = layer(bias=True)
    leaves = on(device, h, w, b)
    manual_mlp.dense_squared_error(*leaves, target.to(device), "tanh", reduction="mean").backward()
    _, gradients = reference.layer_squared_error(*lists(h, w, b, target), scalar("tanh", {}))
    for leaf, told in zip(leaves, gradients, strict=True):
        assert_close(leaf.grad, tensor(told) / target.numel())


def test_in_the_textbook_s_layout_dB_is_delta_and_dW_is_H_transposed_delta_and_dH_is_delta_W_transposed(
    device: str,
) -> None:
    # H is 1×h, W is h×y, B and Y* are 1×y, as the textbook writes them.
    draw = torch.Generator().manual_seed(3)
    H, W, B, target = (
        torch.randn(shape, generator=draw, dtype=torch.float64) for shape in ((1, 4), (4, 7), (1, 7), (1, 7))
    )
    h, w, b = on(device, H, W.T, B[0])
    J = manual_mlp.dense_squared_error(h, w, b, target.to(device), "sigmoid")
    J.backward()

    Y = 1 / (1 + torch.exp(-(H @ W + B)))
    delta = (Y - target) * Y * (1 - Y)
    assert_close(J, ((Y - target) ** 2).sum() / 2)
    assert_close(b.grad, delta[0])
    assert_close(w.grad.T, H.T @ delta)
    assert_close(h.grad, delta @ W.T)

    textbook = reference.row_backward(
        *lists(H[0], W, B[0]), reference.dJ_dY(Y[0].tolist(), target[0].tolist()), scalar("sigmoid", {})
    )
    assert_close(delta[0], textbook.dB)
    assert_close(H.T @ delta, textbook.dW)
    assert_close(delta @ W.T, textbook.dH)
