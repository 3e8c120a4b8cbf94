"""What one training run is asked to do."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Literal, get_args, get_origin, get_type_hints

from manual_mlp import activations
from manual_mlp.training.errors import InputError

# The command line lists the names and refuses others; mypy cannot read a computed Literal.
if TYPE_CHECKING:
    ActivationName = str
else:
    ActivationName = Literal[activations.names()]


def _data_dir() -> Path:
    return Path(os.environ.get("MANUAL_MLP_DATA") or "data")


def _name() -> str:
    return f"{datetime.now():%Y%m%d-%H%M%S-%f}"[:-3]


@dataclass(frozen=True)
class Config:
    """Train an MLP whose gradients are written by hand."""

    dataset: Literal["auto", "mnist", "fashion-mnist", "digits"] = "auto"
    """Images to learn. auto: MNIST, or the 8x8 digits inside scikit-learn where MNIST cannot be had."""

    data_dir: Path = field(default_factory=_data_dir)
    """Folder that holds MNIST/raw; what is missing is downloaded into it. MANUAL_MLP_DATA sets the default."""

    hidden: tuple[int, ...] = (512, 256)
    """Widths of the hidden layers."""

    activation: ActivationName = "relu"
    """Entrywise function after each hidden layer."""

    loss: Literal["cross-entropy", "squared-error"] = "cross-entropy"
    """Loss on the last layer's output; squared-error is half the squared distance from the one-hot label."""

    epochs: int = 4
    """Passes over the training images."""

    batch_size: int = 256
    """Images per step. The last batch of an epoch may be smaller."""

    lr: float = 4e-3
    """Highest learning rate: it rises to this value and falls to zero. sgd wants about 0.1."""

    optimizer: Literal["adamw", "adam", "rmsprop", "sgd"] = "adamw"
    """Optimizer of torch.optim; sgd has Nesterov momentum 0.9."""

    weight_decay: float = 0.01
    """Weight decay of the optimizer."""

    dropout: float = 0.0
    """Probability that a hidden unit is dropped in training."""

    label_smoothing: float = 0.1
    """Share of each training target that is spread over all classes."""

    shift: float = 0.04
    """Move each training batch by a random offset of up to this share of the image's width: 1 pixel of 28."""

    seed: int = 0
    """Seed of the initial weights, the order of the images, dropout and shifts."""

    device: str = "auto"
    """cpu, cuda or cuda:N. auto: a GPU if there is one."""

    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    """Number format of the products; below fp32 by autocast."""

    compile: bool = False
    """Run the model through torch.compile."""

    check_every: int = 100
    """Steps between two checks of the manual gradient against autograd's. 0: never."""

    dry_run: bool = False
    """Do everything on a few batches and leave nothing behind."""

    logdir: Path = Path("runs")
    """Folder of all runs, for TensorBoard."""

    name: str = field(default_factory=_name)
    """Name of this run's folder inside logdir: must be new. The default is the date and time."""

    def __post_init__(self) -> None:
        for field_name, hint in get_type_hints(type(self)).items():
            if get_origin(hint) is Literal:
                choices = get_args(hint)
                self._require(field_name, getattr(self, field_name) in choices, "one of " + ", ".join(choices))
        self._require("hidden", all(width >= 1 for width in self.hidden), "widths of at least 1")
        self._require("epochs", self.epochs >= 1, "at least 1")
        self._require("batch_size", self.batch_size >= 1, "at least 1")
        self._require("lr", 0 < self.lr < math.inf, "a positive finite number")
        self._require("weight_decay", 0 <= self.weight_decay < math.inf, "a finite number from 0 up")
        self._require("dropout", 0 <= self.dropout < 1, "a number in [0, 1)")
        self._require("label_smoothing", 0 <= self.label_smoothing < 1, "a number in [0, 1)")
        self._require("shift", 0 <= self.shift < 1, "a number in [0, 1)")
        self._require("seed", 0 <= self.seed < 2**63, "a number in [0, 2**63)")
        self._require("check_every", self.check_every >= 0, "at least 0")
        is_name = self.name not in ("", "..") and Path(self.name).name == self.name
        self._require("name", is_name, "a folder name without a path")

    def _require(self, field_name: str, holds: bool, expected: str) -> None:
        if not holds:
            value = getattr(self, field_name)
            shown = " ".join(map(str, value)) if isinstance(value, tuple) else value
            raise InputError(f"expected --{field_name.replace('_', '-')} to be {expected}, got {shown}")
