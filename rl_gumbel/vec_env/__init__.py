"""Batched environments behind the interfaces that others expect, and others' behind ours."""

from rl_gumbel.vec_env.from_sb3 import as_batched
from rl_gumbel.vec_env.gym_env import GymEnv, GymVectorEnv, make_gym_vector_env
from rl_gumbel.vec_env.make import make_vec
from rl_gumbel.vec_env.sb3 import SB3VecEnv

__all__ = [
    "GymEnv",
    "GymVectorEnv",
    "SB3VecEnv",
    "as_batched",
    "make_gym_vector_env",
    "make_vec",
]
