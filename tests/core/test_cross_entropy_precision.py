"""Losses in low precision: at most twice torch's error, whatever the number of chunks."""

import pytest
import torch
import torch.nn.functional as F

from conditions import PRECISIONS
from linear_losses import D, Draw, Loss, N, V, bfloat16_products, binary, binary_of_torch, classes, cross_entropy, ours
from manual_mlp import linear_cross_entropy

# Slow products in bfloat16 are float32's, which matters where there are any.
PRODUCTS = {
    f"{name}{'' if fast else ', slow'}": (*precision, fast)
    for name, precision in PRECISIONS.items()
    for fast in (True, False)
    if fast or torch.bfloat16 in precision
}


@pytest.mark.parametrize("chunk_rows", [3, 16])
@pytest.mark.parametrize("reduction", ["mean", "none"])
@pytest.mark.parametrize(("mine", "theirs"), [(ours, cross_entropy), (binary, binary_of_torch)])
@pytest.mark.parametrize(("dtype", "region", "fast"), PRODUCTS.values(), ids=PRODUCTS)
def test_the_error_is_at_most_twice_torchs_own(
    draw: Draw,
    device: str,
    mine: Loss,
    theirs: Loss,
    reduction: str,
    chunk_rows: int,
    dtype: torch.dtype,
    region: torch.dtype | None,
    fast: bool,
) -> None:
    largest = torch.zeros(2, 4, dtype=torch.float64)
    for seed in range(50):
        torch.manual_seed(seed)
        inputs = [draw(*s, dtype=dtype) for s in ((9, D), (V, D), (V,))]
        t = classes(9, device=device) if mine is ours else torch.rand(9, V, device=device).to(dtype)
        wide = [x.detach().double().requires_grad_() for x in inputs]
        truth_loss = theirs(*wide, t if mine is ours else t.double(), reduction=reduction)
        upstream = torch.randint_like(truth_loss, -4, 5) if reduction == "none" else torch.ones_like(truth_loss)
        truth = truth_loss, *torch.autograd.grad(truth_loss, wide, upstream)
        for k, function in enumerate((mine, theirs)):
            options = {"chunk_rows": chunk_rows} if function is mine else {}
            with torch.autocast(device, region or torch.bfloat16, enabled=region is not None), bfloat16_products(fast):
                loss = function(*inputs, t, reduction=reduction, **options)
            assert loss.dtype == (torch.float32 if region else dtype)
            result = loss, *torch.autograd.grad(loss, inputs, upstream.to(loss.dtype))
            assert [g.dtype for g in result[1:]] == [dtype] * 3
            errors = torch.stack([(a.double() - b).abs().max() for a, b in zip(result, truth, strict=True)])
            largest[k] = torch.maximum(largest[k], errors.detach().cpu())
    assert (largest[0] <= 2 * largest[1] + 1e-6).all(), largest


@pytest.mark.parametrize("fast", [True, False], ids=["fast bfloat16", "slow bfloat16"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_the_weights_gradient_does_not_lose_precision_with_the_number_of_chunks(
    device: str, dtype: torch.dtype, fast: bool
) -> None:
    # All rows are of one class and alike, so that the sums of dw grow: a sum in low precision would stop growing.
    h = (1 + 0.1 * torch.rand(512, 8, device=device)).to(dtype)
    w = torch.randn(16, 8, device=device).to(dtype).requires_grad_()
    t = torch.zeros(512, dtype=torch.int64, device=device)
    truth = torch.autograd.grad(F.cross_entropy(F.linear(h.double(), w.double()), t, reduction="sum"), w)[0].double()

    def error(chunk_rows: int) -> float:
        with bfloat16_products(fast):
            loss = linear_cross_entropy(h, w, t, reduction="sum", chunk_rows=chunk_rows)
        return float((torch.autograd.grad(loss, w)[0].double() - truth).norm() / truth.norm())

    one = error(512)
    assert max(error(c) for c in (128, 32, 8, 2, 1)) <= 1.5 * one + torch.finfo(dtype).eps / 4


@pytest.mark.parametrize("chunk_rows", [2, 8, None])
@pytest.mark.parametrize("step", [ours, binary])
def test_a_target_of_another_dtype_is_taken_as_torch_takes_it(device: str, chunk_rows: int | None, step: Loss) -> None:
    h, w = (torch.randn(*s, device=device).bfloat16().requires_grad_() for s in ((N, D), (V, D)))
    t, theirs = torch.rand(N, V, device=device), cross_entropy if step is ours else binary_of_torch
    mine, own = step(h, w, None, t, chunk_rows=chunk_rows), theirs(h, w, None, t)
    wide = [x.detach().double().requires_grad_() for x in (h, w)]
    truth = theirs(*wide, None, t.double())
    results = [(y, *torch.autograd.grad(y, x)) for y, x in ((mine, (h, w)), (own, (h, w)), (truth, wide))]
    for ours_has, torch_has, right in zip(*results, strict=True):
        assert ours_has.dtype == torch_has.dtype
        error = (torch_has.double() - right).abs().max()
        assert (ours_has.double() - right).abs().max() <= 1.01 * error + 1e-6


def test_classes_of_one_byte_are_taken(device: str) -> None:
    h, w = torch.randn(N, D, device=device), torch.randn(V, D, device=device, requires_grad=True)
    t = torch.randint(V, (N,), device=device)
    loss = linear_cross_entropy(h, w, t.to(torch.uint8), chunk_rows=2)
    assert torch.equal(loss, linear_cross_entropy(h, w, t, chunk_rows=2))


@pytest.mark.parametrize("fast", [True, False], ids=["float16 products", "float32 products"])
def test_sums_in_float16_neither_overflow_nor_underflow(device: str, fast: bool) -> None:
    torch.manual_seed(0)
    h = (200 + torch.randn(4096, 32, device=device)).half()
    w = (0.01 * torch.randn(70, 32, device=device)).half().requires_grad_()
    t = torch.zeros(4096, dtype=torch.int64, device=device)
    with bfloat16_products(fast):
        mine = torch.autograd.grad(linear_cross_entropy(h, w, t, chunk_rows=512), w)[0]
    theirs = torch.autograd.grad(F.cross_entropy(F.linear(h, w), t), w)[0]
    truth = torch.autograd.grad(F.cross_entropy(F.linear(h.double(), w.double()), t), w)[0]
    assert (mine - truth).abs().max() <= 2 * (theirs - truth).abs().max()
    # Easy rows: δ is near 1e-6, and only the scale of the loss lifts it into float16's range.
    h = torch.nn.functional.normalize(torch.randn(64, 256, device=device)).requires_grad_()
    w = torch.nn.functional.normalize(torch.randn(100, 256, device=device))
    t = torch.arange(64, device=device)
    w[:64] = h.detach()
    w *= 14
    truth = torch.autograd.grad(F.cross_entropy(F.linear(h.double(), w.double()), t), h)[0]
    errors = []
    for loss in (lambda: linear_cross_entropy(h, w, t, chunk_rows=16), lambda: F.cross_entropy(F.linear(h, w), t)):
        with torch.autocast(device, torch.float16), bfloat16_products(fast):
            scaled = 65536 * loss()
        errors.append((torch.autograd.grad(scaled, h)[0].double() / 65536 - truth).norm())
    assert errors[0] <= 2 * errors[1]
