"""Episodes of a model, moment by moment, as it would be evaluated."""

from collections.abc import Iterator
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.vec_env import VecEnv
from torch import Tensor

from rl_gumbel.callbacks import MaskReader
from rl_gumbel.policies.shac import ValueCritic
from rl_gumbel.vec_env import SB3VecEnv
from rl_gumbel.video.overlay import Frame, Moment, draw

FRAMES_PER_SECOND = 15
"""Where Gymnasium does not know better."""
HOLD_SECONDS = 0.6
"""How long the last picture of an episode stays."""


def film(
    model: BaseAlgorithm,
    env: VecEnv,
    num_episodes: int,
    fps: int,
    *,
    deterministic: bool = True,
    max_frames: int | None = None,
) -> Iterator[Frame]:
    """Yield the pictures of episodes with their panels, all of one size."""
    values: list[float] = []
    shown = 1
    last: list[Frame] = []
    for count, moment in enumerate(play(model, env, num_episodes, deterministic=deterministic)):
        if count == max_frames:
            break
        if moment.episode != shown:
            yield from last
            shown = moment.episode
            values.clear()
        values.append(moment.value)
        picture = draw(moment, values)
        last = [picture] * round(HOLD_SECONDS * fps)
        yield picture
    yield from last


def play(
    model: BaseAlgorithm, env: VecEnv, num_episodes: int, *, deterministic: bool = True
) -> Iterator[Moment]:
    """Yield every choice of a model in episodes of the first environment of `env`.

    Argmax actions draw nothing from torch's random stream.
    """
    policy: Any = model.policy
    policy.set_training_mode(False)
    reader = MaskReader(env)
    obs = reader.reset()
    for episode in range(1, num_episodes + 1):
        step, episode_return, ended = 0, 0.0, False
        while not ended:
            frame = env.env_method("render", indices=[0])[0]
            index, moment = choose(policy, obs, reader.masks, deterministic=deterministic)
            yield Moment(frame, **moment, episode=episode, step=step, episode_return=episode_return)
            action = policy.layout.to_action(index).cpu().numpy()
            obs, rewards, ends, _ = reader.step(action)
            step, episode_return, ended = step + 1, episode_return + float(rewards[0]), ends[0]


@torch.no_grad()  # nothing is learned here
def choose(
    policy: Any, obs: Any, masks: Any, *, deterministic: bool
) -> tuple[Tensor, dict[str, Any]]:
    """Return the categories `[B, K]` that a policy chooses, and the first row's part of a moment.

    Args:
        policy: of one of our algorithms.
        obs: `[B, *O]`, arrays.
        masks: `[B, sum(sizes)]` bool, or None.
        deterministic: take the most probable category of each factor instead of sampling.
    """
    tensor, _ = policy.obs_to_tensor(obs)
    layout = policy.layout
    mask = None
    if masks is not None:
        mask = layout.unflatten(torch.as_tensor(masks, device=policy.device))
    distribution = policy.distribution(tensor, mask)
    index = distribution.mode if deterministic else distribution.sample()
    value = estimate_value(policy, tensor, layout.index_to_one_hot(index))
    allowed = layout.valid if mask is None else mask[0]
    return index, {
        "probs": distribution.probs[0].cpu().numpy(),
        "allowed": allowed.cpu().numpy(),
        "sizes": layout.sizes,
        "index": index[0].cpu().numpy(),
        "value": float(value[0]),
    }


def estimate_value(policy: Any, obs: Any, one_hot: Tensor) -> Tensor:
    """Return `[B]`: the critic's value of states, or of actions where it knows those."""
    if hasattr(policy, "values"):
        return policy.values(obs)  # type: ignore[no-any-return]
    obs = policy.normalize(obs) if hasattr(policy, "normalize") else obs
    if isinstance(policy.critic, ValueCritic):
        return policy.critic(obs)  # type: ignore[no-any-return]
    return policy.critic(obs, one_hot).mean(0)  # type: ignore[no-any-return]


def find_fps(env: VecEnv, env_id: str) -> int:
    """Return the frames per second of an environment: Gymnasium's, where it says them."""
    metadata: dict[str, Any] = {}
    if not isinstance(env.unwrapped, SB3VecEnv):
        metadata = env.get_attr("metadata")[0]
    elif env_id in gym.registry:  # the original of a torch environment
        entry_point: Any = gym.spec(env_id).entry_point
        creator = gym.envs.registration.load_env_creator(entry_point)
        metadata = getattr(creator, "metadata", {})
    return int(np.clip(metadata.get("render_fps", FRAMES_PER_SECOND), 1, 60))
