"""A batched environment as a vectorised environment of Stable-Baselines3."""

import time
from collections.abc import Callable, Sequence
from typing import Any

import gymnasium as gym
import numpy as np
from numpy.typing import NDArray
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import VecEnv
from stable_baselines3.common.vec_env.base_vec_env import (
    VecEnvIndices,
    VecEnvObs,
    VecEnvStepReturn,
)
from torch import Tensor

from rl_gumbel.envs.base import BatchedEnv, State
from rl_gumbel.vec_env.facade import copy_row, host_reset, host_step, read_action
from rl_gumbel.vec_env.guard import check_batch


class SB3VecEnv(VecEnv):
    """A `VecEnv` that stock Stable-Baselines3 trains on; numpy in and out.

    Each step reads the device once. Where an episode ended its info holds what `Monitor` and
    `DummyVecEnv` write: `episode`, `terminal_observation` and `TimeLimit.truncated`; the other
    infos are empty. The environment is seeded by the first of SB3's seeds. Where the environment
    has masks, `env_method("action_masks")` returns one `[sum(sizes)]` bool for each environment,
    what MaskablePPO asks for.

    Args:
        batched: the environments.
    """

    def __init__(self, batched: BatchedEnv) -> None:
        self.batched = batched
        self._start_seconds = time.time()
        self._has_begun = False
        self._masks: NDArray[np.bool_] | None = None
        self._action: Tensor
        super().__init__(batched.num_envs, batched.observation_space, batched.action_space)

    def reset(self) -> VecEnvObs:
        """Start an episode in every environment and return the observations `[B, *O]`."""
        host = host_reset(self.batched, self._seeds[0])
        self._reset_seeds()
        self._has_begun = True
        self._masks = host["mask"]
        return host["obs"]  # type: ignore[no-any-return]

    def step_async(self, actions: NDArray[Any]) -> None:
        """Take the actions of the next step, `[B]` or `[B, K]`, as the action space has them.

        Raises:
            ValueError: for an action outside the space.
        """
        self._action = read_action(self.batched, actions)

    def step_wait(self) -> VecEnvStepReturn:
        """Return observations, rewards `[B]`, ends `[B]` bool and infos of the step."""
        host = host_step(self.batched, self._action)
        self._masks = host["mask"]
        check_batch(host["obs"], host["reward"], self._action)
        seconds = round(time.time() - self._start_seconds, 6)
        infos: list[dict[str, Any]] = [{} for _ in range(self.num_envs)]
        for i in np.flatnonzero(host["ended"]).tolist():
            infos[i] = {
                "episode": {
                    "r": round(float(host["episode_return"][i]), 6),
                    "l": int(host["episode_length"][i]),
                    "t": seconds,
                },
                "terminal_observation": copy_row(host["final_obs"], i),
                "TimeLimit.truncated": bool(host["truncated"][i]),
            }
        return host["obs"], host["reward"], host["ended"], infos

    def get_state(self) -> State | None:
        """Return the state of the environments.

        It is {} before their first reset, and None if they cannot be saved.
        """
        if not self._has_begun:
            return {}
        try:
            return self.batched.get_state()
        except NotImplementedError:
            return None

    def set_state(self, state: State) -> None:
        """Go back to a state that `get_state` returned; only a step or a reset may follow."""
        if state:
            self.batched.set_state(state)
            self._reset_seeds()  # the random stream goes on from there
            self._has_begun = True

    def close(self) -> None:
        """Free what the environments hold."""
        self.batched.close()

    def set_options(self, options: list[dict[str, Any]] | dict[str, Any] | None = None) -> None:
        """Refuse options of a reset, which batched environments do not have.

        Raises:
            ValueError: if there are any.
        """
        if options:
            raise ValueError(f"{self._name} takes no options at a reset; got {options}")

    def get_attr(self, attr_name: str, indices: VecEnvIndices = None) -> list[Any]:
        """Return an attribute of the batched environment, once for each index.

        Raises:
            AttributeError: if there is none; `action_masks` is there where there are masks.
        """
        rows = self._get_indices(indices)
        if attr_name == "action_masks" and self.batched.masked:
            return [self._mask_of(i) for i in rows]
        return [getattr(self.batched, attr_name) for _ in rows]

    def set_attr(self, attr_name: str, value: Any, indices: VecEnvIndices = None) -> None:
        """Set an attribute that the batched environment has; for all environments at once.

        Raises:
            AttributeError: if it does not have it.
            ValueError: if not all environments are meant.
        """
        if {*self._get_indices(indices)} != {*range(self.num_envs)}:
            raise ValueError(f"{attr_name} of {self._name} can only be set for all environments")
        getattr(self.batched, attr_name)  # a new one would be ignored
        setattr(self.batched, attr_name, value)

    def env_method(
        self, method_name: str, *method_args: Any, indices: VecEnvIndices = None, **kwargs: Any
    ) -> list[Any]:
        """Return what `action_masks` or `render` returns for each environment.

        Raises:
            AttributeError: for another method, or where there are no masks.
        """
        if method_name == "render":
            return [self.batched.render(i) for i in self._get_indices(indices)]
        if method_name == "action_masks":
            return [mask() for mask in self.get_attr("action_masks", indices)]
        raise AttributeError(
            f"{self._name} has no method {method_name!r} of one environment: there are "
            f"'action_masks' and 'render'; call others on .batched"
        )

    def env_is_wrapped(
        self, wrapper_class: type[gym.Wrapper[Any, Any, Any, Any]], indices: VecEnvIndices = None
    ) -> list[bool]:
        """Return True for `Monitor`, whose infos are here, else False, for each index."""
        return [wrapper_class is Monitor for _ in self._get_indices(indices)]

    def get_images(self) -> Sequence[NDArray[np.uint8] | None]:
        """Return an RGB frame of each environment."""
        return [self.batched.render(i) for i in range(self.num_envs)]

    @property
    def _name(self) -> str:
        return f"SB3VecEnv of {type(self.batched).__name__}"

    def _mask_of(self, index: int) -> Callable[[], NDArray[np.bool_]]:
        def action_masks() -> NDArray[np.bool_]:
            if self._masks is None:
                raise RuntimeError(f"{self._name} has no action masks before its first reset")
            row: NDArray[np.bool_] = self._masks[index]
            return row

        return action_masks
