"""backprop() runs the hooks of parameters and modules as loss.backward() does."""

import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from manual_mlp import MLP, backprop
from stepped import C, D, V, assert_as_torch, by_hand, by_torch, make, one_tile_or_more, rows_of, target_of, value

# Hooks on parameters.


@one_tile_or_more
def test_tensor_hooks_see_the_whole_gradient_and_may_change_it(device: str, tile_rows: int | None) -> None:
    mlp = make(device)
    mlp.layers[0].bias.requires_grad_(False)
    twin, x, seen = copy.deepcopy(mlp), rows_of(device), []
    t = target_of("cross_entropy", x)
    for model in (twin, mlp):
        model.layers[0].weight.register_hook(lambda g: seen.append(g.clone()) or 3 * g)
        model.layers[2].bias.register_hook(lambda g: g.clamp(-0.01, 0.01))
        model.layers[1].weight.grad = torch.ones_like(model.layers[1].weight)
        model.layers[0].weight.grad = torch.ones_like(model.layers[0].weight)
    value(twin.to_sequential()(x), t, "cross_entropy").backward()
    backprop(mlp, x, t, tile_rows=tile_rows)
    torch.testing.assert_close([p.grad for p in mlp.parameters()], [p.grad for p in twin.parameters()])
    assert len(seen) == 2
    torch.testing.assert_close(seen[1], seen[0])


@one_tile_or_more
def test_hooks_after_accumulation_run_once_and_may_step_and_clear(device: str, tile_rows: int | None) -> None:
    mlp = MLP([D, 6, 6, V], "tanh", dtype=torch.float64, device=device)
    mlp.layers[1].bias = mlp.layers[0].bias
    twin, x, seen = copy.deepcopy(mlp), rows_of(device).requires_grad_(), []
    t = target_of("cross_entropy", x)

    def step(p: Tensor) -> None:
        seen.append(p.shape)
        with torch.no_grad():
            p -= 0.1 * p.grad
        p.grad = None

    for model in (twin, mlp):
        for p in model.parameters():
            p.register_post_accumulate_grad_hook(step)
    value(twin.to_sequential()(x), t, "cross_entropy").backward()
    expected, x.grad = x.grad, None
    backprop(mlp, x, t, tile_rows=tile_rows)
    torch.testing.assert_close(list(mlp.parameters()), list(twin.parameters()))
    torch.testing.assert_close(x.grad, expected)
    assert sorted(seen[:5]) == sorted(seen[5:])
    assert all(p.grad is None for p in mlp.parameters())


def test_a_hook_for_many_parameters_gets_all_gradients_at_once(device: str) -> None:
    mlp, x, seen = make(device), rows_of(device), []
    torch.autograd.graph.register_multi_grad_hook(list(mlp.parameters()), lambda grads: seen.append(list(grads)))
    t = target_of("cross_entropy", x)
    expected = by_torch(mlp, x, t)[1:-1]
    for tile_rows in (2, None):
        backprop(mlp, x, t, tile_rows=tile_rows)
    for grads in seen:
        torch.testing.assert_close(grads, expected)
    assert len(seen) == 2


def test_hooks_that_were_removed_are_not_asked_for(device: str) -> None:
    mlp, x = make(device), rows_of(device)
    mlp.layers[0].weight.register_hook(lambda g: 3 * g).remove()
    mlp.layers[0].weight.register_post_accumulate_grad_hook(lambda p: None).remove()
    assert_as_torch(mlp, x, target_of("cross_entropy", x), tile_rows=2)


@pytest.mark.parametrize("where", ["network", "layer", "every module"])
@one_tile_or_more
def test_hooks_of_modules_run_and_may_change_what_they_see(device: str, where: str, tile_rows: int | None) -> None:
    plain, mlp, x = make(device), make(device), rows_of(device).requires_grad_()
    t, seen = target_of("cross_entropy", x), []
    module = mlp if where == "network" else mlp.layers[1]
    owner = torch.nn.modules.module if where == "every module" else module
    prefix = "register_module" if where == "every module" else "register"
    handles = [
        getattr(owner, f"{prefix}_forward_pre_hook")(lambda *_: seen.append("before")),
        getattr(owner, f"{prefix}_forward_hook")(lambda *args: seen.append("after") or 2 * args[-1]),
        getattr(owner, f"{prefix}_full_backward_hook")(lambda *_: seen.append("backward")),
    ]
    try:
        F.cross_entropy(mlp(x), t).backward()
        expected, before = [p.grad.clone() for p in mlp.parameters()], seen.copy()
        seen.clear()
        found = by_hand(mlp, x, t, tile_rows=tile_rows)
    finally:
        for handle in handles:
            handle.remove()
    torch.testing.assert_close(found[1:-1], expected)
    assert seen == before != []
    with pytest.raises(AssertionError):
        torch.testing.assert_close(found[1:-1], by_hand(plain, x, t)[1:-1])


def test_a_layer_that_was_compiled_is_called(device: str) -> None:
    torch.compiler.reset()
    calls = []

    def backend(module: Any, _: Any) -> Any:
        calls.append(module)
        return module.forward

    mlp, x = make(device), rows_of(device)
    expected = by_torch(mlp, x, C.to(device))
    mlp.layers[0].compile(backend=backend)
    torch.testing.assert_close(by_hand(mlp, x, C.to(device)), expected)
    assert calls


@one_tile_or_more
def test_a_backward_hook_of_the_input_runs(device: str, tile_rows: int | None) -> None:
    mlp, x = make(device), rows_of(device).requires_grad_()
    (expected,) = by_torch(mlp, x, C.to(device))[-1:]
    x.register_hook(lambda g: 4 * g)
    torch.testing.assert_close(by_hand(mlp, x, C.to(device), tile_rows=tile_rows)[-1], 4 * expected)
