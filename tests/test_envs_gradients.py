"""Gradients through the steps of environments: every one that offers them, and every refusal."""

from importlib import import_module
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces
from torch import Tensor

from rl_gumbel.envs import ENVS, registered_id
from rl_gumbel.envs.base import State, TorchEnv
from rl_gumbel.types import Step
from rl_gumbel.vec_env import make_vec


def env_class(env_id: str) -> type[TorchEnv]:
    module, _, name = ENVS[env_id][0].partition(":")
    return getattr(import_module(module), name)


DIFFERENTIABLE = [env_id for env_id in ENVS if env_class(env_id).differentiable]
RIGID = [env_id for env_id in ENVS if env_id not in DIFFERENTIABLE]
SHOWN = [
    "CartPole-v1",
    "MountainCar-v0",
    "Acrobot-v1",
    "DiscretePendulum-v1",
    "PendulumBank-v0",
    "Thermostats-v0",
    "Inventory-v0",
    "QueueNetwork-v0",
]
"""Whose observations an action changes: all but probes."""
SAMPLED = ["QueueNetwork-v0"]
"""Whose gradient is that of an expectation, not of the event drawn: see `test_envs_queue.py`."""
every_env = pytest.mark.parametrize("env_id", DIFFERENTIABLE)
every_smooth_env = pytest.mark.parametrize(
    "env_id", [i for i in DIFFERENTIABLE if i not in SAMPLED]
)


def limited(env_id: str, steps: int) -> dict[str, int]:
    """Return the time limit for an environment that has one; the others end by themselves."""
    return {"max_episode_steps": steps} if "max_episode_steps" in ENVS[env_id][1] else {}


def random_one_hots(env: TorchEnv, steps: int) -> Tensor:
    """Return `[T, B, K, N]`."""
    generator = torch.Generator().manual_seed(0)
    draws = [torch.randint(n, (steps, env.num_envs), generator=generator) for n in env.layout.sizes]
    return env.layout.index_to_one_hot(torch.stack(draws, -1))


def inner_points(env: TorchEnv, steps: int) -> Tensor:
    """Return float64 points near one-hots, where steps are smooth and not just defined."""
    generator = torch.Generator().manual_seed(1)
    one_hots = random_one_hots(env, steps).double()
    return 0.9 * one_hots + 0.1 * torch.rand(one_hots.shape, generator=generator).double()


def follow(env: TorchEnv, start: State, one_hots: Tensor) -> tuple[Tensor, State]:
    """Return all rewards and numbers of the states, flat, and the last state.

    The random numbers are the same at every call.
    """
    env.generator.manual_seed(5)
    values, state = [], start
    for one_hot in one_hots:
        state, reward, _ = env.transition(state, one_hot)
        values += [reward, *(value for value in state.values() if value.is_floating_point())]
    return torch.cat([value.flatten().double() for value in values]), state


def make_double(env_id: str, num_envs: int = 2) -> tuple[TorchEnv, State]:
    """Return environments and states of theirs in which nothing is small or at a limit."""
    env = make_vec(env_id, num_envs, "cpu", gradients=True, dtype=torch.float64)
    env.reset(seed=2)
    for one_hot in random_one_hots(env, 20):
        env.step(one_hot)
    return env, {name: value.clone() for name, value in env.state.items()}


def gradients(value: Tensor, actions: list[Tensor]) -> Tensor:
    """Return those of a sum to each action, `[T, B, K, N]`, zero where there is no graph."""
    total = value.double().sum() + 0 * sum(action.sum() for action in actions)
    return torch.stack(torch.autograd.grad(total, actions, retain_graph=True))


def jacobian(values: list[Tensor], actions: list[Tensor], row: int) -> list[list[list[float]]]:
    """Return the gradients of each value in a row to the actions of that row."""
    return [gradients(value[row], actions)[:, row, 0].tolist() for value in values]


# --- the quintet ----------------------------------------------------------------------------------


def test_these_have_a_gradient() -> None:
    assert {env_id for env_id in DIFFERENTIABLE if not env_id.startswith("Probe")} == set(SHOWN)


@every_env
def test_gradients_are_off_by_default(env_id: str) -> None:
    env = make_vec(env_id, 3, "cpu")
    env.reset(seed=0)
    for one_hot in random_one_hots(env, 5):
        step = env.step(one_hot.requires_grad_())
        for value in (step.obs, step.final_obs, step.reward, *env.state.values()):
            assert not value.requires_grad


@every_smooth_env
def test_a_step_has_the_jacobian_of_finite_differences(env_id: str) -> None:
    """All of it, so that no environment of the batch depends on another's action."""
    env, start = make_double(env_id)
    point = inner_points(env, 1).requires_grad_()
    assert torch.autograd.gradcheck(
        lambda one_hots: follow(env, start, one_hots)[0], point, rtol=1e-4, atol=1e-8
    )


@every_smooth_env
def test_five_steps_multiply_their_jacobians(env_id: str) -> None:
    """Finite differences along random directions; every factor has its part in what follows."""
    env, start = make_double(env_id, 1)
    points = inner_points(env, 5).requires_grad_()
    assert torch.autograd.gradcheck(
        lambda one_hots: follow(env, start, one_hots)[0],
        points,
        rtol=1e-4,
        atol=1e-8,
        fast_mode=True,
    )
    weights = torch.rand_like(follow(env, start, points)[0])
    (grad,) = torch.autograd.grad((follow(env, start, points)[0] * weights).sum(), points)
    assert (grad != 0).any(-1).any(0).all()


@pytest.mark.parametrize("env_id", [env_id for env_id in SHOWN if env_id not in SAMPLED])
def test_observations_have_the_gradient_of_finite_differences(env_id: str) -> None:
    """They are float32, hence the large difference and tolerance; the first action is in them."""
    env, start = make_double(env_id, 4)
    points = inner_points(env, 5).requires_grad_()
    generator = torch.Generator().manual_seed(3)
    direction = torch.randn(points.shape, generator=generator).double()

    def look(shift: float) -> Tensor:
        return env.observe(follow(env, start, points + shift * direction)[1]).double()

    difference = (look(3e-3) - look(-3e-3)) / 6e-3
    weights = torch.rand(difference.shape, generator=generator).double().requires_grad_()
    (grad,) = torch.autograd.grad(look(0.0), points, weights, create_graph=True)
    (slope,) = torch.autograd.grad((grad * direction).sum(), weights)
    torch.testing.assert_close(slope, difference, rtol=1e-2, atol=5e-4 * float(slope.abs().max()))
    assert (grad[0] != 0).any(-1).all()


@every_env
def test_values_are_the_same_with_and_without_gradients(env_id: str) -> None:
    """Bit by bit, and by index as by one-hot, also where an episode ends."""
    plain, tracked, indexed = (
        make_vec(env_id, 4, "cpu", gradients=on, **limited(env_id, 7))
        for on in (False, True, False)
    )
    first, second, third = (env.reset(seed=0) for env in (plain, tracked, indexed))
    assert first.equal(second)
    assert first.equal(third)
    ends = 0
    for one_hot in random_one_hots(plain, 60):
        action = plain.layout.to_action(one_hot)
        expected = plain.step(one_hot)
        for step in (tracked.step(one_hot.clone().requires_grad_()), indexed.step(action)):
            for name in vars(expected):
                left, right = getattr(expected, name), getattr(step, name)
                assert left is right is None or torch.equal(left, right), name
        ends += int(expected.ended.sum())
    assert ends >= 4
    assert step.episode_return.isfinite().all()


@pytest.mark.parametrize("env_id", RIGID)
def test_the_others_refuse_by_name(env_id: str) -> None:
    name = env_class(env_id).__name__
    with pytest.raises(ValueError, match=f"{name} has no gradient through its step") as error:
        make_vec(env_id, 2, "cpu", gradients=True)
    assert "gradients=True" in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("env_id", "backend"),
    [
        ("CartPole-v1", "gymnasium"),
        (registered_id("CartPole-v1"), "gymnasium"),
        ("Pendulum-v1", "gymnasium"),
        ("Pendulum-v1", "auto"),
    ],
)
def test_gymnasium_refuses_gradients(env_id: str, backend: str) -> None:
    with pytest.raises(ValueError, match=rf"^gradients True of {env_id} needs .* torch\b.*$"):
        make_vec(env_id, 2, "cpu", backend, gradients=True)


# --- where the graph ends -------------------------------------------------------------------------


class Line(TorchEnv):
    """Move by -1, 0 or 1 from 1; over at 3; the reward is the square of the place."""

    differentiable = True

    def __init__(self, num_envs: int, max_episode_steps: int | None = 3, **kwargs: Any) -> None:
        space = spaces.Box(-9, 9, (1,), np.float32)
        super().__init__(num_envs, space, spaces.Discrete(3), max_episode_steps, **kwargs)

    def initial(self) -> State:
        return {"place": torch.ones(self.num_envs, dtype=self.dtype, device=self.device)}

    def transition(self, state: State, action: Tensor) -> tuple[State, Tensor, Tensor]:
        place = state["place"] + self.choose(action, self.constant((-1.0, 0.0, 1.0))).squeeze(-1)
        return {"place": place}, place.square(), place >= 3

    def observe(self, state: State) -> Tensor:
        return state["place"].unsqueeze(-1).float()


def move(slopes: list[list[int]]) -> list[list[list[int]]]:
    """Return the gradients to one-hots, given those to the moves, which are -1, 0 and 1."""
    return [[[-slope, 0, slope] for slope in row] for row in slopes]


def test_an_end_cuts_the_graph_by_hand() -> None:
    """Places 2, 3 (over), 2, 2 in one environment, and 1, 2, 2 (cut), 2 in the other.

    A reward x^2 has the slope 2x to every move of its episode so far and none to an earlier one;
    what an action led to, `final_obs`, has the slope 1 on the last step too, a new `obs` none.
    """
    env = Line(2, gradients=True)
    env.reset(seed=0)
    moves = torch.tensor([[1, 0], [1, 1], [1, 0], [0, 1]])
    actions = [env.layout.to_one_hot(row + 1).requires_grad_() for row in moves]
    steps = [env.step(action) for action in actions]
    assert torch.stack([step.terminated for step in steps]).T.tolist() == [
        [False, True, False, False],
        [False, False, False, False],
    ]
    assert torch.stack([step.truncated for step in steps]).T.tolist() == [
        [False, False, False, False],
        [False, False, True, False],
    ]
    rewards, final, obs = (
        [getattr(step, name) for step in steps] for name in ("reward", "final_obs", "obs")
    )
    assert [value.tolist() for value in rewards] == [[4, 1], [9, 4], [4, 4], [4, 4]]
    for row, squares, places, shown in (
        (
            0,
            [[4, 0, 0, 0], [6, 6, 0, 0], [0, 0, 4, 0], [0, 0, 4, 4]],
            [[1, 0, 0, 0], [1, 1, 0, 0], [0, 0, 1, 0], [0, 0, 1, 1]],
            [[1, 0, 0, 0], [0, 0, 0, 0], [0, 0, 1, 0], [0, 0, 1, 1]],
        ),
        (
            1,
            [[2, 0, 0, 0], [4, 4, 0, 0], [4, 4, 4, 0], [0, 0, 0, 4]],
            [[1, 0, 0, 0], [1, 1, 0, 0], [1, 1, 1, 0], [0, 0, 0, 1]],
            [[1, 0, 0, 0], [1, 1, 0, 0], [0, 0, 0, 0], [0, 0, 0, 1]],
        ),
    ):
        assert jacobian(rewards, actions, row) == move(squares)
        assert jacobian(final, actions, row) == move(places)
        assert jacobian(obs, actions, row) == move(shown)


@every_env
def test_no_gradient_crosses_an_end(env_id: str) -> None:
    """Of what is seen and paid at each step, none reaches an action of an earlier episode."""
    env = make_vec(env_id, 2, "cpu", gradients=True, **limited(env_id, 3))
    env.reset(seed=0)
    actions = list(random_one_hots(env, 8).requires_grad_().unbind(0))
    past = torch.zeros(2, dtype=torch.int64)
    ends = 0
    for now, action in enumerate(actions):
        step = env.step(action)
        for value, length in ((outcome(step), past + 1), (step.obs, env.episode_length)):
            grads = gradients(value, actions[: now + 1])
            age = torch.arange(now, -1, -1).unsqueeze(-1)
            assert grads.isfinite().all()
            assert not (grads.flatten(2).any(-1) & (age >= length)).any()
        past = env.episode_length
        ends += int(step.ended.sum())
    assert ends >= 4


def outcome(step: Step) -> Tensor:
    """Return all that an action led to, `[B]`."""
    return step.reward + step.final_obs.flatten(1).float().sum(-1)


def test_no_gradient_where_the_caller_turned_it_off() -> None:
    env = Line(2, gradients=True)
    env.reset(seed=0)
    with torch.no_grad():
        step = env.step(torch.tensor([[[0.0, 0, 1]]] * 2, requires_grad=True))
    assert not step.final_obs.requires_grad
    assert not step.reward.requires_grad


def test_counts_of_an_episode_carry_no_gradient() -> None:
    env = Line(2, gradients=True)
    env.reset(seed=0)
    step = env.step(torch.tensor([[[0.0, 0, 1]]] * 2, requires_grad=True))
    assert step.reward.requires_grad
    assert not step.episode_return.requires_grad
    assert not env.episode_return.requires_grad


# --- at the limits --------------------------------------------------------------------------------


@pytest.mark.parametrize("env_id", SHOWN)
def test_gradients_of_long_rollouts_are_finite(env_id: str) -> None:
    """Through clamps, wrapped angles and ends."""
    env = make_vec(env_id, 8, "cpu", gradients=True)
    env.reset(seed=0)
    one_hots = random_one_hots(env, 120).requires_grad_()
    total = torch.zeros(())
    for one_hot in one_hots:
        total = total + outcome(env.step(one_hot)).sum()
    (grad,) = torch.autograd.grad(total, one_hots)
    assert grad.isfinite().all()
    assert grad.any()


def test_a_wall_stops_the_gradient_too() -> None:
    """A car at the wall stays there whatever the force; one just off it feels the force."""
    env = make_vec("MountainCar-v0", 2, "cpu", gradients=True)
    env.reset(seed=0)
    env.state = {
        "position": torch.tensor([-1.2, -1.1]),
        "velocity": torch.tensor([-0.03, -0.03]),
    }
    one_hot = torch.tensor([[[1.0, 0, 0]]] * 2, requires_grad=True)
    (grad,) = torch.autograd.grad(env.step(one_hot).final_obs.sum(), one_hot)
    assert grad[0].tolist() == [[0, 0, 0]]
    torch.testing.assert_close(grad[1], torch.tensor([[-0.002, 0, 0.002]]))


def test_a_pendulum_at_full_speed_feels_no_torque() -> None:
    env = make_vec("DiscretePendulum-v1", 2, "cpu", gradients=True)
    env.reset(seed=0)
    env.state = {"angle": torch.tensor([1.5, 1.5]), "velocity": torch.tensor([8.0, 0.0])}
    one_hot = torch.tensor([[[0.0, 0, 0, 0, 1]]] * 2, requires_grad=True)
    (grad,) = torch.autograd.grad(env.step(one_hot).final_obs[:, 2].sum(), one_hot)
    assert grad[0, 0].tolist() == [0] * 5
    # A torque changes the speed by torque * 0.05 s / (1/3 kg m^2).
    torch.testing.assert_close(grad[1, 0], 0.15 * torch.tensor([-2.0, -1, 0, 1, 2]))


@pytest.mark.parametrize(
    ("env_id", "state"),
    [
        ("Acrobot-v1", {"motion": torch.tensor([[3.1, 0.5, 2.0, 1.0]])}),
        ("DiscretePendulum-v1", {"angle": torch.tensor([3.1]), "velocity": torch.tensor([2.0])}),
    ],
)
def test_a_full_turn_changes_no_gradient(env_id: str, state: State) -> None:
    """On one side of the seam the angle wraps in the next step, on the other it has wrapped."""
    env = make_vec(env_id, 1, "cpu", gradients=True, dtype=torch.float64)
    env.reset(seed=0)
    points = inner_points(env, 2).requires_grad_()
    grads = []
    for turn in (0.0, 2 * torch.pi):
        name = next(iter(state))
        first = (torch.arange(state[name].shape[-1]) == 0).double()
        start = {**state, name: state[name].double() - turn * first}
        middle, early, _ = env.transition(start, points[0])
        final, late, _ = env.transition(middle, points[1])
        seen = env.observe(final).double().cumsum(-1).sum()  # all its numbers, unequal
        grads.append(torch.autograd.grad((early + late).sum() + seen, points)[0])
    torch.testing.assert_close(*grads, rtol=1e-5, atol=1e-7)
    assert grads[0].any()
