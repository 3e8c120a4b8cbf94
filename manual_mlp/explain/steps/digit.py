"""Step 12: a real digit, and what it does to the weights of a layer."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from manual_mlp import losses
from manual_mlp.activations import IDENTITY, Activation
from manual_mlp.explain.blocks import Formula, Refused, Step, Table, Text, Tile, Tiles, Values, literal, number
from manual_mlp.explain.compare import DIFFERENCE, agree, attempt, autograd, central_difference, shape
from manual_mlp.explain.digits import image_of
from manual_mlp.explain.formulas import RIGHT, Formulas, cost

_SHOWN = 10  # outputs


@dataclass(frozen=True)
class Picture:
    """Hold one image, its label, and a network that looks at it.

    Attributes:
        image: what enters the network, (height, width).
        layers: the textbook's W (D_in, D_out), B (D_out,) and f of each layer.
        loss: its name, as a flag; rows of numbers are compared with the one-hot label.
        source: where image and network come from, in words.
        trained: whether the network has learned anything.
    """

    image: Tensor
    label: int
    layers: tuple[tuple[Tensor, Tensor, Activation], ...]
    loss: str
    source: str
    trained: bool = False


def embedded_picture(digit: int = 7, seed: int = 0) -> Picture:
    """Make the picture of an embedded 8×8 digit, before a single layer that has not been trained."""
    generator = torch.Generator().manual_seed(seed)
    w = torch.empty(10, 64, dtype=torch.float64)
    nn.init.kaiming_uniform_(w, a=5**0.5, generator=generator)
    layer = (w.mT.contiguous(), torch.zeros(10, dtype=torch.float64), IDENTITY)
    source = f"a real {digit} of 8×8 pixels, and a layer of 10 outputs that has learned nothing yet"
    return Picture(image_of(digit), digit, (layer,), "cross-entropy", source)


def trained_picture(run: Path, digit: int = 7, data_dir: Path | None = None) -> Picture:
    """Make the picture of a trained network, and of a digit from the last twelfth of the training images.

    Args:
        run: a folder that train.py has written.
        data_dir: where the images are; MANUAL_MLP_DATA, or the folder of the run, if it is None.

    Raises:
        ValueError: there is no run in the folder, or no such image.
        ImportError: the extra ``train`` is not installed.
    """
    from manual_mlp.training.errors import InputError

    try:
        from manual_mlp.training import checkpoint
        from manual_mlp.training.data import load

        settings, model = checkpoint.load_settings(run), checkpoint.load_model(run)
        loss, (mean, std) = settings["loss"], checkpoint.normalisation(run)
        if loss not in losses.flags():
            raise ValueError(f"its loss is {loss}, and only {', '.join(losses.flags())} can be explained")
        data = load(
            settings["dataset"], data_dir or checkpoint.data_dir(settings), torch.device("cpu"), normalised=False
        )
        found = (data.validation.labels == digit).nonzero()
        if not len(found):
            raise ValueError(f"no validation image of class {digit} in {data.name}")
        # As the run normalised it, whatever images it held out.
        image = data.validation.images[found[0, 0]].sub(mean).div(std).double().view(data.image_shape)
        if image.numel() != settings["sizes"][0] or digit >= settings["sizes"][-1]:
            raise ValueError(f"sizes {settings['sizes']} for images of {shape(image)} and class {digit}")
    except ImportError as error:
        raise ImportError(
            f"expected the packages for training, got: {error}; pip install 'manual_mlp[train]'"
        ) from None
    except InputError:
        raise  # in words already
    except (ValueError, KeyError, TypeError, RuntimeError, OSError) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ValueError(f"expected the folder of a run of train.py, got {run}: {reason}") from None
    layers = tuple(
        (
            layer.w.detach().double().mT.contiguous(),
            torch.zeros(len(layer.w)).double() if layer.b is None else layer.b.detach().double(),
            layer.activation,
        )
        for layer in model.chain() or ()
    )
    sizes = "-".join(str(size) for size in (image.numel(), *(w.shape[1] for w, _, _ in layers)))
    kind = f"an image of {data.name}" + (", normalised," if (mean, std) != (0.0, 1.0) else "")
    source = f"{kind} before the {sizes} network of the run {literal(run.name)}"
    return Picture(image, digit, layers, loss, source, trained=True)


def digit(picture: Picture, formulas: Formulas = RIGHT) -> Step:
    """Step 12: H as an image, δ as a row, and the update of each output's weights as an image."""
    h, (w, b, f) = picture.image.reshape(1, -1), picture.layers[0]
    outputs = w.shape[1]
    target = F.one_hot(torch.tensor([picture.label]), picture.layers[-1][0].shape[1]).double()

    def whole_cost(w: Tensor, b: Tensor) -> Tensor:
        return cost(picture.loss, _forward(h, ((w, b, f), *picture.layers[1:]))[-1][1], target)

    delta = _delta(picture, h, target, formulas)
    dw, db = attempt(formulas.weight, h, delta), attempt(lambda delta: formulas.bias(delta).reshape(-1), delta)
    by_autograd = autograd(whole_cost, w, b)
    true = by_autograd[1]
    shown = delta[0] if isinstance(delta, Tensor) else true
    most = true.abs().topk(min(_SHOWN, outputs)).indices.sort().values.tolist()
    update = -by_autograd[0]
    rate = float(1 / (h.square().sum() + 1))
    before, after = _answer(picture, h, 0.0, by_autograd), _answer(picture, h, rate, by_autograd)
    slope = central_difference(lambda w: whole_cost(w, b), w, update)
    last = len(picture.layers) == 1
    names = [f"class {i}" if last else f"unit {i + 1}" for i in most]
    chosen = "" if outputs <= _SHOWN else f" Here are the {_SHOWN} of {outputs} for which it is largest."
    answer = (
        "share that the network gives to the right answer"
        if losses.by_flag(picture.loss).has_shares
        else "right answer's output"
    )
    return Step(
        12,
        "A real digit",
        (
            Text(f"Now H is an image, row by row: {picture.source}. The right answer is {picture.label}."),
            Tiles("H: the image that enters.", (Tile("H", picture.image),), images=True),
            Text(f"δ has an entry for each output.{chosen} Where it is negative, J falls if that entry of Z grows."),
            Table(("output", "δ"), tuple((name, number(float(shown[i]))) for name, i in zip(names, most, strict=True))),
            Formula("∂J/∂W = Hᵀ δ", "B3"),
            Text(
                "One column of W belongs to each output, and it has as many entries as the image has pixels. So its "
                "update, `−η Hₖ δₗ` for every pixel k, is an image as well: the digit itself, times a number. "
                "Outputs with a negative δ have the digit added to their weights, the others have it taken away:"
            ),
            Tiles(
                "Updates, in one scale: where the weights grow and where they shrink.",
                tuple(
                    Tile(f"{name}, δ {number(float(shown[i]), 2)}", update[:, i].view(picture.image.shape))
                    for name, i in zip(names, most, strict=True)
                ),
                images=True,
            ),
            *_weights(picture, most, names),
            Text(
                f"One step of `η = {number(rate)}` with this image alone: the {answer} goes from "
                f"{number(before)} to {number(after)}."
            ),
            agree("Hᵀδ for the image = ∂J/∂W", dw, by_autograd[0]),
            agree("δ = ∂J/∂B", db, by_autograd[1]),
            agree(
                "⟨Hᵀδ, update⟩ = the slope of J along the update",
                attempt(lambda dw: (dw * update).sum(), dw),
                slope,
                "central difference",
                DIFFERENCE,
            ),
        ),
    )


def _weights(picture: Picture, most: list[int], names: list[str]) -> tuple[Text | Tiles, ...]:
    if not picture.trained:
        return ()
    w = picture.layers[0][0]
    return (
        Text("And these are the weights of the same outputs after training. They began at random:"),
        Tiles(
            "Weights of the trained layer.",
            tuple(Tile(name, w[:, i].view(picture.image.shape)) for name, i in zip(names, most, strict=True)),
            images=True,
        ),
    )


def _forward(h: Tensor, layers: tuple[tuple[Tensor, Tensor, Activation], ...]) -> list[tuple[Tensor, Tensor]]:
    """Return z and y of each layer."""
    found = []
    for w, b, f in layers:
        z = h @ w + b
        h = f.f(z)
        found.append((z, h))
    return found


def _delta(picture: Picture, h: Tensor, target: Tensor, formulas: Formulas) -> Values:
    """Return δ of the first layer: from the loss down, layer by layer."""
    states = _forward(h, picture.layers)
    dy = attempt(formulas.cost_gradient, picture.loss, states[-1][1], target)
    delta: Values = Refused("a network without layers")
    for (z, _), (w, _, f) in zip(reversed(states), reversed(picture.layers), strict=True):
        delta = attempt(formulas.delta, dy, z, f)
        dy = attempt(formulas.input, delta, w)
    return delta


def _answer(picture: Picture, h: Tensor, rate: float, gradients: tuple[Tensor, ...]) -> float:
    """Return the share of the right answer after a step along the first layer's gradients."""
    w, b, f = picture.layers[0]
    moved = ((w - rate * gradients[0], b - rate * gradients[1], f), *picture.layers[1:])
    y = _forward(h, moved)[-1][1]
    return float(losses.by_flag(picture.loss).shares(y)[0, picture.label])
