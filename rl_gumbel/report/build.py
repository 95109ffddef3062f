"""A run's directory to its page."""

import json
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np

from rl_gumbel.plots.events import Array, read_histograms
from rl_gumbel.plots.figures import STYLE
from rl_gumbel.plots.read import (
    CONFIG,
    EVENTS,
    RETURN,
    Curve,
    describe_task,
    read_config,
    read_curves,
)
from rl_gumbel.report import figures, page

ENTROPY, ACTIONS = "policy/entropy_per_factor", "actions/factor_"
"""Histograms of `rl_gumbel.tensorboard`."""
SECONDS = "time/time_elapsed"


def build_report(run: Path, meanings: Mapping[str, str], film: Path | str) -> str:
    """Return the page of a run.

    Args:
        run: its directory.
        meanings: of metrics, by name.
        film: a file to show, or why there is none.

    Raises:
        ValueError: if a file is damaged.
    """
    config = read_config(run)
    metadata = read_metadata(run)
    curves = read_curves(run)
    histograms = read_histograms(run) if next(run.glob(EVENTS), None) else {}
    with matplotlib.rc_context(STYLE):
        sections = [
            page.section("Return", _show(figures.draw_return(curves), "Return over training")),
            page.section("Film", page.note(film) if isinstance(film, str) else page.film(film)),
            page.section("Evaluations", evaluation_table(curves)),
            diagnostics("Estimator", "estimator/", curves, meanings),
            policy_section(histograms),
            diagnostics("Losses and updates", "train/", curves, meanings),
            page.section("What ran", page.facts(describe_run(metadata, config))),
            page.section("Hardware", page.facts(metadata.get("hardware", {}))),
            page.section("Configuration", page.code((run / CONFIG).read_text(encoding="utf-8"))),
        ]
    title = f"{config['algo']} on {describe_task(config)}"
    subtitle = f"seed {config.get('seed')}, {run}"
    return page.make_page(title, subtitle, summarize(curves), sections)


def _show(figure: Any, description: str) -> str:
    if figure is None:
        return page.note("Nothing was logged yet.")
    return page.picture(figure, description)


def read_metadata(run: Path) -> dict[str, Any]:
    """Return what the run wrote about itself; empty if it did not."""
    path = run / "metadata.json"
    try:
        return dict(json.loads(path.read_text(encoding="utf-8"))) if path.is_file() else {}
    except ValueError as error:
        raise ValueError(f"{path} is damaged: {error}") from error


def summarize(curves: Mapping[str, Curve]) -> dict[str, str]:
    """Return the numbers that people look for first, by what they are."""
    cards = {}
    if "eval/mean_reward" in curves:
        steps, mean = curves["eval/mean_reward"]
        best = int(mean.argmax())
        cards["return of the last evaluation"] = format_return(mean[-1])
        cards[f"best evaluation, at step {steps[best]:,.0f}"] = format_return(mean[best])
    if RETURN in curves:
        cards["training return, last 100 episodes"] = format_return(curves[RETURN][1][-1])
    if curves:
        cards["environment steps"] = f"{max(steps[-1] for steps, _ in curves.values()):,.0f}"
    if SECONDS in curves:
        cards["time of training"] = format_seconds(curves[SECONDS][1][-1])
    return cards


def format_return(value: float) -> str:
    """Return a number with four digits, or those before the point."""
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def format_seconds(seconds: float) -> str:
    """Return a duration in its two largest units."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"


def describe_run(metadata: Mapping[str, Any], config: Mapping[str, Any]) -> dict[str, object]:
    """Return what ran, by name."""
    versions = metadata.get("versions", {})
    return {
        "algorithm": config["algo"],
        "environment": describe_task(config),
        "seed": config.get("seed"),
        "started": metadata.get("started"),
        "command": shlex.join(metadata["command"]) if "command" in metadata else None,
        "commit": metadata.get("git_commit"),
        "device": metadata.get("device"),
        "versions": ", ".join(f"{name} {version}" for name, version in versions.items()) or None,
    }


def evaluation_table(curves: Mapping[str, Curve]) -> str:
    """Return the evaluations as a table, the best in bold; of many the last 20 and the best."""
    names = ("eval/mean_reward", "eval/std_reward", "eval/mean_ep_length")
    if any(name not in curves for name in names):
        return page.note("None was made yet.")
    steps, mean = curves[names[0]]
    best = int(mean.argmax())
    shown = sorted({best, *range(len(steps))[-20:]})
    rows = []
    for i in shown:
        values = [f"{steps[i]:,.0f}", *(f"{curves[name][1][i]:.2f}" for name in names)]
        cells = "".join(f"<td>{value}</td>" for value in values)
        rows.append(f'<tr class="best">{cells}</tr>' if i == best else f"<tr>{cells}</tr>")
    head = "".join(
        f"<th>{name}</th>" for name in ("step", "mean return", "deviation", "mean length")
    )
    left_out = len(steps) - len(shown)
    remark = page.note(f"{left_out} earlier ones are not shown.") if left_out else ""
    lines = "\n".join(rows)
    return f'<table class="numbers">\n<tr>{head}</tr>\n{lines}\n</table>{remark}'


def diagnostics(
    title: str, prefix: str, curves: Mapping[str, Curve], meanings: Mapping[str, str]
) -> str:
    """Return every metric with a prefix, drawn and explained; nothing if there is none."""
    names = [name for name in sorted(curves) if name.startswith(prefix)]
    figure = figures.draw_grid(curves, names)
    if figure is None:
        return ""
    explained = {name.removeprefix(prefix): meanings[name] for name in names if name in meanings}
    return page.section(title, page.picture(figure, title), page.definitions(explained))


def policy_section(histograms: Mapping[str, tuple[Array, Array]]) -> str:
    """Return how actions and entropies changed; nothing without snapshots of the policy."""
    parts = []
    names = sorted(name for name in histograms if name.startswith(ACTIONS))
    if names:
        shown = names[: figures.MAX_FACTORS]
        heights = [histograms[name][1][:, :, 2] for name in shown]
        figure = figures.draw_actions(histograms[names[0]][0], heights)
        parts.append(page.picture(figure, "Probability of each category over training"))
        text = "Probability of each category, mean over recent states; numbers are the categories."
        if len(shown) < len(names):
            text += f" The first {len(shown)} of {len(names)} factors are shown."
        parts.append(page.note(text))
    if ENTROPY in histograms:
        steps, bins = histograms[ENTROPY]
        figure = figures.draw_entropy(steps, np.asarray(bins[:, :, 2]))
        parts.append(page.picture(figure, "Entropy of each factor over training"))
        parts.append(page.note("Entropy of each factor as a fraction of its maximum."))
    return page.section("Actions over training", *parts)
