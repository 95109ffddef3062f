"""The lab during training: how good each estimator is on the critic as it is now."""

from io import BytesIO
from typing import Any

import torch

from rl_gumbel.callbacks import MarkCallback
from rl_gumbel.lab import figures
from rl_gumbel.lab.on_run import BatchGradient, measure_run, training_method
from rl_gumbel.tensorboard import add_image, find_writer, recent_states

TAG = "lab/estimators"
STATES, DRAWS = 64, 32
"""Recent states of a batch, and gradients of it for each method: seconds for a figure."""
DPI = 80


class LabCallback(MarkCallback):
    """Write the figure of `rl-gumbel lab --run` into TensorBoard, now and then.

    Training goes on as without: random numbers come from a copy of its stream.

    Args:
        interval: steps of training between two figures, at least 1.
    """

    model: Any

    def __init__(self, interval: int) -> None:
        super().__init__()
        self.interval = interval

    def _on_training_start(self) -> None:
        self._next = self.num_timesteps + self.interval

    def _on_step(self) -> bool:
        return True

    def _on_rollout_end(self) -> None:
        if self.num_timesteps >= self._next:
            # Several environments step at once, so the count may pass more than one mark.
            self._next += self.interval * (1 + (self.num_timesteps - self._next) // self.interval)
            self._record()

    def _record(self) -> None:
        writer, states = find_writer(self.logger), recent_states(self.model, STATES)
        if writer is None or states is None:
            return
        objective = self.model.objective
        present = training_method(objective, self.model._current_progress_remaining)
        with torch.random.fork_rng(), torch.enable_grad():
            gradient = BatchGradient(self.model.policy, *states, objective.use_mean)
            result = measure_run(gradient, present, DRAWS)
        file = BytesIO()
        figures.run(result.rows).savefig(file, format="png", dpi=DPI)
        add_image(writer, TAG, file.getvalue(), self.num_timesteps)
