"""BatchedPPO: the update of SB3's PPO to the digit, without a host read, from batched rollouts."""

import inspect
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from device_reads import DeviceReads
from gymnasium import spaces
from stable_baselines3 import PPO
from stable_baselines3.common.callbacks import EvalCallback, StopTrainingOnMaxEpisodes
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.logger import configure
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from test_rollout import Counter
from tiny_envs import Tiny, TinyDict

import rl_gumbel.algorithms.ppo as ppo_module
from rl_gumbel import load_model, make_vec, save_model
from rl_gumbel.algorithms import BatchedPPO, batched, compilation, on_policy
from rl_gumbel.envs.cartpole import CartPole
from rl_gumbel.logger import TAGS
from rl_gumbel.rollout import collect
from rl_gumbel.schedules import Schedule
from rl_gumbel.vec_env import SB3VecEnv

SMALL = {"net_arch": [16]}
SPACES = {
    "discrete": spaces.Discrete(3, start=-1),
    "multi_discrete": spaces.MultiDiscrete([3, 2], start=[-1, 4]),
    "multi_binary": spaces.MultiBinary(3),
}
EVERY_SPACE = pytest.mark.parametrize("space", SPACES.values(), ids=SPACES)


def build(env: Any = None, policy: str = "MlpPolicy", **kwargs: Any) -> BatchedPPO:
    settings = {"n_steps": 16, "policy_kwargs": SMALL, "seed": 0, "device": "cpu"}
    env = CartPole(4, 20) if env is None else env
    return BatchedPPO(policy, env, **(settings | kwargs))


def collected(model: BatchedPPO) -> BatchedPPO:
    """Return the model with a rollout and a logger, before its first update."""
    model.set_logger(configure(None, []))
    _, callback = model._setup_learn(10_000)
    model.collect_rollouts(model.env, callback, None, model.n_steps)
    return model


def weights(model: Any) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in model.policy.state_dict().items()}


# --- SB3's PPO as oracle ----------------------------------------------------------------------


def give_rollout(peer: PPO, model: BatchedPPO) -> None:
    """Fill SB3's buffer with our rollout, timeouts bootstrapped as SB3 does."""
    rollout, buffer = model.rollout, peer.rollout_buffer
    with torch.no_grad():
        values = peer.policy.predict_values(rollout.obs.flatten(0, 1)).reshape(-1, model.n_envs)
    buffer.reset()
    starts = np.ones(model.n_envs, bool)
    interval = rollout.truncation_interval
    for t in range(model.n_steps):
        obs, action = rollout.obs[t], model.layout.to_action(rollout.index[t])
        with torch.no_grad():
            _, log_prob, _ = peer.policy.evaluate_actions(obs, action)
            ends = peer.policy.predict_values(rollout.truncated_obs[t // interval]).squeeze(-1)
        reward = rollout.reward[t] + peer.gamma * ends * rollout.truncated[t]
        action = action.numpy().reshape(model.n_envs, -1)
        buffer.add(obs.numpy(), action, reward.numpy(), starts, values[t], log_prob)
        starts = rollout.ended[t].numpy()
    buffer.compute_returns_and_advantage(values[-1], starts)


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"ent_coef": 0.1, "clip_range_vf": 0.05, "gamma": 0.9, "gae_lambda": 0.5},
        {"normalize_advantage": False, "vf_coef": 2.0, "max_grad_norm": 0.01, "clip_range": 0.01},
        {"policy_kwargs": {"net_arch": [8, 8], "share_features_extractor": False}},
        {"policy_kwargs": {"net_arch": {"pi": [8], "vf": [4]}, "activation_fn": torch.nn.ReLU}},
    ],
    ids=["defaults", "entropy and value clip", "tight clips", "own extractors", "own networks"],
)
def test_three_epochs_end_at_the_weights_of_sb3(settings):
    """One minibatch an epoch, so that no shuffling differs; 20-step episodes end both ways."""
    settings = {
        "n_steps": 64,
        "n_epochs": 3,
        "learning_rate": 1e-3,
        "policy_kwargs": SMALL,
    } | settings
    model = collected(build(num_minibatches=1, **settings))
    assert model.rollout.truncated.any() and model.rollout.terminated.any()
    peer = PPO(
        "MlpPolicy",
        make_vec_env("CartPole-v1", 4),
        batch_size=256,
        device="cpu",
        **settings,
    )
    peer.set_logger(configure(None, []))
    peer.policy.load_state_dict(weights(model))
    give_rollout(peer, model)
    before = weights(model)
    model.train()
    peer.train()
    for name, value in peer.policy.state_dict().items():
        torch.testing.assert_close(model.policy.state_dict()[name], value, atol=2e-6, rtol=1e-4)
        assert not torch.equal(value, before[name])
    ours, theirs = (m.logger.name_to_value for m in (model, peer))
    for name in theirs.keys() - {"train/approx_kl", "train/loss"}:
        assert ours[name] == pytest.approx(theirs[name], rel=2e-3, abs=1e-5), name
    assert theirs.keys() <= ours.keys()


def test_networks_are_those_of_sb3_from_the_same_seed():
    peer = PPO("MlpPolicy", make_vec_env("CartPole-v1", 4), seed=0, device="cpu")
    model = build(policy_kwargs=None)
    theirs = peer.policy.state_dict()
    assert weights(model).keys() == theirs.keys()
    for name, value in weights(model).items():
        assert torch.equal(value, theirs[name]), name
    obs = torch.randn(50, 4)
    with torch.no_grad():
        distribution, values = model.policy.evaluate(obs)
        logits = peer.policy.get_distribution(obs).distribution.logits
        torch.testing.assert_close(distribution.log_probs.squeeze(1), logits, atol=1e-6, rtol=1e-5)
        torch.testing.assert_close(values, peer.policy.predict_values(obs).squeeze(-1))


# --- returns and normalisation ----------------------------------------------------------------


def test_advantages_are_those_of_a_loop_over_one_environment():
    model = collected(build(n_steps=64, gamma=0.9, gae_lambda=0.7))
    rollout = model.rollout
    samples = model.prepare()
    numbers = samples.numbers.unflatten(0, (64, 4))
    value = lambda obs: model.policy.values(obs.unsqueeze(0)).item()  # noqa: E731
    with torch.no_grad():
        for env in range(4):
            advantage = 0.0
            for t in reversed(range(64)):
                following = value(rollout.obs[t + 1, env])
                if rollout.truncated[t, env]:
                    following = value(rollout.truncated_obs[t // 20, env])
                if rollout.terminated[t, env]:
                    following = 0.0
                now = value(rollout.obs[t, env])
                if rollout.ended[t, env]:
                    advantage = 0.0
                advantage = rollout.reward[t, env].item() + 0.9 * following - now + 0.63 * advantage
                assert numbers[t, env, 1].item() == pytest.approx(now, abs=1e-5)
                assert numbers[t, env, 2].item() == pytest.approx(advantage, abs=1e-4)
                assert numbers[t, env, 3].item() == pytest.approx(advantage + now, abs=1e-4)


def test_observations_are_normalised_by_what_came_before_the_rollout():
    """Acting and learning of one rollout see the same statistics; a new ratio of 1 shows it."""
    model = collected(build(normalize_observations=True))
    model.train()
    moments = model.policy.normalizer
    seen = model.rollout.obs[1:].reshape(-1, 4)
    torch.testing.assert_close(moments.mean, seen.mean(0))
    obs = 0.1 * torch.randn(5, 4)
    torch.testing.assert_close(
        model.policy.preprocess(obs),
        ((obs - seen.mean(0)) / seen.std(0, correction=0)).clamp(-10, 10),
    )
    model = collected(model)
    model._limits = (torch.tensor(0.2), None)
    metrics = model.loss(model.prepare(), *model._limits)[1]
    assert abs(metrics[ppo_module.METRICS.index("train/approx_kl")].item()) < 1e-6


def test_scaled_rewards_reach_the_returns_and_raw_ones_the_log():
    plain, scaled = (collected(build(normalize_rewards=flag)) for flag in (False, True))
    assert torch.equal(plain.rollout.reward, scaled.rollout.reward)
    deltas = [
        model.prepare().numbers[:, 3] - model.prepare().numbers[:, 1] for model in (plain, scaled)
    ]
    assert not torch.allclose(*deltas)
    assert scaled.reward_scaler.moments.count > 0
    assert [info["r"] for info in scaled.ep_info_buffer] == [
        info["r"] for info in plain.ep_info_buffer
    ]


# --- masks ------------------------------------------------------------------------------------


def test_forbidden_actions_are_never_taken_and_have_no_probability():
    model = collected(build(Counter(8), n_steps=32))
    rollout = model.rollout
    allowed = rollout.action_mask[:-1].gather(-1, rollout.index.unsqueeze(-1))
    assert allowed.all()
    first = rollout.obs[:-1].squeeze(-1) % 100 == 0
    assert (rollout.index.squeeze(-1)[first] == 0).all()
    log_prob = model.prepare().numbers[:, 0].unflatten(0, (32, 8))
    assert (log_prob[first] == 0).all()  # one action is left: certain
    model.train()
    assert all(value.isfinite().all() for value in weights(model).values())


def test_predict_obeys_masks():
    model = build(Tiny(SPACES["multi_discrete"]))
    obs = np.zeros((50, 3), np.float32)
    mask = np.array([False, True, False, True, False])
    for deterministic in (False, True):
        actions, _ = model.predict(obs, deterministic=deterministic, action_masks=[mask] * 50)
        assert (actions == [0, 4]).all()
    action, _ = model.predict(obs[0], action_masks=mask)
    assert action.tolist() == [0, 4]


# --- no host reads ----------------------------------------------------------------------------


@EVERY_SPACE
def test_collect_and_update_never_wait_for_the_device(space):
    """On the CPU with fused Adam, everything on: masks, normalisers, value clipping."""

    class Factored(Counter):
        def __init__(self, num_envs: int) -> None:
            super().__init__(num_envs)
            self.action_space = space
            self.layout = type(self.layout).from_space(space)

        def transition(self, state, action):
            return super().transition(state, action[:, :1])

        def legal(self, state):
            return None

    settings = {"normalize_observations": True, "normalize_rewards": True, "clip_range_vf": 0.2}
    model = collected(build(Factored(8), ent_coef=0.1, **settings))
    model.train()  # what is made once may be made here
    recorded = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ppo_module, "record", lambda logger, metrics: recorded.extend(metrics))
        with DeviceReads() as reads:
            model.rollout, model._obs = collect(
                model.batched, model.policy.act, model._obs, model.n_steps
            )
            model.train()
    assert reads.seen == []
    assert len(recorded) == 1 + model.n_epochs * 4


def test_a_whole_iteration_runs_on_meta(monkeypatch):
    """A host read, or an operation of two devices, raises there. Adam is plain."""
    adam = {"optimizer_kwargs": {"eps": 1e-5}}
    model = build(
        CartPole(8, 20, device="meta"),
        device="meta",
        policy_kwargs={**SMALL, **adam},
        normalize_observations=True,
        normalize_rewards=True,
        clip_range_vf=0.2,
    )
    model.set_logger(configure(None, []))
    monkeypatch.setattr(ppo_module, "record", lambda logger, metrics: None)
    env = model.env.batched
    model.rollout, _ = collect(env, model.policy.act, env.reset(), model.n_steps)
    model.train()


def test_the_files_of_the_loop_read_the_device_for_the_log_only():
    package = Path(inspect.getfile(ppo_module)).parent.parent
    files = ["algorithms/ppo.py", "algorithms/on_policy.py", "rollout.py", "losses.py"]
    files += ["normalize.py", "networks.py", "distributions.py", "extractors.py"]
    files += ["policies/batched.py", "envs/base.py", "envs/cartpole.py"]
    for name in files:
        source = (package / name).read_text()
        for word in (".item(", ".numpy(", ".tolist(", ".cpu("):
            lines = [line for line in source.splitlines() if word in line]
            lines = [line for line in lines if "sizes" not in line and "value[row]" not in line]
            assert lines == [], f"{name}: {lines}"
    # `_record_episodes`, and what a callback looks at.
    assert inspect.getsource(batched).count(".cpu(") == 2
    assert on_policy.BatchedOnPolicyAlgorithm.collect_rollouts


# --- an SB3 algorithm -------------------------------------------------------------------------


@EVERY_SPACE
def test_every_action_space_trains_on_plain_environments(space, tmp_path):
    """Tiny asserts that its space contains every action."""
    model = build(DummyVecEnv([lambda: Tiny(space)] * 2))
    model.learn(96)
    assert model.num_timesteps == 96
    model.save(tmp_path / "model")
    loaded = BatchedPPO.load(tmp_path / "model", device="cpu")
    obs = np.random.default_rng(0).uniform(-1, 1, (20, 3)).astype(np.float32)
    actions, _ = model.predict(obs, deterministic=True)
    assert all(space.contains(action) for action in actions)
    np.testing.assert_array_equal(actions, loaded.predict(obs, deterministic=True)[0])


def test_dict_observations_train():
    env = TinyDict(SPACES["multi_discrete"])
    build(env, "MultiInputPolicy").learn(64)


def test_save_load_and_training_on_equal_training_without(tmp_path):
    """Weights, Adam's moments, normalisers and counts: everything but the environments' state."""
    settings = {"normalize_observations": True, "normalize_rewards": True}
    model = build(**settings).learn(128)
    model.save(tmp_path / "model")
    loaded = BatchedPPO.load(tmp_path / "model", CartPole(4, 20), device="cpu")
    for name, value in weights(model).items():
        assert torch.equal(value, weights(loaded)[name]), name
    scaler, again = model.reward_scaler.state_dict(), loaded.reward_scaler.state_dict()
    assert all(torch.equal(value, again[name]) for name, value in scaler.items())
    assert loaded.num_timesteps == 128
    loaded.rollout = model.rollout
    loaded.set_logger(configure(None, []))
    loaded._current_progress_remaining = model._current_progress_remaining
    scaler_returns = model.reward_scaler.discounted_return
    loaded.reward_scaler.discounted_return.copy_(scaler_returns)
    for trained in (model, loaded):
        torch.manual_seed(3)
        trained.train()
    for name, value in weights(model).items():
        assert torch.equal(value, weights(loaded)[name]), name
    loaded.learn(64, reset_num_timesteps=False)
    assert loaded.num_timesteps == 192


def test_safetensors_round_trip(tmp_path):
    model = build(normalize_observations=True, clip_range=0.1).learn(64)
    save_model(model, tmp_path)
    loaded = load_model(tmp_path, device="cpu")
    assert loaded.clip_range == 0.1
    obs = np.random.default_rng(0).normal(size=(20, 4)).astype(np.float32)
    np.testing.assert_array_equal(
        model.predict(obs, deterministic=True)[0], loaded.predict(obs, deterministic=True)[0]
    )


def test_the_same_seed_gives_the_same_run_and_another_another():
    def run(seed: int) -> dict[str, torch.Tensor]:
        return weights(build(seed=seed).learn(128))

    first, again, other = run(1), run(1), run(2)
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not all(torch.equal(first[name], other[name]) for name in first)


def test_callbacks_and_logs_are_those_of_sb3(tmp_path):
    evaluate = EvalCallback(SB3VecEnv(CartPole(2, 20)), eval_freq=8, verbose=0)
    model = build(tensorboard_log=str(tmp_path)).learn(256, callback=evaluate)
    assert evaluate.evaluations_timesteps == []  # only with a log_path
    assert evaluate.best_mean_reward > 5
    assert {info["l"] for info in model.ep_info_buffer} <= set(range(1, 21))
    assert len(model.ep_info_buffer) > 8
    events = EventAccumulator(str(tmp_path / "BatchedPPO_1"))
    events.Reload()
    tags = set(events.Tags()["scalars"])
    assert {"rollout/ep_rew_mean", "time/fps", "eval/mean_reward", "train/loss"} <= tags
    assert {tag for tag in tags if tag.startswith("train/")} <= TAGS.keys()


def test_a_callback_that_reads_the_ends_of_episodes_stops_the_training():
    model = build().learn(10_000, callback=StopTrainingOnMaxEpisodes(max_episodes=3))
    assert model.num_timesteps < 500


def test_sb3_normalisation_outside_is_respected():
    env = VecNormalize(make_vec_env("CartPole-v1", 2))
    model = build(env).learn(64)
    assert model.rollout.obs.abs().max() > 0.5  # raw CartPole starts within 0.05
    assert model.get_vec_normalize_env() is env


def test_target_kl_ends_the_epochs():
    model = collected(build(target_kl=1e-9, learning_rate=1e-2))
    model.train()
    assert model._n_updates < model.n_epochs


def test_minibatches_cover_the_rollout_once():
    model = collected(build(num_minibatches=4))
    samples = model.prepare()
    batches = [samples.take(rows) for rows in model.minibatches(samples)]
    assert [len(batch) for batch in batches] == [16] * 4
    together = torch.cat([batch.obs for batch in batches])
    assert torch.equal(together.sort(0).values, samples.obs.sort(0).values)
    assert not torch.equal(together, samples.obs)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"batch_size": 8, "num_minibatches": 2}, "num_minibatches 2 would be ignored"),
        ({"n_epochs": 0}, "n_epochs 0 must be >= 1"),
        ({"gamma": 1.5}, r"gamma 1.5 must be in \[0, 1\]"),
        ({"vf_coef": -1.0}, "vf_coef -1.0 must be >= 0"),
        ({"target_kl": 0.0}, "target_kl 0.0 must be > 0"),
        ({"clip_range": -0.2}, "clip_range -0.2 must be > 0"),
        ({"clip_range_vf": Schedule("linear", 0.2, -0.1)}, "clip_range_vf Schedule.* must be > 0"),
        ({"num_minibatches": 64}, "n_steps 16 of 4 environments make minibatches of 1"),
    ],
    ids=lambda value: str(value)[:30],
)
def test_bad_settings_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        build(**settings)


def test_continuous_actions_are_refused():
    with pytest.raises(TypeError, match="Box"):
        build("Pendulum-v1")


def test_normalising_categories_is_refused():
    with pytest.raises(ValueError, match="normalize_observations is for Box"):
        build("FrozenLake-v1", normalize_observations=True)


# --- compile ----------------------------------------------------------------------------------


def test_a_compiler_that_fails_is_named_and_training_goes_on(monkeypatch):
    def broken(function, **kwargs):
        def call(*args, **kwargs):
            raise RuntimeError("no compiler here\nmore")

        return call

    monkeypatch.setattr(compilation.torch, "compile", broken)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        eager, fallback = (weights(build(compile=flag).learn(64)) for flag in (False, True))
    messages = [str(warning.message) for warning in caught]
    assert messages == [
        f"compile=True has no effect on {name}: RuntimeError: no compiler here"
        for name in ("act_and_advance", "step")
    ]
    for name, value in eager.items():  # with a learning rate of 32 bits
        torch.testing.assert_close(value, fallback[name], atol=1e-6, rtol=1e-5)


@pytest.mark.slow
def test_compiled_updates_are_those_of_eager_ones():
    eager, fast = (collected(build(compile=flag)) for flag in (False, True))
    fast.rollout = eager.rollout  # compiled acting draws other numbers
    for model in (eager, fast):
        torch.manual_seed(5)
        model.train()
    for name, value in weights(eager).items():
        torch.testing.assert_close(value, weights(fast)[name], atol=1e-5, rtol=1e-4)


@pytest.mark.slow
def test_a_compiled_step_and_a_compiled_update_are_one_function_each():
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    env, falling = make_vec("CartPole-v1", 4, device="cpu"), Schedule("linear", 1e-3, 0.0)
    build(env, compile=True, learning_rate=falling, clip_range=falling).learn(256)
    counters = torch._dynamo.utils.counters
    assert not counters["graph_break"]
    assert counters["stats"]["unique_graphs"] == 2


# --- learning ---------------------------------------------------------------------------------


def test_cartpole_is_learned():
    env = make_vec("CartPole-v1", 16, device="cpu")
    model = build(
        env, n_steps=32, n_epochs=10, learning_rate=2e-3, gamma=0.98, gae_lambda=0.8
    ).learn(40_000)
    assert np.mean([info["r"] for info in model.ep_info_buffer]) > 150
