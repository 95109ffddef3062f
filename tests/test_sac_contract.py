"""GumbelSAC as an SB3 algorithm: policies, callbacks, logs, files, and settings it refuses."""

import math
import warnings
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces
from stable_baselines3.common.callbacks import CheckpointCallback, EvalCallback
from stable_baselines3.common.logger import configure
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.torch_layers import FlattenExtractor
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tiny_envs import Tiny

from rl_gumbel import GumbelSAC, GumbelSACPolicy, Schedule, load_model, save_model
from rl_gumbel.logger import TAGS
from rl_gumbel.policies.estimation import Estimation
from rl_gumbel.policies.factored import FactoredPolicy

FACTORED = spaces.MultiDiscrete([3, 2], start=[-1, 4])
SMALL = {"net_arch": [16]}


class Observing(Tiny):
    """`Tiny` with observations of choice."""

    def __init__(self, observation_space: spaces.Space[Any]) -> None:
        super().__init__(FACTORED)
        self.observation_space = observation_space
        self.observation_space.seed(0)

    def observe(self) -> Any:
        return self.observation_space.sample()


IMAGE = spaces.Box(0, 255, (36, 36, 1), np.uint8)
OBSERVATIONS = {
    "discrete": (spaces.Discrete(4), "MlpPolicy"),
    "multi_discrete": (spaces.MultiDiscrete([2, 3]), "MlpPolicy"),
    "matrix": (spaces.Box(-1, 1, (2, 3)), "MlpPolicy"),
    "image": (IMAGE, "CnnPolicy"),
    "dict": (
        spaces.Dict({"x": spaces.Box(-1, 1, (2,)), "n": spaces.Discrete(3)}),
        "MultiInputPolicy",
    ),
    "dict with an image": (
        spaces.Dict({"x": spaces.Box(-1, 1, (2,)), "image": IMAGE}),
        "MultiInputPolicy",
    ),
}
EVERY_OBSERVATION = pytest.mark.parametrize(
    ("observation_space", "policy"), OBSERVATIONS.values(), ids=OBSERVATIONS
)


def build(env: Any = None, policy: Any = "MlpPolicy", **kwargs: Any) -> GumbelSAC:
    settings = {
        "learning_starts": 20,
        "buffer_size": 200,
        "batch_size": 8,
        "policy_kwargs": SMALL,
        "seed": 0,
        "device": "cpu",
    }
    return GumbelSAC(policy, env or Tiny(FACTORED), **(settings | kwargs))


def weights(model: GumbelSAC) -> dict[str, torch.Tensor]:
    state = {name: value.clone() for name, value in model.policy.state_dict().items()}
    return {**state, "log_ent_coef": model.log_ent_coef.detach().clone()}


def assert_same(left: dict[str, Any], right: dict[str, Any]) -> None:
    torch.testing.assert_close(left, right, rtol=0, atol=0)


def observations(model: GumbelSAC, count: int = 20) -> np.ndarray:
    return np.random.default_rng(0).uniform(-1, 1, (count, 3)).astype(np.float32)


# --- policies ---------------------------------------------------------------------------------


@EVERY_OBSERVATION
@pytest.mark.parametrize("share", [False, True], ids=["own", "shared"])
def test_every_observation_trains_saves_and_loads(observation_space, policy, share, tmp_path):
    kwargs = {**SMALL, "share_features_extractor": share}
    model = build(Observing(observation_space), policy, policy_kwargs=kwargs)
    before = weights(model)
    model.learn(25)
    after = weights(model)
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert {name.split(".")[0] for name in moved} == {
        "actor",
        "critic",
        "critic_target",
        "log_ent_coef",
    }
    model.save(tmp_path / "model")
    loaded = GumbelSAC.load(tmp_path / "model", device="cpu")
    assert_same(weights(loaded), after)
    obs = model.env.reset()
    np.testing.assert_array_equal(
        loaded.predict(obs, deterministic=True)[0], model.predict(obs, deterministic=True)[0]
    )


def test_a_shared_extractor_learns_from_the_actor_only():
    """As SB3's SAC: the critic's step must leave it, the actor's must move it."""
    kwargs = {**SMALL, "share_features_extractor": True}
    model = build(Observing(IMAGE), "CnnPolicy", policy_kwargs=kwargs, learning_starts=30)
    model.learn(30)
    extractor = model.actor.features_extractor
    assert model.critic.features_extractor is extractor
    assert model.critic_target.features_extractor is not extractor

    def snapshot() -> torch.Tensor:
        return torch.nn.utils.parameters_to_vector(extractor.parameters()).detach().clone()

    batch, start = model.replay_buffer.sample(8), snapshot()
    model.update_critic(batch)
    assert torch.equal(snapshot(), start)
    model.update_actor(batch.observations, 1.0)
    assert not torch.equal(snapshot(), start)


class Frozen(FlattenExtractor):
    """An extractor with a layer that is not trained and one that nobody uses."""

    def __init__(self, observation_space: spaces.Space[Any]) -> None:
        super().__init__(observation_space)
        self.frozen = torch.nn.Linear(3, 3).requires_grad_(False)
        self.unused = torch.nn.Linear(3, 3)

    def forward(self, observations: torch.Tensor) -> torch.Tensor:
        return self.frozen(super().forward(observations))


def test_a_frozen_extractor_stays_frozen():
    """Pretrained features are common; the cosine probe must bear them too."""
    kwargs = {**SMALL, "features_extractor_class": Frozen}
    model = build(policy_kwargs=kwargs, cosine_interval=1)
    before = weights(model)
    model.learn(30)
    after = weights(model)
    assert torch.equal(
        before["actor.features_extractor.frozen.weight"],
        after["actor.features_extractor.frozen.weight"],
    )
    name = "actor.network.layers.0.weight"
    assert not torch.equal(before[name], after[name])


def test_policy_kwargs_reach_the_networks():
    kwargs = {
        "net_arch": {"pi": [5], "qf": [6, 7]},
        "activation_fn": torch.nn.Tanh,
        "n_critics": 3,
        "layer_norm": False,
        "rank": 2,
        "optimizer_class": torch.optim.AdamW,
        "optimizer_kwargs": {"weight_decay": 0.1},
    }
    model = build(critic="multilinear", policy_kwargs=kwargs)
    assert [layer.out_features for layer in model.actor.network.layers[::2]] == [5, 5]
    assert isinstance(model.actor.network.layers[1], torch.nn.Tanh)
    assert [type(layer).__name__ for layer in model.critic.network.trunk] == [
        "EnsembleLinear",
        "Tanh",
    ] * 2
    # 5 flat categories, additive and rank 2, and the 2 weights of the ranks.
    assert model.critic.network.output.weight.shape == (3, 7, 5 * 3 + 2)
    for optimizer in (model.actor.optimizer, model.critic.optimizer):
        assert type(optimizer) is torch.optim.AdamW
        assert optimizer.param_groups[0]["weight_decay"] == 0.1
    assert "critic" not in kwargs  # the caller's dict is not written into


def test_a_policy_class_may_be_passed_itself():
    model = build(policy=FactoredPolicy)
    assert type(model.policy) is FactoredPolicy


# --- learn ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kwargs", "updates"),
    [
        ({}, 40),
        ({"train_freq": 4}, 10),
        ({"train_freq": (4, "step"), "gradient_steps": 2}, 20),
        ({"train_freq": (1, "episode"), "gradient_steps": -1}, 40),
        ({"train_freq": 4, "gradient_steps": -1}, 40),
        ({"gradient_steps": 0}, 0),
    ],
    ids=str,
)
def test_updates_are_counted_as_in_sb3(kwargs, updates):
    """40 steps after a warm-up of 20."""
    assert build(**kwargs).learn(60)._n_updates == updates


def test_parallel_environments_count_their_steps():
    """20 rounds of three steps; the seventh is the first after the warm-up."""
    model = build(DummyVecEnv([lambda: Tiny(FACTORED)] * 3), gradient_steps=-1)
    model.learn(60)
    assert model.num_timesteps == 60
    assert model._n_updates == 3 * 14
    assert model.replay_buffer.actions[:20].shape == (20, 3, 2)


def test_train_may_be_called_by_hand():
    model = build(learning_starts=100).learn(50)
    model.train(gradient_steps=3, batch_size=5)
    assert model._n_updates == 3
    before = weights(model)
    model.train(gradient_steps=0)
    assert model._n_updates == 3
    assert_same(weights(model), before)


def test_the_same_seed_gives_the_same_weights():
    first, second, other = (build(seed=seed).learn(50) for seed in (3, 3, 4))
    assert_same(weights(first), weights(second))
    assert not torch.equal(
        weights(first)["actor.network.layers.0.weight"],
        weights(other)["actor.network.layers.0.weight"],
    )


@pytest.mark.parametrize(
    "kwargs",
    [
        {"n_steps": 3},
        {"max_grad_norm": 0.5, "target_update_interval": 3, "cosine_interval": 5},
        {"actor_gradient": "local_expectation", "critic": "multilinear"},
    ],
    ids=str,
)
def test_options_train_with_finite_losses(kwargs):
    model = build(**kwargs)
    model.set_logger(configure(None, []))
    model.learn(40, log_interval=None)
    for name in ("train/actor_loss", "train/critic_loss", "train/ent_coef"):
        assert math.isfinite(model.logger.name_to_value[name])


def test_a_replay_that_saves_memory_stores_no_next_observations():
    """They are the observations of the next row."""
    kwargs = {"handle_timeout_termination": False}
    model = build(optimize_memory_usage=True, replay_buffer_kwargs=kwargs).learn(40)
    assert model._n_updates == 20
    assert not hasattr(model.replay_buffer, "next_observations")
    assert not model.replay_buffer.handle_timeout_termination


def test_normalised_observations_and_rewards_train():
    env = VecNormalize(DummyVecEnv([lambda: Tiny(FACTORED)]))
    model = build(env).learn(50)
    batch = model.replay_buffer.sample(50, env=env)
    raw = model.replay_buffer.sample(50)
    assert model._vec_normalize_env is env
    assert batch.rewards.max() != raw.rewards.max()


def test_rewards_are_scaled_for_the_critic_and_logged_raw():
    env = Monitor(Tiny(FACTORED))
    model = build(env, reward_scale=0.01).learn(50)
    raw = [info["r"] for info in model.ep_info_buffer]
    assert np.sum(raw) == model.replay_buffer.rewards.sum()
    assert set(np.unique(model.replay_buffer.rewards)) == {0.0, 1.0}


def test_callbacks_of_sb3_work(tmp_path):
    evaluation = EvalCallback(
        Monitor(Tiny(FACTORED)),
        n_eval_episodes=2,
        eval_freq=20,
        log_path=str(tmp_path),
        best_model_save_path=str(tmp_path),
        verbose=0,
    )
    checkpoint = CheckpointCallback(20, str(tmp_path), save_replay_buffer=True)
    build(Monitor(Tiny(FACTORED))).learn(40, callback=[evaluation, checkpoint])
    assert np.load(tmp_path / "evaluations.npz")["timesteps"].tolist() == [20, 40]
    for name in ("best_model", "rl_model_20_steps", "rl_model_40_steps"):
        assert GumbelSAC.load(tmp_path / name, device="cpu").action_space == FACTORED
    assert (tmp_path / "rl_model_replay_buffer_40_steps.pkl").is_file()


# --- logs -------------------------------------------------------------------------------------


def test_every_documented_tag_reaches_tensorboard(tmp_path):
    """Except the count of updates, which SB3 keeps out as well."""
    model = build(Monitor(Tiny(FACTORED)), tensorboard_log=str(tmp_path), cosine_interval=1)
    evaluation = EvalCallback(Monitor(Tiny(FACTORED)), eval_freq=30, verbose=0)
    model.learn(60, callback=evaluation)
    events = EventAccumulator(str(tmp_path / "GumbelSAC_1")).Reload()
    scalars, histograms = set(events.Tags()["scalars"]), set(events.Tags()["histograms"])
    assert histograms == {"estimator/entropy_per_factor"}
    losses = {"train/actor_loss", "train/critic_loss", "train/ent_coef_loss", "train/ent_coef"}
    ours = {name for name in scalars | histograms if name.partition("/")[0] != "rollout"}
    tags = set(TAGS) - {"eval/std_reward"}  # of the evaluation of `rl-gumbel train` alone
    assert ours - {"time/fps"} == losses | {
        "train/learning_rate",
        "train/skipped_updates",
        *(tag for tag in tags if tag.startswith(("estimator/", "eval/"))),
    }
    assert scalars >= {"rollout/ep_rew_mean", "rollout/ep_len_mean", "time/fps"}
    for name in scalars:
        assert all(math.isfinite(event.value) for event in events.Scalars(name))
    assert 0 < events.Scalars("estimator/entropy")[-1].value <= 1
    assert events.Scalars("estimator/temperature")[-1].value == 1


def test_the_histogram_stays_out_of_the_table(tmp_path):
    model = build(Monitor(Tiny(FACTORED)))
    model.set_logger(configure(str(tmp_path), ["csv", "json", "log", "tensorboard"]))
    model.learn(60)
    model.logger.close()
    header = (tmp_path / "progress.csv").read_text().splitlines()[0].split(",")
    assert {"estimator/entropy", "train/actor_loss", "train/n_updates"} <= set(header)
    assert "estimator/entropy_per_factor" not in header


# --- files ------------------------------------------------------------------------------------

SETTINGS = {
    "estimator": "gumbel_rao",
    "temperature": Schedule("linear", 1.0, 0.5),
    "estimator_kwargs": {"num_samples": 3},
    "critic": "multilinear",
    "ent_coef": "auto_0.3",
    "target_entropy": 0.4,
    "reward_scale": 0.1,
    "max_grad_norm": 2.0,
    "cosine_interval": 7,
    "target_update_interval": 2,
    "learning_rate": Schedule("cosine", 1e-3, 1e-4),
    "tau": 0.5,
    "gamma": 0.5,
    "gradient_steps": 2,
    "batch_size": 4,
    "learning_starts": 10,
    "buffer_size": 100,
}


def test_load_needs_nothing_but_the_file(tmp_path):
    policy_kwargs = {"net_arch": {"pi": [4], "qf": [5]}, "rank": 2, "activation_fn": torch.nn.Tanh}
    model = build(policy_kwargs=policy_kwargs, **SETTINGS).learn(30)
    model.save(tmp_path / "model.zip")
    loaded = GumbelSAC.load(tmp_path / "model.zip", device="cpu")
    assert_same(weights(loaded), weights(model))
    for name in SETTINGS.keys() - {"critic"}:
        assert getattr(loaded, name) == SETTINGS[name], name
    assert loaded.policy_kwargs == {**policy_kwargs, "critic": "multilinear"}
    assert loaded.objective.temperature(0.5) == 0.75
    assert (loaded.num_timesteps, loaded._n_updates) == (30, 40)
    for name in ("actor.optimizer", "critic.optimizer", "ent_coef_optimizer"):
        ours, theirs = (m.get_parameters()[name]["state"] for m in (model, loaded))
        torch.testing.assert_close(ours, theirs, rtol=0, atol=0)
    obs = observations(model)
    np.testing.assert_array_equal(
        loaded.predict(obs, deterministic=True)[0], model.predict(obs, deterministic=True)[0]
    )


@pytest.mark.parametrize("actor_gradient", ["exact", "local_expectation"])
def test_the_kind_of_gradient_is_saved(actor_gradient, tmp_path):
    build(actor_gradient=actor_gradient).save(tmp_path / "model")
    loaded = GumbelSAC.load(tmp_path / "model", env=Tiny(FACTORED), device="cpu")
    assert loaded.actor_gradient == actor_gradient
    loaded.learn(30)


def test_training_goes_on_as_if_it_had_not_stopped(tmp_path):
    """The same batches through the saved and the loaded model give the same weights."""
    model = build().learn(40)
    model.save(tmp_path / "model")
    model.save_replay_buffer(tmp_path / "buffer")
    loaded = GumbelSAC.load(tmp_path / "model", env=Tiny(FACTORED), device="cpu")
    loaded.load_replay_buffer(tmp_path / "buffer")
    assert loaded.replay_buffer.size() == 40
    loaded.set_logger(configure(None, []))
    for each in (model, loaded):
        np.random.seed(0)
        torch.manual_seed(0)
        each.train(5, 8)
    assert_same(weights(loaded), weights(model))
    loaded.learn(20, reset_num_timesteps=False)
    assert loaded.num_timesteps == 60
    assert loaded._n_updates == 20 + 5 + 20


def test_n_step_training_goes_on(tmp_path):
    model = build(n_steps=3).learn(30)
    model.save(tmp_path / "model")
    with warnings.catch_warnings():
        # SB3 mistakes its own choice of buffer for one of the user's; what it builds is right.
        warnings.filterwarnings("ignore", "`n_steps=3` is ignored")
        loaded = GumbelSAC.load(tmp_path / "model", env=Tiny(FACTORED), device="cpu")
    assert loaded.replay_buffer.n_steps == 3
    assert loaded.replay_buffer.gamma == 0.99
    loaded.learn(30)


def test_parameters_go_from_model_to_model():
    model, other = build().learn(40), build(seed=1)
    other.set_parameters(model.get_parameters())
    policies = (each.policy.state_dict() for each in (model, other))
    torch.testing.assert_close(*policies, rtol=0, atol=0)
    obs = observations(model)
    np.testing.assert_array_equal(
        other.predict(obs, deterministic=True)[0], model.predict(obs, deterministic=True)[0]
    )


def test_the_policy_alone_saves_and_loads(tmp_path):
    kwargs = {"net_arch": {"pi": [4], "qf": [5, 6]}, "n_critics": 3, "rank": 2}
    model = build(critic="multilinear", policy_kwargs=kwargs)
    model.policy.save(tmp_path / "policy")
    loaded = FactoredPolicy.load(tmp_path / "policy", device="cpu")
    torch.testing.assert_close(loaded.state_dict(), model.policy.state_dict(), rtol=0, atol=0)


@pytest.mark.parametrize("save_as", ["zip", "directory"])
def test_an_entropy_coefficient_of_zero_is_legal(save_as, tmp_path):
    """Its logarithm is minus infinity, which must neither warn nor spread."""
    model = build(ent_coef=0.0)
    model.set_logger(configure(None, []))
    model.learn(40, log_interval=None)
    assert model.logger.name_to_value["train/ent_coef"] == 0
    assert math.isfinite(model.logger.name_to_value["train/actor_loss"])
    if save_as == "zip":
        model.save(tmp_path / "model")
        loaded = GumbelSAC.load(tmp_path / "model", env=Tiny(FACTORED), device="cpu")
    else:
        save_model(model, tmp_path)
        loaded = load_model(tmp_path, env=Tiny(FACTORED), device="cpu")
    assert loaded.ent_coef == 0
    assert_same(weights(loaded), weights(model))
    loaded.learn(40)
    assert all(value.isfinite().all() for value in loaded.policy.state_dict().values())


# --- predictions ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("space", "shape"),
    [(spaces.Discrete(3, start=5), ()), (FACTORED, (2,)), (spaces.MultiBinary(3), (3,))],
    ids=str,
)
def test_predictions_are_actions_of_the_space(space, shape):
    model = build(Tiny(space))
    obs = observations(model, 50)
    actions, state = model.predict(obs)
    assert state is None
    assert actions.shape == (50, *shape)
    for action in actions:
        assert space.contains(action)
    assert len(np.unique(actions, axis=0)) > 1
    single, _ = model.predict(obs[0])
    assert single.shape == shape


def test_deterministic_predictions_are_the_most_probable_actions():
    model = build()
    obs = observations(model)
    probs = model.actor(torch.as_tensor(obs)).probs.detach().numpy()
    expected = np.stack([probs[:, 0].argmax(-1) - 1, probs[:, 1, :2].argmax(-1) + 4], -1)
    np.testing.assert_array_equal(model.predict(obs, deterministic=True)[0], expected)


# --- settings that are refused ----------------------------------------------------------------


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"estimator": "gumbel"}, "unknown estimator 'gumbel'; known: gumbel_softmax"),
        ({"critic": "linear"}, "unknown critic 'linear'; known: concat, multilinear"),
        ({"actor_gradient": "sum"}, "unknown actor_gradient 'sum'; known: estimator, exact"),
        ({"temperature": 0.0}, r"temperature 0\.0 of estimator 'straight_through_gumbel'"),
        ({"temperature": math.nan}, "nan .* must be finite"),
        ({"estimator": "reinmax", "temperature": 0.5}, r"temperature 0\.5.*>= 1"),
        ({"temperature": Schedule("linear", 1.0, 0.0)}, r"temperature 0\.0"),
        ({"temperature": {"start": 1.0}}, "keys schedule, start, end"),
        ({"temperature": {"schedule": "sine", "start": 1, "end": 1}}, "unknown schedule 'sine'"),
        (
            {"estimator": "gumbel_rao", "estimator_kwargs": {"num_samples": 0}},
            "num_samples 0",
        ),
        ({"estimator_kwargs": {"gap": 1.0}}, "has no option 'gap'"),
        ({"actor_gradient": "exact", "temperature": 1.0}, r"temperature 1\.0 would be ignored"),
        (
            {
                "actor_gradient": "exact",
                "estimator": "gumbel_rao",
                "estimator_kwargs": {"num_samples": 2},
            },
            "estimator_kwargs .* would be ignored",
        ),
        ({"ent_coef": "high"}, "ent_coef 'high' must be a number >= 0, 'auto' or"),
        ({"ent_coef": "auto_0"}, "ent_coef 'auto_0'"),
        ({"ent_coef": "auto_inf"}, "ent_coef 'auto_inf'"),
        ({"ent_coef": -0.1}, r"ent_coef -0\.1"),
        ({"ent_coef": math.nan}, "ent_coef nan"),
        ({"ent_coef": 0.1, "target_entropy": 0.5}, "target_entropy 0.5 would be ignored"),
        ({"target_entropy": -5.0}, r"target_entropy -5\.0 .* maximum of this space, 1\.792"),
        ({"target_entropy": 1.8}, r"target_entropy 1\.8 must be 'auto' or between 0"),
        ({"target_entropy": "half"}, "target_entropy 'half'"),
        ({"target_entropy_fraction": 1.0}, r"target_entropy_fraction 1\.0 must be in \(0, 1\)"),
        ({"reward_scale": 0.0}, r"reward_scale 0\.0 must be > 0"),
        ({"reward_scale": math.inf}, "reward_scale inf must be > 0 and finite"),
        ({"gamma": 1.5}, r"gamma 1\.5 must be in \[0, 1\]"),
        ({"tau": 0.0}, r"tau 0\.0 must be > 0"),
        ({"tau": 2.0}, r"tau 2\.0 must be in \[0, 1\]"),
        ({"batch_size": 0}, "batch_size 0 must be >= 1"),
        ({"buffer_size": 0}, "buffer_size 0 must be >= 1"),
        ({"n_steps": 0}, "n_steps 0 must be >= 1"),
        ({"learning_starts": -1}, "learning_starts -1 must be >= 0"),
        ({"gradient_steps": -2}, "gradient_steps -2 must be >= -1"),
        ({"max_grad_norm": -1.0}, r"max_grad_norm -1\.0 must be > 0"),
        ({"cosine_interval": -1}, "cosine_interval -1 must be >= 0"),
        ({"target_update_interval": 0}, "target_update_interval 0 must be >= 1"),
        ({"policy_kwargs": {"critic": "multilinear"}}, "policy_kwargs critic 'multilinear' would"),
        ({"policy_kwargs": {"rank": 2}}, "rank 2 would be ignored"),
    ],
    ids=str,
)
def test_settings_out_of_range_or_without_effect_are_refused(kwargs, message):
    with pytest.raises((ValueError, TypeError), match=message):
        build(**kwargs)


def test_a_rank_without_interactions_is_refused():
    """One factor makes the multilinear critic a Q-vector, which has no rank."""
    env = Tiny(spaces.Discrete(3))
    with pytest.raises(ValueError, match=r"rank 2 would be ignored: .* has one factor"):
        build(env, critic="multilinear", policy_kwargs={"rank": 2})


@pytest.mark.parametrize("size", [9, 1024])
def test_exact_is_refused_where_it_would_sum_too_much(size):
    """The second has more joint actions than a float can hold."""
    env = Tiny(spaces.MultiBinary(size))
    with pytest.raises(ValueError, match=r"more than 256; use 'local_expectation'"):
        build(env, actor_gradient="exact")
    build(env, learning_starts=5).learn(8)


@pytest.mark.parametrize(
    "space",
    [
        spaces.Box(-1, 1, (2,)),
        spaces.MultiDiscrete([[2, 2], [3, 3]]),
        spaces.Tuple([spaces.Discrete(2), spaces.Discrete(3)]),
    ],
    ids=str,
)
def test_other_action_spaces_are_refused(space):
    with pytest.raises(TypeError, match=r"is not supported: supported are Discrete"):
        build(Tiny(space))


DECOUPLED = {
    "estimator": "decoupled_straight_through",
    "estimator_kwargs": {"forward_temperature": 0.5},
}


def test_an_estimator_that_draws_from_another_policy_is_refused():
    """The actions in the buffer and the entropy are those of softmax(logits)."""
    with pytest.raises(ValueError, match=r"forward_temperature 0\.5 .*logits absorb"):
        build(**DECOUPLED)
    with pytest.raises(ValueError, match=r"forward_temperature 0\.5 .*logits absorb"):
        Estimation(**DECOUPLED)
    one = {**DECOUPLED, "estimator_kwargs": {"forward_temperature": 1.0}}
    build(**one).learn(25)
    Estimation(**one)


def test_unknown_policies_are_refused_by_name():
    with pytest.raises(ValueError, match="Policy MlpLstmPolicy unknown"):
        build(policy="MlpLstmPolicy")
    with pytest.raises(TypeError, match="GumbelSACPolicy needs the action space of the wrapper"):
        build(policy=GumbelSACPolicy)
