"""What linear_cross_entropy() is asked for beside its value: statistics, next tokens, torch's options."""

import copy
from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace
from typing import Any
from unittest import mock

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounter

from linear_losses import D, Draw, N, V, assert_same, classes, every_reduction, ours
from manual_mlp import LinearCrossEntropyLoss, linear_cross_entropy

few_chunks = pytest.mark.parametrize("chunk_rows", [2, 8, None])


class Own(Tensor):
    """A class that takes functions by their names."""


def statistics(h: Tensor, w: Tensor, t: Tensor, softcap: float | None, ignored: int) -> tuple[Tensor, Tensor]:
    z = F.linear(h, w).double()
    s = z if softcap is None else softcap * torch.tanh(z / softcap)
    if t.is_floating_point():
        return s.logsumexp(-1), s.argmax(-1) == t.argmax(-1)
    return s.logsumexp(-1), (s.argmax(-1) == t) & (t != ignored)


def compiled(*given: Tensor, **options: Any) -> Any:
    torch._dynamo.reset()
    return torch.compile(linear_cross_entropy, backend="aot_eager", fullgraph=True)(*given, **options)


WAYS: dict[str, Callable[..., Any]] = {
    "eager": linear_cross_entropy,
    "no grad": torch.no_grad()(linear_cross_entropy),
    "a transform": lambda h, *others, **options: torch.func.vjp(
        lambda h: linear_cross_entropy(h, *others, **options), h, has_aux=True
    )[::2],
    "the compiler": compiled,
    "a class": lambda h, *others, **options: linear_cross_entropy(h.as_subclass(Own), *others, **options),
    "a layer that is called": lambda h, w, t, **options: called(h, w, t, **options),
}


def called(h: Tensor, w: Tensor, t: Tensor, **options: Any) -> Any:
    options.pop("chunk_rows")
    module = LinearCrossEntropyLoss(w.shape[1], w.shape[0], dtype=w.dtype, device=w.device, **options)
    module.linear.weight = nn.Parameter(w.detach())
    module.linear.register_forward_hook(lambda *_: None)
    return module(h, t)


@few_chunks
@every_reduction
@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
@pytest.mark.parametrize("kind", ["classes", "ignored zero", "probabilities"])
@pytest.mark.parametrize("options", [{}, {"softcap": 1.5, "z_loss": 0.1}], ids=["no options", "options"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_the_statistics_of_every_row_come_with_the_loss_on_every_path(
    device: str,
    chunk_rows: int | None,
    reduction: str,
    way: Callable[..., Any],
    kind: str,
    options: dict[str, Any],
    dtype: torch.dtype,
) -> None:
    torch.manual_seed(1)
    h = torch.randn(2, N, D, device=device, dtype=dtype, requires_grad=True)
    w = torch.randn(V, D, device=device, dtype=dtype, requires_grad=True)
    t = classes(2, N, device=device)
    ignored = 0 if kind == "ignored zero" else -100
    with torch.no_grad():
        best = F.linear(h, w).argmax(-1)
    t[0] = torch.where(t[0] == -100, -100 if ignored else 0, best[0])
    if kind == "ignored zero":
        t[1] = t[1].clamp(min=0)
    target = F.one_hot(t.clamp(min=0), V).to(dtype) if kind == "probabilities" else t
    given = options | {"reduction": reduction, "chunk_rows": chunk_rows}
    if kind == "ignored zero":
        given["ignore_index"] = 0
    loss, seen = way(h, w, target, return_stats=True, **given)
    torch.testing.assert_close(loss, linear_cross_entropy(h, w, target, **given), check_dtype=dtype != torch.float64)
    lse, correct = statistics(h.detach(), w.detach(), target, options.get("softcap"), ignored)
    assert seen.logsumexp.shape == seen.correct.shape == (2, N)
    assert seen.logsumexp.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert not seen.logsumexp.requires_grad
    rounded = {torch.float64: 1e-12, torch.float32: 1e-5, torch.float16: 1e-2, torch.bfloat16: 6e-2}[dtype]
    torch.testing.assert_close(seen.logsumexp.double(), lse, rtol=rounded, atol=rounded)
    assert seen.correct.dtype == torch.bool
    assert torch.equal(seen.correct, correct) or dtype.itemsize == 2
    assert seen.correct.any()


@few_chunks
@pytest.mark.parametrize("region", [torch.bfloat16, torch.float16])
def test_statistics_come_under_autocast(device: str, chunk_rows: int | None, region: torch.dtype) -> None:
    h, w = torch.randn(N, D, device=device), torch.randn(V, D, device=device, requires_grad=True)
    t = classes(N, device=device)
    with torch.autocast(device, region):
        loss, seen = linear_cross_entropy(h, w, t, return_stats=True, chunk_rows=chunk_rows)
    assert loss.dtype == seen.logsumexp.dtype == torch.float32
    torch.testing.assert_close(seen.logsumexp, F.linear(h, w).logsumexp(-1).detach(), rtol=5e-2, atol=5e-2)


@few_chunks
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_an_ignored_row_is_not_right_and_smoothed_probabilities_are_seen(
    device: str, chunk_rows: int | None, smoothing: float
) -> None:
    h, w = torch.eye(D, device=device, dtype=torch.float64), torch.eye(D, device=device, dtype=torch.float64)
    w.requires_grad_()
    t, options = torch.arange(D, device=device), {"label_smoothing": smoothing, "chunk_rows": chunk_rows}
    lse = F.linear(h, w).logsumexp(-1).detach()
    _, seen = linear_cross_entropy(h, w, t, return_stats=True, ignore_index=0, **options)
    assert seen.correct.tolist() == [False, True, True, True]
    torch.testing.assert_close(seen.logsumexp, lse)
    _, seen = linear_cross_entropy(h, w, F.one_hot(t, D).double(), return_stats=True, **options)
    assert seen.correct.all()
    torch.testing.assert_close(seen.logsumexp, lse)


@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_a_backward_pass_leaves_the_statistics_alone(device: str, reduction: str) -> None:
    h, w = torch.randn(N, D, device=device), torch.randn(V, D, device=device, requires_grad=True)
    loss, seen = linear_cross_entropy(
        h, w, classes(N, device=device), return_stats=True, chunk_rows=2, reduction=reduction
    )
    seen.logsumexp.fill_(7)
    seen.correct.fill_(True)
    first = torch.autograd.grad(loss.sum(), w, create_graph=True)[0]
    torch.autograd.grad(first.sum(), w)
    assert (seen.logsumexp == 7).all()
    assert seen.correct.all()


@few_chunks
@every_reduction
@pytest.mark.parametrize("shift", [0, 1, 3, True, False])
@pytest.mark.parametrize("kind", ["classes", "probabilities"])
@pytest.mark.parametrize("leading", [(), (2,), (2, 3)], ids=str)
def test_a_shift_compares_each_row_with_a_later_target(
    draw: Draw, device: str, chunk_rows: int | None, reduction: str, shift: int, kind: str, leading: tuple[int, ...]
) -> None:
    length = 5
    inputs = draw(*leading, length, D), draw(V, D), draw(V)
    t = classes(*leading, length, device=device)
    t = torch.rand(*t.shape, V, dtype=torch.float64, device=device) if kind == "probabilities" else t
    u = torch.rand(*leading, length, dtype=torch.float64, device=device)
    rows, axis = length - int(shift), len(leading)
    h, w, b = inputs
    options = {"reduction": reduction, "chunk_rows": chunk_rows}
    mine = ours(h, w, b, t, row_weight=u, shift=shift, **options)
    later = (x.narrow(axis, int(shift), rows) for x in (t, u))
    theirs = ours(h[..., :rows, :], w, b, next(later), row_weight=next(later), **options)
    assert mine.shape == ((*leading, rows) if reduction == "none" else ())
    assert_same(mine, theirs, inputs)
    module = LinearCrossEntropyLoss(
        D, V, bias=True, dtype=torch.float64, device=device, shift=shift, reduction=reduction, chunk_rows=chunk_rows
    )
    module.linear.load_state_dict({"weight": w.detach(), "bias": b.detach()})
    hooked = copy.deepcopy(module)
    hooked.linear.register_forward_hook(lambda *_: None)
    for layer in (module, hooked):
        torch.testing.assert_close(layer(h, t, u), mine, rtol=1e-12, atol=1e-12)


def test_a_shift_is_the_next_token_of_a_language_model(device: str) -> None:
    h, w = torch.randn(2, 6, D, device=device), torch.randn(V, D, device=device)
    tokens = torch.randint(V, (2, 6), device=device)
    theirs = F.cross_entropy(F.linear(h, w)[:, :-1].reshape(-1, V), tokens[:, 1:].reshape(-1))
    torch.testing.assert_close(linear_cross_entropy(h, w, tokens, shift=True), theirs)
    _, seen = linear_cross_entropy(h, w, tokens, shift=True, return_stats=True)
    assert seen.logsumexp.shape == seen.correct.shape == (2, 5)


@pytest.mark.parametrize(
    ("shift", "shape", "error", "message"),
    [
        (5, (2, 5, D), ValueError, r"expected shift from 0 to 4 for input \(2, 5, 4\), got 5"),
        (-1, (2, 5, D), ValueError, "expected shift from 0 up, got -1"),
        (1.0, (2, 5, D), TypeError, "expected shift to be an int or a bool, got 1.0"),
        (None, (2, 5, D), TypeError, "expected shift to be an int or a bool, got None"),
        (1, (D,), ValueError, r"expected input \(\*, T, D\) where targets are shifted, got \(4,\)"),
    ],
)
def test_a_shift_that_leaves_nothing_is_told(
    shift: Any, shape: tuple[int, ...], error: type[Exception], message: str
) -> None:
    h, w, t = torch.randn(shape), torch.randn(V, D), torch.randint(V, shape[:-1])
    with pytest.raises(error, match=message):
        linear_cross_entropy(h, w, t, shift=shift)
    with pytest.raises(error, match=message):
        LinearCrossEntropyLoss(D, V, shift=shift)(h, t)


def test_what_does_not_fit_before_a_shift_is_told_with_the_shapes_that_came() -> None:
    h, w, t = torch.randn(2, 5, D), torch.randn(V, D), torch.randint(V, (2, 5))
    with pytest.raises(ValueError, match=r"expected target \(2, 5\) before it is shifted, got \(2, 4\)"):
        linear_cross_entropy(h, w, t[:, 1:], shift=1)
    with pytest.raises(ValueError, match=r"expected row_weight \(2, 5\) before it is shifted, got \(5,\)"):
        linear_cross_entropy(h, w, t, shift=1, row_weight=torch.ones(5))
    with pytest.raises(TypeError, match="expected target to be a tensor, got list"):
        linear_cross_entropy(h, w, [[1]], shift=1)


def torchs(**given: Any) -> Any:
    """Make torch's options; in a torch without them, what they are made of."""
    kind = getattr(nn, "LinearCrossEntropyOptions", None)
    defaults = {
        "batch_chunk_size": None,
        "chunking_method": "auto",
        "acc_policy": "auto",
        "acc_dtype": None,
        "allow_retain_graph": False,
    }
    return SimpleNamespace(**defaults | given) if kind is None else kind(**given)


def rows_taken(n: int = N, d: int = D, v: int = V, **options: Any) -> Any:
    """Tell how many rows at once a loss is asked for."""
    h, w, t = torch.randn(n, d), torch.randn(v, d), torch.zeros(n, dtype=torch.int64)
    with (
        mock.patch("manual_mlp.cross_entropy.loss_of_head") as asked,
        mock.patch("manual_mlp.engines.native.doors", None),
    ):
        linear_cross_entropy(h, w, t, **options)
    return asked.call_args.args[2]


def test_torchs_options_ask_for_rows_at_once() -> None:
    assert rows_taken(options=None) is None
    assert rows_taken(options=torchs()) is None
    assert rows_taken(options=torchs(), chunk_rows=3) == 3
    assert rows_taken(options=torchs(batch_chunk_size=2)) == 2
    assert rows_taken(options=torchs(batch_chunk_size=2), chunk_rows=2) == 2
    assert rows_taken(options=torchs(batch_chunk_size=2, chunking_method=None)) == 2
    assert rows_taken(options=torchs(chunking_method=None)) == N
    with pytest.raises(ValueError, match="expected chunk_rows 2 or None, as the options ask for 2 rows, got 3"):
        rows_taken(options=torchs(batch_chunk_size=2), chunk_rows=3)
    with pytest.raises(
        ValueError, match="expected options of one size of chunks, got 3 rows and 'aspect_ratio': 4 rows"
    ):
        rows_taken(options=torchs(batch_chunk_size=3, chunking_method="aspect_ratio"))


@pytest.mark.skipif(not hasattr(nn, "LinearCrossEntropyOptions"), reason="this torch has no such options")
@pytest.mark.parametrize("method", ["aspect_ratio", "aspect_ratio:1", "aspect_ratio:2", "aspect_ratio:7"])
@pytest.mark.parametrize("sizes", [(100, 8, 70), (1000, 64, 50000), (5, 4, 7), (17, 64, 3), (1, 1, 1), (4096, 7, 700)])
def test_rows_by_aspect_ratio_are_torchs(method: str, sizes: tuple[int, int, int]) -> None:
    options = torchs(chunking_method=method)
    theirs = replace(options)._adjust(*sizes, torch.float32).batch_chunk_size
    assert rows_taken(*sizes, options=options) == theirs


@pytest.mark.parametrize(
    "accepted", [{"acc_policy": "compact"}, {"acc_policy": "accurate"}, {"allow_retain_graph": True}]
)
def test_what_torchs_options_ask_for_besides_is_granted_in_any_case(device: str, accepted: dict[str, Any]) -> None:
    h, w = torch.randn(N, D, device=device), torch.randn(V, D, device=device, requires_grad=True)
    t = classes(N, device=device)
    losses = [linear_cross_entropy(h, w, t, options=torchs(batch_chunk_size=2, **more)) for more in ({}, accepted)]
    gradients = [torch.autograd.grad(loss, w, retain_graph=True)[0] for loss in losses]
    assert torch.equal(*losses)
    assert torch.equal(*gradients)
    # A graph is retained where autograd is asked to, whatever the options.
    assert all(torch.equal(torch.autograd.grad(loss, w)[0], gradients[0]) for loss in losses)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_sums_in_float32_at_least_are_what_torchs_options_may_ask_for(dtype: torch.dtype) -> None:
    h, w, t = torch.randn(N, D, dtype=dtype), torch.randn(V, D, dtype=dtype), classes(N)
    alone = linear_cross_entropy(h, w, t, chunk_rows=2)
    for acc_dtype in (None, torch.float32, *([torch.float64] if dtype == torch.float64 else [])):
        options = torchs(acc_dtype=acc_dtype, batch_chunk_size=2)
        assert torch.equal(linear_cross_entropy(h, w, t, options=options), alone)
        module = LinearCrossEntropyLoss(D, V, dtype=dtype, options=options)
        module.linear.weight = nn.Parameter(w)
        assert torch.equal(module(h, t), alone)
    for acc_dtype in (torch.float16, torch.bfloat16):
        with pytest.raises(ValueError, match=rf"added up in float32 at least, got {acc_dtype}"):
            linear_cross_entropy(h, w, t, options=torchs(acc_dtype=acc_dtype))
        with pytest.raises(ValueError, match=rf"added up in float32 at least, got {acc_dtype}"):
            LinearCrossEntropyLoss(D, V, options=torchs(acc_dtype=acc_dtype))
    if dtype != torch.float64:
        with pytest.raises(ValueError, match=rf"got torch.float64 for input of dtype {dtype}"):
            linear_cross_entropy(h, w, t, options=torchs(acc_dtype=torch.float64))


def test_other_options_than_torchs_are_told() -> None:
    h, w, t = torch.randn(N, D), torch.randn(V, D), classes(N)
    for wrong in ({"batch_chunk_size": 2}, 2, "auto"):
        with pytest.raises(TypeError, match=r"expected options to be torch.nn.LinearCrossEntropyOptions or None, got"):
            linear_cross_entropy(h, w, t, options=wrong)
        with pytest.raises(TypeError, match=r"expected options to be torch.nn.LinearCrossEntropyOptions or None, got"):
            LinearCrossEntropyLoss(D, V, options=wrong)


def test_a_cap_that_is_new_is_compiled_in_one_graph_and_another_recompiles_nothing(device: str) -> None:
    h, w = torch.randn(N, D, device=device), torch.randn(V, D, device=device, requires_grad=True)
    t, u = classes(N, device=device), torch.rand(N, device=device)
    torch._dynamo.reset()
    counter = CompileCounter()
    modules = [LinearCrossEntropyLoss(D, V, softcap=cap, z_loss=0.1, device=device) for cap in (1.0625, 2.0625)]
    steps = [torch.compile(module, backend=counter, fullgraph=True) for module in modules]
    for k in (0, 1, 0, 1):
        torch.testing.assert_close(steps[k](h, t, u), modules[k](h, t, u))
    assert counter.frame_count == 2
    step = torch.compile(linear_cross_entropy, backend=counter, fullgraph=True)
    loss = step(h, w, t, softcap=3.0625)
    torch.testing.assert_close(loss, linear_cross_entropy(h, w, t, softcap=3.0625))


@pytest.mark.parametrize("chunk_rows", [None, 2])
def test_a_batch_of_upstream_gradients_reaches_rows_that_are_no_view(
    chunk_rows: int | None, draw: Draw, device: str
) -> None:
    inputs, t = (draw(2, 3, 4), draw(7, 4)), torch.randint(7, (2, 3), device=device)
    asked = (linear_cross_entropy(*inputs, t, shift=1, chunk_rows=chunk_rows),)
    expected = (F.cross_entropy(F.linear(inputs[0][:, :-1], inputs[1]).flatten(0, 1), t[:, 1:].flatten()),)
    g = torch.rand(3, dtype=torch.float64, device=device)
    found, torchs = (torch.autograd.grad(loss, inputs, g, is_grads_batched=True) for loss in (asked, expected))
    torch.testing.assert_close(found, torchs, rtol=1e-10, atol=1e-12)


def test_a_modules_cap_can_be_changed() -> None:
    module, h, t = LinearCrossEntropyLoss(4, 7, softcap=3.0), torch.randn(5, 4), torch.randint(7, (5,))
    module.softcap = 0.5
    torch.testing.assert_close(module(h, t), linear_cross_entropy(h, module.linear.weight, t, softcap=0.5))
    with pytest.raises(ValueError, match="expected softcap above 0"):
        LinearCrossEntropyLoss(4, 7, softcap=0.0)
