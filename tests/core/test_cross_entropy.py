"""linear_cross_entropy() and linear_binary_cross_entropy() against torch's own losses of F.linear()."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.autograd import gradcheck, gradgradcheck

from linear_losses import (
    D,
    Draw,
    Loss,
    N,
    V,
    assert_same,
    binary,
    binary_of_torch,
    classes,
    cross_entropy,
    every_chunk,
    every_reduction,
    every_step,
    ours,
)
from manual_mlp import linear_cross_entropy


@every_chunk
@every_reduction
@pytest.mark.parametrize("smoothing", [0.0, 0.2, 1.0])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("kind", ["classes", "probabilities"])
def test_the_loss_and_its_derivatives_are_those_of_torch(
    draw: Draw, device: str, chunk_rows: int | None, reduction: str, smoothing: float, weighted: bool, kind: str
) -> None:
    inputs = draw(N, D), draw(V, D), draw(V)
    t = classes(N, device=device) if kind == "classes" else torch.rand(N, V, dtype=torch.float64, device=device)
    weight = torch.rand(V, dtype=torch.float64, device=device) if weighted else None
    options = {"weight": weight, "reduction": reduction, "label_smoothing": smoothing}
    assert_same(ours(*inputs, t, chunk_rows=chunk_rows, **options), cross_entropy(*inputs, t, **options), inputs)


@every_chunk
@every_reduction
@pytest.mark.parametrize("weights", ["none", "of classes", "of entries", "one"])
def test_the_logistic_loss_and_its_derivatives_are_those_of_torch(
    draw: Draw, device: str, chunk_rows: int | None, reduction: str, weights: str
) -> None:
    inputs, t = (draw(N, D), draw(V, D), draw(V)), torch.rand(N, V, dtype=torch.float64, device=device)
    shape = {"of classes": (V,), "of entries": (N, V), "one": ()}.get(weights)
    options: dict[str, Any] = {"reduction": reduction}
    if shape is not None:
        options["weight"], options["pos_weight"] = torch.rand(2, *shape, dtype=torch.float64, device=device)
    mine = binary(*inputs, t, chunk_rows=chunk_rows, **options)
    assert_same(mine, binary_of_torch(*inputs, t, **options), inputs)


@pytest.mark.parametrize("shape", [(D,), (1, D), (2, 3, D), (2, 1, 3, D)], ids=str)
@pytest.mark.parametrize("chunk_rows", [2, 8, None])
@pytest.mark.parametrize("bias", [True, False])
@every_reduction
def test_input_may_have_any_number_of_dimensions(
    draw: Draw, device: str, shape: tuple[int, ...], chunk_rows: int | None, bias: bool, reduction: str
) -> None:
    inputs = (draw(*shape), draw(V, D), draw(V)) if bias else (draw(*shape), draw(V, D))
    h, w, b = (*inputs, None)[:3]
    t, p = torch.randint(V, shape[:-1], device=device), torch.rand(*shape[:-1], V, dtype=torch.float64, device=device)
    options = {"reduction": reduction}
    for mine, theirs in (
        (ours(h, w, b, t, chunk_rows=chunk_rows, **options), cross_entropy(h, w, b, t, **options)),
        (ours(h, w, b, p, chunk_rows=chunk_rows, **options), cross_entropy(h, w, b, p, **options)),
        (binary(h, w, b, p, chunk_rows=chunk_rows, **options), binary_of_torch(h, w, b, p, **options)),
    ):
        assert_same(mine, theirs, inputs)


@pytest.mark.each_value
@every_step
@pytest.mark.parametrize("chunk_rows", [2, 8])
def test_gradients_are_those_of_central_differences(
    draw: Draw, device: str, make: Callable[..., Loss], chunk_rows: int
) -> None:
    step, inputs = make(device, chunk_rows), (draw(N, D), draw(V, D), draw(V))
    assert gradcheck(step, inputs, check_forward_ad=True, check_batched_grad=True, check_batched_forward_grad=True)
    assert gradgradcheck(step, inputs, check_fwd_over_rev=True, check_batched_grad=True)


@pytest.mark.parametrize("chunk_rows", [2, 8])
def test_a_shift_of_all_logits_of_a_row_changes_nothing_and_their_gradients_sum_to_zero(
    draw: Draw, device: str, chunk_rows: int
) -> None:
    h, w, b, t = draw(N, D), draw(V, D), draw(V), classes(N, device=device)
    losses = [ours(h, w, b + shift, t, label_smoothing=0.1, chunk_rows=chunk_rows) for shift in (0.0, 7.0, -300.0)]
    gradients = [torch.autograd.grad(loss, (h, w, b)) for loss in losses]
    for loss, gradient in zip(losses, gradients, strict=True):
        torch.testing.assert_close(loss, losses[0], rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(gradient, gradients[0], rtol=1e-12, atol=1e-12)
        # Each row of δ sums to zero: so does each column of dw, over the classes.
        torch.testing.assert_close(gradient[1].sum(0), torch.zeros_like(h[0]), rtol=0, atol=1e-14)
        assert gradient[2].sum().abs() <= 1e-15


@pytest.mark.parametrize("chunk_rows", [1, 2, 5, 8])
def test_uniform_targets_over_uniform_logits_have_the_entropy_of_a_die(device: str, chunk_rows: int) -> None:
    h, w = torch.zeros(N, D, device=device), torch.randn(6, D, device=device, requires_grad=True)
    loss = linear_cross_entropy(h, w, torch.full((N, 6), 1 / 6, device=device), chunk_rows=chunk_rows)
    torch.testing.assert_close(loss, torch.tensor(6.0, device=device).log())


@every_step
def test_two_runs_give_the_same_bits(draw: Draw, device: str, make: Callable[..., Loss]) -> None:
    inputs, runs = (draw(N, D), draw(V, D), draw(V)), []
    for _ in range(2):
        loss = make(device, 2)(*inputs)
        runs.append((loss, *torch.autograd.grad(loss.sum(), inputs)))
    assert all(torch.equal(a, b) for a, b in zip(*runs, strict=True))


@pytest.mark.parametrize("chunk_rows", [2, 8, None])
def test_a_target_or_a_weight_that_requires_grad_gets_its_gradient(
    draw: Draw, device: str, chunk_rows: int | None
) -> None:
    h, w, b, t, v = draw(N, D), draw(V, D), draw(V), draw(N, V), draw(V)
    pairs = [
        (ours(h, w, b, t, weight=v, chunk_rows=chunk_rows), cross_entropy(h, w, b, t, weight=v)),
        (binary(h, w, b, t, weight=v.detach(), chunk_rows=chunk_rows), binary_of_torch(h, w, b, t, weight=v.detach())),
    ]
    for mine, theirs in pairs:
        inputs = (h, w, b, t, v) if mine is pairs[0][0] else (h, w, b, t)
        torch.testing.assert_close(*(torch.autograd.grad(loss, inputs) for loss in (mine, theirs)), rtol=0, atol=1e-12)


@pytest.mark.parametrize("chunk_rows", [2, 8, None])
def test_a_weight_made_from_the_input_is_differentiated_once(draw: Draw, device: str, chunk_rows: int | None) -> None:
    # A tied embedding: the path from w to h stays out of what is taken for the gradient by w.
    t = classes(N, device=device)

    def third(loss: Loss, **options: Any) -> Any:
        x = torch.linspace(-1, 1, N * D, dtype=torch.float64, device=device).view(N, D).requires_grad_()
        w = torch.cat([x, 2 * x])[:V]
        first = torch.autograd.grad(loss(x.sin(), w, w[:, 0], t, **options), x, create_graph=True)[0]
        second = torch.autograd.grad(first.square().sum(), x, create_graph=True)[0]
        return first, second, torch.autograd.grad(second.sin().sum(), x)[0]

    torch.testing.assert_close(third(ours, chunk_rows=chunk_rows), third(cross_entropy), rtol=1e-9, atol=1e-9)
