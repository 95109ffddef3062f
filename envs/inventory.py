"""Inventory: order through a supply line of several echelons so that the shop can deliver."""

from collections.abc import Sequence
from functools import cache, reduce
from itertools import product
from math import factorial, pi
from operator import add
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from numpy.typing import NDArray
from torch import Tensor

from rl_gumbel.envs.base import State, TorchEnv
from rl_gumbel.envs.board import Board
from rl_gumbel.envs.canvas import BLUE, GREEN, GREY, INK, LIGHT, ORANGE, PAPER, RED

RATE, MAX_QUANTITY = 4.0, 10  # units a period: of the Poisson demand, and its and an order's bound
PERIODS_PER_YEAR = 12
HOLDING_COST, BACKLOG_COST = 1.0, 10.0  # of a unit in or missing from the shop, a period
QUANTITIES = tuple(range(MAX_QUANTITY + 1))
LEVELS = (45, 41, 33, 23)
"""Base-stock levels that `search_levels` finds for 1,000 of the default environment.

With 300 one level is another."""


class Inventory(TorchEnv):
    """A serial supply line: each echelon orders from the one before it, the first from a source.

    A period: what is due arrives, every echelon orders 0 to 10 units, customers come to the last
    echelon, the shop, and each ships what it is asked for and owes, as far as its stock goes; the
    rest is owed on. A shipment arrives `lead_time` periods later; the source always has enough. The
    reward is minus the cost of a period over the number of echelons: 1 for a unit in the shop's
    stock, less upstream (the k-th of K echelons pays k / K), and 10 for a unit owed to customers.

    Demand is Poisson around a mean that goes through a year of 12 periods as a sine wave, and each
    episode starts anywhere in it. Orders must be placed ahead of it: goods take K L periods to the
    shop. With `gradients=True` rewards and observations carry one; both are piecewise linear in the
    orders (where stock equals what is asked for, it is the mean of both sides).

    At `season` 0 this is the model of Clark and Scarf (1960), whose best policy is `base_stock`
    with the levels of `clark_scarf`. In seasons the same policy, its constant levels found by
    search, is what practice uses. Mean returns (1,000 episodes, their standard deviation after it):
    random actions -1550 +- 436, `base_stock` with `LEVELS` -311 +- 53; at `season` 0 -1508 +- 461
    and, with the levels of `clark_scarf`, -262 +- 53.

    Args:
        num_envs: B.
        max_episode_steps: the time limit; nothing else ends an episode.
        echelons: K.
        lead_time: L, periods from a shipment to its arrival.
        season: amplitude of the wave as a share of its mean of 4 units, in [0, 1]; 0 is none.
        kwargs: of `TorchEnv`.

    Raises:
        ValueError: for no echelon, no lead time, or a season outside its range.
    """

    differentiable = True
    min_episode_steps = 100

    def __init__(
        self,
        num_envs: int,
        max_episode_steps: int | None = 100,
        *,
        echelons: int = 4,
        lead_time: int = 2,
        season: float = 0.5,
        **kwargs: Any,
    ) -> None:
        for name, value in (("echelons", echelons), ("lead_time", lead_time)):
            if value < 1:
                raise ValueError(f"{name} {value!r} of Inventory must be at least 1")
        if not 0 <= season <= 1:
            raise ValueError(f"season {season!r} of Inventory must be in [0, 1]")
        self.echelons, self.lead_time = echelons, lead_time
        sums = demand_shares(season).cumsum(-1)[:, :-1]
        self.demand_sums = tuple(sums.ravel().tolist())
        self.holding_costs = tuple(HOLDING_COST * (k + 1) / echelons for k in range(echelons))
        super().__init__(
            num_envs,
            spaces.Box(-1.0, np.inf, (2 + echelons * (2 + lead_time),), np.float32),
            spaces.MultiDiscrete([MAX_QUANTITY + 1] * echelons),
            max_episode_steps,
            **kwargs,
        )

    def initial(self) -> State:
        """Return stocks and shipments of 0 to 10 units, nothing owed, any period of the year.

        `transit` is `[B, K, L]`, shipments to each echelon, the next to arrive first.
        """
        many = MAX_QUANTITY + 1
        stock = self.integers(many, self.echelons).to(self.dtype)
        transit = self.integers(many, self.echelons, self.lead_time).to(self.dtype)
        period, owed = self.integers(PERIODS_PER_YEAR), torch.zeros_like(stock)
        return {"stock": stock, "owed": owed, "transit": transit, "period": period}

    def transition(self, state: State, action: Tensor) -> tuple[State, Tensor, Tensor]:
        """Return the states a period later, rewards, and False for every termination."""
        order = self.choose(action, self.constant(QUANTITIES))
        sums = self.constant(self.demand_sums).view(PERIODS_PER_YEAR, -1)[state["period"]]
        demand = (self.uniform(1) > sums).sum(-1, keepdim=True)
        arrived = state["stock"] + state["transit"][..., 0]
        asked = state["owed"] + torch.cat([order[:, 1:], demand.to(order.dtype)], -1)
        shipped = torch.minimum(arrived, asked)
        stock, owed = arrived - shipped, asked - shipped
        sent = torch.cat([order[:, :1], shipped[:, :-1]], -1).unsqueeze(-1)
        transit = torch.cat([state["transit"][..., 1:], sent], -1)
        cost = stock @ self.constant(self.holding_costs) + BACKLOG_COST * owed[:, -1]
        never = torch.zeros(self.num_envs, dtype=torch.bool, device=self.device)
        period = (state["period"] + 1) % PERIODS_PER_YEAR
        following = {"stock": stock, "owed": owed, "transit": transit, "period": period}
        return following, -cost / self.echelons, never

    def observe(self, state: State) -> Tensor:
        """Return what is known, `[B, 2 + K + K + K L]`.

        Sine (that of the season) and cosine of the time of the year; stocks, what is owed, and
        shipments, divided by 4.
        """
        turn = (2 * pi / PERIODS_PER_YEAR * state["period"]).unsqueeze(-1)
        units = torch.cat([state["stock"], state["owed"], state["transit"].flatten(1)], -1)
        return torch.cat([turn.sin(), turn.cos(), units / RATE], -1).float()

    def frame(self, state: State) -> NDArray[np.uint8]:
        """Return lorries on their way to the warehouses and the shop, stocks, and what is owed."""
        each = self.lead_time + 2  # tiles of an echelon: the way to it and its house
        board = Board(3, self.echelons * each, PAPER, max(20, 600 // (self.echelons * each)))
        board.box((2, 0), (0.0, 0.1), (float(self.echelons * each), 0.35), GREY)
        stocks, owed = state["stock"][0].tolist(), state["owed"][0].tolist()
        for k, transit in enumerate(state["transit"][0].tolist()):
            for periods, load in enumerate(transit):
                if load:
                    tile = (1, k * each + self.lead_time - 1 - periods)
                    board.box(tile, (0.04, 0.5), (0.66, 1.0), ORANGE, 0.06)
                    board.box(tile, (0.69, 0.65), (0.92, 1.0), BLUE, 0.06)
                    board.write(tile, (0.35, 0.74), f"{load:.0f}", 0.36, INK)
                    for x in (0.2, 0.5, 0.8):
                        board.disc(tile, (x, 1.04), 0.09, INK)
            house, color = (1, (k + 1) * each - 2), GREEN if k == self.echelons - 1 else LIGHT
            board.polygon(house, [(0.02, 0.0), (1.0, -0.55), (1.98, 0.0)], INK)
            board.box(house, (0.1, 0.0), (1.9, 1.12), color)
            for box in range(min(int(stocks[k]), 24)):  # 24 fill the house
                x, y = 0.2 + 0.27 * (box % 6), 0.9 - 0.22 * (box // 6)
                board.box(house, (x, y), (x + 0.24, y + 0.19), "#a9794a")
            board.write(house, (1.0, -0.2), f"{stocks[k]:.0f}", 0.34, PAPER)
            if owed[k]:
                board.write((2, house[1]), (1.0, 0.65), f"owes {owed[k]:.0f}", 0.36, RED)
        return board.picture()


def demand_shares(season: float) -> NDArray[np.float64]:
    """Return the probabilities of 0 to 10 units in each period of a year, `[12, 11]`."""
    time = 2 * pi * np.arange(PERIODS_PER_YEAR) / PERIODS_PER_YEAR
    rates = RATE * (1 + season * np.sin(time))
    weights = np.stack([rates**quantity / factorial(quantity) for quantity in QUANTITIES], -1)
    shares: NDArray[np.float64] = weights / weights.sum(-1, keepdims=True)
    return shares


def base_stock(env: Inventory, obs: Tensor, levels: Sequence[int]) -> Tensor:
    """Return the action `[B, K]` of echelon base-stock levels, by the observations alone.

    An echelon's position is all that is in it and further down or on order, less what customers
    wait for; it orders what is missing to its level.

    Args:
        env: what is observed.
        obs: `[B, O]`.
        levels: of the K echelons, source to shop, in units.
    """
    stock, owed, transit = (obs[:, 2:] * RATE).tensor_split((env.echelons, 2 * env.echelons), -1)
    inside = stock + transit.unflatten(-1, (env.echelons, -1)).sum(-1)
    position: Tensor = inside.flip(-1).cumsum(-1).flip(-1) - owed[:, -1:]
    position[:, 1:] += owed[:, :-1]
    missing: Tensor = env.constant(levels).float() - position
    return missing.round().clamp(0, MAX_QUANTITY).long()


def search_levels(env: Inventory, periods: int = 100) -> tuple[int, ...]:
    """Return constant base-stock levels, source to shop, that none beside them is better than.

    From those of `clark_scarf` on it goes to the best where each level is at most a unit off, until
    there is no better one; all are tried on the same start and the same customers (of seed 0).
    """

    @cache
    def mean_cost(levels: tuple[int, ...]) -> float:
        env.reset(seed=0)
        cost = torch.zeros(env.num_envs, device=env.device)
        for _ in range(periods):
            cost -= env.step(base_stock(env, env.observe(env.state), levels)).reward
        return float(cost.mean())

    levels, _ = clark_scarf(env.echelons, env.lead_time)
    while True:
        moves = product((0, 1, -1), repeat=env.echelons)
        beside = [tuple(map(add, levels, move)) for move in moves]
        best = min(beside, key=mean_cost)
        if best == levels:
            return levels
        levels = best


@cache
def clark_scarf(echelons: int, lead_time: int) -> tuple[tuple[int, ...], float]:
    """Return the best base-stock levels, source to shop, and the mean cost of a period under them.

    Exact without seasons for a line that never ends (Clark and Scarf 1960): the shop's level
    minimises its own cost, and what it lacks because of the echelon before it is a cost of that
    one, and so on.
    """
    # Echelon k pays for all that is in it and further down, at the difference of holding costs.
    holding = HOLDING_COST / echelons
    demand = demand_shares(0.0)[0]
    mean_demand = demand @ QUANTITIES
    low = -MAX_QUANTITY * (echelons * lead_time + 1)
    position, levels = np.arange(low, 1 - low), []
    cost = (BACKLOG_COST + HOLDING_COST) * np.maximum(-position, 0.0)
    for periods in [lead_time + 1] + [lead_time] * (echelons - 1):
        position = position[MAX_QUANTITY * periods :]
        cost = np.convolve(cost, reduce(np.convolve, [demand] * periods), "valid")
        cost += holding * (position - mean_demand * (lead_time + 1))
        best = cost.argmin()
        levels.append(int(position[best]))
        cost[best:] = cost[best]
    # Shipments on their way cost nothing here, whatever the levels.
    on_their_way = mean_demand * lead_time * HOLDING_COST * (echelons - 1) / 2
    return tuple(levels[::-1]), float(cost[-1]) - on_their_way
