"""The estimator of a policy, as plain values that SB3 saves and rebuilds."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from rl_gumbel.distributions import FactoredCategorical
from rl_gumbel.estimators import ESTIMATORS
from rl_gumbel.types import Sample


def check_estimator(
    name: str, temperature: float | None = None, options: Mapping[str, float] | None = None
) -> None:
    """Raise for an estimator that cannot train a policy which acts by softmax(logits).

    Raises:
        ValueError: for an unknown estimator, a temperature or an option out of range, and for a
            `forward_temperature`, which would draw from another distribution than the policy.
        TypeError: for an option that the estimator does not have.
    """
    if name not in ESTIMATORS:
        raise ValueError(f"unknown estimator {name!r}; known: {', '.join(ESTIMATORS)}")
    estimator = ESTIMATORS[name]
    estimator.check(estimator.default_temperature if temperature is None else temperature, options)
    forward = (options or {}).get("forward_temperature", 1.0)
    if forward != 1:
        raise ValueError(
            f"forward_temperature {forward!r} of '{name}' must be 1 here: the policy acts by "
            f"softmax(logits), and its logits absorb the factor; for the same ratio of backward to "
            f"forward temperature pass temperature / forward_temperature as temperature"
        )


@dataclass
class Estimation:
    """How a policy draws one-hots that carry a gradient; its fields are constructor arguments.

    `temperature` may be set at any time, for example by a callback that anneals it.

    Raises:
        ValueError: as `check_estimator` does.
        TypeError: likewise.
    """

    estimator: str = "straight_through_gumbel"
    """A name in `ESTIMATORS`."""
    temperature: float | None = None
    """Of the gradient; None is the estimator's default."""
    estimator_kwargs: dict[str, float] | None = None
    """Options of the estimator, e.g. `{"num_samples": 10}` of `gumbel_rao`."""

    def __post_init__(self) -> None:
        check_estimator(self.estimator, self.temperature, self.estimator_kwargs)
        if self.temperature is None:
            self.temperature = ESTIMATORS[self.estimator].default_temperature

    def rsample(
        self, distribution: FactoredCategorical, generator: torch.Generator | None = None
    ) -> Sample:
        """Return a sample of the distribution whose one-hot carries the estimator's gradient."""
        return distribution.rsample(
            self.estimator,
            temperature=self.temperature,
            generator=generator,
            **(self.estimator_kwargs or {}),
        )
