"""Figures of the learning benchmark: returns against steps and seconds, and steps to a threshold.

    python benchmarks/plots.py pendulums
    python benchmarks/plots.py lunar_lander

They read `results/curves.csv` and `results/learning.csv`. `pendulums` draws PendulumBank-v0,
`lunar_lander` GumbelSAC and its peers on LunarLander-v3. A line is the mean over seeds, a band
their range.
"""

import argparse
import csv
import itertools
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from operator import itemgetter
from pathlib import Path
from statistics import mean

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes

RESULTS = Path(__file__).parent / "results"
NAMES = {
    "shac": "GumbelSHAC (simulator)",
    "reppo": "GumbelREPPO (learned critic)",
    "ppo": "BatchedPPO (score function)",
    "sb3-ppo": "SB3 PPO",
}
COLORS = {"shac": "#d95f02", "reppo": "#7570b3", "ppo": "#1b9e77", "sb3-ppo": "#666666"}
ESTIMATORS = {"shac": "straight_through_gumbel", "reppo": "straight_through"}
"""That each ships with; rows of others are not drawn."""
SHARED = "policy-kwargs.shared-factors"
DRAWN = {"env-kwargs.n", SHARED, "policy-kwargs.net-arch"}
"""Options of the rows that are drawn."""
THRESHOLD = -400.0
SETTINGS = ("algo", "options", "num_envs", "total_timesteps")
AGENTS = {
    "exact": ("GumbelSAC, exact", "#66a61e"),
    "exact, 0.99": ("GumbelSAC, exact, discount 0.99", "#1b9e77"),
    "straight_through": ("GumbelSAC, straight-through", "#d95f02"),
    "straight_through, 0.99": ("GumbelSAC, straight-through, discount 0.99", "#e7298a"),
    "sb3-dqn": ("SB3 DQN", "#666666"),
    "sb3-qrdqn": ("sb3-contrib QRDQN", "#1f78b4"),
    "sb3-ppo": ("SB3 PPO", "#a6761d"),
}
"""Label and colour on LunarLander-v3, by actor gradient, estimator, discount or algorithm."""
Row = dict[str, str]


def read_all(name: str) -> list[Row]:
    """Return the rows of a file of results."""
    with (RESULTS / name).open(newline="") as file:
        return list(csv.DictReader(file))


def read(name: str) -> list[Row]:
    """Return the rows of PendulumBank-v0, each algorithm with the estimator that it ships with."""
    rows = [row for row in read_all(name) if row["env"] == "PendulumBank-v0"]
    rows = [row for row in rows if row["algo"] in NAMES]
    return [row for row in rows if row["estimator"] == ESTIMATORS.get(row["algo"], "")]


def agent(row: Row) -> str:
    """Return the name in `AGENTS` of what a row is of."""
    if row["algo"] != "sac":
        return row["algo"]
    changed = options(row)
    changed.pop("algorithm.compile", None)
    gamma = changed.pop("algorithm.gamma", None)
    if changed:
        return "others"  # not drawn
    return ", ".join(filter(None, [row["estimator"] or row["actor_gradient"], gamma]))


def is_drawn(row: Row) -> bool:
    """Return whether nothing but the number of pendulums and the sharing was changed."""
    return options(row).keys() <= DRAWN


def options(row: Row) -> dict[str, str]:
    """Return the options of a run by name."""
    words = filter(None, re.split(r"(?:^| )--", row["options"]))
    return dict(word.split(" ", 1) for word in words)


def count(row: Row) -> int:
    """Return the number of pendulums."""
    return int(options(row).get("env-kwargs.n", 8))


def is_shared(row: Row) -> bool:
    """Return whether the networks have the same weights for every pendulum."""
    return SHARED in options(row)


def draw_curves(
    axes: Axes,
    rows: list[Row],
    column: str,
    scale: float,
    styles: Mapping[str, tuple[str, str]],
    key: Callable[[Row], str],
) -> None:
    """Draw the mean return over `column`, seeds interpolated to common points.

    `key` of a row names its label and colour in `styles`.
    """
    curves: dict[str, dict[str, list[Row]]] = defaultdict(lambda: defaultdict(list))
    for row in rows:
        curves[key(row)][row["seed"]].append(row)
    for name in filter(curves.__contains__, styles):
        label, color = styles[name]
        seeds = [
            (
                np.array([float(row[column]) for row in points]) * scale,
                np.array([float(row["mean_return"]) for row in points]),
            )
            for points in curves[name].values()
        ]
        grid = np.linspace(
            max(x[0] for x, _ in seeds), min(x[-1] for x, _ in seeds), 200
        )  # where every seed has a value
        values = np.stack([np.interp(grid, x, y) for x, y in seeds])
        axes.plot(grid, values.mean(0), color=color, label=label)
        axes.fill_between(grid, values.min(0), values.max(0), color=color, alpha=0.2, lw=0)
    axes.grid(alpha=0.3)


def by_settings(rows: list[Row]) -> Iterable[list[Row]]:
    """Return the rows in groups of the same settings but for the seed."""
    groups: dict[tuple[str, ...], list[Row]] = defaultdict(list)
    for row in rows:
        groups[tuple(row[name] for name in SETTINGS)].append(row)
    return groups.values()


def mean_steps(rows: list[Row]) -> float:
    """Return the mean steps to the threshold, infinite if a seed did not reach it."""
    return mean(float(row["threshold_timesteps"] or "inf") for row in rows)


def draw_thresholds(axes: Axes, rows: list[Row]) -> None:
    """Draw the steps to the threshold over the number of pendulums; a seed that failed is open.

    Of each algorithm at each number, those of the settings that take the fewest.
    """
    groups: dict[tuple[str, bool, int], list[Row]] = {}
    for settings in by_settings(rows):
        key = settings[0]["algo"], is_shared(settings[0]), count(settings[0])
        if key not in groups or mean_steps(settings) < mean_steps(groups[key]):
            groups[key] = settings
    for algo, shared in itertools.product(NAMES, (False, True)):
        points, style = [], {"color": COLORS[algo], "marker": "D" if shared else "o"}
        for number in sorted({n for *key, n in groups if key == [algo, shared]}):
            group = groups[algo, shared, number]
            steps = [int(row["threshold_timesteps"]) for row in group if row["threshold_timesteps"]]
            failed = [
                int(row["total_timesteps"]) for row in group if not row["threshold_timesteps"]
            ]
            axes.scatter([number] * len(steps), steps, s=14, **style)
            axes.scatter([number] * len(failed), failed, s=40, facecolors="none", **style)
            if not failed:
                points.append((number, mean(steps)))
        if points:
            axes.plot(*zip(*points, strict=True), color=COLORS[algo], ls="--" if shared else "-")
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    ticks = sorted({number for *_, number in groups})
    axes.set_xticks(ticks, [str(tick) for tick in ticks])
    axes.grid(alpha=0.3)


def pendulums() -> None:
    """Write `pendulums.png`."""
    curves, rows = filter(is_drawn, read("curves.csv")), read("learning.csv")
    figure, (steps, seconds, thresholds) = plt.subplots(1, 3, figsize=(14, 4.2))
    eight = [row for row in curves if count(row) == 8 and not is_shared(row)]
    styles = {algo: (NAMES[algo], COLORS[algo]) for algo in NAMES}
    for axes, column, scale in ((steps, "timesteps", 1e-6), (seconds, "seconds", 1.0)):
        draw_curves(axes, eight, column, scale, styles, itemgetter("algo"))
        axes.axhline(THRESHOLD, color="0.6", lw=0.8, ls="--")
    draw_thresholds(thresholds, rows)
    steps.set(xlabel="environment steps, millions", ylabel="mean return of the last 100 episodes")
    steps.set_title("8 pendulums of 5 torques")
    seconds.set(xlabel="seconds of training", xscale="log", title="the same, by wall-clock")
    thresholds.set(
        xlabel="pendulums (diamonds: shared weights; open: not reached)",
        ylabel="environment steps",
        title=f"steps to a mean of {THRESHOLD:.0f}",
    )
    steps.legend(loc="lower right", fontsize=8)
    figure.tight_layout()
    figure.savefig(RESULTS / "pendulums.png", dpi=110)


def lunar_lander() -> None:
    """Write `lunar_lander.png`."""
    rows = [row for row in read_all("curves.csv") if row["env"] == "LunarLander-v3"]
    figure, axes = plt.subplots(figsize=(7.5, 4.2))
    draw_curves(axes, rows, "timesteps", 1e-3, AGENTS, agent)
    axes.set(xlabel="environment steps, thousands", ylabel="mean return of the last 100 episodes")
    axes.set_title("LunarLander-v3")
    axes.legend(loc="lower right", fontsize=8)
    figure.tight_layout()
    figure.savefig(RESULTS / "lunar_lander.png", dpi=110)


FIGURES = {"pendulums": pendulums, "lunar_lander": lunar_lander}


def main() -> None:
    """Draw what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("figure", choices=FIGURES)
    FIGURES[parser.parse_args().figure]()


if __name__ == "__main__":
    main()
