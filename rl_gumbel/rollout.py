"""A policy on batched environments over a horizon, to a `Rollout`."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from rl_gumbel.envs.base import Act, BatchedEnv, TorchEnv
from rl_gumbel.types import Obs, Rollout, Sample, Step

OnStep = Callable[[Step], bool]
"""Called after each step; False gives the rollout up."""


@torch.no_grad()
def collect(
    env: BatchedEnv,
    act: Act,
    obs: Obs,
    num_steps: int,
    on_step: OnStep = lambda step: True,
) -> tuple[Rollout, Obs] | None:
    """Return `num_steps` steps of every environment, and the observations to go on from.

    No gradient passes from one step to the next. Nothing here waits for the device.

    Args:
        env: reset before.
        act: the policy.
        obs: the present observations of the environments, `[B, *O]`.
        num_steps: T.
        on_step: called after each step; where it returns False the rollout is given up, and None is
            returned.
    """
    return _play(env, partial(env.act_and_step, act), obs, num_steps, on_step)


def collect_window(
    env: TorchEnv,
    act: Callable[[Obs, Tensor | None], Sample],
    obs: Obs,
    num_steps: int,
    on_step: OnStep = lambda step: True,
) -> tuple[Rollout, Obs] | None:
    """Return the same of a differentiable environment, the gradient passing through its steps.

    Rewards and observations of the rollout carry a gradient to the one-hots that `act` returns and
    from there, by way of the observations too, to the policy. It reaches back to the start of the
    window and not beyond, and forward into no other episode.

    Args:
        env: reset before. Its `gradients` are on inside the window only.
        act: the policy, as samples of an estimator.
        obs: as `collect`.
        num_steps: as `collect`.
        on_step: as `collect`.
    """

    def play(obs: Obs) -> tuple[Tensor, Step]:
        sample = act(obs, env.action_mask)
        return sample.index, env.step(sample.one_hot)

    env.detach()  # a window starts without a past
    before, env.gradients = env.gradients, True
    try:
        collected = _play(env, play, obs, num_steps, on_step)
    finally:
        env.gradients = before
        env.detach()  # or the past would be kept in memory until the next window
    if collected is None:
        return None
    rollout, obs = collected
    return rollout, tree_map(lambda part: part.detach(), obs)  # the next window's start


def _play(
    env: BatchedEnv,
    play: Callable[[Obs], tuple[Tensor, Step]],
    obs: Obs,
    num_steps: int,
    on_step: OnStep,
) -> tuple[Rollout, Obs] | None:
    """Return what `collect` does; `play` takes a step and returns its categories `[B, K]` too."""
    observations, masks, indices, steps = [obs], [env.action_mask], [], []
    for _ in range(num_steps):
        index, step = play(obs)
        obs = step.obs
        observations.append(obs)
        masks.append(step.action_mask)
        indices.append(index)
        steps.append(step)
        if not on_step(step):
            return None
    truncated, interval = torch.stack([step.truncated for step in steps]), env.truncation_interval
    rollout = Rollout(
        obs=_stack(observations),
        action_mask=_stack(masks),
        index=torch.stack(indices),
        reward=torch.stack([step.reward for step in steps]),
        terminated=torch.stack([step.terminated for step in steps]),
        truncated=truncated,
        truncated_obs=_at_truncation(truncated, [step.final_obs for step in steps], interval),
        truncated_mask=_at_truncation(
            truncated, [step.final_action_mask for step in steps], interval
        ),
        episode_return=torch.stack([step.episode_return for step in steps]),
        episode_length=torch.stack([step.episode_length for step in steps]),
        truncation_interval=interval,
    )
    return rollout, obs


def following_values(rollout: Rollout, values: Tensor, truncated_values: Tensor) -> Tensor:
    """Return `[T, B]` values of what each action led to, in the same episode.

    Args:
        rollout: of T steps.
        values: of `rollout.obs`, `[T + 1, B]`.
        truncated_values: of `rollout.truncated_obs`, `[R, B]`.
    """
    following = values[1:]
    if rollout.truncation_interval is None:
        return following
    at_truncation = truncated_values.repeat_interleave(rollout.truncation_interval, 0)
    return torch.where(rollout.truncated, at_truncation[: len(following)], following)


def _stack(values: Sequence[Any]) -> Any:
    """Return observations or masks with a first axis more; None of Nones."""
    return None if values[0] is None else tree_map(lambda *parts: torch.stack(parts), *values)


def _at_truncation(truncated: Tensor, values: Sequence[Any], interval: int | None) -> Any:
    """Return `[R, B, ...]`: in each window of `interval` steps that of the truncation.

    Keeping the few values that may be needed saves the network's work on the last observations of
    every step.

    Args:
        truncated: `[T, B]` bool.
        values: T times `[B, ...]`.
        interval: `truncation_interval` of the environment.
    """
    if values[0] is None:
        return None
    if interval is None:
        return tree_map(lambda value: value.new_empty((0, *value.shape)), values[0])
    stacked = _stack(values)
    if interval == 1:
        return stacked
    # In a window without a truncation any step will do: nobody looks at it.
    steps = torch.stack(
        [
            start + window.to(torch.uint8).argmax(0)
            for start, window in zip(
                range(0, len(values), interval), truncated.split(interval), strict=True
            )
        ]
    )
    columns = torch.arange(steps.shape[1], device=steps.device)
    return tree_map(lambda value: value[steps, columns], stacked)
