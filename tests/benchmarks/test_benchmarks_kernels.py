"""The study kernels: right in Triton's interpreter, and what they compile to for a card that is not here."""

import os
import subprocess
import sys
from importlib.util import find_spec

import pytest

from patience import SECONDS

pytestmark = [
    pytest.mark.processes,
    pytest.mark.skipif(find_spec("triton") is None, reason="needs Triton"),
]


def run(code: str, interpret: bool = True) -> subprocess.CompletedProcess[str]:
    """Run code in a process of its own: Triton asks once, when it is imported, whether to interpret."""
    return subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        env={**os.environ, "TRITON_INTERPRET": "1" if interpret else "0", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
        timeout=SECONDS,
    )


RIGHT = """
import argparse, torch
from benchmarks.kernels import right
from benchmarks.kernels.forms import ACTIVATIONS, LOSSES, SMOOTH
options = argparse.Namespace(device=torch.device("cpu"), all=False, quick=True, tiny=False)
found = right.measure(options)
assert not found["wrong"] and not found["failed"], found
assert found["left_out"].keys() == {"bfloat16", "tf32"}
seen = {(row["what"], row["dtype"]) for row in found["rows"]}
whats = right.SAME_BITS, "step", "inference", "cut in two", "field", "second order"
# Two parts have few cases: of a look, not in every dtype.
assert {what for what, _ in seen} == set(whats)
assert {(what, dtype) for what in whats if what != "cut in two" for dtype in ("float64", "float32", "float16")} <= seen
every = [given for _, given in right.cases(("float64",))]
assert {given.activation for given in every} == set(ACTIVATIONS)
assert {(given.activation, given.task.loss) for given in every} >= {(f, loss) for f in ACTIVATIONS for loss in LOSSES}
"""


def test_a_look_at_every_kernel_finds_it_right_in_every_dtype_and_the_same_bits_twice() -> None:
    done = run(RIGHT)
    assert done.returncode == 0, done.stderr[-2000:]


# What is broken, by what it is replaced, and which of the answers it spoils.
BROKEN = [
    ("step", "df", "activations.f", "step"),  # (B1)
    ("step", "add", "sums.put", "step"),  # (B4): of the last tile alone
    ("losses", "sigmoid", "activations.softplus", "step"),  # (O3)
    ("inference", "f", "activations.df", "inference"),  # (F2)
    ("second_order", "d2f", "activations.df", "second order"),  # (S2)
    ("second_order", "ahead", "less", "second order"),  # (S1)
]
BREAK = """
import torch
from benchmarks.kernels import right
from benchmarks.kernels.device import activations, inference, losses, second_order, step, sums, tiles
from benchmarks.kernels.forms import Task
import triton
import triton.language as tl
@triton.jit
def less(ws, weights, K, h, none, once, WIDTHS, PADS, TILE, SUM, HOW):
    return tiles.ahead(ws, weights, K, h, none, once, WIDTHS, PADS, TILE, SUM, HOW) * 0.99
cpu = torch.device("cpu")
task = Task("binary_cross_entropy", need_dx=True)
given = right.Given((3, 5, 1), 37, "tanh", task, right._FORM, "float64")
def spoiled():
    found = [*right.first_order(given, cpu), *right.of_second_order(given, cpu)]
    return {name for name, tensors, truth, theirs in found
            if right.largest(tensors, truth) > right.allowed(name, right.largest(theirs, truth), "float64")}
assert not spoiled(), spoiled()
for module, name, other, expected in BROKEN:
    module, other = globals()[module], eval(other)
    held = getattr(module, name)
    setattr(module, name, other)
    assert expected in spoiled(), (module.__name__, name)
    setattr(module, name, held)
    assert not spoiled()
"""


def test_a_broken_formula_is_found() -> None:
    done = run(f"BROKEN = {BROKEN!r}\n{BREAK}")
    assert done.returncode == 0, done.stderr[-2000:]


PHILOX = """
import torch, triton, triton.language as tl
from benchmarks.kernels import references
@triton.jit
def words(out, seed, a, b):
    at = tl.arange(0, 64)
    first, _, _, _ = tl.philox(seed, at + a, at * 0 + b, at * 3, at * 0 + 7)
    tl.store(out + at, first.to(tl.int64))
for seed in (3, 2**40 + 7):
    out, at = torch.zeros(64, dtype=torch.int64), torch.arange(64)
    words[(1,)](out, seed, 11, 5)
    assert torch.equal(out, references.philox(seed, at + 11, torch.tensor(5), at * 3, torch.tensor(7)))
# The known answer of Random123's kat_vectors for a key and a counter of ones alone.
ones = torch.tensor(0xFFFFFFFF)
assert references.philox(2**64 - 1, ones, ones, ones, ones).item() == 0x408F276D
"""


def test_the_masks_that_dropout_is_held_against_are_philox() -> None:
    done = run(PHILOX)
    assert done.returncode == 0, done.stderr[-2000:]


SINE = """
import torch
from benchmarks.kernels.device import second_order
from benchmarks.kernels.forms import Form, Network
one, none = torch.ones(1, 1), torch.zeros(1)
z = torch.linspace(-300, 300, 20001)
y, slope = second_order.value_and_gradient(z[:, None], Network((one, one), (none, none), "sin"), Form(tile=4096))
print(max(float((y - z.double().sin()).abs().max()), float((slope[:, 0] - z.double().cos()).abs().max())))
"""


def test_the_kernels_own_sine_and_cosine_are_right_in_float32() -> None:
    done = run(SINE)
    assert float(done.stdout) < 3e-7, done.stderr[-2000:]


COMPILED = """
import os, triton
try:
    triton.knobs.nvidia.ptxas.path, triton.knobs.nvidia.nvdisasm.path
except RuntimeError:
    os._exit(77)
from benchmarks.kernels.cases import CASES, MEMORY, REGISTERS
from benchmarks.kernels.compiled import count
from benchmarks.kernels.model import microseconds
for form in (REGISTERS, MEMORY):
    (variant,) = CASES[0].variants(form)
    found = count(variant)
    print(form, found)
    assert found["spill_bytes"] == 0
    # So many products of 64 rows by 64 columns by 16: forward, back, dW and z again of five layers, in two halves.
    assert found["wgmma"] >= 72 and found["mma"] == 0 and not found["serialised"]
    assert found["registers"] <= (variant.form.registers or 255)
    assert found["shared_kb"] * variant.form.blocks <= 227
    assert microseconds(found, variant)["blocks"] == variant.form.blocks
"""


def test_64_wide_networks_compile_for_an_h100_without_spills_onto_its_tensor_cores() -> None:
    done = run(COMPILED, interpret=False)
    if done.returncode == 77:
        pytest.skip("needs ptxas and nvdisasm")
    assert done.returncode == 0, done.stdout + done.stderr[-2000:]
