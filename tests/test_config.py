"""The configuration: what a file may say, what it may not, and how a mistake is told."""

import inspect
from pathlib import Path
from typing import get_args

import pytest

from rl_gumbel.config import (
    ALGOS,
    DEFAULT_ALGO,
    ESTIMATOR_OPTIONS,
    MIN_TEMPERATURE,
    ConfigError,
    ScheduleSettings,
    dump_config,
    find_tuned,
    list_settings,
    load_config,
    read_value,
)
from rl_gumbel.config.estimator import Estimator
from rl_gumbel.config.ppo import PPOConfig, PPOPolicySettings, PPOSettings
from rl_gumbel.config.reppo import REPPOPolicySettings
from rl_gumbel.config.sac import SACConfig, SACPolicySettings, SACSettings
from rl_gumbel.config.shac import RELAXED, SHACPolicySettings


@pytest.fixture
def load(tmp_path, monkeypatch):
    """Load a configuration from text, as the file `my.yaml` of the current directory."""
    monkeypatch.chdir(tmp_path)

    def load_text(text, overrides=None):
        Path("my.yaml").write_text(text)
        return load_config(Path("my.yaml"), overrides)

    return load_text


# --- values ---------------------------------------------------------------------------------------


def test_without_a_file_the_settings_are_the_defaults():
    assert load_config() == SACConfig()


def test_exponents_without_a_point_are_floats(load):
    """YAML 1.1, and so PyYAML, reads 1e-3 as text."""
    assert load("algorithm: {learning_rate: 1e-3}\n").algorithm.learning_rate == 0.001


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-3", 0.001),
        ("-2.5E+1", -25.0),
        (".5", 0.5),
        ("7", 7),
        ("1_000", 1000),
        ("true", True),
        ("yes", "yes"),
        ("12:30", "12:30"),
        ("0x10", "0x10"),
        ("2026-01-01", "2026-01-01"),
        ("null", None),
        ("4x4", "4x4"),
        ("[64, 64]", [64, 64]),
        ("{a: 1e2}", {"a": 100.0}),
    ],
)
def test_scalars_follow_yaml_1_2(text, value):
    """No surprises of YAML 1.1: `yes` is text, 12:30 is not 750."""
    assert read_value(text) == value
    assert type(read_value(text)) is type(value)


def test_an_integer_is_good_for_a_float(load):
    gamma = load("algorithm: {gamma: 1}\n").algorithm.gamma
    assert gamma == 1.0
    assert isinstance(gamma, float)


def test_a_schedule_is_a_mapping(load):
    text = "algorithm: {temperature: {schedule: linear, start: 1, end: 1e-1}}\n"
    expected = ScheduleSettings(schedule="linear", start=1.0, end=0.1)
    assert load(text).algorithm.temperature == expected


def test_the_command_line_wins_over_the_file(load):
    config = load("seed: 1\nnum_envs: 2\n", {("seed",): 5})
    assert (config.seed, config.num_envs) == (5, 2)


def test_arguments_of_the_environment_are_merged(load):
    config = load("env_kwargs: {a: 1, b: 2}\n", {("env_kwargs", "b"): 3})
    assert config.env_kwargs == {"a": 1, "b": 3}


def test_algo_chooses_the_settings(load):
    config = load("algo: ppo\nalgorithm: {clip_range: 0.1}\n")
    assert config == PPOConfig(algorithm=PPOSettings(clip_range=0.1))


def test_a_file_without_algo_takes_that_of_the_command_line(load):
    assert load("seed: 1\n", {("algo",): "ppo"}) == PPOConfig(seed=1)


def test_the_command_line_wins_over_the_file_for_every_algorithm(load):
    text = "algo: ppo\nalgorithm: {gamma: 0.5, n_epochs: 2}\n"
    settings = load(text, {("algorithm", "gamma"): 0.9}).algorithm
    assert (settings.gamma, settings.n_epochs) == (0.9, 2)


def test_a_config_cannot_be_changed():
    with pytest.raises(ValueError, match="frozen"):
        SACConfig().seed = 3


# --- mistakes -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "env: CartPole-v1\nalgorithm:\n  gamma: 0.9\n\n  # why\n\n  learnig_rate: 1e-3\n",
            "my.yaml:7: algorithm.learnig_rate: unknown key; did you mean learning_rate?",
        ),
        (
            "learning_rate: 1\n",
            "my.yaml:1: learning_rate: unknown key; did you mean algorithm.learning_rate?",
        ),
        ("zzzzzzz: 1\n", "my.yaml:1: zzzzzzz: unknown key"),
        (
            "backend: torch\nenv_wrappers: [a.B]\n",
            "my.yaml:2: env_wrappers: are Gymnasium's, and backend is torch",
        ),
        (
            "algo: pop\n",
            'my.yaml:1: algo: must be one of sac, reppo, shac, ppo, got "pop"; did you mean ppo?',
        ),
        ("algo: [ppo]\n", 'my.yaml:1: algo: must be one of sac, reppo, shac, ppo, got ["ppo"]'),
        ("algo:\n", "my.yaml:1: algo: must be one of sac, reppo, shac, ppo, got null"),
        (
            "algorithm:\n  clip_range: 0.1\n",
            "my.yaml:2: algorithm.clip_range: not a setting of sac but of ppo",
        ),
        (
            "policy_kwargs: {rank: 3}\nalgo: ppo\n",
            "my.yaml:1: policy_kwargs.rank: not a setting of ppo but of sac",
        ),
        (
            "algo: ppo\nalgorithm:\n  n_epoch: 3\n",
            "my.yaml:3: algorithm.n_epoch: unknown key; did you mean n_epochs?",
        ),
        (
            "algo: ppo\nn_epochs: 3\n",
            "my.yaml:2: n_epochs: unknown key; did you mean algorithm.n_epochs?",
        ),
        (
            "algo: ppo\npolicy_kwargs:\n  net_arch: {pi: [8], qf: [8]}\n",
            "my.yaml:3: policy_kwargs.net_arch.qf: unknown key",
        ),
        (
            "algo: ppo\nalgorithm: {clip_range: wide}\n",
            'my.yaml:2: algorithm.clip_range: must be a number or a mapping, got "wide"',
        ),
        (
            "algo: reppo\nalgorithm: {kl_coef: none}\n",
            "my.yaml:2: algorithm.kl_coef: must be a number, auto, or auto_X with X the initial "
            'value (auto_0.02), got "none"',
        ),
        (
            "algo: reppo\nalgorithm:\n  num_bins: 51\n  value_range: [5]\n",
            "my.yaml:4: algorithm.value_range: must have 2 entries, got [5]",
        ),
        (
            "algo: reppo\nalgorithm:\n  num_bins: 51\n  value_range: [5, 2]\n",
            "my.yaml:4: algorithm.value_range: must increase, got [5.0, 2.0]",
        ),
        (
            "algo: reppo\nalgorithm: {estimator: reinmax, temperature: 0.5}\n",
            "my.yaml:2: algorithm.temperature: must be at least 1 for reinmax, got 0.5",
        ),
        (
            "algo: shac\nalgorithm: {estimator: probabilities, score_function_weight: 0.5}\n",
            "my.yaml:2: algorithm.score_function_weight: must be 0 or 1 for probabilities",
        ),
        (
            "algo: reppo\nalgorithm: {tau: 0.5}\n",
            "my.yaml:2: algorithm.tau: not a setting of reppo but of sac",
        ),
        ("seed: true\n", "my.yaml:1: seed: must be an integer, got true"),
        ("seed: 1.5\n", "my.yaml:1: seed: must be an integer, got 1.5"),
        ("seed: 1e4\n", "my.yaml:1: seed: must be an integer, got 10000.0 (write 10000)"),
        ("seed: x\n", 'my.yaml:1: seed: must be an integer, got "x"'),
        ("seed: -1\n", "my.yaml:1: seed: must be at least 0, got -1"),
        ("env: 3\n", "my.yaml:1: env: must be text, got 3"),
        ("algorithm: {gamma: true}\n", "my.yaml:1: algorithm.gamma: must be a number, got true"),
        ("algorithm: {gamma: .nan}\n", "my.yaml:1: algorithm.gamma: must be finite, got NaN"),
        ("algorithm:\n  gamma: 1.5\n", "my.yaml:2: algorithm.gamma: must be at most 1, got 1.5"),
        ("algorithm:\n  tau: 0\n", "my.yaml:2: algorithm.tau: must be greater than 0, got 0"),
        ("algorithm: 3\n", "my.yaml:1: algorithm: must be a mapping, got 3"),
        (
            "policy_kwargs:\n  layer_norm: 1\n",
            "my.yaml:2: policy_kwargs.layer_norm: must be true or false, got 1",
        ),
        (
            "policy_kwargs:\n  net_arch: 64\n",
            "my.yaml:2: policy_kwargs.net_arch: must be a list or a mapping, got 64",
        ),
        (
            "policy_kwargs:\n  net_arch:\n    - 64\n    - x\n",
            'my.yaml:4: policy_kwargs.net_arch.1: must be an integer, got "x"',
        ),
        (
            "algorithm:\n  critic: conct\n",
            "my.yaml:2: algorithm.critic: must be concat or multilinear, "
            'got "conct"; did you mean concat?',
        ),
        (
            "algorithm: {ent_coef: automatic}\n",
            "my.yaml:1: algorithm.ent_coef: must be a number, auto, or auto_X with X the initial "
            'value (auto_0.02), got "automatic"',
        ),
        (
            "device: gpu\n",
            'my.yaml:1: device: must be auto, cpu, cuda or cuda:0, cuda:1, ..., got "gpu"',
        ),
        ("seed: 1\nseed: 2\n", "my.yaml:2: seed: given twice (first on line 1)"),
        (
            "algorithm:\n  gamma: 1\n  gamma: 1\n",
            "my.yaml:3: algorithm.gamma: given twice (first on line 2)",
        ),
        ("- a\n", "my.yaml: a configuration is a mapping of settings (name: value)"),
        ("seed: [\n", "my.yaml:2: not YAML: expected the node content, but found '<stream end>'"),
        ("a: &x {b: *x}\n", "my.yaml: not YAML: maximum recursion depth exceeded"),
    ],
)
def test_a_mistake_is_told_in_one_line_with_its_place(load, text, message):
    with pytest.raises(ConfigError) as caught:
        load(text)
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{schedule: liner, start: 1, end: 1}", "temperature.schedule: must be constant, linear"),
        ("{schedule: linear, start: 1}", "temperature.end: is missing"),
        ("{schedule: linear, start: 1, stop: 1, end: 1}", "temperature.stop: unknown key"),
        ("{schedule: linear, start: 1, end: 0}", "temperature.end: must be greater than 0"),
        ("{schedule: linear, start: -1, end: 1}", "temperature.start: must be at least 0"),
        ("{schedule: exponential, start: 0, end: 1}", "temperature.start: must be greater than 0"),
        ("{schedule: constant, start: 2, end: 1}", "temperature.end: must equal start (2)"),
        ("hot", "temperature: must be a number or a mapping"),
        ("0", "temperature: must be greater than 0"),
    ],
)
def test_a_bad_temperature_is_refused_by_name(load, text, message):
    with pytest.raises(ConfigError) as caught:
        load(f"algorithm:\n  temperature: {text}\n")
    assert str(caught.value).startswith(f"my.yaml:2: algorithm.{message}")


def test_a_temperature_must_suit_the_estimator(load):
    with pytest.raises(ConfigError) as caught:
        load("algorithm:\n  estimator: reinmax\n  temperature: 0.5\n")
    message = "my.yaml:3: algorithm.temperature: must be at least 1 for reinmax, got 0.5"
    assert str(caught.value) == message


def test_a_mistake_on_the_command_line_names_the_option(load):
    with pytest.raises(ConfigError) as caught:
        load("algorithm: {gamma: 0.5}\n", {("algorithm", "learning_rate"): -1})
    assert str(caught.value) == "--algorithm.learning-rate: must be greater than 0, got -1"


def test_another_algo_than_that_of_the_file_is_refused(load):
    """Its sections hold the settings of the algorithm that it names."""
    with pytest.raises(ConfigError) as caught:
        load("seed: 1\nalgo: sac\n", {("algo",): "ppo"})
    assert str(caught.value) == '--algo: ppo cannot use the settings of "sac" (my.yaml:2)'


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(ConfigError, match=r"none.yaml: cannot read .*: No such file"):
        load_config(tmp_path / "none.yaml")


# --- settings without effect ----------------------------------------------------------------------

IGNORED = [
    ("algorithm: {target_entropy: 0.3, target_entropy_fraction: 0.5}", "target_entropy_fraction"),
    ("algorithm: {ent_coef: 0.1, target_entropy: 0.3}", "target_entropy"),
    ("algorithm: {ent_coef: 0.1, target_entropy_fraction: 0.3}", "target_entropy_fraction"),
    ("algorithm: {actor_gradient: exact, temperature: 1}", "temperature"),
    ("algorithm: {actor_gradient: exact, estimator: reinmax}", "estimator"),
    ("algorithm: {actor_gradient: exact, cosine_interval: 10}", "cosine_interval"),
    ("algorithm: {estimator_kwargs: {gap: 1}}", "gap"),
    ("policy_kwargs: {rank: 3}", "rank"),
    ("{algorithm: {critic: multilinear}, policy_kwargs: {action_layer: first}}", "action_layer"),
    ("policy_kwargs: {shared_factors: true, action_layer: first}", "action_layer"),
    ("{algo: reppo, algorithm: {critic: concat}, policy_kwargs: {shared_factors: true}}", "critic"),
    ("{algo: ppo, algorithm: {batch_size: 64, num_minibatches: 4}}", "num_minibatches"),
    ("{algo: reppo, algorithm: {value_range: [0, 1]}}", "value_range"),
    ("{algo: reppo, algorithm: {actor_gradient: exact, temperature: 1}}", "temperature"),
    ("{algo: shac, algorithm: {score_function_weight: 1, temperature: 1}}", "temperature"),
    ("{algo: shac, algorithm: {ent_coef: 0.1, target_entropy: 1}}", "target_entropy"),
]


@pytest.mark.parametrize(("text", "name"), IGNORED)
def test_a_setting_that_would_be_ignored_is_refused(load, text, name):
    """Also if it has its default value: who writes it down believes that it matters."""
    with pytest.raises(ConfigError, match=rf"my.yaml:1: \S*{name}: would be ignored: "):
        load(text)


def test_an_override_drops_what_it_makes_meaningless(load):
    """So that tuned settings can be tried with another word on the command line."""
    text = (
        "algorithm: {temperature: 0.7, estimator: gumbel_rao, estimator_kwargs: {num_samples: 3}}"
    )
    settings = load(text, {("algorithm", "actor_gradient"): "exact"}).algorithm
    assert settings == SACSettings(actor_gradient="exact")


def test_a_batch_size_drops_the_number_of_minibatches(load):
    text = "{algo: ppo, algorithm: {num_minibatches: 8}}"
    config = load(text, {("algorithm", "batch_size"): 64})
    assert config.algorithm == PPOSettings(batch_size=64)


@pytest.mark.parametrize(
    ("estimator", "temperature"), [("reinmax", None), ("straight_through_gumbel", 0.7)]
)
def test_another_estimator_does_not_inherit_the_temperature(load, estimator, temperature):
    """Estimators want opposite temperatures; reinmax refuses what straight-through likes."""
    settings = load("algorithm: {temperature: 0.7}", {("algorithm", "estimator"): estimator})
    assert settings.algorithm.temperature == temperature


def test_an_override_of_the_temperature_stays_with_another_estimator(load):
    overrides = {("algorithm", "estimator"): "reinmax", ("algorithm", "temperature"): 2.0}
    assert load("algorithm: {temperature: 0.7}", overrides).algorithm.temperature == 2.0


def test_an_error_inside_an_override_names_the_option(load):
    """Not the line of the file that the override replaced."""
    with pytest.raises(ConfigError, match=r"^--policy-kwargs\.net-arch\.1: must be an integer"):
        load("policy_kwargs: {net_arch: [64, 64]}", {("policy_kwargs", "net_arch"): [64, "a"]})


def test_an_override_without_effect_is_refused_all_the_same(load):
    with pytest.raises(ConfigError, match=r"^--algorithm\.temperature: would be ignored"):
        load("algorithm: {actor_gradient: exact}", {("algorithm", "temperature"): 2})


# --- the resolved configuration -------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    [
        "",
        "algorithm: {target_entropy: 0.3}",
        "algorithm: {ent_coef: 0.1}",
        "algorithm: {actor_gradient: exact}",
        "algorithm: {critic: multilinear}\npolicy_kwargs: {rank: 3}",
        "policy_kwargs: {action_layer: first}",
        "policy_kwargs: {shared_factors: true}",
        "algorithm: {estimator: gumbel_rao, estimator_kwargs: {num_samples: 3}}",
        "algorithm: {learning_rate: {schedule: cosine, start: 1e-3, end: 1e-5}}",
        "policy_kwargs: {net_arch: {pi: [8], qf: [16, 16]}}",
        "algo: reppo\nalgorithm: {num_bins: 51, value_range: [-1, 20], kl_coef: auto_0.1}",
        "algo: ppo",
        "algo: reppo",
        "algo: reppo\nalgorithm: {num_bins: 51, value_range: [-1, 2], kl_coef: 1}",
        "algo: shac",
        "algo: shac\nalgorithm: {score_function_weight: 1, average_reward_rate: 0.1}",
        "algo: ppo\nalgorithm: {batch_size: 64, clip_range_vf: 1}",
        "algo: ppo\npolicy_kwargs: {net_arch: {pi: [8], vf: [16, 16]}}",
        "env: FrozenLake-v1\nenv_kwargs: {is_slippery: false, desc: [SF, HG], map_name: null}",
    ],
)
def test_the_resolved_configuration_is_a_configuration(load, text):
    config = load(text)
    assert load(dump_config(config)) == config


def test_the_resolved_configuration_names_every_setting_that_has_effect():
    for config in (config() for config in ALGOS.values()):
        written = {f"algorithm.{name}" for name in read_value(dump_config(config))["algorithm"]}
        settings = {f"algorithm.{name}" for name in type(config.algorithm).model_fields}
        assert written == settings - {ignored.field for ignored in config.ignored()}


# --- beside the code ------------------------------------------------------------------------------


def test_every_setting_has_a_sentence():
    """It is the help of the command line."""
    settings = [setting for algo in ALGOS for setting in list_settings(algo)]
    assert [setting.place for setting in settings if not setting.help.endswith(".")] == []


def test_estimators_and_their_ranges_are_those_of_the_registry():
    from rl_gumbel import ESTIMATORS

    assert get_args(Estimator) == tuple(ESTIMATORS)
    options = {name: tuple(e.options) for name, e in ESTIMATORS.items() if e.options}
    assert options == dict(ESTIMATOR_OPTIONS)
    minima = {name: e.min_temperature for name, e in ESTIMATORS.items() if e.min_temperature > 0}
    assert minima == dict(MIN_TEMPERATURE)
    assert tuple(name for name, e in ESTIMATORS.items() if e.is_relaxed) == RELAXED


def test_algorithms_are_those_of_the_registry():
    from rl_gumbel import ALGORITHMS

    assert tuple(ALGOS) == tuple(ALGORITHMS)
    assert [config().algo for config in ALGOS.values()] == list(ALGOS)
    assert DEFAULT_ALGO == "sac"


NOT_SETTINGS = {
    "self",
    "policy",
    "env",
    "replay_buffer_class",
    "replay_buffer_kwargs",
    "optimize_memory_usage",
    "estimator_kwargs",  # {} there or None, options that are all None here
    "tensorboard_log",
    "policy_kwargs",
    "verbose",
    "seed",
    "device",
    "_init_setup_model",
}
"""Arguments of constructors that the section `algorithm` does not hold."""


@pytest.mark.parametrize("algo", ALGOS)
def test_settings_and_defaults_are_those_of_the_constructor(algo):
    """One run from Python and one from the command line must be the same run."""
    from rl_gumbel import ALGORITHMS

    parameters = inspect.signature(ALGORITHMS[algo].__init__).parameters
    theirs = {name: p.default for name, p in parameters.items() if name not in NOT_SETTINGS}
    ours = ALGOS[algo]().algorithm.model_dump()
    assert not any(ours.pop("estimator_kwargs", {}).values())
    assert ours == theirs


@pytest.mark.parametrize("settings", [SACPolicySettings(), REPPOPolicySettings()])
def test_network_defaults_are_those_of_the_policy(settings):
    from rl_gumbel.cli.build import ACTIVATIONS
    from rl_gumbel.policies.factored import FactoredPolicy
    from rl_gumbel.policies.reppo import REPPOPolicy

    parameters = dict(inspect.signature(FactoredPolicy.__init__).parameters)
    if isinstance(settings, REPPOPolicySettings):
        parameters |= inspect.signature(REPPOPolicy.__init__).parameters
    ours = settings.model_dump(exclude={"net_arch", "activation_fn"})
    assert ours == {name: parameters[name].default for name in ours}
    assert parameters["activation_fn"].default is ACTIVATIONS[settings.activation_fn]
    # None there, filled in by FactoredPolicy.settings.
    assert settings.net_arch == [256, 256]


def test_network_defaults_of_shac_are_those_of_the_policy():
    from rl_gumbel.cli.build import ACTIVATIONS
    from rl_gumbel.policies.shac import SHACPolicy

    parameters = inspect.signature(SHACPolicy.__init__).parameters
    ours = SHACPolicySettings().model_dump(exclude={"net_arch", "activation_fn"})
    assert ours == {name: parameters[name].default for name in ours}
    assert parameters["activation_fn"].default is ACTIVATIONS[SHACPolicySettings().activation_fn]
    assert SHACPolicySettings().net_arch == [256, 256]  # None there, filled in


def test_network_defaults_of_ppo_are_those_of_stable_baselines3():
    from stable_baselines3.common.policies import ActorCriticPolicy

    from rl_gumbel.cli.build import ACTIVATIONS

    parameters = inspect.signature(ActorCriticPolicy.__init__).parameters
    ours = PPOPolicySettings().model_dump(exclude={"net_arch", "activation_fn", "shared_factors"})
    assert ours == {name: parameters[name].default for name in ours}
    assert ACTIVATIONS[PPOPolicySettings().activation_fn] is parameters["activation_fn"].default
    assert not PPOPolicySettings().shared_factors  # which stock networks are not
    # None there, filled in by its constructor.
    assert PPOPolicySettings().net_arch == [64, 64]


@pytest.mark.parametrize("env", ["CartPole-v1", "rl_gumbel/CartPole-v1", "package:CartPole-v1"])
def test_tuned_settings_are_found_by_the_name_of_the_environment(env):
    assert find_tuned("sac", env).name == "CartPole-v1.yaml"


def test_no_tuned_settings_is_none():
    assert find_tuned("sac", "Nothing-v0") is None
    assert find_tuned("nothing", "CartPole-v1") is None


@pytest.mark.parametrize(
    "text", ["0E0", "1e-3", "1E5", "no", "12:30", "null", "~", "1_000", ".inf"]
)
def test_text_that_looks_like_something_else_is_written_as_text(text, tmp_path):
    config = load_config(None, {("env_kwargs",): {"name": text, text: 1.5}})
    path = tmp_path / "config.yaml"
    path.write_text(dump_config(config))
    again = load_config(path, {}).env_kwargs
    assert again == {"name": text, text: 1.5}
    assert isinstance(again["name"], str)
