"""torch's private names: each answers as transforms.py takes it, and without one the answers stay right."""

import ast
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import forward_ad
from torch.func import functionalize, grad, hessian, jvp, vmap

from manual_mlp import MLP, backprop, dense, dense_squared_error, transforms
from manual_mlp.activations import get
from manual_mlp.engines import native

Draw = Callable[..., Tensor]


@pytest.fixture(autouse=True)
def _plainly() -> Iterator[None]:
    # Native asks its own questions, in C++.
    with native.without():
        yield


def during(transform: Callable[..., Any], question: Callable[[], Any]) -> list[Any]:
    """Ask a question in the body of a function that a transform runs."""
    answers = []

    def body(x: Tensor) -> Tensor:
        answers.append(question())
        return x.sin().sum()

    transform(body)(torch.randn(3))
    return answers


def forward(f: Callable[..., Any]) -> Callable[..., Any]:
    return lambda x: jvp(f, (x,), (x,))


def test_the_functorch_level_counts_the_transforms() -> None:
    assert transforms._functorch_level() is None
    assert during(grad, transforms._functorch_level) == [1]
    assert during(lambda f: vmap(lambda x: grad(f)(x[None])), transforms._functorch_level) == [2]


def test_the_dual_level_is_that_of_forward_mode() -> None:
    assert transforms._dual_level() == -1
    with forward_ad.dual_level():
        assert transforms._dual_level() == 0
    assert during(forward, transforms._dual_level) == [0]


def test_the_transforms_are_listed_by_kind() -> None:
    of = torch._C._functorch.TransformType
    assert transforms._transforms() == []
    assert during(grad, transforms._transforms) == [[of.Grad]]
    assert during(forward, transforms._transforms) == [[of.Jvp]]
    assert during(functionalize, transforms._transforms) == [[of.Functionalize]]
    assert during(lambda f: vmap(lambda x: f(x[None])), transforms._transforms) == [[of.Vmap]]
    assert during(lambda f: forward(forward(f)), transforms._transforms) == [[of.Jvp, of.Jvp]]


class Probe(torch.autograd.Function):
    """Ask a question in a backward pass."""

    @staticmethod
    def forward(ctx: Any, question: Callable[[Any, Tensor], Any], *inputs: Tensor) -> Tensor:
        ctx.question = question
        return sum(inputs)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> Any:
        ctx.question(ctx, dy)
        return None, *[dy] * (len(ctx.needs_input_grad) - 1)


def test_a_batch_of_cotangents_is_known() -> None:
    seen: list[bool] = []
    x = torch.randn(3, requires_grad=True)
    y = Probe.apply(lambda ctx, dy: seen.append(transforms._is_batch(dy)), x)
    torch.autograd.grad(y, x, torch.ones(3), retain_graph=True)
    torch.autograd.grad(y, x, torch.ones(2, 3), is_grads_batched=True)
    assert seen == [False, True]


def test_the_last_pass_is_the_one_that_frees_the_graph() -> None:
    seen: list[bool] = []
    x = torch.randn(3, requires_grad=True)
    y = Probe.apply(lambda *_: seen.append(transforms.last_pass()), x).sum()
    y.backward(retain_graph=True)
    torch.autograd.grad(y, x, create_graph=True)
    y.backward()
    assert seen == [False, False, True]
    assert not transforms.last_pass()


@pytest.mark.parametrize("leaves", [True, False], ids=["leaves", "computed"])
def test_the_engine_tells_which_inputs_it_asks_for(leaves: bool) -> None:
    seen: list[list[bool]] = []
    a, b = (t if leaves else t.clone() for t in (torch.randn(3, requires_grad=True) for _ in range(2)))
    y = Probe.apply(
        lambda ctx, dy: seen.append([transforms._will_run(node) for node, _ in ctx.next_functions]), a, b
    ).sum()
    torch.autograd.grad(y, a, retain_graph=True)
    torch.autograd.grad(y, b, retain_graph=True)
    torch.autograd.grad(y, (a, b), retain_graph=True)
    y.backward(inputs=[b], retain_graph=True)
    y.backward()
    assert seen == [[True, False], [False, True], [True, True], [False, True], [True, True]]


def test_a_node_that_is_called_by_hand_gives_what_requires_grad(draw: Draw) -> None:
    h, w, b = draw(5, 4), draw(7, 4), draw(7)
    y = dense(h, w, b, "tanh")
    dy = torch.randn_like(y)
    expected = torch.autograd.grad(y, (h, w, b), dy, retain_graph=True)
    seen: list[Any] = []
    x = torch.ones(1, requires_grad=True)
    Probe.apply(lambda *_: seen.append(y.grad_fn.apply(dy)), x).sum().backward()
    for result in (y.grad_fn.apply(dy), *seen):
        torch.testing.assert_close(result[:3], expected)


def test_without_functorch_the_package_imports_and_is_right() -> None:
    code = (
        "import torch\nkept = torch._C._functorch\ndel torch._C._functorch\nfrom manual_mlp import dense, transforms\n"
        "torch._C._functorch = kept\nassert transforms.caller() == 'composite'\n"
        "x = torch.ones(2, 3, requires_grad=True)\ndense(x, torch.ones(1, 3), None, 'tanh').sum().backward()"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_the_mark_of_a_compile_time_constant_is_the_one_torch_sets() -> None:
    marked = torch.compiler.assume_constant_result(lambda: None)
    assert vars(marked).items() <= vars(transforms.composed_while_compiling).items()


@pytest.mark.parametrize("name", [None, "set_code_exec_strategy", "_FrameAction", "_FrameExecStrategy"])
def test_what_runs_by_itself_has_the_marks_that_torch_sets(monkeypatch: pytest.MonkeyPatch, name: str | None) -> None:
    if name:
        without(monkeypatch, name)
    marked = transforms.by_itself("why")(lambda x: x + 1)
    assert vars(marked).items() <= vars(torch.compiler.disable(lambda x: x, reason="why")).items()
    assert marked(1) == 2


@pytest.mark.parametrize(
    "register", ["forward_pre_hook", "forward_hook", "full_backward_hook", "full_backward_pre_hook"]
)
def test_hooks_are_seen(register: str) -> None:
    module = torch.nn.Linear(2, 2)
    assert not transforms.has_hooks(module)
    getattr(module, f"register_{register}")(lambda *_: None)
    assert transforms.has_hooks(module)


@pytest.mark.parametrize(
    "register", ["forward_pre_hook", "forward_hook", "full_backward_hook", "full_backward_pre_hook"]
)
def test_hooks_of_every_module_are_seen(register: str) -> None:
    assert not transforms.modules_are_watched()
    handle = getattr(torch.nn.modules.module, f"register_module_{register}")(lambda *_: None)
    try:
        assert transforms.modules_are_watched()
    finally:
        handle.remove()
    assert not transforms.modules_are_watched()


def test_autocast_of_any_device_is_seen() -> None:
    assert not transforms.may_autocast()
    for kind in ("cpu", "cuda"):
        if kind == "cpu" or torch.cuda.is_available():
            with torch.autocast(kind, torch.bfloat16):
                assert transforms.may_autocast()
                with torch.autocast(kind, enabled=False):
                    assert not transforms.may_autocast()
    assert not transforms.may_autocast()


@pytest.mark.parametrize("register", ["hook", "post_accumulate_grad_hook"])
def test_hooks_of_a_parameter_are_seen(register: str) -> None:
    p = torch.nn.Parameter(torch.ones(3))
    assert not transforms.has_gradient_hooks(p)
    handle = getattr(p, f"register_{register}")(lambda _: None)
    assert transforms.has_gradient_hooks(p)
    handle.remove()
    assert not transforms.has_gradient_hooks(p)


def test_without_the_lists_of_hooks_a_parameter_counts_as_hooked() -> None:
    assert transforms.has_gradient_hooks(SimpleNamespace())


PRIVATE = {
    "maybe_current_level": "_functorch",
    "get_interpreter_stack": "_functorch",
    "TransformType": "_functorch",
    "is_legacy_batchedtensor": "_functorch",
    "_current_level": "forward_ad",
    "_will_engine_execute_node": "_core",
    "_get_current_graph_task_keep_graph": "_autograd",
    "_has_any_global_hook": "_module",
    "_is_any_autocast_enabled": "_core",
    "_len_torch_dispatch_stack": "_core",
    "_len_torch_function_stack": "_core",
    "_get_function_stack_at": "_core",
    "_is_tracing": "_core",
    "is_functorch_wrapped_tensor": "_functorch",
    "get_unwrapped": "_functorch",
    "set_code_exec_strategy": "_frames",
    "_FrameAction": "_frames",
    "_FrameExecStrategy": "_frames",
}


# Without one of these, who calls cannot be told.
UNKNOWN = "maybe_current_level", "_current_level", "_len_torch_function_stack", "_is_tracing"


def test_every_private_name_is_tried_without() -> None:
    tree = ast.parse(Path(transforms.__file__).read_text())
    owners = set(PRIVATE.values())
    asked = {
        node.attr: node.value.id
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id in owners
    }
    assert asked == PRIVATE


def without(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """Take a private name away."""
    owner = getattr(transforms, PRIVATE[name])
    others = {other: getattr(owner, other) for other in PRIVATE if other != name and hasattr(owner, other)}
    monkeypatch.setattr(transforms, PRIVATE[name], SimpleNamespace(**others))


@pytest.mark.parametrize("name", PRIVATE)
def test_without_a_private_name_a_network_is_still_right_or_refused(
    device: str, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    without(monkeypatch, name)
    x = torch.randn(5, 4, dtype=torch.float64, device=device, requires_grad=True)
    t = torch.randint(3, (5,), device=device)
    for tile_rows in (2, None):
        mlp = MLP([4, 7, 6, 3], "gelu", tile_rows=tile_rows, dtype=torch.float64, device=device)
        given, model = [x, *mlp.parameters()], mlp.to_sequential()
        results = []
        for module in (mlp, model):
            first = torch.autograd.grad(F.cross_entropy(module(x), t), given, create_graph=True)
            second = torch.autograd.grad(sum(g.square().sum() for g in first), given)
            dy = torch.ones(2, 5, 3, dtype=torch.float64, device=device)
            batched = torch.autograd.grad(module(x), given, dy, is_grads_batched=True)
            results.append([first, second, batched])
        torch.testing.assert_close(*results, rtol=1e-10, atol=1e-10)
        for p in given:
            p.grad = None
        if name in UNKNOWN:  # whether a transform, a mode or a tracer looks on cannot be told
            with pytest.raises(RuntimeError, match=r"expected backprop outside of torch.func"):
                backprop(mlp, x, t, tile_rows=tile_rows)
            continue
        backprop(mlp, x, t, tile_rows=tile_rows)
        torch.testing.assert_close([p.grad for p in given], list(results[1][0]), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("name", PRIVATE)
def test_without_a_private_name_every_answer_is_still_right(
    draw: Draw, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    without(monkeypatch, name)
    h, w, b, t = draw(5, 4), draw(7, 4), draw(7), draw(5, 7, requires_grad=False)

    def theirs(h: Tensor, w: Tensor, b: Tensor) -> Tensor:
        return 0.5 * F.mse_loss(torch.tanh(F.linear(h, w, b)), t, reduction="sum")

    def answers(f: Callable[..., Tensor]) -> list[Any]:
        first = torch.autograd.grad(f(h, w, b), (h, w, b), create_graph=True)
        second = torch.autograd.grad(sum(g.square().sum() for g in first), (h, w, b))
        batched = torch.autograd.grad(f(h, w, b), h, torch.ones(3, device=h.device).double(), is_grads_batched=True)
        nested = jvp(lambda h: jvp(lambda w: f(h, w, b), (w,), (w,))[1], (h,), (h,))
        return [first, second, batched, nested, hessian(f)(h, w, b), vmap(grad(f), (0, None, None))(h[None], w, b)]

    def mine(h: Tensor, w: Tensor, b: Tensor) -> Tensor:
        return 0.5 * (dense(h, w, b, "tanh") - t).square().sum()

    losses = [
        lambda h, w, b, chunk_rows=chunk_rows: dense_squared_error(h, w, b, t, get("tanh"), chunk_rows=chunk_rows)
        for chunk_rows in (None, 2, 8)
    ]
    for f in (mine, *losses):
        torch.testing.assert_close(answers(f), answers(theirs), rtol=1e-10, atol=1e-10)
    if name in UNKNOWN:
        assert transforms.caller() == "composite"
        torch.compiler.reset()
        compiled = torch.compile(mine, backend="aot_eager", fullgraph=True)
        torch.testing.assert_close(compiled(h, w, b), mine(h, w, b))
