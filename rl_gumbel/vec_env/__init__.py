"""Batched environments behind the interfaces that others expect, and others' behind ours."""

from rl_gumbel.vec_env.from_sb3 import as_batched
from rl_gumbel.vec_env.sb3 import SB3VecEnv

__all__ = ["SB3VecEnv", "as_batched"]
