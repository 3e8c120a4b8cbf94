"""What a mode of differentiation is, and what the modes share."""

import copy
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

Map = Callable[..., Tensor]
Run = Callable[[Map, tuple[Tensor, ...]], Any]


@dataclass(frozen=True)
class Mode:
    """Hold one way of asking for derivatives, of any function at any inputs.

    Attributes:
        name: of the row in the table and of the test.
        run: ``(f, inputs) -> results``, nested in any way. The first input is the layer's.
        plain: how the truth is asked, if not by ``run`` too.
        tolerance: of the error, relative to 1 + the largest entry; None for twice torch's own error.
        dtype: of the inputs that the candidate gets.
        may_raise: whether torch itself may raise here.
        instead: how the truth is asked where torch raises and the candidate does not.
        compiles: whether it is slow, because something is compiled or exported.
    """

    name: str
    run: Run
    plain: Run | None = None
    tolerance: float | None = 1e-9
    dtype: torch.dtype = torch.float64
    may_raise: bool = False
    instead: Run | None = None
    compiles: bool = False


class Call:
    """Make a module a function of its input and its parameters."""

    def __init__(self, module: nn.Module) -> None:
        self.module, self.names = module, [name for name, _ in module.named_parameters()]

    def __call__(self, h: Tensor, *params: Tensor) -> Tensor:
        return functional_call(self.module, dict(zip(self.names, params, strict=True)), (h,))  # type: ignore[no-any-return]


class Held(nn.Module):
    """Make a function a module that holds all inputs but the first as parameters."""

    def __init__(self, f: Map, params: tuple[Tensor, ...]) -> None:
        super().__init__()
        self.f, self.names = f, [f"p{k}" for k in range(len(params))]
        for name, p in zip(self.names, params, strict=True):
            self.register_parameter(name, nn.Parameter(p.detach().clone()))

    def forward(self, h: Tensor) -> Tensor:
        return self.f(h, *(getattr(self, name) for name in self.names))


def as_module(f: Map, inputs: tuple[Tensor, ...]) -> nn.Module:
    """Make a module of f: the one it calls, with its own copy of the parameters, or one that holds them."""
    if not isinstance(f, Call):
        return Held(f, inputs[1:])
    module = copy.deepcopy(f.module).to(inputs[1].device, inputs[1].dtype)
    with torch.no_grad():
        for p, given in zip(module.parameters(), inputs[1:], strict=True):
            p.copy_(given)
    return module


def leaves(inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Copy the inputs, so that each is a leaf which requires grad."""
    return tuple(t.detach().clone().requires_grad_() for t in inputs)


def head(y: Tensor) -> Tensor:
    """Turn an output into a scalar whose every derivative with respect to it is not constant."""
    return (y.float() if y.dtype in (torch.float16, torch.bfloat16) else y).sin().sum()


def heads(derivatives: Any) -> Tensor:
    """Turn a tuple of derivatives into a scalar, to differentiate once more."""
    return torch.stack([head(g) for g in derivatives]).sum()


def scalar(f: Map) -> Map:
    """Put the head on f."""
    return lambda *t: head(f(*t))


def every(inputs: tuple[Any, ...]) -> tuple[int, ...]:
    """List the positions of all inputs."""
    return tuple(range(len(inputs)))


def tangents(inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Choose a tangent of each input."""
    return tuple((3 * t.detach()).cos() for t in inputs)


def cotangent(y: Tensor) -> Tensor:
    """Choose a cotangent of an output: no two entries are equal."""
    return torch.linspace(-1, 2, y.numel(), dtype=y.dtype, device=y.device).view(y.shape)


def of_rows(inputs: tuple[Tensor, ...], change: Callable[[Tensor], Tensor]) -> tuple[Tensor, ...]:
    """Change the inputs that have a row for each row of the first."""
    n = len(inputs[0])
    return tuple(change(t) if len(t) == n else t for t in inputs)


def backward(f: Map, inputs: tuple[Tensor, ...]) -> Any:
    """Compute the output, and the gradients that backward() leaves on the inputs."""
    t = leaves(inputs)
    y = f(*t)
    head(y).backward()
    return y, [x.grad for x in t]


def first_order(f: Map, inputs: tuple[Tensor, ...]) -> Any:
    """Compute the output and the gradients, in plain backward mode."""
    t = leaves(inputs)
    y = f(*t)
    return y, torch.autograd.grad(head(y), t)


def second_order(f: Map, inputs: tuple[Tensor, ...]) -> Any:
    """Compute the output, its gradients and theirs."""
    t = leaves(inputs)
    y = f(*t)
    first = torch.autograd.grad(head(y), t, create_graph=True)
    return y, first, torch.autograd.grad(heads(first), t)


def within(context: Callable[[], AbstractContextManager[Any]], run: Run) -> Run:
    """Run inside a context."""

    def inside(f: Map, inputs: tuple[Tensor, ...]) -> Any:
        with context():
            return run(f, inputs)

    return inside
