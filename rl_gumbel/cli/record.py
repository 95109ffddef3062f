"""`rl-gumbel record`: a film of a run's agent."""

import argparse
import contextlib
import sys
from collections.abc import Iterator
from pathlib import Path

import torch

from rl_gumbel.cli.backends import make_evaluation_vec
from rl_gumbel.cli.build import find_device
from rl_gumbel.cli.errors import UserError, cannot_write
from rl_gumbel.cli.evaluate import load_agent, read_run
from rl_gumbel.cli.faults import explained
from rl_gumbel.cli.need import need
from rl_gumbel.config import TrainConfig
from rl_gumbel.video.episodes import film, find_fps
from rl_gumbel.video.files import encode_gif, write_mp4
from rl_gumbel.video.overlay import Frame

VIDEOS = "videos"
"""The directory in a run's where films go."""
GIF_SCALE = 2
"""Pixels of the film for each of the GIF, along an edge."""


def record(args: argparse.Namespace) -> int:
    """Write the film, print where it is; return the exit code.

    Raises:
        UserError: if there is no such run or model, no picture of the environment or no ffmpeg.
        FailedEnvError: if the environment fails.
        StorageError: if it cannot be written.
    """
    need("imageio_ffmpeg", "video")
    if args.out is not None and not args.out.endswith(".mp4"):
        raise UserError(f"--out {args.out}: must end in .mp4 (--gif adds a GIF beside it)")
    with contextlib.redirect_stdout(sys.stderr):  # whatever an environment prints
        paths, count = write_films(args)
    for path in paths:
        print(path)
    print(f"{args.episodes} episodes, {count} frames", file=sys.stderr)
    return 0


def write_films(args: argparse.Namespace) -> tuple[list[Path], int]:
    """Return the paths of what was written, and the number of frames."""
    config = read_run(args.run)
    with explained(config):
        return _write_films(config, args)


def _write_films(config: TrainConfig, args: argparse.Namespace) -> tuple[list[Path], int]:
    device = find_device(args.device)
    torch.set_num_threads(config.threads)
    model = load_agent(config, args.run, args.model, args.seed, device)
    env = make_evaluation_vec(
        config,
        1,
        args.seed,
        device,
        max_episode_steps=args.max_episode_steps,
        render_mode="rgb_array",
    )
    fps = args.fps or find_fps(env, config.env)
    default = Path(args.run) / VIDEOS / f"{args.model}-{model.num_timesteps}.mp4"
    path = default if args.out is None else Path(args.out)
    kept: list[Frame] = []

    def frames() -> Iterator[Frame]:
        for frame in film(model, env, args.episodes, fps, deterministic=not args.stochastic):
            if args.gif:
                kept.append(frame)
            yield frame

    try:
        count = write_mp4(path, frames(), fps)
        if not args.gif:
            return [path], count
        gif = path.with_suffix(".gif")
        gif.write_bytes(encode_gif(kept, fps, GIF_SCALE))
        return [path, gif], count
    except OSError as error:
        raise cannot_write(path, error) from error
    finally:
        env.close()
