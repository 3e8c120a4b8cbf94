"""Who calls backprop(), and that it makes no graph and keeps little memory."""

import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.func import grad, jvp, vmap

from benchmarks.memory import peak_bytes
from conditions import threads
from manual_mlp import MLP, backprop
from stepped import (
    CPU,
    LOSSES,
    C,
    D,
    N,
    V,
    by_hand,
    by_torch,
    every_loss,
    make,
    one_tile_or_more,
    refused,
    replaced,
    rows_of,
    target_of,
)

# Who calls.


def test_a_call_inside_a_transform_is_refused(device: str) -> None:
    t = C.to(device)

    def dual(mlp: MLP, x: Tensor) -> None:
        with forward_ad.dual_level():
            backprop(mlp, forward_ad.make_dual(x.detach(), torch.ones_like(x)), t)

    calls: list[Callable[..., Any]] = [
        lambda m, x: grad(lambda x: backprop(m, x, t))(x.detach()),
        lambda m, x: vmap(lambda x: backprop(m, x, t))(x.detach().expand(2, N, D)),
        lambda m, x: jvp(lambda x: backprop(m, x, t), (x.detach(),), (x.detach(),)),
        dual,
    ]
    for call in calls:
        refused(device, call, RuntimeError, "expected backprop outside of torch.func, forward mode")


def test_inference_mode_is_refused(device: str) -> None:
    def call(mlp: MLP, x: Tensor) -> None:
        with torch.inference_mode():
            backprop(mlp, x, C.to(device))

    refused(device, call, RuntimeError, "expected backprop outside of torch.inference_mode")


@one_tile_or_more
def test_without_grad_mode_backprop_is_the_same(device: str, tile_rows: int | None) -> None:
    mlp, x = make(device), rows_of(device).requires_grad_()
    expected = by_torch(mlp, x, C.to(device))
    other = replaced().double().to(device)
    with torch.no_grad():
        torch.testing.assert_close(by_hand(mlp, x, C.to(device), tile_rows=tile_rows), expected)
        assert not torch.is_grad_enabled()
        backprop(other, x, C.to(device), tile_rows=tile_rows)
    assert all(p.grad is not None for p in other.parameters())
    assert torch.is_grad_enabled()


def test_a_compiled_step_breaks_its_graph_around_backprop_and_compiles_once(device: str) -> None:
    torch.compiler.reset()
    mlp, x, t, graphs = make(device), rows_of(device), C.to(device), []

    def backend(module: Any, _: Any) -> Any:
        graphs.append(module)
        return module.forward

    step = torch.compile(lambda x, t: backprop(mlp, x * 2, t, tile_rows=2) + 1, backend=backend)
    expected, counts = by_torch(mlp, 2 * x, t), []
    for _ in range(4):
        for p in mlp.parameters():
            p.grad = None
        torch.testing.assert_close(step(x, t), expected[0] + 1)
        torch.testing.assert_close([p.grad for p in mlp.parameters()], expected[1:-1])
        counts.append(len(graphs))
    assert counts[1:] == counts[-1:] * 3
    with pytest.raises(Exception, match=r"torch\.compile"):
        torch.compile(lambda x, t: backprop(mlp, x, t), backend="aot_eager", fullgraph=True)(x, t)


# No graph, and little memory.


def test_no_node_of_a_graph_is_made_and_nothing_is_saved(device: str) -> None:
    mlp, x, saved = make(device, "gelu", dropout=0.2), rows_of(device), []
    with threads(1), torch.autograd.graph.saved_tensors_hooks(saved.append, lambda t: t):
        for loss, tile_rows in itertools.product(LOSSES, (2, None)):
            t = target_of(loss, x)
            before = torch.autograd._get_sequence_nr()
            found = backprop(mlp, x, t, loss, tile_rows=tile_rows)
            assert torch.autograd._get_sequence_nr() == before
            assert found.grad_fn is None
            assert not found.requires_grad
    assert not saved
    assert all(p.grad.grad_fn is None and not p.grad.requires_grad for p in mlp.parameters())


@every_loss
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_memory_does_not_grow_with_the_batch(loss: str, dtype: torch.dtype) -> None:
    mlp = MLP([16, 64, 64, V], "gelu", dtype=dtype)
    peaks = []
    with threads(1):
        for n in (512, 4096):
            x = torch.randn(n, 16).to(dtype)
            t = target_of(loss, x)
            peaks.append(peak_bytes(lambda x=x, t=t: backprop(mlp, x, t, loss, tile_rows=32), mlp.parameters(), CPU))
    assert peaks[1] <= peaks[0] + 4096
