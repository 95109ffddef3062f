"""MinAtar Space Invaders: shoot down a block of aliens before it, or one of its bombs, arrives."""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from rl_gumbel.envs.base import State
from rl_gumbel.envs.minatar.base import FIRE, LEFT, NOTHING, RIGHT, SIZE, MinAtarEnv

START = 5
"""Column of the cannon."""
ROWS, COLUMNS = slice(0, 4), slice(2, 8)
"""Where a new wave of aliens stands."""
MOVE_INTERVAL, FASTEST_MOVE_INTERVAL = 12, 6
"""Steps from one move of a full wave to the next, in the first wave and from the seventh on."""
SHOT_INTERVAL, BOMB_INTERVAL = 5, 10
"""Steps from one shot of the cannon, and from one bomb of the aliens, to the next."""


class SpaceInvaders(MinAtarEnv):
    """MinAtar's Space Invaders: 1 for each alien shot, until an alien or a bomb meets the cannon.

    The aliens move sideways, and at the edge down and back; the game ends too if one would leave
    the last row. Where fewer aliens are left than the interval of their moves has steps, it has as
    many steps as there are aliens. With `difficulty_ramping` it has one less in each new wave, down
    to 6. Nothing is random but sticky actions.

    The lowest alien of the column nearest to the cannon drops the bomb, of two columns the left
    one. (The original leaves that to the order in which NumPy sorts equal distances.)

    State, `[B]` where no shape is given: `column` of the cannon; `aliens`, `shots`, `bombs`, maps
    `[B, 10, 10]` bool; `heading` of the aliens, 1 or -1; `move_interval`; `move_timer`,
    `bomb_timer`, `shot_timer`, steps until the next.
    """

    channels = ("cannon", "alien", "alien_left", "alien_right", "friendly_bullet", "enemy_bullet")
    actions = (NOTHING, LEFT, RIGHT, FIRE)

    def __init__(
        self,
        num_envs: int,
        max_episode_steps: int | None = None,
        *,
        difficulty_ramping: bool = True,
        **kwargs: Any,
    ) -> None:
        self.difficulty_ramping = difficulty_ramping
        super().__init__(num_envs, max_episode_steps, **kwargs)

    def initial(self) -> State:
        """Return a cannon in the middle below a full wave that moves to the left."""
        nothing = torch.zeros(self.num_envs, SIZE, SIZE, dtype=torch.bool, device=self.device)
        return {
            **super().initial(),
            "column": self.integer(START),
            "aliens": self._wave(),
            "shots": nothing,
            "bombs": nothing,
            "heading": self.integer(-1),
            "move_interval": self.integer(MOVE_INTERVAL),
            "move_timer": self.integer(MOVE_INTERVAL),
            "bomb_timer": self.integer(BOMB_INTERVAL),
            "shot_timer": self.integer(0),
        }

    def play(self, state: State, action: Tensor) -> tuple[State, Tensor, Tensor]:
        """Return the states after cannon, shots, bombs and aliens have moved, in this order."""
        columns = torch.arange(SIZE, device=self.device)

        # Cannon
        fires = (action == FIRE) & (state["shot_timer"] == 0)
        shot_timer = state["shot_timer"].masked_fill(fires, SHOT_INTERVAL)
        step = (action == RIGHT).long() - (action == LEFT).long()
        column = (state["column"] + step).clamp(0, SIZE - 1)
        cannon = columns == column[:, None]

        # Shots and bombs, the new shot too
        shots, bombs, aliens = state["shots"], state["bombs"], state["aliens"]
        launched = (shots[:, -1] | (cannon & fires[:, None]))[:, None]
        shots = torch.cat([shots[:, 1:-1], launched, torch.zeros_like(launched)], 1)
        bombs = F.pad(bombs[:, :-1], (0, 0, 1, 0))
        terminated = (cannon & (bombs[:, -1] | aliens[:, -1])).any(1)

        # Aliens
        moves = state["move_timer"] == 0
        to_left = state["heading"] < 0
        at_edge = torch.where(to_left[:, None], aliens[:, :, 0], aliens[:, :, -1]).any(1)
        turns = moves & at_edge
        terminated = terminated | (turns & aliens[:, -1].any(1))
        heading = torch.where(turns, -state["heading"], state["heading"])
        sideways = torch.where(
            _cells(to_left), F.pad(aliens[:, :, 1:], (0, 1)), F.pad(aliens[:, :, :-1], (1, 0))
        )
        moved = torch.where(_cells(at_edge), aliens.roll(1, 1), sideways)
        wait = torch.minimum(aliens.sum((1, 2)), state["move_interval"])
        move_timer = torch.where(moves, wait, state["move_timer"])
        aliens = torch.where(_cells(moves), moved, aliens)
        terminated = terminated | (cannon & aliens[:, -1]).any(1)

        # Bomb of the lowest alien in the nearest column
        drops = state["bomb_timer"] == 0
        ahead = columns - column[:, None]
        distance = 2 * ahead.abs() + (ahead > 0)  # the left one of two is nearer
        nearest = distance.masked_fill(~aliens.any(1), 2 * SIZE).argmin(1)
        above = aliens.gather(2, _cells(nearest).expand(-1, SIZE, 1)).squeeze(2)
        place = (above * columns).amax(1) * SIZE + nearest
        place = place.masked_fill(~drops, SIZE * SIZE)  # no cell
        cells = torch.arange(SIZE * SIZE, device=self.device)
        bombs = bombs | (cells == place[:, None]).view_as(bombs)
        bomb_timer = state["bomb_timer"].masked_fill(drops, BOMB_INTERVAL)

        # Hits
        hits = aliens & shots
        aliens, shots = aliens ^ hits, shots ^ hits

        # Next wave
        cleared = ~aliens.any(2).any(1)
        faster = (
            self.difficulty_ramping & cleared & (state["move_interval"] > FASTEST_MOVE_INTERVAL)
        )
        return (
            {
                "column": column,
                "aliens": torch.where(_cells(cleared), self._wave(), aliens),
                "shots": shots,
                "bombs": bombs,
                "heading": heading,
                "move_interval": state["move_interval"] - faster.long(),
                "move_timer": move_timer - 1,
                "bomb_timer": bomb_timer - 1,
                "shot_timer": (shot_timer - 1).clamp_min(0),
            },
            hits.sum((1, 2)).float(),
            terminated,
        )

    def observe(self, state: State) -> Tensor:
        """Return `[B, 10, 10, 6]`; the channel of the aliens' direction repeats the aliens."""
        aliens, column = state["aliens"], state["column"]
        to_left = _cells(state["heading"] < 0)
        obs = torch.zeros(*aliens.shape, 6, dtype=torch.uint8, device=aliens.device)
        obs[:, -1, :, 0] = torch.arange(SIZE, device=aliens.device) == column[:, None]
        obs[..., 1] = aliens
        obs[..., 2] = aliens & to_left
        obs[..., 3] = aliens & ~to_left
        obs[..., 4] = state["shots"]
        obs[..., 5] = state["bombs"]
        return obs

    def _wave(self) -> Tensor:
        """Return the aliens of a new wave."""
        aliens = torch.zeros(self.num_envs, SIZE, SIZE, dtype=torch.bool, device=self.device)
        aliens[:, ROWS, COLUMNS] = True
        return aliens


def _cells(values: Tensor) -> Tensor:
    """Return `[B]` values so that they combine with maps `[B, 10, 10]`."""
    return values[:, None, None]
