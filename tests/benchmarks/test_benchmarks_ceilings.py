"""What stands beside a time: the machine's ceilings, the products at them, and the host's own time."""

import argparse
import gc
from types import SimpleNamespace

import pytest
import torch

from benchmarks import command, dense, harness, machine, network, output, products
from briefly import CPU


class Accelerator:
    """Stand in for a device: a call costs the host some µs, and leaves the device more to do."""

    def __init__(self) -> None:
        self.clock = self.queued = 0.0

    def step(self) -> None:
        self.clock += 2e-6
        self.queued += 9e-6

    def synchronize(self) -> None:
        self.clock, self.queued = self.clock + self.queued, 0.0


@pytest.fixture
def accelerator(monkeypatch: pytest.MonkeyPatch) -> Accelerator:
    device = Accelerator()
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    monkeypatch.setattr(torch.accelerator, "synchronize", device.synchronize)
    monkeypatch.setattr(harness, "time", SimpleNamespace(perf_counter=lambda: device.clock))
    return device


@pytest.mark.parametrize("number", [1, 64])
def test_a_block_waits_for_the_device_and_its_host_does_not(accelerator, number):
    block = harness.time_block(accelerator.step, number)
    assert block == pytest.approx((11e-6, 2e-6))


def test_what_was_queued_before_a_block_is_not_of_it(accelerator):
    accelerator.queued = 1.0
    assert harness.time_block(accelerator.step, 8).seconds == pytest.approx(11e-6)


def test_the_hosts_time_does_not_wait_at_a_full_queue(accelerator):
    done = 0

    def step() -> None:
        nonlocal done
        done += 1
        if done > harness.AHEAD:
            accelerator.synchronize()
        accelerator.step()

    assert harness.time_block(step, 64).host == pytest.approx(2e-6)


@pytest.mark.usefixtures("brief")
@pytest.mark.parametrize("kind", ["cpu", "cuda"])
def test_a_row_has_the_hosts_time_on_cuda_alone(accelerator, monkeypatch, kind):
    monkeypatch.setattr(machine, "others_seconds", lambda: 0.0)
    options = argparse.Namespace(device=torch.device(kind), seconds=0.001, threads=[1])
    row = command.time_row({"torch": accelerator.step, "ours": accelerator.step}, "torch", options, 1)
    found = {name: provider.get("host_us") for name, provider in row["providers"].items()}
    assert found == (
        {"torch": pytest.approx(2.0), "ours": pytest.approx(2.0)} if kind == "cuda" else dict.fromkeys(found)
    )
    assert row["providers"]["ours"]["median_us"] == pytest.approx(11.0)


@pytest.mark.parametrize(("input_grad", "products_"), [(True, 3), (False, 2)])
def test_the_operations_of_a_layer_are_those_counted_by_hand(input_grad, products_):
    tensors, cotangent = dense.Case(5, 7, 4, input_grad).tensors(CPU, torch.float32)
    step = harness.training_step(dense.providers("gelu")["torch"], tensors, cotangent)
    assert products.operations(step) == {"flops": 2 * 5 * 7 * 4 * products_}


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_operations_of_an_output_layer_are_those_counted_by_hand(dtype):
    case = output.Case(5, 7, 4, dtype, bias=True)
    tensors, target = case.tensors(CPU)
    step = harness.training_step(output.layers_of(["torch"], target)["torch"], tensors, torch.ones(()))
    assert products.operations(step) == {"flops": case.flops} == {"flops": 6 * 5 * 7 * 4}


def test_products_take_the_time_of_their_own_dtype_and_threads(monkeypatch):
    def ceilings(device, dtype, threads, small):
        return {"gflops": 10.0 * threads * dtype.itemsize, "copy_gbs": 1.0}

    monkeypatch.setattr(machine, "ceilings", ceilings)
    rows = [
        {"threads": threads, "dtype": dtype, "flops": 8_000_000, "providers": {"torch": {"median_us": 400.0}}}
        for dtype in ("float32", "bfloat16")
        for threads in (1, 2)
    ]
    options = argparse.Namespace(device=CPU, threads=[1, 2], dtype="float32, bfloat16", tiny=False)
    limits = products.ceilings(options, rows)
    assert limits[2] == {"gflops": 80.0, "gflops_float32": 80.0, "gflops_bfloat16": 40.0, "copy_gbs": 1.0}
    assert [row["products_us"] for row in rows] == [200.0, 100.0, 400.0, 200.0]
    assert [row["providers"]["torch"]["products_share"] for row in rows] == [0.5, 0.25, 1.0, 0.5]


def test_a_machine_has_five_ceilings_and_little_to_do_for_a_dry_run(monkeypatch):
    copied = []
    empty_like = torch.empty_like
    monkeypatch.setattr(torch, "empty_like", lambda t: copied.append(t.nbytes) or empty_like(t))
    threads = torch.get_num_threads()
    found = machine.ceilings(CPU, torch.float32, 1, small=True)
    torch.set_num_threads(threads)
    assert found.keys() == {"gflops", "copy_gbs", "empty_call_us", "launch_us"}
    assert all(value > 0 for value in found.values())
    assert copied == [1 << 16]


@pytest.mark.parametrize(
    ("mode", "kind", "marks"),
    [(None, "cuda", 0), ("default", "cuda", 0), ("max-autotune", "cpu", 0), ("max-autotune", "cuda", 2)],
)
def test_a_step_with_cuda_graphs_says_that_it_begins(monkeypatch, mode, kind, marks):
    said = []
    monkeypatch.setattr(torch.compiler, "cudagraph_mark_step_begin", lambda: said.append(True))
    step = harness.marked(lambda x: x + 1, mode, torch.device(kind))
    assert [step(torch.tensor(1)).item() for _ in range(2)] == [2, 2]
    assert len(said) == marks


def test_collections_of_a_run_leave_out_what_was_there_before():
    assert harness.frozen(gc.get_freeze_count) > 0
    assert gc.get_freeze_count() == 0


def test_the_huge_step_is_refused_where_its_memory_is_not_the_processs(monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    with pytest.raises(SystemExit, match="2"):
        network.read_options(["--huge", "--device", "cuda"])
    assert "--huge: expected --device cpu, whose memory it measures, got cuda" in capsys.readouterr().err
