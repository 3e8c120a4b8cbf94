"""What TensorBoard shows of a run."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType

import torch

from manual_mlp.modules import MLP
from manual_mlp.training.metrics import Metrics

_FILTERS = 64


class Log:
    """Write the events of a run into its folder; closing it, on any exit, writes all that is pending."""

    def __init__(self, folder: Path) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self.writer = SummaryWriter(str(folder))

    def __enter__(self) -> Log:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.writer.close()

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Write numbers by tag."""
        for tag, value in values.items():
            self.writer.add_scalar(tag, value, step)

    def metrics(self, step: int, part: str, metrics: Metrics) -> None:
        """Write loss and accuracy of `train`, `validation` or `test`."""
        self.scalars(step, {f"loss/{part}": metrics.loss, f"accuracy/{part}": metrics.accuracy})

    def settings(self, settings: Mapping[str, object]) -> None:
        """Write the settings as text."""
        block = "\n".join("    " + line for line in json.dumps(settings, indent=2).splitlines())
        self.writer.add_text("config", block)

    def model(self, step: int, model: MLP, image_shape: tuple[int, int]) -> None:
        """Write histograms of all weights and gradients and the first layer's filters as pictures; flush."""
        for name, parameter in model.named_parameters():
            self.writer.add_histogram(f"weights/{name}", parameter.detach(), step)
            if parameter.grad is not None and parameter.grad.isfinite().all():
                self.writer.add_histogram(f"gradients/{name}", parameter.grad, step)
        self.writer.add_image("filters", _filters(model, image_shape), step)
        self.writer.flush()


def _filters(model: MLP, image_shape: tuple[int, int]) -> torch.Tensor:
    from torchvision.utils import make_grid

    first_weight = next(model.parameters()).detach()[:_FILTERS].float().cpu()
    pictures = first_weight.view(-1, 1, *image_shape)
    grid: torch.Tensor = make_grid(pictures, nrow=8, normalize=True, scale_each=True, padding=1)
    return grid
