"""How results stand in a file, as JSON whose changes can be read, and on a terminal."""

import json
from collections.abc import Sequence
from typing import Any


def layout(value: Any, depth: int = 3, pad: str = "") -> str:
    """Write JSON with five digits, open for three levels (file, command, rows) and one line an entry below."""
    if not (depth and value and isinstance(value, (dict, list))):
        rounded = json.loads(json.dumps(value), parse_float=lambda text: float(f"{float(text):.5g}"))
        return json.dumps(rounded, ensure_ascii=False)
    entries = [json.dumps(str(key)) + ": " for key in value] if isinstance(value, dict) else [""] * len(value)
    values = value.values() if isinstance(value, dict) else value
    lines = [f"{pad} {entry}{layout(item, depth - 1, pad + ' ')}" for entry, item in zip(entries, values, strict=True)]
    opened, closed = "{}" if isinstance(value, dict) else "[]"
    return f"{opened}\n" + ",\n".join(lines) + f"\n{pad}{closed}"


def table(titles: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Align the columns: the first to the left, the others to the right."""
    widths = [max(map(len, column)) for column in zip(titles, *rows, strict=True)]
    lines = [
        "  ".join(
            cell.ljust(w) if i == 0 else cell.rjust(w) for i, (cell, w) in enumerate(zip(row, widths, strict=True))
        )
        for row in [titles, *rows]
    ]
    return "\n".join(line.rstrip() for line in lines)
