"""A small network beside torch's own modules, to second order."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from manual_mlp import MLP

N, D, V = 7, 4, 3
CPU = torch.device("cpu")
one_tile_or_more = pytest.mark.parametrize("tile_rows", [None, 2])


def make(device: str, activation: Any = "gelu", tile_rows: int | None = None, **options: Any) -> MLP:
    torch.manual_seed(1)
    given = {"dtype": torch.float64, "device": device, **options}
    return MLP([D, 7, 6, V], activation, tile_rows=tile_rows, **given)


def rows_of(device: str, *batch: int) -> Tensor:
    return torch.randn(*(batch or (N,)), D, dtype=torch.float64).to(device).requires_grad_()


def head(y: Tensor) -> Tensor:
    return y.sin().sum()


def gradients(model: nn.Module, x: Tensor, **options: Any) -> list[Tensor]:
    return list(torch.autograd.grad(head(model(x)), [x, *model.parameters()], **options))


def second_order(model: nn.Module, x: Tensor) -> list[Tensor]:
    first = gradients(model, x, create_graph=True)
    return [*first, *torch.autograd.grad(sum(head(g) for g in first), [x, *model.parameters()])]


def assert_close(mine: Any, theirs: Any, atol: float = 1e-12) -> None:
    torch.testing.assert_close(mine, theirs, rtol=atol, atol=atol)


# What is kept.


def saved_by(f: Callable[[], Tensor]) -> list[Tensor]:
    saved: list[Tensor] = []

    def pack(t: Tensor) -> Tensor:
        saved.append(t)
        return t

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        y = f()
    assert y.requires_grad
    return saved
