"""States of Space Invaders and Seaquest: in terms of the original MinAtar, crowded, and late."""

from collections.abc import Callable
from typing import Any

import minatar
import numpy as np
import torch

from rl_gumbel.envs.base import State
from rl_gumbel.envs.minatar import seaquest
from rl_gumbel.envs.minatar.base import MinAtarEnv
from rl_gumbel.envs.minatar.seaquest import ABSENT, ENEMIES

Compared = dict[str, Any]
"""A state in terms of the original: attributes and their values."""

# --- our states in terms of the original ----------------------------------------------------------

MAPS = {"aliens": "alien_map", "shots": "f_bullet_map", "bombs": "e_bullet_map"}
INVADERS_NUMBERS = {
    "column": "pos",
    "heading": "alien_dir",
    "move_interval": "enemy_move_interval",
    "move_timer": "alien_move_timer",
    "bomb_timer": "alien_shot_timer",
    "shot_timer": "shot_timer",
}
SEAQUEST_NUMBERS = {
    "x": "sub_x",
    "y": "sub_y",
    "oxygen": "oxygen",
    "crew": "diver_count",
    "surfaced": "surface",
    "ramp": "ramp_index",
    "enemy_timer": "e_spawn_timer",
    "diver_timer": "d_spawn_timer",
    "shot_timer": "shot_timer",
}


def translate_space_invaders(state: State) -> list[Compared]:
    columns = {theirs: state[ours].tolist() for ours, theirs in INVADERS_NUMBERS.items()}
    columns |= {theirs: state[ours].double().numpy() for ours, theirs in MAPS.items()}
    return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]


def translate_seaquest(state: State) -> list[Compared]:
    """Return lists in the order of the original's, but bullets of the enemies sorted."""
    rows = []
    spawn_interval, move_wait = seaquest._pace(state["ramp"])
    columns = {name: value.tolist() for name, value in state.items()}
    for index, (interval, wait) in enumerate(
        zip(spawn_interval.tolist(), move_wait.tolist(), strict=True)
    ):
        s = {name: value[index] for name, value in columns.items()}

        def things(kind: str, slots: Any, *more: str, s: dict[str, Any] = s) -> list[list[Any]]:
            return [
                [s[f"{kind}_x"][i], s[f"{kind}_y"][i], s[f"{kind}_heading"][i] > 0]
                + [s[name][i] for name in more]
                for i in slots
                if s[f"{kind}_x"][i] != ABSENT
            ]

        oldest_first = [(s["next_slot"] + i) % ENEMIES for i in range(ENEMIES)]
        fish = [i for i in oldest_first if s["torpedo_wait"][i] < 0]
        submarines = [i for i in oldest_first if s["torpedo_wait"][i] >= 0]
        torpedoes = [
            [s["torpedo_x"][i], s["enemy_y"][i], s["enemy_heading"][i] > 0]
            for i in range(ENEMIES)
            if s["torpedo_x"][i] != ABSENT
        ]
        rows.append(
            {
                **{theirs: s[ours] for ours, theirs in SEAQUEST_NUMBERS.items()},
                "sub_or": s["heading"] > 0,
                "e_spawn_speed": interval,
                "move_speed": wait,
                "f_bullets": things("shot", range(2)),
                "divers": things("diver", range(2), "diver_wait"),
                "e_fish": things("enemy", fish, "enemy_wait"),
                "e_subs": things("enemy", submarines, "enemy_wait", "torpedo_wait"),
                "e_bullets": sorted(torpedoes),
            }
        )
    return rows


TRANSLATE: dict[str, Callable[[State], list[Compared]]] = {
    "space_invaders": translate_space_invaders,
    "seaquest": translate_seaquest,
}


def inject(game: str, originals: list[minatar.Environment], state: State) -> None:
    for original, row in zip(originals, TRANSLATE[game](state), strict=True):
        vars(original.env).update(row, terminal=False)


# --- states in which much happens at once ---------------------------------------------------------


def crowd_space_invaders(env: MinAtarEnv, random: np.random.Generator) -> State:
    """Return random maps in parts of the grid, and timers that are about to end."""
    size = (env.num_envs, 10, 10)
    density = random.random((3, env.num_envs, 1, 1)) ** 2
    aliens = random.random(size) < density[0]
    cells = np.arange(10)
    aliens &= cells[:, None] < random.integers(3, 11, (env.num_envs, 1, 1))
    aliens &= cells >= random.integers(0, 5, (env.num_envs, 1, 1))
    aliens[:, 1, 5] |= ~aliens.any((1, 2))
    state = {
        "aliens": aliens,
        "shots": random.random(size) < density[1],
        "bombs": random.random(size) < 0.3 * density[2],
        "column": random.integers(0, 10, env.num_envs),
        "heading": random.choice([-1, 1], env.num_envs),
        "move_interval": random.integers(6, 13, env.num_envs),
        "move_timer": random.integers(0, 3, env.num_envs),
        "bomb_timer": random.integers(0, 3, env.num_envs),
        "shot_timer": random.integers(0, 2, env.num_envs),
    }
    return {**env.initial(), **{name: torch.tensor(value) for name, value in state.items()}}


def crowd_seaquest(env: MinAtarEnv, random: np.random.Generator) -> State:
    """Return many things in few cells, about to move, fire or spawn."""
    num_envs = env.num_envs
    place = random.integers(1, 9, (2, num_envs, 1))
    spread = random.choice([0, 1, 9], (2, num_envs, 1), p=[0.3, 0.5, 0.2])

    def near(axis: int, *, low: int = 0, high: int = 9, slots: int = 1) -> Any:
        shift = random.integers(-spread[axis], spread[axis] + 1, (num_envs, slots))
        return (place[axis] + shift).clip(low, high)

    def absent(x: Any, prob: float) -> Any:
        return np.where(random.random(x.shape) < prob, ABSENT, x)

    def headings(slots: int) -> Any:
        both = random.choice([-1, 1], (num_envs, slots))
        return np.where(random.random((num_envs, 1)) < 0.5, both, both[:, :1])

    enemies = (num_envs, ENEMIES)
    ramp = random.integers(0, 20, num_envs)
    wait = (5 - ramp // 2).clip(2)[:, None]
    next_slot = random.integers(0, ENEMIES, num_envs)
    torpedo_wait = random.choice([-1, 0, 1, 10], enemies)
    state = {
        "x": near(0)[:, 0],
        "y": np.where(random.random(num_envs) < 0.3, 0, near(1, high=8)[:, 0]),
        "oxygen": random.choice([0, 1, 2, 19, 20, 21, 100, 199, 200], num_envs),
        "crew": random.integers(-2, 7, num_envs),
        "surfaced": random.random(num_envs) < 0.5,
        "ramp": ramp,
        "next_slot": next_slot,
        "shot_x": absent(near(0, slots=2), 0.2),
        "shot_y": near(1, low=1, high=8, slots=2),
        "shot_heading": headings(2),
        "diver_x": absent(near(0, slots=2), 0.2),
        "diver_y": near(1, low=1, high=8, slots=2),
        "diver_heading": headings(2),
        "diver_wait": random.integers(0, 2, (num_envs, 2)),
        "enemy_x": absent(near(0, slots=ENEMIES), random.random((num_envs, 1))),
        "enemy_y": near(1, low=1, high=8, slots=ENEMIES),
        "enemy_heading": headings(ENEMIES),
        "enemy_wait": random.integers(0, 3, enemies) * wait // 2,
        "torpedo_wait": torpedo_wait,
        "torpedo_x": absent(near(0, slots=ENEMIES), np.where(torpedo_wait > 1, 0.9, 1.0)),
    }
    for name in ("enemy_timer", "diver_timer", "shot_timer"):
        state[name] = random.integers(0, 2, num_envs)
    # The back of the player is on the grid, and the slots that are due are free.
    state["heading"] = np.where(
        state["x"] == 0, -1, np.where(state["x"] == 9, 1, random.choice([-1, 1], num_envs))
    )
    for name in ("enemy_x", "torpedo_x"):
        state[name][np.arange(num_envs), next_slot] = ABSENT
    alike = np.all([np.ptp(state[f"shot_{name}"], 1) == 0 for name in ("x", "y", "heading")], 0)
    state["shot_x"][alike | (state["shot_timer"] == 0), 0] = ABSENT
    state["diver_x"][state["diver_timer"] == 0, 0] = ABSENT
    started = env.initial()
    return {**started, **{k: torch.tensor(v).to(started[k].dtype) for k, v in state.items()}}


CROWD = {"space_invaders": crowd_space_invaders, "seaquest": crowd_seaquest}


# --- states that playing takes long to get to ---------------------------------------------------


def late_space_invaders(env: MinAtarEnv, random: np.random.Generator) -> State:
    """Return waves of which little is left, at every speed."""
    state = env.initial()
    remain = torch.tensor(random.random((env.num_envs, 10, 10)) < 0.15)
    remain[:, 2, 5] = True
    state["aliens"] = state["aliens"] & remain
    state["move_interval"] = torch.arange(env.num_envs) % 7 + 6
    return state


def late_seaquest(env: MinAtarEnv, random: np.random.Generator) -> State:
    """Return seas after any number of surfacings, with any number of divers on board."""
    state = env.initial()
    state["ramp"] = torch.arange(env.num_envs).short() % 20
    state["crew"] = torch.tensor(random.integers(-1, 7, env.num_envs))
    state["y"] = torch.tensor(random.integers(1, 9, env.num_envs)).short()
    state["surfaced"] = torch.zeros_like(state["surfaced"])
    state["oxygen"] = torch.tensor(random.integers(50, 201, env.num_envs)).short()
    return state


LATE = {"space_invaders": late_space_invaders, "seaquest": late_seaquest}
