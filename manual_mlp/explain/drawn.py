"""Numbers drawn at random: of one decimal, on no kink, and right classes."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from manual_mlp.activations import Activation

_NEAR = 1e-6  # to a kink


def draw_below(batch: int, inputs: int, f: Activation, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """Draw the data, and the weight and the bias of the hidden layer."""
    width = inputs + 2
    x, v = normal(generator, batch, width), normal(generator, width, inputs, scale=width**-0.5)
    return x, v, off_kinks(x @ v, normal(generator, inputs, scale=0.3), f, generator)


def normal(generator: torch.Generator, *sides: int, scale: float = 1.0) -> Tensor:
    """Draw normal numbers of one decimal."""
    return (10 * scale * torch.randn(*sides, generator=generator, dtype=torch.float64)).round() / 10


def one_hot(rows: int, outputs: int, generator: torch.Generator) -> Tensor:
    """Draw a class for each row, and of two rows or more not the same for all."""
    classes = torch.randint(outputs, (rows,), generator=generator)
    if rows > 1 and outputs > 1 and (classes == classes[0]).all():
        classes[0] = (classes[0] + 1) % outputs
    return F.one_hot(classes, outputs)


def off_kinks(z: Tensor, bias: Tensor, f: Activation, generator: torch.Generator) -> Tensor:
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
        moved = bias + 5 * 10.0**-power if power < 6 else bias + torch.rand(bias.shape, generator=generator) / 10
    return moved
