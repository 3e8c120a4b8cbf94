"""Time whole training steps whose loss contains a derivative, against torch's double backward.

A network has four hidden layers of one width; every row is a step on 1024 points, ``.backward()`` included.

- pinn: inputs (x, t), tanh; the loss is on ∂u/∂x + ∂u/∂t, as in a physics-informed net (Raissi et al., 2019);
- poisson: inputs (x, t), tanh; the loss is on ∂²u/∂x² + ∂²u/∂t², so its gradient is of third order;
- sdf-sine: inputs in space, sin(30z); the loss is the eikonal one, (‖∂u/∂x‖ − 1)², with u on the surface
  (Sitzmann et al., 2020);
- sdf-softplus: the same with softplus of β = 100 (Gropp et al., 2020);
- hvp: 64 inputs, gelu, 10 outputs, cross-entropy; the Hessian times a vector in the space of all parameters.

Each row of the JSON holds:
    case, width, rows, threads, malloc;
    load (average of the last minute), others_cores (that other processes took meanwhile), busy (marked for these);
    number (calls a block), rounds (paired blocks), flops (operations of the products in torch's step), products_us
    (their time at this run's ceiling);
    providers: torch; manual_mlp; differentiable (the same layer, its backward left to autograd). For each,
    median_us, p20_us, p80_us, host_us (on CUDA: what a call takes on the host alone, until it is enqueued), ratio and
    extra_us (torch over it; it minus torch; both as [median, low, high] with a 95 % interval), products_share
    (products_us over its median), error (largest absolute, against float64: output (the loss) and d of each input and
    parameter), kept_bytes (for the last backward: of input, each parameter, output, other, total; attributes),
    peak_bytes, wrong.
"""

import argparse
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks import command, products
from benchmarks.harness import Layer, fix, training_step
from benchmarks.layers import BASELINE, DifferentiableFunction, Entrywise
from manual_mlp import Activation, activations, dense

WIDTHS = (64, 128, 256, 512, 1024)
QUICK_WIDTHS = (64, 128)
DEPTH = 4

Net = Callable[[Tensor], Tensor]


class Kind(NamedTuple):
    """A kind of step: the net's ends, its activation as each provider has it, and the loss."""

    inputs: int
    outputs: int
    f: Entrywise
    ours: Activation
    loss: Callable[[Net, Tensor, Sequence[Tensor]], Tensor]
    input_grad: bool = True


class Case(NamedTuple):
    """One step: its kind, the width of the hidden layers, and how many points."""

    kind: str
    width: int
    rows: int = 1024

    def __str__(self) -> str:
        """Write the case as in ``pinn 64``."""
        return f"{self.kind} {self.width}"

    def tensors(self, device: torch.device, dtype: torch.dtype) -> dict[str, Tensor]:
        """Make the points and the parameters, with nn.Linear's own initialisation (for sine, Sitzmann's)."""
        torch.manual_seed(0)
        kind = KINDS[self.kind]
        made = {"input": 2 * torch.rand(self.rows, kind.inputs) - 1}
        sizes = [kind.inputs, *[self.width] * DEPTH, kind.outputs]
        for k, (d_in, d_out) in enumerate(pairwise(sizes)):
            layer = torch.nn.Linear(d_in, d_out)
            if kind.loss is eikonal and "sin" in kind.ours.name:
                bound = 1 / d_in if k == 0 else (6 / d_in) ** 0.5 / 30
                torch.nn.init.uniform_(layer.weight, -bound, bound)
            made |= {f"weight{k}": layer.weight, f"bias{k}": layer.bias}
        leaves = {name: t.detach().to(device, dtype).requires_grad_() for name, t in made.items()}
        leaves["input"].requires_grad_(kind.input_grad)
        return leaves


def gradient(y: Tensor, x: Tensor) -> Tensor:
    """Differentiate the sum of y by x, to be differentiated again."""
    return torch.autograd.grad(y.sum(), x, create_graph=True)[0]


def pinn(net: Net, x: Tensor, parameters: Sequence[Tensor]) -> Tensor:
    """Penalise what is left of a transport equation."""
    du = gradient(net(x), x)
    return (du.sum(1) - torch.sin(3 * x.detach()).sum(1)).square().mean()


def poisson(net: Net, x: Tensor, parameters: Sequence[Tensor]) -> Tensor:
    """Penalise what is left of Poisson's equation."""
    du = gradient(net(x), x)
    laplacian = sum(gradient(du[:, k], x)[:, k] for k in range(x.shape[1]))
    return (laplacian - torch.sin(3 * x.detach()).sum(1)).square().mean()


def eikonal(net: Net, x: Tensor, parameters: Sequence[Tensor]) -> Tensor:
    """Ask for a gradient of length one everywhere, and zero on the surface, here the first half of the points."""
    u = net(x)
    return (gradient(u, x).norm(dim=1) - 1).square().mean() + u[: len(u) // 2].abs().mean()


def hessian_vector(net: Net, x: Tensor, parameters: Sequence[Tensor]) -> Tensor:
    """Multiply the gradient with a vector: the gradient of that is the Hessian times the vector."""
    y = net(x)
    target = torch.arange(len(x), device=x.device) % y.shape[1]
    first = torch.autograd.grad(F.cross_entropy(y, target), parameters, create_graph=True)
    return sum((g * p.detach()).sum() for g, p in zip(first, parameters, strict=True))  # type: ignore[return-value]


TANH = (torch.tanh, activations.get("tanh"))
SINE = (lambda z: torch.sin(30 * z), activations.sin(30.0))
SOFTPLUS = (lambda z: F.softplus(z, 100.0), activations.softplus(100.0))
GELU = (F.gelu, activations.get("gelu"))

KINDS = {
    "pinn": Kind(2, 1, *TANH, pinn),
    "poisson": Kind(2, 1, *TANH, poisson),
    "sdf-sine": Kind(3, 1, *SINE, eikonal),
    "sdf-softplus": Kind(3, 1, *SOFTPLUS, eikonal),
    "hvp": Kind(64, 10, *GELU, hessian_vector, input_grad=False),
}

# Each makes the layer (h, w, b, last) -> y of a kind of step.
PROVIDERS: dict[str, Callable[[Kind], Callable[..., Tensor]]] = {
    BASELINE: lambda kind: lambda h, w, b, last: F.linear(h, w, b) if last else kind.f(F.linear(h, w, b)),
    "manual_mlp": lambda kind: lambda h, w, b, last: dense(h, w, b, None if last else kind.ours),
    "differentiable": lambda kind: (
        lambda h, w, b, last: F.linear(h, w, b) if last else DifferentiableFunction.apply(h, w, b, kind.ours)[0]
    ),
}


def losses(kind: Kind) -> dict[str, Layer]:
    """Make the loss of each provider, as a function of the points and the parameters."""

    def loss(layer: Callable[..., Tensor]) -> Layer:
        def of(x: Tensor, *parameters: Tensor) -> Tensor:
            def net(h: Tensor) -> Tensor:
                for k in range(0, len(parameters), 2):
                    h = layer(h, parameters[k], parameters[k + 1], k + 2 == len(parameters))
                return h

            return kind.loss(net, x, parameters)

        return of

    return {name: loss(provider(kind)) for name, provider in PROVIDERS.items()}


def read_options(arguments: Sequence[str]) -> argparse.Namespace:
    """Read the command line."""
    flags = command.parser("second-order", "Training steps with a derivative in their loss, against torch.")
    flags.add_argument("--kind", nargs="+", choices=tuple(KINDS), default=tuple(KINDS))
    flags.add_argument("--width", type=command.positive_int, nargs="+", metavar="W", help="of the hidden layers")
    options = flags.parse_args(arguments)
    command.complete(flags, options, seconds=1.0)

    def cases(widths: Sequence[int]) -> list[Case]:
        return [Case(kind, width) for width in widths for kind in options.kind]  # from small to large

    options.case = command.cases_of(options, cases(WIDTHS), cases(QUICK_WIDTHS), cases(options.width or ()))
    return options


def measure(options: argparse.Namespace, malloc: str) -> tuple[list[dict[str, Any]], dict[int, dict[str, float]]]:
    """Take every row under the malloc this process has; return rows, and ceilings by thread count."""
    device, dtype = options.device, command.DTYPES[options.dtype]
    one = torch.ones((), device=device, dtype=dtype)
    keys, rows = [(case, threads) for case in options.case for threads in options.threads], []
    for done, (case, threads) in command.turns(keys):
        leaves = case.tensors(device, dtype)
        steps = {name: training_step(loss, leaves, one) for name, loss in losses(KINDS[case.kind]).items()}
        about = {"case": case.kind, "width": case.width, "rows": case.rows, "malloc": malloc}
        about |= products.operations(steps[BASELINE])
        rows.append(about | command.time_row(steps, BASELINE, options, threads))
        command.progress(done, len(keys), f"{case}, {threads} threads, {malloc} malloc")
    limits = products.ceilings(options, rows)
    for row, (case, threads) in zip(rows, keys, strict=True):
        fix(threads)
        command.check_row(row, losses(KINDS[case.kind]), BASELINE, case.tensors(device, dtype), one)
    return rows, limits


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Lay out times, ratios, bytes and errors: a line a row."""
    titles = (
        "case", "width", "threads", "malloc", "torch ms", "ours ms", "torch/ours [95 %]", "torch/differentiable [95 %]",
        "kept MB: torch, ours", "peak MB: torch, ours", "error: torch, ours", "",
    )  # fmt: skip
    lines = []
    for row in rows:
        torch_, ours, other = (row["providers"][name] for name in PROVIDERS)
        kept = [p["kept_bytes"]["total"] + p["kept_bytes"]["attributes"] for p in (torch_, ours)]
        lines.append(
            (
                row["case"],
                str(row["width"]),
                str(row["threads"]),
                row["malloc"],
                f"{torch_['median_us'] / 1e3:.2f}",
                f"{ours['median_us'] / 1e3:.2f}",
                command.interval(ours["ratio"], ".2f"),
                command.interval(other["ratio"], ".2f"),
                ", ".join(f"{b / 1e6:.2f}" for b in kept),
                ", ".join(f"{p['peak_bytes'] / 1e6:.2f}" for p in (torch_, ours)),
                f"{max(torch_['error'].values()):.1e}, {max(ours['error'].values()):.1e}",
                command.notes(row),
            )
        )
    return command.table(titles, lines)


def main(arguments: Sequence[str]) -> int:
    """Measure, print, write; return 1 if any row is wrong."""
    options = read_options(arguments)
    run = command.record(options)
    print(command.heading("second-order", run, options), flush=True)
    rows, limits = command.take_rows(measure, options)
    print("\nTime of a step; above 1, ours is faster.\n" + table(rows))
    if options.json:
        print(f"\nwritten: {command.save('second-order', run | {'ceilings': limits, 'rows': rows}, options)}")
    return int(command.any_wrong(rows))
