"""backprop() against loss.backward() through torch's own modules."""

import copy
import itertools
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from conditions import threads
from manual_mlp import MLP, Activation, activations, backprop
from stepped import (
    LOSSES,
    D,
    N,
    V,
    assert_as_torch,
    assert_directional,
    by_hand,
    by_torch,
    every_loss,
    every_reduction,
    make,
    one_tile_or_more,
    rows_of,
    target_of,
    value,
)

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
