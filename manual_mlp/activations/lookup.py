"""Find an activation by its name or nn module, and the nn module of an activation."""

import inspect
from collections.abc import Callable
from contextlib import suppress

from torch import Tensor, nn

from manual_mlp.activations.catalogue import identity
from manual_mlp.activations.record import FACTORIES, Activation, P
from manual_mlp.activations.record import register as add

IDENTITY = identity()
_RECORDS = {name: factory() for name, factory in FACTORIES.items()}

# A factory's parameters are named as the module's attributes, in the order of the module's arguments.
_MODULES: dict[str, type[nn.Module]] = {
    "identity": nn.Identity,
    "relu": nn.ReLU,
    "leaky_relu": nn.LeakyReLU,
    "elu": nn.ELU,
    "celu": nn.CELU,
    "selu": nn.SELU,
    "sigmoid": nn.Sigmoid,
    "logsigmoid": nn.LogSigmoid,
    "tanh": nn.Tanh,
    "softplus": nn.Softplus,
    "softsign": nn.Softsign,
    "hardtanh": nn.Hardtanh,
    "relu6": nn.ReLU6,
    "hardsigmoid": nn.Hardsigmoid,
    "hardswish": nn.Hardswish,
    "gelu": nn.GELU,
    "silu": nn.SiLU,
    "mish": nn.Mish,
}
_NAMES = {module: name for name, module in _MODULES.items()}
_PARAMETERS = {name: tuple(inspect.signature(FACTORIES[name]).parameters) for name in _MODULES}


class Entrywise(nn.Module):
    """Apply an activation that has no class in ``torch.nn``.

    Shape:
        - Input: any.
        - Output: as the input.
    """

    def __init__(self, activation: Activation) -> None:
        super().__init__()
        self.activation = activation

    def forward(self, input: Tensor) -> Tensor:
        return self.activation.f(input)

    def extra_repr(self) -> str:
        return repr(self.activation)


def names() -> tuple[str, ...]:
    """List the activations known by name."""
    return tuple(_RECORDS)


def register(make: Callable[P, Activation]) -> Callable[P, Activation]:
    """List an activation of your own under the name of the function that makes it.

    The name is then known wherever a name is taken, in this process: also to ``--activation`` of ``train.py`` and of
    ``python -m manual_mlp explain`` where they are run in it. A run that was trained with it is read back where it is
    registered again.

    Args:
        make: a function that returns an :class:`Activation`; its arguments, if it has any, have defaults.

    Returns:
        The function to call in its place: equal arguments give the same object.

    Raises:
        ValueError: the name is taken or no identifier, or an argument has no default.
        TypeError: it is no function, or returns something else.

    Example::

        @manual_mlp.activations.register
        def cube(scale=1.0):
            return manual_mlp.Activation(
                f=lambda z: scale * z**3, df=lambda z: 3 * scale * z**2, d2f=lambda z: 6 * scale * z
            )


        mlp = manual_mlp.MLP([784, 128, 10], "cube", output_activation=cube(0.5))
    """
    if not callable(make):
        raise TypeError(f"expected a function that makes an Activation, got {type(make).__name__}")
    name = getattr(make, "__name__", repr(make))
    if not name.isidentifier():
        raise ValueError(f"expected a function whose name is an identifier, got {name!r}")
    if name in FACTORIES:
        raise ValueError(f"expected a name that is not yet known, got {name!r}")
    required = [p.name for p in inspect.signature(make).parameters.values() if p.default is p.empty]
    if required:
        raise ValueError(f"expected a default for every argument of {name}, got none for {', '.join(required)}")
    made = make()  # type: ignore[call-arg]
    if not isinstance(made, Activation):
        raise TypeError(f"expected {name} to return an Activation, got {type(made).__name__}")
    factory = add(make)
    _RECORDS[name] = factory()  # type: ignore[call-arg]
    return factory


def get(activation: str | nn.Module | Activation | None) -> Activation:
    """Find the record of an activation.

    Args:
        activation: a name, an ``nn`` module (its parameters are honoured; ``inplace`` makes no
            difference), a record, or None for the identity.

    Raises:
        ValueError: the name is not known.
        TypeError: the module's class, or the type, is not known.
    """
    if isinstance(activation, Activation):
        return activation
    if activation is None:
        return IDENTITY
    if isinstance(activation, str):
        if activation not in _RECORDS:
            raise ValueError(f"expected an activation among {', '.join(names())}, got {activation!r}")
        return _RECORDS[activation]
    if isinstance(activation, Entrywise):
        return activation.activation
    # A subclass may compute something else, so only the class itself will do.
    if type(activation) in _NAMES:
        name = _NAMES[type(activation)]
        if isinstance(activation, nn.ReLU6) and (activation.min_val, activation.max_val) != (0.0, 6.0):
            name = "hardtanh"  # its bounds can be set, and its forward asks for them
        return FACTORIES[name](*(getattr(activation, parameter) for parameter in _PARAMETERS[name]))
    if isinstance(activation, nn.Module):
        known = ", ".join(module.__name__ for module in _NAMES)
        hint = "another function without parameters can be an Activation"
        raise TypeError(f"expected an activation module among {known}, got {activation}; {hint}")
    raise TypeError(f"expected a name, an nn.Module, an Activation or None, got {type(activation).__name__}")


def to_module(activation: Activation) -> nn.Module:
    """Make the ``nn`` module of an activation: torch's own where there is one."""
    if activation.made_here() and activation.name in _MODULES:
        with suppress(AssertionError):  # nn.Hardtanh refuses bounds that are equal, which F.hardtanh takes
            return _MODULES[activation.name](*activation.params)
    return Entrywise(activation)
