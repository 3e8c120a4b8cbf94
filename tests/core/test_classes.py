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
)
from modes.classes import Rounded, Rounding, rounded
from of_classes import (
    CLASS_WEIGHT,
    LOSSES,
    NAMED,
    TARGETS,
    D,
    N,
    P,
    T,
    V,
    answers,
    as_rounded,
    assert_close,
    by_torch,
    of_layer,
    quantised,
)
from of_classes import rows as rows


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
