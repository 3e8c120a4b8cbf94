"""Gradients made by hand lie in memory as autograd's do: optimizers walk them beside their parameters."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from manual_mlp import MLP, backprop

N, SIZES = 9, [4, 7, 6, 3]
tiled = pytest.mark.parametrize("tile_rows", [None, 2], ids=["one tile", "tiles"])

# How a weight may lie in memory.
LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "contiguous": lambda w: w.contiguous(),
    "transposed": lambda w: w.mT.contiguous().mT,  # as one ports from Keras or JAX
    "cut from a wider one": lambda w: torch.cat([w, w], 1)[:, : w.shape[1]],
    "every other column": lambda w: w.repeat_interleave(2, 1)[:, ::2],
    "transposed and cut": lambda w: torch.cat([w.mT, w.mT], 1)[:, : w.shape[0]].mT,
    "expanded": lambda w: w[:1].expand_as(w),
}


def network(layout: str, device: str, dtype: torch.dtype = torch.float64, **options: Any) -> MLP:
    torch.manual_seed(1)
    mlp = MLP(SIZES, "gelu", dtype=dtype, device=device, **options)
    for layer in mlp.layers:
        layer.weight.data = LAYOUTS[layout](layer.weight.data)
    return mlp


def batch(device: str, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(2)
    x = torch.randn(N, SIZES[0], generator=generator, dtype=torch.float64)
    return x.to(device, dtype), torch.randint(SIZES[-1], (N,), generator=generator).to(device)


def by_torch(mlp: MLP, x: Tensor, t: Tensor) -> None:
    F.cross_entropy(mlp.to_sequential()(x), t).backward()


def strides(mlp: nn.Module) -> list[tuple[int, ...]]:
    return [p.grad.stride() for p in mlp.parameters()]


@tiled
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("how", ["as it is", "hooked parameters", "one grad dtype for all"])
def test_a_gradient_has_the_strides_that_autograd_gives_it(
    device: str, layout: str, tile_rows: int | None, how: str
) -> None:
    mlp, theirs = network(layout, device), network(layout, device)
    if how == "hooked parameters":
        for p in mlp.parameters():
            p.register_hook(lambda g: None)
    if how == "one grad dtype for all":
        for p in (*mlp.parameters(), *theirs.parameters()):
            p.grad_dtype = torch.float32
    backprop(mlp, *batch(device), tile_rows=tile_rows)
    by_torch(theirs, *batch(device))
    assert strides(mlp) == strides(theirs)
    for p, q in zip(mlp.parameters(), theirs.parameters(), strict=True):
        assert p.grad.dtype == q.grad.dtype
        tolerance = 1e-12 if p.grad.dtype == torch.float64 else 1e-6
        torch.testing.assert_close(p.grad, q.grad, rtol=tolerance, atol=tolerance)


@tiled
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_gradient_of_half_precision_has_its_parameters_strides(
    device: str, dtype: torch.dtype, tile_rows: int | None
) -> None:
    mlp = network("transposed", device, dtype)
    backprop(mlp, *batch(device, dtype), tile_rows=tile_rows)
    assert strides(mlp) == [p.stride() for p in mlp.parameters()]


OPTIMIZERS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "adamw": torch.optim.AdamW,
    "adam": torch.optim.Adam,
    "amsgrad": lambda p, **o: torch.optim.Adam(p, amsgrad=True, **o),
    "sgd": lambda p, **o: torch.optim.SGD(p, lr=0.1, momentum=0.9, **o),
    "adagrad": lambda p, **o: torch.optim.Adagrad(p, lr=0.1, **o),
    "nadam": torch.optim.NAdam,
    "radam": torch.optim.RAdam,
    "rmsprop": torch.optim.RMSprop,
    "rprop": torch.optim.Rprop,
    "adadelta": torch.optim.Adadelta,
    "adamax": torch.optim.Adamax,
    "asgd": torch.optim.ASGD,
}
FUSED = "adamw", "adam", "amsgrad", "sgd", "adagrad"
KINDS = [*((name, "fused") for name in FUSED), *((name, "foreach") for name in OPTIMIZERS)]


@tiled
@pytest.mark.parametrize(("name", "kind"), KINDS, ids=" ".join)
@pytest.mark.parametrize("layout", ["transposed", "transposed and cut"])
def test_twenty_steps_end_where_backward_ends(
    device: str, layout: str, name: str, kind: str, tile_rows: int | None
) -> None:
    ends = []
    for explicit in (True, False):
        mlp = network(layout, device)
        optimizer = OPTIMIZERS[name](mlp.parameters(), **{kind: True})
        for _ in range(20):
            optimizer.zero_grad()
            if explicit:
                backprop(mlp, *batch(device), tile_rows=tile_rows)
            else:
                by_torch(mlp, *batch(device))
            optimizer.step()
        ends.append([p.detach() for p in mlp.parameters()])
    torch.testing.assert_close(*ends, rtol=1e-7, atol=1e-7)


# What may be there already.
EXISTING: dict[str, Callable[[Tensor], Tensor]] = {
    "contiguous": lambda g: g.contiguous(),
    "transposed": lambda g: g.mT.contiguous().mT if g.dim() > 1 else g,
    "expanded": lambda g: g[:1].expand_as(g),
    "sparse": lambda g: g.to_sparse(),
    "recorded": lambda g: 2 * g.requires_grad_(),
}


@tiled
@pytest.mark.parametrize("existing", EXISTING)
@pytest.mark.parametrize("layout", ["contiguous", "transposed"])
def test_a_gradient_that_is_there_is_added_to(device: str, layout: str, existing: str, tile_rows: int | None) -> None:
    mlp = network(layout, device)
    for p in mlp.parameters():
        p.grad = EXISTING[existing](torch.full_like(p, 0.5))
    before = [p.grad.detach().to_dense().clone() for p in mlp.parameters()]
    theirs = network(layout, device)
    by_torch(theirs, *batch(device))
    backprop(mlp, *batch(device), tile_rows=tile_rows)
    for p, q, was in zip(mlp.parameters(), theirs.parameters(), before, strict=True):
        torch.testing.assert_close(p.grad.detach().to_dense(), q.grad + was, rtol=1e-12, atol=1e-12)


@tiled
def test_a_weight_tied_to_a_sparse_embedding_gets_both_gradients(device: str, tile_rows: int | None) -> None:
    def step(explicit: bool) -> Tensor:
        mlp = network("contiguous", device)
        embedding = nn.Embedding(*mlp.layers[0].weight.shape, sparse=True, dtype=torch.float64, device=device)
        embedding.weight = mlp.layers[0].weight
        embedding(torch.tensor([1, 3, 1], device=device)).sin().sum().backward()
        assert embedding.weight.grad.is_sparse
        if explicit:
            backprop(mlp, *batch(device), tile_rows=tile_rows)
        else:
            by_torch(mlp, *batch(device))
        return embedding.weight.grad

    torch.testing.assert_close(step(True), step(False), rtol=1e-12, atol=1e-12)


@tiled
def test_what_is_refused_leaves_every_gradient_as_it_was(device: str, tile_rows: int | None) -> None:
    mlp, (x, t) = network("transposed", device), batch(device)
    for p in mlp.parameters():
        p.grad = torch.full_like(p, 0.5).to_sparse() if p.dim() > 1 else torch.full_like(p, 0.5)
    before = copy.deepcopy([p.grad.to_dense() for p in mlp.parameters()])
    if device == "cpu":
        with pytest.raises(IndexError):
            backprop(mlp, x, t + 99, tile_rows=tile_rows)
    with pytest.raises(ValueError, match="expected a gradient"):
        backprop(mlp, x, t, tile_rows=tile_rows, gradient=torch.ones(3, device=device))
    for p, was in zip(mlp.parameters(), before, strict=True):
        assert torch.equal(p.grad.to_dense(), was)


@pytest.mark.parametrize("tile_rows", [None, 2])
def test_a_gradient_is_no_view(tile_rows: int | None) -> None:
    mlp, x = MLP([4, 5, 3]), torch.randn(6, 4, requires_grad=True)
    for layer in mlp.layers:
        layer.weight.data = layer.weight.data.t().contiguous().t()
    backprop(mlp, x, torch.arange(6) % 3, tile_rows=tile_rows)
    factor = torch.tensor(2.0, requires_grad=True)
    for p in (x, *mlp.parameters()):
        grad = p.grad
        grad.detach_()
        grad.mul_(factor)
        assert grad.requires_grad


@pytest.mark.parametrize("tile_rows", [None, 2])
def test_a_gradient_stays_as_it_is_where_the_step_fails(tile_rows: int | None) -> None:
    mlp, x = MLP([4, 5, 3]), torch.randn(6, 4, requires_grad=True)
    given = [torch.randn(p.shape).to_sparse() for p in (x, *mlp.parameters())]
    for p, grad in zip((x, *mlp.parameters()), given, strict=True):
        p.grad = grad
    with pytest.raises(IndexError):
        backprop(mlp, x, torch.full((6,), 7), tile_rows=tile_rows)
    assert [p.grad is grad for p, grad in zip((x, *mlp.parameters()), given, strict=True)] == [True] * 5
    backprop(mlp, x, torch.arange(6) % 3, tile_rows=tile_rows)
    copies = [p.detach().clone().requires_grad_() for p in (x, *mlp.parameters())]
    x2, w1, b1, w2, b2 = copies
    F.cross_entropy(F.linear(F.linear(x2, w1, b1).relu(), w2, b2), torch.arange(6) % 3).backward()
    for p, grad, plain in zip((x, *mlp.parameters()), given, copies, strict=True):
        torch.testing.assert_close(p.grad, grad.to_dense() + plain.grad)
