"""What an actor climbs: a critic's value of its actions, with a gradient of one of three kinds."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from rl_gumbel.actions import ActionLayout
from rl_gumbel.distributions import FactoredCategorical
from rl_gumbel.estimators import ESTIMATORS
from rl_gumbel.losses import (
    MAX_JOINT_ACTIONS,
    cosine,
    exact_value,
    joint_one_hots,
    local_expectation_value,
)
from rl_gumbel.networks import ConcatCritic, MultilinearCritic
from rl_gumbel.policies.estimation import check_estimator
from rl_gumbel.schedules import Schedule, make_schedule

ACTOR_GRADIENTS = ("estimator", "exact", "local_expectation")


class ActorObjective:
    """Policy and critic to a value whose gradient trains the actor.

    Args:
        layout: of the action space.
        device: of the policies.
        actor_gradient: a name in `ACTOR_GRADIENTS`.
        estimator: a name in `ESTIMATORS`.
        temperature: of the estimator: a number, a schedule or its mapping; None is its default.
        estimator_kwargs: options of the estimator.

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
        self.actor_gradient = actor_gradient
        self.estimator = estimator
        self.estimator_kwargs = estimator_kwargs
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
        critic: ConcatCritic | MultilinearCritic,
        features: Tensor,
        temperature: float | Tensor,
        actor_gradient: str | None = None,
    ) -> Tensor:
        """Return the `[B]` value of the policy's actions, with a gradient to its logits.

        Args:
            policy: distribution of `[B, K]` actions.
            critic: of features and one-hots.
            features: `[B, F]`, constants.
            temperature: of the estimator.
            actor_gradient: another kind than the objective's own.
        """

        def values(one_hot: Tensor) -> Tensor:
            rows = features.expand(one_hot.shape[0], -1, -1).flatten(0, 1)
            return critic.actor_value(rows, one_hot.flatten(0, 1)).unflatten(0, one_hot.shape[:2])

        kind = actor_gradient or self.actor_gradient
        if kind == "exact":
            assert self.joint is not None
            return exact_value(policy, self.joint, values)
        if kind == "local_expectation":
            return local_expectation_value(policy, policy.sample(), self.layout, values)
        sample = policy.rsample(self.estimator, temperature=temperature, **self.estimator_kwargs)
        return critic.actor_value(features, sample.one_hot)

    @property
    def has_cosine(self) -> bool:
        """Whether there is an enumerated gradient to compare this one with."""
        return self.joint is not None and self.actor_gradient != "exact"

    def cosine(
        self,
        policy: FactoredCategorical,
        critic: ConcatCritic | MultilinearCritic,
        features: Tensor,
        temperature: float | Tensor,
        parameters: list[Tensor],
    ) -> Tensor:
        """Return the scalar cosine of this gradient, on `parameters`, and the enumerated one."""
        gradients = []
        for kind in (self.actor_gradient, "exact"):
            value = self.value(policy, critic, features, temperature, kind).mean()
            gradients.append(
                torch.autograd.grad(value, parameters, retain_graph=True, materialize_grads=True)
            )
        return cosine(*gradients)
