"""Dense layers for PyTorch whose backward pass is written by hand."""

from manual_mlp import activations
from manual_mlp.activations import Activation
from manual_mlp.cross_entropy import linear_cross_entropy
from manual_mlp.explicit import backprop
from manual_mlp.language import lm_loss
from manual_mlp.layer import dense
from manual_mlp.loss_modules import DenseSquaredError, LinearCrossEntropyLoss
from manual_mlp.modules import MLP, Dense, Linear
from manual_mlp.output import dense_squared_error, linear_binary_cross_entropy

__version__ = "0.1.0"
__all__ = [
    "MLP",
    "Activation",
    "Dense",
    "DenseSquaredError",
    "Linear",
    "LinearCrossEntropyLoss",
    "activations",
    "backprop",
    "dense",
    "dense_squared_error",
    "linear_binary_cross_entropy",
    "linear_cross_entropy",
    "lm_loss",
]


def __dir__() -> list[str]:
    return sorted([*__all__, "__version__"])
