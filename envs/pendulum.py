"""DiscretePendulum: Pendulum-v1 with a few torques to choose from."""

from math import cos, pi, sin
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from numpy.typing import NDArray
from torch import Tensor

from rl_gumbel.envs.base import State, TorchEnv
from rl_gumbel.envs.canvas import GREEN, INK, LIGHT, ORANGE, Canvas, Point

GRAVITY = 10.0  # m / s^2
MASS = 1.0  # kg
LENGTH = 1.0  # m, of a rod
MAX_TORQUE = 2.0  # N m
MAX_VELOCITY = 8.0  # rad / s
SECONDS_PER_STEP = 0.05
MAX_START_VELOCITY = 1.0  # rad / s
INERTIA = MASS * LENGTH**2 / 3  # kg m^2, about the end
WEIGHT = MASS * GRAVITY * LENGTH / 2  # N m, the torque of gravity on a level rod


class DiscretePendulum(TorchEnv):
    """Gymnasium's Pendulum-v1 whose action chooses a torque, evenly spaced from -2 to 2 N m.

    Dynamics, reward `-(angle^2 + 0.1 velocity^2 + 0.001 torque^2)` before the step (the angle from
    upright, from -pi to pi), starts and 200 steps of Gymnasium's `PendulumEnv`. With
    `gradients=True` rewards and observations carry one.

    Args:
        num_envs: B.
        max_episode_steps: the time limit; nothing else ends an episode.
        levels: number of torques.
        kwargs: of `TorchEnv`.

    Raises:
        ValueError: for fewer than two levels.
    """

    differentiable = True
    min_episode_steps = 200

    def __init__(
        self,
        num_envs: int,
        max_episode_steps: int | None = 200,
        *,
        levels: int = 5,
        **kwargs: Any,
    ) -> None:
        self.torques = make_torques(levels, type(self).__name__)
        high = np.array([1, 1, MAX_VELOCITY], np.float32)
        super().__init__(
            num_envs,
            spaces.Box(-high, high, dtype=np.float32),
            spaces.Discrete(levels),
            max_episode_steps,
            **kwargs,
        )

    def initial(self) -> State:
        """Return any angle, and velocities from -1 to 1 rad / s."""
        angle, velocity = (2 * self.uniform(2) - 1).unbind(-1)
        return {"angle": pi * angle, "velocity": MAX_START_VELOCITY * velocity}

    def transition(self, state: State, action: Tensor) -> tuple[State, Tensor, Tensor]:
        """Return the states 0.05 s later, rewards, and False for every termination."""
        torque = self.choose(action, self.constant(self.torques)).squeeze(-1)
        angle, velocity, reward = swing(state["angle"], state["velocity"], torque)
        never = torch.zeros(self.num_envs, dtype=torch.bool, device=self.device)
        return {"angle": angle, "velocity": velocity}, reward, never

    def observe(self, state: State) -> Tensor:
        """Return cosine and sine of the angle, and the velocity, `[B, 3]`."""
        angle = state["angle"]
        return torch.stack([angle.cos(), angle.sin(), state["velocity"]]).T.float()

    def frame(self, state: State) -> NDArray[np.uint8]:
        """Return the rod, with a mark at the top, 400 x 400."""
        canvas = Canvas(400, 400, center=(0.0, 0.0), scale=150.0)
        draw(canvas, (0.0, 0.0), float(state["angle"]))
        return canvas.picture()


def make_torques(levels: int, name: str) -> tuple[float, ...]:
    """Return torques, evenly spaced, in N m.

    Raises:
        ValueError: for fewer than two levels, of the environment `name`.
    """
    if levels < 2:
        raise ValueError(f"levels {levels!r} of {name} must be at least 2")
    return tuple(np.linspace(-MAX_TORQUE, MAX_TORQUE, levels).tolist())


def swing(angle: Tensor, velocity: Tensor, torque: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return angle and velocity 0.05 s later, and the reward, of pendulums of any shape."""
    upright = (angle + pi).remainder(2 * pi) - pi
    cost = upright.square() + 0.1 * velocity.square() + 0.001 * torque.square()
    acceleration = (WEIGHT * angle.sin() + torque) / INERTIA
    velocity = torch.add(velocity, acceleration, alpha=SECONDS_PER_STEP)
    velocity = velocity.clamp(-MAX_VELOCITY, MAX_VELOCITY)
    return torch.add(angle, velocity, alpha=SECONDS_PER_STEP), velocity, -cost


def draw(canvas: Canvas, pivot: Point, angle: float) -> None:
    """Draw a rod on its disc, with a mark at the top."""
    x, y = pivot
    canvas.disc(pivot, 1.12, LIGHT)
    canvas.disc((x, y + 1.12), 0.05, GREEN)
    canvas.line([pivot, (x - LENGTH * sin(angle), y + LENGTH * cos(angle))], 0.2, ORANGE)
    canvas.disc(pivot, 0.05, INK)
