"""Gymnasium environments of any kind as batched environments."""

from collections.abc import Mapping
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from gymnasium import spaces
from gymnasium.envs.registration import EnvSpec, load_env_creator
from gymnasium.vector import AsyncVectorEnv, AutoresetMode, VectorEnv
from numpy.typing import NDArray

from rl_gumbel.actions import ActionLayout
from rl_gumbel.vec_env.host import HostEnv, HostStep, read_masks
from rl_gumbel.vec_env.names import check_arguments, list_arguments
from rl_gumbel.vec_env.transfer import Tree
from rl_gumbel.wrappers import FlattenActions, MasksInInfo

MODES = ("vector_entry_point", "sync", "async")
MAKE_ARGUMENTS = ("max_episode_steps", "disable_env_checker", "render_mode")
"""Arguments that `gymnasium.make` takes for every environment."""
SAME_STEP = AutoresetMode.SAME_STEP


def make_gymnasium_env(
    spec: EnvSpec,
    num_envs: int,
    device: torch.device,
    vectorization_mode: str | None,
    kwargs: Mapping[str, Any],
) -> "GymnasiumEnv":
    """Return environments of Gymnasium.

    A vector entry point is only used if it resets in the same step: one that does so in the next
    step gives a transition without meaning between two episodes.

    Raises:
        ValueError: for a mode or an argument that there is not, or a vector entry point that resets
            in the next step when one is asked for.
    """
    if vectorization_mode not in (None, *MODES):
        raise ValueError(
            f"vectorization_mode {vectorization_mode!r} of {spec.id} must be one of {MODES}"
        )
    limit = kwargs.get("max_episode_steps", spec.max_episode_steps)
    if vectorization_mode in (None, "vector_entry_point"):
        env = _make_by_entry_point(spec, num_envs, kwargs)
        if env is not None:
            return GymnasiumEnv(env, limit, device, "gymnasium (vector)")
        if vectorization_mode is not None:
            raise ValueError(
                f"{spec.id} has no vector entry point that resets in the same step; use sync or "
                f"async"
            )
        vectorization_mode = "sync"
    if spec.entry_point is None:
        raise ValueError(f"{spec.id} has no entry point of a single environment")
    creator = _load(spec.entry_point)
    check_arguments(spec.id, creator, kwargs.keys() - {*MAKE_ARGUMENTS})
    env = gym.make_vec(
        spec,
        num_envs,
        vectorization_mode,
        # What is returned is copied to the device before the next step.
        vector_kwargs={"autoreset_mode": SAME_STEP, "copy": False},
        wrappers=[adapt],
        **kwargs,
    )
    return GymnasiumEnv(env, limit, device, f"gymnasium ({vectorization_mode})")


class GymnasiumEnv(HostEnv):
    """A vector environment of Gymnasium that resets in the same step.

    Masks come from `info["action_mask"]`.

    Args:
        vector_env: what steps the environments.
        max_episode_steps: the time limit, or None if there is none or it is not known.
        device: of every tensor.
        backend: what steps the environments, in a word.
    """

    def __init__(
        self,
        vector_env: VectorEnv[Any, Any, NDArray[Any]],
        max_episode_steps: int | None,
        device: torch.device,
        backend: str,
    ) -> None:
        self.vector_env = vector_env
        self.backend = backend  # type: ignore[misc]
        super().__init__(
            vector_env.num_envs,
            vector_env.single_observation_space,
            vector_env.single_action_space,
            max_episode_steps,
            device,
        )
        self.render_mode = "rgb_array" if vector_env.render_mode == "rgb_array" else None

    def reset_host(self, seed: int | None) -> tuple[Tree, NDArray[np.bool_] | None]:
        """Return the first observations and masks; environment i has the seed plus i."""
        obs, info = self.vector_env.reset(seed=seed)
        return obs, read_masks(self._masks(info))

    def send(self, action: NDArray[Any]) -> None:
        """Begin a step where processes take it; keep the actions where this one will."""
        self._action = action
        if isinstance(self.vector_env, AsyncVectorEnv):
            self.vector_env.step_async(action)

    def receive(self) -> HostStep:
        """Return the step; last observations and masks are read from the info."""
        if isinstance(self.vector_env, AsyncVectorEnv):
            result = self.vector_env.step_wait()
        else:
            result = self.vector_env.step(self._action)
        obs, reward, terminated, truncated, info = result
        rows = np.flatnonzero(terminated | truncated).tolist()
        masks = self._masks(info)
        mask = final_mask = read_masks(masks, self.masked)
        if rows:
            final_masks = self._masks(info["final_info"])
            for i in rows:
                masks[i] = final_masks[i]
            final_mask = read_masks(masks, self.masked)
        return HostStep(
            obs=obs,
            reward=reward,
            terminated=terminated,
            truncated=truncated,
            final_obs={i: info["final_obs"][i] for i in rows},
            mask=mask,
            final_mask=final_mask,
        )

    def render(self, index: int = 0) -> NDArray[np.uint8]:
        """Return an RGB frame of one environment.

        Raises:
            NotImplementedError: unless it was made with the render mode `rgb_array`.
        """
        frames: Any = self.vector_env.render() if self.render_mode else None
        frame: NDArray[np.uint8] = super().render(index) if frames is None else frames[index]
        return frame

    def close(self) -> None:
        """Close the environments."""
        self.vector_env.close()

    def _masks(self, info: Mapping[str, Any]) -> list[Any]:
        """Return the mask of each environment, None where there is none, in the info of all."""
        masks = info.get("action_mask", [None] * self.num_envs)
        has_mask = info.get("_action_mask", [True] * self.num_envs)
        return [mask if has else None for mask, has in zip(masks, has_mask, strict=True)]


class FlattenTuple(gym.ObservationWrapper[Any, Any, Any]):
    """Observations of a `Tuple` space as one vector, which networks can read.

    A tuple of `Discrete` spaces, as Blackjack's, becomes a `MultiDiscrete`; any other is flattened
    as `gymnasium.spaces.flatten` does.

    Args:
        env: with a `Tuple` observation space.
    """

    def __init__(self, env: gym.Env[Any, Any]) -> None:
        super().__init__(env)
        self.inner = env.observation_space
        parts: Any = self.inner
        self.is_discrete = all(isinstance(part, spaces.Discrete) for part in parts)
        self.observation_space = spaces.flatten_space(self.inner)
        if self.is_discrete:
            sizes, starts = [part.n for part in parts], [part.start for part in parts]
            self.observation_space = spaces.MultiDiscrete(sizes, start=starts)

    def observation(self, observation: Any) -> Any:
        """Return the vector of a tuple."""
        if self.is_discrete:
            return np.array(observation, np.int64)
        return spaces.flatten(self.inner, observation)


def adapt(env: gym.Env[Any, Any]) -> Any:
    """Return an environment in the wrappers, if any, that the batched contract needs."""
    if isinstance(env.observation_space, spaces.Tuple):
        env = FlattenTuple(env)
    try:
        ActionLayout.from_space(env.action_space)
    except TypeError:
        if not isinstance(env.action_space, spaces.Box):
            env = FlattenActions(env)
    return MasksInInfo(env) if env.has_wrapper_attr("action_masks") else env


def _make_by_entry_point(
    spec: EnvSpec, num_envs: int, kwargs: Mapping[str, Any]
) -> VectorEnv[Any, Any, NDArray[Any]] | None:
    """Return the id's own vector environment if it has one that resets in the same step."""
    if spec.vector_entry_point is None:
        return None
    creator = _load(spec.vector_entry_point)
    known = list_arguments(creator)
    if known is not None:
        if not kwargs.keys() <= known.keys():
            return None
        if "autoreset_mode" in known:
            kwargs = {**kwargs, "autoreset_mode": SAME_STEP}
    env = gym.make_vec(spec, num_envs, "vector_entry_point", **kwargs)
    if env.metadata.get("autoreset_mode") is SAME_STEP:
        return env
    env.close()
    return None


def _load(entry_point: Any) -> Any:
    return entry_point if callable(entry_point) else load_env_creator(entry_point)
