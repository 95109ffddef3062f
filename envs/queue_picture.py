"""The picture of a queueing network: jobs in their queues, before the counters of the servers."""

from collections.abc import Sequence
from itertools import pairwise
from math import ceil

import numpy as np
from numpy.typing import NDArray

from rl_gumbel.envs.board import Board, Point
from rl_gumbel.envs.queue_systems import Network

PAPER, PANEL, TRAY, INK, IDLE = "#fafaf7", "#e9ebee", "#ffffff", "#2d3440", "#b9bdc3"
COLORS = ("#4285be", "#ee8e3c", "#5cac78", "#d6544c")
"""Of jobs and their ways: of a row, or of a column where there is one row."""
LENGTH, COUNTER, GAP = 2.2, 0.3, 1.1
"""Of a queue, of a counter, and between two servers; in tiles, as all sizes here."""
TOP, PITCH = 0.15, 1.5
"""Of the panels, and from row to row."""
RADIUS = 0.19
MAX_SHOWN = 40
"""Jobs of a queue that are drawn, ever closer; the number beside them tells all."""
ORIGIN: tuple[int, int] = (0, 0)


def draw_network(
    network: Network, queues: Sequence[float], time: float, cost: float
) -> NDArray[np.uint8]:
    """Return a picture `[height, width, 3]`, about 1000 pixels wide at most.

    A column holds the classes that a server serves faster than others do, with its counter, dark
    where it has work. A dark line leads to what else it serves. Jobs join their queue at its left.

    Args:
        network: what to draw.
        queues: number of jobs of each class.
        time: since the start.
        cost: held since then.
    """
    places = _place(network)
    rows = 1 + max(row for row, _ in places)
    bottom = TOP + PITCH * rows
    width = ceil(0.8 + len(network.choices) * (LENGTH + COUNTER + GAP))
    board = Board(ceil(bottom + 0.8), width, PAPER, min(64, 1000 // width))
    for server, classes in enumerate(network.choices):
        x, _ = _corner((0, server))
        color = INK if any(queues[job] for job in classes) else IDLE
        board.box(ORIGIN, (x - 0.15, TOP), (x + LENGTH + COUNTER, bottom), PANEL, 0.15)
        board.box(ORIGIN, (x + LENGTH, TOP), (x + LENGTH + COUNTER, bottom), color, 0.1)
    for server, classes in enumerate(network.choices):
        x, _ = _corner((0, server))
        for to_x, to_y in (_corner(places[job]) for job in classes if places[job][1] != server):
            _connect(board, (x + LENGTH, bottom - 0.15), (to_x, to_y + 0.2), 0.0, INK)
    for job, (row, column) in enumerate(places):
        x, y = _corner((row, column))
        color = COLORS[(row if rows > 1 else column) % len(COLORS)]
        successor, end = network.successors[job], (x + LENGTH + COUNTER, y)
        if job in network.streams:
            board.disc(ORIGIN, (x - 0.55, y), 0.1, color)
            _draw_way(board, [(x - 0.55, y), (x, y)], color)
        if successor is None:
            _draw_way(board, [end, (end[0] + 0.3, y)], color)
        else:
            _connect(board, end, _corner(places[successor]), PITCH / 2, color)
        _draw_queue(board, (x, y), round(queues[job]), color)
    text = f"time {time:,.1f}     average cost {cost / time if time else 0.0:.2f}"
    board.write(ORIGIN, (0.65, bottom + 0.4), text, 0.34, INK, "lm")
    return board.picture()


def _place(network: Network) -> list[tuple[int, int]]:
    """Return row and column of each class: the column of the server that serves it fastest."""
    places, used = [], [0] * len(network.service_rates)
    for job in range(len(network.successors)):
        rates = [row[job] for row in network.service_rates]
        column = rates.index(max(rates))
        places.append((used[column], column))
        used[column] += 1
    return places


def _corner(place: tuple[int, int]) -> Point:
    """Return the middle of the left side of a queue."""
    row, column = place
    return 0.8 + column * (LENGTH + COUNTER + GAP), TOP + PITCH * (row + 0.57)


def _connect(board: Board, start: Point, end: Point, lane: float, color: str) -> None:
    """Draw a way that bends between two servers; backwards in a lane below the row it starts in."""
    points = [start, (end[0] - 0.4, start[1]), (end[0] - 0.4, end[1]), end]
    if end[0] <= start[0]:
        turn = start[0] + 0.3
        points[1:2] = [(turn, start[1]), (turn, start[1] + lane), (end[0] - 0.4, start[1] + lane)]
    _draw_way(board, points, color)


def _draw_way(board: Board, points: Sequence[Point], color: str) -> None:
    """Draw a line along the axes, with an arrowhead at its end, which it reaches rightwards."""
    for (x, y), (to_x, to_y) in pairwise(points):
        low, high = (min(x, to_x) - 0.03, min(y, to_y) - 0.03), (max(x, to_x), max(y, to_y))
        board.box(ORIGIN, low, (high[0] + 0.03, high[1] + 0.03), color)
    x, y = points[-1]
    board.polygon(ORIGIN, [(x + 0.05, y), (x - 0.2, y - 0.13), (x - 0.2, y + 0.13)], color)


def _draw_queue(board: Board, corner: Point, jobs: int, color: str) -> None:
    """Draw the jobs, the first one at the counter, and their number."""
    x, y = corner
    board.box(ORIGIN, (x, y - 0.3), (x + LENGTH, y + 0.3), TRAY, radius=0.1)
    shown = min(jobs, MAX_SHOWN)
    step = min(2.3 * RADIUS, (LENGTH - 2.4 * RADIUS) / max(1, shown - 1))
    for place in reversed(range(shown)):
        center = (x + LENGTH - 1.2 * RADIUS - place * step, y)
        board.disc(ORIGIN, center, RADIUS, color, edge=TRAY)
    board.write(ORIGIN, (x + LENGTH - 0.05, y - 0.5), f"{jobs:,}", 0.3, INK, "rm")
