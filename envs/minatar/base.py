"""What the MinAtar games share: actions, sticky actions, difficulty, observations and pictures."""

from abc import abstractmethod
from typing import Any, ClassVar

import numpy as np
import torch
from gymnasium import spaces
from numpy.typing import NDArray
from torch import Tensor

from rl_gumbel.envs.base import State, TorchEnv

SIZE = 10
"""Rows and columns of the grid; row 0 is at the top."""
NOTHING, LEFT, UP, RIGHT, DOWN, FIRE = range(6)
PALETTE = (
    (255, 255, 255),  # channel 0, in every game a part of the player
    (230, 75, 60),
    (75, 165, 235),
    (245, 195, 65),
    (100, 200, 110),
    (240, 140, 50),
    (170, 110, 220),
    (60, 205, 205),
    (240, 130, 190),
    (160, 120, 80),
)
BACKGROUND, GRID_LINE = (12, 14, 22), (34, 38, 52)
CELL_PIXELS = 16


class MinAtarEnv(TorchEnv):
    """A MinAtar game, with the actions of the id `MinAtar/<Game>-v1`.

    A game names its `channels` and `actions` and writes `initial`, `play` and `observe` (with
    `locate` and `draw`). Its tensors follow those of the state, which in `frame` is on the CPU and
    of one environment. Observations are 0 or 1, `[10, 10, C]` uint8: a quarter of a float's memory,
    and Stable-Baselines3 turns them into floats without a division.

    The chosen action is replaced by the one executed before, with probability
    `sticky_action_prob`; as in the original the first step of an episode can repeat the last action
    of the episode before it.

    Args:
        num_envs: B.
        max_episode_steps: the time limit; the original has none.
        sticky_action_prob: from 0 to 1.
        kwargs: of `TorchEnv`.

    Raises:
        ValueError: for a probability that is none.
    """

    channels: ClassVar[tuple[str, ...]]
    """What each channel of the observation shows."""
    actions: ClassVar[tuple[int, ...]]
    """What each category of the action does."""
    persistent = frozenset({"last_action"})

    def __init__(
        self,
        num_envs: int,
        max_episode_steps: int | None = None,
        *,
        sticky_action_prob: float = 0.1,
        **kwargs: Any,
    ) -> None:
        if not 0 <= sticky_action_prob <= 1:
            raise ValueError(
                f"sticky_action_prob {sticky_action_prob!r} of {type(self).__name__} must be "
                f"from 0 to 1"
            )
        self.sticky_action_prob = sticky_action_prob
        super().__init__(
            num_envs,
            spaces.Box(0, 1, (SIZE, SIZE, len(self.channels)), np.uint8),
            spaces.Discrete(len(self.actions)),
            max_episode_steps,
            **kwargs,
        )

    def initial(self) -> State:
        """Return the states of B new episodes; a game adds its own to `last_action`, `[B]`."""
        return {"last_action": self.integer(NOTHING)}

    @abstractmethod
    def play(self, state: State, action: Tensor) -> tuple[State, Tensor, Tensor]:
        """Return next states (without `last_action`), rewards `[B]` float32, terminations `[B]`.

        Args:
            state: of B environments; to be left as it is.
            action: `[B]` int64, one of NOTHING, LEFT, UP, RIGHT, DOWN, FIRE.
        """

    def transition(self, state: State, action: Tensor) -> tuple[State, Tensor, Tensor]:
        """Return next states, rewards and terminations after the action or the last one."""
        chosen = self.choose(action, self.constant(self.actions)).squeeze(-1).long()
        executed = torch.where(
            self.uniform() < self.sticky_action_prob, state["last_action"], chosen
        )
        following, reward, terminated = self.play(state, executed)
        return {"last_action": executed, **following}, reward, terminated

    # --- what a game uses -------------------------------------------------------------------------

    def integer(self, value: int, *shape: int) -> Tensor:
        """Return `[B, *shape]` int64, all of them `value`."""
        return torch.full((self.num_envs, *shape), value, device=self.device)

    def locate(self, channel: str, cell: Tensor) -> Tensor:
        """Return the places, for `draw`, of cells (`SIZE * row + column`) in a channel."""
        return cell * len(self.channels) + self.channels.index(channel)

    def draw(self, *places: Tensor) -> Tensor:
        """Return observations `[B, 10, 10, C]` with ones at the places, `[B]` or `[B, S]` each.

        What is absent is drawn over something that is there: give it the same place.
        """
        index = torch.cat([place.view(len(place), -1) for place in places], 1)
        size = SIZE * SIZE * len(self.channels)
        blank = torch.zeros(len(index), size, dtype=torch.uint8, device=index.device)
        # On the CPU a tensor of ones is written three times as fast as the number.
        ones = blank.new_ones(index.shape)
        return blank.scatter_(1, index, ones).view(-1, SIZE, SIZE, len(self.channels))

    def frame(self, state: State) -> NDArray[np.uint8]:
        """Return the grid enlarged; where channels overlap, the colour of the first."""
        shown = self.observe(state)[0].numpy()
        channel = np.where(shown.any(-1), shown.argmax(-1), len(PALETTE))
        colors = np.array([*PALETTE, BACKGROUND], np.uint8)[channel]
        picture: NDArray[np.uint8] = colors.repeat(CELL_PIXELS, 0).repeat(CELL_PIXELS, 1)
        picture[::CELL_PIXELS] = picture[:, ::CELL_PIXELS] = GRID_LINE
        return picture
