"""MLP.forward as one Function: against torch's own modules, tile by tile and at once."""

import copy
import itertools
import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from conditions import threads
from manual_mlp import MLP, activations
from networks import D, N, V, assert_close, gradients, head, make, one_tile_or_more, rows_of, second_order
from patience import SECONDS


@pytest.mark.parametrize("name", activations.names())
def test_every_activation_has_the_gradients_of_torchs_layers(device: str, name: str) -> None:
    x = rows_of(device)
    # torch's own hardsigmoid takes 1/6 in float32.
    atol = 1e-6 if name == "hardsigmoid" else 1e-12
    for tile_rows, bias, output in itertools.product((1, 2, 5, None), (True, False), (name, None)):
        mlp = make(device, name, tile_rows, bias=bias, output_activation=output)
        model = mlp.to_sequential()
        assert_close(mlp(x), model(x))
        assert_close(gradients(mlp, x), gradients(model, x), atol)


@pytest.mark.parametrize("name", activations.names())
@one_tile_or_more
def test_every_activation_has_the_second_derivatives_of_its_layers_in_turn(
    device: str, name: str, tile_rows: int | None
) -> None:
    mlp, x = make(device, name, tile_rows, output_activation=name), rows_of(device)

    class Chain(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = mlp.layers

        def forward(self, h: Tensor) -> Tensor:
            for layer in self.layers:
                h = layer(h)
            return h

    assert_close(second_order(mlp, x), second_order(Chain(), x), 1e-9)


@pytest.mark.parametrize("batch", [(), (1,), (0,), (2, 4), (3, 0, 2), (3, 1, 2)], ids=str)
@pytest.mark.parametrize("tile_rows", [1, 3, None])
def test_an_input_of_any_dimensions_is_taken_row_by_row(
    device: str, batch: tuple[int, ...], tile_rows: int | None
) -> None:
    mlp, x = make(device, tile_rows=tile_rows), torch.randn(*batch, D).double().to(device).requires_grad_()
    assert_close(mlp(x), mlp.to_sequential()(x))
    assert_close(gradients(mlp, x), gradients(mlp.to_sequential(), x))


@pytest.mark.parametrize("workers", [1, 2, 3])
def test_any_number_of_threads_gives_the_same_gradients(device: str, workers: int) -> None:
    x = rows_of(device, 23)
    with threads(workers):
        for tile_rows in (1, 2, 5, 22, 23, 99):
            mlp = make(device, tile_rows=tile_rows)
            assert_close(gradients(mlp, x), gradients(mlp.to_sequential(), x))
            with torch.no_grad():
                assert_close(mlp(x), mlp.to_sequential()(x))


@one_tile_or_more
@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize("workers", [1, 2])
def test_without_gradients_the_output_is_the_same_and_none_is_asked_for(
    device: str, tile_rows: int | None, context: Callable[[], Any], workers: int
) -> None:
    mlp, x = make(device, tile_rows=tile_rows), rows_of(device, 9)
    expected = mlp.to_sequential()(x).detach()
    with threads(workers), context():
        y = mlp(x)
    assert_close(y, expected)
    assert not y.requires_grad
    assert y.is_inference() == (context is torch.inference_mode)


@one_tile_or_more
def test_weights_and_inputs_may_be_inference_tensors_where_torch_lets_them(device: str, tile_rows: int | None) -> None:
    with torch.inference_mode():
        x = rows_of(device).detach().clone()
    mlp = make(device, tile_rows=tile_rows).requires_grad_(False)
    assert_close(mlp(x), mlp.to_sequential()(x))


@one_tile_or_more
def test_every_subset_of_frozen_parameters_gets_no_gradient(device: str, tile_rows: int | None) -> None:
    mlp = make(device, tile_rows=tile_rows)
    given = [rows_of(device), *mlp.parameters()]
    for needed in itertools.product((True, False), repeat=len(given)):
        for t, need in zip(given, needed, strict=True):
            t.requires_grad_(need)
        if not any(needed):
            assert not mlp(given[0]).requires_grad
            continue
        found = []
        for model in (mlp, mlp.to_sequential()):
            for t in given:
                t.grad = None
            head(model(given[0])).backward()
            found.append([t.grad for t in given])
        assert_close(*found)


@one_tile_or_more
def test_only_what_is_asked_for_comes_back(device: str, tile_rows: int | None) -> None:
    mlp, x = make(device, tile_rows=tile_rows), rows_of(device)
    given = [x, *mlp.parameters()]
    for some in itertools.combinations(given, 2):
        mine, theirs = (torch.autograd.grad(head(m(x)), some) for m in (mlp, mlp.to_sequential()))
        assert_close(mine, theirs)


@pytest.mark.parametrize("what", ["weight", "bias", "layer"])
@one_tile_or_more
def test_a_parameter_of_two_layers_gets_the_sum(device: str, what: str, tile_rows: int | None) -> None:
    mlp = MLP([D, 6, 6, 6, V], "tanh", tile_rows=tile_rows, dtype=torch.float64, device=device)
    if what == "layer":
        mlp.layers[2] = mlp.layers[1]
    else:
        setattr(mlp.layers[2], what, getattr(mlp.layers[1], what))
    x, model = rows_of(device), mlp.to_sequential()
    assert_close(gradients(mlp, x), gradients(model, x))
    assert_close(second_order(mlp, x), second_order(model, x), 1e-9)


@one_tile_or_more
def test_cotangents_of_any_layout_are_read_and_not_written(device: str, tile_rows: int | None) -> None:
    for output in (None, "tanh", "silu"):
        mlp, x = make(device, tile_rows=tile_rows, output_activation=output), rows_of(device)
        model = mlp.to_sequential()
        for dy in (
            torch.ones((), dtype=torch.float64, device=device).expand(N, V),
            torch.randn(V, N, dtype=torch.float64, device=device).mT,
            torch.randn(N, 2 * V, dtype=torch.float64, device=device)[:, ::2],
        ):
            before = dy.clone()
            mine, theirs = (torch.autograd.grad(m(x), [x, *m.parameters()], dy) for m in (mlp, model))
            assert_close(mine, theirs)
            assert torch.equal(dy, before)


# Between forward and backward.


@one_tile_or_more
def test_a_bias_may_change_in_place_before_backward(device: str, tile_rows: int | None) -> None:
    mlp, x = make(device, tile_rows=tile_rows), rows_of(device)
    expected = gradients(mlp.to_sequential(), x)
    y = mlp(x)
    with torch.no_grad():
        for layer in mlp.layers:
            layer.bias.add_(1)
    assert_close(torch.autograd.grad(head(y), [x, *mlp.parameters()]), tuple(expected))


@one_tile_or_more
@pytest.mark.parametrize("k", [0, 1, 2, "input"])
def test_a_weight_that_changed_in_place_is_the_error_of_torch(device: str, tile_rows: int | None, k: Any) -> None:
    mlp, x = make(device, tile_rows=tile_rows), rows_of(device)
    for model in (mlp.to_sequential(), mlp):
        y = head(model(x))
        with torch.no_grad():
            (x if k == "input" else mlp.layers[k].weight).mul_(2)
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            y.backward()


@one_tile_or_more
def test_backward_twice_needs_retain_graph_and_adds(device: str, tile_rows: int | None) -> None:
    mlp, x = make(device, tile_rows=tile_rows, dropout=0.4), rows_of(device)
    y = head(mlp(x))
    y.backward(retain_graph=True)
    once = [p.grad.clone() for p in mlp.parameters()]
    y.backward()
    assert_close([p.grad for p in mlp.parameters()], [2 * g for g in once])
    with pytest.raises(RuntimeError, match="backward through the graph a second time"):
        y.backward()


@one_tile_or_more
def test_backward_may_run_in_another_thread(device: str, tile_rows: int | None) -> None:
    mlp, x = make(device, tile_rows=tile_rows), rows_of(device)
    expected = gradients(mlp.to_sequential(), x)
    y = head(mlp(x))
    other = threading.Thread(target=y.backward)
    other.start()
    other.join(SECONDS)
    assert_close([x.grad, *(p.grad for p in mlp.parameters())], expected)


@one_tile_or_more
def test_hooks_of_parameters_run_once_with_the_whole_gradient(device: str, tile_rows: int | None) -> None:
    mlp, x, seen = make(device, tile_rows=tile_rows), rows_of(device), []
    expected = gradients(mlp.to_sequential(), x)[1:]
    for p in mlp.parameters():
        p.register_hook(lambda g: 2 * g)
        p.register_post_accumulate_grad_hook(seen.append)
    head(mlp(x)).backward()
    assert_close([p.grad for p in mlp.parameters()], [2 * g for g in expected])
    assert len(seen) == 6


def test_low_precision_gradients_of_many_tiles_are_no_worse_than_those_of_one(device: str) -> None:
    mlp = MLP([8, 16, V], "tanh", dtype=torch.bfloat16, device=device)
    x = (torch.randn(4096, 8, device=device) + 1).bfloat16()
    exact = copy.deepcopy(mlp).double().to_sequential()
    truth = torch.autograd.grad(exact(x.double()).sum(), list(exact.parameters()))
    errors = []
    for tile_rows in (4096, 4):
        mlp.tile_rows = tile_rows
        found = torch.autograd.grad(mlp(x).sum(), list(mlp.parameters()))
        errors.append([(g.double() - t).abs().max().item() for g, t in zip(found, truth, strict=True)])
    for one, many in zip(*errors, strict=True):
        assert many <= 1.5 * one + 1e-6


# Dropout.


@pytest.mark.parametrize("dropout", [0.3, (0.0, 0.5), 1.0], ids=str)
@pytest.mark.parametrize("tile_rows", [1, 2, None])
@pytest.mark.parametrize("workers", [1, 2])
def test_dropout_has_one_mask_forward_and_backward_at_every_order(
    device: str, dropout: Any, tile_rows: int | None, workers: int
) -> None:
    mlp, x = make(device, "tanh", tile_rows, dropout=dropout), rows_of(device)
    given = [x, *mlp.parameters()]

    def value(*moved: Tensor) -> Tensor:
        torch.manual_seed(5)
        return head(torch.func.functional_call(mlp, dict(zip(names, moved[1:], strict=True)), (moved[0],)))

    names = [name for name, _ in mlp.named_parameters()]
    with threads(workers):
        assert torch.autograd.gradcheck(value, given, fast_mode=True)
        assert torch.autograd.gradgradcheck(value, given, fast_mode=True)


@one_tile_or_more
@pytest.mark.parametrize("reentrant", [True, False])
def test_a_checkpoint_draws_the_same_masks_again(device: str, tile_rows: int | None, reentrant: bool) -> None:
    mlp, x = make(device, tile_rows=tile_rows, dropout=0.5), rows_of(device)
    torch.manual_seed(5)
    expected = gradients(mlp, x)
    torch.manual_seed(5)
    y = checkpoint(mlp, x, use_reentrant=reentrant)
    torch.rand(10)
    head(y).backward()
    assert_close([x.grad, *(p.grad for p in mlp.parameters())], expected)


def test_dropout_draws_for_every_call_and_every_tile_anew(device: str) -> None:
    mlp = MLP([D, 64, V], "identity", dropout=0.5, tile_rows=1, dtype=torch.float64, device=device)
    x = rows_of(device, 1).expand(8, D)
    outputs = torch.cat([mlp(x), mlp(x), mlp(x.detach())])
    assert len(outputs.unique(dim=0)) == 24
    with torch.no_grad():
        assert len(mlp(x).unique(dim=0)) == 8
        assert len(mlp.eval()(x).unique(dim=0)) == 1


def test_dropout_zeroes_its_share_and_scales_the_rest(device: str) -> None:
    mlp = MLP([1, 1000, 1000], "identity", bias=False, dropout=0.25, tile_rows=8, device=device)
    with torch.no_grad():
        mlp.layers[0].weight.fill_(1)
        mlp.layers[1].weight.copy_(torch.eye(1000))
    y = mlp(torch.ones(32, 1, device=device))
    assert 0.24 < (y == 0).double().mean() < 0.26
    torch.testing.assert_close(y[y != 0], torch.full_like(y[y != 0], 4 / 3))


@one_tile_or_more
def test_tensors_without_data_have_shapes_with_dropout_too(tile_rows: int | None) -> None:
    mlp = MLP([D, 7, V], dropout=0.5, tile_rows=tile_rows, device="meta")
    y = mlp(torch.empty(N, D, device="meta"))
    assert y.shape == (N, V)
    y.sum().backward()
    assert mlp.layers[0].weight.grad.shape == (7, D)
