"""BatchedPPO: proximal policy optimisation, the score-function baseline, on the device."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.type_aliases import GymEnv, MaybeCallback, Schedule
from stable_baselines3.common.utils import update_learning_rate
from torch import Tensor
from torch.utils._pytree import tree_map

from rl_gumbel.algorithms.batched import COUNTERS
from rl_gumbel.algorithms.checks import check_at_least, check_kinds, check_unit_interval
from rl_gumbel.algorithms.compilation import compiled
from rl_gumbel.algorithms.on_policy import BatchedOnPolicyAlgorithm
from rl_gumbel.algorithms.optimize import clipped_gradients, is_traceable, step_by
from rl_gumbel.algorithms.samples import Samples
from rl_gumbel.envs.base import BatchedEnv
from rl_gumbel.logger import record
from rl_gumbel.losses import clipped_surrogate, explained_variance, generalized_advantage
from rl_gumbel.normalize import RewardScaler
from rl_gumbel.policies.batched import (
    BatchedActorCriticCnnPolicy,
    BatchedActorCriticPolicy,
    BatchedMultiInputActorCriticPolicy,
)
from rl_gumbel.policies.masks import MaskedAlgorithm
from rl_gumbel.rollout import following_values
from rl_gumbel.schedules import make_schedule

METRICS = (
    "train/loss",
    "train/policy_gradient_loss",
    "train/value_loss",
    "train/entropy_loss",
    "train/approx_kl",
    "train/clip_fraction",
)


@dataclass(frozen=True)
class PPOSamples(Samples):
    """What PPO needs besides."""

    numbers: Tensor
    """`[M, 4]`: log-probability and value when they were taken, advantage, return."""


class BatchedPPO(MaskedAlgorithm, BatchedOnPolicyAlgorithm):
    """PPO (Schulman et al. 2017, arXiv 1707.06347) on batched environments and discrete actions.

    No gradient flows through the action: this is the score-function baseline. Loss, arguments, logs
    and networks are those of SB3's `PPO`; what differs: `num_minibatches` beside `batch_size`,
    defaults for many environments, `target_kl` is checked once per epoch (the mean over it), not at
    every minibatch, action masks are honoured, and observations and rewards are normalised
    on the device, with statistics that are updated between rollouts. What is not listed is SB3's.

    Args:
        policy: `MlpPolicy`, `CnnPolicy`, `MultiInputPolicy` or a `BatchedActorCriticPolicy` class.
        env: a `BatchedEnv` (see `make_vec`), or what SB3 takes.
        n_steps: of each environment per rollout.
        batch_size: samples per update; None for `num_minibatches` of equal size.
        num_minibatches: updates per epoch; None with `batch_size`. Both None are 4 minibatches.
        normalize_observations: by their running mean and deviation.
        normalize_rewards: divide by the running deviation of the discounted return.
        compile: compile acting, the environments' steps and the update by `torch.compile`; where
            that fails a warning says why and training goes on without.

    Raises:
        TypeError: for an action space that is not supported.
        ValueError: for a setting that is out of range or would be ignored.
    """

    policy_aliases: ClassVar[dict[str, type[BasePolicy]]] = {
        "MlpPolicy": BatchedActorCriticPolicy,
        "CnnPolicy": BatchedActorCriticCnnPolicy,
        "MultiInputPolicy": BatchedMultiInputActorCriticPolicy,
    }
    env_state: ClassVar[tuple[str, ...]] = (
        *BatchedOnPolicyAlgorithm.env_state,
        "reward_scaler.discounted_return",
    )
    policy: BatchedActorCriticPolicy

    def __init__(
        self,
        policy: str | type[BatchedActorCriticPolicy],
        env: GymEnv | BatchedEnv | str,
        learning_rate: float | Schedule = 3e-4,
        n_steps: int = 128,
        batch_size: int | None = None,
        num_minibatches: int | None = None,
        n_epochs: int = 4,
        gamma: float = 0.99,
        gae_lambda: float = 0.95,
        clip_range: float | Schedule = 0.2,
        clip_range_vf: float | Schedule | None = None,
        normalize_advantage: bool = True,
        ent_coef: float = 0.0,
        vf_coef: float = 0.5,
        max_grad_norm: float | None = 0.5,
        target_kl: float | None = None,
        normalize_observations: bool = False,
        normalize_rewards: bool = False,
        compile: bool = False,
        stats_window_size: int = 100,
        tensorboard_log: str | None = None,
        policy_kwargs: dict[str, Any] | None = None,
        verbose: int = 0,
        seed: int | None = None,
        device: torch.device | str = "auto",
        _init_setup_model: bool = True,
    ) -> None:
        super().__init__(
            policy,
            env,  # type: ignore[arg-type]  # `_wrap_env` takes batched environments too
            learning_rate=learning_rate,
            n_steps=n_steps,
            gamma=gamma,
            gae_lambda=gae_lambda,
            ent_coef=ent_coef,
            vf_coef=vf_coef,
            max_grad_norm=max_grad_norm,  # type: ignore[arg-type]  # None does not clip
            use_sde=False,
            sde_sample_freq=-1,
            stats_window_size=stats_window_size,
            tensorboard_log=tensorboard_log,
            policy_kwargs={
                **(policy_kwargs or {}),
                "normalize_observations": normalize_observations,
            },
            verbose=verbose,
            seed=seed,
            device=device,
            _init_setup_model=False,
        )
        self.batch_size = batch_size
        self.num_minibatches = num_minibatches
        self.n_epochs = n_epochs
        self.clip_range = clip_range
        self.clip_range_vf = clip_range_vf
        self.normalize_advantage = normalize_advantage
        self.target_kl = target_kl
        self.normalize_observations = normalize_observations
        self.normalize_rewards = normalize_rewards
        self.compile = compile
        if _init_setup_model:
            self._check_settings()
            self._setup_model()

    def _check_settings(self) -> None:
        """Raise for what is out of range or would be ignored, before anything is built."""
        check_kinds(self)
        if self.batch_size is not None and self.num_minibatches is not None:
            raise ValueError(
                f"num_minibatches {self.num_minibatches!r} would be ignored: batch_size is "
                f"{self.batch_size!r}"
            )
        check_at_least(self, n_steps=1, n_epochs=1, batch_size=1, num_minibatches=1)
        check_unit_interval(self, "gamma", "gae_lambda")
        for name in ("ent_coef", "vf_coef"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"{name} {getattr(self, name)!r} must be >= 0 and finite")
        for name in ("max_grad_norm", "target_kl"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise ValueError(f"{name} {value!r} must be > 0")
        for name in ("clip_range", "clip_range_vf"):
            value = getattr(self, name)
            ends = [1.0] if value is None else [make_schedule(value)(left) for left in (1.0, 0.0)]
            if not (min(ends) >= 0 and max(ends) > 0):  # a schedule may end at zero
                raise ValueError(f"{name} {value!r} must be > 0")
        if self._minibatch_size() < 1 or (self.normalize_advantage and self._minibatch_size() < 2):
            least = 2 if self.normalize_advantage else 1
            raise ValueError(
                f"n_steps {self.n_steps} of {self.n_envs} environments make minibatches of "
                f"{self._minibatch_size()} samples; they need at least {least}"
            )

    def _minibatch_size(self) -> int:
        if self.batch_size is not None:
            return min(self.batch_size, self.n_steps * self.n_envs)
        return self.n_steps * self.n_envs // (self.num_minibatches or 4)

    def _setup_model(self) -> None:
        super()._setup_model()
        self.clip_schedule = make_schedule(self.clip_range)
        self.clip_schedule_vf = (
            None if self.clip_range_vf is None else make_schedule(self.clip_range_vf)
        )
        self.reward_scaler = RewardScaler(self.n_envs, self.gamma).to(self.device)
        self._parameters = [p for p in self.policy.parameters() if p.requires_grad]
        self._gradients, self._step = self.gradients, self.step
        self._fuses = self.compile and is_traceable(self.policy.optimizer)
        if self._fuses:
            self._step = compiled(self.step)
            # A tensor, since a compiled function would be compiled again for every number.
            self._learning_rate = torch.full((), self.lr_schedule(1), device=self.device)
        elif self.compile:
            self._gradients = compiled(self.gradients)

    def train(self) -> None:
        """Update the policy on the rollout, `n_epochs` times over."""
        self.policy.set_training_mode(True)
        self._set_learning_rate()
        self._limits = self._clip_limits()
        samples = self.prepare()
        metrics = [{"train/explained_variance": explained_variance(*samples.numbers.T[[1, 3]])}]
        for _ in range(self.n_epochs):
            epoch = [self.update(samples, rows) for rows in self.minibatches(samples)]
            self._n_updates += 1
            metrics += epoch
            if self.target_kl is not None:
                kl = torch.stack([row["train/approx_kl"] for row in epoch]).mean()
                if kl > 1.5 * self.target_kl:  # the one read of an epoch
                    break
        metrics[0]["train/skipped_updates"] = self.skipped_updates
        if self.policy.normalizer is not None:  # after the update, which needs the old statistics
            self.policy.normalizer.update(self.rollout.obs[1:])
        self.logger.record("train/n_updates", self._n_updates, exclude="tensorboard")
        progress = self._current_progress_remaining
        self.logger.record("train/clip_range", self.clip_schedule(progress))
        if self.clip_schedule_vf is not None:
            self.logger.record("train/clip_range_vf", self.clip_schedule_vf(progress))
        record(self.logger, metrics)

    @torch.no_grad()
    def prepare(self) -> PPOSamples:
        """Return the samples of the rollout, with advantages and returns."""
        rollout, policy = self.rollout, self.policy
        num_steps, num_envs = rollout.reward.shape
        obs = tree_map(lambda value: value[:-1].flatten(0, 1), rollout.obs)
        mask = None if rollout.action_mask is None else rollout.action_mask[:-1].flatten(0, 1)
        index = rollout.index.flatten(0, 1)
        distribution, values = policy.evaluate(obs, mask)
        values = values.unflatten(0, (num_steps, num_envs))
        last_value = policy.values(tree_map(lambda value: value[-1], rollout.obs))
        truncated_values = rollout.reward.new_empty(0, num_envs)
        if rollout.truncation_interval is not None:
            ends = tree_map(lambda value: value.flatten(0, 1), rollout.truncated_obs)
            truncated_values = policy.values(ends).unflatten(0, (-1, num_envs))
        following = following_values(
            rollout, torch.cat([values, last_value[None]]), truncated_values
        )
        reward = rollout.reward
        if self.normalize_rewards:
            reward = self.reward_scaler(reward, rollout.ended)
        delta = reward + self.gamma * following * ~rollout.terminated - values
        carry = self.gamma * self.gae_lambda * ~rollout.ended
        advantage = generalized_advantage(delta, carry)
        numbers = [distribution.log_prob(index), values, advantage, advantage + values]
        return PPOSamples(obs, mask, index, torch.stack([n.flatten() for n in numbers], -1))

    def minibatches(self, samples: PPOSamples) -> Iterator[Tensor]:
        """Yield the rows of an epoch's minibatches, shuffled; a rest is left out of it."""
        size = self._minibatch_size()
        return samples.shuffled_rows(size, len(samples) // size)

    def update(self, samples: PPOSamples, rows: Tensor) -> dict[str, Tensor]:
        """Take one step on some of the samples; return what is logged."""
        is_finite, metrics = self._step(samples, rows, *self._limits)
        self._note_update("policy", is_finite)
        return dict(zip(METRICS, metrics.unbind(), strict=True))

    def step(
        self, samples: PPOSamples, rows: Tensor, clip_range: Tensor, clip_range_vf: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Take one step on these rows; return whether it was finite, and `METRICS`."""
        batch = samples.take(rows)
        gradients, is_finite, metrics = self._gradients(batch, clip_range, clip_range_vf)
        step_by(self.policy.optimizer, self._parameters, gradients, is_finite)
        return is_finite, metrics

    def gradients(
        self, batch: PPOSamples, clip_range: Tensor, clip_range_vf: Tensor | None
    ) -> tuple[list[Tensor | None], Tensor, Tensor]:
        """Return the clipped gradients of a minibatch, whether they are finite, and `METRICS`."""
        loss, metrics = self.loss(batch, clip_range, clip_range_vf)
        gradients, norm = clipped_gradients(self._parameters, loss, self.max_grad_norm)
        return gradients, norm.isfinite(), metrics

    def loss(
        self, batch: PPOSamples, clip_range: Tensor, clip_range_vf: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Return the scalar loss of a minibatch and the values of `METRICS`."""
        old_log_prob, old_value, advantage, target = batch.numbers.unbind(-1)
        if self.normalize_advantage:
            advantage = (advantage - advantage.mean()) / (advantage.std() + 1e-8)
        distribution, value = self.policy.evaluate(batch.obs, batch.mask)
        log_ratio = distribution.log_prob(batch.index) - old_log_prob
        ratio = log_ratio.exp()
        policy_loss = -clipped_surrogate(ratio, advantage, clip_range).mean()
        if clip_range_vf is not None:
            value = old_value + (value - old_value).clamp(-clip_range_vf, clip_range_vf)
        value_loss = (target - value).square().mean()
        entropy_loss = -distribution.entropy().mean()
        loss = policy_loss + self.ent_coef * entropy_loss + self.vf_coef * value_loss
        approx_kl = (ratio - 1 - log_ratio).mean()
        clip_fraction = ((ratio - 1).abs() > clip_range).float().mean()
        metrics = [loss, policy_loss, value_loss, entropy_loss, approx_kl, clip_fraction]
        return loss, torch.stack(metrics).detach()  # for the log

    def _set_learning_rate(self) -> None:
        rate = self.lr_schedule(self._current_progress_remaining)
        self.logger.record("train/learning_rate", rate)
        if self._fuses:
            self._learning_rate.fill_(rate)
            rate = self._learning_rate  # type: ignore[assignment]  # Adam takes either
        update_learning_rate(self.policy.optimizer, rate)

    def _clip_limits(self) -> tuple[Tensor, Tensor | None]:
        """Return both clip ranges now, as tensors: a number would be compiled in."""
        progress = self._current_progress_remaining
        schedules = (self.clip_schedule, self.clip_schedule_vf)
        limit, limit_vf = (
            None if schedule is None else torch.full((), schedule(progress), device=self.device)
            for schedule in schedules
        )
        assert limit is not None
        return limit, limit_vf

    def learn(
        self,
        total_timesteps: int,
        callback: MaybeCallback = None,
        log_interval: int = 1,
        tb_log_name: str = "BatchedPPO",
        reset_num_timesteps: bool = True,
        progress_bar: bool = False,
    ) -> "BatchedPPO":
        """Return the model itself after `total_timesteps` environment steps; as SB3's `learn`."""
        return super().learn(
            total_timesteps, callback, log_interval, tb_log_name, reset_num_timesteps, progress_bar
        )

    def _excluded_save_params(self) -> list[str]:
        built = ["clip_schedule", "clip_schedule_vf", "reward_scaler", "_parameters", "_gradients"]
        built += ["_limits", "_step", "_fuses", "_learning_rate"]
        return [*super()._excluded_save_params(), *built]

    def _get_torch_save_params(self) -> tuple[list[str], list[str]]:
        return ["policy", "policy.optimizer", "reward_scaler"], list(COUNTERS)
