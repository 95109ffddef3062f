"""What SB3 algorithms on batched environments share: the environment, its episodes, the start."""

import time
from collections.abc import Callable
from typing import Any, ClassVar, Self

import gymnasium as gym
import numpy as np
import torch
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.type_aliases import GymEnv, MaybeCallback
from stable_baselines3.common.vec_env import VecEnv
from torch import Tensor

from rl_gumbel.algorithms.numbers import Record, RewardWatch, UpdateWatch, check, measure
from rl_gumbel.envs.base import BatchedEnv
from rl_gumbel.types import Obs, Step
from rl_gumbel.vec_env import SB3VecEnv, as_batched
from rl_gumbel.wrappers import MasksInInfo

COUNTERS = ["skipped_updates", "repaired_steps"]
"""Tensors that every algorithm saves."""


class DeferredArray:
    """A tensor as SB3's callbacks expect it, an array, read from the device only when looked at.

    Args:
        make: returns the tensor.
    """

    def __init__(self, make: Callable[[], Tensor]) -> None:
        self.make = make

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        """Return the array."""
        # Without the gradient that a differentiable environment gives it.
        return np.asarray(self.make().detach().cpu(), dtype)

    def __getitem__(self, key: Any) -> Any:
        return np.asarray(self)[key]

    def __len__(self) -> int:
        return len(np.asarray(self))


class BatchedAlgorithm(BaseAlgorithm):
    """An SB3 algorithm that steps its environments as tensors on the device.

    It takes a `BatchedEnv` beside all that SB3 takes; any other vectorised environment is adapted.
    """

    loop_state: ClassVar[tuple[str, ...]] = (
        "num_timesteps",
        "_n_updates",
        "_episode_num",
        "_current_progress_remaining",
        "_updates.in_a_row",
    )
    """Attributes, trees of numbers and tensors, that a checkpoint holds beside what SB3 saves."""
    env_state: ClassVar[tuple[str, ...]] = ("_obs",)
    """Such that belong to the episodes under way."""
    batched: BatchedEnv
    """The environments, while learning."""
    _obs: Obs | None = None
    """Their present observations, on the device."""
    skipped_updates: Tensor
    """Updates not taken so far, their gradient not being finite, on the device."""
    repaired_steps: Tensor
    """Steps of environments so far that returned an infinity or NaN, which they replaced."""

    def _setup_checks(self) -> None:
        """Start counting what is not finite."""
        self.skipped_updates = torch.zeros((), device=self.device)
        self.repaired_steps = torch.zeros((), device=self.device)
        self._updates = UpdateWatch()
        self._rewards = RewardWatch()

    @staticmethod
    def _wrap_env(
        env: GymEnv | BatchedEnv, verbose: int = 0, monitor_wrapper: bool = True
    ) -> VecEnv:
        if isinstance(env, BatchedEnv):
            env = SB3VecEnv(env)
        elif isinstance(env, gym.Env) and env.has_wrapper_attr("action_masks"):
            env = MasksInInfo(env)  # where those on last observations are known too
        return BaseAlgorithm._wrap_env(env, verbose, monitor_wrapper)

    @classmethod
    def load(cls, path: Any, *args: Any, **kwargs: Any) -> Self:
        """Return the model that `save` wrote, as SB3's `load`, which runs code from the file.

        The member `data` of the zip holds pickled objects, and unpickling calls whatever function
        a file names: load only what you or somebody you trust has written. What runs nothing:
        `rl_gumbel.checkpoint.load_weights(model, path)`, which reads the tensors alone, and
        `load_model` for what `save_model` wrote.
        """
        return super().load(path, *args, **kwargs)

    def _setup_learn(
        self, total_timesteps: int, callback: MaybeCallback = None, *args: Any, **kwargs: Any
    ) -> tuple[int, BaseCallback]:
        before = self._last_obs
        total, callback = super()._setup_learn(total_timesteps, callback, *args, **kwargs)
        assert self.env is not None and self._last_obs is not None
        if self._obs is None or self._last_obs is not before:  # SB3 has reset the environments
            self.batched = as_batched(self.env, self.device)
            self._obs = self.batched.reset()  # again: an adapter counts from its own reset
        return total, callback

    def _show_step(self, callback: BaseCallback, step: Step) -> bool:
        """Count a step of every environment and show it to the callbacks; False ends training."""
        self.num_timesteps += self.n_envs
        if step.repaired is not None:
            self.repaired_steps += step.repaired.sum()
        callback.update_locals(
            {
                "self": self,
                "dones": DeferredArray(lambda: step.ended),
                "rewards": DeferredArray(lambda: step.reward),
            }
        )
        return callback.on_step()

    def _record_episodes(
        self, ended: Tensor, returns: Tensor, lengths: Tensor, record: Record
    ) -> int:
        """Put the episodes that ended into SB3's buffer, the latest last; reads the device once.

        The same read tells whether steps and updates since the last one were finite.

        Args:
            ended: `[T, B]` bool.
            returns: `[T, B]` float32, of the episode up to each step.
            lengths: `[T, B]` int64, likewise.
            record: of the same steps.

        Returns:
            How many ended.

        Raises:
            NumericalError: for an infinity or NaN of an environment, or in too many gradients.
            EnvError: for a state in which nothing may be chosen.
        """
        assert self.ep_info_buffer is not None
        # As doubles, which hold a length exactly, so that one copy brings everything.
        table = torch.stack([ended.double(), returns.double(), lengths.double()])
        parts = [measure(record), self._updates.take(ended), table.flatten()]
        measured, flags, flat = torch.cat(parts).cpu().split([part.numel() for part in parts])
        is_finite, largest, may_act = measured.tolist()
        check(record, is_finite, may_act, self.num_timesteps - ended.numel())
        self._rewards.see(largest)
        self._updates.see(flags.tolist(), self.num_timesteps)
        if self.batched.repairs:
            self.logger.record("rollout/repaired_steps", self.repaired_steps.item())
        table = flat.view(table.shape)
        rows = table[1:, table[0].bool()]
        now = round(time.time() - self.start_time / 1e9, 6)
        for episode_return, length in rows[:, -self._stats_window_size :].T.tolist():
            self.ep_info_buffer.append({"r": episode_return, "l": int(length), "t": now})
        return rows.shape[1]

    def learn(self, *args: Any, **kwargs: Any) -> Self:
        """Return the model itself after training; as SB3's `learn`."""
        super().learn(*args, **kwargs)
        self._read_updates()
        return self

    def check_numbers(self) -> None:
        """Raise if environments returned what cannot be learned from since the log was read.

        So a checkpoint, which asks first, has no such thing in its replay.
        """

    def _note_update(self, name: str, is_finite: Tensor) -> None:
        """Count an update of the parameters of that name, skipped or not, on the device."""
        self.skipped_updates += ~is_finite
        self._updates.add(name, is_finite)

    def _read_updates(self) -> None:
        """Look at the updates since the last look; a read of the device of its own."""
        self._updates.see(self._updates.take(self.skipped_updates).tolist(), self.num_timesteps)

    def _excluded_save_params(self) -> list[str]:
        built = ["batched", "_obs", "_last_obs", "_updates", "_rewards"]
        return [*super()._excluded_save_params(), *built]
