"""The off-policy loop of SB3; on batched environments its steps and its replay are tensors."""

from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from stable_baselines3.common.buffers import DictReplayBuffer, NStepReplayBuffer, ReplayBuffer
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.noise import ActionNoise
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm
from stable_baselines3.common.type_aliases import (
    MaybeCallback,
    RolloutReturn,
    TrainFreq,
    TrainFrequencyUnit,
)
from stable_baselines3.common.vec_env import VecEnv
from torch import Tensor

from rl_gumbel.actions import ActionLayout
from rl_gumbel.algorithms.batched import BatchedAlgorithm
from rl_gumbel.algorithms.compilation import compile_steps
from rl_gumbel.algorithms.numbers import Record, check_now, floats
from rl_gumbel.buffers import DeviceReplayBuffer
from rl_gumbel.distributions import FactoredCategorical
from rl_gumbel.types import Step
from rl_gumbel.vec_env import SB3VecEnv, as_batched
from rl_gumbel.vec_env.guard import check_batch
from rl_gumbel.vec_env.host import MASK_UNTOLD

EPISODES_INTERVAL = 100
"""Steps of batched environments between two reads of the episodes that ended meanwhile."""


class BatchedOffPolicyAlgorithm(BatchedAlgorithm, OffPolicyAlgorithm):
    """SB3's `OffPolicyAlgorithm`; what it collects from a `BatchedEnv` never leaves the device.

    An environment of SB3 or Gymnasium with action masks, by `action_masks()` or in its infos, is
    adapted to one, since SB3's replay has no place for masks, and so is any with priorities in the
    replay. Any other, also a `BatchedEnv` under a wrapper of SB3, takes SB3's own way, with its
    buffers. The policy of a subclass has `act(obs, mask)`, which returns sampled categories
    `[B, K]`.

    Logs are written as in SB3 after each `log_interval` episodes, but no more often than every
    `EPISODES_INTERVAL` steps.
    """

    loop_state: ClassVar[tuple[str, ...]] = (*BatchedAlgorithm.loop_state, "_episodes")
    layout: ActionLayout
    compile: bool
    """Whether acting, the steps of a `TorchEnv`, and what else the subclass says, is compiled."""

    priority_exponent: float = 0.0
    """Of the replay; see `DeviceReplayBuffer`."""
    _adapts: bool = False
    """Whether an environment that is not a `BatchedEnv` is adapted to one."""

    @property
    def is_batched(self) -> bool:
        """Whether the environment is a `BatchedEnv` or adapted to one."""
        return self._adapts or isinstance(self.env, SB3VecEnv)

    def _must_adapt(self) -> bool:
        """Return whether there is something that SB3's own way has no place for.

        Raises:
            ValueError: if so under `VecNormalize`, whose statistics move after a step is kept.
        """
        if self.env is None or isinstance(self.env, SB3VecEnv):
            return False
        infos = self.env.unwrapped.reset_infos  # empty before the first reset
        told = any("action_mask" in info for info in infos)
        masked = told or self.env.has_attr("action_masks")
        if (masked or self.priority_exponent) and self._vec_normalize_env is not None:
            what = "the action masks of the environment" if masked else "priority_exponent"
            raise ValueError(
                f"{what} would be ignored under VecNormalize; pass the environment without, and "
                f"normalise observations in it"
            )
        return masked or self.priority_exponent > 0

    def _setup_model(self) -> None:
        self._setup_checks()
        self._adapts = self._must_adapt()
        self.layout = ActionLayout.from_space(self.action_space)
        # Ends, returns and lengths since the last read.
        self._episodes: list[tuple[Tensor, Tensor, Tensor]] = []
        self._padding = None if self.layout.mask is None else self.layout.mask.to(self.device)
        if self.is_batched:
            self._setup_batched()
        else:
            super()._setup_model()
        self._check_train_freq()

    def _setup_batched(self) -> None:
        self.batched = as_batched(self.env, self.device)
        self._make_replay_buffer()
        # SB3 would choose a buffer for them, which is not used, and refuse Dict observations.
        n_steps, buffer_class = self.n_steps, self.replay_buffer_class
        self.n_steps = 1
        super()._setup_model()
        self.n_steps, self.replay_buffer_class = n_steps, buffer_class

    def _make_replay_buffer(self) -> None:
        self.replay_buffer = DeviceReplayBuffer(
            self.buffer_size,
            self.observation_space,
            self.action_space,
            self.device,
            self.n_envs,
            n_steps=self.n_steps,
            gamma=self.gamma,
            has_masks=self.batched.masked,
            priority_exponent=self.priority_exponent,
        )

    def _check_train_freq(self) -> None:
        assert isinstance(self.train_freq, TrainFreq)
        if self.train_freq.frequency < 1:
            raise ValueError(f"train_freq {self.train_freq.frequency!r} must be >= 1")
        if self.is_batched and self.train_freq.unit is not TrainFrequencyUnit.STEP:
            raise ValueError(
                f"train_freq {self.train_freq.frequency!r} episodes: with batched environments, "
                f"and with action masks, it must be in steps, since a count of episodes would wait "
                f"for the device at each"
            )

    def _setup_learn(
        self, total_timesteps: int, callback: MaybeCallback = None, *args: Any, **kwargs: Any
    ) -> tuple[int, BaseCallback]:
        if self.is_batched:
            result = super()._setup_learn(total_timesteps, callback, *args, **kwargs)
        else:
            result = OffPolicyAlgorithm._setup_learn(
                self, total_timesteps, callback, *args, **kwargs
            )
            self._adapts = self._must_adapt()  # infos tell of masks from the first reset on
            if not self._adapts:
                return result
            self._adapt()
        # Built without the environments, or before their first reset told of masks.
        buffer = self.replay_buffer
        if not isinstance(buffer, DeviceReplayBuffer) or buffer.has_masks != self.batched.masked:
            self._make_replay_buffer()
        if self.compile:
            compile_steps(self.batched)
        return result

    def _adapt(self) -> None:
        """Leave SB3's own way, for what the first reset has told."""
        assert self.env is not None
        own = (None, ReplayBuffer, DictReplayBuffer, NStepReplayBuffer)  # what SB3 itself chooses
        if self.replay_buffer_class not in own or self.optimize_memory_usage:
            raise ValueError(
                "the replay of an environment with action masks is a DeviceReplayBuffer: it takes "
                "no replay_buffer_class and no optimize_memory_usage"
            )
        self._check_train_freq()
        self.batched = as_batched(self.env, self.device)
        self._obs = self.batched.reset()

    def collect_rollouts(
        self,
        env: VecEnv,
        callback: BaseCallback,
        train_freq: TrainFreq,
        replay_buffer: ReplayBuffer,
        action_noise: ActionNoise | None = None,
        learning_starts: int = 0,
        log_interval: int | None = None,
    ) -> RolloutReturn:
        """Store `train_freq` steps of every environment in the replay; as SB3's."""
        if not self.is_batched:
            return super().collect_rollouts(
                env,
                callback,
                train_freq,
                replay_buffer,
                action_noise,
                learning_starts,
                log_interval,
            )
        self.policy.set_training_mode(False)
        callback.on_rollout_start()
        for count in range(1, train_freq.frequency + 1):
            step = self.collect_step(learning_starts)
            if not self._show_step(callback, step):
                self._read_episodes()
                return RolloutReturn(count * self.n_envs, 0, continue_training=False)
            self._update_current_progress_remaining(self.num_timesteps, self._total_timesteps)
            is_last = self.num_timesteps >= self._total_timesteps
            if is_last or len(self._episodes) >= EPISODES_INTERVAL:
                self._log(log_interval)
        callback.on_rollout_end()
        return RolloutReturn(train_freq.frequency * self.n_envs, 0, continue_training=True)

    def _store_transition(
        self,
        replay_buffer: ReplayBuffer,
        buffer_action: NDArray[Any],
        new_obs: Any,
        reward: NDArray[Any],
        dones: NDArray[Any],
        infos: list[dict[str, Any]],
    ) -> None:
        """Store a step that SB3's own way collected, if its numbers are finite.

        Raises:
            ValueError: for an action mask, which would be ignored.
        """
        if any("action_mask" in info for info in infos):
            raise ValueError(MASK_UNTOLD)
        check_batch(new_obs, reward, buffer_action)
        self._rewards.see(float(np.abs(reward).max()))
        super()._store_transition(replay_buffer, buffer_action, new_obs, reward, dones, infos)

    def check_numbers(self) -> None:
        """Raise for what `_record_episodes` would, without taking note of anything."""
        if self._episodes:
            record, num_steps = self._record(len(self._episodes)), len(self._episodes)
            check_now(record, self.num_timesteps - num_steps * self.n_envs)

    @torch.no_grad()  # what is learned is learned from the replay
    def collect_step(self, learning_starts: int = 0) -> Step:
        """Take one step in every environment, store it and return it.

        Actions are uniform over those allowed before `learning_starts`, then the policy's.
        """
        obs, mask = self._obs, self.batched.action_mask
        assert obs is not None
        if self.num_timesteps < learning_starts:
            index = self._uniform(mask).sample()
            step = self.batched.step(self.layout.to_action(index))
        else:
            index, step = self.batched.act_and_step(self.policy.act, obs)
        self._obs = step.obs
        self.replay_buffer.add(obs, self.layout.to_action(index), step, mask)
        self._episodes.append((step.ended, step.episode_return, step.episode_length))
        return step

    def _uniform(self, mask: Tensor | None) -> FactoredCategorical:
        """Return the uniform distribution over the allowed actions of every environment."""
        size = (self.n_envs, self.layout.num_factors, self.layout.num_categories)
        mask = self._padding if mask is None else mask
        return FactoredCategorical(torch.zeros(size, device=self.device), mask, validate=False)

    def _log(self, log_interval: int | None) -> None:
        """Read the episodes that ended since the last time, and log if enough have."""
        before = self._episode_num
        self._read_episodes()
        if log_interval is not None and self._episode_num // log_interval > before // log_interval:
            self.dump_logs()

    def _read_episodes(self) -> None:
        if self._episodes:
            ended, returns, lengths = map(torch.stack, zip(*self._episodes, strict=True))
            self._episodes.clear()
            self._episode_num += self._record_episodes(
                ended, returns, lengths, self._record(len(ended))
            )

    def _record(self, num_steps: int) -> Record:
        """Return the last steps as they are checked, those of them that the replay still has."""
        buffer, mask = self.replay_buffer, self.batched.action_mask
        assert isinstance(buffer, DeviceReplayBuffer) and self._obs is not None
        latest = buffer.latest(num_steps)

        def read(prefix: str) -> dict[str, Tensor]:
            parts = {name.partition("."): part for name, part in latest.items()}
            return {
                key: part
                for (name, _, key), part in parts.items()
                if name == prefix and part.is_floating_point()
            }

        obs = read("obs")
        for key, part in floats(self._obs).items():
            obs[key] = torch.cat([obs[key], part.unsqueeze(0)])
        if mask is not None:
            mask = torch.cat([latest["mask"], mask.unsqueeze(0)])
        return Record(
            obs, latest["reward"], latest["index"], mask, read("next_obs"), lambda row, env: row
        )

    def dump_logs(self) -> None:
        """Write the log, as SB3 does."""
        self._read_episodes()
        super().dump_logs()

    def _excluded_save_params(self) -> list[str]:
        names = [*super()._excluded_save_params(), "layout", "_episodes", "_padding"]
        # In SB3's own way a loaded model may go on from the observation that it was saved at.
        return names if self.is_batched else [name for name in names if name != "_last_obs"]
