"""`rl-gumbel train`: settings to a trained agent in a directory of its own."""

import argparse

from rl_gumbel.cli.faults import explained
from rl_gumbel.cli.lock import locked
from rl_gumbel.cli.resume import find_run, go_on
from rl_gumbel.cli.run_directory import check_run_dir, make_run_dir
from rl_gumbel.cli.training import build_training, run_training
from rl_gumbel.config import TrainConfig, find_tuned


def train(config: TrainConfig, args: argparse.Namespace) -> int:
    """Train, write the run, say where it is; return the exit code.

    Nothing is written before everything is built, so that a mistake leaves nothing behind.

    Raises:
        UserError: for an environment, a device or a directory that cannot be used.
        StorageError: with `--resume auto`, if no checkpoint is whole.
    """
    with explained(config):
        return _train(config, args)


def _train(config: TrainConfig, args: argparse.Namespace) -> int:
    is_there = False
    if args.resume is not None:
        is_there = find_run(args.run_dir, config)
        if (
            is_there
            and (code := go_on(args.run_dir, config, live=not args.no_progress)) is not None
        ):
            return code
    if not is_there:
        check_run_dir(args.run_dir)
    training = build_training(config)
    run_dir = make_run_dir(args.run_dir, config, training.device)
    settings = args.config or find_tuned(config.algo, config.env) or "defaults; none are tuned"
    with locked(run_dir):
        print(f"training {training.describe(str(settings))} in {run_dir}", flush=True)
        return run_training(training, run_dir, live=not args.no_progress, new=not is_there)
