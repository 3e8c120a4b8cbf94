"""A loss of a layer and its gradients in one native call, for a caller below autograd."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from manual_mlp.activations import IDENTITY, Activation, get
from manual_mlp.activations.monotone import softcap
from manual_mlp.engines import native

pytestmark = pytest.mark.skipif(native.doors is None, reason=f"native is off: {native.why()}")

N, D, V = 6, 4, 7
one_tile_or_more = pytest.mark.parametrize("chunk_rows", [None, 2])
# The activation, and from the loss on what the door takes.
CASES: dict[str, tuple[Activation, tuple[Any, ...]]] = {
    "classes": (IDENTITY, ("cross_entropy", torch.arange(N), None, None, None, None, 0.0, 0.0, False)),
    "all of cross-entropy": (
        softcap(2.0),
        ("cross_entropy", torch.arange(N), torch.rand(V), None, torch.rand(N), 3, 0.2, 0.1, True),
    ),
    "probabilities": (
        IDENTITY,
        ("cross_entropy", torch.rand(N, V), torch.rand(V), None, torch.rand(N), None, 0.2, 0.1, True),
    ),
    "logistic": (
        IDENTITY,
        ("binary_cross_entropy", torch.rand(N, V), torch.rand(N, 1), torch.rand(V), None, None, 0.0, 0.0, False),
    ),
    "squared error": (get("gelu"), ("squared_error", torch.rand(N, V), None, None, None, None, 0.0, 0.0, False)),
}


def operands(dtype: torch.dtype = torch.float32) -> list[Tensor]:
    return [torch.randn(*s, dtype=dtype, requires_grad=True) for s in ((2, N // 2, D), (V, D), (V,))]


def given(name: str, of: list[Tensor], reduction: str, chunk_rows: int | None) -> tuple[Any, ...]:
    activation, (loss, target, weight, pos, rho, *rest) = CASES[name]
    dtype, lead = of[0].dtype, of[0].shape[:-1]
    target = target.view(*lead, *target.shape[1:])
    target = target.to(dtype) if target.is_floating_point() else target
    weight, pos = (None if t is None else t.to(dtype) for t in (weight, pos))
    weight = weight.view(*lead, 1) if loss == "binary_cross_entropy" else weight
    rho = None if rho is None else rho.view(lead)
    return *of, activation, reduction, chunk_rows, loss, target, weight, pos, rho, *rest


def subsets() -> Iterator[tuple[bool, bool, bool]]:
    for k in range(8):
        yield k & 1 > 0, k & 2 > 0, k & 4 > 0


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("reduction", ["mean", "sum"])
@one_tile_or_more
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_it_makes_what_the_node_makes(name: str, reduction: str, chunk_rows: int | None, dtype: torch.dtype) -> None:
    of = operands(dtype)
    args = given(name, of, reduction, chunk_rows)
    result = native.doors.head(*args)
    loss, *stats = result if args[-1] else (result,)
    gradients = torch.autograd.grad(loss, of)
    for needed in subsets():
        made = native.doors.head_made(*args, *needed)
        assert not any(t is not None and t.requires_grad for t in made)
        torch.testing.assert_close([made[0], *made[4:]], [loss.detach(), *stats], rtol=0, atol=0)
        for found, g, need in zip(made[1:4], gradients, needed, strict=True):
            assert (found is not None) is need
            if need:
                torch.testing.assert_close(found.to(dtype), g, rtol=0, atol=0)


@pytest.mark.parametrize("name", CASES)
@one_tile_or_more
def test_values_apart_come_without_gradients(name: str, chunk_rows: int | None) -> None:
    of = operands()
    args = given(name, of, "none", chunk_rows)
    expected = native.doors.head(*args)
    expected = expected if args[-1] else (expected,)
    made = native.doors.head_made(*args, False, False, False)
    torch.testing.assert_close([made[0], *made[4:]], [t.detach() for t in expected], rtol=0, atol=0)
    assert native.doors.head_made(*args, False, True, False) is None


def test_a_target_that_requires_grad_is_a_number_as_any_other() -> None:
    h, w, b = operands()
    target = torch.rand(2, N // 2, V, requires_grad=True)
    options = None, None, None, None, 0.0, 0.0, False
    args = h, w, b, IDENTITY, "mean", None, "cross_entropy", target, *options
    assert native.doors.head(*args) is None
    made = native.doors.head_made(*args, True, True, True)
    expected = native.doors.head(*args[:7], target.detach(), *options)
    torch.testing.assert_close(made[1:], torch.autograd.grad(expected, (h, w, b)), rtol=0, atol=0)


@pytest.mark.parametrize("region", [torch.bfloat16, torch.float16], ids=str)
@one_tile_or_more
def test_autocast_is_that_of_the_node(region: torch.dtype, chunk_rows: int | None) -> None:
    of = operands()
    args = given("all of cross-entropy", of, "mean", chunk_rows)
    with torch.autocast("cpu", region):
        loss, *stats = native.doors.head(*args)
        made = native.doors.head_made(*args, True, True, True)
    gradients = torch.autograd.grad(loss, of)
    found = [t.float() for t in made[1:4]]
    torch.testing.assert_close([made[0], *found, *made[4:]], [loss.detach(), *gradients, *stats], rtol=0, atol=0)


@pytest.mark.parametrize("name", ["classes", "all of cross-entropy", "squared error"])
@one_tile_or_more
@pytest.mark.parametrize("frozen", [True, False])
def test_it_runs_inside_an_operation_of_torch_library(name: str, chunk_rows: int | None, frozen: bool) -> None:
    kept: dict[str, Any] = {}
    schema = "(Tensor h, Tensor w, Tensor b) -> Tensor[]"

    @torch.library.custom_op("manual_mlp_test::made", mutates_args=(), schema=schema)
    def made(h: Tensor, w: Tensor, b: Tensor) -> list[Tensor]:
        kept["made"] = native.doors.head_made(*given(name, [h, w, b], "mean", chunk_rows), True, True, True)
        return [t.clone() for t in kept["made"]]

    made.register_autograd(lambda ctx, gradients: (None, None, None))
    of = [t.requires_grad_(not frozen) for t in operands()]
    found = made(*of)
    expected = native.doors.head_made(*given(name, of, "mean", chunk_rows), True, True, True)
    torch.testing.assert_close([t.detach() for t in found], list(expected), rtol=0, atol=0)
    assert not any(t.requires_grad for t in kept["made"])
