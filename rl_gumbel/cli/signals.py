"""Signals that stop a run: the first one at the next safe point, a second one at once."""

import contextlib
import os
import signal
import sys
import threading
from types import FrameType, TracebackType

STOPPING = ("SIGINT", "SIGTERM", "SIGUSR1")
"""Ctrl-C; what `kill` and schedulers send; what SLURM sends ahead of its limit."""
STDERR = 2


def leave_to_parent() -> None:
    """Leave to the parent what signals ask of all processes: it saves, and ends this one."""
    if hasattr(os, "setsid"):
        os.setsid()  # out of the group that a terminal or `timeout` sends them to
    for name in STOPPING:
        if name != "SIGTERM" and hasattr(signal, name):  # by which the parent may end it
            signal.signal(getattr(signal, name), signal.SIG_IGN)


class StopSignals:
    """While entered, notes the first of the signals in `received`."""

    def __init__(self) -> None:
        self.received: signal.Signals | None = None
        self._before: dict[signal.Signals, object] = {}

    def __enter__(self) -> "StopSignals":
        """Take the signals over, those aside that are ignored, as in the background of a shell."""
        if threading.current_thread() is threading.main_thread():  # no other may
            for name in STOPPING:
                number = getattr(signal, name, None)  # Windows lacks one
                if number is not None and signal.getsignal(number) is not signal.SIG_IGN:
                    self._before[number] = signal.signal(number, self._handle)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Give the signals back."""
        for number, handler in self._before.items():
            signal.signal(number, handler)  # type: ignore[arg-type]

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.received is not None:
            if sys.stdout.isatty():
                os.write(sys.stdout.fileno(), b"\033[?25h\n")  # the display has hidden the cursor
            os._exit(128 + number)
        self.received = signal.Signals(number)
        text = f"{self.received.name}: saving at the next safe point; once more exits at once\n"
        with contextlib.suppress(OSError):  # nobody may be reading any more
            os.write(STDERR, text.encode())  # which a handler may do, unlike print
