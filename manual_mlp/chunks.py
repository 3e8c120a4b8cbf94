"""How many rows of logits at once? A model of the time and the bytes that a choice costs.

A step over N rows, D inputs and V outputs, c rows at a time, is counted in bytes of memory traffic; an operation of
a product stands for ``1/balance`` bytes::

    T(c) = 6 N D V / balance           the three products: logits, dh and dw
         + N/c (P D V s + overhead)    each chunk reads the weight twice, and adds to dw; and calls some kernels
         + 9 N V s g(2 c V s)          nine passes over the logits, g of a byte's cost while a chunk is in cache, else 1
         + fresh c V s                 the chunk's own memory, which the system hands out in fresh pages

A small c keeps the logits in cache, a large one re-reads the weight less often. Chosen is the smallest power of two
whose T is within 5 % of the least: bytes are worth that. The constants were fitted to runs on CPUs with AVX-512 (two
cores; N, D, V from 1024, 512, 8192 to 4096, 512, 32000); those for CUDA are from data sheets and have not been run.
"""

from functools import lru_cache
from typing import Any, NamedTuple

import torch


class Costs(NamedTuple):
    """What a kind of device costs; see the module's formula."""

    balance: float  # operations of a product in the time of a byte
    overhead: float  # bytes in the time that a chunk's calls take
    cache: float  # bytes of cache for a chunk and its softmax
    in_cache: float  # g: a byte in cache for a byte of memory
    fresh: float  # bytes of traffic for a byte of fresh pages
    limit: float  # bytes that a chunk may take at most
    step: float  # bytes in the time that a step's own calls take


def costs(device: str) -> Costs:
    """Return the costs of ``cpu`` or another kind of device."""
    if device == "cpu":
        return Costs(16, 0.5e6, float(_capabilities().get("l2_cache_size") or 1e6), 0.25, 10, 2**31, 1e6)
    return Costs(200, 100e6, 32e6, 0.5, 0, 2**28, 200e6)


@lru_cache(maxsize=256)
def rows_at_once(n: int, d: int, v: int, size: int, device: str) -> int:
    """Choose the rows of a chunk; ``size`` is that of a logit in bytes."""
    cost, options = costs(device), [n]
    while options[-1] > 16:
        options.append(1 << ((options[-1] - 1).bit_length() - 1))
    fitting = [c for c in options if c * v * size <= cost.limit] or options[-1:]
    times = [seconds(c, n, d, v, size, cost) for c in fitting]
    return min(c for c, time in zip(fitting, times, strict=True) if time <= 1.05 * min(times))


def seconds(c: int, n: int, d: int, v: int, size: int, cost: Costs) -> float:
    """Estimate the time of a step in the unit of the module's formula."""
    chunks, logits = -(-n // c), n * v * size
    # The sums of dw are read and written for each chunk but the first, in float32 at least.
    weight = d * v * (1.5 * size + max(size, 4) * (chunks > 1))
    passes = 9 * (cost.in_cache if 2 * c * v * size <= cost.cache else 1.0)
    return (
        6 * n * d * v / cost.balance + chunks * (weight + cost.overhead) + passes * logits + cost.fresh * c * v * size
    )


def has_fast_bfloat16(device: str) -> bool:
    """Tell whether products in bfloat16 are faster than in float32: on a CPU without AMX they take twice the time."""
    return device != "cpu" or bool(_capabilities().get("amx_bf16"))


@lru_cache(maxsize=1)
def _capabilities() -> dict[str, Any]:
    return getattr(torch.cpu, "get_capabilities", dict)()
