"""Training, validation and test images as normalised tensors in the memory of the device."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from manual_mlp.training.errors import InputError
from manual_mlp.training.sources import Images, open_source

_VALIDATION_SHARE = 12  # one in so many: 5,000 of MNIST's 60,000


@dataclass(frozen=True)
class Split:
    """Images `(N, height * width)` and labels `(N,)`."""

    images: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def batches(self, size: int, generator: torch.Generator | None = None) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield every image once, `size` at a time, the rest last; shuffled where a CPU generator is given."""
        if generator is None:
            yield from zip(torch.split(self.images, size), torch.split(self.labels, size), strict=True)
            return
        order = torch.randperm(len(self), generator=generator).to(self.labels.device)
        for rows in torch.split(order, size):
            yield self.images[rows], self.labels[rows]


@dataclass(frozen=True)
class Data:
    """The three parts of a data set.

    Attributes:
        mean, std: of the training pixels, which lie in [0, 1]; every image is `(pixels - mean) / std`.
        read_test: reads the test images; call it once, when training is over.
    """

    name: str
    train: Split
    validation: Split
    read_test: Callable[[], Split]
    image_shape: tuple[int, int]
    mean: float
    std: float
    classes: int = 10

    def __str__(self) -> str:
        height, width = self.image_shape
        return (
            f"{self.name}: {len(self.train):,} training and {len(self.validation):,} validation images {height}x{width}"
        )


def load(
    dataset: str, data_dir: Path, device: torch.device, held_out: int | None = None, normalised: bool = True
) -> Data:
    """Load a data set onto the device; the test images stay on disk until `read_test`.

    Args:
        held_out: how many training images are kept for validation, the last ones; None: a twelfth.
        normalised: whether pixels are given mean 0 and standard deviation 1.

    Raises:
        InputError: the files are missing and cannot be downloaded, or they are damaged.
    """
    source = open_source(dataset, data_dir)
    (images, labels), read_test = source.train, source.read_test
    count = len(labels) - (len(labels) // _VALIDATION_SHARE if held_out is None else held_out)
    if count < 1 or (held_out is None and count == len(labels)):
        raise InputError(
            f"expected more training images than the {_VALIDATION_SHARE if held_out is None else held_out} "
            f"that validation takes, got {len(labels)}"
        )
    mean, std = _mean_std(images[:count].flatten(1)) if normalised else (0.0, 1.0)

    def split(part: Images) -> Split:
        pixels, classes = (tensor.to(device) for tensor in part)
        return Split(pixels.flatten(1).sub_(mean).div_(std or 1.0), classes)  # in place: the source made them for this

    return Data(
        name=source.name,
        train=split((images[:count], labels[:count])),
        validation=split((images[count:], labels[count:])),
        read_test=lambda: split(read_test()),
        image_shape=(images.shape[1], images.shape[2]),
        mean=mean,
        std=std or 1.0,
    )


def _mean_std(rows: Tensor) -> tuple[float, float]:
    """Return mean and standard deviation of all entries."""
    # Row by row: ten times as quick as torch's for all.
    mean = rows.mean(1).double().mean().item()
    squares = torch.linalg.vector_norm(rows, dim=1).double().square().sum().item()
    variance = squares / rows.numel() - mean**2
    if variance < 1e-4 * mean**2:  # almost one colour: the difference may be rounding alone
        variance = rows.double().var(correction=0).item()
    return mean, math.sqrt(variance) if variance > 1e-12 * mean**2 else 0.0


def shift(
    images: Tensor, image_shape: tuple[int, int], pixels: int, background: float, generator: torch.Generator
) -> Tensor:
    """Move each image by a random offset of up to `pixels` each way; what enters is background.

    Args:
        generator: of the images' device.

    Shape:
        images: `(N, height * width)`. Output: the same.
    """
    height, width = image_shape
    n, side = len(images), 2 * pixels + 1
    offsets = torch.randint(side * side, (n,), generator=generator, device=images.device)
    # An image that is moved by its whole height, or width, is gone: wider margins hold nothing.
    tall, wide = min(pixels, height), min(pixels, width)
    padded = F.pad(images.view(n, height, width), (wide, wide, tall, tall), value=background)
    # All places of the window over an image, as a view.
    windows = padded.unfold(1, height, 1).unfold(2, width, 1)  # (N, 2 tall + 1, 2 wide + 1, height, width)
    down, right = (
        (offset - pixels).clamp_(-margin, margin).add_(margin)
        for offset, margin in ((offsets // side, tall), (offsets % side, wide))
    )
    moved = windows[torch.arange(n, device=images.device), down, right]
    return moved.flatten(1)


def drop(images: Tensor, share: float, background: float, generator: torch.Generator) -> Tensor:
    """Make each pixel background with a probability, and lift the others so that the expected image stays.

    Args:
        generator: of the images' device.

    Shape:
        images: `(N, height * width)`. Output: the same.
    """
    kept = torch.rand(images.shape, generator=generator, device=images.device) >= share
    return (images - background).mul_(kept).div_(1 - share).add_(background)
