"""Sums over millions of entries keep float32's digits, and take no more memory than they need."""

from collections.abc import Callable
from contextlib import nullcontext

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.memory import peak_bytes
from manual_mlp import MLP, backprop, dense_squared_error, linear_binary_cross_entropy, linear_cross_entropy

N, D, V = 1 << 14, 3, 256  # four million entries


def squared_error(h: Tensor, w: Tensor, t: Tensor) -> Tensor:
    return 0.5 * F.mse_loss(F.linear(h, w), t, reduction="sum")


LOSSES: dict[str, tuple[Callable[..., Tensor], Callable[..., Tensor]]] = {
    "squared error": (lambda h, w, t, rows: dense_squared_error(h, w, None, t, chunk_rows=rows), squared_error),
    "logistic": (
        lambda h, w, t, rows: linear_binary_cross_entropy(h, w, t, reduction="sum", chunk_rows=rows),
        lambda h, w, t: F.binary_cross_entropy_with_logits(F.linear(h, w), t, reduction="sum"),
    ),
    "cross-entropy": (
        lambda h, w, t, rows: linear_cross_entropy(h, w, t.softmax(-1), reduction="sum", chunk_rows=rows),
        lambda h, w, t: F.cross_entropy(F.linear(h, w), t.softmax(-1), reduction="sum"),
    ),
}


def operands(dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    torch.manual_seed(0)
    drawn = torch.randn(N, D, dtype=torch.float64), torch.randn(V, D, dtype=torch.float64), torch.rand(N, V).double()
    h, w, t = (t.to(dtype) for t in drawn)
    return h, w.requires_grad_(), t


@pytest.mark.parametrize("grad", [True, False], ids=["grad", "no grad"])
@pytest.mark.parametrize("rows", [N, 1000])
@pytest.mark.parametrize("name", LOSSES)
def test_the_value_of_many_entries_is_as_exact_as_torchs(name: str, rows: int, grad: bool) -> None:
    ours, theirs = LOSSES[name]
    truth = theirs(*operands(torch.float64)).item()
    with nullcontext() if grad else torch.no_grad():
        errors = [
            abs(f.item() / truth - 1) for f in (ours(*operands(torch.float32), rows), theirs(*operands(torch.float32)))
        ]
    assert errors[0] <= 2 * errors[1] + 1e-6, errors


@pytest.mark.parametrize("tile_rows", [N, 1000])
def test_the_value_of_a_step_on_many_entries_is_as_exact_as_torchs(tile_rows: int) -> None:
    mlp = MLP([D, V], bias=False)
    h, w, t = operands(torch.float32)
    mlp.layers[0].weight.data = w.detach()
    found = backprop(mlp, h, t, "squared_error", reduction="sum", tile_rows=tile_rows).item()
    truth = squared_error(*operands(torch.float64)).item()
    assert abs(found / truth - 1) <= 1e-6


def test_the_inputs_gradient_exists_once() -> None:
    n, d, v = 4096, 512, 32
    h, w = torch.randn(n, d, requires_grad=True), torch.randn(v, d, requires_grad=True)
    t = torch.arange(n) % v
    used = peak_bytes(lambda: linear_cross_entropy(h, w, t, chunk_rows=256).backward(), (h, w), torch.device("cpu"))
    assert used < 1.5 * h.nbytes


def test_a_pass_without_a_loss_has_no_output_in_float32() -> None:
    mlp, x = MLP([8, 4096], dtype=torch.bfloat16, tile_rows=64), torch.randn(4096, 8, dtype=torch.bfloat16)
    with torch.no_grad():
        used = peak_bytes(lambda: mlp(x), (), torch.device("cpu"))
    assert used < 4096 * 4096 * 2 + 2 * 64 * 4096 * 2
