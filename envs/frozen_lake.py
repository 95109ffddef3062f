"""FrozenLake-v1: cross a frozen lake to the goal without falling into a hole."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from rl_gumbel.envs.base import State
from rl_gumbel.envs.board import Board
from rl_gumbel.envs.tabular import Outcome, Table, TabularEnv

MAPS = {
    "4x4": ["SFFF", "FHFH", "FFFH", "HFFG"],
    "8x8": [
        "SFFFFFFF",
        "FFFFFFFF",
        "FFFHFFFF",
        "FFFFFHFF",
        "FFFHFFFF",
        "FHHFFFHF",
        "FHFFHFHF",
        "FFFHFFFG",
    ],
}
MOVES = ((0, -1), (1, 0), (0, 1), (-1, 0))
"""Row and column of the actions: left, down, right, up; neighbours are perpendicular."""
ENDS = ("G", "H")
SUCCESS_RATE = 1 / 3


class FrozenLake(TabularEnv):
    """Gymnasium's FrozenLake-v1 and FrozenLake8x8-v1: reward 1 at the goal, the holes end it too.

    An observation is `row * columns + column`. Actions are left, down, right, up.

    Args:
        num_envs: B.
        max_episode_steps: 100, or 200 for the id with the 8x8 map.
        desc: the map as rows of S (start), F (frozen), H (hole), G (goal), instead of `map_name`.
        map_name: "4x4" or "8x8".
        is_slippery: a move goes astray, to either side alike, unless it succeeds.
        success_rate: probability that it succeeds, from 0 to 1.
        reward_schedule: rewards for reaching goal, hole, and any other tile.
        kwargs: `device` and `dtype` of `TorchEnv`.

    Raises:
        ValueError: for a map or number outside the above, or a success rate with no use.
    """

    def __init__(
        self,
        num_envs: int,
        max_episode_steps: int | None = 100,
        *,
        desc: Sequence[str] | None = None,
        map_name: str = "4x4",
        is_slippery: bool = True,
        success_rate: float = SUCCESS_RATE,
        reward_schedule: Sequence[float] = (1, 0, 0),
        **kwargs: Any,
    ) -> None:
        if not 0 <= success_rate <= 1:
            raise ValueError(f"success_rate {success_rate} of FrozenLake must be from 0 to 1")
        if not is_slippery and success_rate != SUCCESS_RATE:
            raise ValueError(
                f"success_rate {success_rate} of FrozenLake has no use with is_slippery=False"
            )
        if len(reward_schedule) != 3:
            raise ValueError(
                f"reward_schedule {reward_schedule} of FrozenLake must be three rewards: of goal, "
                f"hole and frozen tiles"
            )
        self.tiles = tiles = _read_map(desc, map_name)
        astray = (1 - success_rate) / 2
        turns = [(-1, astray), (0, success_rate), (1, astray)] if is_slippery else [(0, 1.0)]
        rows, columns = len(tiles), len(tiles[0])
        goal, hole, frozen = map(float, reward_schedule)
        reward_of = {"G": goal, "H": hole, "F": frozen, "S": frozen}

        def outcomes(state: int, action: int) -> list[Outcome]:
            row, column = divmod(state, columns)
            if tiles[row][column] in ENDS:  # the end; nothing moves any more
                return [(1.0, state, 0.0, True)]
            found: list[Outcome] = []
            for turn, probability in turns:
                down, right = MOVES[(action + turn) % 4]
                to_row = min(max(row + down, 0), rows - 1)
                to_column = min(max(column + right, 0), columns - 1)
                tile = tiles[to_row][to_column]
                reward = reward_of[tile]
                following = to_row * columns + to_column
                found.append((probability, following, reward, tile in ENDS))
            return found

        start = torch.tensor([letter == "S" for row in tiles for letter in row])
        super().__init__(num_envs, Table.build(outcomes, start, 4), max_episode_steps, **kwargs)

    def frame(self, state: State) -> NDArray[np.uint8]:
        """Return the lake: holes, a flag at the goal, S at the start, and the elf."""
        columns = len(self.tiles[0])
        pixels = max(16, min(64, 512 // max(len(self.tiles), columns)))
        board = Board(len(self.tiles), columns, "#b9d3e6", pixels)
        for row, letters in enumerate(self.tiles):
            for column, letter in enumerate(letters):
                tile = (row, column)
                board.box(tile, (0.02, 0.02), (0.98, 0.98), "#e3f1fb", radius=0.08)
                board.polygon(tile, [(0.15, 0.4), (0.35, 0.15), (0.4, 0.15), (0.2, 0.4)], "white")
                if letter == "H":
                    board.disc(tile, (0.5, 0.52), (0.42, 0.36), "#9fc0d8")
                    board.disc(tile, (0.5, 0.55), (0.36, 0.29), "#17375e")
                elif letter == "G":
                    board.flag(tile, "#d62839")
                elif letter == "S":
                    board.write(tile, (0.5, 0.5), "S", 0.5, "#7fa3bf")
        elf = divmod(int(state["state"]), columns)
        board.polygon(elf, [(0.5, 0.40), (0.74, 0.88), (0.26, 0.88)], "#2a8c4a")
        board.disc(elf, (0.5, 0.44), 0.16, "#f2c9a1")
        board.polygon(elf, [(0.31, 0.38), (0.69, 0.38), (0.56, 0.08)], "#c1272d")
        board.disc(elf, (0.56, 0.10), 0.05, "white", edge="#c1272d")
        for x in (0.44, 0.56):
            board.disc(elf, (x, 0.45), 0.025, "black")
        return board.picture()


def _read_map(desc: Sequence[str] | None, map_name: str) -> list[list[str]]:
    """Return the letters of a map's tiles, row by row."""
    if desc is None and map_name not in MAPS:
        raise ValueError(
            f"map_name {map_name!r} of FrozenLake is not one of {', '.join(MAPS)}; other maps go "
            f"into desc, random ones by Gymnasium's generate_random_map(seed=...)"
        )
    rows = [list(row) for row in (MAPS[map_name] if desc is None else desc)]
    letters = {letter for row in rows for letter in row}
    if len(set(map(len, rows))) != 1 or not letters <= set("SFHG") or "S" not in letters:
        raise ValueError(
            f"desc {desc!r} of FrozenLake must be rows of equal length of S, F, H, G, with an S"
        )
    return rows
