"""What native computes against what plain does: the same values, and as exact in every dtype."""

import copy
import math
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from conditions import PRECISIONS, threads
from manual_mlp import (
    MLP,
    activations,
    backprop,
    dense,
    dense_squared_error,
    linear_binary_cross_entropy,
    linear_cross_entropy,
)
from manual_mlp.activations import get
from manual_mlp.engines import native

if native.doors is None:
    pytest.skip(f"native is off: {native.why()}", allow_module_level=True)

N, D, V = 1 << 16, 6, 5
PARAMETRISED = (activations.softplus(2.0, 5.0), activations.sin(30.0), activations.leaky_relu(-0.2))
every_activation = pytest.mark.parametrize(
    "activation", [*map(get, activations.names()), activations.gelu("tanh"), *PARAMETRISED], ids=repr
)
every_precision = pytest.mark.parametrize("precision", ["float64", *PRECISIONS])
LOSSES = ("cross_entropy", "binary_cross_entropy", "squared_error", "probabilities")
TILES = (None, 7, 1 << 12)
Results = list[Tensor]


def precision_of(name: str) -> tuple[torch.dtype, torch.dtype | None]:
    return PRECISIONS.get(name, (torch.float64, None))


def both(compute: Callable[[], Results]) -> tuple[Results, Results]:
    """Compute natively and plainly, from the same seed."""
    found = []
    for way in (native, None):
        torch.manual_seed(7)
        if way is not None:
            found.append(compute())
        else:
            with native.without():
                found.append(compute())
    return found[0], found[1]


def assert_as_exact(*draws: tuple[Results, Results, Results]) -> None:
    """See that the error of mine against the truth, in the mean over draws, is at most twice plain's."""
    for draw in zip(*(zip(mine, plain, truth, strict=True) for mine, plain, truth in draws), strict=True):
        for a, b, _ in draw:
            assert (a.dtype, a.shape, a.stride()) == (b.dtype, b.shape, b.stride())
        mine, plain = (sum((ways[i].double() - ways[2]).abs().max().item() for ways in draw) for i in (0, 1))
        slack = 1e-13 if draw[0][0].dtype == torch.float64 else 1e-6
        assert mine <= 2 * plain + slack * sum(exact.abs().max().item() for *_, exact in draw), (mine, plain)


def assert_same(mine: Results, plain: Results, tolerance: float = 1e-12) -> None:
    """See that both are equal but for rounding, which the largest entry of a tensor sets."""
    assert len(mine) == len(plain)
    for a, b in zip(mine, plain, strict=True):
        largest = max(1.0, b.detach().abs().max().item())
        torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance * largest)


# A layer.


def draw(*shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(shape, dtype=torch.float64).to(dtype)


@pytest.mark.each_value
@every_activation
@every_precision
def test_a_layer_of_many_rows_is_as_exact_as_plain(activation: Any, precision: str) -> None:
    dtype, region = precision_of(precision)

    def compute(dy: Tensor, *given: Tensor, region: torch.dtype | None = region) -> Results:
        leaves = [t.detach().clone().requires_grad_() for t in given]
        with torch.autocast("cpu", region, enabled=region is not None):
            y = dense(*leaves, activation)
        return [y.detach(), *torch.autograd.grad(y, leaves, dy)]

    def answers(dy: Tensor, *operands: Tensor) -> tuple[Results, Results, Results]:
        with native.without():
            truth = compute(dy.double(), *(t.double() for t in operands), region=None)
        return (*both(lambda: compute(dy, *operands)), truth)

    # In half precision a single draw may be a lucky one of plain's: a few entries, each off by half a step at most.
    given = [
        [
            draw(N, V, dtype=region or dtype),
            draw(N, D, dtype=dtype) + 0.5,
            draw(V, D, dtype=dtype),
            draw(V, dtype=dtype),
        ]
        for _ in range(3 if torch.finfo(region or dtype).bits == 16 else 1)
    ]
    assert_as_exact(*(answers(*each) for each in given))


LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "transposed": lambda t: t.mT.contiguous().mT if t.dim() > 1 else t,
    "sliced": lambda t: torch.cat([t, t], -1)[..., ::2],
    "expanded": lambda t: t[:1].expand_as(t),
    "one number": lambda t: t.flatten()[0].expand_as(t),
}


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
@pytest.mark.parametrize("which", ["input", "weight", "bias", "dy", "q"])
@pytest.mark.parametrize("shape", [(4,), (5, 4), (2, 3, 4), (2, 1, 3, 4), (1, 4)], ids=str)
@pytest.mark.parametrize("name", ["identity", "relu", "tanh", "gelu", "mish"])
def test_a_layer_of_any_shape_and_layout_has_plains_first_and_second_order(
    name: str, shape: tuple[int, ...], which: str, layout: Callable[[Tensor], Tensor]
) -> None:
    given = {
        "input": draw(*shape),
        "weight": draw(7, 4),
        "bias": draw(7),
        "dy": draw(*shape[:-1], 7),
        "q": draw(*shape),
    }
    given[which] = layout(given[which])

    def compute() -> Results:
        h, w, b, dy = (given[k].detach().requires_grad_() for k in ("input", "weight", "bias", "dy"))
        y = dense(h, w, b, name)
        first = torch.autograd.grad(y, (h, w, b), dy, create_graph=True)
        tildes = (given["q"], torch.ones_like(w).cumsum(0), torch.ones_like(b).cumsum(0))
        return [y, *first, *torch.autograd.grad(first, (h, w, b, dy), tildes, materialize_grads=True)]

    assert_same(*both(compute))


@every_activation
@pytest.mark.parametrize("asked", range(1, 8))
def test_second_and_third_order_of_a_layer_are_plains(activation: Any, asked: int) -> None:
    operands, dy = [draw(5, 4), draw(7, 4), draw(7)], draw(5, 7)
    wanted = [k for k in range(3) if asked >> k & 1]

    def compute() -> Results:
        leaves = [*(t.clone().requires_grad_() for t in operands), dy.clone().requires_grad_()]
        h, w, b, of_dy = leaves
        found = list(
            torch.autograd.grad(dense(h, w, b, activation), [leaves[k] for k in wanted], of_dy, create_graph=True)
        )
        for order in range(2):
            loss = sum((g.sin() * (k + 1)).sum() for k, g in enumerate(found))
            if not loss.requires_grad:
                break
            found += torch.autograd.grad(loss, leaves, create_graph=order == 0, materialize_grads=True)
        return found

    assert_same(*both(compute), 1e-9)


def test_second_order_takes_any_subset_of_cotangents() -> None:
    operands, dy = [draw(5, 4), draw(7, 4), draw(7)], draw(5, 7)
    for asked in range(1, 8):

        def compute(asked: int = asked) -> Results:
            h, w, b = (t.clone().requires_grad_() for t in operands)
            of_dy = dy.clone().requires_grad_()
            first = torch.autograd.grad(dense(h, w, b, "gelu"), (h, w, b), of_dy, create_graph=True)
            some = [g for k, g in enumerate(first) if asked >> k & 1]
            return list(torch.autograd.grad(some, (h, w, b, of_dy), [g.cos() for g in some], materialize_grads=True))

        assert_same(*both(compute))


# A network. One tile, tiles of a few rows, tiles that threads share.


def network_results(mlp: MLP, x: Tensor, region: torch.dtype | None = None) -> Results:
    x = x.detach().clone().requires_grad_()
    with torch.autocast("cpu", region, enabled=region is not None):
        y = mlp(x)
    return [
        y.detach(),
        *torch.autograd.grad(y.float().sin().sum() if region else y.sin().sum(), [x, *mlp.parameters()]),
    ]


@every_activation
@pytest.mark.parametrize("tile_rows", TILES)
@pytest.mark.parametrize("dropout", [0.0, 0.4])
def test_a_network_has_the_values_the_masks_and_the_gradients_of_plain(
    activation: Any, tile_rows: int | None, dropout: float
) -> None:
    mlp, x = MLP([D, 9, 8, V], activation, dropout=dropout, dtype=torch.float64), draw(40, D)
    for rows in (tile_rows, 40):
        mlp.tile_rows = rows
        assert_same(*both(lambda: network_results(mlp, x)))
        with torch.no_grad():
            assert_same(*both(lambda: [mlp(x)]))


@pytest.mark.parametrize("dropout", [0.0, 0.5])
@pytest.mark.parametrize("tile_rows", [N, 1 << 13])
@pytest.mark.parametrize("activation", ["relu", "gelu", "mish"])
@every_precision
def test_a_network_of_many_rows_is_as_exact_as_plain(
    precision: str, activation: str, tile_rows: int, dropout: float
) -> None:
    dtype, region = precision_of(precision)
    mlp = MLP([D, 8, 7, V], activation, dropout=dropout, tile_rows=tile_rows, dtype=dtype)
    x = draw(N, D, dtype=dtype)
    mine, plain = both(lambda: network_results(mlp, x, region))
    torch.manual_seed(7)
    with native.without():
        truth = network_results(copy.deepcopy(mlp).double(), x.double())
    assert_as_exact((mine, plain, truth))


@pytest.mark.parametrize("tile_rows", [None, 7])
@pytest.mark.parametrize("dropout", [0.0, 0.4])
@pytest.mark.parametrize("activation", ["relu", "tanh", "gelu", "softplus", "mish"])
def test_second_and_third_order_of_a_network_are_plains(activation: str, dropout: float, tile_rows: int | None) -> None:
    mlp = MLP([3, 6, 5, 2], activation, dropout=dropout, tile_rows=tile_rows, dtype=torch.float64)
    x = draw(16, 3)

    def compute() -> Results:
        leaves = [x.clone().requires_grad_(), *mlp.parameters()]
        found = [mlp(leaves[0])]
        for order in range(3):
            loss = sum(g.sin().sum() for g in found)
            found = list(torch.autograd.grad(loss, leaves, create_graph=order < 2, materialize_grads=True))
        return found

    assert_same(*both(compute), 1e-9)


# A step without a graph.


def target_of(loss: str, y: Sequence[int], dtype: torch.dtype) -> tuple[str, Tensor]:
    draws = torch.Generator().manual_seed(3)
    if loss == "cross_entropy":
        return loss, torch.randint(y[-1], y[:-1], generator=draws)
    t = torch.rand(*y, generator=draws, dtype=torch.float64)
    return ("cross_entropy", t.softmax(-1).to(dtype)) if loss == "probabilities" else (loss, t.to(dtype))


def step_results(
    mlp: MLP, x: Tensor, of: tuple[str, Tensor], region: torch.dtype | None = None, **given: Any
) -> Results:
    mlp, x = copy.deepcopy(mlp), x.detach().clone().requires_grad_()
    with torch.autocast("cpu", region, enabled=region is not None):
        found = backprop(mlp, x, of[1], of[0], **given)
    grads = [t.grad for t in (x, *mlp.parameters())]
    return [*(found if isinstance(found, tuple) else (found,)), *(g for g in grads if g is not None)]


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("tile_rows", [None, 7])
@pytest.mark.parametrize("dropout", [0.0, 0.4])
@pytest.mark.parametrize("return_output", [False, True])
@pytest.mark.parametrize("shape", [(D,), (40, D), (4, 10, D)], ids=str)
def test_a_step_is_plains(
    loss: str, reduction: str, tile_rows: int | None, dropout: float, return_output: bool, shape: tuple[int, ...]
) -> None:
    mlp, x = MLP([D, 9, 8, V], "gelu", dropout=dropout, dtype=torch.float64), draw(*shape)
    of = target_of(loss, (*shape[:-1], V), torch.float64)
    by_entry = loss in ("binary_cross_entropy", "squared_error")
    upstream = draw(*shape[:-1], *([V] if by_entry else [])) if reduction == "none" else None
    for gradient in (upstream,) if reduction == "none" else (None, 2, -0.5, torch.tensor(3.0).double()):
        given = {"reduction": reduction, "tile_rows": tile_rows, "return_output": return_output, "gradient": gradient}
        assert_same(*both(lambda given=given: step_results(mlp, x, of, **given)))


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("tile_rows", [N, 1 << 13])
@every_precision
def test_a_step_of_many_rows_is_as_exact_as_plain(precision: str, tile_rows: int, loss: str) -> None:
    dtype, region = precision_of(precision)
    mlp, x = MLP([D, 8, V], "silu", dtype=dtype), draw(N, D, dtype=dtype)
    of = target_of(loss, (N, V), dtype)
    mine, plain = both(lambda: step_results(mlp, x, of, region, tile_rows=tile_rows))
    exact = of[0], of[1].double() if of[1].is_floating_point() else of[1]
    with native.without():
        truth = step_results(copy.deepcopy(mlp).double(), x.double(), exact, tile_rows=tile_rows)
    assert_as_exact((mine, plain, truth))


@every_activation
def test_a_step_of_every_activation_is_plains(activation: Any) -> None:
    mlp, x = MLP([D, 9, 8, V], activation, activation, dtype=torch.float64), draw(40, D)
    of = target_of("squared_error", (40, V), torch.float64)
    for rows in (None, 7):
        assert_same(*both(lambda rows=rows: step_results(mlp, x, of, tile_rows=rows)))


def frozen(mlp: MLP) -> None:
    mlp.layers[0].requires_grad_(False)
    mlp.layers[1].bias.requires_grad_(False)


def shared(mlp: MLP) -> None:
    mlp.layers[1].weight = mlp.layers[2].weight


def held(mlp: MLP) -> None:
    for p in mlp.parameters():
        p.grad = torch.ones_like(p).cumsum(0)


def expanded(mlp: MLP) -> None:
    for p in mlp.parameters():
        p.grad = torch.ones((), dtype=p.dtype).expand_as(p)


def hooked(mlp: MLP) -> None:
    mlp.layers[0].weight.register_hook(lambda g: 2 * g)
    mlp.layers[1].bias.register_post_accumulate_grad_hook(tripled)


def tripled(p: Tensor) -> None:
    p.grad *= 3


CHANGES: dict[str, Callable[[MLP], None]] = {f.__name__: f for f in (frozen, shared, held, expanded, hooked)}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
@pytest.mark.parametrize("tile_rows", [None, 7])
@pytest.mark.parametrize("loss", ["cross_entropy", "squared_error"])
def test_a_step_of_a_changed_network_is_plains(change: Callable[[MLP], None], tile_rows: int | None, loss: str) -> None:
    x, of = draw(40, D), target_of(loss, (40, V), torch.float64)

    def compute() -> Results:
        mlp = MLP([D, 8, 8, 8, V], "tanh", dtype=torch.float64)
        change(mlp)
        given = x.clone().requires_grad_()
        value = backprop(mlp, given, of[1], of[0], tile_rows=tile_rows)
        return [value, *(t.grad for t in (given, *mlp.parameters()) if t.grad is not None)]

    assert_same(*both(compute))


def pair_value(y: Tensor, t: Tensor) -> Tensor:
    return (y - t).square().sum(1)


def pair_delta(y: Tensor, t: Tensor) -> Tensor:
    return 2 * (y - t)


@pytest.mark.parametrize("tile_rows", [None, 7])
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_a_users_pair_is_stepped_as_by_plain(reduction: str, tile_rows: int | None) -> None:
    mlp, x, t = MLP([D, 9, V], "silu", dropout=0.3, dtype=torch.float64), draw(40, D), draw(40, V)

    def compute() -> Results:
        net, given = copy.deepcopy(mlp), x.clone().requires_grad_()
        pair, g = (pair_value, pair_delta), torch.ones(40).double().cumsum(0) if reduction == "none" else None
        value, y = backprop(net, given, t, pair, reduction, tile_rows, gradient=g, return_output=True)
        return [value, y, *(p.grad for p in (given, *net.parameters()))]

    assert_same(*both(compute))


# A layer with its loss.


def entropy(h: Tensor, w: Tensor, b: Tensor, t: Tensor, **given: Any) -> Tensor:
    return linear_cross_entropy(h, w, t, linear_bias=b, **given)


def weighted(h: Tensor, w: Tensor, b: Tensor, t: Tensor, **given: Any) -> Tensor:
    of_classes = torch.linspace(0.5, 2, V, dtype=h.dtype)
    hard = torch.where(t % 7 == 0, -100, t) if not t.is_floating_point() else t
    return linear_cross_entropy(h, w, hard, linear_bias=b, weight=of_classes, label_smoothing=0.2, **given)


def logistic(h: Tensor, w: Tensor, b: Tensor, t: Tensor, **given: Any) -> Tensor:
    return linear_binary_cross_entropy(h, w, t, linear_bias=b, **given)


def squared(h: Tensor, w: Tensor, b: Tensor, t: Tensor, **given: Any) -> Tensor:
    return dense_squared_error(h, w, b, t, "tanh", **given)


HEADS: dict[str, tuple[Callable[..., Tensor], str]] = {
    "classes": (entropy, "cross_entropy"),
    "weighted classes, some ignored": (weighted, "cross_entropy"),
    "probabilities": (entropy, "probabilities"),
    "weighted probabilities": (weighted, "probabilities"),
    "logistic": (logistic, "binary_cross_entropy"),
    "squared error": (squared, "squared_error"),
}


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("chunk_rows", [None, 1 << 12])
@every_precision
def test_a_loss_of_many_rows_is_as_exact_as_plain(
    head: str, reduction: str, chunk_rows: int | None, precision: str
) -> None:
    dtype, region = precision_of(precision)
    f, kind = HEADS[head]
    operands = [draw(N, D, dtype=dtype), draw(V, D, dtype=dtype), draw(V, dtype=dtype)]
    t = target_of(kind, (N, V), dtype)[1]

    def compute(t: Tensor, given: Sequence[Tensor], region: torch.dtype | None = region) -> Results:
        leaves = [x.detach().clone().requires_grad_() for x in given]
        with torch.autocast("cpu", region, enabled=region is not None):
            value = f(*leaves, t, reduction=reduction, chunk_rows=chunk_rows)
        up = torch.linspace(-1, 2, value.numel(), dtype=torch.float64).view(value.shape).to(value.dtype)
        return [value.detach(), *torch.autograd.grad(value, leaves, up)]

    mine, plain = both(lambda: compute(t, operands))
    with native.without():
        exact = t.double() if t.is_floating_point() else t
        truth = compute(exact, [x.double() for x in operands], None)
    assert_as_exact((mine, plain, truth))


# The same bits.


def bits(t: Tensor) -> Tensor:
    return t.detach().clone().view(torch.int32)


@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize("tile_rows", [1 << 14, 1 << 11])
@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_the_same_call_gives_the_same_bits_at_the_same_number_of_threads(
    count: int, tile_rows: int, dropout: float
) -> None:
    mlp, x = MLP([48, 65, 33, 17], "gelu", dropout=dropout, tile_rows=tile_rows), draw(1 << 14, 48).float()
    of = target_of("cross_entropy", (1 << 14, 17), torch.float32)
    layer = [draw(1 << 14, 48).float(), draw(65, 48).float(), draw(65).float()]

    def compute() -> Results:
        torch.manual_seed(1)
        leaves = [t.clone().requires_grad_() for t in layer]
        of_layer = torch.autograd.grad(dense(*leaves, "gelu").sin().sum(), leaves)
        return [*map(bits, [*of_layer, *network_results(mlp, x), *step_results(mlp, x, of)])]

    with threads(count):
        first = compute()
        for _ in range(3):
            assert all(torch.equal(a, b) for a, b in zip(first, compute(), strict=True))


def test_the_comparison_sees_an_error_of_plains_size() -> None:
    exact = draw(100)
    plain = exact.float()
    off = (exact + 3 * (plain - exact).abs().max() + 2e-6 * exact.abs().max()).float()
    assert_as_exact(([plain], [plain], [exact]))
    for wrong in (off, plain.new_full((100,), math.nan)):
        with pytest.raises(AssertionError):
            assert_as_exact(([wrong], [plain], [exact]))


def test_without_native_plain_computes() -> None:
    h, layer = draw(3, 4).requires_grad_(), nn.Linear(4, 2, dtype=torch.float64)
    # Not grad_fn.name(), which torch 2.11 refuses to a node of Python's.
    with native.without():
        plain = type(dense(h, layer.weight, layer.bias, "relu").grad_fn).__name__
    assert "_EagerDenseFunction" in plain
    assert "_EagerDenseFunction" not in type(dense(h, layer.weight, layer.bias, "relu").grad_fn).__name__
