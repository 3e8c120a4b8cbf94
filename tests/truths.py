"""What an activation should be: written by hand where the tests do so, else by its module or its text, and autograd."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

import reference
from manual_mlp.activations import to_module
from manual_mlp.activations.registry import ENTRIES

Map = Callable[[Tensor], Tensor]


def map_of(name: str) -> Map:
    """Return f by torch's own module, or by the text that it is exported with, or as its record has it."""
    entry = ENTRIES[name]
    given: dict[str, Any] = {"torch": torch, **dict(zip(entry.parameters, entry.default.params, strict=False))}
    if entry.source is not None:
        # A function, and no call of eval in one: compilers are asked for it too.
        f: Map = eval(f"lambda z: {entry.source}", given)
        return f
    return to_module(entry.default)


def added(known: dict[str, Map]) -> dict[str, Map]:
    """Return those that are known by name and are not among these."""
    return {name: map_of(name) for name in ENTRIES if name not in known}


def scalar_of(name: str, *parameters: float) -> reference.Scalar:
    """Return f, f′ and f″ of a float: the reference's own, else by autograd."""
    if name in reference.ACTIVATIONS:
        return reference.ACTIVATIONS[name](*parameters)
    f = map_of(name)

    def at(order: int) -> Callable[[float], float]:
        def derivative(number: float) -> float:
            z = torch.tensor(number, dtype=torch.float64, requires_grad=True)
            y = f(z)
            for _ in range(order):
                y = (
                    torch.autograd.grad(y, z, create_graph=True, materialize_grads=True)[0]
                    if y.requires_grad
                    else 0 * z
                )
            return float(y.detach())

        return derivative

    return reference.Scalar(at(0), at(1), at(2))
