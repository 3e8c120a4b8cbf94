"""Compile the kernels for an H100, with or without one, and count what they take: registers, spills, products."""

import re
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import triton  # type: ignore[import-untyped]
from triton.backends.compiler import GPUTarget  # type: ignore[import-untyped]
from triton.compiler import ASTSource  # type: ignore[import-untyped]

from benchmarks import command
from benchmarks.kernels.cases import Case, Variant
from benchmarks.kernels.device import inference, second_order, step
from benchmarks.kernels.model import microseconds

CAPABILITY, ARCHITECTURE = 90, "sm_90a"
POINTERS = {torch.float32: "*fp32", torch.bfloat16: "*bf16", torch.float16: "*fp16"}
# Warnings of ptxas: products wait for each other, since registers of one are used before the next has begun.
SERIALISED = ("C7510", "C7515", "C7517")


def measure(cases: Sequence[Case]) -> dict[str, Any]:
    """Compile every kernel of the cases; return versions, and rows as :mod:`benchmarks.kernels` says."""
    found: dict[Variant, dict[str, Any]] = {}
    wanted = [(case, form) for case in cases if case.kind != "sums" for form in case.forms]
    rows = []
    for done, (case, form) in enumerate(wanted, 1):
        for variant in case.variants(form):
            if variant not in found:
                counted = count(variant)
                found[variant] = {"kernel": variant.kernel, **counted, "model": microseconds(counted, variant)}
        parts = [found[variant] for variant in case.variants(form)]
        model_us = sum(part["model"]["us"] for part in parts)
        rows.append({"case": str(case), "form": form, "kernels": parts, "model_us": model_us})
        command.progress(done, len(wanted), f"{case}, {form}")
    return {"triton": triton.__version__, "architecture": ARCHITECTURE, "rows": rows}


def source_of(variant: Variant) -> Any:
    """Say what is compiled: the kernel, the types of its arguments, and what it knows."""
    shape, task, form = variant.shape, variant.task, variant.form
    pointer, layers = POINTERS[shape.dtype], len(shape.widths) - 1
    if variant.kernel == "infer":
        kernel, known = inference._infer, inference.constants(shape, form)
    elif variant.kernel == "step":
        kernel, known = step._step, step.constants(shape, task, form)
    else:
        kernel, known = second_order._second, second_order.constants(shape, task, form)
        known["BACK"] = variant.kernel == "backward"
    names: dict[str, Any] = dict.fromkeys(("x", "target", "dx", "y", "gradient", "dy", "tilde"), pointer)
    names |= dict.fromkeys(("weights", "biases"), (pointer,) * layers)
    names |= {"shares": "*fp32", "n": "i32", "scale": "fp32", "seed": "i64"}
    if task.loss == "cross_entropy":
        names["target"] = "*i64"
    order = kernel.arg_names
    signature = {name: names.get(name, "constexpr") for name in order}
    # As at a launch: memory that torch gives begins at 16 bytes or a multiple.
    aligned = [["tt.divisibility", 16]]
    attributes: dict[tuple[int, ...], Any] = {
        (i,): aligned for i, name in enumerate(order) if str(signature[name]).startswith("*")
    }
    attributes |= {(order.index(name), k): aligned for name in ("weights", "biases") for k in range(layers)}
    constants = {(i,): known[name] for i, name in enumerate(order) if signature[name] == "constexpr"}
    return ASTSource(kernel, signature, constants, attributes)


def count(variant: Variant) -> dict[str, Any]:
    """Compile a kernel; return its registers, bytes of spills, shared KB, and counts of its instructions."""
    form = variant.form
    most = {} if form.registers is None else {"maxnreg": form.registers}
    options = {"num_warps": form.warps, "num_stages": form.stages, **most}
    binary = triton.compile(source_of(variant), target=GPUTarget("cuda", CAPABILITY, 32), options=options)
    with tempfile.TemporaryDirectory() as folder:
        ptx, cubin = Path(folder) / "kernel.ptx", Path(folder) / "kernel.cubin"
        ptx.write_text(binary.asm["ptx"])
        told = _run("ptxas", "-v", f"--gpu-name={ARCHITECTURE}", ptx, "-o", cubin).stderr
        listing = _run("nvdisasm", "-c", cubin).stdout

    def number(pattern: str) -> int:
        return len(re.findall(rf"\b(?:{pattern})\b", listing))

    used = re.search(r"Used (\d+) registers", told)
    assert used is not None, told
    return {
        "registers": int(used[1]),
        "spill_bytes": sum(map(int, re.findall(r"(\d+) bytes spill", told))),
        "shared_kb": binary.metadata.shared / 1024,
        "wgmma": number("HGMMA"),
        "mma": number("HMMA"),
        "barriers": number(r"BAR\.SYNC\.DEFER_BLOCKING"),
        "reds": number("REDG?|ATOMG"),
        "instructions": looped(listing),
        "serialised": any(warning in told for warning in SERIALISED),
    }


def _run(tool: str, *arguments: object) -> "subprocess.CompletedProcess[str]":
    """Run a tool of CUDA's that came with Triton."""
    path = getattr(triton.knobs.nvidia, tool).path
    return subprocess.run([path, *map(str, arguments)], capture_output=True, text=True, check=True)


def looped(listing: str) -> int:
    """Count the instructions of the longest jump back, the loop over tiles; without one, all of them."""
    lines = [m[0] for m in re.finditer(r"^(\.L_x_\d+:|\s+/\*[0-9a-f]{4,5}\*/.*)$", listing, re.MULTILINE)]
    at, longest, places = 0, 0, {}
    for line in lines:
        if line.startswith("."):
            places[line[:-1]] = at
            continue
        at += 1
        to = re.search(r"\bBRA\b.*`\((\.L_x_\d+)\)", line)
        if to and to[1] in places:
            longest = max(longest, at - places[to[1]])
    return longest or at
