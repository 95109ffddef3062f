"""What the names in a call mean: environment ids, and arguments of environments."""

import difflib
import inspect
from collections.abc import Callable, Collection, Mapping
from importlib import import_module
from numbers import Integral, Real
from types import NoneType
from typing import Any, get_args

import gymnasium as gym
import numpy as np
from gymnasium.envs.registration import EnvSpec

from rl_gumbel.envs import ENVS, registered_id
from rl_gumbel.envs.base import TorchEnv

Creator = Callable[..., Any]
BOOLS = (bool, np.bool_)
PLAIN_TYPES: Mapping[Any, tuple[Any, str]] = {
    bool: (BOOLS, "a bool"),
    int: (Integral, "an integer"),
    float: (Real, "a number"),
    str: (str, "a string"),
    NoneType: (NoneType, "None"),
}
"""Annotations whose values are checked: what they take, NumPy's numbers too, and its name."""


def find_torch_id(env_id: str) -> str | None:
    """Return the id in `ENVS` that an id, with or without `rl_gumbel/`, stands for, or None."""
    if env_id in ENVS:
        return env_id
    return next((known for known in ENVS if registered_id(known) == env_id), None)


def has_time_limit(env_id: str) -> bool:
    """Return whether a torch environment is known by that id and has a time limit."""
    known = find_torch_id(env_id)
    return known is not None and "max_episode_steps" in ENVS[known][1]


def make_torch_env(env_id: str, num_envs: int, **kwargs: Any) -> TorchEnv:
    """Return the batched torch environment of an id.

    Raises:
        ValueError: if there is none of that id, or it does not take an argument or its type.
    """
    known = find_torch_id(env_id)
    if known is None:
        raise ValueError(f"{env_id!r} has no torch version{suggest(env_id, ENVS)}")
    entry_point, fixed = ENVS[known]
    module, _, name = entry_point.partition(":")
    creator = getattr(import_module(module), name)
    check_arguments(env_id, creator, kwargs)
    check_types(env_id, creator, kwargs)
    env: TorchEnv = creator(num_envs, **fixed | kwargs)
    return env


def find_spec(env_id: str) -> EnvSpec:
    """Return Gymnasium's entry for an id: Gymnasium's own, `package:Id`, or one of ours.

    Raises:
        ValueError: if there is none of that id.
    """
    package, _, name = env_id.rpartition(":")
    if package:
        import_module(package)
    # A bare id that Gymnasium has too is Gymnasium's.
    known = {ours: gym.registry[registered_id(ours)] for ours in ENVS} | gym.registry
    if name not in known:
        raise ValueError(f"unknown environment {env_id!r}{suggest(name, known)}")
    return known[name]


def check_arguments(env_id: str, creator: Creator, kwargs: Collection[str]) -> None:
    """Raise a `ValueError` for the first argument that an environment does not take."""
    known = list_arguments(creator)
    for name in kwargs:
        if known is not None and name not in known:
            raise ValueError(
                f"{env_id} has no argument {name!r}{suggest(name, known)}; it has "
                f"{', '.join(sorted(known)) or 'none'}"
            )


def check_types(env_id: str, creator: Creator, kwargs: Mapping[str, Any]) -> None:
    """Raise a `ValueError` for the first value that is not of its argument's plain type.

    A string would else pass for True. `True` is no number, and no number is a bool.
    """
    annotations = list_arguments(creator) or {}
    for name, value in kwargs.items():
        expected = get_args(annotations.get(name)) or (annotations.get(name),)
        if not all(one in PLAIN_TYPES for one in expected):
            continue
        types, words = zip(*(PLAIN_TYPES[one] for one in expected), strict=True)
        if not isinstance(value, types) or (isinstance(value, bool) and bool not in expected):
            raise ValueError(f"{name} {value!r} of {env_id} must be {' or '.join(words)}")


def list_arguments(creator: Creator) -> dict[str, Any] | None:
    """Return a function's or class's keyword arguments, annotated; None if it may take any.

    Follows `**kwargs` to the base classes; of theirs, one without a default is their subclass's to
    give.
    """
    known: dict[str, Any] = {}
    functions: list[Any] = [creator]
    if isinstance(creator, type):
        functions = [vars(base)["__init__"] for base in creator.__mro__ if "__init__" in vars(base)]
    for function in functions:
        parameters = inspect.signature(function).parameters.values()
        for parameter in parameters:
            if parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY) and (
                function is functions[0] or parameter.default is not parameter.empty
            ):
                known.setdefault(parameter.name, parameter.annotation)
        if all(parameter.kind is not parameter.VAR_KEYWORD for parameter in parameters):
            return {name: known[name] for name in known if name not in ("self", "num_envs")}
    return None


def suggest(name: str, known: Collection[str] | Mapping[str, Any]) -> str:
    """Return "; did you mean X?" for the known name nearest to `name`, or nothing."""
    nearest = difflib.get_close_matches(name, known, n=1)
    return f"; did you mean {nearest[0]}?" if nearest else ""
