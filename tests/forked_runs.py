"""Training in processes that real signals stop, forked from one that has imported everything.

`python forked_runs.py signals` and `python forked_runs.py kill COUNT SEED` print JSON of what
happened, in an empty directory.
"""

import json
import os
import random
import signal
import sys
import time
from pathlib import Path

import torch

from rl_gumbel.checkpoint import find_checkpoint
from rl_gumbel.cli import main, resume, train  # noqa: F401 (imported once, for all)

torch.set_num_threads(1)
SMALL = [
    *("--algo=ppo", "--env=CartPole-v1", "--num-envs=4", "--policy-kwargs.net-arch=[4]"),
    *("--algorithm.n-steps=8", "--algorithm.num-minibatches=2", "--algorithm.n-epochs=1"),
    *("--algorithm.learning-rate=0.01", "--algorithm.clip-range=0.2"),
    *("--eval-freq=0", "--eval-episodes=2", "--device=cpu", "--no-progress"),
]
FOREVER = "--total-timesteps=1000000000"


def start(log, *words):
    """The id of a new process that runs a command; what it prints goes to a file."""
    pid = os.fork()
    if pid:
        return pid
    output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(output, 1)
    os.dup2(output, 2)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    code = 99
    try:
        code = main([str(word) for word in words])
    finally:
        sys.stdout.flush()
        os._exit(code)


def wait(pid, seconds=60):
    """The exit code, negative for a signal; the process must end within the time."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.01)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    return "did not end"


def wait_until(condition, seconds=60):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, condition
        time.sleep(0.002)


def has_logged(run_dir):
    path = Path(run_dir, "progress.csv")
    return path.is_file() and path.stat().st_size > 0


def stop_by_each_signal():
    """What each of the signals does, and a second one while the first waits for a safe point."""
    result = {}
    for name in ("SIGINT", "SIGTERM", "SIGUSR1"):
        pid = start(f"{name}.log", "train", *SMALL, FOREVER, "--run-dir", name)
        wait_until(lambda: has_logged(name))  # noqa: B023
        os.kill(pid, getattr(signal, name))
        code = wait(pid)
        steps = find_checkpoint(Path(name)).steps
        # To an end, and beside it a run that was not stopped.
        total = f"--total-timesteps={steps + 64}"
        resumed = wait(start(f"{name}.log", "resume", name, total, "--no-progress"))
        whole = wait(start("whole.log", "train", *SMALL, total, "--run-dir", f"{name}-whole"))
        lines = Path(f"{name}.log").read_text().splitlines()
        result[name] = {"codes": [code, resumed, whole], "steps": steps, "lines": lines}
    # A rollout of a minute: no safe point in sight.
    slow = ["--algorithm.n-steps=1000000"]
    pid = start("slow.log", "train", *SMALL, *slow, FOREVER, "--run-dir", "slow")
    wait_until(lambda: Path("slow/evaluations.csv").is_file())
    time.sleep(0.3)
    os.kill(pid, signal.SIGTERM)
    time.sleep(0.3)
    assert os.waitpid(pid, os.WNOHANG) == (0, 0)
    os.kill(pid, signal.SIGTERM)
    before = time.monotonic()
    result["second"] = {"code": wait(pid), "seconds": time.monotonic() - before}
    return result


def kill(count, seed):
    """Kill a run `count` times at random moments, going on each time; then let it end."""
    rng = random.Random(seed)
    run_dir = Path("run")
    latest = run_dir / "checkpoints/LATEST"
    words = ["train", "--resume=auto", "--run-dir=run", "--checkpoint-freq=1", *SMALL, FOREVER]
    result = {"killed": 0, "while_saving": 0, "lost": [], "skipped": [], "codes": []}
    announced = 0
    for _ in range(count):
        pid = start("run.log", *words)
        before = announced
        # Often at once; else after some new checkpoints, so that the run gets on.
        if rng.random() < 0.8:
            wait_until(lambda: latest.is_file() and int(latest.read_text()) > before)  # noqa: B023
        deadline = time.monotonic() + rng.uniform(0, 0.15)
        while time.monotonic() < deadline:
            pass
        if latest.is_file():
            announced = int(latest.read_text())
        os.kill(pid, signal.SIGKILL)
        result["codes"].append(wait(pid))
        result["killed"] += 1
        result["while_saving"] += bool(list(run_dir.glob("*/**/.*")))
        found = find_checkpoint(run_dir)
        steps = 0 if found is None else found.steps
        if steps < announced:
            result["lost"].append([announced, steps])
        if found is not None:
            result["skipped"] += found.skipped
    total = f"--total-timesteps={find_checkpoint(run_dir).steps + 64}"
    result["end"] = wait(start("run.log", "resume", "run", total, "--no-progress"), 300)
    whole = start("whole.log", "train", *SMALL, total, "--run-dir", "whole")
    result["whole"] = wait(whole, 300)
    result["log"] = Path("run.log").read_text()[-2000:]
    return result


if __name__ == "__main__":
    if sys.argv[1] == "signals":
        print(json.dumps(stop_by_each_signal()))
    else:
        print(json.dumps(kill(int(sys.argv[2]), int(sys.argv[3]))))
