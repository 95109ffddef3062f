"""DecQN: its policy, its target and its loss by hand, under masks, and that it learns."""

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from gymnasium import spaces
from stable_baselines3.common.logger import configure
from tiny_batched import Ladder

from rl_gumbel.envs.base import TorchEnv

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))

from decqn import DecQN

FACTORED = spaces.MultiDiscrete([3, 2])


class Match(TorchEnv):
    """A reward for each factor that takes the category which the observation names."""

    def __init__(self, num_envs: int) -> None:
        super().__init__(num_envs, spaces.Box(0, 1, (5,), np.float32), FACTORED, None)

    def initial(self):
        return {"shown": torch.cat([self.integers(3, 1), self.integers(2, 1)], -1)}

    def transition(self, state, action):
        reward = (action == state["shown"]).sum(-1).float()
        return self.initial(), reward, reward > 5

    def observe(self, state):
        return self.layout.flatten(self.layout.index_to_one_hot(state["shown"]))


def build(env, **kwargs) -> DecQN:
    model = DecQN("MlpPolicy", env, seed=0, device="cpu", **{"net_arch": (16,), **kwargs})
    model.set_logger(configure(None, []))
    return model


def test_the_policy_is_greedy_or_uniform_over_what_is_allowed():
    """epsilon / 2 for each of two allowed categories, and 1 - epsilon more for the better."""
    model = build(Match(2), epsilon=0.2)
    obs = torch.rand(4, 5)
    mask = torch.tensor([[True, False, True], [True, True, False]]).expand(4, -1, -1)
    policy = model.policy.distribution(obs, mask)
    utilities = model.policy.online(obs).mean(0)
    for row in range(4):
        first = [0.1, 0.0, 0.1]
        first[0 if utilities[row, 0, 0] > utilities[row, 0, 2] else 2] += 0.8
        second = [0.1, 0.1, 0.0]
        second[int(utilities[row, 1, 1] > utilities[row, 1, 0])] += 0.8
        torch.testing.assert_close(policy.probs[row], torch.tensor([first, second]))
    best = utilities.masked_fill(~mask, -torch.inf).argmax(-1)
    assert torch.equal(policy.mode, best)


@torch.no_grad()
def gather(model, batch):
    """`[E, M]`, by hand."""
    index = model.layout.to_index(batch.actions)
    utilities = model.policy.online(batch.observations)
    rows, factors = torch.arange(len(index)), model.layout.num_factors
    return sum(utilities[:, rows, k, index[:, k]] / factors for k in range(factors))


@pytest.mark.parametrize("env", [Match, Ladder])
def test_target_and_loss_by_hand(env):
    """r + discount mean_k mean_e Q'_ek(s', argmax_i Q_ek(s', i)), over allowed categories."""
    model = build(env(4), gamma=0.9, n_steps=2, reward_scale=0.5).learn(1200, log_interval=None)
    with torch.no_grad():
        for parameter in model.policy.target.parameters():
            parameter.normal_(std=0.5)
    batch = model.replay_buffer.sample(16)
    layout = model.layout
    with torch.no_grad():
        online = model.policy.online(batch.next_observations)
        judge = model.policy.target(batch.next_observations).mean(0)
    expected = torch.zeros(2, 16)
    for critic in range(2):
        for row in range(16):
            total = 0.0
            for k, size in enumerate(layout.sizes):
                open_ = [
                    i
                    for i in range(size)
                    if batch.next_action_masks is None or batch.next_action_masks[row, k, i]
                ]
                best = max(open_, key=lambda i: float(online[critic, row, k, i]))
                total += float(judge[row, k, best]) / layout.num_factors
            goes_on = 1 - float(batch.dones[row])
            expected[critic, row] = 0.5 * float(batch.rewards[row])
            expected[critic, row] += float(batch.discounts[row]) * goes_on * total
    torch.testing.assert_close(model.target_value(batch), expected)
    error = (gather(model, batch) - expected).abs()
    huber = torch.where(error < 1, 0.5 * error.square(), error - 0.5)
    loss = (huber * batch.weights.squeeze(-1)).mean(-1).sum()
    model.replay_buffer.sample = lambda size: batch
    torch.testing.assert_close(model.update(16)["train/critic_loss"], loss)
    stored = model.replay_buffer.store["priority"].flatten()[batch.positions]
    torch.testing.assert_close(stored, (error.mean(0) + 1e-6) ** 0.6)


def test_target_networks_are_copied_at_their_interval():
    model = build(Match(4), target_update_interval=3).learn(1004)
    weights = lambda net: torch.nn.utils.parameters_to_vector(net.parameters())  # noqa: E731
    assert model._n_updates == 1
    model.train(1, 8)
    assert not torch.equal(weights(model.policy.online), weights(model.policy.target))
    model.train(1, 8)
    assert torch.equal(weights(model.policy.online), weights(model.policy.target))


def test_each_factor_gets_its_credit():
    model = build(Match(8), learning_rate=3e-3, gamma=0.0, n_steps=1, batch_size=64).learn(3000)
    env = Match(200)
    obs = env.reset(seed=1)
    right = model.policy.distribution(obs).mode == env.state["shown"]
    assert right.float().mean() > 0.95
