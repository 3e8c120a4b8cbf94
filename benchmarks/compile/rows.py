"""What is compiled: torch's own and ours, over the same tensors."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import nullcontext
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from benchmarks import dense, output
from benchmarks.harness import Step, marked
from benchmarks.layers import BASELINE, OURS
from benchmarks.native_rows import HEADS, Sized
from benchmarks.network import cases
from manual_mlp import Dense, Linear
from manual_mlp.activations import to_module

EAGER = "manual_mlp eager"
STEP, FORWARD = "step", "forward"
WAYS = (STEP, FORWARD)
MODES = ("default", "max-autotune")

Found = dict[str, Tensor | None]


class Made(NamedTuple):
    """Hold functions of the same operands, the leaves that get gradients, and the cotangent of the output."""

    functions: Mapping[str, Callable[..., Tensor]]
    operands: tuple[Tensor | None, ...]
    leaves: Mapping[str, Tensor]
    cotangent: Tensor


Make = Callable[[torch.device, torch.dtype], Made]


class Row(NamedTuple):
    """One line of the table: what is compiled, in which mode, and how it is called."""

    group: str
    case: str
    of: str
    way: str
    mode: str
    make: Make
    quick: bool

    def __str__(self) -> str:
        """Write the row as in ``MLP 64→64×2→10, 32 rows relu step default``."""
        return " ".join([self.group, self.case, self.of, self.way, self.mode])


def network(case: cases.Case, device: torch.device, dtype: torch.dtype) -> Made:
    """Measure an ``MLP`` against its ``to_sequential()``, the input without a gradient as in training."""
    problem = case.problem(device)
    problem = problem.double() if dtype == torch.float64 else problem
    modules = {BASELINE: problem.sequential(), OURS: problem.mlp}
    cotangent = torch.randn(case.rows, case.sizes[-1]).to(device, dtype)
    return Made(modules, (problem.input,), problem.parameters(), cotangent)


def layer(case: dense.Case, activation: str | None, device: torch.device, dtype: torch.dtype) -> Made:
    """Measure a ``Dense``, or a ``Linear`` without an activation, against torch's modules."""
    leaves, cotangent = case.tensors(device, dtype)
    ours = Dense(case.d_in, case.d_out, activation) if activation else Linear(case.d_in, case.d_out)
    linear = nn.Linear(case.d_in, case.d_out)
    ours.weight, ours.bias = (nn.Parameter(leaves[name].detach()) for name in ("weight", "bias"))
    linear.weight, linear.bias = ours.weight, ours.bias
    torchs = nn.Sequential(linear, to_module(ours.activation)) if isinstance(ours, Dense) else linear
    named = {"input": leaves["input"], **dict(ours.named_parameters())}
    return Made({BASELINE: torchs, OURS: ours}, (leaves["input"],), named, cotangent)


def loss(case: output.Case, name: str, device: torch.device, dtype: torch.dtype) -> Made:
    """Measure an output layer with its loss against torch's operations."""
    leaves, target = case._replace(dtype=str(dtype).removeprefix("torch.")).tensors(device)
    if name != "cross-entropy":
        target = torch.rand(case.rows, case.classes).to(device, dtype)
    operands = leaves["input"], leaves["weight"], target, leaves.get("bias")
    functions = dict(zip((BASELINE, OURS), HEADS[name], strict=True))
    return Made(functions, operands, leaves, torch.ones((), device=device, dtype=dtype))


def compiled(made: Made, mode: str) -> dict[str, Callable[..., Tensor]]:
    """Compile both as a user does."""
    options: dict[str, Any] = {} if mode == "default" else {"mode": mode}
    device = made.cotangent.device
    return {name: marked(torch.compile(function, **options), mode, device) for name, function in made.functions.items()}


def step_of(function: Callable[..., Tensor], made: Made, way: str) -> Callable[[], Tensor]:
    """Make the step that is timed: forward and ``.backward()``, or forward alone, where no gradient is asked for."""
    leaves, context = list(made.leaves.values()), torch.no_grad if way == FORWARD else nullcontext

    def step() -> Tensor:
        for leaf in leaves:
            leaf.grad = None
        with context():
            y = function(*made.operands)
        if way == STEP:
            y.backward(made.cotangent)  # type: ignore[no-untyped-call]
        return y

    return step


def steps_of(made: Made, row: Row) -> dict[str, Callable[[], Tensor]]:
    """Make the steps of compiled torch, of compiled ours and of ours without a compiler, and run each twice."""
    functions = {**compiled(made, row.mode), EAGER: made.functions[OURS]}
    steps = {name: step_of(function, made, row.way) for name, function in functions.items()}
    for step in steps.values():
        step()
        step()
    return steps


def outcome(step: Step, made: Made) -> Found:
    """Run a step once; return the output, and the gradient of each leaf that has one."""
    y = step()
    assert isinstance(y, Tensor)
    grads = {f"d{name}": leaf.grad for name, leaf in made.leaves.items() if leaf.grad is not None}
    return {"output": y.detach().clone()} | {name: grad.clone() for name, grad in grads.items()}


NETWORKS = (
    cases.TINY,
    cases.Case((784, 512, 256, 10), 256, loss="cross_entropy"),
    cases.Case((64, 256, 256, 256, 256, 4), 8192),
    cases.Case((32, 64, 64, 64, 1), 1 << 16, "gelu"),
)
LAYERS = (dense.Case(32, 64, 64), dense.Case(512, 1024, 1024))
SMALL_LOSS = output.Case(128, 256, 10, bias=True)
# All logits of these would be 131 and 33 MB: ours takes them in chunks.
LARGE_LOSSES = {
    "cross-entropy": output.Case(1024, 256, 32000),
    "logistic": output.Case(1024, 256, 8192),
    "squared error": output.Case(1024, 256, 8192),
}


def whats(size_of: Sized) -> Iterator[tuple[str, str, str, Make, bool]]:
    """List group, case, activation or loss, how it is made and whether it is quick: small before large."""
    for small in (True, False):
        layers = LAYERS[:1] if small else LAYERS[1:]
        for case in map(size_of, layers):
            yield "Linear", str(case), "identity", partial(layer, case, None), small
            for name in ("relu", "gelu"):
                yield "Dense", str(case), name, partial(layer, case, name), small
        for net in map(size_of, NETWORKS[:1] if small else NETWORKS[1:]):
            yield "MLP", str(net).rpartition(", ")[0], net.activation, partial(network, net), small
        for name, large in LARGE_LOSSES.items():
            head = size_of(SMALL_LOSS if small else large)
            yield "loss", str(head).removesuffix(" float32"), name, partial(loss, head, name), small


def rows_of(size_of: Sized) -> tuple[Row, ...]:
    """List the rows, with every case in the size that is asked for."""
    return tuple(
        Row(group, case, of, way, mode, make, quick)
        for group, case, of, make, quick in whats(size_of)
        for way in WAYS
        for mode in MODES
    )


ROWS = rows_of(lambda case: case)
GROUPS = tuple(dict.fromkeys(row.group for row in ROWS))
