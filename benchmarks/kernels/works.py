"""What is timed, by provider: torch, ours, torch's compiler, a CUDA graph, and the kernels as they are and captured."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor

from benchmarks.harness import Step
from benchmarks.kernels.cases import FIELD, Case, captured_name
from benchmarks.kernels.device import inference, second_order, sums
from benchmarks.kernels.device.step import step
from benchmarks.kernels.forms import Form, Network, network_of
from benchmarks.kernels.launch import programs, wide
from benchmarks.kernels.right import flat
from benchmarks.layers import BASELINE, OURS
from benchmarks.network import cases as networks
from benchmarks.network.providers import Whole, capture, captured, outcome, step_of

GRAPH, COMPILE = "cuda graph", "compile"
Results = dict[str, Tensor | None]
Several = Callable[[], tuple[Tensor, ...]]


class Held(networks.Case):
    """A network whose tensors are all of its dtype, without autocast."""

    @property
    def autocast(self) -> bool:
        """Say that there is none."""
        return False

    @property
    def held(self) -> torch.dtype:
        """Return the dtype of the parameters."""
        found: torch.dtype = getattr(torch, self.dtype)
        return found


class Work(NamedTuple):
    """A row before it is timed: its providers, what a step of them found, the truth, and what it cannot do without."""

    makers: dict[str, Callable[[], Step]]
    outcome: Callable[[Step], Results]
    truth: Callable[[], Results]
    flops: float  # of the products of the baseline's step
    least_bytes: float


def as_it_is(run: Callable[[], Any]) -> Step:
    """Make a step of what needs no making."""
    return run


def make(case: Case, rows: int, device: torch.device) -> Work:
    """Draw the tensors of a case, and make its providers."""
    if case.kind == "sums":
        return of_sums(case, rows, device)
    about = Held(case.shape.widths, rows, case.shape.activation, case.task.loss, str(case.shape.dtype)[6:])
    problem = about.problem(device, dropout=case.task.dropout)  # type: ignore[arg-type]
    if case.kind in ("step", "cut"):
        return of_steps(case, problem)
    return of_fields(case, problem)


def of_steps(case: Case, problem: networks.Problem) -> Work:
    """Make the training steps of a network, each of which leaves the gradients in ``.grad``."""
    names = [BASELINE, OURS, GRAPH, *([COMPILE] if case.compiles else [])]
    makers: dict[str, Callable[[], Step]] = {name: partial(step_of, name, problem) for name in names}
    for name in case.forms:
        run = kernel_step(case, problem, case.form(name))
        makers[name] = partial(as_it_is, run)
        if problem.input.is_cuda:
            makers[captured_name(name)] = partial(captured, run, problem)

    def truth() -> Results:
        exact = problem.double()
        return outcome(step_of(BASELINE, exact), exact)

    return Work(
        makers, lambda run: outcome(run, problem), truth, float(problem.case.flops), float(problem.case.least_bytes)
    )


def kernel_step(case: Case, problem: networks.Problem, form: Form) -> Whole:
    """Make the step of a kernel; of a network cut in two, the three that it takes."""
    parameters = list(problem.parameters().values())
    network = network_of(parameters, case.shape.activation)
    x, target, task = problem.input, problem.target, case.task

    def whole() -> tuple[Tensor, list[Tensor], list[Tensor]]:
        return step(x, network, target, task, form)[:3]

    def cut() -> tuple[Tensor, list[Tensor], list[Tensor]]:
        lower, upper = network.cut(len(network.weights) // 2)
        h = inference.infer(x, lower, case.form("one block"))
        loss, dws, dbs, dh = step(h, upper, target, task._replace(need_dx=True), form)
        assert dh is not None
        _, lower_dws, lower_dbs, _ = step(x, lower, dh, task._replace(loss="dy"), form)
        return loss, lower_dws + dws, lower_dbs + dbs

    gradients_of = cut if case.kind == "cut" else whole

    def run() -> Tensor:
        loss, dws, dbs = gradients_of()
        for parameter, gradient in zip(parameters, flat(dws, dbs), strict=True):
            parameter.grad = gradient
        return loss

    return run


def of_fields(case: Case, problem: networks.Problem) -> Work:
    """Make inference, or a field with its gradient, or that and its backward, by the kind of the case."""
    parameters, x = list(problem.parameters().values()), problem.input
    network = network_of(parameters, case.shape.activation)
    cotangents = torch.randn_like(x[:, 0]), torch.randn_like(x)
    functions: dict[str, Callable[[], Callable[[Tensor], Tensor]]] = {
        BASELINE: problem.sequential,
        OURS: lambda: problem.mlp,
    }
    if case.kind == "infer":
        several = {name: no_grad(make(), x) for name, make in functions.items()}
    else:
        back = cotangents if case.kind == "backward" else None
        several = {name: by_autograd(make(), x, parameters, back) for name, make in functions.items()}
    makers: dict[str, Callable[[], Step]] = {name: partial(as_it_is, run) for name, run in several.items()}
    makers[GRAPH] = partial(replayed, several[BASELINE], x.device)
    if case.compiles:
        makers[COMPILE] = partial(by_compiler, case, problem, cotangents)
    for name in case.forms:
        run = kernel_field(case, network, x, cotangents, case.form(name))
        makers[name] = partial(as_it_is, run)
        if x.is_cuda:
            makers[captured_name(name)] = partial(replayed, run, x.device)

    def truth() -> Results:
        exact = problem.double()
        leaves, twice = list(exact.parameters().values()), (cotangents[0].double(), cotangents[1].double())
        if case.kind == "infer":
            return named(no_grad(exact.sequential(), exact.input)())
        back = twice if case.kind == "backward" else None
        return named(by_autograd(exact.sequential(), exact.input, leaves, back)())

    products, first = case.shape.products, case.shape.widths[0] * case.shape.widths[1]
    count = {"infer": products, "field": 2 * products, "backward": 6 * products - first}[case.kind]
    d_in, d_out = case.shape.widths[0], case.shape.widths[-1]
    entries = {"infer": d_in + d_out, "field": 2 * d_in + 1, "backward": 2 * (2 * d_in + 1)}[case.kind]
    size, rows = x.element_size(), len(x)
    held = sum(p.numel() for p in parameters) * (2 if case.kind == "backward" else 1)
    return Work(makers, lambda run: named(run()), truth, 2.0 * rows * count, float(size * (rows * entries + held)))


def no_grad(net: Callable[[Tensor], Tensor], x: Tensor) -> Several:
    """Make inference, without a graph."""

    @torch.no_grad()
    def run() -> tuple[Tensor, ...]:
        return (net(x),)

    return run


def by_autograd(
    net: Callable[[Tensor], Tensor], x: Tensor, parameters: Sequence[Tensor], cotangents: tuple[Tensor, Tensor] | None
) -> Several:
    """Make a field with its gradient, (y, ∂y/∂x), and with cotangents also w₁'s gradient, b₁'s, … of a loss of both."""

    def run() -> tuple[Tensor, ...]:
        leaf = x.detach().requires_grad_()
        y = net(leaf)[:, 0]
        (gradient,) = torch.autograd.grad(y.sum(), leaf, create_graph=cotangents is not None)
        if cotangents is None:
            return y.detach(), gradient
        found = torch.autograd.grad((y, gradient), parameters, cotangents)
        return y.detach(), gradient.detach(), *found

    return run


def by_compiler(case: Case, problem: networks.Problem, cotangents: tuple[Tensor, Tensor]) -> Several:
    """Make the same by torch's compiler: the gradient by the input is part of what is compiled."""
    net, x, parameters = problem.sequential(), problem.input, list(problem.parameters().values())
    if case.kind == "infer":
        compiled: Any = torch.compile(net, dynamic=False)
        return no_grad(compiled, x)

    def value(x: Tensor) -> tuple[Tensor, Tensor]:
        y = net(x)[:, 0]
        return y.sum(), y

    field: Any = torch.compile(torch.func.grad(value, has_aux=True), dynamic=False)

    def run() -> tuple[Tensor, ...]:
        gradient, y = field(x)
        found = torch.autograd.grad((y, gradient), parameters, cotangents) if case.kind == "backward" else ()
        return y.detach(), gradient.detach(), *found

    return run


def kernel_field(case: Case, network: Network, x: Tensor, cotangents: tuple[Tensor, Tensor], form: Form) -> Several:
    """Make the same by the kernels; where there is a backward, value and gradient are found in a form of their own."""

    def infer() -> tuple[Tensor, ...]:
        return (inference.infer(x, network, form),)

    def field() -> tuple[Tensor, ...]:
        return second_order.value_and_gradient(x, network, form)

    def backward() -> tuple[Tensor, ...]:
        first = second_order.value_and_gradient(x, network, case.form(FIELD))
        dws, dbs, _ = second_order.backward(x, network, cotangents, False, form)
        return *first, *flat(dws, dbs)

    return {"infer": infer, "field": field, "backward": backward}[case.kind]


def of_sums(case: Case, rows: int, device: torch.device) -> Work:
    """Make the sum of the shares of a step's programs, alone."""
    shape, (name,) = case.shape, case.forms
    weights = [torch.empty(b, a, dtype=shape.dtype, device=device) for a, b in pairwise(shape.widths)]
    sizes, count = sums.sizes_of(shape.widths), programs(torch.empty(rows, 0, device=device), case.form(name))
    shares = torch.randn(count, sums.constants(shape.widths)["STRIDE"], dtype=wide(shape.dtype), device=device)
    total = sum(sizes)

    def added(shares: Tensor, dtype: torch.dtype) -> tuple[Tensor, ...]:
        found = shares.sum(0)
        return found[total], *(t.view(-1) for t in found[:total].to(dtype).split_with_sizes(sizes))

    def by_torch() -> tuple[Tensor, ...]:
        return added(shares, shape.dtype)

    def ours() -> tuple[Tensor, ...]:
        loss, dws, dbs = sums.add_up(shares, weights)
        return loss, *(t.view(-1) for t in flat(dws, dbs))

    makers: dict[str, Callable[[], Step]] = {
        BASELINE: partial(as_it_is, by_torch),
        GRAPH: partial(replayed, by_torch, device),
        name: partial(as_it_is, ours),
    }
    if shares.is_cuda:
        makers[captured_name(name)] = partial(replayed, ours, device)

    def truth() -> Results:
        return named(added(shares.double(), torch.float64))

    return Work(makers, lambda run: named(run()), truth, 0.0, float(shares.element_size() * shares.numel()))


def replayed(run: Several, device: torch.device) -> Several:
    """Make a CUDA graph of a step that returns its results."""
    graph, results = capture(run, device)

    def replay() -> tuple[Tensor, ...]:
        graph.replay()
        return results

    return replay


def named(results: Any) -> Results:
    """Name what a step returned by its place, in memory of its own."""
    return {f"result{k}": t.detach().clone() for k, t in enumerate(results)}


def in_tf32(make: Callable[[], Step]) -> Callable[[], Step]:
    """Let the products of float32 keep 10 bits, while a step is made and whenever it runs."""

    def high(function: Callable[[], Any]) -> Any:
        torch.set_float32_matmul_precision("high")
        try:
            return function()
        finally:
            torch.set_float32_matmul_precision("highest")

    def made() -> Step:
        step = high(make)
        return lambda: high(step)

    return made


def tf32_where_asked(case: Case, makers: Mapping[str, Callable[[], Step]]) -> dict[str, Callable[[], Step]]:
    """Let the providers of a case compute in its dtype."""
    return {name: in_tf32(make) if case.tf32 else make for name, make in makers.items()}
