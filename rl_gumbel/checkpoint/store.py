"""Checkpoints of a run: one directory for each, there completely or not at all.

`RUN/checkpoints/<steps>/` is written aside, every file and the directory synced, and renamed once;
then `LATEST`, which names it, is switched, and what is older than the last few is removed. Its
`manifest.json` has the size and SHA-256 of each file. So a kill at any moment leaves the checkpoint
before, and damage is noticed.
"""

import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from rl_gumbel import __version__
from rl_gumbel.checkpoint.files import remove_directory, sync, write_file
from rl_gumbel.checkpoint.tree import read_json

FORMAT_VERSION = 1
CHECKPOINTS, LATEST, MANIFEST = "checkpoints", "LATEST", "manifest.json"
FILES = frozenset({"model.json", "model.safetensors", "state.json", "state.safetensors"})
PACKAGES = ("torch", "stable-baselines3", "gymnasium", "numpy", "safetensors")


class DamagedError(ValueError):
    """A checkpoint that is not whole; the message is one line."""


class FormatError(ValueError):
    """A checkpoint of a version that this one does not read; the message is one line."""


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint whose files are those that were written."""

    path: Path
    """Its directory."""
    steps: int
    """Environment steps of training so far."""
    versions: dict[str, str]
    """Of the libraries that wrote it."""
    skipped: tuple[str, ...]
    """Why newer ones were not taken, a line for each."""


def write_checkpoint(run_dir: Path, steps: int, write: Callable[[Path], None], keep: int) -> None:
    """Keep what `write` puts into a directory as the checkpoint of `steps`, and the last `keep`.

    Checkpoints of more steps are of a future that was given up, and are removed.

    Raises:
        OSError: if it cannot be written; the checkpoints before are as they were.
    """
    directory = run_dir / CHECKPOINTS
    directory.mkdir(parents=True, exist_ok=True)
    for left in directory.glob(".*"):  # by a process that was killed
        shutil.rmtree(left) if left.is_dir() else left.unlink()
    aside, path = directory / f".{steps}.{os.getpid()}", directory / str(steps)
    try:
        aside.mkdir()
        write(aside)
        (aside / MANIFEST).write_text(json.dumps(_describe(aside), indent=2), encoding="utf-8")
        for file in aside.iterdir():
            sync(file)
        sync(aside)
        if path.exists():
            remove_directory(path)
        aside.rename(path)
        sync(directory)
    except BaseException:
        shutil.rmtree(aside, ignore_errors=True)
        raise
    write_file(directory / LATEST, f"{steps}\n".encode())
    there = _list_steps(directory)
    kept = [other for other in there if other <= steps][:keep]
    for other in set(there) - set(kept):
        remove_directory(directory / str(other))


def find_checkpoint(run_dir: Path) -> Checkpoint | None:
    """Return the newest checkpoint that is whole; None if none was ever written.

    Raises:
        DamagedError: if none is whole.
        FormatError: if the newest is of a newer version.
    """
    directory = run_dir / CHECKPOINTS
    there = _list_steps(directory)
    latest = directory / LATEST
    named = latest.read_text(errors="replace").strip() if latest.is_file() else ""
    skipped = []
    if re.fullmatch("[0-9]{1,18}", named) and int(named) not in there:
        skipped.append(f"{directory / named}, the latest, is missing")
    for steps in there:
        path = directory / str(steps)
        try:
            return Checkpoint(path, steps, verify(path)["versions"], tuple(skipped))
        except DamagedError as error:
            skipped.append(str(error))
    if skipped:
        raise DamagedError(f"{run_dir} has no checkpoint that is whole: {'; '.join(skipped)}")
    return None


def verify(path: Path) -> dict[str, Any]:
    """Return the manifest of a checkpoint, all of whose files are those that it describes.

    Raises:
        DamagedError: naming the file that is not.
        FormatError: for a newer version.
    """
    try:
        manifest = read_json(path / MANIFEST)
        number, files, versions = (manifest[k] for k in ("format_version", "files", "versions"))
        described = {name: (entry["bytes"], entry["sha256"]) for name, entry in files.items()}
        versions = {str(name): str(text) for name, text in versions.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise DamagedError(f"{path / MANIFEST} is missing or damaged") from error
    if number != FORMAT_VERSION:
        raise FormatError(
            f"{path} has format {number}; this version of rl-gumbel reads {FORMAT_VERSION}"
        )
    if described.keys() != FILES:  # so that no name leads elsewhere
        raise DamagedError(f"{path / MANIFEST} does not describe {', '.join(sorted(FILES))}")
    for name, (size, digest) in described.items():
        file = path / name
        if not file.is_file():
            raise DamagedError(f"{file} is missing")
        if file.stat().st_size != size:
            raise DamagedError(f"{file} has {file.stat().st_size} bytes instead of {size}")
        if _hash(file) != digest:
            raise DamagedError(f"{file} is damaged: its SHA-256 is not that of the manifest")
    return {**manifest, "versions": versions}


def _describe(directory: Path) -> dict[str, Any]:
    return {
        "format_version": FORMAT_VERSION,
        "versions": list_versions(),
        "files": {
            name: {"bytes": (directory / name).stat().st_size, "sha256": _hash(directory / name)}
            for name in sorted(FILES)
        },
    }


def list_versions() -> dict[str, str]:
    """Return the versions of the libraries that decide what a checkpoint means."""
    return {"rl-gumbel": __version__, **{name: version(name) for name in PACKAGES}}


def _list_steps(directory: Path) -> list[int]:
    """Return the steps of all checkpoints, newest first."""
    paths = directory.iterdir() if directory.is_dir() else ()
    return sorted(
        (int(p.name) for p in paths if re.fullmatch("0|[1-9][0-9]*", p.name)), reverse=True
    )


def _hash(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
