"""The losses in chunks, as operations that a compiler leaves whole."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.utils.flop_counter import FlopCounterMode

from linear_losses import D, V, classes, derivatives, every_reduction
from manual_mlp import Activation, dense_squared_error, linear_binary_cross_entropy, linear_cross_entropy
from manual_mlp.engines import KERNELS, PLAIN, Engine, native
from manual_mlp.head.operations import Asked
from manual_mlp.precision import product_dtype

N = 16
Draw = Callable[..., Tensor]
Loss = Callable[..., Any]


def entropy(h: Tensor, w: Tensor, b: Tensor | None, t: Tensor, **options: Any) -> Any:
    return linear_cross_entropy(h, w, t, linear_bias=b, **options)


def binary(h: Tensor, w: Tensor, b: Tensor | None, t: Tensor, **options: Any) -> Any:
    return linear_binary_cross_entropy(h, w, t, linear_bias=b, **options)


def squared(h: Tensor, w: Tensor, b: Tensor | None, t: Tensor, **options: Any) -> Any:
    return dense_squared_error(h, w, b, t, **options)


# A loss, whether its target is classes, and its options.
CASES: dict[str, tuple[Loss, bool, dict[str, Any]]] = {
    "classes": (entropy, True, {}),
    "of_all": (
        entropy,
        True,
        {
            "weight": torch.linspace(0.5, 2, V, dtype=torch.float64),
            "row_weight": torch.linspace(0, 2, N, dtype=torch.float64),
            "label_smoothing": 0.1,
            "z_loss": 0.01,
            "softcap": 2.0,
        },
    ),
    "probabilities": (entropy, False, {"label_smoothing": 0.1}),
    "binary": (binary, False, {"pos_weight": torch.linspace(0.5, 2, V, dtype=torch.float64)}),
    "squared": (squared, False, {"activation": "tanh"}),
    "gelu": (squared, False, {"activation": "gelu_tanh"}),
}
every_case = pytest.mark.parametrize("name", CASES)
OPERATION = torch.ops.manual_mlp.linear_loss.default


def drawn(name: str, draw: Draw) -> tuple[Loss, tuple[Tensor, Tensor, Tensor], Tensor, dict[str, Any]]:
    loss, of_classes, options = CASES[name]
    inputs = draw(N, D), draw(V, D), draw(V)
    device = str(inputs[0].device)
    t = classes(N, device=device) if of_classes else torch.rand(N, V).double().to(device)
    return loss, inputs, t, {key: o.to(device) if isinstance(o, Tensor) else o for key, o in options.items()}


def with_all(value: Tensor, inputs: tuple[Tensor, ...]) -> list[Tensor]:
    return [value, *torch.autograd.grad(value.sum(), inputs)]


def compiled(loss: Loss, backend: Any = "aot_eager", **options: Any) -> Loss:
    torch.compiler.reset()
    return torch.compile(lambda *t: loss(*t, **options), fullgraph=True, backend=backend)


def graph_of(loss: Loss, *inputs: Tensor, **options: Any) -> list[Any]:
    """List what a compiler is given to run."""
    graphs: list[torch.fx.GraphModule] = []

    def keep(graph: torch.fx.GraphModule, _: Any) -> Any:
        graphs.append(graph)
        return graph

    compiled(loss, keep, **options)(*inputs)
    (graph,) = graphs
    return [node.target for node in graph.graph.nodes if node.op == "call_function"]


def arguments_of(loss: Loss, *inputs: Tensor, **options: Any) -> tuple[Any, ...]:
    """Return what a compiled loss calls the operation with."""
    given: list[tuple[Any, ...]] = []

    class Keeping(torch.fx.Interpreter):
        def call_function(self, target: Any, args: Any, kwargs: Any) -> Any:
            if target is OPERATION:
                given.append(args)
            return super().call_function(target, args, kwargs)

    compiled(loss, lambda graph, _: Keeping(graph).run, **options)(*inputs)
    (arguments,) = given
    return tuple(a.detach().requires_grad_(a.requires_grad) if isinstance(a, Tensor) else a for a in arguments)


@pytest.fixture(params=["native", "plain"])
def engine(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param == "plain":
        monkeypatch.setattr(native, "doors", None)
    elif native.doors is None:
        pytest.skip("native is not built")
    return str(request.param)


@every_case
@every_reduction
@pytest.mark.parametrize("chunk_rows", [2, 8])
def test_a_compiled_loss_equals_the_eager_one(
    name: str, reduction: str, chunk_rows: int, draw: Draw, engine: str
) -> None:
    loss, inputs, t, options = drawn(name, draw)
    options = options | {"reduction": reduction, "chunk_rows": chunk_rows}
    values = compiled(loss, **options)(*inputs, t), loss(*inputs, t, **options)
    g = torch.rand_like(values[1])
    found, expected = (torch.autograd.grad(value, inputs, g) for value in values)
    torch.testing.assert_close(values[0], values[1], rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


# It asks for the gradients of copies that it makes itself.
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
@every_case
@every_reduction
def test_it_passes_torchs_own_check_of_operations(name: str, reduction: str, draw: Draw, engine: str) -> None:
    loss, inputs, t, options = drawn(name, draw)
    stats = {"return_stats": True} if loss is entropy else {}
    asked = options | stats | {"reduction": reduction, "chunk_rows": 2}
    torch.library.opcheck(OPERATION, arguments_of(loss, *inputs, t, **asked))


@pytest.mark.parametrize("who", [PLAIN, KERNELS], ids=lambda who: who.name)
def test_chunks_live_on_under_a_compiler(who: Engine, draw: Draw, device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("manual_mlp.losses.engine_for", lambda t: who)
    inputs, t = (draw(N, D), draw(V, D), draw(V)), classes(N, device=device)
    assert OPERATION in graph_of(entropy, *inputs, t, chunk_rows=2)
    assert OPERATION not in graph_of(entropy, *inputs, t)  # few logits


@pytest.mark.parametrize(
    "what", ["target that requires grad", "unknown activation", "row weight that requires grad", "frozen input"]
)
def test_what_the_operation_is_not_for_is_composed(what: str, draw: Draw, device: str) -> None:
    inputs, t, options = (draw(N, D), draw(V, D), draw(V)), torch.rand(N, V).double().to(device), {"chunk_rows": 2}
    if what == "target that requires grad":
        case = entropy, (*inputs, t.requires_grad_()), options
    elif what == "unknown activation":
        case = squared, (*inputs, t), options | {"activation": Activation(torch.sin, torch.cos, lambda z: -z.sin())}
    elif what == "row weight that requires grad":
        case = entropy, (*inputs, classes(N, device=device)), options | {"row_weight": draw(N)}
    else:  # dw alone is larger than all logits
        case = entropy, (draw(N, 20).detach(), draw(V, 20), inputs[2], classes(N, device=device)), options
    loss, operands, options = case
    assert OPERATION not in graph_of(loss, *operands, **options)
    values = compiled(loss, **options)(*operands), loss(*operands, **options)
    asked = [x for x in operands if x.requires_grad]
    found, expected = (torch.autograd.grad(value, asked) for value in values)
    torch.testing.assert_close((values[0], found), (values[1], expected), rtol=1e-12, atol=1e-12)


@every_case
@every_reduction
def test_the_operations_own_second_order_is_right(name: str, reduction: str, draw: Draw, engine: str) -> None:
    # Under a backend that leaves autograd to eager, create_graph reaches the operation.
    loss, inputs, t, options = drawn(name, draw)
    options = options | {"reduction": reduction, "chunk_rows": 2}
    found = derivatives(compiled(loss, "eager", **options)(*inputs, t), inputs)
    expected = derivatives(loss(*inputs, t, **options), inputs)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("frozen", range(1, 8))
def test_only_what_requires_grad_is_computed(frozen: int, draw: Draw, device: str, engine: str) -> None:
    inputs, t = (draw(N, 2), draw(V, 2), draw(V)), classes(N, device=device)
    for k, x in enumerate(inputs):
        x.requires_grad_(not frozen >> k & 1)
    arguments = arguments_of(entropy, *inputs, t, chunk_rows=2)
    with FlopCounterMode(display=False) as flops:
        value, *_ = OPERATION(*inputs, *arguments[3:])
    products = 1 + inputs[0].requires_grad + inputs[1].requires_grad
    assert flops.get_total_flops() == 2 * N * 2 * V * products
    asked = [x for x in inputs if x.requires_grad]
    assert value.requires_grad == bool(asked)
    if asked:
        expected = torch.autograd.grad(entropy(*inputs, t), asked)
        torch.testing.assert_close(torch.autograd.grad(value, asked), expected, rtol=1e-12, atol=1e-12)


def test_where_the_output_is_made_again_it_counts_again(draw: Draw, device: str) -> None:
    inputs, t = (draw(N, D), draw(V, D), draw(V)), classes(N, device=device)
    arguments = arguments_of(entropy, *inputs, t, chunk_rows=2, reduction="none")
    with FlopCounterMode(display=False) as flops:
        OPERATION(*arguments)[0].sum().backward()
    assert flops.get_total_flops() == 2 * N * D * V * (1 + 3)


@every_reduction
def test_under_autocast_it_is_as_right_as_eager(reduction: str, draw: Draw, device: str, engine: str) -> None:
    inputs = tuple(draw(N, D).float().detach().requires_grad_() for N in (64, V))
    t, options = classes(64, device=device), {"chunk_rows": 16, "reduction": reduction}

    def amp(h: Tensor, w: Tensor, t: Tensor) -> Any:
        with torch.autocast(device, torch.bfloat16):
            return linear_cross_entropy(h, w, t, **options)

    values = compiled(amp)(*inputs, t), amp(*inputs, t)
    assert values[0].dtype is values[1].dtype is torch.float32
    inputs_of_truth = tuple(x.detach().double().requires_grad_() for x in inputs)
    truth = linear_cross_entropy(*inputs_of_truth, t, **options)
    for of_compiled, of_eager, true in zip(
        *map(with_all, values, (inputs, inputs)), with_all(truth, inputs_of_truth), strict=True
    ):
        assert (of_compiled - true).abs().max() <= 2 * (of_eager - true).abs().max() + 1e-6
    # A CPU without instructions for bfloat16 computes the products in float32.
    narrow = product_dtype(torch.bfloat16, torch.device(device)) == torch.bfloat16
    assert torch.allclose(values[0].double(), truth, rtol=1e-4) is not narrow


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@every_reduction
def test_in_every_dtype_it_is_as_right_as_eager(
    dtype: torch.dtype, reduction: str, draw: Draw, device: str, engine: str
) -> None:
    truth = draw(64, D), draw(V, D), draw(V)
    inputs = tuple(x.detach().to(dtype).requires_grad_() for x in truth)
    t, options = classes(64, device=device), {"chunk_rows": 16, "reduction": reduction}
    values = compiled(entropy, **options)(*inputs, t), entropy(*inputs, t, **options)
    assert values[0].dtype is values[1].dtype is dtype
    for value in values:
        assert [g.dtype for g in torch.autograd.grad(value.sum(), inputs, retain_graph=True)] == [dtype] * 3
    found, expected = (torch.autograd.grad(value.sum(), inputs) for value in values)
    torch.testing.assert_close((values[0], found), (values[1], expected), rtol=2 * torch.finfo(dtype).eps, atol=1e-6)


@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_no_batch_size_is_compiled_for_anew(reduction: str, draw: Draw, device: str) -> None:
    loss, w, sizes = compiled(entropy, reduction=reduction), draw(1000, D), (3, 300, 7, 1000)  # few logits, and many
    truth = [entropy(draw(n, D), w, None, torch.zeros(n, dtype=torch.long, device=device)) for n in sizes]
    assert truth
    loss(draw(5, D), w, None, torch.zeros(5, dtype=torch.long, device=device))
    loss(draw(6, D), w, None, torch.zeros(6, dtype=torch.long, device=device))  # torch makes the size dynamic
    with torch.compiler.set_stance("fail_on_recompile"):
        for n in sizes:
            h, t = draw(n, D), torch.zeros(n, dtype=torch.long, device=device)
            torch.testing.assert_close(loss(h, w, None, t), entropy(h, w, None, t, reduction=reduction))


def test_stats_are_those_of_eager(draw: Draw, device: str, engine: str) -> None:
    inputs, t = (draw(N, D), draw(V, D), draw(V)), classes(N, device=device)
    options: dict[str, Any] = {"return_stats": True, "chunk_rows": 2}
    (value, stats), (expected, of_eager) = compiled(entropy, **options)(*inputs, t), entropy(*inputs, t, **options)
    torch.testing.assert_close(stats, of_eager)
    assert not stats.logsumexp.requires_grad
    found = [torch.autograd.grad(v, inputs) for v in (value, expected)]
    torch.testing.assert_close(found[0], found[1], rtol=1e-12, atol=1e-12)


def test_export_and_transforms_get_no_operation_of_ours(draw: Draw, device: str) -> None:
    class Head(torch.nn.Module):
        def forward(self, h: Tensor, w: Tensor, t: Tensor) -> Tensor:
            return linear_cross_entropy(h, w, t, chunk_rows=2)

    h, w, t = draw(N, D), draw(V, D), classes(N, device=device)
    for strict in (True, False):
        program = torch.export.export(Head(), (h, w, t), strict=strict)
        assert not [node for node in program.graph.nodes if "manual_mlp" in str(node.target)]
    gradient = torch.func.grad(lambda h: Head()(h, w, t))
    assert OPERATION not in graph_of(lambda h: gradient(h), h)
    torch.testing.assert_close(gradient(h), torch.autograd.grad(Head()(h, w, t), h)[0])


def test_tangents_are_refused_where_a_compiled_graph_would_lose_them(draw: Draw, device: str) -> None:
    inputs, t = tuple(x.detach() for x in (draw(N, D), draw(V, D), draw(V))), classes(N, device=device)
    loss = compiled(entropy, chunk_rows=2)
    loss(*inputs, t)
    with forward_ad.dual_level():
        assert torch.equal(loss(*inputs, t), entropy(*inputs, t, chunk_rows=2))
        with pytest.raises(RuntimeError, match="expected a loss in chunks without tangents"):
            loss(forward_ad.make_dual(inputs[0], torch.ones_like(inputs[0])), *inputs[1:], t)


@pytest.mark.parametrize("dynamic", [None, True])
def test_a_cap_that_changes_is_compiled_for_anew(dynamic: bool | None, draw: Draw, device: str) -> None:
    torch.compiler.reset()
    inputs, t = (draw(N, D), draw(V, D), draw(V)), classes(N, device=device)

    def capped(cap: float) -> Any:
        return entropy(*inputs, t, softcap=cap, chunk_rows=2)

    run: Any = torch.compile(capped, fullgraph=True, backend="aot_eager", dynamic=dynamic)
    for cap in (2.0, 3.0, 4):
        torch.testing.assert_close(run(cap), capped(cap), rtol=1e-12, atol=1e-12)


def test_no_rows_and_no_gradient_make_no_chunk(draw: Draw, device: str, engine: str) -> None:
    h, w, b = (x.detach() for x in (draw(0, D), draw(V, D), draw(V)))
    options: dict[str, Any] = {"chunk_rows": 3, "reduction": "sum"}
    assert compiled(entropy, **options)(h, w, b, classes(1, device=device)[:0]) == 0


def test_the_operation_judges_what_it_is_told(draw: Draw, device: str) -> None:
    inputs, t = (draw(N, D), draw(V, D), draw(V)), classes(N, device=device)
    asked = Asked(*arguments_of(entropy, *inputs, t, chunk_rows=2))
    with pytest.raises(ValueError, match=r"expected a loss among .*, got 'nope'"):
        OPERATION(*asked._replace(loss="nope"))
    value, *_ = OPERATION(*asked._replace(needed=[True, False, True]))
    with pytest.raises(RuntimeError, match="expected needed to tell of every operand that requires grad"):
        value.backward()


@every_case
@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_second_derivatives_of_a_compiled_loss_are_refused(name: str, reduction: str, draw: Draw) -> None:
    loss, operands, target, options = drawn(name, draw)
    options = options | {"reduction": reduction, "chunk_rows": 4}
    torch._dynamo.reset()
    value = torch.compile(lambda *t: loss(*t, target, **options), fullgraph=True, backend="aot_eager")(*operands)
    # With an upstream gradient that is a constant: nothing but what backward keeps leads to the operands.
    first = torch.autograd.grad(value, operands, torch.ones_like(value), create_graph=True)
    with pytest.raises(RuntimeError, match="does not currently support double backward"):
        torch.autograd.grad(sum(d.sin().sum() for d in first) + value.sum(), operands)
