"""Rollouts: what was chosen on what, what it led to, and the values of what follows."""

from typing import Any

import numpy as np
import pytest
import torch
from device_reads import DeviceReads
from gymnasium import spaces

from rl_gumbel import make_vec
from rl_gumbel.algorithms.compilation import _copying, compile_steps
from rl_gumbel.envs.base import State, TorchEnv
from rl_gumbel.rollout import collect, following_values
from rl_gumbel.types import Step


class Counter(TorchEnv):
    """Counts its steps from a multiple of 100; action 1 ends the episode, reward is the count."""

    def __init__(self, num_envs: int, max_episode_steps: int | None = 3, **kwargs: Any) -> None:
        space = spaces.Box(-np.inf, np.inf, (1,), np.float32)
        super().__init__(num_envs, space, spaces.Discrete(2), max_episode_steps, **kwargs)

    def initial(self) -> State:
        return {"count": 100 * self.integers(9)}

    def transition(self, state, action):
        count = state["count"] + 1
        return {"count": count}, count.float(), action.squeeze(-1) == 1

    def observe(self, state):
        return state["count"].float().unsqueeze(-1)

    def legal(self, state):
        # Nobody ends an episode before its second step.
        may_end = state["count"] % 100 > 0
        return torch.stack([torch.ones_like(may_end), may_end], -1).unsqueeze(1)


def script(actions):
    """Return a policy that plays rows of actions `[T, B]`, whatever it sees."""
    rows = iter(torch.tensor(actions))
    return lambda obs, mask: next(rows).unsqueeze(-1)


def test_a_rollout_holds_what_stepping_by_hand_shows():
    actions = torch.randint(2, (10, 4), generator=torch.Generator().manual_seed(0))
    by_hand, env = Counter(4), Counter(4)
    obs = by_hand.reset(seed=1)
    seen, masks, steps = [obs], [by_hand.action_mask], []
    for row in actions:
        steps.append(by_hand.step(row))
        seen.append(steps[-1].obs)
        masks.append(steps[-1].action_mask)
    rollout, last = collect(env, script(actions.tolist()), env.reset(seed=1), 10)
    assert torch.equal(rollout.obs, torch.stack(seen))
    assert torch.equal(last, seen[-1])
    assert torch.equal(rollout.action_mask, torch.stack(masks))
    assert torch.equal(rollout.index, actions.unsqueeze(-1))
    for name in ("reward", "terminated", "truncated", "episode_return", "episode_length"):
        assert torch.equal(getattr(rollout, name), torch.stack([getattr(s, name) for s in steps]))
    assert torch.equal(rollout.ended, torch.stack([s.ended for s in steps]))


@pytest.mark.parametrize("limit", [None, 1, 2, 3, 7, 50])
def test_following_values_are_those_of_the_same_episode(limit):
    """V(s) = s: after every step the state that it led to, also where the next obs is another's."""
    env = Counter(16, limit)
    actions = (torch.rand(20, 16, generator=torch.Generator().manual_seed(0)) < 0.1).long()
    by_hand = Counter(16, limit)
    by_hand.reset(seed=0)
    final = torch.stack([by_hand.step(row).final_obs for row in actions]).squeeze(-1)
    rollout, _ = collect(env, script(actions.tolist()), env.reset(seed=0), 20)
    found = following_values(rollout, rollout.obs.squeeze(-1), rollout.truncated_obs.squeeze(-1))
    alive = ~rollout.terminated  # after termination there is nothing to value
    assert torch.equal(found[alive], final[alive])
    assert bool(rollout.truncated.any()) == (limit is not None and limit <= 20)
    windows = 0 if limit is None else -(-20 // limit)
    assert rollout.truncated_obs.shape == (windows, 16, 1)
    assert rollout.truncated_mask.shape == (windows, 16, 1, 2)


def test_a_rollout_is_given_up_where_the_callback_says_so():
    env = Counter(2)
    calls = []
    stop = lambda step: calls.append(step) or len(calls) < 3  # noqa: E731
    assert collect(env, script([[0, 0]] * 5), env.reset(), 5, stop) is None
    assert len(calls) == 3


def test_collecting_carries_no_gradient_and_never_waits_for_the_device():
    weight = torch.zeros((), requires_grad=True)
    env = Counter(8)
    obs = env.reset(seed=0)

    def act(obs, mask):
        return ((obs * weight).relu() > 0).long() * mask[:, :, 1]

    with DeviceReads() as reads:
        rollout, _ = collect(env, act, obs, 6)
    assert reads.seen == []
    assert not any(
        value.requires_grad for value in vars(rollout).values() if isinstance(value, torch.Tensor)
    )


def test_a_rollout_can_be_collected_on_meta():
    env = Counter(8, device="meta")
    act = lambda obs, mask: torch.zeros(8, 1, dtype=torch.int64, device="meta")  # noqa: E731
    rollout, _ = collect(env, act, env.reset(), 6)
    assert rollout.reward.shape == (6, 8)
    assert rollout.truncated_obs.shape == (2, 8, 1)


# --- compiled steps ---------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of torch, when the compiler is imported
def test_compiled_acting_and_stepping_in_one_call_is_acting_then_stepping():
    def act(obs, mask):
        return (obs[:, 2:3] > 0).long()

    rollouts = []
    for compile in (False, True):
        env = make_vec("CartPole-v1", 4, device="cpu", backend="torch", max_episode_steps=30)
        if compile:
            compile_steps(env)
        obs = env.reset(seed=3)
        first, obs = collect(env, act, obs, 50)
        second, _ = collect(env, act, obs, 20)
        rollouts.append((first, second))
    for plain, compiled in zip(*rollouts, strict=True):
        assert int(plain.ended.sum()) > 0
        torch.testing.assert_close(vars(compiled), vars(plain))


def test_results_of_a_graph_are_copied_before_its_next_replay_writes_over_them():
    buffer = torch.zeros(2)
    step = Step(*[buffer] * 5, None, None, buffer, buffer)
    result = _copying(lambda: (buffer, {"state": buffer}, step))()
    buffer += 1
    assert [float(part.sum()) for part in (result[0], result[1]["state"], result[2].reward)] == [
        0.0,
        0.0,
        0.0,
    ]
    assert result[2].action_mask is None
