"""The estimator of a policy, as plain values that SB3 saves and rebuilds."""

from dataclasses import dataclass

import torch

from rl_gumbel.distributions import FactoredCategorical
from rl_gumbel.estimators import ESTIMATORS
from rl_gumbel.types import Sample


@dataclass
class Estimation:
    """How a policy draws one-hots that carry a gradient; its fields are constructor arguments.

    `temperature` may be set at any time, for example by a callback that anneals it.

    Raises:
        ValueError: for an unknown estimator, a temperature or an option out of range.
        TypeError: for an option that the estimator does not have.
    """

    estimator: str = "straight_through_gumbel"
    """A name in `ESTIMATORS`."""
    temperature: float | None = None
    """Of the gradient; None is the estimator's default."""
    estimator_kwargs: dict[str, float] | None = None
    """Options of the estimator, e.g. `{"num_samples": 10}` of `gumbel_rao`."""

    def __post_init__(self) -> None:
        if self.estimator not in ESTIMATORS:
            known = ", ".join(ESTIMATORS)
            raise ValueError(f"unknown estimator {self.estimator!r}; known: {known}")
        estimator = ESTIMATORS[self.estimator]
        if self.temperature is None:
            self.temperature = estimator.default_temperature
        estimator.check(self.temperature, self.estimator_kwargs)

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
