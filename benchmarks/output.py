"""Time the loss of an output layer, forward + backward, against ``F.cross_entropy(F.linear(h, w, b), target)``.

A saturated row has weights of unit variance instead of nn.Linear's: its softmax is nearly 0 or 1 everywhere, full of
numbers too small for a normal float.

Each row of the JSON holds:
    case, shape [N, D, V], dtype, bias, saturated, threads, malloc;
    load (average of the last minute), others_cores (that other processes took meanwhile), busy (marked for these);
    number (calls a block), rounds (paired blocks), flops (operations of the three products of torch's step),
    products_us (their time at this run's ceiling for the dtype), bare_us (their time as measured at this shape; on CUDA
    and with --tiny alone);
    chunk_rows (the rows of logits that manual_mlp chose to hold at once; 0 where it left all to torch's operations);
    least_bytes (gradients, and dW in float32 where its dtype is narrower: what a step in chunks cannot do without);
    providers: torch; manual_mlp; of torch chunked, Liger-Kernel and cut-cross-entropy those that run here. For each,
    median_us, p20_us, p80_us, host_us (on CUDA: what a call takes on the host alone, until it is enqueued), ratio and
    extra_us (torch over it; it minus torch; both as [median, low, high] with a 95 % interval), products_share
    (products_us over its median), over_usual (in a saturated row: its median over that of the same row with usual
    weights), error (largest absolute, against float64: output (the loss), dinput, dweight, dbias), peak_bytes and
    peak_ratio (torch's over its; in a saturated row both are those of the usual one, and left out), wrong (an error
    more than twice torch's own and a millionth of the largest entry);
    chunk_errors (for narrow dtypes, once a case): the error of dweight of torch, and of manual_mlp and torch chunked by
    the number of chunks.
Errors and peaks do not depend on the malloc: they are taken under the first one. A saturated row gets a quarter of the
seconds, the largest ones three times as many.
"""

import argparse
import importlib
import re
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks import command, memory, products
from benchmarks.harness import (
    Layer,
    Step,
    errors,
    fix,
    gradients,
    in_float64,
    largest_error,
    negligible,
    percentile,
    time_rounds,
    training_step,
)
from benchmarks.layers import BASELINE, OURS
from benchmarks.left_out import attempt
from manual_mlp import linear_cross_entropy
from manual_mlp.precision import product_dtype
from manual_mlp.sweep.tiling import few_logits, tiling_of_loss

Loss = Callable[[Tensor, Tensor, Tensor, Tensor | None], Tensor]


class Case(NamedTuple):
    """One output layer: rows, width, classes, and what its tensors are like."""

    rows: int
    d_in: int
    classes: int
    dtype: str = "float32"
    saturated: bool = False
    bias: bool = False

    def __str__(self) -> str:
        """Write the case as in ``1024×512→8192 bias bfloat16 saturated``."""
        words = ["bias"] * self.bias + [self.dtype] + ["saturated"] * self.saturated
        return " ".join([f"{self.rows}×{self.d_in}→{self.classes}", *words])

    @property
    def flops(self) -> int:
        """Count the operations of the three products: logits, dinput and dweight."""
        return 6 * self.rows * self.d_in * self.classes

    @property
    def time(self) -> float:
        """Say how much of a row's seconds it gets: torch takes seconds for one step of a saturated or a large one."""
        return 0.25 if self.saturated else 3.0 if self.flops > 3e11 else 1.0

    def tensors(self, device: torch.device) -> tuple[dict[str, Tensor], Tensor]:
        """Make the leaves, with nn.Linear's own initialisation unless saturated, and the classes of the rows."""
        torch.manual_seed(0)
        # On the device: of 128256 classes a CPU draws for seconds.
        layer = torch.nn.Linear(self.d_in, self.classes, self.bias, device)
        if self.saturated:
            torch.nn.init.normal_(layer.weight)
        made = {"input": torch.randn(self.rows, self.d_in, device=device), **dict(layer.named_parameters())}
        dtype = command.DTYPES[self.dtype]
        leaves = {name: tensor.detach().to(dtype).requires_grad_() for name, tensor in made.items()}
        return leaves, torch.randint(self.classes, (self.rows,), device=device)


# From small to large: a large block, once freed, changes how malloc treats all that come after it.
CASES = (
    Case(128, 256, 10, bias=True),
    Case(2048, 64, 4096),
    Case(2048, 64, 4096, "bfloat16"),
    Case(1024, 512, 8192),
    Case(1024, 512, 8192, "bfloat16"),
    Case(1024, 512, 8192, saturated=True),
    Case(1024, 512, 8192, "bfloat16", saturated=True),
    Case(4096, 512, 32000),
)
CUDA_CASES = (*CASES, Case(4096, 4096, 128256, "bfloat16"))
QUICK_CASES = CASES[:3]
CHUNK_COUNTS = (1, 4, 16, 64)


def _torch() -> Loss:
    return lambda h, w, target, b: F.cross_entropy(F.linear(h, w, b), target)


def _ours(chunk_rows: int | None = None) -> Loss:
    return lambda h, w, target, b: linear_cross_entropy(h, w, target, linear_bias=b, chunk_rows=chunk_rows)


def _torch_chunked(chunk_rows: int | None = None) -> Loss:
    make: Any = torch.nn.LinearCrossEntropyOptions  # from torch 2.13 on
    options = make() if chunk_rows is None else make(chunking_method=None, batch_chunk_size=chunk_rows)
    return lambda h, w, target, b: F.linear_cross_entropy(h, w, target, linear_bias=b, options=options)


def _liger() -> Loss:
    module: Any = importlib.import_module("liger_kernel.transformers.functional")
    return lambda h, w, target, b: module.liger_fused_linear_cross_entropy(h, w, target, bias=b)


def _apple() -> Loss:
    module: Any = importlib.import_module("cut_cross_entropy")
    # Not every version takes a bias.
    return lambda h, w, target, b: module.linear_cross_entropy(h, w, target, **({} if b is None else {"bias": b}))


PROVIDERS: dict[str, Callable[..., Loss]] = {
    BASELINE: _torch,
    OURS: _ours,
    "torch chunked": _torch_chunked,
    "Liger-Kernel": _liger,
    "cut-cross-entropy": _apple,
}
CHUNKED = (OURS, "torch chunked")  # those that can be told the rows of a chunk


def layer_of(loss: Loss, target: Tensor) -> Layer:
    """Make the loss a function of the leaves alone."""
    return lambda h, w, b=None: loss(h, w, target, b)


def layers_of(names: Sequence[str], target: Tensor) -> dict[str, Layer]:
    """Make the layer of each provider."""
    return {name: layer_of(PROVIDERS[name](), target) for name in names}


def failure(name: str, case: Case, device: torch.device) -> str | None:
    """Tell why a provider does not run here, in a line; None where it does. A small case of the same kind is tried."""
    small = case._replace(rows=min(case.rows, 128), d_in=min(case.d_in, 256), classes=min(case.classes, 256))
    tensors, target = small.tensors(device)
    one = torch.ones((), device=device)
    step, why = attempt(lambda: lambda: gradients(layer_of(PROVIDERS[name](), target), tensors, one))
    return why if step is None else None


def find_providers(cases: Sequence[Case], device: torch.device) -> tuple[list[list[str]], list[str]]:
    """Find the providers of each case, and say in a line each which are left out, where and why."""
    found: dict[Case, list[str]] = {case: [BASELINE, OURS] for case in cases}
    lines = []
    for name in PROVIDERS:
        if name in (BASELINE, OURS):  # if these do not run, that is an error
            continue
        why = ""
        left_out: list[str] = []
        for case in found:
            reason = failure(name, case, device)
            if reason is None:
                found[case].append(name)
            else:
                why = reason
                left_out.append(str(case))
        if left_out:
            where = "" if len(left_out) == len(found) else f" of {', '.join(left_out)}"
            lines.append(f"left out{where}: {name} ({why})")
    return [found[case] for case in cases], lines


SHAPE = "NxDxV[-bias][-DTYPE][-saturated]"


def read_case(text: str) -> Case:
    """Read a case from ``NxDxV``, with ``-bias``, ``-bfloat16`` or another dtype, and ``-saturated`` behind it."""
    found = re.fullmatch(
        rf"([1-9]\d*)x([1-9]\d*)x([1-9]\d*)(-bias)?(?:-({'|'.join(command.DTYPES)}))?(-saturated)?", text
    )
    if not found:
        raise argparse.ArgumentTypeError(f"expected {SHAPE}, got {text!r}")
    n, d, v, bias, dtype, saturated = found.groups()
    return Case(int(n), int(d), int(v), dtype or "float32", bool(saturated), bool(bias))


def curves() -> Any:
    """Return the module of ``--peers``, which imports this one."""
    return importlib.import_module("benchmarks.peers")


def read_options(arguments: Sequence[str]) -> argparse.Namespace:
    """Read the command line."""
    flags = command.parser("output", "The loss of an output layer, against F.cross_entropy(F.linear).", dtype=False)
    flags.add_argument("--case", type=read_case, nargs="+", metavar=SHAPE, help="saturated: weights of unit variance")
    flags.add_argument("--peers", action="store_true", help="instead: time against memory, by the number of chunks")
    flags.add_argument("--chunks", type=command.positive_int, nargs="+", metavar="N", help="with --peers (1 2 4 … 64)")
    flags.add_argument("--picture", type=Path, metavar="FILE", help="with --peers: draw the curves")
    options = flags.parse_args(arguments)
    command.complete(flags, options, seconds=1.5)
    if not options.peers and (options.chunks or options.picture):
        flags.error("--chunks and --picture are for --peers")
    lists = CASES, CUDA_CASES, QUICK_CASES
    if options.peers:
        lists = curves().CASES, curves().CUDA_CASES, curves().QUICK_CASES
    usual = lists[1] if options.tiny or options.device.type == "cuda" else lists[0]
    options.case = command.cases_of(options, usual, lists[2], options.case)
    options.dtype = ", ".join(dict.fromkeys(case.dtype for case in options.case))
    return options


def chosen_rows(case: Case, device: torch.device) -> int:
    """Return the rows of logits that manual_mlp holds at once in this case, by its own choice; 0 leaves it to torch."""
    if few_logits(case.rows, case.classes, device.type == "cuda"):
        return 0
    dtype = product_dtype(command.DTYPES[case.dtype], device)
    return tiling_of_loss(torch.empty(1, 1, device=device).expand(case.rows, case.d_in), case.classes, dtype).rows


def least_bytes(tensors: Mapping[str, Tensor]) -> int:
    """Count the bytes of the gradients, and of dW in float32 where its own dtype is narrower."""
    weight = tensors["weight"]
    return sum(t.nbytes for t in tensors.values()) + (4 * weight.numel() if weight.itemsize < 4 else 0)


def bare_products(tensors: Mapping[str, Tensor]) -> Step:
    """Make the step of the three products alone, into memory that is there."""
    h, w = (tensors[name].detach() for name in ("input", "weight"))
    logits, dh, dw = h.new_empty(len(h), len(w)), torch.empty_like(h), torch.empty_like(w)
    delta = torch.randn_like(logits)

    def step() -> None:
        torch.mm(h, w.mT, out=logits)
        torch.mm(delta, w, out=dh)
        torch.mm(delta.mT, h, out=dw)

    return step


def bare_us(tensors: Mapping[str, Tensor], seconds: float) -> float:
    """Time the three products alone: the median in µs."""
    timing = time_rounds({"products": bare_products(tensors)}, seconds)
    return percentile(timing.seconds["products"], 50) * 1e6


def chunk_errors(names: Sequence[str], tensors: dict[str, Tensor], target: Tensor, exact: Tensor) -> dict[str, Any]:
    """Measure the error of dweight by the number of chunks, torch's own beside it."""
    one = torch.ones((), device=target.device)

    def error(loss: Loss) -> float:
        return largest_error(gradients(layer_of(loss, target), tensors, one)["dweight"], exact)

    found: dict[str, Any] = {BASELINE: error(PROVIDERS[BASELINE]())}
    for name in CHUNKED:
        if name in names:
            sizes = {count: -(-len(target) // count) for count in CHUNK_COUNTS}
            found[name] = {str(count): error(PROVIDERS[name](size)) for count, size in sizes.items()}
    return found


def check_case(rows: Sequence[dict[str, Any]], case: Case, names: Sequence[str], device: torch.device) -> None:
    """Add to the rows of a case what does not depend on time: errors against float64, peak bytes."""
    tensors, target = case.tensors(device)
    one = torch.ones((), device=device)
    layers = layers_of(names, target)
    fix(rows[-1]["threads"])
    truth = gradients(layers[BASELINE], in_float64(tensors), one.double())
    # A mean's gradients are small: what is too little to be wrong is measured by them.
    slack = negligible(truth)
    for row in rows:
        fix(row["threads"])
        for name, layer in layers.items():
            provider = row["providers"][name]
            provider["error"] = errors(gradients(layer, tensors, one), truth)
            if not case.saturated:
                step = training_step(layer, tensors, one)
                provider["peak_bytes"] = memory.peak_bytes(step, tensors.values(), device, warm=False)
                provider["peak_ratio"] = row["providers"][BASELINE]["peak_bytes"] / provider["peak_bytes"]
        command.judge(row, BASELINE, slack)
    exact = truth["dweight"]
    if command.DTYPES[case.dtype].itemsize < 4 and not case.saturated and exact is not None:
        rows[-1]["chunk_errors"] = chunk_errors(names, tensors, target, exact)


def compare_with_usual(rows: Sequence[dict[str, Any]], cases: Sequence[Case]) -> None:
    """Add to saturated rows the time of each provider over its time in the usual row, where that was taken."""
    of = {(case, row["threads"]): row["providers"] for row, case in zip(rows, cases, strict=True)}
    for row, case in zip(rows, cases, strict=True):
        usual = of.get((case._replace(saturated=False), row["threads"]), {})
        for name, provider in row["providers"].items():
            if case.saturated and name in usual:
                provider["over_usual"] = provider["median_us"] / usual[name]["median_us"]


def measure(options: argparse.Namespace, malloc: str) -> tuple[list[dict[str, Any]], dict[int, dict[str, float]]]:
    """Take every row under the malloc this process has; return rows, and ceilings by thread count."""
    device = options.device
    one = torch.ones((), device=device)
    keys = [(c, names, t) for c, names in zip(options.case, options.providers, strict=True) for t in options.threads]
    rows: list[dict[str, Any]] = []
    for done, (case, names, threads) in command.turns(keys):
        fix(threads)
        tensors, target = case.tensors(device)
        steps = {name: training_step(layer, tensors, one) for name, layer in layers_of(names, target).items()}
        about = {"case": str(case), "shape": list(case[:3]), "dtype": case.dtype, "bias": case.bias}
        about |= {"saturated": case.saturated, "malloc": malloc, "chunk_rows": chosen_rows(case, device)}
        about |= products.operations(steps[BASELINE])
        row = (
            about
            | {"least_bytes": least_bytes(tensors)}
            | command.time_row(steps, BASELINE, options, threads, case.time)
        )
        if device.type == "cuda" or options.tiny:
            row["bare_us"] = bare_us(tensors, options.seconds / 4)
        rows.append(row)
        command.progress(done, len(keys), f"{case}, {threads} threads, {malloc} malloc")
    # All timing comes first: the checks and ceilings free blocks larger than any row's, which malloc remembers.
    limits = products.ceilings(options, rows)
    compare_with_usual(rows, [case for case, *_ in keys])
    if malloc == options.malloc[0]:
        for case, names in zip(options.case, options.providers, strict=True):
            of = [row for row, key in zip(rows, keys, strict=True) if key[0] == case]
            if of:
                check_case(of, case, names, device)
    return rows, limits


def who(rows: Sequence[dict[str, Any]]) -> list[str]:
    """List the providers that any of the rows has, in their order."""
    return [name for name in PROVIDERS if any(name in row["providers"] for row in rows)]


def short(name: str) -> str:
    """Name a provider in a title."""
    return "ours" if name == OURS else name


def cells(row: dict[str, Any], names: Sequence[str], write: Callable[[dict[str, Any]], str]) -> list[str]:
    """Write a cell for each provider; a dash where the row has not got it."""
    return [write(row["providers"][name]) if name in row["providers"] else "–" for name in names]


def ratio(rounds: int, provider: dict[str, Any]) -> str:
    """Write a ratio with its interval, which one round has not got."""
    return command.interval(provider["ratio"], ".2f") if rounds > 1 else f"{provider['ratio'][0]:.2f}"


def times_table(rows: Sequence[dict[str, Any]]) -> str:
    """Lay out times and ratios: a line a row."""
    names = who(rows)
    others, bare = names[1:], any("bare_us" in row for row in rows)
    titles = (
        "case", "threads", "malloc", "rounds", "chunk_rows", *(f"{short(name)} ms" for name in names),
        *(f"torch/{short(name)} [95 %]" for name in others), "products: " + ", ".join(map(short, names[:2])),
        *["bare products ms"] * bare, "",
    )  # fmt: skip
    lines = []
    for row in rows:
        torch_, ours = (row["providers"][name] for name in (BASELINE, OURS))
        lines.append(
            (
                row["case"],
                str(row["threads"]),
                row["malloc"],
                str(row["rounds"]),
                str(row["chunk_rows"] or "all"),
                *cells(row, names, lambda p: f"{p['median_us'] / 1e3:.2f}"),
                *cells(row, others, partial(ratio, row["rounds"])),
                f"{torch_['products_share']:.0%}, {ours['products_share']:.0%}",
                *[f"{row.get('bare_us', float('nan')) / 1e3:.2f}"] * bare,
                command.notes(row),
            )
        )
    return command.table(titles, lines)


def bytes_table(rows: Sequence[dict[str, Any]]) -> str:
    """Lay out the peaks: a line for each case and thread count."""
    names = who(rows)
    titles = ("case", "threads", *map(short, names), "torch/ours", "beyond the least: torch, ours")
    lines = {}
    for row in rows:
        if "peak_bytes" not in row["providers"][OURS]:
            continue
        torch_, ours = (row["providers"][name]["peak_bytes"] for name in (BASELINE, OURS))
        lines[row["case"], row["threads"]] = (
            row["case"],
            str(row["threads"]),
            *cells(row, names, lambda p: f"{p['peak_bytes'] / 1e6:,.2f}"),
            f"{row['providers'][OURS]['peak_ratio']:.1f}",
            ", ".join(f"{(b - row['least_bytes']) / 1e6:,.2f}" for b in (torch_, ours)),
        )
    return command.table(titles, list(lines.values()))


def errors_table(rows: Sequence[dict[str, Any]]) -> str:
    """Lay out the errors: a line for each case, thread count and provider."""
    sizes = ("output", "dinput", "dweight", "dbias")
    lines = {
        (row["case"], row["threads"], name): (
            row["case"],
            str(row["threads"]),
            short(name),
            *(f"{provider['error'][size]:.1e}" if size in provider["error"] else "–" for size in sizes),
            "WRONG" if provider["wrong"] else "",
        )
        for row in rows
        for name, provider in row["providers"].items()
    }
    return command.table(("case", "threads", "provider", *sizes, ""), list(lines.values()))


def saturated_table(rows: Sequence[dict[str, Any]]) -> str:
    """Lay out how many times longer saturated logits take than usual ones: a line a row."""
    names = who(rows)
    lines = [
        (row["case"], str(row["threads"]), row["malloc"], *cells(row, names, lambda p: f"{p['over_usual']:.1f}x"))
        for row in rows
    ]
    return command.table(("case", "threads", "malloc", *map(short, names)), lines)


def chunks_table(rows: Sequence[dict[str, Any]]) -> str:
    """Lay out the error of dweight by the number of chunks: a line for each case and provider."""
    titles = ("case", "provider", *(f"{count} chunks" if count > 1 else "1 chunk" for count in CHUNK_COUNTS), "torch")
    lines = []
    for row in rows:
        found = row["chunk_errors"]
        for name in (name for name in CHUNKED if name in found):
            counts = (f"{found[name][str(count)]:.1e}" for count in CHUNK_COUNTS)
            lines.append((row["case"], short(name), *counts, f"{found[BASELINE]:.1e}"))
    return command.table(titles, lines)


def main(arguments: Sequence[str]) -> int:
    """Measure, print, write; return 1 if ours is wrong in any row."""
    options = read_options(arguments)
    if options.peers:
        return int(curves().main(options))
    run = command.record(options)
    print(command.heading("output", run, options), flush=True)
    options.providers, left_out = find_providers(options.case, options.device)
    if left_out:
        print("; ".join(left_out), flush=True)
    rows, limits = command.take_rows(measure, options)
    command.share_checks(rows, len(options.malloc))
    print("\nTime of forward + .backward(); above 1, the other is faster than torch.\n" + times_table(rows))
    print(
        "\nMB of new tensors a step holds at its peak; the least are gradients and dW in float32.\n" + bytes_table(rows)
    )
    print("\nLargest errors against float64.\n" + errors_table(rows))
    saturated = [row for row in rows if "over_usual" in row["providers"][BASELINE]]
    if saturated:
        print("\nTime with saturated logits over the time with usual ones.\n" + saturated_table(saturated))
    narrow = [row for row in rows if "chunk_errors" in row]
    if narrow:
        print("\nError of dweight by the number of chunks.\n" + chunks_table(narrow))
    if options.json:
        print(f"\nwritten: {command.save('output', run | {'ceilings': limits, 'rows': rows}, options)}")
    return int(command.any_wrong(rows, (OURS,)))
