"""A training step as a CUDA graph: one launch for all its kernels."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from manual_mlp.training.config import Config
from manual_mlp.training.distributed import Processes
from manual_mlp.training.errors import InputError, first_line

# In which libraries set themselves up, and the optimizer its state. The last one is as the capture will be: it runs
# what nothing has run before, and a capture is no place to load a kernel.
_EAGER_STEPS = 3

Step = Callable[[Tensor, Tensor, int, float | Tensor], tuple[Tensor, Tensor]]


class StepGraph:
    """Take a few training steps as they are, then capture one, and from there on replay it on the batch at hand.

    A small network keeps a GPU waiting for Python; a replay is one call. A batch of another size, such as the last one
    of an epoch, is not captured.

    Args:
        step: changes the parameters, by images, labels, the size of the whole batch, and a learning rate; returns the
            loss and the outputs.
        optimizer: that of the step. All of its state is on the GPU, and stays in the same tensors.
        rows: of the batches to be captured.

    Shape:
        images: `(rows, D)`. labels: `(rows,)`. Loss: `()`. Outputs: `(rows, C)`, which the next call overwrites.
    """

    def __init__(self, step: Step, optimizer: torch.optim.Optimizer, rows: int) -> None:
        self.step, self.optimizer, self.rows = step, optimizer, rows
        self.full_batches = 0
        self.replay: Callable[[Tensor, Tensor, float], tuple[Tensor, Tensor]] | None = None

    def __call__(self, images: Tensor, labels: Tensor, count: int, lr: float) -> tuple[Tensor, Tensor]:
        """Take a step; return the loss and the outputs.

        Raises:
            InputError: the step cannot be captured.
        """
        full = len(labels) == self.rows
        self.full_batches += full
        if not full or self.full_batches < _EAGER_STEPS:
            return self.step(images, labels, count, lr)
        for group in self.optimizer.param_groups:
            group["lr"] = lr  # what a step leaves behind in Python; this one takes it from a tensor
        if self.full_batches == _EAGER_STEPS:
            with self._capturable():
                return self.step(images, labels, count, torch.full((), lr, dtype=torch.float32, device=images.device))
        if self.replay is None:
            self.replay = self._captured(images, labels)
        return self.replay(images, labels, lr)

    @contextmanager
    def _capturable(self) -> Iterator[None]:
        """Let the optimizer take a step that can be captured; afterwards it is as it was."""
        groups = self.optimizer.param_groups
        usual = [dict(group) for group in groups]
        for group in groups:
            group["capturable"] = True  # Adam asks for it
        try:
            yield
        finally:
            for group, before in zip(groups, usual, strict=True):
                group.clear()
                group.update(before)

    def _captured(self, images: Tensor, labels: Tensor) -> Callable[[Tensor, Tensor, float], tuple[Tensor, Tensor]]:
        """Capture a step, which does not take it; return what takes it, always in the same memory."""
        images, labels = images.clone(), labels.clone()
        rate = torch.zeros((), dtype=torch.float32, device=images.device)
        graph = torch.cuda.CUDAGraph()
        try:
            with (
                self._capturable(),
                torch.cuda.device_of(images),  # type: ignore[no-untyped-call]
                torch.cuda.graph(graph),
            ):
                loss, outputs = self.step(images, labels, self.rows, rate)
        except RuntimeError as error:
            raise InputError(f"expected a step that --cuda-graph can capture, got: {first_line(error)}") from error
        parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
        grads = [p.grad for p in parameters]

        def replay(new_images: Tensor, new_labels: Tensor, lr: float) -> tuple[Tensor, Tensor]:
            images.copy_(new_images)
            labels.copy_(new_labels)
            rate.fill_(lr)
            graph.replay()
            for p, grad in zip(parameters, grads, strict=True):
                p.grad = grad  # where a step leaves them
            return loss.clone(), outputs

        return replay


def require(config: Config, device: torch.device, processes: Processes) -> None:
    """See that a step can be captured.

    Raises:
        InputError: it cannot.
    """
    if device.type != "cuda":
        raise InputError(f"expected a GPU for --cuda-graph, got {device}")
    if processes.count > 1:
        raise InputError(f"expected one process for --cuda-graph, got {processes.count}")
    if config.compile:
        raise InputError("expected --cuda-graph or --compile, got both")
    if config.optimizer == "rmsprop":  # a part of its state is on the CPU
        raise InputError("expected --optimizer adamw, adam or sgd for --cuda-graph, got rmsprop")
