"""Where images come from: torchvision's MNIST files or scikit-learn's digits."""

from __future__ import annotations

import math
import socket
import struct
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from manual_mlp.training.errors import InputError

Images = tuple[Tensor, Tensor]  # (N, height, width) in [0, 1], (N,) labels

_FOLDERS = {"mnist": "MNIST", "fashion-mnist": "FashionMNIST"}
_FILES = tuple(f"{part}-{kind}-ubyte" for part in ("train", "t10k") for kind in ("images-idx3", "labels-idx1"))
_NETWORK_TIMEOUT = 10.0  # seconds


@dataclass(frozen=True)
class Source:
    """Training images in memory, and a function that reads the test images."""

    name: str
    train: Images
    read_test: Callable[[], Images]


def open_source(dataset: str, data_dir: Path) -> Source:
    """Find the images of `auto`, `mnist`, `fashion-mnist` or `digits`.

    Raises:
        InputError: the files are missing and cannot be downloaded, or they are damaged.
    """
    if dataset == "digits":
        return _digits()
    name = "mnist" if dataset == "auto" else dataset
    folder = data_dir / _FOLDERS[name] / "raw"
    try:
        _download_missing(name, data_dir, folder)
    except _Unavailable as error:
        if dataset != "auto" or any((folder / file).exists() for file in _FILES):
            raise InputError(
                f"expected {name} in {folder.absolute()} or a network to download it, got {error}; "
                "--data-dir or MANUAL_MLP_DATA names another folder"
            ) from None
        print(
            f"WARNING: no MNIST in {folder.absolute()} and no download ({error}): "
            "training on scikit-learn's embedded 8x8 digits instead",
            file=sys.stderr,
        )
        return _digits()
    train_images, train_labels, test_images, test_labels = (_shape(folder / file) for file in _FILES)
    for images, labels, part in ((train_images, train_labels, "train"), (test_images, test_labels, "t10k")):
        if images[0] != labels[0]:
            raise InputError(f"expected as many labels as {part} images in {folder}, got {labels[0]} for {images[0]}")
    if test_images[1:] != train_images[1:]:
        raise InputError(f"expected test images of {train_images[1:]} pixels in {folder}, got {test_images[1:]}")
    return Source(name, _read(folder, "train"), lambda: _read(folder, "t10k"))


class _Unavailable(Exception):
    """Files are missing and could not be downloaded."""


def _download_missing(name: str, data_dir: Path, folder: Path) -> None:
    missing = [file for file in _FILES if not (folder / file).is_file()]
    if not missing:
        return
    from torchvision import datasets

    created = [path for path in (folder, *folder.parents) if not path.exists()]
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(_NETWORK_TIMEOUT)
    try:
        getattr(datasets, _FOLDERS[name])(data_dir, download=True)
    except (OSError, EOFError, RuntimeError) as error:
        for path in created:
            if path.is_dir() and not any(path.iterdir()):
                path.rmdir()
        detail = " ".join(str(error).split())
        raise _Unavailable(f"no {', '.join(missing)}; {detail}") from None
    finally:
        socket.setdefaulttimeout(before)


def _shape(path: Path) -> tuple[int, ...]:
    """Return the shape of an IDX file's content by its header; the file's size must agree."""
    rank = 3 if "idx3" in path.name else 1
    size = path.stat().st_size
    with path.open("rb") as file:
        header = file.read(4 + 4 * rank)
    if header[:4] != bytes((0, 0, 8, rank)) or len(header) < 4 + 4 * rank:
        raise InputError(f"expected an IDX file of bytes with {rank} dimensions, got {path} starting {header[:4]!r}")
    shape = struct.unpack(f">{rank}I", header[4:])
    expected = len(header) + math.prod(shape)
    if size != expected:
        raise InputError(
            f"expected {expected} bytes in {path}, got {size}: the file is damaged; delete it to download it again"
        )
    return shape


def _read(folder: Path, part: str) -> Images:
    from torchvision.datasets.mnist import read_image_file, read_label_file

    path = folder / f"{part}-labels-idx1-ubyte"
    labels: Tensor = read_label_file(str(path))
    if labels.numel() and labels.max() > 9:
        raise InputError(f"expected labels 0 to 9 in {path}, got {labels.max()}")
    return read_image_file(str(folder / f"{part}-images-idx3-ubyte")).float() / 255, labels


def _digits() -> Source:
    from sklearn.datasets import load_digits

    digits = load_digits()
    images, labels = torch.from_numpy(digits.images).float() / 16, torch.from_numpy(digits.target)
    # The digits come writer by writer: a fixed shuffle gives all parts the same writers.
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
    test, train = order[: len(order) // 6], order[len(order) // 6 :]
    return Source("digits", (images[train], labels[train]), lambda: (images[test], labels[test]))
