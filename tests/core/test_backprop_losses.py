"""What backprop() returns, the options of its losses, and losses of a user's own."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from manual_mlp import Activation, backprop
from stepped import (
    PAIR,
    WEIGHT,
    N,
    V,
    assert_as_torch,
    by_hand,
    by_torch,
    every_loss,
    every_reduction,
    huber,
    make,
    one_tile_or_more,
    rows_of,
    run_alone,
    target_of,
    value,
)

# What comes back, and what came in.


@every_loss
@every_reduction
@one_tile_or_more
def test_the_output_comes_back_with_the_loss_and_both_are_detached(
    device: str, loss: str, reduction: str, tile_rows: int | None
) -> None:
    x = rows_of(device, 2, 3).requires_grad_()
    t = target_of(loss, x)
    for output in (None, "tanh", "silu"):
        mlp = make(device, output=output)
        expected = mlp.to_sequential()(x)
        loss_of_torch = value(expected, t, loss, reduction)
        gradient = torch.ones_like(loss_of_torch) if reduction == "none" else None
        found, y = backprop(mlp, x, t, loss, reduction, tile_rows, gradient=gradient, return_output=True)
        torch.testing.assert_close([found, y], [loss_of_torch.detach(), expected.detach()], rtol=0, atol=1e-12)
        assert not found.requires_grad
        assert not y.requires_grad


@every_loss
@one_tile_or_more
@pytest.mark.parametrize("gradient", [2.5, 0, torch.tensor(-0.5), torch.tensor(65536.0, requires_grad=True)], ids=str)
def test_the_gradient_of_a_scalar_loss_scales_all_gradients(
    device: str, loss: str, tile_rows: int | None, gradient: Any
) -> None:
    x = rows_of(device).requires_grad_()
    gradient = (
        gradient.detach().to(device).requires_grad_(gradient.requires_grad) if torch.is_tensor(gradient) else gradient
    )
    for reduction in ("mean", "sum"):
        t = target_of(loss, x)
        expected = by_torch(make(device), x, t, loss, reduction, gradient=gradient)
        found = by_hand(make(device), x, t, loss, reduction, tile_rows=tile_rows, gradient=gradient)
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


CLASSES = torch.tensor([0, 2, 1, 1, 0, 2, 2])
OPTIONS: list[tuple[str, Tensor | None, dict[str, Any]]] = [
    ("cross_entropy", CLASSES, {"weight": WEIGHT}),
    ("cross_entropy", CLASSES, {"ignore_index": 2}),
    ("cross_entropy", torch.where(CLASSES == 2, -100, CLASSES), {}),
    ("cross_entropy", torch.where(CLASSES == 2, -5, CLASSES), {"ignore_index": -5, "weight": WEIGHT}),
    ("cross_entropy", CLASSES, {"label_smoothing": 0.3}),
    ("cross_entropy", CLASSES, {"label_smoothing": 1.0}),
    ("cross_entropy", CLASSES, {"label_smoothing": 0.2, "weight": WEIGHT, "ignore_index": 0}),
    ("cross_entropy", torch.full((N,), 2), {"ignore_index": 2, "label_smoothing": 0.2}),
    ("cross_entropy", None, {}),
    ("cross_entropy", None, {"label_smoothing": 0.3, "weight": WEIGHT}),
    ("cross_entropy", CLASSES, {"weight": torch.zeros(V, dtype=torch.float64)}),
    ("binary_cross_entropy", None, {"pos_weight": 3 * WEIGHT}),
    ("binary_cross_entropy", None, {"weight": WEIGHT}),
    ("binary_cross_entropy", None, {"weight": torch.linspace(0, 2, N).double()[:, None], "pos_weight": WEIGHT}),
]


@pytest.mark.parametrize(("loss", "target", "options"), OPTIONS, ids=lambda o: str(o) if type(o) is dict else "")
@every_reduction
def test_the_options_of_a_loss_are_torchs(
    device: str, loss: str, target: Tensor | None, options: dict[str, Any], reduction: str
) -> None:
    x = rows_of(device).requires_grad_()
    t = torch.rand(N, V).double() if target is None else target
    options = {name: o.to(device) if isinstance(o, Tensor) else o for name, o in options.items()}
    per = value(x.new_zeros(N, V), t.to(device), loss, reduction, **options)
    gradient = torch.randn_like(per) if reduction == "none" else None
    for tile_rows in (1, 2, 5, None):
        assert_as_torch(
            make(device), x, t.to(device), loss, reduction, gradient=gradient, tile_rows=tile_rows, **options
        )


@pytest.mark.parametrize("tile_rows", [1, 2, None])
def test_a_mean_over_no_row_is_nan_without_a_gradient(device: str, tile_rows: int | None) -> None:
    mlp, x = make(device), rows_of(device).requires_grad_()
    found, *gradients = by_hand(mlp, x, torch.full((N,), 2, device=device), tile_rows=tile_rows, ignore_index=2)
    assert found.isnan()
    assert not any(g.any() for g in gradients)


@every_reduction
@pytest.mark.parametrize("tile_rows", [1, 2, None])
def test_a_users_pair_has_the_gradients_of_its_value(device: str, reduction: str, tile_rows: int | None) -> None:
    mlp, x = make(device), rows_of(device, 2, 4).requires_grad_()
    t = 2 * torch.randn(2, 4, V, dtype=torch.float64, device=device)
    twin, leaf = copy.deepcopy(mlp), x.detach().clone().requires_grad_()
    expected = huber(twin.to_sequential()(leaf), t)
    expected = {"none": expected, "mean": expected.mean(), "sum": expected.sum()}[reduction]
    gradient = torch.randn_like(expected) if reduction == "none" else None
    expected.backward(gradient)
    found = by_hand(mlp, x, t, PAIR, reduction, tile_rows=tile_rows, gradient=gradient)
    torch.testing.assert_close(found, [expected.detach(), *(p.grad for p in twin.parameters()), leaf.grad])


def test_a_pair_may_return_tensors_it_keeps_and_compute_delta_by_autograd(device: str) -> None:
    mlp, x, kept = make(device), rows_of(device), []
    t = target_of("squared_error", x)

    def delta(y: Tensor, t: Tensor) -> Tensor:
        with torch.enable_grad():
            y = y.detach().requires_grad_()
            (found,) = torch.autograd.grad(huber(y, t).sum(), y)
        kept.append((found, found.clone()))
        return found

    for tile_rows in (2, None):
        found = by_hand(mlp, x, t, (huber, delta), tile_rows=tile_rows)
        torch.testing.assert_close(found, by_hand(mlp, x, t, PAIR))
    assert all(torch.equal(*pair) for pair in kept)


def test_a_pair_may_compare_rows_with_targets_of_any_shape(device: str) -> None:
    mlp, x = make(device), rows_of(device, 2, 4)
    kinds = torch.randint(V, (2, 4), device=device)
    pair = (
        lambda y, t: F.cross_entropy(y, t, reduction="none"),
        lambda y, t: torch.softmax(y, -1) - F.one_hot(t, V),
    )
    for tile_rows in (3, None):
        expected = by_torch(mlp, x, kinds)
        torch.testing.assert_close(by_hand(mlp, x, kinds, pair, tile_rows=tile_rows), expected)


@pytest.mark.processes
def test_a_pair_may_call_backprop_itself() -> None:
    code = (
        "import torch\nfrom manual_mlp import MLP, backprop\ntorch.set_num_threads(2)\n"
        "inner, outer = MLP([3, 3]), MLP([4, 7, 3])\nx, t = torch.randn(8, 4), torch.randn(8, 3)\n"
        "def delta(y, t):\n    backprop(inner, y, t, 'squared_error', tile_rows=1)\n    return y - t\n"
        "backprop(outer, x, t, (lambda y, t: (y - t).square().sum(-1), delta), tile_rows=2)"
    )
    assert run_alone(code) == 0


def returning(view: Callable[[Tensor], Tensor]) -> Activation:
    """Make a straight-through step: f gives z back, or a view of it, and f′ is another function's."""
    return Activation(view, torch.sigmoid, lambda z: torch.sigmoid(z) * (1 - torch.sigmoid(z)), name="through")


@pytest.mark.parametrize("view", [lambda z: z, lambda z: z.view(z.shape)], ids=["z itself", "a view of z"])
@pytest.mark.parametrize("tile_rows", [None, 2])
@every_loss
def test_an_output_function_that_returns_z_keeps_its_slope(
    device: str, view: Callable[[Tensor], Tensor], tile_rows: int | None, loss: str
) -> None:
    mlp = make(device, "tanh", returning(view))
    x = rows_of(device)
    t, y = target_of(loss, x), x
    for layer in mlp.layers:
        y = layer(y)
    expected = torch.autograd.grad(value(y, t, loss), list(mlp.parameters()))
    torch.testing.assert_close(by_hand(mlp, x, t, loss, tile_rows=tile_rows)[1:-1], list(expected))


@pytest.mark.parametrize("view", [lambda z: z, lambda z: z.view(z.shape)], ids=["z itself", "a view of z"])
@pytest.mark.parametrize("tile_rows", [None, 2])
def test_an_output_function_that_returns_z_has_its_second_derivative(
    device: str, view: Callable[[Tensor], Tensor], tile_rows: int | None
) -> None:
    mlp = make(device, "tanh", returning(view), tile_rows=tile_rows)
    x = rows_of(device).requires_grad_()

    def by_layers(h: Tensor) -> Tensor:
        for layer in mlp.layers:
            h = layer(h)
        return h

    def second(f: Callable[[Tensor], Tensor]) -> Tensor:
        (first,) = torch.autograd.grad(f(x).square().sum(), x, create_graph=True)
        return torch.autograd.grad(first.square().sum(), x)[0]

    torch.testing.assert_close(second(mlp), second(by_layers))
