"""Who computes. *Plain* is ``formulas/`` run by Python; an engine does the same in fewer passes, and is held to it."""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec
from typing import Any, NamedTuple

from torch import Tensor

from manual_mlp.engines.aten import KernelCrossEntropy
from manual_mlp.engines.choice import CHOICE, chosen
from manual_mlp.formulas.cross_entropy import CrossEntropy

__all__ = ["CHOICE", "KERNELS", "ON_CUDA", "PLAIN", "Engine", "engine_for"]


class Engine(NamedTuple):
    """What an engine computes in its own way; the rest is plain.

    Attributes:
        name: who computes.
        cross_entropy: the loss.
        drop: ``(t, mask) -> t`` times dropout's mask, which is made where the entries are; None for plain.
    """

    name: str
    cross_entropy: type[CrossEntropy] = CrossEntropy
    drop: Callable[..., Tensor] | None = None


def _drop(t: Tensor, mask: Any) -> Tensor:
    from manual_mlp.engines.triton.dropout import drop

    return drop(t, mask)


def _has_triton() -> bool:
    try:
        spec = find_spec("triton")
    except ValueError:  # something else has put a stub in its place
        return False
    # A folder of that name has no loader.
    return spec is not None and spec.loader is not None


PLAIN = Engine("plain")
KERNELS = Engine("torch's kernels", KernelCrossEntropy)
# A constant: a compiler that reads engine_for meets no import and no cache.
ON_CUDA = Engine("torch's kernels and Triton", KernelCrossEntropy, _drop) if _has_triton() else KERNELS


def engine_for(t: Tensor) -> Engine:
    """Choose who computes with tensors like this one; ``MANUAL_MLP_ENGINE=plain`` asks for plain in any case.

    Raises:
        ValueError: the variable names another engine.
    """
    if t.is_cpu:
        return PLAIN
    return PLAIN if chosen() == "plain" else ON_CUDA if t.is_cuda else KERNELS
