"""Statistics over seeds and tasks: aggregates, stratified bootstrap intervals, profiles, survival.

Agarwal et al. 2021, "Deep Reinforcement Learning at the Edge of the Statistical Precipice"
(arXiv 2108.13264), whose library `rliable` is the oracle in the tests. Scores come as strata: a
list with one array for each task, its first axis the runs.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

Array = NDArray[np.float64]
Strata = Sequence[Array]
"""For each task the scores of its runs, `[S]`, or their curves, `[S, P]`."""
LEVEL = 0.95
"""Coverage of the intervals."""
REPETITIONS = 2000
"""Bootstrap resamples."""


@dataclass(frozen=True)
class Estimate:
    """A statistic with its interval; arrays of the same shape."""

    value: Array
    """Of all scores."""
    low: Array
    """Lower end of the interval, the percentile of the resamples."""
    high: Array
    """Upper end."""


def interquartile_mean(values: ArrayLike, axis: int = -1) -> Array:
    """Return the mean without the lowest and the highest quarter, whole values, rounded down."""
    ordered = np.sort(np.asarray(values, np.float64), axis)
    count = ordered.shape[axis]
    cut = count // 4
    kept = np.take(ordered, range(cut, count - cut), axis)
    return np.asarray(kept.mean(axis))


def mean(values: Any, axis: int = -1) -> Array:
    """Return the mean."""
    return np.asarray(np.mean(values, axis))


AGGREGATES: dict[str, Callable[..., Array]] = {"iqm": interquartile_mean, "mean": mean}
"""Name to statistic along an axis."""


def resample(strata: Strata, repetitions: int, rng: np.random.Generator) -> list[Array]:
    """Return for each task `[R, S, ...]`: its runs drawn with replacement, R times."""
    return [values[rng.integers(len(values), size=(repetitions, len(values)))] for values in strata]


def bootstrap(
    strata: Strata,
    statistic: Callable[[Sequence[Array]], Array],
    *,
    repetitions: int = REPETITIONS,
    level: float = LEVEL,
    seed: int = 0,
) -> Estimate:
    """Return a statistic of the strata with its percentile interval.

    Args:
        strata: for each task `[S, ...]`.
        statistic: takes for each task `[..., S, ...]` with a leading axis of resamples, and returns
            one value, or array, for each of those.
        repetitions: how many resamples.
        level: coverage.
        seed: of the resamples.
    """
    rng = np.random.default_rng(seed)
    draws = statistic(resample(strata, repetitions, rng))
    low, high = np.quantile(draws, [(1 - level) / 2, (1 + level) / 2], axis=0)
    return Estimate(statistic([values[None] for values in strata])[0], low, high)


def aggregate(strata: Strata, name: str, **options: Any) -> Estimate:
    """Return the aggregate of that name over all runs of all tasks, with its interval.

    `mean` is the mean over tasks of their means; `iqm` takes all scores together.
    """
    if name == "mean":
        return bootstrap(strata, lambda draws: mean([d.mean(1) for d in draws], 0), **options)
    return bootstrap(strata, lambda draws: AGGREGATES[name](np.concatenate(draws, 1)), **options)


def aggregate_curve(values: Array, name: str, **options: Any) -> Estimate:
    """Return the aggregate of `[S, P]` curves at each of the P points; whole runs are resampled."""
    return bootstrap([values], lambda draws: AGGREGATES[name](draws[0], 1), **options)


def performance_profile(strata: Strata, thresholds: Array, **options: Any) -> Estimate:
    """Return the share of runs with a score above each threshold, the mean over tasks."""
    return bootstrap(
        strata,
        lambda draws: mean([(d[..., None] > thresholds).mean(1) for d in draws], 0),
        **options,
    )


def probability_of_improvement(ours: Strata, theirs: Strata, **options: Any) -> Estimate:
    """Return the probability that a run of ours beats one of theirs on the same task.

    The Mann-Whitney statistic divided by the number of pairs, ties counted as half, the mean over
    tasks, which both list in the same order.
    """

    def statistic(draws: Sequence[Array]) -> Array:
        pairs = zip(draws[: len(ours)], draws[len(ours) :], strict=True)
        signs = [np.sign(x[..., :, None] - y[..., None, :]) for x, y in pairs]
        return mean([(1 + sign.mean((-2, -1))) / 2 for sign in signs], 0)

    return bootstrap([*ours, *theirs], statistic, **options)


def first_crossing(steps: Array, values: Array, threshold: float) -> float | None:
    """Return the first of `steps` at which `values` are at least `threshold`; None if never."""
    reached = values >= threshold
    return float(steps[reached.argmax()]) if reached.any() else None


def reached_share(times: Array, reached: NDArray[np.bool_]) -> tuple[Array, Array]:
    """Return times `[P]` and the estimated share of runs that got there by then, `[P]`.

    Kaplan and Meier 1958: a run that stopped before it got there counts while it lasted, so runs of
    different length can be compared.

    Args:
        times: `[S]`, when each run got there, or how long it lasted if it did not.
        reached: `[S]`, whether it got there.
    """
    points = np.unique(times[reached])
    waiting = (times >= points[:, None]).sum(1)
    arrived = ((times == points[:, None]) & reached).sum(1)
    return points, 1 - np.cumprod(1 - arrived / np.maximum(waiting, 1))
