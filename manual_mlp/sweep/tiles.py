"""The tiles of all rows, one after the other."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from manual_mlp.formulas.layer import Layer
from manual_mlp.precision import cast
from manual_mlp.sweep.passes import Masks, Trace, Wanted, Workspace, backward, forward, forward_again, masks_of
from manual_mlp.sweep.sums import Sums
from manual_mlp.sweep.tiling import Tiling
from manual_mlp.transforms import operations_are_watched


class Tile(NamedTuple):
    """Some of the rows: which, h of them, in what memory, and dropout's masks."""

    at: slice
    h: Tensor
    space: Workspace | None
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
                trace, dy_here, own = forward_again(self.layers, tile.h, tile.space, tile.masks), dy[tile.at], False
            else:
                trace = self.trace(tile)
                dy_here, own = dy(trace, tile), True
            wanted = Wanted(sums, lowest, None if dh is None else dh[tile.at])
            backward(self.layers, trace, dy_here, wanted, tile.space, own)

        self.run(work, backward=True, loss=not isinstance(dy, Tensor))
        return dh

    def trace(self, tile: Tile) -> Trace:
        """Run the network on a tile."""
        return forward(self.layers, tile.h, tile.space, tile.masks)

    def run(self, work: Callable[[Tile], None], backward: bool = False, loss: bool = False) -> None:
        """Do the work of each tile."""
        n = len(self.h)
        rows = min(self.rows, n)
        spare = None if operations_are_watched() else Workspace.of(self.layers, rows, backward, loss)
        with torch.no_grad():
            for start in range(0, n, self.rows):
                at = slice(start, min(start + self.rows, n))
                h = cast(self.h[at], self.dtype)
                space = spare.first(len(h)) if spare is not None and len(h) != rows else spare
                work(Tile(at, h, space, masks_of(self.layers, self.seed, start)))
