"""Inventory: periods by hand, conservation of goods, seasons, and the theory of base stock."""

from collections.abc import Sequence
from functools import reduce
from itertools import pairwise

import numpy as np
import pytest
import torch
from gymnasium import spaces
from scipy import stats
from torch import Tensor

from rl_gumbel.envs import inventory
from rl_gumbel.envs.inventory import (
    LEVELS,
    Inventory,
    base_stock,
    clark_scarf,
    demand_shares,
    search_levels,
)
from rl_gumbel.vec_env import make_vec


def test_a_period_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    """Three units are wanted in the shop: u = 0.3 is between the sums for 2 and for 3 units.

    The periods are the third (sine of a sixth of a turn), the fourth and the fifth of the year.
    """
    env = Inventory(1, echelons=2, lead_time=2, season=0.0, dtype=torch.float64)
    env.reset(seed=0)
    env.state = {
        "stock": torch.tensor([[2.0, 1.0]]).double(),
        "owed": torch.tensor([[4.0, 0.0]]).double(),
        "transit": torch.tensor([[[5.0, 6.0], [1.0, 0.0]]]).double(),
        "period": torch.tensor([2]),
    }
    monkeypatch.setattr(env, "uniform", lambda *shape: torch.full((1, *shape), 0.3).double())
    step = env.step(torch.tensor([[10, 7]]))
    # The first has 2 + 5, owes 4 and is asked for 7; the shop has 1 + 1, owes 0 and is asked for 3.
    assert env.state["stock"].tolist() == [[0, 0]]
    assert env.state["owed"].tolist() == [[4, 1]]
    assert env.state["transit"].tolist() == [[[6, 10], [0, 7]]]
    assert step.reward.tolist() == [-10 / 2]
    expected = torch.tensor([[1, 0, 0, 0, 1, 0.25, 1.5, 2.5, 0, 1.75]])
    torch.testing.assert_close(step.obs, expected, atol=1e-6, rtol=0)
    step = env.step(torch.tensor([[0, 0]]))
    # The first has 6, owes 4; the shop nothing, owes 1 and is asked for 3.
    assert env.state["stock"].tolist() == [[2, 0]]
    assert env.state["owed"].tolist() == [[0, 4]]
    assert env.state["transit"].tolist() == [[[10, 0], [7, 4]]]
    assert step.reward.tolist() == [-(2 * 0.5 + 4 * 10) / 2]
    assert step.obs[0, :2].tolist() == pytest.approx([3**0.5 / 2, -0.5])


def test_goods_are_conserved() -> None:
    """What the source sends is delivered, on its way or in stock; an order is sent or owed."""
    env = Inventory(16, max_episode_steps=None, dtype=torch.float64)
    env.reset(seed=0)
    generator = torch.Generator().manual_seed(0)
    for _ in range(60):
        before = env.state
        order = torch.randint(11, (16, 4), generator=generator)
        env.step(order)
        after = env.state
        goods = [state["stock"] + state["transit"].sum(-1) for state in (before, after)]
        gained = goods[1] - goods[0]
        sent = after["transit"][..., -1]
        assert sent[:, 0].equal(order[:, 0].double())
        assert gained[:, :-1].equal(sent[:, :-1] - sent[:, 1:])
        assert (after["owed"] - before["owed"])[:, :-1].equal(order[:, 1:] - sent[:, 1:])
        delivered = sent[:, -1] - gained[:, -1]
        demand = delivered + after["owed"][:, -1] - before["owed"][:, -1]
        assert ((demand >= 0) & (demand <= 10) & (demand == demand.round())).all()
        for value in after.values():
            assert (value >= 0).all()
        assert not ((after["stock"] > 0) & (after["owed"] > 0)).any()


def draw_demand(season: float, period: int) -> Tensor:
    """Return 40,000 demands of one period of the year."""
    env = Inventory(40_000, echelons=1, lead_time=1, season=season)
    env.reset(seed=0)
    env.state = {name: torch.full_like(value, 50) for name, value in env.state.items()}
    env.state["period"] = torch.full((40_000,), period)
    env.step(torch.zeros(40_000, 1, dtype=torch.int64))
    assert (env.state["period"] == (period + 1) % 12).all()
    return (50 - env.state["stock"] + env.state["owed"]).flatten().long()


@pytest.mark.parametrize(
    ("season", "period", "rate"),
    [(0.0, 3, 4.0), (0.5, 0, 4.0), (0.5, 3, 6.0), (0.5, 1, 5.0), (0.5, 9, 2.0), (0.25, 11, 3.5)],
)
def test_demand_is_poisson_up_to_ten_around_the_wave(
    season: float, period: int, rate: float
) -> None:
    demand = draw_demand(season, period)
    shares = stats.poisson(rate).pmf(np.arange(11))
    expected = 40_000 * shares / shares.sum()
    assert stats.chisquare(demand.bincount(minlength=11).numpy(), expected).pvalue > 1e-3
    np.testing.assert_allclose(demand_shares(season)[period], shares / shares.sum(), rtol=1e-12)


def test_at_season_one_nobody_comes_at_the_bottom_of_the_wave() -> None:
    assert (draw_demand(1.0, 9) == 0).all()


def test_episodes_start_anywhere_in_the_year() -> None:
    env = Inventory(12_000)
    env.reset(seed=0)
    assert stats.chisquare(env.state["period"].bincount(minlength=12).numpy()).pvalue > 1e-3


@pytest.mark.parametrize(
    ("stock", "chance", "quantity", "slope"),
    [
        (50.0, 0.5, 2, -1.0),
        (0.0, 0.5, 2, 10.0),  # two periods ask for 4 units each
        (0.0, 0.0, 0, 4.5),  # nobody comes: the mean of both
    ],
)
def test_a_unit_more_costs_its_holding_or_saves_its_backlog(
    stock: float, chance: float, quantity: int, slope: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a single echelon orders arrives in the next period."""
    env = Inventory(1, echelons=1, lead_time=1, season=0.0, gradients=True)
    env.reset(seed=0)
    monkeypatch.setattr(env, "uniform", lambda *shape: torch.full((1, *shape), chance))
    env.state = {
        "stock": torch.full((1, 1), stock),
        "owed": torch.zeros(1, 1),
        "transit": torch.zeros(1, 1, 1),
        "period": torch.zeros(1, dtype=torch.int64),
    }
    first = torch.eye(11)[quantity].view(1, 1, 11).requires_grad_()
    rewards = [env.step(action).reward for action in (first, torch.eye(11)[:1].unsqueeze(0))]
    (grad,) = torch.autograd.grad(sum(rewards), first)
    torch.testing.assert_close(grad[0, 0], slope * torch.arange(11.0))


# --- base stock -----------------------------------------------------------------------------------


def demand_over(periods: int) -> np.ndarray:
    shares = stats.poisson(4).pmf(np.arange(11))
    return reduce(np.convolve, [shares / shares.sum()] * periods)


@pytest.mark.parametrize("lead_time", [1, 2, 5])
def test_one_echelon_is_a_newsvendor(lead_time: int) -> None:
    """It orders for the demand of L + 1 periods, up to the quantile b / (b + h) = 10 / 11."""
    shares = demand_over(lead_time + 1)
    units = np.arange(len(shares))
    quantile = int((shares.cumsum() >= 10 / 11).argmax())
    (level,), cost = clark_scarf(1, lead_time)
    assert level == quantile
    rest = quantile - units
    assert cost == pytest.approx(shares @ np.where(rest > 0, rest, -10 * rest))


def mean_cost(env: Inventory, levels: Sequence[int], periods: int = 400) -> float:
    """Return the mean cost of a period under base stock, after a start."""
    obs, costs = env.reset(seed=0), []
    for _ in range(periods):
        step = env.step(base_stock(env, obs, levels))
        obs = step.obs
        costs.append(step.reward)
    return -float(torch.stack(costs[50:]).mean()) * env.echelons


@pytest.mark.parametrize(("echelons", "lead_time"), [(1, 3), (2, 1), (4, 2)])
def test_without_seasons_base_stock_costs_what_theory_says(echelons: int, lead_time: int) -> None:
    env = Inventory(500, None, echelons=echelons, lead_time=lead_time, season=0.0)
    levels, cost = clark_scarf(echelons, lead_time)
    assert mean_cost(env, levels) == pytest.approx(cost, rel=0.015)


@pytest.mark.parametrize("echelon", [0, 1, 2])
@pytest.mark.parametrize("shift", [-2, 2])
def test_without_seasons_no_other_level_is_better(echelon: int, shift: int) -> None:
    """With the same customers, each level on its own."""
    env = Inventory(500, None, echelons=3, lead_time=1, season=0.0)
    levels, _ = clark_scarf(3, 1)
    assert all(upper > lower for upper, lower in pairwise(levels))
    moved = [level + shift * (k == echelon) for k, level in enumerate(levels)]
    assert mean_cost(env, moved) > mean_cost(env, levels)


@pytest.mark.parametrize("shift", [-2, 0, 2])
def test_without_seasons_the_search_finds_what_is_best(
    shift: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A single echelon, whose best level has a closed form, and a start at another one."""
    (level,), cost = clark_scarf(1, 2)
    monkeypatch.setattr(inventory, "clark_scarf", lambda *_: ((level + shift,), cost))
    env = Inventory(1000, None, echelons=1, lead_time=2, season=0.0)
    assert search_levels(env) == (level,)


def test_in_seasons_the_search_finds_the_best_of_all_levels() -> None:
    """Every level of a single echelon, one after the other."""
    env = Inventory(200, None, echelons=1, lead_time=2)
    costs = [total(env, None, [level]) for level in range(10, 31)]
    assert search_levels(env) == (10 + int(np.argmax(costs)),)


@pytest.mark.slow
def test_the_search_finds_the_levels_of_the_default_environment() -> None:
    assert search_levels(Inventory(1000)) == LEVELS


@pytest.mark.parametrize("move", [(1, 0, 0, 0), (0, -1, 0, 0), (0, 0, 1, 1), (0, 0, 0, -1)])
def test_no_levels_beside_those_of_the_default_environment_are_better(
    move: tuple[int, ...],
) -> None:
    """Two units off, so that the difference shows on 500 episodes."""
    env = Inventory(500)
    moved = [level + 2 * shift for level, shift in zip(LEVELS, move, strict=True)]
    assert total(env, None, moved) < total(env, None, LEVELS)


def total(env: Inventory, actions: Tensor | None, levels: Sequence[int] = LEVELS) -> float:
    """Return the mean return of 100 periods, by base stock without actions."""
    obs, rewards = env.reset(seed=0), []
    for period in range(100):
        action = base_stock(env, obs, levels) if actions is None else actions[period]
        step = env.step(action)
        obs = step.obs
        rewards.append(step.reward)
    return float(torch.stack(rewards).sum(0).mean())


def test_the_rule_beats_chance_and_a_steady_order() -> None:
    env = Inventory(200)
    generator = torch.Generator().manual_seed(0)
    chance = total(env, torch.randint(11, (100, 200, 4), generator=generator))
    steady = total(env, torch.full((100, 200, 4), 4))
    stationary = total(env, None, clark_scarf(4, 2)[0])
    rule = total(env, None)
    assert -325 < rule < -297
    assert stationary < rule - 10
    assert chance < -1000
    assert steady < -900


def test_who_knows_the_season_can_beat_constant_levels() -> None:
    """Levels that go with the demand to come: by 10% or more."""
    env = Inventory(200)
    obs, rewards = env.reset(seed=0), []
    for _ in range(100):
        sin, cos = obs[:, 0], obs[:, 1]
        wave = torch.stack(
            [-2 * sin + 8 * cos, 2 * sin + 8 * cos, 5 * sin + 6 * cos, 6 * sin + 3 * cos], -1
        )
        levels = torch.tensor([44.0, 36.0, 28.0, 19.0]) + wave
        action = (levels - position(env)).round().clamp(0, 10).long()
        step = env.step(action)
        obs = step.obs
        rewards.append(step.reward)
    assert float(torch.stack(rewards).sum(0).mean()) > 0.9 * total(env, None)


def position(env: Inventory) -> Tensor:
    """Return echelon inventory positions `[B, K]`, echelon by echelon."""
    state = env.state
    positions = []
    for k in range(env.echelons):
        inside = state["stock"][:, k:].sum(-1) + state["transit"][:, k:].sum((-2, -1))
        ordered = state["owed"][:, k - 1] if k else 0.0
        positions.append(inside + ordered - state["owed"][:, -1])
    return torch.stack(positions, -1)


def test_in_the_long_run_every_echelon_orders_the_last_demand() -> None:
    env = Inventory(50, None)
    obs = env.reset(seed=0)
    for _ in range(60):
        before = env.state
        obs = env.step(base_stock(env, obs, LEVELS)).obs
    after = env.state
    sent = after["transit"][:, -1, -1]
    gained = after["stock"][:, -1] + after["transit"][:, -1].sum(-1)
    gained = gained - before["stock"][:, -1] - before["transit"][:, -1].sum(-1)
    demand = sent - gained + after["owed"][:, -1] - before["owed"][:, -1]
    order = base_stock(env, obs, LEVELS)
    assert order.equal(demand.long().unsqueeze(-1).expand(50, 4))
    assert demand.std() > 1


# --- spaces and errors ----------------------------------------------------------------------------


def test_spaces_follow_from_echelons_and_lead_time() -> None:
    env = make_vec("Inventory-v0", 2, "cpu")
    assert env.action_space == spaces.MultiDiscrete([11] * 4)
    assert env.observation_space.shape == (18,)
    assert env.max_episode_steps == 100
    env = make_vec("Inventory-v0", 2, "cpu", echelons=3, lead_time=4)
    assert env.reset().shape == (2, 20)
    assert env.holding_costs == pytest.approx((1 / 3, 2 / 3, 1))


@pytest.mark.parametrize("name", ["echelons", "lead_time"])
def test_an_empty_line_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match=f"{name} 0 of Inventory must be at least 1"):
        Inventory(1, **{name: 0})


@pytest.mark.parametrize("season", [-0.1, 1.5])
def test_a_season_outside_its_range_is_refused(season: float) -> None:
    with pytest.raises(ValueError, match=f"season {season} of Inventory must be in"):
        Inventory(1, season=season)
