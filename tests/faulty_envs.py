"""Environments that fail on purpose, at a step and in a way that a test chooses."""

from typing import Any

import gymnasium as gym
import numpy as np
import torch
from gymnasium import spaces

from rl_gumbel.envs.base import State, TorchEnv


class FaultyTorch(TorchEnv):
    """Counts its steps; environment `env` returns `value` as `where` in the step numbered `at`.

    `where` is `reward`, `state` (which the observation shows from then on) or `mask`, where from
    that step on nothing may be chosen. Steps are counted from 1, over episodes of `limit` steps.
    """

    differentiable = True

    def __init__(
        self, num_envs: int, where: str = "", at: int = 0, env: int = 0,
        value: float = float("nan"), limit: int | None = 4, **kwargs: Any,
    ) -> None:  # fmt: skip
        self.where, self.at, self.env, self.value = where, at, env, value
        space = spaces.Box(-100, 100, (2,), np.float32)
        super().__init__(num_envs, space, spaces.Discrete(3), limit, **kwargs)
        self.masked = where == "mask"
        self.time = 0

    def initial(self) -> State:
        return {"count": torch.zeros(self.num_envs, device=self.device)}

    def transition(self, state, action):
        self.time += 1
        here = torch.arange(self.num_envs, device=self.device) == self.env
        here = here & (self.time == self.at)
        count = state["count"] + 1
        reward = 0.1 * self.choose(action, self.constant((0.0, 1.0, 2.0))).squeeze(-1)
        if self.where == "reward":
            reward = reward.masked_fill(here, self.value)
        if self.where == "state":
            count = count.masked_fill(here, self.value)
        return {"count": count}, reward, torch.zeros_like(here)

    def observe(self, state):
        return torch.stack([state["count"], torch.ones_like(state["count"])], -1)

    def legal(self, state):
        if self.where != "mask":
            return None
        allowed = torch.ones(self.num_envs, 1, 3, dtype=torch.bool, device=self.device)
        allowed[self.env] = self.time < self.at
        return allowed


class Faulty(gym.Env):
    """Counts the steps of an episode of `limit`; in the step numbered `at` it fails as `how` says.

    `how` is `raise`, `reward` or `obs` (with `value`), `shape`, or `mask`. Steps are counted from
    1 over all episodes. It fails where the seed of its first reset is `seed`, or always if None.
    """

    def __init__(
        self, how: str = "", at: int = 0, seed: int | None = None, value: float = float("nan"),
        limit: int = 4, keyed: bool = False,
    ) -> None:  # fmt: skip
        self.how, self.at, self.only, self.value, self.limit = how, at, seed, value, limit
        self.keyed = keyed
        box = spaces.Box(-100, 100, (2,), np.float32)
        self.observation_space = spaces.Dict({"x": box, "n": spaces.Discrete(2)}) if keyed else box
        self.action_space = spaces.Discrete(3)
        self.seed: int | None = None
        self.time = self.count = 0

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        self.seed = seed if self.seed is None else self.seed
        self.count = 0
        return self.observe(False), {}

    def step(self, action: int) -> Any:
        self.time += 1
        self.count += 1
        now = self.time == self.at and self.only in (None, self.seed)
        if now and self.how == "raise":
            raise ZeroDivisionError("the simulator has no ground")
        reward = self.value if now and self.how == "reward" else 0.1 * float(action)
        return self.observe(now), reward, False, self.count == self.limit, {}

    def observe(self, now: bool) -> Any:
        obs = np.array([self.count, 1], np.float32)
        if now and self.how == "obs":
            obs[0] = self.value
        if now and self.how == "shape":
            obs = obs[:1]
        return {"x": obs, "n": 1} if self.keyed else obs


gym.register("faulty/Faulty-v0", Faulty)
