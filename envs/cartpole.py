"""CartPole-v1: balance a pole on a cart by pushing it left or right."""

from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor

from rl_gumbel.envs.base import State, TorchEnv

GRAVITY = 9.8  # m / s^2
CART_MASS, POLE_MASS = 1.0, 0.1  # kg
TOTAL_MASS = CART_MASS + POLE_MASS
HALF_POLE_LENGTH = 0.5  # m
POLE_MASS_LENGTH = POLE_MASS * HALF_POLE_LENGTH
FORCE = 10.0  # N
SECONDS_PER_STEP = 0.02
MAX_POSITION = 2.4  # m
MAX_ANGLE_RADIANS = 12 * 2 * np.pi / 360
FORCES = (-FORCE, FORCE)


class CartPole(TorchEnv):
    """Gymnasium's CartPole-v1: reward 1 a step until the pole falls or the cart leaves the track.

    Barto, Sutton and Anderson 1983; dynamics, spaces and 500 steps of Gymnasium's `CartPoleEnv`
    (Euler integration, reward 1 on the last step too). The reward is constant, so that with
    `gradients=True` only the observations carry one.
    """

    differentiable = True

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
        """Return four numbers from -0.05 to 0.05 for each environment."""
        x, x_dot, theta, theta_dot = (self.uniform(4) * 0.1 - 0.05).unbind(-1)
        return {"x": x, "x_dot": x_dot, "theta": theta, "theta_dot": theta_dot}

    def transition(self, state: State, action: Tensor) -> tuple[State, Tensor, Tensor]:
        """Return the states 0.02 s later, rewards of 1, and where the pole or the cart is off."""
        force = self.choose(action, self.constant(FORCES)).squeeze(-1)
        theta, theta_dot = state["theta"], state["theta_dot"]
        cos, sin = theta.cos(), theta.sin()
        temp = (force + POLE_MASS_LENGTH * theta_dot.square() * sin) / TOTAL_MASS
        theta_acc = (GRAVITY * sin - cos * temp) / (
            HALF_POLE_LENGTH * (4.0 / 3.0 - POLE_MASS * cos.square() / TOTAL_MASS)
        )
        x_acc = temp - POLE_MASS_LENGTH * theta_acc * cos / TOTAL_MASS
        following = {
            "x": state["x"] + SECONDS_PER_STEP * state["x_dot"],
            "x_dot": state["x_dot"] + SECONDS_PER_STEP * x_acc,
            "theta": theta + SECONDS_PER_STEP * theta_dot,
            "theta_dot": theta_dot + SECONDS_PER_STEP * theta_acc,
        }
        terminated = (following["x"].abs() > MAX_POSITION) | (
            following["theta"].abs() > MAX_ANGLE_RADIANS
        )
        return following, torch.ones(self.num_envs, device=self.device), terminated

    def observe(self, state: State) -> Tensor:
        """Return position, velocity, angle and angular velocity, `[B, 4]`."""
        return torch.stack(list(state.values()), -1).float()
