"""Where images come from: torchvision's MNIST files or scikit-learn's digits."""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import http.client
import math
import os
import shutil
import socket
import struct
import sys
import tempfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from manual_mlp.training.errors import InputError

Images = tuple[Tensor, Tensor]  # (N, height, width) in [0, 1], (N,) labels

_FOLDERS = {"mnist": "MNIST", "fashion-mnist": "FashionMNIST"}
# The files, and how long those are that were published.
_FILES = {
    "train-images-idx3-ubyte": 47_040_016,
    "train-labels-idx1-ubyte": 60_008,
    "t10k-images-idx3-ubyte": 7_840_016,
    "t10k-labels-idx1-ubyte": 10_008,
}
# MD5 of the published files. Of the packed ones torchvision lists it; for Fashion-MNIST there are no others.
_SUMS = {
    "mnist": {
        "train-images-idx3-ubyte": "6bbc9ace898e44ae57da46a324031adb",
        "train-labels-idx1-ubyte": "a25bea736e30d166cdddb491f175f624",
        "t10k-images-idx3-ubyte": "2646ac647ad5339dbf082846283269ea",
        "t10k-labels-idx1-ubyte": "27ae3e4e09519cfbb04c329615203637",
    }
}
# Tried after torchvision's own.
_MORE_MIRRORS = {
    "mnist": ("https://storage.googleapis.com/cvdf-datasets/mnist/",),
    "fashion-mnist": (
        "https://github.com/zalandoresearch/fashion-mnist/raw/master/data/fashion/",
        "https://storage.googleapis.com/tensorflow/tf-keras-datasets/",
    ),
}
_NETWORK_TIMEOUT = 10.0  # seconds without a byte


@dataclass(frozen=True)
class Source:
    """Training images in memory, and a function that reads the test images; who asks may overwrite either."""

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
        _complete(name, folder)
    except _Unavailable as error:
        if dataset != "auto" or any((folder / f"{file}{end}").exists() for file in _FILES for end in ("", ".gz")):
            raise InputError(
                f"expected {name} in {folder.absolute()} or a network to download it, got {error}; put the missing "
                "files there, unpacked or as .gz, or name another folder by --data-dir or MANUAL_MLP_DATA"
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
    for file, md5 in _SUMS.get(name, {}).items():
        _compare(folder / file, folder / file, md5)
    return Source(name, _read(folder, "train"), lambda: _read(folder, "t10k"))


class _Unavailable(Exception):
    """Files are missing and could not be had."""


def _complete(name: str, folder: Path) -> None:
    """Unpack the files that lie in the folder as .gz, and download those that do not."""
    if not _missing(folder):
        return
    from torchvision import datasets

    published = getattr(datasets, _FOLDERS[name])
    packed_sums = {file.removesuffix(".gz"): md5 for file, md5 in published.resources}
    mirrors = list(dict.fromkeys((*published.mirrors, *_MORE_MIRRORS[name])))
    with _workplace(folder) as workplace:
        for file in _missing(folder):
            archive = folder / f"{file}.gz"
            if archive.is_file():
                unpacked, called = workplace / file, f"{archive}, unpacked"
                _unpack(archive, unpacked)
                _shape(unpacked, called)
                if name in _SUMS:
                    _compare(unpacked, unpacked, _SUMS[name][file], called)
                else:
                    _compare(unpacked, archive, packed_sums[file])
                os.replace(unpacked, folder / file)
        for file in _missing(folder):
            try:
                archive = _download(f"{file}.gz", packed_sums[file], mirrors, workplace)
            except _Unavailable as error:
                raise _Unavailable(f"no {', '.join(_missing(folder))}; tried {error}") from None
            _unpack(archive, workplace / file)
            os.replace(workplace / file, folder / file)


def _missing(folder: Path) -> list[str]:
    return [file for file in _FILES if not (folder / file).is_file()]


@contextlib.contextmanager
def _workplace(folder: Path) -> Iterator[Path]:
    """Make a folder inside a folder, for files that are not complete; afterwards nothing is left that is empty."""
    created = [path for path in (folder, *folder.parents) if not path.exists()]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder, prefix=".incomplete-") as workplace:
            yield Path(workplace)
    except OSError as error:
        raise _Unavailable(f"no {', '.join(_missing(folder))}; {error}") from None
    finally:
        for path in created:
            if path.is_dir() and not any(path.iterdir()):
                path.rmdir()


def _download(file: str, md5: str, mirrors: list[str], folder: Path) -> Path:
    """Download a file from the first mirror that has it whole, which moves to the front."""
    from torchvision.datasets.utils import download_url

    failures = []
    for mirror in mirrors:
        before = socket.getdefaulttimeout()
        socket.setdefaulttimeout(_NETWORK_TIMEOUT)
        try:
            download_url(mirror + file, str(folder), md5=md5)
        except (OSError, RuntimeError, http.client.HTTPException) as error:
            failures.append(f"{mirror} ({' '.join(str(error).split()).strip('<>') or type(error).__name__})")
            continue
        finally:
            socket.setdefaulttimeout(before)
        mirrors.remove(mirror)
        mirrors.insert(0, mirror)
        return folder / file
    raise _Unavailable(", ".join(failures))


def _unpack(archive: Path, path: Path) -> None:
    try:
        with gzip.open(archive) as packed, path.open("wb") as unpacked:
            shutil.copyfileobj(packed, unpacked)
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise InputError(
            f"expected a gzip file in {archive}, got: {error}: the file is damaged; delete it to download it again"
        ) from None


def _shape(path: Path, called: str | None = None) -> tuple[int, ...]:
    """Return the shape of an IDX file's content by its header; the file's size must agree."""
    called = called or str(path)
    rank = 3 if "idx3" in path.name else 1
    size = path.stat().st_size
    with path.open("rb") as file:
        header = file.read(4 + 4 * rank)
    if header[:4] != bytes((0, 0, 8, rank)) or len(header) < 4 + 4 * rank:
        raise InputError(f"expected an IDX file of bytes with {rank} dimensions, got {called} starting {header[:4]!r}")
    shape = struct.unpack(f">{rank}I", header[4:])
    expected = len(header) + math.prod(shape)
    if size != expected:
        raise InputError(
            f"expected {expected} bytes in {called}, got {size}: the file is damaged; delete it to download it again"
        )
    return shape


def _compare(unpacked: Path, path: Path, md5: str, called: str | None = None) -> None:
    """Compare a file with the published one, if it is as long unpacked; images of one's own need not be.

    Raises:
        InputError: it is another.
    """
    if unpacked.stat().st_size != _FILES[unpacked.name]:
        return
    found = hashlib.md5(path.read_bytes(), usedforsecurity=False).hexdigest()
    if found != md5:
        raise InputError(
            f"expected MD5 {md5} of {called or path}, got {found}: the file is damaged, or of another data set; "
            "delete it to download it again"
        )


def _read(folder: Path, part: str) -> Images:
    paths = [folder / f"{part}-{kind}-ubyte" for kind in ("images-idx3", "labels-idx1")]
    images, labels = map(_content, paths)
    if labels.numel() and labels.max() > 9:
        raise InputError(f"expected labels 0 to 9 in {paths[1]}, got {labels.max()}")
    return images.float().div_(255), labels.long()


def _content(path: Path) -> Tensor:
    """Read the bytes of an IDX file: not by torchvision, whose import takes longer than this and all before it."""
    shape = _shape(path)
    content = torch.frombuffer(bytearray(path.read_bytes()), dtype=torch.uint8)
    return content[len(content) - math.prod(shape) :].view(shape)


def _digits() -> Source:
    from sklearn.datasets import load_digits

    digits = load_digits()
    images, labels = torch.from_numpy(digits.images).float() / 16, torch.from_numpy(digits.target)
    # The digits come writer by writer: a fixed shuffle gives all parts the same writers.
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
    test, train = order[: len(order) // 6], order[len(order) // 6 :]
    return Source("digits", (images[train], labels[train]), lambda: (images[test], labels[test]))


def holds(dataset: str, data_dir: Path) -> bool:
    """Tell whether a folder has all files of a data set."""
    if dataset not in _FOLDERS:
        return True
    folder = data_dir / _FOLDERS[dataset] / "raw"
    return all(any((folder / f"{file}{end}").is_file() for end in ("", ".gz")) for file in _FILES)
