"""One training step of a network by each provider: gradients to None, forward, backward."""

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint, checkpoint_sequential

from benchmarks import command, memory
from benchmarks.harness import Step, marked
from benchmarks.layers import BASELINE, OURS
from benchmarks.left_out import runnable
from benchmarks.network.cases import Case, Problem
from manual_mlp import backprop

AUTOGRAD = "manual_mlp autograd"
FLOAT32 = "torch float32"

Forward = Callable[[], Tensor]  # the loss, to be differentiated
Whole = Callable[[], Tensor]  # the whole step; it returns the loss
Result = TypeVar("Result")


def _torch(problem: Problem) -> Forward:
    net = problem.sequential()
    return lambda: problem.loss(net(problem.input))


def _autograd(problem: Problem) -> Forward:
    return lambda: problem.loss(problem.mlp(problem.input))


def _compiled(mode: str | None = None) -> Callable[[Problem], Forward]:
    def make(problem: Problem) -> Forward:
        net = problem.sequential()
        compiled: Any = torch.compile(lambda input: problem.loss(net(input)), mode=mode, dynamic=False)
        return marked(lambda: compiled(problem.input), mode, problem.input.device)

    return make


def _checkpoint(problem: Problem) -> Forward:
    net = problem.sequential()
    options: dict[str, Any] = {"use_reentrant": False, "preserve_rng_state": False}
    return lambda: problem.loss(checkpoint(net, problem.input, **options))


def _segments(problem: Problem) -> Forward:
    net = problem.sequential()
    segments = round(len(problem.mlp.layers) ** 0.5)
    options: dict[str, Any] = {"use_reentrant": False, "preserve_rng_state": False}
    return lambda: problem.loss(checkpoint_sequential(net, segments, problem.input, **options))


# Those that build a graph: each makes the loss, to be called and differentiated.
GRAPHS: dict[str, Callable[[Problem], Forward]] = {
    BASELINE: _torch,
    AUTOGRAD: _autograd,
    "compile": _compiled(),
    "compile max-autotune": _compiled("max-autotune"),
    "checkpoint": _checkpoint,
    "checkpoint segments": _segments,
    FLOAT32: _torch,
}


def by_autograd(problem: Problem, forward: Forward) -> Whole:
    """Make the step of a provider that builds a graph."""
    parameters = list(problem.mlp.parameters())

    def step() -> Tensor:
        for parameter in parameters:
            parameter.grad = None
        loss = forward()
        loss.backward()  # type: ignore[no-untyped-call]
        return loss

    return step


def by_hand(problem: Problem, tile_rows: int | None = None) -> Whole:
    """Make the step of ``backprop``."""
    parameters = list(problem.mlp.parameters())

    def step() -> Tensor:
        for parameter in parameters:
            parameter.grad = None
        return backprop(problem.mlp, problem.input, problem.target, loss=problem.case.loss, tile_rows=tile_rows)

    return step


def capture(step: Callable[[], Result], device: torch.device) -> tuple[torch.cuda.CUDAGraph, Result]:
    """Capture a step as one CUDA graph; return it, and what the step returned, which every replay writes anew."""
    if device.type != "cuda":
        raise RuntimeError("it needs CUDA")
    side = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            step()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        result = step()
    return graph, result


def captured(step: Whole, problem: Problem) -> Whole:
    """Make a step one CUDA graph: its gradients always lie in the same memory."""
    # Without the nodes behind the loss: as long as they live, the other providers' backward uses them, on this stream.
    graph, loss = capture(lambda: step().detach(), problem.input.device)
    held = [(parameter, parameter.grad) for parameter in problem.mlp.parameters()]

    def replay() -> Tensor:
        graph.replay()
        for parameter, gradient in held:
            parameter.grad = gradient
        return loss

    return replay


def _graph(problem: Problem) -> Whole:
    return captured(by_autograd(problem, forward_of(BASELINE, problem)), problem)


STEPS: dict[str, Callable[[Problem], Whole]] = {OURS: by_hand, "cuda graph": _graph}
PROVIDERS = (
    BASELINE, OURS, AUTOGRAD, "compile", "compile max-autotune", "checkpoint", "checkpoint segments", "cuda graph",
    FLOAT32,
)  # fmt: skip
NEEDED = (BASELINE, OURS, AUTOGRAD)  # if these do not run, that is an error
MOST_IN_ONE = 4  # so many sizes are no more than one checkpoint
RARE = ("compile max-autotune", "checkpoint segments")  # the first tunes for minutes
USUAL = tuple(name for name in PROVIDERS if name not in RARE)


def forward_of(name: str, problem: Problem) -> Forward:
    """Make the loss of a provider that builds a graph, under autocast where the case asks for it."""
    forward = GRAPHS[name](problem)
    return forward if name == FLOAT32 else under_autocast(forward, problem)


def under_autocast(function: Whole, problem: Problem) -> Whole:
    """Run a function under the autocast of the case, if it has one."""
    if not problem.case.autocast:
        return function
    options: dict[str, Any] = {
        "device_type": problem.input.device.type,
        "dtype": command.DTYPES[problem.case.dtype],
    }

    def under() -> Tensor:
        with torch.autocast(**options):
            return function()

    return under


def step_of(name: str, problem: Problem) -> Whole:
    """Make the step of a provider; autocast, where there is one, is for forward, but ``backprop`` is both in one."""
    if name in STEPS:
        return under_autocast(STEPS[name](problem), problem)
    return by_autograd(problem, forward_of(name, problem))


def kept_bytes(forward: Forward, problem: Problem) -> int:
    """Count the bytes kept for backward, beside input, target and parameters."""
    tensors: dict[str, Tensor] = {"input": problem.input, "target": problem.target, **problem.parameters()}
    kept = memory.kept_bytes(lambda *_: forward(), tensors)
    return kept["output"] + kept["other"] + kept["attributes"]


def outcome(step: Step, problem: Problem) -> dict[str, Tensor | None]:
    """Run a step once; return the loss and the gradient of each parameter, by name."""
    loss = step()
    assert isinstance(loss, Tensor)
    gradients = {name: parameter.grad for name, parameter in problem.parameters().items()}
    copied = {f"d{name}": None if grad is None else grad.clone() for name, grad in gradients.items()}
    return {"loss": loss.detach().clone()} | copied


def that_serve(names: Sequence[str], case: Case) -> list[str]:
    """Leave out what is no other than a provider that is there: a second float32, the segments of few layers."""
    silent = {FLOAT32: case.autocast, "checkpoint segments": len(case.sizes) > MOST_IN_ONE}
    return [name for name in names if silent.get(name, True)]


def steps_of(names: Sequence[str], problem: Problem) -> tuple[dict[str, Whole], dict[str, str]]:
    """Make the steps of the providers that run, each run once; and say why others do not.

    Compilers write the number of threads into their code: what they have made before is forgotten.
    """
    torch.compiler.reset()
    return runnable({name: lambda name=name: step_of(name, problem) for name in names}, NEEDED)
