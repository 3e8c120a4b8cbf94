"""A stand-in for a GPU: torch's own CUDA code, whose memory is the host's and whose kernels are the CPU's.

    cd tests && python -m standin [pytest ARGUMENTS | MODULE ARGUMENTS]

Where there is no GPU, this runs what only a GPU ran before: the CUDA half of the suite, ``benchmarks`` with ``--device
cuda``, ``train.py``. It finds what is on the wrong device, what waits in a capture, what autocast, generators and
compilers do of their own for CUDA. It says nothing of a GPU's kernels, their rounding, or their time.

``runtime.cpp`` is preloaded before CUDA's runtime: one device, whose allocations, copies, events and streams are the
host's. ``kernels.cpp`` takes the place of every kernel that torch registers for CUDA: it hands the same memory to the
CPU's kernel, refuses operands of two devices, and complains where CUDA would wait. A captured graph is a list of such
calls. Triton's kernels run in its interpreter, and Inductor's not at all. torch has to be built for CUDA.
"""

from __future__ import annotations

import hashlib
import logging
import os
import shlex
import subprocess
import tempfile
from pathlib import Path

HERE = Path(__file__).parent
VARIABLE = "MANUAL_MLP_STANDIN"  # the library of kernels, in each process that is to have the stand-in


def compiled() -> tuple[Path, Path]:
    """Compile both libraries, where they are not there; return the runtime's and the kernels'."""
    import torch
    import triton

    # It says that it finds no CUDA.
    logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)
    from torch.utils import cpp_extension

    if torch.version.cuda is None:
        raise SystemExit("standin: expected a torch that is built for CUDA, got one for CPUs alone")
    headers = f"-I{Path(triton.__file__).parent / 'backends/nvidia/include'}"
    torchs = [f"-I{path}" for path in cpp_extension.include_paths()]
    linked = [f"-L{Path(torch.__file__).parent / 'lib'}", "-lc10", "-lc10_cuda", "-ltorch_cpu"]
    return (
        # torch asks for the driver by this name.
        _compiled("runtime.cpp", ["-std=c++17", headers, "-Wl,-soname,libcuda.so.1"]),
        _compiled("kernels.cpp", ["-std=c++20", headers, *torchs, *linked]),
    )


def _compiled(source: str, flags: list[str]) -> Path:
    import torch

    text = (HERE / source).read_text()
    known = hashlib.sha256("\n".join([text, torch.__version__, *flags]).encode()).hexdigest()[:16]
    folder = Path(os.environ.get("MANUAL_MLP_CACHE") or Path.home() / ".cache" / "manual_mlp")
    made = folder / f"standin-{source.partition('.')[0]}-{known}.so"
    if not made.exists():
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder) as temporary:
            new = Path(temporary) / made.name
            compiler = shlex.split(os.environ.get("CXX", "c++"))
            subprocess.run([*compiler, "-O1", "-fPIC", "-shared", HERE / source, *flags, "-o", new], check=True)
            new.replace(made)
    return made


def environment() -> dict[str, str]:
    """Make the environment of a process, and of all that it starts, in which torch finds the stand-in."""
    runtime, kernels = map(str, compiled())
    # sitecustomize puts the kernels in their place, in whichever process.
    paths = [str(HERE / "site"), str(HERE.parents[1]), str(HERE.parent), os.environ.get("PYTHONPATH")]
    return (
        {"OMP_NUM_THREADS": "1"}
        | os.environ
        | {
            "LD_PRELOAD": runtime,
            VARIABLE: kernels,
            "PYTHONPATH": os.pathsep.join(filter(None, paths)),
            "TRITON_INTERPRET": "1",
        }
    )
