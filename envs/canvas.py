"""A canvas for pictures of things in the plane, drawn in the units of their world."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Point = tuple[float, float]
"""x (rightwards) and y (upwards)."""

PAPER, LIGHT, GREY, INK = "#fafaf7", "#dee0de", "#969aa0", "#2d3440"
BLUE, ORANGE, GREEN, RED = "#4285be", "#ee8e3c", "#5cac78", "#d6544c"
SMOOTHING = 3
"""Pixels drawn for each pixel of the picture, along an edge."""


class Canvas:
    """A part of the plane to draw on; what is drawn later lies on top.

    Args:
        width: of the picture in pixels.
        height: of the picture in pixels.
        center: the point in its middle.
        scale: pixels of one unit.
    """

    def __init__(self, width: int, height: int, center: Point, scale: float) -> None:
        from PIL import Image, ImageDraw  # only pictures need it

        self.center = center
        self.scale = scale * SMOOTHING
        self.image = Image.new("RGB", (width * SMOOTHING, height * SMOOTHING), PAPER)
        self.pen = ImageDraw.Draw(self.image)

    def polygon(self, points: Sequence[Point], color: str) -> None:
        """Fill the polygon with these corners."""
        self.pen.polygon([self._at(point) for point in points], color)

    def disc(self, center: Point, radius: float, color: str) -> None:
        """Fill a disc."""
        (x, y), r = self._at(center), radius * self.scale
        self.pen.ellipse((x - r, y - r, x + r, y + r), color)

    def line(self, points: Sequence[Point], width: float, color: str) -> None:
        """Draw a line through points, with round corners and ends."""
        corners = [self._at(point) for point in points]
        self.pen.line(corners, color, round(width * self.scale), joint="curve")
        for end in (points[0], points[-1]):
            self.disc(end, width / 2, color)

    def picture(self) -> NDArray[np.uint8]:
        """Return what was drawn, RGB `[height, width, 3]`."""
        return np.array(self.image.reduce(SMOOTHING))

    def _at(self, point: Point) -> Point:
        width, height = self.image.size
        x, y = ((p - c) * self.scale for p, c in zip(point, self.center, strict=True))
        return width / 2 + x, height / 2 - y
