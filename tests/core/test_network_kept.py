"""What a network keeps for backward: one tile little, more tiles nothing of their own."""

import pytest
import torch

from benchmarks.memory import kept_bytes, peak_bytes
from conditions import threads
from manual_mlp import MLP
from networks import CPU, D, N, V, assert_close, make, rows_of, saved_by


@pytest.mark.parametrize("activation", ["tanh", "gelu"])
def test_one_tile_keeps_the_input_the_weights_and_y_or_z_of_each_hidden_layer(device: str, activation: str) -> None:
    mlp, x = make(device, activation), rows_of(device)
    saved = saved_by(lambda: mlp(x))
    z = mlp.layers[0].weight @ x.mT + mlp.layers[0].bias[:, None]
    kept = torch.tanh(z) if activation == "tanh" else z
    weights = [layer.weight for layer in mlp.layers]
    assert sum(any(t.data_ptr() == w.data_ptr() for w in weights) for t in saved) == 3
    assert sum(t.data_ptr() == x.data_ptr() for t in saved) == 1
    assert sorted(tuple(t.shape) for t in saved) == sorted([(N, D), (7, D), (6, 7), (V, 6), (N, 7), (N, 6)])
    assert_close(next(t for t in saved if t.shape == (N, 7)), kept.mT)


def test_more_tiles_keep_the_input_and_the_parameters_alone(device: str) -> None:
    for dropout in (0.0, 0.3):
        mlp, x = make(device, tile_rows=2, dropout=dropout), rows_of(device)
        saved = saved_by(lambda mlp=mlp, x=x: mlp(x))
        assert sorted(tuple(t.shape) for t in saved) == sorted([(N, D), *(tuple(p.shape) for p in mlp.parameters())])
        held = {t.data_ptr() for t in (x, *mlp.parameters())}
        assert all(t.data_ptr() in held for t in saved if t.dim() > 1)
        counts = kept_bytes(lambda x, mlp=mlp: mlp(x), {"x": x})
        # A bias may be kept as a copy, on the node or beside it.
        assert counts["attributes"] <= sum(layer.bias.nbytes for layer in mlp.layers)


@pytest.mark.parametrize("activation", ["gelu", "silu"])
def test_one_tile_keeps_at_most_55_percent_of_eagers_bytes(activation: str) -> None:
    mlp = MLP([32] * 8, activation)
    x = torch.randn(512, 32)
    mine, theirs = (kept_bytes(lambda x, m=m: m(x), {"x": x}) for m in (mlp, mlp.to_sequential()))
    weights = sum(p.nbytes for p in mlp.parameters())
    assert mine["attributes"] == 0
    # Eager keeps the weights as they are too.
    assert mine["total"] - weights <= 0.55 * (theirs["total"] - weights)


def test_without_grad_mode_no_activation_outlives_its_use(device: str) -> None:
    mlp, x = MLP([64] * 12, "relu", device=device), torch.randn(512, 64, device=device)
    peaks = []
    with torch.no_grad():
        for model in (mlp, mlp.to_sequential()):
            peaks.append(peak_bytes(lambda m=model: m(x), (), torch.device(device)))  # noqa: PERF401
    assert peaks[0] <= peaks[1] + x.nbytes


def test_the_memory_of_more_tiles_does_not_grow_with_depth_or_batch() -> None:
    with threads(1):
        for n in (512, 4096):
            mlp, x = MLP([16, *[64] * 6, 1], "gelu", tile_rows=32), torch.randn(n, 16)
            peak = peak_bytes(lambda m=mlp, x=x: m(x).sum().backward(), mlp.parameters(), CPU)
            parameters = sum(p.nbytes for p in mlp.parameters())
            tile = 32 * 4 * (2 * 64 * 6 + 2 * 64)
            assert peak <= 4 * 4 * n + 2 * parameters + 2 * tile + 2**14
