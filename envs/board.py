"""A drawing board of square tiles, for the pictures of grid worlds and card tables."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, cast

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from PIL import ImageFont

Point = tuple[float, float]
"""x (rightwards) and y (downwards) from the top left corner of a tile, in tiles."""
Tile = tuple[int, int]
"""Row and column."""

SMOOTHING = 3
"""Pixels drawn for each pixel of the picture, along an edge."""


class Board:
    """Tiles to draw on; what is drawn later lies on top.

    Args:
        rows: of tiles.
        columns: of tiles.
        color: of the empty board.
        pixels: edge of a tile in the picture.
        margin: around the tiles, in tiles.
    """

    def __init__(
        self, rows: int, columns: int, color: str, pixels: int = 64, margin: float = 0.0
    ) -> None:
        from PIL import Image, ImageDraw  # only pictures need it

        self.unit = pixels * SMOOTHING
        self.margin = margin
        size = (round((columns + 2 * margin) * pixels), round((rows + 2 * margin) * pixels))
        size = (size[0] * SMOOTHING, size[1] * SMOOTHING)
        self.image = Image.new("RGB", size, color)
        self.pen = ImageDraw.Draw(self.image)

    def polygon(self, tile: Tile, points: Sequence[Point], color: str) -> None:
        """Fill the polygon with these corners."""
        self.pen.polygon([self._at(tile, point) for point in points], fill=color)

    def box(
        self,
        tile: Tile,
        low: Point,
        high: Point,
        color: str,
        radius: float = 0.0,
        edge: str | None = None,
    ) -> None:
        """Fill the rectangle between two corners, rounded and with an edge if wanted."""
        corners = [self._at(tile, low), self._at(tile, high)]
        self.pen.rounded_rectangle(
            corners, radius * self.unit, fill=color, outline=edge, width=self._width(edge)
        )

    def disc(
        self, tile: Tile, center: Point, radius: float | Point, color: str, edge: str | None = None
    ) -> None:
        """Fill a disc, or an ellipse with two radii."""
        x, y = center
        right, down = radius if isinstance(radius, tuple) else (radius, radius)
        corners = [self._at(tile, (x - right, y - down)), self._at(tile, (x + right, y + down))]
        self.pen.ellipse(corners, fill=color, outline=edge, width=self._width(edge))

    def write(
        self, tile: Tile, point: Point, text: str, size: float, color: str, anchor: str = "mm"
    ) -> None:
        """Write text around a point, or from it with anchor "lm"; letters are `size` tiles high."""
        from PIL import ImageFont

        # Pillow's own font comes in every size.
        font = cast("ImageFont.FreeTypeFont", ImageFont.load_default(size * self.unit))
        self.pen.text(self._at(tile, point), text, color, font, anchor)

    def flag(self, tile: Tile, color: str) -> None:
        """Plant a flag."""
        self.box(tile, (0.42, 0.16), (0.47, 0.86), "#5b4636")
        self.polygon(tile, [(0.47, 0.16), (0.84, 0.30), (0.47, 0.46)], color)
        self.disc(tile, (0.445, 0.87), (0.16, 0.05), "#5b4636")

    def picture(self) -> NDArray[np.uint8]:
        """Return what was drawn, RGB `[height, width, 3]`."""
        return np.array(self.image.reduce(SMOOTHING))

    def _at(self, tile: Tile, point: Point) -> Point:
        x, y = tile[1] + point[0] + self.margin, tile[0] + point[1] + self.margin
        return x * self.unit, y * self.unit

    def _width(self, edge: str | None) -> int:
        return 0 if edge is None else max(1, self.unit // 24)
