"""SB3 callbacks: evaluation on an environment of its own, with the best model kept."""

import csv
import inspect
from collections.abc import Sequence
from dataclasses import astuple, dataclass, fields
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.type_aliases import PolicyPredictor
from stable_baselines3.common.vec_env import VecEnv, VecEnvWrapper
from stable_baselines3.common.vec_env.base_vec_env import VecEnvObs, VecEnvStepReturn

from rl_gumbel.checkpoint.files import Writer, write_file
from rl_gumbel.checkpoint.model import save_model
from rl_gumbel.checkpoint.state import get_env_state, set_env_state
from rl_gumbel.vec_env.guard import Survived
from rl_gumbel.vec_env.host import read_masks


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
    """Return the result of `num_episodes` on `env`, by argmax actions or by sampled ones.

    A model whose `predict` takes `action_masks` gets those of the environment, where it has any.
    """
    player: PolicyPredictor = model
    if takes_masks(model):
        env = MaskReader(env)
        player = _MaskedPlayer(model, env)
    rewards, lengths = evaluate_policy(
        player,
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


def takes_masks(model: BaseAlgorithm) -> bool:
    """Return whether `model.predict` takes `action_masks`."""
    return "action_masks" in inspect.signature(model.predict).parameters


class MaskReader(VecEnvWrapper):
    """Keeps the masks of present observations: by the method `action_masks`, or in infos."""

    masks: NDArray[np.bool_] | None
    """`[B, sum(sizes)]`; None where everything always may be chosen."""

    def reset(self) -> VecEnvObs:
        """Start episodes; return their first observations."""
        obs = self.venv.reset()
        self._read(self.venv.unwrapped.reset_infos)
        return obs

    def step_wait(self) -> VecEnvStepReturn:
        """Return what the step brought."""
        obs, rewards, ended, infos = self.venv.step_wait()
        fresh = self.venv.unwrapped.reset_infos  # of the next episode, where one ended
        self._read([fresh[i] if end else infos[i] for i, end in enumerate(ended)])
        return obs, rewards, ended, infos

    def _read(self, infos: Sequence[dict[str, Any]]) -> None:
        if self.venv.has_attr("action_masks"):
            self.masks = read_masks(self.venv.env_method("action_masks"))
        else:
            self.masks = read_masks([info.get("action_mask") for info in infos])


class SurvivedCallback(BaseCallback):
    """Log what Gymnasium environments got over: those made anew, and steps that were repaired.

    Args:
        survived: of the environments of training.
    """

    def __init__(self, survived: Survived) -> None:
        super().__init__()
        self.survived = survived

    def _on_rollout_end(self) -> None:
        self.logger.record("rollout/restarts", self.survived.restarts)
        self.logger.record("rollout/repaired_steps", self.survived.repaired_steps)

    def _on_step(self) -> bool:
        return True


@dataclass(frozen=True)
class _MaskedPlayer:
    """A model that chooses among what the environment allows."""

    model: BaseAlgorithm
    env: MaskReader

    def predict(self, observation: Any, *args: Any, **kwargs: Any) -> Any:
        return self.model.predict(observation, *args, action_masks=self.env.masks, **kwargs)


class MarkCallback(BaseCallback):
    """A callback that acts at marks of the step count; a checkpoint holds where the next one is."""

    _next: int

    def get_state(self) -> dict[str, Any]:
        """Return what `set_state` goes on from, as a tree."""
        return {"next": self._next}

    def set_state(self, state: dict[str, Any]) -> None:
        """Go on from what `get_state` returned."""
        self._next = state["next"]


class EvaluationCallback(MarkCallback):
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
        self._table_writer = Writer("evaluations.csv")
        self._best_writer = Writer("the best model")

    @property
    def best(self) -> Evaluation | None:
        """The evaluation with the highest mean return, the first of equals."""
        return max(self.results, key=lambda result: result.mean_reward, default=None)

    def get_state(self) -> dict[str, Any]:
        """Return what `set_state` goes on from, as a tree."""
        return super().get_state() | {
            "results": [astuple(result) for result in self.results],
            "environments": get_env_state(self.env),
        }

    def set_state(self, state: dict[str, Any]) -> None:
        """Go on from what `get_state` returned; later rows of the file are dropped."""
        super().set_state(state)
        self.results = [Evaluation(*row) for row in state["results"]]
        set_env_state(self.env, state["environments"])
        self._write_all()

    def _on_training_start(self) -> None:
        self._next = self.num_timesteps + self.interval
        self._write_all()

    def _write_all(self) -> None:
        """Write the table of all results; a disk that is full now may not be the next time."""
        text = StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(field.name for field in fields(Evaluation))
        writer.writerows(astuple(result) for result in self.results)
        path = self.run_dir / "evaluations.csv"
        self._table_writer.attempt(lambda: write_file(path, text.getvalue().encode()))

    def _on_step(self) -> bool:
        # What falls on the last step waits for the last update.
        if self.interval and self._next <= self.num_timesteps < self.model._total_timesteps:
            self._evaluate()
        return True

    def _on_training_end(self) -> None:
        self._evaluate()

    def _evaluate(self) -> None:
        if self.interval and self._next <= self.num_timesteps:
            # Several environments step at once, so the count may pass more than one mark.
            self._next += self.interval * (1 + (self.num_timesteps - self._next) // self.interval)
        result = evaluate_model(self.model, self.env, self.num_episodes)
        self.results.append(result)
        self._write_all()
        self.logger.record("eval/mean_reward", result.mean_reward)
        self.logger.record("eval/mean_ep_length", result.mean_ep_length)
        self.logger.record("time/total_timesteps", self.num_timesteps, exclude="tensorboard")
        self.logger.dump(self.num_timesteps)
        if self.best is result:
            best = self.run_dir / "models" / "best"
            self._best_writer.attempt(lambda: save_model(self.model, best))
