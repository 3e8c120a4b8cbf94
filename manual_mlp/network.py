"""A whole network as one Function: where that pays, a tile of rows at a time, with nothing but the input kept.

dW of a layer: ``dw_of`` of ``formulas/layer.py`` (B3).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd import Function

from manual_mlp.activations import IDENTITY, Activation
from manual_mlp.activations.entrywise import value
from manual_mlp.composite import gradients_by_autograd
from manual_mlp.dropout import Mask, drop
from manual_mlp.engines import native
from manual_mlp.engines.native.handed import Asked, Tensors, answers, record_of
from manual_mlp.formulas.layer import Layer, y_of
from manual_mlp.formulas.products import plus, rows
from manual_mlp.layer import Kept, dense, layer_backward
from manual_mlp.precision import cast, uncast
from manual_mlp.sweep.passes import forward, masks_of, share_memory
from manual_mlp.sweep.sums import Sum, Sums, Total
from manual_mlp.sweep.tiles import Sweep
from manual_mlp.sweep.tiling import shared_tiling, tiling_of
from manual_mlp.transforms import below_functions, is_plain, needed_now

Needed = tuple[bool, bool, bool]  # dh, dw, db


def network(layers: Sequence[Layer], input: Tensor, tile_rows: int | None, seed: Tensor | None) -> Tensor | None:
    """Run a network that fits its input, outside of any transform and of autocast; the seed is that of dropout.

    None tells that its layers are to be run one by one: no gradient is asked for, and all rows are one tile.

    Shape:
        - input: :math:`(*, D_{in})`
        - Output: :math:`(*, D_{out})`
    """
    h = rows(input)
    recorded = torch.is_grad_enabled()
    tiling = tiling_of(layers, h, tile_rows, recompute=recorded)
    one = tiling.rows >= h.size(0)
    if not recorded:
        if one:
            return None
        y = Sweep(layers, h, tiling, seed).forward()
    elif one or _keep_more(layers, h):
        y = _NetworkFunction.apply(*_operands(h, layers), layers, seed)[0]
    else:
        h, layers = _unchanging(h, layers)
        y = _TiledFunction.apply(*_operands(h, layers), layers, tiling, seed)
    return y if input.dim() == 2 else y.view(*input.shape[:-1], y.shape[-1])


def natively(layers: Sequence[Layer], input: Tensor, tile_rows: int | None) -> Tensor | None:
    """Run a network natively; None tells that plain is to run it."""
    if not isinstance(input, Tensor) or not input.dim():
        return None
    tiling = shared_tiling(layers, input, tile_rows, torch.is_grad_enabled())
    return native.doors.network(input, layers, tiling)  # type: ignore[no-any-return]


def lowest_of(needed: Sequence[Needed]) -> int:
    """Return the first layer with a parameter whose gradient is needed, or -1 if the input's is."""
    return -1 if needed[0][0] else next(k for k, (_, *parameters) in enumerate(needed) if any(parameters))


class _Form(NamedTuple):
    """A layer without its tensors, for a node that saves them."""

    activation: Activation
    dropout: float
    biased: bool


class _NetworkFunction(Function):
    # All rows are one tile. What a layer keeps is an output too, which network() hides: see DenseFunction.

    @staticmethod
    def forward(ctx: Any, *args: Any) -> Any:
        h, *_, layers, seed = args
        trace = forward(layers, h, masks_of(layers, seed))
        y, last = trace.y, trace.kept[-1]
        if last is not None and layers[-1].activation.df_y is None and share_memory(y, last):
            y = y.clone()  # a user's f may return z
        ctx.forms = _forms(layers)
        needed = _by_layer(ctx.forms, ctx.needs_input_grad)
        of_h, of_w, of_kept = _kept(ctx.forms, needed)
        outputs, masks = trace.kept, trace.masks
        # Where no gradient goes further down, a layer's input is a constant, and is kept itself.
        ctx.constant = [not need_dh for need_dh, _, _ in needed]
        if True in ctx.constant[1:]:
            fixed = [*ctx.constant[1:], False]
            outputs = [x if k else t for x, t, k in zip([*trace.h[1:], y], outputs, fixed, strict=True)]
            masks = [None if k else mask for mask, k in zip(masks, fixed, strict=True)]
        factor = [mask.factor if mask else None for mask in masks]
        ctx.masks = [mask and mask._replace(factor=None) for mask in masks]
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(
            h if of_h else None,
            *(layer.w if keep else None for layer, keep in zip(layers, of_w, strict=True)),
            *(t if keep else None for t, keep in zip(outputs, of_kept, strict=True)),
            *factor,
        )
        return y, *(t for t in trace.kept if t is not None and t is not y)

    @staticmethod
    @below_functions
    def backward(ctx: Any, *cotangents: Tensor | None) -> Any:
        forms: list[_Form] = ctx.forms
        count = len(forms)
        h, *saved = ctx.saved_tensors
        factor = saved[2 * count :]
        masks = [mask and mask._replace(factor=f) for mask, f in zip(ctx.masks, factor, strict=True)]
        of = _Saved(forms, ctx.constant, masks, h, saved[:count], saved[count : 2 * count])
        return *_gradients(of, cotangents, needed_now(ctx, len(ctx.needs_input_grad) - 2)), None, None


class _Saved(NamedTuple):
    """What all rows at once have kept, of each layer: whether its input is a constant, its mask, its weight, z or y."""

    forms: Sequence[_Form]
    constant: Sequence[bool]
    masks: Sequence[Mask | None]
    h: Tensor | None
    weights: Sequence[Tensor | None]
    kept: Sequence[Tensor | None]


def _gradients(of: _Saved, cotangents: Sequence[Tensor | None], needed: Sequence[bool]) -> list[Tensor | None]:
    """Compute what is needed of the gradients of h and the parameters from those of y and of what is kept."""
    forms, (dy, *hidden), plain = of.forms, cotangents, is_plain(*cotangents)
    by_layer = _by_layer(forms, needed)
    found: list[Tensor | None] = []
    for k in reversed(range(len(forms))):
        dz = hidden[k] if k < len(hidden) else None
        if forms[k].activation.df_y is not None:
            dy, dz = dz if dy is None else plus(dy, dz), None
        mask = of.masks[k - 1] if k else None
        dw = db = None
        if any(by_layer[k]) and (dy is not None or dz is not None):
            h_k = of.h
            if k and by_layer[k][1]:
                h_k = of.kept[k - 1]
                assert h_k is not None
                if not of.constant[k]:
                    h_k = _output(forms[k - 1].activation, h_k, plain)
                    h_k = h_k if mask is None else drop(h_k, mask)
            kept = Kept(forms[k].activation, h_k, of.weights[k], of.kept[k])
            dy, dw, db = layer_backward(kept, dy, dz, by_layer[k], plain)
        else:
            dy = None
        found[:0] = (dw, db) if forms[k].biased else (dw,)
        if dy is not None and mask is not None:
            dy = drop(dy, mask)
    return [dy, *found]


class _TiledFunction(Function):
    # Forward keeps the input and the parameters; backward runs every tile forward once more.

    @staticmethod
    def forward(ctx: Any, *args: Any) -> Any:
        *operands, layers, tiling, seed = args
        ctx.forms, ctx.tiling, ctx.seed = _forms(layers), tiling, seed
        ctx.save_for_backward(*operands)
        return Sweep(layers, operands[0], tiling, seed).forward()

    @staticmethod
    @below_functions
    def backward(ctx: Any, dy: Tensor) -> Any:
        h, *parameters = ctx.saved_tensors
        needed = needed_now(ctx, 1 + len(parameters))
        sweep = Sweep(_layers(ctx.forms, parameters), h, ctx.tiling, ctx.seed)
        if torch.is_grad_enabled() or not is_plain(dy):
            all_at_once = _by_dense(ctx.forms, ctx.seed)
            return *gradients_by_autograd(all_at_once, (h, *parameters), dy, needed), None, None, None
        by_layer = _by_layer(ctx.forms, needed)
        sums = _zeros(sweep.layers, by_layer)
        with uncast(dy):
            dh = sweep.backward(dy, sums, lowest_of(by_layer))
        found = [dh]
        for form, pair in zip(ctx.forms, sums, strict=True):
            grads = (None if each is None else each.grad for each in pair[: 1 + form.biased])
            found += (None if grad is None else cast(grad, h.dtype) for grad in grads)
        return *found, None, None, None


def _by_dense(forms: Sequence[_Form], seed: Tensor | None) -> Callable[..., Tensor]:
    """Return what computes y from the operands by layers whose every mode is right, on all rows at once."""

    def compute(h: Tensor, *parameters: Tensor) -> Tensor:
        layers = _layers(forms, parameters)
        for layer, mask in zip(layers, masks_of(layers, seed), strict=True):
            h = dense(h, layer.w, layer.b, layer.activation)
            h = h if mask is None else drop(h, mask)
        return h

    return compute


def _operands(h: Tensor, layers: Sequence[Layer]) -> Iterator[Tensor]:
    """List the input and each layer's parameters."""
    yield h
    for layer in layers:
        yield layer.w
        if layer.b is not None:
            yield layer.b


def _forms(layers: Sequence[Layer]) -> list[_Form]:
    return [_Form(layer.activation, layer.dropout, layer.b is not None) for layer in layers]


def _layers(forms: Sequence[_Form], parameters: Sequence[Tensor]) -> list[Layer]:
    rest = iter(parameters)
    return [Layer(next(rest), next(rest) if form.biased else None, form.activation, form.dropout) for form in forms]


def _by_layer(forms: Sequence[_Form], needed: Sequence[bool]) -> list[Needed]:
    """Tell of each layer what is needed, from what is needed of the operands: dh if anything below it is."""
    rest = iter(needed)
    below, found = next(rest), []
    for form in forms:
        of_layer = below, next(rest), next(rest) if form.biased else False
        found.append(of_layer)
        below = any(of_layer)
    return found


def _kept(forms: Sequence[_Form], needed: Sequence[Needed]) -> tuple[bool, list[bool], list[bool]]:
    """Tell what all rows at once keep: h, the weight of each layer, and each layer's z or y."""
    for_slope = [form.activation is not IDENTITY and any(some) for form, some in zip(forms, needed, strict=True)]
    for_next = [*(need_dw for _, need_dw, _ in needed[1:]), False]
    of_kept = [slope or above for slope, above in zip(for_slope, for_next, strict=True)]
    return needed[0][1], [need_dh for need_dh, _, _ in needed], of_kept


def _keep_more(layers: Sequence[Layer], h: Tensor) -> bool:
    """Tell whether tiles would keep more than all rows at once: so they may where layers are frozen."""
    operands = list(_operands(h, layers))
    forms = _forms(layers)
    of_h, of_w, of_kept = _kept(forms, _by_layer(forms, [t.requires_grad for t in operands]))
    kept = h.numel() * of_h
    for layer, weight, output in zip(layers, of_w, of_kept, strict=True):
        kept += layer.w.numel() * weight + h.size(0) * layer.w.size(0) * output
    return sum(t.numel() for t in operands) > kept


def _unchanging(h: Tensor, layers: Sequence[Layer]) -> tuple[Tensor, list[Layer]]:
    """Copy those operands which torch does not keep, and so lets change before backward, and tiles read again."""
    grows = h.requires_grad  # whether the input of a layer requires grad, so that its weight is kept
    first, copied = h if layers[0].w.requires_grad else h.clone(), []
    for layer in layers:
        w, b, *_ = layer
        copied.append(layer._replace(w=w if grows else w.clone(), b=None if b is None else b.clone()))
        grows = grows or w.requires_grad or (b is not None and b.requires_grad)
    return first, copied


def _zeros(layers: Sequence[Layer], needed: Sequence[Needed]) -> Sums:
    def of(p: Tensor | None, need: bool) -> Sum | None:
        return Total.of(p) if need and p is not None else None

    return [(of(w, need_w), of(b, need_b)) for (w, b, *_), (_, need_w, need_b) in zip(layers, needed, strict=True)]


def _output(activation: Activation, kept: Tensor, plain: bool) -> Tensor:
    """Compute a layer's output from what it kept."""
    if activation.df_y is not None:
        return kept
    return y_of(kept, activation) if plain and not torch.is_grad_enabled() else value(kept, activation)


@answers
def network_gradients(asked: Asked) -> Tensors:
    """Compute what is needed of h and of the parameters from what all rows at once have kept, in any mode."""
    forms, seed, (constants,) = _asked(asked)
    count, (h, *saved) = len(forms), asked.tensors[: 1 + 2 * len(forms)]
    masks = [Mask(seed, k, form.dropout) if form.dropout and seed is not None else None for k, form in enumerate(forms)]
    of = _Saved(forms, [k < constants for k in range(count)], masks, h, saved[:count], saved[count:])
    return _gradients(of, asked.tensors[1 + 2 * count :], asked.needed)


@answers
def tiled_gradients(asked: Asked) -> Tensors:
    """Compute the same from the operands, on all rows at once."""
    compute = _by_dense(*_asked(asked)[:2])
    return gradients_by_autograd(compute, asked.tensors[:-1], asked.tensors[-1], asked.needed)


def _asked(asked: Asked) -> tuple[list[_Form], Tensor | None, list[int]]:
    count, _, _, seeded, seed, *rest = asked.numbers
    each = zip(rest[: 2 * count : 2], asked.dropout or [0.0] * count, rest[1 : 2 * count : 2], strict=True)
    forms = [_Form(record_of(number), p, bool(biased)) for number, p, biased in each]
    return forms, torch.tensor(seed) if seeded else None, rest[2 * count :]
