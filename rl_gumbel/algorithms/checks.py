"""Checks of settings that algorithms share; each error names the setting, its value, the range."""

import inspect
import math
import re
from numbers import Integral, Real
from types import NoneType, UnionType
from typing import Any

KINDS: dict[Any, tuple[type, str]] = {
    bool: (bool, "True or False"),
    int: (Integral, "an integer"),
    float: (Real, "a number"),
    NoneType: (NoneType, "None"),
}


def check_kinds(algorithm: object) -> None:
    """Raise a `ValueError` for a number or switch of another kind than its constructor names."""
    for name, parameter in inspect.signature(type(algorithm)).parameters.items():
        kind = parameter.annotation
        kinds = kind.__args__ if isinstance(kind, UnionType) else (kind,)
        if not hasattr(algorithm, name) or not KINDS.keys() >= set(kinds):
            continue
        accepted, words = zip(*(KINDS[kind] for kind in kinds), strict=True)
        value = getattr(algorithm, name)
        is_stray_bool = isinstance(value, bool) and bool not in kinds  # to Python an integer
        if not isinstance(value, accepted) or is_stray_bool:
            raise ValueError(f"{name} {value!r} must be {' or '.join(words)}")


def check_positive(algorithm: object, *names: str) -> None:
    """Raise a `ValueError` for an attribute that is not > 0 and finite; None passes."""
    for name in names:
        value = getattr(algorithm, name)
        if value is not None and not 0 < value < math.inf:
            raise ValueError(f"{name} {value!r} must be > 0 and finite")


def check_unit_interval(algorithm: object, *names: str) -> None:
    """Raise a `ValueError` for an attribute outside [0, 1]."""
    for name in names:
        if not 0 <= getattr(algorithm, name) <= 1:
            raise ValueError(f"{name} {getattr(algorithm, name)!r} must be in [0, 1]")


def check_at_least(algorithm: object, **least: int) -> None:
    """Raise a `ValueError` for an attribute below the number given for it; None passes."""
    for name, number in least.items():
        value = getattr(algorithm, name)
        if value is not None and value < number:
            raise ValueError(f"{name} {value!r} must be >= {number}")


def check_aggregation(aggregation: str, n_critics: int) -> None:
    """Raise a `ValueError` for what `rl_gumbel.losses.aggregate` cannot do with so many critics."""
    match = re.fullmatch(r"min|mean|subset_([1-9]\d*)", str(aggregation))
    if match is None or int(match[1] or 1) > n_critics:
        raise ValueError(
            f"aggregation {aggregation!r} must be 'min', 'mean' or 'subset_M' with M from 1 to "
            f"n_critics, which is {n_critics}"
        )


def join_policy_kwargs(policy_kwargs: dict[str, Any] | None, **settings: Any) -> dict[str, Any]:
    """Return both together: these settings travel with the policy, which SB3 saves and rebuilds.

    None is left out, being the policy's default.

    Raises:
        ValueError: for a setting that `policy_kwargs` has with another value.
    """
    policy_kwargs = policy_kwargs or {}
    for name, value in settings.items():
        if policy_kwargs.get(name, value) != value:
            raise ValueError(
                f"policy_kwargs {name} {policy_kwargs[name]!r} would be ignored: pass it as the "
                f"argument {name}, which is {value!r}"
            )
    return policy_kwargs | {name: value for name, value in settings.items() if value is not None}
