"""The panel beside a picture of the environment: counts, value, and the policy of each factor."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil, sqrt
from typing import Any

import numpy as np
from numpy.typing import NDArray

Frame = NDArray[np.uint8]
"""RGB `[height, width, 3]`."""
PAPER, LIGHT, GREY, INK = "#fafaf7", "#dee0de", "#7b8087", "#2d3440"
BLUE, ORANGE = "#4285be", "#ee7f22"
WIDTH, MIN_HEIGHT, MARGIN = 300, 320, 14
"""Of the panel in pixels; a smaller picture is enlarged by whole factors."""


@dataclass(frozen=True)
class Moment:
    """A choice of the agent, at one step of one environment."""

    frame: Frame
    """What the environment looks like."""
    probs: NDArray[np.floating[Any]]
    """`[K, N]`: of each category of each factor; padding is zero."""
    allowed: NDArray[np.bool_]
    """`[K, N]`: what may be chosen; padding is False."""
    sizes: Sequence[int]
    """Number of categories of each factor."""
    index: NDArray[np.int64]
    """`[K]`: what was chosen."""
    value: float
    """What the critic expects of it, in the units of the critic's training."""
    episode: int
    """Counted from 1."""
    step: int
    """Of the episode, counted from 0."""
    episode_return: float
    """Sum of the rewards before this step."""


def draw(moment: Moment, values: Sequence[float]) -> Frame:
    """Return the picture of a moment with its panel at the right, `[height, width, 3]`, even sides.

    Args:
        moment: to draw.
        values: the value at each step of the episode, the present one last.
    """
    from PIL import Image, ImageDraw

    frame = enlarge(moment.frame)
    height = max(frame.shape[0], MIN_HEIGHT)
    width = frame.shape[1] + WIDTH
    image = Image.new("RGB", (width + width % 2, height + height % 2), PAPER)
    image.paste(Image.fromarray(frame), (0, (image.height - frame.shape[0]) // 2))
    pen = ImageDraw.Draw(image)
    left, right = frame.shape[1] + MARGIN, image.width - MARGIN
    for place, text in (
        ((left, 12), f"episode {moment.episode}"),
        ((left + 136, 12), f"step {moment.step}"),
        ((left, 34), f"return {moment.episode_return:.6g}"),
        ((left + 136, 34), f"value {moment.value:.4g}"),
    ):
        pen.text(place, text, INK, _font(15))
    draw_line(pen, (left, 60, right, 104), values)
    draw_factors(pen, (left, 118, right, image.height - MARGIN), moment)
    return np.asarray(image)


def enlarge(frame: Frame) -> Frame:
    """Return the picture, each pixel repeated until it is about as high as the panel."""
    times = max(1, MIN_HEIGHT // frame.shape[0])
    times = min(times, max(1, 600 // frame.shape[1]))  # no wider than the widest environments
    return np.ascontiguousarray(frame.repeat(times, 0).repeat(times, 1))


def draw_line(pen: Any, box: tuple[int, int, int, int], values: Sequence[float]) -> None:
    """Draw the values of the episode as a line that fills the box."""
    left, top, right, bottom = box
    pen.rectangle(box, LIGHT)
    low, span = min(values), max(values) - min(values) or 1.0
    across = (right - left - 4) / max(len(values) - 1, 1)
    points = [
        (left + 2 + i * across, bottom - 4 - (value - low) / span * (bottom - top - 8))
        for i, value in enumerate(values)
    ]
    if len(points) > 1:
        pen.line(points, BLUE, 2)
    x, y = points[-1]
    pen.ellipse((x - 3, y - 3, x + 3, y + 3), ORANGE)


def draw_factors(pen: Any, box: tuple[int, int, int, int], moment: Moment) -> None:
    """Draw a bar for the probability of each category, factor by factor; the choice is orange."""
    left, top, right, bottom = box
    number = len(moment.probs)
    columns = max(1, round(sqrt(0.35 * number)))
    rows = ceil(number / columns)
    across, down = (right - left) / columns, (bottom - top) / rows
    is_roomy = down >= 34 and max(moment.sizes) * 14 <= across
    foot = 15 if is_roomy else min(3.0, down / 5)
    for k, (probs, index) in enumerate(zip(moment.probs, moment.index, strict=True)):
        x, y = left + k % columns * across, top + k // columns * down
        label = 0 if number == 1 else 20
        if label:
            pen.text((x, y + (down - foot) / 2 - 6), str(k), GREY, _font(11))
        start, end = x + label, x + across - (10 if columns > 1 else 0)
        floor, ceiling = y + down - foot, y + min(4.0, down / 5)
        pen.rectangle((start, ceiling, end, floor), LIGHT)
        each = (end - start) / moment.sizes[k]
        for n in range(moment.sizes[k]):
            bar = start + n * each
            color = ORANGE if n == index else BLUE
            high = floor - max(1.0, float(probs[n]) * (floor - ceiling))
            pen.rectangle((bar + 1, high, bar + max(each - 2, 1.0), floor), color)
            if is_roomy:
                ink = INK if moment.allowed[k, n] else LIGHT
                pen.text((bar + each / 2, floor + 2), str(n), ink, _font(11), anchor="ma")


def _font(size: int) -> Any:
    from PIL import ImageFont

    return ImageFont.load_default(size)
