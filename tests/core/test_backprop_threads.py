"""Threads, processes and interrupts around backprop() and MLP, whichever engine runs the tiles."""

import gc
import multiprocessing
import os
import signal
import threading
import weakref
from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor

from conditions import threads
from manual_mlp import MLP, backprop
from patience import SECONDS
from stepped import C, V, by_torch, make, rows_of, run_alone

# A network in tiles, what two ways of a step leave on its parameters, and torch's own gradients.
STEPS = """
import os, random, signal, sys, threading
os.environ["OMP_WAIT_POLICY"] = "passive"  # on a busy machine threads that spin take the processor from the others
import torch
from manual_mlp import MLP, backprop
torch.set_num_threads(2)
torch.manual_seed(0)
mlp = MLP([8, 33, 32, 3], "gelu", tile_rows=32)
x, t = torch.randn(320, 8), torch.randint(3, (320,))
def by_torch(layers):
    mlp.zero_grad()
    torch.nn.functional.cross_entropy(layers(x), t).backward()
def by_mlp():
    by_torch(mlp)
def by_backprop():
    mlp.zero_grad()
    backprop(mlp, x, t)
def found():
    return [p.grad.clone() for p in mlp.parameters()]
def right():
    for step in (by_mlp, by_backprop):
        step()
        torch.testing.assert_close(found(), expected)
by_torch(mlp.to_sequential())
expected = found()
"""


def test_the_number_of_threads_stays_in_every_thread(device: str) -> None:
    seen: list[int] = []
    with threads(3):
        backprop(make(device), rows_of(device), C.to(device), tile_rows=1)
        assert torch.get_num_threads() == 3
        other = threading.Thread(target=lambda: seen.append(torch.get_num_threads()))
        other.start()
        other.join()
    assert seen == [3]


@pytest.mark.parametrize("way", ["backprop", "MLP"])
def test_eight_threads_may_call_at_once(way: str) -> None:
    x, found = rows_of("cpu", 40), {}
    cases = [(make("cpu", "gelu", tile_rows=1 + k), torch.full((40,), k % V)) for k in range(8)]

    def call(k: int) -> None:
        mlp, t = cases[k]
        for _ in range(5):
            mlp.zero_grad()
            if way == "MLP":
                torch.nn.functional.cross_entropy(mlp(x), t).backward()
            else:
                backprop(mlp, x, t)
        found[k] = [p.grad for p in mlp.parameters()]

    expected = {k: by_torch(mlp, x, t)[1:-1] for k, (mlp, t) in enumerate(cases)}
    with threads(2):
        callers = [threading.Thread(target=call, args=(k,)) for k in range(8)]
        for caller in callers:
            caller.start()
        for caller in callers:
            caller.join(SECONDS)
    assert found.keys() == expected.keys()
    for k, gradients in expected.items():
        torch.testing.assert_close(found[k], gradients)


# Only the exit tells: an error in a thread, or as the interpreter ends, does not.
LATE = """
def late():
    try:
        right()
    except BaseException as error:
        print(repr(error), file=sys.stderr, flush=True)
        os._exit(1)
    os._exit(0)
"""


@pytest.mark.processes
@pytest.mark.parametrize("used", ["before", "not before"])
@pytest.mark.parametrize(
    "when",
    [
        "threading.Thread(target=lambda: (threading.main_thread().join(), late())).start()",
        "import atexit\natexit.register(late)",
    ],
    ids=["in a thread that outlives the main one", "at the interpreter's exit"],
)
def test_a_call_is_right_at_the_very_end(when: str, used: str) -> None:
    assert run_alone(f"{STEPS}{'right()' if used == 'before' else ''}\n{LATE}\n{when}\n") == 0


INTERRUPTED = """
came = []
def interrupt(*_):
    came.append(None)
    raise KeyboardInterrupt
signal.signal(signal.SIGALRM, interrupt)
raised = 0
for k in range({count}):
    try:
        signal.setitimer(signal.ITIMER_REAL, random.uniform(1e-6, 3e-3))
        while len(came) == k:
            (by_mlp, by_backprop)[k % 2]()
    except KeyboardInterrupt:
        raised += 1
    # An interrupt on the way out of torch.no_grad() leaves it on, whoever entered it.
    torch.set_grad_enabled(True)
    right()
# Some are lost where Python has nobody to tell, as in a destructor.
assert raised > 0.9 * {count}, raised
"""


@pytest.mark.processes
@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="no timer here")
def test_an_interrupt_at_any_moment_leaves_nothing_hanging_and_the_next_call_right(every_case: bool) -> None:
    for _ in range(20 if every_case else 1):
        assert run_alone(STEPS + INTERRUPTED.format(count=500)) == 0


@pytest.mark.processes
@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
@pytest.mark.parametrize(
    "before", ["", "torch.set_num_threads(1)"], ids=["with as many threads", "with one thread, as a loader's has"]
)
def test_a_forked_child_computes_where_torchs_own_does(before: str) -> None:
    # After an operation on two threads a child of torch's hangs, unless it keeps to one.
    used = "right()" if before else ""
    code = (
        f"{used}\nchild = os.fork()\nif not child:\n    signal.alarm({SECONDS})\n    {before or 'pass'}\n    right()\n"
    )
    exit = "if child:\n    sys.exit(os.waitpid(child, 0)[1] != 0)\nos._exit(0)\n"
    assert run_alone(STEPS.replace("by_torch(mlp.to_sequential())", ALONE) + code + exit) == 0


# The threads of torch start with the first operation that they share.
ALONE = "torch.set_num_threads(1)\nby_torch(mlp.to_sequential())\ntorch.set_num_threads(2)"


def _step() -> None:
    mlp, x, t = make("cpu", "gelu", tile_rows=3), rows_of("cpu", 40), torch.zeros(40, dtype=torch.int64)
    with threads(2):
        backprop(mlp, x, t)
    torch.testing.assert_close([p.grad for p in mlp.parameters()], by_torch(mlp, x, t)[1:-1])


@pytest.mark.processes
def test_a_spawned_process_computes_too() -> None:
    _step()
    process = multiprocessing.get_context("spawn").Process(target=_step)
    process.start()
    process.join(SECONDS)
    assert process.exitcode == 0


def test_no_tile_is_begun_after_one_has_failed() -> None:
    calls = []

    def value(y: Tensor, t: Tensor) -> Tensor:
        calls.append(len(y))
        if t[0, 0] < 0:
            raise ZeroDivisionError
        return y.square().sum(1)

    mlp, x, t = make("cpu"), rows_of("cpu", 4000), torch.zeros(4000, V, dtype=torch.float64)
    t[:2] = -1
    with threads(2), pytest.raises(ZeroDivisionError):
        backprop(mlp, x, t, (value, lambda y, t: 2 * y), tile_rows=2)
    assert len(calls) < 1000
    assert all(p.grad is None for p in mlp.parameters())


@pytest.fixture
def counted() -> Iterator[None]:
    """Let objects die with their last reference alone."""
    gc.collect()
    gc.disable()
    yield
    gc.enable()


def _backward(mlp: MLP, x: Tensor, t: Tensor, pair: tuple[Callable[..., Tensor], Callable[..., Tensor]]) -> None:
    backprop(mlp, x, t, pair, tile_rows=2)


def _forward(mlp: MLP, x: Tensor, t: Tensor, pair: tuple[Callable[..., Tensor], Callable[..., Tensor]]) -> None:
    mlp.tile_rows = 2
    y = mlp(x)
    y.backward(pair[1](y, t))


@pytest.mark.usefixtures("counted")
@pytest.mark.parametrize("call", [_backward, _forward])
@pytest.mark.parametrize("count", [1, 2])
def test_an_exception_keeps_neither_input_nor_model_alive(call: Callable[..., None], count: int) -> None:
    def fails(y: Tensor, t: Tensor) -> Tensor:
        raise ZeroDivisionError

    mlp, x, t = make("cpu", "gelu"), rows_of("cpu", 40), torch.zeros(40, V, dtype=torch.float64)
    alive = [weakref.ref(each) for each in (mlp, x, t, mlp.layers[0].weight)]
    with threads(count):
        try:
            call(mlp, x, t, (fails, fails))
        except ZeroDivisionError:
            del mlp, x, t
        else:
            raise AssertionError("no error")
    assert [each() for each in alive] == [None] * len(alive)
