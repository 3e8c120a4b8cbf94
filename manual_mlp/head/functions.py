"""The Functions of a layer with its loss."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from manual_mlp.composite import Found, gradients_by_autograd
from manual_mlp.engines.native.handed import DTYPES, Asked, answers, record_of
from manual_mlp.formulas.cross_entropy import CrossEntropy
from manual_mlp.formulas.layer import delta_of, gradients
from manual_mlp.formulas.losses import BinaryCrossEntropy, Loss, SquaredError
from manual_mlp.formulas.products import rows
from manual_mlp.head.plan import Head, Step, in_dtypes
from manual_mlp.head.second import second_order
from manual_mlp.precision import cast, product_dtype, uncast, widen, widened
from manual_mlp.sweep.passes import Trace, forward
from manual_mlp.sweep.sums import Total
from manual_mlp.sweep.tiles import Sweep, Tile
from manual_mlp.sweep.tiling import Tiling
from manual_mlp.transforms import below_functions, is_plain, last_pass, needed_now, version


def loss_of_step(step: Step, head: Head) -> Tensor:
    """Compute the loss; in grad mode, so that it can be differentiated."""
    h, w, b, _ = head
    if not torch.is_grad_enabled():
        return _forward(step, h, w, b, (False,) * 3)[0]
    # Copies of what torch does not keep, and so lets change before backward.
    if step.again:
        h, w = h if w.requires_grad else h.clone(), w if h.requires_grad else w.clone()
    b, step = None if b is None else b.clone(), step._replace(loss=step.loss.unchanging())
    return LossFunction.apply(h, w, b, step)  # type: ignore[no-any-return]


class LossFunction(Function):
    """The loss of a layer. Inputs: h (N, D_in), w (D_out, D_in), b (D_out,) or None.

    Where all rows are one tile, δ is kept and the products wait for backward. Else the products are made while the
    output is there, for an upstream gradient of 1. If there is one for each row, the output is made once more; so it is
    in float16, whose range asks for δ to be scaled before the products.
    """

    @staticmethod
    def forward(ctx: Any, h: Tensor, w: Tensor, b: Tensor | None, step: Step) -> Tensor:
        needed = ctx.needs_input_grad[:3]
        value, made, ctx.scale = _forward(step, h, w, b, (False,) * 3 if step.again else needed)
        ctx.made = None if step.again else made
        operands = h, w, b
        # What torch keeps too. Of the rest, which create_graph alone asks for, a change is found out there.
        keep = (True,) * 3 if step.again else (needed[1], needed[0], False)
        ctx.save_for_backward(*(t if k else None for t, k in zip(operands, keep, strict=True)), *step.loss.tensors())
        ctx.rest = [None if k or t is None else (t, version(t)) for t, k in zip(operands, keep, strict=True)]
        ctx.dtypes = [None if t is None else t.dtype for t in operands]
        ctx.step = step._replace(loss=step.loss.emptied())
        return value

    @staticmethod
    @below_functions
    def backward(ctx: Any, upstream: Tensor) -> Any:
        h, w, b, *held = ctx.saved_tensors
        operands, rest = (h, w, b), ctx.rest
        step: Step = ctx.step._replace(loss=ctx.step.loss.holding(held))
        needed, made = needed_now(ctx, 3), None
        g = weights(step.loss, upstream, ctx.scale)
        if is_plain(upstream):
            with torch.no_grad():
                made = _finish(ctx, step, g, operands, needed)
            if not torch.is_grad_enabled():
                return *made, None
        return *_differentiable(step, _whole(operands, rest), g, made, needed), None


def weights(loss: Loss, upstream: Tensor, scale: Tensor | float) -> Tensor:
    """Compute the upstream gradient of all values, each row or each entry, from that of the output."""
    g = widen(upstream)
    if isinstance(scale, Tensor):
        # 0 stands for a mean over no row: no upstream gradient, not even NaN, reaches the layer.
        g = torch.where(scale == 0, 0.0, g * cast(scale, g.dtype))
    elif scale != 1:
        g = g * scale
    return loss.counted(g, slice(None)) if g.dim() == 1 else g


def _differentiable(
    step: Step, operands: Sequence[Any], g: Tensor, made: Found | None, needed: Sequence[bool]
) -> Found:
    """Let dh, dw and db, made already unless something looks inside, be differentiated."""
    g = g if g.dim() == 2 else g.expand(len(step.loss.target))[:, None]
    if made is None:
        return by_composite(step, needed)(*operands, g)
    return _GradientsFunction.apply(*operands, g, step, made)  # type: ignore[no-any-return]


class _GradientsFunction(Function):
    # What backward computes, as a function of h, w, b and of g, the upstream gradient of each row (N, 1) or entry
    # (N, D_out): create_graph asks for its derivatives.

    @staticmethod
    def forward(ctx: Any, *args: Any) -> Found:
        *operands, step, made = args
        ctx.step = step._replace(loss=step.loss.emptied())
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*operands, *step.loss.tensors())
        return made  # type: ignore[no-any-return]

    @staticmethod
    @below_functions
    def backward(ctx: Any, *tildes: Tensor | None) -> Any:
        h, w, b, g, *held = ctx.saved_tensors
        step: Step = ctx.step._replace(loss=ctx.step.loss.holding(held))
        needed, operands = (*needed_now(ctx, 3), ctx.needs_input_grad[3]), (h, w, b, g)
        if all(t is None for t in tildes):
            cotangents: Found = (None,) * 4
        elif torch.is_grad_enabled() or not is_plain(*tildes):
            first = by_composite(step, [t is not None for t in tildes])
            given = [t for t in tildes if t is not None]
            cotangents = gradients_by_autograd(
                lambda *of: [t for t in first(*of) if t is not None], operands, given, needed, unused=True
            )
        else:
            cotangents = second_order(step, operands, tildes, needed)
        return *cotangents, None, None


def _forward(
    step: Step, h: Tensor, w: Tensor, b: Tensor | None, needed: Sequence[bool]
) -> tuple[Tensor, Any, Tensor | float]:
    """Compute the loss, and what is needed of dh, dw and db, or δ of all rows; and what a mean scales them by."""
    layers, objective = step.layers(w, b), step.objective(h, w)
    made: Any = None
    with torch.no_grad(), uncast(h):
        if step.tiling.rows >= len(h) and any(needed):
            trace = forward(layers, cast(h, step.dtype), [None])
            dy = objective.of_all(trace.y, trace.owns_output())
            made = delta_of(dy, trace.kept[0], step.activation, plain=True)
        else:
            sweep = Sweep(layers, h, step.tiling)
            objective.cut(step.tiling.rows)
            if any(needed):
                made = _swept(sweep, objective.of_tile, (h, w, b), needed)
            else:
                sweep.run(lambda tile: objective.look(sweep.trace(tile), tile))
        value = objective.result()
        scale: Tensor | float = 1.0
        if step.reduction == "mean":
            count, scale = step.loss.mean_now()
            value = value / count
        return cast(value, h.dtype if step.region is None else widened(step.dtype)), made, scale


def _swept(
    sweep: Sweep, dy: Callable[[Trace, Tile], Tensor], operands: Sequence[Tensor | None], needed: Sequence[bool]
) -> Found:
    """Compute what is needed of dh, dw and db, tile by tile."""
    parameters = zip(operands[1:], needed[1:], strict=True)
    dw, db = (Total.of(t) if need and t is not None else None for t, need in parameters)
    dh = sweep.backward(dy, [(dw, db)], -1 if needed[0] else 0)
    return dh if needed[0] else None, *(None if each is None else each.grad for each in (dw, db))


def _finish(ctx: Any, step: Step, g: Tensor, operands: Sequence[Any], needed: Sequence[bool]) -> Found:
    """Finish dh, dw and db for an upstream gradient g, of all rows, each row or each entry, from what forward made."""
    made, rest, last = ctx.made, ctx.rest, last_pass()
    if last:
        ctx.made = ctx.rest = None
    if made is None:
        made = gradients_again(step, _whole(operands, rest), g, needed)
    elif step.tiling.rows >= len(step.loss.target):
        with uncast(g):
            made = gradients(_times(made, g if g.dim() != 1 else g[:, None], last), operands[0], operands[1], needed)
    else:
        made = [_times(t, g, last) if need else None for t, need in zip(made, needed, strict=True)]
    return in_dtypes(made, ctx.dtypes)


def gradients_again(step: Step, operands: Sequence[Any], g: Tensor, needed: Sequence[bool]) -> Found:
    """Compute what is needed of dh, dw and db for an upstream gradient g, and the output of each tile once more."""
    h, w, b = operands
    objective = step.objective(h, w)
    g = g if g.dim() else g.expand(len(h), 1) if step.loss.by_entry else g.expand(len(h))
    with uncast(h):
        sweep = Sweep(step.layers(w, b), h, step.tiling)
        return _swept(sweep, lambda trace, tile: objective.weighted(trace, tile, g), operands, needed)


def with_gradients(step: Step, operands: Sequence[Any], needed: Sequence[bool]) -> tuple[Tensor, Found]:
    """Compute the loss, and what is needed of dh, dw and db for an upstream gradient of 1."""
    h, w, b = operands
    value, made, scale = _forward(step, h, w, b, needed)
    if made is None:
        return value, (None,) * 3
    with torch.no_grad(), uncast(h):
        if isinstance(made, Tensor):
            made = gradients(_times(made, scale, True), h, w, needed)
        else:
            made = tuple(None if t is None else _times(t, scale, True) for t in made)
    return value, made


def by_composite(step: Step, needed: Sequence[bool]) -> Callable[..., Found]:
    """Return what computes dh, dw and db, from h, w, b and g, by torch's own operations."""

    def values_of(h: Tensor, w: Tensor, b: Tensor | None) -> Tensor:
        with torch.autocast(h.device.type, step.region, enabled=step.region is not None):
            return step.loss.composite(Head(h, w, b, step.activation).output(), "none")

    def first_order(h: Tensor, w: Tensor, b: Tensor | None, g: Tensor) -> Found:
        def dy(values: Tensor) -> Tensor:
            return cast(g.expand_as(values) if values.dim() == g.dim() else g[..., 0], values.dtype)

        return gradients_by_autograd(values_of, (h, w, b), dy, needed)

    return first_order


def _times(t: Tensor, g: Tensor | float, in_place: bool) -> Tensor:
    return t.mul_(g) if in_place else cast(t * g, t.dtype)


def _whole(operands: Sequence[Any], rest: Sequence[tuple[Tensor, int] | None]) -> list[Any]:
    """Return all operands, those too that first-order gradients do not ask for, if they are as they were."""
    for of_rest in rest:
        if of_rest and version(of_rest[0]) != of_rest[1]:
            raise RuntimeError(
                "expected that no operand of the loss was modified by an inplace operation: create_graph reads it again"
            )
    return [of_rest[0] if of_rest else t for t, of_rest in zip(operands, rest, strict=True)]


@answers
def loss_gradients(asked: Asked) -> Found:
    """Compute dh, dw and db of a loss, so that what differentiates them is right; native may have made them."""
    input, w, b, upstream, target, weight, pos_weight, row_weight, *given = asked.tensors
    kind, reduction, number, tile_rows, _, region, ignored = asked.numbers
    smoothing, z_loss = asked.dropout
    assert input is not None
    assert target is not None
    assert upstream is not None
    losses: tuple[Callable[[], Loss], ...] = (
        lambda: CrossEntropy(target, weight, ignored, smoothing, row_weight, z_loss),
        lambda: BinaryCrossEntropy(target, weight, pos_weight),
        lambda: SquaredError(target),
    )
    loss, of_region = losses[kind](), DTYPES.get(region)
    # Where grad mode is off, a copy of the rows would be a constant.
    with torch.enable_grad():
        h = rows(input)
    step = Step(
        loss,
        ("none", "mean", "sum")[reduction],
        record_of(number),
        Tiling(min(tile_rows, len(h))),
        product_dtype(of_region or h.dtype, h.device),
        of_region,
        again=False,
    )
    g = upstream
    if step.reduction == "none":
        g = upstream.reshape((len(h), -1) if loss.by_entry else (len(h),))
    dh, *others = given
    made = None
    if any(t is not None for t in given):
        dtypes = [None if t is None else t.dtype for t in (h, w, b)]
        made = in_dtypes([None if dh is None else rows(dh), *others], dtypes)
    g = weights(loss, g, loss.mean_now()[1] if step.reduction == "mean" else 1.0)
    dh, dw, db = _differentiable(step, (h, w, b), g, made, asked.needed)
    return None if dh is None else dh.reshape(input.shape), dw, db
