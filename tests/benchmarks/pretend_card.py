"""Results as a GPU would leave them: a CPU's that are kept, turned into a card's by what writes results."""

import argparse
import json
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
import torch

from benchmarks import command, machine
from benchmarks.report.runs import CPU, chosen, device_of, read

H100, A100 = "NVIDIA H100 80GB HBM3", "NVIDIA A100-SXM4-80GB"
GFLOPS = {"float32": 51_200.0, "bfloat16": 741_000.0}
LIMITS = {"gflops": GFLOPS["float32"], "copy_gbs": 2610.0, "empty_call_us": 14.1, "launch_us": 3.2}
LIMITS |= {f"gflops_{dtype}": rate for dtype, rate in GFLOPS.items()}
FILES = sorted(command.RESULTS.glob("*.json"))
# Of CPUs alone: a card that is seen one day is not the one that is pretended.
KEPT = [path for path in FILES if {device_of(run) for run in read([path], quick=True)} == {CPU}]


def row_of(row: dict[str, Any]) -> dict[str, Any]:
    """Turn a row into a card's: every provider of whole steps with the host's time and a share of the ceiling."""
    row = json.loads(json.dumps(row))
    if "threads" in row:
        row["threads"] = 1
    providers = row.get("providers", {}).values()
    products_us = 0.4 * min((provider["median_us"] for provider in providers), default=0.0)
    for provider in providers:
        provider["host_us"] = 0.75 * provider["median_us"]
        provider["products_share"] = products_us / provider["median_us"]
    return row


def runs_of(device: torch.device) -> dict[str, dict[str, Any]]:
    """Turn the newest run of each command into one of this device, with a sweep over tiles."""
    runs = read(KEPT)
    found = {}
    for name, run in chosen(runs).items():
        rows = [
            row_of(row) | ({"machine": machine.describe(device)} if "machine" in row else {})
            for row in run["rows"]
            if (row.get("threads", 1), row.get("malloc", "default")) == (1, "default") or "malloc" not in row
        ]
        found[name] = {**run, "machine": machine.describe(device), "rows": rows, "date": "2031-01-02 03:04 UTC"}
        if "ceilings" in run:
            found[name]["ceilings"] = {"default": {1: LIMITS}}
        if "by_batch" in run:
            found[name]["by_batch"] = [row_of(row) for row in run["by_batch"] if row["malloc"] == "default"]
    swept = next(run["sweep"] for run in runs if "sweep" in run)
    found["network"]["sweep"] = [row for row in swept if (row["threads"], row["malloc"]) == (1, "default")]
    return found


@cache
def saved(card: str, *without: str) -> tuple[str, str]:
    """Save all runs of a card but for those commands; return the name of the file, and what is in it."""
    device = torch.device("cuda")
    with pytest.MonkeyPatch.context() as patch, TemporaryDirectory() as folder:
        patch.setattr(torch.cuda, "get_device_name", lambda device: card)
        for name, run in runs_of(device).items():
            if name not in without:
                typed = run.pop("command").replace(" --threads 1", "") + " --device cuda"
                options = argparse.Namespace(results=Path(folder), device=device, command=typed)
                path = command.save(run.pop("name"), run, options)
        return path.name, path.read_text(encoding="utf-8")


def write(folder: Path, card: str, *without: str) -> Path:
    """Write the results of a card into a folder, but for those commands; return the file."""
    name, text = saved(card, *without)
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path
