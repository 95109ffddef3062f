"""Every command line of the README and of the site runs; only its work is shortened."""

import os
import re
import shlex
from pathlib import Path

import pytest

from rl_gumbel.cli import main
from rl_gumbel.lab import sweep

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
BLOCK = re.compile(r"```bash\n(.*?)```", re.DOTALL)
LINES = sorted(
    {
        line.partition("  #")[0].strip()
        for page in PAGES
        for block in BLOCK.findall(page.read_text())
        for line in block.splitlines()
        if line
    }
)
COMMANDS = [line for line in LINES if line.startswith("rl-gumbel ")]
QUICK = ["--no-progress", "--device=cpu", "--eval-freq=0", "--eval-episodes=1"]
SHORTER = {
    "train": [*QUICK, "--total-timesteps=48"],
    "evaluate": ["--episodes=2"],
    "lab": ["--draws=1"],
    "record": ["--max-episode-steps=10"],
}
"""What is added to a verb's words."""


def test_commands_are_found() -> None:
    """An unmatched pattern would leave the next tests with nothing to run."""
    verbs = {command.split()[1] for command in COMMANDS}
    assert verbs == {
        *("train", "resume", "evaluate", "list", "lab"),
        *("plot", "record", "report", "tensorboard", "export"),
    }


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the pages call RUN, or by a path below `runs`."""
    path = tmp_path_factory.mktemp("runs") / "run"
    words = ["--algorithm.learning-starts=8", "--algorithm.batch-size=4", "--seed=3"]
    assert main(["train", *QUICK, *words, "--total-timesteps=320", f"--run-dir={path}"]) == 0
    return path


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_of_the_pages_runs(
    command: str, run_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    opened: list[list[str]] = []
    monkeypatch.setattr(os, "execv", lambda _, words: opened.append(words))
    verb, *words = shlex.split(command.removeprefix("rl-gumbel "))
    words = [word for word in words if word != "..."]
    if verb != "train":  # which makes its run itself, wherever it is told
        words = [re.sub(r"^(RUN|runs|ours|sb3_logs)\b.*", str(run_dir), word) for word in words]
    words = [re.sub("^2000000$", "336", word) for word in words]  # steps of a longer run
    words += SHORTER.get(verb, [])
    monkeypatch.setattr(sweep, "INSTANCES", 2)
    monkeypatch.setattr(sweep, "FIT_STEPS", 2)
    if "--run" in words:
        words += ["--states=8"]
    elif verb == "lab" and "--only" not in words:
        words += ["--only", "sharpness"]  # all are in test_lab_cli.py
    try:
        code = main([verb, *words])
    except SystemExit as stop:  # the help
        code = stop.code
    assert code == (None if verb == "tensorboard" else 0)
    assert len(opened) == (verb == "tensorboard")


def test_targets_of_make_are_there() -> None:
    targets = {line.split()[1] for line in LINES if line.startswith("make ")}
    assert targets >= {"train", "test"}
    makefile = (ROOT / "Makefile").read_text()
    assert [target for target in targets if f"\n{target}: " not in makefile] == []


def test_the_promises_name_tests_that_exist() -> None:
    named = set(re.findall(r"`(test_\w+)`", (ROOT / "docs" / "runs.md").read_text()))
    written = "\n".join(path.read_text() for path in (ROOT / "tests").glob("test_*.py"))
    assert len(named) > 30
    assert named - set(re.findall(r"^def (test_\w+)", written, re.MULTILINE)) == set()
