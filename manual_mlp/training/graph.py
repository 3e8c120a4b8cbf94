"""A training step as a CUDA graph: one launch for all its kernels."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from manual_mlp.training.config import Config
from manual_mlp.training.distributed import Processes
from manual_mlp.training.errors import InputError

_EAGER_STEPS = 3  # in which libraries set themselves up, and the optimizer its state

Step = Callable[[Tensor, Tensor, int, float | Tensor], tuple[Tensor, Tensor]]


class StepGraph:
    """Take a few training steps as they are, then capture one, and from there on replay it on the batch at hand.

    Small networks keep a GPU waiting for Python; a replay is one call. Weights come out the same, bit for bit, as by
    steps that are not captured. A batch of another size, such as the last one of an epoch, is not captured.

    Args:
        step: changes the parameters, by images, labels, the size of the whole batch, and a learning rate; returns the
            loss and the outputs.
        optimizer: that of the step. All of its state is on the GPU.
        rows: of the batches to be captured.

    Shape:
        images: `(rows, D)`. labels: `(rows,)`. Loss: `()`. Outputs: `(rows, C)`, which the next call overwrites.
    """

    def __init__(self, step: Step, optimizer: torch.optim.Optimizer, rows: int) -> None:
        self.step, self.optimizer, self.rows = step, optimizer, rows
        self.parameters = [p for group in optimizer.param_groups for p in group["params"]]
        self.eager_steps = 0
        self.replay: Callable[[Tensor, Tensor, float], tuple[Tensor, Tensor]] | None = None

    def __call__(self, images: Tensor, labels: Tensor, count: int, lr: float | Tensor) -> tuple[Tensor, Tensor]:
        """Take a step; return the loss and the outputs."""
        lr = torch.tensor(lr, dtype=torch.float32).item()  # as the graph has it
        is_odd = len(labels) != self.rows
        if is_odd or self.eager_steps < _EAGER_STEPS:
            self.eager_steps += not is_odd
            return self.step(images, labels, count, lr)
        if self.replay is None:
            self.replay = self._captured(images, labels)
        return self.replay(images, labels, lr)

    def _captured(self, images: Tensor, labels: Tensor) -> Callable[[Tensor, Tensor, float], tuple[Tensor, Tensor]]:
        """Capture a step, which does not take it; return what takes it, always in the same memory."""
        images, labels, rate = images.clone(), labels.clone(), torch.empty((), device=images.device)
        graph, groups = torch.cuda.CUDAGraph(), self.optimizer.param_groups
        usual = [dict(group) for group in groups]
        for group in groups:
            group["capturable"] = True  # Adam asks for it
        with torch.cuda.graph(graph):
            loss, outputs = self.step(images, labels, self.rows, rate)
        for group, before in zip(groups, usual, strict=True):
            group.clear()
            group.update(before)
        grads = [p.grad for p in self.parameters]

        def replay(new_images: Tensor, new_labels: Tensor, lr: float) -> tuple[Tensor, Tensor]:
            images.copy_(new_images)
            labels.copy_(new_labels)
            rate.fill_(lr)
            graph.replay()
            for p, grad in zip(self.parameters, grads, strict=True):
                p.grad = grad
            return loss.clone(), outputs

        return replay


def require(config: Config, device: torch.device, processes: Processes) -> None:
    """See that a step can be captured.

    Raises:
        InputError: it cannot.
    """
    if device.type != "cuda":
        raise InputError(f"expected a GPU for --cuda-graph, got --device {device}")
    if processes.count > 1 or config.compile or config.optimizer == "rmsprop":
        raise InputError("expected --cuda-graph in one process, without --compile, with adamw, adam or sgd")
