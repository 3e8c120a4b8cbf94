"""The images of an epoch, in order and augmented, a batch at a time."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice

import torch
from torch import Tensor

from manual_mlp.training.augment import Deformation
from manual_mlp.training.config import Config
from manual_mlp.training.data import Data, drop, shift

_GATHERED = 1024  # images that are put in order at once: few, so that they are still in a CPU's cache when trained on
_DEFORMED = 4096  # the same, where they are changed too, and on a GPU
_SHIFT = 0.04  # of an image's width
_GOLDEN = 0x9E3779B97F4A7C15  # times it, numbers that are neighbours become seeds that are none


class Feed:
    """Give the training images as a Config asks for them.

    Raises:
        InputError: a deformation does not fit the images.
    """

    def __init__(self, data: Data, config: Config) -> None:
        self.data, self.config = data, config
        self.deform = Deformation(
            config.rotation,
            config.scaling,
            config.shear,
            config.translation,
            config.elastic_alpha,
            config.elastic_sigma,
        )
        self.deform.require_size(data.image_shape)
        share = (0.0 if data.name == "fashion-mnist" else _SHIFT) if config.shift is None else config.shift
        self.shift = round(share * data.image_shape[1])  # pixels
        # What autocast would do at each step is done once, if the images are trained on as they are, or moved.
        once = config.precision == "bf16" and self.deform.is_identity and not config.input_dropout
        self.images = data.train.images.bfloat16() if once else data.train.images

    def batches(self, epoch: int, first: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield the batches of an epoch: every image once, augmented, in an order that the epoch's number decides.

        Args:
            first: which batch to begin with; the others come as if those before it had been asked for.
        """
        config, train = self.config, self.data.train
        # Drawn on the CPU, so that it is the same on every device. Its copy waits for a GPU, but once an epoch, when
        # all that came before has just been read.
        order = torch.randperm(len(train), generator=torch.Generator().manual_seed(seed_at(config.seed, epoch, 0)))
        blank = -self.data.mean / self.data.std  # a black pixel, once normalised
        changed = self.shift or config.input_dropout or not self.deform.is_identity
        gathered = self.images.device.type == "cpu" and not changed
        in_block = max(1, (_GATHERED if gathered else _DEFORMED) // config.batch_size)
        for block, rows in enumerate(torch.split(order.to(train.labels.device), in_block * config.batch_size)):
            skipped = max(0, first - block * in_block)
            if skipped >= in_block:
                continue
            # Several times as quick as indexing.
            images, labels = (torch.index_select(t, 0, rows) for t in (self.images, train.labels))
            generator = torch.Generator(images.device).manual_seed(seed_at(config.seed, epoch, 1 + block))
            if self.shift:
                images = shift(images, self.data.image_shape, self.shift, blank, generator)
            if not self.deform.is_identity:
                images = self.deform(images, self.data.image_shape, blank, generator)
            if config.input_dropout:
                images = drop(images, config.input_dropout, blank, generator)
            pairs = zip(*(torch.split(t, config.batch_size) for t in (images, labels)), strict=True)
            yield from islice(pairs, skipped, None)


def seed_at(seed: int, *at: int) -> int:
    """Return the seed of what is drawn at a place in the run, whatever was drawn before it."""
    for i in at:
        seed = seed * _GOLDEN + i + 1
    return seed % 2**63
