"""The activations by elementary operations of torch, each of which has derivatives of every order in every mode.

torch's own kernels do not: silu has no forward mode over its backward, hardsigmoid holds 1/6 in float32.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from truths import added

Map = Callable[[Tensor], Tensor]


def _bent(z: Tensor, above: Tensor, below: Tensor) -> Tensor:
    return torch.where(z > 0, above, below)


def _bounded(z: Tensor, low: float, high: float, between: Tensor, above: Tensor) -> Tensor:
    """Join three pieces: 0 up to ``low``, and none of ``between`` at the bounds themselves."""
    return torch.where(z >= high, above, torch.where(z > low, between, torch.zeros_like(z)))


def _exponential(scale: float, alpha: float) -> Map:
    # clamp would not do: its own slope at 0 is 0.
    return lambda z: _bent(z, scale * z, scale * alpha * torch.expm1(torch.where(z > 0, 0, z)))


def _log1p_exp(z: Tensor) -> Tensor:
    return torch.relu(z) + torch.log1p(torch.exp(-z.abs()))


def _gelu_tanh(z: Tensor) -> Tensor:
    return 0.5 * z * (1 + torch.tanh(math.sqrt(2 / math.pi) * (z + 0.044715 * z * z * z)))


ELEMENTARY: dict[str, Map] = {
    "identity": lambda z: z,
    "relu": torch.relu,
    "leaky_relu": lambda z: _bent(z, z, 0.01 * z),
    "elu": _exponential(1.0, 1.0),
    "celu": _exponential(1.0, 1.0),
    "selu": _exponential(1.0507009873554805, 1.6732632423543772),
    "sigmoid": torch.sigmoid,
    "logsigmoid": lambda z: -_log1p_exp(-z),
    "tanh": torch.tanh,
    "softplus": lambda z: torch.where(z > 20, z, _log1p_exp(z)),
    "softsign": lambda z: z / (1 + z.abs()),
    "hardtanh": lambda z: _bounded(z, -1, 1, z + 1, torch.full_like(z, 2.0)) - 1,
    "relu6": lambda z: _bounded(z, 0, 6, z, torch.full_like(z, 6.0)),
    "hardsigmoid": lambda z: _bounded(z, -3, 3, (z + 3) / 6, torch.ones_like(z)),
    "hardswish": lambda z: _bounded(z, -3, 3, z * (z + 3) / 6, z),
    "gelu": lambda z: 0.5 * z * torch.erfc(-z * math.sqrt(0.5)),
    "gelu_tanh": _gelu_tanh,
    "silu": lambda z: z * torch.sigmoid(z),
    "mish": lambda z: z * torch.tanh(_log1p_exp(z)),
    "squared_relu": lambda z: torch.relu(z).square(),
    "sin": torch.sin,
    "lecun_tanh": lambda z: 1.7159 * torch.tanh(2 / 3 * z),
}
ELEMENTARY |= added(ELEMENTARY)
