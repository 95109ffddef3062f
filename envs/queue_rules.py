"""Rules for queueing networks that need no learning, and the average cost of any policy."""

import torch
from torch import Tensor

from rl_gumbel.envs.base import Act
from rl_gumbel.envs.queue_network import QueueNetwork


def c_mu(env: QueueNetwork, obs: Tensor, mask: Tensor) -> Tensor:
    """Return the categories `[B, K]` of the largest c mu: holding cost times service rate.

    A tie goes to the first class of the server.
    """
    return _largest(env, torch.ones_like(obs), mask)


def max_weight(env: QueueNetwork, obs: Tensor, mask: Tensor) -> Tensor:
    """Return the categories `[B, K]` of the largest c mu q, q the length of the queue.

    A tie goes to the first class of the server. QGym's MaxWeight; its MaxPressure subtracts the
    queue that the job joins next.
    """
    return _largest(env, obs.expm1().round(), mask)  # observed is log(1 + q)


def last_buffer_first(env: QueueNetwork, obs: Tensor, mask: Tensor) -> Tensor:
    """Return the categories `[B, K]` of the jobs with the fewest services to go: LBFS.

    A tie goes to the first class of the server. The buffer priority that Lu and Kumar (1991,
    "Distributed scheduling based on due dates and buffer priorities") show to be stable on
    re-entrant lines; whatever holding costs and rates are.
    """
    network = env.network
    scores = torch.full(mask.shape[1:], -torch.finfo(torch.float32).max)  # of idling
    for server, classes in enumerate(network.choices):
        for choice, job in enumerate(classes):
            scores[server, choice] = -len(network.route(job))
    return scores.to(mask.device).expand(mask.shape).masked_fill(~mask, -torch.inf).argmax(-1)


def average_cost(env: QueueNetwork, act: Act, num_events: int) -> Tensor:
    """Return the holding costs in a unit of time of B runs from empty queues, `[B]` float64.

    Draws from the environment's random stream, and leaves its episodes alone.

    Args:
        env: the network.
        act: observations `[B, classes]` and masks `[B, K, N]` to categories `[B, K]`, for example
            `functools.partial(c_mu, env)`.
        num_events: of each run, arrivals and services.
    """
    with torch.no_grad():
        state = env.initial()
        for _ in range(num_events):
            index = act(env.observe(state), env.legal(state))
            state, _, _ = env.transition(state, index)
    return state["cost"] / state["time"]


def _largest(env: QueueNetwork, weight: Tensor, mask: Tensor) -> Tensor:
    """Return the legal choices of the largest holding cost times rate times weight."""
    scores = weight.to(env.dtype) @ env.priority
    return scores.view(mask.shape).masked_fill(~mask, -1.0).argmax(-1)
