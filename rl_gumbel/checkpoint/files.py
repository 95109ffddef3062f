"""Files and directories that are on the disk completely or not at all."""

import os
import shutil
from pathlib import Path


def sync(path: Path) -> None:
    """Wait until a file, or the names in a directory, would survive a power cut."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_file(path: Path, content: bytes) -> None:
    """Write a file aside and put it into its place at once."""
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        aside.write_bytes(content)
        sync(aside)  # before the rename, or a power cut could leave it empty
        aside.replace(path)
        sync(path.parent)
    finally:
        aside.unlink(missing_ok=True)


def remove_directory(path: Path) -> None:
    """Remove a directory; whoever is killed meanwhile leaves nothing half of it at its name."""
    hidden = path.with_name(f".{path.name}.removed")
    shutil.rmtree(hidden, ignore_errors=True)
    path.rename(hidden)
    shutil.rmtree(hidden)
