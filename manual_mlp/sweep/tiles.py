"""The tiles of all rows, one after the other."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from manual_mlp.formulas.layer import Layer
from manual_mlp.precision import cast
from manual_mlp.sweep.passes import Masks, Trace, backward, forward, forward_again, masks_of
from manual_mlp.sweep.sums import Sums
from manual_mlp.sweep.tiling import Tiling


class Tile(NamedTuple):
    """Some of the rows: which, h of them, and dropout's masks."""

    at: slice
    h: Tensor
    masks: Masks


class Sweep:
    """Passes over all rows h (N, D_in) of a network, a tile at a time, without grad mode.

    Args:
        layers: in the dtype of the products.
        seed: of dropout's masks; None where there are none.
    """

    def __init__(self, layers: Sequence[Layer], h: Tensor, tiling: Tiling, seed: Tensor | None = None) -> None:
        self.layers, self.h, self.rows, self.seed = layers, h, tiling.rows, seed
        self.dtype = layers[0].w.dtype

    def forward(self) -> Tensor:
        """Compute y (N, D_out)."""
        y = self.h.new_empty(len(self.h), len(self.layers[-1].w))

        def work(tile: Tile) -> None:
            y[tile.at] = self.trace(tile).y

        self.run(work)
        return y

    def backward(self, dy: Tensor | Callable[[Trace, Tile], Tensor], sums: Sums, lowest: int) -> Tensor | None:
        """Run forward and backward, and add to the sums; return dh if the lowest layer is -1, the input.

        Args:
            dy: the gradient by y (N, D_out), or what makes that of a tile, to be overwritten, from its forward pass.
        """
        dh = self.h.new_empty(self.h.shape, dtype=self.dtype) if lowest < 0 else None

        def work(tile: Tile) -> None:
            if isinstance(dy, Tensor):
                trace = forward_again(self.layers, tile.h, tile.masks)
                found = backward(self.layers, trace, dy[tile.at], sums, lowest)
            else:
                trace = self.trace(tile)
                found = backward(self.layers, trace, dy(trace, tile), sums, lowest)
            if dh is not None and found is not None:
                dh[tile.at] = found

        self.run(work)
        return dh

    def trace(self, tile: Tile) -> Trace:
        """Run the network on a tile."""
        return forward(self.layers, tile.h, tile.masks)

    def run(self, work: Callable[[Tile], None]) -> None:
        """Do the work of each tile."""
        n = len(self.h)
        with torch.no_grad():
            for start in range(0, n, self.rows):
                at = slice(start, min(start + self.rows, n))
                work(Tile(at, cast(self.h[at], self.dtype), masks_of(self.layers, self.seed, start)))
