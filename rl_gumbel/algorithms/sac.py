"""GumbelSAC: soft actor-critic whose actor gradient flows through one-hot action and critic."""

import math
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
from rl_gumbel.algorithms.compilation import compiled
from rl_gumbel.algorithms.off_policy import BatchedOffPolicyAlgorithm
from rl_gumbel.buffers import DeviceReplaySamples
from rl_gumbel.distributions import FactoredCategorical
from rl_gumbel.envs.base import BatchedEnv
from rl_gumbel.estimators import ESTIMATORS
from rl_gumbel.logger import Means
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
from rl_gumbel.policies.masks import MaskedAlgorithm
from rl_gumbel.schedules import make_schedule

ACTOR_GRADIENTS = ("estimator", "exact", "local_expectation")
PROBE_BATCH_SIZE = 64


class GumbelSAC(MaskedAlgorithm, BatchedOffPolicyAlgorithm):
    """Soft actor-critic on `Discrete`, `MultiDiscrete` and `MultiBinary` action spaces.

    Haarnoja et al. 2018 (arXiv 1812.05905) with three changes for discrete actions: the actor's
    action is a straight-through one-hot, through which the critic's gradient reaches the logits;
    the entropy is the exact sum over factors; the target entropy is positive, a fraction of the
    maximum. Arguments not listed here are SB3 SAC's, with the same meaning.

    Args:
        policy: `MlpPolicy`, `CnnPolicy`, `MultiInputPolicy` or a `FactoredPolicy` class.
        env: with a supported action space: what SB3 takes, or a `BatchedEnv`, of which nothing
            leaves the device: neither collection nor replay nor update waits for the host. Its
            action masks hold for the policy, the target and the entropy.
        estimator: a name in `ESTIMATORS`; see `rl_gumbel.estimators`.
        temperature: of the estimator: a number, a `Schedule` (or its mapping) over training, or
            None for the estimator's default.
        estimator_kwargs: options of the estimator, e.g. `{"num_samples": 10}` of `gumbel_rao`.
        critic: `concat`, a perceptron on [features, one_hot], or `multilinear`, linear in each
            factor's one-hot.
        actor_gradient: `estimator`; `exact`, the sum over all joint actions (up to 256 of them); or
            `local_expectation`, exact per factor, the others sampled (K * N critic evaluations).
        ent_coef: entropy coefficient, 0 for none; `auto` learns it, `auto_0.1` starting at 0.1.
        target_entropy: in nats, or `auto` for `target_entropy_fraction` of the maximum. Where a
            mask leaves fewer actions it is lower, in proportion to the maximum that they leave.
        target_entropy_fraction: in (0, 1); of the entropy of the uniform policy.
        reward_scale: factor on the rewards when they are sampled; logged returns stay raw.
        max_grad_norm: clip the gradients of actor and critic to this norm; None does not.
        cosine_interval: gradient steps between two measurements of `estimator/cosine`, which are
            made where enumeration is affordable; 0 makes none.
        compile: compile the losses and their gradients by `torch.compile`; where that fails a
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
        actor_gradient: str = "estimator",
        ent_coef: str | float = "auto_0.02",
        target_update_interval: int = 1,
        target_entropy: str | float = "auto",
        target_entropy_fraction: float = 0.5,
        reward_scale: float = 1.0,
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
        policy_kwargs = policy_kwargs or {}
        if policy_kwargs.get("critic", critic) != critic:
            raise ValueError(
                f"policy_kwargs critic {policy_kwargs['critic']!r} would be ignored: pass it as "
                f"the argument critic, which is {critic!r}"
            )
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
        self.compile = compile
        self._means = Means()
        self._latest: dict[str, float] = {}
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
        if self.is_batched:
            for name in ("replay_buffer_class", "replay_buffer_kwargs", "optimize_memory_usage"):
                if getattr(self, name):
                    raise ValueError(
                        f"{name} {getattr(self, name)!r} would be ignored: the replay of a "
                        f"BatchedEnv is a DeviceReplayBuffer"
                    )

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
        self._setup_estimator()
        if self.target_entropy == "auto":
            self.target_entropy = self.target_entropy_fraction * self.layout.max_entropy
        self._setup_ent_coef()
        # Listed once: a module looks for its parameters anew each time.
        self._trained = {
            module: [p for group in module.optimizer.param_groups for p in group["params"]]
            for module in (self.actor, self.critic)
        }
        self._averaged = [list(net.parameters()) for net in (self.critic_target, self.critic)]
        self._critic_loss, self._actor_loss = self.critic_loss, self.actor_loss
        if self.compile:
            self._critic_loss, self._actor_loss = (
                compiled(self.critic_loss),
                compiled(self.actor_loss),
            )

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
        self._max_entropy_per_factor = sizes.log()
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
            fused = self.policy.optimizer_kwargs.get("fused", False)
            self.ent_coef_optimizer = torch.optim.Adam(
                [self.log_ent_coef], lr=self.lr_schedule(1), fused=fused
            )
        else:
            self.ent_coef_optimizer = None
            log = math.log(self.ent_coef) if self.ent_coef > 0 else -math.inf
            self.log_ent_coef = torch.full((1,), log, device=self.device)

    def train(self, gradient_steps: int, batch_size: int = 64) -> None:
        """Update critic, actor, entropy coefficient and target critic `gradient_steps` times."""
        self.policy.set_training_mode(True)
        learning_rate = self.lr_schedule(self._current_progress_remaining)
        for optimizer in (self.actor.optimizer, self.critic.optimizer, self.ent_coef_optimizer):
            if optimizer is not None:
                update_learning_rate(optimizer, learning_rate)
        temperature = self.temperature_schedule(self._current_progress_remaining)
        for _ in range(gradient_steps):
            self.update(batch_size, temperature)
        self._latest = {"train/learning_rate": learning_rate, "estimator/temperature": temperature}

    def update(self, batch_size: int, temperature: float) -> None:
        """Update everything once, from a batch of the replay; take note of what is logged."""
        batch = self.replay_buffer.sample(batch_size, env=self._vec_normalize_env)
        obs, mask = batch.observations, getattr(batch, "action_masks", None)
        self._means.add(self.update_critic(batch))
        if self._is_probe_due():
            self._means.add(self.probe_cosine(obs, temperature, mask))
        self._means.add(self.update_actor(obs, temperature, mask))
        self._n_updates += 1
        if self._n_updates % self.target_update_interval == 0:
            with torch.no_grad():  # theta' <- theta' + tau (theta - theta')
                torch._foreach_lerp_(*self._averaged, self.tau)

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
            self._means.record(logger)
        return logger

    def update_critic(self, batch: ReplayBufferSamples | DeviceReplaySamples) -> dict[str, Tensor]:
        """Take one step on the critic; return what is logged."""
        loss = self._critic_loss(batch)
        self._step(self.critic, loss)
        return {"train/critic_loss": loss.detach()}

    def critic_loss(self, batch: ReplayBufferSamples | DeviceReplaySamples) -> Tensor:
        """Return the scalar loss of the critic on a batch."""
        discount = self.gamma if batch.discounts is None else batch.discounts.squeeze(-1)
        with torch.no_grad():  # the target is a constant
            next_mask = getattr(batch, "next_action_masks", None)
            next_policy = self.actor(batch.next_observations, next_mask)
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
        return critic_loss(self.critic(batch.observations, one_hot), target)

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
        loss, entropy = self._actor_loss(obs, scalar, mask)
        grad_norm = self._step(self.actor, loss)
        entropy = entropy.detach()  # the coefficient's loss must not reach the actor
        most = self._max_entropy_per_factor if mask is None else mask.sum(-1).log()
        most = most.expand_as(entropy)
        metrics = {
            "train/actor_loss": loss.detach(),
            "train/ent_coef": self.log_ent_coef.detach().exp().squeeze(0),
            "estimator/grad_norm": grad_norm,
            "estimator/entropy": _share(entropy.mean(0).sum(), most.mean(0).sum()),
            "estimator/entropy_per_factor": _share(entropy.mean(0), most.mean(0)),
        }
        if self.ent_coef_optimizer is not None:
            share = self.target_entropy / (self.layout.max_entropy or 1.0)
            surplus = (entropy - share * most).sum(-1).mean()
            metrics["train/ent_coef_loss"] = (self.log_ent_coef.detach() * surplus).squeeze(0)
            self.log_ent_coef.grad = surplus.expand(1)  # of that loss, which is linear in it
            self.ent_coef_optimizer.step()
        return metrics

    def actor_loss(
        self, obs: PyTorchObs, temperature: float | Tensor, mask: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Return the scalar loss of the actor and the entropies `[B, K]`."""
        policy = self.actor(obs, mask)
        entropy = policy.entropy_per_factor()
        ent_coef = self.log_ent_coef.detach().exp()
        value = self._value(policy, obs, temperature, self.actor_gradient)
        return -(value + ent_coef * entropy.sum(-1)).mean(), entropy

    def _value(
        self,
        policy: FactoredCategorical,
        obs: PyTorchObs,
        temperature: float | Tensor,
        gradient: str,
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

    def _step(self, module: BasePolicy | FactoredCritic, loss: Tensor) -> Tensor | None:
        """Take one optimiser step on the module alone; return the norm of its gradient."""
        # The actor's loss passes through the critic, whose weights get no gradient here.
        parameters = [p for p in self._trained[module] if p.requires_grad]  # some may be frozen
        gradients = torch.autograd.grad(loss, parameters, allow_unused=True)
        for parameter, gradient in zip(parameters, gradients, strict=True):
            parameter.grad = gradient
        norm = torch.nn.utils.get_total_norm([g for g in gradients if g is not None])
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

    def probe_cosine(
        self, obs: PyTorchObs, temperature: float, mask: Tensor | None = None
    ) -> dict[str, Tensor]:
        """Return the cosine of the actor's gradient as it trains and of the enumerated gradient."""
        if isinstance(obs, dict):
            obs = {name: part[:PROBE_BATCH_SIZE] for name, part in obs.items()}
        else:
            obs = obs[:PROBE_BATCH_SIZE]
        mask = None if mask is None else mask[:PROBE_BATCH_SIZE]
        parameters = [p for p in self.actor.parameters() if p.requires_grad]
        gradients = []
        for kind in (self.actor_gradient, "exact"):
            value = self._value(self.actor(obs, mask), obs, temperature, kind).mean()
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
        built = ["actor", "critic", "critic_target", "temperature_schedule", "_joint"]
        built += ["_max_entropy_per_factor", "_critic_loss", "_actor_loss", "_means", "_latest"]
        built += ["_trained", "_averaged"]
        return [*super()._excluded_save_params(), *built]

    def _get_torch_save_params(self) -> tuple[list[str], list[str]]:
        state_dicts = ["policy", "actor.optimizer", "critic.optimizer"]
        if self.ent_coef_optimizer is not None:
            state_dicts.append("ent_coef_optimizer")
        return state_dicts, ["log_ent_coef"]


def _share(part: Tensor, whole: Tensor) -> Tensor:
    """Return part / whole; 0 where there is nothing to have a share of."""
    return torch.where(whole > 0, part / whole, 0.0)


def _is_auto(ent_coef: str | float) -> bool:
    """Return whether the coefficient is `auto` or `auto_` and a positive number."""
    word, _, initial = str(ent_coef).partition("_")
    try:
        return word == "auto" and (not initial or 0 < float(initial) < math.inf)
    except ValueError:
        return False
