"""Figures of a single run."""

from collections.abc import Mapping, Sequence
from math import ceil

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from rl_gumbel.plots.figures import COLORS, label_steps
from rl_gumbel.plots.read import LENGTH, RETURN, Curve

Array = NDArray[np.float64]
COLUMNS = 3
"""Panels in a row."""
MAX_FACTORS = 24
"""Whose actions are drawn."""


def draw_return(curves: Mapping[str, Curve]) -> Figure | None:
    """Draw return and episode length: in training, and in evaluation with its deviation."""
    panels = (
        ("return", RETURN, "eval/mean_reward", "eval/std_reward"),
        ("episode length, steps", LENGTH, "eval/mean_ep_length", None),
    )
    if not any(name in curves for _, *names in panels for name in names if name):
        return None
    figure = Figure(figsize=(9.6, 3.7), layout="constrained")
    for axes, (title, training, evaluation, deviation) in zip(
        figure.subplots(1, 2), panels, strict=True
    ):
        if training in curves:
            label = "training, last 100 episodes"
            axes.plot(*curves[training], color=COLORS[0], lw=1.6, label=label)
        if evaluation in curves:
            steps, mean = curves[evaluation]
            style = {"color": COLORS[1], "label": "evaluation, argmax actions"}
            if deviation is not None and deviation in curves:
                spread = curves[deviation][1]
                axes.errorbar(steps, mean, spread, fmt="o-", ms=3.5, lw=1.2, capsize=2, **style)
            else:
                axes.plot(steps, mean, "o-", ms=3.5, lw=1.2, **style)
        axes.set_title(title, loc="left")
        label_steps(axes)
    handles, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower left", ncols=2)
    return figure


def draw_grid(curves: Mapping[str, Curve], names: Sequence[str]) -> Figure | None:
    """Draw each of these metrics that there is in a panel of its own."""
    names = [name for name in names if name in curves and len(curves[name][0]) > 1]
    if not names:
        return None
    figure, panels = _grid(len(names))
    end = max(curves[name][0][-1] for name in names)
    for axes, name in zip(panels, names, strict=False):
        axes.plot(*curves[name], color=COLORS[0], lw=1.4)
        axes.set_title(name.partition("/")[2], loc="left")
        label_steps(axes)
        axes.set_xlim(right=1.02 * end)  # the same for all, some of which are logged less often
    return figure


def draw_actions(steps: Array, factors: Sequence[Array]) -> Figure:
    """Draw how probable each category was over training, factor by factor.

    Args:
        steps: `[P]`.
        factors: for each its probabilities `[P, N]`.
    """
    figure, panels = _grid(len(factors))
    for k, (axes, probs) in enumerate(zip(panels, factors, strict=False)):
        number = probs.shape[1]
        # Ordered colours, since categories are often levels.
        palette = colormaps["viridis"](np.linspace(0.1, 0.95, number))
        axes.stackplot(steps, probs.T, colors=palette, lw=0.4, edgecolor="white")
        axes.set(ylim=(0, 1), title="")
        axes.set_title("" if len(factors) == 1 else f"factor {k}", loc="left")
        label_steps(axes)
        axes.set_xlim(steps[0], max(steps[-1], steps[0] + 1))
        axes.grid(visible=False)
        _name_bands(axes, probs[-1])
    return figure


def _name_bands(axes: Axes, last: Array) -> None:
    """Write each category's number at the right of its band, where there is room."""
    top = 0.0
    for category, share in enumerate(last):
        if share > 0.07:
            place = (1.015, top + share / 2)
            axes.annotate(str(category), place, xycoords="axes fraction", va="center", fontsize=8)
        top += share


def draw_entropy(steps: Array, entropy: Array) -> Figure:
    """Draw the entropy of each factor over training: a line of one, else a map.

    Args:
        steps: `[P]`.
        entropy: `[P, K]`, fractions of the maximum.
    """
    figure = Figure(figsize=(9.6, 3.0), layout="constrained")
    axes = figure.subplots()
    if entropy.shape[1] == 1:
        axes.plot(steps, entropy[:, 0], color=COLORS[0], lw=1.6)
        axes.set(ylim=(0, 1.03), ylabel="entropy / maximum")
    else:
        edges = np.concatenate([steps, [2 * steps[-1] - steps[-2] if len(steps) > 1 else 1]])
        rows = np.arange(entropy.shape[1] + 1) - 0.5
        image = axes.pcolormesh(edges, rows, entropy.T, vmin=0, vmax=1, rasterized=True)
        axes.yaxis.set_major_locator(MaxNLocator(integer=True))
        axes.set(ylabel="factor")
        axes.grid(visible=False)
        axes.invert_yaxis()
        figure.colorbar(image, label="entropy / maximum")
    label_steps(axes)
    axes.set_xlim(steps[0], max(steps[-1], steps[0] + 1))
    return figure


def _grid(number: int) -> tuple[Figure, list[Axes]]:
    columns = min(number, COLUMNS)
    rows = ceil(number / columns)
    size = (3.2 * COLUMNS if columns > 1 else 9.6, (2.3 if columns > 1 else 3.0) * rows)
    figure = Figure(figsize=size, layout="constrained")
    panels = list(figure.subplots(rows, columns, squeeze=False).flatten())
    for axes in panels[number:]:
        axes.set_axis_off()
    return figure, panels
