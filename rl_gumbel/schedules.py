"""Training progress to a value: temperature, learning rate."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

KINDS = ("constant", "linear", "exponential", "cosine")


@dataclass(frozen=True)
class Schedule:
    """A value that moves from `start` to `end` over training.

    Called with SB3's `progress_remaining` (1 at the start, 0 at the end), so it also serves as the
    `learning_rate` of any SB3 algorithm; unlike a lambda it survives `save` and `load`.

    Raises:
        ValueError: for an unknown kind, a value that is not finite, a constant that moves, or an
            exponential schedule that touches zero.
    """

    kind: str
    """`constant`, `linear`, `exponential` (geometric) or `cosine` (half a wave, flat ends)."""
    start: float
    """The value at the first step."""
    end: float
    """The value at the last step."""

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"unknown schedule {self.kind!r}; known: {', '.join(KINDS)}")
        if not (math.isfinite(self.start) and math.isfinite(self.end)):
            raise ValueError(f"schedule from {self.start!r} to {self.end!r}: both must be finite")
        if self.kind == "constant" and self.start != self.end:
            raise ValueError(f"a constant schedule cannot go from {self.start!r} to {self.end!r}")
        if self.kind == "exponential" and not (self.start > 0 and self.end > 0):
            raise ValueError(
                f"an exponential schedule needs positive ends; got {self.start!r} and {self.end!r}"
            )

    def __call__(self, progress_remaining: float) -> float:
        """Return the value when `progress_remaining` of training, in [0, 1], is left."""
        # SB3's last rollout goes past the end; a line continued there could turn negative.
        progress = min(max(1.0 - progress_remaining, 0.0), 1.0)
        if self.kind == "exponential":
            return float(self.start * (self.end / self.start) ** progress)
        if self.kind == "cosine":
            progress = (1.0 - math.cos(math.pi * progress)) / 2.0
        return self.start + (self.end - self.start) * progress


def make_schedule(
    value: float | Mapping[str, Any] | Callable[[float], float],
) -> Callable[[float], float]:
    """Return a schedule from a number, `{"schedule": kind, "start": a, "end": b}` or a callable.

    Raises:
        ValueError: as `Schedule` does, and for a mapping with other keys.
    """
    if callable(value):
        return value
    if isinstance(value, Mapping):
        if set(value) != {"schedule", "start", "end"}:
            raise ValueError(f"a schedule has the keys schedule, start, end; got {sorted(value)}")
        return Schedule(value["schedule"], float(value["start"]), float(value["end"]))
    return Schedule("constant", float(value), float(value))
