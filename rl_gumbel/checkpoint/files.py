"""Files and directories that are on the disk completely or not at all."""

import os
import shutil
import warnings
from collections.abc import Callable
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


class Writer:
    """Tries to write something again and again, and warns once when it cannot.

    Args:
        what: is written, for the warning.
    """

    def __init__(self, what: str) -> None:
        self.what = what
        self._has_warned = False

    def attempt(self, write: Callable[[], None]) -> bool:
        """Return whether `write` went through; an `OSError` of it never stops training."""
        try:
            write()
            return True
        except OSError as error:
            if not self._has_warned:
                self._has_warned = True
                warnings.warn(
                    f"cannot write {self.what}: {error.strerror or error}; training goes on, and "
                    f"it is tried again",
                    RuntimeWarning,
                    stacklevel=2,
                )
            return False


def remove_directory(path: Path) -> None:
    """Remove a directory; whoever is killed meanwhile leaves nothing half of it at its name."""
    hidden = path.with_name(f".{path.name}.removed")
    shutil.rmtree(hidden, ignore_errors=True)
    path.rename(hidden)
    shutil.rmtree(hidden)
