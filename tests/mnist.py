"""Small data sets in torchvision's layout."""

import contextlib
import gzip
import os
import struct
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

FILES = {"train-images": 3, "train-labels": 1, "t10k-images": 3, "t10k-labels": 1}
UNPACKED = sorted(f"{file}-idx{rank}-ubyte" for file, rank in FILES.items())
PACKED = [f"{name}.gz" for name in UNPACKED]


def idx_bytes(values: Tensor) -> bytes:
    """Write values in the IDX format."""
    header = bytes((0, 0, 8, values.dim())) + struct.pack(f">{values.dim()}I", *values.shape)
    return header + bytes(values.flatten().tolist())


def write_idx(path: Path, values: Tensor) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(idx_bytes(values))


def path_of(root: Path, file: str, folder: str = "MNIST") -> Path:
    return root / folder / "raw" / f"{file}-idx{FILES[file]}-ubyte"


def write_mnist(root: Path, folder: str = "MNIST", shape: tuple[int, int] = (4, 3)) -> Path:
    """Write 24 training and 6 test images."""
    generator = torch.Generator().manual_seed(0)
    for part, count in (("train", 24), ("t10k", 6)):
        images = torch.randint(256, (count, *shape), generator=generator)
        write_idx(path_of(root, f"{part}-images", folder), images)
        write_idx(path_of(root, f"{part}-labels", folder), torch.arange(count) % 10)
    return root


def pack(root: Path, folder: str = "MNIST") -> Path:
    """Put .gz in the place of all files."""
    for file in FILES:
        path = path_of(root, file, folder)
        path.with_name(f"{path.name}.gz").write_bytes(gzip.compress(path.read_bytes()))
        path.unlink()
    return root


def names_in(root: Path, folder: str = "MNIST") -> list[str]:
    return sorted(str(path.relative_to(root / folder / "raw")) for path in (root / folder / "raw").rglob("*"))


@contextlib.contextmanager
def read_only(*folders: Path) -> Iterator[None]:
    """Forbid to write into folders, and be somebody whom that binds."""
    user = os.geteuid()
    modes = [folder.stat().st_mode for folder in folders]
    for folder in folders:
        folder.chmod(0o555)
    if user == 0:
        os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(user)
        for folder, mode in zip(folders, modes, strict=True):
            folder.chmod(mode)
