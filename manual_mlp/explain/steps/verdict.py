"""Step 10: every derivative of the network by four ways, and how far they are apart."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from manual_mlp.explain.blocks import Bars, Check, Refused, Step, Table, Text, Values, When
from manual_mlp.explain.compare import (
    DIFFERENCE,
    ROUNDING,
    agree,
    autograd,
    complex_step,
    every_difference,
    has_complex_step,
    last_places,
)
from manual_mlp.explain.evaluate import NUDGE
from manual_mlp.explain.network import Network
from manual_mlp.explain.story import Story
from manual_mlp.explain.writing import count, number
from manual_mlp.layer import dense
from manual_mlp.losses import by_flag


def verdict(story: Story) -> Step:
    """Step 10: every derivative by four ways, and how far they are apart."""
    net = story.network
    at = {"X": net.x, "V": net.v, "C": net.c, "W": net.w, "B": net.b}
    cost: Callable[..., Tensor] = net.whole_cost
    if not net.linked:
        at, cost = {"H": net.h, "W": net.w, "B": net.b}, net.cost
    by_hand = {name: _like(story.value(f"d{name}"), value) for name, value in sorted(at.items(), key=_order)}
    by_autograd = dict(zip(at, autograd(cost, *at.values()), strict=True))
    by_package = dict(zip(at, autograd(partial(_packaged, net), *at.values()), strict=True))
    # What the subtraction of two costs that are nearly equal loses, beside the largest derivative.
    lost = 16 * torch.finfo(torch.float64).eps * float(cost(*at.values())) / NUDGE
    analytic = has_complex_step(net.f) and by_flag(net.loss).cost is not None

    def alone(name: str) -> Callable[[Tensor], Tensor]:
        return lambda value: cost(*(value if other == name else at[other].to(value.dtype) for other in at))

    by_complex_step = {name: complex_step(alone(name), at[name]) for name in at} if analytic else {}
    # Far out torch's complex functions overflow.
    finite = all(found.abs().max() < 1e50 for found, _ in by_complex_step.values())
    real = net.name_of_f if not has_complex_step(net.f) else net.loss
    if analytic and finite:
        defined = "at hand for this f."
    else:
        defined = f"not defined here: {real} takes no complex numbers{' so large' if analytic else ''}."

    others: list[Check] = []
    rows: list[tuple[str, ...]] = []
    bars: list[tuple[str, float]] = []
    for name, ours in by_hand.items():
        value, label = at[name], f"∂J/∂{name}"
        others.append(agree(label, ours, by_package[name], "manual_mlp's own backward pass"))
        ways = [("autograd", by_autograd[name].reshape(-1), torch.arange(value.numel()), ROUNDING)]
        ways.append(("central difference", *every_difference(alone(name), value), DIFFERENCE))
        if analytic and finite:
            ways.append(("complex step", *by_complex_step[name], ROUNDING))
        for way, want, entries, allowed in ways:
            if isinstance(ours, Refused) or ours.shape != value.shape:
                rows.append((label, way, "none", "none"))
                continue
            got = ours.reshape(-1)[entries]
            apart = float((got - want).abs().max())
            rows.append((label, way, number(apart), f"{last_places(got, want):,.0f}"))
            bars.append((f"{label}, {way}", apart))
            if way != "autograd":
                found = agree(f"{label}, {count(len(entries), 'entry')}", got, want, way, allowed)
                others.append(replace(found, allowed=found.allowed + lost * (allowed == DIFFERENCE)))
    return Step(
        10,
        "The verdict",
        (
            Text(
                "Every derivative of the network by hand, beside other ways to find it. Autograd is PyTorch's. The "
                "central difference needs no calculus, but it subtracts numbers that are nearly equal, and so loses "
                "digits. The complex step nudges by a tiny imaginary number and subtracts nothing; it is "
                f"{defined}"
            ),
            When(
                None,
                True,
                (
                    Text(
                        "The last column counts units in the last place. One unit is the gap between two neighbouring "
                        "numbers of 53 binary digits, so a few of them mean: the same but for rounding. Where large "
                        "terms cancel, what is left is off by more of its own, smaller places, and it is so by every "
                        "way."
                    ),
                    Table(("by hand", "beside", "apart by", "last places"), tuple(rows)),
                    Bars(
                        "Largest differences, by order of magnitude: shorter is better.", tuple(bars), logarithmic=True
                    ),
                    *others,
                ),
            ),
            *(story.slope(f"∂J/∂{name}", f"d{name}", "J", name) for name in "WB"),
            story.when("linked", *(story.slope(f"∂J/∂{name}", f"d{name}", "J", name) for name in "VCX")),
            story.when("linked == 0", story.slope("∂J/∂H", "dH", "J", "H")),
        ),
    )


def _packaged(net: Network, *values: Tensor) -> Tensor:
    """Return J of (X, V, C, W, B) or (H, W, B) by the package's own layers, whose backward pass is written by hand."""
    *below, w, b = values
    h = dense(below[0], below[1].mT, below[2], net.f) if net.linked else below[0]
    return net.cost_of(dense(h, w.mT, b, net.f))


def _like(values: Values, at: Tensor) -> Values:
    """Give a bias's derivative, which is a row, the bias's shape."""
    fits = isinstance(values, Tensor) and values.numel() == at.numel() and values.shape[0] == 1
    return values.reshape(at.shape) if fits and isinstance(values, Tensor) else values


def _order(named: tuple[str, Tensor]) -> int:
    return "WBVCXH".index(named[0])
