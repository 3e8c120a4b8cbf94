"""Hold the kernels against float64 autograd, and against what torch's own functions are off by in the same dtype."""

import argparse
from collections.abc import Callable, Iterator, Sequence
from itertools import product
from typing import Any, NamedTuple

import torch
from torch import Tensor
from triton.runtime.errors import OutOfResources  # type: ignore[import-untyped]

from benchmarks import command
from benchmarks.harness import fix
from benchmarks.kernels import references
from benchmarks.kernels.cases import DTYPES, LEFT_OUT
from benchmarks.kernels.device import inference, second_order, step
from benchmarks.kernels.forms import ACTIVATIONS, LOSSES, SMOOTH, Form, Task
from benchmarks.kernels.references import Problem, draw, draw_target

# Odd widths, one layer, a width of 1 inside, several tiles a program and one that is not full.
NETWORKS = (3, 1), (5, 7, 2), (17, 33, 9, 3), (64, 64, 64, 64, 64, 64), (2, 31, 64, 1, 5, 3, 4)
FIELDS = (3, 5, 1), (2, 17, 33, 1), (3, 64, 64, 64, 1), (3, 31, 7, 64, 5, 1)
ROWS = 13, 1, 75
_FORM = Form(tile=16, programs=2, warps=4)
# Weights left or right, the chain hidden, sums in registers or memory, weights kept or read again, z again or f′ kept.
FORMS = (
    _FORM,
    _FORM._replace(keep=1, again=False),
    _FORM._replace(left=False, hide=False, resident=False),
    _FORM._replace(left=False, keep=0, again=False),
)
SEED = 2**40 + 7
SAME_BITS = "the same bits twice"


class Given(NamedTuple):
    """What a case is drawn from."""

    widths: tuple[int, ...]
    rows: int
    activation: str
    task: Task
    form: Form
    dtype: str
    cut: int = 0  # a network in two: its lower part has so many layers

    def __str__(self) -> str:
        """Tell a case from the others."""
        dropped = f", dropout {self.task.dropout}" if self.task.dropout else ""
        return f"{self.widths}, {self.rows} rows, {self.activation}, {self.task.loss}{dropped}, {self.form.told()}"


Kind = Callable[[Given, torch.device], Iterator[tuple[str, list[Tensor], list[Tensor], list[Tensor]]]]


def dtype_of(name: str) -> torch.dtype:
    """Return the dtype of the tensors whose products are of a dtype."""
    return torch.float32 if name == "tf32" else command.DTYPES[name]


def problem_of(given: Given, device: torch.device) -> Problem:
    """Draw the network of a case."""
    return Problem(*draw(given.widths, given.rows, dtype_of(given.dtype), device), given.activation, given.task)


def flat(dws: Sequence[Tensor], dbs: Sequence[Tensor]) -> list[Tensor]:
    """Put gradients in the order w₁, b₁, w₂, …"""
    return [t for both in zip(dws, dbs, strict=True) for t in both]


def first_order(given: Given, device: torch.device) -> Iterator[tuple[str, list[Tensor], list[Tensor], list[Tensor]]]:
    """Yield what a step and inference found, the truth, and what torch found."""
    problem, dtype, form = problem_of(given, device), dtype_of(given.dtype), given.form
    target = draw_target(given.task.loss, given.rows, given.widths[-1], problem.x)
    truth, theirs = (references.step(problem, target, of) for of in (torch.float64, dtype))

    def found() -> list[Tensor]:
        loss, dws, dbs, dx = step.step(problem.x, problem.network, target, given.task, form)
        assert dx is not None
        return [loss, dx, *flat(dws, dbs)]

    once, again = found(), found()
    yield SAME_BITS, once, [t.double() for t in again], again
    skip = given.task.loss == "dy"  # there is no loss then
    yield "step", once[skip:], truth[skip:], theirs[skip:]
    y = inference.infer(problem.x, problem.network, form)
    exact, rounded = (
        references.forward(problem.leaves(of), given.activation, Task()).detach() for of in (torch.float64, dtype)
    )
    yield "inference", [y], [exact], [rounded]


def in_two(given: Given, device: torch.device) -> Iterator[tuple[str, list[Tensor], list[Tensor], list[Tensor]]]:
    """Yield the gradients of a network that was cut in two, each part with its own sums."""
    problem, dtype, form = problem_of(given, device), dtype_of(given.dtype), given.form
    target = draw_target(given.task.loss, given.rows, given.widths[-1], problem.x)
    lower, upper = problem.network.cut(given.cut)
    h = inference.infer(problem.x, lower, form)
    _, dws, dbs, dh = step.step(h, upper, target, given.task, form)
    assert dh is not None
    _, lower_dws, lower_dbs, dx = step.step(problem.x, lower, dh, given.task._replace(loss="dy"), form)
    assert dx is not None
    truth, theirs = (references.step(problem, target, of)[1:] for of in (torch.float64, dtype))
    yield "cut in two", [dx, *flat(lower_dws, lower_dbs), *flat(dws, dbs)], truth, theirs


def of_second_order(
    given: Given, device: torch.device
) -> Iterator[tuple[str, list[Tensor], list[Tensor], list[Tensor]]]:
    """Yield value and gradient of a field, and the gradients of a loss of both."""
    problem, dtype, form = problem_of(given, device), dtype_of(given.dtype), given.form
    x = problem.x
    cotangents = (torch.randn(len(x), dtype=torch.float64).to(x), torch.randn(x.shape, dtype=torch.float64).to(x))
    (values, truth), (their_values, theirs) = (
        references.field(problem, cotangents, of) for of in (torch.float64, dtype)
    )
    yield "field", list(second_order.value_and_gradient(x, problem.network, form)), values, their_values

    def found() -> list[Tensor]:
        dws, dbs, dx = second_order.backward(x, problem.network, cotangents, True, form)
        assert dx is not None
        return [dx, *flat(dws, dbs)]

    once, again = found(), found()
    yield SAME_BITS, once, [t.double() for t in again], again
    yield "second order", once, truth, theirs


def covering(*axes: Sequence[Any]) -> Iterator[tuple[Any, ...]]:
    """Yield each pair of the first two axes once, and with it the values of the others in turn."""
    for k, pair in enumerate(product(*axes[:2])):
        yield *pair, *(axis[(k + k // len(axis)) % len(axis)] for axis in axes[2:])


def cases(dtypes: Sequence[str], whole: bool = False) -> Iterator[tuple[Kind, Given]]:
    """List the cases: networks, rows and forms; activations, losses and dropout; two parts; the second order.

    On a GPU each compiles its kernels, but for the rows. So there are pairs, and combinations only if ``whole``.
    """
    pick = product if whole else covering
    squared, dropped = Task(need_dx=True), Task("cross_entropy", 0.3, SEED, need_dx=True)
    for widths, form, dtype in pick(NETWORKS, FORMS, dtypes):
        for rows in ROWS:
            yield first_order, Given(widths, rows, "relu", squared, form, dtype)
    for activation, loss, dropout, dtype in pick(ACTIVATIONS, LOSSES, (0.0, 0.3), dtypes):
        task = Task(loss, dropout, SEED, need_dx=True)
        yield first_order, Given((5, 19, 33, 3), 37, activation, task, _FORM, dtype)
    for loss, form, dtype in pick(("cross_entropy", "binary_cross_entropy"), FORMS, dtypes):
        yield first_order, Given((5, 19, 64), 37, "gelu", dropped._replace(loss=loss), form, dtype)
    for activation, at, form, dtype in pick(("gelu", "tanh"), (1, 2), FORMS[:3], dtypes):
        yield in_two, Given((5, 19, 33, 7, 3), 37, activation, squared, form, dtype, at)
    for widths, form, dtype in pick(FIELDS, FORMS, dtypes):
        for rows in ROWS:
            yield of_second_order, Given(widths, rows, "tanh", Task(), form, dtype)
    for activation, form, dtype in pick(SMOOTH, FORMS, dtypes):
        yield of_second_order, Given(FIELDS[1], 37, activation, Task(), form, dtype)


def largest(found: Sequence[Tensor], truth: Sequence[Tensor]) -> float:
    """Return the largest error of a tensor, by norms, relative to the truth; infinite for another shape."""
    errors = [0.0]
    for a, b in zip(found, truth, strict=True):
        if a.shape != b.shape:
            return float("inf")
        errors.append(float((a.double() - b).norm() / b.norm().clamp(min=1e-9)))
    return max(errors) if all(e == e for e in errors) else float("inf")


def allowed(name: str, theirs: float, dtype: str) -> float:
    """Return the error that is allowed: twice torch's, and eight roundings; none where bits are to be the same.

    In float64, which is the truth, torch has no error: there it is 1e-12.
    """
    if name == SAME_BITS:
        return 0.0
    if dtype == "float64":
        return 1e-12
    return 2 * theirs + 8 * (2.0**-10 if dtype == "tf32" else torch.finfo(dtype_of(dtype)).eps)


def is_lost(device: torch.device) -> bool:
    """Tell whether a kernel has taken the device down, so that nothing runs on it any more in this process."""
    try:
        if device.type == "cuda":
            torch.cuda.synchronize(device)
    except RuntimeError:
        return True
    return False


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Run the cases, all of them or, for a look, some; return what was found by kernel and dtype."""
    kind = options.device.type
    found: dict[tuple[str, str], dict[str, Any]] = {}
    every = list(cases(DTYPES[kind], options.all))[:: 11 if options.tiny else 5 if options.quick else 1]
    wrong: list[dict[str, Any]] = []
    failed: list[dict[str, Any]] = []
    no_room: list[dict[str, Any]] = []
    for done, (run, given) in enumerate(every, 1):
        fix(1)
        torch.manual_seed(done)
        if given.dtype == "tf32":
            given = given._replace(form=given.form._replace(tf32=True))
            torch.set_float32_matmul_precision("high")
        about = {"dtype": given.dtype, "case": str(given)}
        try:
            results = list(run(given, options.device))
        except Exception as error:  # whatever a compiler, or a card without room for it, raises
            why = {"why": (str(error).strip() or type(error).__name__).splitlines()[0]}
            (no_room if isinstance(error, OutOfResources) else failed).append(about | why)
            if is_lost(options.device):
                break
            continue
        for name, tensors, truth, theirs in results:
            off, theirs_off = largest(tensors, truth), largest(theirs, truth)
            row = found.setdefault((name, given.dtype), {"what": name, "dtype": given.dtype, "cases": 0})
            row["cases"] += 1
            row["error"] = max(row.get("error", 0.0), off)
            row["torch_error"] = max(row.get("torch_error", 0.0), theirs_off)
            if off > allowed(name, theirs_off, given.dtype):
                wrong.append(about | {"what": name, "error": off, "torch_error": theirs_off})
        command.progress(done, len(every), f"{given.widths}, {given.activation}, {given.dtype}")
    fix(1)
    return {
        "rows": list(found.values()),
        "wrong": wrong,
        "failed": failed,
        "no_room": no_room,
        "left_out": LEFT_OUT.get(kind, {}),
    }
