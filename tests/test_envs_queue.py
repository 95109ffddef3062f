"""QueueNetwork: closed forms, a second simulation, exact dynamic programming; its gradient."""

import math
from dataclasses import replace
from functools import partial
from itertools import product

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy.sparse import lil_matrix
from scipy.sparse.linalg import spsolve
from torch import Tensor

from rl_gumbel.envs.base import State
from rl_gumbel.envs.queue_network import QueueNetwork
from rl_gumbel.envs.queue_rules import average_cost, c_mu, last_buffer_first, max_weight
from rl_gumbel.envs.queue_systems import SYSTEMS, Network, make_reentrant
from rl_gumbel.estimators import ESTIMATORS
from rl_gumbel.vec_env import make_vec

SINGLE = Network((0.5,), ((1.0,),), (None,), (1.0,))
"""An M/M/1 queue with a load of one half."""
SOME = ["criss-cross", "n-model", "reentrant-1-2", "reentrant-2-3"]
every_system = pytest.mark.parametrize("system", list(SYSTEMS))
some_systems = pytest.mark.parametrize("system", SOME)


def make(system: str | Network, num_envs: int, queue: list[float], **kwargs) -> QueueNetwork:
    """Return an environment, reset with seed 0, whose queues have been set."""
    env = QueueNetwork(num_envs, None, system=system, **kwargs)
    env.reset(seed=0)
    env.state["queue"] = torch.tensor([queue] * num_envs, dtype=env.dtype)
    return env


def set_random_states(env: QueueNetwork, seed: int = 0, high: int = 4) -> Tensor:
    """Give the environments random queues, many of them empty, and return random one-hots."""
    generator = torch.Generator().manual_seed(seed)
    shape = env.state["queue"].shape
    env.state["queue"] = torch.randint(high, shape, generator=generator).to(env.dtype)
    chance = torch.rand(env.num_envs, *env.layout.valid.shape, generator=generator)
    index = chance.masked_fill(~env.layout.valid, -1.0).argmax(-1)
    return env.layout.index_to_one_hot(index).to(env.dtype)


def assert_near(values: Tensor, expected: float, errors: float = 4.0) -> None:
    """Assert that the mean of independent values is at most so many standard errors off."""
    error = values.std() / len(values) ** 0.5
    assert error < 0.02 * expected, "too few values to tell"
    assert abs(values.mean() - expected) < errors * error


# --- systems ----------------------------------------------------------------------------------


@every_system
def test_every_server_is_busy_nine_tenths_of_the_time(system: str) -> None:
    """In all published systems but the N-model, whose two servers can share the load."""
    network = SYSTEMS[system]
    flow = np.zeros(len(network.successors))
    for stream in network.streams:
        flow[network.route(stream)] += network.arrival_rates[stream]
    rates = np.array(network.service_rates)
    loads = np.divide(flow, rates, out=np.zeros_like(rates), where=rates > 0).sum(-1)
    expected = [0.38 + 1.235 / 0.5, 1.235] if system == "n-model" else 0.9
    assert loads == pytest.approx(expected)
    assert set(network.holding_costs) == ({1.0, 3.0} if system == "n-model" else {1.0})


def test_reentrant_networks_by_hand() -> None:
    two, one = make_reentrant(2, 3), make_reentrant(1, 3)
    assert two.route(0) == [0, 3, 6, 1, 4, 7, 2, 5, 8]
    assert one.route(0) == [0, 3, 6, 1, 4, 7]
    assert one.route(2) == [2, 5, 8]
    assert two.arrival_rates == (9 / 140, *[0] * 8)
    assert one.arrival_rates == (9 / 140, 0, 9 / 140, *[0] * 6)
    assert one.service_rates == two.service_rates
    assert one.service_rates == (
        (1 / 8, 1 / 2, 1 / 4, 0, 0, 0, 0, 0, 0),
        (0, 0, 0, 1 / 6, 1 / 7, 1, 0, 0, 0),
        (0, 0, 0, 0, 0, 0, 1 / 8, 1 / 2, 1 / 4),
    )
    assert two.event_rate == pytest.approx(9 / 140 * 10)
    assert one.event_rate == pytest.approx(9 / 140 * (7 + 4))
    assert SYSTEMS["reentrant-1-10"] == make_reentrant(1, 10)
    assert len(SYSTEMS) == 20


@every_system
def test_a_job_passes_the_classes_of_its_route_and_leaves(system: str) -> None:
    network = SYSTEMS[system]
    lonely = replace(network, arrival_rates=tuple(1e-12 * r for r in network.arrival_rates))
    for stream in network.streams:
        env = make(lonely, 1, [float(job == stream) for job in range(len(network.successors))])
        passed = []
        while env.state["queue"].any():
            assert env.state["queue"].sum() == 1
            passed.append(int(env.state["queue"].argmax()))
            env.step(c_mu(env, env.observe(env.state), env.legal(env.state)))
        assert passed == network.route(stream)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"holding_costs": (1.0,)}, r"\(1.0,\) of a network of 2 classes must have 2 entries"),
        ({"arrival_rates": (-1.0, 2.0)}, r"\(-1.0, 2.0\) of a network must be finite, at least 0"),
        ({"arrival_rates": (0.0, 0.0)}, "must be finite, at least 0, and not all 0"),
        ({"arrival_rates": (1.0, math.nan)}, r"\(1.0, nan\) of a network must be finite"),
        ({"holding_costs": (math.inf, 1.0)}, r"\(inf, 1.0\) of a network must be finite"),
        ({"service_rates": ((2.0, math.inf),)}, r"\(2.0, inf\) of a network must be finite"),
        ({"service_rates": ()}, "0 servers of a network must be at least 1"),
        ({"arrival_rates": ()}, "0 classes of a network must be at least 1"),
        (
            {"successors": (5, None)},
            "successor 5 of class 0 of a network must be None or .*, 0 to 1",
        ),
        ({"successors": (1, -1)}, "successor -1 of class 1 of a network must be None or a class"),
        ({"service_rates": ((1.0, 0.0),)}, "class 1 of a network must have a server"),
        ({"successors": (1, 0)}, "a job of class 0 of a network must leave in the end"),
    ],
)
def test_networks_that_cannot_work_are_refused(change: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message) as error:
        replace(Network((1.0, 0.0), ((2.0, 2.0),), (1, None), (1.0, 1.0)), **change)
    assert "\n" not in str(error.value)


def test_unknown_systems_and_spreads_are_refused() -> None:
    with pytest.raises(ValueError, match=r"system 'ring' of QueueNetwork must be one of .*n-model"):
        QueueNetwork(1, system="ring")
    with pytest.raises(ValueError, match="system 3 of QueueNetwork must be one of"):
        QueueNetwork(1, system=3)
    for system, meant in (("criss_cross", "criss-cross"), (["n-model"], "n-model")):
        with pytest.raises(ValueError, match=rf"of QueueNetwork .*; did you mean {meant}\?$"):
            QueueNetwork(1, system=system)
    for spread in (-0.1, 1.0):
        with pytest.raises(ValueError, match=f"spread {spread} of QueueNetwork must be at least"):
            QueueNetwork(1, spread=spread)


def test_the_id_takes_a_system() -> None:
    env = make_vec("QueueNetwork-v0", 2, "cpu", system="n-model")
    assert env.max_episode_steps == 20_000
    assert env.action_space.nvec.tolist() == [3, 2]
    assert make_vec("QueueNetwork-v0", 2, "cpu").action_space.nvec.tolist() == [3, 2]
    assert env.observation_space.shape == (2,)


# --- the simulation ---------------------------------------------------------------------------


def simulate(
    network: Network, spread: float, index: NDArray[np.int64], draws: list[NDArray[np.float64]]
) -> list[tuple[list[int], float, float]]:
    """Return queues, time and cost after each event of one run, in plain Python.

    Args:
        network: the system.
        spread: of the hyper-exponential times.
        index: categories of each event, `[T, K]`.
        draws: which event, how long, and (with a spread) how slow the next one of its kind, `[T]`
            each; last, `[events]`, how slow the first ones.
    """
    size = len(network.successors)
    events = [("service", job) for job in range(size)]
    events += [("arrival", job) for job in network.streams]
    slow = [draw < 0.5 for draw in draws[-1]]
    queue, time, cost, rows = [0] * size, 0.0, 0.0, []
    for t, choices in enumerate(index):
        rates = [network.arrival_rates[job] if kind == "arrival" else 0.0 for kind, job in events]
        for server, choice in enumerate(choices):
            classes = [job for job in range(size) if network.service_rates[server][job] > 0]
            if choice < len(classes) and queue[classes[choice]] > 0:
                rates[classes[choice]] += network.service_rates[server][classes[choice]]
        for number in range(len(events) if spread else 0):
            rates[number] /= 1 + spread if slow[number] else 1 - spread
        wait = -np.log(1 - draws[1][t]) / sum(rates)
        cost += wait * sum(c * q for c, q in zip(network.holding_costs, queue, strict=True))
        time += wait
        left = draws[0][t] * sum(rates)
        happened = next(n for n in range(len(events)) if (left := left - rates[n]) < 0)
        kind, job = events[happened]
        if kind == "arrival":
            queue[job] += 1
        else:
            queue[job] -= 1
            if network.successors[job] is not None:
                queue[network.successors[job]] += 1
        slow[happened] = bool(spread) and draws[2][t] < 0.5
        rows.append((list(queue), time, cost))
    return rows


@pytest.mark.parametrize("spread", [0.0, 0.8])
@some_systems
def test_runs_equal_those_of_a_second_simulation(system: str, spread: float) -> None:
    """Random actions, also illegal ones: a server sent to an empty class idles."""
    num_envs, steps = 3, 300
    env = QueueNetwork(num_envs, None, system=system, spread=spread, dtype=torch.float64)
    env.reset(seed=1)
    env.generator.manual_seed(2)
    state = env.initial()
    sizes, rng = env.layout.sizes, np.random.default_rng(0)
    index = rng.integers([[sizes]], size=(steps, num_envs, len(sizes)))
    states = []
    for chosen in index:
        state, _, _ = env.transition(state, torch.from_numpy(chosen))
        states.append(state)
    draws = torch.Generator().manual_seed(2)
    num_events = len(env.network.successors) + len(env.network.streams)
    first = torch.ones(num_events, num_envs, dtype=torch.float64)
    parts = [2, 1] if spread else [2]
    if spread:
        first = torch.rand(num_events, num_envs, dtype=torch.float64, generator=draws)
    later = torch.stack([
        torch.cat([torch.rand(n, num_envs, dtype=torch.float64, generator=draws) for n in parts])
        for _ in range(steps)
    ]).numpy()  # fmt: skip
    visited = 0
    for b in range(num_envs):
        columns = [later[:, n, b] for n in range(later.shape[1])]
        expected = simulate(env.network, spread, index[:, b], [*columns, first[:, b].numpy()])
        for got, (queue, time, cost) in zip(states, expected, strict=True):
            assert got["queue"][b].tolist() == queue
            assert got["time"][b].item() == pytest.approx(time, rel=1e-9)
            assert got["cost"][b].item() == pytest.approx(cost, rel=1e-9)
            visited += queue[-1] > 0
    assert visited > 50


def test_the_reward_is_the_scaled_expected_cost_until_the_event() -> None:
    """N-model, both servers on class 2: 2 + 3 * 3 = 11, events at .38 + 1.235 + 1.5 a unit."""
    env = make("n-model", 4, [2.0, 3.0], dtype=torch.float64)
    step = env.step(torch.tensor([[1, 0]] * 4))
    event_rate = 2 * (0.38 + 1.235)  # each job comes and goes
    assert step.reward.tolist() == pytest.approx([-11 / 3.115 * event_rate / 4] * 4)
    assert (env.state["cost"] / env.state["time"]).tolist() == pytest.approx([11] * 4)
    assert not step.terminated.any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_time_and_cost_are_kept_in_double_precision(dtype: torch.dtype) -> None:
    env = QueueNetwork(2, dtype=dtype, spread=0.5)
    env.reset(seed=0)
    expected = {"queue": dtype, "time": torch.float64, "cost": torch.float64, "slow": torch.bool}
    assert {name: value.dtype for name, value in env.state.items()} == expected
    env.step(torch.tensor([[0, 0], [0, 0]]))
    assert {name: value.dtype for name, value in env.state.items()} == expected


def test_hyperexponential_times_run_on_meta() -> None:
    env = QueueNetwork(2, system="reentrant-2-2", spread=0.8, gradients=True, device="meta")
    env.reset(seed=0)
    one_hot = torch.ones(2, 2, 4, device="meta", requires_grad=True)
    for _ in range(3):
        step = env.step(one_hot)
    assert step.reward.requires_grad
    assert average_cost(env, partial(max_weight, env), 2).is_meta


# --- closed forms and exact solutions -------------------------------------------------------------


def test_m_m_1_has_its_mean_queue() -> None:
    """rho / (1 - rho) = 1, and the mean reward is minus that."""
    env = make(SINGLE, 1000, [0.0])
    for _ in range(2000):
        step = env.step(c_mu(env, env.observe(env.state), env.action_mask))
    assert_near(env.state["cost"] / env.state["time"], 1.0)
    assert_near(-step.episode_return / 2000, 1.0)


def mean_queues(env: QueueNetwork, num_events: int) -> Tensor:
    """Return mean queues over time of each run under c mu, `[B, classes]`."""
    state, area = env.initial(), 0.0
    for _ in range(num_events):
        before = state
        state, _, _ = env.transition(state, c_mu(env, env.observe(state), env.legal(state)))
        area = area + before["queue"] * (state["time"] - before["time"])[:, None]
    return area / state["time"][:, None]


def test_c_mu_gives_the_queues_of_preemptive_priority() -> None:
    """Two classes, one server: the first does not notice the second."""
    arrivals, rates = (0.4, 0.3), (2.0, 0.8)
    env = make(Network(arrivals, (rates,), (None, None), (1.0, 1.0)), 1000, [0.0, 0.0])
    high, low = mean_queues(env, 3000).unbind(-1)
    load = [a / r for a, r in zip(arrivals, rates, strict=True)]
    assert_near(high, load[0] / (1 - load[0]))
    # T_2 = ((1 - rho) / mu_2 + sum lambda_i / mu_i^2) / ((1 - rho_1) (1 - rho)): time in the system
    free = 1 - sum(load)
    residual = sum(a / r**2 for a, r in zip(arrivals, rates, strict=True))
    assert_near(low, arrivals[1] * (free / rates[1] + residual) / ((1 - load[0]) * free))


def test_criss_cross_has_the_cost_of_its_stationary_distribution() -> None:
    """Under c mu, which serves class 1 first; a third of the arrivals, 13 jobs at most."""
    arrival, size = 0.3, 14
    flow = lil_matrix((size**3, size**3))

    def number(*queue: int) -> int:
        return (queue[0] * size + queue[1]) * size + queue[2]

    for a, b, c in product(range(size), repeat=3):
        moves = [(arrival, (a + 1, b, c)), (arrival, (a, b, c + 1)), (1.0, (a, b - 1, c))]
        moves.append((2.0, (a - 1, b + 1, c)) if a else (2.0, (a, b, c - 1)))
        for rate, to in moves:
            if all(0 <= length < size for length in to):
                flow[number(*to), number(a, b, c)] += rate
                flow[number(a, b, c), number(a, b, c)] -= rate
    flow[0] = 1  # probabilities add up to 1
    probs = spsolve(flow.tocsc(), np.eye(size**3, 1).ravel())
    cost = probs @ [a + b + c for a, b, c in product(range(size), repeat=3)]
    thin = replace(SYSTEMS["criss-cross"], arrival_rates=(arrival, 0.0, arrival))
    env = make(thin, 1000, [0.0] * 3)
    assert_near(average_cost(env, partial(c_mu, env), 2000), cost)


def test_hyperexponential_times_have_their_moments() -> None:
    """Mean 1 / rate, squared coefficient of variation 1 + 2 spread^2; one after another unlike."""
    env = make(Network((1.0,), ((2.0,),), (None,), (1.0,)), 20_000, [1e6], spread=0.8)
    state, action = env.state, torch.zeros(env.num_envs, 1, dtype=torch.int64)
    seen: dict[int, list[Tensor]] = {-1: [], 1: []}
    for _ in range(100):
        before = state
        state, _, _ = env.transition(state, action)
        change = (state["queue"] - before["queue"]).squeeze(1)
        for sign, times in seen.items():
            times.append(torch.where(change == sign, state["time"], torch.inf))
    for sign, mean in ((-1, 0.5), (1, 1.0)):
        first, second = torch.stack(seen[sign]).sort(0).values[:2]
        assert second.isfinite().all()
        for times in (first, second - first):
            assert times.mean() == pytest.approx(mean, rel=0.05)
            assert times.var() / times.mean() ** 2 == pytest.approx(2.28, rel=0.07)
        assert abs(torch.stack([first, second - first]).corrcoef()[0, 1]) < 0.03


def test_average_cost_repeats_with_a_seed_and_leaves_the_episodes_alone() -> None:
    env = QueueNetwork(3)
    env.reset(seed=5)
    kept = env.get_state()
    first = average_cost(env, partial(max_weight, env), 50)
    assert env.state["queue"].equal(kept["queue"])
    assert env.episode_length.equal(kept["episode_length"])
    assert not average_cost(env, partial(max_weight, env), 50).equal(first)
    env.reset(seed=5)
    assert average_cost(env, partial(max_weight, env), 50).equal(first)


# --- masks and rules ------------------------------------------------------------------------------


def test_masks_keep_servers_working_by_hand() -> None:
    env = make("n-model", 4, [0.0, 0.0])
    queues = [[0.0, 0], [3, 0], [0, 1], [2, 5]]
    env.state["queue"] = torch.tensor(queues)
    no, yes = False, True
    assert env.legal(env.state).tolist() == [
        [[no, no, yes], [no, yes, no]],
        [[yes, no, no], [no, yes, no]],
        [[no, yes, no], [yes, no, no]],
        [[yes, yes, no], [yes, no, no]],
    ]


@some_systems
def test_legal_choices_work_wherever_there_is_work(system: str) -> None:
    env = QueueNetwork(64, system=system)
    env.reset(seed=0)
    set_random_states(env, high=2)
    mask, queue = env.legal(env.state), env.state["queue"]
    for k, classes in enumerate(env.network.choices):
        has_jobs = queue[:, list(classes)] > 0
        assert mask[:, k, : len(classes)].equal(has_jobs)
        assert mask[:, k, len(classes)].equal(~has_jobs.any(-1))
        assert not mask[:, k, len(classes) + 1 :].any()


def test_rules_by_hand() -> None:
    """Server 1 of the N-model: c mu is 1 for class 1 and 1.5 for class 2; the criss-cross ties."""
    env = make("n-model", 4, [0.0, 0.0])
    state = {"queue": torch.tensor([[4.0, 2], [3, 2], [5, 0], [0, 0]])}
    assert choose(env, c_mu, state) == [[1, 0], [1, 0], [0, 1], [2, 1]]
    assert choose(env, max_weight, state) == [[0, 0], [0, 0], [0, 1], [2, 1]]
    env = make("criss-cross", 3, [0.0] * 3)
    state = {"queue": torch.tensor([[2.0, 9, 3], [2, 0, 2], [0, 1, 1]])}
    assert choose(env, c_mu, state) == [[0, 0], [0, 1], [1, 0]]
    assert choose(env, max_weight, state) == [[1, 0], [0, 1], [1, 0]]


def choose(env: QueueNetwork, rule, state: State) -> list[list[int]]:
    return rule(env, env.observe(state), env.legal(state)).tolist()


def test_max_weight_reads_long_queues_exactly() -> None:
    env = make("criss-cross", 2, [0.0] * 3)
    state = {"queue": torch.tensor([[10_000.0, 0, 10_001], [10_001, 0, 10_000]])}
    assert choose(env, max_weight, state) == [[1, 1], [0, 1]]


def test_the_last_buffer_is_first_served_by_hand() -> None:
    """Class 3 of the criss-cross leaves next, class 1 has two services to go; passes of a line."""
    env = make("criss-cross", 3, [0.0] * 3)
    state = {"queue": torch.tensor([[9.0, 1, 1], [9, 0, 0], [0, 0, 1]])}
    assert choose(env, last_buffer_first, state) == [[1, 0], [0, 1], [1, 1]]
    # Family 1: the first stream leaves after two passes, with 2 services to go at station 1 of 2
    # there; the second stream, pass 3, leaves after as many: the first class of them it is.
    for name, expected in (("reentrant-2-2", [2, 2]), ("reentrant-1-2", [1, 1])):
        env = make(name, 1, [0.0] * 6)
        assert choose(env, last_buffer_first, {"queue": torch.ones(1, 6)}) == [expected]


# --- the gradient ---------------------------------------------------------------------------------


def means(env: QueueNetwork, state: State) -> Tensor:
    """Return what the times to come are multiplied by on average, `[B, events]`."""
    events = len(env.network.successors) + len(env.network.streams)
    slow = state.get("slow", torch.zeros(env.num_envs, events, dtype=torch.bool))
    return torch.where(slow, 1 + env.spread, 1 - env.spread)


def expect(network: Network, mean: Tensor, queue: Tensor, action: Tensor) -> tuple[Tensor, Tensor]:
    """Return what the gradient is that of: expected next queues `[classes]` and reward of one run.

    Written class by class, for any action `[K, N]`, one-hot or not, and any queues; `mean`
    `[events]` divides the rates, first of the services by class, then of the arrivals.
    """
    service = [torch.zeros((), dtype=torch.float64) for _ in queue]
    for server, classes in enumerate(network.choices):
        for choice, job in enumerate(classes):
            rate = network.service_rates[server][job] * action[server, choice]
            service[job] = service[job] + rate * min(queue[job], torch.ones_like(queue[job]))
    service = [rate / slow for rate, slow in zip(service, mean, strict=False)]
    arrival = dict(zip(network.streams, mean[len(queue) :], strict=True))
    arrival = {job: network.arrival_rates[job] / slow for job, slow in arrival.items()}
    total = sum(arrival.values()) + sum(service)
    following = [length + arrival.get(job, 0.0) / total for job, length in enumerate(queue)]
    for job, successor in enumerate(network.successors):
        following[job] = following[job] - service[job] / total
        if successor is not None:
            following[successor] = following[successor] + service[job] / total
    cost = sum(c * q for c, q in zip(network.holding_costs, queue, strict=True)) / total
    return torch.stack(following), -cost * network.event_rate / sum(network.holding_costs)


@pytest.mark.parametrize("spread", [0.0, 0.8])
@some_systems
def test_the_gradient_of_a_step_is_that_of_the_expected_step(system: str, spread: float) -> None:
    """Against finite differences, towards fewer jobs, and whatever event was drawn."""
    env = QueueNetwork(12, system=system, spread=spread, gradients=True, dtype=torch.float64)
    env.reset(seed=0)
    action = set_random_states(env, high=3).requires_grad_()
    queue = env.state["queue"].requires_grad_()
    weight = torch.linspace(1, 2, queue.shape[1], dtype=torch.float64)
    state, reward, _ = env.transition(env.state, action)
    mean = means(env, env.state)
    small = 1e-6
    for place, output in ((0, state["queue"] @ weight), (1, reward)):
        grads = torch.autograd.grad(output.sum(), (queue, action), retain_graph=True)
        for b in range(env.num_envs):
            inputs = queue[b].detach(), action[b].detach()

            def value(*inputs: Tensor, place: int = place, b: int = b) -> Tensor:
                following, reward = expect(env.network, mean[b], *inputs)
                return (following @ weight, reward)[place]

            for which, grad in enumerate(grads):
                for entry in range(inputs[which].numel()):
                    moved = [part.clone() for part in inputs]
                    moved[which].view(-1)[entry] -= small
                    slope = (value(*inputs) - value(*moved)) / small
                    assert grad[b].view(-1)[entry].item() == pytest.approx(
                        slope.item(), rel=1e-4, abs=1e-4
                    )


@pytest.mark.parametrize("spread", [0.0, 0.8])
@some_systems
def test_five_steps_multiply_the_jacobians_of_expected_steps(system: str, spread: float) -> None:
    """Those of `expect` where the run came by, last to first."""
    env = QueueNetwork(3, system=system, spread=spread, gradients=True, dtype=torch.float64)
    env.reset(seed=0)
    actions = [set_random_states(env, seed).requires_grad_() for seed in range(5)]
    states, rewards = [], []
    for action in actions:
        states.append(env.state)
        rewards.append(env.step(action).reward)
    weight = torch.linspace(1, 2, env.state["queue"].shape[1], dtype=torch.float64)
    total = torch.stack(rewards).double().sum() + (env.state["queue"] @ weight).sum()
    grads = torch.autograd.grad(total, actions)
    assert grads[0].any()
    for b in range(env.num_envs):
        back = weight
        for state, action, grad in reversed(list(zip(states, actions, grads, strict=True))):
            inputs = state["queue"][b].detach().requires_grad_(), action[b]
            following, reward = expect(env.network, means(env, state)[b], *inputs)
            back, expected = torch.autograd.grad(following @ back + reward, inputs)
            torch.testing.assert_close(grad[b], expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("spread", [0.0, 0.8])
@every_system
def test_the_gradient_of_a_step_is_bounded_in_every_state(system: str, spread: float) -> None:
    """By twice the largest service rate over the arrival rate, for each queue."""
    env = QueueNetwork(512, system=system, gradients=True, spread=spread)
    env.reset(seed=0)
    action = set_random_states(env).requires_grad_()
    assert (env.state["queue"] == 0).any()
    state, _, _ = env.transition(env.state, action)
    bound = 2 * max(env.network.all_service_rates) / sum(env.network.arrival_rates)
    largest = 0.0
    for length in state["queue"].sum(0):
        (grad,) = torch.autograd.grad(length, action, retain_graph=True)
        largest = max(largest, grad.abs().max().item())
    assert 0 < largest <= bound * (1 + spread) / (1 - spread)


def test_empty_queues_give_no_gradient() -> None:
    """Whatever the servers choose, only arrivals can happen."""
    env = make("reentrant-2-2", 4, [0.0] * 6, gradients=True)
    action = env.layout.index_to_one_hot(torch.zeros(4, 2, dtype=torch.int64)).requires_grad_()
    step = env.step(action)
    (grad,) = torch.autograd.grad(step.final_obs.sum() + step.reward.sum(), action)
    assert grad.eq(0).all()


def test_the_effect_of_a_job_fades_by_a_factor_at_each_service_of_a_last_job() -> None:
    """1 - 2 lambda mu / (lambda + mu)^2 = 5 / 9: it goes sooner, and the next one comes later."""
    env = make(SINGLE, 3, [2.0], gradients=True, dtype=torch.float64)
    start = env.state["queue"].requires_grad_()
    state, visits = env.state, torch.zeros(3)
    for _ in range(60):
        visits += state["queue"].detach().squeeze(1) == 1
        index = c_mu(env, env.observe(state), env.legal(state))
        state, _, _ = env.transition(state, index)
    (grad,) = torch.autograd.grad(state["queue"].sum(), start)
    assert visits.max() > 4
    torch.testing.assert_close(grad.squeeze(1), (5 / 9) ** visits.double())


@some_systems
def test_the_gradient_does_not_grow_with_the_number_of_events(system: str) -> None:
    """That of the last queues by the first ones, over random legal play."""
    env = QueueNetwork(32, system=system, gradients=True)
    env.reset(seed=0)
    set_random_states(env)
    start = env.state["queue"].requires_grad_()
    state, largest = env.state, []
    for event in range(1, 401):
        logits = torch.zeros(env.num_envs, *env.layout.valid.shape)
        sample = ESTIMATORS["straight_through"](logits, mask=env.legal(state))
        state, _, _ = env.transition(state, sample.one_hot)
        if event % 100 == 0:
            (grad,) = torch.autograd.grad(state["queue"].sum(), start, retain_graph=True)
            largest.append(grad.abs().max().item())
    assert max(largest) < 2


def logits_of(queue: Tensor, theta: Tensor) -> Tensor:
    """Return how much server 1 prefers class 1 to class 3, `[...]`, of `[..., 3]` queues."""
    return torch.cat([queue.log1p(), torch.ones_like(queue[..., :1])], -1) @ theta


def exact_cost(theta: Tensor, start: tuple[int, int, int], num_events: int) -> Tensor:
    """Return the expected sum of rewards of the criss-cross by backward induction."""
    size = max(start) + num_events + 1
    axes = [torch.arange(size, dtype=torch.float64)] * 3
    queue = torch.stack(torch.meshgrid(*axes, indexing="ij"), -1)
    one, two, three = (queue > 0).double().unbind(-1)
    first = torch.where(three > 0, logits_of(queue, theta).sigmoid(), 1.0)
    first = torch.where(one > 0, first, 0.0)
    reward = -queue.sum(-1) * 0.9 * (3 + 2) / 3
    value = torch.zeros_like(one)
    for _ in range(num_events):
        arrivals = 0.9 * value.roll(-1, 0) + 0.9 * value.roll(-1, 2)
        value_of = []
        for serves_one in (True, False):
            left = 2 * (one if serves_one else three)
            moved = value.roll((1, -1), (0, 1)) if serves_one else value.roll(1, 2)
            total = 1.8 + left + two
            value_of.append((reward + arrivals + left * moved + two * value.roll(1, 1)) / total)
        value = first * value_of[0] + (1 - first) * value_of[1]
    return value[start]


def test_the_gradient_points_where_the_exact_one_does() -> None:
    """Of the expected cost of 8 events, by the parameters of a policy that sees the queues."""
    start, num_events = (2, 2, 2), 8
    theta = torch.tensor([0.5, -0.2, -0.5, 0.1], dtype=torch.float64, requires_grad=True)
    expected = exact_cost(theta, start, num_events)
    (exact,) = torch.autograd.grad(expected, theta)
    env = make("criss-cross", 4096, list(map(float, start)), gradients=True, dtype=torch.float64)
    torch.manual_seed(0)
    state, total = env.state, torch.zeros(env.num_envs)
    for _ in range(num_events):
        preference = logits_of(state["queue"], theta)
        logits = torch.nn.functional.pad(preference[:, None, None], (0, 2, 0, 1))
        sample = ESTIMATORS["straight_through"](logits, mask=env.legal(state))
        state, reward, _ = env.transition(state, sample.one_hot)
        total = total + reward
    assert_near(-total.detach(), -expected.item())
    (grad,) = torch.autograd.grad(total.mean(), theta)
    assert torch.cosine_similarity(grad, exact, 0) > 0.99
    assert 0.7 < grad.norm() / exact.norm() < 1


# --- pictures -------------------------------------------------------------------------------------


@pytest.mark.parametrize("system", ["n-model", "reentrant-2-10"])
def test_pictures_of_wide_and_shared_systems(system: str) -> None:
    size = len(SYSTEMS[system].successors)
    env = make(system, 2, [0.0] * size)
    env.state["queue"][1, -1] = 1000.0
    empty, full = env.render(0), env.render(1)
    assert empty.shape == full.shape
    assert empty.shape[1] <= 1000
    assert (empty != full).any()
