"""What steps the environments of a run, torch or Gymnasium, and the environments themselves."""

from typing import Any

import gymnasium as gym
from stable_baselines3.common.vec_env import VecEnv

from rl_gumbel.algorithms import ALGORITHMS
from rl_gumbel.algorithms.batched import BatchedAlgorithm
from rl_gumbel.cli import environments
from rl_gumbel.cli.env_errors import explain
from rl_gumbel.cli.errors import UserError
from rl_gumbel.config import TrainConfig, suggest
from rl_gumbel.envs import ENVS
from rl_gumbel.envs.base import TorchEnv
from rl_gumbel.faults import EnvError
from rl_gumbel.vec_env import SB3VecEnv, make_vec
from rl_gumbel.vec_env.names import find_torch_id

MAX_EVALUATION_ENVS = 100
"""Evaluation episodes that run side by side in torch."""
RESERVED = {
    "num_envs": "; use --num-envs",
    "device": "; use --device",
    "dtype": "",
    "gradients": "",
}
"""Arguments of torch environments that are not the user's, and what is instead."""


def choose_backend(config: TrainConfig) -> str:
    """Return `torch` or `gymnasium`.

    Raises:
        UserError: for `torch` where the environment has no torch version.
    """
    has_torch = find_torch_id(config.env) is not None
    if config.backend == "torch" and not has_torch:
        hint = "" if config.env in gym.registry else suggest(config.env, ENVS)
        raise UserError(
            f"--backend torch: {config.env} has no torch version{hint} (see rl-gumbel list envs)"
        )
    if config.backend != "auto":
        return config.backend
    takes_batches = issubclass(ALGORITHMS[config.algo], BatchedAlgorithm)
    return "torch" if has_torch and takes_batches and not config.env_wrappers else "gymnasium"


def make_training_vec(config: TrainConfig, device: str) -> VecEnv:
    """Return the environments for training.

    Raises:
        UserError: if they cannot be made, or their spaces are not supported.
    """
    if choose_backend(config) == "torch":
        if config.restart_failed_envs:
            raise UserError(
                f"--restart-failed-envs {config.restart_failed_envs} would be ignored: "
                f"{config.env} steps in torch; --backend gymnasium has processes to restart"
            )
        if config.vectorization_mode == "async":
            raise UserError(
                f"--vectorization-mode async would be ignored: {config.env} steps in torch; "
                f"--backend gymnasium has processes"
            )
        return make_torch_vec(config, config.num_envs, config.seed, device)
    return environments.make_training_vec(config, device)


def make_evaluation_vec(
    config: TrainConfig,
    num_episodes: int,
    seed: int,
    device: str,
    *,
    max_episode_steps: int | None = None,
    render_mode: str | None = None,
) -> VecEnv:
    """Return environments whose episodes all end: by `max_episode_steps`, or their own limit.

    Raises:
        UserError: if they cannot be made, or not be rendered.
    """
    is_window = render_mode == "human"  # which Gymnasium alone has
    if is_window or choose_backend(config) == "gymnasium":
        return environments.make_evaluation_vec(
            config,
            num_episodes,
            seed,
            max_episode_steps=max_episode_steps,
            render_mode=render_mode,
        )
    env = make_torch_vec(config, min(num_episodes, MAX_EVALUATION_ENVS), seed, device)
    if render_mode not in (None, env.batched.render_mode):
        raise UserError(f"{config.env} cannot be rendered: there is no picture of it")
    limits = [limit for limit in (max_episode_steps, env.batched.max_episode_steps) if limit]
    env.batched.max_episode_steps = min(limits, default=environments.MAX_EPISODE_STEPS)
    return env


def make_torch_vec(config: TrainConfig, num_envs: int, seed: int, device: str) -> SB3VecEnv:
    """Return torch environments behind the interface of SB3.

    Raises:
        UserError: for arguments that the environment does not take.
    """
    kwargs: dict[str, Any] = config.env_kwargs
    for name in kwargs.keys() & RESERVED:
        option = name.replace("_", "-")
        raise UserError(f"--env-kwargs.{option}: training decides it{RESERVED[name]}")
    try:
        env = SB3VecEnv(make_vec(config.env, num_envs, device, "torch", **kwargs))
    except Exception as error:
        if not kwargs:  # a bug of the environment, which its author needs to see
            raise EnvError(f"cannot be made: {type(error).__name__}: {error}") from error
        reason = str(error)
        if not isinstance(error, ValueError):  # those of our environments name the argument
            reason = str(explain(error, config.env, kwargs))
        if config.env in ENVS and config.env in gym.registry:  # which ours alone are not
            reason += " (torch version; --backend gymnasium is the original)"
        raise UserError(reason) from error
    assert isinstance(env.batched, TorchEnv)
    env.batched.nonfinite = config.nonfinite
    env.seed(seed)
    return env
