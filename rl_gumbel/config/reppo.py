"""Settings of `GumbelREPPO` and its networks."""

from collections.abc import Iterator
from typing import Annotated, Literal

from pydantic import Field, PositiveFloat, PositiveInt

from rl_gumbel.config.pathwise import Coefficient, PathwisePolicySettings, PathwiseSettings
from rl_gumbel.config.schema import Fraction, Ignored, Scheduled, TrainConfig


class REPPOSettings(PathwiseSettings):
    """Keyword arguments of `GumbelREPPO`."""

    learning_rate: Scheduled = 1e-3
    """Learning rate of networks and multipliers, a number or {schedule, start, end}."""
    n_steps: PositiveInt = 32
    """Steps of every environment in an iteration."""
    n_epochs: PositiveInt = 4
    """Passes over each rollout."""
    num_minibatches: PositiveInt = 8
    """Updates of an epoch."""
    gamma: Fraction = 0.99
    """Discount factor."""
    gae_lambda: Fraction = 0.95
    """Weight of longer returns in the critic's targets: 0 is one step, 1 the whole episode."""
    ent_coef: Coefficient = "auto_0.01"
    """Entropy coefficient: a number, auto (learned), or auto_X (learned, starting at X)."""
    target_entropy_fraction: Annotated[float, Field(gt=0, lt=1)] = 0.3
    """The same as a fraction of the maximum entropy."""
    kl_coef: Coefficient = "auto_0.01"
    """Weight of the divergence beyond its bound: a number, auto or auto_X, as ent_coef."""
    kl_bound: PositiveFloat = 0.1
    """Divergence of a state's policy from the rollout's, in nats, beyond which it goes back."""
    max_grad_norm: PositiveFloat | None = 0.5
    """Gradient clipping by norm; null is none."""
    normalize_observations: bool = False
    """Standardise observations by their running mean and deviation."""
    compile: bool = False
    """Compile the losses with torch.compile."""
    stats_window_size: PositiveInt = 100
    """Episodes in the average of rollout/ep_rew_mean."""


class REPPOPolicySettings(PathwisePolicySettings):
    """Keyword arguments of its policy."""

    n_critics: PositiveInt = 1
    """Critics whose minimum is the value."""


class REPPOConfig(TrainConfig):
    """A run of `GumbelREPPO`."""

    algo: Literal["reppo"] = "reppo"
    """Algorithm."""
    algorithm: REPPOSettings = REPPOSettings()
    """Settings of the algorithm."""
    policy_kwargs: REPPOPolicySettings = REPPOPolicySettings()
    """Settings of its networks."""

    def ignored(self) -> Iterator[Ignored]:
        """Yield each setting without effect."""
        yield from self.algorithm.ignored_settings()
        yield from self.policy_kwargs.ignored_settings()
