"""Tables of the native engine, of compiled calls and of dropout."""

from collections.abc import Callable

from benchmarks.compile.rows import EAGER
from benchmarks.layers import BASELINE, OURS
from benchmarks.native_rows import PLAIN, PRODUCTS
from benchmarks.report.runs import Run
from benchmarks.report.tables import Row, first, grouped, markdown, megabytes, micros, milliseconds, pair, ratio


def both_peaks(row: Row, *names: str) -> str:
    """Write the peaks of providers in MB."""
    return ", ".join(megabytes(row["providers"][name]["peak_bytes"]) for name in names)


def layers(run: Run) -> str:
    """Lay out one layer, by ``.backward()`` and by ``torch.autograd.grad``: a line for each shape and activation."""
    ways = [
        grouped([row for row in run["rows"] if row["group"] == group], "case", "of")
        for group in ("layer", "layer by grad")
    ]
    lines = [
        (
            case,
            activation,
            micros(first(of)["providers"][BASELINE]["median_us"]),
            *(pair(found[case, activation], threads, ratio(OURS)) for found in ways for threads in (1, 2)),
            f"{first(of)['providers'][OURS]['ratios'][PLAIN][0]:.2f}",
        )
        for (case, activation), of in ways[0].items()
    ]
    titles = (
        "N × D_in → D_out", "f", "torch µs", "`.backward()`, 1 thread", "2 threads", "`autograd.grad`, 1 thread",
        "2 threads", "over plain",
    )  # fmt: skip
    return markdown(titles, lines)


def native(*groups: str) -> Callable[[Run], str]:
    """Make the writer of other groups: a line for each group, case and activation or loss."""

    def write(run: Run) -> str:
        rows = [row for row in run["rows"] if row["group"] in groups]
        lines = []
        for (group, case, what), of in grouped(rows, "group", "case", "of").items():
            row = first(of)
            lines.append(
                (
                    *([group] if len(groups) > 1 else []),
                    case,
                    *([what] if rows[0]["of"] else []),
                    milliseconds(row["providers"][BASELINE]),
                    *(pair(of, threads, ratio(OURS)) for threads in (1, 2)),
                    f"{row['providers'][PRODUCTS]['ratio'][0]:.2f}",
                    f"{row['providers'][OURS]['ratios'][PLAIN][0]:.2f}",
                    both_peaks(row, BASELINE, OURS),
                )
            )
        about = [*(["by"] if len(groups) > 1 else []), "case", *(["f or loss"] if rows[0]["of"] else [])]
        titles = ("torch ms", "1 thread", "2 threads", "products alone", "over plain", "peak MB: torch, ours")
        return markdown((*about, *titles), lines)

    return write


def compiled(run: Run) -> str:
    """Lay out both compiled: a line for each case and mode."""
    found = grouped(run["rows"], "group", "case", "of", "mode", "way")
    lines = []
    for group, case, what, mode in dict.fromkeys(key[:-1] for key in found):
        step, forward = (found.get((group, case, what, mode, way), {}) for way in ("step", "forward"))
        row = first(step or forward)
        lines.append(
            (
                group,
                case,
                what,
                mode,
                milliseconds(row["providers"][BASELINE]),
                *(pair(way, threads, ratio(OURS)) for way in (step, forward) for threads in (1, 2)),
                f"{row['providers'][OURS]['ratios'][EAGER][0]:.2f}",
                both_peaks(row, BASELINE, OURS),
            )
        )
    titles = (
        "module", "case", "f or loss", "mode", "torch ms", "step, 1 thread", "2 threads", "forward, 1 thread",
        "2 threads", "over our eager", "peak MB: torch, ours",
    )  # fmt: skip
    return markdown(titles, lines)


def dropout(run: Run) -> str:
    """Lay out dropout: a line for each case and way."""
    lines = [
        (
            case,
            way,
            milliseconds(first(of)["providers"][BASELINE]),
            *(pair(of, threads, ratio(OURS)) for threads in (1, 2)),
        )
        for (case, way), of in grouped(run["rows"], "case", "way").items()
    ]
    return markdown(("case", "what", "torch ms", "1 thread", "2 threads"), lines)
