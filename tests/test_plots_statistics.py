"""Statistics over seeds: closed forms, enumerated resamples, and rliable's numbers."""

import itertools
import json
from pathlib import Path

import numpy as np
import pytest

from rl_gumbel.plots.statistics import (
    aggregate,
    aggregate_curve,
    bootstrap,
    first_crossing,
    interquartile_mean,
    mean,
    performance_profile,
    probability_of_improvement,
    reached_share,
)
from tests.rliable_numbers import THRESHOLDS, compute, make_scores

RLIABLE = json.loads((Path(__file__).parent / "data" / "rliable.json").read_text())
STRATA = {method: list(scores.T) for method, scores in make_scores().items()}


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([5.0], 5.0),
        ([1.0, 3.0], 2.0),
        ([1.0, 2.0, 9.0], 4.0),  # a quarter of three is no whole run
        ([100.0, 1.0, 2.0, 3.0], 2.5),
        ([-50.0, 1, 2, 3, 4, 5, 6, 700], 3.5),
    ],
)
def test_interquartile_mean_drops_a_quarter_at_each_end(values, expected):
    assert interquartile_mean(values) == expected


def test_interquartile_mean_works_along_any_axis():
    values = np.arange(24.0).reshape(2, 4, 3)
    rows = [[interquartile_mean(values[i, :, j]) for j in range(3)] for i in range(2)]
    np.testing.assert_array_equal(interquartile_mean(values, 1), rows)


def test_interval_of_a_mean_is_that_of_all_enumerated_resamples():
    """Three runs have 27 resamples; the quantiles of many draws are those of the 27."""
    values = np.array([0.0, 1.0, 5.0])
    every = [np.mean(draw) for draw in itertools.product(values, repeat=3)]
    result = bootstrap([values], lambda draws: mean(draws[0], 1), repetitions=40_000, level=0.6)
    expected = np.quantile(every, [0.2, 0.8])
    assert (result.low, result.high) == pytest.approx(tuple(expected))
    assert result.value == 2.0


def test_resamples_stay_within_their_task():
    """Tasks whose runs are equal leave nothing to chance, however far apart tasks are."""
    result = aggregate([np.full(3, 1.0), np.full(5, 100.0)], "mean")
    assert result.low == result.value == result.high == 50.5


def test_interval_of_a_normal_mean_is_the_textbook_one():
    """At many runs the bootstrap's interval is mean +- 1.96 s / sqrt(n)."""
    values = np.random.default_rng(0).normal(size=400)
    result = aggregate([values], "mean", repetitions=10_000)
    half = 1.96 * values.std() / 20
    assert result.low == pytest.approx(values.mean() - half, abs=0.005)
    assert result.high == pytest.approx(values.mean() + half, abs=0.005)


def test_mean_weighs_tasks_alike_and_iqm_runs_alike():
    strata = [np.array([0.0]), np.array([1.0, 1.0, 1.0])]
    assert aggregate(strata, "mean").value == 0.5
    assert aggregate(strata, "iqm").value == 1.0


def test_a_curve_is_aggregated_at_each_point_by_whole_runs():
    values = np.array([[0.0, 10.0], [2.0, 12.0]])  # the same difference at both points
    result = aggregate_curve(values, "mean")
    np.testing.assert_array_equal(result.value, [1.0, 11.0])
    np.testing.assert_array_equal(result.high - result.low, [2.0, 2.0])
    assert result.low[1] - result.low[0] == 10.0


def test_profile_is_the_share_of_runs_strictly_above():
    strata = [np.array([0.0, 1.0, 2.0, 3.0]), np.array([1.0, 1.0])]
    profile = performance_profile(strata, np.array([-1.0, 0.0, 1.0, 3.0]))
    np.testing.assert_allclose(profile.value, [1.0, (0.75 + 1) / 2, (0.5 + 0) / 2, 0.0])


def test_probability_of_improvement_counts_pairs_and_half_of_ties():
    ours, theirs = [np.array([1.0, 2.0])], [np.array([0.0, 1.0, 5.0])]
    # 1 beats 0 and ties 1; 2 beats 0 and 1: (1 + 0.5 + 2) / 6.
    assert probability_of_improvement(ours, theirs).value == pytest.approx(3.5 / 6)
    assert probability_of_improvement(theirs, ours).value == pytest.approx(2.5 / 6)


def test_probability_of_improvement_of_normals_is_that_of_their_difference():
    """P(X > Y) is Phi((mu_x - mu_y) / sqrt 2) = 0.7602 for unit normals one apart."""
    rng = np.random.default_rng(1)
    result = probability_of_improvement(
        [rng.normal(1, 1, 2000)], [rng.normal(0, 1, 2000)], repetitions=2
    )
    assert result.value == pytest.approx(0.7602, abs=0.02)


def test_first_crossing_is_the_first_step_at_the_threshold():
    steps, values = np.array([10.0, 20.0, 30.0]), np.array([1.0, 5.0, 2.0])
    assert first_crossing(steps, values, 5.0) == 20
    assert first_crossing(steps, values, 1.5) == 20
    assert first_crossing(steps, values, 6.0) is None


def test_share_of_runs_that_got_there_counts_shorter_runs_while_they_last():
    """Kaplan and Meier by hand: 1 - 3/4, then of the two still waiting at 30 one arrives."""
    times = np.array([10.0, 20.0, 30.0, 40.0])
    reached = np.array([True, False, True, False])
    points, share = reached_share(times, reached)
    np.testing.assert_array_equal(points, [10.0, 30.0])
    np.testing.assert_allclose(share, [0.25, 1 - 0.75 * 0.5])


def test_share_of_runs_of_one_length_is_the_plain_share():
    points, share = reached_share(np.array([5.0, 5.0, 9.0, 9.0]), np.array([1, 1, 1, 0], bool))
    np.testing.assert_allclose([points, share], [[5, 9], [0.5, 0.75]])


# --- beside rliable -------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["ours", "theirs"])
@pytest.mark.parametrize("name", ["iqm", "mean"])
def test_aggregates_are_rliables(method, name):
    point, low, high = RLIABLE["aggregates"][method][name]
    result = aggregate(STRATA[method], name, repetitions=20_000)
    assert result.value == pytest.approx(point, abs=1e-12)
    # Two independent sets of resamples; the intervals are 0.2 to 0.3 wide.
    assert [result.low, result.high] == pytest.approx([low, high], abs=0.006)


def test_probability_of_improvement_is_rliables():
    point, low, high = RLIABLE["improvement"]
    result = probability_of_improvement(STRATA["ours"], STRATA["theirs"], repetitions=20_000)
    assert result.value == pytest.approx(point, abs=1e-12)
    assert [result.low, result.high] == pytest.approx([low, high], abs=0.01)


@pytest.mark.parametrize("method", ["ours", "theirs"])
def test_performance_profile_is_rliables(method):
    profile, low, high = RLIABLE["profiles"][method]
    thresholds = np.array(THRESHOLDS)
    result = performance_profile(STRATA[method], thresholds, repetitions=20_000)
    np.testing.assert_allclose(result.value, profile, atol=1e-12)
    step = 1 / STRATA[method][0].size / 3  # a quantile of shares moves by whole runs
    np.testing.assert_allclose([result.low, result.high], [low, high], atol=1.01 * step)


def test_the_numbers_on_disk_are_those_of_the_rliable_that_is_here():
    pytest.importorskip("rliable.metrics", exc_type=ImportError)
    now = compute(repetitions=50)
    for method, names in RLIABLE["aggregates"].items():
        for name, (point, *_) in names.items():
            assert now["aggregates"][method][name][0] == pytest.approx(point, abs=1e-12)
    assert now["improvement"][0] == pytest.approx(RLIABLE["improvement"][0], abs=1e-12)
