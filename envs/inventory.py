"""Inventory: order through a supply line of several echelons so that the shop can deliver."""

from functools import cache, reduce
from math import factorial
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
HOLDING_COST, BACKLOG_COST = 1.0, 10.0  # of a unit in or missing from the shop, a period
QUANTITIES = tuple(range(MAX_QUANTITY + 1))
_WEIGHTS = np.array([RATE**quantity / factorial(quantity) for quantity in QUANTITIES])
DEMAND = _WEIGHTS / _WEIGHTS.sum()
"""Probabilities of the demands of a period."""
DEMAND_SUMS = tuple(DEMAND.cumsum()[:-1].tolist())
MEAN_DEMAND = float(DEMAND @ QUANTITIES)


class Inventory(TorchEnv):
    """A serial supply line: each echelon orders from the one before it, the first from a source.

    A period: what is due arrives, every echelon orders 0 to 10 units, customers come to the last
    echelon, the shop, and each ships what it is asked for and owes, as far as its stock goes; the
    rest is owed on. A shipment arrives `lead_time` periods later; the source always has enough. The
    reward is minus the cost of a period over the number of echelons: 1 for a unit in the shop's
    stock, less upstream (the k-th of K echelons pays k / K), and 10 for a unit owed to customers.

    This is the model of Clark and Scarf (1960), whose best policy is known, `base_stock`; what is
    left to learn is to find it. With `gradients=True` rewards and observations carry one; both are
    piecewise linear in the orders (where stock equals what is asked for, it is the mean of both
    sides). Mean returns (1,000 episodes, their standard deviation after it): random actions
    -1493 +- 587, `base_stock` -261 +- 52.

    Args:
        num_envs: B.
        max_episode_steps: the time limit; nothing else ends an episode.
        echelons: K.
        lead_time: L, periods from a shipment to its arrival.
        kwargs: of `TorchEnv`.

    Raises:
        ValueError: for no echelon or no lead time.
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
        **kwargs: Any,
    ) -> None:
        for name, value in (("echelons", echelons), ("lead_time", lead_time)):
            if value < 1:
                raise ValueError(f"{name} {value!r} of Inventory must be at least 1")
        self.echelons, self.lead_time = echelons, lead_time
        self.holding_costs = tuple(HOLDING_COST * (k + 1) / echelons for k in range(echelons))
        super().__init__(
            num_envs,
            spaces.Box(0.0, np.inf, (echelons * (2 + lead_time),), np.float32),
            spaces.MultiDiscrete([MAX_QUANTITY + 1] * echelons),
            max_episode_steps,
            **kwargs,
        )

    def initial(self) -> State:
        """Return stocks and shipments of 0 to 10 units, nothing owed.

        `transit` is `[B, K, L]`, shipments to each echelon, the next to arrive first.
        """
        many = MAX_QUANTITY + 1
        stock = self.integers(many, self.echelons).to(self.dtype)
        transit = self.integers(many, self.echelons, self.lead_time).to(self.dtype)
        return {"stock": stock, "owed": torch.zeros_like(stock), "transit": transit}

    def transition(self, state: State, action: Tensor) -> tuple[State, Tensor, Tensor]:
        """Return the states a period later, rewards, and False for every termination."""
        order = self.choose(action, self.constant(QUANTITIES))
        demand = torch.bucketize(self.uniform(1), self.constant(DEMAND_SUMS))
        arrived = state["stock"] + state["transit"][..., 0]
        asked = state["owed"] + torch.cat([order[:, 1:], demand.to(order.dtype)], -1)
        shipped = torch.minimum(arrived, asked)
        stock, owed = arrived - shipped, asked - shipped
        sent = torch.cat([order[:, :1], shipped[:, :-1]], -1).unsqueeze(-1)
        transit = torch.cat([state["transit"][..., 1:], sent], -1)
        cost = stock @ self.constant(self.holding_costs) + BACKLOG_COST * owed[:, -1]
        never = torch.zeros(self.num_envs, dtype=torch.bool, device=self.device)
        following = {"stock": stock, "owed": owed, "transit": transit}
        return following, -cost / self.echelons, never

    def observe(self, state: State) -> Tensor:
        """Return stocks, what is owed, and shipments, `[B, K + K + K L]`, divided by 4."""
        parts = [state["stock"], state["owed"], state["transit"].flatten(1)]
        return (torch.cat(parts, -1) / RATE).float()

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


def base_stock(env: Inventory, obs: Tensor) -> Tensor:
    """Return the action `[B, K]` of echelon base-stock levels, by the observations alone.

    An echelon's position is all that is in it and further down or on order, less what customers
    wait for; it orders what is missing to its level, one of those that `clark_scarf` finds.
    """
    stock, owed, transit = (obs * RATE).tensor_split((env.echelons, 2 * env.echelons), -1)
    inside = stock + transit.unflatten(-1, (env.echelons, -1)).sum(-1)
    position: Tensor = inside.flip(-1).cumsum(-1).flip(-1) - owed[:, -1:]
    position[:, 1:] += owed[:, :-1]
    levels = env.constant(clark_scarf(env.echelons, env.lead_time)[0]).float()
    return (levels - position).round().clamp(0, MAX_QUANTITY).long()


@cache
def clark_scarf(echelons: int, lead_time: int) -> tuple[tuple[int, ...], float]:
    """Return the best base-stock levels, source to shop, and the mean cost of a period under them.

    Exact for a line that never ends (Clark and Scarf 1960): the shop's level minimises its own
    cost, and what it lacks because of the echelon before it is a cost of that one, and so on.
    """
    # Echelon k pays for all that is in it and further down, at the difference of holding costs.
    holding = HOLDING_COST / echelons
    low = -MAX_QUANTITY * (echelons * lead_time + 1)
    position, levels = np.arange(low, 1 - low), []
    cost = (BACKLOG_COST + HOLDING_COST) * np.maximum(-position, 0.0)
    for periods in [lead_time + 1] + [lead_time] * (echelons - 1):
        position = position[MAX_QUANTITY * periods :]
        cost = np.convolve(cost, reduce(np.convolve, [DEMAND] * periods), "valid")
        cost += holding * (position - MEAN_DEMAND * (lead_time + 1))
        best = cost.argmin()
        levels.append(int(position[best]))
        cost[best:] = cost[best]
    # Shipments on their way cost nothing here, whatever the levels.
    on_their_way = MEAN_DEMAND * lead_time * HOLDING_COST * (echelons - 1) / 2
    return tuple(levels[::-1]), float(cost[-1]) - on_their_way
