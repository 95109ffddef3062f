"""`rl-gumbel resume`: a run goes on from its newest checkpoint that is whole."""

import argparse
import sys
from pathlib import Path

from rl_gumbel.checkpoint import Checkpoint, DamagedError, FormatError, find_checkpoint
from rl_gumbel.cli.errors import StorageError, UserError
from rl_gumbel.cli.evaluate import read_run
from rl_gumbel.cli.faults import explained
from rl_gumbel.cli.lock import locked
from rl_gumbel.cli.run_directory import CONFIG
from rl_gumbel.cli.training import build_training, run_training
from rl_gumbel.config import TrainConfig

CHANGEABLE = {"total_timesteps", "checkpoint_freq", "checkpoint_keep"}
"""Settings that `train --resume auto` may give anew."""


def resume(args: argparse.Namespace) -> int:
    """Go on with a run, to its own end or another; return the exit code.

    Raises:
        UserError: if there is no such run, or it has no checkpoint or more steps than asked for.
        StorageError: if no checkpoint is whole.
    """
    config = read_run(args.run)
    if args.total_timesteps is not None:
        config = config.model_copy(update={"total_timesteps": args.total_timesteps})
    with explained(config):
        code = go_on(args.run, config, live=not args.no_progress)
    if code is None:
        raise UserError(
            f"{args.run} has no checkpoint yet; start anew with "
            f"rl-gumbel train --config {Path(args.run) / CONFIG}"
        )
    return code


def find_run(text: str | None, config: TrainConfig) -> bool:
    """Return whether the directory of `--run-dir` holds the run of a configuration.

    Raises:
        UserError: if it is not named, or holds another run.
    """
    if text is None:
        raise UserError("--resume auto needs --run-dir, the same each time")
    if not (Path(text) / CONFIG).is_file():
        return False
    there = read_run(text)
    if type(there) is not type(config):
        raise UserError(f"--run-dir {text} holds a run of {there.algo}, not of {config.algo}")
    for name in type(config).model_fields.keys() - CHANGEABLE:
        if getattr(there, name) != getattr(config, name):
            raise UserError(
                f"--run-dir {text} holds a run with another {name} ({getattr(there, name)}); "
                f"name a new directory"
            )
    return True


def go_on(text: str, config: TrainConfig, *, live: bool) -> int | None:
    """Go on with the run in a directory; return the exit code, or None if it has no checkpoint.

    Raises:
        UserError: if it has more steps than `config` asks for, or another process is at it.
        StorageError: if no checkpoint is whole.
    """
    with locked(Path(text)):
        return _go_on(text, config, live=live)


def _go_on(text: str, config: TrainConfig, *, live: bool) -> int | None:
    run_dir = Path(text)
    start = find_start(run_dir)
    if start is None:
        return None
    total = config.total_timesteps
    if start.steps > total and total != read_run(text).total_timesteps:
        raise UserError(f"--total-timesteps {total}: {run_dir} has done {start.steps} steps")
    if start.steps >= total:
        print(f"run: {run_dir} (finished after {start.steps} steps)")
        return 0
    training = build_training(config)
    what = training.describe(str(run_dir / CONFIG))
    print(f"resuming {what} in {run_dir} after {start.steps} steps", flush=True)
    return run_training(training, run_dir, start, live=live, new=False)


def find_start(run_dir: Path) -> Checkpoint | None:
    """Return the newest checkpoint that is whole, saying which are not; None if there is none.

    Raises:
        StorageError: if none is whole, or it is of a newer version.
    """
    try:
        start = find_checkpoint(run_dir)
    except (DamagedError, FormatError) as error:
        raise StorageError(str(error)) from error
    for line in start.skipped if start else ():
        print(f"rl-gumbel: {line}; going on from {start.path}", file=sys.stderr)
    return start
