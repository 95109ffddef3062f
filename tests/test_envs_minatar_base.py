"""What the MinAtar games share, and what each draws by chance."""

from collections.abc import Callable

import minatar
import pytest
import torch
from minatar_original import Feed
from stable_baselines3.common.preprocessing import get_flattened_obs_dim, preprocess_obs
from torch import Tensor

from rl_gumbel.envs.minatar import base
from rl_gumbel.envs.minatar.asterix import STEPS_PER_LEVEL, Asterix
from rl_gumbel.envs.minatar.base import NOTHING, RIGHT, UP, MinAtarEnv
from rl_gumbel.envs.minatar.breakout import Breakout
from rl_gumbel.envs.minatar.freeway import Freeway
from rl_gumbel.envs.minatar.seaquest import Seaquest
from rl_gumbel.envs.minatar.space_invaders import SpaceInvaders

GAMES: dict[str, type[MinAtarEnv]] = {
    "asterix": Asterix,
    "breakout": Breakout,
    "freeway": Freeway,
    "seaquest": Seaquest,
    "space_invaders": SpaceInvaders,
}
every_game = pytest.mark.parametrize("game", GAMES)


def random_actions(env: MinAtarEnv, num_steps: int) -> Tensor:
    generator = torch.Generator().manual_seed(5)
    return torch.randint(len(env.actions), (num_steps, env.num_envs), generator=generator)


@every_game
def test_actions_and_channels_are_those_of_the_original(game: str) -> None:
    """Results on `MinAtar/<Game>-v1` compare only if the actions mean the same."""
    original = minatar.Environment(game)
    env = GAMES[game](1)
    assert list(env.actions) == list(original.minimal_action_set())
    ours = (base.NOTHING, base.LEFT, base.UP, base.RIGHT, base.DOWN, base.FIRE)
    assert [original.env.action_map[action] for action in ours] == list("nlurdf")
    assert list(env.channels) == list(original.env.channels)
    assert env.observation_space.shape == tuple(original.state_shape())
    assert env.max_episode_steps is None


@every_game
def test_observations_enter_networks_as_zeros_and_ones(game: str) -> None:
    """An integer observation that is taken for an image would be divided by 255."""
    env = GAMES[game](3)
    obs = env.reset(0)
    assert all(row in env.observation_space for row in obs.numpy())
    inputs = preprocess_obs(obs, env.observation_space, normalize_images=True)
    assert isinstance(inputs, Tensor)
    assert inputs.dtype == torch.float32
    assert inputs.unique().tolist() == [0, 1]
    assert get_flattened_obs_dim(env.observation_space) == 100 * len(env.channels)


def test_an_action_is_replaced_by_the_executed_one_with_the_given_probability() -> None:
    """5 standard deviations of a binomial count over 20,000 environments."""
    env = Breakout(20_000, sticky_action_prob=0.1)
    env.reset(0)
    env.step(torch.full((20_000,), 2))
    executed = env.state["last_action"]
    repeated = int((executed == NOTHING).sum())
    assert int((executed == RIGHT).sum()) == 20_000 - repeated
    assert abs(repeated - 2000) < 5 * (20_000 * 0.1 * 0.9) ** 0.5


def test_what_repeats_is_what_was_executed_and_not_what_was_chosen() -> None:
    """Right; left, which becomes right; left again, which still becomes right; then left."""
    env = Breakout(1)
    env.reset(0)
    feed = Feed(env)
    paddles = []
    for action, roll in ((2, 0.9), (1, 0.09), (1, 0.05), (1, 0.11)):
        feed.queue = [torch.tensor([0]), torch.tensor([roll])]  # a start, then the step
        env.step(torch.tensor([action]))
        paddles.append(int(env.state["paddle"]))
    assert paddles == [5, 6, 7, 6]


def test_the_last_action_outlives_an_episode_but_not_a_reset() -> None:
    """As in the original; a reset with a seed must start the same whatever was before."""
    env = Freeway(2, sticky_action_prob=1.0)
    env.reset(0)
    env.state["last_action"] = torch.tensor([UP, NOTHING])
    env.state["time_left"] = torch.tensor([0, 0])
    step = env.step(torch.tensor([2, 2]))
    assert step.terminated.tolist() == [True, True]
    assert env.state["time_left"].tolist() == [2500, 2500]
    assert env.state["last_action"].tolist() == [UP, NOTHING]
    for _ in range(4):
        env.step(torch.tensor([2, 2]))
    assert env.state["row"].tolist() == [8, 9]
    env.reset(0)
    assert env.state["last_action"].tolist() == [NOTHING, NOTHING]


@every_game
def test_environments_do_not_depend_on_each_other(game: str) -> None:
    """A batch and single copies that are given its draws go the same way."""
    env = GAMES[game](5, sticky_action_prob=0.2)
    singles = [GAMES[game](1, sticky_action_prob=0.2) for _ in range(5)]
    env.reset(0)
    env.state.get("time_left", torch.empty(5))[:] = 100  # Freeway would end later than the test
    for row, single in enumerate(singles):
        single.reset(0)
        state = {k: v[row : row + 1] for k, v in env.get_state().items() if k != "generator"}
        single.set_state({**single.get_state(), **state})
    feeds = [Feed(single) for single in singles]

    def share(draw: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def shared(*args: int) -> Tensor:
            drawn = draw(*args)
            for row, feed in enumerate(feeds):
                feed.queue.append(drawn[row : row + 1])
            return drawn

        return shared

    env.uniform, env.integers = share(env.uniform), share(env.integers)  # type: ignore[method-assign]
    num_ended = 0
    for action in random_actions(env, 200):
        step = env.step(action)
        alone = [single.step(action[row : row + 1]) for row, single in enumerate(singles)]
        for name in ("obs", "final_obs", "reward", "terminated", "episode_return"):
            together = torch.cat([getattr(other, name) for other in alone])
            assert torch.equal(getattr(step, name), together), name
        for name, value in env.state.items():
            assert torch.equal(value, torch.cat([single.state[name] for single in singles])), name
        num_ended += int(step.terminated.sum())
    assert num_ended > 0


@every_game
def test_a_step_leaves_the_state_before_it_as_it_was(game: str) -> None:
    """Who looks ahead with `transition` goes on from the same state."""
    env = GAMES[game](64)
    env.reset(0)
    for action in random_actions(env, 30):
        before = {name: value.clone() for name, value in env.state.items()}
        state = env.state
        env.step(action)
        assert all(torch.equal(state[name], value) for name, value in before.items())


@every_game
def test_a_seed_makes_a_run_repeat(game: str) -> None:
    """Draws, actions that stick and new episodes all come from one stream."""
    env = GAMES[game](32)
    runs = []
    for _ in range(2):
        env.reset(3)
        runs.append(torch.stack([env.step(action).obs for action in random_actions(env, 60)]))
    assert torch.equal(*runs)


@every_game
def test_a_step_reads_no_value(game: str) -> None:
    """On the meta device there is none to read, so a step that waits for a device raises."""
    env = GAMES[game](4, device="meta")
    env.reset()
    step = env.step(torch.zeros(4, 1, len(env.actions), device="meta"))
    assert step.obs.shape == (4, 10, 10, len(env.channels))
    assert (step.obs.dtype, step.reward.dtype) == (torch.uint8, torch.float32)
    assert {value.device.type for value in env.state.values()} == {"meta"}


@every_game
def test_a_picture_has_the_color_of_the_first_channel_in_a_cell(game: str) -> None:
    """And the background where there is nothing."""
    env = GAMES[game](2)
    env.reset(0)
    for action in random_actions(env, 25):
        obs = env.step(action).obs
    picture = env.render(1)
    assert (picture.shape, picture.dtype) == ((160, 160, 3), "uint8")
    colors = [*base.PALETTE, base.BACKGROUND]
    seen = set()
    for row in range(10):
        for column in range(10):
            channels = [*obs[1, row, column].tolist(), 1].index(1)
            shown = channels if channels < len(env.channels) else -1
            assert tuple(picture[16 * row + 8, 16 * column + 8]) == colors[shown]
            seen.add(shown)
    assert seen >= {-1, 0}
    assert len(seen) > 2
    assert len(set(colors)) == len(colors)


def test_breakout_starts_on_either_side() -> None:
    """The ball heads inwards and down from row 3."""
    env = Breakout(4000)
    env.reset(0)
    left = env.state["column"] == 0
    assert abs(int(left.sum()) - 2000) < 5 * 1000**0.5
    assert torch.equal(env.state["column"], torch.where(left, 0, 9))
    assert torch.equal(env.state["column_step"], torch.where(left, 1, -1))


def test_freeway_draws_ten_speeds_equally_often() -> None:
    """5 to 1 steps of waiting in either direction: 5 standard deviations of each count."""
    env = Freeway(5000)
    env.reset(0)
    counts = torch.bincount(env.state["speed"].flatten() + 5, minlength=11)
    assert counts[5] == 0
    assert ((counts[counts > 0] - 4000).abs() < 5 * (40_000 * 0.1 * 0.9) ** 0.5).all()
    assert (counts > 0).sum() == 10


def test_asterix_draws_an_empty_lane_a_side_and_gold() -> None:
    """Each of the empty lanes equally often, gold with probability 1/3."""
    env = Asterix(30_000)
    env.reset(0)
    env.state["present"][:] = torch.tensor([True, False, True, True, False, True, True, False])
    env.state["at"][:] = 5
    env.state["spawn_timer"][:] = 0
    before = env.state["present"]
    env.step(torch.zeros(30_000, dtype=torch.int64))
    new = env.state["present"] & ~before
    assert torch.equal(new.sum(1), torch.ones(30_000, dtype=torch.int64))
    lanes = new.sum(0)
    assert lanes.nonzero().flatten().tolist() == [1, 4, 7]
    bound = 5 * (30_000 * 2 / 9) ** 0.5
    assert ((lanes[[1, 4, 7]] - 10_000).abs() < bound).all()
    assert abs(int((new & env.state["gold"]).sum()) - 10_000) < bound
    leftward = new & (env.state["at"] == 9)
    assert torch.equal(env.state["heading"][new] == -1, leftward[new])
    assert abs(int(leftward.sum()) - 15_000) < 5 * 7500**0.5


@pytest.mark.parametrize(
    ("difficulty_ramping", "age", "spawn_timer", "move_timer"),
    [
        (True, 0, 9, 4),
        (True, STEPS_PER_LEVEL, 8, 4),
        (True, 2 * STEPS_PER_LEVEL, 7, 3),
        (True, 8 * STEPS_PER_LEVEL, 1, 0),
        (True, 9 * STEPS_PER_LEVEL, 0, 0),
        (True, 99 * STEPS_PER_LEVEL, 0, 0),
        (False, 99 * STEPS_PER_LEVEL, 9, 4),
    ],
)
def test_asterix_gets_faster_with_time_if_it_may(
    difficulty_ramping: bool, age: int, spawn_timer: int, move_timer: int
) -> None:
    """One step sooner at every level, and at every second one, down to every step."""
    env = Asterix(1, difficulty_ramping=difficulty_ramping)
    env.reset(0)
    for name, value in (("age", age), ("spawn_timer", 0), ("move_timer", 0)):
        env.state[name][:] = value
    env.step(torch.tensor([0]))
    assert (int(env.state["spawn_timer"]), int(env.state["move_timer"])) == (
        spawn_timer,
        move_timer,
    )


@pytest.mark.parametrize("prob", [-0.1, 1.5, float("nan")])
def test_a_sticky_action_prob_that_is_none_is_refused(prob: float) -> None:
    """It would be ignored, or always true."""
    with pytest.raises(ValueError, match=rf"sticky_action_prob {prob} of Breakout .* from 0 to 1"):
        Breakout(1, sticky_action_prob=prob)


@pytest.mark.parametrize("make", [Breakout, Freeway])
def test_games_that_do_not_get_harder_take_no_such_setting(make: type[MinAtarEnv]) -> None:
    """A setting that would be ignored is an error."""
    with pytest.raises(TypeError, match="difficulty_ramping"):
        make(1, difficulty_ramping=True)
