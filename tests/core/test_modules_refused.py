"""MLP.to_sequential() refuses what the Sequential would not do."""

from collections.abc import Callable

import pytest
from torch import nn

from manual_mlp import MLP


def with_hook(module: nn.Module) -> None:
    module.register_forward_hook(lambda module, args, output: 2 * output)


def with_forward(module: nn.Module) -> None:
    module.forward = lambda input: input  # type: ignore[method-assign]


@pytest.mark.parametrize(
    ("change", "message"),
    [(with_hook, "got hooks on {}"), (with_forward, "got another for {}")],
    ids=["hook", "forward"],
)
@pytest.mark.parametrize(("of", "name"), [(lambda mlp: mlp, "the whole"), (lambda mlp: mlp.layers[1], "1")])
def test_an_mlp_that_does_more_than_its_class_is_no_sequential(
    change: Callable[[nn.Module], None], message: str, of: Callable[[MLP], nn.Module], name: str
) -> None:
    mlp = MLP([4, 5, 3], "tanh")
    mlp.to_sequential()
    change(of(mlp))
    with pytest.raises(TypeError, match=message.format(name)):
        mlp.to_sequential()
