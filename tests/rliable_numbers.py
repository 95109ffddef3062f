"""What rliable 1.2.0 says of a few scores, as JSON; its pins are not ours (pandas below 3).

python -m venv V && V/bin/pip install rliable==1.2.0 'pandas<3'
V/bin/python tests/rliable_numbers.py > tests/data/rliable.json
"""

import json
from importlib.metadata import version

import numpy as np

REPETITIONS = 20_000
THRESHOLDS = [-0.5, 0.0, 0.25, 0.5, 1.0, 1.5]
COMMAND = "python tests/rliable_numbers.py > tests/data/rliable.json"


def make_scores():
    """Return scores `[runs, tasks]` of two methods, some of them equal."""
    rng = np.random.default_rng(7)
    ours = rng.normal([0.5, 1.0, 0.2], 0.4, (9, 3))
    theirs = rng.normal([0.3, 1.1, 0.0], 0.4, (7, 3))
    theirs[:2, 0] = ours[3:5, 0]
    return {"ours": ours, "theirs": theirs}


def compute(repetitions=REPETITIONS):
    """Return points and intervals by rliable."""
    from rliable import library, metrics

    scores = make_scores()
    points, intervals = library.get_interval_estimates(
        scores,
        lambda x: np.array([metrics.aggregate_iqm(x), metrics.aggregate_mean(x)]),
        reps=repetitions,
        random_state=np.random.RandomState(0),
    )
    pair = {"ours,theirs": (scores["ours"], scores["theirs"])}
    better, better_interval = library.get_interval_estimates(
        pair,
        metrics.probability_of_improvement,
        reps=repetitions,
        random_state=np.random.RandomState(0),
    )
    taus = np.array(THRESHOLDS)
    profiles, bands = library.create_performance_profile(scores, taus, reps=repetitions)
    return {
        "rliable": version("rliable"),
        "numpy": version("numpy"),
        "command": COMMAND,
        "aggregates": {
            method: {
                name: [points[method][i], *intervals[method][:, i]]
                for i, name in enumerate(("iqm", "mean"))
            }
            for method in scores
        },
        "improvement": [
            float(np.squeeze(better["ours,theirs"])),
            *np.ravel(better_interval["ours,theirs"]).tolist(),
        ],
        "profiles": {
            method: [profiles[method].tolist(), *bands[method].tolist()] for method in scores
        },
    }


if __name__ == "__main__":
    print(json.dumps(compute(), indent=1, default=float))
