"""Settings of `GumbelSAC` and its networks."""

from collections.abc import Iterator
from typing import Annotated, Literal

from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt

from rl_gumbel.config.pathwise import Coefficient, PathwisePolicySettings, PathwiseSettings
from rl_gumbel.config.schema import Fraction, Ignored, Scheduled, TrainConfig


class SACSettings(PathwiseSettings):
    """Keyword arguments of `GumbelSAC`."""

    learning_rate: Scheduled = 5e-4
    """Learning rate of all networks, a number or {schedule, start, end}."""
    buffer_size: PositiveInt = 100_000
    """Transitions kept for replay."""
    learning_starts: NonNegativeInt = 1000
    """Random steps before the first update."""
    batch_size: PositiveInt = 256
    """Transitions per update."""
    tau: Annotated[float, Field(gt=0, le=1)] = 0.01
    """Rate at which the target critics follow."""
    gamma: Fraction = 0.99
    """Discount factor."""
    train_freq: PositiveInt = 1
    """Steps of every environment between updates."""
    gradient_steps: Annotated[int, Field(ge=-1)] = 1
    """Updates each time; -1 is as many as transitions were collected."""
    reset_interval: NonNegativeInt = 0
    """Updates between two restarts of networks and optimisers; 0 is never."""
    aggregation: Annotated[str, Field(pattern=r"^(min|mean|subset_[1-9]\d*)$")] = "min"
    """Critics' value in targets: min, mean, or subset_M, the minimum of M drawn at each update."""
    soft_target: bool = True
    """Whether the critics learn the value of entropy to come too, as SAC's do."""
    priority_exponent: Fraction = 0.0
    """Power of the TD error in a transition's chance to be replayed; 0 is uniform."""
    importance_exponent: Fraction = 0.4
    """Correction for that at the start of training, from where it rises to 1."""
    ent_coef: Coefficient = "auto_0.02"
    """Entropy coefficient: a number, auto (learned), or auto_X (learned, starting at X)."""
    target_entropy_fraction: Annotated[float, Field(gt=0, lt=1)] = 0.5
    """The same as a fraction of the maximum entropy."""
    target_update_interval: PositiveInt = 1
    """Updates between two steps of the target critics."""
    max_grad_norm: PositiveFloat | None = None
    """Gradient clipping by norm; null is none."""
    compile: bool = False
    """Compile updates, and steps of torch environments, with torch.compile."""
    overlap: bool = False
    """Update while environments in processes of their own take the next steps."""
    n_steps: PositiveInt = 1
    """Steps of reward summed in a critic target."""
    stats_window_size: PositiveInt = 100
    """Episodes in the average of rollout/ep_rew_mean."""


class SACPolicySettings(PathwisePolicySettings):
    """Keyword arguments of its policy."""

    n_critics: PositiveInt = 2
    """Critics of the ensemble."""


class SACConfig(TrainConfig):
    """A run of `GumbelSAC`."""

    algo: Literal["sac"] = "sac"
    """Algorithm."""
    algorithm: SACSettings = SACSettings()
    """Settings of the algorithm."""
    policy_kwargs: SACPolicySettings = SACPolicySettings()
    """Settings of its networks."""

    def ignored(self) -> Iterator[Ignored]:
        """Yield each setting without effect."""
        yield from self.algorithm.ignored_settings()
        yield from self.policy_kwargs.ignored_settings()
        if self.algorithm.ent_coef == 0:
            yield Ignored("algorithm.soft_target", "algorithm.ent_coef", "ent_coef is 0")
        if self.algorithm.priority_exponent == 0:
            name, reason = "algorithm.importance_exponent", "uniform replay needs no correction"
            yield Ignored(name, "algorithm.priority_exponent", reason)
