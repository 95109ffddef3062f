"""Which settings a training run has: names, types, ranges, defaults and one sentence each.

The sentence below a field is its help on the command line. This package imports nothing heavy, so
names of estimators and their ranges stand here as literals; a test ties them to the registries.
"""

from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Discriminator,
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    Tag,
    model_validator,
)
from pydantic_core import PydanticCustomError

Algorithm = Literal["sac"]
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

TAGS = ("a number", "text", "a mapping", "a list")
"""The members of the unions below, as error messages name them."""


def _tag(value: Any) -> str:
    """Return which member of a union is meant, so that only its errors are reported."""
    if isinstance(value, str):
        return "text"
    if isinstance(value, Mapping | BaseModel):
        return "a mapping"
    return "a list" if isinstance(value, list) else "a number"


def refuse(field: str, message: str) -> PydanticCustomError:
    """Return the error of a check across fields that blames `field`, a dotted path."""
    return PydanticCustomError("refused", "{reason}", {"field": field, "reason": message})


class Section(BaseModel):
    """A group of settings: immutable, no unknown names, `true` is not 1, no infinities."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        strict=True,
        allow_inf_nan=False,
        use_attribute_docstrings=True,
        validate_default=True,
    )


class ScheduleSettings(Section):
    """A value that moves from `start` to `end` over training."""

    schedule: Literal["constant", "linear", "exponential", "cosine"]
    """Shape of the way."""
    start: NonNegativeFloat
    """Value at the first step."""
    end: NonNegativeFloat
    """Value at the last step."""

    @model_validator(mode="after")
    def _check(self) -> "ScheduleSettings":
        if self.schedule == "constant" and self.start != self.end:
            raise refuse("end", f"must equal start ({self.start:g}) of a constant schedule")
        if self.schedule == "exponential" and not (self.start > 0 and self.end > 0):
            field = "start" if self.start <= 0 else "end"
            raise refuse(field, "must be greater than 0 in an exponential schedule")
        return self


class LayersByNetwork(Section):
    """Hidden layers of actor and critic, where they differ."""

    pi: list[PositiveInt]
    """Hidden layers of the actor."""
    qf: list[PositiveInt]
    """Hidden layers of each critic."""


class EstimatorOptions(Section):
    """Options that belong to one estimator each."""

    num_samples: PositiveInt | None = None
    """Draws that gumbel_rao averages over (its default 10)."""
    gap: PositiveFloat | None = None
    """Lead of the sampled logit in gapped_straight_through (its default 1)."""
    forward_temperature: PositiveFloat | None = None
    """Sampling temperature of decoupled_straight_through (its default 1)."""


Scheduled = Annotated[
    Annotated[PositiveFloat, Tag("a number")] | Annotated[ScheduleSettings, Tag("a mapping")],
    Discriminator(_tag),
]
EntropyCoefficient = Annotated[
    Annotated[NonNegativeFloat, Tag("a number")]
    | Annotated[str, Field(pattern=r"^auto(_\d*\.?\d+(e-?\d+)?)?$"), Tag("text")],
    Discriminator(_tag),
]
TargetEntropy = Annotated[
    Annotated[NonNegativeFloat, Tag("a number")] | Annotated[Literal["auto"], Tag("text")],
    Discriminator(_tag),
]
Layers = Annotated[
    Annotated[list[PositiveInt], Tag("a list")] | Annotated[LayersByNetwork, Tag("a mapping")],
    Discriminator(_tag),
]


class SACSettings(Section):
    """Keyword arguments of `GumbelSAC`."""

    estimator: Estimator = "straight_through_gumbel"
    """How the gradient passes through the sampled action."""
    temperature: Scheduled | None = None
    """The estimator's temperature, a number or {schedule, start, end}; null is its default."""
    estimator_kwargs: EstimatorOptions = EstimatorOptions()
    """Options of the estimator."""
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
    gamma: Annotated[float, Field(ge=0, le=1)] = 0.99
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

    @model_validator(mode="after")
    def _check_estimator(self) -> "SACSettings":
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


class PolicySettings(Section):
    """Keyword arguments of the policy."""

    net_arch: Layers = [256, 256]
    """Hidden layers of actor and critics, or {pi: [...], qf: [...]}."""
    activation_fn: Literal["relu", "tanh", "elu", "gelu", "silu"] = "silu"
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


class TrainConfig(Section):
    """Everything that `rl-gumbel train` needs to repeat a run."""

    env: Annotated[str, Field(min_length=1)] = "CartPole-v1"
    """Gymnasium id; package:Env-v0 imports the package first."""
    algo: Algorithm = "sac"
    """Algorithm."""
    total_timesteps: PositiveInt = 100_000
    """Length of training in environment steps."""
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0
    """Seed of networks, noise and environments."""
    num_envs: PositiveInt = 1
    """Environments stepped together."""
    device: Annotated[str, Field(pattern=r"^(auto|cpu|cuda|cuda:\d+)$")] = "auto"
    """auto (CUDA where there is one), cpu, cuda or cuda:i."""
    threads: PositiveInt = 1
    """CPU threads of torch; small networks are fastest on one."""
    eval_freq: NonNegativeInt = 5000
    """Steps between evaluations; 0 leaves only the one at the end."""
    eval_episodes: PositiveInt = 10
    """Episodes of each evaluation."""
    env_wrappers: list[str] = []
    """Wrappers around the environment, innermost first, e.g. [minigrid.wrappers.FlatObsWrapper]."""
    env_kwargs: dict[str, Any] = {}
    """Keyword arguments of gymnasium.make."""
    algorithm: SACSettings = SACSettings()
    """Settings of the algorithm."""
    policy_kwargs: PolicySettings = PolicySettings()
    """Settings of the networks."""


def ignored_settings(config: TrainConfig) -> Iterator[tuple[str, str, str]]:
    """Yield `(field, cause, reason)` for each setting without effect because of another one."""
    algorithm = config.algorithm
    if algorithm.actor_gradient != "estimator":
        reason = f"actor_gradient {algorithm.actor_gradient} uses no estimator"
        for name in ("estimator", "temperature", "estimator_kwargs"):
            yield f"algorithm.{name}", "algorithm.actor_gradient", reason
    if algorithm.actor_gradient == "exact":
        reason = "the exact gradient has cosine 1 with itself"
        yield "algorithm.cosine_interval", "algorithm.actor_gradient", reason
    allowed = ESTIMATOR_OPTIONS.get(algorithm.estimator, ())
    for name in EstimatorOptions.model_fields.keys() - allowed:
        field = f"algorithm.estimator_kwargs.{name}"
        yield field, "algorithm.estimator", f"estimator {algorithm.estimator} has no such option"
    if not isinstance(algorithm.ent_coef, str):
        reason = "a fixed ent_coef has no target"
        for name in ("target_entropy", "target_entropy_fraction"):
            yield f"algorithm.{name}", "algorithm.ent_coef", reason
    elif algorithm.target_entropy != "auto":
        field = "algorithm.target_entropy_fraction"
        yield field, "algorithm.target_entropy", "target_entropy is given"
    if algorithm.critic != "multilinear":
        yield "policy_kwargs.rank", "algorithm.critic", f"critic {algorithm.critic} has no rank"
