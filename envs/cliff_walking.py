"""CliffWalking-v1: walk along a cliff to the goal; a step over the edge leads back to the start."""

from typing import Any

import torch

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
