"""Hypothesis draws a layer and a way to differentiate it; the answer is that of the composite.

``make fuzz`` draws thousands of cases at random; the suite draws a few hundred, the same ones every time.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import vmap
from torch.utils.checkpoint import checkpoint

from manual_mlp import MLP, Activation, Dense, Linear, activations, dense, dense_squared_error
from manual_mlp.activations import get, to_module
from modes.elementary import ELEMENTARY
from modes.functorch import TRANSFORMS
from modes.mode import Call, Map
from modes.reverse import DUAL

hypothesis = pytest.importorskip("hypothesis")
given, st = hypothesis.given, hypothesis.strategies

# The activations, each with the same by elementary operations, whose derivatives at a kink are torch's too.


def _softplus(beta: float = 1.0, threshold: float = 20.0) -> Map:
    def f(z: Tensor) -> Tensor:
        u = beta * z
        above, below = torch.where(u > 0, u, 0.0), torch.where(u > 0, 0.0, u)
        curve = torch.where(u > 0, u + torch.log1p(torch.exp(-above)), torch.log1p(torch.exp(below)))
        # At the threshold itself the slope is that of the curve, and the second derivative 0.
        line = math.log1p(math.exp(threshold)) + (u - threshold) / (1 + math.exp(-threshold))
        return torch.where(u > threshold, u, torch.where(u == threshold, line, curve)) / beta

    return f


def _elu(alpha: float = 1.0, scale: float = 1.0, rate: float = 1.0) -> Map:
    def f(z: Tensor) -> Tensor:
        curve = scale * alpha * torch.expm1(rate * torch.where(z < 0, z, 0.0))
        return torch.where(z > 0, scale * z, torch.where(z < 0, curve, scale * alpha * rate * z))

    return f


def _leaky_relu(slope: float = 0.01) -> Map:
    return lambda z: torch.where(z > 0, z, slope * z)


def _hardtanh(low: float = -1.0, high: float = 1.0) -> Map:
    return lambda z: torch.where(z >= high, torch.full_like(z, high), torch.where(z > low, z, torch.full_like(z, low)))


def _squared_error(y: Tensor, t: Tensor, reduction: str) -> Tensor:
    squares = (y - t).square()
    return squares.sum() if reduction == "sum" else squares.mean() if reduction == "mean" else squares


SMOOTH = _softplus(1.0, 700.0)
TRUTHS: dict[str, Callable[..., Map]] = {name: lambda f=f: f for name, f in ELEMENTARY.items()} | {
    "softplus": _softplus,
    "logsigmoid": lambda: lambda z: -SMOOTH(-z),
    "mish": lambda: lambda z: z * torch.tanh(SMOOTH(z)),
    "elu": _elu,
    "selu": lambda: _elu(1.6732632423543772, 1.0507009873554805),
    "celu": lambda alpha=1.0: _elu(alpha, 1.0, 1 / alpha),
    "leaky_relu": _leaky_relu,
    "hardtanh": _hardtanh,
    "sin": lambda omega=1.0: lambda z: torch.sin(omega * z),
}
PARAMETERS: dict[str, list[tuple[float, ...]]] = {
    "softplus": [(3.0, 2.0), (0.5, 1.0), (1.0, 3.0)],
    "leaky_relu": [(0.3,), (0.0,), (-0.5,), (1.0,)],
    "elu": [(0.7,), (2.0,)],
    "celu": [(0.7,), (2.0,)],
    "hardtanh": [(-0.1, 0.7), (-2.0, 3.0), (0.0, 1.0)],
    "sin": [(30.0,), (0.5,)],
}


def _table() -> dict[str, tuple[str | nn.Module | Activation, Map]]:
    table: dict[str, tuple[str | nn.Module | Activation, Map]] = {}
    for name in activations.names():
        table[name] = name, TRUTHS[name]()
        for params in [(), *PARAMETERS.get(name, [])]:
            record, truth = getattr(activations, name)(*params), TRUTHS[name](*params)
            table[repr(record)] = record, truth
            table[str(to_module(record))] = to_module(record), truth
    cubic = Activation(lambda z: z**3, lambda z: 3 * z**2, lambda z: 6 * z)
    of_y = Activation(
        f=lambda z: torch.sigmoid(2 * z),
        df=lambda z: 2 * torch.sigmoid(2 * z) * torch.sigmoid(-2 * z),
        d2f=lambda z: 4 * torch.sigmoid(2 * z) * torch.sigmoid(-2 * z) * (1 - 2 * torch.sigmoid(2 * z)),
        df_y=lambda y: 2 * y * (1 - y),
        d2f_y=lambda y: 2 * (1 - 2 * y),
    )
    return table | {"cubic": (cubic, lambda z: z**3), "sigmoid(2z)": (of_y, lambda z: torch.sigmoid(2 * z))}


ACTIVATIONS = _table()


# A layer is drawn as data, so that a failure prints it.


@dataclass(frozen=True)
class Layer:
    """Hold a layer, and its inputs: h, then weights and biases, then the target if it has one.

    Attributes:
        subject: "dense", "Linear", "Dense", "MLP", or "squared error" with its reduction.
        activation: a key of ``ACTIVATIONS``.
        batch: the shape of h without its last dimension.
        widths: D_in to D_out.
        bias: whether there is one.
        layouts: of each input in memory.
        values: how the inputs are drawn.
        seed: of what they are drawn from.
        frozen: the inputs that require no grad.
    """

    subject: str
    activation: str
    batch: tuple[int, ...]
    widths: tuple[int, ...]
    bias: bool
    layouts: tuple[str, ...]
    values: str
    seed: int
    frozen: frozenset[int]

    @property
    def shapes(self) -> list[tuple[int, ...]]:
        shapes: list[tuple[int, ...]] = [(*self.batch, self.widths[0])]
        for d_in, d_out in zip(self.widths, self.widths[1:], strict=False):
            shapes += [(d_out, d_in), (d_out,)] if self.bias else [(d_out, d_in)]
        return [*shapes, (*self.batch, self.widths[-1])] if self.subject.startswith("squared") else shapes

    @property
    def active(self) -> list[int]:
        return [k for k in range(len(self.shapes)) if k not in self.frozen]

    def inputs(self, device: str, dtype: torch.dtype = torch.float64) -> list[Tensor]:
        """Draw the inputs, contiguous."""
        generator = torch.Generator().manual_seed(self.seed)
        drawn = (torch.randn(shape, generator=generator, dtype=torch.float64) for shape in self.shapes)
        return [VALUES[self.values](t).to(device, dtype) for t in drawn]

    def laid_out(self, inputs: Sequence[Tensor]) -> list[Tensor]:
        """Give each input its layout."""
        return [LAYOUTS[layout](t) for t, layout in zip(inputs, self.layouts, strict=True)]

    def ours(self) -> Map:
        """Make this package's layer a function of the inputs."""
        activation, (d_in, *_, d_out) = ACTIVATIONS[self.activation][0], self.widths
        if self.subject.startswith("squared"):
            reduction = self.subject.split()[-1]
            return lambda h, w, *b_t: dense_squared_error(h, w, *self._bias(b_t), b_t[-1], activation, reduction)
        if self.subject == "dense":
            return lambda h, w, *b: dense(h, w, *b, activation=activation)
        if self.subject == "Linear":
            # The layer is given its parameters, of whatever shape. An empty nn.Linear would warn.
            return Call(Linear(1, 1, self.bias))
        if self.subject == "Dense":
            return Call(Dense(d_in, d_out, activation, self.bias))
        return Call(MLP(self.widths, activation, activation, self.bias))

    def composite(self, f: Map, loss: Callable[..., Tensor]) -> Map:
        """Compute the same by ``F.linear``, f and a loss."""

        def chain(h: Tensor, *params: Tensor) -> Tensor:
            for k in range(len(self.widths) - 1):
                w, b = (params[2 * k], params[2 * k + 1]) if self.bias else (params[k], None)
                h = f(F.linear(h, w, b))
            return h

        def error(*inputs: Tensor) -> Tensor:
            return 0.5 * loss(chain(*inputs[:-1]), inputs[-1], reduction=self.subject.split()[-1])

        return error if self.subject.startswith("squared") else chain

    def truth(self) -> Map:
        return self.composite(ACTIVATIONS[self.activation][1], _squared_error)

    def torchs(self) -> Map:
        return self.composite(get(ACTIVATIONS[self.activation][0]).f, F.mse_loss)

    def _bias(self, b_t: Sequence[Tensor]) -> tuple[Tensor | None]:
        return (b_t[0] if self.bias else None,)


VALUES: dict[str, Callable[[Tensor], Tensor]] = {
    "normal": lambda t: t,
    # Most pre-activations are whole numbers, and so they lie on the kinks.
    "whole": lambda t: t.round(),
    "zero": torch.zeros_like,
    "large": lambda t: 30 * t,
}
LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "contiguous": lambda t: t,
    "transposed": lambda t: t.mT.contiguous().mT if t.dim() > 1 else t,
    "first dimension innermost": lambda t: t.movedim(0, -1).contiguous().movedim(-1, 0) if t.dim() else t,
    "step of 2": lambda t: torch.stack([t, t + 1], -1)[..., 0],
    "rows of a wider tensor": lambda t: torch.cat([t, t + 1], -1)[..., : t.shape[-1]] if t.dim() else t,
    "offset": lambda t: torch.cat([t.new_full((3,), 7.0), t.flatten()])[3:].view(t.shape),
    "flipped": lambda t: t.flip(0) if t.dim() else t,
    "negated view": lambda t: torch.complex(t, -t).conj().imag if t.dtype.itemsize > 2 else t,
    "rows expanded": lambda t: t[:1].expand_as(t) if t.dim() and len(t) else t,
    "columns expanded": lambda t: t[..., :1].expand_as(t) if t.dim() and t.shape[-1] else t,
    "one number expanded": lambda t: t.flatten()[0].expand_as(t) if t.numel() else t,
}
# Neither overflows in half precision, nor do high derivatives lose their digits.
MODERATE = "normal", "whole", "zero"
# vmap has no rule for a negated view.
VMAPPED = [name for name in LAYOUTS if name != "negated view"]


def sizes(most: int) -> Any:
    """Draw a size, 0 not too often."""
    return st.one_of(st.integers(1, most), st.integers(0, most))


def subsets(items: Sequence[int]) -> Any:
    """Draw all, or one, or a subset that is not empty."""
    one = st.sampled_from(list(items))
    return st.one_of(st.just(items), one.map(lambda k: [k]), st.lists(one, min_size=1, unique=True)).map(
        lambda chosen: tuple(sorted(chosen))
    )


@st.composite
def layers(
    draw: Any,
    values: Sequence[str] = tuple(VALUES),
    layouts: Sequence[str] = tuple(LAYOUTS),
    size: int = 6,
    most: int = 3,
) -> Layer:
    """Draw a layer of sizes up to ``size``, whose input has ``most`` dimensions beside the last."""
    subject = draw(st.sampled_from(["dense", "Dense", "MLP", "Linear", *(f"squared error, {r}" for r in REDUCTIONS)]))
    activation = "identity" if subject == "Linear" else draw(st.sampled_from(list(ACTIVATIONS)))
    batch = tuple(draw(st.lists(sizes(size), max_size=most)))
    widths = tuple(draw(sizes(size)) for _ in range(3 if subject == "MLP" else 2))
    case = Layer(
        subject, activation, batch, widths, draw(st.booleans()), (), draw(st.sampled_from(values)), 0, frozenset()
    )
    count = len(case.shapes)
    return replace(
        case,
        layouts=tuple(draw(st.sampled_from(layouts)) for _ in range(count)),
        seed=draw(st.integers(0, 999)),
        frozen=frozenset(range(count)) - frozenset(draw(subsets(range(count)))),
    )


REDUCTIONS = "sum", "mean", "none"


# Reverse mode: which derivatives of which derivatives.


@dataclass(frozen=True)
class Reverse:
    """Hold what is asked of ``torch.autograd``.

    Attributes:
        asked: of each order, the inputs whose derivatives are asked for; −1 is the cotangent of the output.
        pulled: of each order, the results that are differentiated: positions among those of the order before.
        cotangents: of each order, the layout of the cotangents.
        batched: whether the last order gets a batch of cotangents.
        checkpointed: whether the layer is run again in backward.
    """

    asked: tuple[tuple[int, ...], ...]
    pulled: tuple[tuple[int, ...], ...]
    cotangents: tuple[str, ...]
    batched: bool
    checkpointed: bool

    def __call__(self, f: Map, inputs: Sequence[Tensor], active: Sequence[int]) -> list[Tensor]:
        """Return the output and the derivatives of every order."""
        t = [x.detach().requires_grad_(k in active) for k, x in enumerate(inputs)]
        y = checkpoint(f, *t, use_reentrant=False) if self.checkpointed else f(*t)
        assert y.requires_grad
        results, outputs = [y], [y]
        dy = cotangent(y, self.cotangents[0], 0).requires_grad_(any(-1 in asked for asked in self.asked[1:]))
        for order, asked in enumerate(self.asked):
            last = order + 1 == len(self.asked)
            if order:
                outputs = [outputs[k] for k in self.pulled[order - 1]]
            given = [dy] if not order else [cotangent(o, self.cotangents[order], k) for k, o in enumerate(outputs)]
            if last and self.batched:
                given = [torch.stack([g, -2 * g]) for g in given]
            targets = [dy if k < 0 else t[k] for k in asked]
            outputs = pull(outputs, targets, given, create_graph=not last, is_grads_batched=last and self.batched)
            results += outputs
        # Once more: whatever was asked has changed nothing.
        results += pull([y], [t[k] for k in self.asked[0]], [dy])
        assert all(torch.equal(a, b) for a, b in zip(t, inputs, strict=True)), "an input was written"
        with torch.no_grad():
            results.append(f(*t))
        assert not results[-1].requires_grad
        return results


def pull(outputs: Sequence[Tensor], inputs: Sequence[Tensor], cotangents: Sequence[Tensor], **options: Any) -> Any:
    """Differentiate, where an output may be a constant and an input may not be used: both give zeros."""
    live = [k for k, o in enumerate(outputs) if o.requires_grad]
    options |= {"allow_unused": True, "retain_graph": True}
    found: Sequence[Tensor | None] = [None] * len(inputs)
    if live:
        given = [cotangents[k] for k in live]
        before = [c.clone() for c in given]
        found = torch.autograd.grad([outputs[k] for k in live], inputs, given, **options)
        assert all(torch.equal(a, b) for a, b in zip(given, before, strict=True)), "a cotangent was written"
    batch = (2,) if options.get("is_grads_batched") else ()
    return [x.new_zeros((*batch, *x.shape)) if g is None else g for g, x in zip(found, inputs, strict=True)]


def cotangent(y: Tensor, layout: str, k: int) -> Tensor:
    """Choose a cotangent of y, whose entries every dtype holds exactly."""
    t = torch.randint(-32, 33, y.shape, generator=torch.Generator().manual_seed(k)) / 16
    return LAYOUTS[layout](t.to(y.device, y.dtype)).detach()


@st.composite
def reverses(draw: Any, layer: Layer, most: int = 3) -> Reverse:
    orders = draw(st.integers(1, most))
    asked = [draw(subsets(layer.active)), *(draw(subsets([*layer.active, -1])) for _ in range(orders - 1))]
    return Reverse(
        asked=tuple(asked),
        pulled=tuple(draw(subsets(range(len(a)))) for a in asked[:-1]),
        cotangents=tuple(draw(st.sampled_from(list(LAYOUTS))) for _ in asked),
        batched=draw(st.integers(0, 3)) == 3,
        checkpointed=draw(st.integers(0, 3)) == 3,
    )


# torch.func and dual numbers: a transform of the layer, or of a batch of layers, or a batch of transforms.

DUALS = {mode.name: mode.run for mode in DUAL}
FUNC = (
    "nothing",
    "grad",
    "jvp",
    "jacrev",
    "jacfwd",
    "hessian",
    "grad(grad)",
    "grad(grad(grad))",
    "jvp(grad)",
    "grad(jvp)",
    "jvp(jvp)",
    "jacfwd(jacfwd)",
    "jacrev(jacrev)",
    "jacrev(jacfwd)",
)


@dataclass(frozen=True)
class Transform:
    """Hold what is asked of ``torch.func``, with respect to the inputs that require grad.

    Attributes:
        name: of the transform.
        mapped: the dimension over which ``vmap`` maps each of those inputs, None for one that is shared.
        inside: whether the transform is of the mapped layer, or it is what is mapped.
        pulled: how often backward mode then differentiates all results so far.
    """

    name: str
    mapped: tuple[int | None, ...]
    inside: bool
    pulled: int

    def __call__(self, f: Map, inputs: Sequence[Tensor], active: Sequence[int]) -> list[Tensor]:
        def of_active(*t: Tensor) -> Tensor:
            rest = list(inputs)
            for k, x in zip(active, t, strict=True):
                rest[k] = x
            return f(*rest)

        t = tuple(inputs[k].detach().requires_grad_(self.pulled > 0) for k in active)
        if self.name in DUALS:
            return flat(DUALS[self.name](of_active, t))
        transform = (lambda g: g) if self.name == "nothing" else TRANSFORMS[self.name]
        results = flat((transform(self.map(of_active)) if self.inside else self.map(transform(of_active)))(*t))
        for order in range(self.pulled):
            given = [cotangent(r, "contiguous", k) for k, r in enumerate(results)]
            results += pull(results, t, given, create_graph=order + 1 < self.pulled)
        return results

    def map(self, f: Callable[..., Any]) -> Callable[..., Any]:
        if not self.mapped:
            return f

        def mapped(*t: Tensor) -> Any:
            pairs = list(zip(t, self.mapped, strict=True))
            batches = (x if k is None else torch.stack([x, x.cos(), -x], k) for x, k in pairs)
            return vmap(f, self.mapped)(*batches)

        return mapped


def flat(results: Any) -> list[Tensor]:
    """List nested results."""
    return [t for r in results for t in flat(r)] if isinstance(results, list | tuple) else [results]


@st.composite
def transforms(draw: Any, layer: Layer) -> Transform:
    # torch makes no Jacobian of nothing, and some dual numbers of nothing have no tangent.
    empty = any(0 in shape for shape in layer.shapes)
    if not empty and draw(st.integers(0, 4)) == 4:
        return Transform(draw(st.sampled_from(list(DUALS))), (), False, 0)
    name = draw(st.sampled_from([n for n in FUNC if not (empty and ("jac" in n or "hessian" in n))]))
    some = draw(st.one_of(st.just(()), subsets(layer.active)))
    mapped = tuple(draw(st.integers(0, len(layer.shapes[k]))) if k in some else None for k in layer.active)
    return Transform(name, mapped if some else (), draw(st.booleans()), draw(st.integers(0, 2)))


# The claims.

on_any_device = hypothesis.settings(suppress_health_check=list(hypothesis.HealthCheck))


def assert_equal(ours: Sequence[Tensor], truth: Sequence[Tensor]) -> None:
    assert len(ours) == len(truth)
    for k, (a, b) in enumerate(zip(ours, truth, strict=True)):
        if a is None and b is None:
            continue
        size = b.detach().abs().max().item() if b.numel() else 0.0
        message = f"result {k} of {len(truth)}: {{}}".format
        torch.testing.assert_close(a, b, rtol=0, atol=1e-9 * max(1.0, size), equal_nan=True, msg=message)


def _plain(
    subject: str,
    activation: str,
    batch: tuple[int, ...],
    widths: tuple[int, ...],
    count: int,
    frozen: Iterable[int] = (),
) -> Layer:
    layouts = ("contiguous",) * count
    return Layer(subject, activation, batch, widths, False, layouts, "normal", 0, frozenset(frozen))


def asked_of(layer: Any, asked: Callable[[Layer], Any]) -> Any:
    """Draw a layer, and what is asked of it."""
    return layer.flatmap(lambda case: st.tuples(st.just(case), asked(case)))


@on_any_device
@given(case=asked_of(layers(), reverses))
def test_what_autograd_is_asked_for_is_what_the_composite_gives(device: str, case: tuple[Layer, Reverse]) -> None:
    layer, asked = case
    inputs = layer.laid_out(layer.inputs(device))
    assert_equal(*(asked(f, inputs, layer.active) for f in (layer.ours(), layer.truth())))


# What was once found stays. In turn: vmap over the target alone, torch's CELU, and a third derivative at a kink.
FOUND = [
    (_plain("squared error, sum", "identity", (1,), (2, 3), 3), Transform("jvp", (None, None, 0), False, 1)),
    (_plain("dense", "celu(0.7)", (2,), (2, 2), 2), Transform("jvp(jvp)", (), True, 0)),
    (
        replace(
            _plain("squared error, mean", "softplus(1.0, 3.0)", (), (2, 1), 3, {1, 2}),
            values="whole",
            seed=47,
        ),
        Transform("grad(jvp)", (), True, 2),
    ),
]


@on_any_device
@hypothesis.example(case=FOUND[0])
@hypothesis.example(case=FOUND[1])
@hypothesis.example(case=FOUND[2])
@given(case=asked_of(layers(MODERATE, VMAPPED, size=3, most=2), transforms))
def test_what_a_transform_gives_is_what_it_gives_of_the_composite(device: str, case: tuple[Layer, Transform]) -> None:
    layer, asked = case
    inputs = layer.inputs(device)
    # torch refuses a tangent whose tensor overlaps itself, so the layouts are made inside.
    both = (lambda *t, f=f: f(*layer.laid_out(t)) for f in (layer.ours(), layer.truth()))
    assert_equal(*(asked(f, inputs, layer.active) for f in both))


# In low precision a single draw may happen to be exact in torch, so the largest error over some draws is compared, and
# two roundings of the largest result are forgiven at first order, four at second.
DRAWS = 8
LOW = {
    "float32": (torch.float32, None),
    "bfloat16": (torch.bfloat16, None),
    "float16": (torch.float16, None),
    "float32, autocast to bfloat16": (torch.float32, torch.bfloat16),
    "float32, autocast to float16": (torch.float32, torch.float16),
}


@on_any_device
# 1 − tanh², where tanh is close to 1, loses its digits.
@hypothesis.example(
    case=(
        _plain("dense", "gelu_tanh", (2, 4), (2, 1), 2),
        Reverse(((0, 1), (-1, 0, 1)), ((0, 1),), ("contiguous", "contiguous"), False, False),
    ),
    precision="float32",
)
@given(
    case=asked_of(layers(MODERATE), partial(reverses, most=2)),
    precision=st.sampled_from(list(LOW)),
)
def test_the_error_in_low_precision_is_at_most_twice_torchs_own(
    device: str, case: tuple[Layer, Reverse], precision: str
) -> None:
    (layer, asked), (dtype, region) = case, LOW[precision]
    ours, torchs, truth = layer.ours(), layer.torchs(), layer.truth()

    def cast(f: Map, *t: Tensor) -> Tensor:
        with torch.autocast(device, region, enabled=region is not None):
            return f(*t)

    errors: list[Tensor] = []
    for seed in range(DRAWS):
        inputs = layer.laid_out(replace(layer, seed=layer.seed + seed).inputs(device, dtype))
        low = [asked(partial(cast, f), inputs, layer.active) for f in (ours, torchs)]
        exact = asked(truth, [t.double() for t in inputs], layer.active)
        assert [t.dtype for t in low[0]] == [t.dtype for t in low[1]]
        assert [t.shape for t in low[0]] == [t.shape for t in low[1]]
        errors.append(
            torch.tensor([[largest(a - e), largest(b - e), largest(e)] for a, b, e in zip(*low, exact, strict=True)])
        )
    few = 2 * len(asked.asked) * torch.finfo(region or dtype).eps
    for k, (mine, torchs_own, size) in enumerate(torch.stack(errors).amax(0).tolist()):
        assert mine <= 2 * torchs_own + few * size + 1e-6, f"result {k}: {mine}, torch {torchs_own}, largest {size}"


def largest(t: Tensor) -> float:
    return t.detach().double().abs().nan_to_num(nan=math.inf, posinf=math.inf).max().item() if t.numel() else 0.0


def test_the_suite_draws_hundreds_of_cases_and_make_fuzz_thousands() -> None:
    count = sum(hypothesis.is_hypothesis_test(test) for name, test in globals().items() if name.startswith("test"))
    profiles = [hypothesis.settings.get_profile(name) for name in ("suite", "fuzz")]
    suite, fuzz = (count * profile.max_examples for profile in profiles)
    assert 300 <= suite <= 1000
    assert fuzz >= 2000
    assert [profile.derandomize for profile in profiles] == [True, False]
