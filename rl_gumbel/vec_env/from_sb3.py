"""A vectorised environment of Stable-Baselines3 as a batched environment."""

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from stable_baselines3.common.vec_env import VecEnv

from rl_gumbel.envs.base import BatchedEnv
from rl_gumbel.vec_env.host import HostEnv, HostStep, read_masks
from rl_gumbel.vec_env.sb3 import SB3VecEnv
from rl_gumbel.vec_env.transfer import Tree


def as_batched(vec_env: VecEnv, device: torch.device | str) -> BatchedEnv:
    """Return the batched environment inside an `SB3VecEnv`, or an adapter of any other `VecEnv`.

    Raises:
        ValueError: if the batched environment is on another device.
        TypeError: for spaces that are not supported.
    """
    if not isinstance(vec_env, SB3VecEnv):
        return VecEnvAdapter(vec_env, device)
    here, wanted = vec_env.batched.device, torch.device(device)
    if here.type != wanted.type or (here.index or 0) != (wanted.index or 0):
        raise ValueError(
            f"the environments are on {here} and the algorithm on {wanted}; make both with the "
            f"same device"
        )
    return vec_env.batched


class VecEnvAdapter(HostEnv):
    """Any `VecEnv`: `DummyVecEnv`, `SubprocVecEnv`, and what wraps them.

    An ended episode is truncated where its info says `TimeLimit.truncated`, else terminated. Its
    return and length are `Monitor`'s where its info has them, so that under `VecNormalize` they
    stay those of the raw rewards. Masks come from `action_mask` in the infos, else from the
    environments' `action_masks` method: then those on last observations are not known and allow
    everything.
    """

    backend = "stable-baselines3"

    def __init__(self, vec_env: VecEnv, device: torch.device | str) -> None:
        self.vec_env = vec_env
        super().__init__(
            vec_env.num_envs,
            vec_env.observation_space,
            vec_env.action_space,
            _time_limit(vec_env),
            device,
        )
        self.render_mode = vec_env.render_mode
        self.masked = vec_env.has_attr("action_masks")
        self.asks = self.masked
        """Whether masks come from the method."""

    def reset_host(self, seed: int | None) -> tuple[Tree, NDArray[np.bool_] | None]:
        """Return the first observations and masks; a seed is that of the first environment."""
        if seed is not None:
            self.vec_env.seed(seed)
        obs = self.vec_env.reset()
        infos = self.vec_env.unwrapped.reset_infos
        mask = read_masks([info.get("action_mask") for info in infos])
        self.asks = self.asks and mask is None
        return obs, self._ask_masks() if self.asks else mask

    def send(self, action: NDArray[Any]) -> None:
        """Begin a step."""
        self.vec_env.step_async(action)

    def receive(self) -> HostStep:
        """Return the step; what ended is read from the infos."""
        obs, reward, ended, infos = self.vec_env.step_wait()
        rows = np.flatnonzero(ended).tolist()
        truncated = np.zeros(self.num_envs, np.bool_)
        for i in rows:
            truncated[i] = infos[i].get("TimeLimit.truncated", False)
        if self.asks:
            mask = self._ask_masks()
            final_mask = mask | ended[:, None]
        else:
            masks = [info.get("action_mask") for info in infos]
            final_mask = read_masks(masks, self.masked)
            for i in rows:
                masks[i] = self.vec_env.unwrapped.reset_infos[i].get("action_mask")
            mask = read_masks(masks, self.masked)
        return HostStep(
            obs=obs,
            reward=reward,
            terminated=ended & ~truncated,
            truncated=truncated,
            final_obs={i: infos[i]["terminal_observation"] for i in rows},
            mask=mask,
            final_mask=final_mask,
            episodes={
                i: (infos[i]["episode"]["r"], infos[i]["episode"]["l"])
                for i in rows
                if "episode" in infos[i]
            },
        )

    def render(self, index: int = 0) -> NDArray[np.uint8]:
        """Return an RGB frame of one environment.

        Raises:
            NotImplementedError: unless it was made with the render mode `rgb_array`.
        """
        frame = self.vec_env.get_images()[index] if self.render_mode == "rgb_array" else None
        return super().render(index) if frame is None else frame

    def close(self) -> None:
        """Close the environments."""
        self.vec_env.close()

    def _ask_masks(self) -> NDArray[np.bool_] | None:
        return read_masks(self.vec_env.env_method("action_masks"))


def _time_limit(vec_env: VecEnv) -> int | None:
    """Return the time limit that the environments were registered with, if they were."""
    try:
        spec = vec_env.get_attr("spec", 0)[0]
    except AttributeError:
        return None
    return getattr(spec, "max_episode_steps", None)
