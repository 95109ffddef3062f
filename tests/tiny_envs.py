"""A tiny environment with any discrete action space, for tests that only need it to run."""

from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces


class Tiny(gym.Env):
    """Random observations, reward for a first component above zero, episodes of ten steps."""

    observation_space: spaces.Space[Any] = spaces.Box(-1, 1, (3,), np.float32)

    def __init__(self, action_space: spaces.Space[Any]) -> None:
        self.action_space = action_space
        self.steps = 0

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        self.steps = 0
        return self.observe(), {}

    def step(self, action: Any) -> Any:
        assert self.action_space.contains(action), f"{action!r} is not in {self.action_space}"
        self.steps += 1
        reward = float(np.ravel(action)[0] > 0)
        return self.observe(), reward, False, self.steps == 10, {}

    def observe(self) -> Any:
        return self.np_random.uniform(-1, 1, 3).astype(np.float32)


class TinyDict(Tiny):
    """The same with `Dict` observations."""

    observation_space = spaces.Dict({"x": Tiny.observation_space})

    def observe(self) -> Any:
        return {"x": super().observe()}
