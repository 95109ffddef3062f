"""A figure for each experiment of the lab, with the numbers that its title states."""

from collections.abc import Sequence
from io import BytesIO
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from PIL import Image

from rl_gumbel.lab.panels import (
    STYLES,
    ZERO,
    Row,
    add_legend,
    draw_grid,
    draw_lines,
    number,
    select,
    setting_of,
)

DPI = 110


def temperature(rows: Sequence[Row]) -> Figure:
    """Return the errors over temperature."""
    name, low, high = "straight_through_gumbel", 0.1, 1.0
    bias, deviation = (
        [number(rows, m, objective="linear", method=name, temperature=t) for t in (low, high)]
        for m in ("bias", "deviation")
    )
    title = (
        f"Cooling straight-through Gumbel from {high:g} to {low:g} takes its bias from "
        f"{bias[1]:.2f} to {bias[0]:.2f}\nand its standard deviation from {deviation[1]:.2f} to"
        f" {deviation[0]:.1f} (linear objective)"
    )
    note = (
        f"{setting_of(rows, '')}; {ZERO}, one beyond 1.25 above the frame; "
        f"reinmax starts at temperature 1"
    )
    measures = ("bias", "deviation", "cosine")
    return draw_grid(rows, "temperature", "temperature", measures, title, note)


def factors(rows: Sequence[Row]) -> Figure:
    """Return the errors over the number of factors."""
    counts = sorted({row["factors"] for row in rows})
    ends = [
        [
            number(rows, "error", objective="mlp", method=m, factors=k)
            for k in (counts[0], counts[-1])
        ]
        for m in ("score_function_baseline", "straight_through")
    ]
    title = (
        f"From {counts[0]} to {counts[-1]} factors the error of the score function, with the best "
        f"baseline, goes from {ends[0][0]:.1f} to {ends[0][1]:.1f},\nthat of straight-through from "
        f"{ends[1][0]:.1f} to {ends[1][1]:.1f} (perceptrons)"
    )
    note = f"{setting_of(rows, 'factors')}; errors of exactly 0 lie below the frame"
    return draw_grid(rows, "factors", "action factors K", ("error", "cosine"), title, note)


def categories(rows: Sequence[Row]) -> Figure:
    """Return the errors over the number of categories."""
    counts = sorted({row["categories"] for row in rows})
    ends = [
        [number(rows, "cosine", objective="mlp", method=m, categories=n) for n in counts]
        for m in ("straight_through", "straight_through_gumbel")
    ]
    title = (
        f"From {counts[0]} to {counts[-1]} categories the cosine of a sample goes from "
        f"{ends[0][0]:.2f} to {ends[0][-1]:.2f} with straight-through,\nfrom {ends[1][0]:.2f} to "
        f"{ends[1][-1]:.2f} with straight-through Gumbel (perceptrons)"
    )
    note = f"{setting_of(rows, 'categories')}; {ZERO}"
    return draw_grid(rows, "categories", "categories N", ("bias", "error", "cosine"), title, note)


def sharpness(rows: Sequence[Row]) -> Figure:
    """Return the errors over the sharpness of the policy."""
    values = sorted({row["sharpness"] for row in rows})
    ends = [
        [number(rows, "cosine", objective="mlp", method=m, sharpness=s) for s in values]
        for m in ("straight_through", "score_function_baseline")
    ]
    title = (
        f"From nearly uniform to sharp policies the cosine of a sample goes from {ends[0][0]:.2f} "
        f"to {ends[0][-1]:.2f} with straight-through,\nfrom {ends[1][0]:.2f} to {ends[1][-1]:.2f} "
        f"with the score function and its best baseline (perceptrons)"
    )
    note = f"{setting_of(rows, 'sharpness')}; {ZERO}"
    label = "standard deviation of the logits"
    return draw_grid(rows, "sharpness", label, ("bias", "error", "cosine"), title, note)


def shapes(rows: Sequence[Row]) -> Figure:
    """Return bias and cosine of every method on every shape of objective, as numbers."""
    names = list(dict.fromkeys(row["objective"] for row in rows))
    methods = [name for name in STYLES if name != "exact"]
    figure = Figure(figsize=(13, 6.2), layout="constrained")
    labels = []
    for name in names:
        fit = select(rows, objective=name)[0]["fit"]
        text = name.replace("critic ", "critic\n").replace(", first layer", ",\nfirst layer")
        labels.append(text + (f"\n(fit {fit:.0%})" if fit is not None else ""))
    panels = figure.subplots(1, 2, sharey=True)
    for axes, measure, palette in zip(
        panels, ("bias", "cosine"), ("Blues", "Blues_r"), strict=True
    ):
        table = np.array(
            [[number(rows, measure, objective=n, method=m) for n in names] for m in methods]
        )
        axes.imshow(table, cmap=palette, vmin=0, vmax=1, aspect="auto", alpha=0.75)
        for (row, column), value in np.ndenumerate(table):
            axes.text(column, row, f"{value:.2f}", ha="center", va="center", fontsize=9)
        axes.set_xticks(range(len(names)), labels, fontsize=8)
        axes.set_yticks(range(len(methods)), methods, fontsize=9)
        axes.tick_params(length=0)
    panels[0].set_title("bias (part of the true gradient's norm): lower is better", fontsize=10)
    panels[1].set_title(
        "cosine of one sample with the true gradient: higher is better", fontsize=10
    )
    linear, bent = (
        number(rows, "bias", objective=n, method="straight_through")
        for n in ("linear", "quadratic")
    )
    figure.suptitle(
        f"The shape of the objective decides the bias: straight-through {linear:.2f} where it is "
        f"linear in each factor, {bent:.2f} where it is quadratic",
        fontsize=12,
        weight="bold",
    )
    figure.supxlabel(
        f"{setting_of(rows, '')}; {ZERO.replace('drawn at', 'shown as')}; default temperatures\n"
        "critics are networks fitted to the values of the joint actions under 'mlp'; "
        "fit: the part of their variance that is explained",
        fontsize=8,
        color="0.35",
    )
    return figure


def cost(rows: Sequence[Row]) -> Figure:
    """Return the time of a gradient over the number of factors."""
    figure = Figure(figsize=(8.5, 4.8), layout="constrained")
    axes = figure.subplots()
    draw_lines(axes, rows, "factors", lambda row: row["microseconds"])
    most = max(row["factors"] for row in rows)
    times = {row["method"]: row["microseconds"] for row in select(rows, factors=most)}
    axes.set_yscale("log")
    axes.set_xlabel("action factors K")
    axes.set_ylabel(
        f"microseconds of one processor\nbatch of {rows[0]['batch']}, forward and backward"
    )
    figure.suptitle(
        f"At {most} factors local expectation takes "
        f"{times['local_expectation'] / times['straight_through']:.0f} times as long as "
        f"straight-through",
        fontsize=12,
        weight="bold",
    )
    figure.supxlabel(
        f"through a critic {rows[0]['critic']}, {rows[0]['categories']} categories; threads: "
        f"{rows[0]['threads']}; gradient at the logits",
        fontsize=8,
        color="0.35",
    )
    add_legend(figure, rows)
    return figure


def polynomial(rows: Sequence[Row]) -> Figure:
    """Return the losses of the polynomial programme with the values where methods come to rest."""
    powers = sorted({row["power"] for row in rows})
    figure = Figure(figsize=(13, 4.6), layout="constrained")
    for axes, power in zip(figure.subplots(1, len(powers)), powers, strict=True):
        here = select(rows, power=power)
        for row in (
            select(here, method="straight_through")[0],
            select(here, method="probabilities")[0],
        ):
            style = STYLES[row["method"]]
            axes.axhline(row["plateau"], color=style["color"], lw=5, alpha=0.25)
        axes.axhline(here[0]["optimum"], color="0.3", lw=5, alpha=0.25)
        for name, style in STYLES.items():
            line = select(here, method=name)
            if line:
                axes.plot(
                    [row["step"] for row in line], [row["loss"] for row in line],
                    lw=1.5, ms=5, markevery=8, **style,
                )  # fmt: skip
        axes.set_title(f"p = {power:g}", fontsize=10)
        axes.set_xlabel("steps of Adam")
        rest = select(here, method="straight_through")[0]["plateau"]
        for text, y, shift, color in (
            (f"optimum {here[0]['optimum']:.4f}", here[0]["optimum"], 14, "0.3"),
            (f"straight-through rests at {rest:.4f}", rest, -32, "#0072B2"),
        ):
            axes.annotate(
                text,
                (here[-1]["step"], y),
                xytext=(0, shift),
                textcoords="offset points",
                ha="right",
                fontsize=9,
                color=color,
            )
        axes.grid(alpha=0.3)
    figure.axes[0].set_ylabel("expected loss, mean of |z - 0.45|^p")
    last = max(row["step"] for row in rows)
    end = {row["method"]: row["loss"] for row in select(rows, power=2.0, step=last)}
    figure.suptitle(
        f"Straight-through comes to rest where theory says, at {end['straight_through']:.4f} for "
        f"p = 2; ReinMax reaches the optimum, {end['reinmax']:.4f}",
        fontsize=12,
        weight="bold",
    )
    figure.supxlabel(
        "128 binary variables (arXiv 2304.08612, section 5.1), batch 64; broad bands: closed forms",
        fontsize=8,
        color="0.35",
    )
    add_legend(figure, rows)
    return figure


def run(rows: Sequence[Row]) -> Figure:
    """Return the cosines of the methods on a run, the recommended and the present one marked."""
    figure = Figure(figsize=(9, 0.24 * len(rows) + 1.8), layout="constrained")
    axes = figure.subplots()
    ordered = rows[::-1]
    for y, row in enumerate(ordered):
        style = STYLES.get(row["method"], STYLES["straight_through"])
        axes.errorbar(
            row["cosine"], y, xerr=2 * row["cosine_se"], color=style["color"],
            marker=style["marker"], ms=6, capsize=2,
        )  # fmt: skip
        marks = [text for key, text in (("recommended", "recommended"), ("trains", "this run"))
                 if row[key]]  # fmt: skip
        if marks:
            axes.axhspan(y - 0.45, y + 0.45, color="#F0E442", alpha=0.5, lw=0)
    axes.set_yticks(range(len(ordered)), [label(row) for row in ordered], fontsize=8)
    axes.set_ylim(-0.8, len(ordered) - 0.2)
    axes.set_xlabel("cosine of a batch gradient with the true one (bars: 2 standard errors)")
    axes.grid(alpha=0.3)
    best, present = (next(r for r in rows if r[key]) for key in ("recommended", "trains"))
    same = (
        ""
        if best is present
        else f"; this run trains with {title_of(present)}: {present['cosine']:.2f}"
    )
    figure.suptitle(
        f"Best on this run: {title_of(best)}, cosine {best['cosine']:.2f}{same}",
        fontsize=11,
        weight="bold",
    )
    figure.supxlabel(
        f"gradients of {best['states']} states in the actor's weights; {best['draws']} of each; "
        f"true gradient: {best['reference']}",
        fontsize=8,
        color="0.35",
    )
    return figure


def title_of(row: Row) -> str:
    """Return method and temperature."""
    temperature = "" if row["temperature"] is None else f" at {row['temperature']:g}"
    return f"{row['method']}{temperature}"


def label(row: Row) -> str:
    """Return the same, with what stands out about it."""
    marks = [
        text for key, text in (("recommended", "recommended"), ("trains", "this run")) if row[key]
    ]
    return title_of(row) + (f"  [{', '.join(marks)}]" if marks else "")


def save(figure: Figure, path: Path) -> None:
    """Write a figure as PNG of few colours, a third of the usual size."""
    buffer = BytesIO()
    figure.savefig(buffer, dpi=DPI)
    image = Image.open(buffer).convert("RGB")
    # The method that keeps rare colours, those of thin lines, as they are.
    image.quantize(256, Image.Quantize.MAXCOVERAGE).save(path, optimize=True)
