"""Settings that algorithms share whose policy gradient passes through the action."""

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
    model_validator,
)

from rl_gumbel.config.estimator import EstimatorSettings
from rl_gumbel.config.schema import Activation, Ignored, Section, refuse, tag

Coefficient = Annotated[
    Annotated[NonNegativeFloat, Tag("a number")]
    | Annotated[str, Field(pattern=r"^auto(_\d*\.?\d+(e-?\d+)?)?$"), Tag("text")],
    Discriminator(tag),
]
TargetEntropy = Annotated[
    Annotated[NonNegativeFloat, Tag("a number")] | Annotated[Literal["auto"], Tag("text")],
    Discriminator(tag),
]

ValueRange = Annotated[list[float], Field(min_length=2, max_length=2)]


class SoftSettings(EstimatorSettings):
    """How much entropy the actor keeps beside the rewards."""

    ent_coef: Coefficient
    """Entropy coefficient: a number, auto (learned), or auto_X (learned, starting at X)."""
    target_entropy: TargetEntropy = "auto"
    """Entropy in nats that a learned coefficient aims at; auto uses target_entropy_fraction."""
    target_entropy_fraction: Annotated[float, Field(gt=0, lt=1)]
    """The same as a fraction of the maximum entropy."""
    reward_scale: PositiveFloat = 1.0
    """Factor on the rewards that the critics see; logs stay raw."""

    def ignored_targets(self) -> Iterator[Ignored]:
        """Yield each entropy target without effect."""
        if not isinstance(self.ent_coef, str):
            reason = "a fixed ent_coef has no target"
            for name in ("target_entropy", "target_entropy_fraction"):
                yield Ignored(f"algorithm.{name}", "algorithm.ent_coef", reason)
        elif self.target_entropy != "auto":
            field = "algorithm.target_entropy_fraction"
            yield Ignored(field, "algorithm.target_entropy", "target_entropy is given")


class PathwiseSettings(SoftSettings):
    """How the actor climbs a learned critic of actions."""

    actor_gradient: Literal["estimator", "exact", "local_expectation"] = "estimator"
    """Actor objective: the estimator, or a baseline that sums over actions instead."""
    critic: Literal["concat", "multilinear"] = "concat"
    """MLP on [obs, one_hot], or linear in each factor's one-hot."""
    num_bins: Annotated[int, Field(ge=2)] | None = None
    """Bins of the critic's distribution over returns (HL-Gauss); null is one number, no bins."""
    value_range: ValueRange | None = None
    """Scaled returns that the first and the last bin stand for; null is [-10, 10]."""
    cosine_interval: NonNegativeInt = 1000
    """Updates between measurements of estimator/cosine and estimator/variance; 0 is never."""

    @model_validator(mode="after")
    def _check_value_range(self) -> "PathwiseSettings":
        if self.value_range is not None and not self.value_range[0] < self.value_range[1]:
            raise refuse("value_range", f"must increase, got {self.value_range}")
        return self

    def ignored_settings(self) -> Iterator[Ignored]:
        """Yield each of these settings without effect."""
        if self.actor_gradient != "estimator":
            reason = f"actor_gradient {self.actor_gradient} uses no estimator"
            for name in ("estimator", "temperature", "estimator_kwargs"):
                yield Ignored(f"algorithm.{name}", "algorithm.actor_gradient", reason)
        if self.actor_gradient == "exact":
            reason = "the exact gradient has cosine 1 with itself"
            yield Ignored("algorithm.cosine_interval", "algorithm.actor_gradient", reason)
        yield from self.ignored_options()
        yield from self.ignored_targets()
        if self.num_bins is None:
            reason = "without bins there is no range"
            yield Ignored("algorithm.value_range", "algorithm.num_bins", reason)
        if self.critic != "multilinear":
            reason = f"critic {self.critic} has no rank"
            yield Ignored("policy_kwargs.rank", "algorithm.critic", reason)
        if self.critic != "concat":
            reason = f"critic {self.critic} has no action_layer"
            yield Ignored("policy_kwargs.action_layer", "algorithm.critic", reason)


class ActorCriticLayers(Section):
    """Hidden layers of actor and critic, where they differ."""

    pi: list[PositiveInt]
    """Hidden layers of the actor."""
    qf: list[PositiveInt]
    """Hidden layers of each critic."""


Layers = Annotated[
    Annotated[list[PositiveInt], Tag("a list")] | Annotated[ActorCriticLayers, Tag("a mapping")],
    Discriminator(tag),
]


class PathwisePolicySettings(Section):
    """Networks of actor and critic."""

    net_arch: Layers = [256, 256]  # noqa: RUF012 (pydantic copies it)
    """Hidden layers of actor and critics, or {pi: [...], qf: [...]}."""
    activation_fn: Activation = "silu"
    """Activation between the layers."""
    n_critics: PositiveInt
    """Critics of the ensemble."""
    layer_norm: bool = True
    """Normalise the hidden layers of the critics."""
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Probability of a hidden unit of the critics to be dropped."""
    rank: PositiveInt | None = None
    """Rank of the multilinear critic's interaction; null is its default."""
    action_layer: Literal["last", "first"] | None = None
    """Hidden layer of the concat critic at which the action enters; null is the last."""
    shared_factors: bool = False
    """The same weights for each of K equal parts of the observation, one for each action factor."""
    share_features_extractor: bool = False
    """One features extractor for actor and critics."""
    normalize_images: bool = True
    """Divide image observations by 255."""

    def ignored_settings(self) -> Iterator[Ignored]:
        """Yield each of these settings that shared factors leave without effect."""
        if self.shared_factors:
            reason = "shared_factors has a critic of its own"
            for name in ("algorithm.critic", "policy_kwargs.rank", "policy_kwargs.action_layer"):
                yield Ignored(name, "policy_kwargs.shared_factors", reason)
