"""GumbelSAC: soft actor-critic whose actor gradient flows through one-hot action and critic."""

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from stable_baselines3.common.buffers import ReplayBuffer
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.type_aliases import GymEnv, MaybeCallback, PyTorchObs, Schedule
from torch import Tensor

from rl_gumbel.actions import ActionLayout
from rl_gumbel.algorithms.batched import COUNTERS
from rl_gumbel.algorithms.checks import (
    check_aggregation,
    check_at_least,
    check_kinds,
    check_positive,
    check_unit_interval,
    join_policy_kwargs,
)
from rl_gumbel.algorithms.objective import ActorObjective
from rl_gumbel.algorithms.optimize import entropy_target, log_coefficient
from rl_gumbel.algorithms.sac_updates import Batch, SACUpdates
from rl_gumbel.buffers import DeviceReplayBuffer
from rl_gumbel.envs.base import BatchedEnv
from rl_gumbel.logger import Means
from rl_gumbel.losses import aggregate, categorical_critic_loss, critic_loss, soft_bellman_target
from rl_gumbel.policies.factored import FactoredCnnPolicy, FactoredMultiInputPolicy, FactoredPolicy
from rl_gumbel.policies.masks import MaskedAlgorithm


class GumbelSAC(MaskedAlgorithm, SACUpdates):
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
            policy, the target and the entropy. Vectorised environments of SB3 that have the method
            alone cannot tell what the last observation of an episode allowed, so truncated episodes
            are bootstrapped over all actions; `make_vec_env(..., wrapper_class=MasksInInfo)` tells.
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
        soft_target: whether the critics learn the value of entropy to come too, as SAC's do;
            without, rewards alone, and entropy is what the actor keeps beside them (arXiv
            2509.09838). An agent that is paid for going on may put off the end of an episode. With
            `n_steps` > 1 the entropy of the states in between is left out, as in SB3's SAC.
        ent_coef: entropy coefficient, 0 for none; `auto` learns it, `auto_0.1` starting at 0.1.
        target_entropy: in nats, or `auto` for `target_entropy_fraction` of the maximum. Where a
            mask leaves fewer actions it is lower, in proportion to the maximum that they leave.
        target_entropy_fraction: in (0, 1); of the entropy of the uniform policy.
        reward_scale: factor on the rewards when they are sampled; logged returns stay raw.
        priority_exponent: alpha of a prioritised replay, in [0, 1]; 0 samples uniformly. See
            `DeviceReplayBuffer`, which is then the replay of any environment. With `compile` the
            batches of a call are all drawn before its errors become priorities.
        importance_exponent: beta of its importance weights, which rises from here to 1.
        reset_interval: gradient steps between two restarts of all networks and optimisers, the
            replay being kept (Nikishin et al. 2022, arXiv 2205.07802); 0 makes none. For many
            gradient steps with each step of the environment; `layer_norm` and `dropout` in
            `policy_kwargs` are milder means. With `compile` up to three steps late, after a call.
        max_grad_norm: clip the gradients of actor and critic to this norm; None does not.
        cosine_interval: gradient steps between two measurements of `estimator/cosine` and
            `estimator/variance`, made where the exact gradient is at hand: up to 256 joint actions,
            or any number through a multilinear critic; 0 makes none.
        compile: compile whole updates by `torch.compile`, up to four (`MAX_FUSED`) in one
            call (with another optimiser than Adam, or a `target_update_interval`, the losses and
            their gradients alone), and with a `BatchedEnv` acting and its steps; where that fails a
            warning says why and training goes on without. So 20 `gradient_steps` are five calls,
            and measurements that are due within a call are one, before it.
        overlap: make the gradient steps after a collection, of `train_freq` steps, during the next
            one: a share of them in each step, between sending the actions, which the policy has
            chosen before, and waiting for what they lead to. So the policy lags by one collection,
            the last is learned from at once, and there are as many gradient steps as without.
            Faster where environments of SB3 or Gymnasium step in processes of their own
            (`SubprocVecEnv`, `make_vec(..., vectorization_mode="async")`); the same numbers, no
            faster, where they do not (`DummyVecEnv`, `sync`).

    Raises:
        TypeError: for an action space that is not supported.
        ValueError: for a setting that is out of range, unknown, or would be ignored.
    """

    policy_aliases: ClassVar[dict[str, type[BasePolicy]]] = {
        "MlpPolicy": FactoredPolicy,
        "CnnPolicy": FactoredCnnPolicy,
        "MultiInputPolicy": FactoredMultiInputPolicy,
    }

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
        soft_target: bool = True,
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
        overlap: bool = False,
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
        self.soft_target = soft_target
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
        self.overlap = overlap
        self._means = Means()
        self._latest: dict[str, float] = {}
        if _init_setup_model:
            check_kinds(self)
            self._adapts = self._must_adapt()
            self._check_settings()
            self._setup_model()

    def _check_settings(self) -> None:
        """Raise for what is out of range or would be ignored, before anything is built."""
        check_positive(self, "reward_scale", "max_grad_norm", "tau")
        check_unit_interval(self, "gamma", "tau", "priority_exponent", "importance_exponent")
        check_at_least(self, batch_size=1, buffer_size=1, n_steps=1, learning_starts=0)
        check_at_least(self, gradient_steps=-1, target_update_interval=1)
        check_at_least(self, cosine_interval=0, reset_interval=0)
        if self.priority_exponent == 0 and self.importance_exponent != 0.4:
            raise ValueError(
                f"importance_exponent {self.importance_exponent!r} would be ignored: "
                f"priority_exponent is 0"
            )
        if self.ent_coef == 0 and not self.soft_target:
            raise ValueError("soft_target False would be ignored: ent_coef is 0")
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
        elif self.replay_buffer_class is DeviceReplayBuffer:
            raise ValueError(
                "replay_buffer_class DeviceReplayBuffer takes the steps of a BatchedEnv alone: "
                "leave it out, or pass the environments of make_vec"
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
        self._setup_losses()

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

    def critic_loss(self, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
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
    def target_value(self, batch: Batch) -> Tensor:
        """Return the `[M]` values that the critic shall have, in scaled rewards."""
        discount = self.gamma if batch.discounts is None else batch.discounts.squeeze(-1)
        next_mask = getattr(batch, "next_action_masks", None)
        next_policy = self.actor(batch.next_observations, next_mask)
        next_action = self.objective.policy_action(next_policy, self.critic_target)
        next_value = self.critic_target(batch.next_observations, next_action)
        value = aggregate(next_value, self.aggregation)
        if self.soft_target:
            value = value + self.log_ent_coef.exp() * next_policy.entropy()
        reward = self.reward_scale * batch.rewards.squeeze(-1)
        return soft_bellman_target(reward, batch.dones.squeeze(-1), discount, value)

    def actor_loss(
        self, obs: PyTorchObs, temperature: float | Tensor, mask: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Return the scalar loss of the actor and the entropies `[B, K]`."""
        policy = self.actor(obs, mask)
        entropy = policy.entropy_per_factor()
        ent_coef = self.log_ent_coef.detach().exp()
        value = self.objective.value(policy, self.critic, obs, temperature)
        return -(value + ent_coef * entropy.sum(-1)).mean(), entropy

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
        built = ["actor", "critic", "critic_target", "objective"]
        return [*super()._excluded_save_params(), *built]

    def _get_torch_save_params(self) -> tuple[list[str], list[str]]:
        state_dicts = ["policy", "actor.optimizer", "critic.optimizer"]
        if self.ent_coef_optimizer is not None:
            state_dicts.append("ent_coef_optimizer")
        return state_dicts, ["log_ent_coef", *COUNTERS]
