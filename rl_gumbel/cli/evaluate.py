"""`rl-gumbel evaluate`: the agent of a run, measured."""

import argparse
import contextlib
import json
import sys
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from stable_baselines3.common.base_class import BaseAlgorithm

from rl_gumbel.callbacks import Evaluation, evaluate_model
from rl_gumbel.checkpoint import load_model
from rl_gumbel.cli.backends import make_evaluation_vec
from rl_gumbel.cli.build import find_device
from rl_gumbel.cli.errors import UserError
from rl_gumbel.cli.faults import explained
from rl_gumbel.cli.nearest import explain_no_run
from rl_gumbel.cli.run_directory import CONFIG
from rl_gumbel.config import TrainConfig, load_config


def evaluate(args: argparse.Namespace) -> int:
    """Evaluate a run and print the result as a table or as one JSON object; return the exit code.

    Raises:
        UserError: if there is no such run, model, environment or device.
    """
    config = read_run(args.run)
    # Standard output carries the JSON alone, whatever an environment prints.
    with contextlib.redirect_stdout(sys.stderr), explained(config):
        result = measure(config, args)
    record = asdict(result) | {"episodes": args.episodes}
    if args.json:
        del record["timesteps"]
        print(json.dumps(record))
    else:
        show(config, args, record)
    return 0


def read_run(text: str) -> TrainConfig:
    """Return the configuration of a run directory; raise a `UserError` if it is none."""
    path = Path(text) / CONFIG
    if not path.is_file():
        raise UserError(f"{text} is not a run directory: {explain_no_run(Path(text))}")
    return load_config(path)


def measure(config: TrainConfig, args: argparse.Namespace) -> Evaluation:
    """Return the result of the episodes that `args` asks for."""
    device = find_device(args.device)
    torch.set_num_threads(config.threads)
    model = load_agent(config, args.run, args.model, args.seed, device)
    env = make_evaluation_vec(
        config,
        args.episodes,
        args.seed,
        device,
        max_episode_steps=args.max_episode_steps,
        render_mode="human" if args.render else None,
    )
    try:
        return evaluate_model(model, env, args.episodes, deterministic=not args.stochastic)
    finally:
        env.close()


def load_agent(config: TrainConfig, run: str, name: str, seed: int, device: str) -> BaseAlgorithm:
    """Return the model of a run, `last` or `best`; raise a `UserError` if there is none."""
    settings = {"seed": seed}
    if hasattr(config.algorithm, "buffer_size"):
        settings["buffer_size"] = 1  # not used here; a full one could be gigabytes of images
    try:
        return load_model(Path(run) / "models" / name, device=device, **settings)
    except (FileNotFoundError, ValueError) as error:
        raise UserError(str(error)) from error


def show(config: TrainConfig, args: argparse.Namespace, record: Mapping[str, Any]) -> None:
    """Print the result as a table."""
    actions = "sampled actions" if args.stochastic else "argmax actions"
    table = Table(show_header=False)
    table.add_row("mean return", f"{record['mean_reward']:.2f}")
    table.add_row("standard deviation", f"{record['std_reward']:.2f}")
    table.add_row("mean episode length", f"{record['mean_ep_length']:.1f}")
    table.add_row("episodes", str(record["episodes"]))
    table.add_row("trained for", f"{record['timesteps']:,} steps")
    console = Console()
    title = f"{args.run}: {config.algo} on {config.env}, {args.model} model, {actions}"
    console.print(title, soft_wrap=True, highlight=False)
    console.print(table)
