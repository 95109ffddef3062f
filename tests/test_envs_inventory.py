"""Inventory: periods by hand, conservation of goods, and the theory of its best policy."""

from functools import reduce
from itertools import pairwise

import numpy as np
import pytest
import torch
from gymnasium import spaces
from scipy import stats
from torch import Tensor

from rl_gumbel.envs import inventory
from rl_gumbel.envs.inventory import Inventory, base_stock, clark_scarf
from rl_gumbel.vec_env import make_vec


def test_a_period_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    """Three units are wanted in the shop: u = 0.3 is between the sums for 2 and for 3 units."""
    env = Inventory(1, echelons=2, lead_time=2, dtype=torch.float64)
    env.reset(seed=0)
    env.state = {
        "stock": torch.tensor([[2.0, 1.0]]).double(),
        "owed": torch.tensor([[4.0, 0.0]]).double(),
        "transit": torch.tensor([[[5.0, 6.0], [1.0, 0.0]]]).double(),
    }
    monkeypatch.setattr(env, "uniform", lambda *shape: torch.full((1, *shape), 0.3).double())
    step = env.step(torch.tensor([[10, 7]]))
    # The first has 2 + 5, owes 4 and is asked for 7; the shop has 1 + 1, owes 0 and is asked for 3.
    assert env.state["stock"].tolist() == [[0, 0]]
    assert env.state["owed"].tolist() == [[4, 1]]
    assert env.state["transit"].tolist() == [[[6, 10], [0, 7]]]
    assert step.reward.tolist() == [-10 / 2]
    assert step.obs.tolist() == [[0, 0, 1, 0.25, 1.5, 2.5, 0, 1.75]]
    step = env.step(torch.tensor([[0, 0]]))
    # The first has 6, owes 4; the shop nothing, owes 1 and is asked for 3.
    assert env.state["stock"].tolist() == [[2, 0]]
    assert env.state["owed"].tolist() == [[0, 4]]
    assert env.state["transit"].tolist() == [[[10, 0], [7, 4]]]
    assert step.reward.tolist() == [-(2 * 0.5 + 4 * 10) / 2]


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


def test_demand_is_poisson_up_to_ten() -> None:
    env = Inventory(40_000, echelons=1, lead_time=1)
    env.reset(seed=0)
    env.state = {name: torch.full_like(value, 50.0) for name, value in env.state.items()}
    env.step(torch.zeros(40_000, 1, dtype=torch.int64))
    demand = 50 - env.state["stock"] + env.state["owed"]
    assert demand.min() == 0
    counts = demand.flatten().long().bincount(minlength=11)
    shares = stats.poisson(4).pmf(np.arange(11))
    expected = 40_000 * shares / shares.sum()
    assert stats.chisquare(counts.numpy(), expected).pvalue > 1e-3
    np.testing.assert_allclose(inventory.DEMAND, shares / shares.sum(), rtol=1e-12)


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
    env = Inventory(1, echelons=1, lead_time=1, gradients=True)
    env.reset(seed=0)
    monkeypatch.setattr(env, "uniform", lambda *shape: torch.full((1, *shape), chance))
    env.state = {
        "stock": torch.full((1, 1), stock),
        "owed": torch.zeros(1, 1),
        "transit": torch.zeros(1, 1, 1),
    }
    first = torch.eye(11)[quantity].view(1, 1, 11).requires_grad_()
    rewards = [env.step(action).reward for action in (first, torch.eye(11)[:1].unsqueeze(0))]
    (grad,) = torch.autograd.grad(sum(rewards), first)
    torch.testing.assert_close(grad[0, 0], slope * torch.arange(11.0))


# --- the best policy ------------------------------------------------------------------------------


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


def mean_cost(env: Inventory, periods: int = 400) -> float:
    """Return the mean cost of a period under base stock, after a start."""
    obs, costs = env.reset(seed=0), []
    for _ in range(periods):
        step = env.step(base_stock(env, obs))
        obs = step.obs
        costs.append(step.reward)
    return -float(torch.stack(costs[50:]).mean()) * env.echelons


@pytest.mark.parametrize(("echelons", "lead_time"), [(1, 3), (2, 1), (4, 2)])
def test_base_stock_costs_what_theory_says(echelons: int, lead_time: int) -> None:
    env = Inventory(500, None, echelons=echelons, lead_time=lead_time)
    _, cost = clark_scarf(echelons, lead_time)
    assert mean_cost(env) == pytest.approx(cost, rel=0.015)


@pytest.mark.parametrize("echelon", [0, 1, 2])
@pytest.mark.parametrize("shift", [-2, 2])
def test_no_other_level_is_better(
    echelon: int, shift: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the same customers, each level on its own."""
    env = Inventory(500, None, echelons=3, lead_time=1)
    best = mean_cost(env)
    levels, cost = clark_scarf(3, 1)
    assert all(upper > lower for upper, lower in pairwise(levels))
    moved = tuple(level + shift * (k == echelon) for k, level in enumerate(levels))
    monkeypatch.setattr(inventory, "clark_scarf", lambda *_: (moved, cost))
    assert mean_cost(env) > best


def total(env: Inventory, actions: Tensor | None) -> float:
    obs = env.reset(seed=0)
    for period in range(100):
        step = env.step(base_stock(env, obs) if actions is None else actions[period])
        obs = step.obs
    assert step.truncated.all()
    return float(step.episode_return.mean())


def test_the_rule_beats_chance_and_a_steady_order() -> None:
    env = Inventory(200)
    generator = torch.Generator().manual_seed(0)
    chance = total(env, torch.randint(11, (100, 200, 4), generator=generator))
    steady = total(env, torch.full((100, 200, 4), 4))
    rule = total(env, None)
    assert -280 < rule < -240
    assert chance < -1000
    assert steady < -1000


def test_in_the_long_run_every_echelon_orders_the_last_demand() -> None:
    env = Inventory(50, None)
    obs = env.reset(seed=0)
    for _ in range(60):
        before = env.state
        obs = env.step(base_stock(env, obs)).obs
    after = env.state
    sent = after["transit"][:, -1, -1]
    gained = after["stock"][:, -1] + after["transit"][:, -1].sum(-1)
    gained = gained - before["stock"][:, -1] - before["transit"][:, -1].sum(-1)
    demand = sent - gained + after["owed"][:, -1] - before["owed"][:, -1]
    assert base_stock(env, obs).equal(demand.long().unsqueeze(-1).expand(50, 4))
    assert demand.std() > 1


# --- spaces and errors ----------------------------------------------------------------------------


def test_spaces_follow_from_echelons_and_lead_time() -> None:
    env = make_vec("Inventory-v0", 2, "cpu")
    assert env.action_space == spaces.MultiDiscrete([11] * 4)
    assert env.observation_space.shape == (16,)
    assert env.max_episode_steps == 100
    env = make_vec("Inventory-v0", 2, "cpu", echelons=3, lead_time=4)
    assert env.reset().shape == (2, 18)
    assert env.holding_costs == pytest.approx((1 / 3, 2 / 3, 1))


@pytest.mark.parametrize("name", ["echelons", "lead_time"])
def test_an_empty_line_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match=f"{name} 0 of Inventory must be at least 1"):
        Inventory(1, **{name: 0})
