# mypy: disable-error-code="no-untyped-def, untyped-decorator"
"""Inference: a tile of rows goes through all layers on chip. Memory sees x and y once."""

from typing import Any

import triton  # type: ignore[import-untyped]
import triton.language as tl  # type: ignore[import-untyped]
from torch import Tensor

from benchmarks.kernels import launch
from benchmarks.kernels.device.activations import f
from benchmarks.kernels.device.tiles import ON_LEFT, affine, grid, resident
from benchmarks.kernels.forms import Form, Network, Shape


def infer(x: Tensor, network: Network, form: Form) -> Tensor:
    """Return y (N, D_out) of x (N, D_in), contiguous."""
    y = x.new_empty(len(x), len(network.biases[-1]))
    known = constants(network.shape, form)
    _infer[launch.programs(x, form),](x, network.weights, network.biases, y, len(x), **known, **launch.options(form))
    return y


def constants(shape: Shape, form: Form) -> dict[str, Any]:
    """List what the kernel knows when it is compiled."""
    return launch.common(shape, form) | {"OPEN": shape.open}


@triton.jit(do_not_specialize=["n"])
def _infer(
    x, weights, biases, y, n,
    WIDTHS: tl.constexpr, PADS: tl.constexpr, TILE: tl.constexpr, ACT: tl.constexpr, OPEN: tl.constexpr,
    SUM: tl.constexpr, HOW: tl.constexpr,
):  # fmt: skip
    LAYERS: tl.constexpr = len(WIDTHS) - 1
    LEFT: tl.constexpr = HOW[ON_LEFT]
    dtype = x.dtype.element_ty
    ws = resident(weights, LAYERS, WIDTHS, PADS, HOW)
    for tile in range(tl.program_id(0), tl.cdiv(n, TILE), tl.num_programs(0)):
        start = tl.cast(tile, tl.int64) * TILE
        none, once = tl.where(start < 0, 1, 0), tl.where(start < 0, 0, 1)
        at, inside = grid(n - start, TILE, WIDTHS[0], PADS[0], LEFT)
        h = tl.load(x + start * WIDTHS[0] + at, mask=inside, other=0.0)
        for k in tl.static_range(LAYERS):
            z = affine(ws, weights, biases, k, h, none, once, WIDTHS, PADS, TILE, SUM, HOW)
            h = (f(z, ACT) if OPEN or k < LAYERS - 1 else z).to(dtype)  # (F2)
        at, inside = grid(n - start, TILE, WIDTHS[LAYERS], PADS[LAYERS], LEFT)
        tl.store(y + start * WIDTHS[LAYERS] + at, h, mask=inside)
