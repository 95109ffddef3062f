"""PendulumBank: many independent pendulums, one agent, a torque for each."""

from math import ceil, pi, sqrt
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from numpy.typing import NDArray
from torch import Tensor

from rl_gumbel.envs.base import State, TorchEnv
from rl_gumbel.envs.canvas import Canvas
from rl_gumbel.envs.pendulum import (
    INERTIA,
    MAX_START_VELOCITY,
    MAX_TORQUE,
    MAX_VELOCITY,
    WEIGHT,
    draw,
    make_torques,
    swing,
)

MAX_PENDULUMS = 64
ANGLE_GAIN, VELOCITY_GAIN = 12.0, 3.0  # N m / rad, N m s / rad; the best of a small grid
REACH = 6.0  # N m, the wish for torque up to which balancing is tried


class PendulumBank(TorchEnv):
    """`n` pendulums as in `DiscretePendulum`; the reward is the mean of theirs.

    They do not touch: the optimum is that of one pendulum, and all that grows with `n` is the
    action space, of `levels ** n` joint actions, whose factors share one reward. With
    `gradients=True` rewards and observations carry one. Mean returns with 8 pendulums (1,000
    episodes, their standard deviation after it): random actions -1231 +- 97, `pump_and_balance`
    -152 +- 33.

    Args:
        num_envs: B.
        max_episode_steps: the time limit; nothing else ends an episode.
        n: number of pendulums, at most 64.
        levels: number of torques of each.
        kwargs: of `TorchEnv`.

    Raises:
        ValueError: for a number of pendulums out of range or fewer than two levels.
    """

    differentiable = True
    min_episode_steps = 200

    def __init__(
        self,
        num_envs: int,
        max_episode_steps: int | None = 200,
        *,
        n: int = 8,
        levels: int = 5,
        **kwargs: Any,
    ) -> None:
        if not 1 <= n <= MAX_PENDULUMS:
            raise ValueError(f"n {n!r} of PendulumBank must be from 1 to {MAX_PENDULUMS}")
        self.n = n
        self.torques = make_torques(levels, type(self).__name__)
        high = np.tile(np.array([1, 1, MAX_VELOCITY], np.float32), n)
        super().__init__(
            num_envs,
            spaces.Box(-high, high, dtype=np.float32),
            spaces.MultiDiscrete([levels] * n),
            max_episode_steps,
            **kwargs,
        )

    def initial(self) -> State:
        """Return any angles, and velocities from -1 to 1 rad / s, `[B, n]` each."""
        angle, velocity = (2 * self.uniform(2, self.n) - 1).unbind(1)
        return {"angle": pi * angle, "velocity": MAX_START_VELOCITY * velocity}

    def transition(self, state: State, action: Tensor) -> tuple[State, Tensor, Tensor]:
        """Return the states 0.05 s later, rewards, and False for every termination."""
        torque = self.choose(action, self.constant(self.torques))
        angle, velocity, reward = swing(state["angle"], state["velocity"], torque)
        never = torch.zeros(self.num_envs, dtype=torch.bool, device=self.device)
        return {"angle": angle, "velocity": velocity}, reward.mean(-1), never

    def observe(self, state: State) -> Tensor:
        """Return cosine and sine of the angle, and the velocity, pendulum by pendulum, `[B, 3n]`.

        `obs.view(-1, n, 3)` is `[B, n, 3]`.
        """
        angle = state["angle"]
        return torch.stack([angle.cos(), angle.sin(), state["velocity"]], -1).flatten(1).float()

    def frame(self, state: State) -> NDArray[np.uint8]:
        """Return all pendulums, row by row, 600 pixels wide or 400 high."""
        columns = min(self.n, ceil(sqrt(1.5 * self.n)))
        rows = ceil(self.n / columns)
        scale = min(600 / columns, 400 / rows)  # pixels of a place
        size = round(scale * columns), round(scale * rows)
        canvas = Canvas(*size, ((columns - 1) * 1.3, (1 - rows) * 1.3), scale / 2.6)
        for place, angle in enumerate(state["angle"][0].tolist()):
            row, column = divmod(place, columns)
            draw(canvas, (2.6 * column, -2.6 * row), angle)
        return canvas.picture()


def pump_and_balance(env: PendulumBank, obs: Tensor) -> Tensor:
    """Return the action `[B, n]` of a rule that needs no learning, by the observations alone.

    Far from the top the full torque goes with the velocity until the energy suffices for the top
    (Astrom and Furuta 2000), near it a proportional-derivative controller balances.
    """
    cos, sin, velocity = obs.view(-1, env.n, 3).unbind(-1)
    angle = torch.atan2(sin, cos)
    missing = WEIGHT * (1 - cos) - INERTIA / 2 * velocity.square()  # J
    pump = MAX_TORQUE * torch.where(velocity >= 0, 1.0, -1.0) * (missing > 0).float()
    balance = -ANGLE_GAIN * angle - VELOCITY_GAIN * velocity
    torque = torch.where(balance.abs() < REACH, balance, pump)
    top = len(env.torques) - 1
    return ((torque / MAX_TORQUE + 1) * top / 2).round().clamp(0, top).long()
