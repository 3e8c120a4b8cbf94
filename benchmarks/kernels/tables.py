"""What was found, as tables on a terminal."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from benchmarks import command


def right(found: Mapping[str, Any]) -> str:
    """Lay out the errors: a line a kernel and dtype; then what is wrong, and what is left out."""
    titles = ("what", "dtype", "cases", "largest error", "torch's")
    lines = [
        (row["what"], row["dtype"], str(row["cases"]), f"{row['error']:.1e}", f"{row['torch_error']:.1e}")
        for row in found["rows"]
    ]
    more = [
        "WRONG {what}, {dtype}: {error:.1e} where torch has {torch_error:.1e}, {case}".format(**one)
        for one in found["wrong"]
    ]
    more += ["DID NOT RUN {dtype}, {case}: {why}".format(**one) for one in found["failed"]]
    more += ["no room for {dtype}, {case}: {why}".format(**one) for one in found["no_room"]]
    more += [f"left out: {dtype} ({why})" for dtype, why in found["left_out"].items()]
    return "\n".join([command.table(titles, lines), *more])


def timed(rows: Sequence[Mapping[str, Any]]) -> str:
    """Lay out the times: a line a provider."""
    titles = ("case", "provider", "median µs", "torch/it [95 %]", "of the floor", "error", "")
    return command.table(titles, [line for row in rows for line in _providers(row)])


def _providers(row: Mapping[str, Any]) -> Iterator[tuple[str, ...]]:
    case = row["case"]
    for name, provider in row["providers"].items():
        error = f"{provider['relative_error']:.1e}" if provider["error"] else "–"
        note = "WRONG" if provider["wrong"] else ""
        yield (
            case,
            name,
            f"{provider['median_us']:,.1f}",
            command.interval(provider["ratio"], ".2f"),
            f"{provider['floor_share']:.0%}",
            error,
            ", ".join(filter(None, (note, "busy" if row["busy"] and case else ""))),
        )
        case = ""


def compiled(found: Mapping[str, Any]) -> str:
    """Lay out what each kernel takes, and the model's time beside what was measured."""
    if "left_out" in found:
        return f"left out: {found['left_out']}"
    titles = (
        "case", "form", "kernel", "registers", "spilled B", "shared KB", "wgmma", "instructions", "blocks",
        "by the model µs", "measured µs",
    )  # fmt: skip
    lines, last = [], ""
    for row in found["rows"]:
        case, last = row["case"] if row["case"] != last else "", row["case"]
        for k, kernel in enumerate(row["kernels"]):
            counted = [kernel[name] for name in ("registers", "spill_bytes")]
            products = f"{kernel['wgmma']}" + (f" ({kernel['mma']})" if kernel["mma"] else "")
            measured = "" if k or "measured_us" not in row else f"{row['measured_us']:,.1f}"
            lines.append(
                (
                    *(("", "") if k else (case, row["form"])),
                    kernel["kernel"],
                    *map(str, counted),
                    f"{kernel['shared_kb']:.0f}",
                    products + (" in turn" if kernel["serialised"] else ""),
                    str(kernel["instructions"]),
                    str(kernel["model"]["blocks"]),
                    f"{kernel['model']['us']:.0f}",
                    measured,
                )
            )
    return command.table(titles, lines)


def decided(found: Sequence[Mapping[str, Any]]) -> str:
    """Lay out the questions, the cases that answer them, and the answers."""
    titles = ("question", "case", "µs", "answer")
    lines, last = [], ""
    for one in found:
        micros = " / ".join(f"{us:,.1f}" for us in one["us"].values())
        lines.append((one["question"] if one["question"] != last else "", one["case"], micros, one["answer"]))
        last = one["question"]
    return command.table(titles, lines)
