"""Which entries dropout zeroes: a hash of the random state, the layer, the row and the column, and of nothing else.

A forward pass with gradients or without, the second one of a checkpoint, a tile of rows and the backward pass all find
the same entries. The random state is one draw of 64 bits a pass, with halves s₀ (low) and s₁; in 32-bit arithmetic
without a sign::

    mix(u):  u ← u ⊕ (u >> 16);  u ← 0x7feb352d u;  u ← u ⊕ (u >> 15);  u ← 0x846ca68b u
    key = mix(mix(s₀ + 0x9e3779b9 layer) + s₁)
    u   = mix(mix(key + row) + mix(column))

An entry is zeroed where u, as a signed number, lies below p 2³² − 2³¹; the others are multiplied by 1/(1 − p). Rows are
those of the input once it is flattened to ``(N, D)``. mix is a bijection, so no two rows of a layer share their mask.

Source of mix: lowbias32, C. Wellons, Prospecting for Hash Functions (2018), without its last step, which would change
low bits alone: u is compared with a threshold, and what is hashed again mixes high bits into low ones first.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd import Function

from manual_mlp.engines import engine_for
from manual_mlp.formulas.products import rows
from manual_mlp.transforms import is_plain, operations_are_watched

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
        factor: the mask itself, if it was made.
    """

    seed: Tensor
    layer: int
    p: float
    row: int = 0
    factor: Tensor | None = None

    def rule(self) -> tuple[int, float]:
        """Return the least hash of an entry that is kept, and what that is multiplied by."""
        return (int(self.p * 2**32) - 2**31, 1 / (1 - self.p)) if self.p < 1 else (0, 0.0)

    def made(self, like: Tensor) -> Mask:
        """Make the mask for what it will be multiplied with twice, unless a kernel hashes as fast as it could read."""
        if self.p == 1:
            return self._replace(factor=like.new_zeros(()))
        return self if engine_for(like).drop else self._replace(factor=factors(like, self))


def draw_seed(device: torch.device) -> Tensor:
    """Draw the seed of a pass on the device, by its generator: nothing waits for it, and a CUDA graph draws anew."""
    return torch.empty((), dtype=torch.int64, device=device).random_()


def drop(t: Tensor, mask: Mask) -> Tensor:
    """Multiply ``(*, D)`` by a mask."""
    by_engine = engine_for(t).drop if mask.factor is None and is_plain(t) else None
    if by_engine is None:
        return t * (factors(t, mask) if mask.factor is None else mask.factor)
    if torch.is_grad_enabled() and t.requires_grad:
        return _DropFunction.apply(t, mask)  # type: ignore[no-any-return]
    return by_engine(t, mask)


class _DropFunction(Function):
    # By the kernel, which makes the mask once more for backward: nothing is kept but the seed.

    @staticmethod
    def forward(ctx: Any, t: Tensor, mask: Mask) -> Tensor:
        ctx.mask = mask
        return drop(t, mask)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> Any:
        return drop(dy, ctx.mask), None


def factors(like: Tensor, mask: Mask) -> Tensor:
    """Make the mask of ``(*, D)`` by torch's own operations, so many rows at a time that hashes stay in the cache."""
    made = torch.empty(like.shape, dtype=like.dtype, device=like.device)
    if like.is_meta or not made.numel():
        return made
    whole = rows(made)
    n, d = whole.shape
    of_row, of_column = _hashes(mask, n, d, like.device)
    size = min(n, max(1, _BLOCK // d)) if like.is_cpu else n
    u, scratch = torch.empty(2, size, d, dtype=torch.int32, device=like.device)
    least, scale = mask.rule()
    for start in range(0, n, size):
        at = slice(start, min(start + size, n))
        few = at.stop - start
        hashes = mix_(torch.add(of_row[at, None], of_column, out=u[:few]), scratch[:few])
        torch.ge(hashes, least, out=whole[at]).mul_(scale)
    return made


def _hashes(mask: Mask, n: int, d: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Compute the hashes of the rows (n,) and of the columns (d,)."""
    both = torch.arange(d + n, dtype=torch.int32, device=device)
    of_column, of_row = both[:d], both[d:]
    if mask.seed.is_cpu and not operations_are_watched():  # a number is mixed sooner than a tensor of one
        seed = int(mask.seed)
        key = mix(mix(seed + LAYER * mask.layer) + (seed >> 32))
        of_row.add_(_signed(key + mask.row - d))
    else:
        halves = mask.seed.to(device).reshape(1).view(torch.int32)
        low, high = halves[:1], halves[1:]
        scratch = torch.empty_like(low)
        of_row.add_(mix_(mix_(low + _signed(LAYER * mask.layer), scratch).add_(high), scratch)).add_(mask.row - d)
    mix_(both, torch.empty_like(both))
    return of_row, of_column


def mix(u: int) -> int:
    """Hash a number."""
    for shift, factor in MIX:
        u %= 2**32
        u = (u ^ u >> shift) * factor
    return u % 2**32


def mix_(u: Tensor, scratch: Tensor) -> Tensor:
    """Hash int32 in place. torch shifts a sign in, which is taken out again."""
    for shift, low, factor in _NUMBERS if operations_are_watched() else _tensors():
        torch.bitwise_right_shift(u, shift, out=scratch).bitwise_and_(low)
        u.bitwise_xor_(scratch).mul_(factor)
    return u


def _signed(u: int) -> int:
    """Give the int32 whose bits are the low ones of u."""
    return (u + 2**31) % 2**32 - 2**31


_NUMBERS = [(shift, 2 ** (32 - shift) - 1, _signed(factor)) for shift, factor in MIX]


@lru_cache(maxsize=1)
def _tensors() -> list[list[Tensor]]:
    # torch takes longer to make a tensor of a number than to shift a few rows.
    return [[torch.tensor(number, dtype=torch.int32, device="cpu") for number in step] for step in _NUMBERS]
