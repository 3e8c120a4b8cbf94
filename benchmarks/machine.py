"""What a figure was taken on: the machine, its ceilings, its load, its allocator."""

import multiprocessing
import os
import platform
import re
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import ParamSpec, TypeVar

import torch

from benchmarks.harness import fix, now, time_block, training_step

P = ParamSpec("P")
R = TypeVar("R")

# "tuned" keeps freed blocks in the heap, so that large activations are not fresh pages at every step.
MALLOCS: dict[str, dict[str, str]] = {
    "default": {},
    "tuned": {
        "MALLOC_MMAP_MAX_": "0",
        "MALLOC_TRIM_THRESHOLD_": str(1 << 36),
        "MALLOC_TOP_PAD_": str(1 << 26),
    },
}


def mallocs() -> tuple[str, ...]:
    """List the mallocs this machine can be measured under: the tuned one is glibc's."""
    return tuple(MALLOCS) if platform.libc_ver()[0] == "glibc" else ("default",)


def _tuning(environment: dict[str, str]) -> dict[str, str]:
    return {k: v for k, v in environment.items() if k.startswith("MALLOC_") or k == "GLIBC_TUNABLES"}


def fresh(malloc: str, function: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
    """Call the function in a new process under a malloc: glibc reads its settings at exec."""
    here = _tuning(dict(os.environ))
    try:
        for name in here:
            del os.environ[name]
        os.environ.update(MALLOCS[malloc])
        with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
            return pool.submit(function, *args, **kwargs).result()
    finally:
        for name in MALLOCS[malloc]:
            os.environ.pop(name, None)
        os.environ.update(here)


def under_malloc(malloc: str, function: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
    """Call the function under a malloc: here if this process has it, else in a new one."""
    if _tuning(dict(os.environ)) == MALLOCS[malloc]:
        return function(*args, **kwargs)
    return fresh(malloc, function, *args, **kwargs)


def cores() -> int:
    """Count the cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def cpu_name() -> str:
    """Name the CPU's model."""
    try:
        found = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    except OSError:
        found = None
    return found[1].strip() if found else platform.processor() or platform.machine()


def features() -> dict[str, bool]:
    """Tell which fast products in bfloat16 the CPU has."""
    capabilities: dict[str, bool] = getattr(torch.cpu, "get_capabilities", dict)()
    return {name: bool(capabilities.get(name)) for name in ("amx_bf16", "avx512_bf16")}


def describe(device: torch.device) -> dict[str, object]:
    """Describe hardware and versions; nothing that names a host or a path."""
    cuda = device.type == "cuda"
    return {
        "device": torch.cuda.get_device_name(device) if cuda else "cpu",
        "cpu": cpu_name(),
        "cores": cores(),
        "capability": torch.backends.cpu.get_cpu_capability(),
        "features": features(),
        "system": platform.system(),
        "libc": " ".join(platform.libc_ver()),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "cuda": torch.version.cuda if cuda else None,
    }


def slug(device: torch.device) -> str:
    """Name the machine for a file: the GPU, or CPU model and cores."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else f"{cpu_name()} {cores()} cores"
    return re.sub(r"[^a-z0-9]+", "-", brief(name).lower()).strip("-")


def brief(name: str) -> str:
    """Shorten a model's name to what tells it from others."""
    return " ".join(re.sub(r"\((r|tm)\)|\bcpu\b|\bprocessor\b|@ [\d.]+GHz", " ", name, flags=re.IGNORECASE).split())


def load() -> float:
    """Return the load average of the last minute; 0 where the system tells none."""
    return os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0


def others_seconds() -> float:
    """Return the CPU seconds all but this process have taken, stolen ones included; 0 where the system is silent."""
    try:
        user, nice, system, _, _, irq, softirq, steal, *_ = map(int, Path("/proc/stat").read_text().split()[1:11])
    except (OSError, ValueError):
        return 0.0
    return (user + nice + system + irq + softirq + steal) / os.sysconf("SC_CLK_TCK") - sum(os.times()[:2])


def busy(average: float, others: float, threads: int) -> bool:
    """Tell whether the load exceeds the run's own threads by half a core, or others took a tenth of all cores."""
    tenth = 0.1 * (os.cpu_count() or 1)
    return average > threads + max(0.5, tenth) or others > tenth


def ceilings(device: torch.device, dtype: torch.dtype, threads: int, small: bool = False) -> dict[str, float]:
    """Measure the best matrix product (GFLOP/s), copy (GB/s, read + write), an empty autograd call and a launch (µs).

    A launch is an operation on one entry, as fast as they can follow on each other. ``small``: of few bytes, and once.
    """
    fix(threads)
    cuda, seconds = device.type == "cuda", 0.0 if small else 0.2

    def best(step: Callable[[], object]) -> float:
        step()
        end, taken = now() + seconds, [time_block(step, 1).seconds]
        while now() < end:
            taken.append(time_block(step, 1).seconds)
        return min(taken)

    gflops: list[float] = []
    product = 0.0
    for size in (64,) if small else (2048, 4096, 8192) if cuda else (256, 512, 1024, 2048):
        if product > 0.1:  # a dtype this CPU has no fast product for
            break
        a, b, out = (torch.randn(size, size, device=device).to(dtype) for _ in range(3))
        product = best(lambda a=a, b=b, out=out: torch.mm(a, b, out=out))  # type: ignore[misc]
        gflops.append(2 * size**3 / product / 1e9)

    # Of a card more than any of its caches holds, and long beside a launch.
    source = torch.ones(1 << (16 if small else 31 if cuda else 27), dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    copy = 2 * source.numel() / best(lambda: target.copy_(source)) / 1e9

    def often(step: Callable[[], object]) -> float:
        calls, blocks = (1, 1) if small else (100, 20)
        time_block(step, 2 * calls)
        return min(time_block(step, calls).seconds for _ in range(blocks)) * 1e6

    leaf = torch.ones(1, device=device, requires_grad=True)
    empty = training_step(lambda x: x.view_as(x), {"x": leaf}, torch.ones_like(leaf))
    one = torch.ones(1, device=device)
    return {
        "gflops": max(gflops),
        "copy_gbs": copy,
        "empty_call_us": often(empty),
        "launch_us": often(lambda: one.add_(1)),
    }
