"""Count the bytes a forward keeps for its backward, and the most a step holds at once."""

import gc
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.harness import Layer, Step, now


def _tensors_in(value: Any) -> Iterator[Tensor]:
    """Find the tensors in a value and in the containers it is made of."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from _tensors_in(item)
    elif isinstance(value, dict):
        yield from _tensors_in(list(value.values()))


def _held_by_nodes(output: Tensor) -> Iterator[Tensor]:
    """Find the tensors hung on Python nodes of the graph as plain attributes: no hook sees those."""
    waiting, seen = [output.grad_fn], set()
    while waiting:
        node = waiting.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        yield from _tensors_in(getattr(node, "__dict__", {}))
        waiting.extend(following for following, _ in node.next_functions)


def _storages(tensors: Iterable[Tensor]) -> dict[int, int]:
    """Map the address of every storage to its bytes."""
    storages = (tensor.untyped_storage() for tensor in tensors)
    return {storage.data_ptr(): storage.nbytes() for storage in storages}


def kept_bytes(layer: Layer, tensors: Mapping[str, Tensor]) -> dict[str, int]:
    """Count the bytes of each storage saved for backward, once, by whose it is; a storage counts whole.

    The keys are the layer's tensors by name, "output", "other", their "total" as ``saved_tensors_hooks`` sees it, and
    beside that "attributes": what hangs on the graph's nodes without being saved.
    """
    kept: list[Tensor] = []

    def pack(tensor: Tensor) -> Tensor:
        kept.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        output = layer(*tensors.values())
    owners = {pointer: name for name, t in {**tensors, "output": output}.items() for pointer in _storages([t])}
    saved, held = _storages(kept), _storages(_held_by_nodes(output))
    counts = dict.fromkeys([*tensors, "output", "other"], 0)
    for pointer, size in saved.items():
        counts[owners.get(pointer, "other")] += size
    attributes = sum(size for pointer, size in held.items() if pointer not in saved)
    return counts | {"total": sum(counts.values()), "attributes": attributes}


def profile(**options: Any) -> torch.autograd.profiler.profile:
    """Make a profiler that does not announce itself on stderr."""
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")
    return torch.autograd.profiler.profile(**options)


def peak_bytes(step: Step, tensors: Iterable[Tensor], device: torch.device, warm: bool = True) -> int:
    """Measure the most bytes of new tensors a step holds at once, the gradients of ``tensors`` among them.

    A step has to be run before, which is done here if ``warm``.
    """
    if warm:
        step()
    for tensor in tensors:
        tensor.grad = None
    if device.type == "cuda":
        gc.collect()  # what dies meanwhile would be taken from the peak
        torch.cuda.synchronize(device)
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        step()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before
    with profile(profile_memory=True) as profiler:
        step()
    changes = [event for event in profiler.kineto_results.events() if event.name() == "[memory]"]
    held = peak = 0
    for event in sorted(changes, key=lambda event: event.start_ns()):
        held += event.nbytes()
        peak = max(peak, held)
    return peak


def _resident(field: str) -> int:
    """Read the bytes of this process that are in memory: VmRSS is now, VmHWM the most there were."""
    try:
        found = re.search(rf"^{field}:\s*(\d+) kB$", Path("/proc/self/status").read_text(), re.MULTILINE)
    except OSError:
        found = None
    if found:
        return 1024 * int(found[1])
    import resource  # not on every system

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def resident_bytes(make: Callable[..., tuple[Step, Step]], *args: object) -> dict[str, float]:
    """Measure how far a step raises the bytes of this process that are in memory, and its seconds.

    ``make`` returns what is run before, and the step. Call this in a fresh process: memory that was freed before is
    not handed back, and would not count.
    """
    before, step = make(*args)
    before()
    now()  # it asks torch for an accelerator, whose libraries then stay in memory
    gc.collect()
    held = _resident("VmRSS")
    try:
        Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    except OSError:
        held = _resident("VmHWM")
    start = now()
    step()
    seconds = now() - start
    return {"resident_bytes": max(0, _resident("VmHWM") - held), "seconds": seconds}
