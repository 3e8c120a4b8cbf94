"""Time a layer and an MLP under ``torch.func``, ``torch.compile`` and checkpointing, against torch's own layers.

- grad: the gradient by the parameters of ``functional_call``;
- per-sample: the gradient of every row on its own, ``vmap(grad)``;
- jvp: the derivative of the output along a direction of input and parameters;
- jacrev: the Jacobian of every row's output by its input;
- hessian: of the loss, by all parameters of a small net;
- compile: forward and backward of the compiled module;
- checkpoint: forward and backward of the module under ``torch.utils.checkpoint``.

Each row of the JSON holds:
    case (the transform), net (its sizes), rows, activation, threads, malloc;
    load (average of the last minute), others_cores (that other processes took meanwhile), busy (marked for these);
    number (calls a block), rounds (paired blocks);
    providers: torch; manual_mlp (``MLP``). For each, median_us, p20_us, p80_us, host_us (on CUDA: what a call takes on
    the host alone, until it is enqueued), ratio and extra_us (torch over it; it minus torch; both as [median, low,
    high] with a 95 % interval), error (largest absolute, against float64, of all results together: result), peak_bytes,
    wrong (an error more than twice torch's own and a millionth of the largest entry).
Of products nothing is said: a transform batches them by itself, and their ceiling is that of large ones.
Errors and bytes do not depend on the malloc: they are taken under the first one.
"""

import argparse
import copy
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, hessian, jacrev, jvp, vmap
from torch.utils.checkpoint import checkpoint

from benchmarks import command, memory, products
from benchmarks.harness import errors, fix, negligible
from benchmarks.layers import BASELINE, OURS
from benchmarks.left_out import attempt
from manual_mlp import MLP

Results = tuple[Tensor, ...]
Transform = Callable[[nn.Module, Tensor], Callable[[], Results]]


class Functional(NamedTuple):
    """A module as a function of its parameters and the input."""

    module: nn.Module
    names: tuple[str, ...]
    parameters: Results

    def __call__(self, parameters: Results, x: Tensor) -> Tensor:
        """Run the module with other parameters."""
        found: Tensor = functional_call(self.module, dict(zip(self.names, parameters, strict=True)), (x,))
        return found

    def loss(self, parameters: Results, x: Tensor) -> Tensor:
        """Run the module and reduce its output to a number."""
        return self(parameters, x).square().mean()


def functional(module: nn.Module) -> Any:
    """Take a module apart, into a Functional."""
    names, parameters = zip(*module.named_parameters(), strict=True)
    return Functional(module, names, tuple(p.detach() for p in parameters))


def _grad(module: nn.Module, x: Tensor) -> Callable[[], Results]:
    of = functional(module)
    derivative = grad(of.loss)
    return lambda: derivative(of.parameters, x)


def _per_sample(module: nn.Module, x: Tensor) -> Callable[[], Results]:
    of = functional(module)
    derivative = vmap(grad(of.loss), (None, 0))
    return lambda: derivative(of.parameters, x)


def _jvp(module: nn.Module, x: Tensor) -> Callable[[], Results]:
    of = functional(module)
    direction = (tuple(torch.ones_like(p) for p in of.parameters), torch.ones_like(x))
    return lambda: jvp(of, (of.parameters, x), direction)


def _jacrev(module: nn.Module, x: Tensor) -> Callable[[], Results]:
    of = functional(module)
    derivative = vmap(jacrev(of, argnums=1), (None, 0))
    return lambda: (derivative(of.parameters, x),)


def _hessian(module: nn.Module, x: Tensor) -> Callable[[], Results]:
    of = functional(module)
    derivative = hessian(of.loss)
    return lambda: tuple(entry for row in derivative(of.parameters, x) for entry in row)


def _backward(forward: Callable[[Tensor], Tensor], module: nn.Module, x: Tensor) -> Callable[[], Results]:
    parameters = tuple(module.parameters())
    return lambda: torch.autograd.grad(forward(x).square().mean(), parameters)


def _compile(module: nn.Module, x: Tensor) -> Callable[[], Results]:
    compiled: Any = torch.compile(module, dynamic=False)
    return _backward(compiled, module, x)


def _checkpoint(module: nn.Module, x: Tensor) -> Callable[[], Results]:
    options: dict[str, Any] = {"use_reentrant": False, "preserve_rng_state": False}
    return _backward(lambda x: checkpoint(module, x, **options), module, x)


TRANSFORMS: dict[str, Transform] = {
    "grad": _grad,
    "per-sample": _per_sample,
    "jvp": _jvp,
    "jacrev": _jacrev,
    "hessian": _hessian,
    "compile": _compile,
    "checkpoint": _checkpoint,
}
# Each takes the module whose gradients are ours and makes the provider's.
PROVIDERS: dict[str, Callable[[MLP], nn.Module]] = {BASELINE: lambda mlp: mlp.to_sequential(), OURS: lambda mlp: mlp}
LAYER, NET, SMALL = (64, 64), (64, 64, 64, 10), (4, 8, 1)
QUICK = ("grad", "per-sample", "jvp")


class Case(NamedTuple):
    """A transform of a net, or of one layer, which then has the activation behind it."""

    transform: str
    sizes: tuple[int, ...]
    activation: str
    rows: int = 64

    def tensors(self, device: torch.device, dtype: torch.dtype) -> tuple[MLP, Tensor]:
        """Make the net, with nn.Linear's own initialisation, and its input."""
        torch.manual_seed(0)
        last = self.activation if len(self.sizes) == 2 else None
        mlp = MLP(self.sizes, self.activation, last).to(device, dtype)
        return mlp, torch.randn(self.rows, self.sizes[0]).to(device, dtype)

    def steps(self, mlp: MLP, x: Tensor) -> dict[str, Callable[[], Results]]:
        """Make the step of each provider, run once: what is compiled has the number of threads in its code."""
        torch.compiler.reset()
        steps = {name: TRANSFORMS[self.transform](of(mlp), x) for name, of in PROVIDERS.items()}
        for step in steps.values():
            step()
        return steps


def cases(options: argparse.Namespace) -> list[Case]:
    """List the cases: a layer and a net under each transform; the Hessian of a small net alone."""
    found = [
        Case(transform, sizes, activation)
        for transform in options.transform
        for sizes in ((SMALL,) if transform == "hessian" else (LAYER, NET))
        for activation in options.activation
    ]
    return command.cases_of(options, found)


def result(step: Callable[[], Results]) -> dict[str, Tensor | None]:
    """Run a step once; return all it found as one tensor."""
    return {"result": torch.cat([tensor.detach().flatten() for tensor in step()])}


def check(row: dict[str, Any], case: Case, device: torch.device, dtype: torch.dtype) -> None:
    """Add to a row what does not depend on time: errors against float64, peak bytes."""
    fix(row["threads"])
    mlp, x = case.tensors(device, dtype)
    exact = TRANSFORMS[case.transform](PROVIDERS[BASELINE](copy.deepcopy(mlp).double()), x.double())
    truth = result(exact)
    for name, step in case.steps(mlp, x).items():
        provider = row["providers"][name]
        provider["error"] = errors(result(step), truth)
        provider["peak_bytes"] = memory.peak_bytes(step, mlp.parameters(), device, warm=False)
    command.judge(row, BASELINE, negligible(truth))


def measure(options: argparse.Namespace, malloc: str) -> tuple[list[dict[str, Any]], dict[int, dict[str, float]]]:
    """Take every row under the malloc this process has; return rows, and ceilings by thread count."""
    device, dtype = options.device, command.DTYPES[options.dtype]
    keys = [(case, threads) for case in cases(options) for threads in options.threads]
    rows: list[dict[str, Any]] = []
    for done, (case, threads) in command.turns(keys):
        fix(threads)
        steps = case.steps(*case.tensors(device, dtype))
        about = {"case": case.transform, "net": "→".join(map(str, case.sizes)), "rows": case.rows}
        about |= {"activation": case.activation, "malloc": malloc}
        rows.append(about | command.time_row(steps, BASELINE, options, threads))
        if malloc == options.malloc[0]:
            check(rows[-1], case, device, dtype)
        command.progress(done, len(keys), f"{case.transform} {case.activation}, {threads} threads, {malloc} malloc")
    return rows, products.ceilings(options, rows)


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Lay out times, ratios, bytes and errors: a line a row."""
    titles = (
        "transform", "net", "f", "threads", "malloc", "torch µs", "ours µs", "torch/ours [95 %]",
        "peak MB: torch, ours", "error: torch, ours", "",
    )  # fmt: skip
    lines = []
    for row in rows:
        both = [row["providers"][name] for name in PROVIDERS]
        lines.append(
            (
                row["case"],
                row["net"],
                row["activation"],
                str(row["threads"]),
                row["malloc"],
                *(f"{p['median_us']:,.0f}" for p in both),
                command.interval(both[1]["ratio"], ".2f"),
                ", ".join(f"{p['peak_bytes'] / 1e6:.2f}" for p in both),
                ", ".join(f"{p['error']['result']:.1e}" for p in both),
                command.notes(row),
            )
        )
    return command.table(titles, lines)


def read_options(arguments: Sequence[str]) -> argparse.Namespace:
    """Read the command line."""
    flags = command.parser("transforms", "A layer and an MLP under torch.func and compilers, against torch's layers.")
    flags.add_argument("--transform", nargs="+", choices=tuple(TRANSFORMS))
    flags.add_argument("--activation", nargs="+", choices=("relu", "gelu", "tanh"), default=("relu", "gelu"))
    options = flags.parse_args(arguments)
    command.complete(flags, options, seconds=0.5)
    options.transform = options.transform or (QUICK if options.quick else tuple(TRANSFORMS))
    return options


def main(arguments: Sequence[str]) -> int:
    """Measure, print, write; return 1 if any row is wrong."""
    options = read_options(arguments)
    for name in options.transform:
        case = Case(name, SMALL, "relu")
        _, why = attempt(lambda case=case: case.steps(*case.tensors(options.device, torch.float32))[BASELINE])
        if why:
            print(f"left out: {name} ({why})")
            options.transform = tuple(kept for kept in options.transform if kept != name)
    run = command.whole_run("transforms", measure, options)
    print("\nTime of a transform; above 1, ours is faster.\n" + table(run["rows"]))
    if options.json:
        print(f"\nwritten: {command.save('transforms', run, options)}")
    return int(command.any_wrong(run["rows"]))
