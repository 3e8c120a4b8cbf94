"""Loss and accuracy, collected without waiting for the device."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Metrics:
    """Means over `images` images; accuracy in [0, 1]."""

    loss: float
    accuracy: float
    images: int

    def __str__(self) -> str:
        return f"loss {self.loss:.4f} accuracy {100 * self.accuracy:.2f} %"


class Meter:
    """Collect batches. Only `read` waits for the device."""

    def __init__(self) -> None:
        self.images = 0
        self._losses: list[Tensor] = []
        self._correct: list[Tensor] = []
        self._rows: list[int] = []

    def add(self, loss: Tensor, outputs: Tensor, labels: Tensor) -> None:
        """Take in a batch: its loss, summed over images, outputs `(N, classes)` and labels `(N,)`."""
        self._losses.append(loss.detach())
        self._correct.append((outputs.detach().argmax(-1) == labels).sum())
        self._rows.append(len(labels))
        self.images += len(labels)

    def read(self) -> tuple[Metrics, list[float]]:
        """Return the means over all images, and the mean loss of each batch."""
        totals = torch.stack(self._losses).tolist()
        correct, images = int(torch.stack(self._correct).sum()), max(1, self.images)
        losses = [total / max(1, rows) for total, rows in zip(totals, self._rows, strict=True)]
        return Metrics(math.fsum(totals) / images, correct / images, self.images), losses


def mean(parts: list[Metrics]) -> Metrics:
    """Return the mean over the images of all parts."""
    images = sum(part.images for part in parts)
    return Metrics(
        sum(part.loss * part.images for part in parts) / images,
        sum(part.accuracy * part.images for part in parts) / images,
        images,
    )
