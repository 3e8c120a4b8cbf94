"""What one training run is asked to do."""

from __future__ import annotations

import math
import os
import re
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Literal, TypeAlias, get_origin, get_type_hints

from manual_mlp import activations, losses
from manual_mlp.training import values
from manual_mlp.training.augment import FARTHEST
from manual_mlp.training.errors import InputError
from manual_mlp.training.recipes import RECIPES

# The command line lists the names and refuses others; mypy cannot read a computed Literal. As text it is read whenever
# the fields' types are asked for: a name that was registered meanwhile is one of them.
if TYPE_CHECKING:
    ActivationName = str
    LossName = str
    RecipeName: TypeAlias = str | None
else:
    ActivationName: TypeAlias = "Literal[activations.names()]"
    LossName: TypeAlias = "Literal[losses.flags()]"
    RecipeName: TypeAlias = "Literal[tuple(RECIPES)] | None"

_LONGEST_NAME = 255  # bytes, of a folder


def _data_dir() -> Path:
    return Path(os.environ.get("MANUAL_MLP_DATA") or "data")


def _name() -> str:
    return f"{datetime.now():%Y%m%d-%H%M%S-%f}"[:-3]


@dataclass(frozen=True)
class DataFlags:
    """Which images, and how many of them."""

    dataset: Literal["auto", "mnist", "fashion-mnist", "digits"] = "auto"
    """Images to learn. auto: MNIST, or the 8x8 digits inside scikit-learn where MNIST cannot be had."""

    data_dir: Path = field(default_factory=_data_dir)
    """Folder that holds MNIST/raw; what is missing is downloaded into it. MANUAL_MLP_DATA sets the default."""

    held_out: int | None = None
    """Training images kept for validation, the last ones. None: a twelfth. 0: train on all of them."""

    normalised: bool = field(
        default=True,
        metadata={"no": "Leave pixels in [0, 1] instead of giving them mean 0 and standard deviation 1."},
    )
    """Give pixels mean 0 and standard deviation 1 instead of leaving them in [0, 1]."""


@dataclass(frozen=True)
class NetworkFlags:
    """What is trained."""

    hidden: tuple[int, ...] = (512, 256)
    """Widths of the hidden layers."""

    activation: ActivationName = "relu"
    """Entrywise function after each hidden layer."""

    output_activation: ActivationName = "identity"
    """Entrywise function after the last layer. Both cross-entropies bring their own."""

    dropout: float = 0.0
    """Probability that a hidden unit is dropped in training."""

    initial: Literal["torch", "normal", "scaled-normal"] = "torch"
    """First weights and biases. torch: those of nn.Linear. normal: from the standard normal distribution.
    scaled-normal: the same, and each weight over the square root of its layer's inputs."""


@dataclass(frozen=True)
class TrainingFlags:
    """How it is trained."""

    loss: LossName = "cross-entropy"
    """Loss on the last layer's output, summed over classes. squared-error: half the squared distance to the label."""

    epochs: int = 4
    """Passes over the training images."""

    batch_size: int = 256
    """Images per step, over all processes. The last batch of an epoch may be smaller."""

    lr: float = 4e-3
    """Highest learning rate. sgd wants about 0.1."""

    schedule: Literal["linear", "constant"] = "linear"
    """Learning rate over time. linear: it rises to lr, then falls to zero. constant: it stays at lr."""

    warmup: float = 0.2
    """Share of the steps in which a linear learning rate rises."""

    optimizer: Literal["adamw", "adam", "rmsprop", "sgd"] = "adamw"
    """Optimizer of torch.optim."""

    momentum: float = 0.9
    """Momentum of sgd, Nesterov's where it is not 0."""

    betas: tuple[float, float] = (0.9, 0.99)
    """Memory of adam and adamw, for the gradient and its square. A short run wants a short one: 0.8 0.95."""

    weight_decay: float = 0.01
    """Weight decay of the optimizer, for weights and not for biases."""

    label_smoothing: float = 0.1
    """Share of each training target that is spread over all classes."""


@dataclass(frozen=True)
class AugmentationFlags:
    """What is done to a training image each time that it is seen."""

    shift: float | None = None
    """Move each training image by whole pixels, up to this share of its width each way. None: 0.04, which is 1 pixel
    of 28; but 0 for Fashion-MNIST, whose images are all placed alike."""

    rotation: float = 0.0
    """Turn each training image by up to so many degrees."""

    scaling: float = 0.0
    """Change width and height of each training image by up to this share."""

    shear: float = 0.0
    """Slant each training image by up to so many degrees."""

    translation: float = 0.0
    """Move each training image by up to so many pixels each way, fractions included."""

    elastic_alpha: float = 0.0
    """Strength of an elastic deformation of each training image, in pixels, as Simard et al. (2003) give it."""

    elastic_sigma: float = 4.0
    """Smoothness of the elastic deformation, in pixels."""

    input_dropout: float = 0.0
    """Probability that a pixel of a training image is made black; the others are lifted to make up for it."""


@dataclass(frozen=True)
class RunFlags:
    """Where it runs, what is written, and from where it goes on."""

    recipe: RecipeName = None
    """Start from a setting of the literature; other flags override it. list: show them all."""

    resume: Path | None = None
    """Go on with the run in this folder, from its latest checkpoint, with the settings it began with."""

    name: str = field(default_factory=_name, metadata={"default": "date and time"})
    """Name of this run's folder inside logdir. It must be new."""

    logdir: Path = Path("runs")
    """Folder of all runs, for TensorBoard."""

    seed: int = 0
    """Seed of the initial weights, the order of the images, dropout and deformations."""

    device: str = "auto"
    """cpu, cuda or cuda:N. auto: a GPU if there is one."""

    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    """Number format of the products; below fp32 by autocast."""

    compile: bool = False
    """Run the model through torch.compile."""

    cuda_graph: bool = False
    """On a GPU, capture a step after the first three, and replay it on every full batch: one call a step.
    In one process, not compiled, with adamw, adam or sgd."""

    check_every: int = 100
    """Steps between two checks of the manual gradient against autograd's. 0: never."""

    log_every: int = 50
    """Steps between two points of the training curves."""

    profile: bool = False
    """Write a Chrome trace of a few steps, trace.json, into the run's folder."""

    dry_run: bool = False
    """Do everything on a few batches and leave nothing behind."""


# The groups of the command line. The text under a field is its flag's; that of --no-flag is in its metadata.
GROUPS = {
    "data": DataFlags,
    "network": NetworkFlags,
    "training": TrainingFlags,
    "augmentation": AugmentationFlags,
    "run": RunFlags,
}


# Of several bases dataclasses take the last one's fields first.
@dataclass(frozen=True)
class Config(RunFlags, AugmentationFlags, TrainingFlags, NetworkFlags, DataFlags):
    """Train an MLP whose gradients are written by hand."""

    def __post_init__(self) -> None:
        for field_name, hint in get_type_hints(type(self)).items():
            value = getattr(self, field_name)
            if not values.fits(value, hint):
                # A choice is always text; elsewhere '4' is to be told from 4.
                raise InputError(values.refusal(field_name, value, hint, quoted=get_origin(hint) is not Literal))
        self._require("hidden", all(width >= 1 for width in self.hidden), "widths of at least 1")
        for least, names in ((0, ("held_out", "check_every", "seed")), (1, ("epochs", "batch_size", "log_every"))):
            for name in names:
                self._require(name, getattr(self, name) is None or getattr(self, name) >= least, f"at least {least}")
        self._require("lr", 0 < self.lr < math.inf, "a positive finite number")
        self._require("weight_decay", 0 <= self.weight_decay < math.inf, "a finite number from 0 up")
        for share in ("warmup", "momentum", "scaling", "dropout", "input_dropout", "label_smoothing", "shift"):
            self._require(share, 0 <= (getattr(self, share) or 0) < 1, "a number in [0, 1)")
        self._require("betas", all(0 <= beta < 1 for beta in self.betas), "two numbers in [0, 1)")
        self._require("rotation", 0 <= self.rotation <= 180, "degrees in [0, 180]")
        self._require("shear", 0 <= self.shear < 90, "degrees in [0, 90)")
        for pixels in ("translation", "elastic_alpha"):
            self._require(pixels, 0 <= getattr(self, pixels) <= FARTHEST, f"pixels in [0, {FARTHEST:,}]")
        self._require("elastic_sigma", 0.5 <= self.elastic_sigma <= 100, "pixels in [0.5, 100]")
        self._require("device", re.fullmatch("auto|cpu|cuda(:[0-9]+)?", self.device), "auto, cpu, cuda or cuda:N")
        is_name = self.name not in ("", "..") and Path(self.name).name == self.name
        self._require("name", is_name, "a folder name without a path")
        self._require("name", len(os.fsencode(self.name)) <= _LONGEST_NAME, f"at most {_LONGEST_NAME} bytes long")

    def _require(self, field_name: str, holds: object, expected: str) -> None:
        if not holds:
            got = values.shown(getattr(self, field_name))
            raise InputError(f"expected --{field_name.replace('_', '-')} to be {expected}, got {got}")
