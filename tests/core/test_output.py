"""dense_squared_error() against ½ F.mse_loss(f(F.linear()))."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from conditions import PRECISIONS
from manual_mlp import activations, dense, dense_squared_error
from manual_mlp.activations import get

Draw = Callable[..., Tensor]
every_name = pytest.mark.parametrize("name", activations.names())
every_reduction = pytest.mark.parametrize("reduction", ["sum", "mean", "none"])


def composite(h: Tensor, w: Tensor, b: Tensor | None, t: Tensor, name: str, reduction: str) -> Tensor:
    return 0.5 * F.mse_loss(get(name).f(F.linear(h, w, b)), t, reduction=reduction)


@every_name
@every_reduction
@pytest.mark.parametrize("shape", [(4,), (5, 4), (2, 3, 4)], ids=str)
@pytest.mark.parametrize("chunk_rows", [None, 2, 8])
@pytest.mark.parametrize("fixed", [True, False], ids=["fixed target", "target of its own"])
def test_value_and_gradients_are_the_composites(
    draw: Draw, name: str, reduction: str, shape: tuple[int, ...], chunk_rows: int | None, fixed: bool
) -> None:
    inputs = draw(*shape), draw(7, 4), draw(7), draw(*shape[:-1], 7, requires_grad=not fixed)
    ours, theirs = dense_squared_error(*inputs, name, reduction, chunk_rows), composite(*inputs, name, reduction)
    torch.testing.assert_close(ours, theirs, rtol=1e-13, atol=1e-13)
    upstream = torch.randn_like(theirs)
    asked = inputs[:3] if fixed else inputs
    grads = torch.autograd.grad(ours, asked, upstream), torch.autograd.grad(theirs, asked, upstream)
    torch.testing.assert_close(*grads, rtol=0, atol=1e-12)


@every_reduction
def test_the_reductions_agree_with_each_other(draw: Draw, reduction: str) -> None:
    inputs = draw(5, 4), draw(7, 4), draw(7), draw(5, 7)
    every = dense_squared_error(*inputs, "tanh", "none")
    reduce = {"sum": every.sum(), "mean": every.mean(), "none": every}
    torch.testing.assert_close(dense_squared_error(*inputs, "tanh", reduction), reduce[reduction])


def test_the_textbooks_row_finds_delta_and_the_outer_product(device: str) -> None:
    # One row H (1×h), W (h×y), B (1×y), as in the textbook; the layer stores Wᵀ.
    h, w, b, t = (torch.randn(*s, dtype=torch.float64, device=device) for s in ((1, 4), (4, 3), (1, 3), (1, 3)))
    w.requires_grad_()
    b.requires_grad_()
    h.requires_grad_()
    dense_squared_error(h, w.T, b[0], t, "sigmoid").backward()
    with torch.no_grad():
        y = torch.sigmoid(h @ w + b)
        delta = (y - t) * y * (1 - y)
        assert (w.grad.shape, b.grad.shape) == (w.shape, b.shape)
        torch.testing.assert_close(b.grad, delta, rtol=0, atol=1e-15)
        torch.testing.assert_close(w.grad, h.T @ delta, rtol=0, atol=1e-15)
        torch.testing.assert_close(w.grad, torch.outer(h[0], delta[0]), rtol=0, atol=1e-15)
        torch.testing.assert_close(h.grad, delta @ w.T, rtol=0, atol=1e-15)


def test_the_loss_differentiates_as_the_layer_with_the_loss_on_top(draw: Draw) -> None:
    h, w, b, t = draw(5, 4), draw(7, 4), draw(7), draw(5, 7)
    one = torch.autograd.grad(dense_squared_error(h, w, b, t, "gelu"), (h, w, b, t))
    two = torch.autograd.grad(0.5 * (dense(h, w, b, "gelu") - t).square().sum(), (h, w, b, t))
    torch.testing.assert_close(one, two, rtol=0, atol=1e-12)


@every_reduction
@pytest.mark.parametrize("name", ["tanh", "gelu", "relu"])
@pytest.mark.parametrize("chunk_rows", [None, 2, 8])
@pytest.mark.parametrize("fixed", [True, False], ids=["fixed target", "target of its own"])
def test_second_derivatives_are_the_composites(
    draw: Draw, reduction: str, name: str, chunk_rows: int | None, fixed: bool
) -> None:
    inputs = draw(5, 4), draw(7, 4), draw(7), draw(5, 7, requires_grad=not fixed)
    asked = inputs[:3] if fixed else inputs

    def second(loss: Callable[..., Tensor], *options: int | None) -> tuple[Tensor, ...]:
        first = torch.autograd.grad(loss(*inputs, name, reduction, *options).sum(), asked, create_graph=True)
        return torch.autograd.grad(sum(g.square().sum() for g in first), asked)

    torch.testing.assert_close(second(dense_squared_error, chunk_rows), second(composite), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("frozen", range(4))
def test_a_frozen_input_gets_no_gradient(draw: Draw, frozen: int) -> None:
    inputs = [draw(5, 4), draw(7, 4), draw(7), draw(5, 7)]
    inputs[frozen].requires_grad_(False)
    dense_squared_error(*inputs).backward()
    assert [t.grad is None for t in inputs] == [k == frozen for k in range(4)]


def test_an_empty_batch_has_zero_loss_and_zero_gradients(draw: Draw) -> None:
    w, b = draw(7, 4), draw(7)
    loss = dense_squared_error(draw(0, 4), w, b, draw(0, 7), "relu")
    loss.backward()
    assert loss == 0
    assert not w.grad.any()
    assert not b.grad.any()


@pytest.mark.parametrize("name", ["relu", "tanh", "gelu"])
@every_reduction
@pytest.mark.parametrize("chunk_rows", [None, 4, 16])
@pytest.mark.parametrize(("dtype", "region"), PRECISIONS.values(), ids=PRECISIONS)
def test_the_error_is_at_most_twice_torchs_own(
    draw: Draw,
    device: str,
    name: str,
    reduction: str,
    chunk_rows: int | None,
    dtype: torch.dtype,
    region: torch.dtype | None,
) -> None:
    largest = torch.zeros(2, 5, dtype=torch.float64)
    for seed in range(50):
        torch.manual_seed(seed)
        inputs = [draw(*s, dtype=dtype) for s in ((9, 4), (7, 4), (7,), (9, 7))]
        if chunk_rows:  # a target that requires grad is not chunked
            inputs[3].requires_grad_(False)
        wide = [t.detach().double().requires_grad_(t.requires_grad) for t in inputs]
        asked, of_wide = ([t for t in some if t.requires_grad] for some in (inputs, wide))
        truth_loss = composite(*wide, name, reduction)
        upstream = torch.randint_like(truth_loss, -4, 5) if reduction == "none" else torch.ones_like(truth_loss)
        truth = truth_loss, *torch.autograd.grad(truth_loss, of_wide, upstream)
        for k, (function, options) in enumerate(((dense_squared_error, (chunk_rows,)), (composite, ()))):
            with torch.autocast(device, region or torch.bfloat16, enabled=region is not None):
                loss = function(*inputs, name, reduction, *options)
            assert loss.dtype == (torch.float32 if region else dtype)
            result = loss, *torch.autograd.grad(loss, asked, upstream.to(loss.dtype))
            assert {g.dtype for g in result[1:]} == {dtype}
            errors = torch.stack([(a.double() - b).abs().max() for a, b in zip(result, truth, strict=True)])
            largest[k, : len(errors)] = torch.maximum(largest[k, : len(errors)], errors.detach().cpu())
    assert (largest[0] <= 2 * largest[1] + 1e-6).all(), largest


def test_under_autocast_the_loss_is_float32_and_does_not_overflow(draw: Draw, device: str) -> None:
    inputs = [draw(*s, dtype=torch.float16) * 16 for s in ((64, 40), (70, 40), (70,), (64, 70))]
    with torch.autocast(device, torch.float16):
        ours, theirs = dense_squared_error(*inputs), composite(*inputs, "identity", "sum")
    assert ours.dtype == theirs.dtype == torch.float32
    torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=0)
