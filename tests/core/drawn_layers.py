"""A layer that Hypothesis draws, as data, so that a failure prints it."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from manual_mlp import MLP, Activation, Dense, Linear, activations, dense, dense_squared_error
from manual_mlp.activations import get, to_module
from modes.elementary import ELEMENTARY
from modes.mode import Call, Map

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
