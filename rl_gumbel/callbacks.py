"""SB3 callbacks: evaluation on an environment of its own, with the best model kept."""

import csv
from dataclasses import astuple, dataclass, fields
from pathlib import Path

import numpy as np
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.vec_env import VecEnv

from rl_gumbel.checkpoint import save_model


@dataclass(frozen=True)
class Evaluation:
    """A row of `evaluations.csv`."""

    timesteps: int
    """Environment steps of training at the time."""
    mean_reward: float
    """Mean return of the episodes."""
    std_reward: float
    """Standard deviation of their returns."""
    mean_ep_length: float
    """Mean length in steps."""


def evaluate_model(
    model: BaseAlgorithm, env: VecEnv, num_episodes: int, *, deterministic: bool = True
) -> Evaluation:
    """Return the result of `num_episodes` on `env`, by argmax actions or by sampled ones."""
    rewards, lengths = evaluate_policy(
        model,
        env,
        n_eval_episodes=num_episodes,
        deterministic=deterministic,
        return_episode_rewards=True,
    )
    return Evaluation(
        timesteps=model.num_timesteps,
        mean_reward=float(np.mean(rewards)),
        std_reward=float(np.std(rewards)),
        mean_ep_length=float(np.mean(lengths)),
    )


class EvaluationCallback(BaseCallback):
    """Evaluate by argmax actions every `interval` steps and at the end of training.

    Each result is a row of `run_dir/evaluations.csv` and is logged as `eval/mean_reward` and
    `eval/mean_ep_length`; the model with the best mean return is kept in `run_dir/models/best`.

    Args:
        env: an environment that training does not use; every episode must end.
        run_dir: of this run.
        interval: steps between evaluations; 0 leaves only the one at the end.
        num_episodes: in each evaluation.
    """

    def __init__(self, env: VecEnv, run_dir: Path, interval: int, num_episodes: int) -> None:
        super().__init__()
        self.env = env
        self.run_dir = run_dir
        self.interval = interval
        self.num_episodes = num_episodes
        self.results: list[Evaluation] = []
        """Every evaluation so far."""

    @property
    def best(self) -> Evaluation | None:
        """The evaluation with the highest mean return, the first of equals."""
        return max(self.results, key=lambda result: result.mean_reward, default=None)

    def _on_training_start(self) -> None:
        self._next = self.num_timesteps + self.interval
        names = [field.name for field in fields(Evaluation)]
        self._write(names, mode="w")

    def _on_step(self) -> bool:
        # What falls on the last step waits for the last update.
        if self.interval and self._next <= self.num_timesteps < self.model._total_timesteps:
            # Several environments step at once, so the count may pass more than one mark.
            self._next += self.interval * (1 + (self.num_timesteps - self._next) // self.interval)
            self._evaluate()
        return True

    def _on_training_end(self) -> None:
        self._evaluate()

    def _evaluate(self) -> None:
        result = evaluate_model(self.model, self.env, self.num_episodes)
        self.results.append(result)
        self._write([str(value) for value in astuple(result)], mode="a")
        self.logger.record("eval/mean_reward", result.mean_reward)
        self.logger.record("eval/mean_ep_length", result.mean_ep_length)
        self.logger.record("time/total_timesteps", self.num_timesteps, exclude="tensorboard")
        self.logger.dump(self.num_timesteps)
        if self.best is result:
            save_model(self.model, self.run_dir / "models" / "best")

    def _write(self, row: list[str], mode: str) -> None:
        with (self.run_dir / "evaluations.csv").open(mode, newline="") as file:
            csv.writer(file, lineterminator="\n").writerow(row)
