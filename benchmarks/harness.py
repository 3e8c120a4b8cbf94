"""Time providers in shuffled turns over the same tensors, and hold their numbers against float64."""

import gc
import random
import time
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple, ParamSpec, TypeVar

import torch
from torch import Tensor

P = ParamSpec("P")
R = TypeVar("R")

Step = Callable[[], object]
Layer = Callable[..., Tensor]

BLOCK_SECONDS = 3e-3
WARMUP_SECONDS = 0.05
SLOW_SECONDS = 1.0  # a step that takes so long is a block of its own
MIN_ROUNDS = 20
PATIENCE = 5  # a row that takes so many times its seconds ends before its rounds are full
MAX_ROUNDS = 500
AHEAD = 4  # calls that give the host's time: a device queues a thousand operations or so before the host waits


class Estimate(NamedTuple):
    """A median and its 95 % bootstrap interval."""

    value: float
    low: float
    high: float


class Block(NamedTuple):
    """Seconds per call: until the accelerator (if any) has finished, and of the host alone, until it is enqueued."""

    seconds: float
    host: float


class Timing(NamedTuple):
    """Seconds per call of each provider: one entry a round, in the same order for all."""

    seconds: dict[str, Tensor]
    number: int  # calls in a block
    host: Mapping[str, Tensor] = {}  # the same of the host alone


def now() -> float:
    """Read the clock in seconds, once the accelerator (if any) has finished."""
    if torch.accelerator.is_available():
        torch.accelerator.synchronize()
    return time.perf_counter()


def fix(threads: int) -> None:
    """Fix what a figure depends on: thread count, denormals as torch has them by default, no TF32."""
    torch.set_num_threads(threads)
    torch.set_flush_denormal(False)
    torch.set_float32_matmul_precision("highest")


def training_step(layer: Layer, tensors: Mapping[str, Tensor], cotangent: Tensor) -> Step:
    """Make the step that is timed: gradients to None, forward, ``.backward(cotangent)``, as training does it."""
    inputs = tuple(tensors.values())
    leaves = [tensor for tensor in inputs if tensor.requires_grad]

    def step() -> None:
        for leaf in leaves:
            leaf.grad = None
        layer(*inputs).backward(cotangent)  # type: ignore[no-untyped-call]

    return step


def marked(step: Callable[P, Tensor], mode: str | None, device: torch.device) -> Callable[P, Tensor]:
    """Let a compiled step say that it begins, in a mode with CUDA graphs: what it gave last may be overwritten."""
    if mode in (None, "default") or device.type != "cuda":
        return step

    def run(*args: P.args, **kwargs: P.kwargs) -> Tensor:
        torch.compiler.cudagraph_mark_step_begin()
        return step(*args, **kwargs)

    return run


def time_block(step: Step, number: int) -> Block:
    """Time ``number`` calls, the accelerator idle before and after. The collector rests meanwhile.

    The host's seconds are those of the first calls: at a full queue it would wait for the device.
    """
    collecting, ahead = gc.isenabled(), min(number, AHEAD)
    gc.disable()
    try:
        start = now()
        for _ in range(ahead):
            step()
        enqueued = time.perf_counter()
        for _ in range(number - ahead):
            step()
        return Block((now() - start) / number, (enqueued - start) / ahead)
    finally:
        if collecting:
            gc.enable()


def frozen(function: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
    """Call a function whose collections leave out all that is there before: a walk through torch takes longest."""
    gc.collect()
    gc.freeze()
    try:
        return function(*args, **kwargs)
    finally:
        gc.unfreeze()


def autorange(step: Step, seconds: float | None = None) -> int:
    """Find how many calls make a block of at least so many seconds, or ``BLOCK_SECONDS``: a power of two."""
    number, least = 1, min(BLOCK_SECONDS, seconds or BLOCK_SECONDS)
    while time_block(step, number).seconds * number < least:
        number *= 2
    return number


def time_rounds(steps: Mapping[str, Step], seconds: float, seed: int = 0) -> Timing:
    """Time every step once a round, in an order drawn anew each round, for about ``seconds`` in all."""
    quick, warm = [], min(WARMUP_SECONDS, seconds)
    for step in steps.values():
        begun = now()
        step()
        if now() - begun < SLOW_SECONDS:
            quick.append(step)
        while now() - begun < warm:
            step()
    # The quickest provider sets the block, so that no block is too short; the same for all keeps rounds paired.
    number = max((autorange(step, seconds) for step in quick), default=1)
    gc.collect()
    turns = list(steps)
    order = random.Random(seed)
    taken: dict[str, list[Block]] = {name: [] for name in steps}
    start = now()
    for rounds in range(MAX_ROUNDS):
        spent = now() - start
        if rounds and spent >= (seconds if rounds >= MIN_ROUNDS else PATIENCE * seconds):
            break
        order.shuffle(turns)
        for name in turns:
            taken[name].append(time_block(steps[name], number))
    # Rows are rounds; the columns are seconds, and those of the host.
    blocks = {name: torch.tensor(values, dtype=torch.float64).T for name, values in taken.items()}
    seconds_of, host = ({name: values[k] for name, values in blocks.items()} for k in range(2))
    return Timing(seconds_of, number, host)


def percentile(samples: Tensor, percent: float) -> float:
    """Return a percentile of the samples, linear between neighbours."""
    return samples.quantile(percent / 100).item()


def bootstrap_median(samples: Tensor, resamples: int = 1000, seed: int = 0) -> Estimate:
    """Return the median with its 95 % percentile-bootstrap interval."""
    draw = torch.Generator().manual_seed(seed)
    chosen = torch.randint(len(samples), (resamples, len(samples)), generator=draw)
    medians = samples[chosen].quantile(0.5, dim=1)
    return Estimate(percentile(samples, 50), percentile(medians, 2.5), percentile(medians, 97.5))


def paired_ratio(baseline: Tensor, ours: Tensor) -> Estimate:
    """Estimate baseline over ours from the ratio of each round: above 1, ours is faster."""
    return bootstrap_median(baseline / ours)


def paired_difference(baseline: Tensor, ours: Tensor) -> Estimate:
    """Estimate ours minus baseline from the difference of each round, in the unit of the samples."""
    return bootstrap_median(ours - baseline)


def summarise(
    timing: Timing, baseline: str, ours: Sequence[str] = (), host: bool = False
) -> dict[str, dict[str, object]]:
    """Turn a timing into the fields of each provider; times in µs, with ``host`` the host's too.

    ``ours`` get a ratio for each other provider too.
    """
    micros = {name: seconds * 1e6 for name, seconds in timing.seconds.items()}
    return {
        name: {
            "median_us": percentile(samples, 50),
            "p20_us": percentile(samples, 20),
            "p80_us": percentile(samples, 80),
            "ratio": list(paired_ratio(micros[baseline], samples)),
            "extra_us": list(paired_difference(micros[baseline], samples)),
        }
        | (
            {"ratios": {peer: list(paired_ratio(micros[peer], samples)) for peer in micros if peer != name}}
            if name in ours
            else {}
        )
        | ({"host_us": percentile(timing.host[name] * 1e6, 50)} if host else {})
        for name, samples in micros.items()
    }


def gradients(layer: Layer, tensors: Mapping[str, Tensor], cotangent: Tensor) -> dict[str, Tensor | None]:
    """Run forward and backward once; return the output and the gradient of each leaf, by name."""
    leaves = {name: tensor for name, tensor in tensors.items() if tensor.requires_grad}
    for leaf in leaves.values():
        leaf.grad = None
    output = layer(*tensors.values())
    output.backward(cotangent)  # type: ignore[no-untyped-call]
    return {"output": output.detach()} | {f"d{name}": leaf.grad for name, leaf in leaves.items()}


def in_float64(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Copy the tensors to float64 leaves that require what the originals require."""
    return {name: t.detach().double().requires_grad_(t.requires_grad) for name, t in tensors.items()}


def largest_error(result: Tensor | None, truth: Tensor) -> float:
    """Return the largest absolute error; infinite where the result is missing, misshapen or NaN."""
    if result is None or result.shape != truth.shape:
        return float("inf")
    error = (result.double() - truth).abs().amax().item() if truth.numel() else 0.0
    return error if error == error else float("inf")


def errors(results: Mapping[str, Tensor | None], truth: Mapping[str, Tensor | None]) -> dict[str, float]:
    """Return the largest absolute error of every result against float64."""
    return {name: largest_error(results.get(name), exact) for name, exact in truth.items() if exact is not None}


def negligible(truth: Mapping[str, Tensor | None]) -> dict[str, float]:
    """Return a millionth of the largest entry of every result: the error that is too small to be wrong, of a mean."""
    return {name: 1e-6 * exact.abs().amax().item() for name, exact in truth.items() if exact is not None}


def wrong(ours: Mapping[str, float], baseline: Mapping[str, float], slack: Mapping[str, float] | None = None) -> bool:
    """Tell whether any error is more than twice the baseline's own, plus the slack of its name or 1e-6."""
    return not all(ours[name] <= 2 * baseline[name] + (slack[name] if slack else 1e-6) for name in baseline)
