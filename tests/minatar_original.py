"""The original MinAtar, as the oracle of ours: what it drew, and how ours draws the same."""

from collections.abc import Callable
from copy import copy
from typing import Any

import minatar
import numpy as np
import torch
from torch import Tensor

from rl_gumbel.envs.minatar.base import MinAtarEnv


class Recorder:
    """A `RandomState` that keeps what it gave, in order, until `take`."""

    def __init__(self, seed: int) -> None:
        self.random = np.random.RandomState(seed)
        self.draws: list[Any] = []

    def __getattr__(self, name: str) -> Callable[..., Any]:
        def draw(*args: Any, **kwargs: Any) -> Any:
            given = getattr(self.random, name)(*args, **kwargs)
            self.draws.append(copy(given))  # the game may change what it was given
            return given

        return draw

    def take(self) -> list[Any]:
        draws, self.draws = self.draws, []
        return draws


def make_originals(num_envs: int, game: str, **kwargs: Any) -> list[minatar.Environment]:
    """Return originals at their start that record their draws."""
    originals = []
    for seed in range(num_envs):
        original = minatar.Environment(game, **kwargs)
        original.random = original.env.random = Recorder(seed)
        original.reset()
        original.random.take()
        originals.append(original)
    return originals


class Feed:
    """Gives an environment the draws of the originals instead of its own."""

    def __init__(self, env: MinAtarEnv) -> None:
        self.env = env
        self.queue: list[Tensor] = []
        env.uniform = self.uniform  # type: ignore[method-assign]
        env.integers = self.integers  # type: ignore[method-assign]

    def uniform(self, *shape: int) -> Tensor:
        draw = self.queue.pop(0)
        assert draw.is_floating_point() and draw.shape == (self.env.num_envs, *shape)
        return draw

    def integers(self, high: int, *shape: int) -> Tensor:
        draw = self.queue.pop(0)
        assert draw.dtype == torch.int64 and draw.shape == (self.env.num_envs, *shape)
        assert ((draw >= 0) & (draw < high)).all()
        return draw
