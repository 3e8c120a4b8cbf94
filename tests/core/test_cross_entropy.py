"""linear_cross_entropy() and linear_binary_cross_entropy() against torch's own losses of F.linear()."""

import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks.memory import peak_bytes
from manual_mlp import dense_squared_error, fused, linear_binary_cross_entropy, linear_cross_entropy

Draw = Callable[..., Tensor]
Loss = Callable[..., Tensor]
N, D, V = 5, 4, 7
CHUNKS = 1, 2, 5, 8
every_reduction = pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
every_chunk = pytest.mark.parametrize("chunk_rows", [*CHUNKS, None])


def cross_entropy(h: Tensor, w: Tensor, b: Tensor | None, t: Tensor, **options: Any) -> Tensor:
    """Compute torch's loss, for input of any number of dimensions."""
    z = F.linear(h, w, b)
    flat = t.reshape(-1, V) if t.is_floating_point() else t.reshape(-1)
    loss = F.cross_entropy(z.reshape(-1, len(w)), flat, **options)
    return loss.reshape(h.shape[:-1]) if loss.dim() else loss


def ours(h: Tensor, w: Tensor, b: Tensor | None, t: Tensor, **options: Any) -> Tensor:
    return linear_cross_entropy(h, w, t, linear_bias=b, **options)


def binary(h: Tensor, w: Tensor, b: Tensor | None, t: Tensor, **options: Any) -> Tensor:
    return linear_binary_cross_entropy(h, w, t, linear_bias=b, **options)


def binary_of_torch(h: Tensor, w: Tensor, b: Tensor | None, t: Tensor, **options: Any) -> Tensor:
    return F.binary_cross_entropy_with_logits(F.linear(h, w, b), t, **options)


def classes(*shape: int, device: str = "cpu") -> Tensor:
    """Draw classes, one of them -100."""
    t = torch.randint(V, shape)
    t.view(-1)[-1:] = -100
    return t.to(device)


def with_gradients(loss: Tensor, inputs: Any) -> Any:
    return loss, torch.autograd.grad(loss.sum(), inputs)


def derivatives(loss: Tensor, inputs: tuple[Tensor, ...]) -> Any:
    """Compute the gradients, and those of a function of them, also by the upstream gradient."""
    upstream = torch.linspace(-1, 2, loss.numel(), dtype=loss.dtype, device=loss.device).view(loss.shape)
    upstream = (upstream + 1.5).requires_grad_()
    first = torch.autograd.grad(loss, inputs, upstream, create_graph=True)
    return first, torch.autograd.grad(sum(g.sin().sum() for g in first), (*inputs, upstream))


def assert_same(mine: Tensor, theirs: Tensor, inputs: tuple[Tensor, ...]) -> None:
    torch.testing.assert_close(mine, theirs, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(derivatives(mine, inputs), derivatives(theirs, inputs), rtol=1e-11, atol=1e-11)


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


STEPS: dict[str, Callable[[str, int], Loss]] = {
    "classes": lambda device, c: lambda h, w, b: ours(h, w, b, labels(device), chunk_rows=c),
    "probabilities": lambda device, c: lambda h, w, b: ours(h, w, b, fractions(device), chunk_rows=c),
    "each row": lambda device, c: (
        lambda h, w, b: ours(h, w, b, labels(device), reduction="none", label_smoothing=0.1, chunk_rows=c)
    ),
    "logistic": lambda device, c: lambda h, w, b: binary(h, w, b, fractions(device), chunk_rows=c),
    "each entry": lambda device, c: (
        lambda h, w, b: binary(
            h, w, b, fractions(device), pos_weight=3 * fractions(device)[0], reduction="none", chunk_rows=c
        )
    ),
    "squared error": lambda device, c: (
        lambda h, w, b: dense_squared_error(h, w, b, fractions(device), "gelu", "mean", chunk_rows=c)
    ),
    "each squared error": lambda device, c: (
        lambda h, w, b: dense_squared_error(h, w, b, fractions(device), "tanh", "none", chunk_rows=c)
    ),
}
every_step = pytest.mark.parametrize("make", STEPS.values(), ids=STEPS)


def labels(device: str) -> Tensor:
    return torch.tensor([3, 0, -100, 6, 3], device=device)


def fractions(device: str) -> Tensor:
    return torch.linspace(0, 1, N * V, dtype=torch.float64, device=device).sqrt().view(N, V)


@every_step
@pytest.mark.parametrize("chunk_rows", [2, 8])
def test_gradients_are_those_of_central_differences(
    draw: Draw, device: str, make: Callable[..., Loss], chunk_rows: int
) -> None:
    step, inputs = make(device, chunk_rows), (draw(N, D), draw(V, D), draw(V))
    assert gradcheck(step, inputs, check_forward_ad=True, check_batched_grad=True, check_batched_forward_grad=True)
    assert gradgradcheck(step, inputs, check_fwd_over_rev=True, check_batched_grad=True)


@every_step
@pytest.mark.parametrize("chunk_rows", CHUNKS)
def test_a_second_backward_pass_gives_the_same_bits(
    draw: Draw, device: str, make: Callable[..., Loss], chunk_rows: int
) -> None:
    inputs = draw(N, D), draw(V, D), draw(V)
    loss = make(device, chunk_rows)(*inputs)
    upstream = torch.randn_like(loss)
    before = [t.detach().clone() for t in (*inputs, upstream)]
    first = torch.autograd.grad(loss, inputs, upstream, retain_graph=True)
    kept = [g.clone() for g in first]
    for g in first:
        g.zero_()
    second = torch.autograd.grad(loss, inputs, upstream, retain_graph=True)
    last = torch.autograd.grad(loss, inputs, upstream)
    for k, g in enumerate(kept):
        assert torch.equal(second[k], g)
        assert torch.equal(last[k], g)
    for t, was in zip((*inputs, upstream), before, strict=True):
        assert torch.equal(t, was)
    with pytest.raises(RuntimeError, match="backward through the graph a second time"):
        torch.autograd.grad(loss, inputs, upstream)


@every_step
def test_a_node_called_by_hand_after_its_sums_were_handed_over_makes_them_again(
    draw: Draw, device: str, make: Callable[..., Loss]
) -> None:
    inputs = draw(N, D), draw(V, D), draw(V)
    loss = make(device, 2)(*inputs)
    expected = torch.autograd.grad(loss.sum(), inputs, retain_graph=True)
    loss.grad_fn.made = None
    torch.testing.assert_close(torch.autograd.grad(loss.sum(), inputs), expected, rtol=1e-12, atol=1e-12)


class Products(TorchDispatchMode):
    """Watch the matrix products, by the shapes of their results."""

    def __init__(self) -> None:
        super().__init__()
        self.shapes: list[tuple[int, ...]] = []
        self.denormal = False

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if func.overloadpacket.__name__ in ("mm", "addmm", "addmm_"):
            self.shapes.append(tuple(result.shape))
            for t in args:
                if isinstance(t, Tensor) and t.dtype in (torch.float32, torch.bfloat16):
                    self.denormal |= bool(((t != 0) & (t.abs() < torch.finfo(t.dtype).tiny)).any())
        return result


@pytest.mark.parametrize("step", [ours, binary, dense_squared_error])
@pytest.mark.parametrize("chunk_rows", [2, 8])
@pytest.mark.parametrize("frozen", ["input", "weight", "both", "all", "no_grad"])
def test_what_is_frozen_costs_no_product(draw: Draw, step: Loss, chunk_rows: int, frozen: str, device: str) -> None:
    d = 3  # so small that chunks keep no more than torch does
    h, w, b = draw(N, d), draw(V, d), draw(V)
    h.requires_grad_(frozen not in ("input", "both", "all"))
    w.requires_grad_(frozen not in ("weight", "both", "all"))
    b.requires_grad_(frozen != "all")
    t = classes(N, device=device) if step is ours else fractions(device)
    with Products() as seen:
        with torch.set_grad_enabled(frozen != "no_grad"):
            loss = step(h, w, b, t, chunk_rows=chunk_rows)
        if loss.requires_grad:
            loss.backward()
    wanted = [frozen in ("weight",), frozen in ("input",)]
    assert [(N % 2 + 1, d) in seen.shapes or (N, d) in seen.shapes, (V, d) in seen.shapes] == wanted
    chunks = 1 if chunk_rows > N else 3
    assert len([shape for shape in seen.shapes if shape[-1] == V]) == chunks
    assert [x.grad is None for x in (h, w, b)] == [not x.requires_grad or frozen == "no_grad" for x in (h, w, b)]


def test_autograd_grad_of_one_chunk_runs_only_the_products_it_is_asked_for(draw: Draw, device: str) -> None:
    h, w, b = draw(N, D), draw(V, D), draw(V)
    loss = ours(h, w, b, classes(N, device=device), chunk_rows=8)
    with Products() as seen:
        torch.autograd.grad(loss, h)
    assert seen.shapes == [(N, D)]


@contextmanager
def bfloat16_products(fast: bool) -> Iterator[None]:
    """Let a CPU be one whose products in bfloat16 are fast, or one whose are not."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fused, "has_fast_products", lambda dtype, device: fast or dtype.itemsize >= 4)
        yield


PRECISIONS = {
    "float32": (torch.float32, None),
    "float16": (torch.float16, None),
    "bfloat16": (torch.bfloat16, None),
    "autocast to float16": (torch.float32, torch.float16),
    "autocast to bfloat16": (torch.float32, torch.bfloat16),
}


@pytest.mark.parametrize("fast", [True, False], ids=["fast bfloat16", "slow bfloat16"])
@pytest.mark.parametrize("chunk_rows", [3, 16])
@pytest.mark.parametrize("reduction", ["mean", "none"])
@pytest.mark.parametrize(("mine", "theirs"), [(ours, cross_entropy), (binary, binary_of_torch)])
@pytest.mark.parametrize(("dtype", "region"), PRECISIONS.values(), ids=PRECISIONS)
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
    if not fast and torch.bfloat16 not in (dtype, region):
        pytest.skip("the dtype of the products is the same")
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


def test_no_operand_of_a_product_is_denormal(device: str) -> None:
    torch.manual_seed(0)
    h, w = torch.randn(64, 512, device=device), torch.randn(300, 512, device=device)
    t = torch.randint(300, (64,), device=device)
    for dtype in (torch.float32, torch.bfloat16):
        for reduction in ("mean", "none"):
            inputs = [x.to(dtype).requires_grad_() for x in (h, w)]
            with Products() as seen, bfloat16_products(fast=True):
                loss = linear_cross_entropy(*inputs, t, reduction=reduction, chunk_rows=16)
                loss.sum().backward()
            assert not seen.denormal
            with Products() as seen, bfloat16_products(fast=True):
                u = (torch.rand(64, 300, device=device) > 0.5).to(dtype)
                linear_binary_cross_entropy(*inputs, u, reduction="sum", chunk_rows=16).backward()
            assert not seen.denormal
    with Products() as seen:
        F.cross_entropy(F.linear(h, w.requires_grad_()), t).backward()
    assert seen.denormal or device != "cpu"


@pytest.mark.parametrize("step", [ours, binary, dense_squared_error])
def test_first_and_second_order_hold_a_few_chunks_of_logits(step: Loss) -> None:
    n, d, v, c = 512, 8, 1000, 16
    h, w, b = (torch.randn(*s, requires_grad=True) for s in ((n, d), (v, d), (v,)))
    t = torch.randint(v, (n,)) if step is ours else torch.rand(1, v).expand(n, v)
    logits, chunk, inputs = 4 * n * v, 4 * c * v, 4 * (n * d + v * d + v)

    def first() -> None:
        for x in (h, w, b):
            x.grad = None
        step(h, w, b, t, chunk_rows=c).backward()

    def second() -> None:
        g = torch.autograd.grad(step(h, w, b, t, chunk_rows=c), (h, w, b), create_graph=True)
        torch.autograd.grad(sum(x.square().sum() for x in g), (h, w, b))

    def forward() -> None:
        with torch.no_grad():
            step(h, w, b, t, chunk_rows=c)

    cpu = torch.device("cpu")
    overhead = 64 * n + 4096
    assert peak_bytes(forward, (h, w, b), cpu) <= 5 * chunk + overhead
    assert peak_bytes(first, (h, w, b), cpu) <= 5 * chunk + 2 * inputs + overhead
    assert peak_bytes(second, (h, w, b), cpu) <= 12 * chunk + 6 * inputs + overhead
    assert 12 * chunk + 6 * inputs + overhead < 0.6 * logits


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


@pytest.mark.parametrize("chunk_rows", [2, 8, None])
@every_reduction
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("case", ["every row is ignored", "ignored, with weights", "weights of zero"])
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
    if case == "weights of zero" and smoothing and reduction == "mean":  # torch adds 0/0 to what is divided by 0
        assert not any(loss.isfinite() for loss in losses)
        return
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


@pytest.mark.parametrize("chunk_rows", [2, 8, None])
@pytest.mark.parametrize("step", [ours, binary])
def test_a_target_of_another_dtype_is_taken_as_torch_takes_it(device: str, chunk_rows: int | None, step: Loss) -> None:
    h, w = (torch.randn(*s, device=device).bfloat16().requires_grad_() for s in ((N, D), (V, D)))
    t, theirs = torch.rand(N, V, device=device), cross_entropy if step is ours else binary_of_torch
    mine, own = step(h, w, None, t, chunk_rows=chunk_rows), theirs(h, w, None, t)
    torch.testing.assert_close(mine, own)
    torch.testing.assert_close(torch.autograd.grad(mine, (h, w)), torch.autograd.grad(own, (h, w)))


def test_classes_of_one_byte_are_taken(device: str) -> None:
    h, w = torch.randn(N, D, device=device), torch.randn(V, D, device=device, requires_grad=True)
    t = torch.randint(V, (N,), device=device)
    loss = linear_cross_entropy(h, w, t.to(torch.uint8), chunk_rows=2)
    assert torch.equal(loss, linear_cross_entropy(h, w, t, chunk_rows=2))


@pytest.mark.parametrize("change", ["target", "weight"])
def test_a_target_or_class_weight_changed_before_backward_is_an_error(device: str, change: str) -> None:
    h, w = torch.randn(N, D, device=device), torch.randn(V, D, device=device, requires_grad=True)
    t, v = torch.randint(V, (N,), device=device), torch.rand(V, device=device)
    for reduction in ("mean", "none"):
        loss = linear_cross_entropy(h, w, t, weight=v, reduction=reduction, chunk_rows=2).sum()
        (t if change == "target" else v).zero_()
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            loss.backward()


@pytest.mark.parametrize("chunk_rows", [2, 8, None])
@pytest.mark.parametrize("create_graph", [True, False])
def test_an_ignored_row_takes_no_upstream_gradient_not_even_nan(
    draw: Draw, device: str, chunk_rows: int | None, create_graph: bool
) -> None:
    inputs, t = (draw(N, D), draw(V, D), draw(V)), torch.tensor([3, -100, 5, 0, -100], device=device)
    upstream = torch.tensor([1.0, torch.nan, 2.0, -1.0, torch.inf], dtype=torch.float64, device=device)
    losses = (
        ours(*inputs, t, reduction="none", chunk_rows=chunk_rows),
        cross_entropy(*inputs, t, reduction="none"),
    )
    results = [torch.autograd.grad(loss, inputs, upstream, create_graph=create_graph) for loss in losses]
    assert all(g.isfinite().all() for g in results[0])
    torch.testing.assert_close(*results, rtol=1e-12, atol=1e-12)
    nothing = torch.full((N,), -100, device=device)
    loss = ours(*inputs, nothing, chunk_rows=chunk_rows)
    assert not any(g.any() for g in torch.autograd.grad(loss.sin(), inputs, create_graph=create_graph))


@pytest.mark.parametrize("chunk_rows", [2, 8, None])
@pytest.mark.parametrize("change", ["whole", "base"])
@pytest.mark.parametrize("step", [ours, binary, dense_squared_error])
def test_a_bias_changed_in_place_after_the_loss_is_the_bias_it_was(
    draw: Draw, device: str, step: Loss, chunk_rows: int | None, change: str
) -> None:
    h, w, leaf = draw(N, D), draw(V, D), draw(V + 1)
    t = labels(device) if step is ours else fractions(device)

    def second(altered: bool) -> tuple[Tensor, ...]:
        base = leaf * 1
        b = base[:V]
        loss = step(h, w, b, t, chunk_rows=chunk_rows)
        if altered:
            if change == "whole":
                b.mul_(3)
            else:
                base[:V] = 0
        first = torch.autograd.grad(loss, (h, w, leaf), create_graph=True)
        return *first, *torch.autograd.grad(sum(g.sin().sum() for g in first), (h, w, leaf))

    torch.testing.assert_close(second(True), second(False), rtol=0, atol=0)


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


@pytest.mark.parametrize("step", [ours, binary, dense_squared_error])
@pytest.mark.parametrize("chunk_rows", [2, 8])
def test_a_loss_that_is_kept_keeps_nothing_after_its_last_pass(
    draw: Draw, device: str, step: Loss, chunk_rows: int
) -> None:
    h, w, b = draw(N, D), draw(V, D), draw(V)
    t = torch.rand(N, V, dtype=torch.float64, device=device)
    seen = weakref.ref(t)
    loss = step(h, w, b, t, chunk_rows=chunk_rows)
    loss.backward()
    del t
    assert seen() is None
    assert loss.grad_fn.made is None
