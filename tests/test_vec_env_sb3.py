"""Batched environments as SB3's, and SB3's as batched ones: the numbers of plain Gymnasium."""

from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces
from sb3_contrib import MaskablePPO
from sb3_contrib.common.maskable.evaluation import evaluate_policy as evaluate_masked
from stable_baselines3 import A2C, DQN, PPO
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv, VecNormalize
from tiny_batched import Bits, Ladder, Masked, play_batched, play_plain
from tiny_envs import Tiny, TinyDict

from rl_gumbel.envs.cartpole import CartPole
from rl_gumbel.vec_env import SB3VecEnv, as_batched
from rl_gumbel.vec_env.transfer import pack, unpack

NUM_ENVS = 4


# --- transfers --------------------------------------------------------------------------------


def test_packed_tensors_are_unpacked_as_they_were():
    """What goes to and from a GPU as one copy; odd sizes would misalign what follows them."""
    tensors = [
        torch.tensor([True, False, True]),
        torch.arange(5.0),
        torch.arange(3),
        torch.zeros(0, 4),
        torch.arange(7, dtype=torch.uint8).flip(0),
        torch.arange(6.0, dtype=torch.float64).view(2, 3).T,
        torch.arange(9, dtype=torch.int8).view(3, 3)[:, 1],
    ]
    packed = pack(tensors)
    assert len(packed) == sum(tensor.nbytes for tensor in tensors)
    for before, after in zip(tensors, unpack(packed, tensors), strict=True):
        assert before.dtype == after.dtype
        assert torch.equal(before, after)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_environments_on_the_gpu_give_numpy_the_same_numbers():
    env, reference = SB3VecEnv(Ladder(NUM_ENVS, device="cuda")), Ladder(NUM_ENVS)
    obs = env.reset()
    reference.reset()
    reference.state["rung"] = torch.from_numpy(obs)
    obs, reward, ended, _ = env.step(np.ones(NUM_ENVS, np.int64))
    step = reference.step(torch.ones(NUM_ENVS, dtype=torch.int64))
    assert reward.tolist() == step.reward.tolist()
    assert ended.tolist() == step.ended.tolist()
    assert obs[~ended].tolist() == step.obs.numpy()[~ended].tolist()


# --- SB3VecEnv --------------------------------------------------------------------------------


def test_infos_are_those_of_monitor_and_dummy_vec_env():
    """The same episodes, from injected states: every number that SB3 reads is the same."""
    peer = DummyVecEnv([lambda: Monitor(gym.make("CartPole-v1", max_episode_steps=20))] * NUM_ENVS)
    env = SB3VecEnv(CartPole(NUM_ENVS, 20, dtype=torch.float64))
    peer.reset()
    env.reset()

    def copy_states(rows) -> None:
        for i in rows:
            env.batched.state["motion"][i] = torch.as_tensor(peer.envs[i].unwrapped.state)

    copy_states(range(NUM_ENVS))
    rng = np.random.default_rng(0)
    num_ended, num_truncated = 0, 0
    for _ in range(200):
        action = rng.integers(2, size=NUM_ENVS)
        peer_obs, peer_reward, peer_ended, peer_infos = peer.step(action)
        obs, reward, ended, infos = env.step(action)
        assert (ended == peer_ended).all()
        np.testing.assert_array_equal(reward, peer_reward)
        np.testing.assert_allclose(obs[~ended], peer_obs[~ended], rtol=1e-6)
        for i in np.flatnonzero(ended):
            assert infos[i]["episode"].keys() == {"r", "l", "t"}
            for key in ("r", "l"):
                assert infos[i]["episode"][key] == peer_infos[i]["episode"][key]
                assert type(infos[i]["episode"][key]) is type(peer_infos[i]["episode"][key])
            assert infos[i]["TimeLimit.truncated"] is bool(peer_infos[i]["TimeLimit.truncated"])
            final = peer_infos[i]["terminal_observation"]
            np.testing.assert_allclose(infos[i]["terminal_observation"], final, rtol=1e-6)
            num_ended += 1
            num_truncated += infos[i]["TimeLimit.truncated"]
        copy_states(np.flatnonzero(ended))
    assert 0 < num_truncated < num_ended


@pytest.mark.parametrize(("algorithm", "kwargs"), [
    (PPO, {"n_steps": 32, "batch_size": 32, "n_epochs": 1}),
    (A2C, {}),
    (DQN, {"learning_starts": 50, "buffer_size": 500}),
])  # fmt: skip
def test_stock_algorithms_train_and_log_returns(algorithm, kwargs):
    model = algorithm("MlpPolicy", SB3VecEnv(CartPole(NUM_ENVS)), device="cpu", **kwargs)
    model.learn(300)
    lengths = [info["l"] for info in model.ep_info_buffer]
    assert lengths == [info["r"] for info in model.ep_info_buffer]
    assert 8 < np.mean(lengths) < 100
    mean, _ = evaluate_policy(model, SB3VecEnv(CartPole(2)), n_eval_episodes=3)
    assert mean >= 8


def test_maskable_ppo_trains_and_never_breaks_a_mask():
    env = SB3VecEnv(Ladder(NUM_ENVS))
    model = MaskablePPO("MlpPolicy", env, n_steps=32, batch_size=64, n_epochs=4, gamma=0.9)
    assert evaluate_masked(model, SB3VecEnv(Ladder(2)), n_eval_episodes=4)[0] >= 0
    model.learn(1000)
    buffer = model.rollout_buffer
    rungs = buffer.observations.ravel()
    assert (buffer.actions.ravel()[rungs == 0] == 1).all()
    assert evaluate_masked(model, env, n_eval_episodes=8)[0] == 1


def test_masks_are_flat_and_belong_to_the_observation():
    env = SB3VecEnv(Ladder(NUM_ENVS))
    with pytest.raises(RuntimeError, match="before its first reset"):
        env.env_method("action_masks")
    obs = env.reset()
    for _ in range(20):
        masks = np.stack(env.env_method("action_masks"))
        np.testing.assert_array_equal(masks, np.stack([obs > 0, obs >= 0], 1))
        obs, *_ = env.step(np.ones(NUM_ENVS, np.int64))
    assert env.has_attr("action_masks")
    assert not SB3VecEnv(CartPole(2)).has_attr("action_masks")
    assert len(env.env_method("action_masks", indices=[0, 2])) == 2


def test_seed_repeats_the_episodes():
    def play(env) -> list:
        env.seed(3)
        return [env.reset().tolist(), *(env.step(np.ones(2, int))[0].tolist() for _ in range(30))]

    env = SB3VecEnv(CartPole(2))
    first = play(env)
    assert play(env) == first == play(SB3VecEnv(CartPole(2)))
    assert env.reset().tolist() != first[0]  # a seed holds for one reset


def test_observations_do_not_share_memory_with_the_state():
    env = SB3VecEnv(Ladder(NUM_ENVS))
    obs = env.reset()
    before = env.batched.state["rung"].clone()
    obs += 1
    assert torch.equal(env.batched.state["rung"], before)


def test_gradient_environment_steps_without_gradient():
    env = SB3VecEnv(CartPole(NUM_ENVS, gradients=True))
    env.reset()
    env.step(np.zeros(NUM_ENVS, int))
    assert not env.batched.state["motion"].requires_grad


def test_multi_binary_actions_may_be_floats():
    """SB3's PPO sends the bits of a MultiBinary as floats."""
    env = SB3VecEnv(Bits(3))
    env.reset()
    bits = np.array([[1, 0], [1, 1], [0, 0]], np.float32)
    assert env.step(bits)[1].tolist() == [1, 2, 0]


@pytest.mark.parametrize("action", [2, -1])
def test_action_outside_the_space_is_named(action):
    env = SB3VecEnv(CartPole(2))
    env.reset()
    with pytest.raises(ValueError, match=rf"action {action} of environment 1 is outside Discrete"):
        env.step(np.array([0, action]))


def test_frames_are_tiled():
    env = SB3VecEnv(Ladder(NUM_ENVS))
    env.reset()
    assert env.render_mode == "rgb_array"
    assert env.render("rgb_array").shape == (4, 6, 3)
    assert [int(frame[0, 0, 0]) for frame in env.get_images()] == env.batched.state["rung"].tolist()
    assert SB3VecEnv(Bits(1)).render_mode is None


def test_attributes_and_methods_are_those_of_the_batched_environment():
    env = SB3VecEnv(CartPole(3))
    assert env.get_attr("max_episode_steps", [0, 1]) == [500, 500]
    env.set_attr("max_episode_steps", 7)
    assert env.batched.max_episode_steps == 7
    assert env.env_is_wrapped(Monitor) == [True] * 3
    assert env.env_is_wrapped(gym.wrappers.TimeLimit) == [False] * 3
    for call in (
        lambda: env.set_attr("max_steps", 7),
        lambda: env.env_method("fly"),
        lambda: env.env_method("action_masks"),
    ):
        with pytest.raises(AttributeError):
            call()
    with pytest.raises(ValueError, match="only be set for all"):
        env.set_attr("max_episode_steps", 7, indices=0)
    with pytest.raises(ValueError, match="takes no options"):
        env.set_options({"low": 0})


# --- as_batched -------------------------------------------------------------------------------


def make_dummy(env_id: str, vec_env_cls=DummyVecEnv, **env_kwargs: Any):
    return make_vec_env(env_id, NUM_ENVS, vec_env_cls=vec_env_cls, env_kwargs=env_kwargs)


@pytest.mark.parametrize(("env_id", "vec_env_cls"), [
    ("CartPole-v1", DummyVecEnv), ("Taxi-v4", DummyVecEnv), ("Taxi-v4", SubprocVecEnv),
])  # fmt: skip
def test_adapter_gives_the_transitions_of_the_plain_environment(env_id, vec_env_cls):
    kwargs = {"max_episode_steps": 15}
    env = as_batched(make_dummy(env_id, vec_env_cls, **kwargs), "cpu")
    actions = np.random.default_rng(0).integers(env.action_space.n, size=(60, NUM_ENVS))
    logs = play_batched(env, 5, actions)
    for i, log in enumerate(logs):
        assert log == play_plain(env_id, 5 + i, actions[:, i], **kwargs)
    rows = [row for log in logs for row in log]
    assert any(row["truncated"] for row in rows)
    assert env.max_episode_steps == 15
    assert env.backend == "stable-baselines3"
    env.close()


def test_adapter_takes_one_hots():
    env = as_batched(
        DummyVecEnv([lambda: Tiny(spaces.MultiDiscrete([2, 3], start=[1, -1]))]), "cpu"
    )
    env.reset(0)
    one_hot = env.layout.index_to_one_hot(torch.tensor([[0, 2]]))
    assert env.step(one_hot).reward.tolist() == [1]  # the first factor starts at 1


def test_adapter_under_vec_normalize_keeps_the_raw_return():
    env = as_batched(VecNormalize(make_dummy("CartPole-v1")), "cpu")
    env.reset(0)
    steps = [env.step(torch.ones(NUM_ENVS, dtype=torch.int64)) for _ in range(12)]
    ended = torch.stack([step.ended for step in steps])
    returns = torch.stack([step.episode_return for step in steps])
    lengths = torch.stack([step.episode_length for step in steps])
    assert ended.any()
    assert torch.equal(returns[ended], lengths[ended].float())  # CartPole's reward is 1
    assert not torch.equal(returns[~ended], lengths[~ended].float())
    assert all(step.obs.abs().max() <= 10 for step in steps)


def test_adapter_keeps_dict_observations():
    env = as_batched(DummyVecEnv([lambda: TinyDict(spaces.Discrete(2))] * 2), "cpu")
    assert env.reset(0)["x"].shape == (2, 3)
    steps = [env.step(torch.tensor([0, 1])) for _ in range(10)]
    assert steps[-1].truncated.tolist() == [True, True]
    assert not torch.equal(steps[-1].final_obs["x"], steps[-1].obs["x"])
    assert torch.equal(steps[-2].final_obs["x"], steps[-2].obs["x"])
    assert steps[-1].episode_return.tolist() == [0, 10]


def test_adapter_asks_the_mask_method():
    env = as_batched(DummyVecEnv([lambda: Masked(spaces.MultiDiscrete([2, 3]))]), "cpu")
    assert env.masked
    env.reset()
    first = [[True, True, False], [True, True, False]]
    assert env.action_mask.tolist() == [first]
    step = env.step(torch.tensor([[0, 0]]))
    assert step.action_mask[0, 0].tolist() == [False, True, False]
    assert torch.equal(step.action_mask, step.final_action_mask)
    for _ in range(9):
        step = env.step(torch.tensor([[0, 0]]))
    assert step.truncated.item()
    assert step.action_mask.tolist() == [first]
    assert torch.equal(step.final_action_mask[0], env.layout.valid)  # not known: all that exist


def test_adapter_renders_what_it_was_made_to():
    env = as_batched(make_dummy("CartPole-v1", render_mode="rgb_array"), "cpu")
    env.reset()
    assert env.render(1).shape == (400, 600, 3)
    with pytest.raises(NotImplementedError, match="no picture"):
        as_batched(DummyVecEnv([lambda: Tiny(spaces.Discrete(2))]), "cpu").render()


def test_own_environments_are_unpacked():
    batched = CartPole(2)
    assert as_batched(SB3VecEnv(batched), "cpu") is batched
    with pytest.raises(ValueError, match="environments are on cpu and the algorithm on cuda"):
        as_batched(SB3VecEnv(batched), "cuda")


def test_unsupported_spaces_are_named():
    with pytest.raises(TypeError, match="observation space Tuple"):
        as_batched(make_dummy("Blackjack-v1"), "cpu")
    with pytest.raises(TypeError, match="action space Box"):
        as_batched(make_dummy("Pendulum-v1"), "cpu")


# --- truncations ------------------------------------------------------------------------------


@pytest.mark.parametrize("limit", [None, 500, 10, 1])
def test_no_window_of_the_truncation_interval_holds_two_truncations(limit):
    env = Bits(1)
    env.max_episode_steps = env.truncation_interval = limit
    env.reset()
    env.episode_length += (limit or 1) - 1  # the next step truncates: the worst case
    bits = torch.zeros(1, 2, dtype=torch.int8)
    at = [t for t in range(1000) if bool(env.step(bits).truncated)]
    assert at == ([] if limit is None else list(range(0, 1000, limit)))


def test_numpy_environments_may_truncate_at_every_step():
    """An environment inside may cut an episode itself, whatever limit it was registered with."""
    assert as_batched(make_dummy("CartPole-v1"), "cpu").truncation_interval == 1
