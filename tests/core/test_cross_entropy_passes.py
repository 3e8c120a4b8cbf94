"""What the passes over a loss compute and keep: no product in vain, a few chunks of logits."""

import weakref
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.memory import peak_bytes
from linear_losses import (
    CHUNKS,
    D,
    Draw,
    Loss,
    N,
    Products,
    V,
    bfloat16_products,
    binary,
    classes,
    cross_entropy,
    every_step,
    fractions,
    labels,
    ours,
)
from manual_mlp import dense_squared_error, linear_binary_cross_entropy, linear_cross_entropy
from manual_mlp.engines import native


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
    with native.without():
        loss = make(device, 2)(*inputs)
    expected = torch.autograd.grad(loss.sum(), inputs, retain_graph=True)
    loss.grad_fn.made = None
    torch.testing.assert_close(torch.autograd.grad(loss.sum(), inputs), expected, rtol=1e-12, atol=1e-12)


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
    assert getattr(loss.grad_fn, "made", None) is None
