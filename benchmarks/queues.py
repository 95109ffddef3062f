"""Average costs on `QueueNetwork-v0` of rules and of trained agents, beside the published ones.

    OMP_NUM_THREADS=1 python benchmarks/queues.py                  # c mu, MaxWeight, LBFS; minutes
    OMP_NUM_THREADS=1 python benchmarks/queues.py --algo shac      # trained first; minutes each
    OMP_NUM_THREADS=1 python benchmarks/queues.py --algo ppo

Prints the rows of `benchmarks/results/queues.csv` as they come and adds them there: the mean over
100 runs from empty queues, its standard error, and QGym's figure where it was made with as many
events. An agent has the settings and the budget of `configs/`, one seed and sampled actions; the
figures beside `ppo` are those of QGym's work-conserving PPO after 250 million steps.

A published figure is one run, whatever the number in QGym's settings: its trainer resets all 100
with the same seed, and the logs beside it have standard deviations of about 1e-6. Its simulator
gives the published 18.98 for `reentrant-1-2` under c mu with that seed, 42, and 12.6 to 23.0 with
the seeds 1 to 7, mean 16.2; ours is 16.3. One run lies about `10 * standard_error` from the mean.

On the N-model there is another difference: in QGym one server works on a job, here two add their
rates on a single one as well. Under c mu server 1 then turns to class 2 for its last job too. Class
1, which gets less than it needs either way, gets even less, and its queue grows faster. The rows
`one server a job` keep to QGym's rule.
"""

import argparse
import csv
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import torch
from learning import read_rows
from learning_run import Job, Row, build
from stable_baselines3.common.base_class import BaseAlgorithm
from torch import Tensor

from rl_gumbel.envs.base import Act
from rl_gumbel.envs.queue_network import QueueNetwork
from rl_gumbel.envs.queue_rules import average_cost, c_mu, last_buffer_first, max_weight

RESULTS = Path(__file__).parent / "results" / "queues.csv"
RUNS = 100
KEY = ("system", "policy", "events")
Rule = Callable[[QueueNetwork, Tensor, Tensor], Tensor]


def one_server_a_job(rule: Rule) -> Rule:
    """Return the rule for the N-model with server 1 kept from a single job of class 2."""

    def act(env: QueueNetwork, obs: Tensor, mask: Tensor) -> Tensor:
        mask = mask.clone()
        mask[:, 0, 1] &= obs[:, 1].expm1().round() > 1
        mask[:, 0, 2] = ~mask[:, 0, :2].any(-1)
        return rule(env, obs, mask)

    return act


RULES: dict[str, Rule] = {
    "c mu": c_mu,
    "MaxWeight": max_weight,
    "LBFS": last_buffer_first,
    "c mu, one server a job": one_server_a_job(c_mu),
    "MaxWeight, one server a job": one_server_a_job(max_weight),
}
PROTOCOLS: list[tuple[str, int, dict[str, float | None]]] = [
    ("criss-cross", 10_000, {"c mu": 16.1, "MaxWeight": 15.3}),
    ("criss-cross", 20_000, {"c mu": None, "MaxWeight": None, "LBFS": None}),
    ("n-model", 10_000, {"c mu": 170, "MaxWeight": 40.2}),
    (
        "n-model",
        10_000,
        {"c mu, one server a job": 170, "MaxWeight, one server a job": 40.2},
    ),
    ("reentrant-1-2", 10_000, {"c mu": 19.0, "MaxWeight": 14.8}),
    ("reentrant-1-2", 100_000, {"c mu": None, "MaxWeight": None}),
    ("reentrant-1-3", 50_000, {"c mu": 21.6, "MaxWeight": 24.8}),
    ("reentrant-1-3", 100_000, {"c mu": None, "MaxWeight": None}),
    ("reentrant-1-5", 100_000, {"c mu": 51.3, "MaxWeight": 50.0}),
    ("reentrant-2-5", 20_000, {"c mu": None, "MaxWeight": None, "LBFS": None}),
    ("reentrant-2-5", 100_000, {"c mu": 44.8, "MaxWeight": 40.3}),
]
"""System, events, and rule to published figure."""


PUBLISHED_PPO = {
    "criss-cross": 15.4,
    "n-model": 44.3,
    "reentrant-1-2": 13.6,
    "reentrant-1-3": 22.6,
    "reentrant-1-5": 38.7,
}


def find_rules() -> Iterator[Row]:
    """Yield the rows of the rules."""
    for system, events, published in PROTOCOLS:
        for policy, figure in published.items():
            act = partial(RULES[policy], QueueNetwork(1, system=system))
            yield measure(system, policy, act, events, figure)


def train_agents(algo: str) -> Iterator[Row]:
    """Yield the rows of an algorithm, trained on each system that there are published figures of.

    On each as many events as those figures had.
    """
    for system, events, published in PROTOCOLS:
        if not any(published.values()) or "c mu" not in published:
            continue
        job = Job("QueueNetwork-v0", algo, seed=0, options=("--env-kwargs.system", system))
        model, _, config = build(job)
        model.learn(config.total_timesteps)
        model.policy.set_training_mode(False)
        name = f"{type(model).__name__}, {config.total_timesteps:,} steps"
        figure = PUBLISHED_PPO.get(system) if algo == "ppo" else None
        yield measure(system, name, partial(act_by, model), events, figure)


def act_by(model: BaseAlgorithm, obs: Tensor, mask: Tensor) -> Tensor:
    """Return sampled categories `[B, K]`."""
    return model.policy.distribution(obs, mask).sample()


def measure(system: str, policy: str, act: Act, events: int, published: float | None) -> Row:
    """Return a row of the results."""
    env = QueueNetwork(RUNS, system=system)
    env.reset(seed=0)
    costs = average_cost(env, act, events)
    return {
        "system": system,
        "policy": policy,
        "events": events,
        "runs": RUNS,
        "mean": f"{costs.mean():.2f}",
        "standard_error": f"{costs.std() / RUNS**0.5:.2f}",
        "published": "" if published is None else published,
    }


def main() -> None:
    """Measure every row that is asked for, print and write it."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--algo", choices=["shac", "ppo"], help="train it (default: rules)")
    parser.add_argument("--results", type=Path, default=RESULTS)
    args = parser.parse_args()
    torch.set_num_threads(1)
    rows = {tuple(row[name] for name in KEY): row for row in read_rows(args.results)}
    for row in train_agents(args.algo) if args.algo else find_rules():
        print(*row.values(), sep="  ", flush=True)
        rows[tuple(str(row[name]) for name in KEY)] = row
        with args.results.open("w", newline="") as file:
            writer = csv.DictWriter(file, row, lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows.values())


if __name__ == "__main__":
    main()
