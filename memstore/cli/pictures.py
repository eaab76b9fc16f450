"""Arrays as pictures in a terminal: sparklines, shades of characters, half blocks in colour."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.color import Color
from rich.style import Style
from rich.text import Text

from memstore.cli.output import BLOCKS as BLOCKS

Floats = NDArray[np.float64]

SHADES = " .:-=+*#%@"
"""Pictures without colour are made of these characters, from dark to bright."""
UNKNOWN = "?"
"""A pixel that is not finite has this character."""
UNKNOWN_COLOUR = (255, 0, 255)
"""A pixel that is not finite has this colour (red, green, blue)."""

MIN_SIDE, MAX_SIDE = 4, 256
"""An array is taken for an image if its sides, in pixels, are within these limits."""
FLAT_SIDES = range(8, 65, 4)
"""Square images with these sides are commonly stored as one row: 8 x 8 digits, 28 x 28, 32 x 32 and others."""

MAX_HEIGHT = 64
"""A picture has at most this height in pixels, so that it fits on a screen."""

SMALL = 32
"""A colour picture up to this size in pixels is enlarged, because a pixel is only half a character high."""


@dataclass(frozen=True, slots=True)
class Image:
    """An array as an image.

    Attributes
    ----------
    pixels : float64, shape (height, width, 1 or 3)
        0 (dark) .. 1 (bright), NaN for a value that is not finite.
    dark, bright : float
        Values of the array that 0 and 1 stand for.
    """

    pixels: Floats
    dark: float
    bright: float

    @property
    def size(self) -> str:
        """Height and width."""
        return f"{self.pixels.shape[0]} x {self.pixels.shape[1]}"


def real(array: NDArray[Any]) -> Floats:
    """Return the values as float64: complex ones by magnitude, booleans as 0 and 1, and NaN for all not finite."""
    with np.errstate(over="ignore", invalid="ignore"):
        values = np.asarray(np.abs(array) if array.dtype.kind == "c" else array).astype(np.float64)
    return np.where(np.isfinite(values), values, np.nan)


def sparkline(array: NDArray[Any], width: int = 60) -> str:
    """Return the values of a 1-D array as a curve of blocks, one character each.

    If there are more than ``width`` values, groups of neighbours are averaged. A group without a finite value is a
    gap. If all values are equal, the curve has half the height.
    """
    if not array.size:
        return ""
    values = _scale(_average_groups(_scale(real(array)), min(array.size, width)))
    return "".join(" " if math.isnan(v) else BLOCKS[min(int(v * len(BLOCKS)), len(BLOCKS) - 1)] for v in values)


def image_in(array: NDArray[Any]) -> Image | None:
    """Return an array as an image; None if its shape is not that of an image.

    Shapes of images are (h, w), (h, w, 1 | 3 | 4) and (1 | 3, h, w) with sides of 4 .. 256, and (n,) where n is the
    square of 8, 12, 16 .. 64. A fourth channel is left out.
    """
    planes = _image_planes(array)
    if planes is None:
        return None
    values = real(planes)
    if not np.isfinite(values).any():
        return Image(values, 0.0, 1.0)
    low, high = float(np.nanmin(values)), float(np.nanmax(values))
    if array.dtype.kind == "b" or (array.dtype.kind in "fc" and low >= 0 and high <= 1):
        return Image(values, 0.0, 1.0)
    if array.dtype == np.uint8:
        return Image(values / 255, 0.0, 255.0)
    return Image(_scale(values), low, high)


def shaded(image: Image, width: int) -> list[str]:
    """Return the image as lines of characters from dark to bright, two a pixel, scaled down if it is too large."""
    grey = _shrink(image.pixels, width // 2, MAX_HEIGHT // 2).mean(axis=2)
    return ["".join(2 * _shade(value) for value in row).rstrip() for row in grey.tolist()]


def half_blocks(image: Image, width: int) -> Text:
    """Return the image in colour, with two pixels in each character, one above the other, in a size easy to see."""
    pixels = _shrink(image.pixels, width, MAX_HEIGHT)
    times = max(1, min(SMALL // max(pixels.shape[:2]), width // pixels.shape[1]))
    pixels = pixels.repeat(times, axis=0).repeat(times, axis=1)
    colours = np.where(np.isnan(pixels), UNKNOWN_COLOUR, np.rint(pixels * 255)).astype(int).tolist()
    text = Text()
    for row in range(0, len(colours), 2):
        if row:
            text.append("\n")
        below = colours[row + 1] if row + 1 < len(colours) else [None] * len(colours[row])
        for upper, lower in zip(colours[row], below, strict=True):
            background = None if lower is None else Color.from_rgb(*lower)
            text.append("▀", Style(color=Color.from_rgb(*upper), bgcolor=background))
    return text


def _image_planes(array: NDArray[Any]) -> NDArray[Any] | None:
    """Return the array as (height, width, channels); None if it is not an image."""
    side = math.isqrt(array.size)
    if array.ndim == 1 and side in FLAT_SIDES and side * side == array.size:
        return array.reshape(side, side, 1)
    if array.ndim == 2 and _are_sides(*array.shape):
        return array[:, :, None]
    if array.ndim == 3 and array.shape[2] in (1, 3, 4) and _are_sides(*array.shape[:2]):
        return array[:, :, :3]
    if array.ndim == 3 and array.shape[0] in (1, 3) and _are_sides(*array.shape[1:]):
        return array.transpose(1, 2, 0)
    return None


def _are_sides(height: int, width: int) -> bool:
    return MIN_SIDE <= height <= MAX_SIDE and MIN_SIDE <= width <= MAX_SIDE


def _scale(values: Floats) -> Floats:
    """Return the values scaled to 0 (the least) .. 1 (the greatest); 0.5 if all are equal."""
    if not np.isfinite(values).any():
        return values
    # The values are halved first, so that the difference of the largest floats is finite.
    low, high = np.nanmin(values) / 2, np.nanmax(values) / 2
    if high <= low:
        return np.where(np.isnan(values), np.nan, 0.5)
    scaled: Floats = (values / 2 - low) / (high - low)
    return scaled


def _average_groups(values: Floats, count: int) -> Floats:
    """Return the means of ``count`` groups of neighbours along the first axis; NaN for a group with no finite value."""
    if count == len(values):
        return values
    starts = np.arange(count) * len(values) // count
    known = np.isfinite(values)
    numbers = np.add.reduceat(known.astype(np.float64), starts, axis=0)
    sums = np.add.reduceat(np.where(known, values, 0.0), starts, axis=0)
    means: Floats = np.divide(sums, numbers, out=np.full_like(sums, np.nan), where=numbers > 0)
    return means


def _shrink(pixels: Floats, width: int, height: int) -> Floats:
    """Return the image, no larger than this, with its proportions kept."""
    factor = min(1.0, width / pixels.shape[1], height / pixels.shape[0])
    rows, columns = (max(1, int(side * factor)) for side in pixels.shape[:2])
    return _average_groups(_average_groups(pixels, rows).swapaxes(0, 1), columns).swapaxes(0, 1)


def _shade(value: float) -> str:
    return UNKNOWN if math.isnan(value) else SHADES[min(int(value * len(SHADES)), len(SHADES) - 1)]
