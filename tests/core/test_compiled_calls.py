"""How often a compiler is asked anew: never more often than for torch's own modules."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounter
from torch._dynamo.utils import counters

from manual_mlp import (
    MLP,
    Dense,
    DenseSquaredError,
    Linear,
    LinearCrossEntropyLoss,
    linear_binary_cross_entropy,
    linear_cross_entropy,
)

Make = Callable[[], nn.Module]


class _Loss(nn.Module):
    """A linear layer and a loss of its output and its own target."""

    def __init__(self, of: Callable[[Tensor, nn.Linear], Tensor]) -> None:
        super().__init__()
        self.linear, self.of = nn.Linear(4, 7), of

    def forward(self, h: Tensor) -> Tensor:
        return self.of(h, self.linear)


class _OfItself(nn.Module):
    """A loss module whose target is made of its input."""

    def __init__(self, module: nn.Module, target: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.module, self.target = module, target

    def forward(self, h: Tensor) -> Tensor:
        loss: Tensor = self.module(h, self.target(h))
        return loss


class _OfTorch(nn.Module):
    def __init__(self, bias: bool, loss: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.linear, self.loss = nn.Linear(4, 7, bias), loss

    def forward(self, h: Tensor, t: Tensor) -> Tensor:
        return self.loss(self.linear(h), t)


def _classes(h: Tensor) -> Tensor:
    return torch.zeros(h.shape[:-1], dtype=torch.long)


def _numbers(h: Tensor) -> Tensor:
    return torch.zeros(*h.shape[:-1], 7, dtype=h.dtype)


def _of_rows(z: Tensor, t: Tensor) -> Tensor:
    return F.cross_entropy(z.reshape(-1, 7), t.reshape(-1))


def _entropy(chunk_rows: int | None) -> Make:
    return lambda: _Loss(
        lambda h, of: linear_cross_entropy(h, of.weight, _classes(h), linear_bias=of.bias, chunk_rows=chunk_rows)
    )


SUBJECTS: dict[str, tuple[Make, Make]] = {
    "MLP": (lambda: MLP([4, 5, 7]), lambda: MLP([4, 5, 7]).to_sequential()),
    "MLP with dropout": (lambda: MLP([4, 5, 7], dropout=0.5), lambda: MLP([4, 5, 7], dropout=0.5).to_sequential()),
    "Dense": (lambda: Dense(4, 7, "gelu"), lambda: nn.Sequential(nn.Linear(4, 7), nn.GELU())),
    "Linear": (lambda: Linear(4, 7), lambda: nn.Linear(4, 7)),
    "cross-entropy": (_entropy(None), lambda: _Loss(lambda h, of: _of_rows(of(h), _classes(h)))),
    "cross-entropy in chunks": (_entropy(2), lambda: _Loss(lambda h, of: _of_rows(of(h), _classes(h)))),
    "binary cross-entropy": (
        lambda: _Loss(lambda h, of: linear_binary_cross_entropy(h, of.weight, _numbers(h), linear_bias=of.bias)),
        lambda: _Loss(lambda h, of: F.binary_cross_entropy_with_logits(of(h), _numbers(h))),
    ),
    "LinearCrossEntropyLoss": (
        lambda: _OfItself(LinearCrossEntropyLoss(4, 7), _classes),
        lambda: _OfItself(_OfTorch(False, _of_rows), _classes),
    ),
    "DenseSquaredError": (
        lambda: _OfItself(DenseSquaredError(4, 7, "tanh"), _numbers),
        lambda: _OfItself(_OfTorch(True, lambda y, t: 0.5 * F.mse_loss(y.tanh(), t, reduction="sum")), _numbers),
    ),
}


def _sizes(make: Make) -> Iterator[tuple[nn.Module, Tensor]]:
    module = make()
    for n in (5, 5, 6, 9, 300, 1):
        yield module, torch.randn(n, 4)


def _shapes(make: Make) -> Iterator[tuple[nn.Module, Tensor]]:
    module = make()
    for shape in ((5, 4), (2, 3, 4), (3, 3, 4), (4,)):
        yield module, torch.randn(shape)


def _modes(make: Make) -> Iterator[tuple[nn.Module, Tensor]]:
    module = make()
    for training in (True, False, True):
        yield module.train(training), torch.randn(5, 4)


def _no_grad(make: Make) -> Iterator[tuple[nn.Module, Tensor]]:
    module = make()
    for grad in (True, False, True):
        with torch.set_grad_enabled(grad):
            yield module, torch.randn(5, 4)


def _frozen(make: Make) -> Iterator[tuple[nn.Module, Tensor]]:
    module = make()
    for frozen in (False, True, False):
        yield module.requires_grad_(not frozen), torch.randn(5, 4).requires_grad_(frozen)


def _dtypes(make: Make) -> Iterator[tuple[nn.Module, Tensor]]:
    for dtype in (torch.float32, torch.float64, torch.bfloat16):
        yield make().to(dtype), torch.randn(5, 4, dtype=dtype)


def _autocast(make: Make) -> Iterator[tuple[nn.Module, Tensor]]:
    module = make()
    for enabled in (False, True, False):
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            yield module, torch.randn(5, 4)


def _instances(make: Make) -> Iterator[tuple[nn.Module, Tensor]]:
    for _ in range(3):
        yield make(), torch.randn(5, 4)


PATTERNS = _sizes, _shapes, _modes, _no_grad, _frozen, _dtypes, _autocast, _instances


def _asked(make: Make, pattern: Callable[[Make], Iterator[tuple[nn.Module, Tensor]]]) -> tuple[int, int]:
    """Count the graphs that calls in a pattern are compiled to, and the breaks between them."""
    torch.compiler.reset()
    counters.clear()
    count = CompileCounter()

    def call(module: nn.Module, h: Tensor) -> Any:
        return module(h)

    run: Any = torch.compile(call, backend=count)
    for module, h in pattern(make):
        run(module, h)
    return count.frame_count, sum(counters["graph_break"].values())


@pytest.mark.each_value
@pytest.mark.parametrize("name", SUBJECTS)
@pytest.mark.parametrize("pattern", PATTERNS, ids=lambda pattern: pattern.__name__.strip("_"))
def test_no_more_graphs_and_breaks_than_torchs_own(name: str, pattern: Any) -> None:
    ours, torchs = (_asked(make, pattern) for make in SUBJECTS[name])
    assert torchs[0] > 0
    assert ours[0] <= torchs[0]
    assert ours[1] <= torchs[1] == 0
