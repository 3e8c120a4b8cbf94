"""The images of a dry run: a few that scikit-learn brings along, as MNIST lies in a folder."""

import argparse
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import product
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.tiny import shrunk

SETS = "MNIST", "FashionMNIST"
TRAIN, TEST = shrunk(60_000), shrunk(10_000)


@contextmanager
def few(options: argparse.Namespace) -> Iterator[None]:
    """Let ``--tiny`` find few images where others find ``--data-dir``: what is downloaded there is left alone."""
    with TemporaryDirectory() as folder:
        if options.tiny:
            write(Path(folder))
            options.data_dir = Path(folder)
        yield


def write(folder: Path) -> None:
    """Write digits, in MNIST's size, as torchvision's MNIST and Fashion-MNIST lie in a folder."""
    from sklearn.datasets import load_digits  # slow to import, and not needed to train

    digits = load_digits()
    pixels = F.interpolate(torch.from_numpy(digits.images)[:, None], (28, 28))[:, 0].mul(255 / 16).byte()
    labels = torch.from_numpy(digits.target).byte()
    parts = {"train": slice(TRAIN), "t10k": slice(TRAIN, TRAIN + TEST)}
    for name, (part, of) in product(SETS, parts.items()):
        raw = folder / name / "raw"
        raw.mkdir(parents=True, exist_ok=True)
        for what, values in (("images", pixels[of]), ("labels", labels[of])):
            (raw / f"{part}-{what}-idx{values.dim()}-ubyte").write_bytes(idx(values))


def idx(values: Tensor) -> bytes:
    """Write bytes in the IDX format: the kind of the entries (8), the rank, the sizes, and the entries."""
    return struct.pack(f">4B{values.dim()}I", 0, 0, 8, values.dim(), *values.shape) + values.numpy().tobytes()
