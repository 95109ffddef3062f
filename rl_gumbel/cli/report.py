"""`rl-gumbel report`: a run as one HTML file."""

import argparse
import contextlib
import sys
from pathlib import Path

from rl_gumbel.checkpoint.files import write_file
from rl_gumbel.cli.errors import CommandError, UserError, cannot_write
from rl_gumbel.cli.evaluate import read_run
from rl_gumbel.cli.need import need
from rl_gumbel.cli.record import VIDEOS, write_films
from rl_gumbel.logger import TAGS

MAX_STEPS = 500
"""Of an episode that is recorded for the page."""


def report(args: argparse.Namespace) -> int:
    """Write the page, print where it is; return the exit code.

    Raises:
        UserError: for what is no run, no place for the page, or without matplotlib.
        StorageError: if it cannot be written.
    """
    need("matplotlib", "plot")
    from rl_gumbel.report.build import build_report

    read_run(args.run)
    path = Path(args.run) / "report.html" if args.out is None else Path(args.out)
    if not path.parent.is_dir():
        raise UserError(f"--out {args.out}: there is no directory {path.parent}")
    if path.is_dir():
        raise UserError(f"--out {args.out} is a directory; name a file")
    film = "It was not asked for (--no-video)." if args.no_video else find_film(args)
    try:
        text = build_report(Path(args.run), TAGS, film)
    except ValueError as error:
        raise UserError(str(error)) from error
    try:
        write_file(path, text.encode())
    except OSError as error:
        raise cannot_write(path, error) from error
    print(path)
    return 0


def find_film(args: argparse.Namespace) -> Path | str:
    """Return the latest film of the last model, made if there is none; or why there is none."""
    films = [path for kind in ("mp4", "gif") for path in Path(args.run, VIDEOS).glob(f"*.{kind}")]
    models = [path for path in Path(args.run, "models", "last").glob("*.safetensors")]
    times = {path: path.stat().st_mtime for path in [*films, *models]}
    films = [path for path in films if all(times[path] >= times[model] for model in models)]
    if films:
        return max(films, key=times.__getitem__)
    settings = {"model": "last", "episodes": 1, "seed": 0, "max_episode_steps": MAX_STEPS}
    settings |= {"out": None, "gif": False, "fps": None, "stochastic": False, "device": "auto"}
    try:
        need("imageio_ffmpeg", "video")
        with contextlib.redirect_stdout(sys.stderr):  # whatever an environment prints
            paths, _ = write_films(argparse.Namespace(run=args.run, **settings))
    except CommandError as error:
        return f"There is none: {error}"
    return paths[0]
