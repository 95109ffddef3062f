"""What stock SB3 must be told for a discrete action, and whether it was told.

A policy class cannot see its algorithm's arguments, and some of SB3's defaults are wrong for
one-hot actions without failing. `stock_kwargs` supplies the right ones, `check_stock` verifies
them.
"""

from typing import Any

import gymnasium as gym
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.vec_env import VecEnv

from rl_gumbel.actions import ActionLayout
from rl_gumbel.policies.on_policy import DifferentiablePolicy
from rl_gumbel.policies.one_hot import OneHotPolicy
from rl_gumbel.wrappers import OneHotBox

OFF_POLICY = ("SAC", "TD3", "DDPG")
ON_POLICY = ("PPO", "A2C", "TRPO", "MaskablePPO")


def stock_kwargs(
    env: gym.Env[Any, Any] | VecEnv,
    algorithm: str | type[BaseAlgorithm],
    *,
    target_entropy_fraction: float = 0.5,
    **options: Any,
) -> dict[str, Any]:
    """Return the arguments that a stock algorithm needs beside policy and environment.

    `SAC(GumbelSACPolicy, env, **stock_kwargs(env, SAC, learning_rate=1e-3))`. PPO, A2C, TRPO and
    MaskablePPO need none.

    Args:
        env: as the algorithm gets it: wrapped in `OneHotActions` for SAC, TD3 and DDPG.
        algorithm: the SB3 class or its name.
        target_entropy_fraction: in (0, 1); SAC's target entropy as a fraction of the maximum.
        **options: further arguments of the algorithm, which win. `policy_kwargs` is copied, because
            SB3 writes into it: SAC its `use_sde`, DDPG its `n_critics=1`, which the next algorithm
            would take for the user's wish.

    Raises:
        TypeError: for an action space that the algorithm's policy cannot take.
        ValueError: for an unknown algorithm or a fraction out of range.
    """
    name = _known_name(algorithm)
    if not 0 < target_entropy_fraction < 1:
        raise ValueError(f"target_entropy_fraction {target_entropy_fraction!r} must be in (0, 1)")
    if "policy_kwargs" in options:
        options["policy_kwargs"] = dict(options["policy_kwargs"] or {})
    if name in ON_POLICY:
        ActionLayout.from_space(env.action_space)
        return options
    if not isinstance(env.action_space, OneHotBox):
        raise TypeError(
            f"{name} needs an environment wrapped in OneHotActions; its action space is "
            f"{env.action_space}"
        )
    needed: dict[str, Any] = {"action_noise": None}
    if name == "SAC":
        # Discrete entropy is positive; SB3's "auto" is minus the number of inputs.
        needed["target_entropy"] = target_entropy_fraction * env.action_space.layout.max_entropy
        needed["ent_coef"] = "auto_0.02"
    if name == "TD3":
        needed["target_noise_clip"] = 0.0
    return needed | options


def _known_name(algorithm: str | type[BaseAlgorithm]) -> str:
    """Return the name of a known algorithm, also for a subclass of it."""
    names = [algorithm] if isinstance(algorithm, str) else [c.__name__ for c in algorithm.__mro__]
    for name in names:
        if name in OFF_POLICY + ON_POLICY:
            return name
    known = ", ".join(OFF_POLICY + ON_POLICY)
    raise ValueError(f"unknown algorithm {names[0]!r}; known: {known}")


def check_stock(model: BaseAlgorithm) -> None:
    """Raise unless a stock algorithm is set up to learn with a policy of this package.

    Raises:
        ValueError: for an unknown algorithm, another policy, or a setting that would spoil the
            one-hot actions or the entropy; the message says what to pass.
    """
    name = _known_name(type(model))
    if isinstance(model.policy, DifferentiablePolicy):
        return  # its constructor has checked the only condition, the action space
    if not isinstance(model.policy, OneHotPolicy):
        raise ValueError(
            f"{name} has the policy {type(model.policy).__name__}; pass GumbelSACPolicy to SAC, "
            f"GumbelTD3Policy to TD3 or DDPG, GumbelActorCriticPolicy to PPO, A2C or TRPO"
        )
    if getattr(model, "action_noise", None) is not None:
        raise ValueError(
            f"action_noise {model.action_noise} would be stored in place of one-hot actions; pass "
            f"action_noise=None, the policy explores by sampling"
        )
    _check_target_entropy(model)
    clip = getattr(model, "target_noise_clip", 0.0)
    if clip != 0 and model.target_policy_noise != 0:
        raise ValueError(
            f"target_policy_noise {model.target_policy_noise} (clip {clip}) would be added to "
            f"one-hot target actions; pass target_noise_clip=0.0"
        )


def _check_target_entropy(model: BaseAlgorithm) -> None:
    """Raise if SAC's entropy coefficient cannot settle."""
    if getattr(model, "ent_coef_optimizer", None) is None:
        return
    most = model.policy.layout.max_entropy
    if not 0 < model.target_entropy < most:
        raise ValueError(
            f"target_entropy {model.target_entropy:g} is outside (0, {most:.3f}), the range of the "
            f"entropy of {model.policy.layout.space} in nats, and ent_coef would only ever fall or "
            f"grow; pass target_entropy={most / 2:.3f} or **stock_kwargs(env, SAC)"
        )
