"""Runs in groups: which are seeds of the same, what to call the groups, and their scores."""

import difflib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from rl_gumbel.plots.read import Run

Array = NDArray[np.float64]
SAME = {
    *("seed", "env", "device", "threads", "total_timesteps"),
    *("eval_freq", "eval_episodes", "video_freq", "lab_freq"),
    *("checkpoint_freq", "checkpoint_keep"),
}
"""Settings that may differ between seeds of the same."""
POINTS = 200
"""Of a curve over seeds."""


@dataclass(frozen=True)
class Comparison:
    """Runs by task and method."""

    tasks: list[str]
    """Environments with their arguments, as they came."""
    methods: list[str]
    """Names of the groups, as they came."""
    runs: dict[tuple[str, str], list[Run]]
    """Those of a task and a method, one for each seed."""

    @property
    def shared_tasks(self) -> list[str]:
        """The tasks that every method has."""
        return [t for t in self.tasks if all((t, m) in self.runs for m in self.methods)]

    @property
    def is_normalized(self) -> bool:
        """Whether `scores` are fractions of each task's range, since tasks have other units."""
        return len(self.shared_tasks) > 1

    def uneven_lengths(self) -> dict[str, tuple[float, float]]:
        """Return the first and the last step at which runs of a task end, where that differs.

        By more than a twentieth: episodes and rollouts end where they end.
        """
        ends: dict[str, list[float]] = {}
        for (task, _), runs in self.runs.items():
            ends.setdefault(task, []).extend(float(run.steps[-1]) for run in runs)
        spans = {task: (min(steps), max(steps)) for task, steps in ends.items()}
        return {task: (low, high) for task, (low, high) in spans.items() if low < 0.95 * high}

    def scores(self, method: str) -> list[Array]:
        """Return for each shared task the last value of each run, `[S]`.

        Of several tasks each is normalised: 0 is the worst run of any method, 1 the best.
        """
        strata = []
        for task in self.shared_tasks:
            last = {m: np.array([r.values[-1] for r in self.runs[task, m]]) for m in self.methods}
            every = np.concatenate(list(last.values()))
            low, span = every.min(), np.ptp(every) or 1.0
            strata.append((last[method] - low) / span if self.is_normalized else last[method])
        return strata


def compare(runs: Sequence[Run], by: str | None = None) -> Comparison:
    """Return the runs in groups.

    Args:
        runs: all of the same metric.
        by: dotted name of a setting whose values are the groups. Without it those runs are seeds of
            the same that differ in nothing but `SAME`; runs without a configuration go by name.

    Raises:
        ValueError: for a setting that a run does not have.
    """
    names = name_groups(runs) if by is None else [_value(run, by) for run in runs]
    known = list(dict.fromkeys(run.task for run in runs if run.task))
    unknown = known[0] if len(known) == 1 else "unknown environment"  # a log does not tell
    groups: dict[tuple[str, str], list[Run]] = {}
    for run, name in zip(runs, names, strict=True):
        groups.setdefault((run.task or unknown, name), []).append(run)
    tasks = list(dict.fromkeys(task for task, _ in groups))
    return Comparison(tasks, list(dict.fromkeys(names)), groups)


def name_groups(runs: Sequence[Run]) -> list[str]:
    """Return for each run its algorithm and the settings in which runs of that algorithm differ."""
    names = []
    for run in runs:
        if not run.config:
            names.append(run.name)
            continue
        peers = [other.config for other in runs if other.config.get("algo") == run.config["algo"]]
        keys = [key for key in run.config if key not in SAME and not key.startswith("env_kwargs.")]
        differing = [key for key in keys if any(peer.get(key) != run.config[key] for peer in peers)]
        parts = [f"{key.rpartition('.')[2]} {run.config[key]}" for key in differing]
        names.append(", ".join([str(run.config["algo"]), *parts]))
    return names


def _value(run: Run, key: str) -> str:
    key = key.replace("-", "_")
    if key not in run.config:
        near = difflib.get_close_matches(key, run.config, n=1)
        hint = f"; did you mean {near[0]}?" if near else ""
        lack = f"has no setting {key!r}" if run.config else "has no configuration"
        raise ValueError(f"{run.path} {lack} to compare by{hint}")
    return f"{key.rpartition('.')[2]} {run.config[key]}"


def align(runs: Sequence[Run]) -> tuple[Array, Array]:
    """Return steps `[P]` at which every run has a value, and the values `[S, P]` there.

    Raises:
        ValueError: if there are none.
    """
    first, last = max(run.steps[0] for run in runs), min(run.steps[-1] for run in runs)
    if first > last:
        shortest = min(runs, key=lambda run: run.steps[-1])
        raise ValueError(
            f"{shortest.path} ends at step {last:.0f}, before another of its group begins at "
            f"{first:.0f}: leave it out"
        )
    grid = np.linspace(first, last, POINTS if first < last else 1)
    return grid, np.stack([np.interp(grid, run.steps, run.values) for run in runs])
