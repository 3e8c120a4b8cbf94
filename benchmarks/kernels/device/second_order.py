# mypy: disable-error-code="assignment, no-untyped-def, untyped-decorator, var-annotated"
# Triton reads neither an unpacked list nor code after a return.
# ruff: noqa: RUF005, SIM108
"""Second order: a field y(x), one number a row, with its gradient ∂y/∂x; and the backward of a loss K of both.

Letters are those of docs/derivation.md, section 11: δ is ∂y/∂z, h̃ is ∂K/∂dh and so, in a layer, what S3 found in the
layer below; q = h̃ wᵀ (w̃ and b̃ are missing), r is ∂K/∂z. On chip stay h, δ and h̃, all of them operands of products.
"""

from typing import Any

import torch
import triton  # type: ignore[import-untyped]
import triton.language as tl  # type: ignore[import-untyped]
from torch import Tensor

from benchmarks.kernels import launch
from benchmarks.kernels.device import sums
from benchmarks.kernels.device.activations import d2f, df, f
from benchmarks.kernels.device.sums import add, add_matrix, put, put_matrix
from benchmarks.kernels.device.tiles import ON_LEFT, across, affine, ahead, along, grid, outer, resident
from benchmarks.kernels.forms import Form, Network, Shape, Task


def value_and_gradient(x: Tensor, network: Network, form: Form) -> tuple[Tensor, Tensor]:
    """Return y (N,) of x (N, D), contiguous, and ∂y/∂x (N, D); the network has one output."""
    y, gradient = x.new_empty(len(x)), torch.empty_like(x)
    known = constants(network.shape, Task(), form) | {"BACK": False}
    _second[launch.programs(x, form),](
        x, network.weights, network.biases, y, gradient, x, x, x, x, len(x), **known, **launch.options(form)
    )
    return y, gradient


def backward(
    x: Tensor, network: Network, cotangents: tuple[Tensor, Tensor], need_dx: bool, form: Form
) -> tuple[list[Tensor], list[Tensor], Tensor | None]:
    """Return dW and db of every layer, and dx if it is needed, of a loss K of a field and of its gradient.

    Shape:
        - x: (N, D), contiguous. cotangents: ∂K/∂y (N,) and ∂K/∂(∂y/∂x) (N, D).
    """
    known, programs = constants(network.shape, Task(need_dx=need_dx), form), launch.programs(x, form)
    shares = x.new_empty(programs, known["STRIDE"], dtype=launch.wide(x.dtype))
    dx = torch.empty_like(x) if need_dx else None
    _second[programs,](
        x, network.weights, network.biases, x, x, *cotangents, x if dx is None else dx, shares, len(x),
        **known, **launch.options(form),
    )  # fmt: skip
    _, dws, dbs = sums.add_up(shares, network.weights)
    return dws, dbs, dx


def constants(shape: Shape, task: Task, form: Form) -> dict[str, Any]:
    """List what the kernel of the backward knows when it is compiled."""
    return {
        **launch.common(shape, form),
        **sums.constants(shape.widths),
        "BACK": True,
        "DX": task.need_dx,
        "KEEP": min(form.keep, len(shape.widths) - 2),
        "AGAIN": form.again,
    }


@triton.jit(do_not_specialize=["n"])
def _second(
    x, weights, biases, y, gradient, dy, tilde, dx, shares, n,
    WIDTHS: tl.constexpr, PADS: tl.constexpr, AT: tl.constexpr, STRIDE: tl.constexpr, TILE: tl.constexpr,
    ACT: tl.constexpr, BACK: tl.constexpr, DX: tl.constexpr, KEEP: tl.constexpr, AGAIN: tl.constexpr,
    SUM: tl.constexpr, HOW: tl.constexpr,
):  # fmt: skip
    """What is no operand of a product is with ``AGAIN`` computed again (z, dh and q), else kept in registers."""
    HIDDEN: tl.constexpr = len(WIDTHS) - 2
    LEFT: tl.constexpr = HOW[ON_LEFT]
    FEATURES: tl.constexpr = 0 if LEFT else 1
    D: tl.constexpr = WIDTHS[0]
    TOP: tl.constexpr = PADS[HIDDEN]
    me = tl.program_id(0)
    dtype = x.dtype.element_ty
    mine = shares + me.to(tl.int64) * STRIDE
    ws = resident(weights, HIDDEN, WIDTHS, PADS, HOW)
    dws = ()
    tops = tl.arange(0, TOP)
    if BACK:
        for k in tl.static_range(HIDDEN):
            put(mine + AT[2 * k + 1], tl.full((PADS[k + 1],), 0.0, SUM), WIDTHS[k + 1], PADS[k + 1])
            zeros = tl.full((PADS[k + 1], PADS[k]), 0.0, SUM)
            if k < KEEP:
                dws = dws + (zeros,)
            else:
                put_matrix(mine + AT[2 * k], zeros, WIDTHS[k + 1], PADS[k + 1], WIDTHS[k], PADS[k])
        put(mine + AT[2 * HIDDEN], tl.full((TOP,), 0.0, SUM), WIDTHS[HIDDEN], TOP)
        tl.debug_barrier()
    db_last = tl.full((TILE,), 0.0, SUM)
    for tile in range(me, tl.cdiv(n, TILE), tl.num_programs(0)):
        start = tl.cast(tile, tl.int64) * TILE
        # 0s and 1s that the compiler does not know, each another one: else it would hold z and q for their next use.
        none, none2, none3 = tl.where(start < 0, 1, 0), tl.where(start < 0, 2, 0), tl.where(start < 0, 3, 0)
        once, once2 = tl.where(start < 0, 0, 1), tl.where(start < -1, 0, 1)
        rows = tl.arange(0, TILE)
        alive = rows < n - start
        at, inside = grid(n - start, TILE, D, PADS[0], LEFT)
        h = tl.load(x + start * D + at, mask=inside, other=0.0)
        hs, slopes, bends = (h,), (), ()
        for k in tl.static_range(HIDDEN):
            z = affine(ws, weights, biases, k, hs[k], none, once, WIDTHS, PADS, TILE, SUM, HOW)
            hs = hs + (f(z, ACT).to(dtype),)  # (F2)
            if not AGAIN:
                slopes = slopes + (df(z, ACT).to(dtype),)
                bends = bends + (d2f(z, ACT).to(dtype),)
        w_last = tl.load(weights[HIDDEN] + none + tops, mask=tops < WIDTHS[HIDDEN], other=0.0).to(SUM)
        if not BACK:
            b_last = tl.load(biases[HIDDEN]).to(SUM)
            value = tl.sum(hs[HIDDEN].to(SUM) * along(w_last, LEFT), FEATURES) + b_last  # (F1)
            tl.store(y + start + rows, value.to(dtype), mask=alive)
        # The last layer has one output, whose δ is 1: by (B2) its dh is its weight.
        deltas, bent = ((df(z, ACT) * along(w_last, LEFT)).to(dtype),), ()  # (B1)
        if not AGAIN:
            bent = ((along(w_last, LEFT) * bends[HIDDEN - 1].to(SUM)).to(dtype),)
        for k in tl.static_range(HIDDEN - 1, 0, -1):
            dh = across(ws, weights, k, deltas[0], none, once, WIDTHS, PADS, TILE, SUM, HOW)
            if AGAIN:
                z = affine(ws, weights, biases, k - 1, hs[k - 1], none2, once, WIDTHS, PADS, TILE, SUM, HOW)
                deltas = ((dh * df(z, ACT)).to(dtype),) + deltas  # (B1)
            else:
                deltas = ((dh * slopes[k - 1].to(SUM)).to(dtype),) + deltas  # (B1)
                bent = ((dh * bends[k - 1].to(SUM)).to(dtype),) + bent
        if not BACK:
            dh = across(ws, weights, 0, deltas[0], none, once, WIDTHS, PADS, TILE, SUM, HOW)
            tl.store(gradient + start * D + at, dh.to(dtype), mask=inside)
        else:
            up = tl.load(tilde + start * D + at, mask=inside, other=0.0)
            tildes, bend_terms = (up,), ()
            for k in tl.static_range(HIDDEN):
                q = ahead(ws, weights, k, tildes[k], none, once, WIDTHS, PADS, TILE, SUM, HOW)  # (S1)
                if AGAIN:
                    z = affine(ws, weights, biases, k, hs[k], none3, once, WIDTHS, PADS, TILE, SUM, HOW)
                    up = q * df(z, ACT)  # (S3)
                else:
                    up = q * slopes[k].to(SUM)  # (S3)
                    bend_terms = bend_terms + ((q * bent[k].to(SUM)).to(dtype),)  # (S2)
                tildes = tildes + (up.to(dtype),)
            dy_row = tl.load(dy + start + rows, mask=alive, other=0.0).to(SUM)
            db_last += dy_row
            # Of the last layer: (S5), where δ is 1, and (B3).
            last = tl.sum(up + hs[HIDDEN].to(SUM) * tl.expand_dims(dy_row, FEATURES), 1 - FEATURES)
            add(mine + AT[2 * HIDDEN], last, WIDTHS[HIDDEN], TOP)
            r = along(w_last, LEFT) * tl.expand_dims(dy_row, FEATURES)  # (B2)
            more = ()
            for k in tl.static_range(HIDDEN - 1, -1, -1):
                if AGAIN:
                    z = affine(ws, weights, biases, k, hs[k], none, once2, WIDTHS, PADS, TILE, SUM, HOW)
                    q = ahead(ws, weights, k, tildes[k], none, once2, WIDTHS, PADS, TILE, SUM, HOW)
                    if k == HIDDEN - 1:
                        q = q * along(w_last, LEFT)
                    else:
                        q = q * across(ws, weights, k + 1, deltas[k + 1], none, once2, WIDTHS, PADS, TILE, SUM, HOW)
                    r = r * df(z, ACT) + q * d2f(z, ACT)  # (B1, S2)
                else:
                    r = r * slopes[k].to(SUM) + bend_terms[k].to(SUM)  # (B1)
                narrow = r.to(dtype)
                add(mine + AT[2 * k + 1], tl.sum(r, 1 - FEATURES), WIDTHS[k + 1], PADS[k + 1])  # (S6)
                if k < KEEP:
                    dw = dws[k]
                else:
                    dw = tl.full((PADS[k + 1], PADS[k]), 0.0, SUM)
                dw = outer(narrow, hs[k], dw, HOW)
                dw = outer(deltas[k], tildes[k], dw, HOW)  # (S5)
                if k < KEEP:
                    more = (dw,) + more
                else:
                    add_matrix(mine + AT[2 * k], dw, WIDTHS[k + 1], PADS[k + 1], WIDTHS[k], PADS[k])
                if k > 0 or DX:
                    r = across(ws, weights, k, narrow, none, once, WIDTHS, PADS, TILE, SUM, HOW)  # (S4)
            dws = more
            if DX:
                tl.store(dx + start * D + at, r.to(dtype), mask=inside)
    if BACK:
        for k in tl.static_range(KEEP):
            put_matrix(mine + AT[2 * k], dws[k], WIDTHS[k + 1], PADS[k + 1], WIDTHS[k], PADS[k])
        tl.store(mine + AT[2 * HIDDEN + 1], tl.sum(db_last, 0))
        tl.store(mine + AT[2 * HIDDEN + 2], 0.0)
