"""Step 12: a real digit, and what it does to the weights of a layer."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor

from manual_mlp import losses
from manual_mlp.activations import IDENTITY
from manual_mlp.explain.blocks import (
    Block,
    Check,
    Formula,
    Heading,
    Refused,
    Step,
    Table,
    Text,
    Tile,
    Tiles,
    Values,
)
from manual_mlp.explain.compare import DIFFERENCE, agree, attempt, autograd, central_difference
from manual_mlp.explain.formulas import RIGHT, Formulas
from manual_mlp.explain.picture import Picture, Seen, embedded_picture, output, trained_picture, walk
from manual_mlp.explain.writing import count, number

__all__ = ["Picture", "digit", "embedded_picture", "trained_picture"]

_SHOWN = 10  # outputs of a layer, and weights


def digit(picture: Picture, formulas: Formulas = RIGHT) -> Step:
    """Step 12: H as an image, δ as a row, and the update of each output's weights as an image."""
    layers = walk(picture, formulas)
    first, deep = layers[0], len(layers) > 1
    delta, most = first.shown_delta, _most(first)
    db = attempt(lambda delta: formulas.bias(delta).reshape(-1), first.delta)
    by_autograd = autograd(first.cost, first.w, first.b)
    update = -by_autograd[0]
    rate = float(1 / (first.h.square().sum() + 1))
    before, after = _answer(picture, first, 0.0, by_autograd), _answer(picture, first, rate, by_autograd)
    slope = central_difference(lambda w: first.cost(w, first.b), first.w, update)
    names = [first.name(i) for i in most]
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
            *(_down(picture, layers) if deep else _only(first)),
            Formula("∂J/∂W = Hᵀ δ", "B3"),
            Text(
                "One column of W belongs to each output, and it has as many entries as the image has pixels. So its "
                "update, `−η Hₖ δₗ` for every pixel k, is an image as well: the digit itself, times a number. "
                "Outputs with a negative δ have the digit added to their weights, the others have it taken away:"
            ),
            Tiles(
                "Updates, in one scale: where the weights grow and where they shrink.",
                tuple(
                    Tile(f"{name}, δ {number(float(delta[i]), 2)}", update[:, i].view(picture.image.shape))
                    for name, i in zip(names, most, strict=True)
                ),
                images=True,
            ),
            *_weights(picture, most, names),
            Text(
                f"One step of `η = {number(rate)}` with this image alone{', in the first layer' if deep else ''}: the "
                f"{answer} goes from {number(before)} to {number(after)}."
            ),
            *(_moved(picture, layers, rate) if picture.trained else ()),
            *(_checks(layers) if deep else ()),
            agree("Hᵀδ for the image = ∂J/∂W", first.dw, by_autograd[0]),
            agree("δ = ∂J/∂B", db, by_autograd[1]),
            agree(
                "⟨Hᵀδ, update⟩ = the slope of J along the update",
                attempt(lambda dw: (dw * update).sum(), first.dw),
                slope,
                "central difference",
                DIFFERENCE,
            ),
        ),
    )


def _most(layer: Seen) -> list[int]:
    """List the outputs that are shown, in their order: those of the largest δ."""
    found = layer.shown_delta.abs().topk(min(_SHOWN, len(layer.b))).indices.sort().values
    return [int(i) for i in found]


def _chosen(layer: Seen, what: str = "it") -> str:
    outputs = len(layer.b)
    return "" if outputs <= _SHOWN else f" Here are the {_SHOWN} of {outputs} for which {what} is largest."


def _only(layer: Seen) -> tuple[Block, ...]:
    """Show δ of the only layer."""
    delta = layer.shown_delta
    return (
        Text(
            f"δ has an entry for each output.{_chosen(layer)} Where it is negative, J falls if that entry of Z grows."
        ),
        Table(("output", "δ"), tuple((layer.name(i), number(float(delta[i]))) for i in _most(layer))),
    )


def _down(picture: Picture, layers: Sequence[Seen]) -> tuple[Block, ...]:
    """Show δ of every layer, from the outputs down to the layer that the image enters."""
    loss, last, hidden = losses.by_flag(picture.loss), layers[-1], layers[:-1]
    y = last.f.f(last.z)
    said, header = ((y, loss.shares(y)), ("output", "share")) if loss.has_shares else ((y,), ("output",))
    no_f = " The last layer has no f, so δ is ∂J/∂Y." if last.f is IDENTITY else ""
    blocks: list[Block] = [
        Heading("δ of the outputs"),
        Text(
            "Begin at the end. The last layer has an output for each class. Its target `Y*` is 1 for class "
            f"{picture.label}, and 0 for the others."
        ),
        Formula(f"∂J/∂Y = {loss.slope}"),
        Formula("δ = ∂J/∂Y ⊙ f′(Z)", "B1"),
        Text(
            f"So δ says how far off each output is.{no_f}{_chosen(last)} Where it is negative, J falls if that entry "
            "of Z grows."
        ),
        _entries(last, ("class", *header), said),
        Heading(f"δ of the hidden {'layers' if len(hidden) > 1 else 'layer'}"),
        Text(
            "A hidden unit has no target. What it did wrong comes from above, as in step 8: take the δ of every output "
            "above it times the weight that leads there, and add up. Then multiply by the unit's own slope, as in "
            "step 3. On the right stand the δ and the W of the layer above, and on the left the layer's own δ:"
        ),
        Formula("δ = (δ Wᵀ) ⊙ f′(Z)", "B2, B1"),
        Text("Where f′(Z) is 0, δ is 0 too. Such a unit learns nothing from this digit."),
    ]
    for i, layer in reversed([*enumerate(hidden)]):
        name = _hidden(i, len(hidden))
        blocks += [
            Text(f"{name[0].upper()}{name[1:]} has {count(len(layer.b), 'unit')}.{_chosen(layer, '`|δ|`')}"),
            _entries(layer, ("unit", "δWᵀ", "f′(Z)"), (layer.dy, layer.f.df(layer.z))),
        ]
    return (*blocks, Heading("The first layer"), Text("With its δ the first layer learns. Its H is the image:"))


def _entries(layer: Seen, header: tuple[str, ...], columns: Sequence[Values]) -> Table:
    """Make a table of a layer's outputs: for each the numbers of the columns, and δ last."""

    def cell(values: Values, i: int) -> str:
        if isinstance(values, Refused) or values.shape != layer.z.shape:
            return "none"
        return number(float(values[0, i]))

    columns = (*columns, layer.shown_delta[None])
    return Table((*header, "δ"), tuple((layer.name(i), *(cell(c, i) for c in columns)) for i in _most(layer)))


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


def _moved(picture: Picture, layers: Sequence[Seen], rate: float) -> tuple[Block, ...]:
    """Show which weights of the first and of the last layer move most, and how much those of each pixel do."""
    first, last, deep, width = layers[0], layers[-1], len(layers) > 1, picture.image.shape[-1]
    blocks: list[Block] = [
        Heading("Which weights move most"),
        Text(
            "A weight moves much where its input is large and its output erred: its update is `−η Hₖ δₗ`. Of the step "
            f"above, these are the largest updates{' in the first layer' if deep else ''}. A pixel is told by its row "
            "and column, counted from 1:"
        ),
        _largest(first, rate, "pixel (row, column)", lambda k: f"({k // width + 1}, {k % width + 1})"),
    ]
    if deep:
        blocks += [
            Text(
                "And these, with the same η, are the largest in the last layer. Its H is what the units below it say:"
            ),
            _largest(last, rate, "unit", lambda k: f"unit {k + 1}"),
        ]
    return (
        *blocks,
        Text(
            "Many weights lead away from a pixel, one to each output. Without η, all their updates together have the "
            "length `√(Σₗ H²ₖ δ²ₗ)`. Every pixel meets the same δ. So this is `|Hₖ|` times one number: the further a "
            "pixel is from 0, the more its weights move."
        ),
        Tiles(
            "How much the weights of each pixel move.",
            (Tile("all weights of a pixel", first.shown_dw.norm(dim=1).view(picture.image.shape)),),
            images=True,
        ),
    )


def _largest(layer: Seen, rate: float, inputs: str, name: Callable[[int], str]) -> Table:
    """Make a table of the weights of a layer that move most, the first of all first."""
    update, outputs = -rate * layer.shown_dw, len(layer.b)
    # Many pixels may be equal: of those the first come first.
    order = update.abs().flatten().sort(descending=True, stable=True).indices[:_SHOWN].tolist()
    rows = []
    for k, i in (divmod(entry, outputs) for entry in order):
        numbers = (layer.h[0, k], layer.shown_delta[i], update[k, i], layer.w[k, i])
        rows.append((f"{name(k)} → {layer.name(i)}", *(number(float(value)) for value in numbers)))
    return Table((f"{inputs} → {layer.outputs}", "Hₖ", "δₗ", "−η Hₖ δₗ", "Wₖₗ before"), tuple(rows))


def _checks(layers: Sequence[Seen]) -> tuple[Check, ...]:
    """Compare δ of every layer, and the last layer's ∂J/∂W, with autograd."""
    *hidden, last = layers
    names = ["δ of the outputs"]
    names += [f"δ of {_hidden(i, len(hidden))}" for i in reversed(range(len(hidden)))]
    return (
        *(
            agree(f"{name} = ∂J/∂Z", layer.delta, layer.true_delta)
            for name, layer in zip(names, reversed(layers), strict=True)
        ),
        agree("Hᵀδ of the last layer = ∂J/∂W", last.dw, autograd(last.cost, last.w, last.b)[0]),
    )


def _hidden(i: int, layers: int) -> str:
    return f"hidden layer {i + 1}" if layers > 1 else "the hidden layer"


def _answer(picture: Picture, first: Seen, rate: float, gradients: tuple[Tensor, ...]) -> float:
    """Return the share of the right answer after a step along the first layer's gradients."""
    y = output(picture, first.h @ (first.w - rate * gradients[0]) + first.b - rate * gradients[1])
    return float(losses.by_flag(picture.loss).shares(y)[0, picture.label])
