"""MinAtar Freeway: lead a chicken across eight lanes of traffic, again and again."""

import torch
from torch import Tensor

from rl_gumbel.envs.base import State
from rl_gumbel.envs.minatar.base import DOWN, NOTHING, SIZE, UP, MinAtarEnv

NUM_CARS = 8
"""One in each row but the first and the last."""
MAX_INTERVAL = 5
"""Steps that the slowest car waits between two moves."""
CHICKEN_INTERVAL = 3
"""Steps from one move of the chicken to the next."""
START = SIZE - 1
COLUMN = 4
"""Where the chicken crosses."""
TIME_LIMIT = 2500


class Freeway(MinAtarEnv):
    """MinAtar's Freeway: 1 for each crossing, until the game's own time is over.

    The chicken moves at most every third step. A car that hits it takes it back to the start, and
    so does a crossing, which also draws new speeds. The game's own clock, which is not observed,
    ends the episode with step 2501; that is a termination, not a truncation.

    State, `[B]` where no shape is given: `row` of the chicken; `rest`, steps until it can move;
    `time_left`; `column` `[B, 8]` of the cars; `speed` `[B, 8]`, the steps that they wait between
    two moves, negative for those that go left; `wait` `[B, 8]`, steps until they move.
    """

    channels = ("chicken", "car", "speed1", "speed2", "speed3", "speed4", "speed5")
    actions = (NOTHING, UP, DOWN)

    def initial(self) -> State:
        """Return all cars in the first column, with random speeds."""
        speed = self.speeds()
        return {
            **super().initial(),
            "row": self.integer(START),
            "rest": self.integer(CHICKEN_INTERVAL),
            "time_left": self.integer(TIME_LIMIT),
            "column": self.integer(0, NUM_CARS),
            "speed": speed,
            "wait": speed.abs(),
        }

    def speeds(self) -> Tensor:
        """Return random speeds `[B, 8]`, one of -5, ..., -1, 1, ..., 5 each."""
        speed = self.integers(2 * MAX_INTERVAL, NUM_CARS) - MAX_INTERVAL
        return speed + (speed >= 0)

    def play(self, state: State, action: Tensor) -> tuple[State, Tensor, Tensor]:
        """Return the states after a move of the chicken, then of the cars."""
        stride = (action == DOWN).long() - (action == UP).long()
        moves = (stride != 0) & (state["rest"] == 0)
        row = (state["row"] + stride * moves).clamp(0, SIZE - 1)
        rest = torch.where(moves, CHICKEN_INTERVAL, state["rest"])
        crossed = row == 0
        row = torch.where(crossed, START, row)
        speed = torch.where(crossed.unsqueeze(1), self.speeds(), state["speed"])
        wait = torch.where(crossed.unsqueeze(1), speed.abs(), state["wait"])

        drives = wait == 0
        column = (state["column"] + drives * speed.sign()) % SIZE
        lane = torch.arange(1, NUM_CARS + 1, device=row.device)
        # A car hits where it stood and where it arrives.
        meets = (state["column"] == COLUMN) | (column == COLUMN)
        hit = (meets & (lane == row.unsqueeze(1))).any(1)
        following = {
            "row": torch.where(hit, START, row),
            "rest": (rest - 1).clamp(min=0),
            "time_left": state["time_left"] - 1,
            "column": column,
            "speed": speed,
            "wait": torch.where(drives, speed.abs(), wait - 1),
        }
        return following, crossed.float(), following["time_left"] < 0

    def observe(self, state: State) -> Tensor:
        """Return the chicken, the cars, and behind each a mark in the channel of its speed."""
        column, speed = state["column"], state["speed"]
        lane = SIZE * torch.arange(1, NUM_CARS + 1, device=column.device)
        behind = (column - speed.sign()) % SIZE
        return self.draw(
            self.locate("chicken", SIZE * state["row"] + COLUMN),
            self.locate("car", lane + column),
            self.locate("speed1", lane + behind) + speed.abs() - 1,
        )
