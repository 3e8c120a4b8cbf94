"""Threads and processes that call backprop(), and its own."""

import os
import threading

import pytest
import torch
from torch import Tensor

from conditions import threads
from manual_mlp import backprop
from patience import SECONDS
from stepped import C, V, by_torch, make, rows_of, run_alone

# Threads and processes.


def test_the_number_of_threads_stays_in_every_thread(device: str) -> None:
    seen: list[int] = []
    with threads(3):
        backprop(make(device), rows_of(device), C.to(device), tile_rows=1)
        assert torch.get_num_threads() == 3
        other = threading.Thread(target=lambda: seen.append(torch.get_num_threads()))
        other.start()
        other.join()
    assert seen == [3]


def test_several_threads_may_call_at_once() -> None:
    x, found = rows_of("cpu", 40), {}
    cases = [(make("cpu", "gelu"), torch.full((40,), k % V), 1 + k) for k in range(4)]

    def call(k: int) -> None:
        mlp, t, tile_rows = cases[k]
        for _ in range(5):
            for p in mlp.parameters():
                p.grad = None
            backprop(mlp, x, t, tile_rows=tile_rows)
        found[k] = [p.grad for p in mlp.parameters()]

    expected = {k: by_torch(mlp, x, t)[1:-1] for k, (mlp, t, _) in enumerate(cases)}
    with threads(2):
        callers = [threading.Thread(target=call, args=(k,)) for k in range(4)]
        for caller in callers:
            caller.start()
        for caller in callers:
            caller.join(SECONDS)
    assert found.keys() == expected.keys()
    for k, gradients in expected.items():
        torch.testing.assert_close(found[k], gradients)


@pytest.mark.processes
@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_forked_child_computes_with_threads_of_its_own() -> None:
    # Close, not equal: a product's last bits are the library's, and may change after its first call in a process.
    code = (
        "import os, signal, sys, torch\nfrom manual_mlp import MLP, backprop\ntorch.set_num_threads(2)\n"
        "mlp, x, t = MLP([4, 7, 3]), torch.randn(64, 4), torch.zeros(64, dtype=torch.int64)\n"
        "def step():\n    mlp.zero_grad()\n    backprop(mlp, x, t, tile_rows=4)\n    return mlp.layers[0].weight.grad\n"
        "expected = step().clone()\nchild = os.fork()\n"
        f"if not child:\n    signal.alarm({SECONDS})\n"
        "torch.testing.assert_close(step(), expected)\n"
        "sys.exit(child and os.waitpid(child, 0)[1] != 0)"
    )
    assert run_alone(code) == 0


def test_a_worker_stops_when_another_has_failed() -> None:
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


def test_a_workers_operations_stay_on_its_thread() -> None:
    seen = set()

    def value(y: Tensor, t: Tensor) -> Tensor:
        seen.add((threading.current_thread().name, torch.get_num_threads()))
        return y.square().sum(1)

    with threads(2):
        backprop(make("cpu"), rows_of("cpu", 64), torch.zeros(64, V), (value, lambda y, t: 2 * y), tile_rows=4)
        assert torch.get_num_threads() == 2
    assert {count for _, count in seen} == {1}
    assert threading.current_thread().name not in {name for name, _ in seen}
