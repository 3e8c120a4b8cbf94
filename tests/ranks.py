"""Processes that talk over gloo: two, unless more are asked for."""

import os
import socket
from collections.abc import Callable, Mapping
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import multiprocessing

from patience import SECONDS

RANKS = 2
needs_gloo = pytest.mark.skipif(
    not dist.is_available() or not dist.is_gloo_available(), reason="no torch.distributed with gloo"
)


def outcomes(cases: Mapping[str, Callable[[], float]]) -> dict[str, float | str]:
    """Run every case in this process, and list the errors found, or what was raised: any exception is an answer."""
    found: dict[str, float | str] = {}
    for name, run in cases.items():
        try:
            found[name] = run()
        except Exception as error:  # the other rank gets the same one
            found[name] = f"{type(error).__name__}: {error}"
        dist.barrier()
    return found


def answers(work: Callable[[int], Any], folder: Path, ranks: int = RANKS) -> list[Any]:
    """Run a function of a module in every process, and list what each of them returns."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    # The processes are forked from one that has torch loaded, and has done nothing.
    get_context("forkserver").set_forkserver_preload(["torch.distributed.tensor", "torch._dynamo", "ranks"])
    arguments = (work, port, str(folder), ranks)
    context = multiprocessing.start_processes(_work, arguments, ranks, join=False, start_method="forkserver")
    try:
        # Each call waits for one more to end.
        assert any(context.join(timeout=SECONDS) for _ in range(ranks)), "the processes hang"
    finally:
        for process in context.processes:
            process.kill()
    return [torch.load(folder / f"{rank}.pt") for rank in range(ranks)]


def _work(rank: int, work: Callable[[int], Any], port: int, folder: str, ranks: int) -> None:
    torch.set_num_threads(max(1, 4 // ranks))
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    dist.init_process_group("gloo", rank=rank, world_size=ranks)
    torch.save(work(rank), Path(folder) / f"{rank}.pt")
    dist.barrier()
    dist.destroy_process_group()
