"""Environments of our own; importing this package registers them with Gymnasium."""

from collections.abc import Mapping
from typing import Any

import gymnasium as gym
from gymnasium import spaces

ENVS: Mapping[str, tuple[str, dict[str, Any]]] = {
    "CartPole-v1": ("rl_gumbel.envs.cartpole:CartPole", {}),
    "FrozenLake-v1": ("rl_gumbel.envs.frozen_lake:FrozenLake", {}),
    "FrozenLake8x8-v1": (
        "rl_gumbel.envs.frozen_lake:FrozenLake",
        {"map_name": "8x8", "max_episode_steps": 200},
    ),
    "CliffWalking-v1": ("rl_gumbel.envs.cliff_walking:CliffWalking", {}),
    "CliffWalkingSlippery-v1": (
        "rl_gumbel.envs.cliff_walking:CliffWalking",
        {"is_slippery": True},
    ),
    "Taxi-v4": ("rl_gumbel.envs.taxi:Taxi", {}),
    "Blackjack-v1": ("rl_gumbel.envs.blackjack:Blackjack", {}),
}
"""Id to the class of each batched torch environment and the keyword arguments it is made with."""


def registered_id(env_id: str) -> str:
    """Return the id in Gymnasium's registry for an id in `ENVS`: MinAtar/X to rl_gumbel/MinAtar-X.

    It has the prefix since Gymnasium has environments of its own of most of these names.
    """
    return "rl_gumbel/" + env_id.replace("/", "-")


for _id in ENVS:
    gym.register(
        registered_id(_id),
        entry_point="rl_gumbel.vec_env:GymEnv",
        vector_entry_point="rl_gumbel.vec_env:make_gym_vector_env",
        kwargs={"env_id": _id},
    )

_PROBES = "rl_gumbel.envs.probes"

PROBES: Mapping[str, tuple[str, dict[str, Any]]] = {
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
"""Id to entry point and keyword arguments of the environments that are not batched."""

for _id, (_entry_point, _kwargs) in PROBES.items():
    gym.register(_id, _entry_point, kwargs=_kwargs)
