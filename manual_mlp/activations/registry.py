"""The one table of activations: who is added to it is known by name, by module, to every command and to every test."""

import inspect
import keyword
import re
import sys
from ast import literal_eval
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import wraps
from typing import Any, ParamSpec, overload

from torch import Tensor, nn

from manual_mlp.activations.record import Activation
from manual_mlp.nearest import did_you_mean

P = ParamSpec("P")
Factory = Callable[..., Activation]
# What a line of a factory's docstring may begin with.
_FORMULA = re.compile(r"^ *(f|f′|f″|f′ of y|∂f′/∂y|where)(?: =|(?<=where)) (.+)$", re.MULTILINE)


@dataclass(frozen=True, eq=False)
class Entry:
    """Hold what is known of an activation: the arguments of :func:`register`, and what its factory has made."""

    make: Factory
    module: type[nn.Module] | None
    source: str | None
    made: dict[tuple[Any, ...], Activation]
    default: Activation

    @property
    def parameters(self) -> tuple[str, ...]:
        """The names of the factory's arguments."""
        return tuple(inspect.signature(self.make).parameters)

    @property
    def formulas(self) -> dict[str, str]:
        """The lines of the factory's docstring that are a formula, by what stands left of the sign."""
        return dict(_FORMULA.findall(inspect.getdoc(self.make) or ""))


ENTRIES: dict[str, Entry] = {}


@overload
def register(make: Callable[P, Activation], /) -> Callable[P, Activation]: ...
@overload
def register(
    *, module: type[nn.Module] | None = None, source: str | None = None
) -> Callable[[Callable[P, Activation]], Callable[P, Activation]]: ...
def register(
    make: Callable[..., Activation] | None = None,
    /,
    *,
    module: type[nn.Module] | None = None,
    source: str | None = None,
) -> Any:
    """List an activation under the name of the function that makes it.

    The name is then known wherever a name is taken, in this process: also to ``--activation`` of ``train.py`` and of
    ``python -m manual_mlp explain`` where they are run in it. A run that was trained with it is read back where it is
    registered again. The activations of this package are listed in the same way.

    Args:
        make: a function that returns an :class:`~manual_mlp.Activation`; its arguments, if it has any, have defaults.
        module: the ``nn.Module`` class that computes the same, if there is one: it takes the same arguments in the same
            order, and keeps each as an attribute of that name.
        source: f as Python text, in ``z``, ``torch`` and the arguments, for ``export --to sequential``; not needed with
            a module of torch's own.

    Returns:
        The function to call in its place: equal arguments give the same object. With ``module`` or ``source`` alone, a
        decorator that does so.

    Raises:
        ValueError: the name or the module is taken, the name is no identifier, or an argument has no default.
        TypeError: it is no function, or returns something else.

    Example::

        @manual_mlp.activations.register(source="scale * z**3")
        def cube(scale=1.0):
            return manual_mlp.Activation(
                f=lambda z: scale * z**3, df=lambda z: 3 * scale * z**2, d2f=lambda z: 6 * scale * z
            )


        mlp = manual_mlp.MLP([784, 128, 10], "cube", output_activation=cube(0.5))
    """
    if make is None:
        return lambda make: _add(make, module, source)
    return _add(make, module, source)


def _add(make: Callable[P, Activation], module: type[nn.Module] | None, source: str | None) -> Callable[P, Activation]:
    if not callable(make):
        raise TypeError(f"expected a function that makes an Activation, got {type(make).__name__}")
    name = getattr(make, "__name__", repr(make))
    if not name.isidentifier() or keyword.iskeyword(name):
        raise ValueError(f"expected a function whose name is an identifier, got {name!r}")
    if name in ENTRIES or hasattr(sys.modules[__package__], name):
        raise ValueError(f"expected a name that is not yet known, got {name!r}")
    signature = inspect.signature(make)
    required = [p.name for p in signature.parameters.values() if p.default is p.empty]
    if required:
        raise ValueError(f"expected a default for every argument of {name}, got none for {', '.join(required)}")
    if module is not None and _of_module(module) is not None:
        raise ValueError(f"expected a module class that is not yet known, got {module.__name__}")

    made: dict[tuple[Any, ...], Activation] = {}

    @wraps(make)
    def factory(*args: P.args, **kwargs: P.kwargs) -> Activation:
        if not kwargs and args in made:
            return made[args]
        bound = signature.bind(*args, **kwargs)
        bound.apply_defaults()
        params = tuple(bound.arguments.values())
        if params not in made:
            made[params] = _signed(make(*args, **kwargs), name, params, factory)
        return made[params]

    ENTRIES[name] = Entry(factory, module, source, made, factory())  # type: ignore[call-arg]
    return factory


def _signed(activation: Activation, name: str, params: tuple[Any, ...], factory: Factory) -> Activation:
    """Write on a record what made it; one that another factory made stays what it is."""
    if not isinstance(activation, Activation):
        raise TypeError(f"expected {name} to return an Activation, got {type(activation).__name__}")
    if activation.maker is not None:
        return activation
    signed = replace(activation, name=name, params=params)
    object.__setattr__(signed, "maker", factory)
    if (factory.__module__ or "").startswith(f"{__package__}."):
        object.__setattr__(signed, "traced", signed.f)  # torch's own operations, whose derivatives are the record's
    with suppress(ValueError):  # of an infinite argument
        if _arguments(repr(signed)) == list(params):
            object.__setattr__(signed, "spelled", repr(signed))
    return signed


def _arguments(spelled: str) -> Any:
    return literal_eval(f"[{spelled.partition('(')[2][:-1]}]")


class Entrywise(nn.Module):
    """Apply an activation that has no class in ``torch.nn``.

    Shape:
        - Input: any.
        - Output: as the input.

    Example::

        softcap = manual_mlp.activations.softcap(30.0)
        assert Entrywise(softcap)(torch.tensor([1e6])).item() == 30
    """

    def __init__(self, activation: Activation) -> None:
        super().__init__()
        self.activation = activation

    def forward(self, input: Tensor) -> Tensor:
        return self.activation.f(input)

    def extra_repr(self) -> str:
        return repr(self.activation)


def names() -> tuple[str, ...]:
    """List the activations known by name.

    Example::

        assert {"relu", "gelu", "sin"} <= set(names())
    """
    return tuple(ENTRIES)


def get(activation: str | nn.Module | Activation | None) -> Activation:
    """Find the record of an activation.

    Args:
        activation: a name, an ``nn`` module (its parameters are honoured; ``inplace`` makes no
            difference), a record, or None for the identity.

    Raises:
        ValueError: the name is not known.
        TypeError: the module's class, or the type, is not known.

    Example::

        assert get("gelu") is get(torch.nn.GELU()) is manual_mlp.activations.gelu()
    """
    if isinstance(activation, Activation):
        return activation
    if activation is None:
        return ENTRIES["identity"].default
    if isinstance(activation, str):
        if activation not in ENTRIES:
            near = did_you_mean(activation, names())
            raise ValueError(f"expected an activation among {', '.join(names())}, got {activation!r}{near}")
        return ENTRIES[activation].default
    if isinstance(activation, Entrywise):
        return activation.activation
    if not isinstance(activation, nn.Module):
        raise TypeError(f"expected a name, an nn.Module, an Activation or None, got {type(activation).__name__}")
    # A subclass may compute something else, so only the class itself will do.
    entry = _of_module(type(activation))
    if entry is None:
        known = ", ".join(entry.module.__name__ for entry in ENTRIES.values() if entry.module is not None)
        hint = "another function without parameters can be an Activation"
        raise TypeError(f"expected an activation module among {known}, got {activation}; {hint}")
    if isinstance(activation, nn.ReLU6) and (activation.min_val, activation.max_val) != (0.0, 6.0):
        entry = ENTRIES["hardtanh"]  # its bounds can be set, and its forward asks for them
    return entry.make(*(getattr(activation, parameter) for parameter in entry.parameters))


def to_module(activation: Activation) -> nn.Module:
    """Make the ``nn`` module of an activation: torch's own where there is one.

    Example::

        assert isinstance(to_module(manual_mlp.activations.silu()), torch.nn.SiLU)
    """
    entry = entry_of(activation)
    if entry is not None and entry.module is not None:
        with suppress(AssertionError):  # nn.Hardtanh refuses bounds that are equal, which F.hardtanh takes
            return entry.module(*activation.params)
    return Entrywise(activation)


def of_spelled(spelled: str) -> Activation:
    """Find the record that a name and arguments spell, such as ``elu(1.0)``."""
    return ENTRIES[spelled.partition("(")[0]].make(*_arguments(spelled))


def entry_of(activation: Activation) -> Entry | None:
    """Find the entry whose factory made a record; None if it was made otherwise, or is no longer known."""
    entry = ENTRIES.get(activation.name)
    return entry if entry is not None and entry.make is activation.maker else None


def formulas_of(activation: Activation) -> dict[str, str]:
    """Return the formulas that stand in the docstring of a record's factory; of another name for it, if that has one.

    Their keys are f, f′, f″, "where", and "f′ of y" and "∂f′/∂y" if f′ is computed from y.
    """
    named = [entry for entry in ENTRIES.values() if entry.default is activation]
    entry = named[-1] if named else entry_of(activation)
    return {} if entry is None else entry.formulas


def parameters_of(activation: Activation) -> dict[str, Any]:
    """Return the numbers that a record's factory was given, by name."""
    entry = entry_of(activation)
    given = () if entry is None else zip(entry.parameters, activation.params, strict=True)
    return {name: value for name, value in given if isinstance(value, (int, float))}


def _of_module(kind: type[nn.Module]) -> Entry | None:
    return next((entry for entry in ENTRIES.values() if entry.module is kind), None)
