"""The numbers that are explained: a network of one hidden layer, and a batch."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
import torch.nn.functional as F
from torch import Tensor

from manual_mlp import activations, losses
from manual_mlp.activations import Activation
from manual_mlp.explain.compare import autograd
from manual_mlp.explain.formulas import cost
from manual_mlp.explain.writing import literal

# The arrays that are written out in full have so many numbers, 8 MB, and no more.
_LARGEST = 2**20
_NEAR = 1e-6  # to a kink
_VANISHED = 1e-3
_DRAWS = 50


@dataclass(frozen=True, eq=False)
class Network:
    """Hold a batch X and a perceptron in the textbook's layout: H = f(XV + C), Y = f(HW + B), J = loss(Y, Y*).

    The layer that is explained is the second one. All is float64. Where f has a kink there is no derivative: autograd
    takes one by convention, and finite differences disagree.

    Args:
        x, v, c: the data and the hidden layer.
        w, b: the layer.
        target: Y*; for the cross-entropies, which take Y for logits, rows of probabilities: one-hot, for example.
        activation: a name, an ``nn`` module or an :class:`~manual_mlp.Activation`.
        loss: "squared-error", ½ Σ (Y − Y*)², "cross-entropy" or "binary-cross-entropy", summed over the rows.

    Shape:
        x: (N, D), v: (D, D_in), c: (D_in,), w: (D_in, D_out), b: (D_out,), target: (N, D_out)

    Raises:
        ValueError: shapes that do not fit, an unknown name, numbers that are not finite, a target that is no
            probability, or a layer too large to be written out.
    """

    x: Tensor
    v: Tensor
    c: Tensor
    w: Tensor
    b: Tensor
    target: Tensor
    activation: Activation | str | torch.nn.Module = "sigmoid"
    loss: str = "squared-error"

    def __post_init__(self) -> None:
        for name in ("x", "v", "c", "w", "b", "target"):
            value = torch.as_tensor(getattr(self, name)).detach()
            if value.is_complex() or not value.isfinite().all():
                raise ValueError(f"expected real and finite numbers in {name}, got {value}")
            with torch.inference_mode(False):  # a copy that autograd accepts, wherever it was made
                value = value.to("cpu", torch.float64, copy=True)
            object.__setattr__(self, name, value)
        object.__setattr__(self, "activation", activations.get(self.activation))
        if self.loss not in losses.flags():
            raise ValueError(f"expected a loss among {', '.join(losses.flags())}, got {self.loss!r}")
        if self.x.dim() != 2 or self.w.dim() != 2 or not self.x.numel() or not self.w.numel():
            raise ValueError(f"expected matrices x and w with entries, got {_shape(self.x)} and {_shape(self.w)}")
        rows, width = self.x.shape
        inputs, outputs = self.w.shape
        shapes = {"v": (width, inputs), "c": (inputs,), "b": (outputs,), "target": (rows, outputs)}
        for name, shape in shapes.items():
            if getattr(self, name).shape != shape:
                raise ValueError(
                    f"expected {name} {shape} for x {_shape(self.x)} and w {_shape(self.w)}, "
                    f"got {_shape(getattr(self, name))}"
                )
        _check_sizes(inputs, outputs, rows)
        of_classes = losses.by_flag(self.loss).of_classes
        if of_classes and outputs == 1:
            raise ValueError(f"expected at least 2 outputs for the {self.loss}: with one class there is no choice")
        if of_classes:
            sums = self.target.sum(1, keepdim=True)
            if self.target.min() < 0 or (sums - 1).abs().max() > 1e-5:
                raise ValueError(f"expected rows of probabilities for the {self.loss}'s target, with the sum 1")
            object.__setattr__(self, "target", self.target / sums)

    @property
    def f(self) -> Activation:
        """The record of the activation."""
        return activations.get(self.activation)

    @property
    def name_of_f(self) -> str:
        """The activation's name, with its parameters if they are not the usual ones."""
        usual = self.f.name in activations.names() and self.f is activations.get(self.f.name)
        return literal(self.f.name if usual else repr(self.f).removesuffix("()"))

    @cached_property
    def z1(self) -> Tensor:
        """The hidden layer's pre-activation, (N, D_in)."""
        return self.x @ self.v + self.c

    @cached_property
    def h(self) -> Tensor:
        """The layer's input, (N, D_in)."""
        return self.f.f(self.z1)

    @cached_property
    def z(self) -> Tensor:
        """The pre-activation, (N, D_out)."""
        return self.h @ self.w + self.b

    @cached_property
    def y(self) -> Tensor:
        """The output, (N, D_out)."""
        return self.f.f(self.z)

    @cached_property
    def shape(self) -> tuple[int, int, int]:
        """The numbers of rows, inputs and outputs."""
        return len(self.x), self.w.shape[0], self.w.shape[1]

    @cached_property
    def gradients(self) -> tuple[Tensor, ...]:
        """∂J/∂H, ∂J/∂W and ∂J/∂B by autograd."""
        return autograd(self.cost, self.h, self.w, self.b)

    def cost_of(self, y: Tensor) -> Tensor:
        """Return J for an output."""
        return cost(self.loss, y, self.target)

    def cost(self, h: Tensor, w: Tensor, b: Tensor) -> Tensor:
        """Return J for an input and parameters of the layer."""
        return self.cost_of(self.f.f(h @ w + b))

    def whole_cost(self, x: Tensor, v: Tensor, c: Tensor, w: Tensor, b: Tensor) -> Tensor:
        """Return J for the data and all parameters."""
        return self.cost(self.f.f(x @ v + c), w, b)


def draw_network(
    inputs: int = 3,
    outputs: int = 2,
    batch: int = 4,
    activation: Activation | str | torch.nn.Module = "sigmoid",
    loss: str = "squared-error",
    seed: int = 0,
) -> Network:
    """Draw a network whose given numbers have one decimal, so that they can be followed with a pencil.

    A bias has more where otherwise f would be met at a kink.

    Args:
        inputs, outputs, batch: of the layer that is explained. The data are ``inputs + 2`` wide.

    Raises:
        ValueError: as for :class:`Network`, and for a size below 1.
    """
    _check_sizes(inputs, outputs, batch)
    if not -(2**63) <= seed < 2**63:
        raise ValueError(f"expected a seed of 64 bits, got {seed}")
    generator = torch.Generator().manual_seed(seed)
    f = activations.get(activation)
    drawn = [_draw((batch, inputs, outputs), f, loss, generator)]
    while not _tells(drawn[-1]) and len(drawn) < _DRAWS:
        drawn.append(_draw((batch, inputs, outputs), f, loss, generator))
    return next((network for network in drawn if _tells(network)), max(drawn, key=_smallest))


def _smallest(network: Network) -> float:
    return min(float(t.abs().max()) for t in network.gradients)


def _tells(network: Network) -> bool:
    """Tell whether a wrong formula would show: no derivative vanishes, and f is no straight line where it is met."""
    slope = network.f.df(network.z)
    straight = bool((slope == 1).all()) and network.f is not activations.IDENTITY
    return _smallest(network) > _VANISHED and not straight


def _draw(shape: tuple[int, int, int], f: Activation, loss: str, generator: torch.Generator) -> Network:
    batch, inputs, outputs = shape
    width = inputs + 2

    def normal(*sides: int, scale: float = 1.0) -> Tensor:
        return (10 * scale * torch.randn(*sides, generator=generator, dtype=torch.float64)).round() / 10

    x, v = normal(batch, width), normal(width, inputs, scale=width**-0.5)
    c = _off_kinks(x @ v, normal(inputs, scale=0.3), f, generator)
    w = normal(inputs, outputs, scale=max(0.3, inputs**-0.5))
    b = _off_kinks(f.f(x @ v + c) @ w, normal(outputs, scale=0.3), f, generator)
    if loss in losses.flags() and losses.by_flag(loss).of_classes:
        target = one_hot(batch, outputs, generator)
    else:
        target = torch.randint(0, 11, (batch, outputs), generator=generator).double() / 10
    return Network(x, v, c, w, b, target, f, loss)


def one_hot(rows: int, outputs: int, generator: torch.Generator) -> Tensor:
    """Draw a class for each row, and of two rows or more not the same for all."""
    classes = torch.randint(outputs, (rows,), generator=generator)
    if rows > 1 and outputs > 1 and (classes == classes[0]).all():
        classes[0] = (classes[0] + 1) % outputs
    return F.one_hot(classes, outputs)


def _off_kinks(z: Tensor, bias: Tensor, f: Activation, generator: torch.Generator) -> Tensor:
    """Move a bias until no z + bias lies where f′ or f″ jumps; by as few decimals as will do.

    Shape:
        z: (N, D), bias: (D,) -> (D,)
    """
    points = torch.tensor([-3.0, -1.0, 0.0, 1.0, 3.0, 6.0], dtype=z.dtype)
    jumps = [(df(points + _NEAR) - df(points - _NEAR)).abs() > 1e-3 for df in (f.df, f.d2f)]
    kinks = points[jumps[0] | jumps[1]]
    moved = bias
    for power in range(2, 8):
        if not len(kinks) or ((z + moved)[..., None] - kinks).abs().min() > _NEAR:
            break
        # One digit for all entries, at one decimal more than before.
        moved = bias + 5 * 10.0**-power if power < 6 else bias + torch.rand(bias.shape, generator=generator) / 10
    return moved


def _check_sizes(inputs: int, outputs: int, rows: int) -> None:
    if not all(isinstance(size, int) and size >= 1 for size in (inputs, outputs, rows)):
        raise ValueError(f"expected inputs, outputs and batch of at least 1, got {inputs}, {outputs}, {rows}")
    sizes = {
        "inputs · outputs²": inputs * outputs**2,
        "(inputs + 2) · inputs": (inputs + 2) * inputs,
        "batch · (inputs + outputs)": rows * (inputs + outputs),
    }
    for formula, size in sizes.items():
        if size > _LARGEST:
            raise ValueError(f"expected {formula} of at most {_LARGEST:,}, which is written out in full, got {size:,}")


def _shape(t: Tensor) -> str:
    return str(tuple(t.shape))
