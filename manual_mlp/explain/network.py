"""The numbers that are explained: a network of one hidden layer, and a batch."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TypeAlias

import torch
from torch import Tensor

from manual_mlp import activations, losses
from manual_mlp.activations import Activation
from manual_mlp.explain.compare import autograd
from manual_mlp.explain.drawn import draw_below, normal, off_kinks, one_hot
from manual_mlp.explain.formulas import cost
from manual_mlp.explain.writing import literal

Known: TypeAlias = Activation | str | torch.nn.Module  # whatever activations.get knows
# The arrays that are written out in full have so many numbers, 8 MB, and no more.
_LARGEST = 2**20
_VANISHED = 1e-3
_DRAWS = 50
# The sides of each tensor: N rows, D data, K inputs and E outputs. The first of two that disagree is believed.
_SIDES = {"w": "KE", "x": "ND", "h": "NK", "v": "DK", "c": "K", "b": "E", "target": "NE"}


@dataclass(frozen=True, eq=False, init=False)
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
        h: H itself, where it is given instead of made by the hidden layer.
        given_h: the same for :func:`dataclasses.replace`, which hands on the fields; None makes H of the hidden layer.

    Shape:
        x: (N, D), v: (D, D_in), c: (D_in,), w: (D_in, D_out), b: (D_out,), target: (N, D_out), h: (N, D_in)

    Raises:
        ValueError: shapes that do not fit, an unknown name, numbers that are not finite, a target that is no
            probability, or a layer too large to be written out.

    Example::

        h, target = torch.tensor([[1.0, 2.0]]), torch.tensor([[0.0, 1.0]])
        network = Network.of_layer(h, torch.eye(2), torch.zeros(2), target, "identity")
        dh, dw, db = network.gradients
        assert dw.tolist() == [[1.0, 1.0], [2.0, 2.0]]  # Hᵀ(Y − Y*)
    """

    x: Tensor
    v: Tensor
    c: Tensor
    w: Tensor
    b: Tensor
    target: Tensor
    activation: Known
    loss: str
    given_h: Tensor | None

    def __init__(
        self,
        x: Tensor,
        v: Tensor,
        c: Tensor,
        w: Tensor,
        b: Tensor,
        target: Tensor,
        activation: Known = "sigmoid",
        loss: str = "squared-error",
        h: Tensor | None = None,
        given_h: Tensor | None = None,
    ) -> None:
        found = _numbers({"x": x, "v": v, "c": c, "w": w, "b": b, "target": target, "h": given_h if h is None else h})
        of_classes = losses.by_flag(loss).of_classes
        check_shapes(found)
        given = found.pop("h", None)
        vars(self).update(found, activation=activations.get(activation), loss=loss, given_h=given)
        _check_sizes(*self.shape)
        if of_classes:
            if len(self.b) == 1:
                raise ValueError(f"expected at least 2 outputs for the {loss}: with one class there is no choice")
            sums = self.target.sum(1, keepdim=True)
            if self.target.min() < 0 or (sums - 1).abs().max() > 1e-5:
                raise ValueError(f"expected rows of probabilities for the {loss}'s target, with the sum 1")
            vars(self).update(target=self.target / sums)

    @classmethod
    def of_layer(
        cls, h: Tensor, w: Tensor, b: Tensor, target: Tensor, activation: Known = "sigmoid", loss: str = "squared-error"
    ) -> Network:
        """Make the network of a layer with a given H. A hidden layer is drawn, of which this H is not made.

        Raises:
            ValueError: as for the class.
        """
        found = _numbers({"h": h, "w": w, "b": b, "target": target})
        check_shapes(found)
        rows, inputs = found["h"].shape
        _check_sizes(rows, inputs, len(found["b"]))
        below = draw_below(rows, inputs, activations.get(activation), torch.Generator().manual_seed(0))
        return cls(*below, w, b, target, activation, loss, h)

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

    @property
    def linked(self) -> bool:
        """Whether H is made by the hidden layer."""
        return self.given_h is None

    @cached_property
    def h(self) -> Tensor:
        """The layer's input, (N, D_in)."""
        return self.f.f(self.z1) if self.given_h is None else self.given_h

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
    activation: Known = "sigmoid",
    loss: str = "squared-error",
    seed: int = 0,
) -> Network:
    """Draw a network whose given numbers have one decimal, so that they can be followed with a pencil.

    A bias has more where otherwise f would be met at a kink.

    Args:
        inputs, outputs, batch: of the layer that is explained. The data are ``inputs + 2`` wide.

    Raises:
        ValueError: as for :class:`Network`, and for a size below 1.

    Example::

        network = draw_network(inputs=2, outputs=1, batch=3, activation="tanh")
        assert network.shape == (3, 2, 1)
    """
    _check_sizes(batch, inputs, outputs)
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
    straight = bool((network.f.df(network.z) == 1).all()) and network.f is not activations.IDENTITY
    return _smallest(network) > _VANISHED and not straight


def _draw(shape: tuple[int, int, int], f: Activation, loss: str, generator: torch.Generator) -> Network:
    batch, inputs, outputs = shape
    x, v, c = draw_below(batch, inputs, f, generator)
    w = normal(generator, inputs, outputs, scale=max(0.3, inputs**-0.5))
    b = off_kinks(f.f(x @ v + c) @ w, normal(generator, outputs, scale=0.3), f, generator)
    if loss in losses.flags() and losses.by_flag(loss).of_classes:
        target = one_hot(batch, outputs, generator)
    else:
        target = torch.randint(0, 11, (batch, outputs), generator=generator).double() / 10
    return Network(x, v, c, w, b, target, f, loss)


def _numbers(given: Mapping[str, Tensor | None]) -> dict[str, Tensor]:
    """Copy what there is, as float64."""
    found: dict[str, Tensor] = {}
    for name, t in ((name, t) for name, t in given.items() if t is not None):
        value = torch.as_tensor(t, dtype=None if isinstance(t, Tensor) else torch.float64).detach()
        if value.is_complex() or not value.isfinite().all():
            raise ValueError(f"expected real and finite numbers in {name}, got {value}")
        with torch.inference_mode(False):  # a copy that autograd accepts, wherever it was made
            found[name] = value.to("cpu", torch.float64, copy=True)
    return found


def check_shapes(given: Mapping[str, Tensor], called: Mapping[str, str] | None = None) -> None:
    """Raise an error that names the tensor whose shape does not fit most of the others.

    Args:
        given: arguments of :class:`Network`, or some of them.
        called: what the error calls them, if not by their names.
    """
    called = {name: name for name in _SIDES} | dict(called or {})
    shapes = {name: tuple(given[name].shape) for name in _SIDES if name in given}
    empty = [name for name, shape in shapes.items() if 0 in shape]
    if empty:
        raise ValueError(f"expected numbers in {called[empty[0]]}, got none: its shape is {shapes[empty[0]]}")
    told = [zip(_SIDES[name], s, strict=True) for name, s in shapes.items() if len(s) == len(_SIDES[name])]
    counted = Counter(side for sides in told for side in sides).most_common()
    most: dict[str, int | str] = dict.fromkeys("NDKE", "*") | {side: size for (side, size), _ in reversed(counted)}
    wanted = {name: tuple(most[side] for side in _SIDES[name]) for name in shapes}
    fit = [name for name in shapes if shapes[name] == wanted[name]]
    for name in (name for name in shapes if name not in fit):
        beside = dict.fromkeys(next((o for o in fit if side in _SIDES[o]), "") for side in _SIDES[name])
        others = " and ".join(f"{called[other]} {shapes[other]}" for other in beside if other)
        expected = str(wanted[name]).replace("'", "") + (f" for {others}" if others else "")
        raise ValueError(f"expected {called[name]} {expected}, got {shapes[name]}")


def _check_sizes(rows: int, inputs: int, outputs: int) -> None:
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
