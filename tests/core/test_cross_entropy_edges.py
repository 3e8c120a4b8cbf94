"""Saturated logits, empty batches, rows that do not count, NaN and infinity."""

import pytest
import torch

from linear_losses import (
    D,
    Draw,
    N,
    V,
    binary,
    binary_of_torch,
    cross_entropy,
    every_reduction,
    fractions,
    ours,
    with_gradients,
)
from manual_mlp import linear_cross_entropy


@pytest.mark.parametrize("chunk_rows", [2, 8, None])
@pytest.mark.parametrize("scale", [1e4, -1e4])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_saturated_logits_give_finite_losses_and_gradients(
    draw: Draw, device: str, chunk_rows: int | None, scale: float, dtype: torch.dtype
) -> None:
    inputs = draw(N, D, dtype=dtype), draw(V, D, dtype=dtype), draw(V, dtype=dtype)
    with torch.no_grad():
        inputs[1].mul_(scale)
    t, u = torch.randint(V, (N,), device=device), torch.ones(N, V, dtype=dtype, device=device)
    for mine, theirs, target in ((ours, cross_entropy, t), (binary, binary_of_torch, u)):
        losses = mine(*inputs, target, chunk_rows=chunk_rows), theirs(*inputs, target)
        results = [with_gradients(loss, inputs) for loss in losses]
        assert all(g.isfinite().all() for loss, gradients in results for g in (loss, *gradients))
        torch.testing.assert_close(*results, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("chunk_rows", [2, 8, None])
@every_reduction
@pytest.mark.parametrize(("n", "v"), [(0, V), (1, V), (N, 1), (1, 1), (0, 1)])
def test_no_row_one_row_and_one_class(
    draw: Draw, device: str, chunk_rows: int | None, reduction: str, n: int, v: int
) -> None:
    inputs, t = (draw(n, D), draw(v, D), draw(v)), torch.zeros(n, dtype=torch.int64, device=device)
    u = torch.rand(n, v, dtype=torch.float64, device=device)
    for mine, theirs, target in ((ours, cross_entropy, t), (binary, binary_of_torch, u)):
        losses = (
            mine(*inputs, target, reduction=reduction, chunk_rows=chunk_rows),
            theirs(*inputs, target, reduction=reduction),
        )
        results = [with_gradients(loss, inputs) for loss in losses]
        torch.testing.assert_close(*results, rtol=1e-12, atol=1e-12, equal_nan=True)


NOTHING_COUNTS = [
    (case, smoothing, reduction)
    for case in ("every row is ignored", "ignored, with weights", "weights of zero")
    for smoothing in (0.0, 0.1)
    for reduction in ("none", "mean", "sum")
    if (case, smoothing, reduction) != ("weights of zero", 0.1, "mean")
]


@pytest.mark.parametrize("chunk_rows", [2, 8, None])
def test_a_mean_over_weights_of_zero_that_are_smoothed_is_not_finite(
    draw: Draw, device: str, chunk_rows: int | None
) -> None:
    # torch adds 0/0 to what is divided by 0.
    inputs, weight = (draw(N, D), draw(V, D), draw(V)), torch.rand(V, dtype=torch.float64, device=device)
    weight[3], t, options = 0, torch.full((N,), 3, device=device), {"weight": weight, "label_smoothing": 0.1}
    losses = ours(*inputs, t, chunk_rows=chunk_rows, **options), cross_entropy(*inputs, t, **options)
    assert not any(loss.isfinite() for loss in losses)


@pytest.mark.product
@pytest.mark.parametrize("chunk_rows", [2, 8, None])
@pytest.mark.parametrize(("case", "smoothing", "reduction"), NOTHING_COUNTS)
def test_where_nothing_counts_the_answer_is_torchs(
    draw: Draw, device: str, chunk_rows: int | None, reduction: str, smoothing: float, case: str
) -> None:
    inputs = draw(N, D), draw(V, D), draw(V)
    weight = None if case == "every row is ignored" else torch.rand(V, dtype=torch.float64, device=device)
    t = torch.full((N,), 3, device=device)
    if weight is not None:
        weight[3] = 0
    options = {"weight": weight, "reduction": reduction, "label_smoothing": smoothing}
    options["ignore_index"] = -100 if case == "weights of zero" else 3
    losses = ours(*inputs, t, chunk_rows=chunk_rows, **options), cross_entropy(*inputs, t, **options)
    results = [with_gradients(loss, inputs) for loss in losses]
    torch.testing.assert_close(*results, rtol=1e-12, atol=1e-12, equal_nan=True)


@pytest.mark.parametrize("chunk_rows", [2, 8, None])
def test_nan_in_gives_nan_out(draw: Draw, device: str, chunk_rows: int | None) -> None:
    inputs, t = (draw(N, D), draw(V, D), draw(V)), torch.tensor([1, 2, 3, 4, -100], device=device)
    with torch.no_grad():
        inputs[0][1, 2], inputs[0][4, 0] = torch.nan, torch.inf
    for mine, theirs, target in ((ours, cross_entropy, t), (binary, binary_of_torch, fractions(device))):
        losses = (
            mine(*inputs, target, reduction="none", chunk_rows=chunk_rows),
            theirs(*inputs, target, reduction="none"),
        )
        results = [with_gradients(loss, inputs) for loss in losses]
        assert results[0][0].isnan().any()
        torch.testing.assert_close(*results, rtol=1e-12, atol=1e-12, equal_nan=True)


@pytest.mark.parametrize("chunk_rows", [2, 8, None])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_class_masked_by_a_bias_of_minus_infinity_gets_no_gradient(
    draw: Draw, device: str, chunk_rows: int | None, dtype: torch.dtype
) -> None:
    h, w, b = draw(N, D, dtype=dtype), draw(V, D, dtype=dtype), draw(V, dtype=dtype)
    with torch.no_grad():
        b[3] = -torch.inf
    t = torch.tensor([1, 2, 0, 4, 5], device=device)
    loss = ours(h, w, b, t, chunk_rows=chunk_rows)
    loss.backward()
    assert loss.isfinite()
    assert not w.grad[3].any()
    assert b.grad[3] == 0


@pytest.mark.parametrize("target", [V, -1, 1000])
@pytest.mark.parametrize("chunk_rows", [2, 8, None])
@pytest.mark.parametrize("grad", [True, False])
@pytest.mark.parametrize("weighted", [True, False])
def test_a_class_out_of_range_is_torchs_error(target: int, chunk_rows: int | None, grad: bool, weighted: bool) -> None:
    h, w, t = torch.randn(N, D), torch.randn(V, D, requires_grad=grad), torch.tensor([1, 2, 3, target, 5])
    weight = torch.ones(V) if weighted else None
    with pytest.raises(IndexError, match=f"Target {target} is out of bounds"):
        linear_cross_entropy(h, w, t, weight=weight, chunk_rows=chunk_rows)
