"""Settings of `GumbelSAC` and its networks."""

from collections.abc import Iterator
from typing import Annotated, Literal

from pydantic import (
    Discriminator,
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    Tag,
)

from rl_gumbel.config.estimator import EstimatorSettings
from rl_gumbel.config.schema import (
    Activation,
    Fraction,
    Ignored,
    Scheduled,
    Section,
    TrainConfig,
    tag,
)

EntropyCoefficient = Annotated[
    Annotated[NonNegativeFloat, Tag("a number")]
    | Annotated[str, Field(pattern=r"^auto(_\d*\.?\d+(e-?\d+)?)?$"), Tag("text")],
    Discriminator(tag),
]
TargetEntropy = Annotated[
    Annotated[NonNegativeFloat, Tag("a number")] | Annotated[Literal["auto"], Tag("text")],
    Discriminator(tag),
]


class SACLayers(Section):
    """Hidden layers of actor and critic, where they differ."""

    pi: list[PositiveInt]
    """Hidden layers of the actor."""
    qf: list[PositiveInt]
    """Hidden layers of each critic."""


Layers = Annotated[
    Annotated[list[PositiveInt], Tag("a list")] | Annotated[SACLayers, Tag("a mapping")],
    Discriminator(tag),
]


class SACSettings(EstimatorSettings):
    """Keyword arguments of `GumbelSAC`."""

    actor_gradient: Literal["estimator", "exact", "local_expectation"] = "estimator"
    """Actor objective: the estimator, or a baseline that sums over actions instead."""
    critic: Literal["concat", "multilinear"] = "concat"
    """MLP on [obs, one_hot], or linear in each factor's one-hot."""
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
    ent_coef: EntropyCoefficient = "auto_0.02"
    """Entropy coefficient: a number, auto (learned), or auto_X (learned, starting at X)."""
    target_entropy: TargetEntropy = "auto"
    """Entropy in nats that a learned coefficient aims at; auto uses target_entropy_fraction."""
    target_entropy_fraction: Annotated[float, Field(gt=0, lt=1)] = 0.5
    """The same as a fraction of the maximum entropy."""
    reward_scale: PositiveFloat = 1.0
    """Factor on the rewards that the critics see; logs stay raw."""
    target_update_interval: PositiveInt = 1
    """Updates between two steps of the target critics."""
    max_grad_norm: PositiveFloat | None = None
    """Gradient clipping by norm; null is none."""
    cosine_interval: NonNegativeInt = 1000
    """Updates between measurements of estimator/cosine; 0 is never."""
    n_steps: PositiveInt = 1
    """Steps of reward summed in a critic target."""
    stats_window_size: PositiveInt = 100
    """Episodes in the average of rollout/ep_rew_mean."""


class SACPolicySettings(Section):
    """Keyword arguments of its policy."""

    net_arch: Layers = [256, 256]  # noqa: RUF012 (pydantic copies it)
    """Hidden layers of actor and critics, or {pi: [...], qf: [...]}."""
    activation_fn: Activation = "silu"
    """Activation between the layers."""
    n_critics: PositiveInt = 2
    """Critics whose minimum is the target."""
    layer_norm: bool = True
    """Normalise the hidden layers of the critics."""
    rank: PositiveInt | None = None
    """Rank of the multilinear critic's interaction; null is its default."""
    share_features_extractor: bool = False
    """One features extractor for actor and critics."""
    normalize_images: bool = True
    """Divide image observations by 255."""


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
        algorithm = self.algorithm
        if algorithm.actor_gradient != "estimator":
            reason = f"actor_gradient {algorithm.actor_gradient} uses no estimator"
            for name in ("estimator", "temperature", "estimator_kwargs"):
                yield Ignored(f"algorithm.{name}", "algorithm.actor_gradient", reason)
        if algorithm.actor_gradient == "exact":
            reason = "the exact gradient has cosine 1 with itself"
            yield Ignored("algorithm.cosine_interval", "algorithm.actor_gradient", reason)
        yield from algorithm.ignored_options()
        if not isinstance(algorithm.ent_coef, str):
            reason = "a fixed ent_coef has no target"
            for name in ("target_entropy", "target_entropy_fraction"):
                yield Ignored(f"algorithm.{name}", "algorithm.ent_coef", reason)
        elif algorithm.target_entropy != "auto":
            field = "algorithm.target_entropy_fraction"
            yield Ignored(field, "algorithm.target_entropy", "target_entropy is given")
        if algorithm.critic != "multilinear":
            reason = f"critic {algorithm.critic} has no rank"
            yield Ignored("policy_kwargs.rank", "algorithm.critic", reason)
