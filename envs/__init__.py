"""Environments of our own; importing this package registers them with Gymnasium."""

from collections.abc import Mapping
from typing import Any

import gymnasium as gym
from gymnasium import spaces

_PROBES = "rl_gumbel.envs.probes"

ENVS: Mapping[str, tuple[str, dict[str, Any]]] = {
    "rl_gumbel/ProbeValue-v0": (f"{_PROBES}:ProbeValue", {}),
    "rl_gumbel/ProbeObservation-v0": (f"{_PROBES}:ProbeObservation", {}),
    "rl_gumbel/ProbeDiscount-v0": (f"{_PROBES}:ProbeDiscount", {}),
    "rl_gumbel/ProbeAction-v0": (f"{_PROBES}:ProbeAction", {}),
    "rl_gumbel/ProbeFactors-v0": (f"{_PROBES}:ProbeFactors", {}),
    "rl_gumbel/ProbeBits-v0": (
        f"{_PROBES}:ProbeFactors",
        {"action_space": spaces.MultiBinary(3)},
    ),
    "rl_gumbel/ProbeStart-v0": (
        f"{_PROBES}:ProbeFactors",
        {"action_space": spaces.Discrete(3, start=-1)},
    ),
}
"""Id to entry point and default keyword arguments of every environment here."""

for _id, (_entry_point, _kwargs) in ENVS.items():
    gym.register(_id, _entry_point, kwargs=_kwargs)
