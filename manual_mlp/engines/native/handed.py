"""What native asks Python for: the plain engine's answers in every mode, and the numbers of activations."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from manual_mlp.activations import Activation
from manual_mlp.activations.registry import entry_of
from manual_mlp.transforms import DEVICE_MODE, below_functions

Tensors = Sequence[Tensor | None]


class Asked(NamedTuple):
    """What native asks with: tensors, numbers of activations and others, what is needed, the shares to be dropped."""

    tensors: Tensors
    numbers: list[int]
    needed: list[bool]
    dropout: list[float]


Answer = Callable[[Asked], Any]

PLAIN: dict[str, Answer] = {}
# By the numbers that they have in C++.
DTYPES = {5: torch.float16, 6: torch.float32, 7: torch.float64, 15: torch.bfloat16}
_records: list[Activation] = []


def answers(answer: Answer) -> Answer:
    """Let native ask a function, by its name."""
    guarded = below_functions(lambda asked, *_: answer(asked))
    PLAIN[answer.__name__] = lambda asked: guarded(asked, *asked.tensors)
    return answer


def over(module: Any) -> None:
    """Hand over to a module what it asks for."""

    def number_of(activation: Activation) -> int:
        number = _number_of(module, activation)
        object.__setattr__(activation, "native", number)
        return number

    module.hand_over(PLAIN, Tensor, nn.Parameter, DEVICE_MODE, number_of, Asked)


def record_of(number: int) -> Activation:
    """Find the activation that has a number."""
    return _records[number]


def _number_of(module: Any, activation: Activation) -> int:
    """Number an activation of this package, if native has its formulas; one that somebody else wrote runs plain."""
    entry = entry_of(activation)
    if entry is None or not (entry.make.__module__ or "").startswith("manual_mlp.activations."):
        return -1
    # The kind of a gelu is a word, and part of its name here.
    kinds = [p for p in activation.params if isinstance(p, str) and p != "none"]
    numbers = [p for p in activation.params if isinstance(p, (int, float))]
    number: int = module.number_of("_".join([activation.name, *kinds]), numbers)
    if number >= 0:
        _records.append(activation)
    return number
