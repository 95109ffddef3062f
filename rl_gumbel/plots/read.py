"""Runs on disk to curves: our directories, SB3's monitor files, and TensorBoard's event files."""

import csv
import difflib
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from numpy.typing import NDArray

from rl_gumbel.plots.events import read_scalars

Array = NDArray[np.float64]
Curve = tuple[Array, Array]
"""Environment steps `[P]`, rising, and values `[P]`."""
RETURN, LENGTH, STEPS = "rollout/ep_rew_mean", "rollout/ep_len_mean", "time/total_timesteps"
WINDOW = 100
"""Episodes that SB3's `rollout/ep_rew_mean` is a mean over."""
CONFIG, PROGRESS, EVALUATIONS = "config.yaml", "progress.csv", "evaluations.csv"
MONITOR, EVENTS = "*monitor.csv", "*tfevents*"
NUMBER = re.compile(r"[-_ ]*(seed)?[-_ ]*\d+$")
"""What tells runs of one kind apart at the end of a directory's name."""


@dataclass(frozen=True)
class Run:
    """One run: what it was and one of its curves."""

    path: Path
    task: str | None
    """Environment with its arguments; None if the files do not tell."""
    name: str
    """Of its kind, where there is no configuration: from the names of directories."""
    config: Mapping[str, Any]
    """Settings by dotted name; empty where there are none."""
    steps: Array
    """`[P]` environment steps."""
    values: Array
    """`[P]` of the metric."""


def find_runs(paths: Iterable[str | Path]) -> list[Path]:
    """Return the runs at and below the paths, each once.

    Raises:
        ValueError: for a path with no run.
    """
    found: dict[Path, None] = {}
    for path in map(Path, paths):
        runs = [path] if path.is_file() or _is_run(path) else list(_search(path))
        if not runs:
            names = f"{CONFIG}, {PROGRESS}, {MONITOR} or {EVENTS}"
            raise ValueError(f"{path} is no run: no {names} file is in it or below")
        found |= dict.fromkeys(runs)
    return list(found)


def _search(path: Path) -> Iterator[Path]:
    for child in sorted(path.iterdir()) if path.is_dir() else ():
        if child.is_dir():
            yield from [child] if _is_run(child) else _search(child)


def _is_run(path: Path) -> bool:
    names = (CONFIG, PROGRESS, MONITOR, EVENTS)
    return path.is_dir() and any(next(path.glob(name), None) for name in names)


def read_run(path: Path, metric: str = RETURN) -> Run:
    """Return a run with the curve of a metric.

    Raises:
        ValueError: if it has no such metric, or a file is damaged.
    """
    task: str | None = None
    curves: dict[str, Curve] = {}
    try:
        if path.is_file():
            is_monitor = path.name.endswith("monitor.csv")
            task, curves = read_monitors([path]) if is_monitor else (None, read_scalars(path))
        elif monitors := sorted(path.glob(MONITOR)):
            task, curves = read_monitors(monitors)
        if path.is_dir():
            curves |= read_curves(path)
    except (KeyError, OSError, TypeError, UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"{path} cannot be read: {type(error).__name__}: {error}") from error
    if metric not in curves:
        near = difflib.get_close_matches(metric, curves, n=1)
        hint = f"did you mean {near[0]}?" if near else f"it has {_some(curves)}"
        raise ValueError(f"{path} has no metric {metric!r}; {hint}")
    config = read_config(path)
    if config:
        task = describe_task(config)
    return Run(path, task, _name(path, task), config, *curves[metric])


def _some(curves: Mapping[str, Curve]) -> str:
    return ", ".join(sorted(curves)) or "none yet"


def read_curves(directory: Path) -> dict[str, Curve]:
    """Return every metric of a run's directory: those of its CSV files, else of its event files."""
    curves = {}
    if (directory / PROGRESS).is_file():
        curves = read_table(directory / PROGRESS, STEPS)
    elif next(directory.glob(EVENTS), None):
        curves = read_scalars(directory)
    if (directory / EVALUATIONS).is_file():
        table = read_table(directory / EVALUATIONS, "timesteps")
        curves |= {f"eval/{name}": curve for name, curve in table.items()}
    return curves


def read_table(path: Path, steps: str) -> dict[str, Curve]:
    """Return the columns of a CSV file over its column `steps`; empty fields are no points.

    A file that is being written may end in half a row, which is left out.
    """
    columns: dict[str, dict[float, float]] = {}
    with path.open(newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            at = _number(row.get(steps))
            for name, text in row.items():
                value = _number(text)
                if name is not None and at is not None and value is not None:
                    columns.setdefault(name, {})[at] = value
    return {name: _curve(points) for name, points in columns.items() if name != steps}


def _number(text: object) -> float | None:
    try:
        return float(text) if isinstance(text, str) else None
    except ValueError:
        return None


def _curve(points: Mapping[float, float]) -> Curve:
    """Return the points in order; the last of a step counts, as after a resume."""
    steps = sorted(points)
    return np.array(steps), np.array([points[step] for step in steps])


def read_monitors(paths: Iterable[Path]) -> tuple[str | None, dict[str, Curve]]:
    """Return the environment and the curves of the monitor files of one run.

    The files are those of environments that stepped together: episodes count in the order in which
    they ended, and returns are means over the last 100, as SB3 logs them.
    """
    task, episodes = None, []
    for path in paths:
        with path.open(newline="", encoding="utf-8") as file:
            header = json.loads(file.readline().removeprefix("#"))
            task = header.get("env_id") or task
            for row in csv.DictReader(file):
                values = [_number(row[key]) for key in ("r", "l", "t")]
                if None not in values:
                    r, length, seconds = map(float, values)  # type: ignore[arg-type]
                    episodes.append((header.get("t_start", 0.0) + seconds, r, length))
    if not episodes:
        return task, {}
    _, returns, lengths = np.array(sorted(episodes)).T
    steps = lengths.cumsum()
    curves = {RETURN: (steps, moving_mean(returns)), LENGTH: (steps, moving_mean(lengths))}
    return task, curves


def moving_mean(values: Array, window: int = WINDOW) -> Array:
    """Return at each place the mean of the last `window` values, of fewer at the start."""
    total = np.concatenate([[0.0], values.cumsum()])
    last = np.arange(1, len(values) + 1)
    first = np.maximum(last - window, 0)
    return np.asarray((total[last] - total[first]) / (last - first))


def read_config(path: Path) -> dict[str, Any]:
    """Return the settings of a run's directory by dotted name; empty where it has none."""
    file = path / CONFIG
    if not file.is_file():
        return {}
    try:
        return dict(flatten(yaml.safe_load(file.read_text(encoding="utf-8"))))
    except (AttributeError, yaml.YAMLError) as error:
        raise ValueError(f"{file} cannot be read: {' '.join(str(error).split())}") from error


def flatten(settings: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield settings by dotted name; the empty mapping is a value."""
    for name, value in settings.items():
        if isinstance(value, Mapping) and value:
            yield from flatten(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def describe_task(config: Mapping[str, Any]) -> str:
    """Return the environment of a configuration with its arguments."""
    prefix = "env_kwargs."
    options = [f"{k.removeprefix(prefix)}={v}" for k, v in config.items() if k.startswith(prefix)]
    return f"{config['env']} ({', '.join(options)})" if options else str(config["env"])


def _name(path: Path, task: str | None) -> str:
    """Return the last name on the path that is more than a number, a file or the environment."""
    path = path.absolute()
    for part in (path if path.is_dir() else path.parent).parts[::-1]:
        name = NUMBER.sub("", part)
        if name and name != NUMBER.sub("", task or ""):
            return name
    return str(path)
