"""What a Config means: device, model, loss, optimizer and learning rate."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from manual_mlp.explicit import backprop
from manual_mlp.losses import LOSSES, Criterion
from manual_mlp.modules import MLP
from manual_mlp.training.config import Config
from manual_mlp.training.data import Data
from manual_mlp.training.distributed import ALONE, Processes
from manual_mlp.training.errors import InputError, first_line


def pick_device(name: str, processes: Processes = ALONE) -> torch.device:
    """Return the device of that name; `auto` is a GPU if there is one. Of several processes each takes its own GPU.

    Raises:
        InputError: there is no such device here.
    """
    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    here = ["cpu", *(f"cuda:{i}" for i in range(gpus))]
    own = f"cuda:{processes.local}"
    full_name = {"auto": own if gpus else "cpu", "cuda": own}.get(name, name)
    if full_name not in here:
        raise InputError(f"expected --device to be auto or one of this machine's ({', '.join(here)}), got {full_name}")
    device = torch.device(full_name)
    if device.type == "cuda":
        torch.cuda.set_device(device)
    return device


def build_model(config: Config, data: Data, device: torch.device) -> MLP:
    """Make the network that the flags describe, from image to class.

    Raises:
        InputError: it does not fit into memory.
    """
    sizes = [data.train.images.shape[1], *config.hidden, data.classes]
    try:
        model = MLP(sizes, config.activation, config.output_activation, dropout=config.dropout).to(device)
    except (RuntimeError, OverflowError) as error:  # torch's error when memory is short
        raise InputError(f"expected --hidden that fits into memory, got {sizes}: {first_line(error)}") from None
    if config.initial != "torch":
        for parameter in model.parameters():
            scaled = config.initial == "scaled-normal" and parameter.dim() == 2
            nn.init.normal_(parameter, std=parameter.size(1) ** -0.5 if scaled else 1.0)
    return model


@dataclass(frozen=True)
class Objective:
    """The loss of a batch: summed over classes, averaged over images.

    Attributes:
        loss: its name, as :func:`manual_mlp.backprop` knows it.
        classes: C.
        smoothing: share of each target that is spread over all classes.
    """

    loss: str
    classes: int
    smoothing: float

    @classmethod
    def of(cls, config: Config, classes: int) -> Objective:
        """Return the objective that the flags describe."""
        return cls(config.loss.replace("-", "_"), classes, config.label_smoothing)

    def targets(self, labels: Tensor) -> Tensor:
        """Turn labels `(N,)` into what the loss compares with: itself, or rows `(N, C)`."""
        if LOSSES[self.loss].of_classes and (self._smooths_itself or not self.smoothing):
            return labels
        # Not F.one_hot, which looks at the labels.
        rest = self.smoothing / self.classes
        targets = torch.full((len(labels), self.classes), rest, device=labels.device)
        return targets.scatter_(1, labels[:, None], 1 - self.smoothing + rest)

    def step(self, network: nn.Module, images: Tensor, labels: Tensor, scale: Tensor | float) -> tuple[Tensor, Tensor]:
        """Add the gradients of `scale` times the summed loss to `.grad`; return that sum and the outputs `(N, C)`."""
        found = backprop(
            network,
            images,
            self.targets(labels),
            self.loss,
            "sum",
            gradient=scale,
            return_output=True,
            **self._options(),
        )
        assert isinstance(found, tuple)
        return found

    def total(self, outputs: Tensor, labels: Tensor) -> Tensor:
        """Return the loss, summed over images, of outputs `(N, C)`."""
        return Criterion(LOSSES[self.loss], self.targets(labels), "sum", self._options()).torchs(outputs.float())

    def _options(self) -> dict[str, Any]:
        # Of a loss that does not know the option, the targets are smoothed.
        return {"label_smoothing": self.smoothing} if self._smooths_itself and self.smoothing else {}

    @property
    def _smooths_itself(self) -> bool:
        return "label_smoothing" in LOSSES[self.loss].options


def make_optimizer(config: Config, model: nn.Module) -> torch.optim.Optimizer:
    """Return the optimizer over all parameters of the model; biases do not decay."""
    lr, decay = config.lr, config.weight_decay
    groups = [
        {"params": [p for p in model.parameters() if p.dim() == 2], "weight_decay": decay},
        {"params": [p for p in model.parameters() if p.dim() == 1], "weight_decay": 0.0},
    ]
    adam: dict[str, Any] = {"betas": config.betas, "fused": True}
    # Where a scaler leaves out the first step, torch's fused sgd goes on from a momentum that was never written.
    fused = config.precision != "fp16" or config.cuda_graph
    kinds: dict[str, tuple[type[torch.optim.Optimizer], dict[str, Any]]] = {
        "adamw": (torch.optim.AdamW, adam),
        "adam": (torch.optim.Adam, adam),
        "rmsprop": (torch.optim.RMSprop, {}),
        "sgd": (torch.optim.SGD, {"momentum": config.momentum, "nesterov": config.momentum > 0, "fused": fused}),
    }
    kind, options = kinds[config.optimizer]
    return _eager(kind)(groups, lr, **options)


def _eager(kind: type[torch.optim.Optimizer]) -> Callable[..., torch.optim.Optimizer]:
    """Free an optimizer's methods of what torch wraps them in for compiled loops: that imports the compiler.

    What is lost: `differentiable`, and pickle.
    """
    names = ("add_param_group", "load_state_dict", "state_dict", "step", "zero_grad")
    methods = {name: inspect.unwrap(getattr(kind, name)) for name in names}
    return type(kind.__name__, (kind,), {**methods, "step": torch.no_grad()(methods["step"])})


def learning_rate(config: Config, step: int, steps: int) -> float:
    """Return the learning rate of a step, counted from 0, of so many."""
    if config.schedule == "constant":
        return config.lr
    warmup = max(1, round(config.warmup * steps))
    return config.lr * min((step + 1) / warmup, max(0, steps - step) / max(1, steps - warmup))


def compile_model(model: nn.Module, images: Tensor) -> nn.Module:
    """Compile the model and run it forward and backward once.

    Raises:
        InputError: torch.compile does not work here, for example for want of a C++ compiler.
    """
    try:
        compiled = torch.compile(model)
        compiled(images).sum().backward()
    except Exception as error:
        raise InputError(f"expected --compile to work on this machine, got: {first_line(error)}") from error
    model.zero_grad()
    assert isinstance(compiled, nn.Module)
    return compiled
