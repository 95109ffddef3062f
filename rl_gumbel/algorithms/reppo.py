"""GumbelREPPO: on-policy actor-critic whose policy gradient flows through one-hot and critic."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
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
from rl_gumbel.algorithms.compilation import compiled
from rl_gumbel.algorithms.objective import ActorObjective
from rl_gumbel.algorithms.on_policy import BatchedOnPolicyAlgorithm
from rl_gumbel.algorithms.optimize import descend, entropy_target, log_coefficient, step_if
from rl_gumbel.algorithms.samples import Samples
from rl_gumbel.distributions import FactoredCategorical
from rl_gumbel.envs.base import BatchedEnv
from rl_gumbel.logger import record
from rl_gumbel.losses import (
    categorical_critic_loss,
    critic_loss,
    explained_variance,
    kl_constrained_loss,
    lambda_returns,
    multiplier_loss,
)
from rl_gumbel.policies.masks import MaskedAlgorithm
from rl_gumbel.policies.reppo import REPPOCnnPolicy, REPPOMultiInputPolicy, REPPOPolicy
from rl_gumbel.rollout import following_values
from rl_gumbel.types import Obs


@dataclass(frozen=True)
class REPPOSamples(Samples):
    """Normalised observations and what REPPO needs besides."""

    logits: Tensor
    """`[M, K, N]` log-probabilities of the policy that chose."""
    target: Tensor
    """`[M]` soft TD(lambda) returns."""


class GumbelREPPO(MaskedAlgorithm, BatchedOnPolicyAlgorithm):
    """REPPO on `Discrete`, `MultiDiscrete` and `MultiBinary` action spaces.

    Voelcker et al., "Relative Entropy Pathwise Policy Optimization" (arXiv 2507.11019, version 4):
    each rollout gives soft TD(lambda) targets, computed once with the critic that there is; then,
    minibatch by minibatch, the critic regresses on them and the actor climbs
    Q(obs, one_hot) + alpha H(policy) within a bound on KL(old policy || new policy), both
    multipliers learned. No replay, no target network, no importance weights.

    Departures from the paper and its public code:

    - the action is a factored categorical and reaches the critic as a straight-through one-hot,
      where the paper has a squashed Gaussian; so the entropy target is positive, a fraction of the
      maximum;
    - entropy and KL are exact sums over factors, not means over samples; the entropy of a state in
      which the episode terminated does not count;
    - a truncated episode bootstraps from its own last observation and is trained on;
    - `actor_gradient` may replace the estimator by an exact sum;
    - the critic's value is one number with a squared error by default; `num_bins` gives the paper's
      distribution over returns with the HL-Gauss loss, started at 0 by its bias. A straight-through
      gradient hardly passes it: all data lies at the corners of the simplex, where a softmax over
      bins that tells the actions apart is flat. Use it with `exact`, `local_expectation`, or a
      multilinear critic of one factor;
    - the action enters the critic at its last hidden layer and only layers before it are
      normalised, by layer norm where the paper has RMS norm; the actor is not normalised;
    - the critic does not also predict the next state's features (the paper's auxiliary loss);
    - the multipliers have an optimiser of their own and are not part of the clipped gradient norm;
    - the critic may be an ensemble, whose minimum is the value.

    Args:
        policy: `MlpPolicy`, `CnnPolicy`, `MultiInputPolicy` or a `REPPOPolicy` class.
        env: with a supported action space; batched or SB3's.
        learning_rate: of all optimisers, a number or a schedule.
        n_steps: T, steps of every environment in a rollout.
        n_epochs: passes over a rollout.
        num_minibatches: updates of critic and actor in a pass.
        gamma: discount.
        gae_lambda: lambda of the targets, SB3's name for it.
        estimator: a name in `ESTIMATORS`; see `rl_gumbel.estimators`.
        temperature: of the estimator: a number, a `Schedule` (or its mapping) over training, or
            None for the estimator's default.
        estimator_kwargs: options of the estimator, e.g. `{"num_samples": 10}` of `gumbel_rao`.
        critic: `concat`, a perceptron on [features, one_hot], or `multilinear`, linear in each
            factor's one-hot.
        num_bins: of the critic's distribution over returns; None makes its value one number.
            Refused for a multilinear critic of several factors: it would not be linear. See above.
        value_range: scaled returns at the outermost bins; None is -10 to 10.
        actor_gradient: `estimator`; `exact`, the sum over all joint actions (up to 256 of them); or
            `local_expectation`, exact per factor, the others sampled (K * N critic evaluations).
        ent_coef: entropy coefficient alpha, 0 for none; `auto` learns it, `auto_0.1` starting at
            0.1.
        target_entropy: in nats, or `auto` for `target_entropy_fraction` of the maximum. Where a
            mask leaves fewer actions it is lower, in proportion to the maximum that they leave.
        target_entropy_fraction: in (0, 1); of the entropy of the uniform policy.
        kl_coef: multiplier of the KL divergence beyond its bound; as `ent_coef`.
        kl_bound: of the divergence of a state's new policy from the old one, in nats.
        reward_scale: factor on the rewards that the critic sees; logged returns stay raw.
        max_grad_norm: clip the gradients of actor and critic to this norm; None does not.
        normalize_observations: by their running mean and deviation, updated between rollouts.
        cosine_interval: updates between two measurements of `estimator/cosine`, which are made
            where the exact gradient is at hand: up to 256 joint actions, or any number through a
            multilinear critic; 0 makes none.
        compile: compile the losses and their gradients by `torch.compile`; where that fails a
            warning says why and training goes on without.

    Raises:
        TypeError: for an action space that is not supported.
        ValueError: for a setting that is out of range, unknown, or would be ignored.
    """

    policy_aliases: ClassVar[dict[str, type[BasePolicy]]] = {
        "MlpPolicy": REPPOPolicy,
        "CnnPolicy": REPPOCnnPolicy,
        "MultiInputPolicy": REPPOMultiInputPolicy,
    }
    policy: REPPOPolicy
    log_ent_coef: Tensor
    log_kl_coef: Tensor
    multiplier_optimizer: torch.optim.Optimizer | None

    def __init__(
        self,
        policy: str | type[REPPOPolicy],
        env: GymEnv | BatchedEnv | str,
        learning_rate: float | Schedule = 1e-3,
        n_steps: int = 32,
        n_epochs: int = 4,
        num_minibatches: int = 8,
        gamma: float = 0.99,
        gae_lambda: float = 0.95,
        estimator: str = "straight_through_gumbel",
        temperature: float | dict[str, Any] | Schedule | None = None,
        estimator_kwargs: dict[str, float] | None = None,
        critic: str = "concat",
        num_bins: int | None = None,
        value_range: Sequence[float] | None = None,
        actor_gradient: str = "estimator",
        ent_coef: str | float = "auto_0.01",
        target_entropy: str | float = "auto",
        target_entropy_fraction: float = 0.3,
        kl_coef: str | float = "auto_0.01",
        kl_bound: float = 0.1,
        reward_scale: float = 1.0,
        max_grad_norm: float | None = 0.5,
        normalize_observations: bool = False,
        cosine_interval: int = 1000,
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
            ent_coef=ent_coef,  # type: ignore[arg-type]  # as SB3's SAC has it
            vf_coef=1.0,  # the critic has an optimiser of its own
            max_grad_norm=max_grad_norm,  # type: ignore[arg-type]  # None does not clip
            use_sde=False,
            sde_sample_freq=-1,
            stats_window_size=stats_window_size,
            tensorboard_log=tensorboard_log,
            policy_kwargs=join_policy_kwargs(
                policy_kwargs,
                critic=critic,
                num_bins=num_bins,
                value_range=value_range,
                normalize_observations=normalize_observations,
            ),
            verbose=verbose,
            seed=seed,
            device=device,
            _init_setup_model=False,
        )
        self.n_epochs = n_epochs
        self.num_minibatches = num_minibatches
        self.estimator = estimator
        self.temperature = temperature
        self.estimator_kwargs = estimator_kwargs or {}
        self.critic = critic
        self.num_bins = num_bins
        self.value_range = value_range
        self.actor_gradient = actor_gradient
        self.target_entropy = target_entropy
        self.target_entropy_fraction = target_entropy_fraction
        self.kl_coef = kl_coef
        self.kl_bound = kl_bound
        self.reward_scale = reward_scale
        self.normalize_observations = normalize_observations
        self.cosine_interval = cosine_interval
        self.compile = compile
        if _init_setup_model:
            self._setup_model()

    def _setup_model(self) -> None:
        self._check_settings()
        super()._setup_model()
        layout = self.layout
        self.objective = ActorObjective(
            layout,
            self.device,
            self.actor_gradient,
            self.estimator,
            self.temperature,
            self.estimator_kwargs,
        )
        self._entropy_target = entropy_target(
            self.target_entropy, self.target_entropy_fraction, self.ent_coef, layout
        )
        self._setup_multipliers()
        self._setup_losses()

    def _setup_losses(self) -> None:
        self._critic_loss = compiled(self.critic_loss) if self.compile else self.critic_loss
        self._actor_loss = compiled(self.actor_loss) if self.compile else self.actor_loss

    def _check_settings(self) -> None:
        """Raise for what is out of range."""
        check_kinds(self)
        check_positive(self, "reward_scale", "max_grad_norm", "kl_bound")
        check_unit_interval(self, "gamma", "gae_lambda")
        check_at_least(self, n_steps=1, n_epochs=1, num_minibatches=1, cosine_interval=0)
        if self.num_minibatches > self.n_steps * self.n_envs:
            raise ValueError(
                f"num_minibatches {self.num_minibatches!r} is more than the samples of a rollout, "
                f"n_steps {self.n_steps} of {self.n_envs} environments"
            )

    def _setup_multipliers(self) -> None:
        """Build both coefficients, as logarithms, and the optimiser of those that are learned."""
        self.log_ent_coef, self.log_kl_coef = (
            torch.full((1,), log_coefficient(name, value), device=self.device)
            for name, value in (("ent_coef", self.ent_coef), ("kl_coef", self.kl_coef))
        )
        self.log_ent_coef.requires_grad_(isinstance(self.ent_coef, str))
        self.log_kl_coef.requires_grad_(isinstance(self.kl_coef, str))
        learned = [log for log in (self.log_ent_coef, self.log_kl_coef) if log.requires_grad]
        self.multiplier_optimizer = None
        if learned:
            self.multiplier_optimizer = self.policy.optimizer_class(
                learned,
                lr=self.lr_schedule(1),  # type: ignore[call-arg]
                **self.policy.optimizer_kwargs,
            )

    def train(self) -> None:
        """Update critic, actor and multipliers on the rollout, `n_epochs` times over."""
        self.policy.set_training_mode(True)
        optimizers = [self.policy.actor.optimizer, self.policy.critic.optimizer]
        if self.multiplier_optimizer is not None:
            optimizers.append(self.multiplier_optimizer)
        self._update_learning_rate(optimizers)
        temperature = self.objective.temperature(self._current_progress_remaining)
        metrics = self.update(temperature)
        self.logger.record("train/n_updates", self._n_updates, exclude="tensorboard")
        self.logger.record("estimator/temperature", temperature)
        record(self.logger, metrics)

    def update(self, temperature: float) -> list[dict[str, Tensor]]:
        """Take every step on the rollout; return what is logged, on the device."""
        samples, metrics = self.prepare()
        for _ in range(self.n_epochs):
            for batch in self.minibatches(samples):
                metrics.append(self.update_critic(batch))
                if self.objective.is_probe_due(
                    self.policy.critic, self._n_updates, self.cosine_interval
                ):
                    metrics.append(self.probe_estimator(batch, temperature))
                metrics.append(self.update_actor(batch, temperature))
                self._n_updates += 1
        metrics[0]["train/skipped_updates"] = self.skipped_updates
        if self.policy.normalizer is not None:  # after the update, which needs the old statistics
            self.policy.normalizer.update(self.rollout.obs[1:])
        return metrics

    @torch.no_grad()  # targets and the old policy are constants of the update
    def prepare(self) -> tuple[REPPOSamples, list[dict[str, Tensor]]]:
        """Return the samples of the rollout with their targets, and what is logged of them."""
        rollout = self.rollout
        obs = self.policy.normalize(rollout.obs)
        logits, value, bonus = self._evaluate(obs, rollout.action_mask)
        last_value = last_bonus = value[:0]
        if rollout.truncation_interval is not None:
            last = self.policy.normalize(rollout.truncated_obs)
            _, last_value, last_bonus = self._evaluate(last, rollout.truncated_mask)
        target = lambda_returns(
            self.reward_scale * rollout.reward,
            rollout.terminated,
            rollout.truncated,
            following_values(rollout, value, last_value),
            following_values(rollout, bonus, last_bonus),
            self.gamma,
            self.gae_lambda,
        ).flatten()
        mask = rollout.action_mask
        samples = REPPOSamples(
            tree_map(lambda part: part[:-1].flatten(0, 1), obs),
            None if mask is None else mask[:-1].flatten(0, 1),
            rollout.index.flatten(0, 1),
            logits[:-1].flatten(0, 1),
            target,
        )
        critic = self.policy.critic
        taken = critic(samples.obs, self.layout.index_to_one_hot(samples.index)).amin(0)
        metrics = {"train/explained_variance": explained_variance(taken, target)}
        if critic.network.head is not None:
            centers = critic.network.head.centers
            outside = (target < centers[0]) | (target > centers[-1])
            metrics["train/target_outside"] = outside.float().mean()
        return samples, [metrics]

    def _evaluate(self, obs: Obs, mask: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        """Return logits `[X, B, K, N]`, action values and entropy bonuses `[X, B]` of the policy.

        Args:
            obs: `[X, B, *O]`, normalised.
            mask: `[X, B, K, N]` or None.
        """
        rows = tree_map(lambda part: part.flatten(0, 1), obs)
        policy: FactoredCategorical = self.policy.actor(
            rows, None if mask is None else mask.flatten(0, 1)
        )
        critic = self.policy.critic
        value = critic(rows, self.objective.policy_action(policy, critic)).amin(0)
        bonus = self.log_ent_coef.exp() * policy.entropy()
        num_envs = self.rollout.reward.shape[1]
        logits, value, bonus = (
            part.unflatten(0, (-1, num_envs)) for part in (policy.log_probs, value, bonus)
        )
        return logits, value, bonus

    def minibatches(self, samples: REPPOSamples) -> Iterator[REPPOSamples]:
        """Return the minibatches of an epoch, shuffled; a rest is left out of it."""
        size = len(samples) // self.num_minibatches
        return samples.minibatches(size, self.num_minibatches)

    def update_critic(self, batch: REPPOSamples) -> dict[str, Tensor]:
        """Take one step on the critic; return what is logged."""
        loss = self._critic_loss(batch)
        _, is_finite = descend(self.policy.critic.optimizer, loss, self.max_grad_norm)
        self._note_update("critic", is_finite)
        # A copy, since the next replay of a CUDA graph overwrites what it returned.
        return {"train/critic_loss": loss.detach().clone()}

    def critic_loss(self, batch: REPPOSamples) -> Tensor:
        """Return the scalar loss of the critic on a minibatch."""
        critic = self.policy.critic
        features, one_hot = critic.features(batch.obs), self.layout.index_to_one_hot(batch.index)
        head = critic.network.head
        if head is None:
            return critic_loss(critic.network(features, one_hot), batch.target)
        logits = critic.network.logits(features, one_hot)
        return categorical_critic_loss(logits, batch.target, head.centers)

    def update_actor(self, batch: REPPOSamples, temperature: float) -> dict[str, Tensor]:
        """Take one step on the actor and the multipliers; return what is logged."""
        ent_coef, kl_coef = self.log_ent_coef.detach().exp(), self.log_kl_coef.detach().exp()
        # A compiled function would be compiled again for every number.
        scalar = torch.full((), temperature, device=self.device) if self.compile else temperature
        loss, entropy, kl = self._actor_loss(batch, scalar, ent_coef, kl_coef)
        norm, is_finite = descend(self.policy.actor.optimizer, loss, self.max_grad_norm)
        self._note_update("actor", is_finite)
        # The multipliers' loss must not reach the actor.
        entropy, kl = entropy.detach(), kl.detach()
        self.update_multipliers(entropy.sum(-1), kl, batch.mask, is_finite)
        return {
            "train/actor_loss": loss.detach().clone(),  # as the critic's
            "train/ent_coef": ent_coef.squeeze(0),
            "train/kl_coef": kl_coef.squeeze(0),
            "train/kl": kl.mean(),
            "train/kl_exceeded": (kl > self.kl_bound).float().mean(),
            "estimator/grad_norm": norm,
            **self.objective.entropy_metrics(entropy, batch.mask),
        }

    def actor_loss(
        self, batch: REPPOSamples, temperature: float | Tensor, ent_coef: Tensor, kl_coef: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return the scalar loss of the actor, entropies `[M, K]` and divergences `[M]`."""
        policy: FactoredCategorical = self.policy.actor(batch.obs, batch.mask)
        entropy = policy.entropy_per_factor()
        value = self.objective.value(policy, self.policy.critic, batch.obs, temperature)
        old = FactoredCategorical(batch.logits, batch.mask, validate=False)
        kl = old.kl(policy)
        value = value + ent_coef * entropy.sum(-1)
        return kl_constrained_loss(value, kl, self.kl_bound, kl_coef), entropy, kl

    def update_multipliers(
        self, entropy: Tensor, kl: Tensor, mask: Tensor | None, is_finite: Tensor
    ) -> None:
        """Take one step on the learned coefficients, towards the bounds of what they weigh.

        Args:
            entropy: `[M]` in nats.
            kl: `[M]` in nats.
            mask: `[M, K, N]`, which lowers the target of the entropy; None if everything may be.
            is_finite: bool, whether the actor took a step; the coefficients take none without.
        """
        if self.multiplier_optimizer is None:
            return
        target = self._entropy_target * self.objective.allowed_share(mask)
        loss = multiplier_loss(self.log_ent_coef, entropy - target)
        loss = loss + multiplier_loss(self.log_kl_coef, self.kl_bound - kl)
        self.multiplier_optimizer.zero_grad()
        loss.backward()
        step_if(self.multiplier_optimizer, is_finite)

    def probe_estimator(self, batch: REPPOSamples, temperature: float) -> dict[str, Tensor]:
        """Return how near the actor's gradient is to the exact one, and how noisy."""
        actor, critic = self.policy.actor, self.policy.critic
        return self.objective.probe(actor, critic, batch.obs, batch.mask, temperature)

    def learn(
        self,
        total_timesteps: int,
        callback: MaybeCallback = None,
        log_interval: int = 1,
        tb_log_name: str = "GumbelREPPO",
        reset_num_timesteps: bool = True,
        progress_bar: bool = False,
    ) -> "GumbelREPPO":
        """Return the model itself after `total_timesteps` environment steps; as SB3's `learn`."""
        return super().learn(
            total_timesteps, callback, log_interval, tb_log_name, reset_num_timesteps, progress_bar
        )

    def _excluded_save_params(self) -> list[str]:
        built = ["objective", "_critic_loss", "_actor_loss"]
        return [*super()._excluded_save_params(), *built]

    def _get_torch_save_params(self) -> tuple[list[str], list[str]]:
        state_dicts = ["policy", "policy.actor.optimizer", "policy.critic.optimizer"]
        if self.multiplier_optimizer is not None:
            state_dicts.append("multiplier_optimizer")
        return state_dicts, ["log_ent_coef", "log_kl_coef", *COUNTERS]
