"""What the steps share: the network, the formulas, and what they and autograd find."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
import torch.nn.functional as F
from torch import Tensor

from manual_mlp.explain.blocks import Refused, Values, number
from manual_mlp.explain.compare import attempt, autograd
from manual_mlp.explain.formulas import RIGHT, Formulas
from manual_mlp.explain.network import Network


@dataclass(frozen=True)
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
    def true_dy(self) -> Tensor:
        """∂J/∂Y by autograd."""
        return autograd(self.network.cost_of, self.network.y)[0]

    @cached_property
    def true_delta(self) -> Tensor:
        """∂J/∂Z by autograd."""
        return autograd(lambda z: self.network.cost_of(self.network.f.f(z)), self.network.z)[0]

    @cached_property
    def true_dh_dw_db(self) -> tuple[Tensor, ...]:
        """∂J/∂H, ∂J/∂W and ∂J/∂B by autograd."""
        return autograd(self.network.cost, self.network.h, self.network.w, self.network.b)

    @cached_property
    def slope(self) -> Tensor:
        """f′(Z), (N, D_out)."""
        return self.network.f.df(self.network.z)

    @cached_property
    def classes(self) -> tuple[Tensor, Tensor]:
        """Z and one-hot rows of the right classes, for a softmax: the largest entry of Y* is right.

        With one output there is a second class, whose Z is 0 and whose target is ½.
        """
        net = self.network
        alone = net.shape[2] == 1
        z, target = (F.pad(net.z, (0, 1)), F.pad(net.target, (0, 1), value=0.5)) if alone else (net.z, net.target)
        return z, F.one_hot(target.argmax(1), z.shape[1]).double()

    @cached_property
    def row(self) -> int:
        """The row that has most to show: the one whose H and δ are largest."""
        return int((self.network.h.abs().sum(1) * self.true_delta.abs().sum(1)).argmax())

    @cached_property
    def knob(self) -> tuple[int, int]:
        """The weight that has most to show: its input k and its output l."""
        return int(self.network.h.abs().sum(0).argmax()), int(self.true_delta.abs().sum(0).argmax())

    def directions(self, *shape: int, count: int = 1) -> list[Tensor]:
        """Draw random directions, the same for the same shape."""
        generator = torch.Generator().manual_seed(self.seed)
        return [torch.randn(*shape, generator=generator, dtype=torch.float64) for _ in range(count)]


def row_of(values: Values, n: int) -> Values:
    """Return one row as a matrix, (1, D)."""
    return values if isinstance(values, Refused) else values[n : n + 1]


def spelled_out(a: Tensor, b: Tensor, most: int = 4) -> str:
    """Write a dot product term by term, and its result.

    Shape:
        a, b: (D,)
    """
    terms = [f"{_factor(x)} · {_factor(y)}" for x, y in zip(a.tolist()[:most], b.tolist()[:most], strict=True)]
    return " + ".join([*terms, *(["…"] if len(a) > most else [])]) + f" = {number(float(a @ b))}"


def _factor(value: float) -> str:
    return number(value) if value >= 0 else f"({number(value)})"
