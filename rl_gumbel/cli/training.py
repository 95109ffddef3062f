"""A configuration to a training, started or gone on with, and how it ended in an exit code."""

import sys
from dataclasses import dataclass
from pathlib import Path

import torch
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.vec_env import VecEnv

from rl_gumbel.callbacks import EvaluationCallback, MarkCallback, SurvivedCallback
from rl_gumbel.checkpoint import Checkpoint, CheckpointCallback, DamagedError, TrainingStoppedError
from rl_gumbel.checkpoint.files import write_file
from rl_gumbel.cli.backends import choose_backend, make_evaluation_vec, make_training_vec
from rl_gumbel.cli.build import find_device, make_model
from rl_gumbel.cli.environments import policy_name
from rl_gumbel.cli.errors import STOPPED, StorageError, cannot_write
from rl_gumbel.cli.memory import keep_freed_memory
from rl_gumbel.cli.progress import ProgressCallback
from rl_gumbel.cli.run_directory import CONFIG, note_resume
from rl_gumbel.cli.run_logs import open_logs
from rl_gumbel.cli.signals import StopSignals
from rl_gumbel.cli.viewers import make_viewers
from rl_gumbel.config import TrainConfig, dump_config
from rl_gumbel.vec_env.guard import Survived

EVALUATION_SEED = 1_000_000
"""Added to the seed for evaluation, so that it sees other episodes than training."""


@dataclass(frozen=True)
class Training:
    """All that a run needs, built; nothing is written yet."""

    config: TrainConfig
    device: str
    model: BaseAlgorithm
    env: VecEnv
    evaluation_env: VecEnv
    viewers: list[MarkCallback]
    """What shows more of it in TensorBoard."""

    def describe(self, settings: str) -> str:
        """Return what is trained where, and from which settings, in words."""
        config = self.config
        where = f"{choose_backend(config)} on {self.device}; settings: {settings}"
        return f"{config.algo} on {config.env} ({where})"


def build_training(config: TrainConfig) -> Training:
    """Return the training that a configuration describes.

    Raises:
        UserError: for an environment or a device that cannot be used.
    """
    device = find_device(config.device)
    if device == "cpu":
        torch.set_num_threads(config.threads)
        keep_freed_memory()
    env = make_training_vec(config, device)
    model = make_model(config, env, str(policy_name(env.observation_space)), device)
    evaluation_seed = (config.seed + EVALUATION_SEED) % 2**32
    evaluation_env = make_evaluation_vec(config, config.eval_episodes, evaluation_seed, device)
    viewers = make_viewers(config, model, device)
    return Training(config, device, model, env, evaluation_env, viewers)


def run_training(
    training: Training, run_dir: Path, start: Checkpoint | None = None, *, live: bool, new: bool
) -> int:
    """Learn, say how it ended, and return the exit code: 0, or `STOPPED` by a signal.

    Args:
        training: not yet started.
        run_dir: exists.
        start: what to go on from; None is from the start.
        live: show a progress line if the output is a terminal.
        new: whether the directory has no logs yet, which would be cut at the start otherwise.

    Raises:
        StorageError: if the checkpoint does not fit, or the run directory cannot be written.
    """
    steps = start.steps if start else -1
    if start:  # for environments without a state, which do not start over with their old episodes
        training.env.seed((training.config.seed + steps) % 2**32)
    try:
        training.model.set_logger(open_logs(run_dir, None if new else steps))
        if start:  # the configuration last: where there is no room for all, it is as it was
            note_resume(run_dir, training.device, steps)
            write_file(run_dir / CONFIG, dump_config(training.config).encode())
    except OSError as error:
        raise cannot_write(run_dir, error) from error
    signals = StopSignals()
    try:
        with signals:
            learn(training, run_dir, start, signals, live=live and sys.stdout.isatty())
    except TrainingStoppedError:
        assert signals.received is not None
        print(
            f"stopped by {signals.received.name} after {training.model.num_timesteps} steps; "
            f"continue with: rl-gumbel resume {run_dir}"
        )
        return STOPPED
    except DamagedError as error:
        raise StorageError(str(error)) from error
    finally:
        training.model.logger.close()
        training.env.close()
        training.evaluation_env.close()
    print(f"run: {run_dir}")
    return 0


def find_survived(env: VecEnv) -> list[Survived]:
    """Return what the environments got over, if they are Gymnasium's."""
    return env.get_attr("survived", 0) if env.has_attr("survived") else []


def learn(
    training: Training,
    run_dir: Path,
    start: Checkpoint | None,
    signals: StopSignals,
    *,
    live: bool,
) -> None:
    """Learn to the end, or until a signal raises `TrainingStoppedError`."""
    config = training.config
    evaluations = EvaluationCallback(
        training.evaluation_env, run_dir, config.eval_freq, config.eval_episodes
    )
    checkpoints = CheckpointCallback(
        run_dir,
        [evaluations, *training.viewers],
        config.checkpoint_freq,
        config.checkpoint_keep,
        should_stop=lambda: signals.received is not None,
        start=start,
    )
    with ProgressCallback(evaluations, config.total_timesteps, live=live) as progress:
        callbacks = [evaluations, *training.viewers, checkpoints, progress]
        if config.restart_failed_envs or config.nonfinite != "raise":
            callbacks += [SurvivedCallback(some) for some in find_survived(training.env)]
        training.model.learn(config.total_timesteps, callback=callbacks)
