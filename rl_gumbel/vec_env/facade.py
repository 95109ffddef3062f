"""What the facades share: one step of a batched environment, numpy in and out."""

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from rl_gumbel.envs.base import BatchedEnv
from rl_gumbel.types import Obs
from rl_gumbel.vec_env.transfer import Tree, map_leaves, to_numpy

Arrays = dict[str, Any]


def host_reset(env: BatchedEnv, seed: int | None) -> Arrays:
    """Return `obs` and flat `mask`, `[B, sum(sizes)]` bool or None, of new episodes."""
    obs: Obs = env.reset(seed)
    arrays: Arrays = to_numpy({"obs": obs, "mask": _flatten(env, env.action_mask)})
    return arrays


def host_step(env: BatchedEnv, action: Tensor) -> Arrays:
    """Return the fields of a `Step` as arrays, and `ended`, with one read of the device.

    `mask` and `final_mask` are flat, `[B, sum(sizes)]` bool, or None.
    """
    with torch.no_grad():  # no gradient passes through numpy
        step = env.step(action)
    arrays: Arrays = to_numpy(
        {
            "obs": step.obs,
            "reward": step.reward,
            "terminated": step.terminated,
            "truncated": step.truncated,
            "ended": step.ended,
            "final_obs": step.final_obs,
            "mask": _flatten(env, step.action_mask),
            "final_mask": _flatten(env, step.final_action_mask),
            "episode_return": step.episode_return,
            "episode_length": step.episode_length,
        }
    )
    return arrays


def read_action(env: BatchedEnv, action: Any) -> Tensor:
    """Return a batch of actions as a tensor that `BatchedEnv.step` takes.

    Raises:
        ValueError: for an action outside the space, which is named.
    """
    layout = env.layout
    # SB3 sends the bits of a MultiBinary as floats, which to a batched environment are one-hots.
    array: NDArray[Any] = np.asarray(action).astype(layout.space.dtype, copy=False)
    index = array.reshape(env.num_envs, layout.num_factors) - np.array(layout.starts)
    outside = ((index < 0) | (index >= np.array(layout.sizes))).any(1)
    if outside.any():
        row = int(outside.argmax())
        raise ValueError(f"action {array[row]} of environment {row} is outside {layout.space}")
    return torch.as_tensor(array, device=env.device)


def copy_row(batch: Tree, index: int) -> Tree:
    """Return a copy of one row: a view of it would keep the whole batch alive."""
    return map_leaves(lambda array: array[index].copy(), batch)


def check_render_mode(env: BatchedEnv, render_mode: str | None) -> None:
    """Refuse a render mode that an environment does not have.

    Raises:
        TypeError: if it has none, as from an environment without such an argument; SB3's
            `make_vec_env`, which asks every environment for frames, then goes on without.
        ValueError: if it has another.
    """
    if render_mode not in (None, env.render_mode):
        here = f"render_mode {render_mode!r} of {type(env).__name__}"
        if env.render_mode is None:
            raise TypeError(f"{here}: it has no picture")
        raise ValueError(f"{here}: it has {env.render_mode!r}")


def _flatten(env: BatchedEnv, mask: Tensor | None) -> Tensor | None:
    return None if mask is None else env.layout.flatten(mask)
