"""Which entries dropout zeroes: a hash of the random state, the layer, the row and the column, and of nothing else.

A forward pass with gradients or without, the second one of a checkpoint, a tile of rows and the backward pass all find
the same entries, and none of them keeps a mask. The random state is one draw of 64 bits a pass, s₀ and s₁; in 32-bit
arithmetic without a sign::

    mix(u):  u ← u ⊕ (u >> 16);  u ← 0x7feb352d u;  u ← u ⊕ (u >> 15);  u ← 0x846ca68b u
    kᵢ = mix(sᵢ + 0x9e3779b9 layer)
    u  = mix(mix(k₀ + row) + mix(k₁ + column))

An entry is zeroed where u, as a signed number, lies below p 2³² − 2³¹; the others are multiplied by 1/(1 − p). Rows are
those of the input once it is flattened to ``(N, D)``. mix is a bijection, so no two rows of a layer share their mask.

Source of mix: lowbias32, C. Wellons, Prospecting for Hash Functions (2018), without its last step, which would change
the low bits alone, and so what is zeroed by a share of 2⁻¹⁶ at most.
"""

from __future__ import annotations

from functools import lru_cache
from types import ModuleType
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd import Function

from manual_mlp.activations.record import widen
from manual_mlp.rules import rows
from manual_mlp.transforms import plain

MIX = (16, 0x7FEB352D), (15, 0x846CA68B)
LAYER = 0x9E3779B9  # 2³² divided by the golden ratio
_BLOCK = 2**16  # entries whose hashes are in the cache at once


class Mask(NamedTuple):
    """What dropout multiplies some rows of a layer's output by.

    Attributes:
        seed: int64, 0-d.
        layer: its number in the network.
        p: the share to be zeroed.
        row: the number of the first row.
    """

    seed: Tensor
    layer: int
    p: float
    row: int = 0

    def rule(self) -> tuple[int, float]:
        """Return the least hash of an entry that is kept, and what that is multiplied by."""
        return (int(self.p * 2**32) - 2**31, 1 / (1 - self.p)) if self.p < 1 else (0, 0.0)


def draw_seed(device: torch.device) -> Tensor:
    """Draw the seed of a pass on the device, by its generator: nothing waits for it, and a CUDA graph draws anew."""
    return torch.empty((), dtype=torch.int64, device=device).random_()


def drop(t: Tensor, mask: Mask, out: Tensor | None = None) -> Tensor:
    """Multiply ``(*, D)`` by a mask; into ``out`` (N, D), which may be t, if it is given and nothing is recorded."""
    if not plain(t):
        return t * factors(t, mask)
    if torch.is_grad_enabled() and t.requires_grad:
        return _DropFunction.apply(t, mask)  # type: ignore[no-any-return]
    return _dropped(t, mask, out)


def factors(like: Tensor, mask: Mask) -> Tensor:
    """Make the mask of ``(*, D)``, where more than one product asks for it."""
    made = torch.ones(like.shape, dtype=like.dtype, device=like.device)
    return made if like.is_meta else _dropped(made, mask, made)


class _DropFunction(Function):
    # For backward the mask is made once more, and nothing is kept but the seed.

    @staticmethod
    def forward(ctx: Any, t: Tensor, mask: Mask) -> Tensor:
        ctx.mask = mask
        return _dropped(t, mask, None)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> Any:
        return drop(dy, ctx.mask), None


def _dropped(t: Tensor, mask: Mask, out: Tensor | None) -> Tensor:
    kernels = _kernels() if t.is_cuda else None
    return _by_blocks(t, mask, out) if kernels is None else kernels.drop(t, mask, out)


def _by_blocks(t: Tensor, mask: Mask, out: Tensor | None) -> Tensor:
    """Multiply by torch's own operations, on so many rows at a time that what is in between stays in the cache."""
    y = torch.empty_like(t, memory_format=torch.contiguous_format) if out is None else out
    if t.is_meta or not t.numel():
        return y
    whole, result = rows(t), rows(y)
    n, d = whole.shape
    of_row, of_column = _hashes(mask, n, d, t.device)
    size = min(n, max(1, _BLOCK // d)) if t.is_cpu else n
    u, scratch = torch.empty(2, size, d, dtype=torch.int32, device=t.device)
    factor = torch.empty(size, d, dtype=widen(t[:0]).dtype, device=t.device)
    least, scale = mask.rule()
    for start in range(0, n, size):
        at = slice(start, min(start + size, n))
        few = at.stop - start
        hashes = mix_(torch.add(of_row[at, None], of_column, out=u[:few]), scratch[:few])
        torch.mul(whole[at], torch.ge(hashes, least, out=factor[:few]).mul_(scale), out=result[at])
    return y


def _hashes(mask: Mask, n: int, d: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Compute the hashes of the rows (n,) and of the columns (d,)."""
    halves = mask.seed.to(device).reshape(1).view(torch.int32)  # the low one first
    of_layer = mix_(halves + _signed(LAYER * mask.layer), torch.empty_like(halves))
    both = torch.arange(n + d, dtype=torch.int32, device=device)
    of_row, of_column = both[:n], both[n:]
    of_row.add_(of_layer[0]).add_(mask.row)
    of_column.add_(of_layer[1]).sub_(n)
    mix_(both, torch.empty_like(both))
    return of_row, of_column


def mix_(u: Tensor, scratch: Tensor) -> Tensor:
    """Hash int32 in place. torch shifts a sign in, which is taken out again."""
    for shift, factor in MIX:
        torch.bitwise_right_shift(u, shift, out=scratch).bitwise_and_((1 << (32 - shift)) - 1)
        u.bitwise_xor_(scratch).mul_(_signed(factor))
    return u


def _signed(u: int) -> int:
    """Give the int32 whose bits are the low ones of u."""
    return (u + 2**31) % 2**32 - 2**31


@lru_cache(maxsize=1)
def _kernels() -> ModuleType | None:
    """Find the kernel for a GPU, where Triton is installed."""
    try:
        from manual_mlp.engines.triton import dropout
    except ImportError:
        return None
    return dropout
