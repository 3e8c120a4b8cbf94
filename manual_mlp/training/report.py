"""What a network says of the test images, by scikit-learn's metrics."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from manual_mlp.losses import by_flag
from manual_mlp.modules import MLP
from manual_mlp.training.data import Split

_BATCH = 4096
_LISTED = 100  # mistakes


@dataclass(frozen=True)
class Predictions:
    """Arrays over N images: labels, predicted classes, probabilities `(N, C)`; activations of the last hidden layer.

    Attributes:
        wrong: indices of misclassified images, the most confident mistake first.
    """

    labels: Any
    predicted: Any
    probabilities: Any
    hidden: Any
    wrong: Tensor

    @classmethod
    @torch.no_grad()
    def of(cls, model: MLP, split: Split, loss: str) -> Predictions:
        """Run the model, as torch's own layers, over a split; the loss says what its outputs mean."""
        modules = model.to_sequential().eval()
        last = max(i for i, module in enumerate(modules) if isinstance(module, nn.Linear))
        hidden = torch.cat([modules[:last](images) for images, _ in split.batches(_BATCH)])
        outputs = modules[last:](hidden).float().cpu()
        probabilities = by_flag(loss).shares(outputs).clamp(0, 1)
        labels, predicted = split.labels.cpu(), outputs.argmax(-1)
        confidence = probabilities.gather(1, predicted[:, None]).squeeze(1)
        order = confidence.argsort(descending=True, stable=True)
        wrong = order[(predicted != labels)[order]]
        return cls(labels.numpy(), predicted.numpy(), probabilities.numpy(), hidden.float().cpu().numpy(), wrong)

    def confidence(self, i: int) -> float:
        """Return the probability that image i was given for its predicted class."""
        return float(self.probabilities[i, self.predicted[i]])

    def caption(self, i: int) -> str:
        """Tell of image i its class, the predicted one, and how sure the network is."""
        return f"{self.labels[i]} → {self.predicted[i]}, {100 * self.confidence(i):.0f} %"

    def mistakes(self) -> str:
        """Return a table of the most confident mistakes."""
        head = f"{len(self.wrong)} of {len(self.labels)} test images are misclassified, the most confident first.\n\n"
        rows = [
            (str(i), str(self.labels[i]), str(self.predicted[i]), f"{100 * self.confidence(i):.1f} %")
            for i in self.wrong[:_LISTED].tolist()
        ]
        return head + _table(("test image", "true", "predicted", "confidence"), rows)

    def by_class(self) -> str:
        """Return a table of precision, recall, F1 and average precision for each class and over all."""
        from sklearn.metrics import average_precision_score, classification_report

        columns = ("precision", "recall", "f1-score", "support")
        classes = range(self.probabilities.shape[1])
        found = classification_report(self.labels, self.predicted, labels=classes, output_dict=True, zero_division=0.0)
        rows = []
        for name in (*map(str, classes), "macro avg", "weighted avg"):
            values = found[name]
            area = ""
            if name.isdigit() and (self.labels == int(name)).any():
                area = f"{average_precision_score(self.labels == int(name), self.probabilities[:, int(name)]):.4f}"
            rows.append((name, *(f"{values[column]:.4f}" for column in columns[:3]), area, f"{values['support']:.0f}"))
        return _table(("class", *columns[:3], "average precision", "images"), rows)


def _table(head: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> str:
    """Return a table in Markdown."""
    lines = [head, ("---",) * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
