"""The classic environments against Gymnasium's, step by step, or against their published rules."""

import itertools
from collections.abc import Callable
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor

from rl_gumbel.envs.acrobot import Acrobot
from rl_gumbel.envs.base import State, TorchEnv
from rl_gumbel.envs.cartpole import CartPole
from rl_gumbel.envs.catch import Catch
from rl_gumbel.envs.deep_sea import DeepSea
from rl_gumbel.envs.mountain_car import MountainCar
from rl_gumbel.envs.pendulum import DiscretePendulum

ORIGINALS: dict[type[TorchEnv], str] = {
    CartPole: "CartPole-v1",
    Acrobot: "Acrobot-v1",
    MountainCar: "MountainCar-v0",
    DiscretePendulum: "Pendulum-v1",
}
EVERYWHERE: dict[type[TorchEnv], list[tuple[float, float]]] = {
    CartPole: [(-2.5, 2.5), (-3, 3), (-0.22, 0.22), (-3, 3)],
    Acrobot: [(-np.pi, np.pi), (-np.pi, np.pi), (-12.6, 12.6), (-28.3, 28.3)],
    MountainCar: [(-1.2, 0.6), (-0.07, 0.07)],
    DiscretePendulum: [(-20, 20), (-8, 8)],
}
"""Ranges of the state that hold its limits, and both sides of each end of an episode."""

every_original = pytest.mark.parametrize("make", ORIGINALS)


def rows(state: State) -> Tensor:
    """Return the numbers of each environment, in the order of the original's state."""
    return torch.cat([value.view(len(value), -1) for value in state.values()], 1)


def inject(env: TorchEnv, numbers: Tensor) -> None:
    names = list(env.state)
    env.state = (
        dict(zip(names, numbers.unbind(-1), strict=True)) if names[1:] else {names[0]: numbers}
    )


def anywhere(make: type[TorchEnv], count: int, seed: int) -> Tensor:
    low, high = torch.tensor(EVERYWHERE[make], dtype=torch.float64).T
    generator = torch.Generator().manual_seed(seed)
    draws = torch.rand(count, len(low), dtype=torch.float64, generator=generator)
    return low + (high - low) * draws


def original_action(env: TorchEnv, action: int) -> Any:
    return np.array([env.torques[action]]) if isinstance(env, DiscretePendulum) else action


@every_original
def test_spaces_and_time_limit_are_the_original_ones(make: type[TorchEnv]) -> None:
    env, original = make(1), gym.make(ORIGINALS[make])
    assert env.observation_space == original.observation_space
    assert env.max_episode_steps == original.spec.max_episode_steps
    discrete = gym.spaces.Discrete(5) if make is DiscretePendulum else original.action_space
    assert env.action_space == discrete


@every_original
def test_every_step_is_the_original_one(make: type[TorchEnv]) -> None:
    """32 environments, 100 steps: from anywhere every 20 steps, else where the episode leads."""
    env = make(32, dtype=torch.float64)
    env.reset(seed=0)
    original = gym.make(ORIGINALS[make]).unwrapped
    original.reset(seed=0)
    generator = torch.Generator().manual_seed(1)
    ends = 0
    for moment in range(100):
        if moment % 20 == 0:
            inject(env, anywhere(make, 32, moment))
        before = rows(env.state).numpy()
        action = torch.randint(env.layout.num_categories, (32,), generator=generator)
        after, reward, terminated = env.transition(env.state, action.unsqueeze(-1))
        step = env.step(action)
        for row in range(32):
            original.state = tuple(before[row])
            original.steps_beyond_terminated = None
            obs, value, ended, _, _ = original.step(original_action(env, int(action[row])))
            np.testing.assert_allclose(rows(after)[row], original.state, rtol=0, atol=1e-12)
            np.testing.assert_allclose(step.final_obs[row], obs, rtol=1e-6, atol=1e-7)
            assert float(reward[row]) == pytest.approx(value, rel=0, abs=1e-12)
            assert float(step.reward[row]) == pytest.approx(value, rel=1e-6)
            assert bool(terminated[row]) == bool(step.terminated[row]) == ended
        ends += int(step.terminated.sum())
    assert ends < 1600
    assert ends > (20 if make is not DiscretePendulum else -1)


@every_original
def test_whole_episodes_are_the_original_ones(make: type[TorchEnv]) -> None:
    """From the same starts, through terminations and time limits."""
    env = make(4, dtype=torch.float64)
    env.reset(seed=2)
    peers = [gym.make(ORIGINALS[make]) for _ in range(4)]
    for peer in peers:
        peer.reset(seed=0)
    generator = torch.Generator().manual_seed(3)

    def copy(row: int) -> None:
        peers[row].reset()
        peers[row].unwrapped.state = rows(env.state)[row].numpy().copy()

    for row in range(4):
        copy(row)
    truncated = 0
    for _ in range(520):
        action = torch.randint(env.layout.num_categories, (4,), generator=generator)
        step = env.step(action)
        for row, peer in enumerate(peers):
            obs, reward, ended, cut, _ = peer.step(original_action(env, int(action[row])))
            np.testing.assert_allclose(step.final_obs[row], obs, rtol=1e-4, atol=1e-4)
            assert float(step.reward[row]) == pytest.approx(reward, rel=1e-4, abs=1e-4)
            assert bool(step.terminated[row]) == ended
            assert bool(step.truncated[row]) == (cut and not ended)
            truncated += cut
        for row in step.ended.nonzero()[:, 0].tolist():
            copy(row)
    assert truncated == {CartPole: 0, Acrobot: 4, MountainCar: 8, DiscretePendulum: 8}[make]


@every_original
def test_first_states_have_the_original_distribution(make: type[TorchEnv]) -> None:
    env = make(1000, dtype=torch.float64)
    env.reset(seed=0)
    ours = rows(env.state).numpy()
    original = gym.make(ORIGINALS[make]).unwrapped
    original.reset(seed=0)
    theirs = []
    for _ in range(1000):
        original.reset()
        theirs.append(np.array(original.state))
    for mine, other in zip(ours.T, np.array(theirs, float).T, strict=True):
        assert stats.ks_2samp(mine, other).pvalue > 1e-3
        assert mine.min() == pytest.approx(other.min(), abs=0.02 * np.ptp(other))
        assert mine.max() == pytest.approx(other.max(), abs=0.02 * np.ptp(other))
        assert abs(mine.mean() - other.mean()) <= 5 * np.std(other) * np.sqrt(2 / 1000)
    off_diagonal = np.corrcoef(ours[:, ours.std(0) > 0].T) - np.eye((ours.std(0) > 0).sum())
    assert np.abs(off_diagonal).max() < 0.16


def test_later_episodes_start_as_the_first() -> None:
    env = CartPole(256, dtype=torch.float64)
    env.reset(seed=0)
    starts = []
    for _ in range(100):
        step = env.step(torch.ones(256, dtype=torch.int64))
        starts.append(rows(env.state)[step.ended])
    values = torch.cat(starts).numpy()
    assert len(values) > 2000
    for column in values.T:
        assert stats.kstest(column, stats.uniform(-0.05, 0.1).cdf).pvalue > 1e-3


@pytest.mark.parametrize("make", [Acrobot, CartPole, MountainCar])
def test_constant_rewards_carry_no_gradient(make: type[TorchEnv]) -> None:
    env = make(2, gradients=True)
    env.reset(seed=0)
    step = env.step(env.layout.to_one_hot(torch.tensor([0, 1])).requires_grad_())
    assert not step.reward.requires_grad
    assert step.obs.requires_grad
    assert "only" in make.__doc__.replace("\n", " ")


# --- no episode is shorter than it is said to be --------------------------------------------------


def test_no_cart_pole_ends_within_seven_steps() -> None:
    """Every sequence of 8 actions from every corner of the first states; the eighth can end it."""
    corners = torch.tensor(list(itertools.product((-0.05, 0.05), repeat=4)), dtype=torch.float64)
    plans = torch.tensor(list(itertools.product((0, 1), repeat=8)))
    env = CartPole(len(corners) * len(plans), dtype=torch.float64)
    state = {"motion": corners.repeat_interleave(len(plans), 0)}
    ends = []
    for action in plans.repeat(len(corners), 1).T:
        state, _, terminated = env.transition(state, action.unsqueeze(-1))
        ends.append(bool(terminated.any()))
    assert ends == [False] * 7 + [True]
    assert env.min_episode_steps == 8


def test_no_mountain_car_climbs_faster_than_its_bound() -> None:
    speeds = np.minimum(0.0035 * np.arange(1, 40), 0.07)
    fastest = int((speeds.cumsum() >= 0.5 + 0.4).argmax()) + 1
    assert fastest == 23
    assert MountainCar.min_episode_steps <= fastest


@pytest.mark.parametrize("make", [Acrobot, MountainCar])
def test_pumping_energy_takes_longer_than_the_shortest_episode(make: type[TorchEnv]) -> None:
    """A torque in the direction of the velocity does the most work."""
    env = make(64, max_episode_steps=None)
    env.reset(seed=0)
    lengths = []
    for _ in range(250):
        velocity = rows(env.state)[:, -1]
        step = env.step((velocity >= 0).long() * 2)
        lengths.append(step.episode_length[step.terminated])
    assert len(torch.cat(lengths)) > 64
    assert torch.cat(lengths).min() >= make.min_episode_steps


# --- Pendulum's torques ---------------------------------------------------------------------------


def test_torques_are_evenly_spaced() -> None:
    assert DiscretePendulum(1).torques == (-2, -1, 0, 1, 2)
    assert DiscretePendulum(1, levels=2).torques == (-2, 2)
    assert DiscretePendulum(1, levels=9).action_space.n == 9
    with pytest.raises(ValueError, match="levels 1 of DiscretePendulum must be at least 2"):
        DiscretePendulum(1, levels=1)


# --- Catch and DeepSea, by their published rules --------------------------------------------------


class PlainCatch:
    """The rules of Catch for one board, ball column given."""

    def __init__(self, rows: int, columns: int, ball: int) -> None:
        self.rows, self.columns, self.ball, self.row = rows, columns, ball, 0
        self.paddle = columns // 2

    def board(self) -> list[list[float]]:
        board = [[0.0] * self.columns for _ in range(self.rows)]
        board[self.row][self.ball] = 1.0
        board[-1][self.paddle] = 1.0
        return board

    def step(self, action: int) -> tuple[list[list[float]], float, bool]:
        self.paddle = min(max(self.paddle + (-1, 0, 1)[action], 0), self.columns - 1)
        self.row += 1
        if self.row < self.rows - 1:
            return self.board(), 0.0, False
        return self.board(), 1.0 if self.paddle == self.ball else -1.0, True


class PlainDeepSea:
    """The rules of DeepSea for one diver; `mapping` holds the action that goes right."""

    def __init__(self, mapping: np.ndarray) -> None:
        self.mapping, self.size, self.row, self.column = mapping, len(mapping), 0, 0

    def board(self) -> list[list[float]]:
        board = [[0.0] * self.size for _ in range(self.size)]
        if self.row < self.size:
            board[self.row][self.column] = 1.0
        return board

    def step(self, action: int) -> tuple[list[list[float]], float, bool]:
        reward = 0.0
        if action == self.mapping[self.row][self.column]:
            reward += 1.0 if self.column == self.size - 1 else 0.0
            reward -= 0.01 / self.size
            self.column = min(self.column + 1, self.size - 1)
        else:
            self.column = max(self.column - 1, 0)
        self.row += 1
        return self.board(), reward, self.row == self.size


def compare(env: TorchEnv, make_plain: Callable[[int], Any], steps: int) -> Tensor:
    """Step both; return the rewards that were not zero."""
    obs = env.reset(seed=0)
    plain = [make_plain(row) for row in range(env.num_envs)]
    seen = []
    for action in torch.randint(env.layout.num_categories, (steps, env.num_envs)):
        assert obs.tolist() == [board.board() for board in plain]
        step = env.step(action)
        for row, board in enumerate(plain):
            last, reward, ended = board.step(int(action[row]))
            assert step.final_obs[row].tolist() == last
            assert float(step.reward[row]) == pytest.approx(reward, abs=1e-7)
            assert bool(step.terminated[row]) == ended
            if ended:
                plain[row] = make_plain(row)
        assert not step.truncated.any()
        seen.append(step.reward[step.reward != 0])
        obs = step.obs
    return torch.cat(seen)


@pytest.mark.parametrize(("rows", "columns"), [(10, 5), (4, 7)])
def test_catch_follows_its_rules(rows: int, columns: int) -> None:
    torch.manual_seed(0)
    env = Catch(16, rows=rows, columns=columns)
    assert env.observation_space == gym.spaces.Box(0, 1, (rows, columns), np.float32)
    assert env.action_space == gym.spaces.Discrete(3)
    rewards = compare(env, lambda row: PlainCatch(rows, columns, int(env.state["ball"][row])), 60)
    assert set(rewards.tolist()) == {-1.0, 1.0}


def test_the_ball_starts_in_every_column_equally() -> None:
    env = Catch(5000)
    env.reset(seed=0)
    counts = env.state["ball"].bincount(minlength=5)
    assert stats.chisquare(counts.numpy()).pvalue > 1e-3


def test_following_the_ball_catches_it() -> None:
    env = Catch(64)
    env.reset(seed=0)
    for _ in range(9):
        step = env.step((env.state["ball"] - env.state["paddle"]).sign() + 1)
    assert step.terminated.all()
    assert step.episode_return.tolist() == [1.0] * 64
    assert env.min_episode_steps == 9


@pytest.mark.parametrize("size", [10, 3, 1])
def test_deep_sea_follows_its_rules(size: int) -> None:
    torch.manual_seed(0)
    env = DeepSea(32, size=size)
    assert env.observation_space == gym.spaces.Box(0, 1, (size, size), np.float32)
    assert env.action_space == gym.spaces.Discrete(2)
    cells = torch.arange(size)
    grid = {"row": cells.repeat_interleave(size), "column": cells.repeat(size)}
    mapping = env.right_action(grid).view(size, size).numpy()
    compare(env, lambda row: PlainDeepSea(mapping), 50)


def test_always_right_is_optimal_in_deep_sea() -> None:
    """Every other plan of a small sea returns less."""
    env = DeepSea(2)
    env.reset(seed=0)
    for _ in range(10):
        step = env.step(env.right_action(env.state))
    assert step.terminated.all()
    torch.testing.assert_close(step.episode_return, torch.full((2,), 0.99))
    plans = torch.tensor(list(itertools.product((False, True), repeat=5)))
    small = DeepSea(32, size=5)
    small.reset(seed=0)
    for right in plans.T:
        action = small.right_action(small.state)
        step = small.step(torch.where(right, action, 1 - action))
    assert int(step.episode_return.argmax()) == 31
    assert step.episode_return.sort().values[-2] == 0


def test_the_mapping_comes_from_its_seed_alone() -> None:
    cells = torch.arange(10)
    grid = {"row": cells.repeat_interleave(10), "column": cells.repeat(10)}
    one, same, other = (DeepSea(1, mapping_seed=seed).right_action(grid) for seed in (7, 7, 8))
    assert torch.equal(one, same)
    assert not torch.equal(one, other)
    assert 30 < int(one.sum()) < 70


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Catch(1, rows=1), "a board of 1 rows and 5 columns is too small for Catch"),
        (lambda: Catch(1, columns=0), "a board of 10 rows and 0 columns is too small for Catch"),
        (lambda: DeepSea(1, size=0), "size 0 of DeepSea must be at least 1"),
    ],
)
def test_boards_that_are_too_small_are_refused(make: Callable[[], Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


# --- pictures -------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [*ORIGINALS, Catch, DeepSea])
def test_pictures_are_small_and_not_empty(make: type[TorchEnv]) -> None:
    env = make(1)
    env.reset(seed=0)
    picture = env.render()
    assert picture.shape[0] <= 400
    assert picture.shape[1] <= 600
    assert len(np.unique(picture.reshape(-1, 3), axis=0)) > 4
