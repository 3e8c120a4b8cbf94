"""Cotangents of a class, modes, counters, default devices and tracing: torch's own operations see them."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.testing._internal.two_tensor import TwoTensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from manual_mlp import (
    MLP,
    Dense,
    DenseSquaredError,
    Linear,
    LinearCrossEntropyLoss,
    activations,
    backprop,
    dense,
    linear_cross_entropy,
    transforms,
)
from manual_mlp.engines import native
from modes.classes import Rounded, Rounding
from of_classes import LOSSES, D, N, P, Step, T, V, assert_close, inputs, of_layer
from of_classes import rows as rows


def per_sample_layers() -> dict[str, nn.Module]:
    return {"Linear": Linear(D, V), "Dense": Dense(D, V, "tanh"), "MLP": MLP([D, 7, V], "tanh")}


def two(t: Tensor) -> TwoTensor:
    """Wrap two copies of a tensor in one of torch's, which computes everything twice."""
    return TwoTensor(t.detach().clone(), t.detach().clone())


def first_of_two(t: Tensor) -> Tensor:
    return t.a if isinstance(t, TwoTensor) else t


COTANGENTS: dict[str, Callable[[Tensor], Tensor]] = {
    "in two": two,
    "that a product rounds": lambda t: t.detach().as_subclass(Rounded),
}


@pytest.mark.parametrize("kind", COTANGENTS)
@pytest.mark.parametrize("name", LOSSES)
def test_a_cotangent_of_a_class_gives_torchs_gradients_at_any_size(kind: str, name: str, rows: int | None) -> None:
    ours, theirs = LOSSES[name]
    t = of_layer()
    found = [gradients_for(f, COTANGENTS[kind], t) for f in (lambda *t: ours(rows, *t), theirs)]
    assert_close(*found)


@pytest.mark.parametrize("kind", COTANGENTS)
@pytest.mark.parametrize("name", activations.names())
def test_a_cotangent_of_a_class_gives_torchs_gradients_of_a_layer(kind: str, name: str) -> None:
    t = of_layer()
    f = activations.get(name).f
    try:
        theirs = gradients_for(lambda h, w, b: f(F.linear(h, w, b)), COTANGENTS[kind], t)
    except RuntimeError as error:  # torch 2.11 for softsign
        pytest.skip(f"torch itself raises: {error}")
    assert_close(gradients_for(lambda h, w, b: dense(h, w, b, name), COTANGENTS[kind], t), theirs)


def gradients_for(f: Step, wrap: Callable[[Tensor], Tensor], t: tuple[Tensor, ...]) -> list[Tensor]:
    """Compute the gradients for a cotangent of a class, and then those of the gradients."""
    y = f(*t)
    dy = wrap(torch.linspace(-1, 2, y.numel(), dtype=y.dtype).view(y.shape))
    found = list(torch.autograd.grad(y, t, dy, retain_graph=True))
    first = torch.autograd.grad(y, t, torch.ones_like(y), create_graph=True)
    followed = [g for g in first if g.requires_grad]  # an identity's db is a constant
    found += torch.autograd.grad(followed, t, [wrap(g.sin()) for g in followed], materialize_grads=True)
    return [first_of_two(g).as_subclass(Tensor) for g in found]


@pytest.mark.parametrize("tile_rows", [None, 2])
def test_the_class_of_a_later_layer_does_not_harm_those_before_it(tile_rows: int | None) -> None:
    mlp, x = MLP([D, 7, V], "sin", tile_rows=tile_rows, dtype=torch.float64), inputs((N, D))[0]
    plain, other = mlp.layers
    other._parameters["weight"] = nn.Parameter(two(other.weight))
    y = F.linear(torch.sin(F.linear(x, plain.weight, plain.bias)), other.weight, other.bias)
    expected = torch.autograd.grad(y.sin().sum(), (x, plain.weight, plain.bias))
    found = torch.autograd.grad(mlp(x).sin().sum(), (x, plain.weight, plain.bias))
    assert_close([first_of_two(g) for g in found], [first_of_two(g) for g in expected])


@pytest.mark.parametrize("tile_rows", [None, 2])
def test_backprop_for_a_gradient_of_a_class_is_torchs(tile_rows: int | None) -> None:
    mlp, x = MLP([D, 7, V], "gelu", dtype=torch.float64), inputs((N, D))[0].detach()
    parameters = list(mlp.parameters())
    value = 0.5 * F.mse_loss(mlp(x), P, reduction="sum")
    expected = torch.autograd.grad(value, parameters, two(torch.tensor(2.0, dtype=torch.float64)))
    backprop(mlp, x, P, "squared_error", "sum", tile_rows, gradient=two(torch.tensor(2.0, dtype=torch.float64)))
    for p, g in zip(parameters, expected, strict=True):
        assert_close(first_of_two(p.grad), first_of_two(g))
    pair = (lambda y, t: (y - t).square().sum(1), lambda y, t: 2 * (y - t))
    with pytest.raises(TypeError, match="expected a gradient without a class of its own for a pair"):
        backprop(mlp, x, P, pair, gradient=two(torch.tensor(2.0, dtype=torch.float64)))


class RoundedProducts(TorchDispatchMode):
    """A mode that rounds the factors of torch's matrix products."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in (torch.ops.aten.mm.default, torch.ops.aten.addmm.default):
            args = [a.round(decimals=1) for a in args]
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("name", LOSSES)
def test_a_mode_finds_torchs_products_in_a_loss(name: str, rows: int | None) -> None:
    ours, theirs = LOSSES[name]
    t = of_layer()
    with RoundedProducts():
        assert_close(ours(rows, *t), theirs(*t))


def test_a_mode_finds_torchs_products_in_a_network_in_tiles() -> None:
    tiled, x = MLP([D, 7, V], "gelu", tile_rows=2, dtype=torch.float64), inputs((N, D))[0]
    with RoundedProducts():
        assert_close(tiled(x), tiled.to_sequential()(x))


def test_flops_are_counted_in_full(rows: int | None) -> None:
    h, w, _ = of_layer()
    counts = []
    for loss in (
        lambda: linear_cross_entropy(h, w, T, chunk_rows=rows),
        lambda: F.cross_entropy(F.linear(h, w), T),
    ):
        with FlopCounterMode(display=False) as counter:
            loss().backward()
        counts.append(counter.get_total_flops())
    assert counts[0] == counts[1] == 3 * 2 * N * D * V


@pytest.mark.parametrize("name", per_sample_layers())
def test_gradients_of_each_sample_by_expanded_weights_are_torchs(name: str) -> None:
    from torch.nn.utils._per_sample_grad import call_for_per_sample_grads

    mine, x = per_sample_layers()[name], torch.randn(N, D)
    parameters = list(mine.parameters())
    call_for_per_sample_grads(mine, batch_size=N, loss_reduction="sum")(x).sin().sum().backward()
    for k in range(N):
        expected = torch.autograd.grad(mine(x[k : k + 1]).sin().sum(), parameters)
        torch.testing.assert_close(tuple(p.grad_sample[k] for p in parameters), expected)


class DefaultDevice:
    """Set a default device for a while."""

    def __enter__(self) -> None:
        torch.set_default_device("cpu")

    def __exit__(self, *_: object) -> None:
        torch.set_default_device(None)


@pytest.mark.parametrize("context", [lambda: torch.device("cpu"), DefaultDevice], ids=["with", "set"])
def test_a_default_device_changes_no_path(context: Callable[[], Any], monkeypatch: pytest.MonkeyPatch) -> None:
    taken: list[str] = []
    for path in (
        "layer._EagerDenseFunction",
        "head.functions.LossFunction",
        "network._NetworkFunction",
        "network._TiledFunction",
    ):
        module, _, function = path.rpartition(".")
        owner = getattr(__import__(f"manual_mlp.{module}", fromlist=[function]), function)
        forward = owner.forward
        monkeypatch.setattr(
            owner, "forward", staticmethod(lambda *a, forward=forward, path=path: (taken.append(path), forward(*a))[1])
        )
    mlps = [MLP([D, 7, V], dtype=torch.float64, tile_rows=tile_rows) for tile_rows in (None, 2)]
    h, w, b = of_layer()

    def run() -> list[str]:
        taken.clear()
        dense(h, w, b, "tanh").sum().backward()
        LOSSES["cross-entropy"][0](2, h, w, b).backward()
        for mlp in mlps:
            mlp(h).sum().backward()
            taken.append(str(transforms.caller(h)))
            backprop(mlp, h.detach(), T)
        return list(taken)

    with native.without():
        usual = run()
        assert len(usual) == 6
        with context():
            assert run() == usual
            with torch.device("cpu"):
                assert run() == usual
            with Rounding():
                assert [path for path in run() if path != "torch"] == []
        assert run() == usual


def test_a_subclass_of_parameter_without_a_way_of_its_own_is_plain() -> None:
    class Named(nn.Parameter):
        pass

    h, _, b = of_layer()
    w = Named(torch.randn(V, D, dtype=torch.float64))
    assert not transforms.has_class(w)
    assert transforms.caller(h, w, b) == "eager"


# Of shapes, which are judged while tracing, torch warns that the program does not judge them again.
tracing = pytest.mark.filterwarnings(
    "ignore:`torch.jit.trace:FutureWarning",
    "ignore:`torch.jit.trace:DeprecationWarning",
    "ignore::torch.jit.TracerWarning",
)
TRACED: dict[str, tuple[Callable[..., Any], tuple[Tensor, ...]]] = {
    "a network": (MLP([D, 7, V]), (torch.randn(N, D),)),
    "a network in tiles": (MLP([D, 7, V], "gelu", tile_rows=2), (torch.randn(N, D),)),
    "cross-entropy": (LinearCrossEntropyLoss(D, V, chunk_rows=2), (torch.randn(N, 1, D), T[:, None])),
    "each row's cross-entropy": (LinearCrossEntropyLoss(D, V, reduction="none"), (torch.randn(N, 1, D), T[:, None])),
    "squared error": (DenseSquaredError(D, V, "gelu", chunk_rows=2), (torch.randn(N, D), torch.randn(N, V))),
}


@pytest.mark.parametrize("name", TRACED)
@pytest.mark.parametrize("grad_mode", [True, False])
@tracing
def test_what_is_traced_takes_any_number_of_rows(name: str, grad_mode: bool) -> None:
    module, given = TRACED[name]
    others = tuple(torch.cat([t, t, t[:1]]) for t in given)
    with torch.set_grad_enabled(grad_mode):
        traced = torch.jit.trace(module, given)
        torch.testing.assert_close(traced(*others), module(*others))
    torch.testing.assert_close(
        torch.autograd.grad(traced(*others).sum(), list(traced.parameters())),
        torch.autograd.grad(module(*others).sum(), list(module.parameters())),
    )


@tracing
def test_backprop_is_not_traced() -> None:
    with pytest.raises(RuntimeError, match="expected backprop outside of"):
        torch.jit.trace(lambda x: backprop(MLP([D, V]), x, T), (torch.randn(N, D),))
