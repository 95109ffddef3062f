"""`rl-gumbel plot`: figures of runs over seeds."""

import argparse
import sys
from pathlib import Path

from rl_gumbel.cli.errors import UserError, cannot_write
from rl_gumbel.cli.nearest import suggest_path
from rl_gumbel.cli.need import need
from rl_gumbel.plots.compare import compare
from rl_gumbel.plots.read import find_runs, read_run


def plot(args: argparse.Namespace) -> int:
    """Read the runs, write the figures, print their paths; return the exit code.

    Raises:
        UserError: for what is no run, or lacks the metric or the setting, or without matplotlib.
        StorageError: for files that cannot be written.
    """
    need("matplotlib", "plot")
    from rl_gumbel.plots.figures import draw_all

    for path in map(Path, args.runs):
        if not path.exists():
            raise UserError(f"{path}: there is no such file or directory{suggest_path(path)}")
    try:
        runs = [read_run(path, args.metric) for path in find_runs(args.runs)]
        comparison = compare(runs, args.by)
        for task, (low, high) in comparison.uneven_lengths().items():
            print(
                f"runs on {task} end at steps {low:.0f} to {high:.0f}: last values are of unequal "
                f"budgets",
                file=sys.stderr,
            )
        for name, drawing in draw_all(comparison, args.metric, args.statistic, args.threshold):
            png, *_ = drawing.save(Path(args.out), name)
            print(f"{png} (.svg, .csv); runs: {len(runs)}, groups: {len(comparison.methods)}")
    except ValueError as error:
        raise UserError(str(error)) from error
    except OSError as error:
        raise cannot_write(Path(error.filename or args.out), error) from error
    return 0
