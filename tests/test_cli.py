"""The command line as its user meets it: output, exit codes, files, and errors in a line or two."""

import csv
import json
import os
import platform
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces

from rl_gumbel import __version__
from rl_gumbel.cli import main, make_config
from rl_gumbel.cli.backends import choose_backend, make_evaluation_vec, make_training_vec
from rl_gumbel.cli.environments import MAX_EPISODE_STEPS
from rl_gumbel.cli.parser import parse
from rl_gumbel.config import ALGOS, list_settings
from rl_gumbel.envs import ENVS
from rl_gumbel.envs.base import TorchEnv
from rl_gumbel.vec_env import SB3VecEnv

QUICK = [
    "--total-timesteps=60",
    "--eval-freq=30",
    "--eval-episodes=2",
    "--num-envs=1",
    "--algorithm.learning-starts=20",
    "--algorithm.batch-size=4",
    "--algorithm.buffer-size=100",
    "--policy-kwargs.net-arch=[4]",
]
"""Training that takes no time."""
LONGER = ["--total-timesteps=150", "--eval-freq=75"]
"""Long enough for the four episodes after which SB3 logs."""


class Endless(gym.Env):
    """Actions and observations of choice, and no end."""

    def __init__(self, action_space=None, observation_space=None):
        self.action_space = action_space or spaces.Discrete(2)
        self.observation_space = observation_space or spaces.Box(-1, 1, (2,))

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.observation_space.seed(seed)
        return self.observation_space.sample(), {}

    def step(self, action):
        assert self.action_space.contains(action), action
        return self.observation_space.sample(), 1.0, False, False, {}


class EndlessTorch(TorchEnv):
    """Has no limit either, and steps as a batch."""

    def __init__(self, num_envs, max_episode_steps=None, **kwargs):
        space = spaces.Box(-1, 1, (2,))
        super().__init__(num_envs, space, spaces.Discrete(2), max_episode_steps, **kwargs)

    def initial(self):
        return {"obs": self.uniform(2)}

    def transition(self, state, action):
        return state, torch.ones(self.num_envs), torch.zeros(self.num_envs, dtype=torch.bool)

    def observe(self, state):
        return state["obs"]


class Broken(Endless):
    """Has a bug of its own."""

    def __init__(self):
        raise ZeroDivisionError("a bug")


class Unfinished(Endless):
    """Needs a package that nobody has."""

    def __init__(self):
        import no_such_package  # noqa: F401


NESTED = spaces.Dict({"a": spaces.Discrete(3), "b": spaces.MultiBinary((2, 2))})
for name, creator, kwargs in (
    ("Endless-v0", Endless, {}),
    ("Factors-v0", Endless, {"action_space": spaces.MultiDiscrete([2, 3])}),
    ("Bits-v0", Endless, {"action_space": spaces.MultiBinary(3)}),
    ("Nested-v0", Endless, {"action_space": NESTED}),
    ("Dict-v0", Endless, {"observation_space": spaces.Dict({"x": spaces.Box(-1, 1, (2,))})}),
    ("Image-v0", Endless, {"observation_space": spaces.Box(0, 255, (36, 36, 1), np.uint8)}),
    ("Text-v0", Endless, {"observation_space": spaces.Text(3)}),
    ("Broken-v0", Broken, {}),
    ("Unfinished-v0", Unfinished, {}),
):
    gym.register(f"cli/{name}", creator, kwargs=kwargs, max_episode_steps=None)


@pytest.fixture(autouse=True)
def empty_directory(tmp_path, monkeypatch):
    """Every command runs in an empty directory, as a new user's."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def call(capsys):
    """Run a command line; return its exit code, output and errors."""

    def run(*words):
        try:
            code = main([str(word) for word in words])
        except SystemExit as stop:  # argparse: help, version, completion
            code = stop.code
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run


def read_csv(path):
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


# --- help, version, completion --------------------------------------------------------------------


def test_help_names_the_commands(call):
    code, out, _ = call("--help")
    assert code == 0
    assert all(verb in out for verb in ("train", "resume", "evaluate", "list"))


def test_without_arguments_there_is_help(call):
    assert call() == call("--help")


def test_version(call):
    assert call("--version") == (0, f"rl-gumbel {__version__}\n", "")


def test_help_of_train_shows_every_setting_in_groups(call):
    _, out, _ = call("train", "--help")
    assert find_options(out) - {"--env-kwargs."} == options_of("sac")
    for group in ("command:", "run:", "algorithm:", "networks:", "--env-kwargs.NAME"):
        assert group in out


def find_options(text):
    """Settings that a text of help names."""
    own = {"--help", "--config", "--run-dir", "--resume", "--no-progress"}
    return set(re.findall(r"^ +(?:-h, )?(--[a-z0-9.-]+)", text, re.MULTILINE)) - own


def options_of(algo):
    return {"--" + ".".join(s.place).replace("_", "-") for s in list_settings(algo)}


@pytest.mark.parametrize(
    "words", [["--algo", "ppo", "--help"], ["--help", "--seed=1", "--algo=ppo"]]
)
def test_help_of_train_shows_the_settings_of_the_algorithm_named(call, words):
    _, out, _ = call("train", *words)
    assert find_options(out) - {"--env-kwargs."} == options_of("ppo")
    assert "arguments of ppo" in out


def test_help_of_train_names_the_other_algorithms(call):
    assert "Options of ppo: rl-gumbel train --algo ppo --help" in call("train", "--help")[1]


LIGHT = """
import sys
from rl_gumbel.cli import main
try:
    code = main(sys.argv[1:])
except SystemExit as stop:
    code = stop.code
heavy = {"torch", "gymnasium", "stable_baselines3", "numpy", "rich", "safetensors"}
print(code, sorted(heavy & set(sys.modules)))
"""


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (["--help"], 0),
        (["train", "--help"], 0),
        (["train", "--algorithm.gamma", "2"], 2),
        (["list", "algos"], 0),
        (["list", "configs"], 0),
        (["list", "estimators"], 0),
    ],
)
def test_help_and_a_refused_setting_import_nothing_heavy(words, code):
    """Half a second, not the seconds that torch takes; modules are counted, since clocks vary."""
    done = subprocess.run(
        [sys.executable, "-c", LIGHT, *words], capture_output=True, text=True, env=environment()
    )
    assert done.stdout.splitlines()[-1] == f"{code} []"


def environment():
    root = str(Path(__file__).parents[1])
    return os.environ | {"PYTHONPATH": root, "OMP_NUM_THREADS": "1"}


@pytest.mark.parametrize("shell", ["bash", "zsh"])
def test_tab_completion_knows_the_options(call, shell):
    code, out, _ = call("--print-completion", shell)
    assert code == 0
    assert "--algorithm.learning-rate" in out
    assert "--algorithm.clip-range" in out  # of every algorithm
    assert "straight_through_gumbel reinmax" in out.replace("'", "")


# --- train ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory):
    """A finished run on CartPole."""
    path = tmp_path_factory.mktemp("run")
    before = os.getcwd()
    os.chdir(path)
    try:
        assert main(["train", *QUICK, *LONGER, "--run-dir", "run", "--seed", "3"]) == 0
    finally:
        os.chdir(before)
    return path / "run"


def test_a_run_is_one_directory(run_dir):
    names = {str(path.relative_to(run_dir)) for path in run_dir.rglob("*") if path.is_file()}
    events = {name for name in names if name.startswith("events.out.tfevents")}
    assert len(events) == 1
    assert names - events == {
        "config.yaml",
        "metadata.json",
        "progress.csv",
        "evaluations.csv",
        "models/last/model.json",
        "models/last/model.safetensors",
        "models/best/model.json",
        "models/best/model.safetensors",
        "checkpoints/LATEST",
        "checkpoints/150/manifest.json",
        "checkpoints/150/model.json",
        "checkpoints/150/model.safetensors",
        "checkpoints/150/state.json",
        "checkpoints/150/state.safetensors",
    }


def test_evaluations_are_on_time(run_dir):
    rows = read_csv(run_dir / "evaluations.csv")
    assert list(rows[0]) == ["timesteps", "mean_reward", "std_reward", "mean_ep_length"]
    assert [row["timesteps"] for row in rows] == ["75", "150"]


def test_progress_has_the_tags_of_sb3_and_ours(run_dir):
    tags = set(read_csv(run_dir / "progress.csv")[-1])
    assert tags > {
        "rollout/ep_rew_mean",
        "rollout/ep_len_mean",
        "time/fps",
        "train/actor_loss",
        "train/critic_loss",
        "train/ent_coef",
        "eval/mean_reward",
        "eval/mean_ep_length",
        "estimator/temperature",
        "estimator/entropy",
        "estimator/grad_norm",
        "estimator/cosine",
    }


def test_metadata_says_what_ran_where(run_dir):
    metadata = json.loads((run_dir / "metadata.json").read_text())
    assert metadata["versions"].keys() == {
        "rl-gumbel",
        "python",
        "torch",
        "stable-baselines3",
        "gymnasium",
        "numpy",
    }
    assert metadata.keys() > {"command", "started", "git_commit", "device", "hardware"}


def test_tuned_settings_are_the_default(run_dir):
    from rl_gumbel.config import find_tuned, load_config

    tuned = load_config(find_tuned("sac", "CartPole-v1"))
    used = load_config(run_dir / "config.yaml")
    assert used.algorithm.reward_scale == tuned.algorithm.reward_scale
    assert (used.env, used.algo, used.seed, used.total_timesteps) == ("CartPole-v1", "sac", 3, 150)
    record = json.loads((run_dir / "models/last/model.json").read_text())
    assert (record["settings"]["seed"], record["settings"]["reward_scale"]) == (
        used.seed,
        used.algorithm.reward_scale,
    )


def test_the_resolved_configuration_repeats_the_run(run_dir, call):
    code, _, _ = call("train", "--config", run_dir / "config.yaml", "--run-dir", "again")
    assert code == 0
    for name in ("config.yaml", "evaluations.csv"):
        assert Path("again", name).read_text() == (run_dir / name).read_text()
    one, two = (path / "models/last/model.safetensors" for path in (run_dir, Path("again")))
    assert one.read_bytes() == two.read_bytes()


QUICK_PPO = [
    "--algo=ppo",
    "--num-envs=4",
    "--total-timesteps=200",
    "--eval-freq=100",
    "--eval-episodes=2",
    "--algorithm.n-steps=10",
    "--policy-kwargs.net-arch={pi: [4], vf: [8]}",
]


@pytest.mark.parametrize("backend", ["torch", "gymnasium"])
def test_another_algorithm_trains_and_is_evaluated_on_either_backend(call, backend):
    code, out, _ = call("train", *QUICK_PPO, "--run-dir", "run", "--backend", backend)
    assert code == 0
    assert f"training ppo on CartPole-v1 ({backend} on cpu; settings: " in out
    assert [row["timesteps"] for row in read_csv("run/evaluations.csv")] == ["100", "200"]
    assert read_csv("run/progress.csv")[-1]["train/approx_kl"] != ""
    code, out, _ = call("evaluate", "run", "--episodes", 2, "--json")
    assert (code, json.loads(out)["episodes"]) == (0, 2)


@pytest.mark.parametrize(
    ("words", "backend"),
    [
        ([], "torch"),
        (["--env", "rl_gumbel/CartPole-v1"], "torch"),
        (["--backend", "gymnasium"], "gymnasium"),
        (["--env-wrappers", "[gymnasium.wrappers.NormalizeObservation]"], "gymnasium"),
        (["--env", "cli/Endless-v0"], "gymnasium"),
    ],
)
def test_the_backend_is_torch_where_it_can_be(words, backend):
    config = make_config(parse(["train", *QUICK_PPO, *words]))
    assert choose_backend(config) == backend
    for env in (make_training_vec(config, "cpu"), make_evaluation_vec(config, 2, 0, "cpu")):
        assert isinstance(env, SB3VecEnv) == (backend == "torch")
        env.close()


def test_the_resolved_configuration_repeats_a_run_of_another_algorithm(call):
    for name, words in (("one", QUICK_PPO), ("two", ["--config", "one/config.yaml"])):
        assert call("train", *words, "--run-dir", name)[0] == 0
    one, two = (Path(run, "models/last/model.safetensors") for run in ("one", "two"))
    assert one.read_bytes() == two.read_bytes()


def test_the_default_directory_is_named_and_new_each_time(call):
    paths = []
    for _ in range(2):
        code, out, _ = call("train", *QUICK, "--env", "cli/Bits-v0", "--eval-episodes", 1,
                            "--env-kwargs.max-episode-steps", 5, "--seed", 7)  # fmt: skip
        assert code == 0
        paths.append(out.splitlines()[-1].removeprefix("run: "))
        where = "gymnasium on cpu; settings: defaults; none are tuned"
        assert f"sac on cli/Bits-v0 ({where})" in out
    assert len(set(paths)) == 2
    for path in paths:
        assert re.fullmatch(r"runs/cli-Bits-v0/sac/\d{8}-\d{6}-7(-2)?", path)
        assert Path(path, "models/last/model.json").is_file()


def test_output_that_is_no_terminal_is_a_line_per_evaluation(call):
    _, out, err = call("train", *QUICK, "--run-dir", "run")
    lines = out.splitlines()
    assert [line.split()[0] for line in lines] == ["training", "30", "60", "run:"]
    assert err == ""


@pytest.mark.parametrize("env", ["Factors", "Bits", "Nested", "Dict", "Image"])
def test_discrete_spaces_of_every_kind_train(call, env):
    """Nested ones are flattened on the way; the environment checks what it is given."""
    words = ["--env", f"cli/{env}-v0", "--env-kwargs.max-episode-steps", 5, "--run-dir", "run"]
    assert call("train", *QUICK, *words)[0] == 0
    code, out, _ = call("evaluate", "run", "--episodes", 2, "--json")
    assert (code, json.loads(out)["mean_reward"]) == (0, 5.0)


def test_a_package_in_front_of_the_id_is_imported(call, tmp_path, monkeypatch):
    Path("my_envs.py").write_text(
        "import gymnasium\n"
        "gymnasium.register('Mine-v0', 'gymnasium.envs.classic_control:CartPoleEnv',"
        " max_episode_steps=9)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    assert call("train", *QUICK, "--env", "my_envs:Mine-v0", "--run-dir", "run")[0] == 0
    code, _, err = call("train", "--env", "my_envs:Mime-v0")
    expected = "rl-gumbel: unknown environment my_envs:Mime-v0; did you mean my_envs:Mine-v0?\n"
    assert (code, err) == (2, expected)


def test_arguments_reach_the_environment(call):
    words = ["--env=FrozenLake-v1", "--env-kwargs.is-slippery", "false"]
    assert call("train", *QUICK, *words, "--env-kwargs.map-name=8x8", "--run-dir", "run")[0] == 0
    record = json.loads(Path("run/models/last/model.json").read_text())
    assert record["observation_space"]["n"] == 64
    assert "env_kwargs: {is_slippery: false, map_name: 8x8}" in Path("run/config.yaml").read_text()


def test_wrappers_are_applied(call):
    words = ["--env=Blackjack-v1", "--env-wrappers=[gymnasium.wrappers.FlattenObservation]"]
    assert call("train", *QUICK, *words, "--run-dir", "run")[0] == 0
    record = json.loads(Path("run/models/last/model.json").read_text())
    assert record["observation_space"]["shape"] == [32 + 11 + 2]


def test_schedules_reach_the_algorithm(call):
    schedule = "{schedule: linear, start: 1, end: 0.5}"
    words = ["--algorithm.temperature", schedule, "--algorithm.learning-rate", schedule]
    assert call("train", *QUICK, *words, "--run-dir", "run")[0] == 0
    rows = [row for row in read_csv("run/progress.csv") if row["estimator/temperature"]]
    assert float(rows[-1]["estimator/temperature"]) == pytest.approx(0.5, abs=0.05)
    assert float(rows[-1]["train/learning_rate"]) == pytest.approx(0.5, abs=0.05)


def test_an_interrupted_run_keeps_its_model(tmp_path):
    """Ctrl-C: exit code 75, the last model saved, a line that says so, no traceback."""
    words = ["train", "--run-dir", "run", "--no-progress", *QUICK[2:], "--total-timesteps=1000000"]
    process = subprocess.Popen(
        [sys.executable, "-m", "rl_gumbel", *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment(),
        # A shell starts what it runs in the background with the signal ignored, and so the tests.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    deadline = time.monotonic() + 60
    log = tmp_path / "run/progress.csv"
    while time.monotonic() < deadline and not (log.is_file() and log.stat().st_size):
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 75
    last = out.splitlines()[-1]
    assert re.fullmatch(
        r"stopped by SIGINT after \d+ steps; continue with: rl-gumbel resume run", last
    )
    assert err == "SIGINT: saving at the next safe point; once more exits at once\n"
    assert sorted(os.listdir("run/models/last")) == ["model.json", "model.safetensors"]


# --- evaluate -------------------------------------------------------------------------------------


def test_evaluate_prints_a_table(run_dir, call):
    code, out, _ = call("evaluate", run_dir, "--episodes", 3)
    assert code == 0
    for text in ("mean return", "standard deviation", "mean episode length", "argmax actions"):
        assert text in out


def test_evaluate_prints_one_json_object(run_dir, call):
    code, out, _ = call("evaluate", run_dir, "--episodes", 3, "--json", "--model", "best")
    result = json.loads(out)
    assert code == 0
    assert list(result) == ["mean_reward", "std_reward", "mean_ep_length", "episodes"]
    assert result["episodes"] == 3
    assert result["mean_reward"] == result["mean_ep_length"]  # CartPole pays 1 for each step


@pytest.mark.parametrize("option", [[], ["--stochastic"]])
def test_evaluation_is_repeatable(run_dir, call, option):
    words = ["evaluate", run_dir, "--episodes", 5, "--json", *option]
    assert call(*words) == call(*words)
    assert call(*words) != call(*words, "--seed", 1)


def test_episodes_without_a_limit_end(call, monkeypatch):
    """CliffWalking never ends under a policy that walks into the wall."""
    assert MAX_EPISODE_STEPS == 10_000
    monkeypatch.setattr("rl_gumbel.cli.environments.MAX_EPISODE_STEPS", 50)
    words = ["--env", "cli/Endless-v0", "--eval-episodes", 1, "--run-dir", "run"]
    assert call("train", *QUICK, *words, "--eval-freq", 0)[0] == 0
    assert read_csv("run/evaluations.csv")[0]["mean_ep_length"] == "50.0"
    words = ["evaluate", "run", "--episodes", 2, "--json"]
    assert json.loads(call(*words, "--max-episode-steps", 7)[1])["mean_ep_length"] == 7


@pytest.mark.parametrize(("limit", "length"), [(None, 50), (70, 70)])
def test_episodes_of_batched_environments_without_a_limit_end(monkeypatch, limit, length):
    monkeypatch.setattr("rl_gumbel.cli.environments.MAX_EPISODE_STEPS", 50)
    monkeypatch.setitem(ENVS, "Forever-v0", (f"{__name__}:EndlessTorch", {}))
    config = make_config(parse(["train", "--algo=ppo", "--env=Forever-v0"]))
    env = make_evaluation_vec(config, 2, 0, "cpu", max_episode_steps=limit)
    assert env.batched.max_episode_steps == length


def test_evaluation_does_not_lengthen_the_episodes_of_batched_environments():
    config = make_config(parse(["train", "--algo=ppo"]))
    env = make_evaluation_vec(config, 2, 0, "cpu", max_episode_steps=1000)
    assert env.batched.max_episode_steps == 500


def test_rendering_what_cannot_be_rendered_is_refused(call):
    words = ["--env", "cli/Bits-v0", "--env-kwargs.max-episode-steps", 5, "--run-dir", "run"]
    assert call("train", *QUICK, *words)[0] == 0
    code, _, err = call("evaluate", "run", "--render")
    assert code == 2
    assert err == "rl-gumbel: cli/Bits-v0 cannot be rendered\n"


def test_a_reader_that_leaves_is_no_traceback():
    """`rl-gumbel list envs | head -1` closes the pipe while there is more to say."""
    process = subprocess.Popen(
        [sys.executable, "-m", "rl_gumbel", "list", "estimators"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment(),
    )
    process.stdout.close()
    assert process.stderr.read() == ""
    process.stderr.close()
    assert process.wait(timeout=60) == 141


@pytest.mark.parametrize(
    ("break_run", "message"),
    [
        (lambda run: (run / "config.yaml").unlink(), "is not a run directory: it has no config"),
        (lambda run: (run / "models/last/model.json").unlink(), "holds no model: model.json"),
        (lambda run: (run / "models/last/model.safetensors").write_bytes(b"x"), "is damaged"),
    ],
)
def test_a_damaged_run_is_told_in_a_line(run_dir, call, break_run, message):
    import shutil

    shutil.copytree(run_dir, "copy")
    break_run(Path("copy"))
    code, _, err = call("evaluate", "copy")
    assert code == 2
    assert message in err
    assert err.count("\n") == 1


@pytest.mark.parametrize(
    ("typed", "reason"),
    [
        ("runs/A-v1/sac/0-7", "there is no such directory; did you mean runs/A-v1/sac/0-1?"),
        ("runs/A-v2/sac/0-1", "there is no such directory; did you mean runs/A-v1/sac/0-1?"),
        ("rums/B", "there is no such directory; did you mean runs?"),
        ("runs/A-v1/sac/0-1/sac", "there is no such directory"),
        ("other/0-1", "there is no such directory"),
        ("runs/A-v1/sac/0-1/config.yaml/x", "there is no such directory"),
        ("runs/A-v1/sac", "it has no config.yaml; one run below it: did you mean "
         "runs/A-v1/sac/0-1?"),
        ("runs", "it has no config.yaml; 2 runs below it: did you mean runs/B-v1/ppo/0-2?"),
        ("runs/A-v1/sac/0-1/models/last", "it has no config.yaml; did you mean runs/A-v1/sac/0-1?"),
        ("runs/A-v1/sac/0-1/config.yaml", "it has no config.yaml; did you mean runs/A-v1/sac/0-1?"),
    ],
)  # fmt: skip
def test_the_nearest_run_is_named(call, typed, reason):
    for i, name in enumerate(["A-v1/sac/0-1", "B-v1/ppo/0-2"]):
        Path("runs", name, "models/last").mkdir(parents=True)
        Path("runs", name, "config.yaml").touch()
        os.utime(Path("runs", name, "config.yaml"), (i, i))
    for verb in (["evaluate"], ["resume"], ["record"], ["report"], ["export"], ["lab", "--run"]):
        words = [*verb, typed, *(["model.zip"] if verb == ["export"] else [])]
        code, out, err = call(*words)
        assert (code, out) == (2, "")
        assert err == f"rl-gumbel: {typed} is not a run directory: {reason}\n"


@pytest.mark.parametrize(("verb", "kind"), [("plot", "file or directory"),
                                            ("tensorboard", "directory")])  # fmt: skip
def test_the_nearest_directory_is_named(call, verb, kind):
    Path("runs/A-v1").mkdir(parents=True)
    code, out, err = call(verb, "runs/A-v2")
    assert (code, out) == (2, "")
    assert err == f"rl-gumbel: runs/A-v2: there is no such {kind}; did you mean runs/A-v1?\n"


# --- list -----------------------------------------------------------------------------------------


def test_lists_are_plain_when_piped(call):
    assert [row.split("\t")[0] for row in call("list", "algos")[1].splitlines()] == list(ALGOS)
    assert "reinmax\t>= 1\t\n" in call("list", "estimators")[1]
    assert "sac\tCartPole-v1\t" in call("list", "configs")[1]


def test_environments_that_can_be_trained_are_listed(call):
    rows = [line.split("\t") for line in call("list", "envs")[1].splitlines()]
    actions = {row[0]: row[1] for row in rows}
    backends = {row[0]: row[2] for row in rows}
    tuned = {row[0]: row[3] for row in rows}
    assert actions["Taxi-v4"] == "Discrete(6)"
    assert actions["cli/Factors-v0"] == "MultiDiscrete([2 3])"
    assert "sac" in tuned["CartPole-v1"].split()
    assert (backends["CartPole-v1"], backends["cli/Bits-v0"]) == ("torch", "gymnasium")
    assert len(rows) == len(actions)  # each once: not by the names that Gymnasium has for ours
    assert "rl_gumbel/CartPole-v1" not in actions
    assert not actions.keys() & {"Pendulum-v1", "cli/Text-v0", "cli/Unfinished-v0", "Ant-v5"}


# --- mistakes -------------------------------------------------------------------------------------

MISTAKES = [
    (["trian"], "unknown command trian; did you mean train?"),
    (["train", "--learning-rate", "1"], "unknown argument --learning-rate; did you mean "
     "--algorithm.learning-rate?"),
    (["train", "--algorithm.lerning-rate=1"], "unknown argument --algorithm.lerning-rate; "
     "did you mean --algorithm.learning-rate?"),
    (["train", "--sed", "1"], "unknown argument --sed; did you mean --seed?"),
    (["train", "CartPole-v1"], "unknown argument CartPole-v1; options start with --"),
    (["train", "--seed"], "--seed: expected one argument"),
    (["train", "--seed", "1.5"], "--seed: must be an integer, got 1.5"),
    (["train", "--seed", "[1"], "--seed: not a YAML value: '[1'"),
    (["train", "--algorithm.gamma", "true"], "--algorithm.gamma: must be a number, got true"),
    (["train", "--algorithm.tau", "2"], "--algorithm.tau: must be at most 1, got 2"),
    (["train", "--algo", "sca"], '--algo: must be one of sac, reppo, shac, ppo, got "sca"; did '
     "you mean sac?"),
    (["train", "--algorithm.clip-range", "0.1"], "--algorithm.clip-range: not a setting of sac "
     "but of ppo"),
    (["train", "--algo", "ppo", "--algorithm.batch-size=8", "--algorithm.num-minibatches=2"],
     "--algorithm.num-minibatches: would be ignored: batch_size is given"),
    (["train", "--algo", "ppo", "--config", "sac.yaml"], '--algo: ppo cannot use the settings of '
     '"sac" (sac.yaml:2)'),
    (["train", "--algo", "pop", "--help"], '--algo: must be one of sac, reppo, shac, ppo, got '
     '"pop"; did you mean ppo?'),
    (["train", "--algo", "ppo", "--num-envs=1", "--algorithm.n-steps=1"],
     "ppo on CartPole-v1: n_steps 1 of 1 environments make minibatches of 0 samples; "
     "they need at least 2"),
    (["train", "--backend", "torch", "--env", "cli/Bits-v0"], "--backend torch: cli/Bits-v0 has no "
     "torch version (see rl-gumbel list envs)"),
    (["train", "--backend", "torch", "--env", "CartPol-v1"], "--backend torch: CartPol-v1 has no "
     "torch version; did you mean CartPole-v1?"),
    (["train", "--backend", "torch", "--env-wrappers", "[a.B]"], "--env-wrappers: are Gymnasium's, "
     "and backend is torch"),
    (["train", "--algo", "shac", "--env", "PendulumBank-v0", "--env-kwargs.n", "100"],
     "n 100 of PendulumBank must be from 1 to 64\n"),
    (["train", "--env", "FrozenLake-v1", "--env-kwargs.max-episode-steps", "0"],
     "max_episode_steps 0 of FrozenLake must be at least 1 (torch version; --backend gymnasium is "
     "the original)"),
    (["train", "--backend", "troch"], '--backend: must be auto, torch or gymnasium, got "troch"; '
     "did you mean torch?"),
    (["train", "--algo", "ppo", "--env-kwargs.num-envs", "3"], "--env-kwargs.num-envs: training "
     "decides it; use --num-envs"),
    (["train", "--algo", "ppo", "--env-kwargs.dtype", "x"], "--env-kwargs.dtype: training decides"),
    (["train", "--algo", "ppo", "--env-kwargs.max-episode-steps", "[1]"], "max_episode_steps [1] "
     "of CartPole-v1 must be an integer or None"),
    (["train", "--env", "FrozenLake-v1", "--env-kwargs.is-slippery", "maybe"], "is_slippery "
     "'maybe' of FrozenLake-v1 must be a bool (torch version; --backend gymnasium is the "),
    (["train", "--algo", "ppo", "--env-kwargs.max-steps", "3"], "CartPole-v1 has no argument "
     "'max_steps'; did you mean max_episode_steps?"),
    (["train", "--env-kwargs.x"], "--env-kwargs.x: expected --env-kwargs.NAME VALUE"),
    (["train", "--config", "none.yaml"], "none.yaml: cannot read the configuration: No such file"),
    (["train", "--env", "CartPol-v1"], "unknown environment CartPol-v1; did you mean CartPole-v1?"),
    (["train", "--env", "cartpole-v1"], "unknown environment cartpole-v1; did you mean "
     "CartPole-v1?"),
    (["train", "--env", "CartPole-v9"], "unknown environment CartPole-v9; did you mean "
     "CartPole-v1?"),
    (["train", "--env", "CartPole"], "environment CartPole lacks its version; did you mean "
     "CartPole-v1?"),
    (["train", "--env", "Taxi-v3"], "Taxi-v3: Environment version v3 for `Taxi` is deprecated."),
    (["train", "--env", "Pong-v5"], "unknown environment Pong-v5; that of another package needs "
     "its name in front, as package:Env-v0"),
    (["train", "--env", "none:X-v0"], "none:X-v0 needs the package 'none': pip install none"),
    (["train", "--env", "a b"], "a b: Malformed environment ID"),
    (["train", "--env", "cli/Unfinished-v0"], "cli/Unfinished-v0 needs the package "
     "'no_such_package': pip install no_such_package"),
    (["train", "--env", "Pendulum-v1"], "Pendulum-v1: action space Box(-2.0, 2.0, (1,), float32) "
     "is not supported: supported are Discrete, MultiDiscrete (1-D) and MultiBinary(n);\n"
     "DiscretePendulum-v1 has the same task with discrete ones (--env DiscretePendulum-v1)\n"),
    (["train", "--env", "MountainCarContinuous-v0"], "MountainCarContinuous-v0: action space "
     "Box(-1.0, 1.0, (1,), float32) is not supported: supported are Discrete, MultiDiscrete (1-D) "
     "and MultiBinary(n);\nfor continuous actions use SAC of stable-baselines3"),
    (["train", "--env", "cli/Text-v0"], "cli/Text-v0: networks cannot read observation space Text"),
    (["train", "--env", "Blackjack-v1", "--backend", "gymnasium"], "Blackjack-v1: networks cannot "
     "read observation space Tuple(Discrete(32), Discrete(11), Discrete(2));\n"
     "try --env-wrappers '[gymnasium.wrappers.FlattenObservation]'"),
    (["train", "--env", "minigrid:MiniGrid-Empty-5x5-v0"], "minigrid:MiniGrid-Empty-5x5-v0: "
     "networks cannot read observation 'image' (an image under 36 pixels), "
     "'mission' (MissionSpace);\ntry --env-wrappers '[minigrid.wrappers.FlatObsWrapper]'"),
    (["train", "--env", "FrozenLake-v1", "--env-kwargs.is-slipery", "false"],
     "FrozenLake-v1 has no argument 'is_slipery'; did you mean is_slippery?"),
    (["train", "--env=FrozenLake-v1", "--env-kwargs.map-name=9x9", "--backend=gymnasium"],
     "FrozenLake-v1 refused its arguments (map_name='9x9'): KeyError: '9x9'"),
    (["train", "--env=FrozenLake-v1", "--env-kwargs.map-name=9x9", "--algo=ppo"],
     "map_name '9x9' of FrozenLake is not one of 4x4, 8x8; "),
    (["train", "--env-wrappers", "[gymnasium.wrappers.Flat]"], "--env-wrappers: "
     "gymnasium.wrappers has no Flat"),
    (["train", "--env-wrappers", "[gymnasum.Flat]"], "--env-wrappers: cannot import "
     "gymnasum.Flat; write it as module.Class: No module named 'gymnasum'"),
    (["train", "--env-wrappers", "[Flat]"], "--env-wrappers: cannot import Flat; write it as "
     "module.Class\n"),
    (["train", "--env-wrappers", "[gymnasium.wrappers.TimeLimit]"], "--env-wrappers: "
     "gymnasium.wrappers.TimeLimit: TypeError: "),
    (["train", "--run-dir", "full"], "--run-dir full is not empty; name a new directory"),
    (["train", "--run-dir", "full/file"], "--run-dir full/file is a file; name a new directory"),
    (["train", "--algorithm.target-entropy", "5"], "sac on CartPole-v1: target_entropy 5.0 must be "
     "'auto' or between 0 and the maximum of this space, 0.693 nats"),
    (["evaluate"], "the following arguments are required: RUN"),
    (["evaluate", "none"], "none is not a run directory: there is no such directory\n"),
    (["evaluate", "none", "--episodes", "0"], "--episodes: must be an integer of at least 1"),
    (["evaluate", "none", "--model", "bets"], "--model: must be one of last, best, got "
     "'bets'; did you mean best?"),
    (["list", "env"], "what: must be one of envs, algos, estimators, configs, got 'env'; did you "
     "mean envs?"),
]  # fmt: skip


@pytest.mark.parametrize(("words", "message"), MISTAKES, ids=lambda value: " ".join(value))
def test_a_mistake_costs_a_line_and_leaves_nothing(call, tmp_path, words, message):
    (tmp_path / "full").mkdir()
    (tmp_path / "full/file").touch()
    (tmp_path / "sac.yaml").write_text("seed: 1\nalgo: sac\n")
    before = sorted(tmp_path.rglob("*"))
    code, out, err = call(*words)
    assert (code, out) == (2, "")
    assert err.startswith(f"rl-gumbel: {message}")
    assert err.count("\n") <= 2
    assert sorted(tmp_path.rglob("*")) == before


def test_a_missing_extra_is_named_with_its_pip_line(call, monkeypatch):
    monkeypatch.setitem(sys.modules, "Box2D", None)
    for name in [name for name in sys.modules if name.startswith("gymnasium.envs.box2d")]:
        monkeypatch.delitem(sys.modules, name)
    code, _, err = call("train", "--env", "LunarLander-v3")
    assert code == 2
    assert (
        'LunarLander-v3 needs a package that is not installed: pip install "rl-gumbel[box2d]"'
        in err
    )


@pytest.mark.parametrize("command", [["train"], ["evaluate", "run"]])
def test_cuda_that_is_not_there_is_refused(run_dir, call, monkeypatch, command):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    words = [str(run_dir) if word == "run" else word for word in command]
    code, _, err = call(*words, "--device", "cuda")
    assert code == 2
    assert err.startswith("rl-gumbel: --device cuda: CUDA is not available")
    assert err.endswith("use --device cpu\n")


def test_a_cuda_device_beyond_the_last_is_refused(call, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    code, _, err = call("train", "--device", "cuda:2")
    assert (code, err) == (2, "rl-gumbel: --device cuda:2: there are 2 CUDA devices, cuda:0 is the "
                           "first\n")  # fmt: skip


def test_a_mistake_in_a_file_names_file_and_line(call):
    Path("my.yaml").write_text("env: CartPole-v1\nalgorithm:\n  learnig_rate: 1e-3\n")
    expected = (
        "rl-gumbel: my.yaml:3: algorithm.learnig_rate: unknown key; did you mean learning_rate?\n"
    )
    assert call("train", "--config", "my.yaml") == (2, "", expected)


def test_a_bug_of_the_environment_keeps_its_traceback(call):
    """Its author needs it; the command did nothing wrong."""
    code, _, err = call("train", "--env", "cli/Broken-v0")
    assert code == 3
    assert 'raise ZeroDivisionError("a bug")' in err
    assert err.endswith("rl-gumbel: cli/Broken-v0: cannot be made: ZeroDivisionError: a bug\n")


# --- memory -----------------------------------------------------------------------------------


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="a setting of glibc")
def test_freed_memory_stays_with_the_process():
    """A block of 64 MiB is paged in once, not at each allocation."""
    script = """
import resource, sys
import torch
from rl_gumbel.cli.memory import keep_freed_memory
if sys.argv[1] == "keep":
    keep_freed_memory()
torch.zeros(2**24)
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(10):
    torch.zeros(2**24) + 1
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""
    faults = {
        mode: int(
            subprocess.run(
                [sys.executable, "-c", script, mode], capture_output=True, text=True, check=True
            ).stdout
        )
        for mode in ("keep", "default")
    }
    assert faults["keep"] < faults["default"] / 2
