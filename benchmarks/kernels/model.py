"""A model of a kernel's time on an H100, from what was compiled: a guess, to be held beside what is measured."""

from collections.abc import Mapping
from itertools import pairwise
from math import ceil
from typing import Any

from benchmarks.kernels.cases import Variant

ROWS = 1 << 17
# Of an H100 SXM: multiprocessors, cycles a second, bytes a second that memory sustains; that of the L2 is a guess.
MULTIPROCESSORS, CLOCK, MEMORY, CACHE = 132, 1.755e9, 3.0e12, 4.0e12
REGISTERS, SHARED_KB, WARPS = 65536, 227, 64  # of a multiprocessor
# Guesses, in cycles: of a product that the next one waits for, of a barrier, of a tile's first loads.
PRODUCT, BARRIER, LOADS = 180, 30, 1500
MULTIPLY_ADDS = 2048  # a cycle of the tensor cores
LAUNCH = 2.5  # µs of a launch, of which a kernel with sums has two


def products_of(variant: Variant) -> list[tuple[int, int, int]]:
    """List the sizes of every product of a tile: forward, back, dW, and what is computed again."""
    widths, tile, again = variant.shape.widths, variant.form.tile, variant.form.again
    padded = [max(16, width) for width in widths]
    layers = [(tile, d_in, d_out) for d_in, d_out in pairwise(padded)]
    if variant.kernel == "infer":
        return layers
    if variant.kernel == "step":
        return 2 * layers + (2 if again else 1) * layers[1:] + (layers[:1] if variant.task.need_dx else [])
    hidden = layers[:-1]
    first = hidden + (2 if again else 1) * hidden[1:]
    if variant.kernel == "field":
        return first + hidden[:1]
    return first + (6 if again else 3) * hidden + (2 if again else 1) * hidden[1:]


def row_bytes(variant: Variant) -> tuple[float, float]:
    """Return the bytes a row of memory, and of the L2 cache: sums, and weights that are read again."""
    widths, form, size = variant.shape.widths, variant.form, variant.shape.dtype.itemsize
    ends = widths[0] + widths[-1] + (widths[0] if variant.task.need_dx else 0)
    weights = [a * b for a, b in pairwise(widths)]
    sums = 4 / form.tile * (sum(widths[1:]) + sum(weights[form.keep :]))
    again = 0 if form.resident else 3 * size / form.tile * sum(weights)
    if variant.kernel == "infer":
        return size * ends, 0.0
    if variant.kernel == "step":
        return size * ends, sums + again
    # x and ∂y/∂x with y, or x and both cotangents.
    return size * (2 * widths[0] + 1), 0.0 if variant.kernel == "field" else sums


def microseconds(found: Mapping[str, Any], variant: Variant, rows: int = ROWS) -> dict[str, float]:
    """Return what a kernel's time would be by each limit alone, and the greatest as ``us``, with its launches.

    issue: its instructions, four warps at once; tensor: its products, at half the rate where ptxas lets them wait for
    each other; chain: products, barriers and loads of a tile in turn, which other blocks hide; memory and cache: its
    bytes.
    """
    tile, warps = variant.form.tile, variant.form.warps
    by_registers = REGISTERS // (found["registers"] * 32 * warps)
    by_shared = int(SHARED_KB // max(found["shared_kb"], 1))
    blocks = max(1, min(by_registers, by_shared, WARPS // warps))
    turns = ceil(ceil(rows / tile) / (MULTIPROCESSORS * blocks))
    own = found["instructions"] * warps / 4
    sizes = products_of(variant)
    products = sum(m * n * k for m, n, k in sizes) / MULTIPLY_ADDS * (2 if found["serialised"] else 1)
    cycles = {
        "issue": own * blocks,
        "tensor": products * blocks,
        "chain": len(sizes) * PRODUCT + found["barriers"] * BARRIER + LOADS + own,
    }
    memory, cache = row_bytes(variant)
    limits = {name: turns * count / CLOCK * 1e6 for name, count in cycles.items()}
    limits |= {"memory": rows * memory / MEMORY * 1e6, "cache": rows * cache / CACHE * 1e6}
    launches = LAUNCH * (1 if variant.kernel in ("infer", "field") else 2)
    return {"blocks": blocks, **limits, "us": max(limits.values()) + launches}
