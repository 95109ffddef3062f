"""The command `rl-gumbel`: a verb each for training, measuring, drawing and listing.

Importing this package imports neither torch nor Gymnasium, so that help and a refused command are
immediate; a verb imports what it needs inside its function.
"""

import argparse
import os
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path

from rl_gumbel.cli.errors import BROKEN_PIPE, INTERRUPTED, USER_ERROR, CommandError
from rl_gumbel.cli.parser import parse
from rl_gumbel.config import ConfigError, TrainConfig, find_tuned, load_config

CHOICE = (("env",), ("algo",))
"""The settings that choose a file of tuned ones."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code: 0, or one of `rl_gumbel.cli.errors`."""
    warnings.formatwarning = format_warning
    try:
        args = parse(sys.argv[1:] if argv is None else argv)
        code = run(args)
        sys.stdout.flush()  # here, where a reader that left is no traceback
        return code
    except (CommandError, ConfigError) as error:
        print(f"rl-gumbel: {error}", file=sys.stderr)
        return error.code if isinstance(error, CommandError) else USER_ERROR
    except KeyboardInterrupt:
        print("rl-gumbel: interrupted", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:  # `| head` has read enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return BROKEN_PIPE


def format_warning(message: Warning | str, *_: object, **__: object) -> str:
    """Return a warning as an error is printed: in a line, without the code that it comes from."""
    return f"rl-gumbel: warning: {message}\n"


def run(args: argparse.Namespace) -> int:
    """Run the verb of a parsed command line and return its exit code."""
    if args.verb == "train":
        config = make_config(args)  # refused, if so, before anything heavy is imported
        from rl_gumbel.cli.train import train

        return train(config, args)
    if args.verb == "resume":
        from rl_gumbel.cli.resume import resume

        return resume(args)
    if args.verb == "export":
        from rl_gumbel.cli.export import export

        return export(args)
    if args.verb == "evaluate":
        from rl_gumbel.cli.evaluate import evaluate

        return evaluate(args)
    if args.verb == "lab":
        from rl_gumbel.cli.lab import lab

        return lab(args)
    if args.verb == "plot":
        from rl_gumbel.cli.plot import plot

        return plot(args)
    if args.verb == "record":
        from rl_gumbel.cli.record import record

        return record(args)
    if args.verb == "report":
        from rl_gumbel.cli.report import report

        return report(args)
    if args.verb == "tensorboard":
        from rl_gumbel.cli.open_tensorboard import open_tensorboard

        return open_tensorboard(args)
    from rl_gumbel.cli.list import show_list

    return show_list(args.what)


def make_config(args: argparse.Namespace) -> TrainConfig:
    """Return the settings of `train`: those of the file, or the tuned ones, under the options."""
    if args.config is not None:
        return load_config(Path(args.config), args.overrides)
    chosen = load_config(None, {k: v for k, v in args.overrides.items() if k in CHOICE})
    return load_config(find_tuned(chosen.algo, chosen.env), args.overrides)
