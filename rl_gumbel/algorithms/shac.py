"""GumbelSHAC: actor-critic whose policy gradient flows through one-hot and simulator."""

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.type_aliases import GymEnv, MaybeCallback, Schedule
from torch import Tensor
from torch.utils._pytree import tree_map

from rl_gumbel.algorithms.batched import COUNTERS
from rl_gumbel.algorithms.checks import (
    check_at_least,
    check_kinds,
    check_positive,
    check_unit_interval,
    join_policy_kwargs,
)
from rl_gumbel.algorithms.objective import ActorObjective
from rl_gumbel.algorithms.on_policy import BatchedOnPolicyAlgorithm
from rl_gumbel.algorithms.optimize import descend, entropy_target, log_coefficient, step_if
from rl_gumbel.algorithms.samples import Samples
from rl_gumbel.distributions import FactoredCategorical
from rl_gumbel.envs.base import BatchedEnv, TorchEnv
from rl_gumbel.estimators import ESTIMATORS
from rl_gumbel.logger import record
from rl_gumbel.losses import (
    critic_loss,
    explained_variance,
    lambda_returns,
    multiplier_loss,
    restarting_discounts,
    window_return,
)
from rl_gumbel.normalize import RewardCenter, RewardScaler
from rl_gumbel.policies.masks import MaskedAlgorithm
from rl_gumbel.policies.shac import SHACCnnPolicy, SHACMultiInputPolicy, SHACPolicy
from rl_gumbel.rollout import OnStep, collect_window, following_values
from rl_gumbel.types import Obs, Rollout, Sample
from rl_gumbel.vec_env import SB3VecEnv


@dataclass(frozen=True)
class SHACSamples(Samples):
    """Normalised observations, without a gradient, and what SHAC needs besides."""

    target: Tensor
    """`[M]` TD(lambda) returns of the states."""
    advantage: Tensor
    """`[M]` the same less the target critic's values."""


@dataclass(frozen=True)
class Window:
    """A window as actor and critic learn from it; the first three carry gradients to the actor."""

    reward: Tensor
    """`[T, B]` rewards and entropy bonuses."""
    following: Tensor
    """`[T, B]` values of what followed each step."""
    entropy: Tensor
    """`[T * B, K]` of the policies that acted."""
    constant: FactoredCategorical | None
    """The policies at the same observations as constants, `[T * B, K, N]`; None if not needed."""
    samples: SHACSamples


class GumbelSHAC(MaskedAlgorithm, BatchedOnPolicyAlgorithm):
    """Short-horizon actor-critic on `Discrete`, `MultiDiscrete` and `MultiBinary` action spaces.

    Xu et al., "Accelerated Policy Learning with Parallel Differentiable Simulation" (SHAC, arXiv
    2204.07137): the return of a short window, closed by the value of its last state, is
    differentiated through the simulator; environments go on from window to window, and the
    gradient does not. The action enters the simulator as an estimator's one-hot.

    The objective of a window is the discounted sum of rewards and entropy bonuses of each
    environment, over its length. At an episode's end the discount starts again at 1; a terminated
    episode adds nothing more, a truncated one the target critic's value of its own last
    observation, and so does the end of the window. That value passes its gradient on to the
    observation, and none of it reaches the critic's weights. The critic regresses on TD(lambda)
    returns of the same rewards and bonuses, computed with the target critic: its value contains
    the entropy of the state itself and of all that follow.

    `score_function_weight` mixes in the estimate of the same gradient that needs no simulator: the
    advantage, TD(lambda) return less value and not normalised, times the gradient of the
    log-probability of what was chosen, in the same discounts and units.

    Departures from the paper: factored categorical actions; the entropy bonus; masks; a truncated
    episode bootstraps.

    Args:
        policy: `MlpPolicy`, `CnnPolicy`, `MultiInputPolicy` or a `SHACPolicy` class.
        env: a `BatchedEnv` that is differentiable; any, also SB3's, at `score_function_weight` 1.
            Its `gradients` are turned on within each window.
        learning_rate: of all optimisers, a number or a schedule.
        n_steps: T, length of a window.
        n_epochs: passes of the critic over a window; the actor takes one step.
        num_minibatches: updates of the critic in a pass.
        gamma: discount.
        gae_lambda: lambda of the critic's targets and of the advantage, SB3's name for it.
        tau: weight of the critic in the target critic's average, after each window.
        estimator: a name in `ESTIMATORS`; see `rl_gumbel.estimators`.
        temperature: of the estimator: a number, a `Schedule` (or its mapping) over training, or
            None for the estimator's default.
        estimator_kwargs: options of the estimator, e.g. `{"num_samples": 10}` of `gumbel_rao`.
        score_function_weight: in [0, 1]: 0 is the gradient through the simulator alone, 1 the
            score function alone.
        ent_coef: entropy coefficient, 0 for none; `auto` learns it, `auto_0.1` starting at 0.1.
        target_entropy: in nats, or `auto` for `target_entropy_fraction` of the maximum. Where a
            mask leaves fewer actions it is lower, in proportion to the maximum that they leave.
        target_entropy_fraction: in (0, 1); of the entropy of the uniform policy.
        reward_scale: factor on the rewards that are learned from; logged returns stay raw.
        average_reward_rate: for a task without end: subtract the running mean of rewards and
            bonuses, which moves by this share in a window; in (0, 1]. The values are then
            differential ones, and `gamma` may be 1. None subtracts nothing.
        max_grad_norm: clip the gradients of actor and critic to this norm; None does not. A step
            of the actor whose norm is infinite or NaN is not taken, and counted.
        normalize_observations: by their running mean and deviation, updated between windows.
        normalize_rewards: divide by the running deviation of the discounted return, before
            `reward_scale`; a constant for the gradient.

    Raises:
        TypeError: for an action space that is not supported.
        ValueError: for a setting that is out of range, unknown, or would be ignored, and for an
            environment without the gradient that it needs.
    """

    policy_aliases: ClassVar[dict[str, type[BasePolicy]]] = {
        "MlpPolicy": SHACPolicy,
        "CnnPolicy": SHACCnnPolicy,
        "MultiInputPolicy": SHACMultiInputPolicy,
    }
    env_state: ClassVar[tuple[str, ...]] = (
        *BatchedOnPolicyAlgorithm.env_state,
        "reward_scaler.discounted_return",
    )
    policy: SHACPolicy
    log_ent_coef: Tensor
    ent_coef_optimizer: torch.optim.Optimizer | None
    skipped_updates: Tensor
    """Steps of the actor that were not taken, a scalar on the device."""

    def __init__(
        self,
        policy: str | type[SHACPolicy],
        env: GymEnv | BatchedEnv | str,
        learning_rate: float | Schedule = 2e-3,
        n_steps: int = 16,
        n_epochs: int = 2,
        num_minibatches: int = 4,
        gamma: float = 0.99,
        gae_lambda: float = 0.95,
        tau: float = 0.5,
        estimator: str = "straight_through_gumbel",
        temperature: float | dict[str, Any] | Schedule | None = None,
        estimator_kwargs: dict[str, float] | None = None,
        score_function_weight: float = 0.0,
        ent_coef: str | float = "auto_0.01",
        target_entropy: str | float = "auto",
        target_entropy_fraction: float = 0.3,
        reward_scale: float = 1.0,
        average_reward_rate: float | None = None,
        max_grad_norm: float | None = 1.0,
        normalize_observations: bool = False,
        normalize_rewards: bool = False,
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
            ent_coef=ent_coef,  # type: ignore[arg-type]  # as SB3's SAC has it
            vf_coef=1.0,  # the critic has an optimiser of its own
            max_grad_norm=max_grad_norm,  # type: ignore[arg-type]  # None does not clip
            use_sde=False,
            sde_sample_freq=-1,
            stats_window_size=stats_window_size,
            tensorboard_log=tensorboard_log,
            policy_kwargs=join_policy_kwargs(
                policy_kwargs, normalize_observations=normalize_observations
            ),
            verbose=verbose,
            seed=seed,
            device=device,
            _init_setup_model=False,
        )
        self.n_epochs = n_epochs
        self.num_minibatches = num_minibatches
        self.tau = tau
        self.estimator = estimator
        self.temperature = temperature
        self.estimator_kwargs = estimator_kwargs or {}
        self.score_function_weight = score_function_weight
        self.target_entropy = target_entropy
        self.target_entropy_fraction = target_entropy_fraction
        self.reward_scale = reward_scale
        self.average_reward_rate = average_reward_rate
        self.normalize_observations = normalize_observations
        self.normalize_rewards = normalize_rewards
        if _init_setup_model:
            self._setup_model()

    def _setup_model(self) -> None:
        self._check_settings()
        self._check_env()
        super()._setup_model()
        self.objective = ActorObjective(
            self.layout,
            self.device,
            "estimator",
            self.estimator,
            self.temperature,
            self.estimator_kwargs,
        )
        self._entropy_target = entropy_target(
            self.target_entropy, self.target_entropy_fraction, self.ent_coef, self.layout
        )
        log = log_coefficient("ent_coef", self.ent_coef)
        self.log_ent_coef = torch.full((1,), log, device=self.device)
        self.ent_coef_optimizer = None
        if isinstance(self.ent_coef, str):
            self.ent_coef_optimizer = self.policy.optimizer_class(
                [self.log_ent_coef.requires_grad_()],
                lr=self.lr_schedule(1),  # type: ignore[call-arg]
                **self.policy.optimizer_kwargs,
            )
        self.reward_scaler = RewardScaler(self.n_envs, self.gamma).to(self.device)
        self.reward_center = RewardCenter(self.average_reward_rate or 1.0).to(self.device)
        networks = self.policy.critic_target, self.policy.critic
        self._averaged = [list(network.parameters()) for network in networks]

    def _check_settings(self) -> None:
        """Raise for what is out of range or would be ignored."""
        check_kinds(self)
        check_positive(self, "reward_scale", "max_grad_norm", "average_reward_rate", "tau")
        check_unit_interval(self, "gamma", "gae_lambda", "score_function_weight", "tau")
        check_at_least(self, n_steps=1, n_epochs=1, num_minibatches=1)
        if self.average_reward_rate is not None:
            check_unit_interval(self, "average_reward_rate")
        if self.num_minibatches > self.n_steps * self.n_envs:
            raise ValueError(
                f"num_minibatches {self.num_minibatches!r} is more than the samples of a window, "
                f"n_steps {self.n_steps} of {self.n_envs} environments"
            )
        weight = self.score_function_weight
        for name in ("temperature", "estimator_kwargs"):
            if weight == 1 and getattr(self, name):
                raise ValueError(
                    f"{name} {getattr(self, name)!r} would be ignored: score_function_weight is 1"
                )
        known = ESTIMATORS.get(self.estimator)
        if known is not None and known.is_relaxed and 0 < weight < 1:
            raise ValueError(
                f"score_function_weight {weight!r} needs an estimator that is exactly one-hot: "
                f"what '{self.estimator}' plays has no log-probability"
            )

    def _check_env(self) -> None:
        """Raise for an environment without a gradient, where one is needed."""
        if self.env is None or self.score_function_weight == 1:
            return
        inner = self.env.batched if isinstance(self.env, SB3VecEnv) else self.env
        if not (isinstance(inner, TorchEnv) and inner.differentiable):
            raise ValueError(
                f"{type(inner).__name__} has no gradient through its step, which "
                f"score_function_weight {self.score_function_weight!r} needs; it takes a "
                f"differentiable torch environment, made by make_vec, or score_function_weight 1"
            )

    def _setup_learn(self, *args: Any, **kwargs: Any) -> tuple[int, BaseCallback]:
        self._check_env()  # SB3's `set_env` may have brought another
        return super()._setup_learn(*args, **kwargs)

    def collect(self, num_steps: int, on_step: OnStep) -> tuple[Rollout, Obs] | None:
        """Return a window and what it goes on from; None if `on_step` ends it."""
        self._update_current_progress_remaining(self.num_timesteps, self._total_timesteps)
        self._temperature = self.objective.temperature(self._current_progress_remaining)
        if self.score_function_weight == 1:
            return super().collect(num_steps, on_step)
        assert isinstance(self.batched, TorchEnv) and self._obs is not None
        self._log_probs: list[Tensor] = []
        return collect_window(self.batched, self._draw, self._obs, num_steps, on_step)

    def _draw(self, obs: Obs, mask: Tensor | None) -> Sample:
        policy = self.policy.distribution(obs, mask)
        self._log_probs.append(policy.log_probs)
        return policy.rsample(
            self.estimator, temperature=self._temperature, **self.estimator_kwargs
        )

    def train(self) -> None:
        """Take one step on the actor and `n_epochs` passes of the critic over the window."""
        self.policy.set_training_mode(True)
        optimizers = [self.policy.actor.optimizer, self.policy.critic.optimizer]
        if self.ent_coef_optimizer is not None:
            optimizers.append(self.ent_coef_optimizer)
        self._update_learning_rate(optimizers)
        metrics = self.update()
        self.logger.record("train/n_updates", self._n_updates, exclude="tensorboard")
        if self.score_function_weight < 1:
            self.logger.record("estimator/temperature", self._temperature)
        record(self.logger, metrics)

    def update(self) -> list[dict[str, Tensor]]:
        """Learn from the window; return what is logged, on the device."""
        window = self.prepare()
        metrics = [self.update_actor(window)]
        samples = window.samples
        size = len(samples) // self.num_minibatches
        for _ in range(self.n_epochs):
            for batch in samples.minibatches(size, self.num_minibatches):
                metrics.append(self.update_critic(batch))
        with torch.no_grad():  # theta' <- theta' + tau (theta - theta')
            torch._foreach_lerp_(*self._averaged, self.tau)
        if self.policy.normalizer is not None:  # after the update, which needs the old statistics
            self.policy.normalizer.update(self.rollout.obs[1:])
        return metrics

    def prepare(self) -> Window:
        """Return the window as actor and critic learn from it."""
        rollout, mask = self.rollout, self.rollout.action_mask
        num_steps, num_envs = rollout.reward.shape
        # What the critic regresses on and the score function is taken at are constants.
        obs = self.policy.normalize(tree_map(lambda part: part.detach(), rollout.obs))
        obs = tree_map(lambda part: part[:-1].flatten(0, 1), obs)
        mask = None if mask is None else mask[:-1].flatten(0, 1)
        constant = None
        if self.score_function_weight > 0:
            constant = self.policy.actor(obs, mask)
        if self.score_function_weight == 1:
            entropy = constant.entropy_per_factor()
        else:
            log_probs = torch.stack(self._log_probs).flatten(0, 1)
            entropy = FactoredCategorical(log_probs, mask, validate=False).entropy_per_factor()
        bonus = self.log_ent_coef.detach().exp() * entropy.sum(-1)  # learned by its own loss
        reward = self.shape_rewards() + bonus.view(num_steps, num_envs)
        if self.average_reward_rate is not None:
            reward = self.reward_center(reward)
        value, following = self._evaluate(obs)
        with torch.no_grad():
            target = lambda_returns(
                reward.detach(),
                rollout.terminated,
                rollout.truncated,
                following.detach(),
                torch.zeros_like(value),  # the bonuses are part of the rewards
                self.gamma,
                self.gae_lambda,
            )
        samples = SHACSamples(
            obs, mask, rollout.index.flatten(0, 1), target.flatten(), (target - value).flatten()
        )
        return Window(reward, following, entropy, constant, samples)

    def shape_rewards(self) -> Tensor:
        """Return the rewards `[T, B]` of the window as they are learned from; a gradient passes."""
        reward = self.rollout.reward
        if self.normalize_rewards:
            reward = self.reward_scaler(reward, self.rollout.ended)
        return self.reward_scale * reward

    def _evaluate(self, obs: Obs) -> tuple[Tensor, Tensor]:
        """Return target values `[T, B]` of the states, and of what followed, with its gradient.

        Args:
            obs: `[T * B, *O]` of the states, normalised.
        """
        rollout, policy = self.rollout, self.policy
        num_envs = rollout.reward.shape[1]
        with torch.no_grad():  # a baseline
            value = policy.critic_target(obs).unflatten(0, (-1, num_envs))
        last = policy.normalize(tree_map(lambda part: part[-1], rollout.obs))
        last_value = policy.critic_target(last).unsqueeze(0)
        truncated_value = value[:0]
        if rollout.truncation_interval is not None:
            ends = tree_map(lambda part: part.flatten(0, 1), rollout.truncated_obs)
            truncated_value = policy.critic_target(policy.normalize(ends))
            truncated_value = truncated_value.unflatten(0, (-1, num_envs))
        following = following_values(rollout, torch.cat([value, last_value]), truncated_value)
        return value, following

    def update_actor(self, window: Window) -> dict[str, Tensor]:
        """Take one step on the actor and the entropy coefficient; return what is logged."""
        loss = self.actor_loss(window)
        norm, is_finite = descend(self.policy.actor.optimizer, loss, self.max_grad_norm)
        self._n_updates += 1
        self._note_update("actor", is_finite)
        entropy = window.entropy.detach()  # the coefficient's loss must not reach the actor
        ent_coef = self.log_ent_coef.detach().exp().squeeze(0)  # for the log
        self.update_ent_coef(entropy.sum(-1), window.samples.mask, is_finite)
        target, advantage = window.samples.target, window.samples.advantage
        metrics = {
            "train/actor_loss": loss.detach(),  # for the log
            "train/ent_coef": ent_coef,
            "train/explained_variance": explained_variance(target - advantage, target),
            "train/skipped_updates": self.skipped_updates.clone(),
            "estimator/grad_norm": norm,
            **self.objective.entropy_metrics(entropy, window.samples.mask),
        }
        if self.average_reward_rate is not None:
            metrics["train/average_reward"] = self.reward_center.mean.clone()
        return metrics

    def actor_loss(self, window: Window) -> Tensor:
        """Return the scalar loss of the actor, minus the mean objective of a step."""
        rollout, weight = self.rollout, self.score_function_weight
        num_steps = len(rollout.reward)
        discounts = restarting_discounts(rollout.ended, self.gamma)
        objective = torch.zeros((), device=self.device)
        if weight < 1:
            pathwise = window_return(
                window.reward,
                rollout.terminated,
                rollout.truncated,
                window.following,
                discounts,
                self.gamma,
            )
            objective = objective + (1 - weight) * pathwise.mean() / num_steps
        if window.constant is not None:
            samples, policy = window.samples, window.constant
            # d E[r + gamma V] = E[A d log p], and the bonus has its exact gradient.
            score = policy.log_prob(samples.index) * samples.advantage
            score = score + self.log_ent_coef.detach().exp() * policy.entropy()
            objective = objective + weight * (discounts.flatten() * score).mean()
        return -objective

    def update_ent_coef(self, entropy: Tensor, mask: Tensor | None, is_finite: Tensor) -> None:
        """Take one step on a learned entropy coefficient, towards the target.

        Args:
            entropy: `[M]` in nats.
            mask: `[M, K, N]`, which lowers the target; None if everything may be.
            is_finite: bool, whether the actor took a step; the coefficient takes none without.
        """
        if self.ent_coef_optimizer is None:
            return
        target = self._entropy_target * self.objective.allowed_share(mask)
        self.ent_coef_optimizer.zero_grad()
        multiplier_loss(self.log_ent_coef, entropy - target).backward()
        step_if(self.ent_coef_optimizer, is_finite)

    def update_critic(self, batch: SHACSamples) -> dict[str, Tensor]:
        """Take one step on the critic; return what is logged."""
        loss = critic_loss(self.policy.critic(batch.obs), batch.target)
        _, is_finite = descend(self.policy.critic.optimizer, loss, self.max_grad_norm)
        self._note_update("critic", is_finite)
        return {"train/critic_loss": loss.detach()}  # for the log

    def learn(
        self,
        total_timesteps: int,
        callback: MaybeCallback = None,
        log_interval: int = 1,
        tb_log_name: str = "GumbelSHAC",
        reset_num_timesteps: bool = True,
        progress_bar: bool = False,
    ) -> "GumbelSHAC":
        """Return the model itself after `total_timesteps` environment steps; as SB3's `learn`."""
        return super().learn(
            total_timesteps, callback, log_interval, tb_log_name, reset_num_timesteps, progress_bar
        )

    def _excluded_save_params(self) -> list[str]:
        built = ["objective", "reward_scaler", "reward_center", "_averaged", "_log_probs"]
        return [*super()._excluded_save_params(), *built]

    def _get_torch_save_params(self) -> tuple[list[str], list[str]]:
        state_dicts = ["policy", "policy.actor.optimizer", "policy.critic.optimizer"]
        state_dicts += ["reward_scaler", "reward_center"]
        if self.ent_coef_optimizer is not None:
            state_dicts.append("ent_coef_optimizer")
        return state_dicts, ["log_ent_coef", *COUNTERS]
