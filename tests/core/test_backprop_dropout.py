"""Dropout in backprop(): one mask forward and backward, in tiles and in threads."""

from typing import Any

import pytest
import torch
from torch import Tensor

from conditions import threads
from manual_mlp import MLP, backprop
from stepped import D, N, V, assert_as_torch, assert_directional, make, rows_of, target_of

# Dropout.


@pytest.mark.parametrize("dropout", [0.3, (0.0, 0.5), 1.0], ids=str)
@pytest.mark.parametrize("tile_rows", [1, 2, 3, None])
@pytest.mark.parametrize("workers", [1, 2])
def test_dropout_has_one_mask_forward_and_backward(
    device: str, dropout: Any, tile_rows: int | None, workers: int
) -> None:
    x, mlp = rows_of(device).requires_grad_(), make(device, "gelu", dropout=dropout)
    t = target_of("cross_entropy", x)

    def loss() -> Tensor:
        torch.manual_seed(5)
        return backprop(mlp, x, t, tile_rows=tile_rows)

    with threads(workers):
        loss()
        gradients = [p.grad for p in (*mlp.parameters(), x)]
        for p in (*mlp.parameters(), x):
            p.grad = None
        assert_directional(mlp, x, gradients, loss)


def test_dropout_draws_for_every_tile_anew_and_does_not_depend_on_threads(device: str) -> None:
    mlp = MLP([D, 64, V], "identity", dropout=0.5, dtype=torch.float64, device=device)
    x = rows_of(device, 1).expand(8, D)
    t = torch.zeros(8, V, dtype=torch.float64, device=device)
    outputs = []
    for workers in (1, 2, 3):
        with threads(workers):
            torch.manual_seed(3)
            outputs.append(backprop(mlp, x, t, "squared_error", tile_rows=1, return_output=True)[1])
            again = backprop(mlp, x, t, "squared_error", tile_rows=1, return_output=True)[1]
    assert len(outputs[0].unique(dim=0)) == 8
    assert len(torch.cat([outputs[0], again]).unique(dim=0)) == 16
    for other in outputs[1:]:
        torch.testing.assert_close(other, outputs[0])


def test_dropout_rests_in_evaluation_mode(device: str) -> None:
    x, mlp = rows_of(device), make(device, dropout=0.5).eval()
    state = torch.get_rng_state()
    for tile_rows in (2, None):
        assert_as_torch(mlp, x, target_of("squared_error", x), "squared_error", tile_rows=tile_rows)
    torch.manual_seed(0)
    before = torch.get_rng_state()
    backprop(mlp, x, torch.zeros(N, V, dtype=torch.float64, device=device), "squared_error", tile_rows=2)
    assert torch.equal(torch.get_rng_state(), before)
    torch.set_rng_state(state)


def test_dropout_in_tiles_draws_from_the_inputs_device_alone() -> None:
    mlp, x = make("cpu", dropout=0.5), rows_of("cpu")
    with torch.device("meta"):
        loss = backprop(mlp, x, target_of("cross_entropy", x.cpu()), tile_rows=2)
    assert loss.device.type == "cpu"
