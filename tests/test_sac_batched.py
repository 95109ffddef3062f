"""GumbelSAC on batched environments: what it stores, its masks, and no host read inside."""

import inspect
import math
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from device_reads import DeviceReads
from gymnasium import spaces
from stable_baselines3.common.buffers import ReplayBuffer
from stable_baselines3.common.callbacks import (
    BaseCallback,
    CheckpointCallback,
    StopTrainingOnMaxEpisodes,
)
from stable_baselines3.common.logger import configure
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize
from tiny_envs import Tiny, TinyDict
from torch import Tensor

from rl_gumbel import GumbelSAC, Schedule, load_model, save_model
from rl_gumbel.algorithms import compilation, sac_updates
from rl_gumbel.algorithms.objective import ACTOR_GRADIENTS
from rl_gumbel.algorithms.off_policy import EPISODES_INTERVAL
from rl_gumbel.buffers import DeviceReplayBuffer
from rl_gumbel.callbacks import evaluate_model
from rl_gumbel.envs.base import State, TorchEnv
from rl_gumbel.envs.cartpole import CartPole
from rl_gumbel.logger import TAGS
from rl_gumbel.networks import CRITICS
from rl_gumbel.vec_env import SB3VecEnv, as_batched

FACTORED = spaces.MultiDiscrete([3, 2], start=[-1, 4])
SMALL = {"net_arch": [16]}
EVERY_CRITIC = pytest.mark.parametrize("critic", list(CRITICS))
EVERY_GRADIENT = pytest.mark.parametrize("actor_gradient", ACTOR_GRADIENTS)


class Gates(TorchEnv):
    """Random observations; each forbids some actions; ends by chance, or after five steps."""

    def __init__(self, num_envs: int, **kwargs: Any) -> None:
        space = spaces.Box(-1, 1, (3,), np.float32)
        super().__init__(num_envs, space, FACTORED, 5, **kwargs)

    def initial(self) -> State:
        return {"x": 2 * self.uniform(3) - 1}

    def transition(self, state, action):
        reward = state["x"][:, 0] + self.choose(action, self.constant((0.0, 1.0, 2.0)))[:, 0]
        following = self.initial()
        return following, reward, following["x"][:, 1] > 0.6

    def observe(self, state):
        return state["x"]

    def legal(self, state):
        return gates(state["x"])


def gates(obs: Tensor) -> Tensor:
    """Which of 3 and 2 categories are open: at least one of each, the padding never."""
    x, y, z = obs.unbind(-1)
    always, never = torch.ones_like(x, dtype=torch.bool), torch.zeros_like(x, dtype=torch.bool)
    first = torch.stack([x > 0, always, (y > 0) & (x > -0.5)], -1)
    second = torch.stack([z > -0.3, z < 0.3, never], -1)
    return torch.stack([first, second], 1)


class Match(TorchEnv):
    """`ProbeFactors` in torch: the observation names a category for each factor, in one-hots."""

    def __init__(self, num_envs: int, **kwargs: Any) -> None:
        space = spaces.Box(0, 1, (5,), np.float32)
        super().__init__(num_envs, space, FACTORED, None, **kwargs)

    def initial(self) -> State:
        return {"shown": torch.cat([self.integers(3, 1), self.integers(2, 1)], -1)}

    def transition(self, state, action):
        reward = (action == state["shown"]).sum(-1).float()
        return state, reward, torch.ones_like(reward, dtype=torch.bool)

    def observe(self, state):
        return self.layout.flatten(self.layout.index_to_one_hot(state["shown"]))


def build(env: Any = None, policy: str = "MlpPolicy", **kwargs: Any) -> GumbelSAC:
    settings = {
        "learning_starts": 40,
        "buffer_size": 400,
        "batch_size": 16,
        "policy_kwargs": SMALL,
        "cosine_interval": 0,
        "seed": 0,
        "device": "cpu",
    }
    return GumbelSAC(policy, Gates(4) if env is None else env, **(settings | kwargs))


def filled(env: Any = None, **kwargs: Any) -> GumbelSAC:
    """A model after its warm-up, with a logger."""
    model = build(env, **kwargs)
    model.set_logger(configure(None, []))
    return model.learn(40, log_interval=None)


def weights(model: GumbelSAC) -> dict[str, Tensor]:
    state = {name: value.clone() for name, value in model.policy.state_dict().items()}
    return {**state, "log_ent_coef": model.log_ent_coef.detach().clone()}


def everything(model: GumbelSAC) -> Any:
    """All that is stored, in the order of steps, environment by environment."""
    count = model.replay_buffer.size() * model.n_envs
    return model.replay_buffer._get_samples(torch.arange(count))


def replayed(model: GumbelSAC, actions: Tensor, seed: int) -> list[Any]:
    """What a second copy of the environment shows for the same actions: (obs, mask, step)."""
    env = Gates(model.n_envs)
    env.reset(seed)
    obs, rows = env.reset(), []  # twice, as SB3's `learn` and ours
    for action in actions:
        mask = env.action_mask
        step = env.step(action)
        rows.append((obs, mask, step))
        obs = step.obs
    return rows


# --- the replay -------------------------------------------------------------------------------


def test_replay_holds_the_transitions_of_the_environment():
    """A second copy of it, with the same seed and actions, is the oracle: 60 steps of 4."""
    model = build(seed=7).learn(240)
    batch = everything(model)
    rows = replayed(model, batch.actions.unflatten(0, (60, 4)), seed=7)
    steps = [step for *_, step in rows]
    assert any(step.terminated.any() for step in steps)
    assert any(step.truncated.any() for step in steps)
    for stored, expected in (
        (batch.observations, [obs for obs, *_ in rows]),
        (batch.action_masks, [mask for _, mask, _ in rows]),
        (batch.next_observations, [step.final_obs for step in steps]),
        (batch.next_action_masks, [step.final_action_mask for step in steps]),
        (batch.rewards.squeeze(-1), [step.reward for step in steps]),
        (batch.dones.squeeze(-1), [step.terminated.float() for step in steps]),
    ):
        assert torch.equal(stored, torch.cat(expected))


def test_three_step_replay_is_the_sum_by_hand():
    model = build(seed=7, n_steps=3, gamma=0.5).learn(240)
    batch = everything(model)
    rows = replayed(model, batch.actions.unflatten(0, (60, 4)), seed=7)
    steps, lengths = [step for *_, step in rows], set()
    for t in range(60):
        for env in range(4):
            total, discount, last = 0.0, 1.0, t
            for k in range(t, min(t + 3, 60)):
                total, discount, last = total + discount * steps[k].reward[env], discount / 2, k
                if steps[k].ended[env]:
                    break
            row = 4 * t + env
            lengths.add(last - t)
            assert batch.rewards[row].item() == pytest.approx(float(total), abs=1e-6)
            assert batch.discounts[row].item() == discount
            assert batch.dones[row].item() == steps[last].terminated[env]
            assert torch.equal(batch.next_observations[row], steps[last].final_obs[env])
            assert torch.equal(batch.next_action_masks[row], steps[last].final_action_mask[env])
    assert lengths == {0, 1, 2}


def test_warm_up_is_uniform_over_the_allowed_actions():
    """Of observations with two open categories each is taken half of the time, within 4 sigma."""
    model = build(learning_starts=4000, buffer_size=4000).learn(4000)
    assert model._n_updates == 0
    batch = everything(model)
    index = model.layout.to_index(batch.actions)
    for factor, pair in ((0, (0, 1)), (0, (1, 2)), (1, (0, 1))):
        row_mask = batch.action_masks[:, factor]
        expected = torch.zeros(3, dtype=torch.bool)
        expected[list(pair)] = True
        rows = (row_mask == expected).all(-1)
        share = (index[rows, factor] == pair[0]).float().mean()
        assert rows.sum() > 300
        assert abs(share - 0.5) < 4 * 0.5 / math.sqrt(rows.sum())


def test_the_policy_acts_after_the_warm_up():
    """A policy that is certain of categories 1 and 0 takes them wherever they are open."""
    model = build(learning_starts=100, gradient_steps=0)
    with torch.no_grad():
        last = model.actor.network.layers[-1]
        last.weight.zero_()
        last.bias.copy_(torch.tensor([0.0, 50.0, 0.0, 50.0, 0.0]))
    model.learn(300)
    batch = everything(model)
    index = model.layout.to_index(batch.actions)
    assert index[:100, 0].unique().numel() == 3
    assert (index[100:, 0] == 1).all()
    assert torch.equal(index[100:, 1] == 0, batch.action_masks[100:, 1, 0])


# --- masks ------------------------------------------------------------------------------------


def test_no_stored_action_was_forbidden():
    """Warm-up and policy alike; and the masks are those of the observations."""
    model = build().learn(400)
    batch = everything(model)
    index = model.layout.to_index(batch.actions)
    assert batch.action_masks.gather(-1, index.unsqueeze(-1)).all()
    assert torch.equal(batch.action_masks, gates(batch.observations))
    assert torch.equal(batch.next_action_masks, gates(batch.next_observations))
    assert not batch.action_masks[:, 0].all()


@EVERY_CRITIC
def test_critic_regresses_to_the_soft_target_of_allowed_actions_by_hand(critic):
    """r + gamma (1 - terminated) (min_e Q'_e(s', a') + alpha H(s')), over what is open at s'."""
    model = filled(critic=critic, ent_coef=0.3, gamma=0.9)
    with torch.no_grad():
        for parameter in model.critic_target.parameters():
            parameter.normal_(std=0.5)
    batch = model.replay_buffer.sample(32)
    with torch.no_grad():
        logits = model.actor.network(batch.next_observations)
        torch.manual_seed(7)
        index = model.actor(batch.next_observations, batch.next_action_masks).sample()
        target = torch.zeros(32)
        for row in range(32):
            odds = {}
            for joint in np.ndindex(3, 2):
                is_open = all(batch.next_action_masks[row, k, i] for k, i in enumerate(joint))
                score = sum(logits[row, k, i].item() for k, i in enumerate(joint))
                odds[joint] = math.exp(score) * is_open
            expected, entropy = torch.zeros(2), 0.0
            for joint, weight in odds.items():
                p = weight / sum(odds.values())
                entropy -= p * math.log(p) if p else 0
                one_hot = model.layout.index_to_one_hot(torch.tensor([joint]))
                q = model.critic_target(batch.next_observations[row : row + 1], one_hot)[:, 0]
                is_sample = float(joint == tuple(index[row].tolist()))
                expected += (p if critic == "multilinear" else is_sample) * q
            assert odds[tuple(index[row].tolist())] > 0
            value = expected.min() + 0.3 * entropy
            target[row] = batch.rewards[row, 0] + 0.9 * (1 - batch.dones[row, 0]) * value
        one_hot = model.layout.to_one_hot(batch.actions)
        errors = model.critic(batch.observations, one_hot) - target
    torch.manual_seed(7)
    loss = model.update_critic(batch)["train/critic_loss"]
    torch.testing.assert_close(loss, 0.5 * errors.square().mean(-1).sum())


@EVERY_CRITIC
@EVERY_GRADIENT
def test_the_actor_asks_for_allowed_actions_only(critic, actor_gradient):
    """Its gradient at the logits of closed categories is exactly zero."""
    model = filled(critic=critic, actor_gradient=actor_gradient)
    batch = model.replay_buffer.sample(64)
    logits = []

    def keep(module, args, output):
        output.retain_grad()
        logits.append(output)

    model.actor.network.register_forward_hook(keep)
    metrics = model.update_actor(batch.observations, 1.0, batch.action_masks)
    assert metrics["train/actor_loss"].isfinite()
    assert (logits[0].grad[~batch.action_masks] == 0).all()
    assert (logits[0].grad[batch.action_masks] != 0).any()


def test_entropy_is_measured_against_the_allowed_maximum_of_each_state():
    """By hand, from the number of open categories: the uniform policy has all of it."""
    model = filled(ent_coef="auto_0.5", target_entropy_fraction=0.25)
    with torch.no_grad():
        model.actor.network.layers[-1].weight.zero_()
        model.actor.network.layers[-1].bias.zero_()
    batch = model.replay_buffer.sample(64)
    metrics = model.update_actor(batch.observations, 1.0, batch.action_masks)
    most = [sum(math.log(factor.sum()) for factor in mask) for mask in batch.action_masks]
    assert metrics["estimator/entropy"].item() == pytest.approx(1)
    torch.testing.assert_close(metrics["estimator/entropy_per_factor"], torch.ones(2))
    # log alpha * mean(H(s) - fraction * max H(s)), with H(s) = max H(s)
    expected = math.log(0.5) * 0.75 * np.mean(most)
    assert metrics["train/ent_coef_loss"].item() == pytest.approx(expected, rel=1e-5)


def test_entropy_under_masks_by_hand():
    """Odds 1 : 2 : 3 and 1 : 3. All and one open: (1/6, 1/3, 1/2) and nothing to choose; the
    outer two and both open: (1/4, 3/4) twice."""
    model = filled(ent_coef="auto_0.5", target_entropy_fraction=0.25)
    with torch.no_grad():
        model.actor.network.layers[-1].weight.zero_()
        model.actor.network.layers[-1].bias.copy_(torch.tensor([1.0, 2.0, 3.0, 1.0, 3.0]).log())
    mask = torch.tensor([[[1, 1, 1], [1, 0, 0]], [[1, 0, 1], [1, 1, 0]]], dtype=torch.bool)
    three = math.log(6) / 6 + math.log(3) / 3 + math.log(2) / 2
    two = math.log(4) / 4 + 0.75 * math.log(4 / 3)
    metrics = model.update_actor(model.replay_buffer.sample(2).observations, 1.0, mask)
    most = math.log(3) + 2 * math.log(2)
    assert metrics["estimator/entropy"].item() == pytest.approx((three + 2 * two) / most)
    per_factor = torch.tensor([(three + two) / math.log(6), two / math.log(2)])
    torch.testing.assert_close(metrics["estimator/entropy_per_factor"], per_factor)
    expected = math.log(0.5) * (three + 2 * two - 0.25 * most) / 2
    assert metrics["train/ent_coef_loss"].item() == pytest.approx(expected, rel=1e-5)


def test_states_with_one_allowed_action_have_no_entropy_to_have():
    model = filled()
    batch = model.replay_buffer.sample(8)
    mask = torch.zeros(8, 2, 3, dtype=torch.bool)
    mask[:, :, 0] = True
    metrics = model.update_actor(batch.observations, 1.0, mask)
    assert metrics["estimator/entropy"] == 0
    assert all(value.isfinite().all() for value in metrics.values())


def test_the_cosine_is_measured_under_the_masks():
    """With a Q-vector straight-through is exact, also over what is allowed."""

    class Line(Gates):
        def __init__(self, num_envs: int) -> None:
            super().__init__(num_envs)
            self.action_space = spaces.Discrete(3)
            self.layout = type(self.layout).from_space(self.action_space)

        def legal(self, state):
            return gates(state["x"])[:, :1]

    model = filled(Line(4), critic="multilinear", estimator="straight_through")
    batch = model.replay_buffer.sample(64)
    cosine = model.probe_estimator(batch.observations, 1.0, batch.action_masks)["estimator/cosine"]
    assert cosine.item() == pytest.approx(1, abs=1e-5)


def test_evaluation_obeys_masks():
    """`Gates` behind SB3's interface refuses nothing itself, so every action is looked at."""
    model, env = build().learn(80), SB3VecEnv(Gates(2))
    seen = []
    step = env.batched.step

    def watch(action):
        index = model.layout.to_index(action)
        seen.append(env.batched.action_mask.gather(-1, index.unsqueeze(-1)))
        return step(action)

    env.batched.step = watch
    result = evaluate_model(model, env, 20, deterministic=False)
    assert result.mean_ep_length <= 5
    assert torch.cat(seen).all()


# --- the loop of SB3 --------------------------------------------------------------------------


class Watch(BaseCallback):
    """Writes down what a callback sees at each step."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[int, np.ndarray, np.ndarray]] = []
        self.rollouts = 0

    def _on_step(self) -> bool:
        dones, rewards = np.asarray(self.locals["dones"]), np.asarray(self.locals["rewards"])
        self.seen.append((self.num_timesteps, dones, rewards))
        return True

    def _on_rollout_end(self) -> None:
        self.rollouts += 1


@pytest.mark.parametrize(
    ("kwargs", "updates", "rollouts"),
    [
        ({}, 10, 20),
        ({"train_freq": 5}, 2, 4),
        ({"train_freq": (5, "step"), "gradient_steps": 3}, 6, 4),
        ({"train_freq": 5, "gradient_steps": -1}, 40, 4),
        ({"gradient_steps": 0}, 0, 20),
    ],
    ids=str,
)
def test_steps_updates_and_callbacks_are_counted_as_in_sb3(kwargs, updates, rollouts):
    """20 steps of 4 environments, 10 of them warm-up."""
    watch = Watch()
    model = build(**kwargs).learn(80, callback=watch)
    assert model.num_timesteps == 80
    assert model._n_updates == updates
    assert watch.rollouts == rollouts
    assert [seen[0] for seen in watch.seen] == list(range(4, 84, 4))
    stored = model.replay_buffer.store
    ended = stored["terminated"] | stored["truncated"]
    np.testing.assert_array_equal(np.stack([seen[1] for seen in watch.seen]), ended[:20])
    np.testing.assert_array_equal(np.stack([seen[2] for seen in watch.seen]), stored["reward"][:20])


def test_a_callback_that_returns_false_ends_the_training():
    class Stop(BaseCallback):
        def _on_step(self) -> bool:
            return self.num_timesteps < 24

    assert build().learn(400, callback=Stop()).num_timesteps == 24
    stop = StopTrainingOnMaxEpisodes(max_episodes=3)
    assert build().learn(10_000, callback=stop).num_timesteps < 100


def test_episodes_are_those_of_the_environment(monkeypatch):
    """Returns and lengths are added up here from the replay; the device is read once per log."""
    reads = []
    original = GumbelSAC._record_episodes

    def count(self, *args):
        reads.append(self.num_timesteps)
        return original(self, *args)

    monkeypatch.setattr(GumbelSAC, "_record_episodes", count)
    steps = 2 * EPISODES_INTERVAL + 10
    model = build(buffer_size=4 * steps, gradient_steps=0, stats_window_size=10_000)
    model.learn(4 * steps, log_interval=10)
    assert reads == [4 * EPISODES_INTERVAL, 8 * EPISODES_INTERVAL, 4 * steps]
    stored = model.replay_buffer.store
    ended = stored["terminated"] | stored["truncated"]
    expected, total, length = [], torch.zeros(4), torch.zeros(4)
    for reward, ends in zip(stored["reward"], ended, strict=True):
        total, length = total + reward, length + 1
        expected += [(total[i].item(), length[i].item()) for i in range(4) if ends[i]]
        total, length = total * ~ends, length * ~ends
    assert len(expected) > 50
    np.testing.assert_allclose(
        [(e["r"], e["l"]) for e in model.ep_info_buffer], expected, atol=1e-5
    )
    assert model._episode_num == len(expected)


def test_logs_are_those_of_sb3_and_documented(tmp_path):
    model = build(cosine_interval=1)
    model.set_logger(configure(str(tmp_path), ["csv"]))
    model.learn(4 * EPISODES_INTERVAL + 40, log_interval=20)
    model.logger.close()
    header, *rows = (tmp_path / "progress.csv").read_text().splitlines()
    names = set(header.split(","))
    assert len(rows) == 2  # at EPISODES_INTERVAL and at the end
    assert names >= {"rollout/ep_rew_mean", "rollout/ep_len_mean", "time/episodes", "time/fps"}
    assert names >= {"train/critic_loss", "train/actor_loss", "train/n_updates"}
    assert names >= {"estimator/cosine", "estimator/entropy", "estimator/temperature"}
    assert {name for name in names if name.split("/")[0] in ("train", "estimator")} <= TAGS.keys()


def test_metrics_are_means_over_the_updates_since_the_last_log():
    model = filled()
    values = []
    original = model.update_critic

    def keep(batch):
        values.append(original(batch))
        return values[-1]

    model.update_critic = keep
    for _ in range(3):
        model.train(2, 16)
    mean = np.mean([value["train/critic_loss"].item() for value in values])
    assert len(values) == 6
    assert model.logger.name_to_value["train/critic_loss"] == pytest.approx(mean, rel=1e-5)
    model.train(1, 16)
    latest = values[-1]["train/critic_loss"].item()
    assert model.logger.name_to_value["train/critic_loss"] == pytest.approx(latest, rel=1e-5)


def test_the_same_seed_gives_the_same_run_and_another_another():
    first, again, other = (weights(build(seed=seed).learn(160)) for seed in (3, 3, 4))
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not all(torch.equal(first[name], other[name]) for name in first)


@pytest.mark.parametrize(
    "action_space", [spaces.Discrete(3, start=5), FACTORED, spaces.MultiBinary(3)]
)
@pytest.mark.parametrize("n_steps", [1, 3])
def test_adapted_environments_and_dict_observations_train(action_space, n_steps):
    """`Tiny` asserts that its space contains every action."""
    vec_env = DummyVecEnv([lambda: TinyDict(action_space)] * 2)
    model = build(as_batched(vec_env, "cpu"), "MultiInputPolicy", n_steps=n_steps).learn(100)
    assert isinstance(model.replay_buffer, DeviceReplayBuffer)
    assert set(model.replay_buffer.sample(4).observations) == {"x"}
    assert {info["l"] for info in model.ep_info_buffer} <= {10}
    assert model._n_updates == 30


def test_masks_that_the_first_reset_tells_of_are_stored():
    """Those in the infos of numpy environments are not known before."""

    class Telling(Tiny):
        def reset(self, **kwargs):
            obs, _ = super().reset(**kwargs)
            return obs, {"action_mask": np.array([0, 1, 1, 1, 0], np.int8)}

        def step(self, action):
            *rest, _ = super().step(action)
            return *rest, {"action_mask": np.array([0, 1, 1, 1, 0], np.int8)}

    env = as_batched(DummyVecEnv([lambda: Telling(FACTORED)] * 2), "cpu")
    model = build(env).learn(80)
    index = model.layout.to_index(everything(model).actions)
    assert index[:, 0].unique().tolist() == [1, 2]
    assert index[:, 1].unique().tolist() == [0]


# --- the other environments -------------------------------------------------------------------


def test_an_environment_under_a_wrapper_of_sb3_takes_sb3s_way():
    env = VecNormalize(SB3VecEnv(CartPole(2, 20)))
    model = build(env).learn(80)
    assert type(model.replay_buffer) is ReplayBuffer
    assert model.get_vec_normalize_env() is env
    assert model._n_updates == 20


def test_masks_that_would_be_ignored_are_refused():
    with pytest.raises(ValueError, match="masks of the environment would be ignored under VecNorm"):
        build(VecNormalize(SB3VecEnv(Gates(2))))


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"replay_buffer_class": ReplayBuffer}, "replay_buffer_class .* would be ignored"),
        ({"replay_buffer_kwargs": {"a": 1}}, "replay_buffer_kwargs {'a': 1} would be ignored"),
        ({"optimize_memory_usage": True}, "optimize_memory_usage True would be ignored"),
        ({"train_freq": (1, "episode")}, "train_freq 1 episodes: with batched environments"),
        ({"buffer_size": 3}, "buffer_size 3 of DeviceReplayBuffer must be >= 4"),
    ],
    ids=str,
)
def test_settings_without_effect_are_refused(kwargs, message):
    with pytest.raises(ValueError, match=message):
        build(**kwargs)


# --- files ------------------------------------------------------------------------------------


def test_a_saved_model_predicts_the_same_and_learns_on(tmp_path):
    model = build(n_steps=3).learn(160)
    model.save(tmp_path / "model")
    model.save_replay_buffer(tmp_path / "replay")
    loaded = GumbelSAC.load(tmp_path / "model", Gates(4), device="cpu")
    for name, value in weights(model).items():
        assert torch.equal(value, weights(loaded)[name]), name
    assert loaded.num_timesteps == 160
    assert loaded.replay_buffer.size() == 0
    loaded.load_replay_buffer(tmp_path / "replay")
    assert torch.equal(everything(loaded).rewards, everything(model).rewards)
    for each in (model, loaded):
        each.set_logger(configure(None, []))
        torch.manual_seed(0)
        each.train(5, 16)
    for name, value in weights(model).items():
        assert torch.equal(value, weights(loaded)[name]), name
    obs = np.random.default_rng(0).uniform(-1, 1, (20, 3)).astype(np.float32)
    np.testing.assert_array_equal(
        loaded.predict(obs, deterministic=True)[0], model.predict(obs, deterministic=True)[0]
    )
    loaded.learn(40, reset_num_timesteps=False)
    assert loaded.num_timesteps == 200
    assert loaded.replay_buffer.size() == 50


def test_learning_goes_on_where_it_stopped():
    """Without a reset: the next stored observation is what the last step led to."""
    model = build().learn(80)
    model.learn(80, reset_num_timesteps=False)
    batch = everything(model)
    rows = replayed(model, batch.actions.unflatten(0, (40, 4)), seed=0)
    assert torch.equal(batch.observations, torch.cat([obs for obs, *_ in rows]))


@pytest.mark.parametrize("plain", [False, True], ids=["batched", "plain"])
def test_a_model_loaded_without_environments_takes_either_kind(plain, tmp_path):
    build().learn(60).save(tmp_path / "model")
    loaded = GumbelSAC.load(tmp_path / "model", device="cpu")
    loaded.set_env(DummyVecEnv([lambda: Tiny(FACTORED)] * 4) if plain else Gates(4))
    loaded.learn(80)
    assert isinstance(loaded.replay_buffer, DeviceReplayBuffer) is not plain
    assert loaded._n_updates > 5


def test_checkpoints_without_pickle(tmp_path):
    model = build(compile=False).learn(60)
    save_model(model, tmp_path)
    loaded = load_model(tmp_path, env=Gates(4), device="cpu")
    for name, value in weights(model).items():
        assert torch.equal(value, weights(loaded)[name]), name
    loaded.learn(60)


def test_sb3_checkpoints_with_the_replay(tmp_path):
    checkpoint = CheckpointCallback(10, str(tmp_path), save_replay_buffer=True)
    build().learn(80, callback=checkpoint)
    assert (tmp_path / "rl_model_replay_buffer_80_steps.pkl").is_file()
    GumbelSAC.load(tmp_path / "rl_model_80_steps", Gates(4), device="cpu").learn(60)


# --- no host reads ----------------------------------------------------------------------------

DEFAULTS = {"policy_kwargs": SMALL}
MORE = {
    "n_steps": 3,
    "priority_exponent": 0.6,
    "aggregation": "subset_2",
    "reset_interval": 2,
    "policy_kwargs": {**SMALL, "n_critics": 3, "dropout": 0.1},
}
ADDITIONS = [
    ("concat", DEFAULTS),
    ("concat", {**MORE, "num_bins": 11}),
    ("multilinear", DEFAULTS),
    ("multilinear", MORE),
]
"""The defaults, and everything that may be added to a critic."""
EVERY_ADDITION = pytest.mark.parametrize(
    ("critic", "more"), ADDITIONS, ids=["concat", "concat, all", "multilinear", "multilinear, all"]
)


@EVERY_ADDITION
@EVERY_GRADIENT
def test_collect_and_update_never_wait_for_the_device(critic, actor_gradient, more):
    """On the CPU with fused Adam, everything on: masks, clipping, the probe of the gradient."""
    settings = {"critic": critic, "actor_gradient": actor_gradient, **more}
    model = filled(cosine_interval=1, max_grad_norm=1.0, **settings)
    assert model.ent_coef_optimizer.param_groups[0]["fused"]
    model.train(1, 16)  # what is made once may be made here
    with DeviceReads() as reads:
        for learning_starts in (0, 10**9):
            model.collect_step(learning_starts)
        model.train(2, 16)
    assert reads.seen == []


@EVERY_ADDITION
@EVERY_GRADIENT
def test_updates_in_one_call_never_wait_for_the_device(monkeypatch, critic, actor_gradient, more):
    """The way that is compiled, here as it is: a full call and a rest."""
    monkeypatch.setattr(sac_updates, "compiled", lambda function: function)
    settings = {"critic": critic, "actor_gradient": actor_gradient, **more}
    model = filled(compile=True, cosine_interval=1, max_grad_norm=1.0, **settings)
    assert model._fuses
    model.train(1, 16)
    with DeviceReads() as reads:
        model.train(6, 16)
    assert reads.seen == []


@EVERY_ADDITION
@EVERY_GRADIENT
@pytest.mark.parametrize("env", [Gates, CartPole])
def test_a_whole_iteration_runs_on_meta(critic, actor_gradient, env, more):
    """A host read, or an operation of two devices, raises there. Adam is plain."""
    model = build(
        env(4, device="meta"),
        device="meta",
        critic=critic,
        actor_gradient=actor_gradient,
        cosine_interval=1,
        max_grad_norm=1.0,
        **more | {"policy_kwargs": {**more["policy_kwargs"], "optimizer_kwargs": {}}},
    )
    model._obs = model.batched.reset()
    for learning_starts in (10**9, 0, 0):
        model.collect_step(learning_starts)
    model.train(2, 16)
    assert model._n_updates == 2


def test_the_files_of_the_loop_read_nothing():
    package = Path(inspect.getfile(sac_updates)).parent.parent
    files = ["algorithms/sac.py", "algorithms/sac_updates.py", "algorithms/off_policy.py"]
    files += ["buffers.py", "losses.py"]
    files += ["algorithms/objective.py", "algorithms/optimize.py", "algorithms/samples.py"]
    files += ["networks.py", "distributions.py", "extractors.py", "policies/factored.py"]
    for name in files:
        source = (package / name).read_text()
        for word in (".item(", ".numpy(", ".tolist(", ".cpu("):
            lines = [line for line in source.splitlines() if word in line]
            lines = [line for line in lines if "sizes" not in line]  # of a space, not of a tensor
            assert lines == [], f"{name}: {lines}"


# --- compile ----------------------------------------------------------------------------------


def test_a_compiler_that_fails_is_named_and_training_goes_on(monkeypatch):
    def broken(function, **kwargs):
        def call(*args, **kwargs):
            raise RuntimeError("no compiler here\nmore")

        return call

    monkeypatch.setattr(compilation.torch, "compile", broken)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        eager, fallback = (weights(build(compile=flag).learn(80)) for flag in (False, True))
    messages = [str(warning.message) for warning in caught]
    reason = "RuntimeError: no compiler here"
    names = ("advance", "act_and_advance", "steps")
    assert messages == [f"compile=True has no effect on {name}: {reason}" for name in names]
    for name, value in eager.items():
        torch.testing.assert_close(value, fallback[name])


NOTHING_DRAWN = {"critic": "multilinear", "actor_gradient": "exact", "max_grad_norm": 0.5}
"""A compiler draws in another order."""


def state(model):
    """Weights, moments and counts of steps."""
    tensors = dict(weights(model))
    for number, optimizer in enumerate(model._optimizers()):
        for place, moments in enumerate(optimizer.state.values()):
            tensors |= {f"{number}.{place}.{name}": value for name, value in moments.items()}
    return tensors


def test_updates_in_one_call_are_those_of_one_after_the_other(monkeypatch):
    """The way that is compiled, here as it is; also what is measured and logged."""
    monkeypatch.setattr(sac_updates, "compiled", lambda function: function)
    models = [
        filled(
            priority_exponent=0.6,
            importance_exponent=0.7,
            cosine_interval=2,
            compile=flag,
            **NOTHING_DRAWN,
        )
        for flag in (False, True)
    ]
    batches = [models[0].replay_buffer.sample(16) for _ in range(6)]
    for model in models:
        assert model._fuses is model.compile
        rows = iter(batches)
        model.replay_buffer.sample = lambda *args, rows=rows, **kwargs: next(rows)
        model.train(6, 16)  # a full call and a rest
        assert model._n_updates == 6
    eager, fused = (state(model) | model.replay_buffer.store for model in models)
    for name, value in eager.items():
        torch.testing.assert_close(value, fused[name], atol=1e-6, rtol=1e-5)
    logs = [model.logger.name_to_value for model in models]
    assert logs[0].keys() == logs[1].keys()
    for name in ("train/critic_loss", "train/actor_loss", "train/ent_coef", "estimator/grad_norm"):
        assert logs[0][name] == pytest.approx(logs[1][name], rel=1e-4)


def test_a_call_draws_its_batches_before_any_of_them_has_new_priorities(monkeypatch):
    """Six updates: a full call and a rest; each batch gets its own priorities, in turn."""
    monkeypatch.setattr(sac_updates, "compiled", lambda function: function)
    model = filled(priority_exponent=0.6, compile=True)
    sample, update_priorities = model.replay_buffer.sample, model.replay_buffer.update_priorities
    events: list[tuple[str, Tensor]] = []

    def draw(*args, **kwargs):
        batch = sample(*args, **kwargs)
        events.append(("draw", batch.positions))
        return batch

    def update(positions, errors):
        events.append(("update", positions))
        update_priorities(positions, errors)

    monkeypatch.setattr(model.replay_buffer, "sample", draw)
    monkeypatch.setattr(model.replay_buffer, "update_priorities", update)
    model.train(6, 16)
    order = [name for name, _ in events]
    assert order == ["draw"] * 4 + ["update"] * 4 + ["draw"] * 2 + ["update"] * 2
    drawn, updated = ([p for name, p in events if name == each] for each in ("draw", "update"))
    assert all(torch.equal(*pair) for pair in zip(drawn, updated, strict=True))
    assert not any(torch.equal(drawn[0], later) for later in drawn[1:])


def test_a_restart_falls_on_the_call_that_passes_its_interval(monkeypatch):
    monkeypatch.setattr(sac_updates, "compiled", lambda function: function)
    model = filled(compile=True, reset_interval=5)
    restarts = []
    monkeypatch.setattr(model, "reset_networks", lambda: restarts.append(model._n_updates))
    for _ in range(3):
        model.train(4, 16)
    assert restarts == [8, 12]


@pytest.mark.parametrize(
    "kwargs",
    [
        {"target_update_interval": 2},
        {"policy_kwargs": {**SMALL, "optimizer_class": torch.optim.AdamW}},
        {"policy_kwargs": {**SMALL, "optimizer_kwargs": {}}},
    ],
    ids=str,
)
def test_what_cannot_be_one_call_has_its_losses_compiled(monkeypatch, kwargs):
    names = []
    monkeypatch.setattr(sac_updates, "compiled", lambda function: names.append(function.__name__))
    assert not build(compile=True, **kwargs)._fuses
    assert names == ["critic_loss", "actor_loss"]


@pytest.mark.slow
def test_compiled_updates_are_those_of_eager_ones():
    """Two in one call; what is finite and what is not, under a rate that moves."""
    eager, fast = (filled(priority_exponent=0.6, **NOTHING_DRAWN) for _ in range(2))
    fast.compile = True
    fast._setup_losses()
    batch = eager.replay_buffer.sample(16)
    broken = batch._replace(rewards=batch.rewards * torch.nan)
    for model in (eager, fast):
        for number, each in enumerate([batch, batch, broken, batch]):
            model.replay_buffer.sample = lambda *args, row=each, **kwargs: row
            model._current_progress_remaining = 1 - number / 10
            model.train(2, 16)
        assert model.skipped_updates == 2
    for name, value in (state(eager) | eager.replay_buffer.store).items():
        other = (state(fast) | fast.replay_buffer.store)[name]
        torch.testing.assert_close(value, other, atol=1e-5, rtol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kwargs", "name"),
    [
        (
            {"aggregation": "subset_1", "policy_kwargs": {**SMALL, "n_critics": 3}},
            "train/critic_loss",
        ),
        ({"policy_kwargs": {**SMALL, "dropout": 0.5}}, "train/critic_loss"),
        ({"critic": "concat", "actor_gradient": "estimator"}, "train/actor_loss"),
    ],
    ids=["subset", "dropout", "noise"],
)
def test_every_compiled_call_draws_anew(kwargs, name):
    """One batch, and networks that do not move: losses differ by what is drawn alone."""
    model = filled(learning_rate=0.0, **(NOTHING_DRAWN | kwargs))
    model.compile = True
    model._setup_losses()
    batch = model.replay_buffer.sample(16)
    model.replay_buffer.sample = lambda *args, **kwargs: batch
    model.train(1, 16)  # the first call is not compiled
    losses = set()
    for _ in range(8):
        model.train(1, 16)
        losses.add(model.logger.name_to_value[name])
    assert len(losses) > 1


@pytest.mark.slow
def test_numbers_that_move_do_not_compile_again():
    """The recompilation limit of torch is 8; each of these would be a new number."""
    schedules = {"temperature": Schedule("linear", 2, 1), "learning_rate": Schedule("linear", 1, 0)}
    model = filled(**schedules)
    model.compile = True
    model._setup_losses()
    for _ in range(2):  # the first call is not compiled
        model.train(1, 16)
    with torch.compiler.set_stance("fail_on_recompile"):
        for number in range(4):
            model._current_progress_remaining = 1 - number / 10
            model.train(1, 16)


# --- learning ---------------------------------------------------------------------------------


def test_each_factor_gets_its_credit():
    """With e = exp(1 / alpha) a factor of n categories is right with e / (e + n - 1)."""
    model = build(
        Match(16),
        batch_size=64,
        buffer_size=4000,
        learning_rate=5e-3,
        ent_coef=0.5,
        critic="multilinear",
        estimator="straight_through",
        gamma=0.9,
    ).learn(16 * 400)
    env = Match(200)
    obs = env.reset(seed=1)
    probs = model.actor(obs).probs
    right = probs.gather(-1, env.state["shown"].unsqueeze(-1)).squeeze(-1)
    e = math.exp(1 / 0.5)
    fair = torch.tensor([e / (e + 2), e / (e + 1)]).expand(200, 2)
    torch.testing.assert_close(right.detach(), fair, atol=0.06, rtol=0)


def test_cartpole_is_learned():
    """Random play lasts some 22 steps."""
    model = build(
        CartPole(8),
        learning_starts=500,
        buffer_size=20_000,
        batch_size=64,
        gradient_steps=2,
        learning_rate=2e-3,
        tau=0.05,
        reward_scale=0.1,
        temperature=0.5,
        target_entropy_fraction=0.3,
        policy_kwargs={"net_arch": [32, 32]},
    ).learn(4000)
    assert evaluate_model(model, SB3VecEnv(CartPole(20)), 20).mean_reward > 100


# --- on a GPU ---------------------------------------------------------------------------------


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
@EVERY_CRITIC
def test_collect_and_update_never_wait_for_the_gpu(critic):
    model = filled(Gates(4, device="cuda"), device="cuda", critic=critic, cosine_interval=1)
    model.train(1, 16)
    torch.cuda.set_sync_debug_mode("error")
    try:
        for learning_starts in (0, 10**9):
            model.collect_step(learning_starts)
        model.train(2, 16)
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
@EVERY_CRITIC
def test_a_compiled_run_learns_on_the_gpu(critic):
    """Losses are replayed as CUDA graphs, and what is logged must outlive them."""
    model = build(Gates(4, device="cuda"), device="cuda", critic=critic, compile=True)
    model.set_logger(configure(None, []))
    model.learn(200, log_interval=None)
    values = model.logger.name_to_value
    assert all(math.isfinite(values[f"train/{name}_loss"]) for name in ("critic", "actor"))
