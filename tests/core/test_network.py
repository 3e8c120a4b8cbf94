"""MLP.forward as one Function: against torch's own modules, tile by tile and at once."""

import copy
import itertools
import pickle
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils.checkpoint import checkpoint

from benchmarks.memory import kept_bytes, peak_bytes
from manual_mlp import MLP, activations
from patience import SECONDS

N, D, V = 7, 4, 3
CPU = torch.device("cpu")
one_tile_or_more = pytest.mark.parametrize("tile_rows", [None, 2])


def make(device: str, activation: Any = "gelu", tile_rows: int | None = None, **options: Any) -> MLP:
    torch.manual_seed(1)
    given = {"dtype": torch.float64, "device": device, **options}
    return MLP([D, 7, 6, V], activation, tile_rows=tile_rows, **given)


def rows_of(device: str, *batch: int) -> Tensor:
    return torch.randn(*(batch or (N,)), D, dtype=torch.float64).to(device).requires_grad_()


def head(y: Tensor) -> Tensor:
    return y.sin().sum()


def gradients(model: nn.Module, x: Tensor, **options: Any) -> list[Tensor]:
    return list(torch.autograd.grad(head(model(x)), [x, *model.parameters()], **options))


def second_order(model: nn.Module, x: Tensor) -> list[Tensor]:
    first = gradients(model, x, create_graph=True)
    return [*first, *torch.autograd.grad(sum(head(g) for g in first), [x, *model.parameters()])]


def assert_close(mine: Any, theirs: Any, atol: float = 1e-12) -> None:
    torch.testing.assert_close(mine, theirs, rtol=atol, atol=atol)


@contextmanager
def threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("name", activations.names())
def test_every_activation_has_the_gradients_of_torchs_layers(device: str, name: str) -> None:
    x = rows_of(device)
    # torch's own hardsigmoid takes 1/6 in float32.
    atol = 1e-6 if name == "hardsigmoid" else 1e-12
    for tile_rows, bias, output in itertools.product((1, 2, 5, None), (True, False), (name, None)):
        mlp = make(device, name, tile_rows, bias=bias, output_activation=output)
        model = mlp.to_sequential()
        assert_close(mlp(x), model(x))
        assert_close(gradients(mlp, x), gradients(model, x), atol)


@pytest.mark.parametrize("name", activations.names())
@one_tile_or_more
def test_every_activation_has_the_second_derivatives_of_its_layers_in_turn(
    device: str, name: str, tile_rows: int | None
) -> None:
    mlp, x = make(device, name, tile_rows, output_activation=name), rows_of(device)

    class Chain(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = mlp.layers

        def forward(self, h: Tensor) -> Tensor:
            for layer in self.layers:
                h = layer(h)
            return h

    assert_close(second_order(mlp, x), second_order(Chain(), x), 1e-9)


@pytest.mark.parametrize("batch", [(), (1,), (0,), (2, 4), (3, 0, 2), (3, 1, 2)], ids=str)
@pytest.mark.parametrize("tile_rows", [1, 3, None])
def test_an_input_of_any_dimensions_is_taken_row_by_row(
    device: str, batch: tuple[int, ...], tile_rows: int | None
) -> None:
    mlp, x = make(device, tile_rows=tile_rows), torch.randn(*batch, D).double().to(device).requires_grad_()
    assert_close(mlp(x), mlp.to_sequential()(x))
    assert_close(gradients(mlp, x), gradients(mlp.to_sequential(), x))


@pytest.mark.parametrize("workers", [1, 2, 3])
def test_any_number_of_threads_gives_the_same_gradients(device: str, workers: int) -> None:
    x = rows_of(device, 23)
    with threads(workers):
        for tile_rows in (1, 2, 5, 22, 23, 99):
            mlp = make(device, tile_rows=tile_rows)
            assert_close(gradients(mlp, x), gradients(mlp.to_sequential(), x))
            with torch.no_grad():
                assert_close(mlp(x), mlp.to_sequential()(x))


@one_tile_or_more
@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize("workers", [1, 2])
def test_without_gradients_the_output_is_the_same_and_none_is_asked_for(
    device: str, tile_rows: int | None, context: Callable[[], Any], workers: int
) -> None:
    mlp, x = make(device, tile_rows=tile_rows), rows_of(device, 9)
    expected = mlp.to_sequential()(x).detach()
    with threads(workers), context():
        y = mlp(x)
    assert_close(y, expected)
    assert not y.requires_grad
    assert y.is_inference() == (context is torch.inference_mode)


@one_tile_or_more
def test_weights_and_inputs_may_be_inference_tensors_where_torch_lets_them(device: str, tile_rows: int | None) -> None:
    with torch.inference_mode():
        x = rows_of(device).detach().clone()
    mlp = make(device, tile_rows=tile_rows).requires_grad_(False)
    assert_close(mlp(x), mlp.to_sequential()(x))


@one_tile_or_more
def test_every_subset_of_frozen_parameters_gets_no_gradient(device: str, tile_rows: int | None) -> None:
    mlp = make(device, tile_rows=tile_rows)
    given = [rows_of(device), *mlp.parameters()]
    for needed in itertools.product((True, False), repeat=len(given)):
        for t, need in zip(given, needed, strict=True):
            t.requires_grad_(need)
        if not any(needed):
            assert not mlp(given[0]).requires_grad
            continue
        found = []
        for model in (mlp, mlp.to_sequential()):
            for t in given:
                t.grad = None
            head(model(given[0])).backward()
            found.append([t.grad for t in given])
        assert_close(*found)


@one_tile_or_more
def test_only_what_is_asked_for_comes_back(device: str, tile_rows: int | None) -> None:
    mlp, x = make(device, tile_rows=tile_rows), rows_of(device)
    given = [x, *mlp.parameters()]
    for some in itertools.combinations(given, 2):
        mine, theirs = (torch.autograd.grad(head(m(x)), some) for m in (mlp, mlp.to_sequential()))
        assert_close(mine, theirs)


@pytest.mark.parametrize("what", ["weight", "bias", "layer"])
@one_tile_or_more
def test_a_parameter_of_two_layers_gets_the_sum(device: str, what: str, tile_rows: int | None) -> None:
    mlp = MLP([D, 6, 6, 6, V], "tanh", tile_rows=tile_rows, dtype=torch.float64, device=device)
    if what == "layer":
        mlp.layers[2] = mlp.layers[1]
    else:
        setattr(mlp.layers[2], what, getattr(mlp.layers[1], what))
    x, model = rows_of(device), mlp.to_sequential()
    assert_close(gradients(mlp, x), gradients(model, x))
    assert_close(second_order(mlp, x), second_order(model, x), 1e-9)


@one_tile_or_more
def test_cotangents_of_any_layout_are_read_and_not_written(device: str, tile_rows: int | None) -> None:
    for output in (None, "tanh", "silu"):
        mlp, x = make(device, tile_rows=tile_rows, output_activation=output), rows_of(device)
        model = mlp.to_sequential()
        for dy in (
            torch.ones((), dtype=torch.float64, device=device).expand(N, V),
            torch.randn(V, N, dtype=torch.float64, device=device).mT,
            torch.randn(N, 2 * V, dtype=torch.float64, device=device)[:, ::2],
        ):
            before = dy.clone()
            mine, theirs = (torch.autograd.grad(m(x), [x, *m.parameters()], dy) for m in (mlp, model))
            assert_close(mine, theirs)
            assert torch.equal(dy, before)


# What is kept.


def saved_by(f: Callable[[], Tensor]) -> list[Tensor]:
    saved: list[Tensor] = []

    def pack(t: Tensor) -> Tensor:
        saved.append(t)
        return t

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        y = f()
    assert y.requires_grad
    return saved


@pytest.mark.parametrize("activation", ["tanh", "gelu"])
def test_one_tile_keeps_the_input_the_weights_and_y_or_z_of_each_hidden_layer(device: str, activation: str) -> None:
    mlp, x = make(device, activation), rows_of(device)
    saved = saved_by(lambda: mlp(x))
    z = mlp.layers[0].weight @ x.mT + mlp.layers[0].bias[:, None]
    kept = torch.tanh(z) if activation == "tanh" else z
    weights = [layer.weight for layer in mlp.layers]
    assert sum(any(t.data_ptr() == w.data_ptr() for w in weights) for t in saved) == 3
    assert sum(t.data_ptr() == x.data_ptr() for t in saved) == 1
    assert sorted(tuple(t.shape) for t in saved) == sorted([(N, D), (7, D), (6, 7), (V, 6), (N, 7), (N, 6)])
    assert_close(next(t for t in saved if t.shape == (N, 7)), kept.mT)


def test_more_tiles_keep_the_input_and_the_parameters_alone(device: str) -> None:
    for dropout in (0.0, 0.3):
        mlp, x = make(device, tile_rows=2, dropout=dropout), rows_of(device)
        saved = saved_by(lambda mlp=mlp, x=x: mlp(x))
        assert sorted(tuple(t.shape) for t in saved) == sorted([(N, D), *(tuple(p.shape) for p in mlp.parameters())])
        held = {t.data_ptr() for t in (x, *mlp.parameters())}
        assert all(t.data_ptr() in held for t in saved if t.dim() > 1)
        counts = kept_bytes(lambda x, mlp=mlp: mlp(x), {"x": x})
        # A bias may be kept as a copy, on the node or beside it.
        assert counts["attributes"] <= sum(layer.bias.nbytes for layer in mlp.layers)


@pytest.mark.parametrize("activation", ["gelu", "silu"])
def test_one_tile_keeps_at_most_55_percent_of_eagers_bytes(activation: str) -> None:
    mlp = MLP([32] * 8, activation)
    x = torch.randn(512, 32)
    mine, theirs = (kept_bytes(lambda x, m=m: m(x), {"x": x}) for m in (mlp, mlp.to_sequential()))
    weights = sum(p.nbytes for p in mlp.parameters())
    assert mine["attributes"] == 0
    # Eager keeps the weights as they are too.
    assert mine["total"] - weights <= 0.55 * (theirs["total"] - weights)


def test_without_grad_mode_no_activation_outlives_its_use(device: str) -> None:
    mlp, x = MLP([64] * 12, "relu", device=device), torch.randn(512, 64, device=device)
    peaks = []
    with torch.no_grad():
        for model in (mlp, mlp.to_sequential()):
            peaks.append(peak_bytes(lambda m=model: m(x), (), torch.device(device)))  # noqa: PERF401
    assert peaks[0] <= peaks[1] + x.nbytes


def test_the_memory_of_more_tiles_does_not_grow_with_depth_or_batch() -> None:
    with threads(1):
        for n in (512, 4096):
            mlp, x = MLP([16, *[64] * 6, 1], "gelu", tile_rows=32), torch.randn(n, 16)
            peak = peak_bytes(lambda m=mlp, x=x: m(x).sum().backward(), mlp.parameters(), CPU)
            parameters = sum(p.nbytes for p in mlp.parameters())
            tile = 32 * 4 * (2 * 64 * 6 + 2 * 64)
            assert peak <= 4 * 4 * n + 2 * parameters + 2 * tile + 2**14


# Between forward and backward.


@one_tile_or_more
def test_a_bias_may_change_in_place_before_backward(device: str, tile_rows: int | None) -> None:
    mlp, x = make(device, tile_rows=tile_rows), rows_of(device)
    expected = gradients(mlp.to_sequential(), x)
    y = mlp(x)
    with torch.no_grad():
        for layer in mlp.layers:
            layer.bias.add_(1)
    assert_close(torch.autograd.grad(head(y), [x, *mlp.parameters()]), tuple(expected))


@one_tile_or_more
@pytest.mark.parametrize("k", [0, 1, 2, "input"])
def test_a_weight_that_changed_in_place_is_the_error_of_torch(device: str, tile_rows: int | None, k: Any) -> None:
    mlp, x = make(device, tile_rows=tile_rows), rows_of(device)
    for model in (mlp.to_sequential(), mlp):
        y = head(model(x))
        with torch.no_grad():
            (x if k == "input" else mlp.layers[k].weight).mul_(2)
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            y.backward()


@one_tile_or_more
def test_backward_twice_needs_retain_graph_and_adds(device: str, tile_rows: int | None) -> None:
    mlp, x = make(device, tile_rows=tile_rows, dropout=0.4), rows_of(device)
    y = head(mlp(x))
    y.backward(retain_graph=True)
    once = [p.grad.clone() for p in mlp.parameters()]
    y.backward()
    assert_close([p.grad for p in mlp.parameters()], [2 * g for g in once])
    with pytest.raises(RuntimeError, match="backward through the graph a second time"):
        y.backward()


@one_tile_or_more
def test_backward_may_run_in_another_thread(device: str, tile_rows: int | None) -> None:
    mlp, x = make(device, tile_rows=tile_rows), rows_of(device)
    expected = gradients(mlp.to_sequential(), x)
    y = head(mlp(x))
    other = threading.Thread(target=y.backward)
    other.start()
    other.join(SECONDS)
    assert_close([x.grad, *(p.grad for p in mlp.parameters())], expected)


@one_tile_or_more
def test_hooks_of_parameters_run_once_with_the_whole_gradient(device: str, tile_rows: int | None) -> None:
    mlp, x, seen = make(device, tile_rows=tile_rows), rows_of(device), []
    expected = gradients(mlp.to_sequential(), x)[1:]
    for p in mlp.parameters():
        p.register_hook(lambda g: 2 * g)
        p.register_post_accumulate_grad_hook(seen.append)
    head(mlp(x)).backward()
    assert_close([p.grad for p in mlp.parameters()], [2 * g for g in expected])
    assert len(seen) == 6


def test_low_precision_gradients_of_many_tiles_are_no_worse_than_those_of_one(device: str) -> None:
    mlp = MLP([8, 16, V], "tanh", dtype=torch.bfloat16, device=device)
    x = (torch.randn(4096, 8, device=device) + 1).bfloat16()
    exact = copy.deepcopy(mlp).double().to_sequential()
    truth = torch.autograd.grad(exact(x.double()).sum(), list(exact.parameters()))
    errors = []
    for tile_rows in (4096, 4):
        mlp.tile_rows = tile_rows
        found = torch.autograd.grad(mlp(x).sum(), list(mlp.parameters()))
        errors.append([(g.double() - t).abs().max().item() for g, t in zip(found, truth, strict=True)])
    for one, many in zip(*errors, strict=True):
        assert many <= 1.5 * one + 1e-6


# Dropout.


@pytest.mark.parametrize("dropout", [0.3, (0.0, 0.5), 1.0], ids=str)
@pytest.mark.parametrize("tile_rows", [1, 2, None])
@pytest.mark.parametrize("workers", [1, 2])
def test_dropout_has_one_mask_forward_and_backward_at_every_order(
    device: str, dropout: Any, tile_rows: int | None, workers: int
) -> None:
    mlp, x = make(device, "tanh", tile_rows, dropout=dropout), rows_of(device)
    given = [x, *mlp.parameters()]

    def value(*moved: Tensor) -> Tensor:
        torch.manual_seed(5)
        return head(torch.func.functional_call(mlp, dict(zip(names, moved[1:], strict=True)), (moved[0],)))

    names = [name for name, _ in mlp.named_parameters()]
    with threads(workers):
        assert torch.autograd.gradcheck(value, given, fast_mode=True)
        assert torch.autograd.gradgradcheck(value, given, fast_mode=True)


@one_tile_or_more
@pytest.mark.parametrize("reentrant", [True, False])
def test_a_checkpoint_draws_the_same_masks_again(device: str, tile_rows: int | None, reentrant: bool) -> None:
    mlp, x = make(device, tile_rows=tile_rows, dropout=0.5), rows_of(device)
    torch.manual_seed(5)
    expected = gradients(mlp, x)
    torch.manual_seed(5)
    y = checkpoint(mlp, x, use_reentrant=reentrant)
    torch.rand(10)
    head(y).backward()
    assert_close([x.grad, *(p.grad for p in mlp.parameters())], expected)


def test_dropout_draws_for_every_call_and_every_tile_anew(device: str) -> None:
    mlp = MLP([D, 64, V], "identity", dropout=0.5, tile_rows=1, dtype=torch.float64, device=device)
    x = rows_of(device, 1).expand(8, D)
    outputs = torch.cat([mlp(x), mlp(x), mlp(x.detach())])
    assert len(outputs.unique(dim=0)) == 24
    with torch.no_grad():
        assert len(mlp(x).unique(dim=0)) == 8
        assert len(mlp.eval()(x).unique(dim=0)) == 1


def test_dropout_zeroes_its_share_and_scales_the_rest(device: str) -> None:
    mlp = MLP([1, 1000, 1000], "identity", bias=False, dropout=0.25, tile_rows=8, device=device)
    with torch.no_grad():
        mlp.layers[0].weight.fill_(1)
        mlp.layers[1].weight.copy_(torch.eye(1000))
    y = mlp(torch.ones(32, 1, device=device))
    assert 0.24 < (y == 0).double().mean() < 0.26
    torch.testing.assert_close(y[y != 0], torch.full_like(y[y != 0], 4 / 3))


@one_tile_or_more
def test_tensors_without_data_have_shapes_with_dropout_too(tile_rows: int | None) -> None:
    mlp = MLP([D, 7, V], dropout=0.5, tile_rows=tile_rows, device="meta")
    y = mlp(torch.empty(N, D, device="meta"))
    assert y.shape == (N, V)
    y.sum().backward()
    assert mlp.layers[0].weight.grad.shape == (7, D)


# The module.


@pytest.mark.parametrize("make_twin", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))], ids=["copy", "pickle"])
def test_a_copy_has_the_same_tiles(device: str, make_twin: Callable[[MLP], MLP]) -> None:
    mlp, x = make(device, tile_rows=2), rows_of(device)
    mlp(x).sum().backward()
    twin = make_twin(mlp)
    assert twin.tile_rows == 2
    assert sorted(tuple(t.shape) for t in saved_by(lambda: twin(x)))[0] == (V,)
    assert_close(gradients(twin, x), gradients(mlp, x))


def test_the_rows_of_a_tile_are_checked_when_the_network_is_made() -> None:
    for tile_rows in (0, -1, 2.0, "2", True):
        with pytest.raises(ValueError, match="expected tile_rows to be an int from 1 up, or None, got"):
            MLP([D, V], tile_rows=tile_rows)


def swapped(mlp: MLP) -> None:
    """Change the classes of the layers, as FSDP does."""
    cls = type(mlp.layers[0])
    other = type(f"FSDP{cls.__name__}", (cls,), {"forward": lambda self, h: 2 * cls.forward(self, h)})
    for layer in mlp.layers:
        layer.__class__ = other


def computed(mlp: MLP) -> None:
    weight = mlp.layers[1].weight
    del mlp.layers[1].weight
    mlp.layers[1].weight = 2 * weight.detach()


def hooked(mlp: MLP) -> None:
    mlp.layers[1].register_forward_hook(lambda *args: 2 * args[-1])


def overridden(mlp: MLP) -> None:
    forward = mlp.layers[1].forward
    mlp.layers[1].forward = lambda h: 2 * forward(h)


CHANGES: dict[str, Callable[[MLP], None]] = {
    "classes swapped": swapped,
    "a weight that is no parameter": computed,
    "a hook": hooked,
    "a forward of its own": overridden,
    "replaced": lambda mlp: mlp.layers.__setitem__(1, nn.Linear(7, 6, dtype=torch.float64)),
    "parametrised": lambda mlp: nn.utils.parametrizations.weight_norm(mlp.layers[1]) and None,
}


@pytest.mark.parametrize("change", CHANGES)
@one_tile_or_more
def test_a_changed_network_runs_layer_by_layer(change: str, tile_rows: int | None) -> None:
    mlp, x = make("cpu", tile_rows=tile_rows), rows_of("cpu")
    before = mlp(x)
    CHANGES[change](mlp)
    h = x
    for layer in mlp.layers:
        h = layer(h)
    parameters = [x, *mlp.parameters()]
    assert_close(mlp(x), h)
    mine, theirs = (torch.autograd.grad(head(y), parameters) for y in (mlp(x), h))
    assert_close(mine, theirs)
    assert change == "parametrised" or not torch.allclose(mlp(x), before)


def test_a_hook_of_every_module_runs_on_every_layer(device: str) -> None:
    mlp, x, seen = make(device), rows_of(device), []
    handle = nn.modules.module.register_module_forward_hook(lambda module, *_: seen.append(module))
    try:
        mlp(x)
    finally:
        handle.remove()
    assert seen == [*mlp.layers, mlp]


@one_tile_or_more
def test_what_no_layer_takes_is_the_error_of_a_layer(tile_rows: int | None) -> None:
    mlp, x = make("cpu", tile_rows=tile_rows), rows_of("cpu").detach()
    given: list[tuple[Any, Any, str]] = [
        (x[:, :3], ValueError, r"expected input \(\*, 4\) for weight \(7, 4\), got \(7, 3\)"),
        (x.sum(), ValueError, r"expected input \(\*, 4\)"),
        (x.float(), TypeError, "expected one dtype"),
        (x.long(), TypeError, "floating-point dtype"),
        (x.to_sparse(), TypeError, "expected input of layout torch.strided"),
        (x.to("meta"), ValueError, "expected one device"),
        ("x", TypeError, "expected input to be a tensor, got str"),
        (None, TypeError, "expected input to be a tensor, got NoneType"),
    ]
    for wrong, error, message in given:
        with pytest.raises(error, match=message):
            mlp(wrong)
    mlp.layers[1].weight = nn.Parameter(mlp.layers[1].weight.detach().to_sparse())
    with pytest.raises(TypeError, match=r"expected weight of layout torch.strided, got torch.sparse_coo"):
        mlp(x)


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
def test_a_nested_input_is_the_error_of_a_layer() -> None:
    nested = torch.nested.nested_tensor([torch.randn(2, D).double(), torch.randn(3, D).double()])
    with pytest.raises(TypeError, match="got a nested tensor"):
        make("cpu")(nested)


@one_tile_or_more
def test_a_traced_network_is_the_network(tile_rows: int | None) -> None:
    mlp, x = make("cpu", tile_rows=tile_rows), rows_of("cpu").detach()
    traced = make_fx(lambda x: mlp(x))(x)
    other = torch.randn_like(x)
    with threads(2):
        assert_close(traced(other), mlp(other))


@one_tile_or_more
@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
@pytest.mark.filterwarnings("ignore:`torch.jit.trace")
def test_a_network_traced_by_jit_is_the_network_for_other_batches_too(tile_rows: int | None) -> None:
    mlp, x = make("cpu", tile_rows=tile_rows), rows_of("cpu").detach()
    traced = torch.jit.trace(mlp, (x,), check_trace=False)
    for rows in (N, 3):
        other = torch.randn(rows, D).double()
        assert_close(traced(other), mlp(other))
