"""The networks that are measured, and the tensors of one."""

import argparse
import copy
import re
from collections.abc import Callable
from itertools import groupby, pairwise
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks import command
from manual_mlp import MLP

# As backprop names them; the squared error is ½(y − t)².
LOSSES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "squared_error": lambda y, t: 0.5 * F.mse_loss(y, t),
    "cross_entropy": F.cross_entropy,
    "binary_cross_entropy": F.binary_cross_entropy_with_logits,
}
ACTIVATIONS = ("relu", "gelu", "silu", "tanh", "sigmoid")
# float64 is the dtype of every tensor; the narrow ones are autocast's, over parameters in float32.
DTYPES = ("float32", "float64", "bfloat16")


class Case(NamedTuple):
    """One network and its batch; the mean of a loss."""

    sizes: tuple[int, ...]
    rows: int
    activation: str = "relu"
    loss: str = "squared_error"
    dtype: str = "float32"

    def __str__(self) -> str:
        """Write the case as in ``32→128×3→1, 65536 rows, relu``."""
        runs = [(width, len(list(run))) for width, run in groupby(self.sizes[1:-1])]
        hidden = [f"{width}×{count}" if count > 1 else str(width) for width, count in runs]
        shape = "→".join([str(self.sizes[0]), *hidden, str(self.sizes[-1])])
        narrow = "" if self.dtype == "float32" else f", {self.dtype}"
        return f"{shape}, {self.rows} rows, {self.activation}{narrow}"

    @property
    def autocast(self) -> bool:
        """Tell whether the products run in a narrower dtype than the parameters."""
        return self.dtype == "bfloat16"

    @property
    def held(self) -> torch.dtype:
        """Return the dtype of the parameters."""
        return torch.float32 if self.autocast else command.DTYPES[self.dtype]

    @property
    def flops(self) -> int:
        """Count the operations of the products: three a layer, but no dh for the input."""
        return sum(2 * self.rows * a * b * (3 if k else 2) for k, (a, b) in enumerate(pairwise(self.sizes)))

    @property
    def time(self) -> float:
        """Say how much of a row's seconds it gets: a round of a large case takes a second and more."""
        return 2.0 if self.flops > 1e10 else 1.0

    @property
    def least_bytes(self) -> int:
        """Count the bytes that a step cannot do without moving: input and target read, gradients written."""
        parameters = sum(b * (a + 1) for a, b in pairwise(self.sizes))
        target = 8 * self.rows if self.loss == "cross_entropy" else self.held.itemsize * self.rows * self.sizes[-1]
        return target + self.held.itemsize * (self.rows * self.sizes[0] + 2 * parameters)

    def problem(self, device: torch.device, **options: int) -> "Problem":
        """Make the network, with nn.Linear's own initialisation, and a batch; options go to MLP."""
        torch.manual_seed(0)
        mlp = MLP(self.sizes, self.activation, **options).to(device, self.held)  # type: ignore[arg-type]
        input = torch.randn(self.rows, self.sizes[0], dtype=self.held, device=device)
        return Problem(self, mlp, input, self.target(device))

    def target(self, device: torch.device) -> Tensor:
        """Draw what the loss compares with."""
        if self.loss == "cross_entropy":
            return torch.randint(self.sizes[-1], (self.rows,), device=device)
        draw = torch.rand if self.loss == "binary_cross_entropy" else torch.randn
        return draw(self.rows, self.sizes[-1], dtype=self.held, device=device)


class Problem(NamedTuple):
    """A network, a batch, and what it is compared with."""

    case: Case
    mlp: MLP
    input: Tensor
    target: Tensor

    def loss(self, output: Tensor) -> Tensor:
        """Compare an output with the target."""
        return LOSSES[self.case.loss](output, self.target)

    def sequential(self) -> nn.Sequential:
        """Make torch's own layers, over the same parameters."""
        return self.mlp.to_sequential()

    def parameters(self) -> dict[str, nn.Parameter]:
        """Name the parameters: weight0, bias0, weight1, …"""
        return {f"{name}{k}": p for k, layer in enumerate(self.mlp.layers) for name, p in layer.named_parameters()}

    def double(self) -> "Problem":
        """Copy the problem to float64."""
        floating = self.target.is_floating_point()
        return Problem(
            self.case._replace(dtype="float64"),
            copy.deepcopy(self.mlp).double(),
            self.input.double(),
            self.target.double() if floating else self.target,
        )


# From small to large: a large block, once freed, changes how malloc treats all that come after it.
TINY = Case((64, 64, 64, 10), 32, loss="cross_entropy")
MNIST = (
    Case((784, 128, 10), 64, loss="cross_entropy"),
    Case((784, 512, 512, 10), 128, loss="cross_entropy"),
)
BFLOAT16 = Case((784, 512, 10), 128, loss="cross_entropy", dtype="bfloat16")
WIDE = Case((1024, 4096, 1024), 512)
POINTS = Case((3, 256, 256, 256, 256, 1), 1 << 15)
FIELD = Case((32, 128, 128, 128, 1), 1 << 16)
NARROW = Case((64,) * 6, 1 << 17)
NARROW_GELU = NARROW._replace(activation="gelu")
CASES = (TINY, *MNIST, BFLOAT16, WIDE, POINTS, FIELD, NARROW, NARROW_GELU)
QUICK_CASES = (TINY, NARROW._replace(rows=1 << 13))

SYNTAX = "SIZESxROWS[-ACTIVATION][-LOSS][-DTYPE]"


def read_case(text: str) -> Case:
    """Read a case from ``64-64-10x32``, with an activation, a loss and a dtype behind it."""
    one_of = ["|".join(names) for names in (ACTIVATIONS, LOSSES, DTYPES)]
    found = re.fullmatch(r"([1-9]\d*(?:-[1-9]\d*)+)x([1-9]\d*)" + "".join(f"(?:-({names}))?" for names in one_of), text)
    if not found:
        raise argparse.ArgumentTypeError(f"expected {SYNTAX}, as in 64-64-10x32-gelu-cross_entropy, got {text!r}")
    sizes, rows, *rest = found.groups()
    chosen = (given or default for given, default in zip(rest, Case._field_defaults.values(), strict=True))
    return Case(tuple(map(int, sizes.split("-"))), int(rows), *chosen)
