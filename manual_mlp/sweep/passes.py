"""Some rows of a network, forward and backward: the loops over its layers, whose steps are ``formulas/layer.py``'s."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor

from manual_mlp.activations import IDENTITY
from manual_mlp.dropout import Mask, drop
from manual_mlp.formulas.layer import Layer, db_of, delta_of, dh_of, dw_of, y_of, z_of
from manual_mlp.sweep.sums import Sums, add
from manual_mlp.transforms import operations_are_watched

Masks = Sequence[Mask | None]


class Trace(NamedTuple):
    """What forward leaves for backward, an entry a layer: h; y or z, None for a last identity; and dropout's masks."""

    h: list[Tensor]
    kept: list[Tensor | None]
    masks: Masks
    y: Tensor

    def owns_output(self) -> bool:
        """Tell whether y may be overwritten: backward does without it, and no mode has kept it."""
        kept = self.kept[-1]
        return (kept is None or not share_memory(self.y, kept)) and not operations_are_watched()


def masks_of(layers: Sequence[Layer], seed: Tensor | None, row: int = 0) -> list[Mask | None]:
    """List dropout's masks of rows from this one on, None where nothing is zeroed."""
    if seed is None:
        return [None] * len(layers)
    return [Mask(seed, k, layer.dropout, row) if layer.dropout else None for k, layer in enumerate(layers)]


def forward(layers: Sequence[Layer], h: Tensor, masks: Masks) -> Trace:
    """Run the network on rows h (n, D_in)."""
    inputs: list[Tensor] = []
    kept: list[Tensor | None] = []
    made: list[Mask | None] = []
    for k, (w, b, activation, _) in enumerate(layers):
        inputs.append(h)
        z = z_of(h, w, b)
        y = y_of(z, activation)
        kept.append(z if activation.df_y is None else y)
        mask = masks[k]
        mask = mask.made(y) if mask else None
        made.append(mask)
        h = drop(y, mask) if mask else y
    if activation is IDENTITY:
        kept[-1] = None
    return Trace(inputs, kept, made, h)


def forward_again(layers: Sequence[Layer], h: Tensor, masks: Masks) -> Trace:
    """Run the network on rows as far as backward needs it: a last identity needs no z."""
    if layers[-1].activation is not IDENTITY:
        return forward(layers, h, masks)
    trace = Trace([], [], [], h) if len(layers) == 1 else forward(layers[:-1], h, masks)
    return Trace([*trace.h, trace.y], [*trace.kept, None], [*trace.masks, None], trace.y)


def backward(layers: Sequence[Layer], trace: Trace, dy: Tensor, sums: Sums, lowest: int) -> Tensor | None:
    """Add to the sums of every layer down to the lowest; return dh if that is -1, the input."""
    for k in range(len(layers) - 1, max(lowest, 0) - 1, -1):
        w, _, activation, _ = layers[k]
        delta = delta_of(dy, trace.kept[k], activation, plain=True)
        assert delta is not None
        del dy
        dw, db = sums[k]
        if dw is not None:
            add(dw, dw_of, delta, trace.h[k])
        if db is not None:
            add(db, db_of, delta)
        if k == lowest:
            return None
        dy = dh_of(delta, w)
        del delta
        mask = trace.masks[k - 1] if k else None
        if mask is not None:
            dy = drop(dy, mask)
    return dy


def share_memory(a: Tensor, b: Tensor) -> bool:
    """Tell whether to overwrite one tensor may be to overwrite the other."""
    return a is b or a.untyped_storage().data_ptr() == b.untyped_storage().data_ptr() != 0
