"""Copied, changed, traced or given what no layer takes, a network does what its layers do."""

import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.fx.experimental.proxy_tensor import make_fx

from conditions import threads
from manual_mlp import MLP
from networks import D, N, V, assert_close, gradients, head, make, one_tile_or_more, rows_of, saved_by

# The module.


@pytest.mark.parametrize("make_twin", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))], ids=["copy", "pickle"])
def test_a_copy_has_the_same_tiles(device: str, make_twin: Callable[[MLP], MLP]) -> None:
    mlp, x = make(device, tile_rows=2), rows_of(device)
    mlp(x).sum().backward()
    twin = make_twin(mlp)
    assert twin.tile_rows == 2
    assert sorted(tuple(t.shape) for t in saved_by(lambda: twin(x)))[0] == (V,)
    assert_close(gradients(twin, x), gradients(mlp, x))


def test_the_rows_of_a_tile_are_checked_when_the_network_is_made() -> None:
    for tile_rows in (0, -1, 2.0, "2", True):
        with pytest.raises(ValueError, match="expected tile_rows to be an int from 1 up, or None, got"):
            MLP([D, V], tile_rows=tile_rows)


def swapped(mlp: MLP) -> None:
    """Change the classes of the layers, as FSDP does."""
    cls = type(mlp.layers[0])
    other = type(f"FSDP{cls.__name__}", (cls,), {"forward": lambda self, h: 2 * cls.forward(self, h)})
    for layer in mlp.layers:
        layer.__class__ = other


def computed(mlp: MLP) -> None:
    weight = mlp.layers[1].weight
    del mlp.layers[1].weight
    mlp.layers[1].weight = 2 * weight.detach()


def hooked(mlp: MLP) -> None:
    mlp.layers[1].register_forward_hook(lambda *args: 2 * args[-1])


def overridden(mlp: MLP) -> None:
    forward = mlp.layers[1].forward
    mlp.layers[1].forward = lambda h: 2 * forward(h)


CHANGES: dict[str, Callable[[MLP], None]] = {
    "classes swapped": swapped,
    "a weight that is no parameter": computed,
    "a hook": hooked,
    "a forward of its own": overridden,
    "replaced": lambda mlp: mlp.layers.__setitem__(1, nn.Linear(7, 6, dtype=torch.float64)),
    "parametrised": lambda mlp: nn.utils.parametrizations.weight_norm(mlp.layers[1]) and None,
}


@pytest.mark.parametrize("change", CHANGES)
@one_tile_or_more
def test_a_changed_network_runs_layer_by_layer(change: str, tile_rows: int | None) -> None:
    mlp, x = make("cpu", tile_rows=tile_rows), rows_of("cpu")
    before = mlp(x)
    CHANGES[change](mlp)
    h = x
    for layer in mlp.layers:
        h = layer(h)
    parameters = [x, *mlp.parameters()]
    assert_close(mlp(x), h)
    mine, theirs = (torch.autograd.grad(head(y), parameters) for y in (mlp(x), h))
    assert_close(mine, theirs)
    assert change == "parametrised" or not torch.allclose(mlp(x), before)


def test_a_hook_of_every_module_runs_on_every_layer(device: str) -> None:
    mlp, x, seen = make(device), rows_of(device), []
    handle = nn.modules.module.register_module_forward_hook(lambda module, *_: seen.append(module))
    try:
        mlp(x)
    finally:
        handle.remove()
    assert seen == [*mlp.layers, mlp]


@one_tile_or_more
def test_what_no_layer_takes_is_the_error_of_a_layer(tile_rows: int | None) -> None:
    mlp, x = make("cpu", tile_rows=tile_rows), rows_of("cpu").detach()
    given: list[tuple[Any, Any, str]] = [
        (x[:, :3], ValueError, r"expected input \(\*, 4\) for weight \(7, 4\), got \(7, 3\)"),
        (x.sum(), ValueError, r"expected input \(\*, 4\)"),
        (x.float(), TypeError, "expected one dtype"),
        (x.long(), TypeError, "floating-point dtype"),
        (x.to_sparse(), TypeError, "expected input of layout torch.strided"),
        (x.to("meta"), ValueError, "expected one device"),
        ("x", TypeError, "expected input to be a tensor, got str"),
        (None, TypeError, "expected input to be a tensor, got NoneType"),
    ]
    for wrong, error, message in given:
        with pytest.raises(error, match=message):
            mlp(wrong)
    mlp.layers[1].weight = nn.Parameter(mlp.layers[1].weight.detach().to_sparse())
    with pytest.raises(TypeError, match=r"expected weight of layout torch.strided, got torch.sparse_coo"):
        mlp(x)


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
def test_a_nested_input_is_the_error_of_a_layer() -> None:
    nested = torch.nested.nested_tensor([torch.randn(2, D).double(), torch.randn(3, D).double()])
    with pytest.raises(TypeError, match="got a nested tensor"):
        make("cpu")(nested)


@one_tile_or_more
def test_a_traced_network_is_the_network(tile_rows: int | None) -> None:
    mlp, x = make("cpu", tile_rows=tile_rows), rows_of("cpu").detach()
    traced = make_fx(lambda x: mlp(x))(x)
    other = torch.randn_like(x)
    with threads(2):
        assert_close(traced(other), mlp(other))


@one_tile_or_more
@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
@pytest.mark.filterwarnings("ignore:`torch.jit.trace")
def test_a_network_traced_by_jit_is_the_network_for_other_batches_too(tile_rows: int | None) -> None:
    mlp, x = make("cpu", tile_rows=tile_rows), rows_of("cpu").detach()
    traced = torch.jit.trace(mlp, (x,), check_trace=False)
    for rows in (N, 3):
        other = torch.randn(rows, D).double()
        assert_close(traced(other), mlp(other))
