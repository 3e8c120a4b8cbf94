"""A layer with its loss, native against plain and against float64; and as torch has it where something is unusual."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from conditions import threads
from manual_mlp import dense_squared_error, linear_binary_cross_entropy, linear_cross_entropy
from manual_mlp.activations import get
from manual_mlp.engines import native

pytestmark = pytest.mark.skipif(native.doors is None, reason=f"native is off: {native.why()}")

Loss = Callable[..., Tensor]
DTYPES = torch.float64, torch.float32, torch.bfloat16, torch.float16
NARROW = torch.float16, torch.bfloat16


def classes(n: int, v: int) -> Tensor:
    t = torch.randint(v, (n,))
    t[4::5] = -100
    return t


def shares(n: int, v: int) -> Tensor:
    return torch.rand(n, v, dtype=torch.float64).softmax(-1)


def answers(n: int, v: int) -> Tensor:
    return torch.rand(n, v, dtype=torch.float64)


def ce(h: Tensor, w: Tensor, b: Tensor | None, t: Tensor, **options: Any) -> Tensor:
    return linear_cross_entropy(h, w, t, linear_bias=b, **options)


def bce(h: Tensor, w: Tensor, b: Tensor | None, t: Tensor, **options: Any) -> Tensor:
    return linear_binary_cross_entropy(h, w, t, linear_bias=b, **options)


def se(activation: str) -> Loss:
    return lambda h, w, b, t, **options: dense_squared_error(h, w, b, t, activation, **options)


# Ours, the target, and the options that are tensors, for V columns and N rows.
CASES: dict[str, tuple[Loss, Callable[[int, int], Tensor], Callable[[int, int], dict[str, Any]]]] = {
    "classes": (ce, classes, lambda n, v: {}),
    "weighted classes": (ce, classes, lambda n, v: {"weight": torch.rand(v, dtype=torch.float64)}),
    "smoothed classes": (ce, classes, lambda n, v: {"label_smoothing": 0.3}),
    "weighted and smoothed classes": (
        ce,
        classes,
        lambda n, v: {"weight": torch.rand(v, dtype=torch.float64), "label_smoothing": 0.3},
    ),
    "another class ignored": (ce, lambda n, v: torch.randint(v, (n,)), lambda n, v: {"ignore_index": v - 1 or 9}),
    "probabilities": (ce, shares, lambda n, v: {}),
    "weighted and smoothed probabilities": (
        ce,
        shares,
        lambda n, v: {"weight": torch.rand(v, dtype=torch.float64), "label_smoothing": 0.3},
    ),
    "logistic": (bce, answers, lambda n, v: {}),
    "weighted rows": (bce, answers, lambda n, v: {"weight": torch.rand(n, 1, dtype=torch.float64)}),
    "weighted columns": (
        bce,
        answers,
        lambda n, v: {"weight": torch.rand(v, dtype=torch.float64), "pos_weight": 3 * torch.rand(1).double()},
    ),
    "positive entries": (bce, answers, lambda n, v: {"pos_weight": 3 * torch.rand(n, v, dtype=torch.float64)}),
    "squared error": (se("identity"), answers, lambda n, v: {}),
    "squared error of relu": (se("relu"), answers, lambda n, v: {}),
    "squared error of gelu": (se("gelu"), answers, lambda n, v: {}),
    "squared error of mish": (se("mish"), answers, lambda n, v: {}),
}


def truth(name: str, h: Tensor, w: Tensor, b: Tensor | None, t: Tensor, reduction: str, **options: Any) -> Tensor:
    """Compute the loss by torch's own operations, in float64."""
    z = F.linear(h, w, b)
    loss = CASES[name][0]
    if loss is ce:
        return F.cross_entropy(z, t, reduction=reduction, **options)
    if loss is bce:
        return F.binary_cross_entropy_with_logits(z, t, reduction=reduction, **options)
    f = get(name.removeprefix("squared error of ") if " of " in name else "identity").f
    return 0.5 * F.mse_loss(f(z), t, reduction=reduction)


def with_gradients(loss: Tensor, asked: Any, upstream: Tensor) -> list[Tensor]:
    return [loss.detach(), *torch.autograd.grad(loss, asked, upstream.to(loss.dtype))]


def is_native(loss: Tensor) -> bool:
    return type(loss.grad_fn).__name__ == "CppFunction"


def errors(
    name: str, n: int, d: int, v: int, dtype: torch.dtype, reduction: str, chunk_rows: int | None, bias: bool
) -> Tensor:
    """Compare native and plain with float64: the largest error of the value, dh, dw and db, by the largest entry."""
    ours, target, make = CASES[name]

    def narrowed(t: Any) -> Any:
        return t.to(dtype) if isinstance(t, Tensor) and t.is_floating_point() else t

    h = torch.randn(n, d, dtype=torch.float64).to(dtype).requires_grad_()
    w = (torch.randn(v, d, dtype=torch.float64) / d**0.5 * 2).to(dtype).requires_grad_()
    b = torch.randn(v, dtype=torch.float64).to(dtype).requires_grad_() if bias else None
    t, options = narrowed(target(n, v)), {key: narrowed(x) for key, x in make(n, v).items()}
    asked = (h, w) if b is None else (h, w, b)
    wide = [x.detach().double().requires_grad_() for x in asked]
    wide_options = {key: x.double() if isinstance(x, Tensor) else x for key, x in options.items()}
    wide_t = t.double() if t.is_floating_point() else t
    value = truth(name, wide[0], wide[1], wide[2] if bias else None, wide_t, reduction, **wide_options)
    # A narrow δ that is a mean's already takes another factor with a rounding of its own, unless that is a power of 2.
    factor = -1.5 if dtype in (torch.float64, torch.float32) else -2.0
    upstream = torch.randint(-4, 5, value.shape).double() if reduction == "none" else torch.tensor(factor).double()
    expected = with_gradients(value, wide, upstream)
    loss = ours(h, w, b, t, reduction=reduction, chunk_rows=chunk_rows, **options)
    assert is_native(loss)
    with native.without():
        by_plain = ours(h, w, b, t, reduction=reduction, chunk_rows=chunk_rows, **options)
        assert not is_native(by_plain)
        plain = with_gradients(by_plain, asked, upstream)
    mine = with_gradients(loss, asked, upstream)
    for a, c in zip(mine, plain, strict=True):
        assert a.dtype == c.dtype
        assert a.shape == c.shape
    return torch.stack(
        [
            torch.stack(
                [(a.double() - e).abs().max() / (1e-3 + e.abs().max()) for a, e in zip(found, expected, strict=True)]
            )
            for found in (mine, plain)
        ]
    )


def floor(dtype: torch.dtype) -> float:
    """Allow a few units in the last place that a loss is computed to: plain may hit the right number by chance."""
    return 64 * torch.finfo(dtype).eps if dtype is torch.float64 else 4 * torch.finfo(torch.float32).eps


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("chunk_rows", [None, 2, 99])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_the_error_is_at_most_twice_plains(
    name: str, reduction: str, chunk_rows: int | None, dtype: torch.dtype
) -> None:
    largest: list[Tensor] = []
    for seed, (n, d, v) in enumerate(2 * [(1, 3, 1), (7, 5, 3), (9, 4, 17), (5, 3, 33), (6, 7, 70)]):
        torch.manual_seed(seed)
        # Columns differ in V, and one bias in two.
        found = errors(name, n, d, v, dtype, reduction, chunk_rows, bias=seed % 2 == 0)
        largest.append(F.pad(found, (0, 4 - found.shape[1])))
    mine, plain = torch.stack(largest).amax(0)
    assert (mine <= 2 * plain + floor(dtype)).all(), (mine, plain)


@pytest.mark.parametrize("name", ["classes", "weighted and smoothed classes", "logistic", "squared error of gelu"])
@pytest.mark.parametrize(("n", "d", "v"), [(2**16, 4, 1), (2**16, 3, 5), (301, 16, 1003), (5, 8, 33000)], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_many_rows_or_columns_are_as_accurate(name: str, n: int, d: int, v: int, dtype: torch.dtype) -> None:
    for chunk_rows in (n, max(2, n // 5)):
        found = [errors(name, n, d, v, dtype, "mean", chunk_rows, bias=True) for _ in range(3)]
        mine, plain = torch.stack(found).amax(0)
        assert (mine <= 2 * plain + floor(dtype)).all(), (mine, plain)


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("chunk_rows", [None, 700])
def test_every_number_of_threads_gives_the_same_loss(name: str, chunk_rows: int | None) -> None:
    ours, target, make = CASES[name]
    n, d, v = 2000, 8, 40
    h, w, b = (torch.randn(*s, requires_grad=True) for s in ((n, d), (v, d), (v,)))
    t = target(n, v)
    t, options = t.float() if t.is_floating_point() else t, make(n, v)
    options = {key: x.float() if isinstance(x, Tensor) else x for key, x in options.items()}
    found = []
    for count in (1, 2, 2):
        with threads(count):
            loss = ours(h, w, b, t, chunk_rows=chunk_rows, **options)
            assert is_native(loss)
            found.append([loss.detach(), *torch.autograd.grad(loss, (h, w, b))])
    torch.testing.assert_close(found[1], found[0], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(found[2], found[1], rtol=0, atol=0)


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("chunk_rows", [None, 2])
def test_a_class_out_of_range_is_torchs_error_and_leaves_no_gradient(reduction: str, chunk_rows: int | None) -> None:
    h, w = torch.randn(5, 3), torch.randn(7, 3, requires_grad=True)
    for wrong in (7, -1, 2**40):
        t = torch.tensor([0, 1, 2, 3, wrong])
        with pytest.raises(IndexError, match=f"Target {wrong} is out of bounds."):
            linear_cross_entropy(h, w, t, reduction=reduction, chunk_rows=chunk_rows)
    assert w.grad is None


@pytest.mark.parametrize("chunk_rows", [None, 2])
def test_a_mean_over_ignored_rows_alone_is_nan_and_sends_nothing_back(chunk_rows: int | None) -> None:
    h, w = torch.randn(5, 3, requires_grad=True), torch.randn(7, 3, requires_grad=True)
    for upstream in (1.0, torch.nan):
        loss = linear_cross_entropy(h, w, torch.full((5,), -100), chunk_rows=chunk_rows)
        assert is_native(loss)
        assert loss.isnan()
        assert not any(g.any() for g in torch.autograd.grad(loss, (h, w), torch.tensor(upstream)))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_what_is_far_below_the_rounding_is_zero(dtype: torch.dtype) -> None:
    w = torch.tensor([[0.0], [-63.0], [-65.0], [-95.0], [-200.0], [70.0]], dtype=dtype, requires_grad=True)
    h = torch.ones(1, 1, dtype=dtype)
    for t in (torch.tensor([5]), torch.zeros(1, 6, dtype=dtype)):
        loss = (linear_cross_entropy if t.dim() == 1 else linear_binary_cross_entropy)(h, w, t, reduction="sum")
        (g,) = torch.autograd.grad(loss, w)
        zero = [True] * 5 if t.dim() == 1 else [False, dtype is torch.float16, True, True, True]
        assert (g[:5, 0] == 0).tolist() == zero


@pytest.mark.parametrize("name", ["classes", "logistic", "squared error of gelu"])
@pytest.mark.parametrize("chunk_rows", [None, 2])
@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_a_batch_of_cotangents_and_second_order_are_plains(name: str, chunk_rows: int | None, reduction: str) -> None:
    ours, target, _ = CASES[name]
    torch.manual_seed(3)
    h, w, b = (torch.randn(*s, dtype=torch.float64, requires_grad=True) for s in ((5, 3), (7, 3), (7,)))
    t, found = target(5, 7), []
    for without in (False, True):
        with native.without() if without else threads(torch.get_num_threads()):
            loss = ours(h, w, b, t, reduction=reduction, chunk_rows=chunk_rows)
        assert is_native(loss) is not without
        batch = torch.linspace(-1, 2, 3 * loss.numel(), dtype=torch.float64).view(3, *loss.shape)
        several = torch.autograd.grad(loss, (h, w, b), batch, retain_graph=True, is_grads_batched=True)
        first = torch.autograd.grad(loss, (h, w, b), batch[0].requires_grad_(), create_graph=True)
        second = torch.autograd.grad(sum(g.sin().sum() for g in first), (h, w, b))
        found.append([several, first, second])
    torch.testing.assert_close(*found, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("region", NARROW, ids=str)
@pytest.mark.parametrize("name", ["weighted classes", "logistic", "squared error of gelu"])
@pytest.mark.parametrize("chunk_rows", [None, 2])
def test_autocast_is_no_further_off_than_plains(region: torch.dtype, name: str, chunk_rows: int | None) -> None:
    ours, target, make = CASES[name]
    leaves = [torch.randn(*s) for s in ((9, 4), (7, 4), (7,))]
    t, options = target(9, 7), make(9, 7)

    def step(dtype: torch.dtype) -> list[Tensor]:
        h, w, b = (x.to(dtype, copy=True).requires_grad_() for x in leaves)
        given = {key: x.to(dtype) for key, x in options.items()}
        loss = ours(h, w, b, t.to(dtype) if t.is_floating_point() else t, chunk_rows=chunk_rows, **given)
        return [loss, *torch.autograd.grad(loss, (h, w, b))]

    exact = step(torch.float64)
    with torch.autocast("cpu", region):
        found = step(torch.float32)
        with native.without():
            plain = step(torch.float32)
    assert is_native(found[0])
    assert not is_native(plain[0])
    for x, y, z in zip(exact, found, plain, strict=True):
        rounding = torch.finfo(region).eps / 2 * x.abs().max()
        assert (y - x).abs().max() <= 2 * (z - x).abs().max() + rounding
        assert (z - x).abs().max() <= 2 * rounding


def test_what_is_unusual_is_left_to_plain() -> None:
    h, w, t = torch.randn(5, 3, requires_grad=True), torch.randn(7, 3, requires_grad=True), torch.arange(5)
    p = torch.rand(5, 7)
    usual = linear_cross_entropy(h, w, t)
    assert is_native(usual)
    assert not is_native(linear_cross_entropy(h, w, p.requires_grad_()))
    assert not is_native(linear_binary_cross_entropy(h, w, p))
    assert not is_native(linear_cross_entropy(h[:0], w, t[:0]))
    assert not is_native(dense_squared_error(h, w, None, torch.ones(5, 7, dtype=torch.int64)))
    with pytest.raises(ValueError, match="expected reduction"):
        linear_cross_entropy(h, w, t, reduction="total")
    with pytest.raises(ValueError, match="expected target"):
        linear_cross_entropy(h, w, t[:4])
    torch.testing.assert_close(linear_cross_entropy(h, w, t.to(torch.uint8)), usual, rtol=0, atol=0)
