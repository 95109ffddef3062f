"""Space Invaders and Seaquest against the original MinAtar, step by step."""

from collections import Counter
from typing import Any

import minatar
import numpy as np
import pytest
import torch
from minatar_original import Feed, make_originals
from minatar_states import CROWD, LATE, MAPS, TRANSLATE, Compared, inject
from torch import Tensor

from rl_gumbel.envs.base import State
from rl_gumbel.envs.minatar.base import MinAtarEnv
from rl_gumbel.envs.minatar.seaquest import ABSENT, CREW, Seaquest
from rl_gumbel.envs.minatar.space_invaders import SpaceInvaders

GAMES: dict[str, type[MinAtarEnv]] = {"space_invaders": SpaceInvaders, "seaquest": Seaquest}
every_game = pytest.mark.parametrize("game", GAMES)


def assert_same(original: minatar.Environment, ours: Compared) -> None:
    theirs = {name: getattr(original.env, name) for name in ours}
    if "e_bullets" in theirs:
        theirs["e_bullets"] = sorted(theirs["e_bullets"])
    for name, value in ours.items():
        assert (
            np.array_equal(value, theirs[name])
            if name in MAPS.values()
            else (value == theirs[name])
        ), name


def draws_of(game: str, drawn: list[Any]) -> list[Any]:
    """Return the draws of our step from those of the original, which draws only when it spawns."""
    if game == "space_invaders":
        assert not drawn
        return []
    enemy = drawn[:3] if len(drawn) in (3, 5) else [1.0, 1.0, 1]
    diver = drawn[-2:] if len(drawn) in (2, 5) else [1.0, 1]
    assert len(drawn) in (0, 2, 3, 5)
    return [np.array([*enemy[:2], diver[0]]), np.array([enemy[2] - 1, diver[1] - 1])]


def play_original(game: str, original: minatar.Environment, action: int) -> tuple[Any, ...]:
    """Return observation, reward and end of a step, then the draws of ours in their order."""
    reward, ended = original.act(action)
    roll, *drawn = original.random.take()
    return (original.state(), reward, ended, roll, *draws_of(game, drawn))


# --- single steps ---------------------------------------------------------------------------------


def count_space_invaders(before: State, after: State, reward: Tensor) -> dict[str, Tensor]:
    turned = before["heading"] != after["heading"]
    cleared = (before["aliens"].sum((1, 2)) == reward) & (reward > 0)
    events = {"turned": turned, "cleared": cleared, "several": reward > 1}
    events["bomb"] = after["bombs"].sum((1, 2)) > before["bombs"].sum((1, 2))
    for interval in range(6, 13):
        events[f"cleared at {interval}"] = cleared & (before["move_interval"] == interval)
    return events


def count_seaquest(before: State, after: State, reward: Tensor) -> dict[str, Tensor]:
    rose = after["surfaced"] & ~before["surfaced"]
    came = after["next_slot"] != before["next_slot"]
    events = {f"surfaced with {crew}": rose & (before["crew"] == crew) for crew in range(-1, 7)}
    del events["surfaced with 0"]  # which ends the game
    shots = [(state["shot_x"] != ABSENT).sum(1) for state in (before, after)]
    return {
        **events,
        "taken on board": (after["crew"] == before["crew"] + 1) & ~rose,
        "no room": (before["crew"] == CREW) & (before["diver_x"] == before["x"][:, None]).any(1),
        "came": came,
        "kept away": (before["enemy_timer"] == 0) & ~came,
        "fired": (after["torpedo_x"] != ABSENT).any(1) & (before["torpedo_x"] == ABSENT).all(1),
        "one shot hit": (shots[1] < shots[0]) & (reward == 1),
    }


COUNT = {"space_invaders": count_space_invaders, "seaquest": count_seaquest}


@pytest.mark.parametrize("difficulty_ramping", [True, False])
@every_game
def test_a_step_from_a_crowded_state_is_that_of_the_original(
    game: str, difficulty_ramping: bool
) -> None:
    """Observation, reward, end and state after one step from each of 2,000 states."""
    num_envs = 2000
    random = np.random.default_rng(0)
    settings = {"difficulty_ramping": difficulty_ramping, "sticky_action_prob": 0}
    originals = make_originals(num_envs, game, **settings)
    env = GAMES[game](num_envs, **settings)
    env.reset(0)
    env.state = before = CROWD[game](env, random)
    inject(game, originals, before)
    obs = env.observe(before).bool().numpy()
    assert all(np.array_equal(o.state(), row) for o, row in zip(originals, obs, strict=True))

    choices = random.integers(0, len(env.actions), num_envs)
    actions = [env.actions[choice] for choice in choices]
    played = [play_original(game, o, a) for o, a in zip(originals, actions, strict=True)]
    feed = Feed(env)
    *theirs, roll = [torch.tensor(np.array(column)) for column in zip(*played, strict=True)][:4]
    feed.queue = [roll, *(torch.tensor(np.array(c)) for c in list(zip(*played, strict=True))[4:])]
    after, reward, ended = env.transition(before, torch.tensor(choices)[:, None])
    assert not feed.queue
    assert torch.equal(env.observe(after).bool(), theirs[0])
    assert torch.equal(reward, theirs[1].float())
    assert torch.equal(ended, theirs[2])
    for original, ours in zip(originals, TRANSLATE[game](after), strict=True):
        assert_same(original, ours)
    events = {k: int(v.sum()) for k, v in COUNT[game](before, after, reward).items()}
    assert min(events.values()) > 0, events
    assert 0 < int(ended.sum()) < num_envs


# --- whole games ----------------------------------------------------------------------------------


def survivors(env: MinAtarEnv, twin: MinAtarEnv) -> Tensor:
    """Return `[B, N]`, the actions that do not end the game at once."""
    actions = torch.arange(len(env.actions)).expand(env.num_envs, -1)
    ends = [twin.transition(env.state, action[:, None])[2] for action in actions.unbind(1)]
    return ~torch.stack(ends, 1)


def play_space_invaders(env: MinAtarEnv, survives: Tensor) -> Tensor:
    """Shoot whenever possible, else go below aliens, and stay alive."""
    aliens, column = env.state["aliens"].any(1), env.state["column"][:, None]
    away = (torch.arange(10) - column).abs().masked_fill(~aliens, 10)
    ahead = away.argmin(1) - column.squeeze(1)
    wish = torch.rand(env.num_envs, 4)
    wish[:, 1] += ahead < 0
    wish[:, 2] += ahead > 0
    wish[:, 3] += 2 * (env.state["shot_timer"] == 0) * (ahead.abs() < 2)
    return (wish + 9 * survives).argmax(1)


def play_seaquest(env: MinAtarEnv, survives: Tensor) -> Tensor:
    """Shoot what is ahead, fetch divers, bring them up in time, and stay alive."""
    s = env.state
    there = s["diver_x"] != ABSENT
    target = there.short().argmax(1, keepdim=True)
    down, across = (
        (s[f"diver_{axis}"].gather(1, target).squeeze(1) - s[axis]) * there.any(1) for axis in "yx"
    )
    up = ((s["crew"] == CREW) | (s["oxygen"] < 40)) & (s["crew"] != 0)
    ahead = (s["enemy_x"] - s["x"][:, None]) * s["heading"][:, None]
    in_row = (s["enemy_x"] != ABSENT) & (s["enemy_y"] == s["y"][:, None]) & (ahead > 0)
    wish = torch.rand(env.num_envs, 6)
    wish[:, 1] += (across < 0) & ~up
    wish[:, 2] += 3 * up + ((down < 0) & (s["y"] > 1))
    wish[:, 3] += (across > 0) & ~up
    wish[:, 4] += (down > 0) & ~up
    wish[:, 5] += 2 * in_row.any(1) * (s["shot_timer"] == 0)
    return (wish + 9 * survives).argmax(1)


PLAYERS = {"space_invaders": play_space_invaders, "seaquest": play_seaquest}


ENOUGH = {
    "space_invaders": {"turned", "bomb", "cleared", "end"},
    "seaquest": {f"surfaced with {crew}" for crew in (-1, 1, 2, 3, 4, 5, 6)}
    | {"taken on board", "came", "kept away", "fired", "one shot hit", "end"},
}
"""What happens, at least once, while games are compared."""


@pytest.mark.parametrize("sticky_action_prob", [0.0, 0.3])
@every_game
def test_games_are_those_of_the_original(game: str, sticky_action_prob: float) -> None:
    """Observation, reward, end and state over 20 x 250 steps, by careful and careless players."""
    num_envs = 20
    torch.manual_seed(0)
    originals = make_originals(num_envs, game, sticky_action_prob=sticky_action_prob)
    env, twin = (
        GAMES[game](num_envs, sticky_action_prob=prob) for prob in (sticky_action_prob, 0.0)
    )
    twin.reset(0)
    first = env.reset(0)
    assert all(
        np.array_equal(o.state(), row.bool()) for o, row in zip(originals, first, strict=True)
    )
    late = LATE[game](env, np.random.default_rng(0))
    env.state = {name: torch.cat([env.state[name][:5], late[name][5:]]) for name in late}
    inject(game, originals, env.state)
    feed = Feed(env)
    careless = torch.arange(num_envs) % 5 * 0.1
    events: Counter[str] = Counter()
    for _ in range(250):
        careful = PLAYERS[game](env, survivors(env, twin))
        guess = torch.randint(len(env.actions), (num_envs,))
        action = torch.where(torch.rand(num_envs) < careless, guess, careful)
        chosen = [env.actions[choice] for choice in action.tolist()]
        played = [play_original(game, o, a) for o, a in zip(originals, chosen, strict=True)]
        obs, reward, ended, *feed.queue = (
            torch.tensor(np.array(column)) for column in zip(*played, strict=True)
        )
        before = env.state
        step = env.step(action)
        assert not feed.queue
        assert torch.equal(step.final_obs.bool(), obs)
        assert torch.equal(step.reward, reward.float())
        assert torch.equal(step.terminated, ended)
        assert not step.truncated.any()
        now = zip(originals, step.obs.bool().numpy(), TRANSLATE[game](env.state), strict=True)
        for original, row, ours in now:
            if original.env.terminal:
                original.reset()
            assert np.array_equal(original.state(), row)
            assert_same(original, ours)
        counted = COUNT[game](before, env.state, reward)
        events.update({name: int((hap & ~ended).sum()) for name, hap in counted.items()})
        events["end"] += int(ended.sum())
    assert set(+events) >= ENOUGH[game], events


# --- what needs no original -----------------------------------------------------------------------


def seaquest_in(num_envs: int = 1, **values: Any) -> Seaquest:
    """Return an environment without sticky actions in which the named state has the values."""
    env = Seaquest(num_envs, sticky_action_prob=0)
    env.reset(0)
    for name, value in values.items():
        env.state[name] = torch.full_like(env.state[name], value)
    return env


@pytest.mark.parametrize(
    ("crew", "reward", "after", "oxygen", "ended"),
    [
        (6, 6.0, -1, 200, False),  # 137 * 10 // 200
        (5, 0.0, 4, 200, False),
        (1, 0.0, 0, 200, False),
        (0, 0.0, 0, 137, True),
        (-1, 0.0, -2, 200, False),
    ],
)
def test_surfacing_takes_one_diver_or_all_six_and_one(
    crew: int, reward: float, after: int, oxygen: int, ended: bool
) -> None:
    """And fills the oxygen up; without a diver the game ends."""
    env = seaquest_in(crew=crew, oxygen=137, y=1, surfaced=False)
    state, gained, end = env.transition(env.state, torch.tensor([[2]]))
    assert (float(gained), bool(end)) == (reward, ended)
    assert (int(state["crew"]), int(state["oxygen"])) == (after, oxygen)


def test_oxygen_lasts_for_200_steps_under_water() -> None:
    """The step after the one that uses it up ends the game."""
    env = seaquest_in()
    state = env.state
    for name in ("enemy_timer", "diver_timer"):
        state[name] = state[name] + 1000  # nothing comes
    ends = []
    for _ in range(201):
        state, _, ended = env.transition(state, torch.tensor([[4]]))
        ends.append(bool(ended))
    assert ends == [False] * 200 + [True]
    assert int(env.observe(state)[..., 7].sum()) == 0


def test_of_two_columns_as_near_the_left_one_drops_the_bomb() -> None:
    """From each place, with aliens in rows 1 and 3 of both columns: the lower one drops it."""
    pairs = [
        (c - d, c, c + d) for c in range(10) for d in range(1, 10) if c - d >= 0 and c + d < 10
    ]
    left, column, right = torch.tensor(pairs).T
    env = SpaceInvaders(len(pairs), sticky_action_prob=0)
    env.reset(0)
    aliens = torch.zeros_like(env.state["aliens"])
    for columns in (left, right):
        aliens[torch.arange(len(pairs)), 1, columns] = True
        aliens[torch.arange(len(pairs)), 3, columns] = True
    env.state |= {"aliens": aliens, "column": column, "bomb_timer": torch.zeros_like(column)}
    env.step(torch.zeros(len(pairs), dtype=torch.int64))
    expected = torch.tensor([[3, c] for c in left.tolist()])
    assert torch.equal(env.state["bombs"].nonzero()[:, 1:], expected)


def test_seaquest_draws_rows_sides_and_kinds() -> None:
    """Rows 1 to 8 and both sides equally often, submarines with probability 1/3."""
    num_envs = 16_000
    env = seaquest_in(num_envs, enemy_timer=0, diver_timer=0)
    env.step(torch.zeros(num_envs, dtype=torch.int64))

    def bound(prob: float) -> float:
        return 5 * (num_envs * prob * (1 - prob)) ** 0.5

    for kind, slot in (("enemy", 0), ("diver", 1)):
        x, y = env.state[f"{kind}_x"][:, slot].long(), env.state[f"{kind}_y"][:, slot].long()
        heading = env.state[f"{kind}_heading"][:, slot]
        rows = torch.bincount(y, minlength=10)
        assert rows[[0, 9]].tolist() == [0, 0]
        assert ((rows[1:9] - num_envs / 8).abs() < bound(1 / 8)).all()
        assert torch.equal(heading, torch.where(x == 0, 1, -1))
        assert set(x.tolist()) == {0, 9}
        assert abs(int((x == 0).sum()) - num_envs / 2) < bound(1 / 2)
    submarines = int((env.state["torpedo_wait"][:, 0] >= 0).sum())
    assert abs(submarines - num_envs / 3) < bound(1 / 3)


def test_a_slot_of_seaquest_is_free_when_its_turn_comes() -> None:
    """At every pace: surfacing without end, for which the player is short of 1,000 divers.

    Enemies all go to the right, so that none is kept away, and nobody ends the game.
    """
    ramp, delay = torch.cartesian_prod(torch.arange(20), torch.arange(0, 70, 3)).short().unbind(1)
    num_envs = len(ramp)
    env = seaquest_in(num_envs, crew=-1000, x=0, heading=1, enemy_timer=1, diver_timer=1)
    env.state["ramp"] = ramp
    state = env.state
    drawn = {"uniform": torch.zeros(num_envs, 3), "integers": torch.zeros(num_envs, 2)}
    env.uniform = lambda *shape: drawn["uniform"] if shape else torch.ones(num_envs)  # type: ignore[method-assign]
    env.integers = lambda *shape: drawn["integers"].long()  # type: ignore[method-assign]
    most = torch.zeros(())
    for step in range(220):
        drawn["uniform"][:, 1] = step % 3 / 2  # a submarine, two fish
        drawn["integers"][:, 0] = step % 8
        slot = state["next_slot"][:, None].long()
        assert (state["enemy_x"].gather(1, slot) == ABSENT).all()
        assert (state["torpedo_x"].gather(1, slot) == ABSENT).all()
        assert (state["shot_x"][state["shot_timer"] == 0, 0] == ABSENT).all()
        assert (state["diver_x"][state["diver_timer"] == 0, 0] == ABSENT).all()
        most = torch.maximum(most, (state["enemy_x"] != ABSENT).sum(1).max())
        fires = state["shot_timer"] == 0
        bob = torch.where(state["y"] > 0, 2, torch.where(delay <= step, 4, 0))
        action = torch.where(fires & (step % 2 == 0) & (delay % 2 == 0), 5, bob)
        state, _, _ = env.transition(state, action[:, None])
    assert (state["ramp"] == 19).all()
    assert most == 29
