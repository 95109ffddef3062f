"""Batched environments for tests, and the transitions of batched and plain ones as equal logs."""

from typing import Any

import gymnasium as gym
import numpy as np
import torch
from gymnasium import spaces
from tiny_envs import Tiny

from rl_gumbel.envs.base import State, TorchEnv


class Ladder(TorchEnv):
    """Climb to rung 3 for a reward of 1; at the bottom action 0 (down) is not allowed."""

    def __init__(self, num_envs: int, max_episode_steps: int | None = 5, **kwargs: Any) -> None:
        super().__init__(
            num_envs, spaces.Discrete(4), spaces.Discrete(2), max_episode_steps, **kwargs
        )

    def initial(self) -> State:
        return {"rung": self.integers(2)}

    def transition(self, state, action):
        rung = state["rung"] + 2 * action.squeeze(-1) - 1
        return {"rung": rung}, (rung == 3).float(), rung == 3

    def observe(self, state):
        return state["rung"]

    def legal(self, state):
        down = state["rung"] > 0
        return torch.stack([down, torch.ones_like(down)], -1).unsqueeze(1)

    def frame(self, state):
        return np.full((2, 3, 3), int(state["rung"]), np.uint8)


class Bits(TorchEnv):
    """Reward is the number of bits that are set."""

    def __init__(self, num_envs: int) -> None:
        super().__init__(num_envs, spaces.Discrete(1), spaces.MultiBinary(2), None)

    def initial(self):
        return {"zero": torch.zeros(self.num_envs, dtype=torch.int64)}

    def transition(self, state, action):
        return state, action.sum(-1).float(), state["zero"] == 1

    def observe(self, state):
        return state["zero"]


class Masked(Tiny):
    """`Tiny` with masks as sb3-contrib asks for them, for two factors of 2 and 3."""

    def action_masks(self) -> np.ndarray:
        return np.array([self.steps % 2 == 0, True, True, True, False])


def play_plain(env_id: str, seed: int, actions: np.ndarray, **kwargs: Any) -> list[dict]:
    """The transitions of one plain Gymnasium environment, reset where an episode ends."""
    env = gym.make(env_id, **kwargs)
    obs, info = env.reset(seed=seed)
    log, total, length = [], 0.0, 0
    for action in actions:
        final_obs, reward, terminated, truncated, info = env.step(action)
        obs, total, length = final_obs, total + float(reward), length + 1
        row = {
            "reward": float(reward),
            "terminated": bool(terminated),
            "truncated": bool(truncated) and not terminated,
            "final_obs": np.array(final_obs).tolist(),
            "final_mask": np.array(info.get("action_mask", [])).tolist(),
            "return": total,
            "length": length,
        }
        if terminated or truncated:
            obs, info = env.reset()
            total, length = 0.0, 0
        row |= {
            "obs": np.array(obs).tolist(),
            "mask": np.array(info.get("action_mask", [])).tolist(),
        }
        log.append(row)
    env.close()
    return log


def play_batched(env, seed: int, actions: np.ndarray) -> list[list[dict]]:
    """The same log from a batched environment: for each environment its transitions."""
    env.reset(seed)
    logs: list[list[dict]] = [[] for _ in range(env.num_envs)]
    for action in actions:
        step = env.step(torch.as_tensor(action))
        for i in range(env.num_envs):
            logs[i].append({
                "reward": float(step.reward[i]),
                "terminated": bool(step.terminated[i]),
                "truncated": bool(step.truncated[i]),
                "final_obs": step.final_obs[i].tolist(),
                "final_mask": flat(env, step.final_action_mask, i),
                "return": float(step.episode_return[i]),
                "length": int(step.episode_length[i]),
                "obs": step.obs[i].tolist(),
                "mask": flat(env, step.action_mask, i),
            })  # fmt: skip
    return logs


def flat(env, mask: torch.Tensor | None, i: int) -> list[int]:
    return [] if mask is None else env.layout.flatten(mask)[i].int().tolist()


class Push(TorchEnv):
    """Push by 0 or 1; the reward is the place that it leads to; over beyond 3. Linear in a one-hot.

    With `fenced`, pushing is not legal at 0.
    """

    differentiable = True

    def __init__(
        self,
        num_envs: int,
        max_episode_steps: int | None = None,
        fenced: bool = False,
        **kwargs: Any,
    ) -> None:
        self.fenced = fenced
        space = spaces.Box(0, 5, (1,), np.float32)
        super().__init__(num_envs, space, spaces.Discrete(2), max_episode_steps, **kwargs)
        self.masked = fenced

    def initial(self) -> State:
        return {"place": self.integers(2, 1).to(self.dtype)}

    def transition(self, state, action):
        place = state["place"] + self.choose(action, self.constant((0.0, 1.0)))
        return {"place": place}, place.squeeze(-1), place.squeeze(-1) > 3

    def observe(self, state):
        return state["place"].float()

    def legal(self, state):
        if not self.fenced:
            return None
        may_push = state["place"] > 0
        return torch.stack([torch.ones_like(may_push), may_push], -1)
