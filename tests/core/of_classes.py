"""Losses beside torch's own, and weights of a class that rounds what it multiplies."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from manual_mlp import (
    MLP,
    dense_squared_error,
    linear_binary_cross_entropy,
    linear_cross_entropy,
)
from manual_mlp.sweep.tiling import Tiling
from modes.classes import Rounded

N, D, V = 6, 4, 5
Step = Callable[[Tensor, Tensor, Tensor], Tensor]
T, P = torch.arange(N) % V, torch.linspace(0, 1, N * V, dtype=torch.float64).sqrt().view(N, V)
CLASS_WEIGHT = torch.linspace(0.5, 2, V, dtype=torch.float64)


# Ours beside torch's own, as functions of h, w and b; the first argument is the rows of a chunk.
LOSSES: dict[str, tuple[Callable[..., Tensor], Step]] = {
    "cross-entropy": (
        lambda rows, h, w, b: linear_cross_entropy(h, w, T, linear_bias=b, chunk_rows=rows),
        lambda h, w, b: F.cross_entropy(F.linear(h, w, b), T),
    ),
    "cross-entropy, weighted and smoothed, of each row": (
        lambda rows, h, w, b: linear_cross_entropy(
            h, w, T, linear_bias=b, weight=CLASS_WEIGHT, label_smoothing=0.1, reduction="none", chunk_rows=rows
        ),
        lambda h, w, b: F.cross_entropy(F.linear(h, w, b), T, CLASS_WEIGHT, label_smoothing=0.1, reduction="none"),
    ),
    "cross-entropy of probabilities": (
        lambda rows, h, w, b: linear_cross_entropy(h, w, P, linear_bias=b, reduction="sum", chunk_rows=rows),
        lambda h, w, b: F.cross_entropy(F.linear(h, w, b), P, reduction="sum"),
    ),
    "logistic cross-entropy": (
        lambda rows, h, w, b: linear_binary_cross_entropy(
            h, w, P, linear_bias=b, pos_weight=CLASS_WEIGHT, chunk_rows=rows
        ),
        lambda h, w, b: F.binary_cross_entropy_with_logits(F.linear(h, w, b), P, pos_weight=CLASS_WEIGHT),
    ),
    "squared error": (
        lambda rows, h, w, b: dense_squared_error(h, w, b, P, "tanh", "mean", rows),
        lambda h, w, b: 0.5 * F.mse_loss(torch.tanh(F.linear(h, w, b)), P),
    ),
}


def inputs(*shapes: tuple[int, ...]) -> tuple[Tensor, ...]:
    return tuple(torch.randn(shape, dtype=torch.float64).requires_grad_() for shape in shapes)


def of_layer() -> tuple[Tensor, ...]:
    return inputs((N, D), (V, D), (V,))


def answers(f: Step, h: Tensor, w: Tensor, b: Tensor, wrap: Callable[[Tensor], Tensor]) -> list[Any]:
    """Compute the value without gradients, and with them, to second order."""
    with torch.no_grad():
        value = f(h, wrap(w), b)
    y = f(h, wrap(w), b)
    first = torch.autograd.grad(y.sin().sum(), (h, w, b), create_graph=True)
    second = torch.autograd.grad(sum(g.sin().sum() for g in first), (h, w, b))
    return [value, y, first, second]


def assert_close(mine: Any, theirs: Any) -> None:
    torch.testing.assert_close(mine, theirs, rtol=1e-10, atol=1e-10)


def as_rounded(t: Tensor) -> Tensor:
    return t.as_subclass(Rounded)


@pytest.fixture(params=["small", "in chunks", "large"])
def rows(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int | None:
    """Choose the rows of a chunk: none are given, two, or none while everything counts as large."""
    if request.param == "large":
        monkeypatch.setattr("manual_mlp.head.plan.few_logits", lambda *_: False)
        monkeypatch.setattr("manual_mlp.head.plan.tiling_of_loss", lambda *_: Tiling(2))
    return 2 if request.param == "in chunks" else None


def quantised(sizes: list[int], activation: str = "gelu", **options: Any) -> MLP:
    """Make a network with weights that are rounded for every product, as quantised training has them."""
    torch.manual_seed(1)
    mlp = MLP(sizes, activation, dtype=torch.float64, **options)
    for layer in mlp.layers:
        layer.weight = nn.Parameter(layer.weight.detach().as_subclass(Rounded))
    return mlp


def by_torch(mlp: MLP, x: Tensor) -> Tensor:
    for layer in mlp.layers:
        x = layer.activation.f(F.linear(x, layer.weight, layer.bias))
    return x


TARGETS = {"cross_entropy": T, "binary_cross_entropy": P, "squared_error": P}
NAMED: dict[str, Callable[..., Tensor]] = {
    "cross_entropy": F.cross_entropy,
    "binary_cross_entropy": F.binary_cross_entropy_with_logits,
    "squared_error": lambda y, t, **options: 0.5 * F.mse_loss(y, t, **options),
}
