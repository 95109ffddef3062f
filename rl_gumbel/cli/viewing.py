"""The options of the verbs that show runs."""

import argparse
import math

import shtab

from rl_gumbel.cli.options import add_agent, at_least, one_of

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


def add_record(parser: argparse.ArgumentParser) -> None:
    """Add the options of `record`."""
    parser.description = (
        "Film the agent of a run (MP4): its environment, its probabilities of each action, what\n"
        "it chooses (orange), and the value that its critic expects; argmax actions."
    )
    parser.add_argument("run", metavar="RUN", help="directory that train wrote")
    add = parser.add_argument
    add("--episodes", type=at_least(1), default=1, metavar="N", help="(default: 1)")
    out = add("--out", metavar="FILE.mp4", help="(default: RUN/videos/MODEL-STEPS.mp4)")
    out.complete = shtab.FILE  # type: ignore[attr-defined]
    add("--gif", action="store_true", help="write a GIF beside it, half as wide")
    add("--fps", type=at_least(1), metavar="N", help="(default: of the environment, or 15)")
    add_agent(parser)


def add_report(parser: argparse.ArgumentParser) -> None:
    """Add the options of `report`."""
    parser.description = (
        "Write one HTML file about a run: curves, evaluations, the estimator, actions over\n"
        "training, a film, configuration and hardware. It needs no network and no other file."
    )
    parser.add_argument("run", metavar="RUN", help="directory that train wrote")
    out = parser.add_argument("--out", metavar="FILE", help="(default: RUN/report.html)")
    out.complete = shtab.FILE  # type: ignore[attr-defined]
    parser.add_argument("--no-video", action="store_true", help="show and record no film")


def add_tensorboard(parser: argparse.ArgumentParser) -> None:
    """Add the options of `tensorboard`."""
    parser.description = (
        "Open TensorBoard on runs. The tab Custom Scalars shows return, losses and the health of\n"
        "the estimator side by side, Histograms the policy of each factor, HParams the settings."
    )
    runs = parser.add_argument("runs", nargs="+", metavar="RUN", help="directory of one or more")
    runs.complete = shtab.DIRECTORY  # type: ignore[attr-defined]
    add = parser.add_argument
    add("--port", type=at_least(0), default=6006, help="0 is any that is free (default: 6006)")


def number(text: str) -> float:
    """Return a finite number; raise argparse's error if it is none."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise argparse.ArgumentTypeError(f"must be a number, got {text!r}")
    return value
