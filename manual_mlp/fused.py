"""A layer and its loss, a few rows at a time: the loops over chunks, and the Functions that run them.

A tag names the formula that its line computes; ``docs/derivation.md`` proves each of them.
"""

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import Function

from manual_mlp.activations import IDENTITY
from manual_mlp.activations.record import FLOATS, cast, widen
from manual_mlp.chunks import few_logits, has_fast_products, rows_at_once
from manual_mlp.dense import autocasting, dense
from manual_mlp.losses import Loss
from manual_mlp.rules import add_outer, delta_cotangent, gradients, product
from manual_mlp.transforms import Caller, below_functions, last_pass, needed_now, plain, version

Each = tuple[Tensor | None, ...]


class Plan(NamedTuple):
    """How a step runs: in chunks of so many rows, with products in this dtype, under this autocast dtype or none."""

    rows: int
    dtype: torch.dtype
    region: torch.dtype | None
    again: bool = False  # whether backward makes the logits once more

    def operands(self, h: Tensor, w: Tensor, b: Tensor | None) -> tuple[Tensor, Tensor, Tensor | None]:
        """Turn the operands of the products into their dtype."""
        return cast(h, self.dtype), cast(w, self.dtype), None if b is None else cast(b, self.dtype)


def fused(
    loss: Loss, h: Tensor, w: Tensor, b: Tensor | None, reduction: str, chunk_rows: int | None, who: Caller
) -> Tensor:
    """Compute the loss of a layer: in chunks where that is possible and pays, else by its composite.

    Shape:
        - h: :math:`(N, D_{in})`
        - w: :math:`(D_{out}, D_{in})`
        - b: :math:`(D_{out})`
        - Output: scalar; if ``reduction`` is ``"none"``, :math:`(N)`, or :math:`(N, D_{out})` for a loss by entry.
    """
    if who in ("transform", "composite"):
        return loss.composite(_output(loss, h, w, b), reduction)
    plan = None if who == "compiler" else _plan(loss, h, w, b, reduction, chunk_rows)
    if plan is None:
        return loss.quick_composite(_output(loss, h, w, b), reduction)
    if who == "eager":
        # Copies of what torch does not keep, and so lets change before backward.
        if plan.again:
            h, w = h if w.requires_grad else h.clone(), w if h.requires_grad else w.clone()
        b, loss = None if b is None else b.clone(), loss.unchanging()
        return _LossFunction.apply(h, w, b, loss, reduction, plan)  # type: ignore[no-any-return]
    values, _ = _sweep(loss, h, w, b, plan, by_entry=reduction == "none")
    count = loss.mean()[0] if reduction == "mean" else 1.0
    return _reduced(values, count, reduction, h, plan)


class _LossFunction(Function):
    # Where all rows are one chunk, δ is kept and the products wait for backward. Else the products are made while the
    # logits are there, for an upstream gradient of 1. If there is one for each row, the logits are made once more; so
    # they are in float16, whose range asks for δ to be scaled before the products.

    @staticmethod
    def forward(ctx: Any, h: Tensor, w: Tensor, b: Tensor | None, loss: Loss, reduction: str, plan: Plan) -> Tensor:
        ctx.loss, ctx.plan, ctx.once = loss.emptied(), plan, plan.rows >= len(h)
        needed = (False,) * 3 if plan.again else ctx.needs_input_grad[:3]
        values, made = _sweep(loss, h, w, b, plan, needed, by_entry=reduction == "none", keep=ctx.once)
        ctx.made = None if plan.again else made
        count, ctx.scale = loss.mean() if reduction == "mean" else (1.0, 1.0)
        operands, (need_dh, need_dw, _) = (h, w, b), ctx.needs_input_grad[:3]
        # What torch keeps too. Of the rest, which create_graph alone asks for, a change is found out there.
        keep = (True,) * 3 if plan.again else (need_dw, need_dh, False)
        ctx.save_for_backward(*(t if k else None for t, k in zip(operands, keep, strict=True)), *loss.tensors())
        ctx.rest = [None if k or t is None else (t, version(t)) for t, k in zip(operands, keep, strict=True)]
        ctx.dtypes = [None if t is None else t.dtype for t in operands]
        return _reduced(values, count, reduction, h, plan)

    @staticmethod
    @below_functions
    def backward(ctx: Any, upstream: Tensor) -> Any:
        h, w, b, *held = ctx.saved_tensors
        operands, loss, rest = (h, w, b), ctx.loss.holding(held), ctx.rest
        needed, opaque = needed_now(ctx, 3), plain(upstream)
        g = widen(upstream)
        if isinstance(ctx.scale, Tensor):
            # 0 stands for a mean over no row: no upstream gradient, not even NaN, reaches the layer.
            g = torch.where(ctx.scale == 0, 0.0, g * cast(ctx.scale, g.dtype))
        elif ctx.scale != 1:
            g = g * ctx.scale
        if g.dim() == 1:
            g = loss.counted(g, slice(None))
        g_rows = g if g.dim() == 2 else g.expand(len(loss.target))[:, None]
        made: Each = ()
        if opaque:
            with torch.no_grad():
                made = _first_order(ctx, loss, g, g_rows, operands, needed)
            if not torch.is_grad_enabled():
                return *made, None, None, None
        h, w, b = _whole(operands, rest)
        if opaque:
            made = _GradientsFunction.apply(h, w, b, g_rows, loss, ctx.plan, made)
        else:
            made = _by_composite(loss, ctx.plan, h, w, b, g_rows, needed)
        return *made, None, None, None


class _GradientsFunction(Function):
    # What backward computes, as a function of h, w, b and of g, the upstream gradient of each row (N, 1) or entry
    # (N, D_out): create_graph asks for its derivatives.

    @staticmethod
    def forward(
        ctx: Any, h: Tensor, w: Tensor, b: Tensor | None, g: Tensor, loss: Loss, plan: Plan, made: Each
    ) -> Each:
        ctx.loss, ctx.plan = loss.emptied(), plan
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(h, w, b, g, *loss.tensors())
        return made

    @staticmethod
    @below_functions
    def backward(ctx: Any, *tilde: Tensor | None) -> Any:
        h, w, b, g, *held = ctx.saved_tensors
        loss = ctx.loss.holding(held)
        needed = *needed_now(ctx, 3), ctx.needs_input_grad[3]
        if all(t is None for t in tilde):
            cotangents: Each = (None,) * 4
        elif torch.is_grad_enabled() or not plain(*tilde):
            cotangents = _second_by_composite(loss, ctx.plan, h, w, b, g, tilde, needed)
        else:
            cotangents = _second_sweep(loss, ctx.plan, h, w, b, g, tilde, needed)
        return *cotangents, None, None, None


def _sweep(
    loss: Loss,
    h: Tensor,
    w: Tensor,
    b: Tensor | None,
    plan: Plan,
    needed: Sequence[bool] = (False, False, False),
    g: Tensor | None = None,
    by_entry: bool = False,
    keep: bool = False,
) -> tuple[Tensor, Any]:
    """Compute the values of rows or entries; and what is needed of dh, dw and db, or δ if it is to be kept."""
    h, w, b = plan.operands(h, w, b)
    with uncast(h):
        logits = _Logits(h, w, b, plan.rows)
        values = logits.zeros(len(h), *([len(w)] if by_entry and loss.by_entry else []))
        dh = torch.empty_like(h) if needed[0] and not keep else None
        dw = logits.zeros(*w.shape) if needed[1] and not keep else None
        db = logits.zeros(len(w)) if needed[2] and not keep else None
        for at in logits.chunks():
            value, delta = loss.values(logits(at), at, any(needed))
            values[at] = value if value.dim() == values.dim() else value.sum(-1)
            if delta is None:
                continue
            delta = logits.narrow(delta if g is None else delta.mul_(g[at]))
            if keep:
                return values, delta
            if dh is not None:
                product(delta, w, out=dh[at])  # (B2)
            if dw is not None:
                add_outer(dw, delta, h[at])  # (B3)
            if db is not None:
                db += delta.sum(0, dtype=db.dtype)  # (B4)
        return values, (dh, dw, db)


def _first_order(
    ctx: Any, loss: Loss, g: Tensor, g_rows: Tensor, operands: Sequence[Any], needed: Sequence[bool]
) -> Each:
    """Finish dh, dw and db for an upstream gradient g, of each row (N, 1) or entry too, from what forward made."""
    h, w, b = operands
    made, rest, last = ctx.made, ctx.rest, last_pass()
    if last:
        ctx.made = ctx.rest = None
    if made is None:
        h, w, b = _whole(operands, rest)
        _, made = _sweep(loss, h, w, b, ctx.plan, needed, g_rows)
    elif ctx.once:
        with uncast(g):
            made = gradients(_times(made, g_rows, last), h, w, needed)
    else:
        made = [_times(t, g, last) if need else None for t, need in zip(made, needed, strict=True)]
    return _in_dtypes(made, ctx.dtypes)


def _second_sweep(
    loss: Loss,
    plan: Plan,
    h: Tensor,
    w: Tensor,
    b: Tensor | None,
    g: Tensor,
    tilde: Sequence[Tensor | None],
    needed: Sequence[bool],
) -> Each:
    """Compute the cotangents of h, w, b and g from those of dh, dw and db."""
    given = h, w, b, g
    h, w, b = plan.operands(h, w, b)
    with uncast(h):
        logits = _Logits(h, w, b, plan.rows)
        h_tilde, w_tilde, b_tilde = (None if t is None else cast(t, h.dtype) for t in tilde)
        sums = [
            logits.zeros(*t.shape) if t is not None and need else None for t, need in zip(given, needed, strict=True)
        ]
        h_sum, w_sum, b_sum, g_sum = sums
        for at in logits.chunks():
            h_tilde_at = None if h_tilde is None else h_tilde[at]
            z = logits(at)
            q = delta_cotangent((h_tilde_at, w_tilde, b_tilde), h[at], w, z.shape, in_place=True)  # (S1)
            assert q is not None
            q = widen(q)
            delta, r = loss.curvature(z, q, at)
            if g_sum is not None:
                g_sum[at] = (q * delta).sum_to_size(g[at].shape)  # (S3)
            delta, r = cast(delta.mul_(g[at]), h.dtype), cast(r.mul_(g[at]), h.dtype)
            if h_sum is not None:
                h_sum[at] = r @ w if w_tilde is None else torch.addmm(r @ w, delta, w_tilde)  # (S4)
            if w_sum is not None:
                add_outer(w_sum, r, h[at])  # (S5)
                if h_tilde_at is not None:
                    add_outer(w_sum, delta, h_tilde_at)  # (S5)
            if b_sum is not None:
                b_sum += r.sum(0, dtype=b_sum.dtype)  # (S6)
    return _in_dtypes(sums, [None if t is None else t.dtype for t in given])


def _by_composite(
    loss: Loss, plan: Plan, h: Tensor, w: Tensor, b: Tensor | None, g: Tensor, needed: Sequence[bool]
) -> Each:
    """Compute dh, dw and db by torch's own operations, which every transform looks into."""
    create = torch.is_grad_enabled()
    with torch.enable_grad():
        h, w, b = given = aliases(h, w, b)
        with torch.autocast(h.device.type, plan.region, enabled=plan.region is not None):
            values = loss.composite(_output(loss, h, w, b), "none")
        cotangent = cast(g.expand_as(values) if values.dim() == g.dim() else g[..., 0], values.dtype)
        asked = [t for t, need in zip(given, needed, strict=True) if need]
        found = torch.autograd.grad(values, asked, cotangent, create_graph=create)
    return spread(found, needed)


def _second_by_composite(
    loss: Loss,
    plan: Plan,
    h: Tensor,
    w: Tensor,
    b: Tensor | None,
    g: Tensor,
    tilde: Sequence[Tensor | None],
    needed: Sequence[bool],
) -> Each:
    """Compute the cotangents of h, w, b and g by torch's own operations."""
    create = torch.is_grad_enabled()
    with torch.enable_grad():
        h, w, b, g = given = aliases(h, w, b, g)
        first = _by_composite(loss, plan, h, w, b, g, [t is not None for t in tilde])
        asked = [t for t, need in zip(given, needed, strict=True) if need]
        outputs, cotangents = ([t for t in some if t is not None] for some in (first, tilde))
        found = torch.autograd.grad(outputs, asked, cotangents, create_graph=create, materialize_grads=True)
    return spread(found, needed)


class _Logits:
    """The logits of a chunk of rows, in memory that every chunk uses again."""

    def __init__(self, h: Tensor, w: Tensor, b: Tensor | None, chunk: int) -> None:
        self.h, self.w, self.b, self.chunk = h, w, b, min(chunk, len(h))
        self.dtype = widen(h[:0]).dtype
        self.made = h.new_empty(self.chunk, len(w))
        self.widened = self.made if h.dtype == self.dtype else h.new_empty(self.chunk, len(w), dtype=self.dtype)

    def chunks(self) -> Iterator[slice]:
        """Take the rows a chunk at a time."""
        return (slice(start, min(start + self.chunk, len(self.h))) for start in range(0, len(self.h), self.chunk))

    def __call__(self, at: slice) -> Tensor:
        """Compute z of some rows, in float32 at least."""
        rows = self.h[at]
        z = self.made[: len(rows)]
        product(rows, self.w.mT, out=z, plus=self.b)  # (F1)
        return z if self.made is self.widened else self.widened[: len(rows)].copy_(z)

    def narrow(self, t: Tensor) -> Tensor:
        """Turn what became of the logits into the dtype of the products."""
        return t if t.dtype == self.made.dtype else self.made[: len(t)].copy_(t)

    def zeros(self, *shape: int) -> Tensor:
        """Make a tensor to add to, in float32 at least."""
        return self.h.new_zeros(shape, dtype=self.dtype)


def _times(t: Tensor, g: Tensor, in_place: bool) -> Tensor:
    return t.mul_(g) if in_place else cast(t * g, t.dtype)


def _whole(operands: Sequence[Any], rest: Sequence[tuple[Tensor, int] | None]) -> list[Any]:
    """Return all operands, those too that first-order gradients do not ask for, if they are as they were."""
    for of_rest in rest:
        if of_rest and version(of_rest[0]) != of_rest[1]:
            raise RuntimeError(
                "expected that no operand of the loss was modified by an inplace operation: create_graph reads it again"
            )
    return [of_rest[0] if of_rest else t for t, of_rest in zip(operands, rest, strict=True)]


def aliases(*tensors: Tensor | None) -> list[Any]:
    """Give each tensor a name of its own in the graph, so that what one does to another before stays out of it."""
    return [None if t is None else t.view_as(t) if t.requires_grad else t for t in tensors]


def spread(found: Sequence[Tensor], needed: Sequence[bool]) -> Each:
    rest = iter(found)
    return tuple(next(rest) if need else None for need in needed)


def _in_dtypes(found: Sequence[Tensor | None], dtypes: Sequence[torch.dtype | None]) -> Each:
    pairs = zip(found, dtypes, strict=True)
    return tuple(None if t is None or dtype is None else cast(t, dtype) for t, dtype in pairs)


def _reduced(values: Tensor, count: Tensor | float, reduction: str, h: Tensor, plan: Plan) -> Tensor:
    result = values if reduction == "none" else values.sum(dtype=torch.float64) / count
    return cast(result, h.dtype if plan.region is None else values.dtype)


def _output(loss: Loss, h: Tensor, w: Tensor, b: Tensor | None) -> Tensor:
    """Compute the output of the layer, so that every mode is right."""
    return F.linear(h, w, b) if loss.activation is IDENTITY else dense(h, w, b, loss.activation)  # (F1)


def _plan(loss: Loss, h: Tensor, w: Tensor, b: Tensor | None, reduction: str, chunk_rows: int | None) -> Plan | None:
    """Plan a step, or leave it to the composite."""
    if chunk_rows is None and few_logits(h.shape[0], w.shape[0], h.is_cuda):
        return None
    held = [t for t in loss.tensors() if t is not None]
    dtypes = {t.dtype for t in (h, w, b, *held) if t is not None and t.is_floating_point()}
    region = torch.get_autocast_dtype(h.device.type) if autocasting(h) else None
    mixed = torch.float64 in dtypes if region else len(dtypes) > 1
    if mixed or not FLOATS.issuperset(dtypes) or any(t.requires_grad for t in held) or not h.numel() or not len(w):
        return None
    dtype = region or h.dtype
    if not has_fast_products(dtype, h.device.type):
        dtype = torch.float32
    chunk = chunk_rows or rows_at_once(len(h), h.shape[1], len(w), dtype, h.device.type)
    # An upstream gradient of each row comes before the products; float16, whose range is small, asks for its scale too.
    again = chunk < len(h) and (reduction == "none" or dtype is torch.float16)
    plan = Plan(chunk, dtype, region, again) if chunk else None
    if plan and torch.is_grad_enabled() and not (h.requires_grad and w.requires_grad) and _keeps_more(plan, h, w, b):
        return None
    return plan


def _keeps_more(plan: Plan, h: Tensor, w: Tensor, b: Tensor | None) -> bool:
    """Tell whether a step with frozen operands keeps more than torch: the logits, h for dw and w for dh."""
    logits, need_dh, need_dw = len(h) * len(w), h.requires_grad, w.requires_grad
    if plan.again:
        return h.numel() * (not need_dw) + w.numel() * (not need_dh) + (0 if b is None else len(b)) > logits
    made = logits if plan.rows >= len(h) else h.numel() * need_dh + w.numel() * need_dw
    # create_graph asks for h, whoever needs it besides; w, a parameter, is there in any case.
    return made + h.numel() * (not need_dw) > logits


def uncast(h: Tensor) -> AbstractContextManager[Any]:
    """Leave autocast, if it is on: dtypes are chosen here."""
    return torch.autocast(h.device.type, enabled=False) if autocasting(h) else nullcontext()
