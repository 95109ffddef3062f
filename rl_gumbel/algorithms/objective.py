"""What an actor climbs: a critic's value of its actions and, up to a target, its own entropy."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity
from torch.utils._pytree import tree_map

from rl_gumbel.actions import ActionLayout
from rl_gumbel.distributions import FactoredCategorical
from rl_gumbel.estimators import ESTIMATORS
from rl_gumbel.losses import (
    MAX_JOINT_ACTIONS,
    exact_value,
    joint_one_hots,
    local_expectation_value,
)
from rl_gumbel.policies.estimation import check_estimator
from rl_gumbel.policies.factored import FactoredActor, FactoredCritic
from rl_gumbel.schedules import Schedule, make_schedule
from rl_gumbel.types import Obs

ACTOR_GRADIENTS = ("estimator", "exact", "local_expectation")
PROBE_BATCH_SIZE = 64
"""States in which cosine and variance are measured."""
PROBE_DRAWS = 8
"""Gradients that they are measured from."""


class ActorObjective:
    """Policy and critic to a value whose gradient trains the actor, and the measures of entropy.

    Args:
        layout: of the action space.
        device: of the policies.
        actor_gradient: a name in `ACTOR_GRADIENTS`.
        estimator: a name in `ESTIMATORS`.
        temperature: of the estimator: a number, a schedule or its mapping; None is its default.
        estimator_kwargs: options of the estimator.
        aggregation: of the critic's ensemble: with `min` the actor climbs its minimum (or what a
            multilinear critic has for it), else its mean.

    Raises:
        ValueError: for what is unknown, out of range or would be ignored.
        TypeError: for an option that the estimator does not have.
    """

    def __init__(
        self,
        layout: ActionLayout,
        device: torch.device,
        actor_gradient: str,
        estimator: str,
        temperature: float | dict[str, Any] | Schedule | None,
        estimator_kwargs: dict[str, float],
        aggregation: str = "min",
    ) -> None:
        check_estimator(estimator, options=estimator_kwargs)
        if actor_gradient not in ACTOR_GRADIENTS:
            known = ", ".join(ACTOR_GRADIENTS)
            raise ValueError(f"unknown actor_gradient {actor_gradient!r}; known: {known}")
        if actor_gradient != "estimator":
            for name, value in (
                ("temperature", temperature),
                ("estimator_kwargs", estimator_kwargs or None),
            ):
                if value is not None:
                    raise ValueError(
                        f"{name} {value!r} would be ignored: actor_gradient is "
                        f"{actor_gradient!r}, not 'estimator'"
                    )
        self.layout = layout
        self._max_entropy = torch.tensor(layout.sizes, dtype=torch.float32, device=device).log()
        self.actor_gradient = actor_gradient
        self.estimator = estimator
        self.estimator_kwargs = estimator_kwargs
        self.use_mean = aggregation != "min"
        self.temperature: Callable[[float], float] = make_schedule(
            ESTIMATORS[estimator].default_temperature if temperature is None else temperature
        )
        """Progress remaining to temperature."""
        # Both ends, so that a bad schedule fails now and not at the end of a long run.
        for progress_remaining in (1.0, 0.0):
            check_estimator(estimator, self.temperature(progress_remaining), estimator_kwargs)
        self.joint: Tensor | None = None
        """`[J, K, N]` every joint action, where enumeration is affordable."""
        if layout.num_joint <= MAX_JOINT_ACTIONS:
            self.joint = joint_one_hots(layout, device)
        elif actor_gradient == "exact":
            raise ValueError(
                f"actor_gradient 'exact' sums over all joint actions, and {layout.space} has more "
                f"than {MAX_JOINT_ACTIONS}; use 'local_expectation'"
            )

    def value(
        self,
        policy: FactoredCategorical,
        critic: FactoredCritic,
        obs: Obs,
        temperature: float | Tensor,
        actor_gradient: str | None = None,
    ) -> Tensor:
        """Return the `[B]` value of the policy's actions, with a gradient to its logits.

        Args:
            policy: distribution of `[B, K]` actions.
            critic: of observations and one-hots.
            obs: `[B, *O]`.
            temperature: of the estimator.
            actor_gradient: another kind than the objective's own.
        """
        network = critic.network
        with torch.no_grad():  # the critic's features do not depend on the action
            features = critic.features(obs)

        def values(one_hot: Tensor) -> Tensor:
            rows = features.expand(one_hot.shape[0], -1, -1).flatten(0, 1)
            flat = network.actor_value(rows, one_hot.flatten(0, 1), self.use_mean)
            return flat.unflatten(0, one_hot.shape[:2])

        kind = actor_gradient or self.actor_gradient
        if kind == "exact":
            if network.is_multilinear:  # its value at the probabilities is the expectation
                return network.actor_value(features, policy.probs, self.use_mean)
            assert self.joint is not None
            return exact_value(policy, self.joint, values)
        if kind == "local_expectation":
            return local_expectation_value(policy, policy.sample(), self.layout, values)
        sample = policy.rsample(self.estimator, temperature=temperature, **self.estimator_kwargs)
        return network.actor_value(features, sample.one_hot, self.use_mean)

    def is_probe_due(self, critic: FactoredCritic, num_updates: int, interval: int) -> bool:
        """Return whether to measure the estimator after so many updates; 0 never does.

        There must be an exact gradient to compare this one with: by enumeration, or of a
        multilinear critic, which has one for any number of factors.
        """
        has_exact = self.joint is not None or critic.network.is_multilinear
        has_other = has_exact and self.actor_gradient != "exact"
        return has_other and interval > 0 and num_updates % interval == 0

    def probe(
        self,
        actor: FactoredActor,
        critic: FactoredCritic,
        obs: Obs,
        mask: Tensor | None,
        temperature: float | Tensor,
    ) -> dict[str, Tensor]:
        """Return cosine and variance of this gradient against the exact one, by logged name.

        On the actor's weights, from `PROBE_DRAWS` draws of the gradient: the mean of their cosines,
        and the mean squared distance from their mean, unbiased, in units of the squared norm of the
        exact gradient. A dropout of the critic rests meanwhile.

        Args:
            actor: of observations and mask.
            critic: of observations and one-hots.
            obs: `[B, *O]`, of which the first `PROBE_BATCH_SIZE` count.
            mask: `[B, K, N]` or None.
            temperature: of the estimator.
        """
        obs = tree_map(lambda part: part[:PROBE_BATCH_SIZE], obs)
        policy = actor(obs, None if mask is None else mask[:PROBE_BATCH_SIZE])
        parameters = [p for p in actor.parameters() if p.requires_grad]

        def gradient(kind: str) -> Tensor:
            value = self.value(policy, critic, obs, temperature, kind).mean()
            parts = torch.autograd.grad(
                value, parameters, retain_graph=True, materialize_grads=True
            )
            return torch.cat([part.flatten() for part in parts])

        was_training = critic.training
        critic.set_training_mode(False)
        exact = gradient("exact")
        draws = torch.stack([gradient(self.actor_gradient) for _ in range(PROBE_DRAWS)])
        critic.set_training_mode(was_training)
        return {
            "estimator/cosine": cosine_similarity(draws, exact, dim=-1).mean(),
            # Where there is nothing to climb both are zero, and so is the ratio.
            "estimator/variance": draws.var(0).sum() / exact.square().sum().clamp_min(1e-30),
        }

    def policy_action(self, policy: FactoredCategorical, critic: FactoredCritic) -> Tensor:
        """Return `[B, K, N]` actions at which the critic tells the value of the policy.

        A sample; or its probabilities, since a multilinear critic, being linear in each factor,
        gives the exact expectation at once.
        """
        if critic.network.is_multilinear:
            return policy.probs
        return self.layout.index_to_one_hot(policy.sample())

    def max_entropy(self, mask: Tensor | None) -> Tensor:
        """Return the entropy in nats that each factor can have, `[K]`, or `[B, K]` under a mask."""
        return self._max_entropy if mask is None else mask.sum(-1).log()

    def allowed_share(self, mask: Tensor | None) -> Tensor:
        """Return the part of the space's maximum entropy that is left under a mask, `[B]` or 1."""
        return _share(self.max_entropy(mask).sum(-1), self._max_entropy.sum(-1))

    def entropy_metrics(self, entropy: Tensor, mask: Tensor | None) -> dict[str, Tensor]:
        """Return what is logged of entropies `[B, K]`: fractions of what the mask allows."""
        most = self.max_entropy(mask).expand_as(entropy).mean(0)
        entropy = entropy.mean(0)
        return {
            "estimator/entropy": _share(entropy.sum(), most.sum()),
            "estimator/entropy_per_factor": _share(entropy, most),
        }


def _share(part: Tensor, whole: Tensor) -> Tensor:
    """Return part / whole; 0 where there is nothing to have a share of."""
    return torch.where(whole > 0, part / whole, 0.0)
