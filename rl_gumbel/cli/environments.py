"""Environments by id for training and evaluation; what can go wrong with one, in a line."""

import inspect
import re
from collections.abc import Mapping
from typing import Any

import gymnasium as gym
from gymnasium import spaces
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.preprocessing import is_image_space
from stable_baselines3.common.vec_env import VecEnv

import rl_gumbel.envs  # noqa: F401 (registers our ids)
from rl_gumbel.actions import ActionLayout
from rl_gumbel.cli.errors import UserError
from rl_gumbel.config import suggest

MAX_EPISODE_STEPS = 10_000
"""End of an evaluation episode where the environment sets none."""
EXTRAS = {"box2d": ("box2d", "swig"), "minigrid": ("minigrid",)}
"""Our extras, and how the errors of a missing package name them."""

ADVICE_FOR_BOX = (
    ";\nfor continuous actions use SAC of stable-baselines3, or a wrapper that makes them discrete"
)


def make_env(
    env_id: str,
    env_kwargs: Mapping[str, Any],
    *,
    render_mode: str | None = None,
) -> gym.Env[Any, Any]:
    """Return a single environment.

    Args:
        env_id: Gymnasium id, `package:Env-v0` too.
        env_kwargs: for `gymnasium.make`.
        render_mode: as Gymnasium's.

    Raises:
        UserError: if it cannot be made.
    """
    kwargs = dict(env_kwargs) | ({"render_mode": render_mode} if render_mode else {})
    try:
        env = gym.make(env_id, **kwargs)
    except Exception as error:
        reason = explain(error, env_id, kwargs)
        if reason is None:
            raise  # a bug of the environment, which its author needs to see
        raise UserError(reason) from error
    if render_mode and env.render_mode != render_mode:
        env.close()
        raise UserError(f"{env_id} cannot be rendered: it has no render mode {render_mode!r}")
    return env


def make_vec(env_id: str, env_kwargs: Mapping[str, Any], num_envs: int, seed: int) -> VecEnv:
    """Return `num_envs` environments for training."""
    return make_vec_env(lambda: make_env(env_id, env_kwargs), num_envs, seed)


def make_evaluation_vec(
    env_id: str,
    env_kwargs: Mapping[str, Any],
    num_envs: int,
    seed: int,
    *,
    max_episode_steps: int | None = None,
    render_mode: str | None = None,
) -> VecEnv:
    """Return environments whose episodes all end: by `max_episode_steps`, or their own limit."""

    def make() -> gym.Env[Any, Any]:
        env = make_env(env_id, env_kwargs, render_mode=render_mode)
        has_limit = env.spec is not None and env.spec.max_episode_steps is not None
        limit = max_episode_steps or (None if has_limit else MAX_EPISODE_STEPS)
        return env if limit is None else gym.wrappers.TimeLimit(env, limit)

    return make_vec_env(make, num_envs, seed)


def check_env(env_id: str, env_kwargs: Mapping[str, Any]) -> str:
    """Return the policy that the environment's observations need, if it can be used at all.

    Raises:
        UserError: if it cannot be made, or its actions are not discrete.
    """
    env = make_env(env_id, env_kwargs)
    env.close()
    if env.spec is not None and env.spec.id != env_id.rpartition(":")[2]:
        # Gymnasium guesses the version of `CartPole`; the name of a run must not depend on it.
        raise UserError(f"environment {env_id} lacks its version; did you mean {env.spec.id}?")
    try:
        ActionLayout.from_space(env.action_space)
    except TypeError as error:
        advice = ADVICE_FOR_BOX if isinstance(env.action_space, spaces.Box) else ""
        raise UserError(f"{env_id}: {error}{advice}") from error
    return policy_name(env.observation_space)


def policy_name(space: spaces.Space[Any]) -> str:
    """Return SB3's name of the policy for an observation space."""
    if isinstance(space, spaces.Dict):
        return "MultiInputPolicy"
    return "CnnPolicy" if is_image_space(space) else "MlpPolicy"


def explain(error: Exception, env_id: str, env_kwargs: Mapping[str, Any]) -> str | None:
    """Return in a line what is wrong with the id, an argument or the installation, or None."""
    text = " ".join(str(error).split())
    if isinstance(error, gym.error.DependencyNotInstalled):
        return f"{env_id} needs a package that is missing: {install_line(text)}"
    if isinstance(error, gym.error.UnregisteredEnv):
        return f"unknown environment {env_id}{suggest_env(env_id)}"
    if isinstance(error, ModuleNotFoundError):
        package = env_id.partition(":")[0]
        if ":" in env_id and error.name == package:
            return f"{env_id}: no package {package!r} is installed"
        return f"{env_id} needs a package that is missing: {install_line(str(error.name))}"
    if isinstance(error, ImportError | gym.error.Error):
        return f"{env_id}: {text}"
    unknown = re.search(r"unexpected keyword argument '(\w+)'", text)
    if unknown and unknown[1] in env_kwargs:
        known = list_arguments(env_id)
        return f"{env_id} has no argument {unknown[1]!r}{suggest(unknown[1], known)}"
    if env_kwargs:
        shown = ", ".join(f"{name}={value!r}" for name, value in env_kwargs.items())
        return f"{env_id} refused its arguments ({shown}): {type(error).__name__}: {text}"
    return None


def install_line(text: str) -> str:
    """Return what to type to get the package that an error names."""
    for extra, names in EXTRAS.items():
        if any(name in text.lower() for name in names):
            return f'pip install "rl-gumbel[{extra}]"'
    command = re.search(r"`(pip install [^`]+)`", text)
    return command[1] if command else text


def suggest_env(env_id: str) -> str:
    """Return "; did you mean X?" for the registered id nearest to `env_id`, or nothing."""
    name = env_id.rpartition(":")[2]
    stem = re.sub(r"-v\d+$", "", name)
    versions = [known for known in gym.registry if re.sub(r"-v\d+$", "", known) == stem]
    if versions:
        return (
            f"; did you mean {max(versions, key=lambda known: gym.registry[known].version or 0)}?"
        )
    return suggest(name, list(gym.registry)) or " (rl-gumbel list envs shows those installed)"


def list_arguments(env_id: str) -> list[str]:
    """Return the names of the arguments that an environment takes."""
    spec = gym.spec(env_id)
    creator = gym.envs.registration.load_env_creator(spec.entry_point)
    parameters = inspect.signature(creator).parameters
    return [name for name in parameters if name not in ("self", "kwargs")]
