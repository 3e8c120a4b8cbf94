"""Values in half precision over 128,256 classes or many rows: right on every path, where torch's overflow or round."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.memory import peak_bytes
from linear_losses import bfloat16_products
from manual_mlp import (
    MLP,
    LinearCrossEntropyLoss,
    backprop,
    dense_squared_error,
    linear_binary_cross_entropy,
    linear_cross_entropy,
)

V, N, D = 128_256, 4, 2


def in_autocast(h: Tensor, w: Tensor, t: Tensor, **options: Any) -> Tensor:
    with torch.autocast(h.device.type, h.dtype):
        return linear_cross_entropy(h.float(), w.float(), t, **options)


def called(h: Tensor, w: Tensor, t: Tensor, **options: Any) -> Tensor:
    reduction = options.pop("reduction", "mean")
    module = LinearCrossEntropyLoss(w.shape[1], 1, dtype=w.dtype, device=w.device, reduction=reduction, **options)
    module.linear.weight = nn.Parameter(w.detach())
    module.linear.register_forward_hook(lambda *_: None)
    return module(h, t)


def stepped(h: Tensor, w: Tensor, t: Tensor, **options: Any) -> Tensor:
    mlp = MLP([w.shape[1], w.shape[0]], bias=False, dtype=w.dtype, device=w.device)
    mlp.load_state_dict(dict.fromkeys(mlp.state_dict(), w.detach()))
    return backprop(mlp, h, t, "cross_entropy", **options)


def compiled(*given: Tensor, **options: Any) -> Any:
    torch._dynamo.reset()
    return torch.compile(linear_cross_entropy, backend="aot_eager", fullgraph=True)(*given, **options)


WAYS: dict[str, Callable[..., Tensor]] = {
    "tiles": lambda *given, **options: linear_cross_entropy(*given, chunk_rows=-(-len(given[0]) // 3), **options),
    "one tile": lambda *given, **options: linear_cross_entropy(*given, chunk_rows=1 << 20, **options),
    "as it chooses": linear_cross_entropy,
    "no grad": torch.no_grad()(linear_cross_entropy),
    "autocast": in_autocast,
    "row weights that require grad": lambda h, w, t, **options: linear_cross_entropy(
        h, w, t, row_weight=torch.ones(len(t), device=h.device, requires_grad=True), **options
    ),
    "a transform": lambda h, w, t, **options: torch.func.vjp(lambda h: linear_cross_entropy(h, w, t, **options), h)[0],
    "the compiler": compiled,
    "a layer that is called": called,
    "backprop": stepped,
}
every_way = pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
HALVES = torch.float16, torch.bfloat16
halves = pytest.mark.parametrize("dtype", HALVES)


@every_way
@halves
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("scale", [0.0, 0.01], ids=["equal logits", "small logits"])
@pytest.mark.parametrize("fast", [True, False], ids=["fast bfloat16", "slow bfloat16"])
def test_many_classes_neither_overflow_nor_round_away(
    device: str, way: Callable[..., Tensor], dtype: torch.dtype, smoothing: float, scale: float, fast: bool
) -> None:
    torch.manual_seed(0)
    h = (scale * torch.randn(N, D, device=device)).to(dtype).requires_grad_()
    w, t = torch.randn(V, D, device=device).to(dtype), torch.randint(V, (N,), device=device)
    truth = F.cross_entropy(F.linear(h.double(), w.double()), t, label_smoothing=smoothing)
    with bfloat16_products(fast):
        value = way(h, w, t, label_smoothing=smoothing)
    # Rounded once to the dtype of the loss.
    eps = torch.finfo(value.dtype).eps
    assert abs(value.double() / truth - 1) <= 0.51 * eps + 1e-5, (value, truth)


@pytest.mark.parametrize("scale", [0.0, 0.01], ids=["equal logits", "small logits"])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_torchs_own_value_of_many_classes_overflows_in_float16_and_loses_digits_in_bfloat16(
    scale: float, smoothing: float
) -> None:
    # On a CPU: what the docstring of linear_cross_entropy says, and what the test above holds ours to.
    torch.manual_seed(0)
    z, t = scale * torch.randn(N, V), torch.randint(V, (N,))
    assert F.cross_entropy(z.half(), t, label_smoothing=smoothing).isinf()
    z, t = scale * torch.randn(220, 1000, dtype=torch.float64), torch.randint(1000, (220,))
    truth, eps = F.cross_entropy(z, t, label_smoothing=smoothing), torch.finfo(torch.bfloat16).eps
    assert abs(F.cross_entropy(z.bfloat16(), t, label_smoothing=smoothing).double() / truth - 1) > eps
    h, eye = z.bfloat16().requires_grad_(), torch.eye(1000, dtype=torch.bfloat16)
    mine = linear_cross_entropy(h, eye, t, label_smoothing=smoothing)
    assert abs(mine.double() / truth - 1) <= 0.51 * eps


@every_way
@halves
@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_many_rows_neither_overflow_nor_round_away(
    device: str, way: Callable[..., Tensor], dtype: torch.dtype, reduction: str
) -> None:
    reduction = "mean" if way is stepped else reduction
    torch.manual_seed(0)
    n, v = 70_000, 20
    h, w = torch.randn(n, D, device=device).to(dtype).requires_grad_(), torch.randn(v, D, device=device).to(dtype)
    t = torch.randint(v, (n,), device=device)
    truth = F.cross_entropy(F.linear(h.double(), w.double()), t, reduction=reduction, label_smoothing=0.1)
    value = way(h, w, t, reduction=reduction, label_smoothing=0.1)
    assert value.isfinite().all()
    # A logit of a product in half precision is rounded, and a value of a row too.
    eps = torch.finfo(dtype).eps
    error = (value.double() - truth).abs() / (1 + truth)
    assert error.mean() <= (0.51 if reduction == "mean" else 1) * eps


@halves
@pytest.mark.parametrize("chunk_rows", [2, None])
@pytest.mark.parametrize("wide", [1, V])
def test_the_other_losses_of_many_entries_neither_overflow_nor_round_away(
    device: str, dtype: torch.dtype, chunk_rows: int | None, wide: int
) -> None:
    torch.manual_seed(0)
    h = (0.1 * torch.randn(V // wide * N, D, device=device)).to(dtype).requires_grad_()
    w = torch.randn(wide, D, device=device).to(dtype)
    t = torch.rand(len(h), wide, device=device).to(dtype)
    rows = None if chunk_rows is None else max(chunk_rows, len(h) // 4)
    z = F.linear(h.double(), w.double())
    pairs = (
        (
            linear_binary_cross_entropy(h, w, t, chunk_rows=rows),
            F.binary_cross_entropy_with_logits(z, t.double()),
        ),
        (
            dense_squared_error(h, w, None, t, reduction="mean", chunk_rows=rows),
            0.5 * F.mse_loss(z, t.double()),
        ),
    )
    for value, truth in pairs:
        assert abs(value.double() / truth - 1) <= torch.finfo(dtype).eps, (value, truth)


@halves
@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_logits_that_exist_in_half_precision_are_kept_as_they_are(
    device: str, dtype: torch.dtype, reduction: str
) -> None:
    n, v = 4096, 4096 if device == "cpu" else 8192  # more than are few
    h, w = (torch.randn(*s, device=device).to(dtype).requires_grad_() for s in ((n, D), (v, D)))
    t, module = torch.randint(v, (n,), device=device), LinearCrossEntropyLoss(D, 1, reduction=reduction, dtype=dtype)
    module.linear.weight = nn.Parameter(w.detach())
    module.linear.register_forward_hook(lambda *_: None)
    logits = h.element_size() * n * v

    def step() -> None:
        module(h, t).sum().backward()

    peak = peak_bytes(step, (h, w), torch.device(device))
    # The logits, δ in their dtype, and a tile of them in float32 with what its loss takes.
    assert peak <= 2.3 * logits + 16 * 2**20


@halves
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("options", [{}, {"z_loss": 0.1, "label_smoothing": 0.1}], ids=["no options", "options"])
def test_derivatives_of_logits_that_exist_in_half_precision_are_right(
    device: str, dtype: torch.dtype, reduction: str, options: dict[str, float]
) -> None:
    torch.manual_seed(0)
    n, v = 64, 4096
    h = torch.randn(n, D, device=device).to(dtype).requires_grad_()
    w, t = torch.randn(v, D, device=device).to(dtype), torch.randint(v, (n,), device=device)
    t[3] = -100
    u = torch.rand(n, device=device)
    module = LinearCrossEntropyLoss(D, 1, reduction=reduction, dtype=dtype, **options)
    module.linear.weight = nn.Parameter(w)
    module.linear.register_forward_hook(lambda *_: None)
    wide, upstream = h.detach().double().requires_grad_(), torch.linspace(0.5, 2, n, device=device)
    truth = linear_cross_entropy(wide, w.double(), t, row_weight=u, reduction=reduction, **options)
    loss = module(h, t, u)
    g = upstream if reduction == "none" else upstream[0] * (n if reduction == "mean" else 1)
    first, theirs = (
        torch.autograd.grad(y, x, g.to(y.dtype), create_graph=True)[0] for y, x in ((loss, h), (truth, wide))
    )
    again = torch.autograd.grad(loss, h, g.to(loss.dtype), retain_graph=True)[0]
    second = [torch.autograd.grad(f.square().sum(), x)[0] for f, x in ((first, h), (theirs, wide))]
    for mine, right in ((first, theirs), (again, theirs), second):
        scale = right.abs().max()
        assert ((mine.double() - right).abs() / scale).max() <= 8 * torch.finfo(dtype).eps
