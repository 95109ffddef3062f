"""Learning results: one row per seed in a CSV, and a table of them.

    python benchmarks/learning.py run --env CartPole-v1 --algo ppo --seeds 0 1 2 --threshold 475
    python benchmarks/learning.py run --env CartPole-v1 --algo sb3-dqn --threshold 475
    python benchmarks/learning.py table

`run` trains each seed for a fixed budget and measures the model at its end; `learning_run.py` says
how. Our algorithms start from the tuned settings in `configs/`; options of `rl-gumbel train` may
follow and are part of a row's identity. Learning curves go to `benchmarks/results/curves.csv`: in
each hundredth of the budget the mean return of the last 100 training episodes (of a queueing
network the average cost since the point before). The peers, SB3's and sb3-contrib's algorithms
(`sb3-ppo`, `sb3-dqn`, `sb3-qrdqn`, `sb3-maskable-ppo`, `sb3-sac`) and `decqn`, have the settings in
`sb3_peers.py`. Rows go to `benchmarks/results/learning.csv`; a row that is there already is not run
again. `table` prints every group of rows as a line of Markdown.

`benchmarks/results/tuning.csv` holds, in the same columns, the trials on other seeds by which
settings were chosen; their options stand on the settings that were shipped at that commit, or on
the algorithm's own where there were none or no commit is named.

Rows without a `protocol` are of an earlier one, in which the best of the evaluations during
training (`best`) and one on the way (`midway`) were measured, and seconds were not.
"""

import argparse
import csv
import os
import sys
from collections import defaultdict
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from pathlib import Path
from statistics import mean, stdev

from learning_run import Job, Row, identify, run_job
from sb3_peers import PEERS

from rl_gumbel.cli.errors import UserError
from rl_gumbel.config import ALGOS, ConfigError

RESULTS = Path(__file__).parent / "results" / "learning.csv"
CURVES = Path(__file__).parent / "results" / "curves.csv"
KEY = (
    "env",
    "algo",
    "actor_gradient",
    "estimator",
    "critic",
    "options",
    "num_envs",
    "total_timesteps",
    "seed",
)
"""What tells one run from another."""
COLUMNS = (
    *KEY,
    "protocol",
    "last",
    "last_std",
    "last_length",
    "sampled",
    "sampled_std",
    "seconds",
    "threshold",
    "threshold_timesteps",
    "device",
    "commit",
    "best",
    "midway_timesteps",
    "midway",
)
CURVE_COLUMNS = (*KEY, "timesteps", "seconds", "mean_return")


def main(argv: Sequence[str] | None = None) -> int:
    """Run what the command line asks for; return the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    verbs = parser.add_subparsers(dest="verb", required=True)
    run = verbs.add_parser("run", help="train and measure seeds", allow_abbrev=False)
    run.add_argument("--env", required=True)
    run.add_argument("--algo", choices=[*ALGOS, *PEERS], default="sac", help="(default: sac)")
    run.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    run.add_argument("--threshold", type=float, help="mean return whose first step is noted")
    run.add_argument("--processes", type=int, default=1, help="seeds at a time (default: 1)")
    show = verbs.add_parser("table", help="print the table")
    run.add_argument("--curves", type=Path, default=CURVES, help="CSV of the learning curves")
    for verb in (run, show):
        verb.add_argument("--results", type=Path, default=RESULTS)
    args, options = parser.parse_known_args(argv)
    if args.verb == "table":
        print(table(read_rows(args.results)))
        return 0
    try:
        jobs = [
            Job(args.env, args.algo, seed, args.threshold, tuple(options)) for seed in args.seeds
        ]
        run_all(jobs, args.results, args.curves, args.processes)
    except (UserError, ConfigError) as error:
        print(f"{parser.prog}: {error}", file=sys.stderr)
        return 2
    return 0


def run_all(jobs: Sequence[Job], results: Path, curves: Path, processes: int) -> None:
    """Run every job that has no row yet, some at a time; append what comes as it comes."""
    known = {tuple(row[name] for name in KEY) for row in read_rows(results)}
    new = [job for job in jobs if tuple(str(identify(job)[name]) for name in KEY) not in known]
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    # A process for each run, so that none finds what another has warmed up.
    with ProcessPoolExecutor(
        processes, mp_context=get_context("spawn"), max_tasks_per_child=1
    ) as pool:
        for future in as_completed([pool.submit(run_job, job) for job in new]):
            row, curve = future.result()
            append(results, COLUMNS, [row])
            append(curves, CURVE_COLUMNS, curve)
            print(row, flush=True)


def read_rows(path: Path) -> list[dict[str, str]]:
    """Return the rows of a CSV file; none if there is no file."""
    if not path.exists():
        return []
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def append(path: Path, columns: Sequence[str], rows: Sequence[Row]) -> None:
    """Append rows, with a header to a new file."""
    is_new = not path.exists()
    with path.open("a", newline="") as file:
        writer = csv.DictWriter(file, columns, restval="", lineterminator="\n")
        if is_new:
            writer.writeheader()
        writer.writerows(rows)


def table(rows: Sequence[dict[str, str]]) -> str:
    """Return the Markdown table: mean, spread over seeds and each seed's figure per group."""
    groups: dict[tuple[str, ...], list[dict[str, str]]] = defaultdict(list)
    for row in rows:
        groups[tuple(row[name] for name in KEY[:-1])].append(row)
    header = (
        "environment",
        "algorithm",
        "environments",
        "steps",
        "argmax, mean +- sd over seeds",
        "each seed",
        "sampled",
        "steps to threshold",
        "seconds",
    )
    lines = [header, ("---",) * len(header), *(describe(group) for group in groups.values())]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def describe(group: list[dict[str, str]]) -> tuple[str, ...]:
    """Return the cells of a group's line."""
    group = sorted(group, key=lambda row: int(row["seed"]))
    first = group[0]
    details = [first["estimator"] or first["actor_gradient"], first["critic"], first["options"]]
    last = [float(row["last"]) for row in group]
    return (
        first["env"],
        ", ".join([first["algo"], *filter(None, details)]),
        first["num_envs"],
        f"{int(first['total_timesteps']):,}",
        show_mean(last) + (" (exact)" if first["protocol"] == "exact" else ""),
        ", ".join(f"{value:.4g}" for value in last),
        show_mean([float(row["sampled"]) for row in group if row["sampled"]]),
        show_threshold(group),
        show_mean([float(row["seconds"]) for row in group if row["seconds"]]),
    )


def show_mean(values: Sequence[float]) -> str:
    """Return mean and standard deviation; nothing of nothing."""
    if not values:
        return ""
    return f"{mean(values):.4g}" + (f" +- {stdev(values):.2g}" if len(values) > 1 else "")


def show_threshold(group: Sequence[dict[str, str]]) -> str:
    """Return the mean step over the seeds that reached the threshold, and how many did."""
    tried = [row for row in group if row["threshold"]]
    steps = [int(row["threshold_timesteps"]) for row in tried if row["threshold_timesteps"]]
    if not tried:
        return ""
    reached = f"{mean(steps):,.0f}" if steps else "never"
    return f"{reached} ({len(steps)} of {len(tried)} reach {float(tried[0]['threshold']):g})"


if __name__ == "__main__":
    sys.exit(main())
