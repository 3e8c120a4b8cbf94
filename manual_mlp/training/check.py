"""The manual gradient against autograd's, on the batch at hand."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from manual_mlp.modules import MLP
from manual_mlp.training.build import Objective


class GradientCheck:
    """Compare the gradients of an MLP with autograd's through `nn.Linear` and activations.

    Both networks hold the same Parameter objects. Their `.grad` is left alone, and so are the random numbers.

    Args:
        network: what training calls instead of the model, such as its compiled form.

    Attributes:
        worst: the largest difference of any gradient entry so far, 0-d.
        count: how many batches were checked.
    """

    def __init__(self, model: MLP, objective: Objective, network: nn.Module | None = None) -> None:
        self.model, self.objective = model, objective
        self.network = model if network is None else network
        self.composite = model.to_sequential().eval()
        self.count = 0
        self.worst = torch.zeros((), device=next(model.parameters()).device)

    def __call__(self, images: Tensor, labels: Tensor) -> Tensor:
        """Return the largest absolute difference of any gradient entry on this batch, without dropout; 0-d."""
        was_training = self.model.training
        self.model.eval()
        differences = [
            (manual - autograd).abs().max().float()
            for manual, autograd in zip(self._manual(images, labels), self._autograd(images, labels), strict=True)
        ]
        self.model.train(was_training)
        error = torch.stack(differences).max()
        # maximum and max hand NaN on: a gradient that is not a number is not taken for a match.
        self.worst = torch.maximum(self.worst, error)
        self.count += 1
        return error

    def _manual(self, images: Tensor, labels: Tensor) -> list[Tensor]:
        """Return the gradients that a step of training takes; `.grad` is left as it was."""
        parameters = list(self.model.parameters())
        before = [p.grad for p in parameters]
        for p in parameters:
            p.grad = None
        self.objective.step(self.network, images, labels, 1 / len(images))
        found = [p.grad for p in parameters]
        for p, grad in zip(parameters, before, strict=True):
            p.grad = grad
        return [torch.zeros_like(p) if grad is None else grad for p, grad in zip(parameters, found, strict=True)]

    def _autograd(self, images: Tensor, labels: Tensor) -> tuple[Tensor, ...]:
        with torch.enable_grad():
            loss = self.objective.total(self.composite(images), labels) / len(images)
            return torch.autograd.grad(loss, list(self.model.parameters()))
