"""The proofs: every formula against differences of function values, in float64."""

from collections.abc import Callable, Sequence

import pytest
import torch
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck
from torch.func import jacfwd, jacrev

from manual_mlp import activations, dense, dense_squared_error

SHAPES = {"1-D": (4,), "2-D": (5, 4), "3-D": (2, 3, 4)}
BIAS = {"bias": True, "none": False}

Draw = Callable[..., Tensor]
Function = Callable[..., Tensor]


def operands(draw: Draw, shape: Sequence[int], bias: bool) -> tuple[Tensor, ...]:
    h, w, b = draw(*shape), draw(7, 4), draw(7)
    return (h, w, b) if bias else (h, w)


def check(function: Function, inputs: tuple[Tensor, ...]) -> None:
    assert gradcheck(function, inputs, check_forward_ad=True, check_batched_grad=True, check_batched_forward_grad=True)
    assert gradgradcheck(function, inputs, check_fwd_over_rev=True, check_batched_grad=True)


@pytest.mark.each_value
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize("bias", BIAS.values(), ids=BIAS)
@pytest.mark.parametrize("name", activations.names())
def test_dense_passes_gradcheck_and_gradgradcheck(draw: Draw, name: str, bias: bool, shape: tuple[int, ...]) -> None:
    check(lambda h, w, b=None: dense(h, w, b, name), operands(draw, shape, bias))


@pytest.mark.each_value
@pytest.mark.parametrize("bias", BIAS.values(), ids=BIAS)
@pytest.mark.parametrize("name", activations.names())
def test_an_empty_batch_passes_too(draw: Draw, name: str, bias: bool) -> None:
    check(lambda h, w, b=None: dense(h, w, b, name), operands(draw, (0, 4), bias))


@pytest.mark.each_value
@pytest.mark.parametrize("reduction", ["sum", "mean", "none"])
@pytest.mark.parametrize("name", ["identity", "relu", "tanh", "gelu", "softplus"])
def test_dense_squared_error_passes_gradcheck_and_gradgradcheck(draw: Draw, name: str, reduction: str) -> None:
    inputs = (*operands(draw, (5, 4), bias=True), draw(5, 7))
    check(lambda h, w, b, t: dense_squared_error(h, w, b, t, name, reduction), inputs)


@pytest.mark.parametrize("bias", BIAS.values(), ids=BIAS)
@pytest.mark.parametrize("name", activations.names())
def test_every_derivative_equals_a_difference_of_the_order_below(
    draw: Draw, record_error: Callable[[str, str, str, float], None], name: str, bias: bool
) -> None:
    inputs = operands(draw, (5, 4), bias)
    probe = draw(5, 7, requires_grad=False)

    def value(*inputs: Tensor) -> Tensor:
        return (dense(*inputs, *(() if bias else (None,)), name) * probe).sum()

    def gradient(*inputs: Tensor) -> Tensor:
        inputs = tuple(t.detach().requires_grad_() for t in inputs)
        return flat(torch.autograd.grad(value(*inputs), inputs))

    def reverse_over_reverse(*inputs: Tensor) -> Tensor:
        first = flat(torch.autograd.grad(value(*inputs), inputs, create_graph=True))
        rows = [torch.autograd.grad(entry, inputs, retain_graph=True, materialize_grads=True) for entry in first]
        return torch.stack([flat(row) for row in rows])

    def second(transform: Callable[..., Function]) -> Tensor:
        every = tuple(range(len(inputs)))
        blocks = transform(jacrev(value, every), every)(*inputs)
        return torch.cat(
            [torch.cat([b.reshape(a.numel(), -1) for b in row], 1) for a, row in zip(inputs, blocks, strict=True)]
        )

    slope, curvature = difference(value, inputs), difference(gradient, inputs)
    errors = {
        "reverse": gradient(*inputs) - slope,
        "forward": flat(jacfwd(value, tuple(range(len(inputs))))(*inputs)) - slope,
        "reverse over reverse": reverse_over_reverse(*inputs) - curvature,
        "forward over reverse": second(jacfwd) - curvature,
    }
    largest = {order: error.abs().max().item() for order, error in errors.items()}
    for order, error in largest.items():
        record_error(name, "bias" if bias else "none", order, error)
    assert max(largest.values()) < 1e-9, largest


def difference(function: Function, inputs: tuple[Tensor, ...], step: float = 2e-4) -> Tensor:
    """Differentiate by the central difference of fourth order, one row for each entry of the inputs."""
    rows = []
    for k, t in enumerate(inputs):
        for index in range(t.numel()):
            bump = torch.zeros_like(t).flatten()
            bump[index] = step

            def at(times: int, k: int = k, bump: Tensor = bump) -> Tensor:
                moved = [u.detach() for u in inputs]
                moved[k] = moved[k] + times * bump.view_as(moved[k])
                return function(*moved).detach()

            rows.append((8 * (at(1) - at(-1)) - (at(2) - at(-2))) / (12 * step))
    return torch.stack(rows)


def flat(tensors: Sequence[Tensor]) -> Tensor:
    return torch.cat([t.flatten() for t in tensors])
