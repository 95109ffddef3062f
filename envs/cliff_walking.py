"""CliffWalking-v1: walk along a cliff to the goal; a step over the edge leads back to the start."""

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from rl_gumbel.envs.base import State
from rl_gumbel.envs.board import Board
from rl_gumbel.envs.tabular import Outcome, Table, TabularEnv

ROWS, COLUMNS = 4, 12
START, GOAL = 36, 47
CLIFF = range(START + 1, GOAL)
MOVES = ((-1, 0), (0, 1), (1, 0), (0, -1))
"""Row and column of the actions: up, right, down, left; neighbours are perpendicular."""


class CliffWalking(TabularEnv):
    """Gymnasium's CliffWalking-v1 and CliffWalkingSlippery-v1: -1 a step, -100 over the edge.

    Sutton and Barto 2018, example 6.6. An observation is `row * 12 + column`. Actions are up,
    right, down, left. An episode ends at the goal only: there is no time limit.

    Args:
        num_envs: B.
        max_episode_steps: None, as the original.
        is_slippery: a move goes where it should, or to either side of that, with probability 1/3.
        kwargs: `device` and `dtype` of `TorchEnv`.
    """

    def __init__(
        self,
        num_envs: int,
        max_episode_steps: int | None = None,
        *,
        is_slippery: bool = False,
        **kwargs: Any,
    ) -> None:
        turns = (-1, 0, 1) if is_slippery else (0,)

        def outcomes(state: int, action: int) -> list[Outcome]:
            row, column = divmod(state, COLUMNS)
            found: list[Outcome] = []
            for turn in turns:
                down, right = MOVES[(action + turn) % 4]
                to_row = min(max(row + down, 0), ROWS - 1)
                to_column = min(max(column + right, 0), COLUMNS - 1)
                following = to_row * COLUMNS + to_column
                if following in CLIFF:
                    found.append((1 / len(turns), START, -100.0, False))
                else:
                    found.append((1 / len(turns), following, -1.0, following == GOAL))
            return found

        start = torch.arange(ROWS * COLUMNS) == START
        super().__init__(num_envs, Table.build(outcomes, start, 4), max_episode_steps, **kwargs)

    def frame(self, state: State) -> NDArray[np.uint8]:
        """Return the cliff along the bottom, S at the start, a flag at the goal, the walker."""
        board = Board(ROWS, COLUMNS, "#7a9e4b")
        for cell in range(ROWS * COLUMNS):
            tile = divmod(cell, COLUMNS)
            if cell in CLIFF:
                board.box(tile, (0.0, 0.0), (1.0, 1.0), "#3b2b20")
                grass = [
                    (0, 0),
                    (1, 0),
                    (1, 0.12),
                    (0.8, 0.26),
                    (0.55, 0.12),
                    (0.3, 0.3),
                    (0, 0.12),
                ]
                board.polygon(tile, grass, "#7a9e4b")
                board.polygon(tile, [(0.2, 1), (0.35, 0.6), (0.5, 1)], "#5e4634")
                board.polygon(tile, [(0.6, 1), (0.75, 0.72), (0.9, 1)], "#5e4634")
            else:
                board.box(tile, (0.02, 0.02), (0.98, 0.98), "#9cc069", radius=0.08)
        board.write(divmod(START, COLUMNS), (0.5, 0.5), "S", 0.5, "#66883a")
        board.flag(divmod(GOAL, COLUMNS), "#d62839")
        walker = divmod(int(state["state"]), COLUMNS)
        for x in (0.36, 0.54):
            board.box(walker, (x, 0.68), (x + 0.1, 0.92), "#33415c", radius=0.03)
        board.box(walker, (0.3, 0.38), (0.7, 0.74), "#e07a1f", radius=0.1)
        board.disc(walker, (0.5, 0.26), 0.16, "#f2c9a1")
        board.box(walker, (0.3, 0.08), (0.7, 0.18), "#33415c", radius=0.05)
        return board.picture()
