"""One process at a time in the directory of a run."""

import contextlib
import fcntl
import json
import os
import socket
from collections.abc import Iterator
from pathlib import Path

from rl_gumbel.cli.errors import UserError, cannot_use

LOCK = ".lock"


@contextlib.contextmanager
def locked(run_dir: Path) -> Iterator[None]:
    """Hold the lock of a run directory, which names this process and its host.

    The kernel lets go of it when the process ends, however it ends. On a shared file system that
    may not reach other hosts, so that the name of another one in the file is a lock too.

    Raises:
        UserError: if another process holds it, which is named, or the directory cannot be written.
        StorageError: if there is no room on the disk.
    """
    path = run_dir / LOCK
    try:
        file = _open(path)
    except OSError as error:
        raise cannot_use(path, error) from error
    try:
        yield
    finally:
        with contextlib.suppress(OSError):  # on a disk that is gone there is nothing to unlock
            path.unlink()
        os.close(file)


def _open(path: Path) -> int:
    """Return the lock's file, held; raise a `UserError` if another process has it."""
    while True:
        file = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        holder = _read(file)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            os.close(file)
            pid, host = holder or ("of unknown number", "this host")
            raise UserError(f"{path.parent} is in use by process {pid} on {host}") from error
        holder = _read(file)
        if holder is not None and holder[1] != socket.gethostname():
            os.close(file)
            pid, host = holder
            raise UserError(
                f"{path.parent} is in use by process {pid} on {host}; if that has ended, "
                f"remove {path}"
            )
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(file), path.stat()):
                _sign(file, path)
                return file
        os.close(file)  # its holder removed it between our opening and our lock


def _sign(file: int, path: Path) -> None:
    """Write process and host into the lock's file; where that fails there is none."""
    try:
        os.truncate(file, 0)
        os.pwrite(file, json.dumps([os.getpid(), socket.gethostname()]).encode(), 0)
    except OSError:
        path.unlink()
        os.close(file)
        raise


def _read(file: int) -> tuple[object, str] | None:
    """Return process and host of the holder; None if nothing, or nothing readable, stands there."""
    try:
        pid, host = json.loads(os.pread(file, 1000, 0))
        return pid, str(host)
    except (ValueError, TypeError):
        return None
