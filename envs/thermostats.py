"""Thermostats: heat the rooms of a building through winter days, cheaply and in comfort."""

from math import ceil, cos, pi, sin, sqrt
from typing import Any, Self

import numpy as np
import torch
from gymnasium import spaces
from numpy.typing import NDArray
from torch import Tensor

from rl_gumbel.envs.base import State, TorchEnv
from rl_gumbel.envs.board import Board
from rl_gumbel.envs.canvas import BLUE, GREY, INK, PAPER, RED

SECONDS_PER_STEP, STEPS_PER_HOUR, STEPS_PER_DAY = 900.0, 4, 96
CAPACITY_J_PER_K = 3.3e6  # of a room: 20 m^2 of 165 kJ / (m^2 K)
VENTILATION_W_PER_K = 8.5  # 50 m^3 of air changed every two hours
FACADE_W_PER_K = 20.0  # of an old wall to the outside, with its window
WALL_W_PER_K = 20.0  # of a wall between two rooms
HEATER_W = 1200.0
PRICE_EUR_PER_KWH = (0.16,) * 24 + (0.32,) * 64 + (0.16,) * 8  # by quarter; day is 6 to 22
OCCUPIED = (0.0,) * 32 + (1.0,) * 40 + (0.0,) * 24  # from 8 to 18
COMFORT_C, EMPTY_C = (20.0, 24.0), (14.0, 28.0)  # bands, with people and without
DISCOMFORT_EUR_PER_K2_HOUR = 0.2
OUTDOOR_C = (-10.0, 10.0)  # range of an episode's mean
SWING_K = 4.0  # of the outdoor temperature, highest at 15:00
WEATHER_K, WEATHER_MEMORY = 1.5, 0.97  # standard deviation, autocorrelation from step to step

# Of `hysteresis`: the best of 20 to 21.5 C with people, 16 to 20.5 C without, 0.5 to 2 K.
PEOPLE_C, NOBODY_C, BAND_K = 20.0, 19.5, 0.5
# Of `thermostat`: the best of a grid over one at a time, three times over, on 100 episodes.
READY_HOUR, LET_GO_HOUR, READY_C, HELD_C = 6.0, 17.75, 23.0, 20.1
RAMP_K_PER_HOUR, GAIN_PER_K = 0.5, 6.0


class Thermostats(TorchEnv):
    """Set the heaters of `n` rooms every 15 minutes for two winter days.

    A room is one heat capacity with conductances to its neighbours on the grid of the plan and to
    the outside. The outdoor temperature is a mean drawn for the episode, a daily wave and
    autocorrelated weather. The reward is the mean over rooms of minus the cost of a step in EUR:
    energy at the tariff of the hour, and 0.2 EUR per hour and K^2 that the temperature reached is
    outside the comfort band. It pays to heat ahead at night and to let go before people leave.
    With `gradients=True` rewards and observations carry one; both are smooth.

    The numbers are typical magnitudes chosen by us, not those of a building: the capacity is that
    of the class "medium" of ISO 13790 (2008), ventilation takes 0.34 Wh / (m^3 K). Mean returns
    (1,000 episodes, their standard deviation after it): random actions -67.8 +- 31.5; `hysteresis`,
    the controller that buildings have, -7.90 +- 3.42 (a clock that sets its day from 3:00 on would
    make it -7.59); `thermostat`, a predictive rule tuned by hand, -7.27 +- 3.47. The spreads are
    those of the weather. A building of few rooms is mostly outer walls and stays cold on cold
    days with every heater at full power: `thermostat` has -316 with 1 room, -126 with 2, -68 with
    4, -20 with 9 and -12 with 12.

    Args:
        num_envs: B.
        max_episode_steps: the time limit; nothing else ends an episode.
        n: number of rooms.
        stages: of each heater, evenly spaced from off to 1.2 kW; the action space is
            `MultiBinary(n)` for two, else `MultiDiscrete`.
        per_room: the same observation in n equal parts, each the room's temperature and what is
            common to all: for `shared_factors`, the same weights for every room.
        kwargs: of `TorchEnv`.

    Raises:
        ValueError: for no room or fewer than two stages.
    """

    differentiable = True
    min_episode_steps = 192

    def __init__(
        self,
        num_envs: int,
        max_episode_steps: int | None = 192,
        *,
        n: int = 24,
        stages: int = 2,
        per_room: bool = False,
        **kwargs: Any,
    ) -> None:
        for name, value, least in (("n", n, 1), ("stages", stages, 2)):
            if value < least:
                raise ValueError(f"{name} {value!r} of Thermostats must be at least {least}")
        self.n, self.stages, self.per_room = n, stages, per_room
        self.columns = min(n, ceil(sqrt(1.5 * n)))
        self.powers = tuple(np.linspace(0.0, HEATER_W, stages).tolist())
        high = [np.inf] + [1.0] * 6  # of what is common
        low = [-np.inf] + [-1.0] * 2 + [0.0] * 4
        if per_room:
            high, low = [np.inf, *high] * n, [-np.inf, *low] * n
        else:
            high, low = [np.inf] * n + high, [-np.inf] * n + low
        super().__init__(
            num_envs,
            spaces.Box(np.array(low, np.float32), np.array(high, np.float32), dtype=np.float32),
            spaces.MultiBinary(n) if stages == 2 else spaces.MultiDiscrete([stages] * n),
            max_episode_steps,
            **kwargs,
        )

    def to(self, device: torch.device | str) -> Self:
        """Move everything to a device; see `TorchEnv.to`."""
        walls = torch.zeros(self.n, self.n, dtype=self.dtype)
        for room in range(self.n):
            beside = room + 1 if (room + 1) % self.columns else self.n
            for other in (beside, room + self.columns):
                if other < self.n:
                    walls[room, other] = walls[other, room] = WALL_W_PER_K
        outer = VENTILATION_W_PER_K + FACADE_W_PER_K * (4 - (walls > 0).sum(-1))
        self.outer_W_per_K = outer.to(device, self.dtype)
        self.losses_W_per_K = ((walls.sum(-1) + outer).diag() - walls).to(device, self.dtype)
        return super().to(device)

    def initial(self) -> State:
        """Return rooms from 15 to 21 C, 2 K apart at most, at any quarter of an hour."""
        mean, level, weather = self.uniform(3).unbind(-1)
        rooms = self.uniform(self.n)
        low, high = OUTDOOR_C
        return {
            "temperature": 15 + 4 * level.unsqueeze(-1) + 2 * rooms,
            "power": torch.zeros_like(rooms),
            "mean": low + (high - low) * mean,
            "weather": WEATHER_K * sqrt(12) * (weather - 0.5),
            "quarter": self.integers(STEPS_PER_DAY),
        }

    def transition(self, state: State, action: Tensor) -> tuple[State, Tensor, Tensor]:
        """Return the states 15 minutes later, rewards, and False for every termination."""
        quarter = state["quarter"]
        power = self.choose(action, self.constant(self.powers))
        temperature = self.heat(state["temperature"], self.outdoor(state), power)
        people = self.constant(OCCUPIED)[quarter].unsqueeze(-1)
        low, high = (a + (b - a) * people for a, b in zip(EMPTY_C, COMFORT_C, strict=True))
        outside = (low - temperature).relu() + (temperature - high).relu()
        energy_kWh = power / 1000 / STEPS_PER_HOUR
        cost = self.constant(PRICE_EUR_PER_KWH)[quarter].unsqueeze(-1) * energy_kWh
        cost = cost + DISCOMFORT_EUR_PER_K2_HOUR / STEPS_PER_HOUR * outside.square()
        shock = WEATHER_K * sqrt(12 * (1 - WEATHER_MEMORY**2)) * (self.uniform() - 0.5)
        following = {
            "temperature": temperature,
            "power": power,
            "mean": state["mean"],
            "weather": WEATHER_MEMORY * state["weather"] + shock,
            "quarter": (quarter + 1) % STEPS_PER_DAY,
        }
        never = torch.zeros(self.num_envs, dtype=torch.bool, device=self.device)
        return following, -cost.mean(-1), never

    def heat(self, temperature: Tensor, outdoor: Tensor, power: Tensor) -> Tensor:
        """Return the rooms' temperatures 15 minutes later, in C, `[B, n]`.

        Args:
            temperature: of the rooms in C, `[B, n]`.
            outdoor: in C, `[B]`.
            power: of the heaters in W, `[B, n]`.
        """
        # C dT/dt = P - G (T - T_out) - sum_j W_j (T - T_j); 15 minutes are short (Euler's method).
        gain = outdoor.unsqueeze(-1) * self.outer_W_per_K - temperature @ self.losses_W_per_K
        return temperature + SECONDS_PER_STEP / CAPACITY_J_PER_K * (gain + power)

    def outdoor(self, state: State) -> Tensor:
        """Return the outdoor temperatures in C, `[B]`."""
        wave = (2 * pi / STEPS_PER_DAY * (state["quarter"] - 15 * STEPS_PER_HOUR)).cos()
        return state["mean"] + SWING_K * wave + state["weather"]

    def observe(self, state: State) -> Tensor:
        """Return what is known, `[B, n + 7]`; with `per_room` `[B, n * 8]`, room by room.

        Temperatures of the rooms (0 is 20 C, 1 is 25 C) and outdoors (0 is 0 C, 1 is 10 C), sine
        and cosine of the time of day, and the price (1 by day) and whether there are people, now
        and in an hour.
        """
        quarter = state["quarter"]
        turn = 2 * pi / STEPS_PER_DAY * quarter
        ahead = (quarter + STEPS_PER_HOUR) % STEPS_PER_DAY
        price = self.constant(PRICE_EUR_PER_KWH) / max(PRICE_EUR_PER_KWH)
        people = self.constant(OCCUPIED)
        known = [price[quarter], people[quarter], price[ahead], people[ahead]]
        shared = torch.stack([self.outdoor(state) / 10, turn.sin(), turn.cos(), *known], -1)
        rooms = (state["temperature"] - 20) / 5
        if self.per_room:
            common = shared.unsqueeze(1).expand(-1, self.n, -1)
            return torch.cat([rooms.unsqueeze(-1), common], -1).flatten(1).float()
        return torch.cat([rooms, shared], -1).float()

    def read(self, obs: Tensor) -> tuple[Tensor, Tensor]:
        """Return the rooms' temperatures in C, `[B, n]`, and what is common to all, `[B, 7]`."""
        if self.per_room:
            parts = obs.unflatten(-1, (self.n, -1))
            return 20 + 5 * parts[..., 0], parts[:, 0, 1:]
        return 20 + 5 * obs[:, : self.n], obs[:, self.n :]

    def frame(self, state: State) -> NDArray[np.uint8]:
        """Return the house under its sky: the rooms' temperatures, people, heaters that are on."""
        quarter, outdoor = int(state["quarter"]), float(self.outdoor(state))
        light = max(0.0, -cos(2 * pi * quarter / STEPS_PER_DAY))
        rows = ceil(self.n / self.columns)
        pixels = min(560 // self.columns, 360 // (rows + 1))
        board = Board(rows + 1, self.columns, _mix("#1b264f", "#b0dbf5", light), pixels, 0.15)
        turn = pi * ((quarter / STEPS_PER_HOUR - 6) % 12) / 12  # from east to west in 12 hours
        place = (self.columns * (1 - cos(turn)) / 2, 0.5 - 0.4 * sin(turn))
        board.disc((0, 0), place, 0.12, "#ffd54a" if 24 <= quarter < 72 else "#e8ecf5")
        clock = f"{quarter // STEPS_PER_HOUR:02d}:{quarter % STEPS_PER_HOUR * 15:02d}"
        text = f"{clock}   {outdoor:.0f} C   {PRICE_EUR_PER_KWH[quarter]:.2f} EUR/kWh"
        ink = INK if light > 0.4 else PAPER
        board.write((0, 0), (self.columns / 2, 0.65), text, min(0.26, 0.08 * self.columns), ink)
        rooms = zip(state["temperature"][0].tolist(), state["power"][0].tolist(), strict=True)
        for room, (degrees, power) in enumerate(rooms):
            tile, warmth = (1 + room // self.columns, room % self.columns), (degrees - 22) / 6
            color = _mix("#faf0d7", RED if warmth > 0 else BLUE, min(abs(warmth), 1.0))
            board.box(tile, (0.0, 0.0), (1.0, 1.0), "#8a6f5c")
            board.box(tile, (0.06, 0.06), (0.94, 0.94), color)
            board.write(tile, (0.5, 0.3), f"{degrees:.1f}", 0.26, INK)
            board.box(tile, (0.3, 0.72), (0.94, 0.9), PAPER, 0.04, GREY)
            if power:
                board.box(tile, (0.3, 0.72), (0.3 + 0.64 * power / HEATER_W, 0.9), "#ee6c2c", 0.04)
            if OCCUPIED[quarter]:
                board.disc(tile, (0.18, 0.6), 0.07, "#4b3b6b")
                board.box(tile, (0.1, 0.67), (0.26, 0.94), "#4b3b6b", 0.06)
        return board.picture()


def _mix(one: str, other: str, share: float) -> str:
    """Return the web colour between two."""
    parts = [(int(one[i : i + 2], 16), int(other[i : i + 2], 16)) for i in (1, 3, 5)]
    return "#" + "".join(f"{round(a + (b - a) * share):02x}" for a, b in parts)


def hysteresis(env: Thermostats, obs: Tensor) -> Tensor:
    """Return the action `[B, n]` of the controller that buildings have: a dead band in each room.

    A heater goes on below the band around the set point, off above it, and stays as it is within.
    The set point is one with people in the building and a lower one without. What it looks at
    besides the observations is the power of its heaters.
    """
    temperature, common = env.read(obs)
    target = NOBODY_C + (PEOPLE_C - NOBODY_C) * common[:, 4:5]
    missing = target - temperature
    on = torch.where(missing.abs() < BAND_K / 2, env.state["power"] > 0, missing > 0)
    return on.long() * (env.stages - 1)


def thermostat(env: Thermostats, obs: Tensor) -> Tensor:
    """Return the action `[B, n]` of a rule that needs no learning, by the observations alone.

    A thermostat in each room follows a set point: it climbs through the night, so that what must be
    heated by the morning is bought at the night tariff, is held while there are people, and falls
    back before they leave. A heater runs at the stage nearest to `GAIN_PER_K` of full power
    per K that is missing.
    """
    temperature, common = env.read(obs)
    sin, cos = common[:, 1:3].unbind(-1)
    hour = torch.atan2(sin, cos) * 12 / pi
    climb = READY_C - RAMP_K_PER_HOUR * (READY_HOUR - hour).remainder(24)
    holds = (hour - READY_HOUR).remainder(24) < LET_GO_HOUR - READY_HOUR
    target = torch.where(holds, HELD_C, climb.clamp(min=EMPTY_C[0]))
    stage = GAIN_PER_K * (target.unsqueeze(-1) - temperature) * (env.stages - 1)
    return stage.round().clamp(0, env.stages - 1).long()
