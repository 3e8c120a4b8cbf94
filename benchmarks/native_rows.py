"""The rows of the native engine's benchmark: what is timed, what is to be reached, and the limit of its products."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks import dense, output, second_order
from benchmarks.harness import Layer, Step, gradients, in_float64, training_step
from benchmarks.layers import BASELINE, OURS
from benchmarks.network import cases
from benchmarks.network.cases import Case, Problem
from benchmarks.network.providers import by_autograd, by_hand
from manual_mlp import dense_squared_error, linear_binary_cross_entropy
from manual_mlp.engines import native

PLAIN, PRODUCTS, TRUTH = "plain", "products", "float64"
DEFAULT = "default"

Found = dict[str, Tensor | None]
Sized = Callable[[Any], Any]  # makes of a case the one that is measured


class Made(NamedTuple):
    """What a row measures: a step of torch's and ours, what either finds, and the leaves that get gradients."""

    steps: Mapping[str, Step]
    outcome: Callable[[str], Found]
    leaves: Sequence[Tensor]
    against: str = BASELINE  # whose error is the measure


class Goal(NamedTuple):
    """What torch over ours is to reach: with one thread and with two; otherwise under the default malloc, if at all."""

    one: float
    two: float
    default: tuple[float, float] | None = None

    def at(self, malloc: str, threads: int) -> float:
        """Return the goal of a row."""
        one, two = self.default if self.default and malloc == DEFAULT else self[:2]
        return one if threads == 1 else two


class Row(NamedTuple):
    """One line of the table of goals."""

    group: str
    case: str
    of: str
    goal: Goal
    make: Callable[[torch.device], Made]
    quick: bool = False
    dtype: str = "float32"

    def __str__(self) -> str:
        """Write the row as in ``backprop 64→64→64→10, 32 rows, relu``."""
        return f"{self.group} {self.case} {self.of}"


def plainly(function: Callable[..., Any]) -> Callable[..., Any]:
    """Let plain compute: as ``native.without()``, but quicker."""

    def run(*args: Any) -> Any:
        doors, native.doors = native.doors, None
        try:
            return function(*args)
        finally:
            native.doors = doors

    return run


# Layers, heads and second order: functions of leaves.


def by_grad(layer: Layer, tensors: Mapping[str, Tensor], cotangent: Tensor) -> Step:
    """Make a step that asks ``torch.autograd.grad`` for all gradients."""
    inputs = tuple(tensors.values())
    leaves = [tensor for tensor in inputs if tensor.requires_grad]
    return lambda: torch.autograd.grad(layer(*inputs), leaves, cotangent)


def of_layers(
    layers: Mapping[str, Layer],
    tensors: dict[str, Tensor],
    cotangent: Tensor,
    step: Callable[..., Step] = training_step,
) -> Made:
    """Measure torch's layer and ours on the same leaves."""

    def outcome(name: str) -> Found:
        if name == TRUTH:
            return gradients(layers[BASELINE], in_float64(tensors), cotangent.double())
        return gradients(layers[name], tensors, cotangent)

    return Made(
        {name: step(layer, tensors, cotangent) for name, layer in layers.items()}, outcome, list(tensors.values())
    )


def layer(case: dense.Case, activation: str, step: Callable[..., Step], device: torch.device) -> Made:
    """Measure one layer."""
    found = dense.providers(activation)
    return of_layers({name: found[name] for name in (BASELINE, OURS)}, *case.tensors(device, torch.float32), step)


def squared_error(h: Tensor, w: Tensor, t: Tensor, b: Tensor | None) -> Tensor:
    """Compute torch's ½(y − t)², with t in the dtype of y."""
    y = F.linear(h, w, b)
    return 0.5 * F.mse_loss(y, t.to(y.dtype))


def logistic(h: Tensor, w: Tensor, t: Tensor, b: Tensor | None) -> Tensor:
    """Compute torch's logistic loss, with t in the dtype of y."""
    y = F.linear(h, w, b)
    return F.binary_cross_entropy_with_logits(y, t.to(y.dtype))


def ours_squared(h: Tensor, w: Tensor, t: Tensor, b: Tensor | None) -> Tensor:
    """Compute our squared error."""
    return dense_squared_error(h, w, b, t, reduction="mean")


def ours_logistic(h: Tensor, w: Tensor, t: Tensor, b: Tensor | None) -> Tensor:
    """Compute our logistic loss."""
    return linear_binary_cross_entropy(h, w, t, linear_bias=b)


HEADS: dict[str, tuple[output.Loss, output.Loss]] = {
    "cross-entropy": (output.PROVIDERS[BASELINE](), output.PROVIDERS[OURS]()),
    "logistic": (logistic, ours_logistic),
    "squared error": (squared_error, ours_squared),
}


def head(case: output.Case, loss: str, device: torch.device) -> Made:
    """Measure an output layer with its loss."""
    tensors, target = case.tensors(device)
    if loss != "cross-entropy":
        target = torch.rand(case.rows, case.classes, device=device)
    layers = {name: output.layer_of(f, target) for name, f in zip((BASELINE, OURS), HEADS[loss], strict=True)}
    return of_layers(layers, tensors, torch.ones((), device=device))


def of_second_order(case: second_order.Case, device: torch.device) -> Made:
    """Measure a step whose loss holds a derivative."""
    found, leaves = second_order.losses(second_order.KINDS[case.kind]), case.tensors(device, torch.float32)
    return of_layers({name: found[name] for name in (BASELINE, OURS)}, leaves, torch.ones((), device=device))


# Networks.


def network(case: Case, dropout: float, explicit: bool, device: torch.device) -> Made:
    """Measure a network's step, ours by ``backprop`` or by ``MLP`` with ``.backward()``."""
    problem = case.problem(device, dropout=dropout)  # type: ignore[arg-type]

    def of(name: str, problem: Problem) -> Callable[[], Tensor]:
        if name == BASELINE or (name == TRUTH and not dropout):
            net = problem.sequential()
            return by_autograd(problem, lambda: problem.loss(net(problem.input)))
        if explicit:
            return by_hand(problem)
        return by_autograd(problem, lambda: problem.loss(problem.mlp(problem.input)))

    def outcome(name: str) -> Found:
        torch.manual_seed(1)
        here = problem.double() if name == TRUTH else problem
        loss = (plainly(of(name, here)) if name == TRUTH else of(name, here))()
        return {"output": loss.detach()} | {f"d{k}": p.grad for k, p in here.parameters().items()}

    steps = {name: of(name, problem) for name in (BASELINE, OURS)}
    return Made(steps, outcome, list(problem.mlp.parameters()), PLAIN if dropout else BASELINE)


# The table of goals.


def layer_rows(size_of: Sized) -> Iterator[Row]:
    """List the layers; their first three are small."""
    sizes = [
        (1, 4, 4),
        (32, 64, 64),
        (128, 256, 10),
        (64, 784, 128),
        (128, 512, 256),
        (128, 784, 512),
        (512, 1024, 4096),
    ]
    goals = {"relu": (1.2, 1.15, 1.12, 1.03, 1.02, 1.0, 1.0), "gelu": (1.07, 1.07, 1.05, 1.0, 1.0, 1.0, 1.0)}
    ways: dict[str, Callable[..., Step]] = {"layer": training_step, "layer by grad": by_grad}
    for k, size in enumerate(sizes):
        for activation, reach in goals.items():
            for group, step in ways.items():
                case = size_of(dense.Case(*size))
                make = partial(layer, case, activation, step)
                yield Row(group, str(case), activation, Goal(reach[k], reach[k]), make, k < 2)


def network_rows(size_of: Sized) -> Iterator[Row]:
    """List the networks."""
    four, narrow = (cases.TINY, *cases.MNIST, cases.WIDE), cases.NARROW

    def row(group: str, case: Case, goal: Goal, dropout: float = 0.0) -> Row:
        quick, case = case.rows < 100, size_of(case)
        make = partial(network, case, dropout, group != "MLP")
        return Row(group, str(case).rpartition(", ")[0], case.activation, goal, make, quick)

    def each(group: str, of: Sequence[Case], f: str, reach: Sequence[float], dropout: float = 0.0) -> Iterator[Row]:
        for case, goal in zip(of, reach, strict=True):
            yield row(group, case._replace(activation=f), Goal(goal, goal), dropout)

    yield from each("backprop", four, "relu", (3.0, 1.6, 1.08, 1.0))
    yield from each("backprop", four, "gelu", (3.0, 1.8, 1.15, 1.0))
    yield from each("backprop with dropout", four[:3], "relu", (3.5, 2.2, 1.8), 0.5)
    yield from each("MLP", (*four[:3], narrow), "relu", (1.35, 1.05, 1.0, 1.3))
    yield from each("MLP", (*four[:3], narrow), "gelu", (1.2, 1.05, 1.0, 1.15))
    yield from each("backprop", (cases.FIELD, cases.POINTS), "relu", (1.75, 1.3))
    yield row("backprop", narrow, Goal(1.9, 1.8, (3.2, 3.2)))
    yield row("backprop", cases.NARROW_GELU, Goal(1.8, 1.7, (3.0, 2.8)))


def head_rows(size_of: Sized) -> Iterator[Row]:
    """List the output layers with their losses."""
    of = [case for case in output.CASES if case.dtype == "float32" and not case.saturated]
    narrow = [case._replace(dtype="bfloat16") for case in of]
    table = (
        ("cross-entropy", of, (1.35, 1.7, 1.03, 1.03)),
        ("cross-entropy", narrow[:3], (1.0, 1.2, 1.05)),
        ("logistic", of[:3], (1.0, 1.2, 1.05)),
        ("squared error", of[:3], (1.0, 1.2, 1.05)),
    )
    for loss, some, reach in table:
        for whole, goal in zip(some, reach, strict=True):
            case = size_of(whole)
            make = partial(head, case, loss)
            yield Row("head", str(case), loss, Goal(goal, goal), make, whole.rows < 200, case.dtype)


def second_order_rows(size_of: Sized) -> Iterator[Row]:
    """List the steps whose loss holds a derivative."""
    for kind, goal in {"pinn": 1.1, "sdf-sine": 1.2, "hvp": 1.12, "sdf-softplus": 1.1, "poisson": 0.9}.items():
        for width in (64, 128, 256):
            case = size_of(second_order.Case(kind, width))
            yield Row("second order", str(case), "", Goal(goal, goal), partial(of_second_order, case))


def rows_of(size_of: Sized) -> tuple[Row, ...]:
    """List the rows, with every case in the size that is asked for."""
    lists = layer_rows, network_rows, head_rows, second_order_rows
    return tuple(row for listed in lists for row in listed(size_of))


ROWS = rows_of(lambda case: case)
GROUPS = tuple(dict.fromkeys(row.group for row in ROWS))
