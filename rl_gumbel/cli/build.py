"""A configuration to an algorithm on an environment."""

import re
from typing import Any

import torch
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.vec_env import VecEnv

from rl_gumbel.algorithms import ALGORITHMS
from rl_gumbel.cli.errors import UserError
from rl_gumbel.config import ScheduleSettings, Section, TrainConfig
from rl_gumbel.schedules import Schedule

ACTIVATIONS: dict[str, type[torch.nn.Module]] = {
    "relu": torch.nn.ReLU,
    "tanh": torch.nn.Tanh,
    "elu": torch.nn.ELU,
    "gelu": torch.nn.GELU,
    "silu": torch.nn.SiLU,
}


def make_model(config: TrainConfig, env: VecEnv, policy: str, device: str) -> BaseAlgorithm:
    """Return the untrained algorithm that `config` describes.

    Raises:
        UserError: if the algorithm refuses its arguments on this environment.
    """
    try:
        return ALGORITHMS[config.algo](
            policy, env, seed=config.seed, device=device, **make_arguments(config)
        )
    except (ValueError, AssertionError) as error:  # SB3 asserts what a user may get wrong
        raise UserError(f"{config.algo} on {config.env}: {error}") from error


def make_arguments(config: TrainConfig) -> dict[str, Any]:
    """Return the settings as keyword arguments of the algorithm."""
    arguments = {name: _make_argument(value) for name, value in config.algorithm}
    policy_kwargs = {
        name: _make_argument(value) for name, value in config.policy_kwargs if value is not None
    }
    policy_kwargs["activation_fn"] = ACTIVATIONS[policy_kwargs["activation_fn"]]
    return arguments | {"policy_kwargs": policy_kwargs}


def _make_argument(value: Any) -> Any:
    if isinstance(value, ScheduleSettings):
        return Schedule(value.schedule, value.start, value.end)
    return value.model_dump(exclude_none=True) if isinstance(value, Section) else value


def find_device(name: str) -> str:
    """Return the device of a name; `auto` is CUDA where there is one.

    Raises:
        UserError: if it is not there.
    """
    if not re.fullmatch(r"auto|cpu|cuda(:\d+)?", name):
        raise UserError(f"--device {name}: must be auto, cpu, cuda or cuda:0, cuda:1, ...")
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if name == "auto":
        return "cuda" if count else "cpu"
    if name == "cpu":
        return name
    if not count:
        build = "" if torch.version.cuda else f" (torch {torch.__version__} is built without it)"
        raise UserError(f"--device {name}: CUDA is not available{build}; use --device cpu")
    if name != "cuda" and int(name.removeprefix("cuda:")) >= count:
        raise UserError(f"--device {name}: there are {count} CUDA devices, cuda:0 is the first")
    return name
