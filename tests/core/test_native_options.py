"""Weights of rows, a z-loss, a soft cap and statistics: native against plain, and against float64."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from conditions import threads
from manual_mlp import MLP, backprop, linear_cross_entropy
from manual_mlp.engines import native

pytestmark = pytest.mark.skipif(native.doors is None, reason=f"native is off: {native.why()}")

DTYPES = torch.float64, torch.float32, torch.bfloat16, torch.float16
every_reduction = pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
one_tile_or_more = pytest.mark.parametrize("chunk_rows", [None, 2])


def classes(n: int, v: int) -> Tensor:
    t = torch.randint(v, (n,))
    t[4::5] = -100
    return t


def shares(n: int, v: int) -> Tensor:
    return torch.rand(n, v, dtype=torch.float64).softmax(-1)


def row_weight(n: int) -> Tensor:
    rho = 2 * torch.rand(n)
    rho[2::4] = 0
    return rho


def everything(n: int, v: int) -> dict[str, Any]:
    weight = torch.rand(v, dtype=torch.float64)
    return {
        "row_weight": row_weight(n),
        "z_loss": 0.2,
        "softcap": 3.0,
        "weight": weight,
        "label_smoothing": 0.3,
    }


# The target and the options, for V columns and N rows.
CASES: dict[str, tuple[Callable[[int, int], Tensor], Callable[[int, int], dict[str, Any]]]] = {
    "weights of rows": (classes, lambda n, v: {"row_weight": row_weight(n)}),
    "rows that count or not": (classes, lambda n, v: {"row_weight": row_weight(n) != 0}),
    "z-loss": (classes, lambda n, v: {"z_loss": 0.1}),
    "soft cap": (classes, lambda n, v: {"softcap": 2.0}),
    "all of classes": (classes, everything),
    "z-loss of probabilities": (shares, lambda n, v: {"z_loss": 0.1}),
    "all of probabilities": (shares, everything),
    "another class ignored": (
        lambda n, v: torch.randint(v, (n,)),
        lambda n, v: {"ignore_index": v - 1 or 9, "row_weight": row_weight(n).double(), "z_loss": 0.1},
    ),
}


def truth(
    z: Tensor,
    t: Tensor,
    reduction: str,
    row_weight: Tensor | None = None,
    z_loss: float = 0.0,
    softcap: float | None = None,
    ignore_index: int = -100,
    **options: Any,
) -> Tensor:
    """Compute the loss of logits by torch's own operations."""
    s = z if softcap is None else softcap * torch.tanh(z / softcap)
    hard = not t.is_floating_point()
    counts = t != ignore_index if hard else torch.ones(len(t), dtype=torch.bool)
    values = F.cross_entropy(s, t, reduction="none", ignore_index=ignore_index, **options)
    values = values + torch.where(counts, z_loss * s.logsumexp(-1).square(), 0.0)
    rho = torch.where(counts, z.new_ones(()) if row_weight is None else row_weight.to(z.dtype), 0.0)
    values = rho * values
    if reduction == "none":
        return values
    weight = options.get("weight")
    of_class = weight[t.clamp(min=0)] if hard and weight is not None else 1
    return values.sum() / (rho * of_class).sum() if reduction == "mean" else values.sum()


def is_native(loss: Tensor) -> bool:
    return type(loss.grad_fn).__name__ == "CppFunction"


def narrowed(options: dict[str, Any], dtype: torch.dtype) -> dict[str, Any]:
    return {key: x.to(dtype) if key == "weight" else x for key, x in options.items()}


def with_gradients(loss: Tensor, asked: Any, upstream: Tensor) -> list[Tensor]:
    return [loss.detach(), *torch.autograd.grad(loss, asked, upstream.to(loss.dtype))]


def errors(name: str, shape: tuple[int, int, int], dtype: torch.dtype, **how: Any) -> Tensor:
    """Compare native and plain with float64: the largest error of the value, dh, dw and db, by the largest entry."""
    (n, d, v), (target, make) = shape, CASES[name]
    operands = [torch.randn(n, d), torch.randn(v, d) / d**0.5 * 2, torch.randn(v)]
    asked = [x.to(dtype).requires_grad_() for x in operands]
    t, options = target(n, v), narrowed(make(n, v), dtype)
    t = t.to(dtype) if t.is_floating_point() else t
    wide = [x.detach().double().requires_grad_() for x in asked]
    value = truth(
        F.linear(*wide), t.double() if t.is_floating_point() else t, how["reduction"], **narrowed(options, torch.double)
    )
    upstream = torch.randint(-4, 5, value.shape).double() if value.dim() else torch.tensor(-2.0)
    expected = with_gradients(value, wide, upstream)
    h, w, b = asked
    found = []
    for plain in (False, True):
        with native.without() if plain else threads(torch.get_num_threads()):
            loss = linear_cross_entropy(h, w, t, linear_bias=b, **options, **how)
            assert is_native(loss) is not plain
            found.append(with_gradients(loss, asked, upstream))
    for a, c in zip(*found, strict=True):
        assert (a.dtype, a.shape) == (c.dtype, c.shape)
    return torch.tensor(
        [[(a - e).abs().max() / (1e-3 + e.abs().max()) for a, e in zip(f, expected, strict=True)] for f in found]
    )


def floor(dtype: torch.dtype) -> float:
    return 64 * torch.finfo(dtype).eps if dtype is torch.float64 else 4 * torch.finfo(torch.float32).eps


@pytest.mark.parametrize("name", CASES)
@every_reduction
@pytest.mark.parametrize("chunk_rows", [None, 2, 99])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_the_error_is_at_most_twice_plains(
    name: str, reduction: str, chunk_rows: int | None, dtype: torch.dtype
) -> None:
    found = []
    for seed, shape in enumerate(3 * [(1, 3, 1), (7, 5, 3), (9, 4, 17), (5, 3, 33), (6, 7, 70)]):
        torch.manual_seed(seed)
        found.append(errors(name, shape, dtype, reduction=reduction, chunk_rows=chunk_rows))
    mine, plain = torch.stack(found).amax(0)
    assert (mine <= 2 * plain + floor(dtype)).all(), (mine, plain)


@pytest.mark.parametrize("name", ["all of classes", "all of probabilities"])
@pytest.mark.parametrize("shape", [(2**15, 3, 5), (301, 16, 1003), (5, 8, 33000)], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_many_rows_or_columns_are_as_accurate(name: str, shape: tuple[int, int, int], dtype: torch.dtype) -> None:
    for chunk_rows in (shape[0], max(2, shape[0] // 5)):
        found = [errors(name, shape, dtype, reduction="mean", chunk_rows=chunk_rows) for _ in range(3)]
        mine, plain = torch.stack(found).amax(0)
        assert (mine <= 2 * plain + floor(dtype)).all(), (mine, plain)


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("chunk_rows", [None, 700])
def test_every_number_of_threads_gives_the_same_loss(name: str, chunk_rows: int | None) -> None:
    target, make = CASES[name]
    # A sum of one product is rounded the same whoever computes it.
    n, d, v = 2000, 1, 40
    h, w, b = (torch.randn(*s, requires_grad=True) for s in ((n, d), (v, d), (v,)))
    t, options = target(n, v), narrowed(make(n, v), torch.float32)
    t, found = t.float() if t.is_floating_point() else t, []
    for count in (1, 2, 2):
        with threads(count):
            loss, stats = linear_cross_entropy(
                h, w, t, linear_bias=b, chunk_rows=chunk_rows, return_stats=True, **options
            )
            assert is_native(loss)
            found.append([loss.detach(), *stats, *torch.autograd.grad(loss, (h, w, b))])
    torch.testing.assert_close(found[1][:3], found[0][:3], rtol=0, atol=0)
    torch.testing.assert_close(found[1], found[0], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(found[2], found[1], rtol=0, atol=0)


@pytest.mark.parametrize("name", CASES)
@one_tile_or_more
@every_reduction
def test_a_batch_of_cotangents_and_second_order_are_plains(name: str, chunk_rows: int | None, reduction: str) -> None:
    torch.manual_seed(3)
    target, make = CASES[name]
    h, w, b = (torch.randn(*s, dtype=torch.float64, requires_grad=True) for s in ((7, 3), (7, 3), (7,)))
    t, options, found = target(7, 7), make(7, 7), []
    for plain in (False, True):
        with native.without() if plain else threads(torch.get_num_threads()):
            loss = linear_cross_entropy(h, w, t, linear_bias=b, reduction=reduction, chunk_rows=chunk_rows, **options)
        assert is_native(loss) is not plain
        batch = torch.linspace(-1, 2, 3 * loss.numel(), dtype=torch.float64).view(3, *loss.shape)
        several = torch.autograd.grad(loss, (h, w, b), batch, retain_graph=True, is_grads_batched=True)
        upstream = batch[0].clone().requires_grad_()
        first = torch.autograd.grad(loss, (h, w, b), upstream, create_graph=True)
        second = torch.autograd.grad(sum(g.sin().sum() for g in first), (h, w, b, upstream))
        found.append([several, first, second])
    torch.testing.assert_close(*found, rtol=1e-11, atol=1e-11)
    value = truth(F.linear(h, w, b), t, reduction, **options)
    first = torch.autograd.grad(value, (h, w, b), upstream, create_graph=True)
    second = torch.autograd.grad(sum(g.sin().sum() for g in first), (h, w, b, upstream))
    torch.testing.assert_close(found[0][2], second, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("region", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", CASES)
@one_tile_or_more
def test_autocast_is_plains(region: torch.dtype, name: str, chunk_rows: int | None) -> None:
    target, make = CASES[name]
    h, w, b = (torch.randn(*s, requires_grad=True) for s in ((9, 4), (7, 4), (7,)))
    t, options = target(9, 7), narrowed(make(9, 7), torch.float32)
    t, found = t.float() if t.is_floating_point() else t, []
    with torch.autocast("cpu", region):
        for plain in (False, True):
            with native.without() if plain else threads(torch.get_num_threads()):
                loss = linear_cross_entropy(h, w, t, linear_bias=b, chunk_rows=chunk_rows, **options)
            assert is_native(loss) is not plain
            found.append([loss, *torch.autograd.grad(loss, (h, w, b))])
    torch.testing.assert_close(*found, rtol=2e-2, atol=2e-2)


@pytest.mark.parametrize("name", CASES)
@one_tile_or_more
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("grad", [True, False])
def test_statistics_are_those_of_the_logits(name: str, chunk_rows: int | None, dtype: torch.dtype, grad: bool) -> None:
    target, make = CASES[name]
    # Whole numbers, so that the logits are the same in every dtype, and often equal.
    h, w = (torch.arange(36) % 5 - 2).view(4, 9, 1).to(dtype), torch.tensor([-1, 2, 0, 1, 1, 2, -2]).to(dtype)[:, None]
    h, w = h.requires_grad_(grad), w.requires_grad_(grad)
    t, options = target(36, 7), narrowed(make(36, 7), dtype)
    # The first row is right, unless it is ignored.
    t = t.to(dtype) if t.is_floating_point() else t.index_fill_(0, torch.tensor(0), 6)
    shaped = {key: x.view(4, 9) if key == "row_weight" else x for key, x in options.items()}
    t_shaped = t.view(4, 9, *t.shape[1:])
    loss, stats = linear_cross_entropy(h, w, t_shaped, chunk_rows=chunk_rows, return_stats=True, **shaped)
    assert is_native(loss) is grad
    alone = linear_cross_entropy(h, w, t_shaped, chunk_rows=chunk_rows, **shaped)
    torch.testing.assert_close(loss, alone, rtol=0, atol=0)
    assert not stats.logsumexp.requires_grad
    assert stats.logsumexp.dtype is (torch.float64 if dtype is torch.float64 else torch.float32)
    z, cap = (h @ w.T).detach().double(), options.get("softcap")
    s = z if cap is None else cap * torch.tanh(z / cap)
    tolerance = {} if dtype in (torch.float64, torch.float32) else {"rtol": 1e-2, "atol": 1e-2}
    torch.testing.assert_close(stats.logsumexp.double(), s.logsumexp(-1), **(tolerance or {"rtol": 1e-6, "atol": 1e-6}))
    right = s.argmax(-1) == (t_shaped.argmax(-1) if t.is_floating_point() else t_shaped)
    if not t.is_floating_point():
        right &= t_shaped != options.get("ignore_index", -100)
    assert right.any() or t.is_floating_point()
    torch.testing.assert_close(stats.correct, right)


@one_tile_or_more
@every_reduction
def test_nothing_reaches_a_row_that_does_not_count(chunk_rows: int | None, reduction: str) -> None:
    h, w = torch.randn(5, 3, requires_grad=True), torch.randn(7, 3, requires_grad=True)
    for t in (torch.arange(5), torch.rand(5, 7)):
        rho = torch.tensor([1.0, 0, 1, 0, 1]) if reduction == "none" else torch.zeros(5)
        loss = linear_cross_entropy(h, w, t, row_weight=rho, z_loss=0.1, reduction=reduction, chunk_rows=chunk_rows)
        assert is_native(loss)
        assert loss.isnan() if reduction == "mean" else not loss.isnan().any()
        upstream = torch.where(rho == 0, torch.nan, 1.0) if reduction == "none" else torch.tensor(torch.nan)
        dh, dw = torch.autograd.grad(loss, (h, w), upstream)
        if reduction == "sum":
            continue
        assert not dh[rho == 0].any()
        assert not dw.isnan().any()


@pytest.mark.parametrize("tile_rows", [None, 2])
@every_reduction
@pytest.mark.parametrize("name", ["weights of rows", "z-loss", "all of classes", "all of probabilities"])
def test_backprop_is_plains_and_torchs(tile_rows: int | None, reduction: str, name: str) -> None:
    target, make = CASES[name]
    x, t, options = torch.randn(9, 4, dtype=torch.float64), target(9, 7), make(9, 7)
    options.pop("softcap", None)
    mlp = MLP([4, 6, 7], "tanh", dtype=torch.float64)
    gradient = torch.randn(9, dtype=torch.float64) if reduction == "none" else torch.tensor(-1.5, dtype=torch.float64)
    value = truth(mlp.to_sequential()(x), t, reduction, **options)
    expected = [value.detach(), *torch.autograd.grad(value, list(mlp.parameters()), gradient)]
    for plain in (False, True):
        mlp.zero_grad()
        with native.without() if plain else threads(torch.get_num_threads()):
            found = backprop(mlp, x, t, "cross_entropy", reduction, tile_rows, gradient=gradient, **options)
        torch.testing.assert_close([found, *[p.grad for p in mlp.parameters()]], expected, rtol=1e-11, atol=1e-11)


def test_backprop_steps_natively_with_the_options(monkeypatch: pytest.MonkeyPatch) -> None:
    mlp, found = MLP([4, 7]), []
    door = native.doors.backprop

    class Doors:
        @staticmethod
        def backprop(*given: Any) -> Any:
            found.append(door(*given))
            return found[-1]

    monkeypatch.setattr(native, "doors", Doors)
    backprop(mlp, torch.randn(5, 4), torch.arange(5), row_weight=torch.rand(5), z_loss=0.1)
    assert [each is not None for each in found] == [True]


def test_a_weight_of_rows_that_is_changed_is_an_error_as_it_is_in_torch() -> None:
    h, w, rho = torch.randn(5, 3, requires_grad=True), torch.randn(7, 3, requires_grad=True), torch.rand(5)
    loss = linear_cross_entropy(h, w, torch.arange(5), row_weight=rho, reduction="none")
    assert is_native(loss)
    rho.zero_()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.sum().backward()


def test_what_is_unusual_is_left_to_plain() -> None:
    h, w, t = torch.randn(5, 3, requires_grad=True), torch.randn(7, 3, requires_grad=True), torch.arange(5)
    rho = torch.rand(5)
    assert is_native(linear_cross_entropy(h, w, t, row_weight=rho))
    assert is_native(linear_cross_entropy(h, w, t, row_weight=rho.double(), z_loss=1))
    assert not is_native(linear_cross_entropy(h, w, t, row_weight=rho.requires_grad_()))
    with pytest.raises(ValueError, match="expected row_weight"):
        linear_cross_entropy(h, w, t, row_weight=rho[:4])
    for wrong in (-0.1, torch.inf, torch.nan):
        with pytest.raises(ValueError, match="expected z_loss"):
            linear_cross_entropy(h, w, t, z_loss=wrong)
