"""One layer by each provider: torch, ours, and the plainest Functions as calibration."""

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import Function

from benchmarks.harness import Layer
from manual_mlp import Activation, dense
from manual_mlp.formulas.layer import delta_of, gradients
from manual_mlp.transforms import needed_now

BASELINE = "torch"
OURS = "manual_mlp"

Entrywise = Callable[[Tensor], Tensor]


def _gelu_df(z: Tensor) -> Tensor:
    return 0.5 * (1 + torch.erf(z / math.sqrt(2))) + z * torch.exp(-0.5 * z * z) / math.sqrt(2 * math.pi)


# f as torch has it; f′ as a textbook writes it, for the calibration alone.
ACTIVATIONS: dict[str, tuple[Entrywise, Entrywise]] = {
    "identity": (lambda z: z, torch.ones_like),
    "relu": (torch.relu, lambda z: (z > 0).to(z.dtype)),
    "tanh": (torch.tanh, lambda z: 1 - torch.tanh(z) ** 2),
    "sigmoid": (torch.sigmoid, lambda z: torch.sigmoid(z) * (1 - torch.sigmoid(z))),
    "gelu": (F.gelu, _gelu_df),
}


class BareFunction(Function):
    """The textbook's layer, written the plainest way: what any Function costs on this machine."""

    @staticmethod
    def forward(h: Tensor, w: Tensor, b: Tensor, f: Entrywise, df: Entrywise) -> tuple[Tensor, Tensor]:
        z = F.linear(h, w, b)
        y = f(z)
        return y.clone() if y is z else y, z

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        h, w, _, _, ctx.df = inputs
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(h, w, output[1])

    @staticmethod
    def backward(ctx: Any, dy: Tensor, _: None) -> tuple[Tensor | None, ...]:
        h, w, z = ctx.saved_tensors
        delta = dy * ctx.df(z)
        return delta @ w if ctx.needs_input_grad[0] else None, delta.mT @ h, delta.sum(0), None, None


class DifferentiableFunction(Function):
    """The layer of this package with a backward that is left to autograd to differentiate: no Function for S1 to S6."""

    @staticmethod
    def forward(ctx: Any, h: Tensor, w: Tensor, b: Tensor, activation: Activation) -> tuple[Tensor, Tensor]:
        z = F.linear(h, w, b)
        y = activation.f(z)
        ctx.activation = activation
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(h, w, z if activation.df_y is None else y)
        return y, z

    @staticmethod
    def backward(ctx: Any, dy: Tensor | None, dz: Tensor | None) -> tuple[Tensor | None, ...]:
        h, w, kept = ctx.saved_tensors
        delta = delta_of(dy, kept, ctx.activation, plain=not torch.is_grad_enabled(), dz=dz)
        return *gradients(delta, h, w, needed_now(ctx, 3)), None


def _torch(activation: str) -> Layer:
    f, _ = ACTIVATIONS[activation]
    return lambda h, w, b: f(F.linear(h, w, b))


def _ours(activation: str) -> Layer:
    return lambda h, w, b: dense(h, w, b, activation)


def _bare(activation: str) -> Layer:
    f, df = ACTIVATIONS[activation]
    return lambda h, w, b: BareFunction.apply(h, w, b, f, df)[0]


PROVIDERS: dict[str, Callable[[str], Layer]] = {BASELINE: _torch, OURS: _ours, "bare": _bare}
