"""Environments of Gymnasium for training and evaluation, from the configuration."""

import itertools
import warnings
from collections.abc import Callable
from functools import partial
from importlib import import_module
from multiprocessing import parent_process
from typing import Any

import gymnasium as gym
import torch
from gymnasium import spaces
from gymnasium.vector import AsyncVectorEnv
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.preprocessing import is_image_space
from stable_baselines3.common.vec_env import VecEnv

from rl_gumbel.actions import ActionLayout
from rl_gumbel.cli.env_errors import explain
from rl_gumbel.cli.errors import UserError
from rl_gumbel.cli.signals import leave_to_parent
from rl_gumbel.config import TrainConfig, suggest
from rl_gumbel.envs import ENVS, registered_id
from rl_gumbel.faults import EnvError
from rl_gumbel.vec_env import SB3VecEnv
from rl_gumbel.vec_env.from_gymnasium import SAME_STEP, GymnasiumEnv
from rl_gumbel.vec_env.guard import Guard, Survived
from rl_gumbel.vec_env.names import find_torch_id
from rl_gumbel.wrappers import FlattenActions, MasksInInfo

MAX_EPISODE_STEPS = 10_000
"""End of an evaluation episode where the environment sets none."""
MAX_EVALUATION_ENVS = 10
"""Evaluation episodes that run side by side."""
PLAIN_SPACES = (spaces.Box, spaces.Discrete, spaces.MultiDiscrete, spaces.MultiBinary)
MIN_IMAGE_SIZE = 36
"""Pixels that SB3's NatureCNN needs in height and width."""


def make_env(config: TrainConfig, render_mode: str | None = None) -> gym.Env[Any, Any]:
    """Return one environment, wrapped as configured; nested discrete actions come flattened.

    Raises:
        UserError: if it cannot be made, or its actions are not supported.
    """
    kwargs = config.env_kwargs | ({"render_mode": render_mode} if render_mode else {})
    try:
        with warnings.catch_warnings():
            # Gymnasium warns of a render mode that is not there; the errors below say it.
            warnings.filterwarnings("ignore", message=".*render_mode")
            env = gym.make(find_gymnasium_id(config.env), **kwargs)
    except Exception as error:
        if render_mode and "render_mode" in str(error):
            raise UserError(f"{config.env} cannot be rendered") from error
        reason = explain(error, config.env, kwargs)
        if reason is None:  # a bug of the environment, which its author needs to see
            text = f"cannot be made: {type(error).__name__}: {error}"
            raise EnvError(text) from error
        raise UserError(reason) from error
    if render_mode and env.render_mode != render_mode:
        env.close()
        raise UserError(f"{config.env} cannot be rendered: it has no render mode {render_mode!r}")
    for wrapper in config.env_wrappers:
        env = wrap(env, wrapper)
    env = flatten_actions(env, config.env)
    return MasksInInfo(env) if env.has_wrapper_attr("action_masks") else env


def find_gymnasium_id(env_id: str) -> str:
    """Return the id under which Gymnasium knows an environment: it knows ours by a prefix."""
    torch_id = find_torch_id(env_id)
    is_ours = torch_id is not None and env_id not in gym.registry
    return registered_id(torch_id) if is_ours else env_id


def wrap(env: gym.Env[Any, Any], wrapper: str | dict[str, dict[str, Any]]) -> gym.Env[Any, Any]:
    """Return the environment in the wrapper `module.Class`; raise a `UserError` if it cannot be.

    With keyword arguments it is `{module.Class: {name: value}}`.
    """
    [(name, kwargs)] = wrapper.items() if isinstance(wrapper, dict) else [(wrapper, {})]
    module, _, class_name = name.rpartition(".")
    try:
        found = import_module(module)
    except (ImportError, ValueError) as error:
        reason = f": {error}" if module else ""
        text = f"--env-wrappers: cannot import {name}; write it as module.Class{reason}"
        raise UserError(text) from error
    if not hasattr(found, class_name):
        nearest = suggest(class_name, dir(found))
        raise UserError(f"--env-wrappers: {module} has no {class_name}{nearest}")
    try:
        wrapped: gym.Env[Any, Any] = getattr(found, class_name)(env, **kwargs)
    except Exception as error:
        reason = " ".join(str(error).split())
        raise UserError(f"--env-wrappers: {name}: {type(error).__name__}: {reason}") from error
    return wrapped


def flatten_actions(env: gym.Env[Any, Any], env_id: str) -> gym.Env[Any, Any]:
    """Return the environment with a supported action space, in `FlattenActions` if that helps."""
    try:
        ActionLayout.from_space(env.action_space)
        return env
    except TypeError as error:
        try:
            return FlattenActions(env)
        except TypeError:
            raise UserError(f"{env_id}: {error}{_advice(env_id, env.action_space)}") from error


def _advice(env_id: str, space: spaces.Space[Any]) -> str:
    if not isinstance(space, spaces.Box):
        return ""
    discrete = f"Discrete{env_id}"
    if discrete in ENVS:
        return f";\n{discrete} has the same task with discrete ones (--env {discrete})"
    return (
        ";\nfor continuous actions use SAC of stable-baselines3, or make them discrete:"
        " --env-wrappers '[{rl_gumbel.DiscretizeActions: {bins: 7}}]'"
    )


def make_training_vec(config: TrainConfig, device: str) -> VecEnv:
    """Return the environments for training, whose spaces are supported."""
    spec = check_env(config).spec
    if config.vectorization_mode == "sync":
        return make_vec_env(guarded(config), config.num_envs, config.seed)
    vector_env = AsyncVectorEnv(
        [partial(_make_in_process, config, i) for i in range(config.num_envs)],
        copy=False,  # what is returned is copied to the device before the next step
        autoreset_mode=SAME_STEP,
    )
    limit = None if spec is None else spec.max_episode_steps
    return SB3VecEnv(GymnasiumEnv(vector_env, limit, torch.device(device), "gymnasium (async)"))


def _make_in_process(config: TrainConfig, index: int) -> Guard:
    if parent_process() is not None:  # the parent makes one too, for its spaces
        leave_to_parent()
    return Guard(lambda: make_env(config), index, config.nonfinite)


def guarded(
    config: TrainConfig, make: Callable[[], gym.Env[Any, Any]] | None = None
) -> Callable[[], Guard]:
    """Return what makes one environment after the other, each in a `Guard`, of one group."""
    survived, indices = Survived(config.restart_failed_envs), itertools.count()
    return lambda: Guard(
        make or (lambda: make_env(config)), next(indices), config.nonfinite, survived
    )


def make_evaluation_vec(
    config: TrainConfig,
    num_episodes: int,
    seed: int,
    *,
    max_episode_steps: int | None = None,
    render_mode: str | None = None,
) -> VecEnv:
    """Return environments whose episodes all end: by `max_episode_steps`, or their own limit."""

    def make() -> gym.Env[Any, Any]:
        env = make_env(config, render_mode)
        has_limit = env.spec is not None and env.spec.max_episode_steps is not None
        limit = max_episode_steps or (None if has_limit else MAX_EPISODE_STEPS)
        return env if limit is None else gym.wrappers.TimeLimit(env, limit)

    num_envs = 1 if render_mode else min(num_episodes, MAX_EVALUATION_ENVS)
    return make_vec_env(guarded(config, make), num_envs, seed)


def check_env(config: TrainConfig) -> gym.Env[Any, Any]:
    """Return the environment, closed, for its spaces, if an agent can be trained on it.

    Raises:
        UserError: if it cannot be made, or its spaces are not supported.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # they come again when the environments are made
        env = make_env(config)
    env.close()
    if env.spec is not None and env.spec.id != find_gymnasium_id(config.env).rpartition(":")[2]:
        # Gymnasium guesses the version of `CartPole`; the name of a run must not depend on it.
        raise UserError(f"environment {config.env} lacks its version; did you mean {env.spec.id}?")
    if policy_name(env.observation_space) is None:
        raise UserError(f"{config.env}: {describe_unreadable(env.observation_space)}")
    return env


def describe_unreadable(space: spaces.Space[Any]) -> str:
    """Return what the networks cannot read in an observation space, and the wrapper that helps."""
    what = f"space {space}"
    if isinstance(space, spaces.Dict):
        tiny = f"an image under {MIN_IMAGE_SIZE} pixels"
        what = ", ".join(
            f"{name!r} ({tiny if _is_tiny(part) else type(part).__name__})"
            for name, part in space.items()
            if _is_tiny(part) or not policy_name(part)
        )
    wrapper = "a wrapper of your own, module.Class"
    if "MissionSpace" in what:  # MiniGrid's text, which Gymnasium cannot flatten
        wrapper = "minigrid.wrappers.FlatObsWrapper"
    elif space.is_np_flattenable:
        wrapper = "gymnasium.wrappers.FlattenObservation"
    return f"networks cannot read observation {what};\ntry --env-wrappers '[{wrapper}]'"


def policy_name(space: spaces.Space[Any]) -> str | None:
    """Return SB3's name of the policy for an observation space; None if it takes no such space."""
    if isinstance(space, spaces.Dict):
        parts = space.spaces.values()
        return (
            "MultiInputPolicy" if all(policy_name(p) and not _is_tiny(p) for p in parts) else None
        )
    if not isinstance(space, PLAIN_SPACES):
        return None
    return "CnnPolicy" if is_image_space(space) and not _is_tiny(space) else "MlpPolicy"


def _is_tiny(space: spaces.Space[Any]) -> bool:
    """Return whether it is an image too small for SB3's convolutions."""
    return is_image_space(space) and min(sorted(space.shape or ())[-2:]) < MIN_IMAGE_SIZE
