"""Files of the IDX format, as MNIST's are, plain or packed by gzip: read to their end, and within bounds.

A file is not trusted. How long it is to be stands in its header, and no more than that is read or unpacked.
"""

from __future__ import annotations

import hashlib
import math
import os
import stat
import struct
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import torch
from torch import Tensor

from manual_mlp.training.errors import InputError

MOST_BYTES = 2**31  # of a file, unpacked: 45 times MNIST's largest
_BLOCK = 2**16  # bytes that are read, or unpacked, at once
_OVERHEAD = 2**16  # bytes of a packed file beside its content: headers, names, empty parts

Seen = Callable[[bytes], object]


@dataclass(frozen=True)
class Idx:
    """A file that was read to its end.

    Attributes:
        shape: of its content.
        values: its content, uint8; None where it was not to be kept.
        md5: of the file, unpacked.
        packed_md5: of the file as it lies there; the same where it is not packed.
    """

    path: Path
    shape: tuple[int, ...]
    values: Tensor | None
    md5: str
    packed_md5: str

    @property
    def is_packed(self) -> bool:
        """Whether it lies there packed."""
        return _is_packed(self.path)

    @property
    def length(self) -> int:
        """Bytes of the file, unpacked."""
        return _length(self.shape)

    @property
    def called(self) -> str:
        """What errors about the content call it."""
        return _called(self.path)

    @property
    def advice(self) -> str:
        """What errors tell to do about it."""
        return _advice(self.path)


def read(path: Path, rank: int, keep: bool = True) -> Idx:
    """Read a file of bytes with so many dimensions; one whose name ends in .gz is unpacked in memory.

    Args:
        keep: whether its content is wanted; else it is only seen to be whole.

    Raises:
        InputError: it is no such file, is damaged, is longer than :data:`MOST_BYTES`, or cannot be read.
    """
    as_it_lies, unpacked = (hashlib.md5(usedforsecurity=False) for _ in range(2))
    shape, blocks = _whole(path, rank, _blocks(path, as_it_lies.update))
    # It grows with what comes: what a header announces need not.
    values = bytearray()
    for block in blocks:
        unpacked.update(block)
        if keep:
            values += block
    content = torch.frombuffer(values, dtype=torch.uint8)[4 + 4 * rank :].view(shape) if keep else None
    return Idx(path, shape, content, unpacked.hexdigest(), as_it_lies.hexdigest())


def unpack(archive: Path, rank: int, path: Path) -> None:
    """Unpack a file into another.

    Raises:
        InputError: it is no packed file of bytes with so many dimensions, is damaged, or is too long.
        OSError: the other cannot be written.
    """
    with path.open("wb") as file:
        for block in _whole(archive, rank, _blocks(archive, lambda _: None))[1]:
            file.write(block)


def _length(shape: tuple[int, ...]) -> int:
    return 4 + 4 * len(shape) + math.prod(shape)


def _whole(path: Path, rank: int, blocks: Iterator[bytes]) -> tuple[tuple[int, ...], Iterator[bytes]]:
    """Return the shape that the header announces, and all blocks, the header's too: as many bytes as it says."""
    start, length = b"", 4 + 4 * rank
    while len(start) < length and (block := next(blocks, b"")):
        start += block
    if start[:4] != bytes((0, 0, 8, rank)) or len(start) < length:
        raise InputError(
            f"expected an IDX file of bytes with {rank} dimensions, got {_called(path)} starting {start[:4]!r}"
        )
    shape = struct.unpack(f">{rank}I", start[4:length])
    expected = _length(shape)
    if expected > MOST_BYTES:
        raise InputError(
            f"expected at most {MOST_BYTES} bytes in {_called(path)}, got a header that announces {expected}: "
            f"{' x '.join(map(str, shape))}"
        )
    return shape, _exactly(expected, path, start, blocks)


def _exactly(expected: int, path: Path, start: bytes, blocks: Iterator[bytes]) -> Iterator[bytes]:
    count, block = 0, start
    while block:
        count += len(block)
        if count > expected:
            break
        yield block
        block = next(blocks, b"")
    if count != expected:
        raise InputError(
            f"expected {expected} bytes in {_called(path)}, got {'more' if count > expected else count}: "
            f"the file is damaged; {_advice(path)}"
        )


def _blocks(path: Path, seen: Seen) -> Iterator[bytes]:
    """Yield the bytes of a file block by block, unpacked if it is packed; as they lie there, `seen` is given them."""
    try:
        with _opened(path) as file:
            yield from (_unpacked if _is_packed(path) else _plain)(file, seen)
    except OSError as error:
        raise InputError(f"expected a file that can be read, got {path}: {error.strerror or error}") from None
    except (EOFError, zlib.error) as error:
        raise InputError(
            f"expected a gzip file in {path}, got: {error}: the file is damaged; {_advice(path)}"
        ) from None


def _opened(path: Path) -> BinaryIO:
    # Without waiting for a pipe's other end, or a device.
    file = open(path, "rb", 0, opener=lambda name, flags: os.open(name, flags | getattr(os, "O_NONBLOCK", 0)))  # noqa: SIM115
    if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        file.close()
        raise OSError("it is no regular file")
    return file


def _plain(file: BinaryIO, seen: Seen) -> Iterator[bytes]:
    while block := file.read(_BLOCK):
        seen(block)
        yield block


def _unpacked(file: BinaryIO, seen: Seen) -> Iterator[bytes]:
    """Unpack: one member or several, with zeros between or after, as gunzip does.

    At no time has much more been read than unpacked: a file of empty members, or of zeros, would have no end.
    """
    member, packed, taken, given = None, b"", 0, 0
    while True:
        if not packed:
            packed = file.read(_BLOCK)
            seen(packed)
            taken += len(packed)
            if taken > _OVERHEAD + _BLOCK + 2 * given:
                raise EOFError(f"{taken} bytes that unpack to {given}")
        if not packed:
            if member or not given:
                raise EOFError("its end is missing" if taken else "no byte")
            return
        if member is None:
            packed = packed.lstrip(b"\0") if given else packed
            member = zlib.decompressobj(wbits=31) if packed else None
        if member is not None:
            block = member.decompress(packed, _BLOCK)
            packed = member.unused_data if member.eof else member.unconsumed_tail
            member = None if member.eof else member
            given += len(block)
            if block:
                yield block


def _is_packed(path: Path) -> bool:
    return path.suffix == ".gz"


def _called(path: Path) -> str:
    return f"{path}, unpacked" if _is_packed(path) else str(path)


def _advice(path: Path) -> str:
    if os.access(path.parent, os.W_OK, effective_ids=os.access in os.supports_effective_ids):
        return "replace it, or delete it, and the published one is downloaded"
    return "its folder cannot be written: name another by --data-dir or MANUAL_MLP_DATA"
