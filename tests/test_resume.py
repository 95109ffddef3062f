"""Runs that stop and go on: equal to the run that did not stop, and what is said where not."""

import csv
import json
import os
import random
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from gymnasium import spaces
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from rl_gumbel import load_model
from rl_gumbel.buffers import DeviceReplayBuffer
from rl_gumbel.checkpoint.replay import get_replay, set_replay
from rl_gumbel.checkpoint.state import (
    get_env_state,
    get_generators,
    set_env_state,
    set_generators,
)
from rl_gumbel.checkpoint.tree import read_tree, write_tree
from rl_gumbel.cli import main
from rl_gumbel.cli.signals import StopSignals
from rl_gumbel.config import load_config
from rl_gumbel.envs import ENVS
from rl_gumbel.plots.events import read_values
from rl_gumbel.vec_env import SB3VecEnv, make_vec

COMMON = [
    "--no-progress",
    "--eval-freq=48",
    "--eval-episodes=3",
    "--device=cpu",
    "--seed=5",
    "--checkpoint-keep=100",
    "--algorithm.stats-window-size=4",
]
SOFT = ["--algorithm.learning-rate={schedule: linear, start: 0.01, end: 0.001}"]
ON_POLICY = ["--algorithm.n-steps=8", "--algorithm.num-minibatches=2", "--algorithm.n-epochs=2"]
NORMALISED = [
    "--algorithm.normalize-observations=true",
    "--algorithm.normalize-rewards=true",
]
RUNS = {
    "sac": [
        *("--algo=sac", "--env=CartPole-v1", "--num-envs=2", "--policy-kwargs.net-arch=[4]"),
        *("--total-timesteps=200", "--checkpoint-freq=100", "--algorithm.learning-starts=40"),
        *("--algorithm.batch-size=8", "--algorithm.buffer-size=120", "--algorithm.n-steps=3"),
        *("--algorithm.cosine-interval=7", "--algorithm.temperature=0.7"),
        *("--algorithm.critic=concat", "--algorithm.priority-exponent=0.6"),
        *SOFT,
    ],
    "reppo": [
        *("--algo=reppo", "--env=Taxi-v4", "--num-envs=4", "--policy-kwargs.net-arch=[4]"),
        *("--total-timesteps=256", "--checkpoint-freq=128", "--algorithm.cosine-interval=3"),
        *("--env-kwargs.max-episode-steps=20", *ON_POLICY, *SOFT),
    ],
    "shac": [
        *("--algo=shac", "--env=PendulumBank-v0", "--env-kwargs.n=5", "--num-envs=3"),
        *("--policy-kwargs.net-arch=[4]", "--policy-kwargs.shared-factors=false"),
        *("--total-timesteps=240", "--checkpoint-freq=120", "--env-kwargs.max-episode-steps=20"),
        *("--algorithm.average-reward-rate=0.1", *ON_POLICY, *SOFT, *NORMALISED),
    ],
    "ppo": [
        *("--algo=ppo", "--env=CartPole-v1", "--num-envs=4", "--policy-kwargs.net-arch=[4]"),
        *("--total-timesteps=256", "--checkpoint-freq=128", *ON_POLICY, *NORMALISED, *SOFT),
        "--algorithm.clip-range={schedule: linear, start: 0.3, end: 0.1}",
    ],
}
"""Small, but with schedules, normalisers, masks, episodes under way, and pending logs."""


@pytest.fixture(autouse=True)
def empty_directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def resume_elsewhere(*words):
    """The output of `rl-gumbel resume` in a process of its own."""
    root = str(Path(__file__).parents[1])
    done = subprocess.run(
        [sys.executable, "-m", "rl_gumbel", "resume", "--no-progress", *map(str, words)],
        env=os.environ | {"PYTHONPATH": root, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return done


def cut_back(run_dir, to):
    """A copy of the run as a kill would have left it: logs of later steps, no later checkpoint."""
    copy = Path(shutil.copytree(run_dir, "copy"))
    for path in (copy / "checkpoints").iterdir():
        if path.is_dir() and path.name != str(to):
            shutil.rmtree(path)
    (copy / "checkpoints/LATEST").write_text(f"{to}\n")
    return copy


def checkpoint(run_dir, steps):
    """The bytes of each file of a checkpoint, without what the clock says."""
    path = run_dir / "checkpoints" / str(steps)
    files = {file.name: file.read_bytes() for file in path.iterdir()}
    del files["manifest.json"]
    state = json.loads(files.pop("state.json"))["training"]
    del state["elapsed_seconds"]
    for name in ("time/fps", "time/time_elapsed"):
        state["log"]["values"].pop(name, None)
    state["episodes"]["info"] = [{"r": i["r"], "l": i["l"]} for i in state["episodes"]["info"]]
    return files | {"state": state}


def rows(path):
    with path.open(newline="") as file:
        table = list(csv.DictReader(file))
    clock = ("time/fps", "time/time_elapsed")
    return [{name: row[name] for name in row if name not in clock} for row in table]


def events(run_dir):
    """What the event files hold: steps and values of each tag, in their order."""
    found = {}
    for step, kind, tag, value in read_values(run_dir):
        # The settings, as text, are written by each process.
        if kind in ("scalars", "histograms") and tag != "time/fps":
            found.setdefault(tag, []).append((step, value.tolist()))
    return found


@pytest.mark.parametrize("algo", RUNS)
def test_a_run_that_goes_on_in_a_new_process_equals_the_one_that_did_not_stop(algo):
    """Weights, optimisers, replay, random streams, environments, schedules, rows and events."""
    whole = Path("whole")
    assert main(["train", *COMMON, *RUNS[algo], "--run-dir", "whole"]) == 0
    steps = sorted(int(p.name) for p in (whole / "checkpoints").iterdir() if p.name != "LATEST")
    middle, end = steps
    resumed = cut_back(whole, middle)
    done = resume_elsewhere(resumed)
    assert "resume: exact" in done.stdout.splitlines()
    left, right = checkpoint(whole, end), checkpoint(resumed, end)
    assert left["model.safetensors"] == right["model.safetensors"]
    assert left["state"] == right["state"]
    assert left == right
    for name in ("progress.csv", "evaluations.csv"):
        assert rows(whole / name) == rows(resumed / name)
        assert len(rows(whole / name)) >= 3
    assert events(whole) == events(resumed)
    tags = {"eval/mean_reward", "policy/entropy_per_factor", "train/learning_rate"}
    assert events(whole).keys() > tags
    best = load_file(whole / "models/best/model.safetensors")
    torch.testing.assert_close(best, load_file(resumed / "models/best/model.safetensors"))


def test_the_steps_after_the_checkpoint_are_cut_from_the_logs():
    """A kill leaves rows that are trained again; they must not stand twice."""
    run = [*COMMON, *RUNS["ppo"], "--total-timesteps=384"]
    assert main(["train", *run, "--run-dir", "run"]) == 0
    path = Path("run/progress.csv")
    path.write_text(path.read_text() + "1,2")  # a row that was being written
    resumed = cut_back("run", 128)
    watching = EventAccumulator("copy").Reload()  # a TensorBoard that runs meanwhile
    assert watching.Scalars("rollout/ep_rew_mean")[-1].step == 384
    config = (resumed / "config.yaml").read_text()
    (resumed / "config.yaml").write_text(config.replace("timesteps: 384", "timesteps: 160"))
    assert main(["resume", "copy", "--no-progress"]) == 0
    steps = [int(row["time/total_timesteps"]) for row in rows(resumed / "progress.csv")]
    assert steps == sorted(steps) and steps[-1] == 160
    assert [row["timesteps"] for row in rows(resumed / "evaluations.csv")] == [
        "48",
        "96",
        "144",
        "160",
    ]
    assert max(event.step for event in watching.Reload().Scalars("rollout/ep_rew_mean")) == 160
    for series in events(resumed).values():
        assert [step for step, _ in series] == sorted(step for step, _ in series)
        assert series[-1][0] <= 160


GYMNASIUM = [
    *COMMON,
    *RUNS["sac"],
    "--backend=gymnasium",
    "--algorithm.priority-exponent=0",  # for SB3's own replay
    "--total-timesteps=100",
    "--checkpoint-freq=50",
]


def test_where_environments_cannot_be_saved_it_says_so(capsys):
    assert main(["train", *GYMNASIUM, "--run-dir", "run"]) == 0
    cut_back("run", 50)
    assert main(["resume", "copy", "--no-progress"]) == 0
    reason = "resume: approximate: the state of these environments cannot be saved"
    assert reason in capsys.readouterr().out.splitlines()
    assert rows(Path("copy/evaluations.csv"))[-1]["timesteps"] == "100"


def test_what_is_compiled_goes_on_approximately_and_says_so(finished, call, monkeypatch):
    """Each process runs the first call as it is; compiled code has random numbers of its own."""
    run = Path(shutil.copytree(finished, "run"))
    config = (run / "config.yaml").read_text()
    assert "compile: false" in config
    (run / "config.yaml").write_text(config.replace("compile: false", "compile: true"))
    monkeypatch.setattr(torch, "compile", lambda function, **kwargs: function)
    code, out, _ = call("resume", run, "--total-timesteps", 288, "--no-progress")
    assert code == 0
    reason = "what is compiled runs uncompiled once, with other random numbers"
    assert f"resume: approximate: {reason}" in out.splitlines()


def test_what_is_saved_of_gymnasium_runs_is_exact():
    """All but the environments: the same replay, weights and counts at the point of resuming."""
    assert main(["train", *GYMNASIUM, "--run-dir", "run"]) == 0
    resumed = cut_back("run", 50)
    assert main(["resume", "copy", "--no-progress", "--total-timesteps", "60"]) == 0
    before = load_file("run/checkpoints/50/state.safetensors")
    after = load_file("copy/checkpoints/60/state.safetensors")
    rewards = "training/replay/rows/rewards"
    torch.testing.assert_close(before[rewards][:25], after[rewards][:25])
    timeouts = after["training/replay/rows/timeouts"]
    ended = after["training/replay/rows/dones"][24] + timeouts[24]
    assert ended.tolist() == [1, 1]  # what comes after are other episodes
    assert before["training/replay/rows/timeouts"][24].tolist() != [1, 1]
    assert resumed.is_dir()


def test_a_replay_that_is_cut_ends_the_episodes_under_way():
    def make():
        return DeviceReplayBuffer(8, spaces.Discrete(3), spaces.Discrete(2), "cpu", 2)

    full, fresh = make(), make()
    full.store["terminated"][1] = torch.tensor([True, False])
    full.pos = 2
    set_replay(fresh, get_replay(full), cut=True)
    assert fresh.store["truncated"].tolist() == [
        [False] * 2,
        [False, True],
        [False] * 2,
        [False] * 2,
    ]
    assert fresh.pos == 2


# --- the command ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    path = tmp_path_factory.mktemp("finished")
    before = os.getcwd()
    os.chdir(path)
    try:
        assert main(["train", *COMMON, *RUNS["ppo"], "--run-dir", "run"]) == 0
    finally:
        os.chdir(before)
    return path / "run"


@pytest.fixture
def call(capsys):
    def run(*words):
        code = main([str(word) for word in words])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run


def test_a_finished_run_has_nothing_to_do(finished, call):
    code, out, _ = call("resume", finished)
    assert (code, out) == (0, f"run: {finished} (finished after 256 steps)\n")


def test_a_longer_total_is_absolute_and_stays(finished, call):
    run = Path(shutil.copytree(finished, "run"))
    code, _, _ = call("resume", run, "--total-timesteps", 320, "--no-progress")
    assert code == 0
    assert rows(run / "evaluations.csv")[-1]["timesteps"] == "320"
    assert load_config(run / "config.yaml").total_timesteps == 320
    metadata = json.loads((run / "metadata.json").read_text())
    (resumed,) = metadata["resumed"]
    assert (resumed["steps"], resumed["versions"]) == (256, metadata["versions"])


def test_fewer_steps_than_there_are_is_an_error(finished, call):
    code, _, err = call("resume", finished, "--total-timesteps", 100)
    assert (code, err) == (2, f"rl-gumbel: --total-timesteps 100: {finished} has done 256 steps\n")


def test_a_run_without_a_checkpoint_is_an_error(finished, call):
    run = Path(shutil.copytree(finished, "run"))
    shutil.rmtree(run / "checkpoints")
    code, _, err = call("resume", run)
    assert code == 2
    assert err == (
        "rl-gumbel: run has no checkpoint yet; start anew with "
        "rl-gumbel train --config run/config.yaml\n"
    )


def test_a_damaged_checkpoint_is_named_and_the_one_before_taken(finished, call):
    run = Path(shutil.copytree(finished, "run"))
    tensors = run / "checkpoints/256/state.safetensors"
    damaged = bytearray(tensors.read_bytes())
    damaged[-1] ^= 1
    tensors.write_bytes(damaged)
    code, out, err = call("resume", run, "--no-progress")
    assert code == 0
    assert err == (
        "rl-gumbel: run/checkpoints/256/state.safetensors is damaged: its SHA-256 is not that of "
        "the manifest; going on from run/checkpoints/128\n"
    )
    assert "resume: exact" in out.splitlines()
    assert checkpoint(run, 256) == checkpoint(finished, 256)


def test_where_every_checkpoint_is_damaged_the_exit_code_is_5(finished, call):
    run = Path(shutil.copytree(finished, "run"))
    for path in (run / "checkpoints").glob("*/state.json"):
        path.unlink()
    code, _, err = call("resume", run)
    assert code == 5
    assert err.startswith("rl-gumbel: run has no checkpoint that is whole: run/checkpoints/256/")
    assert len(err.splitlines()) == 1


# --- train --resume auto --------------------------------------------------------------------------

AUTO = ["train", "--resume=auto", "--run-dir=run", *COMMON, *RUNS["ppo"]]


def test_auto_starts_then_goes_on_then_has_nothing_to_do(call):
    code, out, _ = call(*AUTO)
    assert code == 0 and out.startswith("training ppo")
    shutil.rmtree("run/checkpoints/256")
    code, out, _ = call(*AUTO)
    assert code == 0 and out.startswith("resuming ppo")
    code, out, _ = call(*AUTO)
    assert (code, out) == (0, "run: run (finished after 256 steps)\n")


def test_auto_starts_anew_where_a_kill_came_before_the_first_checkpoint(call):
    assert call(*AUTO)[0] == 0
    before = rows(Path("run/progress.csv")), events(Path("run"))
    shutil.rmtree("run/checkpoints")
    code, out, _ = call(*AUTO)
    assert code == 0 and out.startswith("training ppo")
    assert (rows(Path("run/progress.csv")), events(Path("run"))) == before


def test_auto_refuses_the_directory_of_another_run(finished, call):
    shutil.copytree(finished, "run")
    code, _, err = call(*AUTO, "--seed=6")
    assert code == 2
    assert err == (
        "rl-gumbel: --run-dir run holds a run with another seed (5); name a new directory\n"
    )


def test_auto_needs_a_directory(call):
    code, _, err = call("train", "--resume=auto")
    assert (code, err) == (2, "rl-gumbel: --resume auto needs --run-dir, the same each time\n")


def test_numbers_of_numpy_python_and_the_action_space_go_on_too(finished):
    """Environments and wrappers may draw from them, and SB3 does."""
    model = load_model(finished / "models/last", device="cpu")

    def draw():
        return [
            np.random.rand(),
            random.random(),
            float(torch.rand(())),
            model.action_space.sample(),
        ]

    saved = get_generators(model)
    first = [draw() for _ in range(20)]
    write_tree(saved, Path(), "generators")
    set_generators(model, read_tree(Path(), "generators"), own=True)
    assert [draw() for _ in range(20)] == first


class AtOnce(StopSignals):
    """A signal that came before training began."""

    def __enter__(self):
        super().__enter__()
        self.received = signal.SIGTERM
        return self


def test_a_signal_before_the_first_step_is_resumable_too(finished, call, monkeypatch):
    handlers = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)]
    with monkeypatch.context() as patch:
        patch.setattr("rl_gumbel.cli.training.StopSignals", AtOnce)
        code, out, _ = call(*AUTO)
    assert code == 75
    assert out.endswith("stopped by SIGTERM after 0 steps; continue with: rl-gumbel resume run\n")
    assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)] == handlers
    assert call("resume", "run", "--no-progress")[0] == 0
    assert checkpoint(Path("run"), 256) == checkpoint(finished, 256)


@pytest.mark.parametrize("env_id", sorted(ENVS))
def test_every_torch_environment_goes_on_from_a_file(env_id):
    """So that no environment has a state that a checkpoint would lose."""
    env, other = SB3VecEnv(make_vec(env_id, 3, "cpu")), SB3VecEnv(make_vec(env_id, 3, "cpu"))
    env.seed(0)
    env.reset()
    layout = env.batched.layout

    def play(env, seed):
        generator = torch.Generator().manual_seed(seed)
        for _ in range(12):
            mask = env.batched.action_mask
            allowed = layout.valid if mask is None else mask
            weights = torch.ones(3, *layout.valid.shape) * allowed
            index = weights.flatten(0, 1).multinomial(1, generator=generator)
            yield env.batched.step(layout.to_action(index.view(3, -1)))

    list(play(env, 1))
    write_tree(get_env_state(env), Path(), "env")
    other.reset()
    assert set_env_state(other, read_tree(Path(), "env"))
    for left, right in zip(play(env, 2), play(other, 2), strict=True):
        for name, value in vars(left).items():
            torch.testing.assert_close(value, getattr(right, name), rtol=0, atol=0, equal_nan=True)
