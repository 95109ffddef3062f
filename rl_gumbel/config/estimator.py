"""Settings of the estimator, which every algorithm with a gradient through the action shares."""

from collections.abc import Iterator, Mapping
from typing import Literal

from pydantic import PositiveFloat, PositiveInt, model_validator

from rl_gumbel.config.schema import Ignored, Scheduled, ScheduleSettings, Section, refuse

Estimator = Literal[
    "gumbel_softmax",
    "probabilities",
    "straight_through",
    "straight_through_gumbel",
    "reinmax",
    "gumbel_rao",
    "gapped_straight_through",
    "decoupled_straight_through",
]
ESTIMATOR_OPTIONS: Mapping[str, tuple[str, ...]] = {
    "gumbel_rao": ("num_samples",),
    "gapped_straight_through": ("gap",),
    "decoupled_straight_through": ("forward_temperature",),
}
MIN_TEMPERATURE: Mapping[str, float] = {"reinmax": 1.0}


class EstimatorOptions(Section):
    """Options that belong to one estimator each."""

    num_samples: PositiveInt | None = None
    """Draws that gumbel_rao averages over (its default 10)."""
    gap: PositiveFloat | None = None
    """Lead of the sampled logit in gapped_straight_through (its default 1)."""
    forward_temperature: PositiveFloat | None = None
    """Sampling temperature of decoupled_straight_through (its default 1)."""


class EstimatorSettings(Section):
    """An estimator with its temperature and options."""

    estimator: Estimator = "straight_through_gumbel"
    """How the gradient passes through the sampled action."""
    temperature: Scheduled | None = None
    """The estimator's temperature, a number or {schedule, start, end}; null is its default."""
    estimator_kwargs: EstimatorOptions = EstimatorOptions()
    """Options of the estimator."""

    @model_validator(mode="after")
    def _check_temperature(self) -> "EstimatorSettings":
        low = MIN_TEMPERATURE.get(self.estimator, 0.0)
        ends = (
            {"temperature.start": self.temperature.start, "temperature.end": self.temperature.end}
            if isinstance(self.temperature, ScheduleSettings)
            else {"temperature": self.temperature}
        )
        for field, value in ends.items():
            if value is not None and (value < low or value == 0):
                bound = f"at least {low:g}" if low else "greater than 0"
                raise refuse(field, f"must be {bound} for {self.estimator}, got {value:g}")
        return self

    def ignored_options(self) -> Iterator[Ignored]:
        """Yield the options of other estimators."""
        allowed = ESTIMATOR_OPTIONS.get(self.estimator, ())
        for name in EstimatorOptions.model_fields.keys() - allowed:
            reason = f"estimator {self.estimator} has no such option"
            yield Ignored(f"algorithm.estimator_kwargs.{name}", "algorithm.estimator", reason)
