"""What the measured rows decide of kernels to come."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from benchmarks.kernels.cases import (
    FIELD,
    FIELD_4,
    FIELD_KEPT,
    FORMS,
    HALF_TILE,
    MEMORY,
    MEMORY_4,
    NARROW,
    NARROW_MEMORY,
    REGISTERS,
    Variant,
    captured_name,
)
from benchmarks.kernels.forms import Shape, Task
from benchmarks.kernels.model import row_bytes

Row = Mapping[str, Any]
# A tile of half the rows does half of the work in as many steps. In all it takes as long where instructions are what
# a block waits for, and twice as long where each product waits for the one before it.
CHAINED = 1.5


class Times(NamedTuple):
    """The times of one row by form, in µs, and of each over that of the first, with its interval."""

    row: Row
    us: dict[str, float]
    over_first: dict[str, list[float]]

    @property
    def first(self) -> str:
        """Name the form that the others are held beside."""
        return next(iter(self.us))


def times_of(row: Row, forms: Sequence[str]) -> Times | None:
    """Read the times of forms, captured, so without their launches, if all were; None if one form alone has run."""
    providers = row["providers"]
    there = [form for form in forms if form in providers]
    if not there or there[0] != forms[0] or len(there) < min(2, len(forms)):
        return None
    bare = all(captured_name(form) in providers for form in there)
    names = {form: captured_name(form) if bare else form for form in there}
    over = {form: providers[names[there[0]]]["ratios"][names[form]] for form in there[1:]}
    return Times(row, {form: providers[name]["median_us"] for form, name in names.items()}, over)


def quickest(times: Times) -> str:
    """Name what is quickest: the first form, unless another is quicker by more than its interval."""
    name, (_, _, high) = min(times.over_first.items(), key=lambda item: item[1][0])
    if high < 1:
        return name
    close = [other for other, (_, low, _) in times.over_first.items() if low <= 1]
    return times.first + (f", or as good: {'; '.join(close)}" if close else "")


def waits_for(times: Times) -> str:
    """Say what a block waits for, by how much longer half a tile takes."""
    ((value, _, _),) = times.over_first.values()
    return f"{'its chain of products' if value >= CHAINED else 'its instructions'}: {value:.2f} times the time"


def adds(times: Times) -> str:
    """Say how many bytes a second the L2 cache adds, at least: what a step adds there, over the whole of its time."""
    row = times.row
    variant = Variant("step", Shape(tuple(row["sizes"])), Task(), FORMS[times.first])
    return f"{row['rows'] * row_bytes(variant)[1] / times.us[times.first] / 1e6:.2f} TB/s or more"


def takes(times: Times) -> str:
    """Say how long the shares take, and by what share of a copy's rate."""
    return f"{times.us[times.first]:.1f} µs, {times.row['floor_us'] / times.us[times.first]:.0%} of a copy's rate"


# What is asked, of which kind of row and forms: of the first, or of the first beside the others.
QUESTIONS: tuple[tuple[str, str, tuple[str, ...], Callable[[Times], str]], ...] = (
    ("sums in registers or in memory?", "step", (REGISTERS, MEMORY, MEMORY_4), quickest),
    ("sums in registers or in memory?", "step", (NARROW, NARROW_MEMORY), quickest),
    ("how fast does the L2 cache add?", "step", (MEMORY,), adds),
    ("what does a block wait for?", "step", (REGISTERS, HALF_TILE), waits_for),
    ("rows and warps of the second order?", "backward", (FIELD, FIELD_4), quickest),
    ("compute z again, or keep f′ and f″?", "backward", (FIELD, FIELD_KEPT), quickest),
    ("how long do a block's shares take to add up?", "sums", (REGISTERS,), takes),
    ("and those of two blocks a multiprocessor?", "sums", (MEMORY,), takes),
)


def decide(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """Answer the questions that the rows can, one by one and row by row."""
    found = []
    for question, kind, forms, answer in QUESTIONS:
        for row in rows:
            times = times_of(row, forms) if row["kind"] == kind else None
            if times is not None:
                about = {"question": question, "case": row["case"], "answer": answer(times)}
                found.append(about | {"us": times.us, "over_first": times.over_first})
    return found
