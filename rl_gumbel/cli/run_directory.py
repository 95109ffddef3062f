"""The directory of a run: where it is, and what stands in it from the start."""

import json
import os
import platform
import subprocess
import sys
from datetime import datetime
from importlib.metadata import version
from pathlib import Path

import torch

from rl_gumbel import __version__
from rl_gumbel.checkpoint.files import write_file
from rl_gumbel.checkpoint.tree import read_json
from rl_gumbel.cli.errors import UserError, cannot_use
from rl_gumbel.config import TrainConfig, dump_config

CONFIG, METADATA = "config.yaml", "metadata.json"


def check_run_dir(text: str | None) -> None:
    """Raise a `UserError` if the directory that the user named cannot be used; makes nothing."""
    if text is None:
        return
    path = Path(text)
    if path.is_dir() and any(not entry.name.startswith(".") for entry in path.iterdir()):
        raise UserError(f"--run-dir {text} is not empty; name a new directory")
    if path.exists() and not path.is_dir():
        raise UserError(f"--run-dir {text} is a file; name a new directory")


def make_run_dir(text: str | None, config: TrainConfig, device: str) -> Path:
    """Return the directory of the run, made, with its configuration and metadata.

    Raises:
        UserError: if it cannot be made.
        StorageError: if there is no room on the disk.
    """
    path = Path("runs" if text is None else text)
    try:
        if text is None:
            path = _make_default(config)
        else:
            path.mkdir(parents=True, exist_ok=True)
        metadata = json.dumps(describe_run(device), indent=2) + "\n"
        write_file(path / METADATA, metadata.encode())
        write_file(path / CONFIG, dump_config(config).encode())  # with it, this is a run
    except OSError as error:
        raise cannot_use(path, error) from error
    return path


def note_resume(run_dir: Path, device: str, steps: int) -> None:
    """Add to the metadata of a run what goes on with it after `steps`, under `resumed`."""
    path = run_dir / METADATA
    try:
        metadata = dict(read_json(path))
        before = list(metadata.get("resumed", ()))
    except (OSError, ValueError, TypeError):  # no reason not to go on
        metadata, before = {}, []
    metadata["resumed"] = [*before, {"steps": steps, **describe_run(device)}]
    write_file(path, (json.dumps(metadata, indent=2) + "\n").encode())


def _make_default(config: TrainConfig) -> Path:
    """Return a new `runs/ENV/ALGO/DATE-SEED`, with a number behind it if it is taken."""
    env = config.env.replace("/", "-").replace(":", "-")
    date = datetime.now().strftime("%Y%m%d-%H%M%S")
    name, number = f"{date}-{config.seed}", 1
    while True:
        path = Path("runs") / env / config.algo / (name if number == 1 else f"{name}-{number}")
        try:
            path.mkdir(parents=True)  # fails if another process was first
            return path
        except FileExistsError:
            number += 1


def describe_run(device: str) -> dict[str, object]:
    """Return versions, commit, hardware and command line."""
    packages = ("torch", "stable-baselines3", "gymnasium", "numpy")
    cuda = device.startswith("cuda")
    return {
        "command": sys.argv,
        "started": datetime.now().astimezone().isoformat(timespec="seconds"),
        "versions": {
            "rl-gumbel": __version__,
            "python": platform.python_version(),
            **{name: version(name) for name in packages},
        },
        "git_commit": find_commit(),
        "device": device,
        "hardware": {
            "system": platform.platform(),
            "machine": platform.machine(),
            "cpus": os.cpu_count(),
            "gpu": torch.cuda.get_device_name(device) if cuda else None,
        },
    }


def find_commit() -> str | None:
    """Return the commit of the checkout this package runs from; "-dirty" if it was changed."""
    package = Path(__file__).resolve().parent

    def git(*words: str) -> str:
        command = ["git", "-C", str(package), *words]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    try:
        git("ls-files", "--error-unmatch", __file__)  # not some repository around site-packages
        return git("rev-parse", "HEAD") + ("-dirty" if git("status", "--porcelain") else "")
    except (OSError, subprocess.CalledProcessError):
        return None
