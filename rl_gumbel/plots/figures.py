"""Figures of a comparison; each comes with the numbers that are drawn."""

import csv
import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations, cycle
from math import ceil
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter

from rl_gumbel.plots.compare import Comparison, align
from rl_gumbel.plots.read import LENGTH, RETURN
from rl_gumbel.plots.statistics import (
    AGGREGATES,
    Estimate,
    aggregate,
    aggregate_curve,
    first_crossing,
    performance_profile,
    probability_of_improvement,
    reached_share,
)

COLORS = ("#0b6fa4", "#d95f02", "#2a9d5c", "#a6418e", "#8a6d1d", "#555f6b", "#c4302b", "#4b4fb5")
"""Told apart by colour-blind people and in grey."""
STYLE: dict[Any, Any] = {
    "axes.axisbelow": True,
    "axes.edgecolor": "#969aa0",
    "axes.grid": True,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlesize": 11,
    "figure.dpi": 130,
    "font.size": 9.5,
    "grid.alpha": 0.6,
    "grid.color": "#dee0de",
    "legend.frameon": False,
    "svg.hashsalt": "rl-gumbel",  # the same figure is the same file
}
NAMES = {"iqm": "interquartile mean", "mean": "mean"}
METRICS = {
    RETURN: "return, mean of the last 100 episodes",
    LENGTH: "episode length, mean of the last 100",
    "eval/mean_reward": "return in evaluation",
}
Row = dict[str, Any]


@dataclass(frozen=True)
class Drawing:
    """A figure and the rows of its CSV file."""

    figure: Figure
    rows: list[Row]

    def save(self, directory: Path, name: str) -> list[Path]:
        """Write PNG, SVG and CSV under that name; return the paths."""
        directory.mkdir(parents=True, exist_ok=True)
        paths = [directory / f"{name}.{kind}" for kind in ("png", "svg", "csv")]
        with matplotlib.rc_context(STYLE):
            self.figure.savefig(paths[0])
            self.figure.savefig(paths[1], metadata={"Date": None})
        with paths[2].open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, list(self.rows[0]), lineterminator="\n")
            writer.writeheader()
            writer.writerows(self.rows)
        return paths


def draw_all(
    comparison: Comparison, metric: str, statistic: str, threshold: float | None
) -> Iterator[tuple[str, Drawing]]:
    """Yield the figures by name: what the comparison allows."""
    with matplotlib.rc_context(STYLE):
        yield "curves", draw_curves(comparison, metric, statistic, threshold)
        if comparison.shared_tasks:
            yield "scores", draw_scores(comparison, metric, statistic)
            yield "profile", draw_profile(comparison, metric)
            if len(comparison.methods) > 1:
                yield "improvement", draw_improvement(comparison)
        if threshold is not None:
            yield "threshold", draw_threshold(comparison, metric, threshold)


def draw_curves(
    comparison: Comparison, metric: str, statistic: str, threshold: float | None = None
) -> Drawing:
    """Draw each task's curves: the aggregate over seeds and its interval at each step."""
    figure, panels = make_panels(comparison.tasks)
    rows: list[Row] = []
    for task, axes in panels.items():
        for method, color in colors(comparison):
            if (task, method) not in comparison.runs:
                continue
            runs = comparison.runs[task, method]
            steps, values = align(runs)
            curve = aggregate_curve(values, statistic)
            axes.plot(steps, curve.value, color=color, lw=1.8)
            if len(runs) > 1:
                axes.fill_between(steps, curve.low, curve.high, color=color, alpha=0.18, lw=0)
            for at, value, low, high in zip(steps, curve.value, curve.low, curve.high, strict=True):
                rows.append(
                    {"task": task, "method": method, "runs": len(runs), "steps": round(at)}
                    | {statistic: value, "low": low, "high": high}
                )
        if threshold is not None:
            axes.axhline(threshold, color="#969aa0", lw=1, ls="--")
        label_steps(axes)
        axes.set_ylabel(METRICS.get(metric, metric))
    add_legend(figure, comparison, f"{NAMES[statistic]} over runs, 95% interval")
    return Drawing(figure, rows)


def draw_scores(comparison: Comparison, metric: str, statistic: str) -> Drawing:
    """Draw each method's aggregate of the last values over runs and tasks, every run a dot."""
    methods = comparison.methods
    figure = Figure(figsize=(7, 1.3 + 0.5 * len(methods)), layout="constrained")
    axes, rows = figure.subplots(), []
    for place, (method, color) in enumerate(colors(comparison)):
        scores = comparison.scores(method)
        every = np.concatenate(scores)
        result = aggregate(scores, statistic)
        draw_interval(axes, result, place, color)
        axes.plot(every, np.full(len(every), place), "o", ms=4, color=color, mfc="white")
        row = {"method": method, "runs": len(every), statistic: float(result.value)}
        row |= {"low": float(result.low), "high": float(result.high)}
        rows.append(row | {name: float(aggregate(scores, name).value) for name in AGGREGATES})
    axes.set_yticks(range(len(methods)), [wrap(m, 34) for m in methods])
    axes.set_ylim(len(methods) - 0.5, -0.5)
    axes.grid(axis="y", visible=False)
    axes.set_xlabel(score_label(comparison, metric))
    axes.set_title(
        f"At the end: {NAMES[statistic]} (bar), 95% interval (band), runs (circles)", loc="left"
    )
    return Drawing(figure, rows)


def draw_profile(comparison: Comparison, metric: str) -> Drawing:
    """Draw the share of runs above each score."""
    scores = {method: comparison.scores(method) for method in comparison.methods}
    every = np.concatenate([s for strata in scores.values() for s in strata])
    margin = 0.05 * (np.ptp(every) or 1.0)
    thresholds = np.linspace(every.min() - margin, every.max() + margin, 201)
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes, rows = figure.subplots(), []
    for method, color in colors(comparison):
        profile = performance_profile(scores[method], thresholds)
        axes.step(thresholds, profile.value, color=color, lw=1.8, where="post")
        if len(np.concatenate(scores[method])) > 1:
            axes.fill_between(
                thresholds, profile.low, profile.high, color=color, alpha=0.15, lw=0, step="post"
            )
        for at, *shares in zip(thresholds, profile.value, profile.low, profile.high, strict=True):
            names = ("share", "low", "high")
            rows.append({"method": method, "score": at} | dict(zip(names, shares, strict=True)))
    axes.set(xlabel=score_label(comparison, metric), ylabel="share of runs above", ylim=(0, 1.03))
    axes.set_xlim(thresholds[0], thresholds[-1])
    axes.set_title("Performance profile, 95% interval", loc="left")
    add_legend(figure, comparison)
    return Drawing(figure, rows)


def draw_improvement(comparison: Comparison) -> Drawing:
    """Draw for each pair how probably a run of the better method beats one of the other."""
    pairs = [
        (x, y) if is_better(comparison, x, y) else (y, x)
        for x, y in combinations(comparison.methods, 2)
    ]
    figure = Figure(figsize=(7, 1.4 + 0.5 * len(pairs)), layout="constrained")
    axes, rows = figure.subplots(), []
    palette = dict(colors(comparison))
    for place, (x, y) in enumerate(pairs):
        result = probability_of_improvement(comparison.scores(x), comparison.scores(y))
        color = palette[x]
        draw_interval(axes, result, place, color)
        row = {"method": x, "other": y, "probability": float(result.value)}
        rows.append(row | {"low": float(result.low), "high": float(result.high)})
    axes.axvline(0.5, color="#969aa0", lw=1, ls="--")
    axes.set_yticks(range(len(pairs)), [wrap(f"{x}  beats  {y}", 46) for x, y in pairs])
    axes.set(ylim=(len(pairs) - 0.5, -0.5), xlim=(-0.02, 1.02))
    axes.grid(axis="y", visible=False)
    axes.set_xlabel("probability (ties count half)")
    axes.set_title("Probability of improvement, 95% interval", loc="left")
    return Drawing(figure, rows)


def is_better(comparison: Comparison, x: str, y: str) -> bool:
    """Return whether a run of `x` beats one of `y` at least as probably as the other way."""
    scores = comparison.scores(x), comparison.scores(y)
    return bool(probability_of_improvement(*scores, repetitions=1).value >= 0.5)


def draw_interval(axes: Axes, result: Estimate, place: float, color: str) -> None:
    """Draw a statistic as a bar across its interval, at a height."""
    ends = [result.low, result.high]
    axes.plot(ends, [place, place], color=color, lw=9, alpha=0.3, solid_capstyle="butt")
    axes.plot(result.value, place, "|", ms=17, mew=2.5, color=color)


def draw_threshold(comparison: Comparison, metric: str, threshold: float) -> Drawing:
    """Draw the share of runs that have reached the threshold, over steps (Kaplan-Meier)."""
    figure, panels = make_panels(comparison.tasks)
    rows: list[Row] = []
    for task, axes in panels.items():
        for method, color in colors(comparison):
            if (task, method) not in comparison.runs:
                continue
            runs = comparison.runs[task, method]
            found = [first_crossing(run.steps, run.values, threshold) for run in runs]
            times = np.array(
                [run.steps[-1] if at is None else at for run, at in zip(runs, found, strict=True)]
            )
            points, share = reached_share(times, np.array([at is not None for at in found]))
            axes.step(
                [0, *points, max(run.steps[-1] for run in runs)],
                [0, *share, share[-1] if len(share) else 0],
                color=color,
                lw=1.8,
                where="post",
            )
            for run, at in zip(runs, found, strict=True):
                row = {"task": task, "method": method, "run": str(run.path)}
                steps = "" if at is None else round(at)
                rows.append(row | {"steps": steps, "length": round(run.steps[-1])})
        label_steps(axes)
        axes.set(ylabel="share of runs that got there", ylim=(-0.03, 1.03))
    name = METRICS.get(metric, metric)
    add_legend(figure, comparison, f"Steps to {threshold:g} ({name})")
    return Drawing(figure, rows)


def colors(comparison: Comparison) -> Iterator[tuple[str, str]]:
    """Yield each method with its colour."""
    yield from zip(comparison.methods, cycle(COLORS), strict=False)


def make_panels(tasks: Sequence[str]) -> tuple[Figure, dict[str, Axes]]:
    """Return a figure with a panel for each task, three in a row."""
    columns = min(len(tasks), 3)
    rows = ceil(len(tasks) / columns)
    size = (7 if columns == 1 else 4.6 * columns, 0.5 + (4 if columns == 1 else 3.3) * rows)
    figure = Figure(figsize=size, layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False).flatten()
    for axes in grid[len(tasks) :]:
        axes.set_axis_off()
    panels = dict(zip(tasks, grid, strict=False))
    for task, axes in panels.items():
        axes.set_title(wrap(task, 44), loc="left")
    return figure, panels


def label_steps(axes: Axes) -> None:
    """Label the x axis: environment steps in thousands or millions."""
    axes.set_xlabel("environment steps")
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    axes.set_xlim(left=0)


def score_label(comparison: Comparison, metric: str) -> str:
    """Return what a score is."""
    name = METRICS.get(metric, metric)
    if comparison.is_normalized:
        return f"{name}; in each task 0 is the worst run, 1 the best"
    return f"{comparison.shared_tasks[0]}: {name}"


def add_legend(figure: Figure, comparison: Comparison, title: str | None = None) -> None:
    """Put the methods with their numbers of runs below the panels."""
    axes = figure.axes[0]
    handles = []
    for method, color in colors(comparison):
        count = sum(len(runs) for (_, m), runs in comparison.runs.items() if m == method)
        label = f"{wrap(method, 60)} ({count} run{'s' * (count > 1)})"
        handles.append(axes.plot([], [], color=color, lw=2.5, label=label)[0])
    widest = max(len(str(handle.get_label())) for handle in handles)
    columns = max(1, min(len(handles), int(12 * figure.get_figwidth()) // (widest + 9)))
    figure.legend(handles=handles, loc="outside lower left", ncols=columns)
    if title:
        figure.suptitle(title[0].upper() + title[1:], x=0.01, ha="left", fontsize=10.5)


def wrap(text: str, width: int) -> str:
    """Return the text in lines of at most so many letters."""
    return textwrap.fill(text, width)
