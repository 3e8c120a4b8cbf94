"""Which share of a step's time is products, which other tensor work, and which Python."""

import re

from benchmarks.harness import Step, autorange, time_block
from benchmarks.memory import profile

PRODUCTS = re.compile(r"aten::_?(b?mm|addmm|addbmm|baddbmm|addmv|mv|dot|addmm_activation)_?|mkldnn::_?linear.*")
ROUNDS = 5
PROFILED = 2  # the first profile warms up
CALLS = 16  # at least
SLOW_SECONDS = 0.05  # a step that takes so long needs no repetition


def shares(step: Step, once: bool = False) -> dict[str, float]:
    """Measure the shares of the time of a step, run before, on this thread; call it with one thread for all of torch.

    Products and other operations are the profiler's own times; Python is what is left of the time without a profiler.
    ``once``: no more often than a slow step.
    """
    wall = time_block(step, 1).seconds
    if wall < SLOW_SECONDS and not once:
        number = max(autorange(step), CALLS)
        wall = min(time_block(step, number).seconds for _ in range(ROUNDS))
        products, others = min((_operations(step, number) for _ in range(PROFILED)), key=sum)
    else:
        products, others = _operations(step, 1)
    wall *= 1e6
    whole = max(wall, products + others)  # the profiler takes time too
    return {"products": products / whole, "tensors": others / whole, "python": 1 - (products + others) / whole}


def _operations(step: Step, calls: int) -> tuple[float, float]:
    """Profile a step; return the µs that its products and its other operations take."""
    with profile() as profiler:
        for _ in range(calls):
            step()
    found = [0.0, 0.0]
    for event in profiler.key_averages():
        if "::" in event.key:
            found[PRODUCTS.fullmatch(event.key) is None] += event.self_cpu_time_total / calls
    return found[0], found[1]
