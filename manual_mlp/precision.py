"""Dtypes and autocast: what is rounded where, and which products are fast."""

from contextlib import AbstractContextManager, nullcontext
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from manual_mlp.transforms import may_autocast

FLOATS = frozenset((torch.float16, torch.bfloat16, torch.float32, torch.float64))  # what torch multiplies by itself


def widen(t: Tensor) -> Tensor:
    """Turn half precision into float32, so that a result is rounded once, as in torch's own kernels."""
    return t.float() if t.dtype in (torch.float16, torch.bfloat16) else t


def widened(dtype: torch.dtype) -> torch.dtype:
    """Return float32 for half precision, and any other dtype itself."""
    return torch.float32 if dtype in (torch.float16, torch.bfloat16) else dtype


def cast(t: Tensor, dtype: torch.dtype) -> Tensor:
    """Turn a tensor into a dtype, and leave it alone if it is of that dtype."""
    return t if t.dtype == dtype else t.to(dtype)


def autocasting(t: Tensor) -> bool:
    """Tell whether autocast is on for the tensor's device."""
    if not may_autocast():
        return False
    kind = t.device.type
    return kind != "meta" and torch.is_autocast_enabled(kind)


def autocast_dtype(t: Tensor) -> torch.dtype | None:
    """Return the dtype that autocast gives to products on the tensor's device, None where it is off."""
    return torch.get_autocast_dtype(t.device.type) if autocasting(t) else None


def uncast(t: Tensor) -> AbstractContextManager[Any]:
    """Leave autocast, if it is on: dtypes are chosen here."""
    return torch.autocast(t.device.type, enabled=False) if autocasting(t) else nullcontext()


def product_dtype(dtype: torch.dtype, device: torch.device) -> torch.dtype:
    """Return the dtype in which products of narrow operands are computed: float32 where that is no slower.

    On a CPU, products in bfloat16 take twice the time where it has no instructions for them; those in float16 save
    none, and lose its range.
    """
    if device.type != "cpu" or dtype.itemsize >= 4:
        return dtype
    return dtype if dtype == torch.bfloat16 and speed_of(dtype) > 1 else torch.float32


def speed_of(dtype: torch.dtype) -> int:
    """Tell how many times as fast as in float32 the products of this CPU are."""
    if dtype != torch.bfloat16:
        return 1
    return 4 if capabilities().get("amx_bf16") else 2 if capabilities().get("avx512_bf16") else 1


@lru_cache(maxsize=1)
def capabilities() -> dict[str, Any]:
    """Ask torch what this CPU can do; nothing where torch does not tell."""
    return getattr(torch.cpu, "get_capabilities", dict)()
