"""The formulas in C++, where ``python -m manual_mlp build`` has built them: ``doors`` is the module, or None."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NoReturn

from manual_mlp.engines.choice import CHOICE, chosen
from manual_mlp.engines.native import handed
from manual_mlp.engines.native.load import Missing, find


class _Wanting:
    """Doors that raise, where ``MANUAL_MLP_ENGINE`` asks for what there is not; the import itself succeeds."""

    def __getattr__(self, name: str) -> NoReturn:
        chosen()
        raise RuntimeError(f"expected the native engine, for {CHOICE}=native, got none: {_reason}")


def _start() -> tuple[Any, str | None]:
    """Load native if it is wanted: the doors, and why they are not native's."""
    try:
        choice = chosen()
    except ValueError as error:
        return _Wanting(), str(error)
    if choice == "plain":
        return None, f"{CHOICE}=plain asks for plain"
    try:
        found = find()
        handed.over(found)
        return found, None
    except Missing as error:
        return _Wanting() if choice else None, str(error)


doors: Any
_reason: str | None
doors, _reason = _start()


def why() -> str | None:
    """Say why native is off; None where it is on.

    Example::

        print(why() or "the native engine computes")
    """
    return _reason


@contextmanager
def without() -> Iterator[None]:
    """Let plain compute meanwhile, in all threads.

    Example::

        h, w = torch.randn(5, 4), torch.randn(3, 4)
        with without():
            y = manual_mlp.dense(h, w)  # by Python
        assert torch.allclose(y, manual_mlp.dense(h, w), atol=1e-6)
    """
    global doors
    before, doors = doors, None
    try:
        yield
    finally:
        doors = before
