"""`rl-gumbel train`: settings to a trained agent in a directory of its own."""

import argparse
import sys
from pathlib import Path

import torch
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.logger import configure
from stable_baselines3.common.vec_env import VecEnv

from rl_gumbel.callbacks import EvaluationCallback
from rl_gumbel.checkpoint import save_model
from rl_gumbel.cli.backends import choose_backend, make_evaluation_vec, make_training_vec
from rl_gumbel.cli.build import find_device, make_model
from rl_gumbel.cli.environments import policy_name
from rl_gumbel.cli.errors import INTERRUPTED
from rl_gumbel.cli.memory import keep_freed_memory
from rl_gumbel.cli.progress import ProgressCallback
from rl_gumbel.cli.run_directory import check_run_dir, make_run_dir
from rl_gumbel.config import TrainConfig, find_tuned

EVALUATION_SEED = 1_000_000
"""Added to the seed for evaluation, so that it sees other episodes than training."""


def train(config: TrainConfig, args: argparse.Namespace) -> int:
    """Train, write the run, say where it is; return the exit code.

    Nothing is written before everything is built, so that a mistake leaves nothing behind.

    Raises:
        UserError: for an environment, a device or a directory that cannot be used.
    """
    check_run_dir(args.run_dir)
    device = find_device(config.device)
    if device == "cpu":
        torch.set_num_threads(config.threads)
        keep_freed_memory()
    env = make_training_vec(config, device)
    model = make_model(config, env, str(policy_name(env.observation_space)), device)
    evaluation_seed = (config.seed + EVALUATION_SEED) % 2**32
    evaluation_env = make_evaluation_vec(config, config.eval_episodes, evaluation_seed, device)
    run_dir = make_run_dir(args.run_dir, config, device)
    settings = args.config or find_tuned(config.algo, config.env) or "defaults; none are tuned"
    where = f"{choose_backend(config)} on {device}"
    what = f"{config.algo} on {config.env} ({where}; settings: {settings})"
    print(f"training {what} in {run_dir}", flush=True)
    live = sys.stdout.isatty() and not args.no_progress
    try:
        finished = learn(model, config, run_dir, evaluation_env, live=live)
    finally:
        env.close()
        evaluation_env.close()
    if not finished:
        print(f"interrupted after {model.num_timesteps} steps; the last model is in {run_dir}")
        return INTERRUPTED
    print(f"run: {run_dir}")
    return 0


def learn(
    model: BaseAlgorithm, config: TrainConfig, run_dir: Path, env: VecEnv, *, live: bool
) -> bool:
    """Return whether training came to its end; the last model is saved either way."""
    model.set_logger(configure(str(run_dir), ["tensorboard", "csv"]))
    evaluations = EvaluationCallback(env, run_dir, config.eval_freq, config.eval_episodes)
    try:
        with ProgressCallback(evaluations, config.total_timesteps, live=live) as progress:
            model.learn(config.total_timesteps, callback=[evaluations, progress])
        return True
    except KeyboardInterrupt:
        return False
    finally:
        save_model(model, run_dir / "models" / "last")
        model.logger.close()
