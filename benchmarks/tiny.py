"""A dry run: every case and provider of a command, but so small that a CPU takes seconds in all."""

from math import isqrt
from typing import Any

SECONDS = 1e-3  # a row


def shrunk(value: Any) -> Any:
    """Take the square root of every whole number in a size, a case or a setting, rounded down.

    So sizes keep their order, and cases that differ still do.
    """
    if isinstance(value, int) and not isinstance(value, bool):
        return isqrt(value)
    if isinstance(value, dict):
        return {name: shrunk(of) for name, of in value.items()}
    if isinstance(value, tuple):
        parts = [shrunk(of) for of in value]
        return type(value)(*parts) if hasattr(value, "_fields") else tuple(parts)
    return value
