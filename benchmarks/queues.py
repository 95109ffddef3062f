"""Average costs of c mu, MaxWeight and LBFS on `QueueNetwork-v0`, beside the published ones.

    OMP_NUM_THREADS=1 python benchmarks/queues.py    # some minutes

Prints the rows of `benchmarks/results/queues.csv` as they come and writes them: the mean over 100
runs from empty queues, its standard error, and QGym's figure where it was made with as many events.

A published figure is one run, whatever the number in QGym's settings: its trainer resets all 100
with the same seed, and the logs beside it have standard deviations of about 1e-6. Its simulator
gives the published 18.98 for `reentrant-1-2` under c mu with that seed, 42, and 12.6 to 23.0 with
the seeds 1 to 7, mean 16.2; ours is 16.3. One run lies about `10 * standard_error` from the mean.

On the N-model there is another difference: in QGym one server works on a job, here two add their
rates on a single one as well. Under c mu server 1 then turns to class 2 for its last job too. Class
1, which gets less than it needs either way, gets even less, and its queue grows faster. The rows
`one server a job` keep to QGym's rule.
"""

import csv
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rl_gumbel.envs.queue_network import QueueNetwork
from rl_gumbel.envs.queue_rules import average_cost, c_mu, last_buffer_first, max_weight

RESULTS = Path(__file__).parent / "results" / "queues.csv"
RUNS = 100
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


def measure(system: str, policy: str, events: int, published: float | None) -> dict[str, Any]:
    """Return a row of the results."""
    env = QueueNetwork(RUNS, system=system)
    env.reset(seed=0)
    costs = average_cost(env, partial(RULES[policy], env), events)
    return {
        "system": system,
        "policy": policy,
        "events": events,
        "runs": RUNS,
        "mean": f"{costs.mean():.2f}",
        "standard_error": f"{costs.std() / RUNS**0.5:.2f}",
        "published": published,
    }


def main() -> None:
    """Measure every row, print and write them."""
    torch.set_num_threads(1)
    rows = []
    for system, events, published in PROTOCOLS:
        for policy, figure in published.items():
            rows.append(measure(system, policy, events, figure))
            print(*rows[-1].values(), sep="  ", flush=True)
    with RESULTS.open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0], lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


if __name__ == "__main__":
    main()
