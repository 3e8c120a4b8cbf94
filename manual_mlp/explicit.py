"""Explicit backpropagation: what ``loss.backward()`` does to a network, without a graph, a tile of rows at a time."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from manual_mlp.checks import check_options, check_rows, check_tensor, network_fits
from manual_mlp.dropout import draw_seed
from manual_mlp.engines import native
from manual_mlp.formulas.layer import Layer
from manual_mlp.formulas.products import rows
from manual_mlp.losses import LOSSES, Criterion
from manual_mlp.modules import MLP
from manual_mlp.objectives import OfRows, known, objective_of
from manual_mlp.output import shaped
from manual_mlp.precision import autocast_dtype, autocasting, cast, product_dtype, uncast, widened
from manual_mlp.processes import warn_of_own_gradients
from manual_mlp.sweep.objective import Objective
from manual_mlp.sweep.passes import Trace, backward, forward, masks_of
from manual_mlp.sweep.sums import Total, accumulate, finish, sums_of
from manual_mlp.sweep.tiles import Sweep, Tile
from manual_mlp.sweep.tiling import shared_tiling, tiling_of
from manual_mlp.transforms import Caller, by_itself, called_as_it_is, caller, has_class, traced

NOTHING = "expected a parameter, or the input, that requires grad; there is none"


@by_itself(
    "backprop adds to .grad, which no graph shows; without fullgraph=True it runs between two graphs, and outside of "
    "the compiled function it breaks none"
)
def backprop(
    mlp: nn.Module,
    input: Tensor,
    target: Tensor,
    loss: str | tuple[OfRows, OfRows] = "cross_entropy",
    reduction: str = "mean",
    tile_rows: int | None = None,
    *,
    gradient: Tensor | float | None = None,
    return_output: bool = False,
    **options: Any,
) -> Tensor | tuple[Tensor, Tensor]:
    r"""Add the gradients of a loss to ``.grad``, as ``loss.backward()`` would, without an autograd graph.

    The network is run forward and backward on a tile of rows, then on the next: a gradient is a sum over rows, so
    activations never leave the cache, and memory does not grow with the batch. Frozen and shared parameters, hooks on
    parameters and autocast are honoured. Hooks on a leaf's node in the graph
    (``torch.autograd.graph.get_gradient_edge``) cannot be seen, and are not called. Dropout zeroes what the network's
    own forward pass would zero, from the same random state, whatever the tiles. An ``input`` that requires grad gets
    its gradient, and so does whatever it was computed from.

    A network that is not an :class:`~manual_mlp.MLP`, or one with a layer that was replaced, hooked or parametrised,
    is called as it is, on all rows, and autograd goes back through it from δ. So it is with DDP and FSDP, which
    see to their gradients themselves; of the module inside of DDP they are not shared, and a warning says so once.

    Args:
        mlp: the network.
        input: floating-point tensor.
        target: what the loss compares the output with; it may not require grad.
        loss: ``"cross_entropy"``, ``"squared_error"`` (the textbook's ½(y − t)²) or ``"binary_cross_entropy"`` (of
            logits); or a pair of functions ``(value, delta)`` of some rows of output and target: the value of each
            row, and the gradient of its sum by the output. The output they see is overwritten after the call.
        reduction: ``"mean"``, ``"sum"`` or ``"none"``, as in :func:`manual_mlp.linear_cross_entropy` and the functions
            of the other losses; of a pair, over rows.
        tile_rows: the rows at once; None for the network's own, or what :mod:`manual_mlp.sweep.tiling` finds best.
        gradient: what comes back for the loss, as in :meth:`torch.Tensor.backward`: 1 if it is None. With
            ``reduction="none"`` it is a tensor of the losses' shape.
        return_output: whether to return the network's output too.
        options: of the loss: ``weight``, ``ignore_index``, ``label_smoothing``, ``row_weight`` and ``z_loss`` of
            cross_entropy; ``weight`` and ``pos_weight`` of binary_cross_entropy.

    Shape:
        - input: :math:`(*, D_{in})`
        - target: :math:`(*)` for classes, else :math:`(*, D_{out})`; for a pair, :math:`(*, \dots)`
        - value: :math:`(n, D_{out}), (n, \dots) \to (n)`
        - delta: :math:`(n, D_{out}), (n, \dots) \to (n, D_{out})`
        - Output: the loss, a scalar unless ``reduction`` is ``"none"``; with ``return_output``, the loss and the
          output :math:`(*, D_{out})`. Both are detached.

    Raises:
        ValueError: shapes or devices do not fit together, an option is out of range, or the loss is not known.
        TypeError: dtypes differ, or something is of a wrong type.
        IndexError: a class is out of range (on a CPU; CUDA reports it as torch does, by an assertion).
        RuntimeError: nothing requires grad; or the call is inside ``torch.func``, forward mode,
            ``torch.compile(fullgraph=True)`` or ``torch.inference_mode``.

    Example::

        mlp = manual_mlp.MLP([784, 128, 10])
        loss = backprop(mlp, torch.randn(64, 784), torch.randint(10, (64,)))
        assert mlp.layers[0].weight.grad.shape == (128, 784)
    """
    warn_of_own_gradients(mlp)
    if native.doors is not None and isinstance(loss, str):
        quick = _natively(mlp, input, tile_rows, (loss, target, options), (reduction, gradient, return_output))
        if quick is not None:
            return quick if return_output else quick[0]
    who = _caller(input, target, gradient, *options.values())
    check_options(reduction)
    check_rows("tile_rows", tile_rows)
    criterion = Criterion(known(loss, options), target, reduction, options)
    way = (None if who == "torch" else _Network.of(mlp, input, tile_rows)) or _Called.of(mlp, input, who)
    value, output = way.step(criterion, gradient, return_output)
    return value if output is None or not return_output else (value, output)


def _natively(
    mlp: nn.Module,
    input: Tensor,
    tile_rows: int | None,
    of: tuple[str, Tensor, dict[str, Any]],
    given: tuple[str, Tensor | float | None, bool],
) -> tuple[Tensor, Tensor] | None:
    """Step natively in one call, where nothing is unusual; None where it is to be looked at."""
    loss, target, options = of
    reduction, gradient, return_output = given
    layers = mlp.chain() if isinstance(mlp, MLP) and called_as_it_is(mlp) else None
    if (
        layers is None
        or torch.is_inference_mode_enabled()
        or traced()
        or not isinstance(input, Tensor)
        or not input.dim()
        or (tile_rows is not None and (type(tile_rows) is not int or tile_rows < 1))
        or (options and not (loss in LOSSES and options.keys() <= set(LOSSES[loss].options)))
    ):
        return None
    assert isinstance(mlp, MLP)
    found = native.doors.backprop(
        input,
        layers,
        shared_tiling(layers, input, tile_rows or mlp.tile_rows),
        return_output,
        loss,
        target,
        options.get("weight"),
        options.get("pos_weight"),
        options.get("row_weight"),
        options.get("ignore_index"),
        options.get("label_smoothing", 0.0),
        options.get("z_loss", 0.0),
        reduction,
        gradient,
    )
    if found is None:
        return None
    value, output, dh, gradients = found
    if dh is not None or gradients:
        finish(input, dh, gradients)
    return value, output


def _caller(input: Tensor, *others: Any) -> Caller:
    """Find out who calls, and refuse where a gradient could not be kept."""
    check_tensor("input", input)
    who = caller(input, *[t for t in others if isinstance(t, Tensor)])
    if who != "eager" and (who != "torch" or traced()):
        raise RuntimeError(
            "expected backprop outside of torch.func, forward mode and what a compiler or tracer follows"
        )
    if torch.is_inference_mode_enabled():
        raise RuntimeError("expected backprop outside of torch.inference_mode, where gradients cannot be kept")
    return who


class _Network(NamedTuple):
    """A network whose layers are known: it is run a tile of rows at a time, under autocast to a dtype or none."""

    layers: list[Layer]
    like: Tensor
    tile_rows: int | None
    region: torch.dtype | None

    @classmethod
    def of(cls, mlp: nn.Module, input: Tensor, tile_rows: int | None) -> _Network | None:
        """List the layers, unless the network is to be called as it is."""
        region = autocast_dtype(input)
        layers = mlp.chain() if isinstance(mlp, MLP) and called_as_it_is(mlp) else None
        if layers is None or not network_fits(layers, input, region is not None, leaves=True):
            return None
        assert isinstance(mlp, MLP)
        return cls(layers, input, tile_rows or mlp.tile_rows, region)

    def step(
        self, criterion: Criterion, gradient: Tensor | float | None, return_output: bool
    ) -> tuple[Tensor, Tensor | None]:
        """Add to the gradients; return the loss, and the output if it is asked for."""
        objective = objective_of(criterion, self.like, self.layers[-1].w.size(0), gradient)
        mixed = self.region is not None
        if native.doors is not None:
            found = self._natively(objective, return_output)
            if found is not None:
                finish(self.like, *found[2:])
                return _result(objective, self.like, mixed), found[1]
        with torch.no_grad(), uncast(self.like) if mixed else nullcontext():
            output = self._back(objective, return_output)
        return _result(objective, self.like, mixed), output

    def _natively(self, objective: Objective, return_output: bool) -> Any:
        """Step natively with a loss in Python, a tile at a time; None where plain is to step."""
        layers, input, tile_rows, _ = self
        tiling = shared_tiling(layers, input, tile_rows)

        def dy_of(y: Tensor, start: int, free: bool) -> Tensor:
            if start == 0:
                objective.cut(tiling.rows if tiling else len(y))
            trace = Trace([], [None], [None], y if free else y.clone())
            dy = objective.of_tile(trace, Tile(slice(start, start + len(y)), y, [None]))
            return dy if dy.layout is torch.strided else dy.to_dense()

        with torch.no_grad():
            return native.doors.backprop_by(input, layers, tiling, return_output, dy_of)

    def _back(self, objective: Objective, return_output: bool) -> Tensor | None:
        input, dtype = self.like, self.region or self.like.dtype
        products, h = product_dtype(dtype, input.device), rows(input)
        tiling = tiling_of(self.layers, h, self.tile_rows)
        one = tiling.rows >= h.size(0)
        sums, totals = sums_of(self.layers, one)
        needed = [w is not None or b is not None for w, b in sums]
        if not (input.requires_grad or True in needed):
            raise RuntimeError(NOTHING)
        lowest = -1 if input.requires_grad else needed.index(True)
        layers = self.layers
        if self.region is not None or products is not dtype:
            layers = [layer.to(products) for layer in layers]
        seed = draw_seed(input.device) if any(layer.dropout for layer in layers) else None
        output: Tensor | None = None
        if one:
            trace = forward(layers, cast(h, products), masks_of(layers, seed))
            output = trace.y.clone() if return_output else None
            dh = backward(layers, trace, objective.of_all(trace.y, trace.owns_output()), sums, lowest)
        else:
            output = h.new_empty(h.size(0), layers[-1].w.size(0)) if return_output else None

            def dy_of(trace: Trace, tile: Tile) -> Tensor:
                if output is not None:
                    output[tile.at] = trace.y
                return objective.of_tile(trace, tile)

            objective.cut(tiling.rows)
            dh = Sweep(layers, h, tiling, seed).backward(dy_of, sums, lowest)
        watched: dict[Tensor, Tensor] = {}
        if dh is not None:
            dh = cast(dh, input.dtype).view(input.shape).detach()  # no view
            if input.is_leaf and input not in totals:
                totals[input] = Total(input.dtype, dh)
            else:
                watched[input] = dh
        accumulate(totals, watched)
        return None if output is None else cast(output, dtype).view(*input.shape[:-1], -1)


class _Called(NamedTuple):
    """A network that is called as it is, on all rows: autograd goes back through it."""

    like: Tensor
    by_torch: bool  # whether torch's own loss is asked for

    @classmethod
    def of(cls, mlp: nn.Module, input: Tensor, who: Caller) -> _Called:
        """Call the network."""
        with torch.enable_grad():
            y = mlp(input)
        if not isinstance(y, Tensor):
            raise TypeError(f"expected a module that returns a tensor, got {type(y).__name__}")
        return cls(y, who == "torch" or has_class(y))

    def step(
        self, criterion: Criterion, gradient: Tensor | float | None, return_output: bool
    ) -> tuple[Tensor, Tensor | None]:
        """Let autograd go back; return the loss and the output."""
        y = self.like
        objective = objective_of(criterion, y, y.shape[-1], gradient)
        if not y.requires_grad:
            raise RuntimeError(NOTHING)
        if self.by_torch and criterion.loss.torchs is not None:
            with torch.enable_grad():
                value = criterion.torchs(y)
            dy = torch.full_like(value, gradient) if isinstance(gradient, (int, float)) else gradient
            torch.autograd.backward(value, dy)
            return value.detach(), y.detach()
        if has_class(gradient):
            raise TypeError(f"expected a gradient without a class of its own for a pair, got {type(gradient).__name__}")
        output = y.detach()
        mixed = autocasting(y)
        with torch.no_grad(), uncast(y):
            torch.autograd.backward(y, objective.of_all(rows(output), own=False).view(y.shape))
        return _result(objective, y, mixed), output


def _result(objective: Objective, like: Tensor, mixed: bool) -> Tensor:
    """Give the loss the shape and the dtype of torch's; ``mixed`` tells that autocast was on."""
    dtype = objective.loss.dtype_of(widened(like.dtype) if mixed else like.dtype)
    return shaped(cast(objective.result(), dtype), like)
