"""Derivatives by other ways, and comparisons with them."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable

import torch
from torch import Tensor

from manual_mlp.activations import Activation
from manual_mlp.explain.blocks import Check, Refused, Values

Cost = Callable[[Tensor], Tensor]

# Of autograd and of sums in another order, and of a central difference: times the largest entry, if that is above 1.
ROUNDING = 1e-12
DIFFERENCE = 1e-6
# ε of a central difference: the first loses least to rounding and to curvature together.
_NUDGES = tuple(2.0**-power for power in range(17, 34, 4))


def attempt(formula: Callable[..., Tensor], *arguments: object) -> Values:
    """Compute a formula, or say why it cannot be computed; what was refused before stays refused."""
    for argument in arguments:
        if isinstance(argument, Refused):
            return argument
    try:
        return formula(*arguments)
    except RuntimeError as error:
        return Refused(str(error).splitlines()[0])


def autograd(cost: Callable[..., Tensor], *at: Tensor) -> tuple[Tensor, ...]:
    """Return the gradients of a cost by each of its arguments, as torch finds them."""
    with torch.inference_mode(False), torch.enable_grad():
        leaves = [t.detach().clone().requires_grad_() for t in at]
        return torch.autograd.grad(cost(*leaves), leaves)


def central_difference(cost: Cost, at: Tensor, direction: Tensor) -> float:
    """Return (J(x + εu) − J(x − εu)) / 2ε, for the longest ε of a few with which a shorter one agrees.

    They disagree where f, f′ or f″ jumps within the nudge.
    """
    found = []
    for nudge in _NUDGES:
        up, down = float(cost(at + nudge * direction)), float(cost(at - nudge * direction))
        found.append((up - down) / (2 * nudge))
        scale = max(1.0, abs(up), abs(found[-1]))
        if len(found) > 1 and abs(found[-1] - found[-2]) <= 1e-7 * scale:
            return found[-2]
    return found[-1]


def every_difference(cost: Cost, at: Tensor, most: int = 64) -> tuple[Tensor, Tensor]:
    """Return the central differences by the entries of an array, and which entries: evenly spread if there are more.

    Shape:
        at: (...). Output: (M,), (M,), M at most ``most``
    """
    entries = _spread(at.numel(), most)
    found = []
    for entry in entries:
        direction = torch.zeros_like(at)
        direction.view(-1)[entry] = 1
        found.append(central_difference(cost, at, direction))
    return torch.tensor(found, dtype=at.dtype), entries


def has_complex_step(activation: Activation) -> bool:
    """Tell whether f is analytic: torch computes it for complex numbers, with the same slope along both axes."""
    z = torch.tensor([-2.3, -0.6, 0.4, 1.7], dtype=torch.complex128)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # torch warns where a part of a number is dropped
            real, imaginary = ((activation.f(z + step) - activation.f(z - step)) / (2 * step) for step in (1e-6, 1e-6j))
        return torch.allclose(real, imaginary, rtol=1e-6, atol=1e-8)
    except Exception:  # a function of one's own may refuse these numbers in any way
        return False


def complex_step(cost: Cost, at: Tensor, most: int = 64) -> tuple[Tensor, Tensor]:
    """Return Im J(x + iε) / ε by the entries of an array, and which, as :func:`every_difference` does.

    Nothing is subtracted, so ε can be tiny and no digit is lost. The source is Squire and Trapp, Using Complex
    Variables to Estimate Derivatives of Real Functions (SIAM Review, 1998).
    """
    entries, tiny, found = _spread(at.numel(), most), 1e-100, []
    for entry in entries:
        nudged = at.to(torch.complex128)
        nudged.view(-1)[entry] += 1j * tiny
        found.append(cost(nudged).imag / tiny)
    return torch.stack(found), entries


def _spread(count: int, most: int) -> Tensor:
    return torch.linspace(0, count - 1, min(most, count)).round().long()


def last_places(got: Tensor, want: Tensor) -> float:
    """Return the largest difference of two entries in units in the last place of the larger one."""
    larger = torch.maximum(got.abs(), want.abs())
    place = torch.nextafter(larger, torch.full_like(larger, math.inf)) - larger
    return float(((got - want).abs() / place).max())


def agree(name: str, got: Values, want: Values | float, against: str = "autograd", allowed: float = ROUNDING) -> Check:
    """Compare a formula's numbers with those of another way: shapes first."""
    if isinstance(want, Refused):
        return Check(name, against, None, allowed, want.reason)
    want = torch.as_tensor(want, dtype=torch.float64)
    allowed = allowed * max(1.0, float(want.abs().max()))
    if isinstance(got, Refused):
        return Check(name, against, None, allowed, got.reason)
    if got.shape != want.shape:
        return Check(
            name, against, None, allowed, f"the shape is {tuple(got.shape)}, and should be {tuple(want.shape)}"
        )
    return Check(name, against, float((got - want).abs().max()), allowed)


def shape(t: Tensor) -> str:
    """Write a shape as in 4×3; a vector is a row."""
    return "×".join(map(str, (1, *t.shape) if t.dim() == 1 else t.shape))
