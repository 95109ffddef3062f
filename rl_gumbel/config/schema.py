"""Which settings every training run has, and the types that settings are made of.

What belongs to one algorithm stands in the file of its name. The sentence below a field is its help
on the command line. This package imports nothing heavy, so names of estimators, their ranges and
defaults of constructors stand here as literals; tests tie them to what they describe.
"""

from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Literal, NamedTuple

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

TAGS = ("a number", "text", "a mapping", "a list")
"""The members of the unions here, as error messages name them."""


def tag(value: Any) -> str:
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


Scheduled = Annotated[
    Annotated[PositiveFloat, Tag("a number")] | Annotated[ScheduleSettings, Tag("a mapping")],
    Discriminator(tag),
]
Fraction = Annotated[float, Field(ge=0, le=1)]
Wrapper = Annotated[
    Annotated[str, Tag("text")]
    | Annotated[dict[str, dict[str, Any]], Field(min_length=1, max_length=1), Tag("a mapping")],
    Discriminator(tag),
]
Activation = Literal["relu", "tanh", "elu", "gelu", "silu"]


class Ignored(NamedTuple):
    """A setting without effect because of another one."""

    field: str
    """Its dotted path."""
    cause: str
    """The path of the other one."""
    reason: str
    """Why, in a few words."""


class TrainConfig(Section):
    """Everything that `rl-gumbel train` needs to repeat a run; a subclass for each algorithm."""

    env: Annotated[str, Field(min_length=1)] = "CartPole-v1"
    """Gymnasium id; package:Env-v0 imports the package first."""
    algo: str
    """Algorithm."""
    total_timesteps: PositiveInt = 100_000
    """Length of training in environment steps."""
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0
    """Seed of networks, noise and environments."""
    num_envs: PositiveInt = 1
    """Environments stepped together."""
    backend: Literal["auto", "torch", "gymnasium"] = "auto"
    """What steps the environments; auto is torch where it can, without env_wrappers."""
    vectorization_mode: Literal["sync", "async"] = "sync"
    """Gymnasium environments step one after the other, or (async) each in a process of its own."""
    device: Annotated[str, Field(pattern=r"^(auto|cpu|cuda|cuda:\d+)$")] = "auto"
    """auto (CUDA where there is one), cpu, cuda or cuda:i."""
    threads: PositiveInt = 1
    """CPU threads of torch; small networks are fastest on one."""
    eval_freq: NonNegativeInt = 5000
    """Steps between evaluations; 0 leaves only the one at the end."""
    eval_episodes: PositiveInt = 10
    """Episodes of each evaluation."""
    video_freq: NonNegativeInt = 0
    """Steps between clips of an episode in TensorBoard; 0 for none."""
    lab_freq: NonNegativeInt = 0
    """Steps between figures in TensorBoard of all estimators on the critic; 0 for none."""
    checkpoint_freq: NonNegativeInt | None = None
    """Steps between checkpoints; null is ten minutes, 0 only the one at the end or a signal."""
    checkpoint_keep: PositiveInt = 2
    """How many checkpoints are kept, the latest."""
    env_wrappers: list[Wrapper] = []
    """Wrappers, innermost first: [module.Class], or with arguments [{module.Class: {bins: 7}}]."""
    env_kwargs: dict[str, Any] = {}
    """Keyword arguments of the environment."""
    nonfinite: Literal["raise", "reset", "zero"] = "raise"
    """An infinity or NaN of an environment stops training, cuts the episode, or is zero."""
    restart_failed_envs: NonNegativeInt = 0
    """Gymnasium environments that may fail and are made anew, in all."""
    algorithm: Section
    """Settings of the algorithm."""
    policy_kwargs: Section
    """Settings of its networks."""

    @model_validator(mode="after")
    def _check_backend(self) -> "TrainConfig":
        if self.backend == "torch" and self.env_wrappers:
            raise refuse("env_wrappers", "are Gymnasium's, and backend is torch")
        restarts = self.restart_failed_envs
        if self.backend == "torch" and restarts:
            reason = f"{restarts} is for Gymnasium's environments, and backend is torch"
            raise refuse("restart_failed_envs", reason)
        if self.backend == "torch" and self.vectorization_mode == "async":
            reason = "async is for Gymnasium's environments, and backend is torch"
            raise refuse("vectorization_mode", reason)
        if restarts and self.vectorization_mode == "async":
            reason = f"{restarts} is counted in one process, and vectorization_mode is async"
            raise refuse("restart_failed_envs", reason)
        return self

    def ignored(self) -> Iterator[Ignored]:
        """Yield each setting without effect."""
        yield from ()
