"""Who computes: a call that native can compute is native's, and any other is plain's, with plain's errors."""

import copy
import pickle
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd import forward_ad
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from manual_mlp import (
    MLP,
    Activation,
    Dense,
    activations,
    backprop,
    dense,
    dense_squared_error,
    linear_binary_cross_entropy,
    linear_cross_entropy,
)
from manual_mlp.engines import native

if native.doors is None:
    pytest.skip(f"native is off: {native.why()}", allow_module_level=True)

N, D, V = 5, 4, 3
Answers = list[tuple[str, bool]]
HEADS = {
    "cross_entropy": "linear_cross_entropy",
    "binary_cross_entropy": "linear_binary_cross_entropy",
    "squared_error": "dense_squared_error",
}


class Watching:
    """Native's doors, noting which were asked and whether native computed."""

    def __init__(self, doors: Any) -> None:
        self.doors, self.answers = doors, []

    def __getattr__(self, name: str) -> Callable[..., Any]:
        def ask(*args: Any) -> Any:
            found = getattr(self.doors, name)(*args)
            # All losses of a layer have one door, which takes the name of the loss.
            self.answers.append((HEADS[args[6]] if name == "head" else name, found is not None))
            return found

        return ask


@pytest.fixture
def answers(monkeypatch: pytest.MonkeyPatch) -> Answers:
    watching = Watching(native.doors)
    monkeypatch.setattr(native, "doors", watching)
    return watching.answers


def draw(*shape: int) -> Tensor:
    return torch.randn(shape, dtype=torch.float64)


def operands() -> list[Tensor]:
    return [draw(N, D).requires_grad_(), draw(V, D).requires_grad_(), draw(V).requires_grad_()]


def mlp_of(**options: Any) -> MLP:
    return MLP([D, 6, V], "gelu", **{"dtype": torch.float64, **options})


CLASSES = torch.arange(N) % V


def logistic(h: Tensor, w: Tensor, b: Tensor) -> Tensor:
    return linear_binary_cross_entropy(h, w, torch.full((N, V), 0.3, dtype=h.dtype), linear_bias=b)


def squared(h: Tensor, w: Tensor, b: Tensor) -> Tensor:
    return dense_squared_error(h, w, b, torch.ones(N, V, dtype=h.dtype), "tanh")


def entropy(h: Tensor, w: Tensor, b: Tensor) -> Tensor:
    return linear_cross_entropy(h, w, CLASSES, linear_bias=b)


NETWORKS = {dtype: mlp_of(dtype=dtype) for dtype in (torch.float64, torch.float32, torch.bfloat16, torch.float16)}


def network(h: Tensor, *_: Tensor) -> Tensor:
    return NETWORKS[h.dtype](h)


def step(h: Tensor, *_: Tensor) -> Tensor:
    return backprop(copy.deepcopy(NETWORKS[h.dtype]), h.detach(), CLASSES)


# Each door by its name in C++.
DOORS: dict[str, Callable[..., Tensor]] = {
    "dense": lambda h, w, b: dense(h, w, b, "gelu"),
    "network": network,
    "backprop": step,
    "linear_cross_entropy": entropy,
    "linear_binary_cross_entropy": logistic,
    "dense_squared_error": squared,
}
NODES = {"dense": "DenseFunction", "network": "NetworkFunction"}
every_door = pytest.mark.parametrize("door", DOORS)


@contextmanager
def default_device() -> Iterator[None]:
    torch.set_default_device("cpu")
    try:
        yield
    finally:
        torch.set_default_device(None)


@contextmanager
def deterministic(mode: bool) -> Iterator[None]:
    torch.use_deterministic_algorithms(mode)
    yield


HERE: dict[str, Callable[[], AbstractContextManager[Any]]] = {
    "nothing": nullcontext,
    "no_grad": torch.no_grad,
    "autocast that is off": lambda: torch.autocast("cpu", enabled=False),
    "a default device": default_device,
    "a device as a context": lambda: torch.device("cpu"),
    "deterministic": lambda: deterministic(True),
    "not deterministic": lambda: deterministic(False),
    "saved tensors hooks": lambda: torch.autograd.graph.saved_tensors_hooks(lambda t: t, lambda t: t),
}


@every_door
@pytest.mark.parametrize("where", HERE)
def test_a_usual_call_is_natives(door: str, where: str, answers: Answers) -> None:
    with HERE[where]():
        y = DOORS[door](*operands())
    assert answers == [(door, True)]
    assert y.grad_fn is None or "manual_mlp" in y.grad_fn.name()


@pytest.mark.parametrize("door", NODES)
def test_a_node_is_natives(door: str) -> None:
    y = DOORS[door](*operands())
    assert f"manual_mlp::(anonymous namespace)::{NODES[door]}" in y.grad_fn.name()
    with native.without():
        assert "manual_mlp::" not in DOORS[door](*operands()).grad_fn.name()


@pytest.mark.parametrize("door", [d for d in DOORS if d != "backprop"])
def test_inference_mode_is_natives(door: str, answers: Answers) -> None:
    with torch.inference_mode():
        y = DOORS[door](*(t.detach() for t in operands()))
    assert answers == [(door, True)]
    assert y.is_inference()


@pytest.mark.parametrize("narrow", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("door", [d for d in DOORS if d != "network"])
def test_autocast_is_natives_with_the_dtypes_of_plain(door: str, narrow: torch.dtype, answers: Answers) -> None:
    given = [t.detach().float().requires_grad_() for t in operands()]
    with torch.autocast("cpu", narrow):
        y = DOORS[door](*given)
        assert answers == [(door, True)]
        with native.without():
            assert DOORS[door](*given).dtype == y.dtype


def test_a_network_under_autocast_is_natives_layer_by_layer(answers: Answers) -> None:
    with torch.autocast("cpu", torch.bfloat16):
        network(operands()[0].float())
    assert answers == [("network", False), ("dense", True), ("dense", True)]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@every_door
def test_every_floating_dtype_is_natives(door: str, dtype: torch.dtype, answers: Answers) -> None:
    DOORS[door](*(t.detach().to(dtype).requires_grad_() for t in operands()))
    assert answers == [(door, True)]


@pytest.mark.parametrize("name", activations.names())
def test_every_activation_of_this_package_is_natives(name: str, answers: Answers) -> None:
    h, w, b = operands()
    dense(h, w, b, name)
    MLP([D, 6, V], name, dtype=torch.float64)(h)
    backprop(MLP([D, 6, V], name, dtype=torch.float64), h.detach(), CLASSES)
    # A test may have added others.
    expected = name in activations.__all__
    assert answers[:1] == [("dense", expected)]
    assert all(computed is expected for _, computed in answers)


# What is not native's. Each gives what plain gives.


class Plain(Tensor):
    pass


class Seen(TorchFunctionMode):
    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return func(*args, **(kwargs or {}))


class Dispatched(TorchDispatchMode):
    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return func(*args, **(kwargs or {}))


def of_class(f: Callable[..., Any], t: list[Tensor]) -> Any:
    return f(t[0].detach().as_subclass(Plain), *t[1:])


def under(mode: Callable[[], Any]) -> Callable[..., Any]:
    def run(f: Callable[..., Any], t: list[Tensor]) -> Any:
        with mode():
            return f(*t)

    return run


def dual(f: Callable[..., Any], t: list[Tensor]) -> Any:
    with forward_ad.dual_level():
        return forward_ad.unpack_dual(f(forward_ad.make_dual(t[0].detach(), torch.ones_like(t[0])), *t[1:]))


def vmapped(f: Callable[..., Any], t: list[Tensor]) -> Any:
    h, *rest = (x.detach() for x in t)
    return torch.func.vmap(lambda h: f(h, *rest))(torch.stack([h, 2 * h]))


def of_func(transform: Callable[..., Any]) -> Callable[..., Any]:
    def run(f: Callable[..., Any], t: list[Tensor]) -> Any:
        h, *rest = (x.detach() for x in t)
        return transform(lambda h: f(h, *rest).sum())(h)

    return run


def pushed(f: Callable[..., Any], t: list[Tensor]) -> Any:
    h, *rest = (x.detach() for x in t)
    return torch.func.jvp(lambda h: f(h, *rest), (h,), (torch.ones_like(h),))


def traced(f: Callable[..., Any], t: list[Tensor]) -> Any:
    given = tuple(x.detach() for x in t)
    if f is network:  # whose parameters are not constants
        f, given = NETWORKS[torch.float64], given[:1]
    return torch.jit.trace(f, given, check_trace=False)(*given)


def negated(f: Callable[..., Any], t: list[Tensor]) -> Any:
    h = t[0].detach()
    return f(torch._neg_view(-h), *t[1:])


ELSEWHERE: dict[str, Callable[..., Any]] = {
    "a class": of_class,
    "a function mode": under(Seen),
    "a dispatch mode": under(Dispatched),
    "a dual tensor": dual,
    "vmap": vmapped,
    "grad": of_func(torch.func.grad),
    "grad of grad": of_func(lambda f: torch.func.grad(lambda h: torch.func.grad(f)(h).sin().sum())),
    "jacrev": of_func(torch.func.jacrev),
    "hessian": of_func(torch.func.hessian),
    "functionalize": of_func(torch.func.functionalize),
    "jvp": pushed,
    "jit.trace": traced,
    "a negated view": negated,
}
LAYERWISE = [d for d in DOORS if d not in ("backprop",)]


@pytest.mark.filterwarnings("ignore:`torch.jit.trace")
@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
@pytest.mark.parametrize("where", ELSEWHERE)
@pytest.mark.parametrize("door", LAYERWISE)
def test_an_unusual_call_is_plains(door: str, where: str, answers: Answers) -> None:
    t = operands()
    found = ELSEWHERE[where](DOORS[door], t)
    assert answers
    assert not any(computed for _, computed in answers), answers
    with native.without():
        expected = ELSEWHERE[where](DOORS[door], t)
    torch.testing.assert_close(found, expected, rtol=1e-13, atol=1e-13)
    assert type(found) is type(expected)


@pytest.mark.parametrize("mode", [FakeTensorMode, nullcontext])
def test_tensors_without_data_are_plains(mode: Any, answers: Answers) -> None:
    given = [t.detach() for t in operands()]
    with mode() as fake:
        given = [t.to("meta") if fake is None else fake.from_tensor(t) for t in given]
        y = dense(*given, "gelu")
    assert answers == [("dense", False)]
    assert type(y) is type(given[0])
    assert (y.shape, y.device) == ((N, V), given[0].device)


@pytest.mark.parametrize("which", range(3))
def test_an_unusual_weight_or_bias_is_plains_too(which: int, answers: Answers) -> None:
    given: list[Tensor] = [t.detach() for t in operands()]
    given[which] = torch._neg_view(-given[which])
    y = dense(*given, "gelu")
    given[which] = given[which].clone().as_subclass(Plain)
    dense(*given, "gelu")
    assert answers == [("dense", False)] * 2
    with native.without():
        torch.testing.assert_close(y, dense(*given, "gelu").as_subclass(Tensor))


def test_complex_and_conjugate_operands_are_plains_error(answers: Answers) -> None:
    h, w, b = (t.detach().to(torch.complex128) for t in operands())
    for given in (h, h.conj()):
        with pytest.raises(TypeError, match="expected"):
            dense(given, w, b, "identity")
    assert not any(computed for _, computed in answers)


def sparse(w: Tensor) -> Tensor:
    return w.detach().to_sparse()


def compressed(w: Tensor) -> Tensor:
    return w.detach().to_sparse_csr()


def nested(w: Tensor) -> Tensor:
    return torch.nested.nested_tensor(list(w.detach()))


def wide(w: Tensor) -> Tensor:
    return w.detach().repeat(1, 2)


MISFITS: dict[str, Callable[[Tensor, Tensor, Tensor], tuple[Any, ...]]] = {
    "a sparse weight": lambda h, w, b: (h, sparse(w), b),
    "a compressed weight": lambda h, w, b: (h, compressed(w), b),
    "a nested weight": lambda h, w, b: (h, nested(w), b),
    "a wide weight": lambda h, w, b: (h, wide(w), b),
    "a weight of one dimension": lambda h, w, b: (h, w[0], b),
    "a long bias": lambda h, w, b: (h, w, b.repeat(2)),
    "a bias of two dimensions": lambda h, w, b: (h, w, b[None]),
    "an input without dimensions": lambda h, w, b: (h[0, 0], w, b),
    "another dtype": lambda h, w, b: (h.float(), w, b),
    "integers": lambda h, w, b: (h.long(), w.long(), b.long()),
    "float8": lambda h, w, b: (h.to(torch.float8_e4m3fn), w.to(torch.float8_e4m3fn), b.to(torch.float8_e4m3fn)),
    "another device": lambda h, w, b: (h, w.to("meta"), b),
    "no tensor": lambda h, w, b: (h.tolist(), w, b),
    "no weight": lambda h, w, b: (h, None, b),
}


@pytest.mark.filterwarnings("ignore:.*(sparse|nested|Sparse).*:UserWarning")
@pytest.mark.parametrize("misfit", MISFITS)
def test_what_does_not_fit_is_plains_error(misfit: str, answers: Answers) -> None:
    given = MISFITS[misfit](*(t.detach() for t in operands()))
    raised = []
    for context in (nullcontext(), native.without()):
        with context, pytest.raises(Exception) as error:  # noqa: PT011
            dense(*given, "tanh")
        raised.append((type(error.value), str(error.value)))
    assert raised[0] == raised[1]
    assert answers == [("dense", False)]


def cubic() -> Activation:
    return Activation(f=lambda z: z**3, df=lambda z: 3 * z**2, d2f=lambda z: 6 * z, name="cubic")


def test_a_users_activation_is_plains(answers: Answers) -> None:
    h, w, b = operands()
    own = cubic()
    dense(h, w, b, own)
    MLP([D, 6, V], own, dtype=torch.float64)(h)
    dense(h, w, b, nn.Tanh())
    assert answers[0] == ("dense", False)
    assert answers[1] == ("network", False)
    assert answers[-1] == ("dense", True)
    assert own.native == -1


def test_a_replaced_record_of_a_known_name_is_plains(answers: Answers) -> None:
    from dataclasses import replace

    h, w, b = operands()
    dense(h, w, b, "tanh")
    false = replace(activations.get("tanh"), f=torch.sin, name="tanh")
    torch.testing.assert_close(dense(h, w, b, false), F.linear(h, w, b).sin())
    assert [computed for _, computed in answers] == [True, False]


def test_empty_operands_are_plains(answers: Answers) -> None:
    for n, d, v in ((0, D, V), (N, 0, V), (N, D, 0)):
        y = dense(draw(n, d), draw(v, d), draw(v), "gelu")
        assert y.shape == (n, v)
    assert not any(computed for _, computed in answers)


def test_records_and_modules_that_native_has_seen_are_copied_and_pickled(answers: Answers) -> None:
    layer, mlp, x = Dense(D, V, "gelu", dtype=torch.float64), mlp_of(), draw(N, D)
    y, of_mlp = layer(x), mlp(x)
    for again in (copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))):
        assert torch.equal(again(layer)(x), y)
        assert torch.equal(again(mlp)(x), of_mlp)
        assert again(activations.get("gelu")) is activations.get("gelu")
    own = cubic()
    dense(draw(N, D), draw(V, D), None, own)
    twin = copy.copy(own)
    dense(draw(N, D), draw(V, D), None, twin)
    assert twin.native == -1
    assert [computed for _, computed in answers] == [True] * 6 + [False] * 2


def breaks(f: Callable[..., Any], *args: Any) -> int:
    torch._dynamo.reset()
    return int(torch._dynamo.explain(f)(*args).graph_break_count)


@pytest.mark.parametrize("door", LAYERWISE)
def test_the_compiler_sees_plain_and_breaks_its_graph_no_more(door: str, answers: Answers) -> None:
    f, t = DOORS[door], operands()
    if door == "network":
        mlp = mlp_of()
        f = lambda h, w, b: mlp(h)  # noqa: E731
    found = breaks(f, *t)
    assert answers == []
    with native.without():
        assert found == breaks(f, *t) == 0
    torch._dynamo.reset()
    compiled = torch.compile(f, backend="eager", fullgraph=True)(*t)
    torch.testing.assert_close(compiled, f(*t))


def test_eight_threads_call_at_once() -> None:
    mlp, x = MLP([16, 33, 9, 4], "gelu", dtype=torch.float64), draw(300, 16)
    h, w, b = (t.detach() for t in operands())

    def compute() -> list[Tensor]:
        net, leaf, weight = copy.deepcopy(mlp), x.clone().requires_grad_(), w.clone().requires_grad_()
        value = backprop(net, x, torch.arange(300) % 4)
        found = [value, *(p.grad for p in net.parameters())]
        net.tile_rows = 64
        found += torch.autograd.grad(net(leaf).sin().sum(), [leaf, *net.parameters()])
        return [*found, *torch.autograd.grad(dense(h, weight, b, "tanh").sum(), weight)]

    expected = compute()
    wrong: list[BaseException] = []

    def work() -> None:
        try:
            for _ in range(20):
                for a, b in zip(compute(), expected, strict=True):
                    torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)
        except BaseException as error:
            wrong.append(error)

    workers = [threading.Thread(target=work) for _ in range(8)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert not wrong
