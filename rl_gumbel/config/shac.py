"""Settings of `GumbelSHAC` and its networks."""

from collections.abc import Iterator
from typing import Annotated, Literal

from pydantic import Field, PositiveFloat, PositiveInt, model_validator

from rl_gumbel.config.pathwise import Coefficient, SoftSettings
from rl_gumbel.config.ppo import Layers
from rl_gumbel.config.schema import (
    Activation,
    Fraction,
    Ignored,
    Scheduled,
    Section,
    TrainConfig,
    refuse,
)

RELAXED = ("gumbel_softmax", "probabilities")
"""Estimators whose action is not one-hot."""
PositiveFraction = Annotated[float, Field(gt=0, le=1)]


class SHACSettings(SoftSettings):
    """Keyword arguments of `GumbelSHAC`."""

    score_function_weight: Fraction = 0.0
    """0: gradient through the simulator; 1: score function, for any environment; or a mixture."""
    learning_rate: Scheduled = 2e-3
    """Learning rate of all optimisers, a number or {schedule, start, end}."""
    n_steps: PositiveInt = 16
    """Steps of every environment in a window, which the gradient passes through."""
    n_epochs: PositiveInt = 2
    """Passes of the critic over each window; the actor takes one step."""
    num_minibatches: PositiveInt = 4
    """Updates of the critic in a pass."""
    gamma: Fraction = 0.99
    """Discount factor."""
    gae_lambda: Fraction = 0.95
    """Weight of longer returns in the critic's targets: 0 is one step, 1 the whole window."""
    tau: PositiveFraction = 0.5
    """Weight of the critic in the target critic's average, after each window."""
    ent_coef: Coefficient = "auto_0.01"
    """Entropy coefficient: a number, auto (learned), or auto_X (learned, starting at X)."""
    target_entropy_fraction: Annotated[float, Field(gt=0, lt=1)] = 0.3
    """The same as a fraction of the maximum entropy."""
    average_reward_rate: PositiveFraction | None = None
    """For a task without end: subtract the mean reward, which moves by this share in a window."""
    max_grad_norm: PositiveFloat | None = 1.0
    """Gradient clipping by norm; null is none."""
    normalize_observations: bool = False
    """Standardise observations by their running mean and deviation."""
    normalize_rewards: bool = False
    """Divide rewards by the running deviation of the discounted return; logs stay raw."""
    stats_window_size: PositiveInt = 100
    """Episodes in the average of rollout/ep_rew_mean."""

    @model_validator(mode="after")
    def _check_weight(self) -> "SHACSettings":
        if self.estimator in RELAXED and 0 < self.score_function_weight < 1:
            raise refuse("score_function_weight", f"must be 0 or 1 for {self.estimator}")
        return self


class SHACPolicySettings(Section):
    """Keyword arguments of its policy."""

    net_arch: Layers = [256, 256]  # noqa: RUF012 (pydantic copies it)
    """Hidden layers of actor and critic, or {pi: [...], vf: [...]}."""
    activation_fn: Activation = "silu"
    """Activation between the layers."""
    layer_norm: bool = True
    """Normalise the hidden layers of the critic."""
    shared_factors: bool = False
    """The same weights for each of K equal parts of the observation, one for each action factor."""
    normalize_images: bool = True
    """Divide image observations by 255."""


class SHACConfig(TrainConfig):
    """A run of `GumbelSHAC`."""

    algo: Literal["shac"] = "shac"
    """Algorithm."""
    algorithm: SHACSettings = SHACSettings()
    """Settings of the algorithm."""
    policy_kwargs: SHACPolicySettings = SHACPolicySettings()
    """Settings of its networks."""

    def ignored(self) -> Iterator[Ignored]:
        """Yield each setting without effect."""
        if self.algorithm.score_function_weight == 1:
            reason = "the score function alone uses no estimator"
            for name in ("estimator", "temperature", "estimator_kwargs"):
                yield Ignored(f"algorithm.{name}", "algorithm.score_function_weight", reason)
        yield from self.algorithm.ignored_options()
        yield from self.algorithm.ignored_targets()
