"""Environments of our own; importing this package registers them with Gymnasium."""

from collections.abc import Mapping
from typing import Any

import gymnasium as gym
from gymnasium import spaces

_LAKE = "rl_gumbel.envs.frozen_lake:FrozenLake"
_CLIFF = "rl_gumbel.envs.cliff_walking:CliffWalking"
_PROBES = "rl_gumbel.envs.probes"

ENVS: Mapping[str, tuple[str, dict[str, Any]]] = {
    "Acrobot-v1": ("rl_gumbel.envs.acrobot:Acrobot", {"max_episode_steps": 500}),
    "CartPole-v1": ("rl_gumbel.envs.cartpole:CartPole", {"max_episode_steps": 500}),
    "MountainCar-v0": ("rl_gumbel.envs.mountain_car:MountainCar", {"max_episode_steps": 200}),
    "DiscretePendulum-v1": ("rl_gumbel.envs.pendulum:DiscretePendulum", {"max_episode_steps": 200}),
    "PendulumBank-v0": (
        "rl_gumbel.envs.pendulum_bank:PendulumBank",
        {"max_episode_steps": 200},
    ),
    "Thermostats-v0": (
        "rl_gumbel.envs.thermostats:Thermostats",
        {"max_episode_steps": 192},
    ),
    "Inventory-v0": ("rl_gumbel.envs.inventory:Inventory", {"max_episode_steps": 100}),
    "QueueNetwork-v0": (
        "rl_gumbel.envs.queue_network:QueueNetwork",
        {"max_episode_steps": 20_000},
    ),
    "Catch-v0": ("rl_gumbel.envs.catch:Catch", {}),
    "DeepSea-v0": ("rl_gumbel.envs.deep_sea:DeepSea", {}),
    "Blackjack-v1": ("rl_gumbel.envs.blackjack:Blackjack", {}),
    "CliffWalking-v1": (_CLIFF, {}),
    "CliffWalkingSlippery-v1": (_CLIFF, {"is_slippery": True}),
    "FrozenLake-v1": (_LAKE, {"max_episode_steps": 100}),
    "FrozenLake8x8-v1": (_LAKE, {"map_name": "8x8", "max_episode_steps": 200}),
    "Taxi-v4": ("rl_gumbel.envs.taxi:Taxi", {"max_episode_steps": 200}),
    "MinAtar/Breakout-v1": ("rl_gumbel.envs.minatar.breakout:Breakout", {}),
    "MinAtar/Freeway-v1": ("rl_gumbel.envs.minatar.freeway:Freeway", {}),
    "MinAtar/Asterix-v1": ("rl_gumbel.envs.minatar.asterix:Asterix", {}),
    "MinAtar/SpaceInvaders-v1": ("rl_gumbel.envs.minatar.space_invaders:SpaceInvaders", {}),
    "MinAtar/Seaquest-v1": ("rl_gumbel.envs.minatar.seaquest:Seaquest", {}),
    "ProbeValue-v0": (f"{_PROBES}:ProbeValue", {}),
    "ProbeObservation-v0": (f"{_PROBES}:ProbeObservation", {}),
    "ProbeDiscount-v0": (f"{_PROBES}:ProbeDiscount", {}),
    "ProbeAction-v0": (f"{_PROBES}:ProbeAction", {}),
    "ProbeFactors-v0": (f"{_PROBES}:ProbeFactors", {}),
    "ProbeBits-v0": (f"{_PROBES}:ProbeFactors", {"action_space": spaces.MultiBinary(3)}),
    "ProbeStart-v0": (f"{_PROBES}:ProbeFactors", {"action_space": spaces.Discrete(3, start=-1)}),
}
"""Id to the class of each batched torch environment and the keyword arguments it is made with.

A time limit stands here, for Gymnasium's registry to have it too.
"""


def registered_id(env_id: str) -> str:
    """Return the id in Gymnasium's registry for an id in `ENVS`: MinAtar/X to rl_gumbel/MinAtar-X.

    It has the prefix since Gymnasium has environments of its own of most of these names.
    """
    return "rl_gumbel/" + env_id.replace("/", "-")


for _id, (_, _kwargs) in ENVS.items():
    gym.register(
        registered_id(_id),
        entry_point="rl_gumbel.vec_env:GymEnv",
        max_episode_steps=_kwargs.get("max_episode_steps"),
        vector_entry_point="rl_gumbel.vec_env:make_gym_vector_env",
        kwargs={"env_id": _id},
    )
