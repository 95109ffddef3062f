"""Thermostats: the physics of the building in closed form, costs by hand, and the rule."""

import math
from collections.abc import Callable

import pytest
import torch
from gymnasium import spaces
from torch import Tensor

from rl_gumbel.envs import thermostats
from rl_gumbel.envs.thermostats import Thermostats, hysteresis, thermostat
from rl_gumbel.vec_env import make_vec

KELVIN_PER_W = 900 / 3.3e6


def losses(rows: int, columns: int) -> tuple[Tensor, Tensor]:
    """Return the conductance matrix and that to the outside, wall by wall, in W / K."""
    n = rows * columns
    matrix, outer = torch.zeros(n, n, dtype=torch.float64), torch.zeros(n, dtype=torch.float64)
    for row in range(rows):
        for column in range(columns):
            room = row * columns + column
            outer[room] = 8.5
            for down, right in ((1, 0), (-1, 0), (0, 1), (0, -1)):
                y, x = row + down, column + right
                if 0 <= y < rows and 0 <= x < columns:
                    matrix[room, room] += 20
                    matrix[room, y * columns + x] -= 20
                else:
                    outer[room] += 20
    return matrix + outer.diag(), outer


def test_the_building_has_the_walls_of_its_plan() -> None:
    env = Thermostats(1, dtype=torch.float64)
    matrix, outer = losses(4, 6)
    assert env.losses_W_per_K.equal(matrix)
    assert env.outer_W_per_K.equal(outer)


def test_a_part_of_a_row_has_walls_to_the_outside() -> None:
    """Five rooms stand as three above two; the third has one neighbour."""
    env = Thermostats(1, n=5)
    assert env.columns == 3
    assert env.outer_W_per_K.tolist() == [48.5, 28.5, 68.5, 48.5, 48.5]
    assert env.losses_W_per_K[2].tolist() == [0, -20, 88.5, 0, 0]


def test_an_unheated_room_cools_to_the_outdoor_temperature_exponentially() -> None:
    """One room has 8.5 + 4 x 20 W / K: T - T_out shrinks by 1 - 900 x 88.5 / 3.3e6 a step."""
    env = Thermostats(1, n=1, dtype=torch.float64)
    temperature = torch.tensor([[20.0]], dtype=torch.float64)
    outdoor, off = torch.tensor([4.0], dtype=torch.float64), torch.zeros(1, 1, dtype=torch.float64)
    for _ in range(50):
        temperature = env.heat(temperature, outdoor, off)
    assert float(temperature) == pytest.approx(4 + 16 * (1 - 88.5 * KELVIN_PER_W) ** 50)
    exact = 4 + 16 * math.exp(-88.5 * KELVIN_PER_W * 50)
    assert float(temperature) == pytest.approx(exact, abs=0.1), "Euler's steps are short enough"


def test_steady_heating_ends_where_power_and_losses_balance() -> None:
    """The temperatures solve (losses) T = (outer) T_out + P."""
    env = Thermostats(1, dtype=torch.float64)
    matrix, outer = losses(4, 6)
    power = torch.linspace(0, 1200, 24, dtype=torch.float64)
    outdoor = torch.tensor([-3.0], dtype=torch.float64)
    temperature = torch.full((1, 24), 18.0, dtype=torch.float64)
    for _ in range(4000):
        temperature = env.heat(temperature, outdoor, power.unsqueeze(0))
    expected = torch.linalg.solve(matrix, outer * -3.0 + power)
    torch.testing.assert_close(temperature[0], expected)
    assert float((outer * (temperature[0] + 3)).sum()) == pytest.approx(float(power.sum()))


def test_no_heat_is_lost_between_rooms() -> None:
    """What the rooms store is what the heaters give less what goes outdoors, in every step."""
    env = Thermostats(8, dtype=torch.float64)
    env.reset(seed=0)
    _, outer = losses(4, 6)
    for _ in range(30):
        before, outdoor = env.state["temperature"], env.outdoor(env.state)
        action = torch.randint(2, (8, 24))
        env.step(action)
        stored = 3.3e6 * (env.state["temperature"] - before).sum(-1)
        lost = 900 * ((before - outdoor.unsqueeze(-1)) * outer).sum(-1)
        torch.testing.assert_close(stored, 900 * 1200.0 * action.sum(-1).double() - lost)


@pytest.mark.parametrize(
    ("quarter", "degrees", "power", "cost"),
    [
        (0, 20.0, 1200.0, 0.3 * 0.16),  # 0.3 kWh at the night tariff
        (24, 20.0, 600.0, 0.15 * 0.32),  # from 6:00 on by day
        (88, 20.0, 600.0, 0.15 * 0.16),  # until 22:00
        (40, 17.0, 0.0, 0.05 * 9),  # 3 K too cold for people: 0.2 EUR x 9 x 1/4 h
        (40, 26.0, 0.0, 0.05 * 4),  # too warm
        (31, 17.0, 0.0, 0.0),  # they come at 8:00
        (71, 17.0, 0.0, 0.05 * 9),  # and leave at 18:00
        (72, 17.0, 0.0, 0.0),
        (72, 12.0, 0.0, 0.05 * 4),  # an empty room needs 14 C
        (0, 29.0, 1200.0, 0.3 * 0.16 + 0.05),
    ],
)
def test_costs_by_hand(
    quarter: int, degrees: float, power: float, cost: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In rooms whose temperature stands still."""
    monkeypatch.setattr(Thermostats, "heat", lambda self, temperature, *_: temperature)
    env = Thermostats(1, n=2, stages=3, dtype=torch.float64)
    env.reset(seed=0)
    env.state["temperature"] = torch.tensor([[degrees, 21.0]], dtype=torch.float64)
    env.state["quarter"] = torch.tensor([quarter])
    step = env.step(torch.tensor([[int(power / 600), 0]]))
    assert float(step.reward) == pytest.approx(-cost / 2, abs=1e-6)
    assert env.state["power"].tolist() == [[power, 0]]
    assert int(env.state["quarter"]) == quarter + 1


def test_observations_by_hand() -> None:
    """At 5:15 it is 8 C at the mean and 4 K x cos(9.75 / 24 turns) from the wave."""
    env = Thermostats(1, n=2, dtype=torch.float64)
    env.reset(seed=0)
    env.state |= {
        "temperature": torch.tensor([[20.0, 15.0]]),
        "mean": torch.tensor([8.0]),
        "weather": torch.tensor([1.0]),
        "quarter": torch.tensor([21]),
    }
    wave = 4 * math.cos(2 * math.pi * 9.75 / 24)
    angle = 2 * math.pi * 5.25 / 24
    expected = [0, -1, (9 + wave) / 10, math.sin(angle), math.cos(angle), 0.5, 0, 1, 0]
    torch.testing.assert_close(env.observe(env.state)[0], torch.tensor(expected))
    for quarter, known in ((27, [1, 0, 1, 0]), (28, [1, 0, 1, 1]), (95, [0.5, 0, 0.5, 0])):
        env.state["quarter"] = torch.tensor([quarter])
        assert env.observe(env.state)[0, -4:].tolist() == known


def test_room_by_room_it_is_the_same_building() -> None:
    """Nothing but the order of the observations differs, and both rules read either."""
    flat, rooms = Thermostats(3, n=5), Thermostats(3, n=5, per_room=True)
    obs, parts = flat.reset(seed=0), rooms.reset(seed=0)
    assert rooms.observation_space.shape == (5 * 8,)
    for rule in (hysteresis, thermostat):
        for _ in range(30):
            split = parts.unflatten(-1, (5, 8))
            assert split[..., 0].equal(obs[:, :5])
            assert split[..., 1:].equal(obs[:, None, 5:].expand(-1, 5, -1))
            assert rooms.observation_space.contains(parts[0].numpy())
            action = rule(flat, obs)
            assert rule(rooms, parts).equal(action)
            obs, parts = flat.step(action).obs, rooms.step(action).obs


def test_weather_keeps_its_spread_and_memory() -> None:
    env = Thermostats(4000, n=1)
    env.reset(seed=0)
    first = env.state["weather"]
    for _ in range(40):
        env.step(torch.zeros(4000, 1, dtype=torch.int64))
    last = env.state["weather"]
    for weather in (first, last):
        assert abs(float(weather.mean())) < 0.1
        assert float(weather.std()) == pytest.approx(1.5, rel=0.05)
    correlation = float(torch.stack([first, last]).corrcoef()[0, 1])
    assert correlation == pytest.approx(0.97**40, abs=0.06)


def test_two_stages_are_bits_and_more_are_choices() -> None:
    assert make_vec("Thermostats-v0", 1, "cpu").action_space == spaces.MultiBinary(24)
    env = make_vec("Thermostats-v0", 1, "cpu", n=3, stages=4)
    assert env.action_space == spaces.MultiDiscrete([4] * 3)
    assert env.powers == (0, 400, 800, 1200)
    assert env.max_episode_steps == 192


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"n": 0}, "n 0 of Thermostats must be at least 1"),
        ({"stages": 1}, "stages 1 of Thermostats must be at least 2"),
    ],
)
def test_no_room_and_no_choice_are_refused(arguments: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Thermostats(1, **arguments)


def mean_return(env: Thermostats, rule: Callable[[Thermostats, Tensor], Tensor]) -> float:
    """Return the mean over the episodes of seed 0."""
    obs, rewards = env.reset(seed=0), []
    for _ in range(192):
        action = rule(env, obs)
        assert action.shape == (env.num_envs, env.n)
        step = env.step(action)
        obs = step.obs
        rewards.append(step.reward)
    return float(torch.stack(rewards).sum(0).mean())


@pytest.mark.parametrize("stages", [2, 3])
def test_the_rules_keep_people_warm_for_little_money(stages: int) -> None:
    """Random actions return -68; who looks ahead pays less than who does not."""
    env = Thermostats(100, stages=stages)
    ahead, plain = mean_return(env, thermostat), mean_return(env, hysteresis)
    assert -9 < plain < ahead - 0.3
    assert ahead < -5


@pytest.mark.parametrize(
    ("quarter", "degrees", "power", "stage"),
    [
        (40, 19.7, 0.0, 2),  # below the band of 0.5 K around 20 C
        (40, 20.3, 1200.0, 0),  # above it
        (40, 19.8, 0.0, 0),  # within it: as it was
        (40, 19.8, 600.0, 2),
        (40, 20.2, 0.0, 0),
        (40, 20.2, 1200.0, 2),
        (31, 19.7, 0.0, 0),  # nobody is there before 8:00: around 19.5 C
        (31, 19.2, 0.0, 2),
        (72, 19.8, 1200.0, 0),  # nor after 18:00
    ],
)
def test_hysteresis_by_hand(quarter: int, degrees: float, power: float, stage: int) -> None:
    env = Thermostats(1, n=2, stages=3)
    env.reset(seed=0)
    env.state["temperature"] = torch.tensor([[degrees, 10.0]])
    env.state["power"] = torch.tensor([[power, 0.0]])
    env.state["quarter"] = torch.tensor([quarter])
    assert hysteresis(env, env.observe(env.state)).tolist() == [[stage, 2]]


@pytest.mark.parametrize("name", ["PEOPLE_C", "NOBODY_C"])
@pytest.mark.parametrize("shift", [-1.5, 1.5])
def test_hysteresis_is_tuned(name: str, shift: float, monkeypatch: pytest.MonkeyPatch) -> None:
    env = Thermostats(100)
    best = mean_return(env, hysteresis)
    monkeypatch.setattr(thermostats, name, getattr(thermostats, name) + shift)
    assert mean_return(env, hysteresis) < best


def test_the_rule_heats_ahead_of_the_day() -> None:
    """In a mild night at 5:45 rooms of 20 C are heated; at 18:15 none of 18 C is."""
    env = Thermostats(1)
    env.reset(seed=0)
    degrees = torch.full((1, 24), 20.0)
    for quarter, temperature, stage in (
        (23, degrees, 1),
        (73, degrees - 2, 0),
        (73, degrees - 7, 1),
    ):
        env.state["temperature"], env.state["quarter"] = temperature, torch.tensor([quarter])
        assert thermostat(env, env.observe(env.state)).tolist() == [[stage] * 24]


def test_the_schedules_cover_a_day() -> None:
    assert len(thermostats.PRICE_EUR_PER_KWH) == len(thermostats.OCCUPIED) == 96
