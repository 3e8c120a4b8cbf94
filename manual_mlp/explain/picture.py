"""What step 12 looks at: an image and a network, and what each layer makes of it, up and down."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from manual_mlp import losses
from manual_mlp.activations import IDENTITY, Activation
from manual_mlp.explain.blocks import Values
from manual_mlp.explain.compare import attempt, autograd, shape
from manual_mlp.explain.digits import image_of
from manual_mlp.explain.formulas import Formulas, cost
from manual_mlp.explain.writing import literal


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
        raise ImportError(f"expected the packages for training, got: {error}; pip install '.[train]'") from None
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


@dataclass(frozen=True)
class Seen:
    """Hold what one layer makes of the image, and what comes back.

    Attributes:
        outputs: what they are called: "class" in the last layer, "unit" below it.
        h, z: what enters the layer, and what it hands to f.
        w, b, f: as the textbook has them.
        dy, delta, dw: by the formulas, or why there are none.
        of_z: J as a function of z.
        true_delta: δ by autograd.

    Shape:
        h: (1, D_in); z, dy, delta: (1, D_out); w, dw: (D_in, D_out); b: (D_out,)
    """

    outputs: str
    h: Tensor
    z: Tensor
    w: Tensor
    b: Tensor
    f: Activation
    dy: Values
    delta: Values
    dw: Values
    of_z: Callable[[Tensor], Tensor]
    true_delta: Tensor

    def name(self, i: int) -> str:
        """Write which output it is: classes are called by their number, and units are counted from 1."""
        return f"class {i}" if self.outputs == "class" else f"unit {i + 1}"

    def cost(self, w: Tensor, b: Tensor) -> Tensor:
        """Compute J where this layer has another weight and bias."""
        return self.of_z(self.h @ w + b)

    @property
    def shown_delta(self) -> Tensor:
        """δ as the reader sees it, (D_out,)."""
        return _told(self.delta, self.true_delta)[0]

    @property
    def shown_dw(self) -> Tensor:
        """∂J/∂W as the reader sees it."""
        return _told(self.dw, self.h.mT @ self.true_delta)


def walk(picture: Picture, formulas: Formulas) -> list[Seen]:
    """Go up through the layers with the image, and down again with the formulas; return them in their order."""
    target = F.one_hot(torch.tensor([picture.label]), picture.layers[-1][0].shape[1]).double()
    entering = [picture.image.reshape(1, -1)]
    for w, b, f in picture.layers:
        entering.append(f.f(entering[-1] @ w + b))
    dy, found = attempt(formulas.cost_gradient, picture.loss, entering.pop(), target), list[Seen]()
    for i in reversed(range(len(picture.layers))):
        (w, b, f), h = picture.layers[i], entering[i]
        z, of_z = h @ w + b, partial(_cost, picture, target, i)
        delta = attempt(formulas.delta, dy, z, f)
        dw, outputs = attempt(formulas.weight, h, delta), "unit" if found else "class"
        found.append(Seen(outputs, h, z, w, b, f, dy, delta, dw, of_z, autograd(of_z, z)[0]))
        dy = attempt(formulas.input, delta, w)
    return found[::-1]


def output(picture: Picture, z: Tensor) -> Tensor:
    """Return what the network says where its first layer hands this to f.

    Shape:
        z: (1, units of the first layer) -> (1, classes)
    """
    return _upwards(picture, 0, z)


def _upwards(picture: Picture, i: int, z: Tensor) -> Tensor:
    y = picture.layers[i][2].f(z)
    for w, b, f in picture.layers[i + 1 :]:
        y = f.f(y @ w + b)
    return y


def _cost(picture: Picture, target: Tensor, i: int, z: Tensor) -> Tensor:
    return cost(picture.loss, _upwards(picture, i, z), target)


def _told(values: Values, true: Tensor) -> Tensor:
    """Return what a formula gave, or the truth where that cannot stand in its place."""
    return values if isinstance(values, Tensor) and values.shape == true.shape else true
