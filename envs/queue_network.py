"""QueueNetwork: servers of a queueing network choose which queue to work on, and jobs cost."""

from difflib import get_close_matches
from typing import Any, Self

import numpy as np
import torch
from gymnasium import spaces
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from rl_gumbel.envs.base import State, TorchEnv
from rl_gumbel.envs.queue_picture import draw_network
from rl_gumbel.envs.queue_systems import SYSTEMS, Network


class QueueNetwork(TorchEnv):
    """Event by event, every server chooses one of its queues; each job costs while it waits.

    A step is an event, an arrival or a service. Times between arrivals and service times are
    exponential, so the queues are a continuous-time Markov chain, and a step draws the next event
    (in proportion to the rates of all events) and the time until then (exponential at their sum).
    Service is preemptive: a job that loses its server goes on later where it was. Servers that
    choose the same class add their rates, even on a single job. A server that chooses an empty
    class idles; the masks forbid that, and idling, wherever the server has jobs to serve.

    The systems are those of QGym (arXiv 2410.06170) and PATHWISE (arXiv 2409.03740). In QGym one
    server works on a job. That we add rates on a single job makes a difference under c mu on the
    N-model: server 1 leaves class 1, whose queue grows, also for the last job of class 2 (see
    `benchmarks/queues.py`).

    A factor is a server, its categories are the classes that it serves, in order, and then `idle`.
    The figure of merit is the holding cost in a unit of time, `average_cost`. The reward of a step
    is minus the expected cost until its event (given queues and action: without the noise of that
    time), times `event_rate` of the network over the sum of its holding costs. In the long run it
    averages to minus the average cost divided by that sum, so to minus a mean queue.

    With `gradients=True` the choice of the event is straight through: the event is drawn exactly,
    and its one-hot carries the gradient of its probabilities. These are rates over their sum, which
    is never below the arrival rate, so no derivative by an action exceeds the largest service rate
    divided by that. (A softmax over times `work / rate` has no such bound: an unchosen class has
    the rate 0.) Rates are linear in a one-hot action and in min(queue, 1), whose slope at 1 says
    that with one job fewer the server would have none; without it, the effect of a job too many
    never fades. The gradient of the reward is exact. Compared to the exact gradient of the expected
    cost of 32 events of `criss-cross`, by straight-through actions, from queues (2, 2, 2) and
    (6, 3, 6), the mean gradient is 1.14 and 0.81 times as long, cosine 0.996 and 1.000 (without
    that slope 3.2 and 1.6 times, cosine 0.993 and 0.997).

    Args:
        num_envs: B.
        max_episode_steps: events of an episode, which starts with empty queues.
        system: a name in `SYSTEMS`, or a network of your own.
        spread: 0, or all times are hyper-exponential: exponential with mean 1 + spread or
            1 - spread, with equal probability, times 1 / rate, hence a squared coefficient of
            variation of 1 + 2 spread^2 (QGym: 0.8). Which of both is not observed.
        kwargs: of `TorchEnv`; time and cost in the state are float64 whatever the dtype.

    Raises:
        ValueError: for an unknown system, or a spread below 0 or from 1 on.
    """

    differentiable = True
    min_episode_steps = 20_000

    def __init__(
        self,
        num_envs: int,
        max_episode_steps: int | None = 20_000,
        *,
        system: str | Network = "criss-cross",
        spread: float = 0.0,
        **kwargs: Any,
    ) -> None:
        known = isinstance(system, Network) or (isinstance(system, str) and system in SYSTEMS)
        if not known:
            nearest = get_close_matches(str(system), SYSTEMS, n=1)
            hint = f"; did you mean {nearest[0]}?" if nearest else ""
            raise ValueError(
                f"system {system!r} of QueueNetwork must be one of {list(SYSTEMS)} "
                f"or a Network{hint}"
            )
        if not 0 <= spread < 1:
            raise ValueError(f"spread {spread} of QueueNetwork must be at least 0 and below 1")
        self.network = system if isinstance(system, Network) else SYSTEMS[system]
        self.spread = spread
        super().__init__(
            num_envs,
            spaces.Box(0, np.inf, (len(self.network.successors),), np.float32),
            spaces.MultiDiscrete([len(classes) + 1 for classes in self.network.choices]),
            max_episode_steps,
            **kwargs,
        )

    def to(self, device: torch.device | str) -> Self:
        """Move everything to a device; see `TorchEnv.to`."""
        network, size = self.network, len(self.network.successors)
        shape = self.layout.num_factors, self.layout.num_categories
        service = torch.zeros(*shape, size, dtype=torch.float64)
        idle = torch.zeros(shape, dtype=torch.bool)
        chosen = torch.full(shape, size)  # the class of a choice that has none: one more, empty
        for server, classes in enumerate(network.choices):
            idle[server, len(classes)] = True
            for choice, job in enumerate(classes):
                service[server, choice, job] = network.service_rates[server][job]
                chosen[server, choice] = job
        change = torch.cat([-torch.eye(size), torch.eye(size)[list(network.streams)]])
        for job, successor in enumerate(network.successors):
            if successor is not None:
                change[job, successor] = 1
        arrivals = [network.arrival_rates[job] for job in network.streams]
        self._service = service.flatten(0, 1).to(device, self.dtype)  # [K * N, classes]
        self._change = change.to(device, self.dtype)  # [events, classes]
        self._arrivals = torch.tensor(arrivals, dtype=self.dtype).to(device)
        self._holding = torch.tensor(network.holding_costs, dtype=self.dtype).to(device)
        self._reward_scale = network.event_rate / sum(network.holding_costs)
        self.priority = (self._service * self._holding).T  # [classes, K * N], c mu of each choice
        self._chosen, self._idle = chosen.flatten().to(device), idle.to(device)
        return super().to(device)

    def initial(self) -> State:
        """Return empty queues, `[B, classes]`, at time 0 and cost 0, `[B]`.

        `slow`, `[B, events]` bool, is there with a `spread`: what comes next takes long on average.
        """
        shape = self.num_envs, len(self._holding)
        state = {"queue": torch.zeros(shape, dtype=self.dtype, device=self.device)}
        for name in ("time", "cost"):
            state[name] = torch.zeros(self.num_envs, dtype=torch.float64, device=self.device)
        if self.spread:
            state["slow"] = self.uniform(len(self._change)) < 0.5
        return state

    def transition(self, state: State, action: Tensor) -> tuple[State, Tensor, Tensor]:
        """Return the states after the next event, rewards, and False for every termination."""
        if not action.is_floating_point():
            action = self.layout.index_to_one_hot(action).to(self.dtype)
        queue = state["queue"]
        service = (action.flatten(1) @ self._service) * queue.clamp(max=1)  # no jobs, no service
        # The last event is an arrival and always possible: some event follows every draw below.
        rates = torch.cat([service, self._arrivals.expand(self.num_envs, -1)], 1)
        if self.spread:
            rates = rates / (1 + self.spread * (2 * state["slow"].to(self.dtype) - 1))
        sums = rates.cumsum(1)
        total, (place, wait) = sums[:, -1:], self.uniform(2, 1).unbind(1)
        # Sums of impossible events may differ by rounding from those before, on some devices.
        follows = (sums > place * total) & (rates > 0)
        happens = follows & (follows.cumsum(1) == 1)
        event = happens.to(self.dtype)
        if rates.requires_grad:
            probs = rates / total
            event = event + (probs - probs.detach())  # straight through: adds zero
        cost_rate = queue @ self._holding
        reward = -self._reward_scale * cost_rate / total.squeeze(1)
        with torch.no_grad():  # time and cost are kept, and decide nothing
            elapsed = (-wait).log1p().neg() / total
            elapsed = elapsed.squeeze(1).double()
            following = {
                "time": state["time"] + elapsed,
                "cost": state["cost"] + cost_rate * elapsed,
            }
        following["queue"] = queue + event @ self._change
        if self.spread:
            following["slow"] = torch.where(happens, self.uniform(1) < 0.5, state["slow"])
        return following, reward, torch.zeros_like(reward, dtype=torch.bool)

    def observe(self, state: State) -> Tensor:
        """Return log(1 + queue), `[B, classes]`: small also where a bad policy lets queues grow."""
        return state["queue"].log1p().float()

    def legal(self, state: State) -> Tensor:
        """Return the choices that have jobs, and `idle` where none has, `[B, K, N]` bool."""
        has_jobs = F.pad(state["queue"] > 0, (0, 1)).index_select(1, self._chosen)
        has_jobs = has_jobs.view(-1, *self._idle.shape)
        return has_jobs | (self._idle & ~has_jobs.any(-1, keepdim=True))

    def frame(self, state: State) -> NDArray[np.uint8]:
        """Return the queues along the ways of the jobs, each beside its server."""
        time, cost = float(state["time"]), float(state["cost"])
        return draw_network(self.network, state["queue"][0].tolist(), time, cost)
