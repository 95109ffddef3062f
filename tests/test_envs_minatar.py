"""Breakout, Freeway and Asterix against the original MinAtar, step by step."""

from collections import Counter
from typing import Any

import minatar
import numpy as np
import pytest
import torch
from minatar_original import Feed, make_originals
from torch import Tensor

from rl_gumbel.envs.base import State
from rl_gumbel.envs.minatar.asterix import STEPS_PER_LEVEL, Asterix
from rl_gumbel.envs.minatar.base import MinAtarEnv
from rl_gumbel.envs.minatar.breakout import Breakout
from rl_gumbel.envs.minatar.freeway import Freeway

GAMES: dict[str, type[MinAtarEnv]] = {
    "asterix": Asterix,
    "breakout": Breakout,
    "freeway": Freeway,
}
NUM_ENVS = 16
NUM_EVENTS = {"asterix": 4, "breakout": 5, "freeway": 3}


# --- the original, its states and its draws in our terms ------------------------------------------


def read_breakout(env: Any) -> dict[str, Any]:
    rising, leftward = env.ball_dir in (0, 1), env.ball_dir in (0, 3)
    return {
        "row": env.ball_y,
        "column": env.ball_x,
        "row_step": -1 if rising else 1,
        "column_step": -1 if leftward else 1,
        "trail": 10 * env.last_y + env.last_x,
        "paddle": env.pos,
        "bricks": env.brick_map[1:4] == 1,
        "struck": bool(env.strike),
    }


def read_freeway(env: Any) -> dict[str, Any]:
    return {
        "row": env.pos,
        "rest": env.move_timer,
        "time_left": env.terminate_timer,
        "column": [car[0] for car in env.cars],
        "speed": [int(car[3]) for car in env.cars],
        "wait": [int(car[2]) for car in env.cars],
    }


def read_asterix(env: Any) -> dict[str, Any]:
    things = [(0, 1, False, False) if thing is None else thing for thing in env.entities]
    return {
        "row": env.player_y,
        "column": env.player_x,
        "spawn_timer": env.spawn_timer,
        "move_timer": env.move_timer,
        "age": env.ramp_index * STEPS_PER_LEVEL + 100 - env.ramp_timer,
        "present": [thing is not None for thing in env.entities],
        "gold": [bool(thing[3]) for thing in things],
        "at": [thing[0] for thing in things],
        "heading": [1 if thing[2] else -1 for thing in things],
    }


READ = {"asterix": read_asterix, "breakout": read_breakout, "freeway": read_freeway}


def read(game: str, originals: list[minatar.Environment]) -> State:
    rows = [{"last_action": o.last_action, **READ[game](o.env)} for o in originals]
    return {name: torch.tensor(np.array([row[name] for row in rows])) for name in rows[0]}


def comparable(game: str, state: State) -> State:
    """Drop what the original does not keep: lanes without a thing, and time at the last level."""
    if game != "asterix":
        return state
    absent = ~state["present"]
    lanes = {name: state[name].masked_fill(absent, 0) for name in ("gold", "at", "heading")}
    return {**state, **lanes, "age": state["age"].clamp(max=9 * STEPS_PER_LEVEL)}


def draws_of_breakout(played: list[Any], reset: list[Any]) -> list[Any]:
    return [reset[0] if reset else 0]


def draws_of_freeway(played: list[Any], reset: list[Any]) -> list[Any]:
    drawn = [draws or (np.ones(8, np.int64), np.ones(8)) for draws in (played, reset)]
    speeds = [np.where(direction < 0.5, -speed, speed) for speed, direction in drawn]
    return [speed + 5 - (speed > 0) for speed in speeds]


def draws_of_asterix(played: list[Any], reset: list[Any]) -> list[Any]:
    leftward, gold, rank = [*played, 0][:3] if played else (0.0, 0.0, 0)  # no rank: no room
    return [rank, int(leftward >= 0.5), gold]


DRAWS = {"asterix": draws_of_asterix, "breakout": draws_of_breakout, "freeway": draws_of_freeway}
NUM_STARTS = {"asterix": 0, "breakout": 1, "freeway": 1}
"""How many of the draws begin a new episode; ours come before those of the step."""


# --- players that get far enough to see everything ------------------------------------------------


def play_breakout(env: MinAtarEnv) -> Tensor:
    """Follow the ball."""
    ahead = env.state["column"] - env.state["paddle"]
    return torch.where(ahead > 0, 2, torch.where(ahead < 0, 1, 0))


def play_freeway(env: MinAtarEnv) -> Tensor:
    """Go up."""
    return torch.ones(env.num_envs, dtype=torch.int64)


def play_asterix(env: MinAtarEnv) -> Tensor:
    """Take a random one of the actions that do not end the game at once."""
    twin = Asterix(env.num_envs, sticky_action_prob=0)
    ends = []
    for action in range(5):
        _, _, end = twin.transition(env.state, torch.full((env.num_envs, 1), action))
        ends.append(end)
    return (torch.stack(ends, 1) + torch.rand(env.num_envs, 5)).argmin(1)


PLAYERS = {"asterix": play_asterix, "breakout": play_breakout, "freeway": play_freeway}


def bring_to_late_states(game: str, originals: list[minatar.Environment], seed: int) -> None:
    """Put most originals where playing would take long to get."""
    random = np.random.RandomState(seed)
    for index, original in enumerate(originals[2:]):
        env = original.env
        if game == "breakout":
            env.brick_map[1:4] = random.rand(3, 10) < index / 15
            env.ball_y, env.ball_x, env.ball_dir = random.randint((1, 0, 0), (5, 10, 4))
        elif game == "freeway":
            env.terminate_timer = 10 * index
        else:
            level = index % 10
            env.ramp_index, env.ramp_timer = level, 100 if level == 9 else 10 * (index % 7)
            env.spawn_speed, env.move_speed = max(10 - level, 1), max(5 - level // 2, 1)


# --- tests ----------------------------------------------------------------------------------------


def count_events(game: str, before: State, after: State, ended: Tensor) -> Counter[str]:
    """Count what a step of any environment did, to know afterwards what was compared."""
    going = ~ended
    if game == "breakout":
        bricks = after["bricks"].sum((1, 2)) - before["bricks"].sum((1, 2))
        turned = before["row_step"] - after["row_step"] == 2
        low = before["row"] == 8
        events = {
            "rebuilt": bricks > 1,
            "flat return": low & turned & (before["column_step"] == after["column_step"]),
            "corner return": low & turned & (before["column_step"] != after["column_step"]),
            "passed through": before["struck"] & after["struck"],
        }
    elif game == "freeway":
        events = {
            "crossed": (before["speed"] != after["speed"]).any(1),
            "hit": (after["row"] == 9) & (before["row"] < 8) & (before["row"] > 1),
        }
    else:
        taken = before["present"] & ~after["present"] & (after["at"] >= 0) & (after["at"] < 10)
        events = {
            "gold": taken.any(1),
            "last level": after["age"] > 9 * STEPS_PER_LEVEL,
            "full": after["present"].all(1),
        }
    counts = {name: int((happened & going).sum()) for name, happened in events.items()}
    return Counter({**counts, "end": int(ended.sum())})


@pytest.mark.parametrize("sticky_action_prob", [0.0, 0.3])
@pytest.mark.parametrize("game", GAMES)
def test_every_step_is_that_of_the_original(game: str, sticky_action_prob: float) -> None:
    """Observation, reward, end and state, over 16 x 320 steps with every kind of event."""
    torch.manual_seed(0)
    originals = make_originals(NUM_ENVS, game, sticky_action_prob=sticky_action_prob)
    env = GAMES[game](NUM_ENVS, sticky_action_prob=sticky_action_prob)
    env.reset(0)
    feed = Feed(env)
    careless = torch.linspace(0, 1, NUM_ENVS)
    events: Counter[str] = Counter()
    for index in range(320):
        if index % 80 == 0:
            bring_to_late_states(game, originals, index)
            env.set_state({**env.get_state(), **read(game, originals)})
        random = torch.randint(len(env.actions), (NUM_ENVS,))
        action = torch.where(torch.rand(NUM_ENVS) < careless, random, PLAYERS[game](env))
        played = [
            play_original(game, original, env.actions[choice])
            for original, choice in zip(originals, action.tolist(), strict=True)
        ]
        obs, reward, ended, *drawn = (
            torch.tensor(np.array(column)) for column in zip(*played, strict=True)
        )
        num_played = len(drawn) - NUM_STARTS[game]
        feed.queue = drawn[num_played:] + drawn[:num_played]
        before = env.state
        step = env.step(action)
        events.update(count_events(game, before, env.state, ended))

        assert not feed.queue
        assert torch.equal(step.final_obs, obs.to(torch.uint8))
        assert torch.equal(step.reward, reward.float())
        assert torch.equal(step.terminated, ended)
        assert not step.truncated.any()
        now = [original.state() for original in originals]
        assert torch.equal(step.obs, torch.tensor(np.array(now)).to(torch.uint8))
        theirs, ours = (comparable(game, s) for s in (read(game, originals), env.state))
        assert theirs.keys() == ours.keys()
        for name, value in theirs.items():
            assert torch.equal(ours[name], value), name
    assert len(+events) == NUM_EVENTS[game], events


def play_original(game: str, original: minatar.Environment, action: int) -> tuple[Any, ...]:
    """Return observation, reward and end of a step, then its draws and those of a new start."""
    reward, ended = original.act(action)
    obs = original.state()
    roll, *played = original.random.take()
    if ended:
        original.reset()
    return (obs, reward, ended, roll, *DRAWS[game](played, original.random.take()))
