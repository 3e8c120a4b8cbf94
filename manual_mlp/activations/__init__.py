"""Activations as data: f, f′ and f″ of each, found by name, by nn module or by record.

Each that is known by name is an attribute here: the function that makes it.

Example::

    sine = manual_mlp.activations.sin(30.0)  # the name "sin" stands for sin(1.0)
    assert manual_mlp.Dense(2, 64, sine).activation is sine
"""

from typing import TYPE_CHECKING

from manual_mlp.activations import kinks, monotone, nonmonotone, registry  # noqa: F401
from manual_mlp.activations.kinks import IDENTITY
from manual_mlp.activations.record import Activation
from manual_mlp.activations.registry import Entrywise, get, names, register, to_module

__all__ = ["IDENTITY", "Activation", "Entrywise", "get", "names", "register", "to_module", *names()]

# Type checkers read the functions themselves, and Python the table in which they are listed.
if TYPE_CHECKING:
    from manual_mlp.activations.kinks import *  # noqa: F403
    from manual_mlp.activations.monotone import *  # noqa: F403
    from manual_mlp.activations.nonmonotone import *  # noqa: F403
else:

    def __getattr__(name: str) -> registry.Factory:
        if name in registry.ENTRIES:
            return registry.ENTRIES[name].make
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

    def __dir__() -> list[str]:
        return sorted({*__all__, *names()})
