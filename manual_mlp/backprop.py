"""Explicit backpropagation: what ``loss.backward()`` does to a network, without a graph, a tile of rows at a time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from manual_mlp.activations.record import cast, widen
from manual_mlp.chunks import has_fast_products
from manual_mlp.dense import autocasting, check_tensor
from manual_mlp.dropout import draw_seed
from manual_mlp.fused import uncast
from manual_mlp.losses import Pair, RowLoss
from manual_mlp.modules import MLP
from manual_mlp.network import fits
from manual_mlp.output import (
    binary_cross_entropy,
    check_reduction,
    check_rows,
    cross_entropy,
    shaped,
    squared_error,
    torchs_binary_cross_entropy,
    torchs_cross_entropy,
    torchs_squared_error,
)
from manual_mlp.rules import rows
from manual_mlp.sweep import (
    Layer,
    Sum,
    Sums,
    Sweep,
    Total,
    Trace,
    backward,
    forward,
    grad_dtype,
    laid_out,
    masks_of,
    share_memory,
)
from manual_mlp.tiles import tiling_of
from manual_mlp.transforms import called_as_it_is, caller, has_class, has_gradient_hooks, traced

OfRows = Callable[[Tensor, Tensor], Tensor]  # of some rows of output and target
NOTHING = "expected a parameter, or the input, that requires grad; there is none"

# By name: what makes the loss and checks its target, torch's own loss, and its options.
LOSSES: dict[str, tuple[Callable[..., RowLoss], Callable[..., Tensor], tuple[str, ...]]] = {
    "cross_entropy": (cross_entropy, torchs_cross_entropy, ("weight", "ignore_index", "label_smoothing")),
    "squared_error": (squared_error, torchs_squared_error, ()),
    "binary_cross_entropy": (binary_cross_entropy, torchs_binary_cross_entropy, ("weight", "pos_weight")),
}


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
    parameters, autocast and dropout are honoured. An ``input`` that requires grad gets its gradient, and so does
    whatever it was computed from.

    A network that is not an :class:`~manual_mlp.MLP`, or one with a layer that was replaced, hooked or parametrised,
    is called as it is, on all rows, and autograd goes back through it from δ. So it is with DDP and FSDP, which
    see to their gradients themselves.

    Of hooks on the node of a leaf in the graph (``torch.autograd.graph.get_gradient_edge``) torch does not tell, and
    they are not called.

    Dropout zeroes what the network's own forward pass would zero, from the same random state, whatever the tiles.

    Args:
        mlp: the network.
        input: floating-point tensor.
        target: what the loss compares the output with; it may not require grad.
        loss: ``"cross_entropy"``, ``"squared_error"`` (the textbook's ½(y − t)²) or ``"binary_cross_entropy"`` (of
            logits); or a pair of functions ``(value, delta)`` of some rows of output and target: the value of each
            row, and the gradient of its sum by the output. They may be called from several threads, and the output
            they see is overwritten after the call.
        reduction: ``"mean"``, ``"sum"`` or ``"none"``, as in :func:`manual_mlp.linear_cross_entropy`,
            :func:`manual_mlp.dense_squared_error` and :func:`manual_mlp.linear_binary_cross_entropy`; of a pair, over
            rows.
        tile_rows: the rows to compute at once; None for the network's own, or what :mod:`manual_mlp.tiles` finds best.
        gradient: what comes back for the loss, as in :meth:`torch.Tensor.backward`: 1 if it is None. With
            ``reduction="none"`` it is a tensor of the losses' shape.
        return_output: whether to return the network's output too.
        options: of the loss: ``weight``, ``ignore_index`` and ``label_smoothing`` of cross_entropy; ``weight`` and
            ``pos_weight`` of binary_cross_entropy.

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
        RuntimeError: nothing requires grad; or the call is inside a ``torch.func`` transform, forward mode,
            ``torch.compile(fullgraph=True)`` or ``torch.inference_mode``.
    """
    if torch.compiler.is_dynamo_compiling():
        # Not as a decorator, which would import the compiler with this package.
        given = {"gradient": gradient, "return_output": return_output}
        by_itself: Any = torch.compiler.disable(backprop)  # type: ignore[no-untyped-call]
        return by_itself(mlp, input, target, loss, reduction, tile_rows, **given, **options)  # type: ignore[no-any-return]
    check_tensor("input", input)
    who = caller(input, target, *[t for t in (gradient, *options.values()) if isinstance(t, Tensor)])
    if who not in ("eager", "no grad", "torch") or traced():
        raise RuntimeError(
            "expected backprop outside of torch.func, forward mode and what a compiler or tracer follows"
        )
    if torch.is_inference_mode_enabled():
        raise RuntimeError("expected backprop outside of torch.inference_mode, where gradients cannot be kept")
    check_reduction(reduction)
    check_rows("tile_rows", tile_rows)
    make = _maker(loss, options)
    region = torch.get_autocast_dtype(input.device.type) if autocasting(input) else None
    layers = None if who == "torch" else _layers_of(mlp, input, region is not None)
    if layers is None:
        with torch.enable_grad():
            like = mlp(input)
        if not isinstance(like, Tensor):
            raise TypeError(f"expected a module that returns a tensor, got {type(like).__name__}")
        d_out = like.shape[-1]
    else:
        assert isinstance(mlp, MLP)
        like, d_out, tile_rows = input, layers[-1].w.size(0), tile_rows or mlp.tile_rows
    output: Tensor | None
    objective = _Objective(make(like, d_out, target, **options), reduction, gradient, like, d_out)
    if not isinstance(loss, str) and has_class(gradient):
        raise TypeError(f"expected a gradient without a class of its own for a pair, got {type(gradient).__name__}")
    if isinstance(loss, str) and (who == "torch" or has_class(like)):
        with torch.enable_grad():
            value = LOSSES[loss][1](like, target, reduction, **options)
        return _by_torch(like, value, gradient, return_output)
    with torch.no_grad(), nullcontext() if region is None else uncast(input):
        if layers is None:
            output = _by_autograd(like, objective)
        else:
            output = _by_tiles(layers, input, objective, tile_rows, return_output, region)
        dtype = like.dtype if region is None else widen(like[:0]).dtype
        if target.is_floating_point():
            for t in (target, options.get("weight") if loss == "cross_entropy" else None):
                dtype = dtype if t is None else torch.promote_types(dtype, t.dtype)
        result = objective.result(dtype)
    return result if output is None or not return_output else (result, output)


def _layers_of(mlp: nn.Module, input: Tensor, mixed: bool) -> list[Layer] | None:
    """List the layers of a network, unless it is to be called as it is."""
    layers = mlp.chain() if isinstance(mlp, MLP) and called_as_it_is(mlp) else None
    return layers if layers is not None and fits(layers, input, mixed, leaves=True) else None


def _by_tiles(
    layers: Sequence[Layer],
    input: Tensor,
    objective: _Objective,
    tile_rows: int | None,
    return_output: bool,
    region: torch.dtype | None,
) -> Tensor | None:
    """Add to the gradients, under autocast to a dtype or none; return the output if it is asked for."""
    dtype = region or input.dtype
    narrow = dtype.itemsize < 4
    products = torch.float32 if narrow and not has_fast_products(dtype, input.device.type) else dtype
    h = rows(input)
    tiling = tiling_of(layers, h, tile_rows)
    one = tiling.rows >= h.size(0)
    sums, totals = _sums(layers, one)
    needed = [w is not None or b is not None for w, b in sums]
    if not (input.requires_grad or True in needed):
        raise RuntimeError(NOTHING)
    lowest = -1 if input.requires_grad else needed.index(True)
    leaves = layers
    if region is not None or products is not dtype:
        layers = [layer.to(products) for layer in layers]
    seed = draw_seed(input.device) if any(layer.dropout for layer in layers) else None
    output: Tensor | None = None
    if one:
        trace = forward(layers, cast(h, products), None, masks_of(layers, seed))
        if return_output:
            output = trace.y.clone()
        dh: Tensor | None = backward(layers, trace, objective.of_all(trace.y, _is_free(trace)), sums, lowest, None)
    else:
        if return_output:
            output = h.new_empty(h.size(0), layers[-1].w.size(0))

        def dy_of(trace: Trace, at: slice) -> Tensor:
            if output is not None:
                output[at] = trace.y
            return objective.of_tile(trace.y, at, _is_free(trace))

        objective.cut(tiling.rows)
        of_others = [_sums(leaves, one)[0] for _ in range(1, tiling.workers)]
        dh = Sweep(layers, h, tiling, seed).backward(dy_of, [sums, *of_others], lowest)
    watched: dict[Tensor, Tensor] = {}
    if lowest < 0 and dh is not None:
        dh = cast(dh, input.dtype).view(input.shape).detach()  # no view
        if input.is_leaf and input not in totals:
            totals[input] = Total(input.dtype, dh)
        else:
            watched[input] = dh
    _accumulate(totals, watched)
    return None if output is None else cast(output, dtype).view(*input.shape[:-1], -1)


def _by_torch(
    y: Tensor, value: Tensor, gradient: Tensor | float | None, return_output: bool
) -> Tensor | tuple[Tensor, Tensor]:
    """Let autograd go back from a loss that something else than this package has computed."""
    if not value.requires_grad:
        raise RuntimeError(NOTHING)
    if isinstance(gradient, (int, float)):
        gradient = torch.full_like(value, gradient)
    torch.autograd.backward(value, gradient)
    return (value.detach(), y.detach()) if return_output else value.detach()


def _by_autograd(y: Tensor, objective: _Objective) -> Tensor:
    """Let autograd go back from the gradient by the output; return the output."""
    if not y.requires_grad:
        raise RuntimeError(NOTHING)
    output = y.detach()
    torch.autograd.backward(y, objective.of_all(rows(output), own=False).view(y.shape))
    return output


def _maker(loss: str | tuple[OfRows, OfRows], options: dict[str, Any]) -> Callable[..., RowLoss]:
    """Find what makes the loss, and see that it knows the options."""
    if isinstance(loss, str):
        if loss not in LOSSES:
            raise ValueError(f"expected a loss among {', '.join(LOSSES)}, or a pair of functions, got {loss!r}")
        make, _, known = LOSSES[loss]
    elif isinstance(loss, tuple) and len(loss) == 2 and all(map(callable, loss)):
        make, known = lambda like, _, target: Pair(_target_rows(like, target), *loss), ()
    else:
        raise TypeError(f"expected a loss by name, or a pair of functions (value, delta), got {loss!r}")
    for name, option in options.items():
        if isinstance(option, Tensor) and option.requires_grad:
            raise ValueError(f"expected {name} that requires no grad: loss.backward() would give it one")
        if name not in known:
            raise TypeError(f"expected options among {', '.join(known) or 'none'} for loss {loss!r}, got {name}")
    return make


def _target_rows(like: Tensor, target: Tensor) -> Tensor:
    """Give the target of a pair a row for each row of the input."""
    if not isinstance(target, Tensor):
        raise TypeError(f"expected target to be a tensor, got {type(target).__name__}")
    leading = like.shape[:-1]
    if target.shape[: len(leading)] != leading:
        raise ValueError(f"expected target {(*leading, '...')}, got {tuple(target.shape)}")
    return target.reshape(leading.numel(), *target.shape[len(leading) :])


class _Objective:
    """The loss of all rows, from that of some at a time, and what comes back for it."""

    def __init__(
        self, loss: RowLoss, reduction: str, gradient: Tensor | float | None, like: Tensor, d_out: int
    ) -> None:
        if loss.target.requires_grad:
            raise ValueError("expected a target that requires no grad: loss.backward() would give it one")
        _check_gradient(gradient, like)
        self.loss, self.like, self.mean = loss, like, reduction == "mean"
        self.gradient = float(gradient) if isinstance(gradient, int) else gradient
        self.each: Tensor | None = None  # what comes back for every row or entry, if they are not added up
        if reduction == "none" or isinstance(gradient, Tensor):
            shape = (*like.shape[:-1], *[d_out] * loss.by_entry) if reduction == "none" else ()
            if not isinstance(gradient, Tensor) or gradient.shape != shape:
                got = tuple(gradient.shape) if isinstance(gradient, Tensor) else gradient
                raise ValueError(f"expected a gradient {shape} for the loss, got {got}")
            if reduction == "none":
                self.each = rows(gradient.detach()) if loss.by_entry else gradient.detach().reshape(-1)

    def cut(self, rows: int) -> None:
        """Make room for the values of every row or entry, or for the sum of every tile of so many rows.

        Made here, because a small tensor that stayed behind each tile's large ones would keep their memory from the
        next tile's.
        """
        self.rows = rows
        if self.each is None:
            self.count, scale = self.loss.mean_now() if self.mean else (1.0, 1.0)
            g = self.gradient
            # The product with a scale is rounded once.
            self.scale = scale if g is None else scale * (g.double() if isinstance(g, Tensor) else g)
            tiles = -(-self.like.shape[:-1].numel() // rows)
            self.values = self.like.new_empty(tiles, dtype=torch.float64)
        else:
            self.values = torch.empty_like(self.each, dtype=widen(self.each[:0]).dtype)

    def of_all(self, y: Tensor, own: bool) -> Tensor:
        """Compute the gradient by the output of all rows, which may be overwritten if it is own."""
        z = self._to_overwrite(y, own)
        if self.each is not None:
            self.values, delta = self.loss.weighted(z, slice(None), self.each)
        else:
            self.values, delta = self.loss.reduced(z, self.mean, self.gradient)
        return cast(delta, y.dtype)

    def of_tile(self, y: Tensor, at: slice, own: bool) -> Tensor:
        """Compute the gradient by the output of a tile, which may be overwritten if it is own."""
        z = self._to_overwrite(y, own)
        if self.each is None:
            total, delta = self.loss.summed(z, at)
            self.values[at.start // self.rows] = total / self.count
            return cast(delta.mul_(self.scale), y.dtype)
        self.values[at], delta = self.loss.weighted(z, at, self.each[at])
        return cast(delta, y.dtype)

    def _to_overwrite(self, y: Tensor, own: bool) -> Tensor:
        z = widen(y)
        return z if own or z is not y or not self.loss.overwrites(z) else z.clone()

    def result(self, dtype: torch.dtype) -> Tensor:
        """Put the values together."""
        if self.each is not None:
            return shaped(cast(self.values, dtype), self.like)
        return cast(self.values.sum() if self.values.dim() else self.values, dtype)


def _check_gradient(gradient: Any, like: Tensor) -> None:
    """Raise an error unless it is None, a number, or a real tensor on the device of the output."""
    if isinstance(gradient, Tensor):
        if gradient.is_complex() or gradient.dtype is torch.bool:
            raise TypeError(f"expected gradient of a real dtype, got {gradient.dtype}")
        if gradient.layout is not torch.strided:
            raise TypeError(f"expected gradient of layout torch.strided, got {gradient.layout}")
        if gradient.device != like.device:
            raise ValueError(f"expected gradient on {like.device}, got {gradient.device}")
    elif not (gradient is None or isinstance(gradient, (int, float))):
        raise TypeError(f"expected gradient to be a tensor, a number or None, got {gradient!r}")


def _is_free(trace: Trace) -> bool:
    """Tell whether the output may be overwritten, as backward does without it."""
    kept = trace.kept[-1]
    return kept is None or not share_memory(trace.y, kept)


def _sums(layers: Sequence[Layer], one: bool) -> tuple[Sums, dict[Tensor, Total]]:
    """Make a sum for each parameter that requires grad, and list what is not added to ``.grad`` itself.

    That is what many tiles are added to, what a hook waits for, and what a gradient cannot take in as it is.
    """
    totals: dict[Tensor, Total] = {}

    def of(p: Tensor | None) -> Sum | None:
        if p is None or not p.requires_grad:
            return None
        if one and not has_gradient_hooks(p) and _is_addable(p.grad):
            return Sum(p)
        if p not in totals:
            totals[p] = Total(p.dtype, None) if one else Total.of(p)
        return Sum(totals[p])

    return [(of(w), of(b)) for w, b, *_ in layers], totals


def _is_addable(grad: Tensor | None) -> bool:
    """Tell whether a gradient can be added to in place, if there is one."""
    return grad is None or not (
        grad.layout is not torch.strided
        or has_class(grad)
        or grad.is_inference()
        or any(stride == 0 and size > 1 for size, stride in zip(grad.shape, grad.stride(), strict=True))
    )


def _accumulate(totals: dict[Tensor, Total], watched: dict[Tensor, Tensor]) -> None:
    """Add the totals to ``.grad``; through autograd, in one pass with what is watched, where a hook waits for them."""
    for p, total in totals.items():
        if total.grad is None:
            continue
        if p.grad is not None and not _is_addable(p.grad):
            p.grad = laid_out(p.grad.to_dense().clone(memory_format=torch.contiguous_format), p)
        if has_gradient_hooks(p):
            grad = cast(total.grad, grad_dtype(p))
            watched[p] = watched[p] + grad if p in watched else grad
        elif p.grad is None:
            p.grad = laid_out(cast(total.grad, grad_dtype(p)), p)
        else:
            p.grad += total.grad
    if watched:
        torch.autograd.backward(list(watched), list(watched.values()))
