"""Schedules: ends, midpoints, monotony, SB3's conventions, errors."""

import itertools
import math
import pickle

import cloudpickle
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from stable_baselines3.common.utils import FloatSchedule

from rl_gumbel.schedules import KINDS, Schedule, make_schedule

MOVING = tuple(kind for kind in KINDS if kind != "constant")
GRID = np.linspace(1.0, 0.0, 101).tolist()


@pytest.mark.parametrize(("start", "end"), [(2.0, 0.1), (0.1, 2.0), (5e-4, 1e-6)])
@pytest.mark.parametrize("kind", MOVING)
def test_a_schedule_meets_its_ends(kind: str, start: float, end: float) -> None:
    """Progress remaining counts down: 1 is the first step, 0 the last."""
    schedule = Schedule(kind, start, end)
    assert schedule(1.0) == pytest.approx(start, rel=1e-12)
    assert schedule(0.0) == pytest.approx(end, rel=1e-12)


@pytest.mark.parametrize(
    ("kind", "at_quarter", "at_half"),
    [
        ("linear", 0.75 * 4.0 + 0.25 * 1.0, 2.5),
        ("exponential", 4.0 * 0.25**0.25, 2.0),
        ("cosine", 1.0 + 3.0 * (1 + math.cos(math.pi / 4)) / 2, 2.5),
    ],
)
def test_a_schedule_from_4_to_1_by_hand(kind: str, at_quarter: float, at_half: float) -> None:
    """After a quarter and after half of training."""
    assert Schedule(kind, 4.0, 1.0)(0.75) == pytest.approx(at_quarter)
    assert Schedule(kind, 4.0, 1.0)(0.5) == pytest.approx(at_half)


def test_a_constant_schedule_is_exactly_its_value() -> None:
    """0.3 must not come back as 0.30000000000000004."""
    assert {Schedule("constant", 0.3, 0.3)(p) for p in GRID} == {0.3}


@given(
    kind=st.sampled_from(MOVING),
    start=st.floats(1e-6, 1e3),
    end=st.floats(1e-6, 1e3),
)
@settings(derandomize=True, max_examples=60, deadline=None, database=None)
def test_a_schedule_moves_one_way_and_stays_between_its_ends(
    kind: str, start: float, end: float
) -> None:
    """Up to rounding."""
    values = [Schedule(kind, start, end)(p) for p in GRID]
    slack = 1e-12 * max(start, end)
    direction = math.copysign(1.0, end - start)
    assert all(direction * (b - a) >= -slack for a, b in itertools.pairwise(values))
    assert min(start, end) - slack <= min(values) <= max(values) <= max(start, end) + slack


@pytest.mark.parametrize("kind", MOVING)
def test_past_the_end_a_schedule_keeps_its_last_value(kind: str) -> None:
    """SB3's last rollout oversteps `total_timesteps`: a line to 0 went on to negative rates."""
    schedule = Schedule(kind, 1e-3, 1e-5)
    assert schedule(-0.5) == schedule(0.0)
    assert schedule(1.5) == schedule(1.0)


def test_a_linear_schedule_to_zero_never_turns_negative() -> None:
    """The case that made the step above matter."""
    assert Schedule("linear", 1e-3, 0.0)(-1.048) == 0.0


def test_a_schedule_is_an_sb3_learning_rate() -> None:
    """SB3 wraps callables and wants floats."""
    wrapped = FloatSchedule(Schedule("linear", 1e-3, 0.0))
    assert wrapped(0.5) == pytest.approx(5e-4)
    assert isinstance(wrapped(0.5), float)


@pytest.mark.parametrize("module", [pickle, cloudpickle], ids=["pickle", "cloudpickle"])
def test_a_schedule_survives_saving(module: object) -> None:
    """`model.save` pickles it; a lambda would lose its source or fail."""
    schedule = Schedule("cosine", 2.0, 0.5)
    assert module.loads(module.dumps(schedule)) == schedule


def test_make_schedule_reads_numbers_mappings_and_callables() -> None:
    """The three forms of a setting."""
    schedule = Schedule("linear", 2.0, 1.0)
    assert make_schedule(0.7) == Schedule("constant", 0.7, 0.7)
    assert make_schedule(1) == Schedule("constant", 1.0, 1.0)
    assert make_schedule({"schedule": "linear", "start": 2, "end": 1}) == schedule
    assert make_schedule(schedule) is schedule
    assert make_schedule(math.sqrt)(4.0) == 2.0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("linaer", 1.0, 0.0), "unknown schedule 'linaer'; known: constant, linear, exponential"),
        (("linear", float("nan"), 0.0), "from nan to 0.0: both must be finite"),
        (("linear", 1.0, float("inf")), "from 1.0 to inf: both must be finite"),
        (("constant", 1.0, 0.5), "a constant schedule cannot go from 1.0 to 0.5"),
        (("exponential", 1.0, 0.0), "needs positive ends; got 1.0 and 0.0"),
        (("exponential", -1.0, 1.0), "needs positive ends; got -1.0 and 1.0"),
    ],
)
def test_an_impossible_schedule_is_refused(
    arguments: tuple[str, float, float], message: str
) -> None:
    """With the values got and what is known."""
    with pytest.raises(ValueError, match=message):
        Schedule(*arguments)


@pytest.mark.parametrize("keys", [{"start": 1, "end": 0}, {"kind": "linear", "start": 1, "end": 0}])
def test_a_mapping_with_other_keys_is_refused(keys: dict[str, object]) -> None:
    """The message has the keys wanted and got."""
    with pytest.raises(ValueError, match="has the keys schedule, start, end; got"):
        make_schedule(keys)
