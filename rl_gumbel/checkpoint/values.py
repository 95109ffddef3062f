"""Constructor arguments and Gymnasium spaces as JSON, and back; no pickle, no code in the file."""

import math
from collections.abc import Mapping
from importlib import import_module
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from stable_baselines3.common.buffers import BaseBuffer

from rl_gumbel.schedules import Schedule

SCHEDULE, CLASS, TUPLE = "$schedule", "$class", "$tuple"
PACKAGES = ("torch", "stable_baselines3", "sb3_contrib", "rl_gumbel")
KINDS = (torch.nn.Module, torch.optim.Optimizer, BaseBuffer)
"""A file may name classes of these kinds in these packages; anything else is not imported."""


def to_json(value: Any) -> Any:
    """Return `value` as JSON data that `from_json` turns back.

    Raises:
        TypeError: for what JSON cannot hold.
    """
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, Mapping):
        return {str(key): to_json(item) for key, item in value.items()}
    if isinstance(value, list):
        return [to_json(item) for item in value]
    if isinstance(value, tuple):
        return {TUPLE: [to_json(item) for item in value]}
    if isinstance(value, Schedule):
        return {SCHEDULE: [value.kind, value.start, value.end]}
    if isinstance(value, type):
        return {CLASS: f"{value.__module__}:{value.__qualname__}"}
    hint = "; use rl_gumbel.Schedule" if callable(value) else ""
    raise TypeError(f"cannot save {value!r} without pickle{hint}")


def from_json(value: Any) -> Any:
    """Return what `to_json` was given.

    Raises:
        ValueError: for a class that a file may not name.
    """
    if isinstance(value, list):
        return [from_json(item) for item in value]
    if not isinstance(value, dict):
        return value
    if TUPLE in value:
        return tuple(from_json(item) for item in value[TUPLE])
    if SCHEDULE in value:
        return Schedule(*value[SCHEDULE])
    if CLASS in value:
        return _find_class(value[CLASS])
    return {key: from_json(item) for key, item in value.items()}


def _find_class(name: str) -> type:
    module, _, qualname = name.partition(":")
    if module.partition(".")[0] in PACKAGES:
        try:
            found = getattr(import_module(module), qualname)
        except (ImportError, AttributeError) as error:
            raise ValueError(f"class {name} is not installed") from error
        if isinstance(found, type) and issubclass(found, KINDS):
            return found
    raise ValueError(
        f"class {name} is not loaded from a file; pass the argument that holds it to load_model"
    )


def space_to_json(space: spaces.Space[Any]) -> dict[str, Any]:
    """Return a `Box`, `Discrete`, `MultiDiscrete`, `MultiBinary` or `Dict` of them as JSON data.

    Raises:
        TypeError: for any other space.
    """
    kind = type(space).__name__
    if isinstance(space, spaces.Dict):
        parts = {name: space_to_json(part) for name, part in space.spaces.items()}
        return {"type": kind, "spaces": parts}
    if isinstance(space, spaces.Box):
        bounds = {"low": _array_to_json(space.low), "high": _array_to_json(space.high)}
        return {"type": kind, "shape": list(space.shape), "dtype": space.dtype.name, **bounds}
    if isinstance(space, spaces.Discrete):
        return {"type": kind, "n": int(space.n), "start": int(space.start)}
    if isinstance(space, spaces.MultiDiscrete):
        start = space.start.tolist()
        return {
            "type": kind,
            "nvec": space.nvec.tolist(),
            "start": start,
            "dtype": space.dtype.name,
        }
    if isinstance(space, spaces.MultiBinary):
        return {"type": kind, "n": list(space.shape)}
    raise TypeError(f"cannot save a space of kind {kind}: {space}")


def space_from_json(data: Mapping[str, Any]) -> spaces.Space[Any]:
    """Return the space that `space_to_json` was given.

    Raises:
        ValueError: for an unknown kind of space.
    """
    kind = data["type"]
    if kind == "Dict":
        return spaces.Dict({name: space_from_json(part) for name, part in data["spaces"].items()})
    if kind == "Box":
        shape, dtype = tuple(data["shape"]), np.dtype(data["dtype"])
        low, high = (_array_from_json(data[end], shape, dtype) for end in ("low", "high"))
        return spaces.Box(low, high, shape, dtype.type)
    if kind == "Discrete":
        return spaces.Discrete(data["n"], start=data["start"])
    if kind == "MultiDiscrete":
        return spaces.MultiDiscrete(
            np.array(data["nvec"]), start=np.array(data["start"]), dtype=np.dtype(data["dtype"])
        )
    if kind == "MultiBinary":
        n = data["n"]
        return spaces.MultiBinary(n[0] if len(n) == 1 else n)
    raise ValueError(f"unknown kind of space {kind!r}")


def _array_to_json(array: np.ndarray) -> Any:
    """Return one number where all are equal (images), else a flat list; infinities as text."""
    numbers = [x if math.isfinite(x) else str(x) for x in array.ravel().tolist()]
    return numbers[0] if len(set(numbers)) == 1 else numbers


def _array_from_json(data: Any, shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    numbers = data if isinstance(data, list) else [data] * math.prod(shape)
    return np.array([float(x) if isinstance(x, str) else x for x in numbers], dtype).reshape(shape)
