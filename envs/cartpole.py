"""CartPole-v1: balance a pole on a cart by pushing it left or right."""

from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from numpy.typing import NDArray
from torch import Tensor

from rl_gumbel.envs.base import State, TorchEnv
from rl_gumbel.envs.canvas import BLUE, GREY, INK, LIGHT, ORANGE, Canvas

GRAVITY = 9.8  # m / s^2
CART_MASS, POLE_MASS = 1.0, 0.1  # kg
TOTAL_MASS = CART_MASS + POLE_MASS
HALF_POLE_LENGTH = 0.5  # m
MASS_LENGTH_RATIO = POLE_MASS * HALF_POLE_LENGTH / TOTAL_MASS  # m
FORCE = 10.0  # N
SECONDS_PER_STEP = 0.02
MAX_POSITION = 2.4  # m
MAX_ANGLE_RADIANS = 12 * 2 * np.pi / 360
LIMITS = (MAX_POSITION, MAX_ANGLE_RADIANS)
ACCELERATIONS = (-FORCE / TOTAL_MASS, FORCE / TOTAL_MASS)  # m / s^2, of the cart by each action


class CartPole(TorchEnv):
    """Gymnasium's CartPole-v1: reward 1 a step until the pole falls or the cart leaves the track.

    Barto, Sutton and Anderson 1983; dynamics, spaces and 500 steps of Gymnasium's `CartPoleEnv`
    (Euler integration, reward 1 on the last step too). The reward is constant, so that with
    `gradients=True` only the observations carry one: what can be learned by it comes from the value
    of the last observation of a rollout.
    """

    differentiable = True
    min_episode_steps = 8

    def __init__(self, num_envs: int, max_episode_steps: int | None = 500, **kwargs: Any) -> None:
        high = np.array([2 * MAX_POSITION, np.inf, 2 * MAX_ANGLE_RADIANS, np.inf], np.float32)
        super().__init__(
            num_envs,
            spaces.Box(-high, high, dtype=np.float32),
            spaces.Discrete(2),
            max_episode_steps,
            **kwargs,
        )

    def initial(self) -> State:
        """Return `motion`, `[B, 4]`: position, velocity, angle, angular velocity near zero."""
        return {"motion": self.uniform(4) * 0.1 - 0.05}

    def transition(self, state: State, action: Tensor) -> tuple[State, Tensor, Tensor]:
        """Return the states 0.02 s later, rewards of 1, and where the pole or the cart is off."""
        _, velocity, angle, angular_velocity = state["motion"].unbind(-1)
        pushed = self.choose(action, self.constant(ACCELERATIONS)).squeeze(-1)
        cos, sin = angle.cos(), angle.sin()
        # What a step costs is the number of operations; addcmul(a, b, c, value) is a + value b c.
        force = torch.addcmul(pushed, angular_velocity.square(), sin, value=MASS_LENGTH_RATIO)
        torque = torch.addcmul(sin, force, cos, value=-1 / GRAVITY)
        inertia = torch.addcmul(
            self.constant((HALF_POLE_LENGTH * 4 / 3 / GRAVITY,)),
            cos,
            cos,
            value=-MASS_LENGTH_RATIO / GRAVITY,
        )
        angular_acceleration = torque / inertia
        acceleration = torch.addcmul(force, angular_acceleration, cos, value=-MASS_LENGTH_RATIO)
        change = torch.stack([velocity, acceleration, angular_velocity, angular_acceleration]).T
        motion = torch.add(state["motion"], change, alpha=SECONDS_PER_STEP)
        off_track, fallen = (motion[:, ::2].abs() > self.constant(LIMITS)).unbind(-1)
        reward = torch.ones(self.num_envs, device=self.device)
        return {"motion": motion}, reward, off_track | fallen

    def observe(self, state: State) -> Tensor:
        """Return position, velocity, angle and angular velocity, `[B, 4]`."""
        return state["motion"].to(torch.float32, copy=True)

    def frame(self, state: State) -> NDArray[np.uint8]:
        """Return the track with its ends, the cart and the pole, 600 x 400."""
        x, _, angle, _ = map(float, state["motion"][0])
        axle, length = (x, 0.3), 2 * HALF_POLE_LENGTH
        tip = (x + length * np.sin(angle), axle[1] + length * np.cos(angle))
        canvas = Canvas(600, 400, center=(0.0, 0.7), scale=115.0)
        canvas.polygon([(-3.0, -0.1), (3.0, -0.1), (3.0, -2.0), (-3.0, -2.0)], LIGHT)
        canvas.line([(-3.0, -0.1), (3.0, -0.1)], 0.02, GREY)
        for end in (-MAX_POSITION, MAX_POSITION):
            canvas.line([(end, -0.1), (end, 0.05)], 0.03, GREY)
        canvas.line([(x - 0.2, 0.12), (x + 0.2, 0.12)], 0.26, BLUE)
        for wheel in (x - 0.18, x + 0.18):
            canvas.disc((wheel, -0.02), 0.08, INK)
        canvas.line([axle, tip], 0.09, ORANGE)
        canvas.disc(axle, 0.04, INK)
        return canvas.picture()
