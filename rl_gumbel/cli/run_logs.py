"""The logs of a run, `progress.csv` and TensorBoard's, which may go on from some step."""

import csv
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
from torch.utils.tensorboard import SummaryWriter

from rl_gumbel.checkpoint.files import write_file
from rl_gumbel.cli.lasting import LastingFile, LastingLog

PROGRESS, STEPS = "progress.csv", "time/total_timesteps"


def open_logs(run_dir: Path, steps: int | None = None) -> Logger:
    """Return the logger of a run, new or going on from `steps`; what is logged later is dropped."""
    formats: list[KVWriter] = [
        TensorBoardLog(run_dir, steps),
        LastingLog(PROGRESS, partial(CsvLog, run_dir / PROGRESS), steps),
    ]
    return Logger(str(run_dir), formats)


class TensorBoardLog(TensorBoardOutputFormat):
    """SB3's, in a file of its own for each process; TensorBoard reads them one after the other."""

    def __init__(self, run_dir: Path, steps: int | None) -> None:
        for path in () if steps is None else run_dir.glob("*tfevents*"):
            cut_events(path, steps)
        self.writer = SummaryWriter(log_dir=str(run_dir))
        self._is_closed = False
        # Written by a thread that an error would end, and every later call with it.
        file_writer = self.writer._get_file_writer()
        events = file_writer.event_writer
        records = events._async_writer._writer
        records._writer.close()
        records._writer = LastingFile(Path(events._file_name), "TensorBoard's events")
        if steps is not None:
            # For a TensorBoard that has read the files before they were cut: what `purge_step` of
            # the writer does, which that thread might still be writing when its file is closed.
            file_writer.add_event(Event(step=steps + 1, file_version="brain.Event:2"))
            start = SessionLog(status=SessionLog.START)
            file_writer.add_event(Event(step=steps + 1, session_log=start))


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
