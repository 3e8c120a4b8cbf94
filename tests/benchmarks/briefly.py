"""Flags of a benchmark that takes no time."""

import json
from pathlib import Path

import torch
from torch import Tensor

from benchmarks import dense as dense_command
from benchmarks.__main__ import main

N, D_IN, D_OUT = 5, 7, 4
FLOAT = 4  # bytes


def leaves(*, input_grad: bool = True) -> dict[str, Tensor]:
    tensors, _ = dense_command.Case(N, D_IN, D_OUT, input_grad).tensors(torch.device("cpu"), torch.float32)
    return tensors


BRIEF = ["--seconds", "0.001", "--threads", "1", "--malloc", "default", "--device", "cpu", "--case", "5x7x4"]
BRIEF_SECOND = ["second-order", *BRIEF[:-2], "--width", "5"]
CPU = torch.device("cpu")
OUTPUT = ["output", *BRIEF[:-1]]
OUTPUT_CASES = ["5x7x4-bias-float64", "600x8x500", "600x8x500-bfloat16", "600x8x500-saturated"]


def output_rows(folder: Path, *cases: str, status: int = 0) -> list[dict]:
    assert main([*OUTPUT, *cases, "--json", "--results", str(folder)]) == status
    (path,) = folder.iterdir()
    return json.loads(path.read_text())["output"]["rows"]
