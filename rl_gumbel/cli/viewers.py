"""What a training run shows in TensorBoard beside its scalars."""

from typing import Any

from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.vec_env import VecEnv

from rl_gumbel.actions import ActionLayout
from rl_gumbel.callbacks import MarkCallback
from rl_gumbel.cli.backends import choose_backend, make_evaluation_vec
from rl_gumbel.cli.errors import UserError
from rl_gumbel.cli.need import need
from rl_gumbel.config import TrainConfig, dump_config
from rl_gumbel.plots.read import flatten
from rl_gumbel.tensorboard import TensorBoardCallback
from rl_gumbel.video.callback import VideoCallback
from rl_gumbel.video.episodes import find_fps

VIDEO_SEED = 2_000_000
"""Added to the seed for clips, so that they show other episodes than training."""


def make_viewers(config: TrainConfig, model: BaseAlgorithm, device: str) -> list[MarkCallback]:
    """Return the callbacks that write them.

    Raises:
        UserError: if clips are asked for and there is no picture of the environment, or the lab
            and there is no critic of actions or no matplotlib.
    """
    settings = dict(flatten(config.model_dump(mode="json", exclude_none=True)))
    texts = {
        "config": _as_code(dump_config(config)),
        "environment": describe_environment(config, model, device),
    }
    viewers: list[MarkCallback] = [TensorBoardCallback(settings, texts)]
    if config.video_freq:
        env = make_video_vec(config, device)
        viewers.append(VideoCallback(env, config.video_freq, find_fps(env, config.env)))
    if config.lab_freq:
        if not hasattr(config.algorithm, "critic"):
            raise UserError(
                f"--lab-freq {config.lab_freq}: {config.algo} has no critic of actions; sac and "
                f"reppo have one"
            )
        need("matplotlib", "plot")
        from rl_gumbel.lab.callback import LabCallback

        viewers.append(LabCallback(config.lab_freq))
    return viewers


def make_video_vec(config: TrainConfig, device: str) -> VecEnv:
    """Return one environment with pictures, for clips."""
    seed = (config.seed + VIDEO_SEED) % 2**32
    return make_evaluation_vec(config, 1, seed, device, render_mode="rgb_array")


def describe_environment(config: TrainConfig, model: BaseAlgorithm, device: str) -> str:
    """Return a Markdown table."""
    layout = ActionLayout.from_space(model.action_space)
    rows: dict[str, Any] = {
        "id": config.env,
        "arguments": config.env_kwargs or "none",
        "wrappers": config.env_wrappers or "none",
        "stepped by": f"{choose_backend(config)} on {device}",
        "environments side by side": model.n_envs,
        "observations": model.observation_space,
        "actions": model.action_space,
        "action factors": layout.num_factors,
        "joint actions": f"{layout.num_joint:,}",
    }
    lines = [f"| {name} | {str(value).replace('|', ' ')} |" for name, value in rows.items()]
    return "\n".join(["| | |", "|---|---|", *lines])


def _as_code(text: str) -> str:
    """Return a block that Markdown leaves as it is."""
    return "\n".join(f"    {line}" for line in text.splitlines())
