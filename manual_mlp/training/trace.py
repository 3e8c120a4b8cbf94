"""Where the time of a step goes, as a Chrome trace."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from torch.profiler import ProfilerActivity, profile, schedule

from manual_mlp.training import files

_WARMUP, _TRACED = 5, 15  # steps


def profiler(path: Path, steps: int, device: torch.device) -> profile:
    """Return what writes a trace of a few of so many steps, each ended by ``step()``; of all if they are few."""

    def export(profiler: profile) -> None:
        try:
            with TemporaryDirectory() as temporary:
                exported = Path(temporary) / path.name
                profiler.export_chrome_trace(str(exported))
                files.write(path, exported.read_bytes())
        except OSError as error:  # no reason to end a run
            print(f"WARNING: no trace in {path} ({error.strerror or error})", file=sys.stderr)

    # It would tell of a GPU that is not there.
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if device.type == "cuda" else [])]
    few = steps < _WARMUP + _TRACED
    return profile(
        activities=activities,
        schedule=None if few else schedule(wait=0, warmup=_WARMUP, active=_TRACED, repeat=1),
        on_trace_ready=export,
        acc_events=True,  # of the one cycle that there is; without it torch 2.11 warns that a second would lose them
    )
