"""torchao's quantised weights, and those of quantised training, under our layers: ``make torchao``."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from manual_mlp import MLP, LinearCrossEntropyLoss, backprop, dense_squared_error, linear_cross_entropy

pytest.importorskip("torchao")

import torchao.prototype.quantized_training as training
from torchao.quantization import Int8DynamicActivationInt8WeightConfig, Int8WeightOnlyConfig, quantize_

N, SIZES = 12, [64, 96, 32]
CONFIGS: dict[str, Callable[[], object]] = {
    "int8 weights": Int8WeightOnlyConfig,
    "int8 weights and activations": Int8DynamicActivationInt8WeightConfig,
    "int8 quantised training": training.int8_weight_only_quantized_training,
    "int8 mixed-precision training": training.int8_mixed_precision_training,
    "bitnet training": training.bitnet_training,
}


def quantised(name: str) -> tuple[nn.Sequential, MLP]:
    """Quantise a torch network, and put an MLP over the same weights."""
    torch.manual_seed(1)
    model = nn.Sequential(nn.Linear(SIZES[0], SIZES[1]), nn.GELU(), nn.Linear(SIZES[1], SIZES[2]))
    quantize_(model, CONFIGS[name]())
    return model, MLP.from_sequential(model)


def drawn() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(2)
    x = torch.randn(N, SIZES[0], generator=generator).requires_grad_()
    return x, torch.randint(SIZES[-1], (N,), generator=generator)


def gradients(y: Tensor, x: Tensor, model: nn.Module) -> list[Tensor | None]:
    asked = [x, *(p for p in model.parameters() if p.requires_grad)]
    return list(torch.autograd.grad(y, asked, allow_unused=True))


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("tile_rows", [None, 4])
def test_a_network_over_quantised_weights_is_torchs(name: str, tile_rows: int | None) -> None:
    model, mlp = quantised(name)
    mlp.tile_rows = tile_rows
    x, t = drawn()
    theirs, mine = model(x), mlp(x)
    torch.testing.assert_close(mine, theirs)
    torch.testing.assert_close(
        gradients(F.cross_entropy(mine, t), x, mlp), gradients(F.cross_entropy(theirs, t), x, model)
    )
    with torch.no_grad():
        torch.testing.assert_close(mlp(x), model(x))


@pytest.mark.parametrize("name", CONFIGS)
def test_backprop_over_quantised_weights_is_torchs(name: str) -> None:
    model, mlp = quantised(name)
    x, t = drawn()
    expected = gradients(F.cross_entropy(model(x), t), x, model)
    backprop(mlp, x, t)
    found = [x.grad, *(p.grad for p in mlp.parameters() if p.requires_grad)]
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("chunk_rows", [None, 4])
def test_losses_over_quantised_weights_are_torchs(name: str, chunk_rows: int | None) -> None:
    model, _ = quantised(name)
    linear, (x, t) = model[0], drawn()
    t = 3 * t
    losses = [
        (
            linear_cross_entropy(x, linear.weight, t, linear_bias=linear.bias, chunk_rows=chunk_rows),
            F.cross_entropy(F.linear(x, linear.weight, linear.bias), t),
        ),
        (
            dense_squared_error(x, linear.weight, linear.bias, x.new_ones(N, SIZES[1]), "tanh", "mean", chunk_rows),
            0.5 * F.mse_loss(torch.tanh(F.linear(x, linear.weight, linear.bias)), x.new_ones(N, SIZES[1])),
        ),
    ]
    module = LinearCrossEntropyLoss(SIZES[0], SIZES[1], bias=True, chunk_rows=chunk_rows)
    module.linear.weight, module.linear.bias = linear.weight, linear.bias
    losses.append((module(x, t), losses[0][1]))
    for mine, theirs in losses:
        torch.testing.assert_close(mine, theirs)
        torch.testing.assert_close(
            torch.autograd.grad(mine, x, allow_unused=True),
            torch.autograd.grad(theirs, x, retain_graph=True, allow_unused=True),
        )
