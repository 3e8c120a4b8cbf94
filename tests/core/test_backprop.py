"""backprop() against loss.backward() through torch's own modules."""

import copy
import itertools
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.func import grad, jvp, vmap
from torch.nn.utils import parametrizations

from benchmarks.memory import peak_bytes
from manual_mlp import MLP, Activation, Dense, activations, backprop
from patience import SECONDS

N, D, V = 7, 4, 3
LOSSES = "cross_entropy", "squared_error", "binary_cross_entropy"
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
    if loss == "cross_entropy":
        return torch.randint(V, batch, device=x.device)
    return torch.rand(*batch, V, dtype=x.dtype, device=x.device)


def value(y: Tensor, t: Tensor, loss: str, reduction: str = "mean", **options: Any) -> Tensor:
    """Compute a loss by torch."""
    if loss == "squared_error":
        return 0.5 * F.mse_loss(y, t, reduction=reduction)
    if loss == "binary_cross_entropy":
        return F.binary_cross_entropy_with_logits(y, t, reduction=reduction, **options)
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


@contextmanager
def threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


# The answer is that of loss.backward().


@pytest.mark.parametrize("name", activations.names())
@every_loss
def test_every_activation_hidden_and_last_has_the_gradients_of_autograd(device: str, name: str, loss: str) -> None:
    x = rows_of(device).requires_grad_()
    t = target_of(loss, x)
    for bias, output in ((True, name), (False, None)):
        mlp = make(device, name, output, bias)
        for tile_rows in (1, 2, 5, None):
            if name != "hardsigmoid":
                assert_as_torch(mlp, x, t, loss, tile_rows=tile_rows)
            else:  # torch's own kernel takes 1/6 in float32
                found = by_hand(mlp, x, t, loss, tile_rows=tile_rows)
                torch.testing.assert_close(found, by_torch(mlp, x, t, loss), rtol=1e-6, atol=1e-9)


@every_loss
@every_reduction
@pytest.mark.parametrize("batch", [(), (1,), (2, 4), (3, 1, 2)], ids=str)
def test_an_input_of_any_dimensions_is_taken_row_by_row(
    device: str, loss: str, reduction: str, batch: tuple[int, ...]
) -> None:
    x = torch.randn(*batch, D, dtype=torch.float64, device=device, requires_grad=True)
    t = target_of(loss, x)
    gradient = torch.randn_like(value(torch.zeros(*batch, V).double().to(device), t, loss, reduction))
    for tile_rows in (1, 3, None):
        assert_as_torch(make(device), x, t, loss, reduction, gradient=gradient, tile_rows=tile_rows)


@pytest.mark.parametrize("workers", [1, 2, 3])
@every_loss
def test_any_number_of_threads_gives_the_gradients_of_autograd(device: str, workers: int, loss: str) -> None:
    x = rows_of(device, 23).requires_grad_()
    with threads(workers):
        for tile_rows in (1, 2, 5, 22, 23, 99):
            assert_as_torch(make(device, "gelu"), x, target_of(loss, x), loss, tile_rows=tile_rows)
        assert torch.get_num_threads() == workers


@every_loss
@one_tile_or_more
def test_an_empty_batch_has_the_loss_and_the_zero_gradients_of_torch(
    device: str, loss: str, tile_rows: int | None
) -> None:
    x = rows_of(device, 0).requires_grad_()
    for reduction in ("mean", "sum"):
        assert_as_torch(make(device), x, target_of(loss, x), loss, reduction, tile_rows=tile_rows)
    empty = torch.empty_like(value(x.new_empty(0, V), target_of(loss, x), loss, "none"))
    assert_as_torch(make(device), x, target_of(loss, x), loss, "none", gradient=empty, tile_rows=tile_rows)


LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "transposed": lambda x: x.mT.contiguous().mT,
    "every other column": lambda x: torch.cat([x, x], -1)[..., ::2],
    "expanded": lambda x: x[:1].expand_as(x),
    "reversed storage": lambda x: torch.cat([x, x])[1::2],
}


@pytest.mark.parametrize("layout", LAYOUTS)
@one_tile_or_more
def test_tensors_of_any_layout_are_read_right(device: str, layout: str, tile_rows: int | None) -> None:
    x, mlp = LAYOUTS[layout](rows_of(device)), make(device)
    t = LAYOUTS[layout](rows_of(device))[:, :V]
    mlp.layers[1].weight = nn.Parameter(mlp.layers[1].weight.detach().mT.contiguous().mT)
    assert not mlp.layers[1].weight.is_contiguous()
    assert_as_torch(mlp, x, t, "squared_error", tile_rows=tile_rows)


def test_one_layer_is_a_network_too(device: str) -> None:
    x = rows_of(device).requires_grad_()
    for output in (None, "tanh", "silu"):
        mlp = MLP([D, V], output_activation=output, dtype=torch.float64, device=device)
        for loss, tile_rows in itertools.product(LOSSES, (2, None)):
            assert_as_torch(mlp, x, target_of(loss, x), loss, tile_rows=tile_rows)


def test_a_users_activation_may_have_no_kernels(device: str) -> None:
    cubic = Activation(lambda z: z**3, lambda z: 3 * z**2, lambda z: 6 * z)
    same = Activation(lambda z: z, torch.ones_like, torch.zeros_like)
    x = rows_of(device).requires_grad_()
    for activation, output, tile_rows in itertools.product((cubic, same), (cubic, same), (2, None)):
        mlp = make(device, activation, output)
        for loss in LOSSES:
            assert_as_torch(mlp, x, target_of(loss, x), loss, tile_rows=tile_rows)


@one_tile_or_more
def test_the_gradients_are_the_finite_differences_of_the_loss(device: str, tile_rows: int | None) -> None:
    x, mlp = rows_of(device).requires_grad_(), make(device, "gelu", "sigmoid")
    t = target_of("squared_error", x)
    found = by_hand(mlp, x, t, "squared_error", "sum", tile_rows=tile_rows)[1:]
    assert_directional(mlp, x, found, lambda: backprop(mlp, x, t, "squared_error", "sum", tile_rows))


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


# Laws.


@every_loss
@every_reduction
def test_the_sum_over_tiles_does_not_depend_on_their_size(device: str, loss: str, reduction: str) -> None:
    x, mlp = rows_of(device, 13), make(device, "silu")
    t = target_of(loss, x)
    gradient = torch.randn_like(value(x.new_zeros(13, V), t, loss, reduction)) if reduction == "none" else None
    first, *others = (
        by_hand(mlp, x, t, loss, reduction, tile_rows=rows, gradient=gradient) for rows in (13, 1, 2, 3, 6, 12, 14)
    )
    for other in others:
        torch.testing.assert_close(other, first, rtol=0, atol=1e-12)


@one_tile_or_more
def test_what_grad_held_before_is_kept_and_added_to(device: str, tile_rows: int | None) -> None:
    x, mlp = rows_of(device), make(device)
    t = target_of("cross_entropy", x)
    once = by_hand(mlp, x, t, tile_rows=tile_rows)[1:-1]
    held = [p.grad for p in mlp.parameters()]
    once = [g.clone() for g in once]
    backprop(mlp, x, t, tile_rows=tile_rows)
    for p, before, g in zip(mlp.parameters(), held, once, strict=True):
        assert p.grad is before
        torch.testing.assert_close(p.grad, 2 * g, rtol=0, atol=1e-14)
    for p in mlp.parameters():
        p.grad = torch.full_like(p, 5.0)
    backprop(mlp, x, t, tile_rows=tile_rows, gradient=-1.0)
    torch.testing.assert_close([p.grad for p in mlp.parameters()], [5 - g for g in once], rtol=0, atol=1e-14)


def test_grads_of_any_layout_are_added_to(device: str) -> None:
    x, mlp = rows_of(device), make(device)
    t = target_of("cross_entropy", x)
    once = by_hand(mlp, x, t)[1:-1]
    for tile_rows in (2, None):
        for p in mlp.parameters():
            p.grad = p.new_ones(*p.shape, 2).transpose(0, -1)[0] if p.dim() == 1 else p.new_ones(p.T.shape).T
        backprop(mlp, x, t, tile_rows=tile_rows)
        torch.testing.assert_close([p.grad for p in mlp.parameters()], [1 + g for g in once], rtol=0, atol=1e-14)


@pytest.mark.parametrize("workers", [1, 2])
def test_the_same_call_twice_gives_the_same_bits(device: str, workers: int) -> None:
    mlp = MLP([33, 65, 64, 5], "gelu", dropout=0.2, device=device)
    x, t = torch.randn(203, 33, device=device), torch.randint(5, (203,), device=device)
    results = []
    with threads(workers):
        for _ in range(4):
            torch.manual_seed(3)
            results.append([g.clone() for g in by_hand(mlp, x, t, tile_rows=16)[:-1]])
    for other in results[1:]:
        assert all(map(torch.equal, other, results[0]))


# What requires grad.


@one_tile_or_more
def test_every_subset_of_frozen_parameters_gets_no_gradient(device: str, tile_rows: int | None) -> None:
    mlp, t = make(device), torch.randint(V, (N,), device=device)
    parameters = list(mlp.parameters())
    for needed in itertools.product((True, False), repeat=len(parameters)):
        for p, need in zip(parameters, needed, strict=True):
            p.requires_grad_(need)
        for need in (True, False):
            if need or any(needed):
                assert_as_torch(mlp, rows_of(device).requires_grad_(need), t, tile_rows=tile_rows)


@one_tile_or_more
def test_nothing_that_requires_grad_is_an_error_as_for_backward(device: str, tile_rows: int | None) -> None:
    mlp, x = make(device).requires_grad_(False), rows_of(device)
    replaced = make(device).requires_grad_(False)
    replaced.layers[0] = nn.Linear(D, 7, dtype=torch.float64, device=device).requires_grad_(False)
    for model in (mlp, replaced):
        with pytest.raises(RuntimeError, match="requires grad"):
            backprop(model, x, target_of("cross_entropy", x), tile_rows=tile_rows)
    backprop(mlp, x.requires_grad_(), target_of("cross_entropy", x), tile_rows=tile_rows)
    assert x.grad.abs().sum() > 0


@pytest.mark.parametrize("what", ["weight", "bias", "layer"])
@pytest.mark.parametrize("tile_rows", [1, 3, None])
def test_a_parameter_of_two_layers_gets_the_sum(device: str, what: str, tile_rows: int | None) -> None:
    mlp = MLP([D, 6, 6, 6, V], "tanh", dtype=torch.float64, device=device)
    if what == "layer":
        mlp.layers[2] = mlp.layers[1]
    else:
        setattr(mlp.layers[2], what, getattr(mlp.layers[1], what))
    x = rows_of(device).requires_grad_()
    for workers in (1, 2):
        with threads(workers):
            assert_as_torch(mlp, x, target_of("squared_error", x), "squared_error", tile_rows=tile_rows)


@one_tile_or_more
def test_the_gradient_flows_on_through_an_input_that_was_computed(device: str, tile_rows: int | None) -> None:
    first, mlp, x = nn.Linear(D, D, dtype=torch.float64, device=device), make(device), rows_of(device)
    t = target_of("cross_entropy", x)
    value(mlp.to_sequential()(first(x).sin()), t, "cross_entropy").backward()
    expected = [p.grad for p in (*first.parameters(), *mlp.parameters())]
    for p in (*first.parameters(), *mlp.parameters()):
        p.grad = None
    h = first(x).sin()
    h.retain_grad()
    backprop(mlp, h, t, tile_rows=tile_rows)
    torch.testing.assert_close([p.grad for p in (*first.parameters(), *mlp.parameters())], expected)
    assert h.grad is not None


@one_tile_or_more
def test_parameters_may_have_a_part_in_the_input_too(device: str, tile_rows: int | None) -> None:
    mlp = MLP([D, 5, D], "tanh", dtype=torch.float64, device=device)
    twin, x, seen = copy.deepcopy(mlp), rows_of(device), []
    t, model = torch.randn_like(x), twin.to_sequential()
    for p in (mlp.layers[0].weight, twin.layers[0].weight):
        p.register_post_accumulate_grad_hook(lambda p: seen.append(p))
    value(model(model(x)), t, "squared_error").backward()
    backprop(mlp, mlp(x), t, "squared_error", tile_rows=tile_rows)
    torch.testing.assert_close([p.grad for p in mlp.parameters()], [p.grad for p in twin.parameters()])
    assert [id(p) for p in seen] == [id(twin.layers[0].weight), id(mlp.layers[0].weight)]


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


# What comes back, and what came in.


@every_loss
@every_reduction
@one_tile_or_more
def test_the_output_comes_back_with_the_loss_and_both_are_detached(
    device: str, loss: str, reduction: str, tile_rows: int | None
) -> None:
    x = rows_of(device, 2, 3).requires_grad_()
    t = target_of(loss, x)
    for output in (None, "tanh", "silu"):
        mlp = make(device, output=output)
        expected = mlp.to_sequential()(x)
        loss_of_torch = value(expected, t, loss, reduction)
        gradient = torch.ones_like(loss_of_torch) if reduction == "none" else None
        found, y = backprop(mlp, x, t, loss, reduction, tile_rows, gradient=gradient, return_output=True)
        torch.testing.assert_close([found, y], [loss_of_torch.detach(), expected.detach()], rtol=0, atol=1e-12)
        assert not found.requires_grad
        assert not y.requires_grad


@every_loss
@one_tile_or_more
@pytest.mark.parametrize("gradient", [2.5, 0, torch.tensor(-0.5), torch.tensor(65536.0, requires_grad=True)], ids=str)
def test_the_gradient_of_a_scalar_loss_scales_all_gradients(
    device: str, loss: str, tile_rows: int | None, gradient: Any
) -> None:
    x = rows_of(device).requires_grad_()
    for reduction in ("mean", "sum"):
        t = target_of(loss, x)
        expected = by_torch(make(device), x, t, loss, reduction, gradient=gradient)
        found = by_hand(make(device), x, t, loss, reduction, tile_rows=tile_rows, gradient=gradient)
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


CLASSES = torch.tensor([0, 2, 1, 1, 0, 2, 2])
WEIGHT = torch.tensor([0.5, 2.0, 1.25], dtype=torch.float64)
OPTIONS: list[tuple[str, Tensor | None, dict[str, Any]]] = [
    ("cross_entropy", CLASSES, {"weight": WEIGHT}),
    ("cross_entropy", CLASSES, {"ignore_index": 2}),
    ("cross_entropy", torch.where(CLASSES == 2, -100, CLASSES), {}),
    ("cross_entropy", torch.where(CLASSES == 2, -5, CLASSES), {"ignore_index": -5, "weight": WEIGHT}),
    ("cross_entropy", CLASSES, {"label_smoothing": 0.3}),
    ("cross_entropy", CLASSES, {"label_smoothing": 1.0}),
    ("cross_entropy", CLASSES, {"label_smoothing": 0.2, "weight": WEIGHT, "ignore_index": 0}),
    ("cross_entropy", torch.full((N,), 2), {"ignore_index": 2, "label_smoothing": 0.2}),
    ("cross_entropy", None, {}),
    ("cross_entropy", None, {"label_smoothing": 0.3, "weight": WEIGHT}),
    ("cross_entropy", CLASSES, {"weight": torch.zeros(V, dtype=torch.float64)}),
    ("binary_cross_entropy", None, {"pos_weight": 3 * WEIGHT}),
    ("binary_cross_entropy", None, {"weight": WEIGHT}),
    ("binary_cross_entropy", None, {"weight": torch.linspace(0, 2, N).double()[:, None], "pos_weight": WEIGHT}),
]


@pytest.mark.parametrize(("loss", "target", "options"), OPTIONS, ids=lambda o: str(o) if type(o) is dict else "")
@every_reduction
def test_the_options_of_a_loss_are_torchs(
    device: str, loss: str, target: Tensor | None, options: dict[str, Any], reduction: str
) -> None:
    x = rows_of(device).requires_grad_()
    t = torch.rand(N, V).double() if target is None else target
    options = {name: o.to(device) if isinstance(o, Tensor) else o for name, o in options.items()}
    per = value(x.new_zeros(N, V), t.to(device), loss, reduction, **options)
    gradient = torch.randn_like(per) if reduction == "none" else None
    for tile_rows in (1, 2, 5, None):
        assert_as_torch(
            make(device), x, t.to(device), loss, reduction, gradient=gradient, tile_rows=tile_rows, **options
        )


@pytest.mark.parametrize("tile_rows", [1, 2, None])
def test_a_mean_over_no_row_is_nan_without_a_gradient(device: str, tile_rows: int | None) -> None:
    mlp, x = make(device), rows_of(device).requires_grad_()
    found, *gradients = by_hand(mlp, x, torch.full((N,), 2, device=device), tile_rows=tile_rows, ignore_index=2)
    assert found.isnan()
    assert not any(g.any() for g in gradients)


def huber(y: Tensor, t: Tensor) -> Tensor:
    return F.huber_loss(y, t, reduction="none").sum(-1)


PAIR = huber, lambda y, t: (y - t).clamp(-1, 1)


@every_reduction
@pytest.mark.parametrize("tile_rows", [1, 2, None])
def test_a_users_pair_has_the_gradients_of_its_value(device: str, reduction: str, tile_rows: int | None) -> None:
    mlp, x = make(device), rows_of(device, 2, 4).requires_grad_()
    t = 2 * torch.randn(2, 4, V, dtype=torch.float64, device=device)
    twin, leaf = copy.deepcopy(mlp), x.detach().clone().requires_grad_()
    expected = huber(twin.to_sequential()(leaf), t)
    expected = {"none": expected, "mean": expected.mean(), "sum": expected.sum()}[reduction]
    gradient = torch.randn_like(expected) if reduction == "none" else None
    expected.backward(gradient)
    found = by_hand(mlp, x, t, PAIR, reduction, tile_rows=tile_rows, gradient=gradient)
    torch.testing.assert_close(found, [expected.detach(), *(p.grad for p in twin.parameters()), leaf.grad])


def test_a_pair_may_return_tensors_it_keeps_and_compute_delta_by_autograd(device: str) -> None:
    mlp, x, kept = make(device), rows_of(device), []
    t = target_of("squared_error", x)

    def delta(y: Tensor, t: Tensor) -> Tensor:
        with torch.enable_grad():
            y = y.detach().requires_grad_()
            (found,) = torch.autograd.grad(huber(y, t).sum(), y)
        kept.append((found, found.clone()))
        return found

    for tile_rows in (2, None):
        found = by_hand(mlp, x, t, (huber, delta), tile_rows=tile_rows)
        torch.testing.assert_close(found, by_hand(mlp, x, t, PAIR))
    assert all(torch.equal(*pair) for pair in kept)


def test_a_pair_may_compare_rows_with_targets_of_any_shape(device: str) -> None:
    mlp, x = make(device), rows_of(device, 2, 4)
    kinds = torch.randint(V, (2, 4), device=device)
    pair = (
        lambda y, t: F.cross_entropy(y, t, reduction="none"),
        lambda y, t: torch.softmax(y, -1) - F.one_hot(t, V),
    )
    for tile_rows in (3, None):
        expected = by_torch(mlp, x, kinds)
        torch.testing.assert_close(by_hand(mlp, x, kinds, pair, tile_rows=tile_rows), expected)


def test_a_pair_may_call_backprop_itself() -> None:
    code = (
        "import torch\nfrom manual_mlp import MLP, backprop\ntorch.set_num_threads(2)\n"
        "inner, outer = MLP([3, 3]), MLP([4, 7, 3])\nx, t = torch.randn(8, 4), torch.randn(8, 3)\n"
        "def delta(y, t):\n    backprop(inner, y, t, 'squared_error', tile_rows=1)\n    return y - t\n"
        "backprop(outer, x, t, (lambda y, t: (y - t).square().sum(-1), delta), tile_rows=2)"
    )
    assert run_alone(code) == 0


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
REFUSED: list[tuple[Callable[..., Any], Any, str]] = [
    (lambda m, x: backprop(m, x, C.to(x.device), "hinge"), ValueError, "among cross_entropy, squared_error, binary"),
    (lambda m, x: backprop(m, x, C.to(x.device), None), TypeError, "expected a loss by name, or a pair .* got None"),
    (lambda m, x: backprop(m, x, C.to(x.device), (huber,)), TypeError, "or a pair of functions"),
    (lambda m, x: backprop(m, x, C.to(x.device), (huber, 1)), TypeError, "or a pair of functions"),
    (lambda m, x: backprop(m, x, C.to(x.device), reduction="avg"), ValueError, "'none', 'mean' or 'sum', got 'avg'"),
    (lambda m, x: backprop(m, x, C.to(x.device), tile_rows=0), ValueError, "tile_rows to be an int from 1 .* got 0"),
    (lambda m, x: backprop(m, x, C.to(x.device), tile_rows=-3), ValueError, "tile_rows to be an int from 1"),
    (lambda m, x: backprop(m, x, C.to(x.device), tile_rows=2.0), ValueError, "tile_rows to be an int from 1"),
    (lambda m, x: backprop(m, x, C.to(x.device), pos_weight=C), TypeError, "options among weight, ignore_index, label"),
    (lambda m, x: backprop(m, x, x[:, :V].detach(), "squared_error", weight=1), TypeError, "options among none"),
    (lambda m, x: backprop(m, x, C.to(x.device), PAIR, weight=1), TypeError, "options among none"),
    (lambda m, x: backprop(m, x, C.to(x.device), label_smoothing=2.0), ValueError, "label_smoothing from 0 to 1"),
    (lambda m, x: backprop(m, x, C.to(x.device), weight=sized(x.device, 4)), ValueError, r"weight \(3,\)"),
    (lambda m, x: backprop(m, x, C[:3].to(x.device)), ValueError, r"expected target \(7,\) of classes, got \(3,\)"),
    (lambda m, x: backprop(m, x, C.to(x.device)[:, None]), ValueError, r"expected target \(7,\) of classes"),
    (lambda m, x: backprop(m, x, C.to(x.device).int()), TypeError, "expected target .* int64 or uint8 classes"),
    (lambda m, x: backprop(m, x, sized(x.device, N, 4)), ValueError, r"expected target \(7, 3\), got \(7, 4\)"),
    (lambda m, x: backprop(m, x, sized(x.device, N), "squared_error"), ValueError, r"expected target \(7, 3\)"),
    (
        lambda m, x: backprop(m, x, sized(x.device, N, V).cfloat(), "squared_error"),
        TypeError,
        "target to be a tensor of real numbers",
    ),
    (lambda m, x: backprop(m, x, sized(x.device, 1, V), "binary_cross_entropy"), ValueError, r"expected target \(7, 3"),
    (lambda m, x: backprop(m, x, None), TypeError, "expected target"),
    (lambda m, x: backprop(m, x, C.to("meta")), ValueError, "expected target on"),
    (lambda m, x: backprop(m, x, sized(x.device, 4, V), PAIR), ValueError, r"expected target \(7, '...'\), got \(4, 3"),
    (lambda m, x: backprop(m, x, [1.0] * N, PAIR), TypeError, "expected target to be a tensor, got list"),
    (lambda m, x: backprop(m, x, x[:, :V], "squared_error"), ValueError, "a target that requires no grad"),
    (lambda m, x: backprop(m, x, x[:, :V], PAIR), ValueError, "a target that requires no grad"),
    (lambda m, x: backprop(m, x[:, :3], C.to(x.device)), ValueError, r"expected input \(\*, 4\) for weight \(7, 4\)"),
    (lambda m, x: backprop(m, x.float(), C.to(x.device)), TypeError, "expected one dtype"),
    (lambda m, x: backprop(m, C, C), TypeError, "floating-point dtype"),
    (lambda m, x: backprop(m, x.detach().to_sparse(), C.to(x.device)), TypeError, "layout torch.strided"),
    (lambda m, x: backprop(m, "x", C), TypeError, "expected input to be a tensor, got str"),
    (lambda m, x: backprop(m, x.sum(), C), ValueError, r"expected input \(\*, 4\)"),
    (lambda m, x: backprop(m, x, C.to(x.device), reduction="none"), ValueError, r"a gradient \(7,\) for the loss"),
    (lambda m, x: backprop(m, x, C.to(x.device), gradient=sized(x.device, 1)), ValueError, r"a gradient \(\) for"),
    (
        lambda m, x: backprop(m, x, sized(x.device, N, V), "binary_cross_entropy", "none", gradient=sized(x.device, N)),
        ValueError,
        r"expected a gradient \(7, 3\) for the loss, got \(7,\)",
    ),
    (
        lambda m, x: backprop(
            m, x, sized(x.device, N, V), "binary_cross_entropy", pos_weight=sized(x.device, V).requires_grad_()
        ),
        ValueError,
        "requires no grad",
    ),
    (
        lambda m, x: backprop(m, x, sized(x.device, N, V), weight=sized(x.device, V).requires_grad_()),
        ValueError,
        "requires no grad",
    ),
]


@pytest.mark.parametrize(("call", "error", "message"), REFUSED, ids=[m for _, _, m in REFUSED])
def test_what_does_not_fit_is_refused_and_nothing_is_lost(
    device: str, call: Callable[..., Any], error: Any, message: str
) -> None:
    refused(device, call, error, message)


PAIRS: dict[str, tuple[Any, Any, str]] = {
    "value of a scalar": (lambda y, t: huber(y, t).sum(), ValueError, r"expected a value for each of \d rows"),
    "value of entries": (lambda y, t: y - t, ValueError, r"expected a value for each of \d rows, got \(\d, 3\)"),
    "value that is no tensor": (lambda y, t: 1.0, TypeError, "expected .*tensor.* got float"),
}


@pytest.mark.parametrize("tile_rows", [1, 2, None])
def test_a_pair_of_wrong_shapes_is_refused_and_nothing_is_lost(device: str, tile_rows: int | None) -> None:
    t = sized(device, N, V)
    for of_value, error, message in PAIRS.values():
        refused(device, lambda m, x, v=of_value: backprop(m, x, t, (v, PAIR[1]), tile_rows=tile_rows), error, message)
    for delta in (lambda y, t: y.sum(-1), lambda y, t: y.mT if len(y) != V else y[:, :1], lambda y, t: y[:0]):
        pair = huber, delta
        refused(device, lambda m, x, p=pair: backprop(m, x, t, p, tile_rows=tile_rows), ValueError, "expected delta")
    pair = huber, lambda y, t: None
    refused(device, lambda m, x: backprop(m, x, t, pair, tile_rows=tile_rows), TypeError, "expected .*tensor")


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("row", [0, 3, N - 1])
def test_a_class_out_of_range_in_any_tile_is_refused_and_nothing_is_lost(workers: int, row: int) -> None:
    with threads(workers):
        for tile_rows, options in itertools.product(
            (1, 2, 5, None), ({}, {"label_smoothing": 0.1}, {"weight": WEIGHT})
        ):
            for wrong in (V, -1):
                t = torch.where(torch.arange(N) == row, wrong, 0)
                refused(
                    "cpu",
                    lambda m, x, t=t, r=tile_rows, o=options: backprop(m, x, t, tile_rows=r, **o),
                    IndexError,
                    "out of bounds",
                )


@pytest.mark.parametrize("workers", [1, 2, 3])
def test_a_pair_that_raises_in_any_tile_loses_nothing_and_the_threads_work_on(device: str, workers: int) -> None:
    t = torch.arange(N, dtype=torch.float64, device=device)[:, None].expand(N, V)

    def raising(at: int) -> Any:
        def delta(y: Tensor, t: Tensor) -> Tensor:
            if (t == at).any():
                raise ZeroDivisionError(f"row {at}")
            return y - t

        return huber, delta

    with threads(workers):
        for tile_rows, at in itertools.product((1, 2, None), (0, 3, N - 1)):
            refused(
                device,
                lambda m, x, r=tile_rows, a=at: backprop(m, x, t, raising(a), tile_rows=r),
                ZeroDivisionError,
                f"row {at}",
            )
            assert_as_torch(make(device), rows_of(device), t.contiguous(), "squared_error", tile_rows=tile_rows)


def test_a_network_that_returns_no_tensor_is_refused(device: str) -> None:
    class Two(nn.Module):
        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            return x, x

    with pytest.raises(TypeError, match="expected a module that returns a tensor, got tuple"):
        backprop(Two(), rows_of(device).requires_grad_(), C.to(device))


# Dropout.


@pytest.mark.parametrize("dropout", [0.3, (0.0, 0.5), 1.0], ids=str)
@pytest.mark.parametrize("tile_rows", [1, 2, 3, None])
@pytest.mark.parametrize("workers", [1, 2])
def test_dropout_has_one_mask_forward_and_backward(
    device: str, dropout: Any, tile_rows: int | None, workers: int
) -> None:
    x, mlp = rows_of(device).requires_grad_(), make(device, "gelu", dropout=dropout)
    t = target_of("cross_entropy", x)

    def loss() -> Tensor:
        torch.manual_seed(5)
        return backprop(mlp, x, t, tile_rows=tile_rows)

    with threads(workers):
        loss()
        gradients = [p.grad for p in (*mlp.parameters(), x)]
        for p in (*mlp.parameters(), x):
            p.grad = None
        assert_directional(mlp, x, gradients, loss)


def test_dropout_draws_for_every_tile_anew_and_does_not_depend_on_threads(device: str) -> None:
    mlp = MLP([D, 64, V], "identity", dropout=0.5, dtype=torch.float64, device=device)
    x = rows_of(device, 1).expand(8, D)
    t = torch.zeros(8, V, dtype=torch.float64, device=device)
    outputs = []
    for workers in (1, 2, 3):
        with threads(workers):
            torch.manual_seed(3)
            outputs.append(backprop(mlp, x, t, "squared_error", tile_rows=1, return_output=True)[1])
            again = backprop(mlp, x, t, "squared_error", tile_rows=1, return_output=True)[1]
    assert len(outputs[0].unique(dim=0)) == 8
    assert len(torch.cat([outputs[0], again]).unique(dim=0)) == 16
    for other in outputs[1:]:
        torch.testing.assert_close(other, outputs[0])


def test_dropout_rests_in_evaluation_mode(device: str) -> None:
    x, mlp = rows_of(device), make(device, dropout=0.5).eval()
    state = torch.get_rng_state()
    for tile_rows in (2, None):
        assert_as_torch(mlp, x, target_of("squared_error", x), "squared_error", tile_rows=tile_rows)
    torch.manual_seed(0)
    before = torch.get_rng_state()
    backprop(mlp, x, torch.zeros(N, V, dtype=torch.float64, device=device), "squared_error", tile_rows=2)
    assert torch.equal(torch.get_rng_state(), before)
    torch.set_rng_state(state)


# Networks that are called as they are.


class Doubled(MLP):
    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input) * 2


class Halved(MLP):
    def __call__(self, input: Tensor) -> Tensor:
        return super().__call__(input) / 2


class Chained(nn.Module):
    """A module whose ``chain`` is its own affair."""

    def __init__(self) -> None:
        super().__init__()
        self.chain = nn.Sequential(nn.Linear(D, V))

    def forward(self, input: Tensor) -> Tensor:
        return self.chain(input)


class Wrapper(nn.Module):
    """A module that shows the attributes of another, as FSDP does."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(self._modules["inner"], name)

    def forward(self, input: Tensor) -> Tensor:
        return 3 * self.inner(input)


class Own(Tensor):
    pass


def replaced() -> MLP:
    mlp = MLP([D, 7, 6, V], "gelu")
    mlp.layers[1] = nn.Linear(7, 6)
    return mlp


def computed() -> MLP:
    mlp = MLP([D, 7, 6, V], "gelu")
    weight = mlp.layers[1].weight
    del mlp.layers[1].weight
    mlp.layers[1].base = weight
    mlp.layers[1].weight = weight * 2
    return mlp


def buffered() -> MLP:
    mlp = MLP([D, 7, 6, V], "gelu")
    weight = mlp.layers[1].weight.detach()
    del mlp.layers[1].weight
    mlp.layers[1].register_buffer("weight", weight)
    return mlp


def parametrised() -> MLP:
    mlp = MLP([D, 7, 6, V], "gelu")
    parametrizations.weight_norm(mlp.layers[1])
    return mlp


def subclassed() -> MLP:
    mlp = MLP([D, 7, 6, V], "gelu")
    mlp.layers[1].weight = nn.Parameter(mlp.layers[1].weight.detach().as_subclass(Own))
    return mlp


def overridden() -> MLP:
    mlp = MLP([D, 7, 6, V], "gelu")
    forward = mlp.layers[1].forward
    mlp.layers[1].forward = lambda input: 2 * forward(input)
    return mlp


def of_a_subclass() -> MLP:
    class Shifted(Dense):
        def forward(self, input: Tensor) -> Tensor:
            return super().forward(input) + 1

    mlp = MLP([D, 7, 6, V], "gelu")
    mlp.layers[1] = Shifted(7, 6, "gelu")
    return mlp


AS_THEY_ARE: dict[str, Callable[[], nn.Module]] = {
    "a layer replaced": replaced,
    "a weight that is computed": computed,
    "a weight that is a buffer": buffered,
    "a parametrisation": parametrised,
    "a tensor subclass": subclassed,
    "a layer with a forward of its own": overridden,
    "a layer of a subclass": of_a_subclass,
    "a subclass with another forward": lambda: Doubled([D, 7, 6, V], "gelu"),
    "a subclass with another call": lambda: Halved([D, 7, 6, V], "gelu"),
    "a wrapper that shows the network's attributes": lambda: Wrapper(MLP([D, 7, 6, V], "gelu")),
    "a module with a chain": Chained,
    "another network": lambda: nn.Sequential(nn.Linear(D, 7), nn.LayerNorm(7), nn.GELU(), nn.Linear(7, V)),
    "no hidden units": lambda: MLP([D, 0, V], "gelu"),
}


@pytest.mark.parametrize("name", AS_THEY_ARE)
@one_tile_or_more
def test_a_changed_network_has_the_gradients_of_loss_backward(device: str, name: str, tile_rows: int | None) -> None:
    network = AS_THEY_ARE[name]().double().to(device)
    if name == "a weight that is computed":
        network.layers[1].weight = network.layers[1].base * 2
    x = rows_of(device).requires_grad_()
    t = target_of("cross_entropy", x)
    expected = F.cross_entropy(network(x), t)
    expected.backward(retain_graph=True)
    gradients = [None if p.grad is None else p.grad.clone() for p in (*network.parameters(), x)]
    if name == "a weight that is computed":
        network.layers[1].weight = network.layers[1].base * 2
    found = by_hand(network, x, t, tile_rows=tile_rows)
    torch.testing.assert_close(found, [expected.detach(), *gradients], rtol=0, atol=1e-12)


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


# Threads and processes.


def test_the_number_of_threads_stays_in_every_thread(device: str) -> None:
    seen: list[int] = []
    with threads(3):
        backprop(make(device), rows_of(device), C.to(device), tile_rows=1)
        assert torch.get_num_threads() == 3
        other = threading.Thread(target=lambda: seen.append(torch.get_num_threads()))
        other.start()
        other.join()
    assert seen == [3]


def test_several_threads_may_call_at_once() -> None:
    x, found = rows_of("cpu", 40), {}
    cases = [(make("cpu", "gelu"), torch.full((40,), k % V), 1 + k) for k in range(4)]

    def call(k: int) -> None:
        mlp, t, tile_rows = cases[k]
        for _ in range(5):
            for p in mlp.parameters():
                p.grad = None
            backprop(mlp, x, t, tile_rows=tile_rows)
        found[k] = [p.grad for p in mlp.parameters()]

    expected = {k: by_torch(mlp, x, t)[1:-1] for k, (mlp, t, _) in enumerate(cases)}
    with threads(2):
        callers = [threading.Thread(target=call, args=(k,)) for k in range(4)]
        for caller in callers:
            caller.start()
        for caller in callers:
            caller.join(SECONDS)
    assert found.keys() == expected.keys()
    for k, gradients in expected.items():
        torch.testing.assert_close(found[k], gradients)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_forked_child_computes_with_threads_of_its_own() -> None:
    # Close, not equal: a product's last bits are the library's, and may change after its first call in a process.
    code = (
        "import os, signal, sys, torch\nfrom manual_mlp import MLP, backprop\ntorch.set_num_threads(2)\n"
        "mlp, x, t = MLP([4, 7, 3]), torch.randn(64, 4), torch.zeros(64, dtype=torch.int64)\n"
        "def step():\n    mlp.zero_grad()\n    backprop(mlp, x, t, tile_rows=4)\n    return mlp.layers[0].weight.grad\n"
        "expected = step().clone()\nchild = os.fork()\n"
        f"if not child:\n    signal.alarm({SECONDS})\n"
        "torch.testing.assert_close(step(), expected)\n"
        "sys.exit(child and os.waitpid(child, 0)[1] != 0)"
    )
    assert run_alone(code) == 0


def returning(view: Callable[[Tensor], Tensor]) -> Activation:
    """Make a straight-through step: f gives z back, or a view of it, and f′ is another function's."""
    return Activation(view, torch.sigmoid, lambda z: torch.sigmoid(z) * (1 - torch.sigmoid(z)), name="through")


@pytest.mark.parametrize("view", [lambda z: z, lambda z: z.view(z.shape)], ids=["z itself", "a view of z"])
@pytest.mark.parametrize("tile_rows", [None, 2])
@every_loss
def test_an_output_function_that_returns_z_keeps_its_slope(
    device: str, view: Callable[[Tensor], Tensor], tile_rows: int | None, loss: str
) -> None:
    mlp = make(device, "tanh", returning(view))
    x = rows_of(device)
    t, y = target_of(loss, x), x
    for layer in mlp.layers:
        y = layer(y)
    expected = torch.autograd.grad(value(y, t, loss), list(mlp.parameters()))
    torch.testing.assert_close(by_hand(mlp, x, t, loss, tile_rows=tile_rows)[1:-1], list(expected))


@pytest.mark.parametrize("view", [lambda z: z, lambda z: z.view(z.shape)], ids=["z itself", "a view of z"])
@pytest.mark.parametrize("tile_rows", [None, 2])
def test_an_output_function_that_returns_z_has_its_second_derivative(
    device: str, view: Callable[[Tensor], Tensor], tile_rows: int | None
) -> None:
    mlp = make(device, "tanh", returning(view), tile_rows=tile_rows)
    x = rows_of(device).requires_grad_()

    def by_layers(h: Tensor) -> Tensor:
        for layer in mlp.layers:
            h = layer(h)
        return h

    def second(f: Callable[[Tensor], Tensor]) -> Tensor:
        (first,) = torch.autograd.grad(f(x).square().sum(), x, create_graph=True)
        return torch.autograd.grad(first.square().sum(), x)[0]

    torch.testing.assert_close(second(mlp), second(by_layers))


def test_a_worker_stops_when_another_has_failed() -> None:
    calls = []

    def value(y: Tensor, t: Tensor) -> Tensor:
        calls.append(len(y))
        if t[0, 0] < 0:
            raise ZeroDivisionError
        return y.square().sum(1)

    mlp, x, t = make("cpu"), rows_of("cpu", 4000), torch.zeros(4000, V, dtype=torch.float64)
    t[:2] = -1
    with threads(2), pytest.raises(ZeroDivisionError):
        backprop(mlp, x, t, (value, lambda y, t: 2 * y), tile_rows=2)
    assert len(calls) < 1000
    assert all(p.grad is None for p in mlp.parameters())


def test_dropout_in_tiles_draws_from_the_inputs_device_alone() -> None:
    mlp, x = make("cpu", dropout=0.5), rows_of("cpu")
    with torch.device("meta"):
        loss = backprop(mlp, x, target_of("cross_entropy", x.cpu()), tile_rows=2)
    assert loss.device.type == "cpu"


def test_a_workers_operations_stay_on_its_thread() -> None:
    seen = set()

    def value(y: Tensor, t: Tensor) -> Tensor:
        seen.add((threading.current_thread().name, torch.get_num_threads()))
        return y.square().sum(1)

    with threads(2):
        backprop(make("cpu"), rows_of("cpu", 64), torch.zeros(64, V), (value, lambda y, t: 2 * y), tile_rows=4)
        assert torch.get_num_threads() == 2
    assert {count for _, count in seen} == {1}
    assert threading.current_thread().name not in {name for name, _ in seen}
