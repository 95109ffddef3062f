"""Catch: move a paddle under a falling ball."""

from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from numpy.typing import NDArray
from torch import Tensor

from rl_gumbel.envs.base import State, TorchEnv
from rl_gumbel.envs.board import Board
from rl_gumbel.envs.canvas import BLUE, LIGHT, ORANGE, PAPER


class Catch(TorchEnv):
    """bsuite's Catch: reward 1 if the paddle is under the ball on the last row, else -1.

    Osband et al. 2019 (arXiv:1908.03568). The ball starts in any column of the top row and falls a
    row a step; the paddle starts in the middle of the last row and moves left, not at all or right.
    Observations are the board, 1 where the ball and the paddle are.

    Args:
        num_envs: B.
        max_episode_steps: the time limit; every episode takes `rows - 1` steps without.
        rows: of the board, at least 2.
        columns: of the board.
        kwargs: of `TorchEnv`.

    Raises:
        ValueError: for a board without room to fall.
    """

    def __init__(
        self,
        num_envs: int,
        max_episode_steps: int | None = None,
        *,
        rows: int = 10,
        columns: int = 5,
        **kwargs: Any,
    ) -> None:
        if rows < 2 or columns < 1:
            raise ValueError(
                f"a board of {rows!r} rows and {columns!r} columns is too small for Catch: it "
                f"needs 2 rows and 1 column"
            )
        self.rows, self.columns = rows, columns
        self.min_episode_steps = rows - 1
        super().__init__(
            num_envs,
            spaces.Box(0, 1, (rows, columns), np.float32),
            spaces.Discrete(3),
            max_episode_steps,
            **kwargs,
        )

    def initial(self) -> State:
        """Return the ball's row and column and the paddle's column, `[B]` each."""
        ball = self.integers(self.columns)
        return {
            "row": torch.zeros_like(ball),
            "ball": ball,
            "paddle": torch.full_like(ball, self.columns // 2),
        }

    def transition(self, state: State, action: Tensor) -> tuple[State, Tensor, Tensor]:
        """Return the boards with the ball one row further down, rewards, and where it landed."""
        row = state["row"] + 1
        paddle = (state["paddle"] + action.squeeze(-1) - 1).clamp(0, self.columns - 1)
        landed = row == self.rows - 1
        caught = paddle == state["ball"]
        reward = (2 * caught.float() - 1) * landed
        return {"row": row, "ball": state["ball"], "paddle": paddle}, reward, landed

    def observe(self, state: State) -> Tensor:
        """Return the boards, `[B, rows, columns]`."""
        cells = torch.arange(self.rows * self.columns, device=state["row"].device)
        ball = state["row"] * self.columns + state["ball"]
        paddle = (self.rows - 1) * self.columns + state["paddle"]
        board = (cells == ball.unsqueeze(-1)) | (cells == paddle.unsqueeze(-1))
        return board.float().view(-1, self.rows, self.columns)

    def frame(self, state: State) -> NDArray[np.uint8]:
        """Return the board with ball and paddle, 36 pixels a cell."""
        row, ball, paddle = (int(state[name]) for name in ("row", "ball", "paddle"))
        board = Board(self.rows, self.columns, PAPER, pixels=36)
        for column in range(1, self.columns, 2):
            board.box((0, column), (0.0, 0.0), (1.0, float(self.rows)), LIGHT)
        board.disc((row, ball), (0.5, 0.5), 0.36, ORANGE)
        board.box((self.rows - 1, paddle), (0.05, 0.7), (0.95, 0.95), BLUE, radius=0.1)
        return board.picture()
