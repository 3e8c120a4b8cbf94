"""Who calls is known, and the compiler gets what it fuses best."""

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
from torch.func import grad, hessian, jvp, vmap

from manual_mlp import Activation, activations, dense
from manual_mlp.activations import get
from manual_mlp.transforms import caller, is_plain

Draw = Callable[..., Tensor]

few_names = pytest.mark.parametrize("name", ["relu", "gelu"])


def assert_equal(a: Any, b: Any) -> None:
    torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-9)


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


def test_the_compiler_sees_the_operations_of_torchs_layer_and_nothing_else(draw: Draw) -> None:
    graphs: list[torch.fx.GraphModule] = []

    def keep(graph: torch.fx.GraphModule, _: Any) -> Any:
        graphs.append(graph)
        return graph

    torch.compiler.reset()
    inputs = draw(5, 4), draw(7, 4), draw(7)
    torch.compile(lambda *t: dense(*t, "tanh"), fullgraph=True, backend=keep)(*inputs)
    (graph,) = graphs
    assert [node.target for node in graph.graph.nodes if node.op.startswith("call")] == [F.linear, torch.tanh]


def test_the_compiler_takes_the_slope_that_a_users_record_says(draw: Draw) -> None:
    torch.compiler.reset()
    step = Activation(torch.sign, lambda z: torch.ones_like(z), torch.zeros_like)  # straight through
    inputs = draw(5, 4), draw(7, 4), draw(7)
    y = torch.compile(lambda *t: dense(*t, step), fullgraph=True, backend="aot_eager")(*inputs)
    (dh,) = torch.autograd.grad(y.sum(), inputs[:1])
    assert_equal(dh, torch.ones_like(y) @ inputs[1])


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
    assert seen == ["eager", *["transform"] * 4, "composite", "eager", "transform"]


def test_plain_is_refused_to_whatever_a_transform_looks_into() -> None:
    seen: list[bool] = []

    class Probe(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor) -> Tensor:
            return x.clone()

        @staticmethod
        def backward(ctx: Any, dy: Tensor) -> Tensor:
            seen.append(is_plain(dy))
            return dy

    x = torch.randn(3, requires_grad=True)
    y = Probe.apply(x)
    torch.autograd.grad(y, x, torch.ones(3), retain_graph=True)
    torch.autograd.grad(y, x, torch.ones(2, 3), is_grads_batched=True, retain_graph=True)
    with forward_ad.dual_level():
        torch.autograd.grad(y, x, torch.ones(3), retain_graph=True)
    vmap(lambda dy: torch.autograd.grad(y, x, dy, retain_graph=True)[0])(torch.ones(2, 3))
    assert seen == [True, False, False, False]


@pytest.mark.processes
def test_importing_the_package_does_not_import_the_compiler() -> None:
    code = "import sys, manual_mlp; sys.exit('torch._dynamo' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
