"""The loss of all rows, from that of some at a time, and what comes back for it."""

from __future__ import annotations

import torch
from torch import Tensor

from manual_mlp.formulas.losses import Loss, RowLoss, total_of
from manual_mlp.precision import widen, widened
from manual_mlp.sweep.passes import Trace
from manual_mlp.sweep.tiles import Tile


class Objective:
    """A loss that is added up, or whose values are kept apart, over rows that come a tile at a time.

    Args:
        loss: of some of the rows.
        like: on the device and in the dtype of the output, with its rows.
        mean: whether the sum is divided by what counts.
        apart: the shape of the values ``(N,)`` or ``(N, D_out)`` if they are not added up.
        gradient: what comes back for the sum, or for each of the values; 1 if it is None.
    """

    def __init__(
        self,
        loss: RowLoss,
        like: Tensor,
        mean: bool = False,
        apart: tuple[int, ...] | None = None,
        gradient: Tensor | float | None = None,
    ) -> None:
        self.loss, self.like, self.mean, self.apart, self.gradient = loss, like, mean, apart, gradient

    def cut(self, rows: int) -> None:
        """Make room for the values of every row or entry, or for the sum of every tile of so many rows.

        Made here, because a small tensor that stayed behind each tile's large ones would keep their memory from the
        next tile's.
        """
        self.rows = rows
        if self.apart is not None:
            self.values = self.like.new_empty(self.apart, dtype=widened(self.like.dtype))
            return
        self.values = self.like.new_empty(-(-len(self.like) // rows), dtype=torch.float64)
        self.count: Tensor | float
        scale: Tensor | float | None
        self.count, scale = self.loss.mean_now() if self.mean else (1.0, None)
        g = self.gradient.double() if isinstance(self.gradient, Tensor) else self.gradient
        # The product with a scale is rounded once.
        self.scale = scale if g is None else g if scale is None else scale * g

    def of_all(self, y: Tensor, own: bool) -> Tensor:
        """Compute the gradient by the output of all rows, which may be overwritten itself if it is own."""
        wide = widen(y)
        wide = wide if own or wide is not y or self.loss.spares else wide.clone()
        if self.apart is not None:
            self.values, dy = self._each(wide, slice(None))
        else:
            self.values, dy = self.loss.reduced(wide, self.mean, self.gradient)
        return _narrow(dy, y, own)

    def of_tile(self, trace: Trace, tile: Tile) -> Tensor:
        """Compute the gradient by the output of a tile, which may be overwritten."""
        y = self._to_overwrite(trace)
        if self.apart is not None:
            self.values[tile.at], dy = self._each(y, tile.at)
        else:
            total, dy = self.loss.summed(y, tile.at)
            self._add(total, tile)
            dy = dy if self.scale is None else dy.mul_(self.scale)
        return _narrow(dy, trace.y, trace.owns_output())

    def weighted(self, trace: Trace, tile: Tile, g: Tensor) -> Tensor:
        """Compute the same for upstream gradients g of all rows or entries, and leave the values alone."""
        _, dy = self.loss.weighted(self._to_overwrite(trace), tile.at, g[tile.at])
        return _narrow(dy, trace.y, trace.owns_output())

    def look(self, trace: Trace, tile: Tile) -> None:
        """Compute the values of a tile, and no gradient."""
        values, _ = self.loss.values(self._to_overwrite(trace), tile.at, False)
        if self.apart is not None:
            self.values[tile.at] = values
        else:
            self._add(total_of(values), tile)

    def curvature(self, trace: Trace, tile: Tile, q: Tensor) -> tuple[Tensor, Tensor]:
        """Compute the gradient by the output of a tile for upstream gradients of 1, and that of its product with q."""
        assert isinstance(self.loss, Loss)
        return self.loss.curvature(self._to_overwrite(trace), q, tile.at)

    def result(self) -> Tensor:
        """Put the values together."""
        return self.values if self.apart is not None else self.values.sum() if self.values.dim() else self.values

    def _each(self, y: Tensor, at: slice) -> tuple[Tensor, Tensor]:
        if isinstance(self.gradient, Tensor):
            return self.loss.weighted(y, at, self.gradient[at])
        values, dy = self.loss.values(y, at, True)
        assert dy is not None
        return values, dy

    def _add(self, total: Tensor, tile: Tile) -> None:
        self.values[tile.at.start // self.rows] = total / self.count

    def _to_overwrite(self, trace: Trace) -> Tensor:
        """Give the output of a tile in float32 at least, in memory that the loss may overwrite."""
        y = trace.y
        wide = widen(y)
        return wide if wide is not y or trace.owns_output() else wide.clone()


def _narrow(dy: Tensor, y: Tensor, own: bool) -> Tensor:
    """Turn a gradient into the dtype of the output, in its memory if that is own."""
    return dy if dy.dtype == y.dtype else y.copy_(dy) if own else dy.to(y.dtype)
