"""dense() against f(F.linear()), in every dtype and layout."""

from collections.abc import Callable
from functools import partial
from itertools import product
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from manual_mlp import Activation, activations, dense
from manual_mlp.activations import get

Draw = Callable[..., Tensor]
every_name = pytest.mark.parametrize("name", activations.names())
some_names = pytest.mark.parametrize("name", ["identity", "relu", "tanh", "gelu", "silu"])


def composite(h: Tensor, w: Tensor, b: Tensor | None, activation: str | nn.Module | Activation) -> Tensor:
    return get(activation).f(F.linear(h, w, b))


def run(layer: Callable[..., Tensor], dy: Tensor, *inputs: Tensor) -> list[Tensor]:
    """Return the output and the gradient of every input."""
    y = layer(*inputs)
    return [y, *torch.autograd.grad(y, [t for t in inputs if t.requires_grad], dy)]


def assert_equal(ours: list[Tensor], theirs: list[Tensor], atol: float = 1e-12) -> None:
    assert len(ours) == len(theirs)
    for a, b in zip(ours, theirs, strict=True):
        assert a.dtype == b.dtype
        torch.testing.assert_close(a, b, rtol=0, atol=atol)


@every_name
@pytest.mark.parametrize("shape", [(4,), (5, 4), (2, 3, 4), (2, 1, 3, 4), (0, 4), (3, 0, 4)], ids=str)
@pytest.mark.parametrize("bias", [True, False], ids=["bias", "none"])
def test_values_and_gradients_are_the_composites(draw: Draw, name: str, shape: tuple[int, ...], bias: bool) -> None:
    h, w, dy = draw(*shape), draw(7, 4), draw(*shape[:-1], 7, requires_grad=False)
    inputs = (h, w, draw(7)) if bias else (h, w)
    assert_equal(
        run(lambda h, w, b=None: dense(h, w, b, name), dy, *inputs),
        run(lambda h, w, b=None: composite(h, w, b, name), dy, *inputs),
    )


@some_names
@pytest.mark.parametrize("d_in", [0, 4])
@pytest.mark.parametrize("d_out", [0, 7])
def test_layers_without_inputs_or_outputs_work(draw: Draw, name: str, d_in: int, d_out: int) -> None:
    inputs, dy = (draw(5, d_in), draw(d_out, d_in), draw(d_out)), draw(5, d_out, requires_grad=False)
    assert_equal(run(lambda *t: dense(*t, name), dy, *inputs), run(lambda *t: composite(*t, name), dy, *inputs))


@some_names
def test_an_empty_batch_gives_zero_gradients(draw: Draw, name: str) -> None:
    h, w, b = draw(0, 4), draw(7, 4), draw(7)
    dense(h, w, b, name).sum().backward()
    assert h.grad is not None
    assert h.grad.shape == (0, 4)
    assert torch.equal(w.grad, torch.zeros_like(w))
    assert torch.equal(b.grad, torch.zeros_like(b))


LAYOUTS = {
    "transposed": lambda t: t.mT.contiguous().mT,
    "sliced": lambda t: torch.cat([t, t], -1)[..., ::2],
    "expanded": lambda t: t[:1].expand_as(t),
    "offset": lambda t: torch.cat([t[:1], t])[1:],
}


@some_names
@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
@pytest.mark.parametrize("which", ["input", "weight", "dy"])
def test_any_memory_layout_gives_the_same(draw: Draw, name: str, layout: Callable[..., Tensor], which: str) -> None:
    given = {"input": draw(5, 4), "weight": draw(7, 4), "dy": draw(5, 7, requires_grad=False)}
    given[which] = layout(given[which])
    inputs, dy = (given["input"], given["weight"], draw(7)), given["dy"]
    assert_equal(run(lambda *t: dense(*t, name), dy, *inputs), run(lambda *t: composite(*t, name), dy, *inputs))


@some_names
def test_the_expanded_dy_of_a_sum_is_read_and_not_written(draw: Draw, name: str) -> None:
    h, w, b = draw(5, 4), draw(7, 4), draw(7)
    dense(h, w, b, name).sum().backward()
    expected = torch.autograd.grad(composite(h, w, b, name).sum(), (h, w, b))
    assert_equal([h.grad, w.grad, b.grad], list(expected))
    dy = draw(5, 7, requires_grad=False)
    before = dy.clone()
    dense(h, w, b, name).backward(dy)
    assert torch.equal(dy, before)


@some_names
@pytest.mark.parametrize("frozen", list(product([True, False], repeat=3)), ids=str)
def test_every_subset_of_frozen_inputs_gets_the_gradients_it_asks_for(
    draw: Draw, name: str, frozen: tuple[bool, ...]
) -> None:
    inputs = [t.requires_grad_(not f) for t, f in zip((draw(5, 4), draw(7, 4), draw(7)), frozen, strict=True)]
    y = dense(*inputs, name)
    assert y.requires_grad == (not all(frozen))
    if y.requires_grad:
        dy = draw(5, 7, requires_grad=False)
        assert_equal(run(lambda *t: dense(*t, name), dy, *inputs), run(lambda *t: composite(*t, name), dy, *inputs))


@some_names
def test_backward_twice_gives_the_same_twice(draw: Draw, name: str) -> None:
    h, w, b, dy = draw(5, 4), draw(7, 4), draw(7), draw(5, 7, requires_grad=False)
    y = dense(h, w, b, name)
    first = torch.autograd.grad(y, (h, w, b), dy, retain_graph=True)
    assert_equal(list(first), list(torch.autograd.grad(y, (h, w, b), dy)))
    with pytest.raises(RuntimeError, match="second time"):
        torch.autograd.grad(y, (h, w, b), dy)


@every_name
def test_saturated_inputs_give_the_composites_gradients(draw: Draw, name: str) -> None:
    h = (1e4 * draw(5, 4, requires_grad=False)).requires_grad_()
    inputs, dy = (h, draw(7, 4), draw(7)), draw(5, 7, requires_grad=False)
    ours = run(lambda *t: dense(*t, name), dy, *inputs)
    theirs = run(lambda *t: composite(*t, name), dy, *inputs)
    assert all(t.isfinite().all() for t in ours)
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-9)


@every_name
def test_nan_in_gives_nan_out(draw: Draw, name: str) -> None:
    h, w, b = draw(5, 4), draw(7, 4), draw(7)
    with torch.no_grad():
        h[2, 1] = torch.nan
    ours, theirs = dense(h, w, b, name), composite(h, w, b, name)
    assert torch.equal(ours.isnan(), theirs.isnan())
    assert ours[2].isnan().all()
    grads = torch.autograd.grad(ours.sum(), (h, w, b)), torch.autograd.grad(theirs.sum(), (h, w, b))
    for a, c in zip(*grads, strict=True):
        assert torch.equal(a.isnan(), c.isnan())


ROUGH = [*activations.names(), nn.Hardtanh(-0.1, 0.7), nn.LeakyReLU(0.3), nn.Softplus(3.0, 2.0), nn.ELU(0.7)]


@pytest.mark.parametrize("activation", ROUGH, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("offset", [0.0, -8.0, -3.0, 3.0, 40.0])
def test_the_error_is_at_most_twice_torchs_own(
    device: str, activation: str | nn.Module, dtype: torch.dtype, offset: float, every_case: bool
) -> None:
    layers = [partial(layer, activation=activation) for layer in (dense, composite)]
    results: list[tuple[list[Tensor], ...]] = []
    for seed in range(50 if every_case else 20):
        torch.manual_seed(seed)
        h, w, b, dy = (torch.randn(*s, device=device).to(dtype) for s in ((9, 17), (7, 17), (7,), (9, 7)))
        w /= 17**0.5
        b += offset
        low = (run(layer, dy, *(t.detach().requires_grad_() for t in (h, w, b))) for layer in layers)
        truth = run(layers[1], dy.double(), *(t.double().requires_grad_() for t in (h, w, b)))
        results.append((*low, truth))
    # By layer, and by result: the output and each gradient, of all seeds.
    ours, theirs, exact = ([torch.stack(t) for t in zip(*layer, strict=True)] for layer in zip(*results, strict=True))
    assert {t.dtype for t in (*ours, *theirs)} == {dtype}
    mine, torchs = (
        torch.stack([(a.double() - b).abs().max() for a, b in zip(layer, exact, strict=True)])
        for layer in (ours, theirs)
    )
    assert (mine <= 2 * torchs + 1e-6).all(), (mine, torchs)


@some_names
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("autocast", [False, True], ids=["plain", "autocast"])
def test_second_derivatives_in_low_precision_err_at_most_twice_as_much_as_torchs(
    device: str, name: str, dtype: torch.dtype, autocast: bool
) -> None:
    def second(layer: Callable[..., Tensor], *inputs: Tensor) -> tuple[Tensor, ...]:
        with torch.autocast(device, torch.bfloat16, enabled=autocast and inputs[0].dtype != torch.float64):
            y = layer(*inputs, name)
        first = torch.autograd.grad(y.square().sum(), inputs, create_graph=True)
        return torch.autograd.grad(sum(g.square().sum() for g in first), inputs)

    largest = torch.zeros(2, 3, dtype=torch.float64)
    for seed in range(50):
        torch.manual_seed(seed)
        given = [
            torch.randn(*s, device=device).to(torch.float32 if autocast else dtype) for s in ((9, 5), (7, 5), (7,))
        ]
        truth = second(composite, *(t.double().requires_grad_() for t in given))
        for k, layer in enumerate((dense, composite)):
            result = second(layer, *(t.detach().requires_grad_() for t in given))
            errors = torch.stack([(a.double() - b).abs().max() for a, b in zip(result, truth, strict=True)])
            largest[k] = torch.maximum(largest[k], errors.cpu())
    assert (largest[0] <= 2 * largest[1] + 1e-6).all(), largest


def test_inference_parameters_serve_where_torch_lets_them(draw: Draw, device: str) -> None:
    with torch.inference_mode():
        w, b = torch.randn(7, 4, device=device), torch.randn(7, device=device)
    h = draw(5, 4, dtype=torch.float32, requires_grad=False)
    # erf by Abramowitz and Stegun 7.1.26, torch's and ours, is off by 1.5e-7 at most, times |z|/2.
    torch.testing.assert_close(dense(h, w, b, "gelu"), composite(h, w, b, "gelu"), rtol=1e-6, atol=1e-6)
    weight = w.clone()
    h.requires_grad_()
    ours, theirs = (torch.autograd.grad(f(h, weight, b, "gelu").sum(), h) for f in (dense, composite))
    torch.testing.assert_close(ours, theirs)


AUTOCAST = [torch.bfloat16, torch.float16]


@every_name
@pytest.mark.parametrize("dtype", AUTOCAST, ids=str)
@pytest.mark.parametrize("inside", [False, True], ids=["backward outside", "backward inside"])
def test_autocast_computes_in_its_dtype_and_gives_gradients_in_the_inputs(
    draw: Draw, device: str, name: str, dtype: torch.dtype, inside: bool
) -> None:
    largest = torch.zeros(2, 4, dtype=torch.float64)
    for seed in range(10):
        torch.manual_seed(seed)
        wide = (draw(9, 4), draw(7, 4), draw(7))
        truth = run(lambda *t: composite(*t, name), torch.ones(9, 7, device=device, dtype=torch.float64), *wide)
        for k, layer in enumerate((dense, composite)):
            inputs = [t.detach().float().requires_grad_() for t in wide]
            with torch.autocast(device, dtype):
                y = layer(*inputs, name)
                if inside:
                    grads = torch.autograd.grad(y.sum(), inputs)
            if not inside:
                grads = torch.autograd.grad(y.sum(), inputs)
            assert [g.dtype for g in grads] == [torch.float32] * 3
            errors = [(a.double() - b).abs().max() for a, b in zip((y, *grads), truth, strict=True)]
            largest[k] = torch.maximum(largest[k], torch.stack(errors).detach().cpu())
    assert (largest[0] <= 2 * largest[1] + 1e-6).all(), largest


def test_autocast_output_dtype_is_the_composites(draw: Draw, device: str) -> None:
    h, w, b = (draw(*s, dtype=torch.float32) for s in ((5, 4), (7, 4), (7,)))
    for name, dtype in product(activations.names(), AUTOCAST):
        with torch.autocast(device, dtype):
            assert dense(h, w, b, name).dtype == composite(h, w, b, name).dtype


def test_under_autocast_a_half_input_and_float32_parameters_work(draw: Draw, device: str) -> None:
    h, w, b = draw(5, 4, dtype=torch.bfloat16), draw(7, 4, dtype=torch.float32), draw(7, dtype=torch.float32)
    with torch.autocast(device, torch.bfloat16):
        y = dense(h, w, b, "gelu")
    (dh,) = torch.autograd.grad(y.float().square().sum(), h, create_graph=True)
    dh.float().square().sum().backward()
    assert (dh.dtype, w.grad.dtype, b.grad.dtype) == (torch.bfloat16, torch.float32, torch.float32)


KEPT = {"identity": "nothing", "relu": "y", "sigmoid": "y", "tanh": "y", "gelu": "z", "silu": "z", "softplus": "z"}


@pytest.mark.parametrize("name", KEPT)
def test_the_layer_keeps_its_input_its_weight_and_one_tensor_at_most(draw: Draw, name: str) -> None:
    h, w, b = draw(5, 4), draw(7, 4), draw(7)
    kept: list[Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        y = dense(h, w, b, name)
    pointers = [t.data_ptr() for t in kept]
    assert pointers[:2] == [h.data_ptr(), w.data_ptr()]
    assert [t.shape for t in kept[2:]] == ([] if KEPT[name] == "nothing" else [(5, 7)])
    assert (y.data_ptr() in pointers) == (KEPT[name] == "y")


@pytest.mark.parametrize("which", range(3))
def test_an_in_place_change_of_what_was_kept_raises(draw: Draw, which: int) -> None:
    inputs = [draw(5, 4), draw(7, 4), draw(7)]
    y = dense(*inputs, "tanh")
    with torch.no_grad():
        (inputs[0], inputs[1], y)[which].mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


@pytest.mark.parametrize("name", ["tanh", "gelu"])
def test_an_in_place_change_of_the_bias_matters_to_no_derivative(draw: Draw, name: str) -> None:
    h, w, b = draw(5, 4), draw(7, 4), draw(7)

    def third(change: float) -> tuple[Tensor, ...]:
        y = dense(h, w, b, name)
        with torch.no_grad():
            b.mul_(change)
        derivatives = torch.autograd.grad(y.sum(), (h, w, b), create_graph=True)
        for _ in range(2):
            scalar = sum(t.square().sum() for t in derivatives)
            derivatives = torch.autograd.grad(scalar, (h, w, b), create_graph=True)
        with torch.no_grad():
            b.div_(change)
        return derivatives

    assert_equal(list(third(2.0)), list(third(1.0)))


@every_name
def test_second_derivatives_are_zero_and_missing_where_torchs_are(draw: Draw, name: str) -> None:
    h, w, b, v = draw(5, 4), draw(7, 4), draw(7), draw(6, 7)

    def second(layer: Callable[..., Tensor], deep: bool) -> list[Tensor | None]:
        y = layer(h, w, b, name)
        y = layer(y, v, None, name) if deep else y
        inputs = (h, w, b, v)[: 3 + deep]
        # The cotangent is constant, so that nothing but the layer's own terms is differentiated.
        first = torch.autograd.grad(y.sum(), inputs, create_graph=True)
        found: list[Tensor | None] = []
        for g in first:
            if g.requires_grad:
                found += torch.autograd.grad(g.sum(), inputs, retain_graph=True, allow_unused=True)
            else:
                found.append(None)
        return found

    for deep in (False, True):
        ours, theirs = second(dense, deep), second(composite, deep)
        assert [t is None for t in ours] == [t is None for t in theirs]
        for a, c in zip(ours, theirs, strict=True):
            if a is not None:
                torch.testing.assert_close(a, c, rtol=1e-9, atol=1e-9)


@some_names
@pytest.mark.parametrize("shape", [(4,), (1, 4), (5, 4)], ids=str)
def test_second_order_reads_its_cotangents_and_does_not_write_them(
    draw: Draw, name: str, shape: tuple[int, ...]
) -> None:
    inputs = draw(*shape), draw(7, 4), draw(7)
    first = torch.autograd.grad(dense(*inputs, name).square().sum(), inputs, create_graph=True)
    for asked in ((0,), (1,), (2,), (0, 1, 2)):
        cotangents = [torch.randn_like(first[k]) for k in asked]
        before = [t.clone() for t in (*cotangents, *inputs)]
        for _ in range(2):
            given = [first[k] for k in asked]
            torch.autograd.grad(given, inputs, cotangents, retain_graph=True, allow_unused=True)
            assert all(torch.equal(a, b) for a, b in zip((*cotangents, *inputs), before, strict=True))


def products(step: Callable[[], object]) -> int:
    """Count the matrix products of a step."""

    class Counter(TorchDispatchMode):
        count = 0

        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            self.count += func.overloadpacket in (torch.ops.aten.mm, torch.ops.aten.addmm, torch.ops.aten.addmm_)
            return func(*args, **(kwargs or {}))

    with Counter() as counter:
        step()
    return counter.count


@pytest.mark.parametrize("leaves", [True, False], ids=["leaves", "computed"])
@pytest.mark.parametrize("name", ["identity", "tanh", "gelu"])
def test_only_the_products_that_are_asked_for_are_computed(draw: Draw, name: str, leaves: bool) -> None:
    h, w, b = (t if leaves else t.clone() for t in (draw(5, 4), draw(7, 4), draw(7)))
    y = dense(h, w, b, name).sum()
    for asked, count in (((h,), 1), ((w,), 1), ((h, w), 2), ((b,), 0), ((h, w, b), 2)):
        assert products(lambda asked=asked: torch.autograd.grad(y, asked, retain_graph=True)) == count
    assert products(lambda: y.backward(retain_graph=True)) == 2


@pytest.mark.parametrize("name", ["relu", "tanh", "gelu"])
def test_a_second_derivative_takes_no_more_products_than_torchs(draw: Draw, name: str) -> None:
    h, w, v, b = draw(5, 4), draw(7, 4), draw(6, 7), draw(7)

    def step(layer: Callable[..., Tensor], asked: tuple[Tensor, ...]) -> None:
        y = layer(layer(h, w, b, name), v, None, name)
        first = torch.autograd.grad(y.sum(), asked, create_graph=True)
        sum(t.square().sum() for t in first).backward()

    for asked in ((h,), (w, b), (h, w, v, b)):
        assert products(lambda asked=asked: step(dense, asked)) <= products(lambda asked=asked: step(composite, asked))


def test_a_bias_that_is_computed_gets_its_second_derivative(draw: Draw) -> None:
    h, w, b = draw(5, 4), draw(7, 4), draw(7)

    def second(layer: Callable[..., Tensor]) -> tuple[Tensor, ...]:
        (dh,) = torch.autograd.grad(layer(h, w, b.exp(), "tanh").sum(), h, create_graph=True)
        return torch.autograd.grad(dh.square().sum(), (h, w, b))

    assert_equal(list(second(dense)), list(second(composite)), atol=1e-11)


def test_without_grad_mode_nothing_is_kept(draw: Draw) -> None:
    h, w, b = draw(5, 4), draw(7, 4), draw(7)
    for mode in (torch.no_grad, torch.inference_mode):
        with mode():
            y = dense(h, w, b, "gelu")
            again = dense(y, y.new_ones(2, 7), y.new_ones(2), "gelu")
        assert not y.requires_grad
        assert not again.requires_grad
        torch.testing.assert_close(y.clone(), composite(h, w, b, "gelu").detach(), rtol=1e-15, atol=1e-15)
