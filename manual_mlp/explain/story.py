"""What the steps share: the network, the formulas, and what they and autograd find."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
import torch.nn.functional as F
from torch import Tensor

from manual_mlp.explain.blocks import ALL_SHOWN, Refused, Values, number
from manual_mlp.explain.compare import attempt, autograd
from manual_mlp.explain.formulas import RIGHT, Formulas
from manual_mlp.explain.network import Network


@dataclass(frozen=True, eq=False)
class Story:
    """Hold a network, the formulas that are told, and the results of both.

    Attributes:
        network: the numbers.
        formulas: what the steps call.
        seed: of the random directions.
    """

    network: Network
    formulas: Formulas = RIGHT
    seed: int = 0

    @cached_property
    def dy(self) -> Values:
        """∂J/∂Y by the formula, (N, D_out)."""
        return attempt(self.formulas.cost_gradient, self.network.loss, self.network.y, self.network.target)

    @cached_property
    def delta(self) -> Values:
        """δ by the formula, (N, D_out)."""
        return attempt(self.formulas.delta, self.dy, self.network.z, self.network.f)

    @cached_property
    def dw(self) -> Values:
        """∂J/∂W by the formula, (D_in, D_out)."""
        return attempt(self.formulas.weight, self.network.h, self.delta)

    @cached_property
    def db(self) -> Values:
        """∂J/∂B by the formula, (D_out,)."""
        return self.bias(self.delta)

    @cached_property
    def dh(self) -> Values:
        """∂J/∂H by the formula, (N, D_in)."""
        return attempt(self.formulas.input, self.delta, self.network.w)

    @cached_property
    def gamma(self) -> Values:
        """∂J/∂(XV + C) by the formula, the hidden layer's δ, (N, D_in)."""
        return attempt(self.formulas.delta, self.dh, self.network.z1, self.network.f)

    @cached_property
    def dv(self) -> Values:
        """∂J/∂V by the formula."""
        return attempt(self.formulas.weight, self.network.x, self.gamma)

    @cached_property
    def dc(self) -> Values:
        """∂J/∂C by the formula."""
        return self.bias(self.gamma)

    def bias(self, delta: Values) -> Values:
        """Return a bias's gradient by the formula; of a single row it may be a row, as the textbook's B is."""
        found = attempt(self.formulas.bias, delta)
        return found[0] if isinstance(found, Tensor) and found.dim() == 2 and len(found) == 1 else found

    @cached_property
    def true_dy(self) -> Tensor:
        """∂J/∂Y by autograd."""
        return autograd(self.network.cost_of, self.network.y)[0]

    @cached_property
    def true_delta(self) -> Tensor:
        """∂J/∂Z by autograd."""
        return autograd(lambda z: self.network.cost_of(self.network.f.f(z)), self.network.z)[0]

    @cached_property
    def slope(self) -> Tensor:
        """f′(Z), (N, D_out)."""
        return self.network.f.df(self.network.z)

    @cached_property
    def classes(self) -> tuple[Tensor, Tensor]:
        """What enters a softmax, and one-hot rows of the right classes.

        It is Y where J is a cross-entropy, else Z, and the largest entry of Y* is right. With one output there is a
        second class, for which 0 enters, and whose target is ½.
        """
        net = self.network
        s, target = net.y if net.loss == "cross-entropy" else net.z, net.target
        if net.shape[2] == 1:
            s, target = F.pad(s, (0, 1)), F.pad(target, (0, 1), value=0.5)
        return s, F.one_hot(target.argmax(1), s.shape[1]).double()

    @cached_property
    def row(self) -> int:
        """The row that has most to show: of those that are seen, where H and δ are largest."""
        return _largest(self.network.h.abs().sum(1) * self.true_delta.abs().sum(1))

    @cached_property
    def knob(self) -> tuple[int, int]:
        """The weight that has most to show: its input k and its output l."""
        return _largest(self.network.h.abs().sum(0)), _largest(self.true_delta.abs().sum(0))

    def directions(self, *shape: int, count: int = 1) -> list[Tensor]:
        """Draw random directions, the same for the same shape."""
        generator = torch.Generator().manual_seed(self.seed)
        return [torch.randn(*shape, generator=generator, dtype=torch.float64) for _ in range(count)]


def row_of(values: Values, n: int) -> Values:
    """Return one row as a matrix, (1, D)."""
    return values if isinstance(values, Refused) else values[n : n + 1]


def as_row(values: Values) -> Values:
    """Return a vector as a matrix, (1, D)."""
    return values[None] if isinstance(values, Tensor) and values.dim() == 1 else values


def spelled_out(a: Tensor, b: Tensor, most: int = 4) -> str:
    """Write a dot product term by term, and its result; of many terms the largest and the first few.

    Shape:
        a, b: (D,)
    """
    shown = list(range(len(a)))
    if len(a) > most:
        shown = sorted({*range(most - 1), int((a * b).abs().argmax())})
    words: list[str] = []
    for before, i in zip([-1, *shown], shown, strict=False):
        words += ["…"] * (i > before + 1) + [f"{_factor(float(a[i]))} · {_factor(float(b[i]))}"]
    words += ["…"] * (shown[-1] < len(a) - 1)
    return " + ".join(words) + f" = {number(float(a @ b))}"


def _factor(value: float) -> str:
    return number(value) if value >= 0 else f"({number(value)})"


def _largest(sizes: Tensor) -> int:
    # The others are not shown where there are more.
    return int((sizes if len(sizes) <= ALL_SHOWN else sizes[: ALL_SHOWN - 1]).argmax())
