"""How many rows of logits at once? A model of the time and the bytes that a choice costs.

A step over N rows, D inputs and V outputs takes, c rows at a time, about::

    T(c) = 6 N D V / products        its three products: logits, dh and dw
         + 4 N V / logits            what is done to the logits in between
         + N/c (4 D V / weight + t)  each chunk reads the weight again and adds to dw; t is for its calls
         + 4 c V / fresh             the memory of a chunk, which the system hands out in fresh pages
         + step                      the calls of the step itself

seconds. A wide chunk reads the weight less often, a narrow one needs fewer fresh pages, and fewer bytes. Chosen is the
smallest power of two whose T is within 5 % of the least: bytes are worth that. torch's own operations, which keep all
logits, take ``6 N D V / products + 4 N V / kept``; where that is less, whatever c, they are the right choice.

The figures for CPUs were fitted to 92 steps with N from 256 to 8192, D from 64 to 768 and V from 512 to 32000, in
float32 on one and two cores with AVX-512, torch 2.14: they predict those times to 10 % (one core) and 6 % (two). Those
for CUDA come from the data sheet of an H100 and have not been checked on one.
"""

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch


@dataclass(frozen=True)
class Rates:
    """The figures of the model: operations or bytes a second, then seconds; and the bytes a chunk may take."""

    products: float
    logits: float
    weight: float
    fresh: float
    kept: float
    chunk: float
    step: float
    limit: float


CPU = Rates(125e9, 2e9, 5e9, 3e9, 0.8e9, 0.14e-3, 0.7e-3, 2**31)
CUDA = Rates(500e12, 300e9, 1e12, 1e15, 150e9, 0.1e-3, 0.3e-3, 2**28)
_FEW = [rates.step / (1 / rates.kept - 1 / rates.logits) / 4 for rates in (CPU, CUDA)]


def rows_at_once(n: int, d: int, v: int, dtype: torch.dtype, device: str) -> int:
    """Choose the rows of a chunk for products in a dtype; 0 where torch's own operations are quicker."""
    return _rows_at_once(n, d, v, dtype, device, torch.get_num_threads())


def few_logits(n: int, v: int, cuda: bool) -> bool:
    """Tell whether torch's own operations, which keep all logits, are quicker than any chunks."""
    return n * v < _FEW[int(cuda)]  # torch 2.11 does not compile an index that is a bool


@lru_cache(maxsize=256)
def _rows_at_once(n: int, d: int, v: int, dtype: torch.dtype, device: str, threads: int) -> int:
    cuda = device == "cuda"
    if few_logits(n, v, cuda):
        return 0
    rates = CUDA if cuda else CPU
    speed = 1 if cuda else threads * speed_of(dtype)
    # Sums in another dtype than the products' cost another pass.
    weight, logits = d * v * (4 if dtype.itemsize >= 4 else 8), v * max(dtype.itemsize, 4)

    def seconds(c: int) -> float:
        again = -(-n // c) * (weight / rates.weight + rates.chunk)
        return 6 * n * d * v / (rates.products * speed) + 4 * n * v / rates.logits + again + c * logits / rates.fresh

    choices = [n, *(1 << k for k in reversed(range(4, (n - 1).bit_length())))]
    times = {c: seconds(c) + rates.step for c in choices if c * logits <= rates.limit or c == choices[-1]}
    return min(c for c, time in times.items() if time <= 1.05 * min(times.values()))


def has_fast_products(dtype: torch.dtype, device: str) -> bool:
    """Tell whether products in a dtype are as fast as in float32.

    On a CPU, those in bfloat16 take twice the time where it has no instructions for them; those in float16 save none,
    and lose its range.
    """
    if device != "cpu" or dtype.itemsize >= 4:
        return True
    return dtype == torch.bfloat16 and bool(capabilities().get("amx_bf16") or capabilities().get("avx512_bf16"))


def speed_of(dtype: torch.dtype) -> int:
    """Tell how many times as fast as in float32 the products of this CPU are."""
    if dtype != torch.bfloat16:
        return 1
    return 4 if capabilities().get("amx_bf16") else 2 if capabilities().get("avx512_bf16") else 1


@lru_cache(maxsize=1)
def capabilities() -> dict[str, Any]:
    """Ask torch what this CPU can do; nothing where torch does not tell."""
    return getattr(torch.cpu, "get_capabilities", dict)()
