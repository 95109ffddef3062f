"""`--vectorization-mode async`: environments in processes of their own."""

import os
import re
import signal
from pathlib import Path

import pytest
from gymnasium.vector import SyncVectorEnv
from safetensors.torch import load_file
from test_faults import FAULTY, QUICK, SIZES, run, start, wait_for

from rl_gumbel.checkpoint import find_checkpoint
from rl_gumbel.checkpoint.tree import read_tree
from rl_gumbel.cli import environments, main

FORKS = pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")  # from Python 3.12 on
ASYNC = ["train", "--vectorization-mode=async", "--num-envs=2", "--seed=5", *QUICK]
OVERLAP = [
    *(*ASYNC, "--algo=sac", "--env=Acrobot-v1", "--backend=gymnasium", *SIZES["sac"]),
    *("--algorithm.overlap=true", "--algorithm.train-freq=2", "--algorithm.gradient-steps=3"),
]


@pytest.fixture(autouse=True)
def empty_directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@FORKS
@pytest.mark.parametrize(
    "words",
    [OVERLAP, [*ASYNC, "--algo=ppo", "--env=Taxi-v4", "--backend=gymnasium", *SIZES["ppo"]]],
    ids=["sac", "ppo"],
)
def test_a_run_is_that_of_the_same_environments_in_one_process(monkeypatch, words):
    """With masks and without."""
    words = [*words, "--total-timesteps=96"]
    assert main([*words, "--run-dir=apart"]) == 0
    monkeypatch.setattr(environments, "AsyncVectorEnv", SyncVectorEnv)
    assert main([*words, "--run-dir=together"]) == 0
    apart, together = (load_file(f"{name}/models/last/model.safetensors") for name in (
        "apart", "together",
    ))  # fmt: skip
    assert apart.keys() == together.keys()
    assert all(apart[name].equal(together[name]) for name in apart)


def test_an_environment_that_raises_in_its_process_exits_3_and_is_named():
    fault = ["--env-kwargs.how=raise", "--env-kwargs.at=7", "--env-kwargs.seed=6"]
    code, _, err = run(*ASYNC, "--env", FAULTY, *fault, *SIZES["sac"], "--total-timesteps=200")
    assert code == 3
    assert 'raise ZeroDivisionError("the simulator has no ground")' in err
    assert re.search(
        rf"^rl-gumbel: {FAULTY}: environment 1 \(seed 6\) failed in its step 7, after action "
        r"[012]: ZeroDivisionError: the simulator has no ground$",
        err,
        re.MULTILINE,
    )


def children(pid: int) -> list[int]:
    return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="needs Linux")
@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM"])
def test_a_signal_to_the_whole_group_saves_what_is_put_off_and_the_run_goes_on(name):
    """Ctrl-C in a terminal, and what `timeout` sends, reach every process of the group."""
    process = start(*OVERLAP, "--total-timesteps=1000000", start_new_session=True)
    path = Path("run/progress.csv")
    wait_for(lambda: path.is_file() and path.stat().st_size, process)
    workers = children(process.pid)
    assert len(workers) >= 2
    os.killpg(process.pid, getattr(signal, name))
    out, err = process.communicate(timeout=60)
    assert process.returncode == 75, err
    wait_for(lambda: not any(map(is_alive, workers)))
    found = find_checkpoint(Path("run"))
    loop = read_tree(found.path, "state")["training"]["loop"]
    updates = 3 * (found.steps - 8) // 4  # for each collection of 2 steps of 2 environments
    assert (loop["_n_updates"], loop["_deferred.owed"]) == (updates - 3, 3)
    total = found.steps + 8
    code, out, err = run("resume", "run", f"--total-timesteps={total}", "--no-progress")
    assert code == 0, err
    assert "resume: approximate: the state of these environments cannot be saved" in out
    loop = read_tree(find_checkpoint(Path("run")).path, "state")["training"]["loop"]
    assert (loop["_n_updates"], loop["_deferred.owed"]) == (updates + 6, 0)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ["--backend=torch"],
            "--vectorization-mode: async is for Gymnasium's environments, and backend is torch",
        ),
        (
            ["--backend=gymnasium", "--restart-failed-envs=1"],
            "--restart-failed-envs: 1 is counted in one process, and vectorization_mode is async",
        ),
        ([], "--vectorization-mode async would be ignored: Acrobot-v1 steps in torch; --backend"),
    ],
)
def test_what_processes_would_leave_without_effect_is_refused(capsys, words, message):
    assert main([*ASYNC, "--env=Acrobot-v1", *words]) == 2
    assert message in capsys.readouterr().err


def test_overlap_is_refused_where_environments_step_in_torch(capsys):
    words = ["train", "--env=Acrobot-v1", *QUICK, "--algorithm.overlap=true"]
    assert main(words) == 2
    message = "sac on Acrobot-v1: overlap True would be ignored: Acrobot steps in this process"
    assert message in capsys.readouterr().err
