"""What the steps share: the network, the formulas, and what they and autograd find; and how a block is made of them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from manual_mlp.explain.blocks import Block, Check, Matrix, Text, Tile, Values, When
from manual_mlp.explain.compare import DIFFERENCE, agree, autograd
from manual_mlp.explain.evaluate import NUDGE, Scope
from manual_mlp.explain.expressions import Tree, is_data, parse
from manual_mlp.explain.formulas import RIGHT, Formulas, of_activation, of_loss
from manual_mlp.explain.network import Network
from manual_mlp.explain.words import say
from manual_mlp.explain.writing import ALL_SHOWN, Live

INPUTS = ("X", "V", "C", "H", "W", "B", "T")
# T is Y*, S and S1 are slopes of f, E what enters a softmax, and t has a row for the right class of each.
_FORWARD = {
    "Z1": "X @ V + C",
    "H": "f(Z1)",
    "Z": "H @ W + B",
    "Y": "f(Z)",
    "S": "df(Z)",
    "S1": "df(Z1)",
    "J": "J(Y, T)",
    "P": "shares(Y)",
    "I": "eye(B)",
    "E": "Y if ce else Z",
    "t": "hottest(T)",
    "p": "softmax(E)",
    "Zr": "row(Z, r)",
    "Er": "row(E, r)",
    "Wt": "W.T",
    "Hr": "row(H, r)",
}

# J after a step of gradient descent, and η: the largest of 1, 1/2, 1/4, … that lowers J, or 0.
_MOVED = "J(f(f(X @ (V - {0} * dV_) + C - {0} * dC_) @ (W - {0} * dW_) + B - {0} * dB_), T)"


def _rate(power: int = 0) -> str:
    rate = 2.0**-power
    return "0" if power == 10 else f"({rate} if {_MOVED.format(rate)} < J else {_rate(power + 1)})"


_FORWARD |= {"eta": _rate(), "next": _MOVED.format("eta")}


@dataclass(frozen=True, eq=False)
class Story:
    """Hold a network, the formulas that are told, and the results of both.

    Attributes:
        network: the numbers.
        formulas: what the steps call.
        seed: of the random numbers that are not the network's.
        focus: the row, the input and the output that are looked at; those that have most to show by default.
    """

    network: Network
    formulas: Formulas = RIGHT
    seed: int = 0
    focus: tuple[int, int, int] | None = None

    @cached_property
    def scope(self) -> Scope:
        """All that has a name."""
        net = self.network
        given = {"X": net.x, "V": net.v, "C": net.c[None], "W": net.w, "B": net.b[None], "T": net.target}
        if not net.linked:
            given["H"] = net.h
        r, k, l = self.looked_at  # noqa: E741
        flags = {"r": r, "k": k, "l": l, "e": 0, "linked": net.linked, "ce": net.loss == "cross-entropy"}
        flags |= {"se": net.loss == "squared-error", "bce": net.loss == "binary-cross-entropy"}
        constants = {name: torch.full((1, 1), float(value), dtype=torch.float64) for name, value in flags.items()}
        return Scope(given | constants, definitions(self.formulas, net), of_activation(net.f) | of_loss(net.loss))

    @cached_property
    def looked_at(self) -> tuple[int, int, int]:
        """The row, the input and the output that are looked at."""
        if self.focus is not None:
            return self.focus
        sizes = self.network.h.abs().sum(1) * self.true_delta.abs().sum(1)
        return (
            _largest(sizes),
            _largest(self.network.h.abs().sum(0)),
            _largest(self.true_delta.abs().sum(0)),
        )

    @property
    def is_data(self) -> bool:
        """Whether a page can compute all of it."""
        return all(map(is_data, self.scope.definitions.values())) and all(
            is_data(body) for _, body in self.scope.functions.values()
        )

    @cached_property
    def true_dy(self) -> Tensor:
        """∂J/∂Y by autograd."""
        return autograd(self.network.cost_of, self.network.y)[0]

    @cached_property
    def true_delta(self) -> Tensor:
        """∂J/∂Z by autograd."""
        return autograd(lambda z: self.network.cost_of(self.network.f.f(z)), self.network.z)[0]

    def value(self, text: str) -> Values:
        """Compute a formula."""
        return self.scope.compute(parse(text))

    def say(self, text: str) -> Live:
        """Write a sentence with numbers between braces."""
        return say(text, self.scope.compute)

    def text(self, text: str) -> Text:
        """Make a paragraph of such sentences."""
        return Text(self.say(text))

    def when(self, condition: str, *blocks: Block | str) -> When:
        """Make blocks, or paragraphs, that are there where a formula is not 0."""
        tree, made = parse(condition), tuple(self.text(b) if isinstance(b, str) else b for b in blocks)
        found = self.scope.compute(tree)
        return When(tree, isinstance(found, Tensor) and bool(found.ne(0).all()), made)

    def matrix(self, name: str, text: str, rows: str = "n", columns: str = "l", mark: str = "") -> Matrix:
        """Make a matrix of a formula; of another formula come the entries that are marked."""
        marked = self.value(mark) if mark else None
        shown = marked.ne(0) if isinstance(marked, Tensor) else None
        return Matrix(name, self.value(text), rows, columns, shown, parse(text), parse(mark) if mark else None)

    def tile(self, caption: str, text: str, labels: tuple[str, str] = ("", "")) -> Tile:
        """Make a picture of a formula's entries."""
        values = self.value(text)
        return Tile(caption, values if isinstance(values, Tensor) else torch.zeros(1, 1), labels, parse(text))

    def slope(self, name: str, got: str, of: str, by: str) -> Check:
        """Compare a formula with the slopes of another by what has a name, which autograd finds."""
        want = parse(of)
        found = agree(name, self.value(got), self.scope.slopes(want, by))
        return replace(found, got=parse(got), want=want, by=by)

    def difference(self, name: str, got: str, of: str, by: str) -> Check:
        """Compare a formula with the slopes of another by what has a name, by central differences."""
        want = parse(of)
        found = agree(name, self.value(got), self.scope.differences(want, by), "central difference", DIFFERENCE)
        value = self.scope.compute(want)
        # What the subtraction of two numbers that are nearly equal loses.
        lost = (
            16 * torch.finfo(torch.float64).eps * float(value.abs().max()) / NUDGE if isinstance(value, Tensor) else 0
        )
        return replace(found, allowed=found.allowed + lost, got=parse(got), want=want, by=by)

    def same(self, name: str, got: str, want: str, against: str) -> Check:
        """Compare two formulas."""
        return replace(agree(name, self.value(got), self.value(want), against), got=parse(got), want=parse(want))


def definitions(formulas: Formulas, network: Network) -> dict[str, Tree]:
    """Return a tree for every name that is not an input; what ends in _ is right, whatever formulas are told."""
    forward = {name: parse(text) for name, text in _FORWARD.items()}
    if network.shape[2] == 1:
        forward |= {"E": ["pad", forward["E"], 0], "t": parse("hottest(pad(T, 0.5))")}
    told = formulas.chain(network.loss, network.f)
    return forward | told | RIGHT.chain(network.loss, network.f, "_")


def _largest(sizes: Tensor) -> int:
    # The others are not shown where there are more.
    return int((sizes if len(sizes) <= ALL_SHOWN else sizes[: ALL_SHOWN - 1]).argmax())
