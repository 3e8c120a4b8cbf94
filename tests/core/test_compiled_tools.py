"""Fake tensors under transforms, backprop in what is compiled, and compiled autograd: torch's answers, or one break."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._dynamo import compiled_autograd
from torch._dynamo.utils import counters
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.func import grad, hessian, jacfwd, jacrev, jvp, vmap
from torch.utils._pytree import tree_leaves

from manual_mlp import (
    MLP,
    Dense,
    DenseSquaredError,
    Linear,
    LinearCrossEntropyLoss,
    backprop,
    dense_squared_error,
    linear_binary_cross_entropy,
    linear_cross_entropy,
)
from manual_mlp.engines import native

# torch's compilers read .grad of tensors of their own, whatever the layer.
pytestmark = pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")
V = 11
Answer = Callable[..., Any]


@pytest.fixture(autouse=True)
def _afresh() -> Iterator[None]:
    torch.compiler.reset()
    counters.clear()
    yield
    torch.compiler.reset()


@pytest.fixture(params=["native", "plain"])
def _engine(request: pytest.FixtureRequest) -> Iterator[None]:
    if request.param == "native":
        if native.doors is None:
            pytest.skip("native is not built")
        yield
    else:
        with native.without():
            yield


# Fake tensors.

TRANSFORMS: dict[str, Callable[[Answer], Answer]] = {
    "vmap(jacfwd(jacrev))": lambda f: vmap(jacfwd(jacrev(f))),
    "vmap(jacrev(jacfwd))": lambda f: vmap(jacrev(jacfwd(f))),
    "vmap(hessian)": lambda f: vmap(hessian(f)),
    "jacrev": jacrev,
    "vmap(grad)": lambda f: vmap(grad(lambda x: f(x).sin().sum())),
    "jvp": lambda f: lambda x: jvp(f, (x,), (x,)),
    "jvp(jvp)": lambda f: lambda x: jvp(lambda y: jvp(f, (y,), (y,)), (x,), (x,)),
}
LAYERS: dict[str, Callable[[], tuple[nn.Module, nn.Module]]] = {
    "Linear": lambda: (Linear(4, 3), nn.Linear(4, 3)),
    "Dense": lambda: (Dense(4, 3, "gelu"), nn.Sequential(nn.Linear(4, 3), nn.GELU())),
    "MLP": lambda: (mlp := MLP([4, 6, 3], "tanh"), mlp.to_sequential()),
    "MLP, 2 rows at once": lambda: (mlp := MLP([4, 6, 3], "gelu", tile_rows=2), mlp.to_sequential()),
}


def described(results: Any) -> list[Any]:
    return [(type(t), t.shape, t.dtype, t.device) for t in tree_leaves(results)]


@pytest.mark.filterwarnings("ignore:`torch.jit.script:FutureWarning")
@pytest.mark.parametrize("transform", TRANSFORMS)
@pytest.mark.parametrize("layer", LAYERS)
def test_a_transform_of_fake_tensors_answers_as_torchs_layer(transform: str, layer: str) -> None:
    with FakeTensorMode():
        x = torch.randn(5, 4)
        ours, torchs = (described(TRANSFORMS[transform](f)(x)) for f in LAYERS[layer]())
    assert ours == torchs
    assert {kind for kind, *_ in ours} == {FakeTensor}


FAKE_LOSSES: dict[str, tuple[Callable[..., Tensor], Callable[..., Tensor]]] = {
    "squared": (
        lambda x, w, b, n, c: dense_squared_error(x, w, b, n, "tanh"),
        lambda x, w, b, n, c: 0.5 * F.mse_loss(F.linear(x, w, b).tanh(), n, reduction="sum"),
    ),
    "binary": (
        lambda x, w, b, n, c: linear_binary_cross_entropy(x, w, n, linear_bias=b),
        lambda x, w, b, n, c: F.binary_cross_entropy_with_logits(F.linear(x, w, b), n),
    ),
    "classes": (
        lambda x, w, b, n, c: linear_cross_entropy(x, w, c, linear_bias=b),
        lambda x, w, b, n, c: F.cross_entropy(F.linear(x, w, b), c),
    ),
    "shares": (
        lambda x, w, b, n, c: linear_cross_entropy(x, w, n, linear_bias=b, reduction="none"),
        lambda x, w, b, n, c: F.cross_entropy(F.linear(x, w, b), n, reduction="none"),
    ),
}


@pytest.mark.parametrize("transform", ["jacrev", "jvp", "jvp(jvp)"])
@pytest.mark.parametrize("loss", FAKE_LOSSES)
def test_a_transform_of_a_fake_loss_answers_as_torchs(transform: str, loss: str) -> None:
    with FakeTensorMode():
        given = torch.randn(3, 4), torch.randn(3), torch.rand(5, 3), torch.randint(3, (5,))
        ours, torchs = (
            described(TRANSFORMS[transform](lambda x, f=f: f(x, *given))(torch.randn(5, 4))) for f in FAKE_LOSSES[loss]
        )
    assert ours == torchs
    assert {kind for kind, *_ in ours} == {FakeTensor}


# backprop in a compiled step.


def stepped(inside: bool, by_hand: bool) -> tuple[Any, list[int], list[Tensor], list[float]]:
    """Train for ten steps, the last five of another batch size; count the graphs after each."""
    torch.manual_seed(0)
    mlp = MLP([4, 6, 3], "tanh").double()
    twin, graphs, counts, losses = mlp.to_sequential(), [], [], []
    optimizer = torch.optim.SGD(mlp.parameters(), 0.1)

    def step(x: Tensor, t: Tensor) -> Tensor:
        if by_hand:
            loss = backprop(mlp, 2 * x, t)
        else:
            loss = F.cross_entropy(twin(2 * x), t)
            loss.backward()
        if inside:
            optimizer.step()
        return loss.detach() + 1

    def backend(module: Any, _: Any) -> Any:
        graphs.append(module)
        return module.forward

    compiled = torch.compile(step, backend=backend)
    for k in range(10):
        n = 5 if k < 5 else 9
        losses.append(compiled(torch.randn(n, 4).double(), torch.randint(3, (n,))).item())
        if not inside:
            optimizer.step()
        optimizer.zero_grad()
        counts.append(len(graphs))
    return step, counts, [p.detach() for p in mlp.parameters()], losses


@pytest.mark.parametrize("inside", [False, True], ids=["optimizer outside", "optimizer inside"])
def test_a_compiled_step_by_hand_trains_as_torchs_and_compiles_no_more(inside: bool) -> None:
    _, torchs_counts, *torchs = stepped(inside, by_hand=False)
    torch.compiler.reset()
    counters.clear()
    _, counts, *ours = stepped(inside, by_hand=True)
    torch.testing.assert_close(ours, torchs, rtol=1e-12, atol=1e-12)
    assert counts[0] == counts[4]
    assert counts[5] == counts[9]
    assert all(mine <= theirs for mine, theirs in zip(counts, torchs_counts, strict=True))


def test_the_one_break_of_a_compiled_step_says_why() -> None:
    step, _, *_ = stepped(inside=False, by_hand=True)
    # Once for each batch size.
    ((reason, count),) = counters["graph_break"].items()
    assert count == 2
    assert "backprop adds to .grad" in reason
    given = torch.randn(5, 4).double(), torch.randint(3, (5,))
    torch.compiler.reset()
    found = torch._dynamo.explain(step)(*given)
    assert found.graph_break_count == 1
    with pytest.raises(torch._dynamo.exc.Unsupported, match="without fullgraph=True it runs between two graphs"):
        torch.compile(step, backend="eager", fullgraph=True)(*given)


# Compiled autograd.


class Loss(nn.Module):
    """Hold a layer, and call a loss of it with options."""

    def __init__(self, f: Callable[..., Tensor], **options: Any) -> None:
        super().__init__()
        self.f, self.linear, self.options = f, nn.Linear(4, V).double(), options

    def forward(self, h: Tensor, target: Tensor) -> Tensor:
        return self.f(h, self.linear.weight, self.linear.bias, target, **self.options)


def of_classes(h: Tensor, w: Tensor, b: Tensor, target: Tensor, **options: Any) -> Tensor:
    return linear_cross_entropy(h, w, target, linear_bias=b, **options)


def of_answers(h: Tensor, w: Tensor, b: Tensor, target: Tensor, **options: Any) -> Tensor:
    return linear_binary_cross_entropy(h, w, target, linear_bias=b, **options)


def alone(n: int) -> tuple[Tensor, ...]:
    return (torch.randn(n, 4, dtype=torch.float64),)


def with_numbers(n: int) -> tuple[Tensor, ...]:
    return *alone(n), torch.rand(n, V, dtype=torch.float64)


def with_classes(n: int) -> tuple[Tensor, ...]:
    return *alone(n), torch.randint(V, (n,))


DIFFERENTIATED: dict[str, tuple[Callable[[], nn.Module], Callable[[int], tuple[Tensor, ...]]]] = {
    "Linear": (lambda: Linear(4, 3), alone),
    "Dense, relu": (lambda: Dense(4, 3, "relu"), alone),
    "Dense, gelu": (lambda: Dense(4, 3, "gelu"), alone),
    "MLP": (lambda: MLP([4, 6, 5, 3], "gelu"), alone),
    "MLP, 2 rows at once": (lambda: MLP([4, 6, 5, 3], "tanh", tile_rows=2), alone),
    "MLP, dropout": (lambda: MLP([4, 6, 5, 3], "gelu", dropout=0.3), alone),
    "MLP, dropout, 2 rows at once": (lambda: MLP([4, 6, 5, 3], dropout=0.3, tile_rows=2), alone),
    "DenseSquaredError": (lambda: DenseSquaredError(4, V, "tanh", chunk_rows=2), with_numbers),
    "LinearCrossEntropyLoss": (lambda: LinearCrossEntropyLoss(4, V), with_classes),
    "2 rows at once": (lambda: Loss(of_classes, chunk_rows=2, label_smoothing=0.1, ignore_index=1), with_classes),
    "all rows at once": (lambda: Loss(of_classes, chunk_rows=64, label_smoothing=0.1), with_classes),
    "each row": (lambda: Loss(of_classes, chunk_rows=2, reduction="none"), with_classes),
    "probabilities": (lambda: Loss(of_classes, chunk_rows=2, label_smoothing=0.1), with_numbers),
    "a soft cap and z": (lambda: Loss(of_classes, chunk_rows=2, softcap=3.0, z_loss=0.1), with_classes),
    "binary": (lambda: Loss(of_answers, chunk_rows=2), with_numbers),
    "squared": (lambda: Loss(dense_squared_error, chunk_rows=2, activation="gelu"), with_numbers),
}
of_each = pytest.mark.parametrize("name", DIFFERENTIATED)


def in_both(run: Callable[[], Any]) -> list[Any]:
    """Run with eager autograd, then with compiled, from the same random state."""
    torch.manual_seed(1)
    found = [run()]
    torch.manual_seed(1)
    with compiled_autograd._enable(torch.compile(backend="aot_eager")):
        return [*found, run()]


def given(name: str, n: int) -> tuple[nn.Module, tuple[Tensor, ...]]:
    make, args_of = DIFFERENTIATED[name]
    h, *others = args_of(n)
    return make().double(), (h.requires_grad_(), *others)


@pytest.mark.each_value
@of_each
@pytest.mark.usefixtures("_engine")
def test_compiled_autograd_gives_the_same_gradients_and_compiles_once(name: str) -> None:
    module, (h, *others) = given(name, 5)

    def step(scale: float) -> list[Tensor]:
        leaves = [h, *module.parameters()]
        for t in leaves:
            t.grad = None
        (module(h, *others).sin().sum() * scale).backward()
        return [t.grad for t in leaves]

    for scale in (1.0, 0.5, 2.0, -3.0):
        torch.manual_seed(int(scale * 10))
        eager, compiled = in_both(lambda scale=scale: step(scale))
        torch.testing.assert_close(compiled, eager, rtol=1e-12, atol=1e-12)
        with torch.no_grad():
            h.add_(1)
    assert counters["compiled_autograd"]["captures"] == 1


@pytest.mark.each_value
@pytest.mark.parametrize(
    "name", ["Dense, relu", "MLP", "MLP, dropout, 2 rows at once", "2 rows at once", "each row", "squared"]
)
@pytest.mark.usefixtures("_engine")
def test_compiled_autograd_gives_some_gradients_again_and_their_own(name: str) -> None:
    module, (h, *others) = given(name, 5)
    leaves = [h, *module.parameters()]

    def run() -> Any:
        y = module(h, *others).sin().sum()
        first = torch.autograd.grad(y, leaves, retain_graph=True)
        of_h = torch.autograd.grad(y, h, torch.tensor(3.0).double(), retain_graph=True)
        of_w = torch.autograd.grad(y, leaves[1], create_graph=True)
        return first, of_h, of_w, torch.autograd.grad(of_w[0].sin().sum(), leaves[:2])

    eager, compiled = in_both(run)
    torch.testing.assert_close(compiled, eager, rtol=1e-12, atol=1e-12)
    assert counters["compiled_autograd"]["captures"] > 0
