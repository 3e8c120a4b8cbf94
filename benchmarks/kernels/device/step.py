# mypy: disable-error-code="assignment, no-untyped-def, untyped-decorator"
# Triton reads neither an unpacked list nor code after a return.
# ruff: noqa: RUF005
"""The training step: a tile of rows goes forward through all layers and the loss, and back, on chip.

On chip stay the weights and every product's operand of a tile (in shared memory), and dW's sums (in registers). Memory
sees x and the target once, and of each program its share of the sums. What is no operand of a product is computed
again: z a second time costs one more product a layer; kept, it would lie in registers, of which there are too few.
"""

from typing import Any

import torch
import triton  # type: ignore[import-untyped]
import triton.language as tl  # type: ignore[import-untyped]
from torch import Tensor

from benchmarks.kernels import launch
from benchmarks.kernels.device import sums
from benchmarks.kernels.device.activations import df, f
from benchmarks.kernels.device.losses import objective
from benchmarks.kernels.device.sums import add, add_matrix, put, put_matrix
from benchmarks.kernels.device.tiles import ON_LEFT, across, affine, drop, grid, outer, resident
from benchmarks.kernels.forms import Form, Network, Shape, Task

Gradients = tuple[Tensor, list[Tensor], list[Tensor], Tensor | None]


def step(x: Tensor, network: Network, target: Tensor, task: Task, form: Form) -> Gradients:
    """Return the mean loss, dW and db of every layer, and dx if the task needs it.

    Shape:
        - x: (N, D_in), contiguous. target: (N, D_out), or labels (N,) for "cross_entropy"; for the loss "dy" it is
          ∂J/∂y, and the loss that is returned is 0.
    """
    known, options = constants(network.shape, task, form), launch.options(form)
    programs = launch.programs(x, form)
    shares = x.new_empty(programs, known["STRIDE"], dtype=launch.wide(x.dtype))
    dx = torch.empty_like(x) if task.need_dx else None
    scale = 1.0 if task.loss == "dy" else 1 / max(1, target.numel())
    _step[programs,](
        x, target, network.weights, network.biases, x if dx is None else dx, shares, len(x), scale, task.seed,
        **known, **options,
    )  # fmt: skip
    return *sums.add_up(shares, network.weights), dx


def constants(shape: Shape, task: Task, form: Form) -> dict[str, Any]:
    """List what the kernel knows when it is compiled."""
    return {
        **launch.common(shape, form),
        **sums.constants(shape.widths),
        "LOSS": task.loss,
        "DROP": task.dropout,
        "DX": task.need_dx,
        "OPEN": shape.open,
        "KEEP": min(form.keep, len(shape.widths) - 1),
        "AGAIN": form.again,
    }


@triton.jit(do_not_specialize=["n", "seed"])
def _step(
    x, target, weights, biases, dx, shares, n, scale, seed,
    WIDTHS: tl.constexpr, PADS: tl.constexpr, AT: tl.constexpr, STRIDE: tl.constexpr, TILE: tl.constexpr,
    ACT: tl.constexpr, LOSS: tl.constexpr, DROP: tl.constexpr, DX: tl.constexpr, KEEP: tl.constexpr,
    AGAIN: tl.constexpr, OPEN: tl.constexpr, SUM: tl.constexpr, HOW: tl.constexpr,
):  # fmt: skip
    LAYERS: tl.constexpr = len(WIDTHS) - 1
    LEFT: tl.constexpr = HOW[ON_LEFT]
    ROWS: tl.constexpr = 1 if LEFT else 0
    me = tl.program_id(0)
    dtype = x.dtype.element_ty
    mine = shares + me.to(tl.int64) * STRIDE
    ws = resident(weights, LAYERS, WIDTHS, PADS, HOW)
    dws = ()
    for k in tl.static_range(LAYERS):
        put(mine + AT[2 * k + 1], tl.full((PADS[k + 1],), 0.0, SUM), WIDTHS[k + 1], PADS[k + 1])
        zeros = tl.full((PADS[k + 1], PADS[k]), 0.0, SUM)
        if k < KEEP:
            dws = dws + (zeros,)
        else:
            put_matrix(mine + AT[2 * k], zeros, WIDTHS[k + 1], PADS[k + 1], WIDTHS[k], PADS[k])
    tl.debug_barrier()
    loss = tl.full((TILE,), 0.0, SUM)
    for tile in range(me, tl.cdiv(n, TILE), tl.num_programs(0)):
        start = tl.cast(tile, tl.int64) * TILE
        # 0 and 1 that the compiler does not know: else it holds biases in registers, and z from forward to backward.
        none, none2, once = tl.where(start < 0, 1, 0), tl.where(start < 0, 2, 0), tl.where(start < 0, 0, 1)
        at, inside = grid(n - start, TILE, WIDTHS[0], PADS[0], LEFT)
        h = tl.load(x + start * WIDTHS[0] + at, mask=inside, other=0.0)
        inputs, slopes = (), ()
        for k in tl.static_range(LAYERS):
            inputs = inputs + (h,)
            z = affine(ws, weights, biases, k, h, none, once, WIDTHS, PADS, TILE, SUM, HOW)
            if k < LAYERS - 1:
                y = f(z, ACT)  # (F2)
                if not AGAIN:
                    slopes = slopes + (df(z, ACT).to(dtype),)
                if DROP > 0:
                    y = drop(y, seed, start, k, TILE, PADS[k + 1], DROP, LEFT)
                h = y.to(dtype)
        losses, delta = objective(
            z, target, start, n, scale, WIDTHS[LAYERS], PADS[LAYERS], TILE, ACT, LOSS, OPEN, SUM, LEFT
        )
        loss += losses
        more = ()
        for k in tl.static_range(LAYERS - 1, -1, -1):
            narrow = delta.to(dtype)
            add(mine + AT[2 * k + 1], tl.sum(delta, ROWS), WIDTHS[k + 1], PADS[k + 1])  # (B4)
            if k < KEEP:
                more = (outer(narrow, inputs[k], dws[k], HOW),) + more
            else:
                dw = outer(narrow, inputs[k], tl.full((PADS[k + 1], PADS[k]), 0.0, SUM), HOW)
                add_matrix(mine + AT[2 * k], dw, WIDTHS[k + 1], PADS[k + 1], WIDTHS[k], PADS[k])
            if k > 0 or DX:
                delta = across(ws, weights, k, narrow, none, once, WIDTHS, PADS, TILE, SUM, HOW)
            if k > 0:
                if AGAIN:
                    z = affine(ws, weights, biases, k - 1, inputs[k - 1], none2, once, WIDTHS, PADS, TILE, SUM, HOW)
                    delta = delta * df(z, ACT)  # (B1)
                else:
                    delta = delta * slopes[k - 1].to(SUM)  # (B1)
                if DROP > 0:
                    delta = drop(delta, seed, start, k - 1, TILE, PADS[k], DROP, LEFT)
        dws = more
        if DX:
            at, inside = grid(n - start, TILE, WIDTHS[0], PADS[0], LEFT)
            tl.store(dx + start * WIDTHS[0] + at, delta.to(dtype), mask=inside)
    for k in tl.static_range(KEEP):
        put_matrix(mine + AT[2 * k], dws[k], WIDTHS[k + 1], PADS[k + 1], WIDTHS[k], PADS[k])
    tl.store(mine + AT[2 * LAYERS], tl.sum(loss, 0))
