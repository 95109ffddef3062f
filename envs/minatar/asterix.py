"""MinAtar Asterix: collect gold and keep away from enemies, both passing by in eight lanes."""

import math
from typing import Any

import torch
from torch import Tensor

from rl_gumbel.envs.base import State
from rl_gumbel.envs.minatar.base import DOWN, LEFT, NOTHING, RIGHT, SIZE, UP, MinAtarEnv

NUM_LANES = 8
"""One in each row but the first and the last; it holds one thing at most."""
START = 5
"""Row and column of the player."""
SPAWN_INTERVAL, MOVE_INTERVAL = 10, 5
"""Steps from one thing to the next, and from one move of all things to the next, at level 0."""
STEPS_PER_LEVEL, MAX_LEVEL = 102, 9
GOLD_PROB = 1 / 3
EVERY_COUNT = math.lcm(*range(1, NUM_LANES + 1))
"""A uniform number below it is, modulo any number of lanes, a uniform choice of one of them."""


class Asterix(MinAtarEnv):
    """MinAtar's Asterix: 1 for each piece of gold, until the player meets an enemy.

    Something appears at a random end of a random empty lane, gold with probability 1/3. With
    `difficulty_ramping` it appears one step sooner at every level and moves one step sooner at
    every second one, down to every step; levels last 102 steps and end at 9.

    State, `[B]` where no shape is given: `row`, `column` of the player; `spawn_timer`,
    `move_timer`, steps until the next; `age`, steps of the episode; of the things in the lanes,
    `[B, 8]`: `present` bool, `gold` bool, `at`, a column, and `heading`, 1 or -1.
    """

    channels = ("player", "enemy", "trail", "gold")
    actions = (NOTHING, LEFT, UP, RIGHT, DOWN)

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
        """Return empty lanes."""
        return {
            **super().initial(),
            "row": self.integer(START),
            "column": self.integer(START),
            "spawn_timer": self.integer(SPAWN_INTERVAL),
            "move_timer": self.integer(MOVE_INTERVAL),
            "age": self.integer(0),
            "present": self.integer(0, NUM_LANES).bool(),
            "gold": self.integer(0, NUM_LANES).bool(),
            "at": self.integer(0, NUM_LANES),
            "heading": self.integer(1, NUM_LANES),
        }

    def play(self, state: State, action: Tensor) -> tuple[State, Tensor, Tensor]:
        """Return the states after something appeared, the player moved, and all things moved."""
        level = (state["age"] // STEPS_PER_LEVEL).clamp(max=MAX_LEVEL)
        if not self.difficulty_ramping:
            level = torch.zeros_like(level)
        spawns, advances = state["spawn_timer"] == 0, state["move_timer"] == 0
        spawn_timer = torch.where(
            spawns, (SPAWN_INTERVAL - level).clamp(min=1), state["spawn_timer"]
        )
        move_timer = torch.where(advances, MOVE_INTERVAL - level // 2, state["move_timer"])
        present, gold, at, heading = self.spawn(state, spawns)

        column = state["column"] + (action == RIGHT).long() - (action == LEFT).long()
        row = state["row"] + (action == DOWN).long() - (action == UP).long()
        column, row = column.clamp(0, SIZE - 1), row.clamp(1, NUM_LANES)

        # The player may meet a thing before it moves and after; gold is gone after the first.
        lane = torch.arange(1, NUM_LANES + 1, device=row.device)
        reachable = present & (lane == row.unsqueeze(1))
        onward = at + heading * advances.unsqueeze(1)
        met = reachable & ((at == column.unsqueeze(1)) | (onward == column.unsqueeze(1)))
        following = {
            "row": row,
            "column": column,
            "spawn_timer": spawn_timer - 1,
            "move_timer": move_timer - 1,
            "age": state["age"] + 1,
            "present": present & ~(met & gold) & (onward >= 0) & (onward < SIZE),
            "gold": gold,
            "at": onward,
            "heading": heading,
        }
        return following, (met & gold).any(1).float(), (met & ~gold).any(1)

    def spawn(self, state: State, spawns: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return `present`, `gold`, `at`, `heading` with one thing more where there is room.

        Args:
            state: of B environments.
            spawns: `[B]` bool, where something is due.
        """
        empty = ~state["present"]
        rank = empty.cumsum(1)
        chosen = self.integers(EVERY_COUNT).unsqueeze(1) % rank[:, -1:].clamp(min=1) + 1
        new = empty & (rank == chosen) & spawns.unsqueeze(1)
        leftward = self.integers(2).unsqueeze(1)
        gold = (self.uniform() < GOLD_PROB).unsqueeze(1)
        return (
            state["present"] | new,
            torch.where(new, gold, state["gold"]),
            torch.where(new, (SIZE - 1) * leftward, state["at"]),
            torch.where(new, 1 - 2 * leftward, state["heading"]),
        )

    def observe(self, state: State) -> Tensor:
        """Return the player, enemies, gold, and a trail behind both where that is on the grid."""
        player = self.locate("player", SIZE * state["row"] + state["column"])
        hidden = player.unsqueeze(1)
        at, present = state["at"], state["present"]
        lane = SIZE * torch.arange(1, NUM_LANES + 1, device=at.device)
        enemy, gold = self.locate("enemy", lane + at), self.locate("gold", lane + at)
        behind = at - state["heading"]
        trails = present & (behind >= 0) & (behind < SIZE)
        return self.draw(
            player,
            torch.where(present, torch.where(state["gold"], gold, enemy), hidden),
            torch.where(trails, self.locate("trail", lane + behind), hidden),
        )
