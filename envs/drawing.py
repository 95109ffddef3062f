"""Pictures of environments: shapes in the units of the world, and grids of coloured cells."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

Color = tuple[int, int, int]
Point = tuple[float, float]

PAPER: Color = (250, 250, 247)
LIGHT: Color = (222, 224, 222)
GREY: Color = (150, 154, 160)
INK: Color = (45, 52, 64)
BLUE: Color = (66, 133, 190)
ORANGE: Color = (238, 142, 60)
GREEN: Color = (92, 172, 120)
RED: Color = (214, 84, 76)
OVERSAMPLING = 2
"""Pictures are drawn so many times larger and then shrunk, for smooth edges."""


class Canvas:
    """A picture `width` x `height` pixels of a part of the plane, `up` pointing up.

    Args:
        width: pixels.
        height: pixels.
        center: the point in the middle of the picture.
        scale: pixels of one unit of the world.
    """

    def __init__(self, width: int, height: int, center: Point, scale: float) -> None:
        self._size = width, height
        self._center = center
        self._scale = scale * OVERSAMPLING
        self._image = Image.new("RGB", (width * OVERSAMPLING, height * OVERSAMPLING), PAPER)
        self._draw = ImageDraw.Draw(self._image)

    def polygon(self, points: Sequence[Point], color: Color) -> None:
        """Fill a polygon."""
        self._draw.polygon([self._pixel(point) for point in points], color)

    def disc(self, center: Point, radius: float, color: Color) -> None:
        """Fill a circle."""
        (x, y), r = self._pixel(center), radius * self._scale
        self._draw.ellipse((x - r, y - r, x + r, y + r), color)

    def line(self, points: Sequence[Point], width: float, color: Color) -> None:
        """Draw a line through points, with round joints and ends."""
        pixels = [self._pixel(point) for point in points]
        self._draw.line(pixels, color, round(width * self._scale), joint="curve")
        for point in (points[0], points[-1]):
            self.disc(point, width / 2, color)

    def pixels(self) -> NDArray[np.uint8]:
        """Return the picture, `[height, width, 3]`."""
        return np.asarray(self._image.resize(self._size, Image.Resampling.BOX))

    def _pixel(self, point: Point) -> Point:
        width, height = self._image.size
        x, y = ((p - c) * self._scale for p, c in zip(point, self._center, strict=True))
        return width / 2 + x, height / 2 - y


def draw_cells(colors: NDArray[np.uint8], cell_pixels: int) -> NDArray[np.uint8]:
    """Return `[rows, columns, 3]` colours as squares with thin lines between them."""
    picture = colors.repeat(cell_pixels, 0).repeat(cell_pixels, 1)
    picture[::cell_pixels] = picture[:, ::cell_pixels] = LIGHT
    return picture
