"""What the kernels are held against: the same networks by torch's own functions, left to autograd."""

from collections.abc import Callable
from itertools import pairwise
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.kernels.forms import Network, Task, network_of
from benchmarks.network.cases import LOSSES

FUNCTIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": F.relu,
    "gelu": F.gelu,
    "silu": F.silu,
    "tanh": torch.tanh,
    "sin": torch.sin,
    "softplus": F.softplus,
}
OBJECTIVES = LOSSES | {"dy": lambda y, dy: (y * dy).sum()}


class Problem(NamedTuple):
    """The numbers of a network w₁, b₁, w₂, …, its input (N, D_in), and what a step of it is asked."""

    parameters: list[Tensor]
    x: Tensor
    activation: str
    task: Task = Task()

    @property
    def network(self) -> Network:
        """Return the network as the kernels take it."""
        return network_of(self.parameters, self.activation)

    def leaves(self, dtype: torch.dtype) -> list[Tensor]:
        """Copy the input and the parameters to leaves of a dtype."""
        return [t.detach().to(dtype).requires_grad_() for t in (self.x, *self.parameters)]


def draw(widths: tuple[int, ...], rows: int, dtype: torch.dtype, device: torch.device) -> tuple[list[Tensor], Tensor]:
    """Draw a network whose outputs are about 1, and its input, by the seed that torch has."""
    parameters = []
    for d_in, d_out in pairwise(widths):
        parameters += [torch.randn(d_out, d_in, dtype=torch.float64) / d_in**0.5]
        parameters += [0.3 * torch.randn(d_out, dtype=torch.float64)]
    x = torch.randn(rows, widths[0], dtype=torch.float64)
    return [p.to(device, dtype) for p in parameters], x.to(device, dtype)


def draw_target(loss: str, rows: int, width: int, like: Tensor) -> Tensor:
    """Draw what a loss compares with: labels, or shares from 0 to 1."""
    if loss == "cross_entropy":
        return torch.randint(width, (rows,), device=like.device)
    return torch.rand(rows, width, dtype=torch.float64).to(like)


def forward(leaves: list[Tensor], activation: str, task: Task) -> Tensor:
    """Run x, w₁, b₁, … forward; with dropout, by the masks of the kernels."""
    h, *parameters = leaves
    layers = len(parameters) // 2
    for k in range(layers):
        h = F.linear(h, parameters[2 * k], parameters[2 * k + 1])
        if k < layers - 1:
            h = FUNCTIONS[activation](h)
            if task.dropout:
                h = h * mask(task, len(h), h.shape[1], k).to(h)
    return h


def step(problem: Problem, target: Tensor, dtype: torch.dtype) -> list[Tensor]:
    """Return the loss, and its gradients by x, w₁, b₁, …"""
    leaves = problem.leaves(dtype)
    target = target.to(dtype) if target.is_floating_point() else target
    loss = OBJECTIVES[problem.task.loss](forward(leaves, problem.activation, problem.task), target)
    return [loss.detach(), *torch.autograd.grad(loss, leaves)]


def field(problem: Problem, cotangents: tuple[Tensor, Tensor], dtype: torch.dtype) -> tuple[list[Tensor], list[Tensor]]:
    """Return y (N,) with ∂y/∂x (N, D), and then the gradients, by x, w₁, b₁, …, of their product with cotangents."""
    leaves = problem.leaves(dtype)
    y = forward(leaves, problem.activation, problem.task)[:, 0]
    (gradient,) = torch.autograd.grad(y.sum(), leaves[0], create_graph=True)
    dy, tilde = (t.to(dtype) for t in cotangents)
    found = torch.autograd.grad((y * dy).sum() + (gradient * tilde).sum(), leaves)
    return [y.detach(), gradient.detach()], list(found)


def mask(task: Task, rows: int, width: int, layer: int) -> Tensor:
    """Return what dropout multiplies the outputs (rows, width) of a layer by."""
    row, column = torch.arange(rows)[:, None], torch.arange(width)[None, :]
    bits = philox(task.seed, row, row >> 32, column, torch.tensor(layer))
    return (bits >= int(task.dropout * 2**32)).double() / (1 - task.dropout)


def philox(seed: int, *counter: Tensor) -> Tensor:
    """Return the first word of Philox 4×32-10 (Salmon et al., 2011): integers of 32 bits, held in int64."""
    low = 0xFFFFFFFF
    c: list[Tensor] = list(torch.broadcast_tensors(*counter))  # type: ignore[no-untyped-call]
    key = [seed & low, seed >> 32]
    for _ in range(10):
        # int64 wraps as 64 bits without a sign do; >> spreads the sign, which the mask takes off.
        a, b = c[0] * 0xD2511F53, c[2] * 0xCD9E8D57
        c = [(b >> 32 & low) ^ c[1] ^ key[0], b & low, (a >> 32 & low) ^ c[3] ^ key[1], a & low]
        key = [(key[0] + 0x9E3779B9) & low, (key[1] + 0xBB67AE85) & low]
    return c[0]
