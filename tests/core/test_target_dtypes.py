"""backprop() with a target of another dtype than the output's."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from manual_mlp import MLP, backprop

Draw = Callable[..., Tensor]


@pytest.mark.parametrize(
    ("dtype", "of_target"), [(torch.float32, torch.float64), (torch.float64, torch.float32)], ids=["wider", "narrower"]
)
@pytest.mark.parametrize("rows", [None, 2, 8])
def test_backprop_compares_with_the_target_as_it_is(
    draw: Draw, dtype: torch.dtype, of_target: torch.dtype, rows: int | None
) -> None:
    mlp = MLP([4, 6, 7], "tanh", device=draw(1).device, dtype=dtype)
    h = draw(5, 4, dtype=dtype, requires_grad=False)
    target = draw(5, 7, dtype=of_target, requires_grad=False)
    loss = backprop(mlp, h, target, "squared_error", tile_rows=rows)
    # Not F.mse_loss, which has no derivative for two dtypes under torch 2.11.
    theirs = 0.5 * (mlp.to_sequential()(h) - target).square().mean()
    torch.testing.assert_close(loss, theirs.detach(), rtol=1e-6, atol=1e-6, check_dtype=False)
    expected = torch.autograd.grad(0.5 * (mlp(h) - target).square().mean(), [*mlp.parameters()])
    torch.testing.assert_close([p.grad for p in mlp.parameters()], list(expected), rtol=1e-5, atol=1e-6)
