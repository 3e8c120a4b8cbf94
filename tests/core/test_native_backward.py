"""Native's nodes in the backward pass: however they are called, they give what plain's give, and only what is asked."""

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.testing._internal.two_tensor import TwoTensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint

from benchmarks.memory import kept_bytes
from conditions import threads
from manual_mlp import MLP, dense, dense_squared_error, linear_binary_cross_entropy, linear_cross_entropy
from manual_mlp.engines import native

if native.doors is None:
    pytest.skip(f"native is off: {native.why()}", allow_module_level=True)

N, D, V = 9, 4, 3
Results = list[Tensor]


def draw(*shape: int) -> Tensor:
    return torch.randn(shape, dtype=torch.float64)


def leaves_of(*tensors: Tensor) -> list[Tensor]:
    return [t.detach().clone().requires_grad_() for t in tensors]


class Case:
    """A node: what it computes of its operands, h the first."""

    def __init__(self, node: str, f: Callable[..., Tensor], *shapes: tuple[int, ...]) -> None:
        self.node, self.f = node, f
        draws = torch.Generator().manual_seed(5)
        self.given = [torch.randn(shape, dtype=torch.float64, generator=draws) for shape in shapes]

    def leaves(self) -> list[Tensor]:
        return leaves_of(*self.given)

    def __call__(self, *t: Tensor) -> Tensor:
        torch.manual_seed(2)
        return self.f(*t)


def layer(activation: str | None) -> Case:
    return Case("DenseFunction", lambda h, w, b: dense(h, w, b, activation), (N, D), (V, D), (V,))


def network(tile_rows: int | None, dropout: float, activation: str = "gelu") -> Case:
    mlp = MLP([D, 5, 6, V], activation, tile_rows=tile_rows, dropout=dropout, dtype=torch.float64)

    def run(h: Tensor, *parameters: Tensor) -> Tensor:
        net = copy.deepcopy(mlp)
        for k, module in enumerate(net.layers):
            del module.weight, module.bias
            module.register_parameter("weight", None)
            module.register_parameter("bias", None)
            module._parameters.update(weight=parameters[2 * k], bias=parameters[2 * k + 1])
        return net(h)

    node = "TiledFunction" if tile_rows else "NetworkFunction"
    return Case(node, run, (N, D), *(tuple(p.shape) for p in mlp.parameters()))


def entropy(h: Tensor, w: Tensor, b: Tensor, rows: int | None) -> Tensor:
    return linear_cross_entropy(h, w, torch.arange(N) % V, linear_bias=b, label_smoothing=0.1, chunk_rows=rows)


def logistic(h: Tensor, w: Tensor, b: Tensor, rows: int | None) -> Tensor:
    return linear_binary_cross_entropy(h, w, torch.full((N, V), 0.3).double(), linear_bias=b, chunk_rows=rows)


def squared(h: Tensor, w: Tensor, b: Tensor, rows: int | None) -> Tensor:
    return dense_squared_error(h, w, b, torch.ones(N, V).double(), "silu", chunk_rows=rows)


def each_row(h: Tensor, w: Tensor, b: Tensor, rows: int | None) -> Tensor:
    t = torch.tensor([0, 1, -100, 2, 1, 0, 2, 2, 1])
    return linear_cross_entropy(h, w, t, linear_bias=b, reduction="none", chunk_rows=rows)


def head(f: Callable[..., Tensor], rows: int | None) -> Case:
    return Case("", lambda *t: f(*t, rows), (N, D), (V, D), (V,))


CASES: dict[str, Case] = {
    **{f"a layer of {name}": layer(name) for name in ("identity", "relu", "tanh", "gelu", "softplus", "mish")},
    "a network": network(None, 0.0),
    "a network of tanh with dropout": network(None, 0.4, "tanh"),
    "a network of mish with dropout": network(None, 0.4, "mish"),
    "tiles": network(2, 0.0),
    "tiles with dropout": network(2, 0.4, "silu"),
    **{
        f"{f.__name__}, {rows} rows": head(f, rows)
        for f in (entropy, logistic, squared, each_row)
        for rows in (None, 4)
    },
}
every_case = pytest.mark.parametrize("case", CASES.values(), ids=CASES)


def grads(y: Sequence[Tensor] | Tensor, t: Sequence[Tensor], *args: Any, **options: Any) -> Results:
    return list(torch.autograd.grad(y, t, *args, materialize_grads=True, **options))


def cotangent(y: Tensor) -> Tensor:
    return torch.linspace(-1, 2, y.numel(), dtype=y.dtype).view(y.shape)


# Ways to call the backward pass: each gives a list of tensors.


def usual(case: Case) -> Results:
    t = case.leaves()
    y = case(*t)
    return grads(y, t, cotangent(y))


def backward_twice(case: Case) -> Results:
    t = case.leaves()
    y = case(*t)
    y.backward(cotangent(y), retain_graph=True)
    y.backward(2 * cotangent(y))
    with pytest.raises(RuntimeError, match="second time"):
        y.backward(cotangent(y))
    return [x.grad for x in t]


def batched(case: Case) -> Results:
    t = case.leaves()
    y = case(*t)
    dy = torch.stack([cotangent(y), -cotangent(y).sin()])
    return [*grads(y, t, dy, is_grads_batched=True, retain_graph=True), *grads(y, t, cotangent(y))]


def batched_at_second_order(case: Case) -> Results:
    t = case.leaves()
    y = case(*t)
    first = [g for g in grads(y, t, cotangent(y), create_graph=True) if g.requires_grad]
    tildes = [torch.stack([g.detach().cos(), g.detach()]) for g in first]
    return grads(first, t, tildes, is_grads_batched=True) if first else []


def with_anomalies(case: Case) -> Results:
    with torch.autograd.set_detect_anomaly(True):
        return [*usual(case), *twice_differentiated(case)]


def checkpointed(reentrant: bool) -> Callable[[Case], Results]:
    def run(case: Case) -> Results:
        t = case.leaves()
        y = checkpoint(case, *t, use_reentrant=reentrant)
        y.backward(cotangent(y))
        return [x.grad for x in t]

    return run


def on_cpu(case: Case) -> Results:
    with torch.autograd.graph.save_on_cpu():
        return [*usual(case), *twice_differentiated(case)]


def in_a_hook(case: Case) -> Results:
    """Ask for gradients with grad mode on, within a hook of a pass without it."""
    t, seen = case.leaves(), []

    def hook(_: Tensor) -> None:
        with torch.enable_grad():
            inner = case.leaves()
            found = case(*inner)
            first = grads(found, inner, cotangent(found), create_graph=True)
            seen.extend(
                grads([g for g in first if g.requires_grad], inner, [g.detach() for g in first if g.requires_grad])
            )

    y = case(*t)
    y.register_hook(hook)
    return [*grads(y, t, cotangent(y)), *seen]


def twice_differentiated(case: Case) -> Results:
    """Differentiate the gradients twice over, from one graph."""
    t = case.leaves()
    y = case(*t)
    dy = cotangent(y).requires_grad_()
    first = grads(y, t, dy, create_graph=True)
    followed = [g for g in first if g.requires_grad]
    tildes = [g.detach().sin() for g in followed]
    return [*first, *grads(followed, [*t, dy], tildes, retain_graph=True), *grads(followed, [*t, dy], tildes)]


def third_order(case: Case) -> Results:
    t = case.leaves()
    found = [case(*t)]
    for order in range(3):
        loss = sum(g.sin().sum() for g in found)
        found = grads(loss, t, create_graph=order < 2)
    return found


def of_a_class(case: Case) -> Results:
    t = case.leaves()
    y = case(*t)
    dy = TwoTensor(cotangent(y), cotangent(y).clone())
    return [g.a if isinstance(g, TwoTensor) else g for g in grads(y, t, dy)]


class Products(TorchDispatchMode):
    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return func(*args, **(kwargs or {}))


def in_a_mode(case: Case) -> Results:
    t = case.leaves()
    y = case(*t)
    with Products():
        return grads(y, t, cotangent(y))


def under_vmap(case: Case) -> Results:
    t = case.leaves()
    y = case(*t)
    dy = torch.stack([cotangent(y), cotangent(y).cos()])
    return list(torch.func.vmap(lambda dy: tuple(grads(y, t, dy, retain_graph=True)))(dy))


def dual_cotangent(case: Case) -> Results:
    t = case.leaves()
    y = case(*t)
    with forward_ad.dual_level():
        dy = forward_ad.make_dual(cotangent(y), cotangent(y).cos())
        found = [forward_ad.unpack_dual(g) for g in grads(y, t, dy)]
        return [x for pair in found for x in pair if x is not None]


def from_another_view(case: Case) -> Results:
    """Take a part of the output, whose cotangent is expanded, and the whole once more."""
    t = case.leaves()
    y = case(*t)
    part = y if y.dim() < 2 else y[:2].sum(0).expand(3, V)
    return grads((part, y), t, (torch.ones(()).to(y).expand_as(part), cotangent(y)))


WAYS: dict[str, Callable[[Case], Results]] = {
    "as usual": usual,
    "backward twice": backward_twice,
    "is_grads_batched": batched,
    "is_grads_batched at second order": batched_at_second_order,
    "anomaly mode": with_anomalies,
    "checkpoint, reentrant": checkpointed(True),
    "checkpoint, not reentrant": checkpointed(False),
    "save_on_cpu": on_cpu,
    "within a hook": in_a_hook,
    "twice at second order": twice_differentiated,
    "third order": third_order,
    "a cotangent of a class": of_a_class,
    "a dispatch mode": in_a_mode,
    "vmap": under_vmap,
    "a dual cotangent": dual_cotangent,
    "parts and expanded cotangents": from_another_view,
}


@every_case
def test_the_node_is_natives(case: Case) -> None:
    name = case(*case.leaves()).grad_fn.name()
    assert "manual_mlp::" in name
    assert case.node in name


@every_case
@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
def test_a_backward_pass_however_it_is_called_gives_plains(case: Case, way: Callable[[Case], Results]) -> None:
    mine = way(case)
    with native.without():
        plain = way(case)
    assert len(mine) == len(plain)
    for a, b in zip(mine, plain, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10 * max(1.0, b.abs().max().item()))


# The compiler looks at the gradients of what is no leaf.
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")
@pytest.mark.parametrize("name", ["a layer of relu", "a layer of gelu", "a network", "tiles", "entropy, 4 rows"])
def test_compiled_autograd_runs_the_nodes(name: str) -> None:
    case = CASES[name]
    t = case.leaves()
    y = case(*t)
    with torch._dynamo.compiled_autograd._enable(torch.compile(backend="eager")):
        y.backward(cotangent(y))
    torch.testing.assert_close([x.grad for x in t], usual(case), rtol=1e-12, atol=1e-12)


@every_case
def test_a_cotangent_is_read_and_not_written(case: Case) -> None:
    t = case.leaves()
    y = case(*t)
    dy = cotangent(y)
    before = dy.clone()
    grads(y, t, dy, retain_graph=True)
    grads(y, t, dy.requires_grad_(), create_graph=True)
    assert torch.equal(dy, before)


# Only what is asked.


@contextmanager
def products() -> Iterator[list[str]]:
    """List the products that run, by torch's profiler, which no door asks about."""
    seen: list[str] = []
    with torch.autograd.profiler.profile() as profiler:
        yield seen
    seen.extend(e.name for e in profiler.function_events if e.name in ("aten::mm", "aten::addmm"))


@pytest.mark.parametrize("asked", [(0,), (1,), (2,), (0, 1), (0, 2), (1, 2), (0, 1, 2)], ids=str)
@pytest.mark.parametrize("name", ["identity", "relu", "gelu", "mish"])
def test_a_layer_computes_the_products_that_the_running_pass_asks_for(name: str, asked: tuple[int, ...]) -> None:
    t = CASES[f"a layer of {name}"].leaves()
    y = CASES[f"a layer of {name}"](*t)
    with products() as seen:
        torch.autograd.grad(y, [t[k] for k in asked], torch.ones_like(y))
    assert len(seen) == (0 in asked) + (1 in asked)


@pytest.mark.parametrize("name", ["relu", "gelu"])
def test_second_order_computes_the_products_that_the_running_pass_asks_for(name: str) -> None:
    h, w, b = CASES[f"a layer of {name}"].leaves()
    y = CASES[f"a layer of {name}"](h, w, b)
    first = torch.autograd.grad(y, (h, w, b), cotangent(y).requires_grad_(), create_graph=True)
    counts = []
    for wanted in (h, w):
        with products() as seen:
            torch.autograd.grad(first, wanted, [g.detach() for g in first], retain_graph=True)
        counts.append(len(seen))
    # Two for q; that of the cotangent; and the one of z, which is kept.
    assert counts == [4, 4]


@pytest.mark.parametrize("layer", range(3))
@pytest.mark.parametrize("name", ["a network", "a network of tanh with dropout", "a network of mish with dropout"])
def test_a_network_computes_the_products_that_the_running_pass_asks_for(name: str, layer: int) -> None:
    h, *parameters = CASES[name].leaves()
    y = CASES[name](h, *parameters)
    counts = []
    for wanted in (parameters[2 * layer], parameters[2 * layer + 1], h):
        with products() as seen:
            torch.autograd.grad(y, wanted, torch.ones_like(y), retain_graph=True)
        counts.append(len(seen))
    assert counts == [2 - layer + 1, 2 - layer, 3]


@pytest.mark.parametrize("name", ["tiles", "tiles with dropout"])
def test_tiles_compute_no_product_that_nobody_asks_for(name: str) -> None:
    h, *parameters = CASES[name].leaves()
    y = CASES[name](h, *parameters)
    # The profiler sees the calling thread alone.
    with threads(1):
        with products() as whole:
            torch.autograd.grad(y, [h, *parameters], torch.ones_like(y), retain_graph=True)
        with products() as last:
            torch.autograd.grad(y, parameters[-1], torch.ones_like(y))
    tiles = -(-N // 2)
    assert (len(whole), len(last)) == (9 * tiles, 3 * tiles) or (len(whole), len(last)) == (8 * tiles, 2 * tiles)


@pytest.mark.parametrize("frozen", [(), (0,), (1,), (2,), (0, 1), (0, 2), (1, 2)], ids=str)
@every_case
def test_no_more_is_kept_than_by_plain(case: Case, frozen: tuple[int, ...]) -> None:
    def kept() -> int:
        t = {str(k): x.requires_grad_(k not in frozen) for k, x in enumerate(case.leaves())}
        found = kept_bytes(case, t)
        return found["total"] + found["attributes"]

    mine = kept()
    with native.without():
        assert mine <= kept()


def test_a_tensor_that_is_kept_and_changed_is_torchs_error() -> None:
    for name, which in (("a layer of gelu", 1), ("a network", 1), ("tiles", 1), ("tiles", 0)):
        t = CASES[name].leaves()
        y = CASES[name](*t)
        with torch.no_grad():
            t[which].mul_(2)
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            y.backward(torch.ones_like(y))


def test_in_a_pass_of_another_number_of_threads_nothing_is_lost() -> None:
    mlp = MLP([8, 33, 17, 5], "gelu", tile_rows=64, dtype=torch.float64)
    x = draw(1000, 8)

    def run() -> Results:
        leaf = x.clone().requires_grad_()
        return grads(mlp(leaf).sin().sum(), [leaf, *mlp.parameters()])

    found = []
    for count in (1, 2, 3):
        with threads(count):
            found.append(run())
    for other in found[1:]:
        torch.testing.assert_close(other, found[0], rtol=1e-12, atol=1e-12)


def test_nodes_outlive_the_module_and_the_operands_that_made_them() -> None:
    net: nn.Module = MLP([D, 5, V], "gelu", dtype=torch.float64)
    x = draw(N, D).requires_grad_()
    expected = grads(net(x).sin().sum(), [x])
    y = net(x).sin().sum()
    del net
    torch.testing.assert_close(grads(y, [x]), expected)
