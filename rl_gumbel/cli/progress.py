"""Training as it goes on the terminal: a live line there, a line per evaluation elsewhere."""

import time
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.utils import safe_mean

from rl_gumbel.callbacks import Evaluation, EvaluationCallback

UPDATE_SECONDS = 0.2


class ProgressCallback(BaseCallback):
    """Show steps, rate, return, evaluations and time left; a context manager around `learn`."""

    def __init__(self, evaluations: EvaluationCallback, total: int, *, live: bool) -> None:
        super().__init__()
        self.evaluations = evaluations
        self.live = live
        self.console = Console()
        self.shown = 0
        self._next_update = 0.0
        self.progress = Progress(
            TextColumn("[bold]{task.completed:,.0f}[/]/{task.total:,.0f}"),
            BarColumn(bar_width=None),
            TextColumn("{task.fields[rate]}"),
            TextColumn("{task.fields[episodes]}"),
            TextColumn("{task.fields[evaluations]}"),
            TimeRemainingColumn(),
            TextColumn("left"),
            console=self.console,
            refresh_per_second=4,
            disable=not live,
        )
        self.task = self.progress.add_task(
            "train", total=total, rate="", episodes="return -", evaluations="eval -"
        )

    def __enter__(self) -> "ProgressCallback":
        """Start the display."""
        self.progress.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Leave the terminal as it was."""
        self.progress.stop()

    def _on_training_start(self) -> None:
        self.shown = len(self.evaluations.results)  # those before it was resumed

    def _on_step(self) -> bool:
        self._show_evaluations()
        if self.live and time.monotonic() >= self._next_update:
            self._next_update = time.monotonic() + UPDATE_SECONDS
            self._update()
        return True

    def _on_training_end(self) -> None:
        self._show_evaluations()
        if self.live:
            self._update()

    def _update(self) -> None:
        task = self.progress.tasks[0]
        speed = f"{task.speed:,.0f}/s" if task.speed else ""
        returns = [info["r"] for info in self.model.ep_info_buffer or ()]
        self.progress.update(
            self.task,
            completed=self.num_timesteps,
            rate=speed,
            episodes=f"return {safe_mean(returns):.1f}" if returns else "return -",
            evaluations=self._describe_evaluations(),
        )

    def _describe_evaluations(self) -> str:
        best = self.evaluations.best
        if best is None:
            return "eval -"
        return f"eval {self.evaluations.results[-1].mean_reward:.1f} (best {best.mean_reward:.1f})"

    def _show_evaluations(self) -> None:
        """Print each new evaluation on a line of its own."""
        for result in self.evaluations.results[self.shown :]:
            self.console.print(describe(result), highlight=False)
        self.shown = len(self.evaluations.results)


def describe(result: Evaluation) -> str:
    """Return an evaluation in a line."""
    return (
        f"{result.timesteps:>9,} steps  eval return {result.mean_reward:.1f} "
        f"+- {result.std_reward:.1f}  length {result.mean_ep_length:.1f}"
    )
