"""Which name was meant: the known one that is nearest to what came."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

_LONGEST = 100  # characters of a name


def nearest(got: object, known: Iterable[str]) -> str | None:
    """Return the known name that is nearest to what came, or None where none is near.

    Capitals, and hyphens for underscores, make no difference; a name is near to its beginning.
    """
    if not isinstance(got, str) or not 0 < len(got) <= _LONGEST:
        return None
    names = {_plain(name): name for name in reversed([*known])}
    near = difflib.get_close_matches(_plain(got), names, 1) or [n for n in [*names][::-1] if n.startswith(_plain(got))]
    return names[near[0]] if near else None


def did_you_mean(got: object, known: Iterable[str], before: str = "") -> str:
    """Return the end of an error, "; did you mean relu?", or nothing where no known name is near to what came.

    Args:
        before: what stands before every name, such as the hyphens of a flag.
    """
    name = nearest(got.removeprefix(before) if isinstance(got, str) else got, (n.removeprefix(before) for n in known))
    return "" if name is None else f"; did you mean {before}{name}?"


def _plain(name: str) -> str:
    return name.lower().replace("-", "_")
