"""Several processes, started by torchrun, that share each batch."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import nn

_TIMEOUT = timedelta(minutes=5)
_GRACE = 10.0  # seconds
# Kept for good. Who lets go of a process group last joins gloo's threads. A DDP network would do so with the GIL held,
# for which such a thread may be waiting: torch 2.11 then hangs. This reference lets go of it first.
_GROUPS: list[dist.ProcessGroup | None] = []


class LostError(RuntimeError):
    """Another process has ended, and without it there is no going on."""


@dataclass(frozen=True)
class Processes:
    """This process among those that share the work.

    Attributes:
        rank: of this one, from 0.
        count: of all.
        local: of this one on its machine, from 0.
    """

    rank: int = 0
    count: int = 1
    local: int = 0

    @property
    def first(self) -> bool:
        """Whether this is the process that prints, logs and saves."""
        return self.rank == 0

    def share(self, rows: int) -> slice:
        """Return this process's part of a batch; parts differ by at most one row, and may be empty."""
        return slice(self.rank * rows // self.count, (self.rank + 1) * rows // self.count)

    def print(self, text: object) -> None:
        """Print a line, once for all."""
        if self.first:
            print(text, flush=True)

    def wrap(self, network: nn.Module) -> nn.Module:
        """Let the processes add up their gradients."""
        return nn.parallel.DistributedDataParallel(network) if self.count > 1 else network

    def any(self, here: bool) -> bool:
        """Tell whether something is so in any process: they stop at the same step."""
        return here if self.count == 1 else self.sum([here])[0] > 0

    def sum(self, values: Sequence[float]) -> list[float]:
        """Add up, over all processes, what each of them has."""
        total = torch.tensor(values, dtype=torch.float64)
        if self.count > 1:
            dist.all_reduce(total)
        found: list[float] = total.tolist()
        return found


ALONE = Processes()


@contextmanager
def processes() -> Iterator[Processes]:
    """Join the other processes that torchrun has started, if it has: by NCCL between GPUs, else by gloo.

    Raises:
        LostError: another one has ended.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield ALONE
        return
    from torch.distributed.elastic.multiprocessing.errors import get_error_handler

    dist.init_process_group("cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo", timeout=_TIMEOUT)
    _GROUPS.append(dist.group.WORLD)
    group = Processes(dist.get_rank(), dist.get_world_size(), int(os.environ["LOCAL_RANK"]))
    try:
        yield group
    except Exception as error:
        if not _is_lost(error):
            # torchrun's last words are then these, and not that it knows no reason.
            get_error_handler().record_exception(error)
            raise
        # torchrun ends this process as soon as it has seen the other one end, whose reason it then reports.
        time.sleep(_GRACE)
        raise LostError(f"process {group.rank} of {group.count} lost another one: {error}") from None
    finally:
        dist.destroy_process_group()


def _is_lost(error: Exception) -> bool:
    return isinstance(error, dist.DistError) or (isinstance(error, RuntimeError) and "gloo" in str(error).lower())
