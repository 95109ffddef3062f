"""DeviceReplayBuffer: what goes in comes out, in the dtype of the space; n-step returns by hand."""

import math
import os
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces
from stable_baselines3.common.buffers import NStepReplayBuffer
from torch import Tensor

from rl_gumbel.buffers import DeviceReplayBuffer, _host_memory
from rl_gumbel.types import Step

PLANE = spaces.Box(-1, 1, (3,), np.float32)
FACTORED = spaces.MultiDiscrete([3, 2], start=[-1, 4])
OBSERVATIONS = {
    "box": PLANE,
    "image": spaces.Box(0, 255, (2, 2, 3), np.uint8),
    "bits": spaces.MultiBinary(4),
    "number": spaces.Discrete(7),
    "dict": spaces.Dict({"x": PLANE, "n": spaces.Discrete(3)}),
}
ACTIONS = {
    "discrete": spaces.Discrete(3, start=5),
    "multi_discrete": FACTORED,
    "multi_binary": spaces.MultiBinary(3),
}


def stack(values: list[Any]) -> Any:
    if isinstance(values[0], dict):
        return {key: stack([value[key] for value in values]) for key in values[0]}
    return torch.as_tensor(np.stack(values))


def make_step(final_obs: Any, reward: Any, terminated: Any, truncated: Any, mask: Any) -> Step:
    batch = len(reward)
    return Step(
        obs=final_obs,
        reward=torch.tensor(reward, dtype=torch.float32),
        terminated=torch.tensor(terminated),
        truncated=torch.tensor(truncated),
        final_obs=final_obs,
        action_mask=mask,
        final_action_mask=mask,
        episode_return=torch.zeros(batch),
        episode_length=torch.ones(batch, dtype=torch.int64),
    )


def assert_equal(left: Any, right: Any) -> None:
    torch.testing.assert_close(left, right, rtol=0, atol=0)


# --- what is stored ---------------------------------------------------------------------------


@pytest.mark.parametrize("observation_space", OBSERVATIONS.values(), ids=OBSERVATIONS)
@pytest.mark.parametrize("action_space", ACTIONS.values(), ids=ACTIONS)
def test_what_was_added_comes_back_in_its_dtype(observation_space, action_space):
    """Five steps of two environments into room for three: the last three are there."""
    for space in (observation_space, action_space):
        space.seed(0)
    generator = torch.Generator().manual_seed(0)
    buffer = DeviceReplayBuffer(6, observation_space, action_space, "cpu", 2, has_masks=True)
    factors, categories = buffer.layout.num_factors, buffer.layout.num_categories
    rows = []
    for number in range(5):
        obs, next_obs = (stack([observation_space.sample() for _ in range(2)]) for _ in range(2))
        action = stack([action_space.sample() for _ in range(2)])
        mask, next_mask = torch.rand(2, 2, factors, categories, generator=generator) < 0.5
        step = make_step(next_obs, [number, -number], [False, True], [True, False], next_mask)
        buffer.add(obs, action, step, mask)
        rows.append((obs, action, step, mask))
    assert (buffer.size(), buffer.full, buffer.pos) == (3, True, 2)
    # Flat positions are row * B + environment; the rows hold steps 3, 4 and 2.
    batch = buffer._get_samples(torch.arange(6))
    kept = [rows[3], rows[4], rows[2]]
    join = torch.utils._pytree.tree_map
    obs, action, step, mask = (list(part) for part in zip(*kept, strict=True))
    assert_equal(batch.observations, join(lambda *parts: torch.cat(parts), *obs))
    assert_equal(batch.actions, torch.cat(action))
    final = [each.final_obs for each in step]
    assert_equal(batch.next_observations, join(lambda *parts: torch.cat(parts), *final))
    assert_equal(batch.rewards, torch.tensor([[3.0], [-3.0], [4.0], [-4.0], [2.0], [-2.0]]))
    assert_equal(batch.dones, torch.tensor([[0.0], [1.0]] * 3))
    assert batch.discounts is None
    assert_equal(batch.action_masks, torch.cat(mask))
    assert_equal(batch.next_action_masks, torch.cat([each.final_action_mask for each in step]))


def test_without_masks_there_are_none():
    buffer = DeviceReplayBuffer(4, PLANE, FACTORED, "cpu")
    buffer.add(
        torch.zeros(1, 3),
        torch.tensor([[0, 4]]),
        make_step(torch.zeros(1, 3), [0], [False], [False], None),
    )
    batch = buffer.sample(3)
    assert batch.action_masks is None
    assert batch.next_action_masks is None


def fill(n_steps: int, ends: list[tuple[bool, bool]], rows: int = 8) -> DeviceReplayBuffer:
    """One environment whose observation and reward are the number of the step, from 1."""
    space = spaces.Box(0, 100, (1,), np.float32)
    buffer = DeviceReplayBuffer(rows, space, spaces.Discrete(2), "cpu", n_steps=n_steps, gamma=0.5)
    for number, (terminated, truncated) in enumerate(ends, start=1):
        obs, final = torch.tensor([[float(number)]]), torch.tensor([[number + 0.5]])
        step = make_step(final, [float(number)], [terminated], [truncated], None)
        buffer.add(obs, torch.tensor([number % 2]), step)
    return buffer


GOES_ON, TERMINATED, TRUNCATED = (False, False), (True, False), (False, True)


def test_three_step_returns_by_hand():
    """Rewards 1 to 7; step 4 terminates; step 6 is truncated; gamma is 1/2."""
    ends = [GOES_ON] * 3 + [TERMINATED, GOES_ON, TRUNCATED, GOES_ON]
    batch = fill(3, ends)._get_samples(torch.arange(7))
    expected = [
        # return, bootstrapping observation, its discount, terminated
        (1 + 2 / 2 + 3 / 4, 3.5, 1 / 8, 0),
        (2 + 3 / 2 + 4 / 4, 4.5, 1 / 8, 1),
        (3 + 4 / 2, 4.5, 1 / 4, 1),
        (4, 4.5, 1 / 2, 1),
        (5 + 6 / 2, 6.5, 1 / 4, 0),  # truncated: what follows has a value
        (6, 6.5, 1 / 2, 0),
        (7, 7.5, 1 / 2, 0),  # nothing newer is stored
    ]
    columns = [torch.tensor(column, dtype=torch.float32) for column in zip(*expected, strict=True)]
    got = [batch.rewards, batch.next_observations, batch.discounts, batch.dones]
    for column, value in zip(columns, got, strict=True):
        assert_equal(value.squeeze(-1), column)
    assert_equal(batch.observations.squeeze(-1), torch.arange(1.0, 8.0))
    assert_equal(batch.actions, torch.tensor([1, 0, 1, 0, 1, 0, 1]))


def test_returns_pass_the_end_of_the_ring_and_stop_at_its_newest_row():
    """Six steps into four rows: they hold steps 5, 6, 3, 4."""
    batch = fill(3, [GOES_ON] * 6, rows=4)._get_samples(torch.arange(4))
    assert_equal(batch.observations.squeeze(-1), torch.tensor([5.0, 6.0, 3.0, 4.0]))
    rewards = torch.tensor([5 + 6 / 2, 6.0, 3 + 4 / 2 + 5 / 4, 4 + 5 / 2 + 6 / 4])
    assert_equal(batch.rewards.squeeze(-1), rewards)
    assert_equal(batch.next_observations.squeeze(-1), torch.tensor([6.5, 6.5, 5.5, 6.5]))
    assert_equal(batch.discounts.squeeze(-1), torch.tensor([1 / 4, 1 / 2, 1 / 8, 1 / 8]))


@pytest.mark.parametrize("count", [5, 12, 31], ids=["partly full", "full", "overwritten"])
def test_n_step_returns_are_those_of_sb3(count, monkeypatch):
    """Its NStepReplayBuffer is the oracle: three environments, ends by chance."""
    rng = np.random.default_rng(count)
    sizes = (36, PLANE, FACTORED)
    ours = DeviceReplayBuffer(*sizes, "cpu", n_envs=3, n_steps=4, gamma=0.9)
    theirs = NStepReplayBuffer(*sizes, "cpu", n_envs=3, n_steps=4, gamma=0.9)
    for _ in range(count):
        obs, final = rng.normal(size=(2, 3, 3)).astype(np.float32)
        action = np.stack([FACTORED.sample() for _ in range(3)])
        reward, kind = rng.normal(size=3), rng.integers(0, 6, 3)
        terminated, truncated = kind == 0, kind == 1
        step = make_step(torch.tensor(final), reward, terminated, truncated, None)
        ours.add(torch.tensor(obs), torch.tensor(action), step)
        infos = [{"TimeLimit.truncated": bool(cut)} for cut in truncated]
        theirs.add(obs, final, action, reward, terminated | truncated, infos)
    rows = np.repeat(np.arange(ours.size()), 3)
    columns = np.tile(np.arange(3), ours.size())
    # It draws the environment of each row; here each row of each environment once.
    monkeypatch.setattr(np.random, "randint", lambda *args, **kwargs: columns)
    expected = theirs._get_samples(rows)
    got = ours._get_samples(torch.arange(3 * ours.size()))
    for name in ("observations", "actions", "next_observations", "dones", "rewards", "discounts"):
        torch.testing.assert_close(getattr(got, name), getattr(expected, name))


# --- sampling ---------------------------------------------------------------------------------


def numbered(rows: int, added: int) -> DeviceReplayBuffer:
    buffer = DeviceReplayBuffer(2 * rows, PLANE, FACTORED, "cpu", 2)
    for number in range(added):
        step = make_step(
            torch.zeros(2, 3), [2 * number, 2 * number + 1], [False] * 2, [False] * 2, None
        )
        buffer.add(torch.zeros(2, 3), torch.tensor([[0, 4], [0, 4]]), step)
    return buffer


@pytest.mark.parametrize("added", [3, 5, 7], ids=["partly full", "full", "overwritten"])
def test_samples_are_uniform_over_what_is_stored(added):
    """Each transition within five sigma of its share, and nothing that was never added."""
    torch.manual_seed(0)
    rewards = numbered(5, added).sample(20_000).rewards.long().flatten()
    counts = torch.bincount(rewards, minlength=2 * added)
    stored = torch.arange(max(0, added - 5) * 2, 2 * added)
    assert counts.sum() == counts[stored].sum()
    share = 1 / len(stored)
    spread = math.sqrt(20_000 * share * (1 - share))
    assert (counts[stored] - 20_000 * share).abs().max() < 5 * spread


def test_the_generator_of_torch_repeats_a_sample():
    buffer = numbered(5, 5)
    draws = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        draws.append(buffer.sample(50).rewards)
    assert torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[0], draws[2])


def test_reset_forgets():
    buffer = numbered(5, 7)
    buffer.reset()
    assert buffer.size() == 0
    with pytest.raises(ValueError, match="the replay buffer is empty"):
        buffer.sample(1)


# --- memory -----------------------------------------------------------------------------------


def test_memory_is_accounted_for_exactly():
    """Per transition: observations 2 * 12, index 2, reward 4, two flags 2, two masks 2 * 6."""
    buffer = DeviceReplayBuffer(1001, PLANE, FACTORED, "cpu", 10, has_masks=True)
    assert buffer.nbytes == 1000 * (24 + 2 + 4 + 2 + 12)
    image = spaces.Box(0, 1, (10, 10, 4), np.bool_)
    assert DeviceReplayBuffer(100, image, spaces.Discrete(6), "cpu").nbytes == 100 * 807


def test_more_than_the_machine_has_is_refused_with_the_sizes():
    image = spaces.Box(0, 255, (4, 84, 84), np.uint8)
    message = (
        r"10000000000 transitions needs 564\d+\.\d+ GB \(obs 282240\.00, next_obs 282240\.00, index"
    )
    with pytest.raises(MemoryError, match=message):
        DeviceReplayBuffer(10**10, image, FACTORED, "cpu")


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({}, 3_000 * 1024),
        ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/memory.max": "max\n"}, 3_000 * 1024),
        ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/memory.max": "1000\n"}, 1000),
        ({"proc/self/cgroup": "0::/a/b\n", "sys/fs/cgroup/a/b/memory.max": "1000\n"}, 1000),
        ({"proc/self/cgroup": "0::/a/b\n", "sys/fs/cgroup/a/memory.max": "1000\n"}, 1000),
        ({"proc/self/cgroup": "0::/a\n", "sys/fs/cgroup/b/memory.max": "1000\n"}, 3_000 * 1024),
        (
            {
                "proc/self/cgroup": "5:memory:/docker/a\n4:cpu:/\n0::/\n",
                "sys/fs/cgroup/memory/memory.limit_in_bytes": "1000\n",
            },
            1000,
        ),
        (
            {
                "proc/self/cgroup": "5:memory:/a\n",
                "sys/fs/cgroup/memory/a/memory.limit_in_bytes": "9223372036854771712\n",
            },
            3_000 * 1024,
        ),
    ],
    ids=["no groups", "2, none", "2, top", "2, own", "2, above", "2, other", "1, top", "1, none"],
)
def test_memory_is_what_is_available_or_a_limit_of_cgroups(files, expected, tmp_path):
    meminfo = "MemTotal:  9000 kB\nMemFree:  1 kB\nMemAvailable:  3000 kB\n"
    for name, text in ({"proc/meminfo": meminfo} | files).items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    assert _host_memory(tmp_path) == expected


def test_the_memory_of_this_machine_is_all_that_it_has_at_most():
    assert 0 < _host_memory(Path("/")) <= os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def test_many_categories_need_a_wider_index():
    buffer = DeviceReplayBuffer(2, PLANE, spaces.Discrete(300), "cpu")
    step = make_step(torch.zeros(1, 3), [0.0], [False], [False], None)
    buffer.add(torch.zeros(1, 3), torch.tensor([299]), step)
    assert buffer._get_samples(torch.tensor([0])).actions.item() == 299


# --- files and devices ------------------------------------------------------------------------


def test_a_pickle_holds_all_of_it():
    buffer = numbered(5, 7)
    copy = pickle.loads(pickle.dumps(buffer))
    assert (copy.pos, copy.full, copy.size()) == (buffer.pos, buffer.full, buffer.size())
    assert copy.nbytes == buffer.nbytes
    copy.device = "cpu"
    everything = torch.arange(10)
    assert_equal(copy._get_samples(everything)._asdict(), buffer._get_samples(everything)._asdict())


def test_the_tensors_follow_the_device():
    buffer = numbered(5, 5)
    buffer.device = "meta"
    assert all(tensor.is_meta for tensor in buffer.store.values())
    assert buffer.sample(4).observations.is_meta


@pytest.mark.parametrize("n_steps", [1, 3])
def test_all_of_it_runs_on_meta(n_steps):
    """Where a read of a value or a tensor of another device raises."""
    buffer = DeviceReplayBuffer(6, PLANE, FACTORED, "meta", 2, n_steps=n_steps, has_masks=True)

    def meta(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.empty(*shape, dtype=dtype, device="meta")

    flag, mask = meta(2, dtype=torch.bool), meta(2, 2, 3, dtype=torch.bool)
    length = meta(2, dtype=torch.int64)
    step = Step(meta(2, 3), meta(2), flag, flag, meta(2, 3), mask, mask, meta(2), length)
    for _ in range(4):
        buffer.add(meta(2, 3), meta(2, 2, dtype=torch.int64), step, mask)
    assert buffer.sample(5).next_action_masks.shape == (5, 2, 3)


# --- refused ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"buffer_size": 1, "n_envs": 2}, "buffer_size 1 of DeviceReplayBuffer must be >= 2"),
        ({"n_steps": 0}, "n_steps 0 of DeviceReplayBuffer must be >= 1"),
        ({"gamma": 1.5}, r"gamma 1\.5 of DeviceReplayBuffer must be in \[0, 1\]"),
        ({"optimize_memory_usage": True}, "optimize_memory_usage True is not supported"),
    ],
    ids=str,
)
def test_settings_out_of_range_are_refused(kwargs, message):
    settings = {"buffer_size": 4, "device": "cpu"} | kwargs
    with pytest.raises(ValueError, match=message):
        DeviceReplayBuffer(observation_space=PLANE, action_space=FACTORED, **settings)


def test_a_normaliser_is_refused():
    with pytest.raises(ValueError, match="DeviceReplayBuffer does not normalise"):
        numbered(5, 5).sample(2, env=object())


# --- priorities -------------------------------------------------------------------------------


def prioritised(errors: list[float], exponent: float = 1.0, rows: int = 4) -> DeviceReplayBuffer:
    """One environment whose reward is the number of the step; each step has its error."""
    buffer = DeviceReplayBuffer(rows, PLANE, FACTORED, "cpu", priority_exponent=exponent)
    for number in range(len(errors)):
        step = make_step(torch.zeros(1, 3), [float(number)], [False], [False], None)
        buffer.add(torch.zeros(1, 3), torch.tensor([[0, 4]]), step)
    buffer.update_priorities(torch.arange(len(errors)), torch.tensor(errors))
    return buffer


@pytest.mark.parametrize("exponent", [1.0, 0.5])
def test_samples_are_in_proportion_to_the_errors(exponent):
    """Errors 1, 4, 0, 9; to the power of one half 1, 2, 0, 3. Within five sigma."""
    torch.manual_seed(0)
    batch = prioritised([1.0, 4.0, 0.0, 9.0], exponent).sample(20_000)
    powers = torch.tensor([1.0, 4.0, 0.0, 9.0]) ** exponent
    share = powers / powers.sum()
    counts = torch.bincount(batch.rewards.long().flatten(), minlength=4)
    spread = (20_000 * share * (1 - share)).sqrt()
    assert ((counts - 20_000 * share).abs() < 5 * spread + 10).all()
    assert torch.equal(batch.positions, batch.rewards.long().flatten())


def test_importance_weights_by_hand():
    """(N P)^-beta: with P = 1/10, 4/10, 5/10 of N = 3, over the greatest, that of the first."""
    buffer = prioritised([1.0, 4.0, 5.0])
    buffer.importance_exponent = 0.5
    torch.manual_seed(0)
    batch = buffer.sample(200)
    expected = torch.tensor([1.0, 4.0**-0.5, 5.0**-0.5])
    torch.testing.assert_close(batch.weights.squeeze(-1), expected[batch.positions])
    assert set(batch.positions.tolist()) == {0, 1, 2}


def test_a_new_transition_has_the_greatest_priority_there_is():
    buffer = DeviceReplayBuffer(6, PLANE, FACTORED, "cpu", 2, priority_exponent=0.5)
    step = make_step(torch.zeros(2, 3), [0.0, 0.0], [False] * 2, [False] * 2, None)
    arguments = (torch.zeros(2, 3), torch.tensor([[0, 4], [0, 4]]), step)
    buffer.add(*arguments)
    assert buffer.store["priority"][0].tolist() == [1, 1]  # there was none
    buffer.update_priorities(torch.tensor([0, 1]), torch.tensor([4.0, 16.0]))
    buffer.add(*arguments)
    torch.testing.assert_close(buffer.store["priority"][:2], torch.tensor([[2.0, 4.0], [4.0, 4.0]]))


def test_nothing_that_was_never_stored_is_drawn():
    """Two of eight rows, and after a reset one."""
    buffer = prioritised([1.0, 1.0], rows=8)
    assert set(buffer.sample(500).positions.tolist()) == {0, 1}
    buffer.reset()
    step = make_step(torch.zeros(1, 3), [7.0], [False], [False], None)
    buffer.add(torch.zeros(1, 3), torch.tensor([[0, 4]]), step)
    assert set(buffer.sample(500).rewards.flatten().tolist()) == {7.0}


def test_small_priorities_count_beside_a_large_one():
    """In float32 sums above 2^26 are multiples of 8: one in eight of the others would be drawn."""
    buffer = DeviceReplayBuffer(1 + 2**20, PLANE, FACTORED, "cpu", priority_exponent=1.0)
    buffer.store["priority"].fill_(1.0)
    buffer.store["priority"][0] = 2.0**26
    buffer.full = True
    torch.manual_seed(0)
    small = buffer.sample(20_000).positions
    small = small[small > 0]  # a share of 1/65
    assert len(small) > 200
    counts = torch.bincount(small % 8, minlength=8)
    assert (counts > 0.5 * counts.sum() / 8).all()


def test_priorities_are_part_of_the_memory_and_of_a_pickle():
    sizes = (1001, PLANE, FACTORED, "cpu", 10)
    plain = DeviceReplayBuffer(*sizes)
    buffer = DeviceReplayBuffer(*sizes, priority_exponent=0.6)
    assert buffer.nbytes == plain.nbytes + 1000 * 4
    copy = pickle.loads(pickle.dumps(prioritised([1.0, 4.0, 9.0])))
    torch.testing.assert_close(copy.store["priority"].flatten()[:3], torch.tensor([1.0, 4.0, 9.0]))


def test_uniform_samples_have_no_weights():
    batch = numbered(5, 5).sample(3)
    assert batch.weights is None
    assert batch.positions is None


def test_a_priority_exponent_out_of_range_is_refused():
    with pytest.raises(ValueError, match=r"priority_exponent 1\.5 of DeviceReplayBuffer must be"):
        DeviceReplayBuffer(4, PLANE, FACTORED, "cpu", priority_exponent=1.5)
