"""The callback that writes checkpoints, stops at the next safe point, and goes on from one."""

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

from stable_baselines3.common.callbacks import BaseCallback

from rl_gumbel.checkpoint.files import Writer
from rl_gumbel.checkpoint.model import load_weights, save_model
from rl_gumbel.checkpoint.state import get_state, set_state
from rl_gumbel.checkpoint.store import (
    Checkpoint,
    DamagedError,
    list_versions,
    write_checkpoint,
)
from rl_gumbel.checkpoint.tree import read_tree, write_tree
from rl_gumbel.faults import StorageFailedError

SECONDS = 600.0
"""Between checkpoints, where the steps between them are not set."""
SAME_VERSIONS = ("torch", "rl-gumbel")
"""Of others the same numbers are expected in any version."""


class Stateful(Protocol):
    """A callback whose state, a tree, is part of a checkpoint."""

    def get_state(self) -> dict[str, Any]:
        """Return it."""

    def set_state(self, state: dict[str, Any]) -> None:
        """Go on from it."""


class TrainingStoppedError(Exception):
    """Training was asked to stop, and its checkpoint is written."""


class CheckpointCallback(BaseCallback):
    """Write `run_dir/checkpoints` and `run_dir/models/last` between iterations and at the end.

    Args:
        run_dir: of this run.
        others: callbacks that are part of the state; they stand before this one where callbacks
            are listed.
        freq: steps between checkpoints; 0 is at the end and when stopped only, None every
            `SECONDS`.
        keep: how many are kept.
        should_stop: asked between iterations; where it returns True a checkpoint is written and
            `TrainingStoppedError` raised.
        start: what to go on from.
    """

    def __init__(
        self,
        run_dir: Path,
        others: Sequence[Stateful],
        freq: int | None,
        keep: int,
        should_stop: Callable[[], bool] = lambda: False,
        start: Checkpoint | None = None,
    ) -> None:
        super().__init__()
        self.run_dir = run_dir
        self.others = others
        self.freq = freq
        self.keep = keep
        self.should_stop = should_stop
        self.start = start
        self._writer = Writer("a checkpoint")

    def _on_training_start(self) -> None:
        if self.start is not None:
            self._go_on(self.start)
        self._saved_steps = self.model.num_timesteps
        self._saved_seconds = time.monotonic()

    def _go_on(self, start: Checkpoint) -> None:
        """Replace all that `learn` has set up, and say whether that is exact.

        Raises:
            DamagedError: if the checkpoint is of another run.
        """
        try:
            load_weights(self.model, start.path)
            state = read_tree(start.path, "state")
            reason = set_state(self.model, state["training"])
            for other, part in zip(self.others, state["callbacks"], strict=True):
                other.set_state(part)
        except Exception as error:  # a file that somebody else wrote fails in any way
            text = f"{type(error).__name__}: {error}".partition("\n")[0]
            raise DamagedError(f"{start.path} does not fit this run: {text}") from error
        if reason is None and getattr(self.model, "compile", False):
            reason = "what is compiled runs uncompiled once, with other random numbers"
        now = list_versions()
        for name in SAME_VERSIONS:
            if start.versions.get(name) != now[name] and reason is None:
                reason = f"{name} was {start.versions.get(name)}, and is {now[name]} now"
        kind = "exact" if reason is None else f"approximate: {reason}"
        print(f"resume: {kind}", flush=True)

    def _on_rollout_start(self) -> None:
        # Between two iterations: all that was collected is learned from.
        if self.should_stop():
            self._save_last()
            raise TrainingStoppedError
        if self._is_due():
            self._writer.attempt(self.save)
            # Also where it failed: the next one is tried when it is due.
            self._saved_steps = self.model.num_timesteps
            self._saved_seconds = time.monotonic()

    def _is_due(self) -> bool:
        if self.freq is None:
            return time.monotonic() - self._saved_seconds >= SECONDS
        # Several environments step at once, so the count may pass more than one mark.
        return self.freq > 0 and (
            self.model.num_timesteps // self.freq > self._saved_steps // self.freq
        )

    def _on_training_end(self) -> None:
        self._save_last()

    def _save_last(self) -> None:
        """Write a checkpoint for which there is no other time."""
        try:
            self.save()
        except OSError as error:
            raise StorageFailedError(
                f"cannot write the last checkpoint: {error.strerror or error}"
            ) from error

    def _on_step(self) -> bool:
        return True

    def save(self) -> None:
        """Write a checkpoint, then its weights as the last model.

        Raises:
            NumericalError: if there is an infinity or NaN in the replay.
            EnvError: if there is a state without an allowed action.
            OSError: if that is not possible; what was written before is as it was.
        """
        model = self.model
        model._read_updates()  # raises if the weights are beyond help
        model.check_numbers()

        def write(directory: Path) -> None:
            save_model(model, directory)
            others = [other.get_state() for other in self.others]
            write_tree({"training": get_state(model), "callbacks": others}, directory, "state")

        write_checkpoint(self.run_dir, model.num_timesteps, write, self.keep)
        save_model(model, self.run_dir / "models" / "last")
