"""Logs whose disk may fail for a while without stopping what they log."""

import sys
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any

from stable_baselines3.common.logger import KVWriter

from rl_gumbel.checkpoint.files import Writer

KEPT = 10_000
"""Rows or records that wait for a disk with room; more are lost."""


class LastingLog(KVWriter):
    """A log that is opened anew after an error, and then gets the rows that are missing.

    Args:
        what: it is, for the warning.
        make: opens it, going on after the rows of so many steps; None starts it.
        steps: for the first opening.
    """

    def __init__(
        self, what: str, make: Callable[[int | None], KVWriter], steps: int | None
    ) -> None:
        self._make = make
        self._log: KVWriter | None = make(steps)
        self._rows: deque[tuple[Any, ...]] = deque(maxlen=KEPT)
        self._writer = Writer(what)

    def write(
        self,
        key_values: dict[str, Any],
        key_excluded: dict[str, tuple[str, ...]],
        step: int = 0,
    ) -> None:
        """Write a row, and those that could not be written before."""
        self._rows.append((dict(key_values), dict(key_excluded), step))
        if not self._writer.attempt(self._write_rows):
            self._log = None

    def _write_rows(self) -> None:
        if self._log is None:
            self._log = self._make(sys.maxsize)
        while self._rows:
            self._log.write(*self._rows[0])
            self._rows.popleft()

    def close(self) -> None:
        """Write what is missing, if that is possible now."""
        self._writer.attempt(self._write_rows)


class LastingFile:
    """A file of records, of which what the disk refuses is written later, from the same byte on.

    Args:
        path: to append to.
        what: it is, for the warning.
    """

    def __init__(self, path: Path, what: str) -> None:
        self._file = path.open("ab", buffering=0)  # so that a short write is seen
        self._records: deque[bytes] = deque()
        self._writer = Writer(what)

    def write(self, record: bytes) -> None:
        """Append a record."""
        if len(self._records) < KEPT:
            self._records.append(record)
        self.flush()

    def flush(self) -> None:
        """Write what could not be written before, as far as that is possible now."""
        self._writer.attempt(self._write_records)

    def _write_records(self) -> None:
        while self._records:
            written = self._file.write(self._records[0])
            self._records[0] = self._records[0][written:]
            if not self._records[0]:
                self._records.popleft()

    def close(self) -> None:
        """Close the file."""
        self.flush()
        self._file.close()
