"""Real signals to real processes: what stops a run, what is lost, and what goes on."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from test_resume import checkpoint, rows

from rl_gumbel.checkpoint import find_checkpoint

SCRIPT = Path(__file__).parent / "forked_runs.py"


def run(directory, *words, seconds):
    """What the script printed, as data."""
    done = subprocess.run(
        [sys.executable, str(SCRIPT), *map(str, words)],
        cwd=directory,
        env=os.environ | {"PYTHONPATH": str(SCRIPT.parents[1]), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=seconds,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.fixture(scope="module")
def stopped(tmp_path_factory):
    directory = tmp_path_factory.mktemp("signals")
    return directory, run(directory, "signals", seconds=300)


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGUSR1"])
def test_a_signal_saves_and_exits_75_and_the_run_goes_on_exactly(stopped, name):
    directory, result = stopped
    what = result[name]
    assert what["codes"] == [75, 0, 0]
    end = f"after {what['steps']} steps; continue with: rl-gumbel resume {name}"
    assert f"stopped by {name} {end}" in what["lines"]
    assert f"{name}: saving at the next safe point; once more exits at once" in what["lines"]
    assert "resume: exact" in what["lines"]
    same_end(directory / name, directory / f"{name}-whole")


def same_end(run_dir, whole):
    """The same last checkpoint and the same rows."""
    end = find_checkpoint(whole).steps
    assert checkpoint(run_dir, end) == checkpoint(whole, end)
    for name in ("progress.csv", "evaluations.csv"):
        assert rows(run_dir / name) == rows(whole / name)


def test_a_second_signal_exits_at_once(stopped):
    second = stopped[1]["second"]
    assert second["code"] == 128 + 15
    assert second["seconds"] < 2


def check_kills(directory, count, seed):
    result = run(directory, "kill", count, seed, seconds=1800)
    assert result["codes"] == [-9] * count
    assert result["lost"] == []  # no checkpoint that had been announced
    assert result["skipped"] == []  # none that was half written
    assert (result["end"], result["whole"]) == (0, 0), result["log"]
    assert not re.search("Traceback", result["log"])
    same_end(directory / "run", directory / "whole")
    return result


def test_a_run_killed_at_five_moments_ends_as_one_that_was_not(tmp_path):
    check_kills(tmp_path, 5, seed=1)


@pytest.mark.full
@pytest.mark.parametrize("seed", range(4))
def test_a_run_killed_at_a_hundred_moments_ends_as_one_that_was_not(tmp_path, seed):
    """Four times 25, in training and in saving."""
    result = check_kills(tmp_path, 25, seed)
    assert result["while_saving"] >= 2
