"""Faults that native once had, each as a claim."""

import math
import warnings
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from manual_mlp import MLP, backprop, dense, linear_cross_entropy
from manual_mlp.engines import native

if native.doors is None:
    pytest.skip(f"native is off: {native.why()}", allow_module_level=True)


@pytest.mark.parametrize("rows", [5, 1000])
def test_a_network_of_any_number_of_rows_is_traced_without_a_warning(rows: int) -> None:
    mlp = MLP((3, 8, 6, 2), "gelu").eval()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", "`torch.jit.trace")
        traced = torch.jit.trace(mlp, (torch.randn(rows, 3),))  # type: ignore[no-untyped-call]
    x = torch.randn(7, 3)
    torch.testing.assert_close(traced(x), mlp(x))


@pytest.mark.parametrize("factor", [math.nan, math.inf])
@pytest.mark.parametrize("chunk_rows", [1, None])
def test_a_factor_that_is_not_finite_reaches_classes_of_no_share(factor: float, chunk_rows: int | None) -> None:
    # The share of the first class is e^-200, which is flushed to 0.
    h, t = torch.tensor([[1.0], [1.0]]), torch.tensor([0, 2])
    g = torch.tensor([factor, 1.0])

    def gradient() -> Tensor:
        w = torch.tensor([[0.0], [200.0], [1.0]], requires_grad=True)
        linear_cross_entropy(h, w, t, reduction="none", chunk_rows=chunk_rows).backward(g)  # type: ignore[no-untyped-call]
        assert w.grad is not None
        return w.grad.isfinite()

    mine = gradient()
    with native.without():
        assert torch.equal(mine, gradient())
    assert not mine.any()


class Counted(torch.Tensor):
    calls = 0

    @classmethod
    def __torch_function__(cls, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        Counted.calls += 1
        return super().__torch_function__(function, types, args, kwargs or {})


@pytest.mark.parametrize("activation", ["gelu", "mish", None])
@pytest.mark.parametrize("kind", ["dense", "network", "loss"])
def test_the_class_of_a_cotangent_takes_no_function(kind: str, activation: str | None) -> None:
    x, w = torch.randn(5, 4, requires_grad=True), torch.randn(3, 4, requires_grad=True)
    mlp = MLP((4, 6, 3), activation)
    y = {
        "dense": lambda: dense(x, w, None, activation),
        "network": lambda: mlp(x),
        "loss": lambda: linear_cross_entropy(x, w, torch.tensor([0, 1, 2, 0, 1])),
    }[kind]()
    dy = torch.ones_like(y).as_subclass(Counted)
    Counted.calls = 0
    torch.autograd.grad(y, x, dy, create_graph=True)
    seen = Counted.calls
    z = torch.tanh(x)
    Counted.calls = 0
    torch.autograd.grad(z, x, torch.ones_like(z).as_subclass(Counted), create_graph=True)
    # What the engine itself asks of it.
    assert seen <= Counted.calls + 1


def test_any_number_of_activations_is_known() -> None:
    x, w = torch.randn(2, 3, requires_grad=True), torch.randn(4, 3)
    for k in range(4200):
        dense(x, w, None, nn.Softplus(1 + k * 1e-4))
    node = dense(x, w, None, nn.Hardtanh(-0.123, 0.456)).grad_fn
    assert node is not None
    assert "manual_mlp" in node.name()


@pytest.mark.parametrize("rows", [0, -1, 1.5, "2"])
@pytest.mark.parametrize("plain", [False, True])
def test_tile_rows_that_were_set_later_are_judged(rows: Any, plain: bool) -> None:
    mlp = MLP((3, 4, 2))
    mlp.tile_rows = rows
    with native.without() if plain else warnings.catch_warnings(), pytest.raises(ValueError, match="tile_rows"):
        mlp(torch.randn(5, 3))


def test_a_pair_may_give_a_sparse_delta() -> None:
    mlp, x, t = MLP((3, 4, 2)), torch.randn(5, 3), torch.randn(5, 2)

    def gradients() -> list[Tensor | None]:
        mlp.zero_grad()
        backprop(mlp, x, t, (lambda y, t: (y - t).sum(1), lambda y, t: torch.ones_like(y).to_sparse()), tile_rows=2)
        return [p.grad for p in mlp.parameters()]

    mine = gradients()
    with native.without():
        torch.testing.assert_close(mine, gradients())


def test_a_smoothing_that_is_an_int_is_natives() -> None:
    h, w = torch.randn(5, 4, requires_grad=True), torch.randn(3, 4, requires_grad=True)
    node = linear_cross_entropy(h, w, torch.tensor([0, 1, 2, 0, 1]), label_smoothing=0).grad_fn
    assert node is not None
    assert "manual_mlp" in node.name()
