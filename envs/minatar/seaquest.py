"""MinAtar Seaquest: shoot fish and submarines, pick up divers, surface before the oxygen is out."""

from typing import Any

import torch
from torch import Tensor

from rl_gumbel.envs.base import State
from rl_gumbel.envs.minatar.base import DOWN, FIRE, LEFT, NOTHING, RIGHT, SIZE, UP, MinAtarEnv

MAX_OXYGEN = 200
CREW = 6
"""Divers that fit on board."""
START = 5
"""Column of the player."""
SPAWN_INTERVAL, MAX_RAMP = 20, 19
"""Steps from one enemy to the next, at first, and surfacings that make it one less."""
MOVE_WAIT, FASTEST_MOVE_WAIT = 5, 2
"""Steps for which an enemy stays where it is between two moves, at first and at last."""
DIVER_SPAWN_INTERVAL, DIVER_MOVE_WAIT = 30, 5
SHOT_INTERVAL, TORPEDO_WAIT = 5, 10
SUBMARINE_PROBABILITY = 1 / 3
ABSENT = -100
"""The x of what is not there: in every row its cell is below all that are compared with it."""
SHOTS = DIVERS = 2
"""Slots. A shot is gone 9 steps after it was fired and the shot after the next comes after 10; a
diver is gone after 59 and the diver after the next comes after 60."""
ENEMIES = 32
"""Slots, filled in turn; an enemy is gone before 32 more have come.

It leaves with its tenth move. At the fastest a move takes 3 steps and the tenth comes 29 steps
after the spawn, with at most one more enemy a step. An enemy from before the sixth surfacing, when
moves are slower, sees one other in 15 steps until then; after it, it leaves within 36 steps, of
which 24 pass (a surfacing takes 2) until one comes every step. A submarine's torpedo moves every
step and leaves before the submarine.
"""


class Seaquest(MinAtarEnv):
    """MinAtar's Seaquest: 1 for each fish or submarine shot, and more for six rescued divers.

    At the surface oxygen is filled up and one diver leaves; six divers leave together, for 1 a cell
    of the oxygen bar. The game ends where the player meets an enemy or a torpedo, without oxygen,
    or at the surface without a diver. With `difficulty_ramping` each surfacing makes enemies come
    one step sooner, and every second one makes them move one step sooner, down to every step and
    every third.

    As in the original one diver more is missing after six have left: the count is then -1, and as
    long as it is negative surfacing is free. The original removes from its lists, while it runs
    through them, what equals a thing and not the thing itself. This never makes a difference: what
    equals an enemy that has moved into a shot, and has not moved, was already hit by that shot.

    State, `[B]` where no shape is given: `x`, `y` and `heading` (1 or -1) of the player; `oxygen`
    in steps; `crew`, divers on board; `surfaced` bool, not under water since; `ramp`, surfacings
    that count; `enemy_timer`, `diver_timer`, `shot_timer`, steps until the next; `next_slot` for an
    enemy. With `_x`, `_y`, `_heading` and `_wait` (steps until it moves) each: `shot` (no wait) and
    `diver`, `[B, 2]`, the later one last; `enemy`, `[B, 32]`, with `torpedo_wait`, steps until it
    fires, negative for fish, and `torpedo_x` of a torpedo that has the row and heading of its slot.
    """

    channels = (
        "sub_front",
        "sub_back",
        "friendly_bullet",
        "trail",
        "enemy_bullet",
        "enemy_fish",
        "enemy_sub",
        "oxygen_guage",
        "diver_guage",
        "diver",
    )
    actions = (NOTHING, LEFT, UP, RIGHT, DOWN, FIRE)

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
        """Return a submarine at the surface of an empty sea."""
        zero = self._full(0)
        zeros, nowhere = self._full(0, ENEMIES), self._full(ABSENT, ENEMIES)
        return {
            **super().initial(),
            "x": self._full(START),
            "y": zero,
            "heading": self._full(-1),
            "oxygen": self._full(MAX_OXYGEN),
            "crew": self.integer(0),
            "surfaced": torch.ones(self.num_envs, dtype=torch.bool, device=self.device),
            "ramp": zero,
            "enemy_timer": self._full(SPAWN_INTERVAL),
            "diver_timer": self._full(DIVER_SPAWN_INTERVAL),
            "shot_timer": zero,
            "shot_x": nowhere[:, :SHOTS],
            "shot_y": zeros[:, :SHOTS],
            "shot_heading": zeros[:, :SHOTS],
            "diver_x": nowhere[:, :DIVERS],
            "diver_y": zeros[:, :DIVERS],
            "diver_heading": zeros[:, :DIVERS],
            "diver_wait": zeros[:, :DIVERS],
            "next_slot": zero,
            "enemy_x": nowhere,
            "enemy_y": zeros,
            "enemy_heading": zeros,
            "enemy_wait": zeros,
            "torpedo_wait": zeros,
            "torpedo_x": nowhere,
        }

    def play(self, state: State, action: Tensor) -> tuple[State, Tensor, Tensor]:
        """Return the states after spawns, player, shots, divers and enemies, in this order."""
        s = self._spawn({name: value for name, value in state.items() if name != "last_action"})
        s = self._steer(s, action)
        order = _order(s)
        s, reward = self._shoot(s, order)
        s = self._pick_up(s)
        s, kills, terminated = self._advance(s, order)
        s, bonus, drowned = self._breathe(s)
        return s, (reward + kills + bonus).float(), terminated | drowned

    # --- the parts of a step ----------------------------------------------------------------------

    def _spawn(self, state: State) -> State:
        """Return states with a new enemy and a new diver where their time has come."""
        to_right, submarine, diver_to_right = self.uniform(3).unbind(-1)
        row, diver_row = (self.integers(SIZE - 2, 2) + 1).short().unbind(-1)
        spawn_interval, move_wait = _pace(state["ramp"])

        # Enemy, but none that would meet another
        due = state["enemy_timer"] == 0
        heading = _heading(to_right < 0.5)
        opposed = (state["enemy_y"] == row[:, None]) & (state["enemy_x"] != ABSENT)
        opposed = opposed & (state["enemy_heading"] != heading[:, None])
        born = due & ~opposed.any(1)
        here = (_slots(state) == state["next_slot"][:, None]) & born[:, None]
        enemy = {
            "enemy_x": _entrance(heading),
            "enemy_y": row,
            "enemy_heading": heading,
            "enemy_wait": move_wait,
            "torpedo_wait": (submarine < SUBMARINE_PROBABILITY) * self._full(TORPEDO_WAIT + 1) - 1,
        }

        # Diver
        diver_due = state["diver_timer"] == 0
        diver_heading = _heading(diver_to_right < 0.5)
        diver = {
            "diver_x": _entrance(diver_heading),
            "diver_y": diver_row,
            "diver_heading": diver_heading,
            "diver_wait": self._full(DIVER_MOVE_WAIT),
        }
        return {
            **state,
            **{name: _pick(here, new[:, None], state[name]) for name, new in enemy.items()},
            **{name: _push(diver_due, new, state[name]) for name, new in diver.items()},
            "next_slot": (state["next_slot"] + born) % ENEMIES,
            "enemy_timer": _pick(due, spawn_interval, state["enemy_timer"]),
            "diver_timer": _pick(diver_due, DIVER_SPAWN_INTERVAL, state["diver_timer"]),
        }

    def _steer(self, state: State, action: Tensor) -> State:
        """Return states in which the player has moved, or fired a shot from where it is."""
        fires = (action == FIRE) & (state["shot_timer"] == 0)
        up, left, right, down = ((action == move).short() for move in (UP, LEFT, RIGHT, DOWN))
        shot = {"shot_x": state["x"], "shot_y": state["y"], "shot_heading": state["heading"]}
        return {
            **state,
            **{name: _push(fires, new, state[name]) for name, new in shot.items()},
            "shot_timer": _pick(fires, SHOT_INTERVAL, state["shot_timer"]),
            "x": (state["x"] + right - left).clamp(0, SIZE - 1),
            "y": (state["y"] + down - up).clamp(0, SIZE - 2),
            "heading": (state["heading"] + 2 * (right - left)).clamp(-1, 1),
        }

    def _shoot(self, state: State, order: Tensor) -> tuple[State, Tensor]:
        """Return states with the shots one cell further, without what they hit, and rewards.

        The later shot comes first. It hits the oldest fish in its cell, or else submarine.
        """
        shot_x = _drift(state["shot_x"], state["shot_heading"])
        shot_cell = _shot_cell(shot_x, state["shot_y"])
        cell = _cell(state["enemy_x"], state["enemy_y"])
        hits_later, later = _first(cell == shot_cell[:, 1:], order)
        hits_earlier, earlier = _first((cell == shot_cell[:, :1]) & ~later, order)
        hits = torch.cat([hits_earlier, hits_later], 1)
        following = {
            **state,
            "shot_x": _pick(hits, ABSENT, shot_x),
            "enemy_x": _pick(earlier | later, ABSENT, state["enemy_x"]),
        }
        return following, hits.sum(1)

    def _pick_up(self, state: State) -> State:
        """Return states with divers moved, or on board where they met the player, the later first.

        A diver that meets the player when nobody fits on board any more goes on.
        """
        x, y, crew = state["diver_x"], state["diver_y"], state["crew"]
        player = _cell(state["x"], state["y"])[:, None]
        moves = state["diver_wait"] == 0
        moved = _drift(x, state["diver_heading"] * moves)
        meets = (_cell(x, y) == player) | (_cell(moved, y) == player)
        taken = meets & (torch.stack([crew + meets[:, 1], crew], 1) < CREW)
        return {
            **state,
            "crew": crew + taken.sum(1),
            "diver_x": _pick(taken, ABSENT, moved),
            "diver_wait": _pick(moves, DIVER_MOVE_WAIT, state["diver_wait"] - 1),
        }

    def _advance(self, state: State, order: Tensor) -> tuple[State, Tensor, Tensor]:
        """Return states with enemies and torpedoes moved, rewards, and where one met the player.

        Whoever moves into a shot is hit by it; of several in its cell the latest submarine, or else
        fish. A submarine that is hit still fires if its time has come.
        """
        x, y, heading = state["enemy_x"], state["enemy_y"], state["enemy_heading"]
        player = _cell(state["x"], state["y"])[:, None]

        # Enemies
        present = x != ABSENT
        moves = present & (state["enemy_wait"] == 0)
        moved = _drift(x, heading * moves)
        cell = _cell(moved, y)
        meets = cell == player
        wait = _pick(moves, _pace(state["ramp"])[1][:, None], state["enemy_wait"] - 1)

        # Torpedoes, those fired here too
        fires = present & (state["torpedo_wait"] == 0)
        torpedo_x = _pick(fires, moved, state["torpedo_x"])
        torpedo_moved = _drift(torpedo_x, heading)
        met = meets | (_cell(x, y) == player)
        met = met | (_cell(torpedo_x, y) == player) | (_cell(torpedo_moved, y) == player)

        # Shots
        entered = moves & ~meets
        shot_cell = _shot_cell(state["shot_x"], state["shot_y"])
        backwards = 2 * ENEMIES + 1 - order
        hits_earlier, first = _first(entered & (cell == shot_cell[:, :1]), backwards)
        hits_later, second = _first(entered & (cell == shot_cell[:, 1:]) & ~first, backwards)
        hits = torch.cat([hits_earlier, hits_later], 1)
        following = {
            **state,
            "shot_x": _pick(hits, ABSENT, state["shot_x"]),
            "enemy_x": _pick(first | second, ABSENT, moved),
            "enemy_wait": wait,
            "torpedo_x": torpedo_moved,
            "torpedo_wait": _pick(fires, TORPEDO_WAIT, state["torpedo_wait"] - 1),
        }
        return following, hits.sum(1), met.any(1)

    def _breathe(self, state: State) -> tuple[State, Tensor, Tensor]:
        """Return states with timers and oxygen moved on, rewards of a full crew, and who dies."""
        oxygen, crew, under_water = state["oxygen"], state["crew"], state["y"] > 0
        arrives = ~under_water & ~state["surfaced"]
        rises = arrives & (crew != 0)
        full = rises & (crew == CREW)
        following = {
            **state,
            "oxygen": _pick(rises, MAX_OXYGEN, oxygen - under_water.short()),
            "crew": crew * ~full - rises.long(),
            "surfaced": rises | (state["surfaced"] & ~under_water),
            "ramp": (state["ramp"] + rises * self.difficulty_ramping).clamp_max(MAX_RAMP),
        }
        for name in ("enemy_timer", "diver_timer", "shot_timer"):
            following[name] = (state[name] - 1).clamp_min(0)
        return following, _oxygen_cells(oxygen) * full, (oxygen <= 0) | (arrives & ~rises)

    # --- the observation --------------------------------------------------------------------------

    def observe(self, state: State) -> Tensor:
        """Return `[B, 10, 10, 10]`; oxygen and divers on board are bars in the last row."""
        x, y = state["x"][:, None], state["y"][:, None]
        enemy_x, enemy_y = state["enemy_x"], state["enemy_y"]
        diver_x, diver_y = state["diver_x"], state["diver_y"]
        submarine = (state["torpedo_wait"] >= 0).short()
        places = [
            self.locate("sub_front", _cell(x, y)),
            self.locate("sub_back", _cell(x - state["heading"][:, None], y)),
            self.locate("friendly_bullet", _cell(state["shot_x"], state["shot_y"])),
            self.locate("enemy_bullet", _cell(state["torpedo_x"], enemy_y)),
            self.locate("enemy_fish", _cell(enemy_x, enemy_y)) + submarine,
            self.locate("diver", _cell(diver_x, diver_y)),
            self.locate("trail", _cell(_drift(enemy_x, -state["enemy_heading"]), enemy_y)),
            self.locate("trail", _cell(_drift(diver_x, -state["diver_heading"]), diver_y)),
        ]
        # What is absent is drawn in the first place of all, which is then put right.
        obs = self.draw(torch.cat(places, 1).clamp_min(0).long())
        obs[:, 0, 0, :1] = _cell(x, y) == 0
        columns = torch.arange(SIZE, device=x.device)
        oxygen, crew = (self.channels.index(name) for name in ("oxygen_guage", "diver_guage"))
        obs[:, -1, :, oxygen] = columns < _oxygen_cells(state["oxygen"])[:, None]
        obs[:, -1, :-1, crew] = columns[:-1] >= SIZE - 1 - state["crew"][:, None]
        return obs

    def _full(self, value: int, *shape: int) -> Tensor:
        """Return `[B, *shape]`, all of them `value`; int16, which a CPU adds fast."""
        size = (self.num_envs, *shape)
        return torch.full(size, value, dtype=torch.int16, device=self.device)


def _pace(ramp: Tensor) -> tuple[Tensor, Tensor]:
    """Return the spawn interval and the enemies' wait after `ramp` surfacings."""
    return SPAWN_INTERVAL - ramp, (MOVE_WAIT - ramp // 2).clamp_min(FASTEST_MOVE_WAIT)


def _oxygen_cells(oxygen: Tensor) -> Tensor:
    """Return how long the oxygen bar is."""
    return oxygen.clamp_min(0) * SIZE // MAX_OXYGEN


def _heading(to_right: Tensor) -> Tensor:
    """Return 1 or -1."""
    return 2 * to_right.short() - 1


def _entrance(heading: Tensor) -> Tensor:
    """Return the column where something that moves in the heading comes in."""
    return (SIZE - 1) * (heading < 0).short()


def _pick(condition: Tensor, new: Tensor | int, old: Tensor) -> Tensor:
    """Return `new` where the condition holds, else `old`; several times as fast as `where`."""
    return old + condition * (new - old)


def _push(condition: Tensor, new: Tensor, slots: Tensor) -> Tensor:
    """Return `[B, 2]` slots, where the condition holds with the new one behind the later one."""
    return _pick(condition[:, None], torch.stack([slots[:, 1], new], 1), slots)


def _drift(x: Tensor, heading: Tensor) -> Tensor:
    """Return the x one cell further, ABSENT for what is not on the screen."""
    moved = x + heading
    return _pick(moved != moved.clamp(0, SIZE - 1), ABSENT, moved)


def _cell(x: Tensor, y: Tensor) -> Tensor:
    """Return a number for each cell, below -1 for what is absent."""
    return torch.add(x, y, alpha=SIZE)


def _shot_cell(x: Tensor, y: Tensor) -> Tensor:
    """Return the cells of shots, -1 for what is absent: an absent shot hits no absent enemy."""
    return _cell(x, y).clamp_min(-1)


def _slots(state: State) -> Tensor:
    """Return the numbers of the enemies' slots."""
    return torch.arange(ENEMIES, dtype=torch.int16, device=state["next_slot"].device)


def _order(state: State) -> Tensor:
    """Return `[B, E]` from 1 for the latest submarine to 64: submarines, then fish, by age."""
    age = (state["next_slot"][:, None] - 1 - _slots(state)) & (ENEMIES - 1)
    return age + 1 + ENEMIES * (state["torpedo_wait"] < 0).short()


def _first(candidates: Tensor, order: Tensor) -> tuple[Tensor, Tensor]:
    """Return `[B, 1]`, if there is a candidate, and `[B, E]`, the one highest in the order."""
    rank = candidates * order
    best = rank.amax(1, keepdim=True)
    return best > 0, candidates & (rank == best)
