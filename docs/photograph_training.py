"""Photograph a run of train.py: ``python docs/photograph_training.py RUN`` draws docs/training.png, for the README.

The pictures are those that TensorBoard gets, drawn larger, of the test images and the weights that the run ended with.
"""

import argparse
import sys
from pathlib import Path

import matplotlib
import numpy as np
import torch
from matplotlib import font_manager
from PIL import Image, ImageDraw, ImageFont, ImageOps

from manual_mlp.training import checkpoint, figures
from manual_mlp.training.data import load
from manual_mlp.training.report import Predictions

PICTURE = Path(__file__).parent / "training.png"
WIDTH, GAP, TITLE, MARGIN = 1636, 20, 46, 12  # pixels; a README shows half as many
FILTERS = 32  # of the first layer, in two rows
COLOURS = 96


def photograph(folder: Path) -> Image.Image:
    """Draw the confusion matrix, the most confident mistakes and the first filters of a run."""
    settings = checkpoint.load_settings(folder)
    device = torch.device("cpu")
    chosen = settings["held_out"], settings["normalised"]
    data = load(settings["dataset"], checkpoint.data_dir(settings), device, *chosen)
    test, model = data.read_test(), checkpoint.load_model(folder)
    found = Predictions.of(model, test, settings["loss"])
    worst = found.wrong[: figures.MISTAKES]
    pixels = test.images[worst].mul(data.std).add(data.mean).clamp(0, 1).view(-1, *data.image_shape)
    half = (WIDTH - GAP) // 2
    # The figures are 6.5 and 6 inches wide.
    with matplotlib.rc_context({"figure.dpi": half / 6.5, "font.size": 14}):
        matrix = figures.confusion(found.labels, found.predicted, data.classes)
    with matplotlib.rc_context({"figure.dpi": half / 6}):
        mistakes = figures.mistakes(pixels, [found.caption(i) for i in worst.tolist()])
    weight = model.layers[0].weight.detach()
    filters = figures.stretched(weight[:FILTERS].view(-1, *data.image_shape))
    grids = [np.pad(figures.grid(part).numpy(), ((0, 0), (0, 1)), constant_values=128) for part in filters.chunk(2)]
    right = 100 * (1 - len(found.wrong) / len(found.labels))
    strip = Image.fromarray(np.hstack(grids)[:, :-1]).convert("RGB")
    strip = strip.resize((WIDTH, strip.height * WIDTH // strip.width), Image.Resampling.NEAREST)
    panels = [
        (f"{len(found.labels):,} test images, {right:.2f} % right", Image.fromarray(matrix), 0),
        ("The most confident mistakes: true → predicted", Image.fromarray(mistakes), half + GAP),
        (f"What {FILTERS} of the first layer's {len(weight)} units look for", strip, 0),
    ]
    top = TITLE + max(panel.height for _, panel, _ in panels[:2]) + GAP
    picture = Image.new("RGB", (WIDTH, top + TITLE + strip.height), "white")
    draw, font = ImageDraw.Draw(picture), ImageFont.truetype(font_manager.findfont("DejaVu Sans"), 27)
    for (title, panel, left), at in zip(panels, (0, 0, top), strict=True):
        draw.text((left, at + 4), title, "black", font)
        picture.paste(panel, (left, at + TITLE))
    return ImageOps.expand(picture, MARGIN, "white").quantize(COLOURS, dither=Image.Dither.NONE)


def main() -> int:
    parser = argparse.ArgumentParser(description="Draw docs/training.png of a run of train.py.")
    parser.add_argument("run", type=Path, metavar="RUN", help="its folder")
    parser.add_argument("--output", type=Path, default=PICTURE, metavar="FILE", help="PNG file to write")
    options = parser.parse_args()
    photograph(options.run).save(options.output, optimize=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
