"""Whatever takes torch's functions in its own way gets torch's own operations: their values, gradients and errors."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import grad, jvp
from torch.nn.utils import stateless
from torch.overrides import BaseTorchFunctionMode, TorchFunctionMode
from torch.testing._internal.two_tensor import TwoTensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from manual_mlp import (
    MLP,
    Dense,
    DenseSquaredError,
    Linear,
    LinearCrossEntropyLoss,
    activations,
    backprop,
    dense,
    dense_squared_error,
    linear_binary_cross_entropy,
    linear_cross_entropy,
    transforms,
)
from modes.classes import Rounded, Rounding, rounded

N, D, V = 6, 4, 5
Step = Callable[[Tensor, Tensor, Tensor], Tensor]
T, P = torch.arange(N) % V, torch.linspace(0, 1, N * V, dtype=torch.float64).sqrt().view(N, V)
CLASS_WEIGHT = torch.linspace(0.5, 2, V, dtype=torch.float64)

# Ours beside torch's own, as functions of h, w and b; the first argument is the rows of a chunk.
LOSSES: dict[str, tuple[Callable[..., Tensor], Step]] = {
    "cross-entropy": (
        lambda rows, h, w, b: linear_cross_entropy(h, w, T, linear_bias=b, chunk_rows=rows),
        lambda h, w, b: F.cross_entropy(F.linear(h, w, b), T),
    ),
    "cross-entropy, weighted and smoothed, of each row": (
        lambda rows, h, w, b: linear_cross_entropy(
            h, w, T, linear_bias=b, weight=CLASS_WEIGHT, label_smoothing=0.1, reduction="none", chunk_rows=rows
        ),
        lambda h, w, b: F.cross_entropy(F.linear(h, w, b), T, CLASS_WEIGHT, label_smoothing=0.1, reduction="none"),
    ),
    "cross-entropy of probabilities": (
        lambda rows, h, w, b: linear_cross_entropy(h, w, P, linear_bias=b, reduction="sum", chunk_rows=rows),
        lambda h, w, b: F.cross_entropy(F.linear(h, w, b), P, reduction="sum"),
    ),
    "logistic cross-entropy": (
        lambda rows, h, w, b: linear_binary_cross_entropy(
            h, w, P, linear_bias=b, pos_weight=CLASS_WEIGHT, chunk_rows=rows
        ),
        lambda h, w, b: F.binary_cross_entropy_with_logits(F.linear(h, w, b), P, pos_weight=CLASS_WEIGHT),
    ),
    "squared error": (
        lambda rows, h, w, b: dense_squared_error(h, w, b, P, "tanh", "mean", rows),
        lambda h, w, b: 0.5 * F.mse_loss(torch.tanh(F.linear(h, w, b)), P),
    ),
}


def inputs(*shapes: tuple[int, ...]) -> tuple[Tensor, ...]:
    return tuple(torch.randn(shape, dtype=torch.float64).requires_grad_() for shape in shapes)


def of_layer() -> tuple[Tensor, ...]:
    return inputs((N, D), (V, D), (V,))


def answers(f: Step, h: Tensor, w: Tensor, b: Tensor, wrap: Callable[[Tensor], Tensor]) -> list[Any]:
    """Compute the value without gradients, and with them, to second order."""
    with torch.no_grad():
        value = f(h, wrap(w), b)
    y = f(h, wrap(w), b)
    first = torch.autograd.grad(y.sin().sum(), (h, w, b), create_graph=True)
    second = torch.autograd.grad(sum(g.sin().sum() for g in first), (h, w, b))
    return [value, y, first, second]


def assert_close(mine: Any, theirs: Any) -> None:
    torch.testing.assert_close(mine, theirs, rtol=1e-10, atol=1e-10)


def as_rounded(t: Tensor) -> Tensor:
    return t.as_subclass(Rounded)


@pytest.fixture(params=["small", "in chunks", "large"])
def rows(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int | None:
    """Choose the rows of a chunk: none are given, two, or none while everything counts as large."""
    if request.param == "large":
        monkeypatch.setattr("manual_mlp.fused.few_logits", lambda *_: False)
        monkeypatch.setattr("manual_mlp.fused.rows_at_once", lambda *_: 2)
    return 2 if request.param == "in chunks" else None


@pytest.mark.parametrize("name", LOSSES)
def test_a_loss_of_a_subclass_is_torchs_at_any_size(name: str, rows: int | None) -> None:
    ours, theirs = LOSSES[name]
    h, w, b = of_layer()
    expected = answers(theirs, h, w, b, as_rounded)
    assert_close(answers(lambda *t: ours(rows, *t), h, w, b, as_rounded), expected)
    # The class of the truth is seen: the plain weight has another loss, and its rounding that very one.
    assert not torch.equal(theirs(h, w, b), expected[1])
    assert_close(theirs(h, rounded(w), b), expected[1])


@pytest.mark.parametrize("name", LOSSES)
def test_a_loss_in_a_function_mode_is_torchs_at_any_size(name: str, rows: int | None) -> None:
    ours, theirs = LOSSES[name]
    h, w, b = of_layer()
    with Rounding():
        found = answers(lambda *t: ours(rows, *t), h, w, b, lambda t: t)
    assert_close(found, answers(theirs, h, w, b, as_rounded))


class Doubling(TorchFunctionMode):
    """A mode that doubles torch's own losses."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        named = F.cross_entropy, F.binary_cross_entropy_with_logits, F.mse_loss
        return 2 * result if func in named else result


@pytest.mark.parametrize("name", LOSSES)
def test_a_mode_finds_torchs_losses_by_their_names(name: str, rows: int | None) -> None:
    ours, theirs = LOSSES[name]
    t = of_layer()
    with Doubling():
        doubled = ours(rows, *t)
    assert_close(doubled, 2 * theirs(*t))


@pytest.mark.parametrize("which", ["input", "weight", "bias"])
def test_an_operand_of_a_class_is_enough(which: str, rows: int | None) -> None:
    class Negative(Tensor):
        @classmethod
        def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            plain = [a.as_subclass(Tensor) if isinstance(a, Negative) else a for a in args]
            with torch._C.DisableTorchFunctionSubclass():
                return -func(*plain, **(kwargs or {})) if func is F.linear else func(*plain, **(kwargs or {}))

    t = {"input": 0, "weight": 1, "bias": 2}[which]
    plain = of_layer()
    given = [x.as_subclass(Negative) if k == t else x for k, x in enumerate(plain)]
    for ours, theirs in LOSSES.values():
        assert_close(ours(rows, *given), theirs(*given))
    expected = torch.autograd.grad(torch.tanh(-F.linear(*plain)).sum(), plain)
    assert_close(torch.autograd.grad(dense(*given, "tanh").sum(), plain), expected)


def test_modules_over_a_subclass_are_torchs(rows: int | None) -> None:
    x = torch.randn(N, D, dtype=torch.float64, requires_grad=True)
    given = {"dtype": torch.float64}
    pairs: list[tuple[nn.Module, Callable[[nn.Module], Tensor], Callable[[dict[str, Tensor]], Tensor]]] = [
        (Linear(D, V, **given), lambda m: m(x), lambda p: F.linear(x, p["weight"], p["bias"])),
        (Dense(D, V, "gelu", **given), lambda m: m(x), lambda p: F.gelu(F.linear(x, p["weight"], p["bias"]))),
        (
            DenseSquaredError(D, V, "tanh", chunk_rows=rows, **given),
            lambda m: m(x, P),
            lambda p: 0.5 * F.mse_loss(torch.tanh(F.linear(x, p["weight"], p["bias"])), P, reduction="sum"),
        ),
        (
            LinearCrossEntropyLoss(D, V, bias=True, chunk_rows=rows, **given),
            lambda m: m(x, T),
            lambda p: F.cross_entropy(F.linear(x, p["linear.weight"], p["linear.bias"]), T),
        ),
    ]
    for module, run, theirs in pairs:
        wrapped = {
            name: nn.Parameter(p.detach()).as_subclass(Rounded) if p.dim() == 2 else p
            for name, p in module.named_parameters()
        }
        with stateless._reparametrize_module(module, wrapped):
            mine = run(module)
        expected = theirs(wrapped)
        assert_close(mine, expected)
        asked = [x, *wrapped.values()]
        assert_close(torch.autograd.grad(mine.sum(), asked), torch.autograd.grad(expected.sum(), asked))


def quantised(sizes: list[int], activation: str = "gelu", **options: Any) -> MLP:
    """Make a network with weights that are rounded for every product, as quantised training has them."""
    torch.manual_seed(1)
    mlp = MLP(sizes, activation, dtype=torch.float64, **options)
    for layer in mlp.layers:
        layer.weight = nn.Parameter(layer.weight.detach().as_subclass(Rounded))
    return mlp


def by_torch(mlp: MLP, x: Tensor) -> Tensor:
    for layer in mlp.layers:
        x = layer.activation.f(F.linear(x, layer.weight, layer.bias))
    return x


@pytest.mark.parametrize("tile_rows", [None, 2])
def test_a_network_over_a_subclass_is_torchs(tile_rows: int | None) -> None:
    mlp, x = quantised([D, 7, V], tile_rows=tile_rows), torch.randn(N, D, dtype=torch.float64, requires_grad=True)
    asked = [x, *mlp.parameters()]
    assert type(asked[1]) is Rounded
    results = []
    for model in (mlp, lambda x: by_torch(mlp, x)):
        with torch.no_grad():
            value = model(x)
        first = torch.autograd.grad(model(x).sin().sum(), asked, create_graph=True)
        second = torch.autograd.grad(sum(g.sin().sum() for g in first), asked)
        results.append([value, first, second])
    assert_close(*results)


TARGETS = {"cross_entropy": T, "binary_cross_entropy": P, "squared_error": P}
NAMED: dict[str, Callable[..., Tensor]] = {
    "cross_entropy": F.cross_entropy,
    "binary_cross_entropy": F.binary_cross_entropy_with_logits,
    "squared_error": lambda y, t, **options: 0.5 * F.mse_loss(y, t, **options),
}


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("tile_rows", [None, 2])
@pytest.mark.parametrize("loss", TARGETS)
@pytest.mark.parametrize("how", ["subclass", "mode", "input"])
def test_backprop_over_a_subclass_or_in_a_mode_is_torchs(
    how: str, loss: str, tile_rows: int | None, reduction: str
) -> None:
    make = quantised if how == "subclass" else lambda sizes: MLP(sizes, "gelu", dtype=torch.float64)
    mlp, x, t = make([D, 7, V]), torch.randn(N, D, dtype=torch.float64), TARGETS[loss]
    x = x.as_subclass(Rounded) if how == "input" else x
    context = Rounding() if how == "mode" else BaseTorchFunctionMode()
    with context:
        expected = NAMED[loss](by_torch(mlp, x), t, reduction=reduction)
        dy = torch.linspace(1, 2, expected.numel(), dtype=torch.float64).view(expected.shape)
        gradients = torch.autograd.grad(expected, list(mlp.parameters()), dy)
        found, output = backprop(mlp, x, t, loss, reduction, tile_rows, gradient=dy, return_output=True)
        assert_close(output.as_subclass(Tensor), by_torch(mlp, x).detach().as_subclass(Tensor))
    assert_close(found.as_subclass(Tensor), expected.detach().as_subclass(Tensor))
    assert not found.requires_grad
    assert_close([p.grad.as_subclass(Tensor) for p in mlp.parameters()], [g.as_subclass(Tensor) for g in gradients])


def test_backprop_by_a_pair_of_functions_over_a_subclass_is_torchs() -> None:
    mlp, x = quantised([D, 7, V]), torch.randn(N, D, dtype=torch.float64)
    expected = torch.autograd.grad(0.5 * F.mse_loss(by_torch(mlp, x), P, reduction="sum"), list(mlp.parameters()))
    pair = (lambda y, t: 0.5 * (y - t).square().sum(-1), lambda y, t: y - t)
    backprop(mlp, x, P, pair, "sum")
    assert_close([p.grad for p in mlp.parameters()], list(expected))


@pytest.mark.parametrize("name", activations.names())
def test_every_activation_over_a_subclass_is_torchs(name: str) -> None:
    h, w, b = of_layer()
    found = torch.autograd.grad(dense(h, as_rounded(w), b, name).sum(), (h, w, b))
    assert_close(found, torch.autograd.grad(dense(h, rounded(w), b, name).sum(), (h, w, b)))


def test_a_subclass_inside_a_transform_is_what_torch_makes_of_it() -> None:
    h, w, b = of_layer()
    given = h.detach(), as_rounded(w.detach()), b.detach()

    def ours(h: Tensor, w: Tensor, b: Tensor) -> Tensor:
        return dense(h, w, b, "tanh").sum()

    def theirs(h: Tensor, w: Tensor, b: Tensor) -> Tensor:
        return torch.tanh(F.linear(h, w, b)).sum()

    for k in range(3):
        assert_close(grad(ours, k)(*given), grad(theirs, k)(*given))
    assert_close(jvp(ours, given, given), jvp(theirs, given, given))
    with Rounding():
        assert_close(grad(ours)(*given), grad(theirs)(*given))


def test_a_compiled_layer_in_a_mode_is_torchs() -> None:
    h, w, b = of_layer()
    compiled = torch.compile(lambda h, w, b: dense(h, w, b, "tanh"), backend="aot_eager", fullgraph=True)
    with Rounding():
        found = torch.autograd.grad(compiled(h, w, b).sum(), (h, w, b))
    assert_close(found, torch.autograd.grad(torch.tanh(F.linear(h, rounded(w), b)).sum(), (h, w, b)))


class Scaled(Tensor):
    """A tensor that triples torch's own losses, whichever of their arguments it is."""

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        with torch._C.DisableTorchFunctionSubclass():
            result = func(*args, **(kwargs or {}))
        return 3 * result if func in (F.cross_entropy, F.binary_cross_entropy_with_logits, F.mse_loss) else result


def scaled(t: Tensor) -> Tensor:
    return t.as_subclass(Scaled)


OTHERS: dict[str, tuple[str, Tensor, dict[str, Any]]] = {
    "classes": ("cross_entropy", scaled(T), {}),
    "probabilities": ("cross_entropy", scaled(P), {}),
    "class weight": ("cross_entropy", T, {"weight": scaled(CLASS_WEIGHT)}),
    "entries": ("binary_cross_entropy", scaled(P), {}),
    "weight of entries": ("binary_cross_entropy", P, {"weight": scaled(CLASS_WEIGHT)}),
    "weight of positive answers": ("binary_cross_entropy", P, {"pos_weight": scaled(CLASS_WEIGHT)}),
    "target": ("squared_error", scaled(P), {}),
}


@pytest.mark.parametrize("name", OTHERS)
def test_the_class_of_a_target_or_an_option_is_seen_by_its_loss(name: str, rows: int | None) -> None:
    loss, t, options = OTHERS[name]
    mlp, x = MLP([D, 7, V], "gelu", dtype=torch.float64), torch.randn(N, D, dtype=torch.float64)
    expected = NAMED[loss](mlp(x), t, **options)
    gradients = torch.autograd.grad(expected, list(mlp.parameters()))
    torch.testing.assert_close(backprop(mlp, x, t, loss, tile_rows=rows, **options), expected.detach())
    torch.testing.assert_close([p.grad for p in mlp.parameters()], list(gradients))
    h, w, b = of_layer()
    if loss == "squared_error":
        found = dense_squared_error(h, w, b, t, None, "mean", rows)
    else:
        call = linear_cross_entropy if loss == "cross_entropy" else linear_binary_cross_entropy
        found = call(h, w, t, linear_bias=b, chunk_rows=rows, **options)
    torch.testing.assert_close(found, NAMED[loss](F.linear(h, w, b), t, **options))


def per_sample_layers() -> dict[str, nn.Module]:
    return {"Linear": Linear(D, V), "Dense": Dense(D, V, "tanh"), "MLP": MLP([D, 7, V], "tanh")}


def two(t: Tensor) -> TwoTensor:
    """Wrap two copies of a tensor in one of torch's, which computes everything twice."""
    return TwoTensor(t.detach().clone(), t.detach().clone())


def first_of_two(t: Tensor) -> Tensor:
    return t.a if isinstance(t, TwoTensor) else t


COTANGENTS: dict[str, Callable[[Tensor], Tensor]] = {
    "in two": two,
    "that a product rounds": lambda t: t.detach().as_subclass(Rounded),
}


@pytest.mark.parametrize("kind", COTANGENTS)
@pytest.mark.parametrize("name", LOSSES)
def test_a_cotangent_of_a_class_gives_torchs_gradients_at_any_size(kind: str, name: str, rows: int | None) -> None:
    ours, theirs = LOSSES[name]
    t = of_layer()
    found = [gradients_for(f, COTANGENTS[kind], t) for f in (lambda *t: ours(rows, *t), theirs)]
    assert_close(*found)


@pytest.mark.parametrize("kind", COTANGENTS)
@pytest.mark.parametrize("name", activations.names())
def test_a_cotangent_of_a_class_gives_torchs_gradients_of_a_layer(kind: str, name: str) -> None:
    t = of_layer()
    f = activations.get(name).f
    try:
        theirs = gradients_for(lambda h, w, b: f(F.linear(h, w, b)), COTANGENTS[kind], t)
    except RuntimeError as error:  # torch 2.11 for softsign
        pytest.skip(f"torch itself raises: {error}")
    assert_close(gradients_for(lambda h, w, b: dense(h, w, b, name), COTANGENTS[kind], t), theirs)


def gradients_for(f: Step, wrap: Callable[[Tensor], Tensor], t: tuple[Tensor, ...]) -> list[Tensor]:
    """Compute the gradients for a cotangent of a class, and then those of the gradients."""
    y = f(*t)
    dy = wrap(torch.linspace(-1, 2, y.numel(), dtype=y.dtype).view(y.shape))
    found = list(torch.autograd.grad(y, t, dy, retain_graph=True))
    first = torch.autograd.grad(y, t, torch.ones_like(y), create_graph=True)
    followed = [g for g in first if g.requires_grad]  # an identity's db is a constant
    found += torch.autograd.grad(followed, t, [wrap(g.sin()) for g in followed], materialize_grads=True)
    return [first_of_two(g).as_subclass(Tensor) for g in found]


@pytest.mark.parametrize("tile_rows", [None, 2])
def test_the_class_of_a_later_layer_does_not_harm_those_before_it(tile_rows: int | None) -> None:
    mlp, x = MLP([D, 7, V], "sin", tile_rows=tile_rows, dtype=torch.float64), inputs((N, D))[0]
    plain, other = mlp.layers
    other._parameters["weight"] = nn.Parameter(two(other.weight))
    y = F.linear(torch.sin(F.linear(x, plain.weight, plain.bias)), other.weight, other.bias)
    expected = torch.autograd.grad(y.sin().sum(), (x, plain.weight, plain.bias))
    found = torch.autograd.grad(mlp(x).sin().sum(), (x, plain.weight, plain.bias))
    assert_close([first_of_two(g) for g in found], [first_of_two(g) for g in expected])


@pytest.mark.parametrize("tile_rows", [None, 2])
def test_backprop_for_a_gradient_of_a_class_is_torchs(tile_rows: int | None) -> None:
    mlp, x = MLP([D, 7, V], "gelu", dtype=torch.float64), inputs((N, D))[0].detach()
    parameters = list(mlp.parameters())
    value = 0.5 * F.mse_loss(mlp(x), P, reduction="sum")
    expected = torch.autograd.grad(value, parameters, two(torch.tensor(2.0, dtype=torch.float64)))
    backprop(mlp, x, P, "squared_error", "sum", tile_rows, gradient=two(torch.tensor(2.0, dtype=torch.float64)))
    for p, g in zip(parameters, expected, strict=True):
        assert_close(first_of_two(p.grad), first_of_two(g))
    pair = (lambda y, t: (y - t).square().sum(1), lambda y, t: 2 * (y - t))
    with pytest.raises(TypeError, match="expected a gradient without a class of its own for a pair"):
        backprop(mlp, x, P, pair, gradient=two(torch.tensor(2.0, dtype=torch.float64)))


class RoundedProducts(TorchDispatchMode):
    """A mode that rounds the factors of torch's matrix products."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in (torch.ops.aten.mm.default, torch.ops.aten.addmm.default):
            args = [a.round(decimals=1) for a in args]
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("name", LOSSES)
def test_a_mode_finds_torchs_products_in_a_loss(name: str, rows: int | None) -> None:
    ours, theirs = LOSSES[name]
    t = of_layer()
    with RoundedProducts():
        assert_close(ours(rows, *t), theirs(*t))


def test_a_mode_finds_torchs_products_in_a_network_in_tiles() -> None:
    tiled, x = MLP([D, 7, V], "gelu", tile_rows=2, dtype=torch.float64), inputs((N, D))[0]
    with RoundedProducts():
        assert_close(tiled(x), tiled.to_sequential()(x))


def test_flops_are_counted_in_full(rows: int | None) -> None:
    h, w, _ = of_layer()
    counts = []
    for loss in (
        lambda: linear_cross_entropy(h, w, T, chunk_rows=rows),
        lambda: F.cross_entropy(F.linear(h, w), T),
    ):
        with FlopCounterMode(display=False) as counter:
            loss().backward()
        counts.append(counter.get_total_flops())
    assert counts[0] == counts[1] == 3 * 2 * N * D * V


@pytest.mark.parametrize("name", per_sample_layers())
def test_gradients_of_each_sample_by_expanded_weights_are_torchs(name: str) -> None:
    from torch.nn.utils._per_sample_grad import call_for_per_sample_grads

    mine, x = per_sample_layers()[name], torch.randn(N, D)
    parameters = list(mine.parameters())
    call_for_per_sample_grads(mine, batch_size=N, loss_reduction="sum")(x).sin().sum().backward()
    for k in range(N):
        expected = torch.autograd.grad(mine(x[k : k + 1]).sin().sum(), parameters)
        torch.testing.assert_close(tuple(p.grad_sample[k] for p in parameters), expected)


class DefaultDevice:
    """Set a default device for a while."""

    def __enter__(self) -> None:
        torch.set_default_device("cpu")

    def __exit__(self, *_: object) -> None:
        torch.set_default_device(None)


@pytest.mark.parametrize("context", [lambda: torch.device("cpu"), DefaultDevice], ids=["with", "set"])
def test_a_default_device_changes_no_path(context: Callable[[], Any], monkeypatch: pytest.MonkeyPatch) -> None:
    taken: list[str] = []
    for path in (
        "dense._EagerDenseFunction",
        "fused._LossFunction",
        "network._NetworkFunction",
        "network._TiledFunction",
    ):
        module, _, function = path.partition(".")
        owner = getattr(__import__(f"manual_mlp.{module}", fromlist=[function]), function)
        forward = owner.forward
        monkeypatch.setattr(
            owner, "forward", staticmethod(lambda *a, forward=forward, path=path: (taken.append(path), forward(*a))[1])
        )
    mlps = [MLP([D, 7, V], dtype=torch.float64, tile_rows=tile_rows) for tile_rows in (None, 2)]
    h, w, b = of_layer()

    def run() -> list[str]:
        taken.clear()
        dense(h, w, b, "tanh").sum().backward()
        LOSSES["cross-entropy"][0](2, h, w, b).backward()
        for mlp in mlps:
            mlp(h).sum().backward()
            taken.append(str(transforms.caller(h)))
            backprop(mlp, h.detach(), T)
        return list(taken)

    usual = run()
    assert len(usual) == 6
    with context():
        assert run() == usual
        with torch.device("cpu"):
            assert run() == usual
        with Rounding():
            assert [path for path in run() if path != "torch"] == []
    assert run() == usual


def test_a_subclass_of_parameter_without_a_way_of_its_own_is_plain() -> None:
    class Named(nn.Parameter):
        pass

    h, _, b = of_layer()
    w = Named(torch.randn(V, D, dtype=torch.float64))
    assert not transforms.has_class(w)
    assert transforms.caller(h, w, b) == "eager"


# Of shapes, which are judged while tracing, torch warns that the program does not judge them again.
tracing = pytest.mark.filterwarnings(
    "ignore:`torch.jit.trace:FutureWarning",
    "ignore:`torch.jit.trace:DeprecationWarning",
    "ignore::torch.jit.TracerWarning",
)
TRACED: dict[str, tuple[Callable[..., Any], tuple[Tensor, ...]]] = {
    "a network": (MLP([D, 7, V]), (torch.randn(N, D),)),
    "a network in tiles": (MLP([D, 7, V], "gelu", tile_rows=2), (torch.randn(N, D),)),
    "cross-entropy": (LinearCrossEntropyLoss(D, V, chunk_rows=2), (torch.randn(N, 1, D), T[:, None])),
    "each row's cross-entropy": (LinearCrossEntropyLoss(D, V, reduction="none"), (torch.randn(N, 1, D), T[:, None])),
    "squared error": (DenseSquaredError(D, V, "gelu", chunk_rows=2), (torch.randn(N, D), torch.randn(N, V))),
}


@pytest.mark.parametrize("name", TRACED)
@pytest.mark.parametrize("grad_mode", [True, False])
@tracing
def test_what_is_traced_takes_any_number_of_rows(name: str, grad_mode: bool) -> None:
    module, given = TRACED[name]
    others = tuple(torch.cat([t, t, t[:1]]) for t in given)
    with torch.set_grad_enabled(grad_mode):
        traced = torch.jit.trace(module, given)
        torch.testing.assert_close(traced(*others), module(*others))
    torch.testing.assert_close(
        torch.autograd.grad(traced(*others).sum(), list(traced.parameters())),
        torch.autograd.grad(module(*others).sum(), list(module.parameters())),
    )


@tracing
def test_backprop_is_not_traced() -> None:
    with pytest.raises(RuntimeError, match="expected backprop outside of"):
        torch.jit.trace(lambda x: backprop(MLP([D, V]), x, T), (torch.randn(N, D),))
