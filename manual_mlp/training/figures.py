"""Pictures for TensorBoard, drawn without a display."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MISTAKES = 20  # that are drawn
_COLUMNS = 8  # of a grid
_CAPTIONED = 5  # columns of pictures with a caption


def grid(pictures: Tensor) -> Tensor:
    """Lay pictures out in rows of eight, a grey line between them.

    Shape:
        pictures: `(N, height, width)` in [0, 1]. Output: `(height', width')`, uint8.
    """
    n, height, width = pictures.shape
    rows = math.ceil(n / _COLUMNS)
    framed = F.pad(pictures, (0, 1, 0, 1, 0, rows * _COLUMNS - n), value=0.5)
    tiles = framed.view(rows, _COLUMNS, height + 1, width + 1).transpose(1, 2)
    return tiles.reshape(rows * (height + 1), -1)[:-1, :-1].mul(255).round().to(torch.uint8)


def stretched(pictures: Tensor) -> Tensor:
    """Give each picture the whole range [0, 1].

    Shape:
        pictures: `(N, height, width)`. Output: the same.
    """
    low, high = pictures.amin((1, 2), keepdim=True), pictures.amax((1, 2), keepdim=True)
    return (pictures - low) / (high - low).clamp(min=torch.finfo(pictures.dtype).tiny)


def squares(pictures: Tensor) -> Tensor:
    """Pad pictures to squares, as a sprite wants them.

    Shape:
        pictures: `(N, height, width)`. Output: `(N, side, side)`.
    """
    height, width = pictures.shape[1:]
    side = max(height, width)
    return F.pad(pictures, (0, side - width, 0, side - height))


def mistakes(pictures: Tensor, captions: Sequence[str]) -> Any:
    """Draw pictures with a caption under each.

    Shape:
        pictures: `(N, height, width)` in [0, 1]. Output: an array `(height', width', 3)`, uint8.
    """
    from matplotlib.figure import Figure

    rows = max(1, math.ceil(len(captions) / _CAPTIONED))
    figure = Figure(figsize=(_CAPTIONED * 1.2, rows * 1.5), layout="constrained")
    axes = figure.subplots()
    axes.axis("off")
    if not captions:
        axes.text(0.5, 0.5, "no test image is misclassified", ha="center", va="center", transform=axes.transAxes)
        return _pixels(figure)
    height, width = pictures.shape[1:]
    gap, under = width // 6, height // 3
    canvas = torch.ones(rows * (height + under), _CAPTIONED * (width + gap) - gap)
    for i, (picture, caption) in enumerate(zip(pictures, captions, strict=True)):
        top, left = i // _CAPTIONED * (height + under), i % _CAPTIONED * (width + gap)
        canvas[top : top + height, left : left + width] = picture
        axes.text(left + width / 2, top + height + under * 0.4, caption, ha="center", va="center", fontsize=11)
    axes.imshow(canvas.numpy(), cmap="gray", vmin=0, vmax=1)
    return _pixels(figure)


def confusion(labels: Any, predicted: Any, classes: int) -> Any:
    """Draw scikit-learn's confusion matrix; the colours tell a few mistakes from none.

    Shape:
        labels, predicted: arrays `(N,)`. Output: an array `(height, width, 3)`, uint8.
    """
    from matplotlib.colors import PowerNorm
    from matplotlib.figure import Figure
    from sklearn.metrics import ConfusionMatrixDisplay, confusion_matrix

    counts = confusion_matrix(labels, predicted, labels=range(classes))
    figure = Figure(figsize=(6.5, 6.5), layout="constrained")
    norm = PowerNorm(0.4, vmin=0, vmax=max(1, counts.max()))
    display = ConfusionMatrixDisplay(counts, display_labels=range(classes))
    display.plot(ax=figure.subplots(), cmap="Blues", colorbar=False, values_format="d", im_kw={"norm": norm})
    return _pixels(figure)


def _pixels(figure: Figure) -> Any:
    import numpy as np
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    canvas: Any = FigureCanvasAgg(figure)
    canvas.draw()
    return np.array(canvas.buffer_rgba())[..., :3]
