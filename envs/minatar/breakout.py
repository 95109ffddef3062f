"""MinAtar Breakout: knock the bricks out of a wall with a ball that a paddle returns."""

import torch
from torch import Tensor

from rl_gumbel.envs.base import State
from rl_gumbel.envs.minatar.base import LEFT, NOTHING, RIGHT, SIZE, MinAtarEnv

WALL_TOP, WALL_ROWS = 1, 3
PADDLE_ROW = SIZE - 1
START_ROW, START_PADDLE = 3, 4


class Breakout(MinAtarEnv):
    """MinAtar's Breakout: 1 for each brick, until the ball passes the paddle.

    The ball moves one cell diagonally a step. It starts on a random side, the only chance in the
    game. After a brick it goes through bricks, unharmed, until it has left them. An empty wall is
    built again when the ball comes down.

    State, `[B]` where no shape is given: `row` and `column` of the ball; `row_step` and
    `column_step`, 1 or -1, where it heads; `trail`, the cell it came from; `paddle`, a column;
    `bricks` `[B, 3, 10]` bool; `struck` bool, whether it broke a brick and is still among bricks.
    """

    channels = ("paddle", "ball", "trail", "brick")
    actions = (NOTHING, LEFT, RIGHT)

    def initial(self) -> State:
        """Return whole walls, and balls that come down from the left or the right side."""
        side = self.integers(2)
        row, column = self.integer(START_ROW), (SIZE - 1) * side
        return {
            **super().initial(),
            "row": row,
            "column": column,
            "row_step": self.integer(1),
            "column_step": 1 - 2 * side,
            "trail": SIZE * row + column,
            "paddle": self.integer(START_PADDLE),
            "bricks": self.integer(1, WALL_ROWS, SIZE).bool(),
            "struck": self.integer(0).bool(),
        }

    def play(self, state: State, action: Tensor) -> tuple[State, Tensor, Tensor]:
        """Return the states after a move of the paddle, then one of the ball."""
        paddle = state["paddle"] + (action == RIGHT).long() - (action == LEFT).long()
        paddle = paddle.clamp(0, SIZE - 1)
        row = (state["row"] + state["row_step"]).clamp(min=0)
        ahead = state["column"] + state["column_step"]
        column = ahead.clamp(0, SIZE - 1)

        # The ball against bricks
        bricks = state["bricks"].flatten(1)
        index = SIZE * (row - WALL_TOP) + column
        in_wall = (index >= 0) & (index < WALL_ROWS * SIZE)
        under = bricks.gather(1, index.clamp(0, WALL_ROWS * SIZE - 1).unsqueeze(1)).squeeze(1)
        touches = in_wall & under
        breaks = touches & ~state["struck"]
        broken = torch.where(breaks, index, -1).unsqueeze(1)
        bricks = bricks & (torch.arange(WALL_ROWS * SIZE, device=broken.device) != broken)

        # The ball against the paddle
        low = row == PADDLE_ROW
        bricks = bricks | (low & ~bricks.any(1)).unsqueeze(1)
        flat = low & (state["column"] == paddle)
        corner = low & ~flat & (column == paddle)
        returned = flat | corner

        turns = breaks | returned
        at_top = state["row"] + state["row_step"] < 0
        following = {
            "row": torch.where(turns, state["row"], row),
            "column": column,
            "row_step": torch.where(turns | at_top, -state["row_step"], state["row_step"]),
            "column_step": torch.where(
                (ahead != column) ^ corner, -state["column_step"], state["column_step"]
            ),
            "trail": SIZE * state["row"] + state["column"],
            "paddle": paddle,
            "bricks": bricks.view_as(state["bricks"]),
            "struck": touches,
        }
        return following, breaks.float(), low & ~returned

    def observe(self, state: State) -> Tensor:
        """Return paddle, ball, the cell that the ball came from, and bricks."""
        obs = self.draw(
            self.locate("paddle", SIZE * PADDLE_ROW + state["paddle"]),
            self.locate("ball", SIZE * state["row"] + state["column"]),
            self.locate("trail", state["trail"]),
        )
        wall = slice(WALL_TOP, WALL_TOP + WALL_ROWS)
        obs[:, wall, :, self.channels.index("brick")] = state["bricks"].to(obs.dtype)
        return obs
