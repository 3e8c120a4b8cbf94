"""backprop() on a GPU, ahead of one: how many operations it issues, whether it waits, and what its kernels compute."""

import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from manual_mlp import MLP, backprop, engines
from manual_mlp.engines.aten import KernelCrossEntropy

N, D, V = 9, 5, 6
VIEWS = "alias", "as_strided", "detach", "expand", "select", "slice", "squeeze", "t", "transpose", "unsqueeze", "view"
WAITS = "_local_scalar_dense", "nonzero", "masked_select", "is_nonzero", "equal", "unique"


@pytest.fixture(autouse=True)
def _with_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    # What is counted is what runs on a GPU, by torch's own kernels.
    monkeypatch.delenv("MANUAL_MLP_ENGINE", raising=False)


class Counting(TorchDispatchMode):
    """Count the operations that a GPU would be given, and refuse those that would wait for it."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        assert name not in WAITS, f"{name} waits"
        assert not (name == "index" and any(t is not None and t.dtype == torch.bool for t in args[1])), "a mask waits"
        if name not in VIEWS and not name.startswith(("_unsafe_view", "_reshape_alias")):
            self.names.append(name)
        return func(*args, **(kwargs or {}))


def operations(step: Callable[[], Any]) -> list[str]:
    with Counting() as seen:
        step()
    return seen.names


OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "summed": {"reduction": "sum"},
    "of each row": {"reduction": "none"},
    "ignored class": {"ignore_index": 3},
    "class weights": {"weight": torch.ones(V, device="meta")},
    "smoothed": {"label_smoothing": 0.1},
    "smoothed, of each row": {"label_smoothing": 0.1, "reduction": "none"},
    "smoothed and weighted": {"label_smoothing": 0.1, "weight": torch.ones(V, device="meta")},
    "probabilities": {},
    "probabilities, weighted": {"weight": torch.ones(V, device="meta")},
}


@pytest.mark.parametrize("name", OPTIONS)
@pytest.mark.parametrize("activation", ["relu", "tanh", "gelu"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_backprop_issues_no_more_operations_than_autograd(name: str, activation: str, dtype: torch.dtype) -> None:
    mlp = MLP([D, 8, 7, V], activation, device="meta", dtype=dtype)
    model, options = mlp.to_sequential(), dict(OPTIONS[name])
    if "weight" in options:
        options["weight"] = options["weight"].to(dtype)
    x = torch.empty(N, D, device="meta", dtype=dtype)
    t = torch.empty((N, V) if "probab" in name else N, device="meta", dtype=dtype if "probab" in name else torch.int64)
    g = torch.empty(N, device="meta", dtype=dtype) if options.get("reduction") == "none" else None

    def eager() -> None:
        mlp.zero_grad()
        F.cross_entropy(model(x), t, **options).backward(g)

    def explicit() -> None:
        mlp.zero_grad()
        backprop(mlp, x, t, gradient=g, **options)

    # In half precision a loss widens z and what weighs it, and narrows its value and δ, to round each once.
    allowed = len(operations(eager)) + (4 if dtype == torch.bfloat16 else 0)
    assert len(operations(explicit)) <= allowed, operations(explicit)


def columns_first(mlp: MLP) -> None:
    for layer in mlp.layers:
        layer.weight.data = layer.weight.data.t().contiguous().t()


@pytest.mark.parametrize("of_input", [False, True])
@pytest.mark.parametrize("change", [lambda _: None, columns_first], ids=["", "transposed"])
@pytest.mark.parametrize("last", [None, "tanh"])
@pytest.mark.parametrize("gradient", [None, 2.0, torch.empty((), device="meta")], ids=str)
def test_nor_for_other_states(of_input: bool, change: Callable[[MLP], None], last: Any, gradient: Any) -> None:
    mlp = MLP([D, 8, 7, V], "relu", last, device="meta")
    change(mlp)
    model, x = mlp.to_sequential(), torch.empty(N, D, device="meta", requires_grad=of_input)
    t = torch.empty(N, device="meta", dtype=torch.int64)
    g = gradient if gradient is None or isinstance(gradient, Tensor) else torch.full((), gradient, device="meta")

    def eager() -> None:
        F.cross_entropy(model(x), t).backward(g)

    def explicit() -> None:
        backprop(mlp, x, t, gradient=gradient)

    counts = []
    for step in (eager, explicit):
        mlp.zero_grad()
        x.grad = None
        counts.append(operations(step))
    made = 1 if isinstance(gradient, float) else 0  # for a number there is a tensor to be made
    assert len(counts[1]) <= len(counts[0]) + made, counts[1]


@pytest.mark.parametrize("loss", ["cross_entropy", "squared_error", "binary_cross_entropy"])
@pytest.mark.parametrize("tile_rows", [None, 4])
@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_no_step_waits_for_a_gpu(loss: str, tile_rows: int | None, dropout: float) -> None:
    mlp = MLP([D, 8, V], "gelu", dropout=dropout, device="meta")
    x = torch.empty(N, D, device="meta")
    t = (
        torch.empty(N, dtype=torch.int64, device="meta")
        if loss == "cross_entropy"
        else torch.empty(N, V, device="meta")
    )
    operations(lambda: backprop(mlp, x, t, loss, tile_rows=tile_rows))
    operations(lambda: mlp(x).sum().backward())


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("epsilon", [0.0, 0.2, 1.0])
@pytest.mark.parametrize("kind", ["classes", "some ignored", "all ignored", "probabilities", "no rows"])
def test_the_kernels_for_a_gpu_compute_torchs_loss_and_gradient(
    kind: str, epsilon: float, weighted: bool, reduction: str
) -> None:
    n = 0 if kind == "no rows" else N
    z = torch.randn(n, V, dtype=torch.float64, requires_grad=True)
    weight = torch.linspace(0, 2, V, dtype=torch.float64) if weighted else None
    t = torch.arange(n) % V
    if kind == "probabilities":
        t = torch.linspace(0, 1, n * V, dtype=torch.float64).view(n, V)
    elif "ignored" in kind:
        t = torch.where(t > (2 if kind.startswith("some") else -1), -100, t)
    g = torch.linspace(-1, 2, n, dtype=torch.float64) if reduction == "none" else torch.tensor(3.0, dtype=torch.float64)
    loss, logits = KernelCrossEntropy(t, weight, -100, epsilon), z.detach()
    if reduction == "none":
        value, delta = loss.weighted(logits, slice(None), g)
    else:
        value, delta = loss.reduced(logits, reduction == "mean", g)
    expected = F.cross_entropy(z, t, weight, label_smoothing=epsilon, reduction=reduction)
    torch.testing.assert_close(value, expected.detach(), rtol=1e-12, atol=1e-12, equal_nan=True)
    (gradient,) = torch.autograd.grad(expected, z, g)
    torch.testing.assert_close(delta, gradient, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("tile_rows", [None, 2])
def test_whole_steps_by_the_kernels_are_autograds(tile_rows: int | None, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = engines.Engine("on a GPU", KernelCrossEntropy)
    monkeypatch.setattr("manual_mlp.losses.engine_for", lambda _: engine)
    mlp, x, t = MLP([D, 8, V], "gelu", dtype=torch.float64), torch.randn(N, D, dtype=torch.float64), torch.arange(N) % V
    t[3] = -100
    for reduction, epsilon in itertools.product(("mean", "sum", "none"), (0.0, 0.1)):
        g = torch.linspace(1, 2, N, dtype=torch.float64) if reduction == "none" else None
        expected = F.cross_entropy(mlp(x), t, reduction=reduction, label_smoothing=epsilon)
        gradients = torch.autograd.grad(expected, list(mlp.parameters()), g)
        mlp.zero_grad()
        found = backprop(mlp, x, t, reduction=reduction, tile_rows=tile_rows, gradient=g, label_smoothing=epsilon)
        torch.testing.assert_close(found, expected.detach(), rtol=1e-12, atol=1e-12)
        torch.testing.assert_close([p.grad for p in mlp.parameters()], list(gradients), rtol=1e-12, atol=1e-12)
