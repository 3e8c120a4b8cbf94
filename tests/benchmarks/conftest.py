"""Benchmarks that wait for nothing."""

import pytest
import torch

from benchmarks import harness, machine
from benchmarks import output as output_command


@pytest.fixture
def brief(monkeypatch: pytest.MonkeyPatch) -> None:
    """Cut every wait, and keep torch's global settings as they were."""
    monkeypatch.setattr(harness, "BLOCK_SECONDS", 1e-5)
    monkeypatch.setattr(harness, "WARMUP_SECONDS", 0.0)
    monkeypatch.setattr(harness, "MIN_ROUNDS", 3)
    fixed = {"gflops": 1.0, "copy_gbs": 1.0, "empty_call_us": 1.0, "launch_us": 1.0}
    monkeypatch.setattr(machine, "ceilings", lambda device, dtype, threads, small=False: fixed)
    monkeypatch.setattr(machine, "MALLOCS", {"default": machine._tuning(dict(machine.os.environ))})
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave out the providers that are not torch's or ours, which need not run here."""
    for name in ("Liger-Kernel", "cut-cross-entropy"):
        monkeypatch.delitem(output_command.PROVIDERS, name)
