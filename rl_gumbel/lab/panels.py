"""What the figures of the lab share: rows to lines in panels, a style for each method.

Colours are those of Okabe & Ito, told apart by the colour-blind; markers repeat the distinction.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import NullLocator

Row = dict[str, Any]
STYLES: dict[str, dict[str, Any]] = {
    "straight_through": {"color": "#0072B2", "marker": "o"},
    "straight_through_gumbel": {"color": "#E69F00", "marker": "s"},
    "reinmax": {"color": "#009E73", "marker": "D"},
    "gumbel_rao": {"color": "#D55E00", "marker": "^"},
    "gapped_straight_through": {"color": "#CC79A7", "marker": "v"},
    "gumbel_softmax": {"color": "#56B4E9", "marker": "x", "ls": "--"},
    "probabilities": {"color": "#8C6D1F", "marker": "+", "ls": "--"},
    "local_expectation": {"color": "#777777", "marker": "P", "ls": "-."},
    "score_function": {"color": "black", "marker": "1", "ls": ":"},
    "score_function_baseline": {"color": "black", "marker": "2", "ls": "--"},
    "leave_one_out": {"color": "black", "marker": "3", "ls": "-"},
    "exact": {"color": "#777777", "marker": "*", "ls": ":"},
}
"""Of each line; `decoupled_straight_through` is `straight_through` unless it samples otherwise."""
NAMES = {
    "straight_through": "straight_through\n(= decoupled)",
    "score_function": "score_function\n(REINFORCE)",
    "score_function_baseline": "score_function,\nexact baseline",
    "leave_one_out": "leave_one_out\n(4 evaluations)",
    "gumbel_softmax": "gumbel_softmax\n(relaxed)",
    "probabilities": "probabilities\n(relaxed)",
    "local_expectation": "local_expectation\n(K N evaluations)",
}
OBJECTIVES = {
    "linear": "linear objective",
    "quadratic": "quadratic objective",
    "mlp": "tanh perceptrons on neighbours",
}
MEASURES: dict[str, tuple[str, Callable[[Row], float]]] = {
    "bias": ("bias\n(part of the true gradient's norm)", lambda row: row["bias"]),
    "deviation": (
        "standard deviation of a sample\n(same unit)",
        lambda row: max(row["variance"], 0.0) ** 0.5,
    ),
    "error": (
        "root-mean-square error of a sample\n(true gradient's norm = 1)",
        lambda row: row["mean_squared_error"] ** 0.5,
    ),
    "cosine": ("cosine of a sample\nwith the true gradient", lambda row: row["cosine"]),
}
"""Label and value."""


def select(rows: Iterable[Row], **values: Any) -> list[Row]:
    """Return the rows with these values."""
    return [row for row in rows if all(row[key] == value for key, value in values.items())]


def number(rows: Iterable[Row], measure: str, **values: Any) -> float:
    """Return the measure in the one row with these values."""
    (row,) = select(rows, **values)
    return MEASURES[measure][1](row)


def draw_lines(
    axes: Axes, rows: Sequence[Row], x: str, value: Callable[[Row], float], x_log: bool = True
) -> None:
    """Draw a line for each method that has a style."""
    for name, style in STYLES.items():
        points = [(row[x], value(row)) for row in rows if row["method"] == name]
        if points:
            axes.plot(*zip(*points, strict=True), lw=1.5, ms=5, label=name, **style)
    if x_log:
        ticks = sorted({row[x] for row in rows})
        axes.set_xscale("log")
        axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
        axes.xaxis.set_minor_locator(NullLocator())
    axes.grid(alpha=0.3)


def add_legend(figure: Figure, rows: Sequence[Row]) -> None:
    """Put the methods that were drawn beside the panels."""
    drawn = {row["method"] for row in rows}
    lines = [
        Line2D([], [], label=NAMES.get(name, name), lw=1.5, ms=6, **style)
        for name, style in STYLES.items()
        if name in drawn
    ]
    figure.legend(handles=lines, loc="outside right center", fontsize=8, frameon=False)


def draw_grid(
    rows: Sequence[Row], x: str, x_label: str, measures: Sequence[str], title: str, note: str
) -> Figure:
    """Return a figure with a row of panels for each measure and a column for each objective."""
    figure = Figure(figsize=(12.5, 3.0 * len(measures) + 1.2), layout="constrained")
    panels = figure.subplots(len(measures), len(OBJECTIVES), sharex=True, sharey="row")
    for line, measure in zip(panels, measures, strict=True):
        name, value = MEASURES[measure]
        for axes, objective in zip(line, OBJECTIVES, strict=True):
            draw_lines(axes, select(rows, objective=objective), x, value)
        line[0].set_ylabel(name)
        if measure in ("error", "deviation"):
            # Down to a twentieth; what is exactly 0 lies below the frame.
            line[0].set_yscale("log")
            line[0].set_ylim(bottom=0.05)
        else:
            # A bias beyond the gradient itself is off the chart in both senses.
            line[0].set_ylim(-0.05, min(line[0].get_ylim()[1], 1.25))
    for axes, title_of_column in zip(panels[0], OBJECTIVES.values(), strict=True):
        axes.set_title(title_of_column, fontsize=10)
    for axes in panels[-1]:
        axes.set_xlabel(x_label)
    figure.suptitle(title, fontsize=12, weight="bold")
    figure.supxlabel(note, fontsize=8, color="0.35")
    add_legend(figure, rows)
    return figure


def setting_of(rows: Sequence[Row], but: str) -> str:
    """Return the settings that all rows share, in words."""
    words = {
        "factors": "{} factors",
        "categories": "{} categories",
        "sharpness": "logits of standard deviation {:g}",
        "instances": "{} random instances",
    }
    parts = [text.format(rows[0][name]) for name, text in words.items() if name != but]
    return "; ".join([*parts, f"{max(row['draws'] for row in rows)} samples of each"])


ZERO = "a bias within three standard errors of 0 is drawn at 0"
