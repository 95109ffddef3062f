"""A Gymnasium environment among others whose faults are named, and survived if asked for."""

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from rl_gumbel.envs.base import NONFINITE
from rl_gumbel.faults import EnvError, NumericalError

NEXT_SEED = 1_000_003
"""Between the seeds of an environment and of the one that takes its place."""


@dataclass
class Survived:
    """What a group of environments got over."""

    restarts_left: int = 0
    """How many more environments that fail are made anew."""
    restarts: int = 0
    """How many were."""
    repaired_steps: int = 0
    """Steps whose infinities or NaNs were replaced."""


class Guard(gym.Wrapper[Any, Any, Any, Any]):
    """An environment whose errors say which one it is, its seed, step and action.

    Args:
        make: returns the environment; called again where it failed and `survived` allows it. The
            episode is then cut before the step that failed: truncated, with a reward of zero and
            the observation that the action was chosen on.
        index: among the environments that step together.
        nonfinite: what to do about an infinity or NaN in an observation or a reward: `raise`;
            `zero` in its place; or `reset`, which cuts the episode in the same way.
        survived: shared by the environments.

    Raises:
        EnvError: in `reset` and `step`, if the environment fails, or an observation has another
            shape than its space.
        NumericalError: there, for an infinity or NaN, by `raise`.
    """

    def __init__(
        self,
        make: Callable[[], gym.Env[Any, Any]],
        index: int,
        nonfinite: str = "raise",
        survived: Survived | None = None,
    ) -> None:
        if nonfinite not in NONFINITE:
            raise ValueError(f"nonfinite {nonfinite!r} must be one of {NONFINITE}")
        super().__init__(make())
        self.make = make
        self.index = index
        self.nonfinite = nonfinite
        self.survived = survived or Survived()
        self.seed: int | None = None
        self.num_steps = 0
        """Since this environment was made."""
        self._last: tuple[Any, dict[str, Any]] = (None, {})

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        """Start an episode."""
        self.seed = seed if seed is not None else self.seed
        while True:
            try:
                obs, info = self.env.reset(seed=seed, options=options)
                break
            except Exception as error:
                self._make_anew(error, "in a reset")
                seed = self.seed
        self._check_shape(obs, "in a reset")
        if bad := _find_bad(obs, 0.0):
            self._refuse(bad, "in a reset")
            obs = _zero(obs)
        self._last = obs, info
        return obs, info

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        """Take one step."""
        self.num_steps += 1
        try:
            obs, reward, terminated, truncated, info = self.env.step(action)
        except Exception as error:
            self._make_anew(error, self._when(action))
            return self._cut()
        self._check_shape(obs, self._when(action))
        if bad := _find_bad(obs, reward):
            self._refuse(bad, self._when(action))
            if self.nonfinite == "reset":
                return self._cut()
            obs, reward = _zero(obs), reward if np.isfinite(float(reward)) else 0.0
        self._last = obs, info
        return obs, reward, terminated, truncated, info

    def _cut(self) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        obs, info = self._last
        return obs, 0.0, False, True, info

    def _when(self, action: Any) -> str:
        return f"in its step {self.num_steps}, after action {np.asarray(action).tolist()}"

    def _name(self) -> str:
        return f"environment {self.index} (seed {self.seed})"

    def _make_anew(self, error: Exception, when: str) -> None:
        """Put a new environment into the place of one that failed; raise if that is not allowed."""
        if self.survived.restarts_left == 0:
            text = " ".join(str(error).split())
            raise EnvError(
                f"{self._name()} failed {when}: {type(error).__name__}: {text}"
            ) from error
        self.survived.restarts_left -= 1
        self.survived.restarts += 1
        with contextlib.suppress(Exception):  # it has failed already
            self.env.close()
        self.env = self.make()
        self.num_steps = 0
        self.seed = ((self.seed or 0) + NEXT_SEED) % 2**32
        self.env.reset(seed=self.seed)  # the coming resets, without a seed, go on from this one

    def _check_shape(self, obs: Any, when: str) -> None:
        space = self.observation_space
        parts: dict[Any, spaces.Space[Any]] = {None: space}
        if isinstance(space, spaces.Dict):
            parts = dict(space.spaces)
        for key, part in parts.items():
            shape = np.shape(obs if key is None else obs[key])
            if part.shape is not None and shape != part.shape:
                raise EnvError(
                    f"{self._name()} returned an observation{_named(key)} of shape {shape} {when}; "
                    f"its space has {part.shape}"
                )

    def _refuse(self, bad: str, when: str) -> None:
        """Raise for an infinity or NaN, or count it."""
        if self.nonfinite == "raise":
            raise NumericalError(f"{self._name()}: {bad} {when}")
        self.survived.repaired_steps += 1


def check_batch(obs: Any, reward: NDArray[Any], action: Any) -> None:
    """Raise a `NumericalError` for an infinity or NaN in a step of B environments.

    Args:
        obs: `[B, *O]`, an array or one for each key.
        reward: `[B]`.
        action: `[B]` or `[B, K]`.
    """
    if _find_bad(obs, reward) is None:
        return
    for i in range(len(reward)):
        row = {key: part[i] for key, part in obs.items()} if isinstance(obs, dict) else obs[i]
        if bad := _find_bad(row, reward[i]):
            raise NumericalError(f"environment {i}: {bad} after action {action[i].tolist()}")


def _find_bad(obs: Any, reward: Any) -> str | None:
    """Return what is not finite, and its value."""
    if not np.isfinite(reward).all():
        return f"reward is {reward}"
    for key, part in _leaves(obs):
        if part.dtype.kind == "f" and not np.isfinite(part).all():
            return f"observation{_named(key)} is {part[~np.isfinite(part)].flat[0]}"
    return None


def _zero(obs: Any) -> Any:
    if isinstance(obs, dict):
        return {key: _zero(part) for key, part in obs.items()}
    obs = np.asarray(obs)
    return np.where(np.isfinite(obs), obs, 0).astype(obs.dtype) if obs.dtype.kind == "f" else obs


def _leaves(obs: Any) -> Iterator[tuple[str | None, NDArray[Any]]]:
    if isinstance(obs, dict):
        for key, part in obs.items():
            yield key, np.asarray(part)
    else:
        yield None, np.asarray(obs)


def _named(key: str | None) -> str:
    return "" if key is None else f" {key!r}"
