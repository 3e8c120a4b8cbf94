"""Layers and losses over DTensors in two processes: every placement that torch's own operations take."""

import re
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from covering import covering
from manual_mlp import (
    MLP,
    Dense,
    Linear,
    activations,
    backprop,
    dense_squared_error,
    linear_binary_cross_entropy,
    linear_cross_entropy,
)
from manual_mlp.activations import get
from ranks import RANKS, answers, needs_gloo, outcomes

pytestmark = [pytest.mark.processes, needs_gloo]

N, D, V = 7, 4, 6  # rows that two processes cannot share evenly
# How h, w, b and the target are placed: the dimension they are cut along, or None for a copy in each process.
PLACED: dict[str, tuple[int | None, ...]] = {
    "copies": (None, None, None, None),
    "rows cut": (0, None, None, 0),
    "outputs cut": (None, 0, 0, None),
    "inputs cut": (1, 1, None, None),
}
LOSSES: dict[str, tuple[Callable[..., Tensor], Callable[..., Tensor]]] = {
    "cross-entropy": (
        lambda rows, h, w, b, t: linear_cross_entropy(h, w, t, linear_bias=b, chunk_rows=rows),
        lambda h, w, b, t: F.cross_entropy(F.linear(h, w, b), t),
    ),
    "cross-entropy of each row": (
        lambda rows, h, w, b, t: linear_cross_entropy(h, w, t, linear_bias=b, reduction="none", chunk_rows=rows),
        lambda h, w, b, t: F.cross_entropy(F.linear(h, w, b), t, reduction="none"),
    ),
    "logistic cross-entropy": (
        lambda rows, h, w, b, t: linear_binary_cross_entropy(h, w, t, linear_bias=b, chunk_rows=rows),
        lambda h, w, b, t: F.binary_cross_entropy_with_logits(F.linear(h, w, b), t),
    ),
    "squared error": (
        lambda rows, h, w, b, t: dense_squared_error(h, w, b, t, "tanh", "mean", rows),
        lambda h, w, b, t: 0.5 * F.mse_loss(torch.tanh(F.linear(h, w, b)), t),
    ),
}
Given = tuple[Tensor, ...]


def drawn(*shapes: tuple[int, ...]) -> Given:
    generator = torch.Generator().manual_seed(3)
    return tuple(torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes)


def placed(tensors: Sequence[Tensor], how: Sequence[int | None]) -> Given:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import Replicate, Shard, distribute_tensor

    mesh = init_device_mesh("cpu", (RANKS,))
    return tuple(
        distribute_tensor(t, mesh, [Replicate() if dim is None else Shard(dim)])
        for t, dim in zip(tensors, how, strict=True)
    )


def whole(t: Tensor) -> Tensor:
    return t.full_tensor() if hasattr(t, "full_tensor") else t


def derivatives(f: Callable[..., Tensor], t: Given) -> list[Tensor]:
    """Compute the value and the derivatives of first and second order, each as a plain tensor."""
    t = tuple(x.detach().requires_grad_() for x in t)
    y = f(*t)
    first = torch.autograd.grad(y.sin().sum(), t, create_graph=True)
    second = torch.autograd.grad(sum(g.sin().sum() for g in first), t)
    return [whole(x).detach() for x in (y, *first, *second)]


def difference(mine: Sequence[Tensor], theirs: Sequence[Tensor]) -> float:
    assert [x.shape for x in mine] == [x.shape for x in theirs]
    return max(((a - b).abs().max() / b.abs().max().clamp(min=1)).item() for a, b in zip(mine, theirs, strict=True))


def of_layer(make: Callable[[], nn.Module], activation: str, how: str) -> Callable[[], float]:
    def run() -> float:
        h, w, b = drawn((N, D), (V, D), (V,))
        module = make()

        def of(f: Callable[..., Tensor]) -> Callable[..., Tensor]:
            return lambda h, w, b: f(module, {"weight": w, "bias": b}, (h,))

        mine = derivatives(of(torch.func.functional_call), placed((h, w, b), PLACED[how][:3]))
        return difference(mine, derivatives(lambda *t: get(activation).f(F.linear(*t)), (h, w, b)))

    return run


def of_loss(name: str, how: str, rows: int | None, large: bool) -> Callable[[], float]:
    ours, theirs = LOSSES[name]

    def run() -> float:
        h, w, b = drawn((N, D), (V, D), (V,))
        t = torch.arange(N) % V if name.startswith("cross") else drawn((N, V))[0].sigmoid()
        *operands, target = placed((h, w, b, t), PLACED[how])
        try:
            theirs(*operands, target)
        except RuntimeError as error:  # torch 2.11 has no rule for the logistic loss, nor for classes cut unevenly
            with pytest.raises(type(error), match=re.escape(str(error)[:60])):
                ours(rows, *operands, target)
            return 0.0
        with mock.patch("manual_mlp.head.plan.few_logits", return_value=not large):
            mine = derivatives(lambda *o: ours(rows, *o, target), tuple(operands))
        return difference(mine, derivatives(lambda *o: theirs(*o, t), (h, w, b)))

    return run


def of_network(step: Callable[[MLP, Tensor, Tensor], Any]) -> Callable[[], float]:
    """Cut the first layer's outputs and the second's inputs, as tensor parallelism does."""

    def run() -> float:
        torch.manual_seed(1)
        mlp = MLP([D, 8, V], "gelu", dtype=torch.float64)
        x, t = drawn((N, D))[0], torch.arange(N) % V
        expected = torch.autograd.grad(F.cross_entropy(mlp.to_sequential()(x), t), list(mlp.parameters()))
        parts = [
            placed((layer.weight.data, layer.bias.data), how)
            for layer, how in zip(mlp.layers, ((0, 0), (1, None)), strict=True)
        ]
        for layer, (w, b) in zip(mlp.layers, parts, strict=True):
            layer.weight, layer.bias = nn.Parameter(w), nn.Parameter(b)
        step(mlp, *placed((x, t), (None, None)))
        return difference([whole(p.grad) for p in mlp.parameters()], expected)

    return run


def by_backprop(mlp: MLP, x: Tensor, t: Tensor) -> None:
    backprop(mlp, x, t)


def by_backprop_in_tiles(mlp: MLP, x: Tensor, t: Tensor) -> None:
    backprop(mlp, x, t, tile_rows=2)


def by_backward(mlp: MLP, x: Tensor, t: Tensor) -> None:
    F.cross_entropy(mlp(x), t).backward()


def parallelised() -> float:
    """Let torch's own styles cut two Linear layers of ours."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module

    torch.manual_seed(1)
    model = nn.Sequential(Linear(D, 8), nn.GELU(), Linear(8, V)).double()
    (x,) = drawn((N, D))
    expected = torch.autograd.grad(model(x).sin().sum(), list(model.parameters()))
    parallelize_module(model, init_device_mesh("cpu", (RANKS,)), {"0": ColwiseParallel(), "2": RowwiseParallel()})
    model(x).sin().sum().backward()
    return difference([whole(p.grad) for p in model.parameters()], expected)


Case = Callable[[], float]
DENSE: dict[tuple[str, ...], Case] = {
    (name, how): of_layer(lambda name=name: Dense(D, V, name), name, how)
    for how in PLACED
    for name in activations.names()
}
OF_LOSSES: dict[tuple[str, ...], Case] = {
    (name, how, size): of_loss(name, how, rows, size == "large")
    for name in LOSSES
    for how in PLACED
    for size, rows in (("small", None), ("in chunks", 2), ("large", None))
}
OTHERS: dict[tuple[str, ...], Case] = {
    **{("Linear", how): of_layer(lambda: Linear(D, V), "identity", how) for how in PLACED},
    ("MLP", "backward"): of_network(by_backward),
    ("MLP", "backprop"): of_network(by_backprop),
    ("MLP", "backprop in tiles"): of_network(by_backprop_in_tiles),
    ("Linear", "by ColwiseParallel and RowwiseParallel"): parallelised,
}


def work(every_case: bool, _: int) -> dict[str, float | str]:
    """Run the cases in one process of two: each activation and placement, each pair of loss, placement and size."""
    cases = dict(OTHERS)
    for product, strength in ((DENSE, 1), (OF_LOSSES, 2)):
        names = list(product)
        chosen = range(len(names)) if every_case else covering(names, strength)
        cases |= {names[k]: product[names[k]] for k in chosen}
    return outcomes({", ".join(name): case for name, case in cases.items()})


def test_over_dtensors_every_derivative_is_that_of_whole_tensors(tmp_path: Path, every_case: bool) -> None:
    for found in answers(partial(work, every_case), tmp_path):
        assert len(found) == (len(DENSE) + len(OF_LOSSES) + len(OTHERS) if every_case else len(found)) > 40
        assert {name: error for name, error in found.items() if not isinstance(error, float) or error > 1e-12} == {}
