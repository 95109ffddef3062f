"""The maskable twin of `GumbelActorCriticPolicy`, for sb3-contrib's MaskablePPO."""

import torch
from gymnasium import spaces
from torch import Tensor

from rl_gumbel.distributions import FactoredCategorical
from rl_gumbel.policies.on_policy import DifferentiableDistribution, DifferentiablePolicy

try:
    from sb3_contrib.common.maskable.distributions import (
        MaskableBernoulliDistribution,
        MaskableCategoricalDistribution,
        MaskableMultiCategoricalDistribution,
        MaybeMasks,
    )
    from sb3_contrib.common.maskable.policies import MaskableActorCriticPolicy
except ImportError as error:
    raise ImportError(
        'MaskableGumbelActorCriticPolicy needs sb3-contrib: pip install "rl-gumbel[contrib]"'
    ) from error


class MaskedDistribution(DifferentiableDistribution):
    """`DifferentiableDistribution` that `rsample` draws from under the mask applied last."""

    masks: MaybeMasks = None

    def proba_distribution(self, action_logits: Tensor) -> "MaskedDistribution":
        """Take the logits of a batch, all actions allowed; return itself."""
        self.masks = None
        super().proba_distribution(action_logits)
        return self

    def apply_masking(self, masks: MaybeMasks) -> None:
        """Forbid the actions where the flat mask `[B, sum(sizes)]` is False; None allows all."""
        self.masks = masks
        super().apply_masking(masks)  # type: ignore[misc]

    def factored(self) -> FactoredCategorical:
        """Return the same distribution with logits `[B, K, N]`.

        Raises:
            ValueError: for NaN or infinite logits, or a row whose categories are all masked.
        """
        if self.masks is None:
            return super().factored()
        logits = self.action_logits
        masks = torch.as_tensor(self.masks, dtype=torch.bool, device=logits.device)
        return FactoredCategorical(
            self.padded_logits(), self.layout.unflatten(masks.reshape(logits.shape))
        )


class MaskableGumbelCategoricalDistribution(MaskedDistribution, MaskableCategoricalDistribution):
    """`MaskableCategoricalDistribution`, for `Discrete`, with `rsample`."""


class MaskableGumbelMultiCategoricalDistribution(
    MaskedDistribution, MaskableMultiCategoricalDistribution
):
    """`MaskableMultiCategoricalDistribution`, for `MultiDiscrete`, with `rsample`."""


class MaskableGumbelBernoulliDistribution(MaskedDistribution, MaskableBernoulliDistribution):
    """`MaskableBernoulliDistribution`, for `MultiBinary`, with `rsample`."""


class MaskableGumbelActorCriticPolicy(DifferentiablePolicy, MaskableActorCriticPolicy):
    """`GumbelActorCriticPolicy` for unmodified sb3-contrib `MaskablePPO`.

    Masks are honoured by sampling, log-probability, entropy and `rsample`, as in
    `policy.get_distribution(obs, action_masks).rsample()`. As there, MaskablePPO's loss never uses
    a gradient through the action. A mask is flat, `[B, sum(sizes)]`: the factors side by side, two
    entries for each bit of `MultiBinary`. Arguments and errors are those of
    `GumbelActorCriticPolicy`; there is no gSDE.
    """

    def make_distribution(self) -> DifferentiableDistribution:
        """Return a new distribution for the action space."""
        layout, estimation = self.layout, self.estimation
        if isinstance(layout.space, spaces.Discrete):
            return MaskableGumbelCategoricalDistribution(layout.num_flat, layout, estimation)
        if isinstance(layout.space, spaces.MultiDiscrete):
            return MaskableGumbelMultiCategoricalDistribution(
                list(layout.sizes), layout, estimation
            )
        return MaskableGumbelBernoulliDistribution(layout.num_factors, layout, estimation)
