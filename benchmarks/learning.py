"""Learning results: one row per seed in a CSV, and a table of them.

    python benchmarks/learning.py run --env CartPole-v1 --seeds 0 1 2 3 4 --midway 30000
    python benchmarks/learning.py table

`run` trains each seed with the tuned settings in `configs/` and a fixed budget, then evaluates the
model at the end of the budget (`last`), and beside it the best one, over 100 argmax episodes each.
Rows go to `benchmarks/results/learning.csv`; a row that is there already is not run again. `table`
prints every group of rows as a line of Markdown.
"""

import argparse
import csv
import json
import subprocess
import sys
import tempfile
from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import mean, stdev
from threading import Lock

from rl_gumbel.config import find_tuned, load_config

RESULTS = Path(__file__).parent / "results" / "learning.csv"
KEY = ("env", "algo", "actor_gradient", "estimator", "critic", "total_timesteps", "seed")
FIGURES = ("last", "last_std", "last_length", "best", "midway_timesteps", "midway")
CLI = (sys.executable, "-m", "rl_gumbel")


def main() -> None:
    """Run what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    verbs = parser.add_subparsers(dest="verb", required=True)
    run = verbs.add_parser("run", help="train and evaluate seeds")
    run.add_argument("--env", required=True)
    run.add_argument("--algo", default="sac")
    run.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    run.add_argument("--actor-gradients", nargs="+", default=["estimator", "exact"])
    run.add_argument("--total-timesteps", type=int, help="default: that of the tuned settings")
    run.add_argument("--midway", type=int, default=0, help="evaluate 100 episodes here as well")
    run.add_argument("--processes", type=int, default=2)
    run.add_argument("--results", type=Path, default=RESULTS)
    verbs.add_parser("table", help="print the table").add_argument(
        "--results", type=Path, default=RESULTS
    )
    args = parser.parse_args()
    if args.verb == "table":
        print(table(read_rows(args.results)))
    else:
        run_all(args)


def run_all(args: argparse.Namespace) -> None:
    """Run every seed that has no row yet, a few at a time; append each row as it comes."""
    known = {tuple(row[name] for name in KEY) for row in read_rows(args.results)}
    lock = Lock()

    def one(job: tuple[int, str]) -> None:
        row = run_seed(args, *job, known)
        if row is None:
            return
        with lock:
            append(args.results, row)
            print(row, flush=True)

    jobs = [(seed, gradient) for seed in args.seeds for gradient in args.actor_gradients]
    with ThreadPoolExecutor(args.processes) as pool:
        list(pool.map(one, jobs))


def run_seed(
    args: argparse.Namespace, seed: int, gradient: str, known: set[tuple[str, ...]]
) -> dict[str, object] | None:
    """Return the row of one training run, or None if it is known."""
    row = identify(args, seed, gradient)
    if tuple(str(row[name]) for name in KEY) in known:
        return None
    settings = ["--env", args.env, "--algo", args.algo, "--seed", str(seed)]
    settings += ["--total-timesteps", str(row["total_timesteps"])]
    settings += ["--algorithm.actor-gradient", gradient, "--no-progress"]
    if args.midway:
        settings += ["--eval-freq", str(args.midway), "--eval-episodes", "100"]
    with tempfile.TemporaryDirectory() as directory:
        run = Path(directory) / "run"
        command([*CLI, "train", *settings, "--run-dir", str(run)])
        last, best = (evaluate(run, model) for model in ("last", "best"))
        evaluations = read_rows(run / "evaluations.csv")
    midway = [row for row in evaluations if int(row["timesteps"]) == args.midway]
    return row | {
        "last": last["mean_reward"],
        "last_std": last["std_reward"],
        "last_length": last["mean_ep_length"],
        "best": best["mean_reward"],
        "midway_timesteps": args.midway or "",
        "midway": midway[0]["mean_reward"] if midway else "",
    }


def identify(args: argparse.Namespace, seed: int, gradient: str) -> dict[str, object]:
    """Return what tells one run from another, from the tuned settings and the arguments."""
    overrides: dict[tuple[str, ...], object] = {
        ("env",): args.env,
        ("algo",): args.algo,
        ("algorithm", "actor_gradient"): gradient,
    }
    if args.total_timesteps is not None:
        overrides[("total_timesteps",)] = args.total_timesteps
    config = load_config(find_tuned(args.algo, args.env), overrides)
    return {
        "env": args.env,
        "algo": args.algo,
        "actor_gradient": gradient,
        "estimator": config.algorithm.estimator if gradient == "estimator" else "",
        "critic": config.algorithm.critic,
        "total_timesteps": config.total_timesteps,
        "seed": seed,
    }


def evaluate(run: Path, model: str) -> dict[str, float]:
    """Return the result of 100 argmax episodes."""
    out = command([*CLI, "evaluate", str(run), "--model", model, "--episodes", "100", "--json"])
    result: dict[str, float] = json.loads(out)
    return result


def command(words: list[str]) -> str:
    """Return the standard output of a command; raise `CalledProcessError` if it fails."""
    return subprocess.run(words, check=True, stdout=subprocess.PIPE, text=True).stdout


def read_rows(path: Path) -> list[dict[str, str]]:
    """Return the rows of a CSV file; none if there is no file."""
    if not path.exists():
        return []
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def append(path: Path, row: dict[str, object]) -> None:
    """Append a row, with a header to a new file."""
    is_new = not path.exists()
    with path.open("a", newline="") as file:
        writer = csv.DictWriter(file, [*KEY, *FIGURES])
        if is_new:
            writer.writeheader()
        writer.writerow(row)


def table(rows: list[dict[str, str]]) -> str:
    """Return the Markdown table: mean, spread over seeds and each seed's figure per group."""
    groups: dict[tuple[str, ...], list[dict[str, str]]] = defaultdict(list)
    for row in rows:
        groups[tuple(row[name] for name in KEY[:-1])].append(row)
    lines = [
        "| environment | actor gradient | critic | steps | mean +- sd over seeds | each seed "
        "| best model, mean |",
        "|---|---|---|---|---|---|---|",
    ]
    for (env, _, gradient, estimator, critic, steps), group in groups.items():
        group.sort(key=lambda row: int(row["seed"]))
        last = [float(row["last"]) for row in group]
        spread = f" +- {stdev(last):.2g}" if len(last) > 1 else ""
        best = mean(float(row["best"]) for row in group)
        seeds = ", ".join(f"{value:.4g}" for value in last)
        lines.append(
            f"| {env} | {estimator or gradient} | {critic} | {int(steps):,} | "
            f"{mean(last):.4g}{spread} | {seeds} | {best:.4g} |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
