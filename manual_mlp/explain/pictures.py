"""Pictures of the page, as SVG and as bars: colours come from the page's style."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Sequence
from html import escape

from torch import Tensor

from manual_mlp.explain.blocks import Areas, Bars, Curve, Part, Tile, Tiles
from manual_mlp.explain.compare import shape
from manual_mlp.explain.mathml import typeset
from manual_mlp.explain.trees import Trees
from manual_mlp.explain.writing import number

_LEVELS = 10  # shades of a colour
_MOST = 24  # rows and columns of a matrix that are drawn; images are drawn whole


def tiles(picture: Tiles, trees: Trees | None = None) -> str:
    """Draw matrices as coloured squares.

    Args:
        trees: of a page that draws them anew when a number is changed.
    """
    found = [part for part in picture.parts if isinstance(part, Tile)]
    most = max((float(tile.values.abs().max()) for tile in found), default=0.0) or 1.0

    def draw(tile: Tile) -> str:
        number = "" if tile.tree is None or trees is None else trees.number(tile.tree)
        return _tile(tile, most, picture.images, number)

    live = trees is not None and any(tile.tree is not None for tile in found)
    return _figure(picture.says, paired(picture.parts, draw), "tiles" if live else "")


def paired(parts: Sequence[Part | str], draw: Callable[[Part], str]) -> str:
    """Write parts side by side, each on one line with the sign before it; some are there from a number of rows on."""
    made, signs = [], ""
    for part in parts:
        if isinstance(part, str):
            signs += f'<span class="sign">{escape(part)}</span>' if part else ""
            continue
        rows = f' data-rows="{part.when}"' + ("" if part.shown else ' hidden="hidden"') if part.when > 1 else ""
        made.append(f'<span class="pair"{rows}>{signs}{draw(part)}</span>')
        signs = ""
    return "".join(made) + signs


def curve(picture: Curve) -> str:
    """Draw f with a dot and a dash for each entry of Z."""
    drawn = _drawn_curve(
        picture.line.tolist(), *(t.reshape(-1).tolist() for t in (picture.z, picture.y, picture.slope))
    )
    svg = f'<svg viewBox="0 0 300 120" width="300" height="120" role="img" aria-label="the curve of f">{drawn}</svg>'
    return _figure(picture.says, svg, "curve")


def _drawn_curve(line: list[list[float]], z: list[float], y: list[float], slope: list[float]) -> str:
    heights = [v for _, v in line if math.isfinite(v)] + y
    top, low, wide = max(1.0, *heights), min(0.0, *heights), max(6.0, *map(abs, z))

    def at(x: float, v: float) -> tuple[float, float]:
        return 150 + 140 * x / wide, 112 - 104 * (v - low) / (top - low)

    def path(points: list[tuple[float, float]]) -> str:
        return "M" + "L".join(f"{x:.1f} {v:.1f}" for x, v in (at(*point) for point in points))

    axes = path([(-wide, 0), (wide, 0)]) + path([(0, low), (0, top)])
    marks = []
    for x, v, rise in zip(z, y, slope, strict=True):
        (across, up), tilt = at(x, v), -rise * 104 * wide / ((top - low) * 140)
        run = 22 / math.hypot(1, tilt)
        dash = f"M{across - run:.1f} {up - run * tilt:.1f}L{across + run:.1f} {up + run * tilt:.1f}"
        marks.append(f'<path class="dash" d="{dash}"/><circle class="dot" cx="{across:.1f}" cy="{up:.1f}" r="4"/>')
    return f'<path class="axis" d="{axes}"/><path class="line" d="{path([(x, v) for x, v in line])}"/>{"".join(marks)}'


def bars(picture: Bars) -> str:
    """Draw numbers as bars, by size or by order of magnitude."""
    sizes = [abs(value) for _, value in picture.bars]
    if picture.logarithmic:
        orders = [math.log10(size) if size else None for size in sizes]
        lowest = min((order for order in orders if order is not None), default=0.0) - 1
        lengths = [0.0 if order is None else order - lowest for order in orders]
    else:
        lengths = sizes
    longest = max(lengths, default=0.0) or 1.0
    rows = []
    for (name, value), length in zip(picture.bars, lengths, strict=True):
        kind = "neg" if value < 0 else "pos"
        shown = f"{value:.0e}".replace("-", "−") if picture.logarithmic and value else number(value)
        rows.append(
            f'<span>{typeset(name)}</span><span class="value">{shown}</span>'
            f'<span><i class="bar {kind}" style="width:{100 * length / longest:.3g}%"></i></span>'
        )
    return _figure(picture.says, f'<div class="bars">{"".join(rows)}</div>')


def areas(picture: Areas) -> str:
    """Draw two counts as squares, their areas to scale."""
    side = 240.0
    small = side * math.sqrt(picture.small[1] / picture.large[1])
    svg = (
        f'<svg viewBox="0 0 {side + 70:g} {side + 2:g}" width="{side + 70:g}" height="{side + 2:g}" role="img" '
        f'aria-label="{picture.large[0]} beside {picture.small[0]}"><rect class="box" x="1" y="1" width="{side:g}" '
        f'height="{side:g}"/><text x="{side / 2:g}" y="{side / 2:g}" text-anchor="middle">{picture.large[0]}</text>'
        f'<rect class="dot" x="{side + 12:g}" y="{side + 1 - small:.4g}" width="{small:.4g}" height="{small:.4g}"/>'
        f'<text x="{side + 20:g}" y="{side:g}">{picture.small[0]}</text></svg>'
    )
    return _figure(picture.says, svg)


def _figure(says: str, inside: str, live: str = "") -> str:
    kind = f' data-{live}=""' if live else ""
    return f'<figure{kind}><div class="parts">{inside}</div><figcaption>{typeset(says)}</figcaption></figure>'


def _tile(tile: Tile, most: float, image: bool, number: int | str = "") -> str:
    values = tile.values if image else tile.values[:_MOST, :_MOST]
    rows, columns = values.shape
    pixel = min(26.0, max(2.0, 112 / max(rows, columns)))
    name = f"{tile.caption}, {shape(tile.values)}"
    svg = (
        f'<svg viewBox="0 0 {columns} {rows}" width="{columns * pixel:.4g}" height="{rows * pixel:.4g}" role="img" '
        f'aria-label="{escape(name, quote=True)}">{_paths(values, most)}<rect class="frame" width="{columns}" '
        f'height="{rows}"/></svg>'
    )
    down, right = tile.labels
    along = f' <span class="along">{down}↓ {right}→</span>' if down or right else ""
    live = "" if number == "" else f' data-x="{number}"'
    return f'<span class="tile"{live}>{svg}<small>{typeset(tile.caption)}{along}</small></span>'


def _paths(values: Tensor, most: float) -> str:
    """Draw the entries, one path for all of a shade."""
    squares: dict[tuple[str, int], list[str]] = defaultdict(list)
    for r, row in enumerate(values.tolist()):
        for c, value in enumerate(row):
            level = min(_LEVELS, round(_LEVELS * abs(value) / most)) if math.isfinite(value) else 0
            if level or value:
                squares["neg" if value < 0 else "pos", max(1, level)].append(f"M{c} {r}h1v1h-1z")
    return "".join(
        f'<path class="{sign}" fill-opacity="{level / _LEVELS:g}" d="{"".join(paths)}"/>'
        for (sign, level), paths in sorted(squares.items())
    )
