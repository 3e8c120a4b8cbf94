"""The stages of the day on a GPU, as data: what runs, for how long at most, and what it tells."""

from typing import NamedTuple

MINUTE, HOUR = 60, 3600


class Stage(NamedTuple):
    """A command that is run as a process of its own.

    In a command, ``{measured}`` stands for the flags of a benchmark, ``{trained}`` for those of one that trains on
    images, and ``{device}``, ``{workers}`` and ``{gpus}`` for what this machine has; ``{data}`` is the folder of the
    images, and ``{logs}`` that of the logs, where runs are gone on with.
    """

    name: str
    command: str
    limit: int  # seconds
    tells: str
    tiny: str = ""  # the command of a dry run, where it is another
    gpus: int = 1  # fewer are not enough
    long: bool = False  # it takes hours, and is asked for


_TESTS = (
    "python -m pytest -v --tb=short -p no:cacheprovider -o faulthandler_timeout=60 --numprocesses {workers} "
    "--dist worksteal"
)
# What asks for the device; documents speak of a GPU too.
_ON_DEVICE = "-k '(cuda or a_gpu) and not report' --ignore tests/test_gpu_claims.py"
_SPREAD = "python -m torch.distributed.run --standalone --nproc-per-node {gpus} train.py --device {device}"

# In the order of what tells most.
STAGES = (
    Stage("doctor", "python -m manual_mlp doctor", MINUTE, "GPU, Triton, compiler and engine are found"),
    Stage("build", "python -m manual_mlp build", 10 * MINUTE, "the C++ compiles against a torch with CUDA"),
    Stage(
        "tests",
        f"{_TESTS} {_ON_DEVICE}",
        4 * MINUTE,
        "every answer there is the formula's: a covering part of the suite's CUDA half, no failure",
        tiny=f"{_TESTS} tests/core/test_tiling.py",
    ),
    Stage(
        "dense", "python -m benchmarks dense {measured}", 4 * MINUTE,
        "a layer's time, its host's time, and its share of the products",
    ),
    Stage(
        "network", "python -m benchmarks network {measured}", 12 * MINUTE,
        "`backprop` and `MLP` against eager, compiled and captured layers; time and bytes against the batch",
    ),
    Stage(
        "output", "python -m benchmarks output {measured}", 6 * MINUTE,
        "the cross-entropy of many classes, to 4096×4096→128256 in bfloat16, against unfused torch and its peers",
    ),
    Stage("native", "python -m benchmarks native {measured}", 8 * MINUTE, "the native engine's goals there"),
    Stage(
        "kernels", "python -m benchmarks kernels {measured}", 12 * MINUTE,
        "the Triton kernels for small networks: right in bfloat16, then sums in registers against memory",
    ),
    Stage("second-order", "python -m benchmarks second-order {measured}", 4 * MINUTE, "derivatives in the loss"),
    Stage("compile", "python -m benchmarks compile {measured}", 15 * MINUTE, "both compiled, and the graphs that come"),
    Stage("dropout", "python -m benchmarks dropout {measured}", 2 * MINUTE, "the mask by Triton, alone and in a step"),
    Stage("transforms", "python -m benchmarks transforms {measured}", 6 * MINUTE, "layers under `torch.func`"),
    Stage(
        "sizes", "python -m benchmarks sizes {measured}", 8 * MINUTE,
        "rows of chunks and tiles: how far the models' choice is from the best, and the constants that fit",
    ),
    Stage(
        "graph", "python -m benchmarks train --cuda-graph {trained}", 8 * MINUTE,
        "`train.py` with and without `--cuda-graph` on the same seeds: time and accuracy",
    ),
    Stage(
        "time-to-98", "python -m benchmarks train --time-to 98 --seeds 5 --providers manual_mlp torch {trained}",
        5 * MINUTE, "seconds to 98 % on MNIST, torch's own loop beside it",
    ),
    Stage(
        "time-to-98.4", "python -m benchmarks train --time-to 98.4 --seeds 5 --providers manual_mlp torch {trained}",
        5 * MINUTE, "to 98.4 %",
    ),
    Stage(
        "time-to-99", "python -m benchmarks train --time-to 99 --seeds 3 --providers manual_mlp torch {trained}",
        6 * MINUTE, "to 99 %, with deformed images",
    ),
    Stage(
        "example", "python examples/siren_sdf.py --device {device} --picture {logs}/siren.png", 2 * MINUTE,
        "an example whose loss has a second derivative, to its end",
        tiny="python examples/siren_sdf.py --device {device} --picture {logs}/siren.png --steps 2",
    ),
    Stage(
        "processes", f"{_SPREAD} --dataset mnist --epochs 2 --logdir {{logs}}/runs --data-dir {{data}}", 5 * MINUTE,
        "`train.py` on several GPUs, by NCCL", gpus=2, tiny=f"{_SPREAD} --dry-run --dataset digits",
    ),
    Stage(
        "tests-all", f"{_TESTS} --cases=all {_ON_DEVICE}", HOUR, "all of the suite's CUDA half", long=True,
        tiny=f"{_TESTS} tests/core/test_tiling.py",
    ),
    Stage(
        "ciresan-5",
        "python -m benchmarks train --table --recipes ciresan-5 --seeds 1 --checkpoints {logs}/checkpoints {trained}",
        8 * HOUR, "the recipe's error after all its 400 epochs; it goes on where it was stopped", long=True,
    ),
    Stage(
        "literature", "python -m benchmarks train --table --checkpoints {logs}/checkpoints {trained}", 4 * HOUR,
        "the other recipes", long=True,
    ),
)  # fmt: skip
NAMES = tuple(stage.name for stage in STAGES)


def duration(seconds: float) -> str:
    """Write seconds as hours and minutes, or as seconds below one minute."""
    minutes = round(seconds / MINUTE)
    if seconds < MINUTE:
        return f"{seconds:.0f} s"
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02} min"


def markdown() -> str:
    """Lay out the stages as a table of a document."""
    lines = ["| stage | at most | what it tells |", "|---|---|---|"]
    for stage in STAGES:
        name = f"`{stage.name}`" + (", by `--long`" if stage.long else "")
        lines.append(f"| {name} | {duration(stage.limit)} | {stage.tells} |")
    return "\n".join(lines)
