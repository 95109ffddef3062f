"""Batched torch environments as Gymnasium's: a vector environment, and a single one."""

from collections.abc import Callable
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space
from numpy.typing import NDArray

from rl_gumbel.envs.base import BatchedEnv
from rl_gumbel.vec_env.facade import (
    Arrays,
    check_render_mode,
    copy_row,
    host_reset,
    host_step,
    read_action,
)
from rl_gumbel.vec_env.names import has_time_limit, make_torch_env

FRAMES_PER_SECOND = 30
Info = dict[str, Any]


class GymVectorEnv(VectorEnv[Any, Any, NDArray[Any]]):
    """A `gymnasium.vector.VectorEnv` over a batched environment; numpy in and out.

    An environment whose episode ended is reset in the same step; its last observation is then in
    `info["final_obs"]` as Gymnasium's own vector environments put it there. `info["action_mask"]`
    holds `[B, sum(sizes)]` int8 where the environment has masks.

    Args:
        batched: the environments.
        render_mode: `rgb_array`, or None.

    Raises:
        ValueError: for a render mode that the environment does not have.
    """

    metadata: dict[str, Any] = {  # noqa: RUF012 (Gymnasium declares it so)
        "render_modes": ["rgb_array"],
        "render_fps": FRAMES_PER_SECOND,
        "autoreset_mode": AutoresetMode.SAME_STEP,
    }

    def __init__(self, batched: BatchedEnv, render_mode: str | None = None) -> None:
        check_render_mode(batched, render_mode)
        self.batched = batched
        self.render_mode = render_mode
        self.num_envs = batched.num_envs
        self.single_observation_space = batched.observation_space
        self.single_action_space = batched.action_space
        self.observation_space = batch_space(batched.observation_space, self.num_envs)
        self.action_space = batch_space(batched.action_space, self.num_envs)

    def reset(
        self, *, seed: int | list[int | None] | None = None, options: Info | None = None
    ) -> tuple[Any, Info]:
        """Start an episode in every environment; return the observations `[B, *O]` and info.

        Raises:
            ValueError: for a list of seeds (there is one random stream) or for options.
        """
        if isinstance(seed, list):
            raise ValueError(f"{self} has one random stream and takes one seed; got {seed}")
        if options:
            raise ValueError(f"{self} takes no options at a reset; got {options}")
        super().reset(seed=seed)
        host = host_reset(self.batched, seed)
        return host["obs"], _mask_info(host["mask"], np.ones(self.num_envs, np.bool_))

    def step(self, actions: NDArray[Any]) -> tuple[Any, Any, Any, Any, Info]:
        """Take one step; return observations, rewards, terminations, truncations and info.

        Raises:
            ValueError: for an action outside the space.
        """
        host = host_step(self.batched, read_action(self.batched, actions))
        info = _mask_info(host["mask"], np.ones(self.num_envs, np.bool_))
        ended = host["ended"]
        if ended.any():
            final_obs = np.full(self.num_envs, None, dtype=object)
            for i in np.flatnonzero(ended).tolist():
                final_obs[i] = copy_row(host["final_obs"], i)
            final_info = _mask_info(host["final_mask"], ended)
            info |= {"final_obs": final_obs, "_final_obs": ended}
            info |= {"final_info": final_info, "_final_info": ended}
        return host["obs"], host["reward"], host["terminated"], host["truncated"], info

    def render(self) -> tuple[NDArray[np.uint8], ...] | None:
        """Return an RGB frame of each environment; None without a render mode."""
        if self.render_mode is None:
            return None
        return tuple(self.batched.render(i) for i in range(self.num_envs))

    def close_extras(self, **kwargs: Any) -> None:
        """Free what the environments hold."""
        self.batched.close()


class GymEnv(gym.Env[Any, Any]):
    """One torch environment as a `gymnasium.Env`: what `gymnasium.make` makes of our ids.

    Where the environment has masks, `info["action_mask"]` holds the flat one, `[sum(sizes)]` int8,
    as in Gymnasium's Taxi, and `action_masks()` returns it, as sb3-contrib asks for it.

    As Gymnasium's own environments it has no time limit of its own: `gymnasium.make` adds it.

    Args:
        env_id: a key of `rl_gumbel.envs.ENVS`.
        render_mode: `rgb_array`, or None.
        kwargs: of the environment; `device` is the CPU unless told.

    Raises:
        ValueError: for an unknown id, argument or render mode.
    """

    metadata: dict[str, Any] = {  # noqa: RUF012 (Gymnasium declares it so)
        "render_modes": ["rgb_array"],
        "render_fps": FRAMES_PER_SECOND,
    }

    def __init__(self, env_id: str, render_mode: str | None = None, **kwargs: Any) -> None:
        if has_time_limit(env_id):
            kwargs = {"max_episode_steps": None, **kwargs}
        self.batched = make_torch_env(env_id, 1, **kwargs)
        check_render_mode(self.batched, render_mode)
        if self.batched.render_mode is None:
            self.metadata = {"render_modes": []}
        self.render_mode = render_mode
        self.observation_space = self.batched.observation_space
        self.action_space = self.batched.action_space
        self._mask: NDArray[np.bool_] | None = None
        self._must_reset = True
        self._next: Arrays | None = None

    @property
    def action_masks(self) -> Callable[[], NDArray[np.bool_]]:
        """The method that returns the flat mask, `[sum(sizes)]` bool.

        Raises:
            AttributeError: if the environment has no masks; `hasattr` then says so.
        """
        if not self.batched.masked:
            raise AttributeError(f"{type(self.batched).__name__} has no action masks")
        return self._action_masks

    def reset(self, *, seed: int | None = None, options: Info | None = None) -> tuple[Any, Info]:
        """Start an episode; return its first observation and the info.

        Raises:
            ValueError: for options.
        """
        if options:
            raise ValueError(f"{self} takes no options at a reset; got {options}")
        super().reset(seed=seed)
        # The next episode began in the step that ended the last one.
        host = self._next if seed is None and self._next else host_reset(self.batched, seed)
        self._next = None
        self._must_reset = False
        return copy_row(host["obs"], 0), self._info(host["mask"])

    def step(self, action: Any) -> tuple[Any, float, bool, bool, Info]:
        """Take one step.

        Raises:
            ValueError: for an action outside the space.
            gymnasium.error.ResetNeeded: before `reset`, at first and after each episode.
        """
        if self._must_reset:
            raise gym.error.ResetNeeded(f"{self}: call reset() before step() to start an episode")
        host = host_step(self.batched, read_action(self.batched, np.asarray(action)[np.newaxis]))
        terminated, truncated = bool(host["terminated"][0]), bool(host["truncated"][0])
        if terminated or truncated:
            self._must_reset = True
            self._next = host
        obs, reward = copy_row(host["final_obs"], 0), float(host["reward"][0])
        return obs, reward, terminated, truncated, self._info(host["final_mask"])

    def render(self) -> NDArray[np.uint8] | None:
        """Return an RGB frame; None without a render mode."""
        return None if self.render_mode is None else self.batched.render()

    def close(self) -> None:
        """Free what the environment holds."""
        self.batched.close()

    def _action_masks(self) -> NDArray[np.bool_]:
        if self._mask is None:
            raise gym.error.ResetNeeded(f"{self} has no action mask before its first reset")
        return self._mask.copy()

    def _info(self, mask: NDArray[np.bool_] | None) -> Info:
        self._mask = None if mask is None else mask[0]
        return {} if mask is None else {"action_mask": mask[0].astype(np.int8)}


def make_gym_vector_env(
    num_envs: int, env_id: str, render_mode: str | None = None, **kwargs: Any
) -> GymVectorEnv:
    """Return a vector environment of torch environments; the vector entry point of our ids."""
    return GymVectorEnv(make_torch_env(env_id, num_envs, **kwargs), render_mode)


def _mask_info(mask: NDArray[np.bool_] | None, there: NDArray[np.bool_]) -> Info:
    """Return the entry of the masks in a vector environment's info, and for whom it is there."""
    return {} if mask is None else {"action_mask": mask.astype(np.int8), "_action_mask": there}
