"""What a Config means: device, model, loss, optimizer and learning rate."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR

from manual_mlp.modules import MLP
from manual_mlp.training.config import Config
from manual_mlp.training.data import Data
from manual_mlp.training.errors import InputError

Forward = Callable[[Tensor], Tensor]
Loss = Callable[[Tensor, Tensor], Tensor]

_WARMUP = 0.2  # share of the steps


def pick_device(name: str) -> torch.device:
    """Return the device of that name; `auto` is a GPU if there is one.

    Raises:
        InputError: there is no such device here.
    """
    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    here = ["cpu", *(f"cuda:{i}" for i in range(gpus))]
    full_name = {"auto": here[min(1, gpus)], "cuda": "cuda:0"}.get(name, name)
    if full_name not in here:
        raise InputError(f"expected --device to be auto or one of this machine's ({', '.join(here)}), got {name}")
    return torch.device(full_name)


def build_model(config: Config, data: Data, device: torch.device) -> MLP:
    """Make the network that the flags describe, from image to class.

    Raises:
        InputError: it does not fit into memory.
    """
    sizes = [data.train.images.shape[1], *config.hidden, data.classes]
    try:
        return MLP(sizes, config.activation, dropout=config.dropout).to(device)
    except (RuntimeError, OverflowError) as error:  # torch's error when memory is short
        raise InputError(f"expected --hidden that fits into memory, got {sizes}: {_first_line(error)}") from None


def make_loss(config: Config, classes: int) -> Loss:
    """Return the mean loss over a batch, of outputs `(N, classes)` and labels `(N,)`."""
    smoothing = config.label_smoothing

    def squared_error(outputs: Tensor, labels: Tensor) -> Tensor:
        target = F.one_hot(labels, classes).to(torch.float32) * (1 - smoothing) + smoothing / classes
        return 0.5 * (outputs.float() - target).square().sum(-1).mean()

    def cross_entropy(outputs: Tensor, labels: Tensor) -> Tensor:
        return F.cross_entropy(outputs.float(), labels, label_smoothing=smoothing)

    return squared_error if config.loss == "squared-error" else cross_entropy


def make_optimizer(config: Config, model: nn.Module) -> torch.optim.Optimizer:
    """Return the optimizer over all parameters of the model."""
    parameters, lr, decay = model.parameters(), config.lr, config.weight_decay
    match config.optimizer:
        case "adamw":
            # The short memory of the squared gradient (0.99) suits a run of a thousand steps.
            return torch.optim.AdamW(parameters, lr, betas=(0.9, 0.99), weight_decay=decay, fused=True)
        case "adam":
            return torch.optim.Adam(parameters, lr, betas=(0.9, 0.99), weight_decay=decay, fused=True)
        case "rmsprop":
            return torch.optim.RMSprop(parameters, lr, weight_decay=decay)
        case _:
            return torch.optim.SGD(parameters, lr, momentum=0.9, nesterov=True, weight_decay=decay, fused=True)


def make_schedule(optimizer: torch.optim.Optimizer, steps: int) -> LambdaLR:
    """Raise the learning rate over the first fifth of the steps, then lower it to zero, both on a straight line."""
    warmup = max(1, round(_WARMUP * steps))
    return LambdaLR(optimizer, lambda step: min((step + 1) / warmup, max(0, steps - step) / max(1, steps - warmup)))


def compile_model(model: nn.Module, images: Tensor) -> Forward:
    """Compile the model and run it forward and backward once.

    Raises:
        InputError: torch.compile does not work here, for example for want of a C++ compiler.
    """
    try:
        compiled: Forward = torch.compile(model)
        compiled(images).sum().backward()  # type: ignore[no-untyped-call]
    except Exception as error:
        raise InputError(f"expected --compile to work on this machine, got: {_first_line(error)}") from error
    model.zero_grad()
    return compiled


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
