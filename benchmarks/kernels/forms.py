"""What the kernels are called with: a network, what is asked, and the form in which it is computed."""

from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor

ACTIVATIONS = ("relu", "gelu", "silu", "tanh", "sin", "softplus")
SMOOTH = ACTIVATIONS[1:]  # with an f″, for the second order
LOSSES = ("squared_error", "dy", "binary_cross_entropy", "cross_entropy")


class Shape(NamedTuple):
    """A network without its numbers: ``open`` if its last layer too has the activation, as that of a lower part has."""

    widths: tuple[int, ...]
    activation: str = "relu"
    dtype: torch.dtype = torch.bfloat16
    open: bool = False

    @property
    def products(self) -> int:
        """Count the multiply-adds of a row forward."""
        return sum(a * b for a, b in pairwise(self.widths))


class Network(NamedTuple):
    """The numbers of a network, contiguous: weights (D_out, D_in) and biases (D_out,)."""

    weights: tuple[Tensor, ...]
    biases: tuple[Tensor, ...]
    activation: str = "relu"
    open: bool = False

    @property
    def shape(self) -> Shape:
        """Leave out the numbers."""
        first = self.weights[0]
        widths = (first.shape[1], *(len(w) for w in self.weights))
        return Shape(widths, self.activation, first.dtype, self.open)

    def cut(self, at: int) -> tuple["Network", "Network"]:
        """Cut the network in two after so many layers."""
        lower = self._replace(weights=self.weights[:at], biases=self.biases[:at], open=True)
        return lower, self._replace(weights=self.weights[at:], biases=self.biases[at:])


class Task(NamedTuple):
    """What is asked of a step: one of LOSSES ("dy": ∂J/∂y is given), which share is dropped, whether dx is needed."""

    loss: str = "squared_error"
    dropout: float = 0.0
    seed: int = 0
    need_dx: bool = False


class Form(NamedTuple):
    """How a kernel works, whatever it computes. The first is that of a network 64 wide."""

    tile: int = 128  # rows at once
    warps: int = 8  # of a program
    left: bool = True  # the weights stand on the left of a product
    hide: bool = True  # that products follow each other is hidden from the compiler
    keep: int = 8  # dW's sums of so many layers stay in registers, those of the others are added to in memory
    again: bool = True  # z is computed a second time, else f′(z) is kept in registers
    resident: bool = True  # the weights stay in shared memory, else they are read for each product
    stages: int = 1  # of Triton's pipeline
    registers: int | None = None  # at most so many of a thread
    blocks: int = 1  # programs at once on a multiprocessor, as many as the form leaves room for
    programs: int | None = None  # in all; by default blocks times multiprocessors
    tf32: bool = False  # products of float32 keep 10 bits

    def told(self) -> dict[str, int | bool]:
        """List what differs from the first form."""
        usual = Form()._asdict()
        return {name: value for name, value in self._asdict().items() if value != usual[name]}


def network_of(parameters: Sequence[Tensor], activation: str) -> Network:
    """Make a network of w₁, b₁, w₂, b₂, …"""
    held = [p.detach() for p in parameters]
    return Network(tuple(held[::2]), tuple(held[1::2]), activation)
