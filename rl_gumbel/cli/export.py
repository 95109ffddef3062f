"""`rl-gumbel export`: the agent of a run as a zip of Stable-Baselines3."""

import argparse
from pathlib import Path

from rl_gumbel.checkpoint import load_model, write_zip
from rl_gumbel.checkpoint.state import set_modules
from rl_gumbel.checkpoint.tree import read_tree
from rl_gumbel.cli.errors import UserError, cannot_write
from rl_gumbel.cli.evaluate import read_run
from rl_gumbel.cli.resume import find_start


def export(args: argparse.Namespace) -> int:
    """Write the zip and say so; return the exit code.

    Raises:
        UserError: if there is no such run or model, or the file cannot be made.
        StorageError: if no checkpoint is whole, or the file cannot be written.
    """
    read_run(args.run)
    path = Path(args.file)
    if path.suffix != ".zip":
        raise UserError(f"{path}: the file of a model of Stable-Baselines3 ends in .zip")
    if not path.parent.is_dir():
        raise UserError(f"{path}: there is no directory {path.parent}")
    if path.exists():
        raise UserError(f"{path} is there already; name a new file")
    start = find_start(Path(args.run)) if args.model == "last" else None
    directory = start.path if start else Path(args.run) / "models" / args.model
    try:
        model = load_model(directory, device="cpu")
    except (FileNotFoundError, ValueError) as error:
        raise UserError(str(error)) from error
    if start:
        try:
            set_modules(model, read_tree(start.path, "state")["training"])
        except Exception as error:  # a file that somebody else wrote fails in any way
            text = f"{type(error).__name__}: {error}".partition("\n")[0]
            raise UserError(f"{start.path} does not fit its model: {text}") from error
    try:
        write_zip(model, path)
    except OSError as error:
        raise cannot_write(path, error) from error
    print(f"{path}: {type(model).__name__} after {model.num_timesteps} steps")
    return 0
