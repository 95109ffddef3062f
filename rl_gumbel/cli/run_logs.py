"""The logs of a run, `progress.csv` and TensorBoard's, which may go on from some step."""

import csv
import itertools
import os
import socket
import time
from functools import partial
from io import BytesIO, StringIO
from pathlib import Path
from typing import Any

from stable_baselines3.common.logger import (
    KVWriter,
    Logger,
    TensorBoardOutputFormat,
    filter_excluded_keys,
)
from tensorboard.backend.event_processing.event_file_loader import RawEventFileLoader
from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.summary.writer.record_writer import RecordWriter
from torch.utils.tensorboard import FileWriter, SummaryWriter

from rl_gumbel.checkpoint.files import write_file
from rl_gumbel.cli.lasting import LastingFile, LastingLog

PROGRESS, STEPS = "progress.csv", "time/total_timesteps"
FILE_VERSION = "brain.Event:2"
"""That TensorBoard's files begin with."""
_numbers = itertools.count()
"""Of the event files of this process."""


def open_logs(run_dir: Path, steps: int | None = None) -> Logger:
    """Return the logger of a run, new or going on from `steps`; what is logged later is dropped."""
    # First what refuses a disk without room: the events wait for it.
    table = LastingLog(PROGRESS, partial(CsvLog, run_dir / PROGRESS), steps)
    return Logger(str(run_dir), [TensorBoardLog(run_dir, steps), table])


class TensorBoardLog(TensorBoardOutputFormat):
    """SB3's, in a file of its own for each process; TensorBoard reads them one after the other."""

    def __init__(self, run_dir: Path, steps: int | None) -> None:
        for path in () if steps is None else run_dir.glob("*tfevents*"):
            cut_events(path, steps)
        self.writer = LastingSummaryWriter(log_dir=str(run_dir))
        self._is_closed = False
        if steps is not None:
            # For a TensorBoard that has read the files before they were cut.
            file_writer = self.writer._get_file_writer()
            file_writer.add_event(Event(step=steps + 1, file_version=FILE_VERSION))
            start = SessionLog(status=SessionLog.START)
            file_writer.add_event(Event(step=steps + 1, session_log=start))


class LastingSummaryWriter(SummaryWriter):
    """torch's, into a file that waits for a disk with room."""

    def _get_file_writer(self) -> FileWriter:
        if self.file_writer is None:
            self.file_writer = LastingFileWriter(self.log_dir)
            self.all_writers = {self.log_dir: self.file_writer}
        return self.file_writer


class LastingFileWriter(FileWriter):
    """torch's without TensorBoard's thread, which an error would end, and every later call."""

    def __init__(self, log_dir: str) -> None:
        self.event_writer = LastingEvents(Path(log_dir))


class LastingEvents:
    """The event file of a `FileWriter`, named as TensorBoard names them."""

    def __init__(self, run_dir: Path) -> None:
        name = f"{time.time():010.0f}.{socket.gethostname()}.{os.getpid()}.{next(_numbers)}"
        file = LastingFile(run_dir / f"events.out.tfevents.{name}", "TensorBoard's events")
        self._writer = RecordWriter(file)
        self.flush, self.close = self._writer.flush, self._writer.close
        self.add_event(Event(wall_time=time.time(), file_version=FILE_VERSION))

    def add_event(self, event: Event) -> None:
        """Append an event."""
        self._writer.write(event.SerializeToString())


def cut_events(path: Path, steps: int) -> None:
    """Drop the events of later `steps` from a file, and what a kill left half written."""
    whole = BytesIO()
    writer = RecordWriter(whole)
    for record in RawEventFileLoader(str(path)).Load():
        if Event.FromString(record).step <= steps:
            writer.write(record)
    if whole.tell() < path.stat().st_size:
        write_file(path, whole.getvalue())


class CsvLog(KVWriter):
    """A table with a column for each name; a row that brings new names writes it anew.

    Unlike SB3's, its columns stand in the same order in every process, and a kill leaves it whole.
    """

    def __init__(self, path: Path, steps: int | None) -> None:
        self.path = path
        self.names: list[str] = []
        rows = [] if steps is None else [row for row in self._read() if int(row[STEPS]) <= steps]
        self._write(rows)

    def write(
        self,
        key_values: dict[str, Any],
        key_excluded: dict[str, tuple[str, ...]],
        step: int = 0,
    ) -> None:
        """Append a row."""
        row = filter_excluded_keys(key_values, key_excluded, "csv")
        if new := sorted(row.keys() - set(self.names)):
            rows = self._read()
            self.names += new
            self._write([*rows, row])
        else:
            with self.path.open("a", newline="") as file:
                csv.DictWriter(file, self.names, lineterminator="\n").writerow(row)

    def close(self) -> None:
        """Do nothing: no file is open."""

    def _read(self) -> list[dict[str, Any]]:
        """Return the rows that are complete, and learn the names of the columns."""
        if not self.path.is_file():
            return []
        whole, _, _ = self.path.read_text(errors="replace").rpartition("\n")
        reader = csv.DictReader(StringIO(whole))
        self.names = list(reader.fieldnames or ())
        return list(reader)

    def _write(self, rows: list[dict[str, Any]]) -> None:
        text = StringIO()
        writer = csv.DictWriter(text, self.names, lineterminator="\n")
        if self.names:
            writer.writeheader()
        writer.writerows(rows)
        write_file(self.path, text.getvalue().encode())
