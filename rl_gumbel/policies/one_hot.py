"""Policies that give stock SAC, TD3 and DDPG a discrete action through `OneHotActions`.

Stock SB3 believes that it acts in a `Box`. Everything between the actor and the environment stays
in {0, 1}: what the actor returns, what the replay buffer stores, what the critic reads and what the
wrapper gets; only the action of the actor's loss may be relaxed, if its estimator is.
"""

from dataclasses import asdict
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from stable_baselines3.common.type_aliases import PyTorchObs, Schedule
from torch import Tensor

from rl_gumbel.actions import ActionLayout
from rl_gumbel.distributions import FactoredCategorical
from rl_gumbel.policies.estimation import Estimation
from rl_gumbel.policies.factored import FactoredActor, FactoredCritic, FactoredPolicy
from rl_gumbel.wrappers import OneHotBox


class OneHotActor(FactoredActor):
    """Observations to one-hot vectors `[B, sum(sizes)]`, as SB3's SAC and TD3 call an actor."""

    def __init__(self, estimation: Estimation, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.estimation = estimation

    def distribution(self, obs: PyTorchObs, mask: Tensor | None = None) -> FactoredCategorical:
        """Return the distribution of the action, logits `[B, K, N]`."""
        return super().forward(obs, mask)

    def forward(  # type: ignore[override]
        self, obs: PyTorchObs, deterministic: bool = False
    ) -> Tensor:
        """Return actions: with the estimator's gradient, or exact one-hots where none is wanted."""
        return self._act(self.distribution(obs), deterministic)

    def action_log_prob(self, obs: PyTorchObs) -> tuple[Tensor, Tensor]:
        """Return actions and, in place of their log-probability, its exact mean `[B]`.

        The log-probability of a hard sample has a gradient of zero mean, which would leave the
        actor without its entropy bonus; the negative entropy has the right gradient and less
        variance in the target of the critic.
        """
        distribution = self.distribution(obs)
        return self._act(distribution), -distribution.entropy()

    def _act(self, distribution: FactoredCategorical, deterministic: bool = False) -> Tensor:
        if torch.is_grad_enabled() and not deterministic:
            return self.layout.flatten(self.estimation.rsample(distribution).one_hot)
        index = distribution.mode if deterministic else distribution.sample()
        return self.layout.flatten(self.layout.index_to_one_hot(index))

    def _predict(self, observation: PyTorchObs, deterministic: bool = False) -> Tensor:
        return self(observation, deterministic)


class OneHotCritic(FactoredCritic):
    """Observations and one-hot vectors to a tuple of values `[B, 1]`, one for each critic."""

    def forward(  # type: ignore[override]
        self, obs: PyTorchObs, actions: Tensor
    ) -> tuple[Tensor, ...]:
        """Return the values of actions `[B, sum(sizes)]`.

        Raises:
            ValueError: for a row that is not one-hot. Actions with a gradient come from the actor
                and are not read.
        """
        if not actions.requires_grad:
            self._check_one_hot(actions)
        values = super().forward(obs, self.layout.unflatten(actions))
        return values.unsqueeze(-1).unbind(0)

    def q1_forward(self, obs: PyTorchObs, actions: Tensor) -> Tensor:
        """Return the values of the first critic, `[B, 1]`."""
        return self(obs, actions)[0]

    def _check_one_hot(self, actions: Tensor) -> None:
        """Raise for noise that stock SB3 added to actions, before the critic learns from it."""
        one_hot = self.layout.unflatten(actions)
        is_bit = ((one_hot == 0) | (one_hot == 1)).all(-1)
        is_good = (is_bit & (one_hot.sum(-1) == 1)).all(-1)
        # One read of the device per call, and only for actions that come from a buffer or a target.
        if not bool(is_good.all()):
            row = int((~is_good).nonzero()[0])
            raise ValueError(
                f"action {actions[row].tolist()} in row {row} is not one-hot in every factor of "
                f"{self.layout.space}; wrap the environment in OneHotActions, pass "
                f"action_noise=None and, to TD3, target_noise_clip=0.0 (see stock_kwargs)"
            )


class OneHotPolicy(FactoredPolicy):
    """`FactoredPolicy` behind a `OneHotBox`; what `GumbelSACPolicy` and `GumbelTD3Policy` share."""

    actor: OneHotActor  # type: ignore[assignment]
    critic: OneHotCritic  # type: ignore[assignment]
    critic_target: OneHotCritic  # type: ignore[assignment]

    def __init__(
        self,
        observation_space: spaces.Space[Any],
        action_space: spaces.Space[Any],
        lr_schedule: Schedule,
        estimator: str = "straight_through_gumbel",
        temperature: float | None = None,
        estimator_kwargs: dict[str, float] | None = None,
        use_sde: bool = False,
        **kwargs: Any,
    ) -> None:
        # SAC always passes it, and writes it into the caller's policy_kwargs.
        if use_sde:
            raise ValueError("use_sde=True has no meaning for discrete actions; pass use_sde=False")
        # Before super().__init__, which builds the networks.
        self.estimation = Estimation(estimator, temperature, estimator_kwargs)
        super().__init__(observation_space, action_space, lr_schedule, **kwargs)

    def make_layout(self) -> ActionLayout:
        """Return the factors of the discrete space behind the `OneHotBox`."""
        if not isinstance(self.action_space, OneHotBox):
            raise TypeError(
                f"{type(self).__name__} needs the action space of the wrapper OneHotActions; got "
                f"{self.action_space}"
            )
        return self.action_space.layout

    def make_actor(self) -> OneHotActor:
        """Return a new actor."""
        return OneHotActor(self.estimation, **self._network_kwargs(None), net_arch=self.actor_arch)

    def make_critic(self, features_extractor: BaseFeaturesExtractor | None) -> OneHotCritic:
        """Return a new critic, with the given features extractor or one of its own."""
        return OneHotCritic(**self._network_kwargs(features_extractor), **self.critic_settings())

    def distribution(self, obs: PyTorchObs, mask: Tensor | None = None) -> FactoredCategorical:
        """Return the distribution over actions; `mask` `[B, K, N]`, True where allowed."""
        distribution: FactoredCategorical = self.actor.distribution(obs, mask)
        return distribution

    def _predict(self, observation: PyTorchObs, deterministic: bool = False) -> Tensor:
        one_hot: Tensor = self.actor._act(self._masked_distribution(observation), deterministic)
        return one_hot

    def _get_constructor_parameters(self) -> dict[str, Any]:
        return {**super()._get_constructor_parameters(), **asdict(self.estimation)}

    def scale_action(self, action: np.ndarray) -> np.ndarray:
        """Return the action itself: one-hots are stored and played as they are."""
        return action

    def unscale_action(self, scaled_action: np.ndarray) -> np.ndarray:
        """Return the action itself: one-hots are stored and played as they are."""
        return scaled_action


class GumbelSACPolicy(OneHotPolicy):
    """Policy for unmodified SB3 `SAC` on a discrete space wrapped in `OneHotActions`.

    The actor's loss differentiates the critic through the one-hot action, by the estimator; the
    entropy is exact. SAC must be told what no policy can see, a positive target entropy first of
    all: pass `**stock_kwargs(env, SAC)` and call `check_stock(model)`. SAC climbs the minimum of
    its critics, so that even multilinear ones are not linear in the one-hot unless `n_critics=1`;
    `GumbelSAC` does not have this limit, and trains a schedule of temperatures.

    Args:
        observation_space: of the environment.
        action_space: of `OneHotActions`.
        lr_schedule: progress remaining to learning rate.
        estimator: a name in `ESTIMATORS`; see `rl_gumbel.estimators`.
        temperature: of the estimator, or None for its default. To change it while training, set
            `model.policy.estimation.temperature` in a callback.
        estimator_kwargs: options of the estimator.
        use_sde: must be False.
        **kwargs: of `FactoredPolicy`: `net_arch`, `critic`, `n_critics`, `layer_norm`,
            `features_extractor_class` (`NatureCNN` for images, `CombinedExtractor` for `Dict`
            observations), ...

    Raises:
        TypeError: for an action space that is not of `OneHotActions`, or an unknown argument.
        ValueError: for a setting out of range or `use_sde=True`.
    """


class GumbelTD3Policy(OneHotPolicy):
    """Policy for unmodified SB3 `TD3` and `DDPG` on a discrete space wrapped in `OneHotActions`.

    "Deterministic policy gradient" with a sampled action: the actor draws its noise inside, also to
    explore, and the actor's loss differentiates the critic through the one-hot. The target actor
    samples too, so the critic learns the value of the stochastic policy. `predict` honours
    `deterministic` (most probable action), which SB3's own TD3 policy ignores. Neither algorithm
    has an entropy bonus: nothing keeps the policy from growing deterministic early.

    Noise on top of the action would end the one-hots: pass `**stock_kwargs(env, TD3)` and call
    `check_stock(model)`. Arguments and errors are those of `GumbelSACPolicy`.
    """

    actor_target: OneHotActor

    def _build(self, lr_schedule: Schedule) -> None:
        super()._build(lr_schedule)
        self.actor_target = self.make_actor()
        self.actor_target.load_state_dict(self.actor.state_dict())
        self.actor_target.set_training_mode(False)
