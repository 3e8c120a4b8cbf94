"""To and from ``nn.Sequential``: what its modules say of the layers of an MLP, and the modules of such layers."""

from collections.abc import Iterable
from itertools import pairwise
from typing import NamedTuple

from torch import Tensor, nn

from manual_mlp.activations import IDENTITY, Activation, get, to_module
from manual_mlp.transforms import called_as_it_is, has_hooks


class Block(NamedTuple):
    """A linear layer, the activation after it, and the probability of dropout after that."""

    linear: nn.Linear
    activation: Activation
    dropout: float


def read(sequential: nn.Sequential, kinds: tuple[type[nn.Linear], ...]) -> list[Block]:
    """List the blocks of an ``nn.Sequential``, whose linear layers are of these classes.

    Raises:
        TypeError: as :meth:`manual_mlp.MLP.from_sequential` says.
    """
    if not isinstance(sequential, nn.Sequential):
        raise TypeError(f"expected nn.Sequential, got {type(sequential).__name__}")
    refuse_changed("the whole", sequential)
    if not has_forward_of(sequential, nn.Sequential) or not called_as_it_is(sequential):
        raise TypeError(f"expected the forward of nn.Sequential itself, got that of {type(sequential).__name__}")
    if len({module.training for module in sequential.modules()}) > 1:
        raise TypeError("expected all modules in training mode or all in evaluation mode, got both")
    parts: list[list[nn.Module]] = []
    for name, module in enumerate(sequential):
        refuse_changed(name, module)
        if is_one_of(kinds, module):
            parts.append([module])
        elif parts:
            parts[-1].append(module)
        else:
            raise TypeError(f"expected Linear first, got {name}: {module}")
    blocks = [_block(part) for part in parts]
    if blocks and blocks[-1].dropout:
        raise TypeError(f"expected no dropout after the last Linear, got {parts[-1][-1]}")
    for before, block in pairwise(blocks):
        if block.linear.in_features != before.linear.out_features:
            raise TypeError(f"expected Linear with in_features={before.linear.out_features}, got {block.linear}")
    return blocks


def write(blocks: Iterable[Block]) -> nn.Sequential:
    """Make the ``nn.Sequential`` of blocks; the identity and a dropout of 0 need no module."""
    modules: list[nn.Module] = []
    for linear, activation, p in blocks:
        modules.append(linear)
        if activation is not IDENTITY:
            modules.append(to_module(activation))
        if p:
            modules.append(nn.Dropout(p))
    return nn.Sequential(*modules)


def linear_over(weight: Tensor, bias: Tensor | None) -> nn.Linear:
    """Make torch's own layer over parameters that there are."""
    linear = nn.Linear(weight.shape[1], weight.shape[0], bias is not None, device="meta")
    linear.weight = weight
    linear.register_parameter("bias", bias)  # type: ignore[arg-type]
    return linear


def is_as_written(kind: type[nn.Module]) -> bool:
    """Tell whether nobody put another forward in the place of the one that stands beside a class."""
    return kind.forward.__module__ == kind.__module__


def has_forward_of(module: nn.Module, kind: type[nn.Module]) -> bool:
    """Tell whether the module's class computes what another class computes, as it is written."""
    return type(module).forward is kind.forward and is_as_written(kind)


def is_one_of(kinds: tuple[type[nn.Module], ...], module: nn.Module) -> bool:
    """Tell whether it is of one of these classes themselves, as they are written."""
    return type(module) in kinds and is_as_written(type(module))


def refuse_changed(name: int | str, module: nn.Module) -> None:
    """Raise TypeError for a module that does more than its class says."""
    if has_hooks(module):
        raise TypeError(f"expected a module without hooks, got hooks on {name}: {module}")
    if "forward" in vars(module):
        raise TypeError(f"expected a module with the forward of its class, got another for {name}: {module}")


def _block(part: list[nn.Module]) -> Block:
    """Read (Linear), (Linear, activation), (Linear, Dropout) or (Linear, activation, Dropout)."""
    linear, *rest = part
    assert isinstance(linear, nn.Linear)
    p = 0.0
    if rest and type(rest[-1]) is nn.Dropout:
        p = rest.pop().p  # type: ignore[assignment]
    module = rest.pop() if rest else None
    activation = get(module)
    if module is not None and not is_as_written(type(module)):
        raise TypeError(f"expected a module with the forward of its class, got another for {module}")
    if rest:
        raise TypeError(f"expected Linear, an activation and Dropout, in this order, got {nn.Sequential(*part)}")
    return Block(linear, activation, p)
