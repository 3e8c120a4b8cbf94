"""How a kernel is launched: what it is compiled for, with which options, as how many programs."""

from typing import Any

import torch
import triton  # type: ignore[import-untyped]
import triton.language as tl  # type: ignore[import-untyped]
from torch import Tensor

from benchmarks.kernels.forms import Form, Shape

LEAST = 16  # the narrowest product of Triton's
# The interpreter takes programs one after the other. Several show that their shares are added up.
INTERPRETED = 3


def wide(dtype: torch.dtype) -> torch.dtype:
    """Return the dtype of sums over tensors of a dtype."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def common(shape: Shape, form: Form) -> dict[str, Any]:
    """List what every kernel knows when it is compiled: see :mod:`benchmarks.kernels.device.tiles`."""
    precision = "tf32" if form.tf32 or shape.dtype.itemsize == 2 else "ieee"
    return {
        "WIDTHS": shape.widths,
        "PADS": tuple(max(LEAST, triton.next_power_of_2(width)) for width in shape.widths),
        "TILE": form.tile,
        "ACT": shape.activation,
        "SUM": tl.float64 if shape.dtype == torch.float64 else tl.float32,
        "HOW": (form.resident, form.left, form.hide, precision),
    }


def options(form: Form) -> dict[str, int]:
    """List the options of a launch; the interpreter has none."""
    if triton.knobs.runtime.interpret:
        return {}
    most = {} if form.registers is None else {"maxnreg": form.registers}
    return {"num_warps": form.warps, "num_stages": form.stages, **most}


def programs(x: Tensor, form: Form) -> int:
    """Say as how many programs a kernel runs: no more than there are tiles."""
    asked = form.programs
    if asked is None:
        on = torch.cuda.get_device_properties(x.device).multi_processor_count if x.is_cuda else INTERPRETED
        asked = form.blocks * on
    tiles: int = triton.cdiv(len(x), form.tile)
    return max(1, min(asked, tiles))
