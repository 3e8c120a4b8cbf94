"""The section of docs/figures.md on GPUs: each card by itself, with its ceilings and what was measured there."""

from collections import Counter
from collections.abc import Mapping, Sequence

from benchmarks.report.gpu.tables import TABLES, Table
from benchmarks.report.runs import Run, laid_out, told

NAME = "gpu"  # of its marker
NOTHING = "Nothing has been measured on a GPU yet"
READING = """\
Speed is torch's time over ours, with its 95 % interval, or ~ where fewer than five rounds were timed. The ceiling is
the best rate of the card's products in a row's dtype: at 100 % a step would take what its products alone take there.
The host's time is a call's until all of it is enqueued, the card not waited for: where that is near the whole time, the
card waits for Python."""
CEILINGS = {
    "copy_gbs": "copy {:,.0f} GB/s",
    "launch_us": "a launch {:.1f} µs",
    "empty_call_us": "an empty autograd call {:.1f} µs",
}
PRODUCTS = "gflops_"


def section(cards: Mapping[str, Mapping[str, Run]]) -> str:
    """Lay out what was measured on GPUs, by the model of each; without any, say so."""
    if not cards:
        return f"{NOTHING}: [what an owner of one can run](gpu.md)."
    return "\n\n".join([READING, *(of_card(card, runs) for card, runs in cards.items())])


def of_card(card: str, runs: Mapping[str, Run]) -> str:
    """Lay out one card: its ceilings, what is missing, and its tables."""
    parts, missing = [], []
    for table in TABLES.values():
        shown = [runs[of] for of in table.commands if of in runs]
        laid = laid_out(f"{table.title} on {card}", table.write, *shown) if shown else ""
        if laid:
            parts.append(f"#### {table.title}\n\n{told(shown)}\n\n{laid}")
        else:
            missing.append(table)
    about = (ceilings([*runs.values()]), day(runs["day"]) if "day" in runs else "", left(missing))
    return "\n\n".join([f"### {card}", *filter(None, about), *parts])


def ceilings(runs: Sequence[Run]) -> str:
    """Say the best that a card was seen to do, whichever run it was in."""
    limits = [limit for run in runs for by_threads in run.get("ceilings", {}).values() for limit in by_threads.values()]
    names = {name: None for limit in limits for name in limit}
    best = {
        name: (min if name.endswith("_us") else max)(limit[name] for limit in limits if name in limit) for name in names
    }
    rates = [f"{name.removeprefix(PRODUCTS)} {best[name] / 1e3:,.4g}" for name in names if name.startswith(PRODUCTS)]
    found = [f"products in TFLOP/s: {', '.join(rates)}"] if rates else []
    found += [form.format(best[name]) for name, form in CEILINGS.items() if name in best]
    return f"Its ceilings: {'; '.join(found)}." if found else ""


def day(run: Run) -> str:
    """Say how the stages of `python -m benchmarks day` ended, and why those that did not end well."""
    counts = Counter(row["status"] for row in run["rows"])
    total = ", ".join(f"{count} {status}" for status, count in counts.items())
    bad = [
        f"`{row['stage']}`: {row['status']}" + (f" (`{row['why'].replace('`', '')}`)" if row.get("why") else "")
        for row in run["rows"]
        if row["status"] != "ok"
    ]
    return f"Stages of `python -m benchmarks day`, {run['date'][:10]}: {'; '.join([total, *bad])}."


def left(tables: Sequence[Table]) -> str:
    """Say which tables were not measured."""
    return f"Not measured there: {'; '.join(table.title for table in tables)}." if tables else ""
