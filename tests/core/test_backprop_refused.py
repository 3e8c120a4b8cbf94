"""What backprop() refuses, and that a refusal leaves every gradient as it was."""

import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from conditions import threads
from manual_mlp import backprop
from stepped import PAIR, WEIGHT, C, N, V, assert_as_torch, huber, make, refused, rows_of, sized

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
