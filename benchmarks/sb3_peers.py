"""Algorithms of Stable-Baselines3 and sb3-contrib, and DecQN, as peers of the learning benchmark.

Settings are those that RL Baselines3 Zoo publishes, where it has the environment, also in its
version before (`LunarLander-v2`): https://github.com/DLR-RM/rl-baselines3-zoo, commit 22e3ff2,
`hyperparams/ppo.yml` and `dqn.yml`; `sac.yml`, and what `ppo.yml` has for continuous actions, at
00128b5; `qrdqn.yml` at 04640c9. State-dependent exploration, which discrete actions have not, is
left out of PPO's. Elsewhere they are SB3's defaults but for what `PPO_ELSEWHERE` and its like
state. They run on Gymnasium's environment, all in one process, unless there is only a torch
version, or only that one has masks. `sb3-sac` runs on the continuous original; the others take the
discrete version or, by `--env-wrappers`, `DiscretizeActions`.
"""

from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass, field, replace
from typing import Any

import gymnasium as gym
from decqn import DecQN
from sb3_contrib import QRDQN, MaskablePPO
from sb3_contrib.common.maskable.utils import is_masking_supported
from stable_baselines3 import DQN, PPO, SAC
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import VecEnv, VecNormalize

from rl_gumbel.cli.environments import policy_name
from rl_gumbel.cli.errors import UserError
from rl_gumbel.config import TrainConfig, load_config
from rl_gumbel.schedules import Schedule


@dataclass(frozen=True)
class Settings:
    """How a peer runs on an environment."""

    num_envs: int
    total_timesteps: int
    arguments: Mapping[str, Any] = field(default_factory=dict)
    normalize: bool = False
    """Observations and rewards by `VecNormalize`, as `normalize: true` of the zoo."""


@dataclass(frozen=True)
class Peer:
    """An algorithm and its settings by environment."""

    algorithm: type[BaseAlgorithm]
    published: Mapping[str, Settings]
    elsewhere: Settings
    takes_continuous: bool = False
    takes_masks: bool = False

    def find_settings(self, env: str) -> Settings:
        """Return the settings on an environment."""
        return self.published.get(env, self.elsewhere)


def falling(start: float) -> Schedule:
    """Return the zoo's `lin_X`: from X to 0 over training."""
    return Schedule("linear", start, 0.0)


LANDER_PPO = Settings(
    16,
    1_000_000,
    {
        "n_steps": 1024,
        "batch_size": 64,
        "gae_lambda": 0.98,
        "gamma": 0.999,
        "n_epochs": 4,
        "ent_coef": 0.01,
    },
)
PENDULUM_PPO = Settings(
    4,
    100_000,
    {
        "n_steps": 1024,
        "gae_lambda": 0.95,
        "gamma": 0.9,
        "n_epochs": 10,
        "ent_coef": 0.0,
        "learning_rate": 1e-3,
        "clip_range": 0.2,
    },
)
PPO_PUBLISHED = {
    "CartPole-v1": Settings(
        8,
        100_000,
        {
            "n_steps": 32,
            "batch_size": 256,
            "gae_lambda": 0.8,
            "gamma": 0.98,
            "n_epochs": 20,
            "ent_coef": 0.0,
            "learning_rate": falling(1e-3),
            "clip_range": falling(0.2),
        },
    ),
    "MountainCar-v0": Settings(
        16,
        1_000_000,
        {"n_steps": 16, "gae_lambda": 0.98, "gamma": 0.99, "n_epochs": 4, "ent_coef": 0.0},
        normalize=True,
    ),
    "Acrobot-v1": Settings(
        16,
        1_000_000,
        {"n_steps": 256, "gae_lambda": 0.94, "gamma": 0.99, "n_epochs": 4, "ent_coef": 0.0},
        normalize=True,
    ),
    "LunarLander-v3": LANDER_PPO,
    "LunarLanderContinuous-v3": LANDER_PPO,
    "BipedalWalker-v3": Settings(
        32,
        5_000_000,
        {
            "n_steps": 2048,
            "batch_size": 64,
            "gae_lambda": 0.95,
            "gamma": 0.999,
            "n_epochs": 10,
            "ent_coef": 0.0,
            "learning_rate": 3e-4,
            "clip_range": 0.18,
        },
        normalize=True,
    ),
    "Pendulum-v1": PENDULUM_PPO,
    "DiscretePendulum-v1": PENDULUM_PPO,
}
PPO_ELSEWHERE = Settings(8, 100_000, {"n_steps": 256})
"""8 environments, and a rollout of 2048 steps as by default with one."""

ACROBOT_DQN = Settings(
    1,
    100_000,
    {
        "learning_rate": 6.3e-4,
        "batch_size": 128,
        "buffer_size": 50_000,
        "learning_starts": 0,
        "gamma": 0.99,
        "target_update_interval": 250,
        "train_freq": 4,
        "gradient_steps": -1,
        "exploration_fraction": 0.12,
        "exploration_final_eps": 0.1,
        "policy_kwargs": {"net_arch": [256, 256]},
    },
)
MINATAR_DQN = Settings(8, 1_000_000, {"buffer_size": 100_000, "train_freq": 1, "gradient_steps": 2})
"""SB3's defaults, one update for four transitions, but with 8 environments, which is faster."""
DQN_PUBLISHED = {
    "CartPole-v1": Settings(
        1,
        50_000,
        {
            "learning_rate": 2.3e-3,
            "batch_size": 64,
            "buffer_size": 100_000,
            "learning_starts": 1000,
            "gamma": 0.99,
            "target_update_interval": 10,
            "train_freq": 256,
            "gradient_steps": 128,
            "exploration_fraction": 0.16,
            "exploration_final_eps": 0.04,
            "policy_kwargs": {"net_arch": [256, 256]},
        },
    ),
    "MountainCar-v0": Settings(
        1,
        120_000,
        {
            "learning_rate": 4e-3,
            "batch_size": 128,
            "buffer_size": 10_000,
            "learning_starts": 1000,
            "gamma": 0.98,
            "target_update_interval": 600,
            "train_freq": 16,
            "gradient_steps": 8,
            "exploration_fraction": 0.2,
            "exploration_final_eps": 0.07,
            "policy_kwargs": {"net_arch": [256, 256]},
        },
    ),
    "Acrobot-v1": ACROBOT_DQN,
    "LunarLander-v3": ACROBOT_DQN,
    **{
        f"MinAtar/{game}-v1": MINATAR_DQN
        for game in ("Asterix", "Breakout", "Freeway", "Seaquest", "SpaceInvaders")
    },
}
DQN_ELSEWHERE = Settings(1, 100_000, {"buffer_size": 100_000})
"""A replay that fits in memory."""


def with_quantiles(settings: Settings, count: int) -> Settings:
    """Return the settings of DQN, which the zoo gives QRDQN too, with a number of quantiles."""
    policy_kwargs = {**settings.arguments["policy_kwargs"], "n_quantiles": count}
    return replace(settings, arguments={**settings.arguments, "policy_kwargs": policy_kwargs})


QRDQN_PUBLISHED = {
    "CartPole-v1": with_quantiles(DQN_PUBLISHED["CartPole-v1"], 10),
    "MountainCar-v0": with_quantiles(DQN_PUBLISHED["MountainCar-v0"], 25),
    "Acrobot-v1": with_quantiles(ACROBOT_DQN, 25),
    "LunarLander-v3": Settings(
        1,
        100_000,
        {
            "learning_rate": falling(1.5e-3),
            "batch_size": 128,
            "buffer_size": 100_000,
            "learning_starts": 10_000,
            "gamma": 0.995,
            "target_update_interval": 1,
            "train_freq": 256,
            "gradient_steps": -1,
            "exploration_fraction": 0.24,
            "exploration_final_eps": 0.18,
            "policy_kwargs": {"net_arch": [256, 256], "n_quantiles": 170},
        },
    ),
}

SAC_PUBLISHED = {
    "Pendulum-v1": Settings(1, 20_000, {"learning_rate": 1e-3, "buffer_size": 20_000}),
    "LunarLanderContinuous-v3": Settings(
        1,
        500_000,
        {
            "batch_size": 256,
            "learning_rate": falling(7.3e-4),
            "buffer_size": 500_000,  # the zoo's million would not fill
            "gamma": 0.99,
            "tau": 0.01,
            "train_freq": 1,
            "gradient_steps": 1,
            "learning_starts": 10_000,
            "policy_kwargs": {"net_arch": [400, 300]},
        },
    ),
    "BipedalWalker-v3": Settings(
        1,
        500_000,
        {
            "learning_rate": 7.3e-4,
            "buffer_size": 300_000,
            "batch_size": 256,
            "gamma": 0.98,
            "tau": 0.02,
            "train_freq": 64,
            "gradient_steps": 64,
            "learning_starts": 10_000,
            "use_sde": True,
            "policy_kwargs": {"log_std_init": -3, "net_arch": [400, 300]},
        },
    ),
}
SAC_ELSEWHERE = Settings(1, 100_000, {"buffer_size": 100_000})

DECQN = Settings(1, 100_000)
DECQN_SCALED = replace(DECQN, arguments={"reward_scale": 0.1})
"""With the scale of rewards that our agents have there."""
DECQN_SETTINGS = {
    "CartPole-v1": replace(DECQN_SCALED, total_timesteps=50_000),
    "Acrobot-v1": DECQN_SCALED,
    "DiscretePendulum-v1": DECQN_SCALED,
    "LunarLander-v3": replace(DECQN_SCALED, total_timesteps=150_000),
    "LunarLanderContinuous-v3": replace(DECQN_SCALED, total_timesteps=150_000),
    "BipedalWalker-v3": replace(DECQN_SCALED, total_timesteps=500_000),
    "PendulumBank-v0": replace(DECQN_SCALED, total_timesteps=500_000),
    "Inventory-v0": replace(DECQN_SCALED, total_timesteps=500_000),
}

PEERS: Mapping[str, Peer] = {
    "sb3-ppo": Peer(PPO, PPO_PUBLISHED, PPO_ELSEWHERE),
    "sb3-dqn": Peer(DQN, DQN_PUBLISHED, DQN_ELSEWHERE),
    "sb3-qrdqn": Peer(QRDQN, QRDQN_PUBLISHED, DQN_ELSEWHERE),
    "sb3-maskable-ppo": Peer(MaskablePPO, PPO_PUBLISHED, PPO_ELSEWHERE, takes_masks=True),
    "sb3-sac": Peer(SAC, SAC_PUBLISHED, SAC_ELSEWHERE, takes_continuous=True),
    "decqn": Peer(DecQN, DECQN_SETTINGS, DECQN),
}
TASK = {"env", "seed", "env_kwargs", "env_wrappers", "backend", "device", "num_envs"} | {
    "total_timesteps",
    "threads",
}
"""Settings of `rl-gumbel train` that a peer has too."""


def read_peer_config(algo: str, env: str, overrides: Mapping[tuple[str, ...], Any]) -> TrainConfig:
    """Return the task of a peer as a configuration, whose algorithm is not used.

    Raises:
        UserError: for a setting that a peer does not have.
        ConfigError: for a value that cannot be used.
    """
    for place in overrides:
        if place[0] not in TASK:
            option = ".".join(place).replace("_", "-")
            raise UserError(f"--{option}: {algo} has the settings of benchmarks/sb3_peers.py")
    peer = PEERS[algo]
    settings = peer.find_settings(env)
    task: dict[tuple[str, ...], Any] = {
        ("algo",): "ppo",
        ("num_envs",): settings.num_envs,
        ("total_timesteps",): settings.total_timesteps,
        ("backend",): "gymnasium" if env in gym.registry and not peer.takes_masks else "auto",
    }
    return load_config(None, task | dict(overrides))


def make_continuous_vec(config: TrainConfig, num_envs: int, seed: int) -> VecEnv:
    """Return environments with the actions that they have, which our own algorithms refuse."""
    return make_vec_env(config.env, num_envs, seed, env_kwargs=config.env_kwargs)


def make_peer(
    algo: str, config: TrainConfig, env: VecEnv, evaluation_env: VecEnv, device: str
) -> tuple[BaseAlgorithm, VecEnv]:
    """Return an untrained peer, and its environment for evaluation.

    Raises:
        UserError: if it does not take the environment's spaces.
    """
    settings = PEERS[algo].find_settings(config.env)
    arguments = deepcopy(dict(settings.arguments))  # QRDQN writes into what it is given
    if settings.normalize:
        env = VecNormalize(env, gamma=arguments["gamma"])
        evaluation_env = VecNormalize(evaluation_env, training=False, norm_reward=False)
        evaluation_env.obs_rms = env.obs_rms  # the same object, so never behind
    policy = policy_name(env.observation_space)
    if PEERS[algo].takes_masks and not is_masking_supported(env):
        raise UserError(f"{algo} on {config.env}: the environment has no action masks")
    try:
        model = PEERS[algo].algorithm(policy, env, seed=config.seed, device=device, **arguments)
    except AssertionError as error:  # SB3's way to say so
        raise UserError(f"{algo} on {config.env}: {error}") from error
    return model, evaluation_env
