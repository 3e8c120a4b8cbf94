"""The tables of a GPU, in their order. Another one is another entry; of rows with ``providers``, by ``lines``."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

from benchmarks.compile.rows import EAGER
from benchmarks.native_rows import PLAIN, PRODUCTS
from benchmarks.network.providers import AUTOGRAD
from benchmarks.report import training
from benchmarks.report.gpu import studies
from benchmarks.report.gpu.columns import Rows, Write, both, kept, lines, over, speed
from benchmarks.report.tables import CHUNKED


class Table(NamedTuple):
    """A table: its heading, the commands that it shows, of which one is enough, and what lays their runs out."""

    title: str
    commands: Sequence[str]
    write: Callable[..., str]


def groups(*names: str) -> Rows:
    """Choose rows of the native engine by their group."""
    return lambda run: [row for row in run["rows"] if row["group"] in names]


def native(*names: str) -> Write:
    """Make the writer of groups of the native engine's rows."""
    about = {**({"what": "group"} if len(names) > 1 else {}), "case": "case", "f or loss": "of"}
    return lines(about, {"products alone": speed(PRODUCTS), "over plain": over(PLAIN)}, groups(*names))


# By what they are; those of README and docs/figures.md have these names too.
TABLES = {
    "layers": Table("Layers by the native engine", ["native"], native("layer", "layer by grad")),
    "dense": Table(
        "Layers and what they keep", ["dense"],
        lines({"N × D_in → D_out": "case", "f": "activation"}, {"kept MB: torch, ours": both("kept_bytes", kept)}),
    ),
    "networks": Table(
        "Networks by the native engine", ["native"], native("backprop", "backprop with dropout", "MLP")
    ),
    "network": Table(
        "Networks against compilers and graphs", ["network"],
        lines(
            {"network": "case"},
            {
                "over compile": over("compile"),
                "over max-autotune": over("compile max-autotune"),
                "over a CUDA graph": over("cuda graph"),
                "autograd path": speed(AUTOGRAD),
            },
        ),
    ),
    "batch": Table(
        "A network against the batch", ["network"],
        lines({"network": "case"}, rows=lambda run: run.get("by_batch", ())),
    ),
    "tiles": Table("Rows of a tile", ["network"], studies.tiles),
    "sizes": Table("Rows of chunks and tiles", ["sizes"], studies.sizes),
    "kernels": Table("Kernels in Triton", ["kernels"], studies.kernels),
    "dropout": Table("Dropout", ["dropout"], lines({"case": "case", "what": "way"})),
    "train": Table(
        "Steps with an optimiser", ["train"],
        lines({"network": "case", "optimiser": "optimiser"}, {"autograd path": speed(AUTOGRAD)}),
    ),
    "heads": Table("Output layers by the native engine", ["native"], native("head")),
    "output": Table(
        "Cross-entropy of many classes", ["output"],
        lines(
            {"N × D → V": "case"},
            {name: speed(name) for name in (CHUNKED, "Liger-Kernel", "cut-cross-entropy")},
        ),
    ),
    "derivatives": Table("Second derivatives by the native engine", ["native"], native("second order")),
    "second-order": Table(
        "Second derivatives in wider networks", ["second-order"],
        lines(
            {"step": "case", "width": "width"},
            {"differentiable": speed("differentiable"), "kept MB: torch, ours": both("kept_bytes", kept)},
        ),
    ),
    "compile": Table(
        "Both compiled", ["compile"],
        lines(
            {"module": "group", "case": "case", "f or loss": "of", "what": "way", "mode": "mode"},
            {"over our eager": over(EAGER)},
        ),
    ),
    "transforms": Table(
        "Under torch.func", ["transforms"], lines({"transform": "case", "net": "net", "f": "activation"})
    ),
    "accuracy": Table("Test accuracies of train.py", ["accuracy"], training.accuracy),
    "time-to": Table("The time to an accuracy", training.TIMES, training.time_to),
    "cuda-graph": Table("train.py with a CUDA graph", ["cuda-graph"], studies.graphs),
    "literature": Table("Recipes of the literature", ["literature"], training.literature),
}  # fmt: skip
