"""Every file of tuned settings builds, trains a few steps, and is left as it was."""

import pytest
from stable_baselines3.common.logger import configure

from rl_gumbel.cli.backends import make_training_vec
from rl_gumbel.cli.build import make_model
from rl_gumbel.cli.environments import policy_name
from rl_gumbel.config import CONFIGS, dump_config, find_tuned, load_config

FILES = sorted(CONFIGS.glob("*/*.yaml"))


@pytest.fixture(params=FILES, ids=lambda path: f"{path.parent.name}-{path.stem}")
def path(request):
    return request.param


def test_there_are_tuned_settings():
    """An empty list would make every test below pass."""
    found = {path.parent.name for path in FILES if path.stem == "CartPole-v1"}
    assert found >= {"sac", "ppo"}


def test_every_environment_with_a_gradient_has_settings_of_shac():
    assert {path.stem for path in FILES if path.parent.name == "shac"} == {
        "Acrobot-v1",
        "CartPole-v1",
        "DiscretePendulum-v1",
        "Inventory-v0",
        "MountainCar-v0",
        "PendulumBank-v0",
        "QueueNetwork-v0",
        "Thermostats-v0",
    }


def test_the_file_is_where_its_settings_say(path):
    config = load_config(path)
    assert find_tuned(config.algo, config.env) == path


def test_every_tuned_value_differs_from_the_default(path):
    """What a file repeats would stay behind when the default moves."""
    config = load_config(path)
    assert repeated(config) == []


def repeated(section):
    """Names of the settings that are given and equal to their defaults, in all sections.

    What every file states is left out: the task, and the budget that its values were tuned for.
    """
    fields = type(section).model_fields
    found = []
    for name in section.model_fields_set - {"env", "algo", "total_timesteps"}:
        value = getattr(section, name)
        if hasattr(value, "model_fields_set") and name in ("algorithm", "policy_kwargs"):
            found += repeated(value)
        elif value == fields[name].default:
            found.append(name)
    return found


@pytest.mark.parametrize("path", [path for path in FILES if path.parent.name != "ppo"])
def test_tuned_settings_train_an_estimator(path):
    """The exact gradient and the score function are baselines, not the idea of the project."""
    algorithm = load_config(path).algorithm
    assert getattr(algorithm, "actor_gradient", "estimator") == "estimator"
    assert getattr(algorithm, "score_function_weight", 0) < 1


def build(config):
    env = make_training_vec(config, "cpu")
    return make_model(config, env, policy_name(env.observation_space), "cpu"), env


@pytest.mark.parametrize("num_envs", [1, 7])
def test_tuned_settings_build_for_any_number_of_environments(path, num_envs):
    _, env = build(load_config(path, {("num_envs",): num_envs}))
    env.close()


QUICK = {
    "sac": {"learning_starts": 10, "buffer_size": 100, "train_freq": 1},
    "reppo": {"n_steps": 6, "num_minibatches": 2, "n_epochs": 1},
    "shac": {"n_steps": 6, "num_minibatches": 2, "n_epochs": 1},
    "ppo": {"n_steps": 6, "num_minibatches": 2, "n_epochs": 1, "batch_size": None},
}
"""Settings under which few steps suffice for an update."""


def test_tuned_settings_build_and_train(path, tmp_path):
    quick = QUICK[path.parent.name]
    overrides = {("algorithm", name): value for name, value in quick.items()}
    config = load_config(path, overrides)
    before = dump_config(config)
    model, env = build(config)
    model.set_logger(configure(str(tmp_path), ["csv"]))
    model.learn(12 * config.num_envs)
    env.close()
    model.logger.close()
    assert model._n_updates > 0
    assert dump_config(config) == before
