"""GumbelSAC: soft actor-critic whose actor gradient flows through one-hot action and critic."""

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from stable_baselines3.common.buffers import ReplayBuffer
from stable_baselines3.common.logger import Logger
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.type_aliases import (
    GymEnv,
    MaybeCallback,
    PyTorchObs,
    ReplayBufferSamples,
    Schedule,
)
from stable_baselines3.common.utils import update_learning_rate
from torch import Tensor

from rl_gumbel.actions import ActionLayout
from rl_gumbel.algorithms.batched import COUNTERS
from rl_gumbel.algorithms.checks import (
    check_aggregation,
    check_at_least,
    check_positive,
    check_unit_interval,
    join_policy_kwargs,
)
from rl_gumbel.algorithms.compilation import compiled
from rl_gumbel.algorithms.numbers import MAX_UNREAD
from rl_gumbel.algorithms.objective import ActorObjective
from rl_gumbel.algorithms.off_policy import BatchedOffPolicyAlgorithm
from rl_gumbel.algorithms.optimize import (
    descend,
    entropy_target,
    is_traceable,
    log_coefficient,
    step_by,
)
from rl_gumbel.buffers import DeviceReplayBuffer, DeviceReplaySamples
from rl_gumbel.envs.base import BatchedEnv
from rl_gumbel.logger import Means
from rl_gumbel.losses import (
    aggregate,
    categorical_critic_loss,
    critic_loss,
    soft_bellman_target,
)
from rl_gumbel.policies.factored import (
    FactoredCnnPolicy,
    FactoredCritic,
    FactoredMultiInputPolicy,
    FactoredPolicy,
)
from rl_gumbel.policies.masks import MaskedAlgorithm

MAX_FUSED = 4
"""Gradient steps in one compiled call; with more of them it takes ever longer to compile."""


class GumbelSAC(MaskedAlgorithm, BatchedOffPolicyAlgorithm):
    """Soft actor-critic on `Discrete`, `MultiDiscrete` and `MultiBinary` action spaces.

    Haarnoja et al. 2018 (arXiv 1812.05905) with three changes for discrete actions: the actor's
    action is a straight-through one-hot, through which the critic's gradient reaches the logits;
    the entropy is the exact sum over factors; the target entropy is positive, a fraction of the
    maximum. Arguments not listed here are SB3 SAC's, with the same meaning.

    Args:
        policy: `MlpPolicy`, `CnnPolicy`, `MultiInputPolicy` or a `FactoredPolicy` class.
        env: with a supported action space: what SB3 takes, or a `BatchedEnv`, of which nothing
            leaves the device: neither collection nor replay nor update waits for the host. Action
            masks, of a `BatchedEnv`, by `action_masks()` or in `info["action_mask"]`, hold for the
            policy, the target and the entropy.
        estimator: a name in `ESTIMATORS`; see `rl_gumbel.estimators`.
        temperature: of the estimator: a number, a `Schedule` (or its mapping) over training, or
            None for the estimator's default.
        estimator_kwargs: options of the estimator, e.g. `{"num_samples": 10}` of `gumbel_rao`.
        critic: `concat`, a perceptron on [features, one_hot], or `multilinear`, linear in each
            factor's one-hot.
        aggregation: of the ensemble of `n_critics` in the target: `min`, `mean`, or `subset_M`, the
            minimum over M of them drawn at each update (REDQ: 10 critics, `subset_2`). The actor
            climbs their minimum with `min`, else their mean; through a multilinear critic of
            several factors always the mean, which leaves it linear.
        num_bins: of the critics' distribution over returns (HL-Gauss); None makes their value one
            number. Refused for a multilinear critic of several factors; see `GumbelREPPO`.
        value_range: scaled returns at the outermost bins; None is -10 to 10.
        actor_gradient: `estimator`; `exact`, the sum over all joint actions (up to 256 of them); or
            `local_expectation`, exact per factor, the others sampled (K * N critic evaluations).
        ent_coef: entropy coefficient, 0 for none; `auto` learns it, `auto_0.1` starting at 0.1.
        target_entropy: in nats, or `auto` for `target_entropy_fraction` of the maximum. Where a
            mask leaves fewer actions it is lower, in proportion to the maximum that they leave.
        target_entropy_fraction: in (0, 1); of the entropy of the uniform policy.
        reward_scale: factor on the rewards when they are sampled; logged returns stay raw.
        priority_exponent: alpha of a prioritised replay, in [0, 1]; 0 samples uniformly. See
            `DeviceReplayBuffer`, which is then the replay of any environment.
        importance_exponent: beta of its importance weights, which rises from here to 1.
        reset_interval: gradient steps between two restarts of all networks and optimisers, the
            replay being kept (Nikishin et al. 2022, arXiv 2205.07802); 0 makes none. For many
            gradient steps with each step of the environment; `layer_norm` and `dropout` in
            `policy_kwargs` are milder means.
        max_grad_norm: clip the gradients of actor and critic to this norm; None does not.
        cosine_interval: gradient steps between two measurements of `estimator/cosine` and
            `estimator/variance`, made where enumeration is affordable; 0 makes none.
        compile: compile whole updates by `torch.compile`, up to `MAX_FUSED` gradient steps in one
            call (with another optimiser than Adam, or a `target_update_interval`, the losses and
            their gradients alone), and with a `BatchedEnv` acting and its steps; where that fails a
            warning says why and training goes on without.

    Raises:
        TypeError: for an action space that is not supported.
        ValueError: for a setting that is out of range, unknown, or would be ignored.
    """

    policy_aliases: ClassVar[dict[str, type[BasePolicy]]] = {
        "MlpPolicy": FactoredPolicy,
        "CnnPolicy": FactoredCnnPolicy,
        "MultiInputPolicy": FactoredMultiInputPolicy,
    }
    loop_state: ClassVar[tuple[str, ...]] = (
        *BatchedOffPolicyAlgorithm.loop_state,
        "_means.sums",
        "_means.counts",
        "_latest",
    )
    policy: FactoredPolicy
    critic: FactoredCritic
    critic_target: FactoredCritic
    replay_buffer: ReplayBuffer
    log_ent_coef: Tensor
    ent_coef_optimizer: torch.optim.Optimizer | None

    def __init__(
        self,
        policy: str | type[FactoredPolicy],
        env: GymEnv | BatchedEnv | str,
        learning_rate: float | Schedule = 5e-4,
        buffer_size: int = 100_000,
        learning_starts: int = 1000,
        batch_size: int = 256,
        tau: float = 0.01,
        gamma: float = 0.99,
        train_freq: int | tuple[int, str] = 1,
        gradient_steps: int = 1,
        replay_buffer_class: type[ReplayBuffer] | None = None,
        replay_buffer_kwargs: dict[str, Any] | None = None,
        optimize_memory_usage: bool = False,
        n_steps: int = 1,
        estimator: str = "straight_through_gumbel",
        temperature: float | dict[str, Any] | Schedule | None = None,
        estimator_kwargs: dict[str, float] | None = None,
        critic: str = "concat",
        aggregation: str = "min",
        num_bins: int | None = None,
        value_range: Sequence[float] | None = None,
        actor_gradient: str = "estimator",
        ent_coef: str | float = "auto_0.02",
        target_update_interval: int = 1,
        target_entropy: str | float = "auto",
        target_entropy_fraction: float = 0.5,
        reward_scale: float = 1.0,
        priority_exponent: float = 0.0,
        importance_exponent: float = 0.4,
        reset_interval: int = 0,
        max_grad_norm: float | None = None,
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
            learning_rate,
            buffer_size,
            learning_starts,
            batch_size,
            tau,
            gamma,
            train_freq,
            gradient_steps,
            replay_buffer_class=replay_buffer_class,
            replay_buffer_kwargs=replay_buffer_kwargs,
            optimize_memory_usage=optimize_memory_usage,
            n_steps=n_steps,
            policy_kwargs=join_policy_kwargs(
                policy_kwargs, critic=critic, num_bins=num_bins, value_range=value_range
            ),
            stats_window_size=stats_window_size,
            tensorboard_log=tensorboard_log,
            verbose=verbose,
            device=device,
            seed=seed,
            sde_support=False,
            support_multi_env=True,
        )
        self.estimator = estimator
        self.temperature = temperature
        self.estimator_kwargs = estimator_kwargs or {}
        self.aggregation = aggregation
        self.num_bins = num_bins
        self.value_range = value_range
        self.actor_gradient = actor_gradient
        self.ent_coef = ent_coef
        self.target_update_interval = target_update_interval
        self.target_entropy = target_entropy
        self.target_entropy_fraction = target_entropy_fraction
        self.reward_scale = reward_scale
        self.priority_exponent = priority_exponent
        self.importance_exponent = importance_exponent
        self.reset_interval = reset_interval
        self.max_grad_norm = max_grad_norm
        self.cosine_interval = cosine_interval
        self.compile = compile
        self._means = Means()
        self._latest: dict[str, float] = {}
        if _init_setup_model:
            self._adapts = self._must_adapt()
            self._check_settings()
            self._setup_model()

    def _check_settings(self) -> None:
        """Raise for what is out of range or would be ignored, before anything is built."""
        check_positive(self, "reward_scale", "max_grad_norm")
        check_at_least(self, target_update_interval=1, cosine_interval=0, reset_interval=0)
        check_unit_interval(self, "priority_exponent", "importance_exponent")
        if self.priority_exponent == 0 and self.importance_exponent != 0.4:
            raise ValueError(
                f"importance_exponent {self.importance_exponent!r} would be ignored: "
                f"priority_exponent is 0"
            )
        layout = ActionLayout.from_space(self.action_space)
        log_coefficient("ent_coef", self.ent_coef)
        entropy_target(self.target_entropy, self.target_entropy_fraction, self.ent_coef, layout)
        if self.is_batched:
            for name in ("replay_buffer_class", "replay_buffer_kwargs", "optimize_memory_usage"):
                if getattr(self, name):
                    raise ValueError(
                        f"{name} {getattr(self, name)!r} would be ignored: the replay of a "
                        f"BatchedEnv, with masks or with priorities is a DeviceReplayBuffer"
                    )

    def _setup_model(self) -> None:
        layout = ActionLayout.from_space(self.action_space)
        self.objective = ActorObjective(
            layout,
            self.device,
            self.actor_gradient,
            self.estimator,
            self.temperature,
            self.estimator_kwargs,
            self.aggregation,
        )
        super()._setup_model()
        check_aggregation(self.aggregation, self.policy.settings["n_critics"])
        self.actor = self.policy.actor
        self.critic = self.policy.critic
        self.critic_target = self.policy.critic_target
        if self.target_entropy == "auto":
            self.target_entropy = self.target_entropy_fraction * layout.max_entropy
        self._setup_ent_coef()
        # Listed once: a module looks for its parameters anew each time.
        self._averaged = [list(net.parameters()) for net in (self.critic_target, self.critic)]
        self._setup_losses()

    def _setup_losses(self) -> None:
        self._critic_loss, self._actor_loss = self.critic_loss, self.actor_loss
        optimizers = self._optimizers()
        self._fuses = (
            self.compile
            and self.target_update_interval == 1
            and all(is_traceable(optimizer) for optimizer in optimizers)
        )
        if self._fuses:
            self._steps = compiled(self.steps)
            # A tensor, since a compiled function would be compiled again for every number.
            self._learning_rate = torch.full((), self.lr_schedule(1), device=self.device)
        elif self.compile:
            self._critic_loss = compiled(self.critic_loss)
            self._actor_loss = compiled(self.actor_loss)

    def _optimizers(self) -> list[torch.optim.Optimizer]:
        every = (self.actor.optimizer, self.critic.optimizer, self.ent_coef_optimizer)
        return [optimizer for optimizer in every if optimizer is not None]

    def _setup_ent_coef(self) -> None:
        """Build the entropy coefficient, learned or fixed, as SB3's SAC does."""
        log = log_coefficient("ent_coef", self.ent_coef)
        self.log_ent_coef = torch.full((1,), log, device=self.device)
        self.ent_coef_optimizer = None
        if isinstance(self.ent_coef, str):
            fused = self.policy.optimizer_kwargs.get("fused", False)
            self.log_ent_coef.requires_grad_(True)
            self.ent_coef_optimizer = torch.optim.Adam(
                [self.log_ent_coef], lr=self.lr_schedule(1), fused=fused
            )

    def train(self, gradient_steps: int, batch_size: int = 64) -> None:
        """Update critic, actor, entropy coefficient and target critic `gradient_steps` times."""
        self.policy.set_training_mode(True)
        learning_rate = self.lr_schedule(self._current_progress_remaining)
        if self._fuses:
            self._learning_rate.fill_(learning_rate)
        for optimizer in self._optimizers():
            rate = self._learning_rate if self._fuses else learning_rate
            update_learning_rate(optimizer, rate)  # type: ignore[arg-type]  # Adam takes either
        temperature = self.objective.temperature(self._current_progress_remaining)
        if self.priority_exponent and isinstance(self.replay_buffer, DeviceReplayBuffer):
            left = self._current_progress_remaining * (1 - self.importance_exponent)
            self.replay_buffer.importance_exponent = 1 - left
        if self._fuses:
            for start in range(0, gradient_steps, MAX_FUSED):
                count = min(MAX_FUSED, gradient_steps - start)
                self.update_together(batch_size, temperature, count)
        else:
            for _ in range(gradient_steps):
                self.update(batch_size, temperature)
        if len(self._updates) >= MAX_UNREAD:
            self._read_updates()
        self._latest = {"train/learning_rate": learning_rate, "estimator/temperature": temperature}

    def update(self, batch_size: int, temperature: float) -> None:
        """Update everything once, from a batch of the replay; take note of what is logged."""
        batch = self.replay_buffer.sample(batch_size, env=self._vec_normalize_env)
        obs, mask = batch.observations, getattr(batch, "action_masks", None)
        self._means.add(self.update_critic(batch))
        if self.objective.is_probe_due(self._n_updates, self.cosine_interval):
            self._means.add(self.probe_estimator(obs, temperature, mask))
        self._means.add(self.update_actor(obs, temperature, mask))
        self._n_updates += 1
        if self._n_updates % self.target_update_interval == 0:
            self.update_target()
        if self.reset_interval and self._n_updates % self.reset_interval == 0:
            self.reset_networks()

    def update_together(self, batch_size: int, temperature: float, count: int) -> None:
        """Update everything `count` times in one call of what is compiled; as `update`.

        The gradient is measured, and networks start anew, between two calls.
        """
        batches = [
            self.replay_buffer.sample(batch_size, env=self._vec_normalize_env) for _ in range(count)
        ]
        numbers = range(self._n_updates, self._n_updates + count)
        if any(self.objective.is_probe_due(n, self.cosine_interval) for n in numbers):
            obs, mask = batches[0].observations, getattr(batches[0], "action_masks", None)
            self._means.add(self.probe_estimator(obs, temperature, mask))
        scalar = torch.full((), temperature, device=self.device)
        for name, is_finite, metrics in self._steps(batches, scalar):
            self._note_update(name, is_finite)
            self._means.add(metrics)
        self._n_updates += count
        if self.reset_interval and self._n_updates % self.reset_interval < count:
            self.reset_networks()

    def steps(
        self, batches: list[ReplayBufferSamples | DeviceReplaySamples], temperature: Tensor
    ) -> list[tuple[str, Tensor, dict[str, Tensor]]]:
        """Take the steps of one update for each batch; return what `update` takes note of."""
        notes = []
        for batch in batches:
            notes.append(("critic", *self.step_critic(batch)))
            mask = getattr(batch, "action_masks", None)
            notes.append(("actor", *self.step_actor(batch.observations, temperature, mask)))
            self.update_target()
        return notes

    @torch.no_grad()  # theta' <- theta' + tau (theta - theta')
    def update_target(self) -> None:
        """Move the target critic towards the critic."""
        torch._foreach_lerp_(*self._averaged, self.tau)

    @torch.no_grad()  # values are set, not computed
    def reset_networks(self) -> None:
        """Start networks, optimisers and entropy coefficient anew, in the same tensors."""
        fresh = self.policy_class(
            self.observation_space, self.action_space, self.lr_schedule, **self.policy_kwargs
        )
        self.policy.load_state_dict(fresh.to(self.device).state_dict())
        self.log_ent_coef.fill_(log_coefficient("ent_coef", self.ent_coef))
        for optimizer in self._optimizers():
            for state in optimizer.state.values():
                for moment in state.values():
                    if isinstance(moment, Tensor):  # the count of steps too
                        moment.zero_()

    @property
    def logger(self) -> Logger:
        """The logger, which first takes what the updates measured since it was asked for last.

        So the device is read when logs are written, and not after every update.
        """
        logger = super().logger
        if self._latest:
            logger.record("train/n_updates", self._n_updates, exclude="tensorboard")
            for name, value in self._latest.items():
                logger.record(name, value)
            self._latest = {}
            self._means.record(logger, {"train/skipped_updates": self.skipped_updates})
        return logger

    def update_critic(self, batch: ReplayBufferSamples | DeviceReplaySamples) -> dict[str, Tensor]:
        """Take one step on the critic; return what is logged."""
        is_finite, metrics = self.step_critic(batch)
        self._note_update("critic", is_finite)
        return metrics

    def step_critic(
        self, batch: ReplayBufferSamples | DeviceReplaySamples
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Take one step on the critic; return whether its gradient was finite, and the metrics."""
        loss, errors, target = self._critic_loss(batch)
        _, is_finite = descend(self.critic.optimizer, loss, self.max_grad_norm)
        if isinstance(batch, DeviceReplaySamples) and batch.positions is not None:
            assert isinstance(self.replay_buffer, DeviceReplayBuffer)
            self.replay_buffer.update_priorities(batch.positions, errors)
        metrics = {"train/critic_loss": loss.detach()}
        head = self.critic.network.head
        if head is not None:
            outside = (target < head.centers[0]) | (target > head.centers[-1])
            metrics["train/target_outside"] = outside.float().mean()
        return is_finite, metrics

    def critic_loss(
        self, batch: ReplayBufferSamples | DeviceReplaySamples
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return the critic's scalar loss on a batch, and its TD errors and targets `[M]`.

        The errors are absolute, means over the ensemble.
        """
        target = self.target_value(batch)
        one_hot = self.layout.index_to_one_hot(self.layout.to_index(batch.actions))
        weights = getattr(batch, "weights", None)
        weights = None if weights is None else weights.squeeze(-1)
        network, features = self.critic.network, self.critic.features(batch.observations)
        if network.head is None:
            values = network(features, one_hot)
            loss = critic_loss(values, target, weights)
        else:
            logits = network.logits(features, one_hot)
            values = network.head(logits)
            loss = categorical_critic_loss(logits, target, network.head.centers, weights)
        # Priorities and logs have no gradient.
        return loss, (values.detach() - target).abs().mean(0), target

    @torch.no_grad()  # the target is a constant
    def target_value(self, batch: ReplayBufferSamples | DeviceReplaySamples) -> Tensor:
        """Return the `[M]` soft values that the critic shall have, in scaled rewards."""
        discount = self.gamma if batch.discounts is None else batch.discounts.squeeze(-1)
        next_mask = getattr(batch, "next_action_masks", None)
        next_policy = self.actor(batch.next_observations, next_mask)
        next_action = self.objective.policy_action(next_policy, self.critic_target)
        next_value = self.critic_target(batch.next_observations, next_action)
        return soft_bellman_target(
            self.reward_scale * batch.rewards.squeeze(-1),
            batch.dones.squeeze(-1),
            discount,
            aggregate(next_value, self.aggregation)
            + self.log_ent_coef.exp() * next_policy.entropy(),
        )

    def update_actor(
        self, obs: PyTorchObs, temperature: float, mask: Tensor | None = None
    ) -> dict[str, Tensor]:
        """Take one step on the actor and the entropy coefficient; return what is logged.

        Args:
            obs: `[B, *O]`.
            temperature: of the estimator.
            mask: `[B, K, N]`, True where a category may be chosen; None if everything may.
        """
        # A compiled function would be compiled again for every number.
        scalar = torch.full((), temperature, device=self.device) if self.compile else temperature
        is_finite, metrics = self.step_actor(obs, scalar, mask)
        self._note_update("actor", is_finite)
        return metrics

    def step_actor(
        self, obs: PyTorchObs, temperature: float | Tensor, mask: Tensor | None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Take the steps of `update_actor`; return whether they were taken, and the metrics."""
        loss, entropy = self._actor_loss(obs, temperature, mask)
        norm, is_finite = descend(self.actor.optimizer, loss, self.max_grad_norm)
        entropy = entropy.detach()  # the coefficient's loss must not reach the actor
        metrics = {
            "train/actor_loss": loss.detach(),
            "train/ent_coef": self.log_ent_coef.detach().exp().squeeze(0),
            "estimator/grad_norm": norm,
            **self.objective.entropy_metrics(entropy, mask),
        }
        if self.ent_coef_optimizer is not None:
            share = self.target_entropy / (self.layout.max_entropy or 1.0)
            surplus = (entropy - share * self.objective.max_entropy(mask)).sum(-1).mean()
            metrics["train/ent_coef_loss"] = (self.log_ent_coef.detach() * surplus).squeeze(0)
            gradient = surplus.expand(1).contiguous()  # of that loss, which is linear in it
            step_by(self.ent_coef_optimizer, [self.log_ent_coef], [gradient], is_finite)
        return is_finite, metrics

    def actor_loss(
        self, obs: PyTorchObs, temperature: float | Tensor, mask: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Return the scalar loss of the actor and the entropies `[B, K]`."""
        policy = self.actor(obs, mask)
        entropy = policy.entropy_per_factor()
        ent_coef = self.log_ent_coef.detach().exp()
        value = self.objective.value(policy, self.critic, obs, temperature)
        return -(value + ent_coef * entropy.sum(-1)).mean(), entropy

    def probe_estimator(
        self, obs: PyTorchObs, temperature: float, mask: Tensor | None = None
    ) -> dict[str, Tensor]:
        """Return how near the actor's gradient is to the enumerated one, and how noisy."""
        return self.objective.probe(self.actor, self.critic, obs, mask, temperature)

    def learn(
        self,
        total_timesteps: int,
        callback: MaybeCallback = None,
        log_interval: int = 4,
        tb_log_name: str = "GumbelSAC",
        reset_num_timesteps: bool = True,
        progress_bar: bool = False,
    ) -> "GumbelSAC":
        """Return the model itself after `total_timesteps` environment steps; as SB3's `learn`."""
        return super().learn(
            total_timesteps, callback, log_interval, tb_log_name, reset_num_timesteps, progress_bar
        )

    def _excluded_save_params(self) -> list[str]:
        built = ["actor", "critic", "critic_target", "objective", "_averaged", "_means", "_latest"]
        built += ["_critic_loss", "_actor_loss", "_steps", "_learning_rate", "_fuses"]
        return [*super()._excluded_save_params(), *built]

    def _get_torch_save_params(self) -> tuple[list[str], list[str]]:
        state_dicts = ["policy", "actor.optimizer", "critic.optimizer"]
        if self.ent_coef_optimizer is not None:
            state_dicts.append("ent_coef_optimizer")
        return state_dicts, ["log_ent_coef", *COUNTERS]
