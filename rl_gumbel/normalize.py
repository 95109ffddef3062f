"""Running normalisers on the device: means and variances that follow the data."""

import torch
from torch import Tensor, nn

EPSILON = 1e-8  # as in SB3's VecNormalize
CLIP = 10.0


class RunningMoments(nn.Module):
    """Mean and variance of everything seen so far, per entry of `shape`.

    Merged batch by batch (Chan, Golub and LeVeque 1979). It starts at mean 0 and variance 1 with no
    weight, and travels in the `state_dict`. No gradient passes through an entry that `normalize`
    clips.
    """

    mean: Tensor
    variance: Tensor
    count: Tensor

    def __init__(self, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(shape))
        self.register_buffer("variance", torch.ones(shape))
        self.register_buffer("count", torch.zeros(()))

    @torch.no_grad()
    def update(self, batch: Tensor) -> None:
        """Take in a batch `[..., *shape]`."""
        rows = batch.reshape(-1, *self.mean.shape).to(self.mean.dtype)
        variance, mean = torch.var_mean(rows, 0, correction=0)
        total = self.count + rows.shape[0]
        share = rows.shape[0] / total
        difference = mean - self.mean
        variance = (1 - share) * self.variance + share * variance
        self.variance.copy_(variance + share * (1 - share) * difference.square())
        self.mean.add_(share * difference)
        self.count.copy_(total)

    def normalize(self, batch: Tensor) -> Tensor:
        """Return `[..., *shape]` with zero mean and unit variance, clipped to 10."""
        scaled = (batch - self.mean) * (self.variance + EPSILON).rsqrt()
        return scaled.clamp(-CLIP, CLIP)


class RewardScaler(nn.Module):
    """Rewards divided by the running deviation of the discounted return, clipped to 10.

    As SB3's `VecNormalize`: the return is that of each environment so far, and the mean is not
    subtracted. No gradient passes through a reward that is clipped.

    Args:
        num_envs: B.
        gamma: discount factor of the return.
    """

    discounted_return: Tensor

    def __init__(self, num_envs: int, gamma: float) -> None:
        super().__init__()
        self.gamma = gamma
        self.moments = RunningMoments(())
        # Not part of the state: it belongs to the environments, not to what was learned.
        self.register_buffer("discounted_return", torch.zeros(num_envs), persistent=False)

    def forward(self, reward: Tensor, ended: Tensor) -> Tensor:
        """Return rewards `[T, B]` scaled, and take them in; `ended` `[T, B]` bool.

        A gradient passes, with the deviation as a constant.
        """
        self._take_in(reward, ended)
        scaled = reward * (self.moments.variance + EPSILON).rsqrt()
        return scaled.clamp(-CLIP, CLIP)

    @torch.no_grad()
    def _take_in(self, reward: Tensor, ended: Tensor) -> None:
        returns = torch.empty_like(reward)
        for t in range(len(reward)):
            torch.add(reward[t], self.discounted_return, alpha=self.gamma, out=returns[t])
            self.discounted_return.copy_(returns[t].masked_fill(ended[t], 0.0))
        self.moments.update(returns)


class RewardCenter(nn.Module):
    """Rewards less their running mean, for the values of a task that never ends.

    Simple reward centering (Naik et al. 2024, arXiv 2405.09999): discounted values lose the part
    mean / (1 - gamma) that all states share, and at gamma = 1 they are the differential values of
    the average-reward criterion.

    Args:
        rate: weight of a rollout in the mean, in (0, 1]; of the first 1 / rate rollouts the mean
            weighs all alike.
    """

    mean: Tensor
    count: Tensor

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate
        self.register_buffer("mean", torch.zeros(()))
        self.register_buffer("count", torch.zeros(()))

    def forward(self, reward: Tensor) -> Tensor:
        """Return rewards `[T, B]` less the mean, after taking them into it; a gradient passes."""
        with torch.no_grad():  # the mean is a constant
            self.count.add_(1)
            self.mean.lerp_(reward.mean(), (1 / self.count).clamp_min(self.rate))
        return reward - self.mean
