"""The losses in chunks as operations of ``torch.library``: what a compiler leaves whole, so that their chunks live on.

``manual_mlp::linear_loss`` computes a loss together with dh, dw and db for an upstream gradient of 1, and its backward
pass multiplies them. Where an upstream gradient has to come before the products (one for each row, or the small range
of float16), ``manual_mlp::linear_loss_backward`` makes the output once more.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.forward_ad import unpack_dual

from manual_mlp.activations.registry import of_spelled
from manual_mlp.composite import Found
from manual_mlp.engines import KERNELS, engine_for, native
from manual_mlp.formulas.cross_entropy import CrossEntropy
from manual_mlp.formulas.losses import BinaryCrossEntropy, Loss, SquaredError
from manual_mlp.head.functions import by_composite, gradients_again, weights, with_gradients
from manual_mlp.head.plan import Head, Step, in_dtypes
from manual_mlp.precision import FLOATS, cast, product_dtype, widened
from manual_mlp.sweep.tiling import few_logits, tiling_of_loss

_ARGUMENTS = (
    "Tensor h, Tensor w, Tensor? b, Tensor target, Tensor? weight, Tensor? pos_weight, Tensor? row_weight, str loss, "
    "str activation, str reduction, int? chunk_rows, int ignore_index, float label_smoothing, "
    "float z_loss, ScalarType? region, bool[] needed, bool stats"
)
_KINDS: dict[type[Loss], str] = {
    **dict.fromkeys((CrossEntropy, KERNELS.cross_entropy), "cross_entropy"),
    BinaryCrossEntropy: "binary_cross_entropy",
    SquaredError: "squared_error",
}


class Asked(NamedTuple):
    """The arguments of both operations: rows h (N, D_in), what they are compared with, and how."""

    h: Tensor
    w: Tensor
    b: Tensor | None
    target: Tensor
    weight: Tensor | None
    pos_weight: Tensor | None
    row_weight: Tensor | None
    loss: str
    activation: str
    reduction: str
    chunk_rows: int | None
    ignore_index: int
    label_smoothing: float
    z_loss: float
    region: torch.dtype | None  # of autocast, or none
    needed: list[bool]  # dh, dw, db
    stats: bool

    @property
    def operands(self) -> tuple[Tensor, Tensor, Tensor | None]:
        """The tensors that gradients are for."""
        return self.h, self.w, self.b

    @property
    def products(self) -> torch.dtype:
        """The dtype of the products."""
        return product_dtype(self.region or self.h.dtype, self.h.device)

    @property
    def again(self) -> bool:
        """Whether backward makes the output once more."""
        return self.reduction == "none" or self.products is torch.float16

    @property
    def by_entry(self) -> bool:
        """Whether the loss has a value for each entry, instead of each row."""
        return self.loss != "cross_entropy"

    def made(self) -> Loss:
        """Make the loss."""
        if self.loss not in _KINDS.values():
            raise ValueError(f"expected a loss among {', '.join(_KINDS.values())}, got {self.loss!r}")
        if self.loss == "squared_error":
            return SquaredError(self.target)
        if self.loss == "binary_cross_entropy":
            return BinaryCrossEntropy(self.target, self.weight, self.pos_weight)
        numbers = self.ignore_index, self.label_smoothing, self.row_weight, self.z_loss
        return engine_for(self.h).cross_entropy(self.target, self.weight, *numbers)

    def step(self, loss: Loss) -> Step:
        """Plan the tiles."""
        tiling = tiling_of_loss(self.h, len(self.w), self.products, self.chunk_rows)
        activation = of_spelled(self.activation)
        return Step(loss, self.reduction, activation, tiling, self.products, self.region, self.again)


def by_operation(head: Head, loss: Loss, chunk_rows: int | None) -> bool:
    """Tell whether a compiler is to leave the loss whole; without a question whose answer depends on a dynamic size."""
    # Not before a compiler is there: it imports much.
    from torch.fx.experimental.symbolic_shapes import statically_known_true

    h, w, b, activation = head
    logits, held = h.shape[0] * w.shape[0], [t for t in loss.tensors() if t is not None]
    few = chunk_rows is None and statically_known_true(few_logits(h.shape[0], w.shape[0], h.is_cuda))
    if few or h.is_meta:
        return False
    # Of frozen operands, torch may keep less than dh or dw.
    made = h.numel() if h.requires_grad else w.numel() if w.requires_grad else 0
    if torch.is_grad_enabled() and not (h.requires_grad and w.requires_grad) and statically_known_true(made > logits):
        return False
    typed = [h, w, b, *(t for name, t in zip(loss.held, loss.tensors(), strict=True) if name not in loss.of_any_dtype)]
    dtypes = {t.dtype for t in typed if t is not None and t.is_floating_point()}
    alike = torch.float64 not in dtypes if torch.is_autocast_enabled(h.device.type) else len(dtypes) == 1
    return (
        activation.spelled != ""
        and type(loss) in _KINDS
        and alike
        and dtypes <= FLOATS
        and not any(t.requires_grad for t in held)
    )


def loss_by_operation(head: Head, loss: Any, reduction: str, chunk_rows: int | None, stats: bool) -> list[Tensor]:
    """Compute the loss, ln Σeᶻ of each row, and whether it is right: the latter two empty unless they are asked for."""
    h, w, b, activation = head
    grad = torch.is_grad_enabled()
    classes = isinstance(loss, CrossEntropy)
    tensors = [getattr(loss, name, None) for name in ("target", "weight", "pos_weight", "row_weight")]
    numbers = (loss.ignore_index, loss.label_smoothing, loss.z_loss) if classes else (-100, 0.0, 0.0)
    needed = [grad and t is not None and t.requires_grad for t in (h, w, b)]
    how = _KINDS[type(loss)], activation.spelled, reduction, chunk_rows
    value, _, _, _, *seen = linear_loss(h, w, b, *tensors, *how, *numbers, None, needed, stats)
    return [value, *seen]


def _asked(arguments: Sequence[Any], g: Tensor | None = None) -> Asked:
    # Who counts is told how to. To import the counter takes a while, and Triton with it.
    if "torch.utils.flop_counter" in sys.modules:
        _tell_flops()
    if any(t is not None and unpack_dual(t).tangent is not None for t in (*arguments[:7], g)):  # type: ignore[no-untyped-call]
        raise RuntimeError("expected a loss in chunks without tangents, which no compiled graph has")
    return Asked(*arguments)


@lru_cache(maxsize=1)
def _tell_flops() -> None:
    """Tell how many operations z, dh and dw take: of shapes, in place of tensors."""
    from torch.utils.flop_counter import register_flop_formula

    def of_all(*shapes: Any, **_: Any) -> int:
        asked: Any = Asked(*shapes)
        count: int = 2 * asked.h[0] * asked.h[1] * asked.w[0] * (1 + asked.needed[0] + asked.needed[1])
        return count

    def of_forward(*shapes: Any, **_: Any) -> int:
        asked = Asked(*shapes)
        return of_all(*asked._replace(needed=[False] * 3 if asked.reduction == "none" else asked.needed))

    register_flop_formula(torch.ops.manual_mlp.linear_loss)(of_forward)
    register_flop_formula(torch.ops.manual_mlp.linear_loss_backward)(lambda g, *shapes, **_: of_all(*shapes))


def _compute(*arguments: Any) -> tuple[Tensor, ...]:
    asked = _asked(arguments)
    needed = [False] * 3 if asked.again else asked.needed
    value, *made, logsumexp, correct = _natively(asked, needed) or _plainly(asked, needed)
    return _present(asked, [value, *_in_dtypes(asked, made), logsumexp, correct])


def _natively(asked: Asked, needed: list[bool]) -> Sequence[Tensor | None] | None:
    if native.doors is None:
        return None
    head = asked.h, asked.w, asked.b, of_spelled(asked.activation)
    of = asked.loss, asked.target, asked.weight, asked.pos_weight, asked.row_weight
    numbers = asked.ignore_index, asked.label_smoothing, asked.z_loss
    with torch.autocast(asked.h.device.type, asked.region, enabled=asked.region is not None):
        found = native.doors.head_made(*head, asked.reduction, asked.chunk_rows, *of, *numbers, asked.stats, *needed)
    return found if found is None or asked.stats else (*found, None, None)


def _plainly(asked: Asked, needed: list[bool]) -> Sequence[Tensor | None]:
    loss = asked.made()
    seen = loss.watched(asked.h) if isinstance(loss, CrossEntropy) and asked.stats else (None, None)
    value, made = with_gradients(asked.step(loss), asked.operands, needed)
    return value, *made, *seen


def _compute_again(g: Tensor, *arguments: Any) -> tuple[Tensor, ...]:
    asked = _asked(arguments, g)
    loss = asked.made()
    scale = loss.mean_now()[1] if asked.reduction == "mean" else 1.0
    with torch.no_grad():
        made = gradients_again(asked.step(loss), asked.operands, weights(loss, g, scale), asked.needed)
    return _present(asked, _in_dtypes(asked, made))


def _nothing(g: Tensor, of: Tensor) -> Tensor:
    return torch.zeros_like(g)


def _in_dtypes(asked: Asked, made: Sequence[Tensor | None]) -> Found:
    return in_dtypes(made, [None if t is None else t.dtype for t in asked.operands])


def _present(asked: Asked, found: Sequence[Tensor | None]) -> tuple[Tensor, ...]:
    """Lay out what an operation returns, whose outputs may not be missing."""
    return tuple(asked.h.new_empty(0) if t is None else t.contiguous() for t in found)


def _like(asked: Asked, needed: Sequence[bool]) -> list[Tensor]:
    """List what is like dh, dw and db, and empty where one is not needed."""
    pairs = zip(asked.operands, needed, strict=True)
    return [t.new_empty(t.shape) if t is not None and need else asked.h.new_empty(0) for t, need in pairs]


def _fake(*arguments: Any) -> tuple[Tensor, ...]:
    asked = _asked(arguments)
    h, rows = asked.h, asked.h.shape[:1]
    apart = (*rows, *asked.w.shape[:1]) if asked.by_entry else tuple(rows)
    dtype = h.dtype if asked.region is None else widened(asked.products)
    value = h.new_empty(apart if asked.reduction == "none" else (), dtype=dtype)
    seen = rows if asked.stats else (0,)
    kinds = (widened(h.dtype), torch.bool) if asked.stats else (h.dtype, h.dtype)
    made = _like(asked, [False] * 3 if asked.again else asked.needed)
    return value, *made, *(h.new_empty(seen, dtype=kind) for kind in kinds)


def _fake_again(_: Tensor, *arguments: Any) -> tuple[Tensor, ...]:
    asked = _asked(arguments)
    return tuple(_like(asked, asked.needed))


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    ctx.set_materialize_grads(False)
    ctx.mark_non_differentiable(*output[1:])
    ctx.save_for_backward(*inputs[:7], *output[1:4])
    ctx.rest = inputs[7:]


def _backward(ctx: Any, g: Tensor | None, *_: Any) -> tuple[Tensor | None, ...]:
    *tensors, dh, dw, db = ctx.saved_tensors
    asked = Asked(*tensors, *ctx.rest)
    if any(need and not told for need, told in zip(ctx.needs_input_grad, asked.needed, strict=False)):
        raise RuntimeError(f"expected needed to tell of every operand that requires grad, got {asked.needed}")
    found: Sequence[Tensor | None] = (None,) * 3
    if g is None:
        pass
    elif torch.is_grad_enabled():
        found = _differentiable(asked, g)
    elif asked.again:
        found = linear_loss_backward(g, *asked)
    else:
        # A compiler refuses second derivatives only where backward keeps what requires grad: a parameter is there.
        for of in [t for t in (asked.w, asked.b) if t is not None and t.requires_grad] or [asked.h]:
            g = g + linear_loss_nothing(g, of)
        found = [cast(t * g, t.dtype) for t in (dh, dw, db)]
    pairs = zip(found, asked.needed, strict=True)
    return *(t if need else None for t, need in pairs), *(None,) * (len(asked) - 3)


def _differentiable(asked: Asked, g: Tensor) -> Found:
    loss = asked.made()
    scale = loss.mean()[1] if asked.reduction == "mean" else 1.0
    g = weights(loss, g, scale)
    g = g if g.dim() == 2 else g.expand(len(asked.target))[:, None]
    return by_composite(asked.step(loss), asked.needed)(*asked.operands, g)


def _under_autocast(kind: str) -> None:
    """Let the operation tell itself which dtype autocast gives to products: what it is given stays as it is."""

    def run(*arguments: Any) -> Any:
        region = torch.get_autocast_dtype(kind)
        with torch.autocast(kind, enabled=False):
            return linear_loss(*Asked(*arguments)._replace(region=region))

    _LIBRARY.impl("linear_loss", run, f"Autocast{kind.upper()}")  # type: ignore[no-untyped-call]


_SIX, _THREE = (f"({', '.join(['Tensor'] * count)})" for count in (6, 3))
linear_loss: Any = torch.library.custom_op(
    "manual_mlp::linear_loss", _compute, mutates_args=(), schema=f"({_ARGUMENTS}) -> {_SIX}"
)
linear_loss_backward: Any = torch.library.custom_op(
    "manual_mlp::linear_loss_backward", _compute_again, mutates_args=(), schema=f"(Tensor g, {_ARGUMENTS}) -> {_THREE}"
)
linear_loss.register_fake(_fake)
linear_loss_backward.register_fake(_fake_again)
linear_loss.register_autograd(_backward, setup_context=_keep)
linear_loss_nothing: Any = torch.library.custom_op(
    "manual_mlp::linear_loss_nothing", _nothing, mutates_args=(), schema="(Tensor g, Tensor of) -> Tensor"
)
linear_loss_nothing.register_fake(_nothing)
linear_loss_nothing.register_vmap(lambda _, dims, g, of: (linear_loss_nothing(g, of), dims[0]))
_LIBRARY = torch.library.Library("manual_mlp", "FRAGMENT")  # type: ignore[no-untyped-call]
for _kind in ("cpu", "cuda"):
    _under_autocast(_kind)
