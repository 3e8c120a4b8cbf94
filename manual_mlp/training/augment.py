"""Distorted copies of images, a whole batch at a time: affine and elastic.

Each output pixel is read, bilinearly, from a place in the image. Over rows y and columns x that place is a bilinear
form in a few functions of one coordinate, 1, the coordinate itself, and the smooth functions of an elastic field::

    place(y, x) = Σᵢⱼ rows[y, i] · C[i, j] · columns[x, j]

so two products with small matrices make the places of all pixels, whatever the distortions, and one pass over the
images reads them. Only C is drawn, afresh for each image.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

from manual_mlp.training.errors import InputError

FARTHEST = 10**6  # pixels that any of an image may move; float32 still knows such places, and an image has none there
_LONGEST = 4096  # pixels of a side that an elastic field is made for: its basis takes time with the cube of them
_THINNEST = 2.0**-20  # share of its width, or height, that an image keeps
_BLOCK = 512  # images whose places are in the cache at once
_REACH = 4  # standard deviations of the Gaussian; beyond lie 6e-5 of it
_DROPPED = 1e-6  # share of an elastic field's variance that need not be kept


@dataclass(frozen=True)
class Deformation:
    """Deform each image of a batch in its own way; what enters is background.

    The affine part is drawn uniformly. It scales an image, then shears, turns and moves it, about its centre. The
    elastic part moves each pixel by a random field: noise, smoothed by a Gaussian and scaled. The noise is normal with
    the variance of Simard's, which is uniform in [-1, 1]: smoothed, the two look alike.

    Attributes:
        rotation: largest angle, degrees.
        scaling: largest change of width and of height, as a share: each is multiplied by a factor in 1 ± scaling.
        shear: largest slant of upright lines, degrees.
        translation: largest offset in each direction, pixels.
        alpha: factor of the elastic field. Its root mean square is ``alpha / (sigma √(12π))`` pixels each way.
        sigma: standard deviation of the Gaussian, pixels.

    Shape:
        images: `(N, height * width)`. Output: the same.

    Raises:
        InputError: a parameter is out of range, or the images have another size.

    Source: Simard, Steinkraus and Platt, Best practices for convolutional neural networks applied to visual document
    analysis (2003), section 2: alpha 34, sigma 4.
    """

    rotation: float = 0.0
    scaling: float = 0.0
    shear: float = 0.0
    translation: float = 0.0
    alpha: float = 0.0
    sigma: float = 4.0

    @property
    def is_identity(self) -> bool:
        """Whether images would come back as they are."""
        return not any((self.rotation, self.scaling, self.shear, self.translation, self.alpha))

    def __post_init__(self) -> None:
        self._require("rotation", 0 <= self.rotation <= 180, "degrees in [0, 180]")
        self._require("scaling", 0 <= self.scaling < 1, "a share in [0, 1)")
        self._require("shear", 0 <= self.shear < 90, "degrees in [0, 90)")
        self._require("translation", 0 <= self.translation <= FARTHEST, f"pixels in [0, {FARTHEST:,}]")
        self._require("alpha", 0 <= self.alpha <= FARTHEST, f"pixels in [0, {FARTHEST:,}]")
        self._require("sigma", 0.5 <= self.sigma <= 100, "pixels in [0.5, 100]")

    @torch.no_grad()
    def __call__(
        self, images: Tensor, image_shape: tuple[int, int], background: float, generator: torch.Generator
    ) -> Tensor:
        """Return deformed copies, drawn by a generator of the images' device."""
        height, width = image_shape
        if images.dim() != 2 or images.size(1) != height * width:
            raise InputError(f"expected images (N, {height * width}), got {tuple(images.shape)}")
        self.require_size(image_shape)
        n = images.size(0)
        factors = torch.rand(n, 6, generator=generator, device=images.device).mul_(2).sub_(1)
        limits = (math.radians(self.rotation), self.scaling, self.scaling, self.shear, *[self.translation] * 2)
        # Times Python's numbers: a tensor of them would be a copy to the GPU, which waits for it.
        angle, wider, taller, slant, right, down = (
            (factor * limit).to(images.dtype) for factor, limit in zip(factors.unbind(1), limits, strict=True)
        )
        coefficients = affine(
            angle,
            # Rounded, a scaling just below 1 would make an image of no width.
            torch.stack((1 + wider, 1 + taller), 1).clamp_(min=_THINNEST),
            (slant * (math.pi / 180)).tan(),
            torch.stack((right, down), 1),
        )
        if not self.alpha:
            return resample(images, image_shape, coefficients, background)
        shape = (n, *(elastic_basis(size, self.sigma).size(1) for size in image_shape), 2)
        noise = torch.randn(shape, generator=generator, device=images.device).mul_(self.alpha / math.sqrt(3))
        coefficients = F.pad(coefficients, (0, 0, 0, shape[2], 0, shape[1]))
        coefficients[:, 2:, 2:] = noise
        return resample(images, image_shape, coefficients, background, self.sigma)

    def require_size(self, image_shape: tuple[int, int]) -> None:
        """See that images are not too large to be deformed.

        Raises:
            InputError: they are.
        """
        if self.alpha and max(image_shape) > _LONGEST:
            height, width = image_shape
            raise InputError(
                f"expected sides of at most {_LONGEST} pixels for an elastic deformation, got {height}x{width}"
            )

    def _require(self, name: str, holds: bool, expected: str) -> None:
        if not holds:
            raise InputError(f"expected {name} to be {expected}, got {getattr(self, name)}")


def affine(angle: Tensor, scale: Tensor, shear: Tensor, offset: Tensor) -> Tensor:
    """Return the C of images that are scaled, sheared, turned and moved: the places are those of the inverse.

    Args:
        angle: radians, counter-clockwise.
        scale: factors of width and height.
        shear: pixels to the right for each pixel down.
        offset: pixels to the right and down.

    Shape:
        angle, shear: `(N,)`. scale, offset: `(N, 2)`. Output: `(N, 2, 2, 2)`, `[1, y] × [1, x] × [right, down]`.
    """
    cos, sin = angle.cos(), angle.sin()
    # The inverse of [[cos, sin], [-sin, cos]] · [[1, shear], [0, 1]] · diag(scale): y points down.
    inverse = torch.stack((cos - shear * sin, -sin - shear * cos, sin, cos), 1).view(-1, 2, 2) / scale[:, :, None]
    c = inverse.new_zeros(len(inverse), 2, 2, 2)
    c[:, 0, 0] = -(inverse @ offset[:, :, None])[:, :, 0]
    c[:, 0, 1] = inverse[:, :, 0]  # along x
    c[:, 1, 0] = inverse[:, :, 1]  # along y
    return c


@lru_cache(maxsize=16)
def elastic_basis(size: int, sigma: float) -> Tensor:
    """Return E such that E n, of standard normal n, is white noise smoothed by a Gaussian.

    The covariance of smoothed noise is G Gᵀ, with the Gaussian in each row of G. It is so smooth that a few of its
    eigenvectors hold all of it: E has these as columns. Along two axes, E N Eᵀ.

    Args:
        size: pixels of the axis.
        sigma: standard deviation of the Gaussian, pixels.

    Shape:
        Output: `(size, k)`, float64.
    """
    reach = math.ceil(_REACH * sigma)
    at = torch.arange(-reach, reach + 1, dtype=torch.float64)
    gaussian = (-0.5 * (at / sigma) ** 2).exp()
    gaussian /= gaussian.sum()
    g = gaussian.new_zeros(size, size + 2 * reach)
    for i in range(size):
        g[i, i : i + len(at)] = gaussian
    values, vectors = torch.linalg.eigh(g @ g.mT)
    # eigh sorts upwards: the first ones that do not add up to anything are dropped.
    kept = values.cumsum(0) > _DROPPED * values.sum()
    basis: Tensor = vectors[:, kept] * values[kept].sqrt()
    return basis


def resample(
    images: Tensor,
    image_shape: tuple[int, int],
    coefficients: Tensor,
    background: float,
    sigma: float | None = None,
) -> Tensor:
    """Read each image at the places of its C, in pixels from the centre; outside of it is background.

    Args:
        sigma: of the elastic field, where C has one: its functions are those of :func:`elastic_basis`.

    Shape:
        images: `(N, height * width)`. coefficients: `(N, 2 + k, 2 + l, 2)`, the last axis right and down.
        Output: as images.
    """
    height, width = image_shape
    rows, columns = _functions(image_shape, sigma, images.dtype, images.device)
    moved = torch.empty_like(images)
    for start in range(0, images.size(0), _BLOCK):
        at = slice(start, start + _BLOCK)
        lines = rows @ coefficients[at].flatten(2)  # (n, height, 2(2 + l))
        grid = (lines.flatten(0, 1) @ columns).view(-1, height, width, 2)
        pictures = images[at].sub(background).view(-1, 1, height, width)
        # Zeros enter at the border.
        moved[at] = F.grid_sample(pictures, grid, align_corners=False).flatten(1)
    return moved.add_(background)


# Kept on the device: each copy to a GPU would wait for it.
@lru_cache(maxsize=16)
def _functions(
    image_shape: tuple[int, int], sigma: float | None, dtype: torch.dtype, device: torch.device
) -> tuple[Tensor, Tensor]:
    """Return the functions of y at each pixel, and those of x: to the right and down, in grid_sample's units.

    Shape:
        Output: `(height, 2 + k)` and `(2(2 + l), 2 width)`.
    """
    height, width = image_shape
    rows, columns = (_basis(size, sigma).to(dtype) for size in image_shape)
    # From pixels to grid_sample's units: the edges of the image lie at ±1.
    unit = torch.tensor((2 / width, 2 / height), dtype=dtype)
    # Not torch.kron, which fails for one pixel.
    pairs = columns.mT[:, None, :, None] * unit.diag()[:, None]
    return rows.to(device), pairs.reshape(2 * columns.size(1), 2 * width).to(device)


def _basis(size: int, sigma: float | None) -> Tensor:
    """Return the functions 1, distance from the centre, and those of an elastic field, at each pixel of an axis."""
    centred = torch.arange(size, dtype=torch.float64) - (size - 1) / 2
    fields = () if sigma is None else elastic_basis(size, sigma).unbind(1)
    return torch.stack((torch.ones_like(centred), centred, *fields), 1)
