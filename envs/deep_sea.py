"""DeepSea: a treasure that only one sequence of actions finds."""

from typing import Any, Self

import numpy as np
import torch
from gymnasium import spaces
from numpy.typing import NDArray
from torch import Tensor

from rl_gumbel.envs.base import State, TorchEnv
from rl_gumbel.envs.board import Board

MOVE_COST = 0.01  # of `size` moves to the right
SHADES = ((205, 35), (230, 70), (243, 125))
"""Red, green and blue at the surface and on the ground."""


class DeepSea(TorchEnv):
    """bsuite's DeepSea: dive `size` rows, a column left or right with each; treasure on the right.

    Osband et al. 2019 (arXiv:1908.03568) and 2018 (arXiv:1806.03335). Moving right costs
    `0.01 / size`; moving right from the last column of the last row is worth 1, so that always
    right has the best return, 0.99. Which of the two actions moves right is drawn for each cell
    from `mapping_seed`, the same for all environments. Deterministic. Observations are the grid, 1
    where the diver is, and all zero below the last row.

    Args:
        num_envs: B.
        max_episode_steps: the time limit; every episode takes `size` steps without.
        size: rows and columns.
        mapping_seed: of what actions mean.
        kwargs: of `TorchEnv`.

    Raises:
        ValueError: for a size below 1.
    """

    def __init__(
        self,
        num_envs: int,
        max_episode_steps: int | None = None,
        *,
        size: int = 10,
        mapping_seed: int = 42,
        **kwargs: Any,
    ) -> None:
        if size < 1:
            raise ValueError(f"size {size!r} of DeepSea must be at least 1")
        self.size = self.min_episode_steps = size
        bits = np.random.RandomState(mapping_seed).binomial(1, 0.5, size * size)
        self._right = torch.from_numpy(bits)
        super().__init__(
            num_envs,
            spaces.Box(0, 1, (size, size), np.float32),
            spaces.Discrete(2),
            max_episode_steps,
            **kwargs,
        )

    def to(self, device: torch.device | str) -> Self:
        """Move everything to a device; see `TorchEnv.to`."""
        self._right = self._right.to(device)
        return super().to(device)

    def initial(self) -> State:
        """Return row and column of the top left corner, `[B]` each."""
        zeros = torch.zeros(self.num_envs, dtype=torch.int64, device=self.device)
        return {"row": zeros, "column": zeros}

    def transition(self, state: State, action: Tensor) -> tuple[State, Tensor, Tensor]:
        """Return the cells one row further down, rewards, and where the last row is left."""
        row, column = state["row"], state["column"]
        right = action.squeeze(-1) == self.right_action(state)
        found = right & (column == self.size - 1)
        reward = found.float() - right * (MOVE_COST / self.size)
        column = (column + 2 * right.long() - 1).clamp(0, self.size - 1)
        return {"row": row + 1, "column": column}, reward, row == self.size - 1

    def right_action(self, state: State) -> Tensor:
        """Return the action that moves right, `[B]` int64."""
        return self._right.index_select(0, state["row"] * self.size + state["column"])

    def observe(self, state: State) -> Tensor:
        """Return the grids, `[B, size, size]`."""
        cells = torch.arange(self.size**2, device=state["row"].device)
        diver = state["row"] * self.size + state["column"]
        return (cells == diver.unsqueeze(-1)).float().view(-1, self.size, self.size)

    def frame(self, state: State) -> NDArray[np.uint8]:
        """Return the sea, the treasure and the diver, 36 pixels a cell."""
        size = self.size
        board = Board(size, size, "#dcecf5", pixels=max(4, min(36, 400 // size)))
        for row in range(size):
            red, green, blue = (round(a + (b - a) * row / size) for a, b in SHADES)
            board.box((row, 0), (0.0, 0.0), (float(size), 1.0), f"#{red:02x}{green:02x}{blue:02x}")
        corner = (size - 1, size - 1)
        board.box(corner, (0.12, 0.4), (0.88, 0.9), "#b98036", radius=0.12)
        board.box(corner, (0.12, 0.55), (0.88, 0.63), "#7d5421")
        board.disc(corner, (0.5, 0.6), 0.1, "#f6d55c")
        diver = (int(state["row"]), int(state["column"]))
        board.disc(diver, (0.5, 0.5), 0.32, "#ee8e3c")
        board.disc(diver, (0.56, 0.44), (0.18, 0.13), "#f5fbff")
        return board.picture()
