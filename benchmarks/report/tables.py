"""Tables of layers, heads, networks and transforms, from what the commands measured."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from benchmarks.command import interval
from benchmarks.layers import BASELINE, OURS
from benchmarks.network.providers import AUTOGRAD
from benchmarks.report.runs import Run

Row = Mapping[str, Any]
MALLOCS = ("default", "tuned")
CHUNKED = "torch chunked"
FEW = 5  # rounds: below it a figure is marked


def markdown(titles: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    """Write a table as the documents have it, without the columns in which nothing was measured."""
    whole = [titles, *lines]
    measured = [k for k in range(len(titles)) if any(line[k] != "–" for line in whole[1:])]
    cells = [[line[k] for k in measured] for line in whole]
    return "\n".join(f"| {' | '.join(line)} |" for line in cells).replace("|\n", f"|\n|{'---|' * len(measured)}\n", 1)


def grouped(rows: Sequence[Row], *keys: str) -> dict[tuple[Any, ...], dict[tuple[int, str], Row]]:
    """Gather the rows of a case, by threads and malloc."""
    found: dict[tuple[Any, ...], dict[tuple[int, str], Row]] = {}
    for row in rows:
        found.setdefault(tuple(row[key] for key in keys), {})[row["threads"], row["malloc"]] = row
    return found


def pair(of: Mapping[tuple[int, str], Row], threads: int, read: Callable[[Row], float]) -> str:
    """Write a figure under each malloc."""
    return ", ".join(figure(of[threads, m], read) for m in MALLOCS if (threads, m) in of) or "–"


def figure(row: Row, read: Callable[[Row], float]) -> str:
    """Write a figure with two digits, and mark one of few rounds."""
    return f"{read(row):.2f}{'~' if row.get('rounds', FEW) < FEW else ''}"


def ratio(name: str, against: str = BASELINE) -> Callable[[Row], float]:
    """Read how many times longer a peer takes than a provider."""

    def read(row: Row) -> float:
        provider = row["providers"][name]
        found: list[float] = provider["ratio"] if against == BASELINE else provider["ratios"][against]
        return found[0]

    return read


def first(of: Mapping[tuple[int, str], Row]) -> Row:
    """Return the row of one thread and the default malloc, or what comes nearest."""
    return of[min(of)]


def kept(provider: Row) -> float:
    """Read what a provider keeps for backward, in bytes."""
    counts = provider["kept_bytes"]
    return float(counts["total"] + counts["attributes"])


def megabytes(count: float) -> str:
    """Write bytes in MB with two digits or more."""
    found = count / 1e6
    return f"{found:.0f}" if found >= 10 else f"{found:.1f}" if found >= 1 else f"{found:.2f}"


def micros(time: float) -> str:
    """Write µs with three digits or so."""
    return f"{time:,.0f}" if time >= 10 else f"{time:.1f}"


def milliseconds(provider: Row) -> str:
    """Write a median in ms with three digits or so."""
    found = provider["median_us"] / 1e3
    return f"{found:,.0f}" if found >= 10 else f"{found:.1f}" if found >= 1 else f"{found:.2f}"


def dense(run: Run) -> str:
    """Lay out one layer: a line for each shape and activation."""
    lines = []
    for (case, activation), of in grouped(run["rows"], "case", "activation").items():
        both = first(of)["providers"]
        lines.append(
            (
                case,
                activation,
                f"{both[BASELINE]['median_us']:,.0f}",
                interval(both[OURS]["extra_us"], "+,.0f").replace("+0", "0").replace("-0", "0"),
                *(pair(of, threads, ratio(OURS)) for threads in (1, 2)),
                ", ".join(f"{kept(both[name]) / 1e3:,.0f}" for name in (BASELINE, OURS)),
            )
        )
    titles = ("N × D_in → D_out", "f", "torch µs", "ours − torch µs", "1 thread", "2 threads", "kept kB: torch, ours")
    return markdown(titles, lines)


def second_order(run: Run) -> str:
    """Lay out steps with a derivative in their loss: a line for each kind and width."""
    found = grouped(run["rows"], "case", "width")
    kinds = list(dict.fromkeys(case for case, _ in found))
    lines = []
    for (case, width), of in sorted(found.items(), key=lambda item: (kinds.index(item[0][0]), item[0][1])):
        one = first(of)["providers"]
        lines.append(
            (
                case,
                str(width),
                f"{one[BASELINE]['median_us'] / 1e3:.1f}",
                *(pair(of, threads, ratio(OURS)) for threads in (1, 2)),
                f"{one['differentiable']['ratio'][0]:.2f}",
                ", ".join(f"{kept(one[name]) / 1e6:.1f}" for name in (BASELINE, OURS)),
            )
        )
    titles = ("step", "width", "torch ms", "1 thread", "2 threads", "differentiable", "kept MB: torch, ours")
    return markdown(titles, lines)


def peaks(of: Mapping[tuple[int, str], Row], name: str) -> str:
    """Write the peak of a provider in MB; for each number of threads where that makes 10 MB."""
    found = {
        threads: row["providers"][name]["peak_bytes"] for (threads, malloc), row in of.items() if malloc == "default"
    }
    if max(found.values()) - min(found.values()) < 1e7:
        return megabytes(found[min(found)])
    return ", ".join(
        f"{megabytes(peak)} ({t} thread)" if t == 1 else f"{megabytes(peak)} ({t})" for t, peak in found.items()
    )


def output(run: Run) -> str:
    """Lay out the loss of an output layer: a line for each shape and dtype; in brackets, torch's chunked one."""
    lines = []
    for of in grouped([row for row in run["rows"] if not row["saturated"]], "case").values():
        row = first(of)
        ratios = [pair(of, threads, ratio(OURS)) for threads in (1, 2)]
        if all(CHUNKED in other["providers"] for other in of.values()):
            for k, threads in enumerate((1, 2)):
                each = pair(of, threads, ratio(CHUNKED))
                ratios[k] += f" ({', '.join(dict.fromkeys(each.split(', ')))})" * (each != "–")
        n, d, v = row["shape"]
        lines.append(
            (
                f"{n}×{d}→{v}",
                row["dtype"],
                milliseconds(row["providers"][BASELINE]),
                *ratios,
                f"{peaks(of, BASELINE)}, {peaks(of, OURS)}",
            )
        )
    return markdown(("N × D → V", "dtype", "torch ms", "1 thread", "2 threads", "peak MB: torch, ours"), lines)


def network(run: Run) -> str:
    """Lay out networks, a line a case: ``backprop`` against eager and compile, the autograd path against eager."""
    lines = []
    for (case,), of in grouped(run["rows"], "case").items():
        row = first(of)
        compiled = all("compile" in other["providers"] for other in of.values())
        peaks = [megabytes(row["providers"][name]["peak_bytes"]) for name in (BASELINE, OURS)]
        lines.append(
            (
                case,
                milliseconds(row["providers"][BASELINE]),
                *(pair(of, threads, ratio(OURS)) for threads in (1, 2)),
                *(pair(of, threads, ratio(OURS, "compile")) if compiled else "–" for threads in (1, 2)),
                *(pair(of, threads, ratio(AUTOGRAD)) for threads in (1, 2)),
                ", ".join(peaks),
            )
        )
    titles = (
        "network", "torch ms", "1 thread", "2 threads", "over compile: 1", "2", "autograd path: 1", "2",
        "peak MB: torch, ours",
    )  # fmt: skip
    return markdown(titles, lines)


def transforms(run: Run) -> str:
    """Lay out transforms: a line for each transform, net and activation."""
    lines = [
        (
            case,
            net,
            activation,
            f"{first(of)['providers'][BASELINE]['median_us']:,.0f}",
            *(pair(of, threads, ratio(OURS)) for threads in (1, 2)),
        )
        for (case, net, activation), of in grouped(run["rows"], "case", "net", "activation").items()
    ]
    return markdown(("transform", "net", "f", "torch µs", "1 thread", "2 threads"), lines)
