"""The options of the verbs that show runs."""

import argparse
import math

import shtab

from rl_gumbel.cli.options import one_of

STATISTICS = ("iqm", "mean")


def add_plot(parser: argparse.ArgumentParser) -> None:
    """Add the options of `plot`."""
    parser.description = (
        "Draw runs over seeds: learning curves, scores at the end, performance profiles and\n"
        "probabilities of improvement, each as PNG, SVG and CSV. Reads directories that train\n"
        "wrote, SB3's monitor.csv files and TensorBoard's event files, at and below RUNS."
    )
    parser.epilog = (
        "Runs that differ in their seed alone are one group. Intervals are 95% percentiles of a\n"
        "bootstrap over runs, stratified by environment (Agarwal et al. 2021)."
    )
    runs = parser.add_argument("runs", nargs="+", metavar="RUNS", help="directories or files")
    runs.complete = shtab.FILE  # type: ignore[attr-defined]
    add = parser.add_argument
    out = add("--out", metavar="DIR", default="plots", help="where to write (default: plots)")
    out.complete = shtab.DIRECTORY  # type: ignore[attr-defined]
    metric = "rollout/ep_rew_mean"
    add("--metric", metavar="TAG", default=metric, help=f"what to draw (default: {metric})")
    add(
        "--statistic",
        type=one_of(STATISTICS),
        choices=STATISTICS,
        default="iqm",
        help="over runs; iqm leaves out the lowest and highest quarter (default: iqm)",
    )
    add("--threshold", type=number, metavar="X", help="draw the steps until the metric reaches X")
    add(
        "--by",
        metavar="CONFIG.KEY",
        help="a group for each value of this setting, as algorithm.estimator",
    )


def number(text: str) -> float:
    """Return a finite number; raise argparse's error if it is none."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise argparse.ArgumentTypeError(f"must be a number, got {text!r}")
    return value
