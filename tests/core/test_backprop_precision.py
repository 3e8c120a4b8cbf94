"""backprop() in low precision and under autocast: at most twice torch's error."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from manual_mlp import MLP, backprop
from stepped import C, V, by_hand, by_torch, every_loss, make, one_tile_or_more, rows_of, target_of, value

# Low precision.


def errors(gradients: list[Tensor], truth: list[Tensor]) -> list[float]:
    return [(g.double() - exact).abs().max().item() for g, exact in zip(gradients, truth, strict=True)]


@every_loss
@pytest.mark.parametrize("tile_rows", [None, 8])
@pytest.mark.parametrize("kind", ["autocast", "bfloat16", "float16"])
@pytest.mark.parametrize("held", [False, True], ids=["no grad yet", "grad given"])
def test_in_low_precision_the_error_is_at_most_twice_torchs(
    device: str, loss: str, tile_rows: int | None, kind: str, held: bool
) -> None:
    dtype = torch.float32 if kind == "autocast" else getattr(torch, kind)
    totals: list[list[float]] = []
    for seed in range(10):
        torch.manual_seed(seed)
        mlp = MLP([17, 29, 23, V], "gelu").to(device, dtype)
        x = torch.randn(33, 17).to(device, dtype).requires_grad_()
        t = target_of(loss, x)
        exact = copy.deepcopy(mlp).double().to_sequential()
        wide = x.detach().double().requires_grad_()
        wanted = t.double() if t.is_floating_point() else t
        value(exact(wide), wanted, loss).backward()
        model, leaf = copy.deepcopy(mlp).to_sequential(), x.detach().clone().requires_grad_()
        for p in (*model.parameters(), *mlp.parameters(), *exact.parameters()):
            if held:
                p.grad = torch.zeros_like(p) if p.grad is None else p.grad
        with torch.autocast(device, torch.bfloat16, enabled=kind == "autocast"):
            found = value(model(leaf), t, loss)
            mine = backprop(mlp, x, t, loss, tile_rows=tile_rows)
        found.backward()
        assert mine.dtype == dtype
        assert all(p.grad.dtype == dtype for p in (*mlp.parameters(), x))
        truth = [p.grad for p in (*exact.parameters(), wide)]
        both = [errors([p.grad for p in (*m.parameters(), i)], truth) for m, i in ((mlp, x), (model, leaf))]
        totals = totals or [[0.0, 0.0] for _ in truth]
        for total, ours, torchs in zip(totals, *both, strict=True):
            total[:] = total[0] + ours, total[1] + torchs
    for ours, torchs in totals:
        assert ours / 10 <= 2 * torchs / 10 + 1e-6


def test_weight_gradients_of_many_tiles_are_accumulated_in_float32(device: str) -> None:
    torch.manual_seed(0)
    mlp = MLP([8, 16, V], "tanh").to(device, torch.bfloat16)
    x, t = torch.randn(4096, 8).to(device, torch.bfloat16) + 1, torch.zeros(4096, dtype=torch.int64, device=device)
    exact = copy.deepcopy(mlp).double().to_sequential()
    F.cross_entropy(exact(x.double()), t, reduction="sum").backward()
    truth = [p.grad for p in exact.parameters()]
    one, many = (errors(by_hand(mlp, x, t, reduction="sum", tile_rows=rows)[1:-1], truth) for rows in (None, 4))
    for a, b in zip(one, many, strict=True):
        assert b <= 1.5 * a + 1e-6


@one_tile_or_more
def test_autocast_leaves_float64_alone_as_torch_does(device: str, tile_rows: int | None) -> None:
    x, mlp = rows_of(device), make(device)
    t = target_of("cross_entropy", x)
    with torch.autocast(device, torch.bfloat16):
        _, y = backprop(mlp, x, t, tile_rows=tile_rows, return_output=True)
        expected = mlp.to_sequential()(x)
    torch.testing.assert_close(y, expected.detach(), rtol=0, atol=1e-12)
    torch.testing.assert_close([p.grad for p in mlp.parameters()], by_torch(mlp, x, t)[1:-1], rtol=0, atol=1e-12)


@one_tile_or_more
@pytest.mark.parametrize("k", range(3))
def test_under_autocast_layers_may_differ_in_dtype(device: str, tile_rows: int | None, k: int) -> None:
    mlp, x = make(device, dtype=torch.float32), rows_of(device, dtype=torch.float32).requires_grad_()
    mlp.layers[k].bfloat16()
    mlp.layers[k - 1].bias = nn.Parameter(mlp.layers[k - 1].bias.detach().bfloat16())
    for given in (x, x.detach().bfloat16().requires_grad_()):
        with torch.autocast(device, torch.bfloat16):
            expected = by_torch(mlp, given, C.to(device))
            found = by_hand(mlp, given, C.to(device), tile_rows=tile_rows)
        for mine, theirs in zip(found[1:], expected[1:], strict=True):
            torch.testing.assert_close(mine, theirs, rtol=0.1, atol=0.02)


@one_tile_or_more
def test_a_gradients_dtype_is_the_one_the_parameter_asks_for(device: str, tile_rows: int | None) -> None:
    mlp, x = make(device, dtype=torch.bfloat16), rows_of(device, dtype=torch.bfloat16)
    for p in mlp.parameters():
        if not hasattr(p, "grad_dtype"):
            pytest.skip("this torch has one dtype for both")
        p.grad_dtype = torch.float32
    for _ in range(2):
        backprop(mlp, x, C.to(device), tile_rows=tile_rows)
        assert all(p.grad.dtype == torch.float32 for p in mlp.parameters())
