"""The numbers a learner's are compared with: the right ones, how near is near enough, and draws that tell mistakes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace

import torch
from torch import Tensor

from manual_mlp import activations, losses
from manual_mlp.activations import Activation
from manual_mlp.explain.drawn import one_hot
from manual_mlp.explain.grading.call import Answer
from manual_mlp.explain.grading.known import BY_OTHER_MEANS, RIGHTLY, At, Known
from manual_mlp.explain.grading.mistakes import all_known
from manual_mlp.explain.grading.rounding import Rounding, results, same
from manual_mlp.explain.grading.search import CHAIN, Search, put, tell
from manual_mlp.explain.network import Network
from manual_mlp.explain.story import Story

_NUDGE = 1.001


def start(network: Network, answer: Answer | None, layout: str) -> At:
    """Put together what is at hand, every step right."""
    given = {"H": network.h, "W": network.w, "B": network.b, "target": network.target}
    story = Story(network)
    return At(
        h=network.h,
        w=network.w,
        b=network.b,
        t=network.target,
        f=network.f,
        loss=network.loss,
        z1=network.z1,
        after=given if answer is None else answer.after,
        stored=layout == "torch",
        z=network.z,
        y=network.y,
        dy=story.true_dy,
        delta=story.true_delta,
    )


def truth(
    network: Network, layout: str, given: Mapping[str, Tensor], allowed: Rounding
) -> tuple[dict[str, Tensor], Rounding]:
    """Return the right results, by autograd, and what is allowed around them.

    With the cross-entropy Y may be p too, and dY what belongs to that.
    """
    right = results(network, layout)
    p, by_p = right.pop("p"), right.pop("-t/p")
    of = dict(allowed.of)
    if network.loss == "cross-entropy":
        if same(given.get("Y"), p, of["p"]):
            right["Y"], of["Y"] = p, of["p"]
        if ("Y" not in given or right["Y"] is p) and same(given.get("dY"), by_p, of["-t/p"]):
            right["dY"], of["dY"] = by_p, of["-t/p"]
    return right, replace(allowed, of=of)


def _nudged(step: str) -> Known:
    """Make a factor near 1, which shows in numbers alone that rounding does not blur."""
    return replace(
        BY_OTHER_MEANS["constant-factor"], of=step, formula=lambda at: _NUDGE * RIGHTLY[step](at), aside=True
    )


_NUDGED = tuple(map(_nudged, RIGHTLY))


def hidden(search: Search, among: tuple[Known, ...] | None = None) -> tuple[Known, ...]:
    """List the mistakes that would not show in these numbers, if the function made them."""
    among = (*all_known(), *_NUDGED) if among is None else among
    return tuple(row for row in among if row.name != "argument-overwritten" and _hides(search, row))


def _hides(search: Search, row: Known) -> bool:
    """Tell whether no result that was returned would differ; a result that was not returned cannot be mistaken."""
    if row.of not in search.given and (row.aside or row.of not in CHAIN):
        return False
    at, steps = search.start, list(RIGHTLY)
    for step in steps[steps.index(row.of) :]:
        value = tell(step, row.formula if step == row.of else RIGHTLY[step], at)
        # Twice: the learner's own rounding may lie on either side.
        if step in search.given and not same(value, search.truth[step], 2 * search.allowed.of[step]):
            return False
        if step == row.of and (row.aside or step not in CHAIN):
            return True
        if step in CHAIN:
            if value is None or value.shape != at.z.shape:
                return False
            at = put(at, step, value)
    return True


def probes(network: Network) -> Iterator[Network]:
    """Draw other numbers of the same sizes, so wide that f is met in all its parts."""
    rows, inputs, outputs = network.shape
    width = network.x.shape[1]
    generator = torch.Generator().manual_seed(rows + 31 * inputs + 977 * outputs)

    def normal(*sides: int, scale: float = 1.0) -> Tensor:
        return scale * torch.randn(*sides, generator=generator, dtype=torch.float64)

    for wide in (1.0, 3.0, 3.0, 1.0, 6.0, 3.0, 0.3, 1.0, 0.3, 1.0, 0.3, 1.0):
        if losses.by_flag(network.loss).of_classes:
            target = one_hot(rows, outputs, generator)
        else:
            target = torch.rand(rows, outputs, generator=generator, dtype=torch.float64)
        yield Network(
            normal(rows, width),
            normal(width, inputs, scale=width**-0.5),
            normal(inputs, scale=0.3),
            normal(inputs, outputs, scale=wide * inputs**-0.5),
            normal(outputs, scale=0.3 * wide),
            target,
            network.f,
            network.loss,
        )


def worlds(network: Network) -> Iterator[tuple[Activation, str]]:
    """List the other functions and losses that a learner may have computed, the nearest first."""
    records = [f for f in map(activations.get, activations.names()) if f is not network.f]
    others = [loss for loss in losses.flags() if loss != network.loss]
    yield from ((network.f, loss) for loss in others)
    yield from ((f, loss) for loss in (network.loss, *others) for f in records)
