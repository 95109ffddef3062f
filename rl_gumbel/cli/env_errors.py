"""What is wrong with an environment's id, arguments or installation, in a line."""

import inspect
import re
from collections.abc import Mapping
from typing import Any

import gymnasium as gym

from rl_gumbel.config import find_nearest, suggest
from rl_gumbel.envs import ENVS

EXTRAS = {"box2d": ("box2d", "swig"), "minigrid": ("minigrid",)}
"""Our extras, and how the errors of a missing package name them."""
VERSION = re.compile(r"-v\d+$")
"""The end of an id."""


def explain(error: Exception, env_id: str, env_kwargs: Mapping[str, Any]) -> str | None:
    """Return in a line what is wrong with the id, an argument or the installation, or None."""
    text = " ".join(str(error).split())
    if isinstance(error, gym.error.DependencyNotInstalled):
        return f"{env_id} needs a package that is not installed: {install_line(text)}"
    if isinstance(error, gym.error.UnregisteredEnv):
        return f"unknown environment {env_id}{suggest_env(env_id)}"
    if isinstance(error, ModuleNotFoundError):
        # Gymnasium hides the name of a missing `package:` in the cause.
        missing = str(error.name or getattr(error.__cause__, "name", None))
        return f"{env_id} needs the package {missing!r}: {install_line(missing)}"
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
    return command[1] if command else f"pip install {text}"


def suggest_env(env_id: str) -> str:
    """Return "; did you mean X?" for the registered id nearest to `env_id`, or nothing."""
    package, colon, name = env_id.rpartition(":")
    newest: dict[str, str] = {}  # by name alone: a common version does not make ids similar
    for spec in sorted(gym.registry.values(), key=lambda spec: spec.version or 0):
        newest[VERSION.sub("", spec.id)] = spec.id
    newest |= {VERSION.sub("", env_id): env_id for env_id in ENVS if env_id not in gym.registry}
    nearest = find_nearest(VERSION.sub("", name), newest)
    if nearest:
        return f"; did you mean {package}{colon}{newest[nearest]}?"
    return "" if colon else "; that of another package needs its name in front, as package:Env-v0"


def list_arguments(env_id: str) -> list[str]:
    """Return the names of the arguments that an environment takes."""
    spec = gym.spec(env_id)
    creator = gym.envs.registration.load_env_creator(spec.entry_point)
    parameters = inspect.signature(creator).parameters
    return [name for name in parameters if name not in ("self", "kwargs")]
