"""A small network and its losses, stepped by backprop() and by torch's own loss.backward()."""

import copy
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from manual_mlp import MLP, backprop, losses
from patience import SECONDS

N, D, V = 7, 4, 3
LOSSES = tuple(losses.LOSSES)
CPU = torch.device("cpu")
every_loss = pytest.mark.parametrize("loss", LOSSES)
every_reduction = pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
one_tile_or_more = pytest.mark.parametrize("tile_rows", [None, 2])


def make(device: str, activation: Any = "tanh", output: Any = None, bias: bool = True, **options: Any) -> MLP:
    torch.manual_seed(1)
    given = {"dtype": torch.float64, **options}
    return MLP([D, 7, 6, V], activation, output, bias, **given).to(device)


def rows_of(device: str, *batch: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*(batch or (N,)), D, dtype=torch.float64).to(device, dtype)


def target_of(loss: str, x: Tensor) -> Tensor:
    batch = x.shape[:-1]
    if losses.LOSSES[loss].of_classes:
        return torch.randint(V, batch, device=x.device)
    return torch.rand(*batch, V, dtype=x.dtype, device=x.device)


def value(y: Tensor, t: Tensor, loss: str, reduction: str = "mean", **options: Any) -> Tensor:
    """Compute a loss by torch."""
    if loss == "squared_error":
        return 0.5 * F.mse_loss(y, t, reduction=reduction)
    if loss == "binary_cross_entropy":
        return F.binary_cross_entropy_with_logits(y, t, reduction=reduction, **options)
    if loss != "cross_entropy":
        return losses.Criterion(losses.LOSSES[loss], t, reduction, options).torchs(y)
    t = t.reshape(-1, V) if t.is_floating_point() else t.reshape(-1)
    found = F.cross_entropy(y.reshape(-1, y.shape[-1]), t, reduction=reduction, **options)
    return found.view(y.shape[:-1]) if reduction == "none" else found


def by_torch(
    mlp: MLP, x: Tensor, t: Tensor, loss: str = "cross_entropy", reduction: str = "mean", gradient: Any = None, **o: Any
) -> list[Tensor | None]:
    """List torch's loss, and the gradients that loss.backward() leaves on the parameters of a copy and on the input."""
    model, leaf = copy.deepcopy(mlp).to_sequential(), x.detach().clone().requires_grad_(x.requires_grad)
    found = value(model(leaf), t, loss, reduction, **o)
    found.backward(None if gradient is None else torch.as_tensor(gradient, dtype=found.dtype, device=x.device))
    return [found.detach(), *(p.grad for p in model.parameters()), leaf.grad]


def by_hand(mlp: nn.Module, x: Tensor, t: Tensor, *args: Any, **options: Any) -> list[Any]:
    """List the loss of backprop, and the gradients that it leaves on parameters without any."""
    for p in (*mlp.parameters(), x):
        p.grad = None
    return [backprop(mlp, x, t, *args, **options), *(p.grad for p in mlp.parameters()), x.grad]


def assert_as_torch(mlp: MLP, x: Tensor, t: Tensor, *args: Any, tile_rows: int | None = None, **options: Any) -> None:
    expected = by_torch(mlp, x, t, *args, **options)
    torch.testing.assert_close(
        by_hand(mlp, x, t, *args, tile_rows=tile_rows, **options), expected, rtol=1e-12, atol=1e-12, equal_nan=True
    )


def assert_directional(mlp: MLP, x: Tensor, gradients: list[Tensor], loss: Callable[[], Tensor]) -> None:
    """Compare gradients with central differences of a loss of parameters and input, along a few directions."""
    given, gradients, step = [*mlp.parameters(), x], [g.clone() for g in gradients], 1e-5
    for _ in range(3):
        directions, values = [torch.randn_like(t) for t in given], []
        for scale in (step, -2 * step):
            with torch.no_grad():
                for t, direction in zip(given, directions, strict=True):
                    t.add_(scale * direction)
            values.append(loss())
        with torch.no_grad():
            for t, direction in zip(given, directions, strict=True):
                t.add_(step * direction)
        slope = sum((g * direction).sum() for g, direction in zip(gradients, directions, strict=True))
        torch.testing.assert_close((values[0] - values[1]) / (2 * step), slope, rtol=1e-7, atol=1e-7)


WEIGHT = torch.tensor([0.5, 2.0, 1.25], dtype=torch.float64)


def huber(y: Tensor, t: Tensor) -> Tensor:
    return F.huber_loss(y, t, reduction="none").sum(-1)


PAIR = huber, lambda y, t: (y - t).clamp(-1, 1)


def run_alone(code: str) -> int:
    """Run code in a process of its own, and end it if it hangs."""
    return subprocess.run([sys.executable, "-c", code], check=False, timeout=SECONDS).returncode


# Errors, and what they leave behind.


def refused(device: str, call: Callable[[MLP, Tensor], Any], error: Any, message: str, mlp: MLP | None = None) -> None:
    """See a call raise, and every ``.grad`` stay as it was, whether there was one or not."""
    mlp = mlp or make(device)
    for held in (None, 5.0):
        x = rows_of(device).requires_grad_()
        for p in (*mlp.parameters(), x):
            p.grad = None if held is None else torch.full_like(p, held)
        before = [p.grad for p in (*mlp.parameters(), x)]
        with pytest.raises(error, match=message):
            call(mlp, x)
        for p, g in zip((*mlp.parameters(), x), before, strict=True):
            assert p.grad is g
            assert g is None or bool((g == held).all())


def sized(device: str, *shape: int) -> Tensor:
    return torch.rand(*shape, dtype=torch.float64, device=device)


C = torch.zeros(N, dtype=torch.int64)


def replaced() -> MLP:
    mlp = MLP([D, 7, 6, V], "gelu")
    mlp.layers[1] = nn.Linear(7, 6)
    return mlp
