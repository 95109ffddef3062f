"""GumbelSAC: soft actor-critic whose actor gradient flows through one-hot action and critic."""

import math
from typing import Any, ClassVar

import torch
from stable_baselines3.common.buffers import ReplayBuffer
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.type_aliases import (
    GymEnv,
    MaybeCallback,
    PyTorchObs,
    ReplayBufferSamples,
    Schedule,
)
from stable_baselines3.common.utils import polyak_update
from torch import Tensor

from rl_gumbel.actions import ActionLayout
from rl_gumbel.distributions import FactoredCategorical
from rl_gumbel.estimators import ESTIMATORS
from rl_gumbel.logger import record
from rl_gumbel.losses import (
    MAX_JOINT_ACTIONS,
    cosine,
    critic_loss,
    exact_value,
    joint_one_hots,
    local_expectation_value,
    soft_bellman_target,
)
from rl_gumbel.policies.estimation import check_estimator
from rl_gumbel.policies.factored import (
    FactoredCnnPolicy,
    FactoredCritic,
    FactoredMultiInputPolicy,
    FactoredPolicy,
)
from rl_gumbel.schedules import make_schedule

ACTOR_GRADIENTS = ("estimator", "exact", "local_expectation")
PROBE_BATCH_SIZE = 64


class GumbelSAC(OffPolicyAlgorithm):
    """Soft actor-critic on `Discrete`, `MultiDiscrete` and `MultiBinary` action spaces.

    Haarnoja et al. 2018 (arXiv 1812.05905) with three changes for discrete actions: the actor's
    action is a straight-through one-hot, through which the critic's gradient reaches the logits;
    the entropy is the exact sum over factors; the target entropy is positive, a fraction of the
    maximum. Arguments not listed here are SB3 SAC's, with the same meaning.

    Args:
        policy: `MlpPolicy`, `CnnPolicy`, `MultiInputPolicy` or a `FactoredPolicy` class.
        env: with a supported action space.
        estimator: a name in `ESTIMATORS`; see `rl_gumbel.estimators`.
        temperature: of the estimator: a number, a `Schedule` (or its mapping) over training, or
            None for the estimator's default.
        estimator_kwargs: options of the estimator, e.g. `{"num_samples": 10}` of `gumbel_rao`.
        critic: `concat`, a perceptron on [features, one_hot], or `multilinear`, linear in each
            factor's one-hot.
        actor_gradient: `estimator`; `exact`, the sum over all joint actions (up to 256 of them); or
            `local_expectation`, exact per factor, the others sampled (K * N critic evaluations).
        ent_coef: entropy coefficient, 0 for none; `auto` learns it, `auto_0.1` starting at 0.1.
        target_entropy: in nats, or `auto` for `target_entropy_fraction` of the maximum.
        target_entropy_fraction: in (0, 1); of the entropy of the uniform policy.
        reward_scale: factor on the rewards when they are sampled; logged returns stay raw.
        max_grad_norm: clip the gradients of actor and critic to this norm; None does not.
        cosine_interval: gradient steps between two measurements of `estimator/cosine`, which are
            made where enumeration is affordable; 0 makes none.

    Raises:
        TypeError: for an action space that is not supported.
        ValueError: for a setting that is out of range, unknown, or would be ignored.
    """

    policy_aliases: ClassVar[dict[str, type[BasePolicy]]] = {
        "MlpPolicy": FactoredPolicy,
        "CnnPolicy": FactoredCnnPolicy,
        "MultiInputPolicy": FactoredMultiInputPolicy,
    }
    policy: FactoredPolicy
    critic: FactoredCritic
    critic_target: FactoredCritic
    replay_buffer: ReplayBuffer
    log_ent_coef: Tensor
    ent_coef_optimizer: torch.optim.Optimizer | None

    def __init__(
        self,
        policy: str | type[FactoredPolicy],
        env: GymEnv | str,
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
        actor_gradient: str = "estimator",
        ent_coef: str | float = "auto_0.02",
        target_update_interval: int = 1,
        target_entropy: str | float = "auto",
        target_entropy_fraction: float = 0.5,
        reward_scale: float = 1.0,
        max_grad_norm: float | None = None,
        cosine_interval: int = 1000,
        stats_window_size: int = 100,
        tensorboard_log: str | None = None,
        policy_kwargs: dict[str, Any] | None = None,
        verbose: int = 0,
        seed: int | None = None,
        device: torch.device | str = "auto",
        _init_setup_model: bool = True,
    ) -> None:
        policy_kwargs = policy_kwargs or {}
        if policy_kwargs.get("critic", critic) != critic:
            raise ValueError(
                f"policy_kwargs critic {policy_kwargs['critic']!r} would be ignored: pass it as "
                f"the argument critic, which is {critic!r}"
            )
        super().__init__(
            policy,
            env,
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
            # The critic's kind travels with the policy, which SB3 saves and rebuilds.
            policy_kwargs={**policy_kwargs, "critic": critic},
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
        self.actor_gradient = actor_gradient
        self.ent_coef = ent_coef
        self.target_update_interval = target_update_interval
        self.target_entropy = target_entropy
        self.target_entropy_fraction = target_entropy_fraction
        self.reward_scale = reward_scale
        self.max_grad_norm = max_grad_norm
        self.cosine_interval = cosine_interval
        if _init_setup_model:
            self._check_settings()
            self._setup_model()

    def _check_settings(self) -> None:
        """Raise for what is out of range, unknown or would be ignored, before anything is built."""
        ActionLayout.from_space(self.action_space)
        check_estimator(self.estimator, options=self.estimator_kwargs)
        if self.actor_gradient not in ACTOR_GRADIENTS:
            known = ", ".join(ACTOR_GRADIENTS)
            raise ValueError(f"unknown actor_gradient {self.actor_gradient!r}; known: {known}")
        if self.actor_gradient != "estimator":
            for name in ("temperature", "estimator_kwargs"):
                value = getattr(self, name)
                if value is not None and value != {}:
                    raise ValueError(
                        f"{name} {value!r} would be ignored: actor_gradient is "
                        f"{self.actor_gradient!r}, not 'estimator'"
                    )
        for name in ("reward_scale", "max_grad_norm"):
            value = getattr(self, name)
            if value is not None and not 0 < value < math.inf:
                raise ValueError(f"{name} {value!r} must be > 0 and finite")
        for name, least in (("target_update_interval", 1), ("cosine_interval", 0)):
            if getattr(self, name) < least:
                raise ValueError(f"{name} {getattr(self, name)!r} must be >= {least}")
        self._check_entropy_settings()

    def _check_entropy_settings(self) -> None:
        learned = isinstance(self.ent_coef, str)
        if not (_is_auto(self.ent_coef) if learned else 0 <= self.ent_coef < math.inf):
            raise ValueError(
                f"ent_coef {self.ent_coef!r} must be a number >= 0, 'auto' or 'auto_' and a "
                f"number > 0"
            )
        if self.target_entropy != "auto":
            most = ActionLayout.from_space(self.action_space).max_entropy
            if not learned:
                raise ValueError(
                    f"target_entropy {self.target_entropy!r} would be ignored: ent_coef is fixed"
                )
            if isinstance(self.target_entropy, str) or not 0 < self.target_entropy < most:
                raise ValueError(
                    f"target_entropy {self.target_entropy!r} must be 'auto' or between 0 and the "
                    f"maximum of this space, {most:.3f} nats (discrete entropy is positive)"
                )
        if not 0 < self.target_entropy_fraction < 1:
            raise ValueError(
                f"target_entropy_fraction {self.target_entropy_fraction!r} must be in (0, 1)"
            )

    def _setup_model(self) -> None:
        super()._setup_model()
        self.actor = self.policy.actor
        self.critic = self.policy.critic
        self.critic_target = self.policy.critic_target
        self.layout = self.policy.layout
        self._setup_estimator()
        if self.target_entropy == "auto":
            self.target_entropy = self.target_entropy_fraction * self.layout.max_entropy
        self._setup_ent_coef()

    def _setup_estimator(self) -> None:
        """Build what turns the distribution into a value to climb, from plain attributes."""
        temperature = self.temperature
        self.temperature_schedule = make_schedule(
            ESTIMATORS[self.estimator].default_temperature if temperature is None else temperature
        )
        # Both ends, so that a bad schedule fails now and not at the end of a long run.
        for progress_remaining in (1.0, 0.0):
            temperature = self.temperature_schedule(progress_remaining)
            check_estimator(self.estimator, temperature, self.estimator_kwargs)
        sizes = torch.tensor(self.layout.sizes, dtype=torch.float32, device=self.device)
        # A factor of one category has no entropy; 1 avoids 0 / 0 there.
        self._max_entropy_per_factor = torch.where(sizes > 1, sizes.log(), 1.0)
        self._joint: Tensor | None = None
        if self.layout.num_joint <= MAX_JOINT_ACTIONS:
            self._joint = joint_one_hots(self.layout, self.device)
        elif self.actor_gradient == "exact":
            raise ValueError(
                f"actor_gradient 'exact' sums over all joint actions, and {self.action_space} has "
                f"more than {MAX_JOINT_ACTIONS}; use 'local_expectation'"
            )

    def _setup_ent_coef(self) -> None:
        """Build the entropy coefficient, learned or fixed, as SB3's SAC does."""
        if isinstance(self.ent_coef, str):
            initial = float(self.ent_coef.split("_")[1]) if "_" in self.ent_coef else 1.0
            self.log_ent_coef = torch.full((1,), math.log(initial), device=self.device)
            self.log_ent_coef.requires_grad_(True)
            self.ent_coef_optimizer = torch.optim.Adam([self.log_ent_coef], lr=self.lr_schedule(1))
        else:
            self.ent_coef_optimizer = None
            log = math.log(self.ent_coef) if self.ent_coef > 0 else -math.inf
            self.log_ent_coef = torch.full((1,), log, device=self.device)

    def train(self, gradient_steps: int, batch_size: int = 64) -> None:
        """Update critic, actor, entropy coefficient and target critic `gradient_steps` times."""
        self.policy.set_training_mode(True)
        optimizers = [self.actor.optimizer, self.critic.optimizer]
        if self.ent_coef_optimizer is not None:
            optimizers.append(self.ent_coef_optimizer)
        self._update_learning_rate(optimizers)
        temperature = self.temperature_schedule(self._current_progress_remaining)
        metrics = []
        for _ in range(gradient_steps):
            batch = self.replay_buffer.sample(batch_size, env=self._vec_normalize_env)
            metrics.append(self.update_critic(batch))
            if self._is_probe_due():
                metrics.append(self.probe_cosine(batch.observations, temperature))
            metrics.append(self.update_actor(batch.observations, temperature))
            self._n_updates += 1
            if self._n_updates % self.target_update_interval == 0:
                polyak_update(self.critic.parameters(), self.critic_target.parameters(), self.tau)
        self.logger.record("train/n_updates", self._n_updates, exclude="tensorboard")
        self.logger.record("estimator/temperature", temperature)
        record(self.logger, metrics)

    def update_critic(self, batch: ReplayBufferSamples) -> dict[str, Tensor]:
        """Take one step on the critic; return what is logged."""
        discount = self.gamma if batch.discounts is None else batch.discounts.squeeze(-1)
        with torch.no_grad():  # the target is a constant
            next_policy = self.actor(batch.next_observations)
            # Linear in each factor, a multilinear critic gives the exact expectation at once.
            next_action = (
                next_policy.probs
                if self.critic.network.is_multilinear
                else self.layout.index_to_one_hot(next_policy.sample())
            )
            next_value = self.critic_target(batch.next_observations, next_action).amin(0)
            target = soft_bellman_target(
                self.reward_scale * batch.rewards.squeeze(-1),
                batch.dones.squeeze(-1),
                discount,
                next_value + self.log_ent_coef.exp() * next_policy.entropy(),
            )
        one_hot = self.layout.index_to_one_hot(self.layout.to_index(batch.actions))
        loss = critic_loss(self.critic(batch.observations, one_hot), target)
        self._step(self.critic, loss)
        return {"train/critic_loss": loss.detach()}

    def update_actor(self, obs: PyTorchObs, temperature: float) -> dict[str, Tensor]:
        """Take one step on the actor and the entropy coefficient; return what is logged."""
        policy = self.actor(obs)
        entropy = policy.entropy_per_factor()
        ent_coef = self.log_ent_coef.detach().exp()
        value = self._value(policy, obs, temperature, self.actor_gradient)
        loss = -(value + ent_coef * entropy.sum(-1)).mean()
        grad_norm = self._step(self.actor, loss)
        entropy = entropy.detach()  # the coefficient's loss must not reach the actor
        metrics = {
            "train/actor_loss": loss.detach(),
            "train/ent_coef": ent_coef.squeeze(0),
            "estimator/grad_norm": grad_norm,
            "estimator/entropy": entropy.sum(-1).mean() / (self.layout.max_entropy or 1.0),
            "estimator/entropy_per_factor": entropy.mean(0) / self._max_entropy_per_factor,
        }
        if self.ent_coef_optimizer is not None:
            surplus = (entropy.sum(-1) - self.target_entropy).mean()
            ent_coef_loss = (self.log_ent_coef * surplus).squeeze(0)
            self.ent_coef_optimizer.zero_grad()
            ent_coef_loss.backward()
            self.ent_coef_optimizer.step()
            metrics["train/ent_coef_loss"] = ent_coef_loss.detach()
        return metrics

    def _value(
        self, policy: FactoredCategorical, obs: PyTorchObs, temperature: float, gradient: str
    ) -> Tensor:
        """Return the `[B]` value that the actor climbs, with a gradient of the named kind."""
        with torch.no_grad():  # the critic's features do not depend on the action
            features = self.critic.features(obs)

        def values(one_hot: Tensor) -> Tensor:
            rows = features.expand(one_hot.shape[0], -1, -1).flatten(0, 1)
            return self.critic.network.actor_value(rows, one_hot.flatten(0, 1)).unflatten(
                0, one_hot.shape[:2]
            )

        if gradient == "exact":
            assert self._joint is not None
            return exact_value(policy, self._joint, values)
        if gradient == "local_expectation":
            return local_expectation_value(policy, policy.sample(), self.layout, values)
        sample = policy.rsample(self.estimator, temperature=temperature, **self.estimator_kwargs)
        action_value: Tensor = self.critic.network.actor_value(features, sample.one_hot)
        return action_value

    def _step(self, module: BasePolicy | FactoredCritic, loss: Tensor) -> Tensor:
        """Take one optimiser step on the module alone; return the norm of its gradient."""
        parameters = [p for group in module.optimizer.param_groups for p in group["params"]]
        parameters = [p for p in parameters if p.requires_grad]  # an extractor may be frozen
        module.optimizer.zero_grad()
        # inputs: the actor's loss passes through the critic, whose weights need no gradient here.
        loss.backward(inputs=parameters)
        norm = torch.nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
        if self.max_grad_norm is not None:
            torch.nn.utils.clip_grads_with_norm_(parameters, self.max_grad_norm, norm)
        module.optimizer.step()
        return norm

    def _is_probe_due(self) -> bool:
        return (
            self._joint is not None
            and self.cosine_interval > 0
            and self.actor_gradient != "exact"
            and self._n_updates % self.cosine_interval == 0
        )

    def probe_cosine(self, obs: PyTorchObs, temperature: float) -> dict[str, Tensor]:
        """Return the cosine of the actor's gradient as it trains and of the enumerated gradient."""
        if isinstance(obs, dict):
            obs = {name: part[:PROBE_BATCH_SIZE] for name, part in obs.items()}
        else:
            obs = obs[:PROBE_BATCH_SIZE]
        parameters = [p for p in self.actor.parameters() if p.requires_grad]
        gradients = []
        for kind in (self.actor_gradient, "exact"):
            value = self._value(self.actor(obs), obs, temperature, kind).mean()
            gradients.append(torch.autograd.grad(value, parameters, materialize_grads=True))
        return {"estimator/cosine": cosine(*gradients)}

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
        built = ["actor", "critic", "critic_target", "layout", "temperature_schedule"]
        return [*super()._excluded_save_params(), *built, "_joint", "_max_entropy_per_factor"]

    def _get_torch_save_params(self) -> tuple[list[str], list[str]]:
        state_dicts = ["policy", "actor.optimizer", "critic.optimizer"]
        if self.ent_coef_optimizer is not None:
            state_dicts.append("ent_coef_optimizer")
        return state_dicts, ["log_ent_coef"]


def _is_auto(ent_coef: str | float) -> bool:
    """Return whether the coefficient is `auto` or `auto_` and a positive number."""
    word, _, initial = str(ent_coef).partition("_")
    try:
        return word == "auto" and (not initial or 0 < float(initial) < math.inf)
    except ValueError:
        return False
