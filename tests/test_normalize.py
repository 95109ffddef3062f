"""Running normalisers: the moments of everything seen, and SB3's VecNormalize as oracle."""

import numpy as np
import torch
from stable_baselines3.common.running_mean_std import RunningMeanStd

from rl_gumbel.normalize import CLIP, EPSILON, RewardCenter, RewardScaler, RunningMoments


def test_moments_are_those_of_all_batches_together():
    generator = torch.Generator().manual_seed(0)
    batches = [3 + 2 * torch.randn(n, 5, 4, generator=generator) for n in (1, 7, 20)]
    moments = RunningMoments((4,))
    for batch in batches:
        moments.update(batch)
    rows = torch.cat(batches).reshape(-1, 4)
    torch.testing.assert_close(moments.mean, rows.mean(0))
    torch.testing.assert_close(moments.variance, rows.var(0, correction=0))
    assert moments.count == len(rows)


def test_moments_follow_sb3_up_to_its_prior():
    """SB3 starts with a weight of 1e-4 at mean 0 and variance 1."""
    peer, moments = RunningMeanStd(shape=(2,)), RunningMoments((2,))
    for seed in range(5):
        batch = np.random.default_rng(seed).normal(4, 3, (64, 2)).astype(np.float32)
        peer.update(batch)
        moments.update(torch.from_numpy(batch))
    np.testing.assert_allclose(moments.mean, peer.mean, rtol=1e-4)
    np.testing.assert_allclose(moments.variance, peer.var, rtol=1e-4)


def test_nothing_seen_changes_nothing_but_outliers():
    batch = torch.tensor([[-30.0, 0.5], [2.0, 11.0]])
    expected = torch.tensor([[-CLIP, 0.5], [2.0, CLIP]])
    torch.testing.assert_close(RunningMoments((2,)).normalize(batch), expected)


def test_rewards_are_divided_by_the_deviation_of_the_discounted_return():
    """By hand: gamma 1/2; the second environment's episode ends after its first step."""
    scaler = RewardScaler(2, gamma=0.5)
    reward = torch.tensor([[1.0, 4.0], [2.0, 6.0]])
    ended = torch.tensor([[False, True], [False, False]])
    scaled = scaler(reward, ended)
    returns = np.array([1.0, 4.0, 2.0 + 0.5, 6.0])
    np.testing.assert_allclose(scaled, reward / np.sqrt(returns.var() + EPSILON), rtol=1e-6)
    np.testing.assert_allclose(scaler.discounted_return, [2.5, 6.0])
    scaler(torch.zeros(1, 2), torch.zeros(1, 2, dtype=torch.bool))  # goes on where it was
    np.testing.assert_allclose(scaler.discounted_return, [1.25, 3.0])


def test_the_statistics_travel_in_the_state_and_the_environments_do_not():
    scaler = RewardScaler(2, gamma=0.5)
    scaler(torch.rand(5, 2), torch.zeros(5, 2, dtype=torch.bool))
    other = RewardScaler(7, gamma=0.5)
    other.load_state_dict(scaler.state_dict())
    assert other.moments.variance == scaler.moments.variance
    assert other.discounted_return.shape == (7,)


def test_the_center_of_rewards_is_a_mean_that_forgets():
    """Of all rollouts alike until 1 / rate of them, then moving by the rate."""
    center = RewardCenter(0.5)
    reward = torch.tensor([[2.0, 4.0]], requires_grad=True)
    centered = center(reward)
    assert centered.tolist() == [[-1, 1]]
    centered.sum().backward()
    assert reward.grad.tolist() == [[1, 1]]
    center(torch.tensor([[5.0]]))
    assert center.mean == 4
    assert center(torch.tensor([[8.0]])).tolist() == [[2]]
    assert center(torch.tensor([[8.0]])).tolist() == [[1]]
    other = RewardCenter(0.5)
    other.load_state_dict(center.state_dict())
    assert other.mean == 7


def test_a_gradient_passes_the_scaler_with_its_deviation_as_a_constant():
    scaler = RewardScaler(2, gamma=0.5)
    reward = torch.tensor([[1.0, 4.0]], requires_grad=True)
    scaler(reward, torch.zeros(1, 2, dtype=torch.bool)).sum().backward()
    np.testing.assert_allclose(reward.grad, np.full((1, 2), 1 / np.sqrt(2.25)), rtol=1e-6)
    assert not scaler.discounted_return.requires_grad


def test_a_clipped_entry_passes_no_gradient():
    """The second entry is an outlier, of observations and of rewards after a thousand of zero."""
    scaler = RewardScaler(2, gamma=0.5)
    scaler(torch.zeros(500, 2), torch.ones(500, 2, dtype=torch.bool))
    ended = torch.ones(1, 2, dtype=torch.bool)
    for normalize in (RunningMoments((2,)).normalize, lambda batch: scaler(batch, ended)):
        batch = torch.tensor([[1.0, 100.0]], requires_grad=True)
        scaled = normalize(batch)
        scaled.sum().backward()
        assert 0 < scaled[0, 0] < CLIP
        assert scaled[0, 1] == CLIP
        assert batch.grad[0, 0] > 0
        assert batch.grad[0, 1] == 0
