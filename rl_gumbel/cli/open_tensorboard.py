"""`rl-gumbel tensorboard`: TensorBoard on runs, in the place of this process."""

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from rl_gumbel.cli.errors import UserError
from rl_gumbel.cli.nearest import suggest_path


def open_tensorboard(args: argparse.Namespace) -> int:
    """Become TensorBoard, on this machine alone.

    Raises:
        UserError: for a directory without event files.
    """
    words = [*logdir(args.runs), "--port", str(args.port)]
    sys.stdout.flush()
    os.execv(sys.executable, [sys.executable, "-m", "tensorboard.main", *words])


def logdir(runs: Sequence[str]) -> list[str]:
    """Return TensorBoard's option for directories: each under the end of its path as name.

    Raises:
        UserError: for what is no directory, or has no event files, or TensorBoard cannot name.
    """
    paths = [Path(text).absolute() for text in runs]
    for text, path in zip(runs, paths, strict=True):
        if not path.exists():
            raise UserError(f"{text}: there is no such directory{suggest_path(Path(text))}")
        if next(path.rglob("*tfevents*"), None) is None:
            raise UserError(f"{text} has no TensorBoard event files in it or below")
    if len(paths) == 1:
        return ["--logdir", str(paths[0])]
    for text, path in zip(runs, paths, strict=True):
        if {",", ":"} & set(str(path)):
            raise UserError(f"{text}: a comma or colon in a path; give the directory above it")
    common = Path(os.path.commonpath(paths))
    named = [f"{path.relative_to(common)}:{path}" for path in dict.fromkeys(paths)]
    return ["--logdir_spec", ",".join(named)]
