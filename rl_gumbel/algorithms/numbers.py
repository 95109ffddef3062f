"""Whether the numbers of rollouts and updates are finite: measured there, read with the logs."""

import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from rl_gumbel.faults import EnvError, NumericalError
from rl_gumbel.types import Obs, Rollout

HUGE_REWARD = 1e6
"""Rewards beyond it are warned of: their squares leave float32 no digits for anything else."""
MAX_SKIPPED = 10
"""Updates in a row whose gradient may be infinite or NaN before training stops."""

MAX_UNREAD = 1000
"""Updates after which the device is read for them, if no log has been written."""


@dataclass(frozen=True)
class Record:
    """What T steps of B environments returned, as it is checked."""

    obs: dict[str, Tensor]
    """`[T + 1, B, *O]`: what each action was chosen on and what follows, by key, integers left out;
    without keys the name is empty."""
    reward: Tensor
    """`[T, B]`."""
    index: Tensor
    """`[T, B, K]`: the categories that were chosen."""
    action_mask: Tensor | None
    """`[T + 1, B, K, N]` bool; None if everything may be chosen."""
    final_obs: dict[str, Tensor]
    """`[R, B, *O]`: last observations of episodes."""
    time_of_final: Callable[[int, int], int]
    """Row of `final_obs` and environment to the step that led to it."""


def record_of(rollout: Rollout) -> Record:
    """Return the record of a rollout."""
    interval = rollout.truncation_interval

    def time_of_final(row: int, env: int) -> int:
        assert interval is not None
        window = rollout.truncated[row * interval : (row + 1) * interval, env]
        return row * interval + int(window.to(torch.uint8).argmax())

    return Record(
        floats(rollout.obs),
        rollout.reward,
        rollout.index,
        rollout.action_mask,
        {} if interval is None else floats(rollout.truncated_obs),
        time_of_final,
    )


def floats(obs: Obs) -> dict[str, Tensor]:
    """Return the parts of observations that can be infinite, by key."""
    parts = obs if isinstance(obs, dict) else {"": obs}
    return {key: part for key, part in parts.items() if part.is_floating_point()}


@torch.no_grad()  # rewards may carry a gradient
def measure(record: Record) -> Tensor:
    """Return `[3]` float64: whether all is finite, the largest reward, whether all may act.

    Waits for nothing. One pass over each tensor: among numbers with a NaN, both the least and the
    largest are NaN.
    """
    low, high = torch.aminmax(record.reward)
    ends = [low.double(), high.double()]
    for part in (*record.obs.values(), *record.final_obs.values()):
        ends += [end.double() for end in torch.aminmax(part)]
    is_finite = torch.stack(ends).isfinite().all()
    largest = torch.maximum(-ends[0], ends[1])
    may_act = torch.ones_like(is_finite)
    if record.action_mask is not None:
        may_act = record.action_mask.any(-1).all()
    return torch.stack([is_finite.double(), largest, may_act.double()])


def check_now(record: Record, start: int) -> None:
    """`check`, with what `measure` returns read at once: for a checkpoint, not for every step."""
    is_finite, _, may_act = measure(record).tolist()
    check(record, is_finite, may_act, start)


def check(record: Record, is_finite: bool, may_act: bool, start: int) -> None:
    """Raise if the environments returned what cannot be learned from; only then read the device.

    Args:
        record: of the steps.
        is_finite: what `measure` returned for it.
        may_act: likewise.
        start: steps of training before the first of them.

    Raises:
        NumericalError: for an infinity or NaN; names environment, step, key and action.
        EnvError: for a state without an allowed action; names the same.
    """
    if not is_finite:
        time, env, what = min(_find(record), key=lambda found: found[0])
        raise NumericalError(f"environment {env}: {what} {_when(record, time, env, start)}")
    if not may_act:
        assert record.action_mask is not None
        time, env, factor = _first(~record.action_mask.any(-1))
        raise EnvError(
            f"environment {env}: the mask allows no action of factor {factor} "
            f"{_when(record, time - 1, env, start)}"
        )


def _find(record: Record) -> Iterator[tuple[int, int, str]]:
    """Yield step, environment and description of the first bad number of each kind."""
    parts = [("reward", record.reward, lambda row, env: row)]
    for key, part in record.obs.items():
        parts.append((_named("observation", key), part, lambda row, env: row - 1))
    for key, part in record.final_obs.items():
        parts.append((_named("last observation", key), part, record.time_of_final))
    for name, part, time_of in parts:
        is_bad = ~part.isfinite()
        if is_bad.any():
            row, env, *_ = _first(is_bad)
            number = part[row, env][is_bad[row, env]].flatten()[0]
            yield time_of(row, env), env, f"{name} is {number.item()}"


def _named(name: str, key: str) -> str:
    return f"{name} {key!r}" if key else name


def _when(record: Record, time: int, env: int, start: int) -> str:
    """Return when it was, and after which action."""
    if time < 0:
        return "at a reset"
    action = record.index[time, env].tolist()
    shown = action[0] if len(action) == 1 else action
    step = start + (time + 1) * record.reward.shape[1]
    return f"at step {step} of training, after action {shown}"


def _first(where: Tensor) -> list[int]:
    """Return the indices of the first True."""
    return where.nonzero()[0].tolist()  # type: ignore[no-any-return]


class RewardWatch:
    """Warns once of rewards beyond `HUGE_REWARD`."""

    def __init__(self) -> None:
        self._has_warned = False

    def see(self, largest: float) -> None:
        """Take note of the largest reward, in size, of some steps."""
        if largest > HUGE_REWARD and not self._has_warned:
            self._has_warned = True
            warnings.warn(
                f"rewards of {largest:.3g}: values are learned by their squares, which float32 "
                f"cannot hold beside small ones; scale them (reward_scale, normalize_rewards)",
                RuntimeWarning,
                stacklevel=2,
            )


class UpdateWatch:
    """Updates that were skipped, since their gradient was not finite, and how many in a row."""

    def __init__(self) -> None:
        self._flags: dict[str, list[Tensor]] = {}
        self.in_a_row: dict[str, int] = {}

    def __len__(self) -> int:
        """Return how many updates were not taken out yet."""
        return sum(map(len, self._flags.values()))

    def add(self, name: str, is_finite: Tensor) -> None:
        """Take note of an update of some parameters, by their name; waits for nothing."""
        self._flags.setdefault(name, []).append(is_finite)

    def take(self, like: Tensor) -> Tensor:
        """Return `[n]` float64 on the device, 1 where an update was not skipped, for `see`."""
        flags = [flag for some in self._flags.values() for flag in some]
        return torch.stack(flags).double() if flags else like.new_empty(0, dtype=torch.float64)

    def see(self, taken: list[float], num_timesteps: int) -> None:
        """Count those of `take`, read from the device, and forget them.

        Raises:
            NumericalError: if `MAX_SKIPPED` updates of the same parameters were skipped in a row.
        """
        names = [name for name, some in self._flags.items() for _ in some]
        self._flags = {}
        for name, is_finite in zip(names, taken, strict=True):
            self.in_a_row[name] = 0 if is_finite else self.in_a_row.get(name, 0) + 1
            if self.in_a_row[name] == MAX_SKIPPED:
                raise NumericalError(
                    f"the gradient of the {name} was not finite in {MAX_SKIPPED} updates in a row, "
                    f"at step {num_timesteps} of training; none was taken, so the weights are "
                    f"those from before; lower learning_rate, or scale the rewards"
                )
