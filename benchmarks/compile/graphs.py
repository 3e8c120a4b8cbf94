"""How many graphs the compiler makes of torch's own and of ours, over patterns of calls."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch._dynamo.utils import counters

from benchmarks.layers import BASELINE, OURS
from benchmarks.native_rows import HEADS
from manual_mlp import MLP, Dense, Linear, LinearCrossEntropyLoss
from manual_mlp.activations import to_module

D_IN, D_OUT = 16, 12
CPU = torch.device("cpu")


class Call(NamedTuple):
    """Hold how a module is called, once."""

    rows: int = 8
    training: bool = True
    grad: bool = True
    frozen: bool = False
    dtype: torch.dtype = torch.float32
    fresh: bool = False


PATTERNS: dict[str, tuple[Call, ...]] = {
    "one shape": (Call(), Call(), Call()),
    "another batch": (Call(), Call(rows=12)),
    "a third batch": (Call(), Call(rows=12), Call(rows=20)),
    "train, eval, train": (Call(), Call(training=False), Call()),
    "no_grad": (Call(), Call(grad=False), Call()),
    "frozen weights": (Call(), Call(frozen=True), Call()),
    "another dtype": (Call(), Call(dtype=torch.float64), Call()),
    "a new instance": (Call(), Call(fresh=True), Call(fresh=True)),
}


class Head(nn.Module):
    """An output layer with a loss, as a module."""

    def __init__(self, loss: Callable[..., Tensor]) -> None:
        super().__init__()
        self.linear, self.loss = nn.Linear(D_IN, D_OUT), loss

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        """Return the loss."""
        return self.loss(input, self.linear.weight, target, self.linear.bias)


class Subject(NamedTuple):
    """Hold how torch's module and ours are made, and the target beside their input, if they take one."""

    torchs: Callable[[], nn.Module]
    ours: Callable[[], nn.Module]
    target: Callable[[int, torch.dtype], tuple[Tensor, ...]] = lambda rows, dtype: ()


def _mlp(dropout: float = 0.0) -> MLP:
    return MLP([D_IN, 14, 13, D_OUT], dropout=dropout)


def _head(name: str) -> Subject:
    torchs, ours = HEADS[name]

    def target(rows: int, dtype: torch.dtype) -> tuple[Tensor, ...]:
        return (torch.arange(rows) % D_OUT if name == "cross-entropy" else torch.rand(rows, D_OUT, dtype=dtype),)

    return Subject(lambda: Head(torchs), lambda: Head(ours), target)


def _in_chunks() -> Subject:
    of = _head("cross-entropy")
    return of._replace(ours=lambda: LinearCrossEntropyLoss(D_IN, D_OUT, bias=True, chunk_rows=3))


SUBJECTS: dict[str, Subject] = {
    "MLP": Subject(lambda: _mlp().to_sequential(), _mlp),
    "MLP with dropout": Subject(lambda: _mlp(0.5).to_sequential(), lambda: _mlp(0.5)),
    "Linear": Subject(lambda: nn.Linear(D_IN, D_OUT), lambda: Linear(D_IN, D_OUT)),
    "Dense": Subject(
        lambda: nn.Sequential(nn.Linear(D_IN, D_OUT), to_module(Dense(1, 1, "gelu").activation)),
        lambda: Dense(D_IN, D_OUT, "gelu"),
    ),
    **{name: _head(name) for name in HEADS},
    "LinearCrossEntropyLoss, 3 rows at once": _in_chunks(),
}


class Counts(NamedTuple):
    """Count the graphs of the first call, those that later calls add, and the breaks."""

    graphs: int
    recompiled: int
    breaks: int


class Counting:
    """A compiler that compiles nothing, and counts what it is given."""

    def __init__(self) -> None:
        """Begin at none."""
        self.graphs = 0

    def __call__(self, graph: torch.fx.GraphModule, inputs: Sequence[Any]) -> Callable[..., Any]:
        """Take a graph as it is."""
        self.graphs += 1
        return graph.forward


def count(
    make: Callable[[], nn.Module],
    target: Callable[..., tuple[Tensor, ...]],
    calls: Sequence[Call],
    device: torch.device = CPU,
) -> Counts:
    """Compile a module, call it as a pattern says, and count."""
    torch.compiler.reset()
    counters.clear()
    backend, after = Counting(), []
    module = make()
    function = torch.compile(module, backend=backend)
    for call in calls:
        if call.fresh:
            module = make()
            function = torch.compile(module, backend=backend)
        module.train(call.training).to(device, call.dtype)
        for name, parameter in module.named_parameters():
            parameter.requires_grad_(not (call.frozen and name.endswith("weight")))
        with torch.set_grad_enabled(call.grad):
            operands = torch.randn(call.rows, D_IN, dtype=call.dtype), *target(call.rows, call.dtype)
            y = function(*(operand.to(device) for operand in operands))
        if call.grad:
            y.sum().backward()
        after.append(backend.graphs)
    return Counts(after[0], after[-1] - after[0], sum(counters["graph_break"].values()))


def count_all(subjects: Sequence[str] = tuple(SUBJECTS), device: torch.device = CPU) -> list[dict[str, Any]]:
    """Count for every subject and pattern, torch's and ours."""
    found = []
    for name in subjects:
        torchs, ours, target = SUBJECTS[name]
        for pattern, calls in PATTERNS.items():
            counts = {who: count(make, target, calls, device) for who, make in ((BASELINE, torchs), (OURS, ours))}
            found.append(
                {
                    "subject": name,
                    "pattern": pattern,
                    **{who: counted._asdict() for who, counted in counts.items()},
                    "more": any(a > b for a, b in zip(counts[OURS], counts[BASELINE], strict=True)),
                }
            )
    torch.compiler.reset()
    return found


def cells(counted: Mapping[str, Mapping[str, int]]) -> tuple[str, ...]:
    """Write torch's and ours of each count, one figure where both are equal."""
    pairs = [(counted[BASELINE][kind], counted[OURS][kind]) for kind in Counts._fields]
    return tuple(str(a) if a == b else f"{a}, {b}" for a, b in pairs)
