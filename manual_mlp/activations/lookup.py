"""Find an activation by its name or nn module, and the nn module of an activation."""

import inspect
from contextlib import suppress

from torch import Tensor, nn

from manual_mlp.activations.catalogue import identity
from manual_mlp.activations.record import FACTORIES, Activation

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
