"""Taxi-v4: fetch a passenger at one of four stands and drive them to another."""

from collections.abc import Iterator
from itertools import product
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from rl_gumbel.envs.base import State
from rl_gumbel.envs.board import Board
from rl_gumbel.envs.tabular import Outcome, Table, TabularEnv

SIZE = 5
STANDS = ((0, 0), (0, 4), (4, 0), (4, 3))
"""Row and column of the stands: red, green, yellow, blue."""
COLORS = ("#ff8a80", "#8fd694", "#fff176", "#82b1ff")
ABOARD = 4
"""Where the passenger is, if at none of the stands."""
WALLS = {(0, 1), (1, 1), (3, 0), (4, 0), (3, 2), (4, 2)}
"""Row and column of the squares with a wall on their east side."""
MOVES = ((1, 0), (-1, 0), (0, 1), (0, -1))
"""Row and column of the actions south, north, east, west."""
SIDES = ((2, 3), (2, 3), (0, 1), (0, 1))
"""The actions to whose squares the rain can push a taxi instead."""
PICKUP, DROPOFF = 4, 5
NUM_OBSERVATIONS = SIZE * SIZE * 5 * 4


class Taxi(TabularEnv):
    """Gymnasium's Taxi-v4: -1 a step, 20 for the delivery, -10 for a wrong pickup or dropoff.

    Dietterich 2000. An observation is `((row * 5 + column) * 5 + passenger) * 4 + destination`, a
    passenger at stand 0 to 3 (red, green, yellow, blue) or 4, aboard. Actions are south, north,
    east, west, pickup, dropoff; the legal ones are those that can change something.

    A fickle passenger may choose another destination when the taxi first moves with them. The
    original decides at the start whether they will, here it is when they do: the same to all who
    cannot look into the passenger's head. States from 500 on are those after that first move.

    Args:
        num_envs: B.
        max_episode_steps: the time limit.
        is_rainy: a move that no wall prevents goes astray, to either side alike.
        fickle_passenger: whether the passenger may choose another destination.
        rainy_probability: probability, when it rains, that a move does not go astray.
        fickle_probability: probability that a fickle passenger chooses one of the other three.
        kwargs: `device` and `dtype` of `TorchEnv`.

    Raises:
        ValueError: for a probability that is none, or has no use.
    """

    def __init__(
        self,
        num_envs: int,
        max_episode_steps: int | None = 200,
        *,
        is_rainy: bool = False,
        fickle_passenger: bool = False,
        rainy_probability: float = 0.8,
        fickle_probability: float = 0.3,
        **kwargs: Any,
    ) -> None:
        for name, value, usual, option, is_on in (
            ("rainy_probability", rainy_probability, 0.8, "is_rainy", is_rainy),
            ("fickle_probability", fickle_probability, 0.3, "fickle_passenger", fickle_passenger),
        ):
            if not 0 <= value <= 1:
                raise ValueError(f"{name} {value} of Taxi must be from 0 to 1")
            if not is_on and value != usual:
                raise ValueError(f"{name} {value} of Taxi has no use with {option}=False")
        straight = rainy_probability if is_rainy else 1.0
        change = fickle_probability if fickle_passenger else 0.0

        def outcomes(state: int, action: int) -> Iterator[Outcome]:
            settled, seen = divmod(state, NUM_OBSERVATIONS)
            row, column, passenger, destination = decode(seen)
            if action in (PICKUP, DROPOFF):
                passenger, reward, terminated = _serve(
                    (row, column), passenger, destination, action
                )
                seen = encode(row, column, passenger, destination)
                yield 1.0, settled * NUM_OBSERVATIONS + seen, reward, terminated
                return
            for probability, (to_row, to_column) in _drive(row, column, action, straight):
                moved = (to_row, to_column) != (row, column)
                decides = fickle_passenger and passenger == ABOARD and moved and not settled
                after = (settled or decides) * NUM_OBSERVATIONS
                for other in range(4):
                    share = float(other == destination)
                    if decides:
                        share = 1 - change if other == destination else change / 3
                    following = after + encode(to_row, to_column, passenger, other)
                    yield probability * share, following, -1.0, False

        seen = [decode(observation) for observation in range(NUM_OBSERVATIONS)]
        copies = 1 + fickle_passenger
        starts = torch.tensor([place not in (ABOARD, goal) for _, _, place, goal in seen])
        starts = torch.cat([starts, torch.zeros_like(starts)]) if fickle_passenger else starts
        table = Table.build(
            outcomes,
            starts,
            num_actions=6,
            observation=torch.arange(NUM_OBSERVATIONS).repeat(copies),
            legal=torch.tensor([_legal(*values) for values in seen]).repeat(copies, 1),
        )
        super().__init__(num_envs, table, max_episode_steps, **kwargs)

    def frame(self, state: State) -> NDArray[np.uint8]:
        """Return the town: stands, walls, the destination in violet, taxi and passenger."""
        row, column, passenger, destination = decode(int(state["state"]) % NUM_OBSERVATIONS)
        board = Board(SIZE, SIZE, "#2e3440", margin=0.15)
        for square in product(range(SIZE), range(SIZE)):
            board.box(square, (0.0, 0.0), (1.0, 1.0), "#c9ccd1")
            board.box(square, (0.01, 0.01), (0.99, 0.99), "#e9ebee")
        for place, stand in enumerate(STANDS):
            color = "#7b2cbf" if place == destination else COLORS[place]
            board.box(stand, (0.02, 0.02), (0.98, 0.98), color, radius=0.08)
            board.box(stand, (0.08, 0.08), (0.92, 0.92), COLORS[place], radius=0.05)
            board.write(stand, (0.22, 0.24), "RGYB"[place], 0.26, "#2e3440")
        for square in WALLS:
            board.box(square, (0.95, -0.03), (1.05, 1.03), "#2e3440")
        board.flag(STANDS[destination], "#7b2cbf")
        taxi = (row, column)
        board.box(taxi, (0.25, 0.34), (0.75, 0.60), "#f5b700", radius=0.1, edge="#4a3800")
        board.box(taxi, (0.10, 0.50), (0.90, 0.78), "#f5b700", radius=0.08, edge="#4a3800")
        board.box(taxi, (0.31, 0.40), (0.48, 0.53), "#dff1ff")
        board.box(taxi, (0.52, 0.40), (0.69, 0.53), "#dff1ff")
        for x in (0.28, 0.72):
            board.disc(taxi, (x, 0.78), 0.1, "#222222")
            board.disc(taxi, (x, 0.78), 0.04, "#bbbbbb")
        if passenger == ABOARD:
            board.disc(taxi, (0.395, 0.47), 0.07, "#a83232")
        else:
            board.box(STANDS[passenger], (0.64, 0.42), (0.88, 0.84), "#a83232", radius=0.08)
            board.disc(STANDS[passenger], (0.76, 0.30), 0.12, "#f2c9a1", edge="#4a3800")
        return board.picture()


def encode(row: int, column: int, passenger: int, destination: int) -> int:
    """Return the observation's number."""
    return ((row * SIZE + column) * 5 + passenger) * 4 + destination


def decode(observation: int) -> tuple[int, int, int, int]:
    """Return row, column, passenger and destination of an observation, the inverse of `encode`."""
    square, rest = divmod(observation, 20)
    return *divmod(square, SIZE), *divmod(rest, 4)


def is_open(row: int, column: int, action: int) -> bool:
    """Return whether neither a wall nor the edge of the town is in the way."""
    down, right = MOVES[action]
    inside = 0 <= row + down < SIZE and 0 <= column + right < SIZE
    return inside and not (right and (row, min(column, column + right)) in WALLS)


def _drive(
    row: int, column: int, action: int, straight: float
) -> list[tuple[float, tuple[int, int]]]:
    """Return the squares that a move can lead to, with their probabilities."""
    if not is_open(row, column, action):
        return [(1.0, (row, column))]
    turns = [(straight, action), *(((1 - straight) / 2, side) for side in SIDES[action])]
    return [
        (probability, (row + MOVES[turn][0], column + MOVES[turn][1]))
        if is_open(row, column, turn)
        else (probability, (row, column))
        for probability, turn in turns
    ]


def _serve(
    square: tuple[int, int], passenger: int, destination: int, action: int
) -> tuple[int, float, bool]:
    """Return passenger, reward and termination after a pickup or a dropoff."""
    if action == PICKUP and passenger != ABOARD and square == STANDS[passenger]:
        return ABOARD, -1.0, False
    if action == DROPOFF and passenger == ABOARD and square in STANDS:
        stand = STANDS.index(square)
        delivered = stand == destination
        return stand, 20.0 if delivered else -1.0, delivered
    return passenger, -10.0, False


def _legal(row: int, column: int, passenger: int, destination: int) -> list[bool]:
    """Return which actions can change something."""
    return [
        *(is_open(row, column, action) for action in range(len(MOVES))),
        *(_serve((row, column), passenger, destination, a)[1] > -10 for a in (PICKUP, DROPOFF)),
    ]
