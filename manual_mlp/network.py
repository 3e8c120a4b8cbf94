"""A whole network as one Function: where that pays, a tile of rows at a time, with nothing but the input kept."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd import Function

from manual_mlp.activations import Activation
from manual_mlp.activations.record import cast, value
from manual_mlp.dense import dense, layer_gradients
from manual_mlp.fused import aliases, spread, uncast
from manual_mlp.rules import plus, rows
from manual_mlp.sweep import Layer, Sum, Sums, Sweep, Total, forward, share_memory
from manual_mlp.tiles import tiling_of
from manual_mlp.transforms import needed_now, plain

_PLAIN = Tensor, nn.Parameter
Needed = tuple[bool, bool, bool]  # dh, dw, db


def network(layers: Sequence[Layer], input: Tensor, tile_rows: int | None) -> Tensor | None:
    """Run a network that fits its input, outside of any transform and of autocast.

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
        y = Sweep(layers, h, tiling, seed_of(layers)).forward()
    elif one:
        y = _NetworkFunction.apply(*_operands(h, layers), layers)[0]
    else:
        # A clone, because torch lets the bias of a layer change before backward.
        layers = [layer._replace(b=None if layer.b is None else layer.b.clone()) for layer in layers]
        y = _TiledFunction.apply(*_operands(h, layers), layers, tiling, seed_of(layers))
    return y if input.dim() == 2 else y.view(*input.shape[:-1], y.shape[-1])


def fits(layers: Sequence[Layer], input: Tensor, mixed: bool = False, leaves: bool = False) -> bool:
    """Tell whether these are plain tensors that fit together, and none is empty.

    ``mixed`` allows more than one dtype; ``leaves`` refuses what was computed from what requires grad.
    """
    if type(input) not in _PLAIN or input.layout is not torch.strided or input.is_nested:
        return False
    if not input.numel() or not input.dim() or (mixed and input.dtype is torch.float64):
        return False
    width, dtype, on_cpu = input.size(-1), input.dtype, input.is_cpu
    for w, b, *_ in layers:
        if w.dim() != 2 or w.size(1) != width or not w.size(0):
            return False
        width = w.size(0)
        if b is not None and (b.dim() != 1 or b.size(0) != width):
            return False
        for p in (w,) if b is None else (w, b):
            if type(p) not in _PLAIN or p.layout is not torch.strided or p.is_cpu is not on_cpu:
                return False
            # Autocast leaves float64 alone.
            if (p.dtype is torch.float64 if mixed else p.dtype is not dtype) or (leaves and not p.is_leaf):
                return False
    return dtype.is_floating_point


def seed_of(layers: Sequence[Layer]) -> int | None:
    """Draw, from torch's generator, what the masks of all tiles come from; None where there is no dropout."""
    if not any(layer.dropout for layer in layers):
        return None
    return int(torch.empty((), dtype=torch.int64, device="cpu").random_())


def lowest_of(needed: Sequence[Needed]) -> int:
    """Return the first layer with a parameter whose gradient is needed, or -1 if the input's is."""
    return -1 if needed[0][0] else next(k for k, (_, *parameters) in enumerate(needed) if any(parameters))


class _Form(NamedTuple):
    """A layer without its tensors, for a node that saves them."""

    activation: Activation
    dropout: float
    biased: bool


class _NetworkFunction(Function):
    # All rows are one tile. What a layer keeps, z or y, is an output too, which network() hides: were it only saved,
    # second derivatives would see a constant.

    @staticmethod
    def forward(ctx: Any, *args: Any) -> Any:
        h, *_, layers = args
        trace = forward(layers, h, None)
        y, last = trace.y, trace.kept[-1]
        if last is not None and layers[-1].activation.df_y is None and share_memory(y, last):
            y = y.clone()  # a user's f may return z
        ctx.forms = _forms(layers)
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(h, *(layer.w for layer in layers), *trace.kept, *trace.masks)
        return y, *(t for t in trace.kept if t is not None and t is not y)

    @staticmethod
    def backward(ctx: Any, dy: Tensor | None, *hidden: Tensor | None) -> Any:
        forms: list[_Form] = ctx.forms
        count, opaque = len(forms), plain(dy, *hidden)
        h, *saved = ctx.saved_tensors
        weights, kept, masks = (saved[k * count : (k + 1) * count] for k in range(3))
        needed = _by_layer(forms, needed_now(ctx, len(ctx.needs_input_grad) - 1))
        found: list[Tensor | None] = []
        for k in reversed(range(count)):
            dz = hidden[k] if k < len(hidden) else None
            if forms[k].activation.df_y is not None:
                dy, dz = dz if dy is None else plus(dy, dz), None
            dw = db = None
            if dy is not None or dz is not None:
                h_k = h if k == 0 else _output(forms[k - 1].activation, kept[k - 1], masks[k - 1], opaque)
                dy, dw, db = layer_gradients(h_k, weights[k], kept[k], dy, dz, forms[k].activation, needed[k], opaque)
            found[:0] = (dw, db) if forms[k].biased else (dw,)
            if k and dy is not None and masks[k - 1] is not None:
                dy = dy * masks[k - 1]
        return dy, *found, None


class _TiledFunction(Function):
    # Forward keeps the input and the parameters; backward runs every tile forward once more.

    @staticmethod
    def forward(ctx: Any, *args: Any) -> Any:
        *operands, layers, tiling, seed = args
        ctx.forms, ctx.tiling, ctx.seed = _forms(layers), tiling, seed
        ctx.save_for_backward(*operands)
        return Sweep(layers, operands[0], tiling, seed).forward()

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> Any:
        h, *parameters = ctx.saved_tensors
        needed = needed_now(ctx, 1 + len(parameters))
        sweep = Sweep(_layers(ctx.forms, parameters), h, ctx.tiling, ctx.seed)
        if torch.is_grad_enabled() or not plain(dy):
            return *_by_dense(sweep, ctx.forms, (h, *parameters), dy, needed), None, None, None
        by_layer = _by_layer(ctx.forms, needed)
        sums = [_zeros(sweep.layers, by_layer) for _ in range(sweep.workers)]
        with uncast(dy):
            dh = sweep.backward(dy, sums, lowest_of(by_layer))
        found = [dh]
        for form, pair in zip(ctx.forms, sums[0], strict=True):
            grads = (None if each is None else each.of.grad for each in pair[: 1 + form.biased])
            found += (None if grad is None else cast(grad, h.dtype) for grad in grads)
        return *found, None, None, None


def _by_dense(
    sweep: Sweep, forms: Sequence[_Form], operands: Sequence[Tensor], dy: Tensor, needed: Sequence[bool]
) -> tuple[Tensor | None, ...]:
    """Compute the gradients by layers whose every mode is right, on all rows at once."""
    create = torch.is_grad_enabled()
    with torch.enable_grad():
        h, *parameters = given = aliases(*operands)
        for layer, mask in zip(_layers(forms, parameters), sweep.masks(), strict=True):
            h = dense(h, layer.w, layer.b, layer.activation)
            h = h if mask is None else h * mask
        asked = [t for t, need in zip(given, needed, strict=True) if need]
        found = torch.autograd.grad(h, asked, dy, create_graph=create)
    return spread(found, needed)


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


def _zeros(layers: Sequence[Layer], needed: Sequence[Needed]) -> Sums:
    def of(p: Tensor | None, need: bool) -> Sum | None:
        return Sum(Total.of(p)) if need and p is not None else None

    return [(of(w, need_w), of(b, need_b)) for (w, b, *_), (_, need_w, need_b) in zip(layers, needed, strict=True)]


def _output(activation: Activation, kept: Tensor, mask: Tensor | None, opaque: bool) -> Tensor:
    """Compute a layer's output from what it kept."""
    y = kept
    if activation.df_y is None:
        y = activation.f(kept) if opaque and not torch.is_grad_enabled() else value(kept, activation)
    return y if mask is None else y * mask
