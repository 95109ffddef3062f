"""The speed benchmark: how rows of gradient steps are shown."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))

import speed

SHARES = {"replay": "0.1", "target": "0.2", "critic": "0.5", "actor": "0.3"}


def make_row(name, steps_per_second, **shares):
    row = dict.fromkeys(speed.UPDATE_FIELDS, "")
    row |= {"row": name, "width": "64", "repeat": "0", "steps_per_second": steps_per_second}
    return row | {f"share_{part}": share for part, share in shares.items()}


def test_the_share_of_the_critic_is_shown_without_that_of_its_targets():
    """Measured with them: 50% less 20%, 60% less 20%."""
    rows = [
        make_row("sac", "300", **SHARES),
        make_row("compiled-sac", "900", **SHARES | {"critic": "0.6", "replay": "0.0"}),
        make_row("sb3-sac", "200"),
    ]
    lines = speed.updates_table(rows).splitlines()
    assert lines[-2:] == [
        "| sac | 64, 64 | 300 | 200 | 1.50 | 10% | 20% | 30% | 30% |",
        "| compiled-sac | 64, 64 | 900 | 200 | 4.50 | 0% | 20% | 40% | 30% |",
    ]


def test_shares_that_were_not_measured_are_left_out():
    rows = [make_row("compiled-sac", "900", replay="0.1"), make_row("sb3-sac", "200")]
    last = speed.updates_table(rows).splitlines()[-1]
    assert last == "| compiled-sac | 64, 64 | 900 | 200 | 4.50 | 10% |  |  |  |"
