"""A policy for stock PPO, A2C and TRPO whose distribution can also be differentiated through.

The distributions are SB3's own with one method more, `rsample`: sampling, log-probabilities,
entropies and divergences are theirs to the last digit.
"""

from dataclasses import asdict
from typing import Any

import torch
from gymnasium import spaces
from stable_baselines3.common.distributions import (
    BernoulliDistribution,
    CategoricalDistribution,
    Distribution,
    MultiCategoricalDistribution,
)
from stable_baselines3.common.policies import ActorCriticPolicy, BasePolicy
from stable_baselines3.common.type_aliases import Schedule
from torch import Tensor

from rl_gumbel.actions import ActionLayout
from rl_gumbel.distributions import FactoredCategorical
from rl_gumbel.policies.estimation import Estimation
from rl_gumbel.types import Sample


class DifferentiableDistribution(Distribution):
    """What is added to one of SB3's discrete distributions: `rsample`, and the start of actions.

    Args:
        dims: what the constructor of SB3's distribution takes.
        layout: of the action space.
        estimation: how `rsample` draws.
    """

    def __init__(self, dims: Any, layout: ActionLayout, estimation: Estimation) -> None:
        super().__init__(dims)  # type: ignore[call-arg]
        self.layout = layout
        self.estimation = estimation
        self.starts = torch.tensor(layout.starts)

    def factored(self) -> FactoredCategorical:
        """Return the same distribution with logits `[B, K, N]`.

        Raises:
            ValueError: for NaN or infinite logits.
        """
        mask = self.layout.mask
        return FactoredCategorical(
            self.padded_logits(), None if mask is None else mask.to(self.action_logits.device)
        )

    def padded_logits(self) -> Tensor:
        """Return the logits of the latest observations, `[B, K, N]`."""
        return self.pad(self.action_logits)

    def pad(self, action_logits: Tensor) -> Tensor:
        """Return `[B, K, N]` of logits as SB3 lays them out."""
        return self.layout.unflatten(action_logits)

    def rsample(self, generator: torch.Generator | None = None) -> Sample:
        """Return a sample whose one-hot `[B, K, N]` carries a gradient to the policy.

        Its `index` counts from zero whatever the start of the space.
        """
        return self.estimation.rsample(self.factored(), generator)

    def proba_distribution(self, action_logits: Tensor) -> "DifferentiableDistribution":
        """Take the parameters of a batch, logits as SB3 lays them out; return itself."""
        self.action_logits = action_logits
        return super().proba_distribution(action_logits)

    # SB3 never adds the start of a space; here its actions are what the environment expects.

    def sample(self) -> Tensor:
        """Return a batch of actions, drawn exactly."""
        actions = super().sample()
        return actions + self.starts.to(actions.device)

    def mode(self) -> Tensor:
        """Return a batch of most probable actions."""
        actions = super().mode()
        return actions + self.starts.to(actions.device)

    def log_prob(self, x: Tensor) -> Tensor:
        """Return the log-probabilities `[B]` of a batch of actions."""
        return super().log_prob(x - self.starts.to(x.device))


class GumbelCategoricalDistribution(DifferentiableDistribution, CategoricalDistribution):
    """`CategoricalDistribution`, for `Discrete`, with `rsample`."""


class GumbelMultiCategoricalDistribution(DifferentiableDistribution, MultiCategoricalDistribution):
    """`MultiCategoricalDistribution`, for `MultiDiscrete`, with `rsample`."""


class GumbelBernoulliDistribution(DifferentiableDistribution, BernoulliDistribution):
    """`BernoulliDistribution`, for `MultiBinary`, with `rsample`.

    SB3's `kl_divergence` of it is that of each bit, `[B, K]`, so TRPO's `target_kl` bounds the mean
    over the bits, not their sum, as with SB3's own policy.
    """

    def pad(self, action_logits: Tensor) -> Tensor:
        """Return the logits `[B, K, 2]`: a Bernoulli logit is that of 1 against that of 0."""
        return torch.stack([torch.zeros_like(action_logits), action_logits], -1)


class DifferentiablePolicy(BasePolicy):
    """What is added to one of SB3's on-policy policies: its distribution, and what that needs."""

    def __init__(
        self,
        observation_space: spaces.Space[Any],
        action_space: spaces.Space[Any],
        lr_schedule: Schedule,
        *args: Any,
        estimator: str = "straight_through_gumbel",
        temperature: float | None = None,
        estimator_kwargs: dict[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        # Before super().__init__, which builds the distribution.
        self.layout = ActionLayout.from_space(action_space)
        self.estimation = Estimation(estimator, temperature, estimator_kwargs)
        super().__init__(observation_space, action_space, lr_schedule, *args, **kwargs)

    def make_distribution(self) -> DifferentiableDistribution:
        """Return a new distribution for the action space."""
        raise NotImplementedError

    def _build(self, lr_schedule: Schedule) -> None:
        # SB3 builds its networks from the distribution that stands here.
        self.action_dist = self.make_distribution()
        super()._build(lr_schedule)  # type: ignore[misc]

    def _get_constructor_parameters(self) -> dict[str, Any]:
        return {
            **super()._get_constructor_parameters(),
            **asdict(self.estimation),
            # SB3 leaves it out, so that policy.load would build other networks than were saved.
            "share_features_extractor": self.share_features_extractor,
        }


class GumbelActorCriticPolicy(DifferentiablePolicy, ActorCriticPolicy):
    """Policy for unmodified SB3 `PPO` and `A2C` and sb3-contrib `TRPO` on discrete action spaces.

    It acts and learns exactly as SB3's own policy: **the losses of PPO, A2C and TRPO never use a
    gradient through the action, so that estimator and temperature have no effect on them.** Actions
    are exact draws from the categorical distribution. What is added is for losses of the user's
    own: `policy.get_distribution(obs).rsample()` returns a
    `Sample` whose one-hot carries the estimator's gradient to the parameters of the policy. (SB3
    keeps one distribution per policy: use it before the next call of `get_distribution`.)

    The start of a `Discrete` or `MultiDiscrete` space is honoured, which SB3's own policy ignores.

    Args:
        observation_space: of the environment.
        action_space: `Discrete`, 1-D `MultiDiscrete` or 1-D `MultiBinary`.
        lr_schedule: progress remaining to learning rate.
        *args: of SB3's `ActorCriticPolicy`.
        estimator: a name in `ESTIMATORS`; see `rl_gumbel.estimators`.
        temperature: of the estimator, or None for its default.
        estimator_kwargs: options of the estimator.
        **kwargs: of SB3's `ActorCriticPolicy`: `net_arch`, `features_extractor_class` (`NatureCNN`
            for images, `CombinedExtractor` for `Dict` observations), ...

    Raises:
        TypeError: for another action space.
        ValueError: for an estimator's setting out of range.
    """

    def make_distribution(self) -> DifferentiableDistribution:
        """Return a new distribution for the action space."""
        layout, estimation = self.layout, self.estimation
        if isinstance(layout.space, spaces.Discrete):
            return GumbelCategoricalDistribution(layout.num_flat, layout, estimation)
        if isinstance(layout.space, spaces.MultiDiscrete):
            return GumbelMultiCategoricalDistribution(list(layout.sizes), layout, estimation)
        return GumbelBernoulliDistribution(layout.num_factors, layout, estimation)
