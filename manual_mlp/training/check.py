"""The manual gradient against autograd's, on the batch at hand."""

from __future__ import annotations

import torch
from torch import Tensor

from manual_mlp.modules import MLP
from manual_mlp.training.recipe import Forward, Loss


class GradientCheck:
    """Compare the gradients of an MLP with autograd's through `nn.Linear` and activations.

    Both networks hold the same Parameter objects. Their `.grad` is left alone, and so are the random numbers.

    Args:
        forward: what training calls instead of the model, such as its compiled form.

    Attributes:
        worst: the largest difference of any gradient entry so far, 0-d.
        count: how many batches were checked.
    """

    def __init__(self, model: MLP, loss: Loss, forward: Forward | None = None) -> None:
        self.model, self.loss = model, loss
        self.forward = model if forward is None else forward
        self.composite = model.to_sequential().eval()
        self.count = 0
        self.worst = torch.zeros((), device=next(model.parameters()).device)

    def __call__(self, images: Tensor, labels: Tensor) -> Tensor:
        """Return the largest absolute difference of any gradient entry on this batch, without dropout; 0-d."""
        was_training = self.model.training
        self.model.eval()
        differences = [
            (manual.detach() - autograd.detach()).abs().max().float()
            for manual, autograd in zip(
                self._gradients(self.forward, images, labels),
                self._gradients(self.composite, images, labels),
                strict=True,
            )
        ]
        self.model.train(was_training)
        error = torch.stack(differences).max()
        # maximum and max hand NaN on: a gradient that is not a number is not taken for a match.
        self.worst = torch.maximum(self.worst, error)
        self.count += 1
        return error

    def _gradients(self, network: Forward, images: Tensor, labels: Tensor) -> tuple[Tensor, ...]:
        with torch.enable_grad():
            loss = self.loss(network(images), labels)
            return torch.autograd.grad(loss, list(self.model.parameters()))
