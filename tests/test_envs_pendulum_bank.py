"""PendulumBank: nothing but pendulums side by side."""

import pytest
import torch
from gymnasium import spaces

from rl_gumbel.envs.pendulum import DiscretePendulum
from rl_gumbel.envs.pendulum_bank import PendulumBank, pump_and_balance
from rl_gumbel.vec_env import make_vec


def test_a_bank_is_that_many_pendulums() -> None:
    """Row by row of another environment, through time limits; the reward is their mean."""
    bank = PendulumBank(4, n=3, levels=7, dtype=torch.float64)
    alone = DiscretePendulum(12, levels=7, dtype=torch.float64)
    obs = bank.reset(seed=0)
    alone.reset(seed=1)

    def copy() -> None:
        alone.state = {name: value.flatten() for name, value in bank.state.items()}

    copy()
    ends = 0
    for _ in range(210):
        assert obs.view(-1, 3).equal(alone.observe(alone.state))
        action = torch.randint(7, (4, 3))
        step, peer = bank.step(action), alone.step(action.flatten())
        assert step.final_obs.view(4, 3, 3).equal(peer.final_obs.view(4, 3, 3))
        torch.testing.assert_close(step.reward, peer.reward.view(4, 3).mean(-1))
        assert step.truncated.view(4, 1).expand(4, 3).flatten().equal(peer.truncated)
        assert not step.terminated.any()
        ends += int(step.ended.sum())
        copy()
        obs = step.obs
    assert ends == 4


def test_starts_are_anywhere_in_every_pendulum() -> None:
    env = PendulumBank(5000, n=2)
    env.reset(seed=0)
    for name, bound in (("angle", torch.pi), ("velocity", 1.0)):
        values = env.state[name]
        assert values.shape == (5000, 2)
        assert values.abs().max() <= bound
        # The variance of a uniform number from -b to b is b^2 / 3.
        torch.testing.assert_close(
            values.T.cov(), torch.eye(2) * bound**2 / 3, rtol=0.05, atol=0.05 * bound**2
        )


def test_spaces_follow_from_number_and_levels() -> None:
    env = make_vec("PendulumBank-v0", 2, "cpu")
    assert env.action_space == spaces.MultiDiscrete([5] * 8)
    assert env.observation_space.shape == (24,)
    assert env.observation_space.high.reshape(8, 3).tolist() == [[1, 1, 8]] * 8
    assert env.max_episode_steps == 200
    assert (
        make_vec("PendulumBank-v0", 2, "cpu", n=3, levels=2).action_space.nvec.tolist() == [2] * 3
    )
    assert PendulumBank(1, levels=2).torques == (-2, 2)


@pytest.mark.parametrize("n", [0, 65])
def test_a_number_out_of_range_is_refused(n: int) -> None:
    with pytest.raises(ValueError, match=f"n {n} of PendulumBank must be from 1 to 64"):
        PendulumBank(1, n=n)


def test_a_single_level_is_refused() -> None:
    with pytest.raises(ValueError, match="levels 1 of PendulumBank must be at least 2"):
        PendulumBank(1, levels=1)


@pytest.mark.parametrize("levels", [2, 5, 6])
def test_the_rule_swings_up_and_balances(levels: int) -> None:
    """Random actions return -1230; the learned optimum of one pendulum is near -150."""
    env = PendulumBank(64, n=4, levels=levels)
    obs = env.reset(seed=0)
    for _ in range(200):
        action = pump_and_balance(env, obs)
        assert action.shape == (64, 4)
        step = env.step(action)
        obs = step.obs
    assert step.episode_return.mean() > -200
    cos, _, velocity = step.final_obs.view(-1, 3).unbind(-1)
    assert cos.min() > 0.9
    assert velocity.abs().max() < 1


@pytest.mark.parametrize("n", [1, 8, 24, 64])
def test_pictures_fit(n: int) -> None:
    env = PendulumBank(1, n=n)
    env.reset(seed=0)
    height, width, _ = env.render().shape
    assert height <= 400
    assert width <= 600
    assert height == 400 or width == 600
