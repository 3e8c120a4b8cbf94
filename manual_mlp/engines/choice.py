"""Which engine the user asks for: the one place that reads ``MANUAL_MLP_ENGINE``."""

from __future__ import annotations

import os

CHOICE = "MANUAL_MLP_ENGINE"


def chosen() -> str:
    """Return "plain", "native", or "" where nothing is asked for.

    Raises:
        ValueError: the variable names another engine.
    """
    choice = os.environ.get(CHOICE, "")
    if choice not in ("", "plain", "native"):
        raise ValueError(f"expected {CHOICE} to be plain, native or unset, got {choice!r}")
    return choice
