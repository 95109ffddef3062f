"""Environments that step in numpy on the host, behind the contract of batched environments."""

from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from numpy.typing import NDArray
from torch import Tensor

from rl_gumbel.actions import ActionLayout
from rl_gumbel.envs.base import BatchedEnv
from rl_gumbel.faults import EnvError
from rl_gumbel.types import Obs, Step
from rl_gumbel.vec_env.transfer import Tree, map_leaves, to_torch
from rl_gumbel.wrappers import flatten_mask

MASK_UNTOLD = (
    "info['action_mask'] came with a step but not with the reset; return it from reset() too"
)


@dataclass(frozen=True)
class HostStep:
    """What the environments on the host returned for one step."""

    obs: Tree
    """`[B, *O]`, first observations of the next episode where one ended."""
    reward: NDArray[Any]
    """`[B]`"""
    terminated: NDArray[np.bool_]
    """`[B]`"""
    truncated: NDArray[np.bool_]
    """`[B]`"""
    final_obs: Mapping[int, Tree]
    """Last observation `[*O]` of each episode that ended, by environment."""
    mask: NDArray[np.bool_] | None
    """`[B, sum(sizes)]`: what may be chosen on `obs`; None if everything always may."""
    final_mask: NDArray[np.bool_] | None
    """`[B, sum(sizes)]`: what may be chosen on the last observations."""
    episodes: Mapping[int, tuple[float, int]] = field(default_factory=dict)
    """Return and length of episodes that ended, where the environment counts them itself."""


class HostEnv(BatchedEnv):
    """The base of adapters: one read of the device (actions) and one write (all else) per step.

    Raises:
        TypeError: for spaces that are not supported.
    """

    meanwhile: Callable[[], None] | None = None
    """Called in each step once the actions are sent: while environments in other processes step."""

    def __init__(
        self,
        num_envs: int,
        observation_space: spaces.Space[Any],
        action_space: spaces.Space[Any],
        max_episode_steps: int | None,
        device: torch.device | str,
    ) -> None:
        self.layout = ActionLayout.from_space(action_space)
        parts = [observation_space]
        if isinstance(observation_space, spaces.Dict):
            parts = list(observation_space.values())
        if any(isinstance(part, (spaces.Dict, spaces.Tuple)) for part in parts):
            raise TypeError(
                f"observation space {observation_space} is not supported: supported are Box, "
                f"Discrete, MultiDiscrete, MultiBinary and a Dict of these"
            )
        self.num_envs = num_envs
        self.observation_space = observation_space
        self.action_space = action_space
        self.max_episode_steps = max_episode_steps
        self.truncation_interval = 1  # an environment may cut episodes itself, before its limit
        self.device = torch.device(device)

    @abstractmethod
    def reset_host(self, seed: int | None) -> tuple[Tree, NDArray[np.bool_] | None]:
        """Return the observations `[B, *O]` of new episodes and the masks `[B, sum(sizes)]`."""

    @abstractmethod
    def send(self, action: NDArray[Any]) -> None:
        """Begin a step with actions that the space contains."""

    @abstractmethod
    def receive(self) -> HostStep:
        """Return the step that has begun."""

    def reset(self, seed: int | None = None) -> Obs:
        """Start an episode in every environment and return the observations `[B, *O]`."""
        obs, mask = self.reset_host(seed)
        self._return = np.zeros(self.num_envs)
        self._length = np.zeros(self.num_envs, np.int64)
        self._check_mask(mask, None)
        moved = to_torch({"obs": obs, "mask": mask}, self.device)
        self.masked = mask is not None
        self.action_mask = self._unflatten(moved["mask"])
        return moved["obs"]  # type: ignore[no-any-return]

    def step(self, action: Tensor) -> Step:
        """Take one step in every environment; see `BatchedEnv.step`."""
        if action.is_floating_point():
            action = self.layout.to_action(action)
        array = action.detach().cpu().numpy()  # numpy has no past
        shape = (self.num_envs, *(self.action_space.shape or ()))
        self.send(array.reshape(shape).astype(self.action_space.dtype, copy=False))
        try:
            if self.meanwhile is not None:
                self.meanwhile()
        finally:  # whatever it raises, no step is left under way
            host = self.receive()
        self._return += host.reward
        self._length += 1
        self._check_mask(host.mask, array)
        if host.mask is not None and not self.masked:
            raise ValueError(MASK_UNTOLD)
        for i, (episode_return, episode_length) in host.episodes.items():
            self._return[i], self._length[i] = episode_return, episode_length
        moved = to_torch(
            {
                "obs": host.obs,
                "reward": host.reward.astype(np.float32),
                "terminated": host.terminated,
                "truncated": host.truncated & ~host.terminated,
                "mask": host.mask,
                "return": self._return.astype(np.float32),
                "length": self._length,
                # Where nothing ended, what the action led to is what the next one is chosen on.
                "final_obs": _replace(host.obs, host.final_obs) if host.final_obs else None,
                "final_mask": host.final_mask if host.final_obs else None,
            },
            self.device,
        )
        ended = host.terminated | host.truncated
        self._return[ended] = 0
        self._length[ended] = 0
        self.action_mask = self._unflatten(moved["mask"])
        final_mask = self._unflatten(moved["final_mask"])
        return Step(
            obs=moved["obs"],
            reward=moved["reward"],
            terminated=moved["terminated"],
            truncated=moved["truncated"],
            final_obs=moved["obs"] if moved["final_obs"] is None else moved["final_obs"],
            action_mask=self.action_mask,
            final_action_mask=self.action_mask if final_mask is None else final_mask,
            episode_return=moved["return"],
            episode_length=moved["length"],
        )

    def _check_mask(self, mask: NDArray[np.bool_] | None, action: NDArray[Any] | None) -> None:
        """Raise for a wrong shape, and where nothing is allowed after an action, or a reset."""
        if mask is None:
            return
        if mask.shape != (self.num_envs, self.layout.num_flat):
            raise ValueError(
                f"an action mask of {self.action_space} has {self.layout.num_flat} entries, for "
                f"{self.num_envs} environments; got an array of shape {mask.shape}"
            )
        starts = np.cumsum((0, *self.layout.sizes[:-1]))
        stuck = np.argwhere(~np.logical_or.reduceat(mask, starts, axis=1))
        if stuck.size:
            i, factor = stuck[0].tolist()
            when = "at a reset"
            if action is not None:
                when = f"after step {self._length[i]} of an episode, action {action[i].tolist()}"
            raise EnvError(f"environment {i}: the mask allows no action of factor {factor} {when}")

    def _unflatten(self, mask: Tensor | None) -> Tensor | None:
        return None if mask is None else self.layout.unflatten(mask)


def read_masks(masks: Sequence[Any], required: bool = False) -> NDArray[np.bool_] | None:
    """Return the masks of B environments as `[B, sum(sizes)]`; None where none has one.

    Args:
        masks: one for each environment, an array or arrays in nested tuples; None for none.
        required: raise for environments without too.

    Raises:
        ValueError: if one has none that must have one; it is named.
    """
    missing = [i for i, mask in enumerate(masks) if mask is None]
    if len(missing) == len(masks) and not required:
        return None
    if missing:
        raise ValueError(
            f"environment {missing[0]} has no info['action_mask']; it must be in every info, of "
            f"reset and step, of every environment"
        )
    return np.stack([flatten_mask(mask) for mask in masks]).astype(np.bool_)


def _replace(obs: Tree, rows: Mapping[int, Tree]) -> Tree:
    """Return a copy of a batch of observations with some rows replaced."""
    copy = map_leaves(np.copy, obs)
    for i, row in rows.items():
        if isinstance(copy, dict):
            for name, array in copy.items():
                array[i] = row[name]
        else:
            copy[i] = row
    return copy
