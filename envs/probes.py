"""Probe environments: tiny, with values known by hand, each failed by one kind of fault.

An agent that fails a probe but passes those before it has its bug in what the probe adds: the
critic's regression (`ProbeValue`), its inputs (`ProbeObservation`), discount and bootstrap
(`ProbeDiscount`), the actor's gradient (`ProbeAction`), and the credit of each factor given the
observation (`ProbeFactors`). Episodes have one step, those of `ProbeDiscount` two.
"""

from typing import Any, SupportsFloat

import gymnasium as gym
import numpy as np
from gymnasium import spaces

from rl_gumbel.actions import ActionLayout

Step = tuple[Any, SupportsFloat, bool, bool, dict[str, Any]]


class Probe(gym.Env[Any, Any]):
    """An episode of one step; the base of all probes: one action, observation 0, reward 1."""

    def __init__(self) -> None:
        self.observation_space: spaces.Space[Any] = spaces.Box(-1, 1, (1,), np.float32)
        self.action_space: spaces.Space[Any] = spaces.Discrete(1)
        self.obs: Any = None

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        """Start an episode; return the observation and an empty dict."""
        super().reset(seed=seed)
        self.obs = self.observe()
        return self.obs, {}

    def step(self, action: Any) -> Step:
        """Return the same observation, the reward of `action`, and the end of the episode."""
        return self.obs.copy(), self.reward(action), True, False, {}

    def observe(self) -> Any:
        """Return the observation of a new episode."""
        return np.zeros(1, np.float32)

    def reward(self, action: Any) -> float:
        """Return the reward of `action` under the present observation."""
        return 1.0


class ProbeValue(Probe):
    """One action, constant observation, reward 1: V = 1."""


class ProbeObservation(Probe):
    """One action; the reward is the observation, -1 or 1 by chance: V(s) = s."""

    def observe(self) -> Any:
        """Return -1 or 1 with equal probability."""
        return np.array([self.np_random.choice([-1, 1])], np.float32)

    def reward(self, action: Any) -> float:
        """Return the observation."""
        return float(self.obs[0])


class ProbeDiscount(Probe):
    """One action, two steps, observations 0 and 1, reward 1 at the end: V(0) = gamma, V(1) = 1."""

    def step(self, action: Any) -> Step:
        """Return observation 1 and reward 0 at first, then reward 1 and the end."""
        is_last = bool(self.obs[0] == 1)
        self.obs = np.ones(1, np.float32)
        return self.obs.copy(), float(is_last), is_last, False, {}


class ProbeAction(Probe):
    """Two actions, constant observation, reward -1 for action 0 and 1 for action 1.

    With entropy coefficient c the soft policy takes action 1 with probability sigmoid(2 / c) and
    V = c log(exp(-1 / c) + exp(1 / c)).
    """

    def __init__(self) -> None:
        super().__init__()
        self.action_space = spaces.Discrete(2)

    def reward(self, action: Any) -> float:
        """Return -1 for action 0, 1 for action 1."""
        return 2.0 * float(action) - 1.0


class ProbeFactors(Probe):
    """The observation names a category for each factor; reward 1 for each factor that takes it.

    The reward is a sum over factors, so each must find its own part of the credit. With entropy
    coefficient c a factor of n categories is right with probability e / (e + n - 1), e = exp(1 / c)
    and V is the sum over factors of c log(e + n - 1).

    Args:
        action_space: any that `ActionLayout` supports; the default has factors of unequal sizes.
    """

    def __init__(self, action_space: spaces.Space[Any] | None = None) -> None:
        super().__init__()
        self.action_space = action_space or spaces.MultiDiscrete([3, 2])
        self.layout = ActionLayout.from_space(self.action_space)
        self.observation_space = spaces.MultiDiscrete(list(self.layout.sizes))

    def observe(self) -> Any:
        """Return categories, counted from zero, drawn uniformly."""
        return self.np_random.integers(self.layout.sizes)

    def reward(self, action: Any) -> float:
        """Return the number of factors that take the category they were shown."""
        return float((self.layout.to_index(action).numpy() == self.obs).sum())
