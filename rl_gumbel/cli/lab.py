"""`rl-gumbel lab`: the estimators measured against exact gradients, as tables and figures."""

import argparse
import csv
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rl_gumbel.cli.errors import UserError, cannot_write
from rl_gumbel.cli.need import need
from rl_gumbel.config import TrainConfig

if TYPE_CHECKING:
    from rl_gumbel.lab.on_run import Result

DRAWS, RUN_DRAWS, STATES = 256, 64, 256
THREADS = 1
"""The tensors are small: more would mostly wait for one another."""
NUM_ENVS = 16
"""That the states of a run are collected from."""
NUM_STEPS = 256
"""Of each of them; states are drawn from all steps."""
Row = dict[str, Any]


def lab(args: argparse.Namespace) -> int:
    """Measure, write CSV and PNG files, say where they are; return the exit code.

    Raises:
        UserError: for options that would be ignored, a directory that cannot be used, a run without
            a critic of actions, or if matplotlib is missing. Nothing is written then.
        FailedEnvError: if the environment of the run fails.
        StorageError: for files that cannot be written.
    """
    check(args)
    return measure_experiments(args) if args.run is None else measure_a_run(args)


def check(args: argparse.Namespace) -> None:
    """Raise a `UserError` for what cannot be done, before anything heavy is imported."""
    if args.run is None:
        for option in ("model", "states"):
            if getattr(args, option) is not None:
                raise UserError(f"--{option} would be ignored: it is an option of --run")
    elif args.only is not None:
        raise UserError("--only would be ignored: --run measures that run alone")
    if (args.states or 0) > NUM_ENVS * NUM_STEPS:
        raise UserError(f"--states {args.states}: must be at most {NUM_ENVS * NUM_STEPS}")
    need("matplotlib", "plot")
    if args.out is not None:
        out = Path(args.out)
        if out.exists() and not out.is_dir():
            raise UserError(f"--out {args.out} is a file; name a new directory")
        if out.is_dir() and any(out.iterdir()):
            raise UserError(f"--out {args.out} is not empty; name a new directory")


def measure_experiments(args: argparse.Namespace) -> int:
    """Make the experiments, one after the other, each written as soon as it is there."""
    import torch

    from rl_gumbel.lab import EXPERIMENTS, figures

    torch.set_num_threads(THREADS)
    out = make_directory(args.out, Path("lab"))
    for name in args.only or EXPERIMENTS:
        start = time.perf_counter()
        rows = list(EXPERIMENTS[name](args.draws or DRAWS, args.seed))
        write(out, name, rows, getattr(figures, name)(rows))
        print(f"{name:12} {time.perf_counter() - start:5.1f} s  {out / name}.csv, .png", flush=True)
    return 0


def measure_a_run(args: argparse.Namespace) -> int:
    """Measure the estimators on a run's critic and states; print a table and a recommendation."""
    from rl_gumbel.cli.evaluate import read_run
    from rl_gumbel.cli.faults import explained
    from rl_gumbel.lab import figures

    config = read_run(args.run)
    if not hasattr(config.algorithm, "critic"):
        raise UserError(
            f"{args.run} is a run of {config.algo}, which has no critic of actions to measure on; "
            f"sac and reppo have one"
        )
    with explained(config):
        result = measure(config, args)
    out = make_directory(args.out, Path(args.run) / "lab")
    write(out, "run", result.rows, figures.run(result.rows))
    show(config, args, result)
    print(f"{out / 'run'}.csv, .png")
    return 0


def measure(config: TrainConfig, args: argparse.Namespace) -> "Result":
    """Return the errors of the estimators on the model that `args` names."""
    import torch

    from rl_gumbel.cli.backends import make_evaluation_vec
    from rl_gumbel.cli.evaluate import load_agent
    from rl_gumbel.lab.on_run import (
        BatchGradient,
        collect_states,
        measure_run,
        training_method,
    )
    from rl_gumbel.vec_env import as_batched

    torch.set_num_threads(THREADS)
    torch.manual_seed(args.seed)
    model = load_agent(config, args.run, args.model or "last", args.seed, "cpu")
    objective = model.objective
    present = training_method(objective, 0.0)  # that of the end of training
    env = make_evaluation_vec(config, NUM_ENVS, args.seed, "cpu")
    try:
        batched = as_batched(env, "cpu")
        count = args.states or STATES
        obs, mask = collect_states(model.policy, batched, NUM_STEPS, count, args.seed)
    finally:
        env.close()
    gradient = BatchGradient(model.policy, obs, mask, objective.use_mean)
    return measure_run(gradient, present, args.draws or RUN_DRAWS)


def make_directory(text: str | None, default: Path) -> Path:
    """Return the directory, made: the one named, or the default with a number if it is taken."""
    path, number = Path(text) if text is not None else default, 1
    while text is None and path.exists():
        number += 1
        path = default.with_name(f"{default.name}-{number}")
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise cannot_write(path, error) from error
    return path


def write(out: Path, name: str, rows: Sequence[Row], figure: Any) -> None:
    """Write the table and its figure."""
    from rl_gumbel.lab.figures import save

    try:
        with (out / f"{name}.csv").open("w", newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
            writer.writeheader()
            for row in rows:
                writer.writerow({key: _text(value) for key, value in row.items()})
        save(figure, out / f"{name}.png")
    except OSError as error:
        raise cannot_write(Path(error.filename or out), error) from error


def _text(value: Any) -> Any:
    return f"{value:.6g}" if isinstance(value, float) else value


def show(config: TrainConfig, args: argparse.Namespace, result: "Result") -> None:
    """Print the table of a run and what it comes to."""
    from rich.console import Console
    from rich.table import Table

    best = result.best
    console = Console()
    console.print(
        f"{args.run}: {config.algo} on {config.env}, {args.model or 'last'} model, "
        f"{best['states']} states; true gradient: {best['reference']}"
        + (f", uncertain by {best['reference_noise']:.2g}" if best["reference_noise"] else ""),
        soft_wrap=True,
        highlight=False,
    )
    # Narrow enough for 80 columns.
    table = Table(
        "method", "T", "cosine", "+-", "bias", "rms", "us", "", box=None, padding=(0, 1, 0, 0)
    )
    for column in table.columns[1:7]:
        column.justify = "right"
    for row in result.rows:
        marks = [
            name for key, name in (("recommended", "best"), ("trains", "this run")) if row[key]
        ]
        table.add_row(
            row["method"],
            "" if row["temperature"] is None else f"{row['temperature']:g}",
            f"{row['cosine']:.3f}",
            f"{row['cosine_se']:.3f}",
            f"{row['bias']:.3f}",
            f"{row['mean_squared_error'] ** 0.5:.3f}",
            f"{row['microseconds']:.0f}",
            "<- " + ", ".join(marks) if marks else "",
        )
    console.print(table)
    console.print(advice(result), soft_wrap=True, highlight=False)


def advice(result: "Result") -> str:
    """Return the recommendation in a few lines, with its numbers and options."""
    from rl_gumbel.lab.figures import title_of

    best, present, hard = result.best, result.present, result.best_hard

    def measured(row: Row) -> str:
        return f"{title_of(row)}: cosine {row['cosine']:.3f} +- {row['cosine_se']:.3f}"

    if best is present:
        lines = [f"recommended: what this run has, {measured(best)}; no other is clearly better"]
    else:
        lines = [f"recommended: {measured(best)} (this run has {measured(present)})"]
        lines.append(options_of(best))
        if (best["method"], best["temperature"]) != (hard["method"], hard["temperature"]):
            lines += [f"with actions that are one-hot: {measured(hard)}", options_of(hard)]
    for row in result.sums:
        times = row["microseconds"] / best["microseconds"]
        name = row["method"]
        lines.append(
            f"without an estimator: {measured(row)}, in {times:.1f} times the time\n"
            f"  --algorithm.actor-gradient {name}"
        )
    return "\n".join(lines)


def options_of(row: Row) -> str:
    """Return what `train` must be told to train so."""
    return (
        f"  --algorithm.actor-gradient estimator --algorithm.estimator {row['method']} "
        f"--algorithm.temperature {row['temperature']:g}"
    )
