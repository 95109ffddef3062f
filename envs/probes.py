"""Probe environments: tiny, with values known by hand, each failed by one kind of fault.

An agent that fails a probe but passes those before it has its bug in what the probe adds: the
critic's regression (`ProbeValue`), its inputs (`ProbeObservation`), discount and bootstrap
(`ProbeDiscount`), the actor's gradient (`ProbeAction`), and the credit of each factor given the
observation (`ProbeFactors`). Episodes have one step, those of `ProbeDiscount` two. Rewards are
linear in a one-hot action, and carry a gradient to it with `gradients=True`.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from numpy.typing import NDArray
from torch import Tensor

from rl_gumbel.actions import ActionLayout
from rl_gumbel.envs.base import State, TorchEnv
from rl_gumbel.envs.board import Board
from rl_gumbel.envs.canvas import BLUE, GREY, LIGHT, PAPER

PIXELS = 480
"""Of the longer edge of a picture, unless tiles would have less than 12."""


def draw_choices(rows: Sequence[Sequence[str]], shown: Sequence[int]) -> NDArray[np.uint8]:
    """Return a picture of rows of tiles with a text on each, in each row one in blue."""
    longest = max(len(rows), *map(len, rows))
    board = Board(len(rows), max(map(len, rows)), PAPER, min(80, max(12, PIXELS // longest)), 0.25)
    for i, (texts, chosen) in enumerate(zip(rows, shown, strict=True)):
        for j, text in enumerate(texts):
            fill, ink = (BLUE, PAPER) if j == chosen else (LIGHT, GREY)
            board.box((i, j), (0.06, 0.06), (0.94, 0.94), fill, radius=0.12)
            board.write((i, j), (0.5, 0.5), text, 0.4, ink)
    return board.picture()


class Probe(TorchEnv):
    """Episodes of one step; the base of all probes: one action, observation 0, reward 1."""

    differentiable = True
    rewards: tuple[float, ...] = (1.0,)
    """Of each action."""

    def __init__(self, num_envs: int, **kwargs: Any) -> None:
        box = spaces.Box(-1, 1, (1,), np.float32)
        super().__init__(num_envs, box, spaces.Discrete(len(self.rewards)), None, **kwargs)

    def initial(self) -> State:
        """Return observations of 0, `[B, 1]`."""
        return {"shown": torch.zeros(self.num_envs, 1, device=self.device)}

    def transition(self, state: State, action: Tensor) -> tuple[State, Tensor, Tensor]:
        """Return the same observations, the rewards of the actions, and the end of the episodes."""
        reward = self.choose(action, self.constant(self.rewards)).squeeze(-1)
        return state, reward, torch.ones_like(reward, dtype=torch.bool)

    def observe(self, state: State) -> Tensor:
        """Return what is shown, `[B, 1]`."""
        return state["shown"]

    def frame(self, state: State) -> NDArray[np.uint8]:
        """Return the observation among -1, 0 and 1."""
        return draw_choices([("-1", "0", "1")], [int(state["shown"]) + 1])


class ProbeValue(Probe):
    """One action, constant observation, reward 1: V = 1."""


class ProbeObservation(Probe):
    """One action; the reward is the observation, -1 or 1 by chance: V(s) = s."""

    def initial(self) -> State:
        """Return -1 or 1 with equal probability, `[B, 1]`."""
        return {"shown": 2.0 * self.integers(2, 1) - 1}

    def transition(self, state: State, action: Tensor) -> tuple[State, Tensor, Tensor]:
        """Return the observations as rewards, and the end of the episodes."""
        state, reward, terminated = super().transition(state, action)
        return state, reward * state["shown"].squeeze(-1), terminated


class ProbeDiscount(Probe):
    """One action, two steps, observations 0 and 1, reward 1 at the end: V(0) = gamma, V(1) = 1."""

    def transition(self, state: State, action: Tensor) -> tuple[State, Tensor, Tensor]:
        """Return observation 1 and reward 0 at first, then reward 1 and the end."""
        _, reward, _ = super().transition(state, action)
        is_last = state["shown"].squeeze(-1) == 1
        return {"shown": torch.ones_like(state["shown"])}, reward * is_last, is_last


class ProbeAction(Probe):
    """Two actions, constant observation, reward -1 for action 0 and 1 for action 1.

    With entropy coefficient c the soft policy takes action 1 with probability sigmoid(2 / c) and
    V = c log(exp(-1 / c) + exp(1 / c)).
    """

    rewards = (-1.0, 1.0)


class ProbeFactors(TorchEnv):
    """The observation names a category for each factor; reward 1 for each factor that takes it.

    The reward is a sum over factors, so each must find its own part of the credit. With entropy
    coefficient c a factor of n categories is right with probability e / (e + n - 1), e = exp(1 / c)
    and V is the sum over factors of c log(e + n - 1).

    Args:
        num_envs: B.
        action_space: any that `ActionLayout` supports; the default has factors of unequal sizes.
        kwargs: `device`, `dtype` and `gradients` of `TorchEnv`.
    """

    differentiable = True

    def __init__(
        self,
        num_envs: int,
        action_space: spaces.Space[Any] | None = None,
        **kwargs: Any,
    ) -> None:
        action_space = action_space or spaces.MultiDiscrete([3, 2])
        sizes = list(ActionLayout.from_space(action_space).sizes)
        super().__init__(num_envs, spaces.MultiDiscrete(sizes), action_space, None, **kwargs)

    def initial(self) -> State:
        """Return categories, counted from zero, drawn uniformly, `[B, K]`."""
        sizes = self.constant(self.layout.sizes)
        return {"shown": (self.uniform(self.layout.num_factors) * sizes).long()}

    def transition(self, state: State, action: Tensor) -> tuple[State, Tensor, Tensor]:
        """Return how many factors took the category they were shown, and the end."""
        shown = state["shown"]
        if action.is_floating_point():
            right = action.gather(-1, shown.unsqueeze(-1)).squeeze(-1)
        else:
            right = action == shown
        return state, right.sum(-1), torch.ones_like(shown[:, 0], dtype=torch.bool)

    def observe(self, state: State) -> Tensor:
        """Return the categories that are shown, `[B, K]` int64."""
        return state["shown"]

    def frame(self, state: State) -> NDArray[np.uint8]:
        """Return a row for each factor, with its categories and the one that is shown in blue."""
        texts = [[str(i) for i in range(size)] for size in self.layout.sizes]
        return draw_choices(texts, state["shown"][0].tolist())
