"""MountainCar-v0: rock a weak car out of a valley."""

from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from numpy.typing import NDArray
from torch import Tensor

from rl_gumbel.envs.base import State, TorchEnv
from rl_gumbel.envs.canvas import BLUE, GREEN, GREY, INK, LIGHT, Canvas, Point

# The unit of position is that of the track, the unit of time a step.
MIN_POSITION, MAX_POSITION, GOAL_POSITION = -1.2, 0.6, 0.5
MAX_SPEED = 0.07
FORCES = (-0.001, 0.0, 0.001)
GRAVITY = 0.0025


class MountainCar(TorchEnv):
    """Gymnasium's MountainCar-v0: reward -1 a step until the car is at the flag.

    Moore 1990; dynamics, spaces and 200 steps of Gymnasium's `MountainCarEnv`, whose track is the
    curve sin(3 x), with a wall on the left that stops the car. The reward is constant, so that with
    `gradients=True` only the observations carry one: what can be learned by it comes from the value
    of the last observation of a rollout.
    """

    differentiable = True
    # At most 0.0035 faster with each step, and at most 0.07 fast: 23 steps from -0.4 to 0.5.
    min_episode_steps = 20

    def __init__(self, num_envs: int, max_episode_steps: int | None = 200, **kwargs: Any) -> None:
        low = np.array([MIN_POSITION, -MAX_SPEED], np.float32)
        high = np.array([MAX_POSITION, MAX_SPEED], np.float32)
        super().__init__(
            num_envs,
            spaces.Box(low, high, dtype=np.float32),
            spaces.Discrete(3),
            max_episode_steps,
            **kwargs,
        )

    def initial(self) -> State:
        """Return positions from -0.6 to -0.4, at rest."""
        position = self.uniform() * 0.2 - 0.6
        return {"position": position, "velocity": torch.zeros_like(position)}

    def transition(self, state: State, action: Tensor) -> tuple[State, Tensor, Tensor]:
        """Return the states one step later, rewards of -1, and where the car is at the flag."""
        force = self.choose(action, self.constant(FORCES)).squeeze(-1)
        slope = (3 * state["position"]).cos()
        velocity = torch.add(state["velocity"] + force, slope, alpha=-GRAVITY)
        velocity = velocity.clamp(-MAX_SPEED, MAX_SPEED)
        position = (state["position"] + velocity).clamp(MIN_POSITION, MAX_POSITION)
        stopped = (position <= MIN_POSITION) & (velocity < 0)
        velocity = velocity.masked_fill(stopped, 0.0)
        terminated = (position >= GOAL_POSITION) & (velocity >= 0)
        reward = torch.full((self.num_envs,), -1.0, device=self.device)
        return {"position": position, "velocity": velocity}, reward, terminated

    def observe(self, state: State) -> Tensor:
        """Return position and velocity, `[B, 2]`."""
        return torch.stack([state["position"], state["velocity"]]).T.float()

    def frame(self, state: State) -> NDArray[np.uint8]:
        """Return the track with the flag, and the car, 600 x 400."""
        canvas = Canvas(600, 400, center=(-0.3, 0.6), scale=600 / 1.8)
        track = [_on_track(x) for x in np.linspace(MIN_POSITION - 0.05, MAX_POSITION + 0.05, 200)]
        canvas.polygon([*track, (MAX_POSITION + 0.1, 0.0), (MIN_POSITION - 0.1, 0.0)], LIGHT)
        canvas.line(track, 0.008, GREY)
        x, y = _on_track(GOAL_POSITION)
        canvas.line([(x, y), (x, y + 0.17)], 0.008, INK)
        canvas.polygon([(x, y + 0.17), (x, y + 0.10), (x + 0.08, y + 0.135)], GREEN)
        x, y = _on_track(float(state["position"]))
        slope = np.array([1.0, 1.35 * np.cos(3 * x)])
        along = slope / np.linalg.norm(slope)
        up = np.array([-along[1], along[0]])

        def at(forward: float, upward: float) -> Point:
            return tuple(np.array([x, y]) + forward * along + upward * up)

        canvas.line([at(-0.045, 0.045), at(0.045, 0.045)], 0.05, BLUE)
        canvas.line([at(-0.02, 0.065), at(0.015, 0.065)], 0.05, BLUE)
        for forward in (-0.04, 0.04):
            canvas.disc(at(forward, 0.022), 0.02, INK)
        return canvas.picture()


def _on_track(x: float) -> Point:
    """Return the point of the curve above a position."""
    return x, 0.45 * float(np.sin(3 * x)) + 0.55
