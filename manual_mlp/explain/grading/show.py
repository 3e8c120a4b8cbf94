"""What a learner is told: two matrices side by side, and what is the matter, in words."""

from __future__ import annotations

import itertools
import math

import torch
from torch import Tensor

from manual_mlp.explain.compare import shape
from manual_mlp.explain.formulas import MISTAKES
from manual_mlp.explain.grading.known import At, in_torch
from manual_mlp.explain.grading.search import Explanation, Found, factors
from manual_mlp.explain.writing import count, decimals, number

_WIDTH, _ROWS, _COLUMNS = 110, 6, 6
_APART = "    "
_MEANS = {
    "dW": (MISTAKES["mean-for-sum"].wrong, MISTAKES["mean-for-sum"].right),
    "dB": ("∂J/∂B = Σₙ δₙ / N", "∂J/∂B = Σₙ δₙ"),
    "dH": ("∂J/∂H = δ Wᵀ / N", "∂J/∂H = δ Wᵀ"),
}


def beside(name: str, value: Tensor, want: Tensor, allowed: Tensor) -> str:
    """Write a learner's matrix beside the right one, the entries that differ marked; of a large one a part.

    Args:
        allowed: the differences that count as none.
    """
    fits = value.shape == want.shape
    matrices = [_matrix(value), _matrix(want)]
    if any(matrix is None for matrix in matrices):
        return ""
    left, right = (matrix for matrix in matrices if matrix is not None)
    # Written so that NaN and infinity differ.
    differs = ~((left - right).abs() <= allowed) if fits else None
    digits = max(_digits(left), _digits(right))
    if differs is not None and (finite := (left - right).abs()[differs & left.isfinite()]).numel():
        digits = min(12, max(digits, 1 - math.floor(math.log10(float(finite.min())))))
    columns = _COLUMNS
    while True:
        pictures = [
            _lines(matrix, differs if matrix is left else None, digits, columns, differs) for matrix in (left, right)
        ]
        heads = [f"{name}, yours  {_shape(value)}", f"{name}, right  {_shape(want)}"]
        blocks = [[head, *lines] for head, lines in zip(heads, pictures, strict=True)]
        wide = max(map(len, blocks[0])) + len(_APART) + max(map(len, blocks[1]))
        if wide <= _WIDTH or columns <= 2:
            break
        columns -= 1
    side = max(map(len, blocks[0]))
    lines = [
        f"  {mine.ljust(side)}{_APART}{other}".rstrip() for mine, other in itertools.zip_longest(*blocks, fillvalue="")
    ]
    if differs is not None:
        wrong = int(differs.sum())
        lines.append(
            f"  {wrong:,} of {count(differs.numel(), 'entry')} {'differs' if wrong == 1 else 'differ'}, marked *."
        )
    if any(len(matrix) > _ROWS or matrix.shape[1] > columns for matrix in (left, right)):
        lines.append("  Not all rows and columns are shown.")
    return "\n".join(lines)


def _matrix(values: Tensor) -> Tensor | None:
    """Return at most two sides as a matrix."""
    if values.dim() > 2 or not values.numel():
        return None
    return values.reshape(1, -1) if values.dim() < 2 else values


def _digits(values: Tensor) -> int:
    finite = values[values.isfinite()]
    return max(1, decimals(finite)) if finite.numel() else 1


def _shape(values: Tensor) -> str:
    return "one number" if not values.dim() else shape(values)


def _picked(size: int, most: int, first: list[int]) -> list[int | None]:
    """Pick rows or columns: those that matter, then the first ones; None is a gap."""
    if size <= most:
        return [*range(size)]
    kept = sorted([*first, *(i for i in range(size) if i not in first)][: most - 1])
    shown: list[int | None] = []
    for before, i in zip([-1, *kept], kept, strict=False):
        shown += [None] * (i > before + 1) + [i]
    return shown + [None] * (kept[-1] < size - 1)


def _lines(values: Tensor, mark: Tensor | None, digits: int, most: int, differs: Tensor | None) -> list[str]:
    bad_rows, bad_columns = ([], []) if differs is None else (differs.any(1).tolist(), differs.any(0).tolist())
    rows = _picked(len(values), _ROWS, [i for i, bad in enumerate(bad_rows) if bad])
    columns = _picked(values.shape[1], most, [i for i, bad in enumerate(bad_columns) if bad])

    def cell(r: int | None, c: int | None) -> str:
        if r is None or c is None:
            return "… "
        value = float(values[r, c])
        text = number(value, digits) if math.isfinite(value) else str(value).replace("-", "−")
        return text + ("*" if mark is not None and mark[r, c] else " ")

    body = [[cell(r, c) for c in columns] for r in rows]
    widths = [max(map(len, column)) for column in zip(*body, strict=True)]
    return [" ".join(text.rjust(width) for text, width in zip(line, widths, strict=True)) for line in body]


def told(found: Explanation, at: At) -> tuple[str, ...]:
    """Say what each mistake is, and what should stand there."""
    by_name: dict[str, list[Found]] = {}
    for mistake in found:
        by_name.setdefault(mistake.row.name, []).append(mistake)
    hints: list[str] = []
    for name, mistakes in by_name.items():
        hint, why = _told(name, mistakes, at), mistakes[0].row.why
        hints.append(hint.removesuffix(f" {why}") if any(before.endswith(why) for before in hints) else hint)
    return tuple(hints)


def _told(name: str, mistakes: list[Found], at: At) -> str:
    by_factor: dict[float, list[Found]] = {}
    for mistake in mistakes:
        if mistake.factor is not None:
            by_factor.setdefault(mistake.factor, []).append(mistake)
    parts = [_multiple(factor, alike, at) for factor, alike in by_factor.items()]
    formulas = [mistake.row for mistake in mistakes if mistake.factor is None]
    # What is only returned says no more than the same mistake where it counts.
    for row in [row for row in formulas if not row.aside] or formulas:
        wrong, right = row.says(at.stored)
        begin, then = ("Likewise", "which") if parts else ("this is", "and")
        parts.append(f"{begin} {wrong}, {then} should be {right}." if right else f"{wrong}.")
    if name == "mean-for-sum":
        # The formula of the step that is wrong: of δ and what it is made of that of the gradient by W.
        of = next((step for step in ("dW", "dB", "dH") if any(step in mistake.steps for mistake in mistakes)), "dW")
        wrong, right = (in_torch(text) if at.stored else text for text in _MEANS[of])
        parts.append(f"As in {wrong}, where it should be {right}.")
    if name == "convention-swapped":
        made = "Hᵀδ, in the textbook's layout" if at.stored else "δᵀH, in PyTorch's layout"
        parts[0] = f"dW is {made}: {parts[0]}"
    why = "" if name == "constant-factor" else mistakes[0].row.why
    return f"{name}: {' '.join([*dict.fromkeys(parts), why])}".strip()


def _multiple(factor: float, alike: list[Found], at: At) -> str:
    """Say which multiple of what they should be some results are."""
    steps = [step for mistake in alike for step in mistake.steps]
    subject = f"{listed(steps)} {'is' if len(steps) == 1 else 'are'}"
    should = "what it should be" if len(steps) == 1 else "what they should be"
    if len(steps) > len(alike):
        should += ", alike: look where they come from"
    if factor == 0:
        return f"{subject} all zeros."
    if factor == -1:
        return f"{subject} −1 times {should}."
    mean = alike[0].row.name == "mean-for-sum"
    words = [word for word, usual in factors(at).items() if factor != 1 and usual == factor]
    if mean:
        everything = len(steps) > 1 or steps[0] in ("dY", "delta")
        words = [word for word in words if "N" in word and (everything or "D_out" not in word)]
    written = " = ".join(words[:2]) or f"{factor:.6g}".replace("-", "−")
    why = ""
    if mean:
        return f"{subject} {written} times {should}."
    if factor == 2:
        why = " J has a ½ in it, which cancels the 2 of the square."
    elif factor < 1 and words[:1] != ["1/2"] and words:
        why = " J is a sum, and nothing is averaged."
    return f"{subject} {written} times {should}.{why}"


def listed(names: tuple[str, ...] | list[str]) -> str:
    """Write names as in: dB, dW and dH."""
    return " and ".join(filter(None, (", ".join(names[:-1]), names[-1])))


def not_finite(name: str, value: Tensor) -> str:
    """Say how many entries are no finite numbers."""
    count_of = int((~torch.isfinite(value)).sum())
    return f"{count_of} of {count(value.numel(), 'entry')} of {name} {'is' if count_of == 1 else 'are'} not finite."
