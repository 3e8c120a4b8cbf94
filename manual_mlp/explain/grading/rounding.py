"""How near is near enough: what rounding may do to each entry of each result."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from manual_mlp.explain.grading.call import coarsest
from manual_mlp.explain.network import Network
from manual_mlp.explain.story import Story
from manual_mlp.losses import by_flag

_FLOAT64 = 1e-9
_EPS = 6 * torch.finfo(torch.float32).eps
_LEAST = 1e-30


def same(value: Tensor | None, want: Tensor | None, allowed: float | Tensor) -> bool:
    """Tell whether no entry differs by more than is allowed."""
    if value is None or want is None or value.shape != want.shape:
        return False
    # Written so that NaN and infinity fail.
    return bool(((value - want).abs() <= allowed).all())


def is_fine(dtype: torch.dtype) -> bool:
    """Tell whether a dtype has digits enough to tell a wrong formula from a right one."""
    return dtype in (torch.float32, torch.float64)


@dataclass(frozen=True, eq=False)
class Rounding:
    """Hold the differences that count as none.

    Attributes:
        of: for the entries of each right result; "p" and "-t/p" are those of the softmax.
        relative: for any other formula's numbers, of the largest entry, if that is above 1.
    """

    of: Mapping[str, Tensor]
    relative: float

    def around(self, step: str, want: Tensor, right: Tensor) -> float | Tensor:
        """Return what is allowed around the numbers of a formula, which may be the right ones."""
        if same(want, right, _FLOAT64 * max(_LEAST, float(right.abs().max()))):
            return self.of[step]
        return max(float(self.of[step].max()), self.relative * float(want.abs().max()))


def rounding(network: Network, layout: str, dtypes: Mapping[str, torch.dtype]) -> Rounding:
    """Return what rounding may do, by the least precise of the results."""
    fine = {dtype for dtype in dtypes.values() if is_fine(dtype)}
    # Whatever was computed in float32 on the way is as good as float32.
    return of_float64(network, layout) if not fine or coarsest(fine) == torch.float64 else of_float32(network, layout)


def of_float64(network: Network, layout: str) -> Rounding:
    """Allow so little that no care is needed where it comes from."""
    right = results(network, layout)
    return Rounding(
        {name: torch.full_like(t, _FLOAT64 * max(1.0, float(t.abs().max()))) for name, t in right.items()}, _FLOAT64
    )


def of_float32(network: Network, layout: str) -> Rounding:
    """Allow what float32 loses in the terms that each entry sums, and what it lost in the steps before."""
    terms = float((network.h.abs() @ network.w.abs() + network.b.abs()).max())
    return Rounding({name: t + _LEAST for name, t in _bounds(network, layout).items()}, _EPS * max(1.0, terms))


def results(network: Network, layout: str) -> dict[str, Tensor]:
    """Return the right results by autograd, dW in the layout; "p" and "-t/p" are the softmax's."""
    story = Story(network)
    dh, dw, db = network.gradients
    p = torch.softmax(network.y, 1)
    return {
        "Z": network.z,
        "Y": network.y,
        "dY": story.true_dy,
        "delta": story.true_delta,
        "dB": db,
        "dW": dw.mT if layout == "torch" else dw,
        "dH": dh,
        "p": p,
        "-t/p": -network.target / p,
    }


def _bounds(network: Network, layout: str) -> dict[str, Tensor]:
    """Bound the errors of float32, to first order."""
    right = results(network, layout)
    h, w, z, y, p, f = network.h.abs(), network.w.abs(), network.z, network.y, right["p"], network.f
    rows, inputs, outputs = network.shape
    slope = f.df(z).abs()
    of_z = _sum(inputs, h @ w + network.b.abs())
    # A slope such as 1 − Y² is as exact as its terms, not as the small number that they leave.
    of_slope = f.d2f(z).abs() * of_z + _sum(1, z.abs().clamp(min=1) + slope)
    of_y = slope * of_z + _sum(1, torch.maximum(z.abs(), y.abs()).clamp(min=1))
    of_p = p * (of_y + (p * of_y).sum(1, keepdim=True)) + _sum(outputs, p)
    of_dy = of_p + _sum(1, p + network.target)
    loss = by_flag(network.loss)
    made = loss.make(y, network.target)
    if made.by_entry:
        _, bend = made.curvature(y.clone(), torch.ones_like(y), slice(None))
        of_dy = bend.abs() * of_y + _sum(1, loss.shares(y).abs() + network.target.abs())
    dy, delta = right["dY"].abs(), right["delta"].abs()
    of_delta = of_dy * slope + dy * of_slope + _sum(1, delta)
    of_dw = h.mT @ of_delta + _sum(rows, h.mT @ delta)
    return {
        "Z": of_z,
        "Y": of_y,
        "dY": of_dy,
        "delta": of_delta,
        "p": of_p,
        "-t/p": network.target / p**2 * of_p,
        "dB": of_delta.sum(0) + _sum(rows, delta.sum(0)),
        "dW": of_dw.mT if layout == "torch" else of_dw,
        "dH": of_delta @ w.mT + _sum(outputs, delta @ w.mT),
    }


def _sum(count: int, terms: Tensor) -> Tensor:
    """Bound the error of a sum by its terms' magnitudes; in a loop the roundings add up."""
    growth: float = max(1.0, count**0.5 / 8)
    return _EPS * growth * terms
