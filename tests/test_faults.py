"""Faults injected for real, and what the command says, keeps and returns.

What signals and kills do is tested in test_resume.py; numbers in all algorithms in test_numbers.py.
"""

import contextlib
import csv
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from faulty_envs import Faulty, FaultyTorch
from stable_baselines3.common.vec_env import DummyVecEnv
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from rl_gumbel.algorithms import ALGORITHMS
from rl_gumbel.checkpoint import find_checkpoint
from rl_gumbel.checkpoint.files import Writer
from rl_gumbel.checkpoint.store import write_checkpoint
from rl_gumbel.checkpoint.tree import write_tree
from rl_gumbel.cli import main
from rl_gumbel.cli.errors import UserError
from rl_gumbel.cli.lasting import LastingFile
from rl_gumbel.cli.lock import LOCK, locked
from rl_gumbel.envs import ENVS
from rl_gumbel.envs.cartpole import CartPole
from rl_gumbel.faults import EnvError, NumericalError
from rl_gumbel.vec_env.guard import NEXT_SEED, Guard, Survived

ROOT = Path(__file__).parents[1]
PAGE = os.sysconf("SC_PAGE_SIZE")
ON_CUDA = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA"),
]
FAULTY = "faulty_envs:faulty/Faulty-v0"
QUICK = [
    *("--no-progress", "--device=cpu", "--eval-freq=0", "--eval-episodes=1"),
    *("--policy-kwargs.net-arch=[4]", "--run-dir=run"),
]
SIZES = {
    "sac": ["--algorithm.learning-starts=8", "--algorithm.batch-size=4"],
    "ppo": ["--algorithm.n-steps=8", "--algorithm.num-minibatches=2"],
}


@pytest.fixture(autouse=True)
def empty_directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def start(*words, **kwargs):
    """A process of `rl-gumbel`."""
    path = os.pathsep.join([str(ROOT), str(ROOT / "tests")])
    return subprocess.Popen(
        [sys.executable, "-m", "rl_gumbel", *map(str, words)],
        env=os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **kwargs,
    )  # fmt: skip


def run(*words, **kwargs):
    """Exit code, output and errors of a process of `rl-gumbel`."""
    process = start(*words, **kwargs)
    out, err = process.communicate(timeout=120)
    return process.returncode, out, err


def wait_for(condition, process=None):
    for _ in range(1200):
        if condition():
            return
        assert process is None or process.poll() is None, process.communicate()
        time.sleep(0.05)
    raise TimeoutError


def read_csv(path):
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def last_logged(name):
    return float([row[name] for row in read_csv("run/progress.csv") if row[name]][-1])


# --- environments that fail -------------------------------------------------------------------


def test_an_environment_that_raises_exits_3_with_its_traceback_index_seed_and_action():
    fault = ["--env-kwargs.how=raise", "--env-kwargs.at=7", "--env-kwargs.seed=6"]
    code, _, err = run(
        "train", "--env", FAULTY, *fault, "--num-envs=3", "--seed=5", *QUICK, *SIZES["sac"],
        "--total-timesteps=200",
    )  # fmt: skip
    assert code == 3
    assert 'raise ZeroDivisionError("the simulator has no ground")' in err
    assert "faulty_envs.py" in err
    assert re.search(
        rf"^rl-gumbel: {FAULTY}: environment 1 \(seed 6\) failed in its step 7, after action "
        r"[012]: ZeroDivisionError: the simulator has no ground$",
        err,
        re.MULTILINE,
    )


def call(capsys, *words):
    """The same inside this process."""
    code = main([str(word) for word in words])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


@pytest.mark.parametrize("algo", ["sac", "ppo"])
def test_failed_environments_are_made_anew_as_often_as_allowed(capsys, algo):
    fault = ["--env-kwargs.how=raise", "--env-kwargs.at=30"]
    words = ["train", "--algo", algo, "--env", FAULTY, "--num-envs=2", *fault, *QUICK]
    words += [*SIZES[algo], "--total-timesteps=160"]
    code, _, err = call(capsys, *words, "--restart-failed-envs=4")
    assert (code, err) == (0, "")
    events = EventAccumulator("run").Reload()
    # Both fail in their steps 30 and 60, of 80 each.
    assert events.Scalars("rollout/restarts")[-1].value == 4
    words[words.index("--run-dir=run")] = "--run-dir=other"
    code, _, err = call(capsys, *words, "--restart-failed-envs=3")
    assert code == 3
    assert "environment 1 (seed" in err


def test_the_episode_of_a_failed_environment_is_cut_before_the_step():
    survived = Survived(restarts_left=1)
    env = Guard(lambda: Faulty("raise", at=2, seed=7), 0, survived=survived)
    env.reset(seed=7)
    first = env.step(1)
    assert (first[0].tolist(), first[1]) == ([1, 1], 0.1)
    obs, reward, terminated, truncated, _ = env.step(1)
    assert (obs.tolist(), reward, terminated, truncated) == ([1, 1], 0.0, False, True)
    assert env.unwrapped.seed == 7 + NEXT_SEED
    assert env.reset()[0].tolist() == [0, 1]
    assert [env.step(1)[1] for _ in range(3)] == [0.1, 0.1, 0.1]  # of another seed
    assert (survived.restarts, survived.restarts_left) == (1, 0)


def test_a_reset_that_fails_is_tried_in_a_new_environment():
    class Stuck(Faulty):
        made = 0

        def __init__(self):
            super().__init__()
            Stuck.made += 1
            self.works = Stuck.made == 3

        def reset(self, **kwargs):
            if not self.works:
                raise ConnectionError("no simulator")
            return super().reset(**kwargs)

    with pytest.raises(EnvError, match=r"environment 4 \(seed 1\) failed in a reset: Connection"):
        Guard(Stuck, 4).reset(seed=1)
    survived = Survived(restarts_left=2)
    assert Guard(Stuck, 4, survived=survived).reset(seed=1)[0].tolist() == [0, 1]
    assert survived.restarts == 1


def test_a_shape_that_changes_is_named_with_both_shapes():
    env = DummyVecEnv([lambda: Guard(lambda: Faulty("shape", at=3), 0)])
    model = ALGORITHMS["ppo"]("MlpPolicy", env, n_steps=8, device="cpu")
    message = (
        r"environment 0 \(seed None\) returned an observation of shape \(1,\) in its step 3, after "
        r"action [012]; its space has \(2,\)"
    )
    with pytest.raises(EnvError, match=message):
        model.learn(40)


def test_a_shape_that_changes_exits_3(capsys):
    fault = ["--env-kwargs.how=shape", "--env-kwargs.at=9", "--env-kwargs.keyed=true"]
    words = ["train", "--env", FAULTY, *fault, *QUICK, *SIZES["sac"], "--total-timesteps=50"]
    code, _, err = call(capsys, *words)
    assert code == 3
    assert "returned an observation 'x' of shape (1,) in its step 9, after action" in err
    assert err.count("\n") == 1


class Collapsing(FaultyTorch):
    def transition(self, state, action):
        if self.time == 9:
            raise ZeroDivisionError("a bug")
        return super().transition(state, action)


@pytest.mark.parametrize("compiled", ["true", "false"])
def test_a_torch_environment_that_raises_exits_3(capsys, monkeypatch, compiled):
    monkeypatch.setitem(ENVS, "Collapsing-v0", (f"{__name__}:Collapsing", {}))
    monkeypatch.setattr(torch, "compile", lambda function, **kwargs: function)
    words = ["train", "--algo=ppo", "--env=Collapsing-v0", "--num-envs=2", *QUICK, *SIZES["ppo"]]
    words += [f"--algorithm.compile={compiled}", "--total-timesteps=50", "--seed=3"]
    code, _, err = call(capsys, *words)
    assert code == 3
    assert 'raise ZeroDivisionError("a bug")' in err
    assert re.search(
        r"^rl-gumbel: Collapsing-v0: environments 0 to 1 failed in transition, after actions "
        r"\[\[\d\], \[\d\]\] \(seed 3\): ZeroDivisionError: a bug$",
        err,
        re.MULTILINE,
    )


class Tripping(CartPole):
    trips = False

    def transition(self, state, action):
        if self.trips:
            raise ZeroDivisionError("a stone")
        return super().transition(state, action)


def test_an_environment_that_fails_later_is_named_by_whatever_plays_it(capsys, monkeypatch):
    monkeypatch.setitem(ENVS, "Tripping-v0", (f"{__name__}:Tripping", {"max_episode_steps": 9}))
    words = ["train", "--env=Tripping-v0", *QUICK, *SIZES["sac"], "--total-timesteps=40"]
    assert call(capsys, *words)[0] == 0
    monkeypatch.setattr(Tripping, "trips", True)
    for verb in (["evaluate", "run"], ["record", "run"], ["lab", "--run", "run"]):
        code, out, err = call(capsys, *verb)
        assert (code, out) == (3, "")
        assert 'raise ZeroDivisionError("a stone")' in err
        assert re.match(
            r"rl-gumbel: Tripping-v0: environments 0 to \d+ failed in transition, .*: a stone$",
            err.splitlines()[-1],
        )
    assert call(capsys, "report", "run")[0] == 0
    assert "failed in transition" in Path("run/report.html").read_text()
    assert not list(Path("run").glob("videos/*"))


def test_a_bug_of_ours_is_no_fault_of_an_environment(monkeypatch):
    def broken(self, samples, rows):
        raise ZeroDivisionError("ours")

    monkeypatch.setattr(ALGORITHMS["ppo"], "update", broken)
    words = ["train", "--algo=ppo", *QUICK, *SIZES["ppo"], "--total-timesteps=50"]
    with pytest.raises(ZeroDivisionError, match="ours"):
        main(words)


@pytest.mark.parametrize("algo", ["sac", "ppo"])
def test_episodes_of_one_step_train(capsys, algo):
    words = ["train", "--algo", algo, "--env", FAULTY, "--env-kwargs.limit=1", *QUICK, *SIZES[algo]]
    assert call(capsys, *words, "--total-timesteps=40")[0] == 0
    assert last_logged("rollout/ep_len_mean") == 1


@pytest.mark.parametrize("algo", ALGORITHMS)
def test_batched_episodes_of_one_step_train(algo):
    sizes = {"learning_starts": 8} if algo == "sac" else {"n_steps": 4}
    model = ALGORITHMS[algo]("MlpPolicy", FaultyTorch(8, limit=1), device="cpu", **sizes)
    model.learn(96)
    assert {info["l"] for info in model.ep_info_buffer} == {1}


# --- numbers ----------------------------------------------------------------------------------


def test_a_nan_exits_4_and_says_what_helps():
    fault = ["--env-kwargs.how=reward", "--env-kwargs.at=9", "--env-kwargs.seed=1"]
    code, _, err = run(
        "train", "--algo=ppo", "--env", FAULTY, *fault, "--num-envs=2", *QUICK, *SIZES["ppo"],
        "--total-timesteps=200", "--checkpoint-freq=8",
    )  # fmt: skip
    assert code == 4
    assert re.fullmatch(
        rf"rl-gumbel: {FAULTY}: environment 1 \(seed 1\): reward is nan in its step 9, after action"
        r" [012]; --nonfinite reset goes on\n",
        err,
    )
    found = find_checkpoint(Path("run"))
    assert found is not None and found.steps == 16  # of whole iterations before


@pytest.mark.parametrize(("policy", "cut"), [("reset", 1), ("zero", 0)])
@pytest.mark.parametrize("how", ["reward", "obs"])
def test_a_guard_repairs(policy, cut, how):
    survived = Survived()
    env = Guard(lambda: Faulty(how, at=2), 0, policy, survived)
    env.reset(seed=0)
    steps = [env.step(1), env.step(1)]
    obs, reward, terminated, truncated, _ = steps[1]
    assert np.isfinite(obs).all() and obs.dtype == np.float32
    expected = {("obs", 0): 0, ("reward", 0): 2, ("obs", 1): 1, ("reward", 1): 1}[how, cut]
    assert obs[0] == expected
    assert reward == (0.1 if (how, policy) == ("obs", "zero") else 0.0)
    assert (terminated, truncated) == (False, bool(cut))
    assert survived.repaired_steps == 1


@pytest.mark.parametrize("algo", ["sac", "ppo"])
def test_repairs_are_counted_in_the_log(capsys, algo):
    fault = ["--env-kwargs.how=obs", "--env-kwargs.at=10"]
    words = ["train", "--algo", algo, "--env", FAULTY, *fault, *QUICK, *SIZES[algo]]
    assert call(capsys, *words, "--total-timesteps=64", "--nonfinite=reset")[0] == 0
    assert last_logged("rollout/repaired_steps") == 1


def test_sb3s_own_way_of_collecting_checks_too():
    env = DummyVecEnv([Faulty, lambda: Faulty("obs", at=5, keyed=False)])
    model = ALGORITHMS["sac"]("MlpPolicy", env, learning_starts=4, device="cpu")
    with pytest.raises(NumericalError, match=r"environment 1: observation is nan after action"):
        model.learn(40)


def test_no_checkpoint_has_a_nan_in_its_replay(capsys, monkeypatch):
    """It is found when the log is read, every 100 steps, and before a checkpoint is written."""
    monkeypatch.setitem(ENVS, "Nan-v0", ("faulty_envs:FaultyTorch", {"where": "reward", "at": 25}))
    words = ["train", "--env=Nan-v0", "--num-envs=2", *QUICK, *SIZES["sac"]]
    code, _, err = call(capsys, *words, "--total-timesteps=400", "--checkpoint-freq=20")
    assert code == 4
    assert "environment 0: reward is nan at step 50 of training" in err
    assert find_checkpoint(Path("run")).steps == 40


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="limits memory as Linux does")
def test_a_lack_of_memory_exits_4_and_names_the_sizes():
    import resource

    code, _, err = run(
        "train", "--algo=ppo", "--env=CartPole-v1", "--num-envs=2", *QUICK, *SIZES["ppo"],
        "--policy-kwargs.net-arch=[300000, 300000]",
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, (6 << 30, 6 << 30)),
    )  # fmt: skip
    assert code == 4
    assert re.fullmatch(
        r"rl-gumbel: out of memory with num_envs 2, n_steps 8, num_minibatches 2, net_arch "
        r"\[300000, 300000\]: DefaultCPUAllocator: can't allocate memory: you tried to allocate "
        r"360000000000 bytes.*; "
        r"lower num_envs or n_steps\n",
        err,
    )


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=ON_CUDA)])
def test_a_replay_that_does_not_fit_exits_4(capsys, device):
    words = ["train", "--env=CartPole-v1", *QUICK, "--algorithm.buffer-size=1000000000000"]
    code, _, err = call(capsys, *words, f"--device={device}")
    assert code == 4
    assert re.match(r"rl-gumbel: out of memory with num_envs 1, buffer_size 1000000000000, ", err)
    assert ("at most" in err) == (device == "cuda")  # what was in use there
    assert err.count("\n") == 1
    assert not Path("run").exists()


def fail_on_the_host():
    torch.empty(1 << 60)


def fail_on_the_device():
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 4.00 GiB.\nSee the docs")


@pytest.mark.parametrize(
    ("allocate", "reason"),
    [
        (fail_on_the_host, "DefaultCPUAllocator: can't allocate memory: you tried to allocate"),
        (fail_on_the_device, r"CUDA out of memory\. Tried to allocate 4\.00 GiB\."),
    ],
)
def test_memory_that_ends_while_training_keeps_the_checkpoint(
    capsys, monkeypatch, allocate, reason
):
    update = ALGORITHMS["ppo"].update

    def update_or_fail(self, samples, rows):
        if self.num_timesteps > 200:
            allocate()
        return update(self, samples, rows)

    monkeypatch.setattr(ALGORITHMS["ppo"], "update", update_or_fail)
    words = ["train", "--algo=ppo", "--env=CartPole-v1", "--num-envs=4", *QUICK, *SIZES["ppo"]]
    code, _, err = call(capsys, *words, "--checkpoint-freq=64", "--total-timesteps=640")
    assert code == 4
    assert re.fullmatch(
        r"rl-gumbel: out of memory with num_envs 4, n_steps 8, num_minibatches 2, net_arch \[4\]"
        rf"(; at most .*)?: {reason}.*; lower num_envs or n_steps\n",
        err,
    )
    assert find_checkpoint(Path("run")).steps == 192


# --- the directory of a run -------------------------------------------------------------------


def test_a_second_process_is_refused_with_pid_and_host_and_a_dead_one_is_not():
    words = ["--env=CartPole-v1", "--algo=ppo", *QUICK, *SIZES["ppo"]]
    first = start("train", *words, "--total-timesteps=10000000", "--checkpoint-freq=64")
    try:
        wait_for(lambda: Path("run/checkpoints/LATEST").exists(), first)
        code, out, err = run("resume", "run")
        assert (code, out) == (2, "")
        assert err == f"rl-gumbel: run is in use by process {first.pid} on {socket.gethostname()}\n"
    finally:
        first.send_signal(signal.SIGKILL)
        first.communicate()
    assert Path("run", LOCK).exists()
    steps = find_checkpoint(Path("run")).steps
    code, out, _ = run("resume", "run", "--no-progress", f"--total-timesteps={steps + 64}")
    assert code == 0
    assert "resume: exact" in out
    assert not Path("run", LOCK).exists()


def test_a_lock_of_another_host_is_held(tmp_path):
    (tmp_path / LOCK).write_text(json.dumps([123, "elsewhere"]))
    message = rf"in use by process 123 on elsewhere; if that has ended, remove {tmp_path / LOCK}"
    with pytest.raises(UserError, match=message), locked(tmp_path):
        pass


def test_a_lock_is_free_again_after_an_error(tmp_path):
    with pytest.raises(ZeroDivisionError), locked(tmp_path):
        raise ZeroDivisionError
    with locked(tmp_path):
        assert json.loads((tmp_path / LOCK).read_text()) == [os.getpid(), socket.gethostname()]
    assert not (tmp_path / LOCK).exists()


def test_an_unreadable_lock_of_nobody_is_taken(tmp_path):
    (tmp_path / LOCK).write_bytes(b"\x00{")
    with locked(tmp_path):
        assert (tmp_path / LOCK).exists()


def test_of_many_at_once_one_gets_the_lock(tmp_path):
    script = (
        "import sys, time\nfrom pathlib import Path\nfrom rl_gumbel.cli.lock import locked\n"
        "from rl_gumbel.cli.errors import UserError\n"
        "try:\n    with locked(Path(sys.argv[1])):\n        print('held', flush=True)\n"
        "        time.sleep(3)\n"
        "except UserError:\n    print('refused')\n"
    )
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    words = [sys.executable, "-c", script, str(tmp_path)]
    processes = [subprocess.Popen(words, env=env, stdout=subprocess.PIPE) for _ in range(8)]
    said = sorted(process.communicate()[0].decode().strip() for process in processes)
    assert said == ["held"] + ["refused"] * 7


def test_a_directory_below_a_file_is_refused(capsys):
    Path("file").touch()
    words = ["train", *QUICK[:-1], "--run-dir=file/run"]
    code, _, err = call(capsys, *words)
    assert code == 2
    assert err == "rl-gumbel: cannot write file/run: Not a directory\n"


# --- disks ------------------------------------------------------------------------------------


@pytest.fixture
def small_disk(tmp_path):
    """A file system of its own that can be filled, if this user may mount one."""
    path = tmp_path / "disk"
    path.mkdir()
    words = ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(path)]
    if os.geteuid() != 0 or subprocess.run(words, capture_output=True).returncode != 0:
        pytest.skip("only root may mount a file system")
    yield path
    subprocess.run(["umount", "-l", str(path)], check=True)


def fill(path):
    """Leave no byte."""
    file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    try:
        for size in (1 << 16, 1 << 12, 1):
            try:
                while True:
                    os.write(file, b"\0" * size)
            except OSError:
                pass
    finally:
        os.close(file)


@contextlib.contextmanager
def kept_full(path):
    """The same for a while, also of what others remove meanwhile."""
    ended = threading.Event()

    def keep():
        while not ended.wait(0.002):
            fill(path)

    fill(path)
    thread = threading.Thread(target=keep)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
        path.unlink()


def test_a_full_disk_stops_nothing_and_loses_nothing(small_disk):
    run_dir = small_disk / "run"
    words = ["--env=CartPole-v1", "--algo=ppo", *QUICK[:-1], *SIZES["ppo"], "--eval-freq=1000"]
    words += ["--num-envs=4", "--checkpoint-freq=640", "--checkpoint-keep=2"]
    process = start("train", *words, f"--run-dir={run_dir}", "--total-timesteps=9600")
    lines = []
    reader = threading.Thread(target=lambda: lines.extend(process.stderr), daemon=True)
    reader.start()
    wait_for(lambda: (run_dir / "checkpoints" / "LATEST").exists(), process)
    with kept_full(small_disk / "ballast"):
        wait_for(lambda: any("cannot write a checkpoint" in line for line in lines), process)
        wait_for(lambda: any("progress.csv" in line for line in lines), process)
        before = find_checkpoint(run_dir)
        assert before is not None and before.skipped == ()
        time.sleep(0.2)  # it goes on
        assert process.poll() is None
    assert process.wait(timeout=120) == 0
    reader.join()
    process.stdout.close()
    process.stderr.close()
    text = "".join(lines)
    assert text.count("cannot write a checkpoint: No space left on device; training goes on") == 1
    (warned,) = [line for line in text.splitlines() if "progress.csv" in line]
    assert warned.startswith("rl-gumbel: warning: cannot write progress.csv: No space left on ")
    assert "warnings.warn" not in text  # the code that it comes from
    assert text.count("cannot write TensorBoard's events: No space left on device") <= 1
    assert "Traceback" not in text
    assert find_checkpoint(run_dir).steps == 9600
    steps = [int(row["time/total_timesteps"]) for row in read_csv(run_dir / "progress.csv")]
    iterations = sorted({step for step in steps if step % 32 == 0})
    assert iterations == list(range(32, 9601, 32))  # also those of the time in between
    events = EventAccumulator(str(run_dir), size_guidance={"scalars": 0}).Reload()
    logged = [event.step for event in events.Scalars("rollout/ep_rew_mean")]
    assert logged[-1] == 9600 and len(logged) > 250
    rows = [int(row["timesteps"]) for row in read_csv(run_dir / "evaluations.csv")]
    assert len(rows) == 10 and rows[-1] == 9600


@pytest.mark.parametrize("ended", ["by itself", "by a signal"])
def test_a_disk_that_stays_full_exits_5_with_the_checkpoint_before(small_disk, ended):
    run_dir = small_disk / "run"
    total = 6400 if ended == "by itself" else 10_000_000
    words = ["--env=CartPole-v1", "--algo=ppo", *QUICK[:-1], *SIZES["ppo"], "--num-envs=4"]
    words += ["--checkpoint-freq=640", f"--run-dir={run_dir}", f"--total-timesteps={total}"]
    process = start("train", *words)
    wait_for(lambda: (run_dir / "checkpoints" / "LATEST").exists(), process)
    with kept_full(small_disk / "ballast"):
        if ended == "by a signal":
            process.send_signal(signal.SIGTERM)
        _, err = process.communicate(timeout=120)
    assert process.returncode == 5
    last = "rl-gumbel: cannot write the last checkpoint: No space left on device"
    assert err.splitlines()[-1] == last
    before = find_checkpoint(run_dir)
    assert before.steps < total
    more = f"--total-timesteps={before.steps + 640}"
    code, out, err = run("resume", run_dir, "--no-progress", more)
    assert (code, err) == (0, "")
    assert "resume: exact" in out


def leave(path, pages):
    """Fill the disk but for some pages."""
    fill(path)
    os.truncate(path, path.stat().st_size // PAGE * PAGE - pages * PAGE)


def read_all(directory):
    return {
        path.relative_to(directory): path.read_bytes()
        for path in directory.rglob("*")
        if path.is_file() and "tfevents" not in path.name
    }


def test_a_full_disk_refuses_to_resume_and_leaves_the_run_as_it_was(small_disk, capsys):
    """Without a page there is no lock, with one no table, with two no configuration."""
    run_dir, ballast = small_disk / "run", small_disk / "ballast"
    words = ["--algo=ppo", *QUICK[:-1], *SIZES["ppo"], "--num-envs=4", f"--run-dir={run_dir}"]
    assert call(capsys, "train", *words, "--total-timesteps=320")[0] == 0
    before = read_all(run_dir)
    more = ["resume", run_dir, "--no-progress", "--total-timesteps=640"]
    for pages, where in enumerate([run_dir / LOCK, run_dir, run_dir]):
        leave(ballast, pages)
        code, _, err = run(*more) if pages == 2 else call(capsys, *more)
        assert (code, err) == (5, f"rl-gumbel: cannot write {where}: No space left on device\n")
        ballast.unlink()
        assert read_all(run_dir) == before
    code, out, err = call(capsys, *more)
    assert (code, err) == (0, "")
    assert "resume: exact" in out


def test_a_full_disk_refuses_to_begin(small_disk, capsys):
    leave(small_disk / "ballast", 0)
    code, out, err = call(capsys, "train", *QUICK[:-1], f"--run-dir={small_disk / 'run'}")
    assert (code, out) == (5, "")
    assert err == f"rl-gumbel: cannot write {small_disk / 'run'}: No space left on device\n"


@pytest.fixture
def viewed(capsys, small_disk):
    """A run on a disk that is full."""
    run_dir = small_disk / "run"
    words = ["--algo=ppo", *QUICK[:-1], *SIZES["ppo"], "--num-envs=4", f"--run-dir={run_dir}"]
    assert call(capsys, "train", *words, "--total-timesteps=320")[0] == 0
    (run_dir / "report.html").write_text("the old page")
    fill(small_disk / "ballast")
    return run_dir


@pytest.mark.parametrize(
    ("words", "file"),
    [
        (["export", "{run}", "{run}/model.zip"], "model.zip"),
        (["report", "{run}", "--no-video"], "report.html"),
        (["plot", "{run}", "--out", "{run}/plots"], "plots"),
        (["lab", "--out", "{run}/lab", "--only", "categories", "--draws", "2"], "lab"),
    ],
    ids=lambda words: words[0] if isinstance(words, list) else None,
)
def test_what_does_not_fit_is_named_and_what_was_there_stays(viewed, capsys, words, file):
    code, _, err = call(capsys, *(word.format(run=viewed) for word in words))
    assert (code, err) == (5, f"rl-gumbel: cannot write {viewed / file}: No space left on device\n")
    assert not (viewed / "model.zip").exists()
    assert (viewed / "report.html").read_text() == "the old page"


def test_a_film_that_does_not_fit_is_named_and_leaves_none(viewed):
    code, _, err = run("record", viewed)
    assert code == 5
    assert "No space left on device" in err  # ffmpeg's own words
    assert f"\nrl-gumbel: cannot write {viewed}/videos/last-320.mp4: " in err
    assert "Traceback" not in err
    assert list((viewed / "videos").iterdir()) == []


def test_a_checkpoint_that_does_not_fit_is_an_error_of_the_disk_and_leaves_nothing(small_disk):
    """safetensors has an error of its own for it."""
    tensors = {"replay": torch.zeros(1 << 20)}

    def write(directory):
        write_tree(tensors, directory, "state")

    with pytest.raises(OSError, match="No space left on device"):
        write_checkpoint(small_disk, 8, write, keep=2)
    assert list((small_disk / "checkpoints").iterdir()) == []


def test_a_disk_without_writing_is_refused_before_training(small_disk):
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    code, out, err = run("train", *QUICK[:-1], f"--run-dir={small_disk / 'run'}")
    assert (code, out) == (2, "")
    assert err == f"rl-gumbel: cannot write {small_disk / 'run'}: Read-only file system\n"


def test_records_are_written_from_the_byte_at_which_the_disk_was_full(small_disk):
    fill(small_disk / "ballast")
    with open(small_disk / "ballast", "r+b") as ballast:
        size = os.fstat(ballast.fileno()).st_size
        ballast.truncate(size - 4096)  # one page
    file = LastingFile(small_disk / "records", "the records")
    records = [bytes([i]) * 1500 for i in range(8)]
    with pytest.warns(RuntimeWarning, match="cannot write the records: No space left on device"):
        for record in records:
            file.write(record)
    assert 0 < (small_disk / "records").stat().st_size < 12_000
    (small_disk / "ballast").unlink()
    file.close()
    assert (small_disk / "records").read_bytes() == b"".join(records)


def test_what_cannot_be_written_is_warned_of_once():
    def write():
        raise OSError(28, "No space left on device")

    writer = Writer("a table")
    with pytest.warns(RuntimeWarning, match="cannot write a table: No space left on device"):
        assert not writer.attempt(write)
    assert not writer.attempt(write)  # an error, if it warned
    assert writer.attempt(lambda: None)
