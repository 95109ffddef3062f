"""Acrobot-v1: swing a double pendulum up by a torque at its elbow."""

from math import cos, pi, sin
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from numpy.typing import NDArray
from torch import Tensor

from rl_gumbel.envs.base import State, TorchEnv
from rl_gumbel.envs.canvas import BLUE, GREEN, INK, ORANGE, Canvas

GRAVITY = 9.8  # m / s^2
LINK_MASS = 1.0  # kg
LINK_LENGTH = 1.0  # m
LINK_CENTER = 0.5  # m, from the upper joint to the centre of mass
LINK_INERTIA = 1.0  # kg m^2, about the centre of mass
SECONDS_PER_STEP = 0.2
MAX_VELOCITIES = (4 * pi, 9 * pi)  # rad / s, of the shoulder and of the elbow
TORQUES = (-1.0, 0.0, 1.0)  # N m
GOAL_HEIGHT = 1.0  # m above the shoulder

COUPLING = LINK_MASS * LINK_LENGTH * LINK_CENTER  # kg m^2
UPPER_WEIGHT = LINK_MASS * GRAVITY * (LINK_CENTER + LINK_LENGTH)  # N m, the elbow's load included
LOWER_WEIGHT = LINK_MASS * GRAVITY * LINK_CENTER
ELBOW_INERTIA = LINK_MASS * LINK_CENTER**2 + LINK_INERTIA
SHOULDER_INERTIA = 2 * ELBOW_INERTIA + LINK_MASS * LINK_LENGTH**2


class Acrobot(TorchEnv):
    """Gymnasium's Acrobot-v1: reward -1 a step until the tip is a link's length above the shoulder.

    Sutton 1996, with the equations of motion of Sutton and Barto's book, one Runge-Kutta step of
    0.2 s; spaces and 500 steps of Gymnasium's `AcrobotEnv` (the last reward of an episode that
    reaches the goal is 0). Rewards are constants, so that with `gradients=True` only the
    observations carry one: what can be learned by it comes from the value of the last observation
    of a rollout.
    """

    differentiable = True
    # With work W done, |W'| = |torque * elbow velocity| <= sqrt(2 W / 0.569 kg m^2), and hanging to
    # goal takes 24.5 J: no less than 23 steps.
    min_episode_steps = 16

    def __init__(self, num_envs: int, max_episode_steps: int | None = 500, **kwargs: Any) -> None:
        high = np.array([1, 1, 1, 1, *MAX_VELOCITIES], np.float32)
        super().__init__(
            num_envs,
            spaces.Box(-high, high, dtype=np.float32),
            spaces.Discrete(3),
            max_episode_steps,
            **kwargs,
        )

    def initial(self) -> State:
        """Return `motion`, `[B, 4]`, near hanging at rest.

        These are the angle of the upper link from straight down, that of the lower from the upper,
        and their velocities.
        """
        return {"motion": self.uniform(4) * 0.2 - 0.1}

    def transition(self, state: State, action: Tensor) -> tuple[State, Tensor, Tensor]:
        """Return the states 0.2 s later, rewards of -1 or 0, and where the tip is high enough."""
        torque = self.choose(action, self.constant(TORQUES)).squeeze(-1)
        start, half = state["motion"], SECONDS_PER_STEP / 2
        first = _derivative(start, torque)
        second = _derivative(torch.add(start, first, alpha=half), torque)
        third = _derivative(torch.add(start, second, alpha=half), torque)
        fourth = _derivative(torch.add(start, third, alpha=SECONDS_PER_STEP), torque)
        slope = torch.add(first + fourth, second + third, alpha=2)
        upper, lower, *velocities = torch.add(start, slope, alpha=SECONDS_PER_STEP / 6).unbind(-1)
        bounded = (v.clamp(-m, m) for v, m in zip(velocities, MAX_VELOCITIES, strict=True))
        motion = torch.stack([_wrapped(upper), _wrapped(lower), *bounded]).T
        height = -upper.cos() - (upper + lower).cos()
        terminated = height > GOAL_HEIGHT
        return {"motion": motion}, terminated.float() - 1, terminated

    def observe(self, state: State) -> Tensor:
        """Return cosine and sine of both angles, and their velocities, `[B, 6]`."""
        upper, lower, *velocities = state["motion"].unbind(-1)
        parts = [upper.cos(), upper.sin(), lower.cos(), lower.sin(), *velocities]
        return torch.stack(parts).T.float()

    def frame(self, state: State) -> NDArray[np.uint8]:
        """Return the two links and the height to reach, 400 x 400."""
        upper, lower, *_ = map(float, state["motion"][0])
        elbow = (LINK_LENGTH * sin(upper), -LINK_LENGTH * cos(upper))
        both = upper + lower
        tip = (elbow[0] + LINK_LENGTH * sin(both), elbow[1] - LINK_LENGTH * cos(both))
        canvas = Canvas(400, 400, center=(0.0, 0.0), scale=88.0)
        canvas.line([(-3.0, GOAL_HEIGHT), (3.0, GOAL_HEIGHT)], 0.025, GREEN)
        canvas.line([(0.0, 0.0), elbow], 0.18, BLUE)
        canvas.line([elbow, tip], 0.18, ORANGE)
        for joint in ((0.0, 0.0), elbow):
            canvas.disc(joint, 0.05, INK)
        return canvas.picture()


def _derivative(motion: Tensor, torque: Tensor) -> Tensor:
    """Return velocities and accelerations of both joints, `[B, 4]`."""
    upper, lower, upper_velocity, lower_velocity = motion.unbind(-1)
    coupling = COUPLING * lower.cos()
    shoulder = SHOULDER_INERTIA + 2 * coupling
    elbow = ELBOW_INERTIA + coupling
    swing = COUPLING * lower.sin()
    lower_weight = LOWER_WEIGHT * (upper + lower).sin()
    load = (
        UPPER_WEIGHT * upper.sin()
        + lower_weight
        - swing * lower_velocity * (lower_velocity + 2 * upper_velocity)
    )
    ratio = elbow / shoulder
    lower_acceleration = (
        torque + ratio * load - swing * upper_velocity.square() - lower_weight
    ) / (ELBOW_INERTIA - ratio * elbow)
    upper_acceleration = -(ratio * lower_acceleration + load / shoulder)
    return torch.stack([upper_velocity, lower_velocity, upper_acceleration, lower_acceleration]).T


def _wrapped(angle: Tensor) -> Tensor:
    """Return the angle from -pi to pi."""
    return angle - 2 * pi * (angle / (2 * pi)).round()
