"""The command ``python -m manual_mlp doctor``: what a report of a bug has to tell about this machine."""

from __future__ import annotations

import argparse
import importlib
import importlib.metadata
import os
import platform
import re
import subprocess
import sysconfig
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from manual_mlp.engines import engine_for, native
from manual_mlp.engines.native.build import compiler
from manual_mlp.engines.native.cache import short

_PATIENCE = 20  # seconds for another program to say its version
_MAPS, _PROCESSORS = Path("/proc/self/maps"), Path("/proc/cpuinfo")
_DESCRIPTION = "Print what a report of a bug needs: versions, devices, the engine and why it is not another, threads."


def add_command(commands: argparse._SubParsersAction[Any]) -> None:
    """Add the command to those of ``python -m manual_mlp``."""
    parser = commands.add_parser("doctor", help="print what a report of a bug needs", description=_DESCRIPTION)
    parser.set_defaults(run=_run)


def _run(_: argparse.Namespace) -> int:
    for line in report():
        print(line)
    return 0


def version() -> str:
    """Tell the version, and those of torch and Python, on a line."""
    own = importlib.import_module("manual_mlp").__version__
    return f"manual_mlp {own} (torch {torch.__version__}, Python {platform.python_version()})"


def report() -> list[str]:
    """List the lines; what cannot be found out is said to be unknown."""
    return [f"{name:12}{_answer(ask)}" for name, ask in _QUESTIONS.items()]


def _answer(ask: Callable[[], str]) -> str:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            answer = ask()
        except Exception as error:
            answer = f"unknown ({type(error).__name__}: {error})"
    return short(" ".join(answer.split()))


def _manual_mlp() -> str:
    return f"{importlib.import_module('manual_mlp').__version__} in {Path(__file__).parent}"


def _torch() -> str:
    gpu = f"ROCm {torch.version.hip}" if torch.version.hip else f"CUDA {torch.version.cuda or 'none'}"
    return f"{torch.__version__}, git {str(torch.version.git_version)[:10]}, {gpu}"


def _python() -> str:
    return f"{platform.python_version()} {platform.python_implementation()}, {sysconfig.get_config_var('SOABI')}"


def _platform() -> str:
    return f"{platform.platform()}, {' '.join(platform.libc_ver()).strip() or 'unknown C library'}"


def _devices() -> str:
    found = ["cpu"]
    if torch.cuda.is_available():
        for index in range(torch.cuda.device_count()):
            device = torch.cuda.get_device_properties(index)
            size = f"{device.total_memory / 2**30:.0f} GiB"
            found.append(f"cuda:{index} {device.name} (sm_{device.major}{device.minor}, {size})")
    elif torch.backends.mps.is_available():
        found.append("mps")
    return ", ".join(found)


def _engine() -> str:
    return f"plain, not native: {native.why()}" if native.why() else f"native, {native.doors.__file__}"


def _gpu_engine() -> str:
    return engine_for(torch.empty(0, device="cuda")).name if torch.cuda.is_available() else "no GPU"


def _version(command: list[str]) -> str:
    # That of a virtual environment that is not activated is found too.
    path = os.pathsep.join([os.environ.get("PATH", os.defpath), sysconfig.get_path("scripts")])
    try:
        done = subprocess.run(
            command,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=_PATIENCE,
            env={**os.environ, "PATH": path},
        )
    except FileNotFoundError:
        return f"none: no {command[0]}"
    return done.stdout.partition("\n")[0] or f"{command[0]} says nothing, exit status {done.returncode}"


def _compiler() -> str:
    return _version([*compiler(), "--version"])


def _triton() -> str:
    try:
        return importlib.metadata.version("triton")
    except importlib.metadata.PackageNotFoundError:
        return "none"


def _processor() -> str:
    model = re.search(r"^model name\s*: (.*)", _PROCESSORS.read_text(), re.MULTILINE) if _PROCESSORS.exists() else None
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else "unknown"
    kind = torch.backends.cpu.get_cpu_capability()
    return f"{model[1] if model else platform.machine()}, {kind}, {os.cpu_count()} cores, usable {usable}"


def _threads() -> str:
    return f"{torch.get_num_threads()}, between operations {torch.get_num_interop_threads()}" + _set(
        "OMP_", "MKL_", "KMP_"
    )


def _set(*beginnings: str) -> str:
    """List the environment variables that begin so, after a comma each."""
    return "".join(f", {name}={value}" for name, value in sorted(os.environ.items()) if name.startswith(beginnings))


def _loaded(pattern: str) -> list[str]:
    """List the libraries in this process whose names match."""
    paths = {line.split(maxsplit=5)[5] for line in _MAPS.read_text().splitlines() if line.count("/")}
    return sorted(path for path in paths if re.match(pattern, Path(path).name))


def _openmp() -> str:
    if not _MAPS.exists():
        return "unknown"
    found = _loaded(r"lib(gomp|iomp|omp)[-.\d]")
    return ", ".join(found) + (" (expected one)" if len(found) > 1 else "") or "none"


def _malloc() -> str:
    # A preloaded library may bear a path that tells more than is needed.
    preloaded = [Path(path).name for path in re.split(r"[\s:]+", os.environ.get("LD_PRELOAD", "")) if path]
    found = _loaded(r"lib(jemalloc|tcmalloc|mimalloc|asan)") if _MAPS.exists() else ["unknown"]
    kind = ", ".join(Path(path).name for path in found) or platform.libc_ver()[0] or "the C library's"
    return kind + _set("MALLOC_", "GLIBC_TUNABLES") + (f", LD_PRELOAD={' '.join(preloaded)}" if preloaded else "")


def _data() -> str:
    given = os.environ.get("MANUAL_MLP_DATA")
    return (
        f"{given or 'data, for MANUAL_MLP_DATA is not set'} ({'is' if Path(given or 'data').exists() else 'not'} there)"
    )


def _variables() -> str:
    return _set("MANUAL_MLP_", "TORCH", "PYTORCH_", "CUDA_", "ATEN_").removeprefix(", ") or "none"


_QUESTIONS: dict[str, Callable[[], str]] = {
    "manual_mlp": _manual_mlp,
    "torch": _torch,
    "Python": _python,
    "platform": _platform,
    "devices": _devices,
    "engine": _engine,
    "on a GPU": _gpu_engine,
    "compiler": _compiler,
    "ninja": lambda: _version(["ninja", "--version"]),
    "Triton": _triton,
    "processor": _processor,
    "threads": _threads,
    "OpenMP": _openmp,
    "malloc": _malloc,
    "data": _data,
    "variables": _variables,
}
