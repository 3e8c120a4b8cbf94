"""Pictures of the page, as SVG and as bars: colours come from the page's style."""

from __future__ import annotations

import math
from collections import defaultdict
from html import escape

from torch import Tensor

from manual_mlp.explain.blocks import Areas, Bars, Boxes, Tile, Tiles, number
from manual_mlp.explain.compare import shape
from manual_mlp.explain.mathml import typeset

_LEVELS = 10  # shades of a colour
_MOST = 40  # rows and columns of a matrix that are drawn; images are drawn whole


def tiles(picture: Tiles) -> str:
    """Draw matrices as coloured squares."""
    most = max((float(part.values.abs().max()) for part in picture.parts if isinstance(part, Tile)), default=0.0)
    parts = []
    for part in picture.parts:
        if isinstance(part, str):
            parts.append(f'<span class="sign">{escape(part)}</span>' if part else "")
        else:
            parts.append(_tile(part, most or 1.0, picture.images))
    return _figure(picture.says, "".join(parts))


def boxes(picture: Boxes) -> str:
    """Draw arrays as rectangles, their sides to scale."""
    most = max(side for part in picture.parts if not isinstance(part, str) for side in part[1:])
    parts = []
    for part in picture.parts:
        if isinstance(part, str):
            parts.append(f'<span class="sign">{escape(part)}</span>')
            continue
        name, rows, columns = part
        height, width = (max(4.0, 90 * side / most) for side in (rows, columns))
        svg = (
            f'<svg viewBox="-1 -1 {width + 2:.4g} {height + 2:.4g}" width="{width + 2:.4g}" height="{height + 2:.4g}" '
            f'role="img" aria-label="{name}, {rows} by {columns}"><rect class="box" width="{width:.4g}" '
            f'height="{height:.4g}"/></svg>'
        )
        parts.append(f'<span class="tile">{svg}<small>{name} {rows}×{columns}</small></span>')
    return _figure(picture.says, "".join(parts))


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


def _figure(says: str, inside: str) -> str:
    return f'<figure><div class="parts">{inside}</div><figcaption>{typeset(says)}</figcaption></figure>'


def _tile(tile: Tile, most: float, image: bool) -> str:
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
    return f'<span class="tile">{svg}<small>{typeset(tile.caption)}{along}</small></span>'


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
