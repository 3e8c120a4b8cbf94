"""Arguments that were once judged in another way than torch judges them."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from judged import CLASSES, D, N, V, assert_alike, at_every_size, outcome, randn
from manual_mlp import (
    MLP,
    LinearCrossEntropyLoss,
    backprop,
    dense,
    dense_squared_error,
    linear_binary_cross_entropy,
    linear_cross_entropy,
)


def test_a_layer_refuses_a_weight_without_data_beside_an_input_with_data() -> None:
    h, w, b = randn(N, D), randn(V, D), randn(V)
    mlp = MLP([D, 6, V])
    mlp.layers[1].weight = torch.nn.Parameter(mlp.layers[1].weight.to("meta"))
    for call in (
        lambda: dense(h, w.to("meta")),
        lambda: dense(h, w, b.to("meta"), "tanh"),
        lambda: dense(h.to("meta"), w),
        lambda: mlp(h),
        lambda: backprop(mlp, h, CLASSES),
    ):
        with pytest.raises(ValueError, match="expected one device"):
            call()


def test_what_is_no_tensor_is_a_type_error_under_autocast_too() -> None:
    mlp = MLP([D, 6, V])
    for given in ([1.0, 2.0, 3.0], None, "images"):
        for call in (lambda x: mlp(x), lambda x: backprop(mlp, x, CLASSES)):
            with pytest.raises(TypeError, match="expected input to be a tensor, got"):
                call(given)
            with torch.autocast("cpu", torch.bfloat16), pytest.raises(TypeError, match="expected input to be a tensor"):
                call(given)


def test_what_does_not_fit_a_layer_raises_what_torch_raises_too() -> None:
    for call in (
        lambda: dense(torch.tensor(1.0), randn(V, D)),
        lambda: dense(randn(N, 2), randn(V, D)),
        lambda: dense(randn(N, D), randn(V, D).double()),
    ):
        with pytest.raises(RuntimeError, match="expected"):
            call()


def test_float16_is_smoothed_within_its_range_at_every_size() -> None:
    h, w = (20 * randn(N, D)).half(), randn(3000, D).half()
    t, options = torch.arange(N), {"label_smoothing": 0.1, "reduction": "none"}
    truth = F.cross_entropy(F.linear(h.double(), w.double()), t, **options)
    for value in at_every_size(lambda **rows: linear_cross_entropy(h, w, t, **options, **rows)).values():
        torch.testing.assert_close(value[1].double(), truth, rtol=4e-3, atol=0)


def test_float16_is_smoothed_beside_class_weights_as_torch_does() -> None:
    h, w, weight = randn(N, D).half(), randn(V, D).half(), torch.tensor([1.0, 2.0, 0.0, 0.5])
    options = {"weight": weight.half(), "label_smoothing": 0.1}
    found = at_every_size(lambda **rows: linear_cross_entropy(h, w, CLASSES, **options, **rows))
    assert_alike(found, ("value", F.cross_entropy(F.linear(h, w), CLASSES, **options)), stricter=False)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
@pytest.mark.parametrize("label_smoothing", [0.0, 0.1])
def test_the_dtype_beside_probabilities_is_torchs_whoever_asks(dtype: torch.dtype, label_smoothing: float) -> None:
    h, w = (100 * randn(N, D)).half(), randn(V, D).half()
    p = 20 * randn(N, V).abs().to(dtype)
    options: dict[str, Any] = {"label_smoothing": label_smoothing, "reduction": "none"}
    theirs = F.cross_entropy(F.linear(h, w), p, **options)
    found = at_every_size(lambda **rows: linear_cross_entropy(h, w, p, **options, **rows))
    found["in a transform"] = outcome(lambda: torch.func.vjp(lambda h: linear_cross_entropy(h, w, p, **options), h)[0])
    for kind, value in found.values():
        assert kind == "value"
        torch.testing.assert_close(value, theirs, rtol=4e-3, atol=4e-3)


def test_an_integer_of_any_kind_names_the_class_to_ignore() -> None:
    h, w = randn(N, D), randn(V, D)
    expected = F.cross_entropy(F.linear(h, w), CLASSES, ignore_index=1)
    for one in (1, np.int64(1), np.int32(1), torch.tensor(1)):
        torch.testing.assert_close(linear_cross_entropy(h, w, CLASSES, ignore_index=one), expected)
        assert LinearCrossEntropyLoss(D, V, ignore_index=one).ignore_index == 1
    for other in (True, 1.0, "1", torch.tensor(1.0)):
        with pytest.raises(TypeError, match="expected ignore_index to be an int or None"):
            linear_cross_entropy(h, w, CLASSES, ignore_index=other)


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2])
def test_no_size_takes_floats_that_torch_cannot_multiply(dtype: torch.dtype) -> None:
    h, w, p = randn(N, D).to(dtype), randn(V, D).to(dtype), randn(N, V).abs().to(dtype)
    for loss, target in ((linear_cross_entropy, CLASSES), (linear_binary_cross_entropy, p)):
        for kind, error in at_every_size(lambda loss=loss, target=target, **rows: loss(h, w, target, **rows)).values():
            assert kind == "error"
            assert isinstance(error, NotImplementedError)
    mlp = MLP([D, 6, V]).to(dtype)
    for tile_rows in (None, 2):
        with pytest.raises(NotImplementedError):
            backprop(mlp, h, CLASSES, tile_rows=tile_rows)
    assert all(parameter.grad is None for parameter in mlp.parameters())


@pytest.mark.parametrize("loss", ["squared_error", "binary_cross_entropy", "cross_entropy"])
def test_the_output_of_a_network_may_have_any_strides(loss: str) -> None:
    class Transposed(torch.nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return (self.weight @ x.T).T + self.bias

    model, x, p = Transposed(D, V), randn(N, D), randn(N, V).abs()
    theirs = {
        "squared_error": lambda y, t: 0.5 * F.mse_loss(y, t),
        "binary_cross_entropy": F.binary_cross_entropy_with_logits,
        "cross_entropy": F.cross_entropy,
    }[loss]
    value = theirs(model(x), p)
    expected = torch.autograd.grad(value, list(model.parameters()))
    torch.testing.assert_close(backprop(model, x, p, loss), value.detach())
    torch.testing.assert_close([q.grad for q in model.parameters()], list(expected))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_under_autocast_a_squared_error_is_float32_as_torchs(dtype: torch.dtype) -> None:
    h, w, target = randn(N, D), randn(V, D), randn(N, V).to(dtype)
    with torch.autocast("cpu", torch.bfloat16):
        theirs = 0.5 * F.mse_loss(F.linear(h, w), target)
        found = at_every_size(lambda **rows: dense_squared_error(h, w, None, target, None, "mean", **rows))
    for kind, value in found.values():
        assert (kind, value.dtype) == ("value", theirs.dtype)
        torch.testing.assert_close(value, theirs, rtol=2e-2, atol=0)


def test_a_target_made_for_inference_is_refused_at_every_size() -> None:
    h, w = randn(N, D), randn(V, D).requires_grad_()
    with torch.inference_mode():
        target = randn(N, V)
    for kind, error in at_every_size(lambda **rows: dense_squared_error(h, w, None, target, **rows)).values():
        assert kind == "error"
        assert "Inference tensors cannot be saved" in str(error)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.int64, torch.bool])
def test_grad_mode_does_not_tell_which_biases_a_layer_takes(dtype: torch.dtype) -> None:
    x, w, b = randn(V, 2, D).transpose(0, 1), randn(N, D), randn(N).to(dtype)
    theirs = outcome(lambda: F.linear(x, w, b))
    assert theirs[0] == "value"  # torch adds it by itself to what is not contiguous
    for mode in (True, False):
        with torch.set_grad_enabled(mode):
            torch.testing.assert_close(dense(x, w, b), theirs[1])


def test_a_reduction_that_was_set_later_is_judged_where_the_inner_layer_was_replaced() -> None:
    loss = LinearCrossEntropyLoss(D, V)
    loss.linear, loss.reduction = torch.nn.Linear(D, V), "avg"
    loss.linear.register_forward_hook(lambda *_: None)
    for ask in (lambda x: loss(x, CLASSES), torch.func.grad(lambda x: loss(x, CLASSES))):
        with pytest.raises(ValueError, match="expected reduction"):
            ask(randn(N, D))


def test_classes_of_uint8_ignore_nothing_that_wraps_around() -> None:
    t = torch.arange(200).to(torch.uint8)
    h, w = randn(200, D), randn(200, D)
    expected = F.cross_entropy(F.linear(h, w), t.long())
    for kind, value in at_every_size(lambda **rows: linear_cross_entropy(h, w, t, **rows)).values():
        assert kind == "value"
        torch.testing.assert_close(value, expected)


@pytest.mark.parametrize(
    "gradient", [torch.tensor(1.0j), torch.tensor(True), "a", [1.0], torch.ones((), device="meta")]
)
def test_backprop_refuses_what_is_no_gradient(gradient: Any) -> None:
    mlp = MLP([D, 6, V])
    with pytest.raises((TypeError, ValueError), match="expected gradient"):
        backprop(mlp, randn(N, D), CLASSES, gradient=gradient)
    assert all(p.grad is None for p in mlp.parameters())


@pytest.mark.parametrize("tile_rows", [None, 2])
def test_backprop_takes_a_number_of_any_size_as_gradient(tile_rows: int | None) -> None:
    mlp = MLP([D, 6, V], dtype=torch.float64)
    loss = F.cross_entropy(mlp(randn(N, D).double()), CLASSES)
    expected = torch.autograd.grad(1e30 * loss, list(mlp.parameters()))
    backprop(mlp, randn(N, D).double(), CLASSES, tile_rows=tile_rows, gradient=10**30)
    torch.testing.assert_close([p.grad for p in mlp.parameters()], list(expected))


def test_the_value_of_backprop_beside_probabilities_has_the_dtype_of_torchs() -> None:
    mlp, x, p = MLP([D, V]), randn(N, D), randn(N, V).abs()
    for weight in (torch.ones(V), torch.ones(V).double()):
        expected = F.cross_entropy(mlp(x), p, weight)
        torch.testing.assert_close(backprop(mlp, x, p, weight=weight), expected.detach())


def test_backprop_of_float64_under_autocast_returns_what_torch_returns() -> None:
    mlp, x = MLP([D, 6, V], dtype=torch.float64), randn(N, D).double()
    with torch.autocast("cpu", torch.bfloat16):
        expected = F.cross_entropy(mlp.to_sequential()(x), CLASSES)
        found = backprop(mlp, x, CLASSES)
    assert found.dtype == expected.dtype == torch.float64
    torch.testing.assert_close(found, expected.detach())


def test_compiled_or_not_the_same_arguments_are_refused() -> None:
    h, w = randn(N, D), randn(V, D)
    for arguments in (
        (h, w, CLASSES[:3]),
        (h, w, CLASSES.view(1, N)),
        (h, randn(V, 2), CLASSES),
        (h, w, CLASSES.int()),
    ):
        torch.compiler.reset()
        compiled = torch.compile(linear_cross_entropy, backend="eager")
        with pytest.raises((ValueError, TypeError)) as eager:
            linear_cross_entropy(*arguments)
        with pytest.raises(type(eager.value), match="expected"):
            compiled(*arguments)


class Adapter(torch.nn.Module):
    """Add a product of small rank to a linear layer, as LoRA does."""

    def __init__(self, linear: torch.nn.Linear) -> None:
        super().__init__()
        self.linear = linear
        self.down = torch.nn.Linear(D, 1, bias=False)
        self.up = torch.nn.Linear(1, V, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x) + self.up(self.down(x))


def doubled(linear: torch.nn.Module) -> torch.nn.Module:
    linear.register_forward_hook(lambda _, __, z: 2 * z)
    return linear


def parametrised(linear: torch.nn.Module) -> torch.nn.Module:
    return torch.nn.utils.parametrizations.weight_norm(linear)


@pytest.mark.parametrize("change", [Adapter, doubled, parametrised, lambda _: torch.nn.Linear(D, V)])
@pytest.mark.parametrize("chunk_rows", [None, 2])
def test_what_takes_the_place_of_the_inner_layer_is_honoured(
    change: Callable[[torch.nn.Module], torch.nn.Module], chunk_rows: int | None
) -> None:
    loss, x = LinearCrossEntropyLoss(D, V, chunk_rows=chunk_rows, label_smoothing=0.1), randn(N, 1, D)
    loss.linear = change(loss.linear)
    t = CLASSES.view(N, 1)
    value, parameters = loss(x, t), list(loss.parameters())
    expected = F.cross_entropy(loss.linear(x).flatten(0, 1), CLASSES, label_smoothing=0.1)
    torch.testing.assert_close(value, expected)
    torch.testing.assert_close(torch.autograd.grad(value, parameters), torch.autograd.grad(expected, parameters))
    with pytest.raises(ValueError, match="expected target"):
        loss(x, CLASSES)


def test_a_subclass_of_sequential_with_its_forward_becomes_an_mlp() -> None:
    class Block(torch.nn.Sequential):
        def __init__(self) -> None:
            super().__init__(torch.nn.Linear(D, 6), torch.nn.ReLU(), torch.nn.Dropout(0.0), torch.nn.Linear(6, V))

    block, x = Block(), randn(N, D)
    torch.testing.assert_close(MLP.from_sequential(block)(x), block(x))
    torchvision = pytest.importorskip("torchvision")
    theirs = torchvision.ops.MLP(D, [6, V])
    torch.testing.assert_close(MLP.from_sequential(theirs)(x), theirs(x))


def test_bounds_of_hardtanh_may_be_equal() -> None:
    from manual_mlp.activations import hardtanh, to_module

    x = randn(N, D).requires_grad_()
    y = dense(x, randn(V, D), None, hardtanh(0.5, 0.5))
    torch.testing.assert_close(y, torch.full_like(y, 0.5))
    assert not torch.autograd.grad(y.sum(), x)[0].any()
    torch.testing.assert_close(to_module(hardtanh(0.5, 0.5))(x), F.hardtanh(x, 0.5, 0.5))
