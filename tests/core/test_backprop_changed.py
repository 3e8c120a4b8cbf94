"""Networks that backprop() calls as they are, since something in them was changed."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations

from manual_mlp import MLP, Dense
from stepped import D, V, by_hand, one_tile_or_more, replaced, rows_of, target_of

# Networks that are called as they are.


class Doubled(MLP):
    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input) * 2


class Halved(MLP):
    def __call__(self, input: Tensor) -> Tensor:
        return super().__call__(input) / 2


class Chained(nn.Module):
    """A module whose ``chain`` is its own affair."""

    def __init__(self) -> None:
        super().__init__()
        self.chain = nn.Sequential(nn.Linear(D, V))

    def forward(self, input: Tensor) -> Tensor:
        return self.chain(input)


class Wrapper(nn.Module):
    """A module that shows the attributes of another, as FSDP does."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(self._modules["inner"], name)

    def forward(self, input: Tensor) -> Tensor:
        return 3 * self.inner(input)


class Own(Tensor):
    pass


def computed() -> MLP:
    mlp = MLP([D, 7, 6, V], "gelu")
    weight = mlp.layers[1].weight
    del mlp.layers[1].weight
    mlp.layers[1].base = weight
    mlp.layers[1].weight = weight * 2
    return mlp


def buffered() -> MLP:
    mlp = MLP([D, 7, 6, V], "gelu")
    weight = mlp.layers[1].weight.detach()
    del mlp.layers[1].weight
    mlp.layers[1].register_buffer("weight", weight)
    return mlp


def parametrised() -> MLP:
    mlp = MLP([D, 7, 6, V], "gelu")
    parametrizations.weight_norm(mlp.layers[1])
    return mlp


def subclassed() -> MLP:
    mlp = MLP([D, 7, 6, V], "gelu")
    mlp.layers[1].weight = nn.Parameter(mlp.layers[1].weight.detach().as_subclass(Own))
    return mlp


def overridden() -> MLP:
    mlp = MLP([D, 7, 6, V], "gelu")
    forward = mlp.layers[1].forward
    mlp.layers[1].forward = lambda input: 2 * forward(input)
    return mlp


def of_a_subclass() -> MLP:
    class Shifted(Dense):
        def forward(self, input: Tensor) -> Tensor:
            return super().forward(input) + 1

    mlp = MLP([D, 7, 6, V], "gelu")
    mlp.layers[1] = Shifted(7, 6, "gelu")
    return mlp


AS_THEY_ARE: dict[str, Callable[[], nn.Module]] = {
    "a layer replaced": replaced,
    "a weight that is computed": computed,
    "a weight that is a buffer": buffered,
    "a parametrisation": parametrised,
    "a tensor subclass": subclassed,
    "a layer with a forward of its own": overridden,
    "a layer of a subclass": of_a_subclass,
    "a subclass with another forward": lambda: Doubled([D, 7, 6, V], "gelu"),
    "a subclass with another call": lambda: Halved([D, 7, 6, V], "gelu"),
    "a wrapper that shows the network's attributes": lambda: Wrapper(MLP([D, 7, 6, V], "gelu")),
    "a module with a chain": Chained,
    "another network": lambda: nn.Sequential(nn.Linear(D, 7), nn.LayerNorm(7), nn.GELU(), nn.Linear(7, V)),
    "no hidden units": lambda: MLP([D, 0, V], "gelu"),
}


@pytest.mark.parametrize("name", AS_THEY_ARE)
@one_tile_or_more
def test_a_changed_network_has_the_gradients_of_loss_backward(device: str, name: str, tile_rows: int | None) -> None:
    network = AS_THEY_ARE[name]().double().to(device)
    if name == "a weight that is computed":
        network.layers[1].weight = network.layers[1].base * 2
    x = rows_of(device).requires_grad_()
    t = target_of("cross_entropy", x)
    expected = F.cross_entropy(network(x), t)
    expected.backward(retain_graph=True)
    gradients = [None if p.grad is None else p.grad.clone() for p in (*network.parameters(), x)]
    if name == "a weight that is computed":
        network.layers[1].weight = network.layers[1].base * 2
    found = by_hand(network, x, t, tile_rows=tile_rows)
    torch.testing.assert_close(found, [expected.detach(), *gradients], rtol=0, atol=1e-12)
