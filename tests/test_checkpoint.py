"""Models on disk: what comes back is what was saved, and damage is told by name."""

import json

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces
from stable_baselines3.common.torch_layers import FlattenExtractor

from rl_gumbel import GumbelSAC, Schedule, load_model, save_model
from rl_gumbel.checkpoint.values import from_json, space_from_json, space_to_json, to_json


class Corridor(gym.Env):
    """A tiny environment with spaces of choice; an episode is 5 steps."""

    def __init__(self, observation_space, action_space):
        self.observation_space = observation_space
        self.action_space = action_space
        self.observation_space.seed(0)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.steps = 0
        return self.observation_space.sample(), {}

    def step(self, action):
        assert self.action_space.contains(action)
        self.steps += 1
        return self.observation_space.sample(), 1.0, self.steps == 5, False, {}


VECTOR = spaces.Box(-1, 1, (3,))


def make_model(observation_space=VECTOR, action_space=None, policy="MlpPolicy", **kwargs):
    space = action_space or spaces.Discrete(3)
    settings = {
        "learning_starts": 10,
        "batch_size": 4,
        "buffer_size": 100,
        "policy_kwargs": {"net_arch": [8]},
        "device": "cpu",
        "seed": 0,
    } | kwargs
    return GumbelSAC(policy, Corridor(observation_space, space), **settings)


def tensors(model):
    return {**model.policy.state_dict(), "log_ent_coef": model.log_ent_coef.detach()}


def assert_same(left, right):
    assert left.keys() == right.keys()
    for name, value in left.items():
        torch.testing.assert_close(value, right[name], rtol=0, atol=0, msg=name)


@pytest.mark.parametrize(
    ("observation_space", "action_space", "policy"),
    [
        (VECTOR, spaces.Discrete(3, start=2), "MlpPolicy"),
        (spaces.Discrete(4), spaces.MultiDiscrete([2, 3]), "MlpPolicy"),
        (
            spaces.Dict({"b": VECTOR, "a": spaces.Discrete(2)}),
            spaces.MultiBinary(3),
            "MultiInputPolicy",
        ),
    ],
)
def test_a_model_comes_back_the_same_without_its_environment(
    tmp_path, observation_space, action_space, policy
):
    model = make_model(observation_space, action_space, policy).learn(20)
    save_model(model, tmp_path)
    loaded = load_model(tmp_path, device="cpu")
    assert_same(tensors(model), tensors(loaded))
    assert loaded.num_timesteps == 20
    assert (loaded.observation_space, loaded.action_space) == (observation_space, action_space)
    for _ in range(10):
        obs = observation_space.sample()
        np.testing.assert_array_equal(
            model.predict(obs, deterministic=True)[0], loaded.predict(obs, deterministic=True)[0]
        )


def test_every_argument_comes_back(tmp_path):
    """What a constructor was given decides how training goes on."""
    kwargs = {
        "learning_rate": Schedule("linear", 1e-3, 1e-4),
        "train_freq": 3,
        "gradient_steps": 2,
        "tau": 0.5,
        "gamma": 0.5,
        "estimator": "gumbel_rao",
        "temperature": {"schedule": "linear", "start": 1.0, "end": 0.5},
        "estimator_kwargs": {"num_samples": 3},
        "critic": "multilinear",
        "ent_coef": "auto_0.3",
        "target_entropy": 0.4,
        "reward_scale": 0.1,
        "max_grad_norm": 2.0,
        "n_steps": 3,
        "stats_window_size": 7,
        "policy_kwargs": {
            "net_arch": {"pi": [4], "qf": [5]},
            "activation_fn": torch.nn.Tanh,
            "features_extractor_class": FlattenExtractor,
            "optimizer_class": torch.optim.AdamW,
            "rank": 2,
        },
    }
    model = make_model(action_space=spaces.MultiDiscrete([2, 3]), **kwargs)
    save_model(model.learn(20), tmp_path / "first")
    save_model(load_model(tmp_path / "first", device="cpu"), tmp_path / "second")
    first, second = (
        json.loads((tmp_path / name / "model.json").read_text()) for name in ("first", "second")
    )
    assert first == second
    loaded = load_model(tmp_path / "second", device="cpu")
    for name in kwargs.keys() - {"train_freq", "critic", "policy_kwargs", "stats_window_size"}:
        assert getattr(loaded, name) == kwargs[name], name
    assert loaded.train_freq.frequency == 3
    assert loaded._stats_window_size == 7
    assert loaded.policy_kwargs == {**kwargs["policy_kwargs"], "critic": "multilinear"}


def test_a_fixed_entropy_coefficient_comes_back(tmp_path):
    save_model(make_model(ent_coef=0.3), tmp_path)
    assert load_model(tmp_path, device="cpu").ent_coef == 0.3


def test_a_shared_features_extractor_is_saved(tmp_path):
    """Tensors that share memory are refused by safetensors itself."""
    kwargs = {"net_arch": [8], "share_features_extractor": True}
    image = spaces.Box(0, 255, (3, 36, 36), np.uint8)
    model = make_model(image, policy="CnnPolicy", policy_kwargs=kwargs)
    save_model(model, tmp_path)
    assert_same(tensors(model), tensors(load_model(tmp_path, device="cpu")))


def test_a_loaded_model_trains_on(tmp_path):
    save_model(make_model().learn(20), tmp_path)
    env = Corridor(VECTOR, spaces.Discrete(3))
    loaded = load_model(tmp_path, env, device="cpu")
    before = loaded.policy.actor.state_dict()
    before = {name: value.clone() for name, value in before.items()}
    loaded.learn(20, reset_num_timesteps=False)
    assert loaded.num_timesteps == 40
    after = loaded.policy.actor.state_dict()
    assert any(not torch.equal(value, after[name]) for name, value in before.items())


def test_an_argument_can_be_replaced_when_loading(tmp_path):
    save_model(make_model(), tmp_path)
    assert load_model(tmp_path, device="cpu", buffer_size=7).replay_buffer.buffer_size == 7


def test_another_environment_is_refused(tmp_path):
    save_model(make_model(), tmp_path)
    with pytest.raises(ValueError, match="Observation spaces do not match"):
        load_model(tmp_path, Corridor(spaces.Discrete(2), spaces.Discrete(3)))


def test_no_pickle_is_written_and_nothing_is_left_aside(tmp_path):
    save_model(make_model(), tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model.json", "model.safetensors"]
    json.loads((tmp_path / "model.json").read_text(), parse_constant=pytest.fail)


def test_a_failed_write_leaves_the_old_model(tmp_path, monkeypatch):
    """A full disk or a kill in the middle must not cost the model that was there."""
    model = make_model()
    save_model(model, tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}

    def fail(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", fail)
    model.learn(20)
    with pytest.raises(OSError, match="No space left"):
        save_model(model, tmp_path)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_a_callable_that_json_cannot_hold_is_refused(tmp_path):
    with pytest.raises(TypeError, match=r"without pickle; use rl_gumbel\.Schedule"):
        save_model(make_model(learning_rate=lambda progress: 1e-3), tmp_path)


# --- damage ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["model.json", "model.safetensors"])
def test_a_missing_file_is_named(tmp_path, name):
    save_model(make_model(), tmp_path)
    (tmp_path / name).unlink()
    with pytest.raises(FileNotFoundError, match=f"holds no model: {name} is missing"):
        load_model(tmp_path)


@pytest.mark.parametrize("content", [b"", b"{}", b"[1]", b"\xff\xff", b"half a {"])
def test_a_record_that_is_none_is_refused(tmp_path, content):
    save_model(make_model(), tmp_path)
    (tmp_path / "model.json").write_bytes(content)
    with pytest.raises(ValueError, match=r"model\.json is not the record of a model"):
        load_model(tmp_path)


def test_half_the_tensors_are_refused(tmp_path):
    save_model(make_model(), tmp_path)
    path = tmp_path / "model.safetensors"
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(ValueError, match=r"model\.safetensors is damaged"):
        load_model(tmp_path)


def edit(directory, **changes):
    path = directory / "model.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_a_newer_format_is_refused(tmp_path):
    save_model(make_model(), tmp_path)
    edit(tmp_path, format_version=2)
    with pytest.raises(ValueError, match="has format 2; this version of rl-gumbel reads 1"):
        load_model(tmp_path)


def test_an_unknown_algorithm_is_refused(tmp_path):
    save_model(make_model(), tmp_path)
    edit(tmp_path, algorithm="Sack")
    with pytest.raises(ValueError, match="unknown algorithm 'Sack'; known: GumbelSAC"):
        load_model(tmp_path)


def test_tensors_of_other_networks_are_refused(tmp_path):
    save_model(make_model(), tmp_path / "a")
    save_model(make_model(policy_kwargs={"net_arch": [9]}), tmp_path / "b")
    (tmp_path / "a/model.json").replace(tmp_path / "b/model.json")
    with pytest.raises(ValueError, match="the tensors do not fit the networks"):
        load_model(tmp_path / "b")


@pytest.mark.parametrize("name", ["subprocess:Popen", "torch:load", "torch:Generator", "os:system"])
def test_a_file_cannot_name_code_to_run(name):
    """A model from a stranger must be safe to load."""
    with pytest.raises(ValueError, match="not loaded from a file"):
        from_json({"$class": name})


# --- values ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "value",
    [
        None,
        True,
        3,
        0.1,
        "text",
        [1, [2.5, None]],
        (1, "step"),
        {"a": {"b": [1]}},
        Schedule("cosine", 1.0, 0.5),
        torch.nn.ReLU,
        torch.optim.Adam,
    ],
)
def test_values_survive_json(value):
    back = from_json(json.loads(json.dumps(to_json(value))))
    assert back == value
    assert type(back) is type(value)


@pytest.mark.parametrize(
    "space",
    [
        spaces.Box(-1, 1, (2, 3)),
        spaces.Box(np.array([-np.inf, 0]), np.array([1.5, np.inf]), dtype=np.float64),
        spaces.Box(0, 255, (3, 4, 4), np.uint8),
        spaces.Box(-np.inf, np.inf, ()),
        spaces.Discrete(3, start=-1),
        spaces.MultiDiscrete([2, 3], start=[1, 0]),
        spaces.MultiDiscrete([[2, 3], [4, 5]], dtype=np.int32),
        spaces.MultiBinary(3),
        spaces.MultiBinary([2, 3]),
        spaces.Dict({"z": spaces.Discrete(2), "a": spaces.Dict({"b": spaces.MultiBinary(1)})}),
    ],
    ids=str,
)
def test_spaces_survive_json(space):
    back = space_from_json(json.loads(json.dumps(space_to_json(space), allow_nan=False)))
    assert back == space
    assert back.dtype == space.dtype


def test_other_spaces_are_refused():
    with pytest.raises(TypeError, match="cannot save a space of kind Text"):
        space_to_json(spaces.Text(3))
