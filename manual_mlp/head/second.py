"""The second order of a layer with its loss, a tile of rows at a time."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from manual_mlp.activations import Activation
from manual_mlp.composite import Found
from manual_mlp.formulas.layer import b_cotangent_of, delta_of, h_cotangent_of, q_of, second_of_delta, w_cotangent_of
from manual_mlp.formulas.products import plus
from manual_mlp.head.plan import Step, in_dtypes
from manual_mlp.precision import cast, uncast, widen, widened
from manual_mlp.sweep.objective import Objective
from manual_mlp.sweep.passes import Trace
from manual_mlp.sweep.tiles import Sweep, Tile


def second_order(step: Step, operands: Sequence[Any], tildes: Sequence[Tensor | None], needed: Sequence[bool]) -> Found:
    """Compute the cotangents of h, w, b and g from those of dh, dw and db."""
    h, w, b, g = operands
    layers = step.layers(w, b)
    sweep, objective = Sweep(layers, h, step.tiling), step.objective(h, w)
    h_tilde, w_tilde, b_tilde = (None if t is None else cast(t, step.dtype) for t in tildes)
    sums = [
        t.new_zeros(t.shape, dtype=widened(step.dtype)) if t is not None and need else None
        for t, need in zip(operands, needed, strict=True)
    ]
    h_sum, w_sum, b_sum, g_sum = sums

    def work(tile: Tile) -> None:
        at, trace = tile.at, sweep.trace(tile)
        h_tilde_at = None if h_tilde is None else h_tilde[at]
        q = q_of(tile.h, layers[0].w, (h_tilde_at, w_tilde, b_tilde), trace.y, plain=True)
        assert q is not None
        delta, r, of_g = _second_of_loss(objective, trace, tile, step.activation, widen(q))
        if g_sum is not None:
            g_sum[at] = of_g.sum_to_size(g[at].shape)
        delta, r = cast(delta.mul_(g[at]), step.dtype), cast(r.mul_(g[at]), step.dtype)
        if h_sum is not None:
            h_sum[at] = h_cotangent_of(delta, w_tilde, r, layers[0].w)
        if w_sum is not None:
            w_cotangent_of(delta, h_tilde_at, r, tile.h, w_sum)
        if b_sum is not None:
            b_cotangent_of(r, b_sum)

    with uncast(h):
        sweep.run(work)
    if g_sum is not None:
        sums[3] = step.loss.whole(g_sum)
    return in_dtypes(sums, [None if t is None else t.dtype for t in operands])


def _second_of_loss(
    objective: Objective, trace: Trace, tile: Tile, activation: Activation, q: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Compute δ of upstream gradients of 1, r, and the cotangent of each upstream gradient, entry by entry."""
    kept = trace.kept[0]
    if kept is None:
        delta, r = objective.curvature(trace, tile, q)
        return delta, r, q * delta
    kept = widen(kept)
    dy_cotangent = delta_of(q, kept, activation, plain=True)
    assert dy_cotangent is not None
    dy, of_loss = objective.curvature(trace, tile, dy_cotangent)
    of_g = dy_cotangent * dy
    delta, _, r = second_of_delta(dy, q, kept, activation, plain=True)
    # What reaches y through the loss joins r, which is of y or of z, as the layer keeps it.
    of_y, of_z = (plus(of_loss, r), None) if activation.df_y is not None else (of_loss, r)
    through_z = delta_of(of_y, kept, activation, plain=True, dz=of_z)
    assert through_z is not None
    return delta, through_z, of_g
