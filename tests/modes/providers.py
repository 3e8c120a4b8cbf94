"""Who is judged: this package, torch's own layers, and the fused losses that import on this machine."""

import importlib
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from modes.mode import Map
from modes.subjects import SUBJECTS, Subject, labels


def _chunked() -> Map:
    # It is asked to allow a second backward.
    options = torch.nn.LinearCrossEntropyOptions(chunking_method=None, batch_chunk_size=2, allow_retain_graph=True)
    return lambda h, w, b: F.linear_cross_entropy(h, w, labels(h), linear_bias=b, options=options)


def _liger() -> Map:
    module: Any = importlib.import_module("liger_kernel.transformers.functional")
    return lambda h, w, b: module.liger_fused_linear_cross_entropy(h, w, labels(h), bias=b)


def _apple() -> Map:
    module: Any = importlib.import_module("cut_cross_entropy")

    # It takes no bias, so the bias is the weight of an input that is 1.
    def loss(h: Tensor, w: Tensor, b: Tensor) -> Tensor:
        ones = torch.ones_like(h[..., :1])
        return module.linear_cross_entropy(torch.cat([h, ones], -1), torch.cat([w, b[:, None]], 1), labels(h))  # type: ignore[no-any-return]

    return loss


# A provider is shown where what it needs can be imported.
LOSSES: dict[str, Callable[[], Map]] = {
    "F.linear_cross_entropy, chunked": _chunked,
    "Liger-Kernel": _liger,
    "cut-cross-entropy": _apple,
}


def losses() -> dict[str, Subject]:
    """Find the fused losses of a linear layer on this machine."""
    found, of_ours = {}, SUBJECTS["linear_cross_entropy, 2 rows at once"]("identity")
    for name, make in LOSSES.items():
        try:
            loss = make()
        except (ImportError, AttributeError):
            continue
        found[name] = replace(of_ours, name=name, activation="", ours=loss)
    return found
