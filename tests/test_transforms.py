"""Every way of asking for a derivative gives the composite's answer."""

import importlib
import shutil
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import forward_ad
from torch.func import grad, hessian, jacfwd, jacrev, jvp, vjp, vmap

from manual_mlp import Activation, activations, dense, dense_squared_error
from manual_mlp.activations import get
from manual_mlp.transforms import caller, plain

Draw = Callable[..., Tensor]
Loss = Callable[[Tensor, Tensor, Tensor], Tensor]

some_names = pytest.mark.parametrize("name", ["identity", "relu", "tanh", "gelu", "silu"])
few_names = pytest.mark.parametrize("name", ["relu", "gelu"])


def ours(name: str) -> Loss:
    return lambda h, w, b: dense(h, w, b, name).pow(3).sum()


def theirs(name: str) -> Loss:
    return lambda h, w, b: get(name).f(F.linear(h, w, b)).pow(3).sum()


def assert_equal(a: Any, b: Any) -> None:
    torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-9)


def rows(f: Loss) -> Loss:
    """Read the loss of each row of h."""
    return vmap(f, in_dims=(0, None, None))


EVERY = (0, 1, 2)
TRANSFORMS: dict[str, Callable[[Loss], Callable[..., Any]]] = {
    "grad": lambda f: grad(f, EVERY),
    "vjp": lambda f: lambda *t: vjp(f, *t)[1](torch.ones_like(t[2][0])),
    "jvp": lambda f: lambda *t: jvp(f, t, t),
    "jacrev": lambda f: jacrev(f, EVERY),
    "jacfwd": lambda f: jacfwd(f, EVERY),
    "hessian": lambda f: hessian(f, EVERY),
    "vmap": rows,
    "vmap(grad)": lambda f: vmap(grad(f, EVERY), in_dims=(0, None, None)),
    "vmap(grad) over weights": lambda f: (
        lambda h, w, b: vmap(grad(f, EVERY), (None, 0, None))(h, w.expand(2, -1, -1), b)
    ),
    "vmap(hessian)": lambda f: vmap(hessian(f), in_dims=(0, None, None)),
    "grad(grad)": lambda f: grad(lambda *t: sum(g.square().sum() for g in grad(f, EVERY)(*t)), EVERY),
    "grad(jvp)": lambda f: grad(lambda *t: jvp(f, t, t)[1], EVERY),
    "jvp(grad)": lambda f: lambda *t: jvp(grad(f, EVERY), t, t),
    "functionalize": torch.func.functionalize,
    "jacrev(jacrev)": lambda f: jacrev(jacrev(f, EVERY), EVERY),
    "jvp(jvp)": lambda f: lambda h, w, b: jvp(lambda h: jvp(lambda w: f(h, w, b), (w,), (w,))[1], (h,), (h,)),
    "jacfwd(jacfwd)": lambda f: jacfwd(jacfwd(f, EVERY), EVERY),
    "jacrev(jacfwd(jacfwd))": lambda f: jacrev(jacfwd(jacfwd(f)), 1),
    "jacfwd(jacrev(jacfwd))": lambda f: jacfwd(jacrev(jacfwd(f)), 1),
    "jacrev(jacrev(jacrev))": lambda f: jacrev(jacrev(jacrev(f)), 1),
}


@some_names
@pytest.mark.parametrize("transform", TRANSFORMS.values(), ids=TRANSFORMS)
def test_a_transform_gives_the_composites_answer(draw: Draw, name: str, transform: Callable[[Loss], Any]) -> None:
    inputs = draw(3, 4), draw(2, 4), draw(2)
    assert_equal(transform(ours(name))(*inputs), transform(theirs(name))(*inputs))


@pytest.mark.parametrize("name", activations.names())
@pytest.mark.parametrize("transform", ["jvp", "vmap(grad)"])
def test_every_activation_has_forward_mode_and_per_sample_gradients(draw: Draw, name: str, transform: str) -> None:
    inputs = draw(3, 4), draw(2, 4), draw(2)
    a, b = (TRANSFORMS[transform](f(name))(*inputs) for f in (ours, theirs))
    torch.testing.assert_close(a, b, rtol=1e-11, atol=1e-11)


@some_names
@pytest.mark.parametrize("transform", ["grad", "jvp", "hessian", "grad(grad)", "jacfwd(jacfwd)"])
def test_a_transform_of_the_squared_error_gives_the_composites_answer(draw: Draw, name: str, transform: str) -> None:
    inputs, t = (draw(3, 4), draw(2, 4), draw(2)), draw(3, 2)

    def mine(h: Tensor, w: Tensor, b: Tensor) -> Tensor:
        return dense_squared_error(h, w, b, t, name)

    def torchs(h: Tensor, w: Tensor, b: Tensor) -> Tensor:
        return 0.5 * F.mse_loss(get(name).f(F.linear(h, w, b)), t, reduction="sum")

    assert_equal(TRANSFORMS[transform](mine)(*inputs), TRANSFORMS[transform](torchs)(*inputs))


@some_names
def test_create_graph_is_right_to_third_order(draw: Draw, name: str) -> None:
    inputs = draw(3, 4), draw(2, 4), draw(2)

    def third(f: Loss) -> tuple[Tensor, ...]:
        derivatives: tuple[Tensor, ...] = torch.autograd.grad(f(*inputs), inputs, create_graph=True)
        for create_graph in (True, False):
            scalar = sum(t.square().sum() for t in derivatives)
            derivatives = torch.autograd.grad(scalar, inputs, create_graph=create_graph)
        return derivatives

    a, b = third(ours(name)), third(theirs(name))
    for x, y in zip(a, b, strict=True):
        assert (x - y).abs().max() <= 1e-9 * y.abs().max()


@some_names
def test_batched_cotangents_give_each_ones_gradients(draw: Draw, name: str) -> None:
    inputs, dys = (draw(3, 4), draw(2, 4), draw(2)), draw(6, 3, 2, requires_grad=False)
    y = dense(*inputs, name)
    batched = torch.autograd.grad(y, inputs, dys, is_grads_batched=True, retain_graph=True)
    for k, dy in enumerate(dys):
        assert_equal([t[k] for t in batched], list(torch.autograd.grad(y, inputs, dy, retain_graph=True)))


@some_names
@pytest.mark.parametrize("created", ["inside", "outside"])
def test_dual_numbers_over_reverse_are_right(draw: Draw, name: str, created: str) -> None:
    inputs, tangent = (draw(3, 4), draw(2, 4), draw(2)), draw(3, 2, requires_grad=False)

    def directional(f: Callable[..., Tensor]) -> list[Tensor]:
        y = f(*inputs) if created == "outside" else None
        with forward_ad.dual_level():
            y = f(*inputs) if y is None else y
            dy = forward_ad.make_dual(torch.ones_like(tangent), tangent)
            return [forward_ad.unpack_dual(t).tangent for t in torch.autograd.grad(y, inputs, dy)]

    # torch has no forward mode over the backward of its silu.
    f = {"silu": lambda z: z * torch.sigmoid(z)}.get(name, get(name).f)
    assert_equal(directional(lambda *t: dense(*t, name)), directional(lambda h, w, b: f(F.linear(h, w, b))))


@some_names
def test_reverse_over_dual_numbers_is_right(draw: Draw, name: str) -> None:
    inputs = draw(3, 4), draw(2, 4), draw(2)

    def gradient_of_tangent(f: Loss) -> tuple[Tensor, ...]:
        with forward_ad.dual_level():
            y = f(*(forward_ad.make_dual(t, t.detach().sin()) for t in inputs))
            return torch.autograd.grad(forward_ad.unpack_dual(y).tangent, inputs)

    # torch has no forward mode over the backward of its silu.
    f = {"silu": lambda z: z * torch.sigmoid(z)}.get(name, get(name).f)
    expected = gradient_of_tangent(lambda h, w, b: f(F.linear(h, w, b)).pow(3).sum())
    assert_equal(gradient_of_tangent(ours(name)), expected)


BACKENDS = ["aot_eager", pytest.param("inductor", marks=pytest.mark.skipif(not shutil.which("g++"), reason="no g++"))]


@few_names
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dynamic", [False, True], ids=["static", "dynamic"])
def test_the_compiled_layer_is_right_forward_and_backward(draw: Draw, name: str, backend: str, dynamic: bool) -> None:
    torch.compiler.reset()
    layer = torch.compile(lambda *t: dense(*t, name), fullgraph=True, backend=backend, dynamic=dynamic)
    for n in (5, 9):
        inputs = draw(n, 4), draw(7, 4), draw(7)
        y, expected = layer(*inputs), get(name).f(F.linear(*inputs))
        assert_equal(y, expected)
        assert_equal(torch.autograd.grad(y.pow(3).sum(), inputs), torch.autograd.grad(expected.pow(3).sum(), inputs))


@pytest.mark.parametrize("name", activations.names())
def test_every_activation_compiles(draw: Draw, name: str) -> None:
    torch.compiler.reset()
    inputs = draw(5, 4), draw(7, 4), draw(7)
    y = torch.compile(lambda *t: dense(*t, name), fullgraph=True, backend="aot_eager")(*inputs)
    assert_equal(y, dense(*inputs, name))
    grads = (torch.autograd.grad(t.pow(3).sum(), inputs) for t in (y, dense(*inputs, name)))
    torch.testing.assert_close(*grads, rtol=1e-12, atol=1e-12)


@few_names
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_the_compiled_layer_is_accurate_in_half_precision(draw: Draw, name: str, dtype: torch.dtype) -> None:
    torch.compiler.reset()
    layer = torch.compile(lambda *t: dense(*t, name), fullgraph=True, backend="aot_eager")
    inputs = [draw(*s, dtype=dtype) for s in ((33, 17), (29, 17), (29,))]
    wide = [t.detach().double().requires_grad_() for t in inputs]
    truth = torch.autograd.grad(get(name).f(F.linear(*wide)).sum(), wide)
    results = [torch.autograd.grad(y.sum(), inputs) for y in (layer(*inputs), get(name).f(F.linear(*inputs)))]
    for mine, torchs, exact in zip(*results, truth, strict=True):
        assert (mine.double() - exact).abs().max() <= 2 * (torchs.double() - exact).abs().max() + 1e-6


def test_a_compiled_activation_that_ends_in_a_no_op_is_right(draw: Draw) -> None:
    torch.compiler.reset()
    cubic = Activation(lambda z: (z**3).to(z.dtype), lambda z: 3 * z**2, lambda z: 6 * z)
    inputs = draw(5, 4), draw(7, 4), draw(7)
    y = torch.compile(lambda *t: dense(*t, cubic), fullgraph=True, backend="aot_eager")(*inputs)
    expected = F.linear(*inputs) ** 3
    assert_equal(torch.autograd.grad(y.sum(), inputs), torch.autograd.grad(expected.sum(), inputs))


@few_names
@pytest.mark.parametrize("transform", ["grad", "grad(grad)", "vmap(grad)", "jvp"])
def test_a_compiled_transform_is_right(draw: Draw, name: str, transform: str) -> None:
    torch.compiler.reset()
    inputs = tuple(t.detach() for t in (draw(3, 4), draw(2, 4), draw(2)))
    compiled = torch.compile(TRANSFORMS[transform](ours(name)), fullgraph=True, backend="aot_eager")
    assert_equal(compiled(*inputs), TRANSFORMS[transform](theirs(name))(*inputs))


@few_names
def test_the_compiled_squared_error_is_right(draw: Draw, name: str) -> None:
    torch.compiler.reset()
    inputs = draw(5, 4), draw(7, 4), draw(7), draw(5, 7)
    loss = torch.compile(lambda *t: dense_squared_error(*t, name), fullgraph=True, backend="aot_eager")(*inputs)
    expected = dense_squared_error(*inputs, name)
    assert_equal(loss, expected)
    assert_equal(torch.autograd.grad(loss, inputs), torch.autograd.grad(expected, inputs))


def test_the_compiler_runs_the_formulas_written_here(draw: Draw, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.compiler.reset()
    inputs = draw(5, 4), draw(7, 4), draw(7)
    module = importlib.import_module("manual_mlp.dense")
    monkeypatch.setattr(module, "gradients", lambda delta, h, w, needed: (3 * h, None, None))
    y = torch.compile(lambda *t: dense(*t, "tanh"), fullgraph=True, backend="aot_eager")(*inputs)
    (dh,) = torch.autograd.grad(y.sum(), inputs[:1])
    assert torch.equal(dh, 3 * inputs[0])


def test_second_derivatives_through_a_compiled_layer_raise(draw: Draw) -> None:
    torch.compiler.reset()
    inputs = draw(5, 4), draw(7, 4), draw(7)
    y = torch.compile(lambda *t: dense(*t, "tanh"), backend="aot_eager")(*inputs)
    with pytest.raises(RuntimeError):
        torch.autograd.grad(torch.autograd.grad(y.sum(), inputs[:1], create_graph=True)[0].sum(), inputs)


def test_the_caller_is_known() -> None:
    seen: list[str] = []

    def f(x: Tensor) -> Tensor:
        seen.append(caller())
        return x.sin().sum()

    x = torch.randn(3)
    f(x)
    grad(f)(x)
    vmap(f)(x)
    jvp(f, (x,), (x,))
    hessian(f)(x)
    jvp(lambda x: jvp(f, (x,), (x,))[1], (x,), (x,))
    with torch.no_grad():
        f(x)
    with forward_ad.dual_level():
        f(x)
    assert seen == ["eager", *["transform"] * 4, "composite", "composite", "transform"]


def test_plain_is_refused_to_whatever_a_transform_looks_into() -> None:
    seen: list[bool] = []

    class Probe(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor) -> Tensor:
            return x.clone()

        @staticmethod
        def backward(ctx: Any, dy: Tensor) -> Tensor:
            seen.append(plain(dy))
            return dy

    x = torch.randn(3, requires_grad=True)
    y = Probe.apply(x)
    torch.autograd.grad(y, x, torch.ones(3), retain_graph=True)
    torch.autograd.grad(y, x, torch.ones(2, 3), is_grads_batched=True, retain_graph=True)
    with forward_ad.dual_level():
        torch.autograd.grad(y, x, torch.ones(3), retain_graph=True)
    vmap(lambda dy: torch.autograd.grad(y, x, dy, retain_graph=True)[0])(torch.ones(2, 3))
    assert seen == [True, False, False, False]


def test_importing_the_package_does_not_import_the_compiler() -> None:
    code = "import sys, manual_mlp; sys.exit('torch._dynamo' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
