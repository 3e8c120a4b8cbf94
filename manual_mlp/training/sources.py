"""Where images come from: torchvision's MNIST files or scikit-learn's digits."""

from __future__ import annotations

import contextlib
import os
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from manual_mlp.training import idx
from manual_mlp.training.errors import InputError
from manual_mlp.training.published import FILES, PUBLISHED, Published

Images = tuple[Tensor, Tensor]  # (N, height, width) in [0, 1], (N,) labels

_OVERHEAD = 2**16  # bytes that a packed file, or what is sent with it, may be longer than the file


@dataclass(frozen=True)
class Source:
    """Training images in memory, and a function that reads the test images; who asks may overwrite either."""

    name: str
    train: Images
    read_test: Callable[[], Images]


def open_source(dataset: str, data_dir: Path) -> Source:
    """Find the images of `auto`, `mnist`, `fashion-mnist` or `digits`.

    Files are read as they lie there, unpacked or as .gz; what is downloaded is put there unpacked.

    Raises:
        InputError: the files are missing and cannot be downloaded, or they are damaged, or hold no image.
    """
    if dataset == "digits":
        return _digits()
    name = _name(dataset)
    published = PUBLISHED[name]
    folder = _folder(published, data_dir)
    try:
        _complete(published, folder)
    except _UnavailableError as error:
        if dataset != "auto" or len(_missing(folder)) < len(FILES):
            raise InputError(
                f"expected {name} in {folder.absolute()} or {error.wanted}, got {error}; {error.advice} by --data-dir "
                "or MANUAL_MLP_DATA"
            ) from None
        print(
            f"WARNING: no MNIST in {folder.absolute()} and no download ({error}): "
            "training on scikit-learn's embedded 8x8 digits instead",
            file=sys.stderr,
        )
        return _digits()
    train, test = (_part(published, folder, part) for part in ("train", "t10k"))
    if test.images.shape[1:] != train.images.shape[1:]:
        raise InputError(
            f"expected test images of {train.images.shape[1:]} pixels in {folder}, got {test.images.shape[1:]}"
        )
    return Source(name, train.read(), test.read)


def holds(dataset: str, data_dir: Path) -> bool:
    """Tell whether a folder has all files of a data set, unpacked or as .gz: they are not read, and none is written.

    The digits need none; of a data set that is not known, no folder holds any.
    """
    published = PUBLISHED.get(_name(dataset))
    return dataset == "digits" or (published is not None and not _missing(_folder(published, data_dir)))


def _name(dataset: str) -> str:
    return "mnist" if dataset == "auto" else dataset


def _folder(published: Published, data_dir: Path) -> Path:
    return data_dir / published.folder / "raw"


def _place(folder: Path, file: str) -> Path | None:
    """Return where a file is, unpacked or packed; whether it can be read is seen later."""
    return next((path for end in ("", ".gz") if os.path.lexists(path := folder / f"{file}{end}")), None)


def _missing(folder: Path) -> list[str]:
    return [file for file in FILES if _place(folder, file) is None]


@dataclass(frozen=True)
class _Part:
    """Training or test images, seen to be whole; the former in memory."""

    images: idx.Idx
    labels: idx.Idx

    def read(self) -> Images:
        images, labels = self.images, self.labels
        if images.values is None:
            # It may have been packed or unpacked since.
            images = idx.read(_place(images.path.parent, images.path.name.removesuffix(".gz")) or images.path, 3)
            if images.md5 != self.images.md5:
                raise InputError(f"expected {images.path} as it was when training began, got another file")
        assert images.values is not None
        assert labels.values is not None
        return images.values.float().div_(255), labels.values.long()


def _part(published: Published, folder: Path, part: str) -> _Part:
    images = _examined(published, folder, f"{part}-images-idx3-ubyte", keep=part == "train")
    labels = _examined(published, folder, f"{part}-labels-idx1-ubyte")
    count, height, width = images.shape
    if not count * height * width:
        raise InputError(
            f"expected at least one image, and one pixel, in {images.path}, got {count} of {height}x{width} pixels"
        )
    if labels.shape != (count,):
        raise InputError(f"expected as many labels as {part} images in {folder}, got {labels.shape[0]} for {count}")
    assert labels.values is not None
    if labels.values.max() > 9:
        raise InputError(f"expected labels 0 to 9 in {labels.path}, got {labels.values.max()}")
    return _Part(images, labels)


def _examined(published: Published, folder: Path, file: str, keep: bool = True) -> idx.Idx:
    """Read a file, and compare it with the published one if it is as long; images of one's own need not be.

    Raises:
        InputError: it is another, or damaged.
    """
    found = idx.read(_place(folder, file) or folder / file, _rank(file), keep)
    if found.length != FILES[file]:
        return found
    if file in published.unpacked:
        md5, expected, called = found.md5, published.unpacked[file], found.called
    else:
        md5, expected, called = found.packed_md5, published.packed[file], str(found.path)
        if not found.is_packed:
            return found
    if md5 != expected:
        raise InputError(
            f"expected MD5 {expected} of {called}, got {md5}: the file is damaged, or of another data set; "
            f"{found.advice}"
        )
    return found


def _rank(file: str) -> int:
    return 3 if "idx3" in file else 1


class _UnavailableError(Exception):
    """Files are missing and could not be had.

    Attributes:
        wanted: what would have helped.
        advice: what may be done.
    """

    def __init__(self, folder: Path, reason: str, wanted: str, advice: str) -> None:
        super().__init__(f"no {', '.join(_missing(folder))}; {reason}")
        self.wanted, self.advice = wanted, advice


def _complete(published: Published, folder: Path) -> None:
    """Download the files that do not lie in the folder."""
    if not _missing(folder):
        return
    above = next(path for path in (folder, *folder.parents) if os.path.lexists(path) or path == path.parent)
    if not os.path.isdir(above):
        raise InputError(f"expected --data-dir with a folder {published.folder}/raw, got {above}, which is no folder")
    mirrors = list(published.mirrors)
    with _workplace(folder) as workplace:
        for file in _missing(folder):
            archive = workplace / f"{file}.gz"
            _download(archive, published.packed[file], mirrors, FILES[file] + _OVERHEAD, folder)
            idx.unpack(archive, _rank(file), workplace / file)
            os.replace(workplace / file, folder / file)


@contextlib.contextmanager
def _workplace(folder: Path) -> Iterator[Path]:
    """Make a folder inside a folder, for files that are not complete; afterwards nothing is left that is empty."""
    created = [path for path in (folder, *folder.parents) if not os.path.lexists(path)]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder, prefix=".incomplete-") as workplace:
            yield Path(workplace)
    except OSError as error:
        raise _UnavailableError(
            folder,
            f"{folder} cannot be written: {error.strerror or error}",
            "a folder to download it into",
            "make it writable, or name another",
        ) from None
    finally:
        for path in created:
            with contextlib.suppress(OSError):  # it is not empty, or was not made
                path.rmdir()


def _download(archive: Path, md5: str, mirrors: list[str], most_bytes: int, folder: Path) -> None:
    """Download a file from the first mirror that has it whole, which moves to the front."""
    from manual_mlp.training.download import DownloadError, download

    failures = []
    for mirror in mirrors:
        try:
            download(mirror + archive.name, archive, md5, most_bytes)
        except DownloadError as error:
            failures.append(f"{mirror} ({error})")
            continue
        mirrors.remove(mirror)
        mirrors.insert(0, mirror)
        return
    raise _UnavailableError(
        folder,
        f"tried {', '.join(failures)}",
        "a network to download it",
        "put the missing files there, unpacked or as .gz, or name another folder",
    )


def _digits() -> Source:
    from sklearn.datasets import load_digits

    digits = load_digits()
    images, labels = torch.from_numpy(digits.images).float() / 16, torch.from_numpy(digits.target)
    # The digits come writer by writer: a fixed shuffle gives all parts the same writers.
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
    test, train = order[: len(order) // 6], order[len(order) // 6 :]
    return Source("digits", (images[train], labels[train]), lambda: (images[test], labels[test]))
