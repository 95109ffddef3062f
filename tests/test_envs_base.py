"""`TorchEnv`: what every batched torch environment gets from it."""

from typing import Any

import numpy as np
import pytest
import torch
from device_reads import DeviceReads
from gymnasium import spaces
from numpy.typing import NDArray
from torch import Tensor

from rl_gumbel.envs.acrobot import Acrobot
from rl_gumbel.envs.base import State, TorchEnv
from rl_gumbel.envs.cartpole import CartPole
from rl_gumbel.envs.catch import Catch
from rl_gumbel.envs.deep_sea import DeepSea
from rl_gumbel.envs.inventory import Inventory
from rl_gumbel.envs.mountain_car import MountainCar
from rl_gumbel.envs.pendulum import DiscretePendulum
from rl_gumbel.envs.pendulum_bank import PendulumBank
from rl_gumbel.envs.queue_network import QueueNetwork
from rl_gumbel.envs.thermostats import Thermostats
from rl_gumbel.types import Step


class Walk(TorchEnv):
    """Walk left, stay or walk right from 0 or 1; over at -2 and 3; the reward is half the move.

    `walked` is kept from episode to episode; at the edge, walking on is not legal.
    """

    differentiable = True
    persistent = frozenset({"walked"})
    min_episode_steps = 2

    def __init__(self, num_envs: int, max_episode_steps: int | None = 5, **kwargs: Any) -> None:
        space = spaces.Box(-3, 4, (1,), np.float32)
        super().__init__(num_envs, space, spaces.Discrete(3), max_episode_steps, **kwargs)

    def initial(self) -> State:
        place = self.integers(2).to(self.dtype)
        return {"place": place, "walked": torch.zeros_like(place)}

    def transition(self, state: State, action: Tensor) -> tuple[State, Tensor, Tensor]:
        move = self.choose(action, self.constant((-1.0, 0.0, 1.0))).squeeze(-1)
        place = state["place"] + move
        following = {"place": place, "walked": state["walked"] + move.abs()}
        return following, 0.5 * move, (place <= -2) | (place >= 3)

    def observe(self, state: State) -> Tensor:
        return state["place"].unsqueeze(-1).float()

    def legal(self, state: State) -> Tensor:
        left, right = state["place"] > -1, state["place"] < 2
        return torch.stack([left, torch.ones_like(left), right], -1).unsqueeze(1)

    def frame(self, state: State) -> NDArray[np.uint8]:
        return np.full((1, 1, 3), 100 + int(state["place"]), np.uint8)


class Rigid(CartPole):
    """A CartPole that does not offer its gradient."""

    differentiable = False


CLASSIC = [CartPole, Acrobot, MountainCar, DiscretePendulum]
ENVS = [Walk, *CLASSIC, PendulumBank, Thermostats, Inventory, QueueNetwork, Catch, DeepSea, Rigid]
every_env = pytest.mark.parametrize("make", ENVS)


def random_actions(env: TorchEnv, steps: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    shape = (steps, env.num_envs, env.layout.num_factors)
    return torch.randint(min(env.layout.sizes), shape, generator=generator)


def run(env: TorchEnv, actions: Tensor) -> list[Step]:
    return [env.step(action) for action in actions]


def stacked(steps: list[Step], name: str) -> Tensor:
    return torch.stack([getattr(step, name) for step in steps])


def assert_same(left: list[Step], right: list[Step]) -> None:
    for name in ("obs", "reward", "terminated", "truncated", "final_obs"):
        assert torch.equal(stacked(left, name), stacked(right, name)), name
    for name in ("episode_return", "episode_length"):
        assert torch.equal(stacked(left, name), stacked(right, name)), name


# --- episodes ---------------------------------------------------------------------------------


def test_one_walk_counted_by_hand() -> None:
    """From 1: right, right ends at 3 after 2 steps; left, stay, stay, right, stay is cut at 5."""
    env = Walk(2)
    env.reset(seed=0)
    env.state["place"] = torch.tensor([1.0, 0.0])
    moves = [[2, 0], [2, 1], [1, 1], [1, 2], [1, 1]]
    steps = run(env, torch.tensor(moves))
    first, second = (stacked(steps, "final_obs")[:, i, 0].tolist() for i in (0, 1))
    assert first[:2] == [2, 3]
    assert second == [-1, -1, -1, 0, 0]
    assert stacked(steps, "terminated").T.tolist() == [[False, True] + [False] * 3, [False] * 5]
    assert stacked(steps, "truncated").T.tolist() == [[False] * 5, [False] * 4 + [True]]
    assert stacked(steps, "ended").T.tolist() == [[False, True] + [False] * 3, [False] * 4 + [True]]
    assert stacked(steps, "episode_return").T.tolist() == [[0.5, 1, 0, 0, 0], [-0.5] * 3 + [0, 0]]
    assert stacked(steps, "episode_length").T.tolist() == [[1, 2, 1, 2, 3], [1, 2, 3, 4, 5]]
    assert env.episode_length.tolist() == [3, 0]
    assert steps[1].obs[0, 0] in (0, 1), "a new episode has begun in the same step"
    assert env.state["walked"].tolist() == [2, 2], "what persists outlives the episode"
    env.reset()
    assert env.state["walked"].tolist() == [0, 0], "and not a reset"
    assert env.episode_length.tolist() == [0, 0]


@every_env
def test_only_rows_that_ended_start_anew(make: type[TorchEnv]) -> None:
    env = make(16, max_episode_steps=20)
    env.reset(seed=1)
    ends = fresh = 0
    for action in random_actions(env, 60):
        step = env.step(action)
        ended = step.ended
        rows = (step.obs == step.final_obs).flatten(1).all(-1)
        assert rows[~ended].all()
        assert torch.equal(step.obs, env.observe(env.state))
        assert (env.episode_length == 0).equal(ended)
        assert (env.episode_length == step.episode_length).equal(~ended)
        assert (env.episode_return == 0)[ended].all()
        ends += int(ended.sum())
        fresh += int((~rows).sum())
    assert ends > 16
    assert fresh > ends / 2, "few last observations are first ones too"


def test_an_end_at_the_limit_is_a_termination() -> None:
    env = Walk(3, max_episode_steps=2)
    env.reset(seed=0)
    env.state["place"] = torch.tensor([1.0, 0.0, 2.0])
    first = env.step(torch.tensor([2, 2, 2]))
    second = env.step(torch.tensor([2, 2, 1]))
    assert first.terminated.tolist() == [False, False, True]
    assert first.truncated.tolist() == [False, False, False]
    assert second.terminated.tolist() == [True, False, False]
    assert second.truncated.tolist() == [False, True, False]


@every_env
def test_truncation_happens_at_the_limit_alone(make: type[TorchEnv]) -> None:
    env = make(32, max_episode_steps=7)
    env.reset(seed=0)
    steps = run(env, random_actions(env, 100))
    terminated, truncated = stacked(steps, "terminated"), stacked(steps, "truncated")
    at_limit = stacked(steps, "episode_length") == 7
    assert truncated.any()
    assert torch.equal(truncated, at_limit & ~terminated)
    assert stacked(steps, "episode_length").max() == 7


def test_without_a_limit_nothing_is_truncated() -> None:
    env = Walk(4, max_episode_steps=None)
    env.reset(seed=0)
    steps = run(env, torch.ones(700, 4, dtype=torch.int64))
    assert not stacked(steps, "truncated").any()
    assert steps[-1].episode_length.tolist() == [700] * 4


def test_masks_belong_to_their_observations() -> None:
    env = Walk(1)
    env.reset(seed=0)
    env.state["place"] = torch.tensor([1.0])
    step = env.step(torch.tensor([2]))
    assert step.action_mask.tolist() == [[[True, True, False]]]
    step = env.step(torch.tensor([2]))
    assert step.terminated.all()
    assert step.final_action_mask.tolist() == [[[True, True, False]]]
    assert step.action_mask.tolist() == [[[True, True, True]]]
    assert env.action_mask.equal(step.action_mask)
    assert env.masked
    assert not CartPole(1).masked


# --- first states drawn in advance ----------------------------------------------------------------


@pytest.mark.parametrize("limit", [None, 3])
def test_no_first_state_is_used_twice(limit: int | None) -> None:
    """They are drawn once in `min_episode_steps` steps, but as if at every step.

    Pushed to one side always, a pole falls as fast as it can, in 8 to 10 steps.
    """
    env = CartPole(64, max_episode_steps=limit)
    starts = [env.reset(seed=0)]
    for _ in range(150):
        step = env.step(torch.ones(64, dtype=torch.int64))
        starts.append(step.obs[step.ended])
    rows = torch.cat(starts)
    assert len(rows) > 900
    assert len(rows.unique(dim=0)) == len(rows)
    assert rows.abs().max() <= 0.05


def test_uniform_columns_are_contiguous() -> None:
    """What is cut from them then costs no strided copies."""
    env = CartPole(3)
    draws = env.uniform(4, 2)
    assert draws.shape == (3, 4, 2)
    assert draws[:, 1, 1].is_contiguous()
    assert env.integers(7, 5).shape == (3, 5)
    assert env.uniform().shape == env.integers(2).shape == (3,)


# --- seeds and states -----------------------------------------------------------------------------


@pytest.mark.parametrize("make", [make for make in ENVS if make is not DeepSea])  # has no chance
def test_the_same_seed_gives_the_same_run(make: type[TorchEnv]) -> None:
    left, right, other = make(8), make(8), make(8)
    actions = random_actions(left, 60)
    assert torch.equal(left.reset(seed=3), right.reset(seed=3))
    other.reset(seed=4)
    expected = run(left, actions)
    assert_same(expected, run(right, actions))
    assert not torch.equal(stacked(expected, "obs"), stacked(run(other, actions), "obs"))
    right.reset(seed=3)
    assert_same(expected, run(right, actions))


@every_env
@pytest.mark.parametrize("taken", [0, 1, 13])
def test_a_saved_state_continues_bit_exactly(make: type[TorchEnv], taken: int) -> None:
    env, other = make(8), make(8)
    actions = random_actions(env, 80)
    env.reset(seed=5)
    run(env, actions[:taken])
    saved = env.get_state()
    expected = run(env, actions[taken:])
    for again in (env, other):
        again.set_state(saved)
        assert_same(expected, run(again, actions[taken:]))


def test_a_saved_state_is_a_copy() -> None:
    env = Walk(2)
    env.reset(seed=0)
    saved = env.get_state()
    env.state["place"].add_(100)
    env.set_state(saved)
    assert env.state["place"].max() <= 1
    env.state["place"].add_(100)
    assert saved["place"].max() <= 1


# --- actions --------------------------------------------------------------------------------------


@every_env
def test_one_hot_and_index_actions_give_equal_results(make: type[TorchEnv]) -> None:
    by_index, by_one_hot = make(8), make(8)
    actions = random_actions(by_index, 60)
    layout = by_index.layout
    assert torch.equal(by_index.reset(seed=0), by_one_hot.reset(seed=0))
    expected = run(by_index, actions)
    assert_same(expected, [by_one_hot.step(layout.to_one_hot(action)) for action in actions])


def test_choose_is_linear_in_a_one_hot() -> None:
    env = CartPole(2)
    values = torch.tensor([3.0, -5.0, 7.0])
    one_hot = torch.tensor([[[0, 1.0, 0], [0, 0, 1]], [[1, 0, 0], [0, 1, 0]]], requires_grad=True)
    chosen = env.choose(one_hot, values)
    assert chosen.tolist() == [[-5, 7], [3, -5]]
    assert env.choose(one_hot.argmax(-1), values).equal(chosen)
    chosen.sum().backward()
    assert one_hot.grad.equal(values.expand(2, 2, 3))


@pytest.mark.parametrize(
    ("make", "action", "message"),
    [
        (Walk, torch.zeros(3, dtype=torch.int64), r"int64 action of shape \(3,\) of Walk must be"),
        (Walk, torch.zeros(4, 2, dtype=torch.int64), r"integers of shape \(4,\) or \(4, 1\) or fl"),
        (Walk, torch.zeros(4, 1), r"float32 action of shape \(4, 1\) .* one-hots .* \(4, 1, 3\)$"),
        (Walk, torch.zeros(4, 3), r"action of shape \(4, 3\) .* one-hots .* \(4, 1, 3\)$"),
        (Rigid, torch.zeros(4, 1, 3), r"action of shape \(4, 1, 3\) .* \(4, 1, 2\)$"),
        (QueueNetwork, torch.zeros(8, dtype=torch.int64), r"integers of shape \(4, 2\) or fl"),
        (QueueNetwork, torch.zeros(2, 4, dtype=torch.int64), r"action of shape \(2, 4\)"),
        (QueueNetwork, torch.zeros(4, 2), r"action of shape \(4, 2\) .* \(4, 2, 3\)$"),
    ],
)
def test_actions_of_another_shape_are_refused(
    make: type[TorchEnv], action: Tensor, message: str
) -> None:
    env = make(4)
    env.reset(seed=0)
    with pytest.raises(ValueError, match=message) as error:
        env.step(action)
    assert "\n" not in str(error.value)


# --- devices --------------------------------------------------------------------------------------


@every_env
@pytest.mark.parametrize("one_hot", [False, True])
def test_the_whole_loop_runs_on_meta(make: type[TorchEnv], one_hot: bool) -> None:
    """There no value can be read: nothing in it depends on one."""
    env = make(4, device="meta", gradients=one_hot and make.differentiable)
    assert env.reset(seed=0).is_meta
    action = torch.zeros(4, env.layout.num_factors, dtype=torch.int64, device="meta")
    if one_hot:
        action = env.layout.index_to_one_hot(action).requires_grad_()
    for _ in range(12):
        step = env.step(action)
        for name in ("obs", "reward", "terminated", "truncated", "final_obs"):
            assert getattr(step, name).is_meta
        assert step.obs.shape == (4, *env.observation_space.shape)
    env.set_state(env.get_state())


def test_reads_are_counted() -> None:
    values = torch.arange(3.0)
    with DeviceReads() as reads:
        values[values > 1]
        values.nonzero()
        bool(values[0])
    assert len(reads.seen) >= 3


@every_env
def test_a_step_reads_nothing_back_to_the_host(make: type[TorchEnv]) -> None:
    env = make(8, gradients=make.differentiable)
    env.reset(seed=0)
    actions = random_actions(env, 30)
    one_hots = [env.layout.to_one_hot(action) for action in actions]
    with DeviceReads() as reads:
        env.reset()
        run(env, actions)
        for one_hot in one_hots:
            env.step(one_hot)
    assert reads.seen == []


@every_env
def test_moving_keeps_the_states(make: type[TorchEnv]) -> None:
    env = make(4)
    obs = env.reset(seed=0)
    assert env.to("cpu") is env
    assert torch.equal(env.observe(env.state), obs)
    env.step(random_actions(env, 1)[0])
    assert env.to("meta").step(random_actions(env, 1)[0].to("meta")).obs.is_meta


# --- records, pictures and errors -----------------------------------------------------------------


@every_env
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_step_has_the_documented_shapes_and_dtypes(
    make: type[TorchEnv], dtype: torch.dtype
) -> None:
    env = make(5, dtype=dtype)
    obs = env.reset(seed=0)
    step = env.step(random_actions(env, 1)[0])
    space = env.observation_space
    for value in (obs, step.obs, step.final_obs):
        assert value.shape == (5, *space.shape)
        assert value.dtype == getattr(torch, space.dtype.name)
        assert all(space.contains(row) for row in value.numpy())
    for value in (step.reward, step.episode_return):
        assert (value.shape, value.dtype) == ((5,), torch.float32)
    for value in (step.terminated, step.truncated):
        assert (value.shape, value.dtype) == ((5,), torch.bool)
    assert (step.episode_length.shape, step.episode_length.dtype) == ((5,), torch.int64)


@every_env
def test_a_picture_shows_the_environment_asked_for(make: type[TorchEnv]) -> None:
    env = make(6)
    env.reset(seed=0)
    run(env, random_actions(env, 5))
    assert env.render_mode == "rgb_array"
    pictures = [env.render(index) for index in range(6)]
    for index, picture in enumerate(pictures):
        assert picture.dtype == np.uint8
        assert picture.ndim == 3
        assert picture.shape[2] == 3
        state = {name: value[index : index + 1] for name, value in env.state.items()}
        assert np.array_equal(picture, env.frame(state))
    assert len({picture.tobytes() for picture in pictures}) > 1


def test_an_observation_shares_no_memory_with_the_state() -> None:
    """Whoever changes an observation in place does not change the environment."""
    env = CartPole(2)
    env.reset(seed=0).zero_()
    step = env.step(torch.tensor([0, 1]))
    before = env.get_state()["motion"]
    step.obs.zero_()
    step.final_obs.zero_()
    assert torch.equal(env.state["motion"], before)
    assert before.any()


def test_sizes_below_one_and_a_missing_reset_are_errors() -> None:
    with pytest.raises(ValueError, match="num_envs 0 of Walk must be at least 1"):
        Walk(0)
    with pytest.raises(ValueError, match="max_episode_steps 0 of Walk must be at least 1"):
        Walk(1, max_episode_steps=0)
    with pytest.raises(RuntimeError, match="Walk must be reset before its first step"):
        Walk(1).step(torch.tensor([0]))
