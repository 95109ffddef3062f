"""One run of the learning benchmark: train for the budget, then measure the last model.

The same for our algorithms and for peers: 100 episodes with argmax actions and 100 with sampled
ones (for DQN: with its final epsilon), on environments that training does not use; where the
environment is a table, the exact expected return of the argmax policy instead of the former. On
`QueueNetwork-v0` `last` and `sampled` are average holding costs, so lower is better: of 100 runs
from empty queues over 20,000 events, by argmax and by sampled actions. Its episodes hardly end in
training: the `mean_return` of a curve is the average holding cost since the point before.
`seconds` are those inside `learn`, which does nothing but train; `threshold_timesteps` is the first
step at which the last 100 training episodes had a mean return of at least `threshold`.
"""

import json
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from sb3_peers import PEERS, make_continuous_vec, make_peer, read_peer_config
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.vec_env import VecEnv

from rl_gumbel.callbacks import evaluate_model, takes_masks
from rl_gumbel.cli import make_config
from rl_gumbel.cli.backends import make_evaluation_vec, make_training_vec
from rl_gumbel.cli.build import find_device, make_model
from rl_gumbel.cli.environments import MAX_EPISODE_STEPS, MAX_EVALUATION_ENVS, policy_name
from rl_gumbel.cli.parser import parse
from rl_gumbel.cli.run_directory import find_commit
from rl_gumbel.cli.training import EVALUATION_SEED
from rl_gumbel.config import TrainConfig
from rl_gumbel.envs.queue_network import QueueNetwork
from rl_gumbel.envs.queue_rules import average_cost
from rl_gumbel.envs.tabular import TabularEnv
from rl_gumbel.types import Obs
from rl_gumbel.vec_env.names import find_torch_id, make_torch_env

EPISODES = 100
"""Of an evaluation, and of the window that threshold and curve look at."""
EVENTS = 20_000
"""Of a run of a queueing network."""
CURVE_POINTS = 100
"""Of a learning curve, at most."""
OWN_COLUMN = ("actor_gradient", "estimator", "critic", "num_envs", "total_timesteps", "device")
"""Settings that stand in columns of their own."""
Row = dict[str, Any]


@dataclass(frozen=True)
class Job:
    """What to run."""

    env: str
    algo: str
    seed: int
    threshold: float | None = None
    options: tuple[str, ...] = ()
    """Of `rl-gumbel train`."""


def read_config(job: Job) -> TrainConfig:
    """Return the settings of a run; of a peer's, those of its task.

    Raises:
        ConfigError, UserError: for options that cannot be used.
    """
    words = ["train", "--env", job.env, "--seed", str(job.seed), *job.options]
    if job.algo in PEERS:
        return read_peer_config(job.algo, job.env, parse(words).overrides)
    return make_config(parse([*words, "--algo", job.algo]))


def identify(job: Job) -> Row:
    """Return what tells one run from another."""
    config = read_config(job)
    own = job.algo not in PEERS
    actor_gradient = getattr(config.algorithm, "actor_gradient", "") if own else ""
    by_score = getattr(config.algorithm, "score_function_weight", 0) == 1
    uses_estimator = own and actor_gradient in ("", "estimator") and not by_score
    return {
        "env": job.env,
        "algo": job.algo,
        "actor_gradient": actor_gradient,
        "estimator": getattr(config.algorithm, "estimator", "") if uses_estimator else "",
        "critic": getattr(config.algorithm, "critic", "") if own else "",
        "options": " ".join(list_options(job)),
        "num_envs": config.num_envs,
        "total_timesteps": config.total_timesteps,
        "seed": job.seed,
    }


def list_options(job: Job) -> Iterator[str]:
    """Yield the options that no other column holds."""
    for place, value in parse(["train", *job.options]).overrides.items():
        if place[-1] not in OWN_COLUMN:
            option = ".".join(place).replace("_", "-")
            yield f"--{option} {value if isinstance(value, str) else json.dumps(value)}"


def run_job(job: Job) -> tuple[Row, list[Row]]:
    """Return the row of one run and the rows of its learning curve."""
    model, evaluation_env, config = build(job)
    network = find_network(config)
    holding_cost = None if network is None else sum(network.network.holding_costs)
    watch = Watch(job.threshold, config.total_timesteps, holding_cost)
    start = time.perf_counter()
    model.learn(config.total_timesteps, callback=watch)
    seconds = time.perf_counter() - start
    identity = identify(job)
    row = identity | {
        **measure(model, evaluation_env, config),
        "seconds": round(seconds, 2),
        "threshold": "" if job.threshold is None else job.threshold,
        "threshold_timesteps": watch.reached or "",
        "device": torch.cuda.get_device_name() if model.device.type == "cuda" else "cpu",
        "commit": find_commit() or "",
    }
    return row, [identity | point for point in watch.curve]


def build(job: Job) -> tuple[BaseAlgorithm, VecEnv, TrainConfig]:
    """Return the model of a run, the environments that will measure it, and the settings."""
    config = read_config(job)
    torch.set_num_threads(config.threads)
    device = find_device(config.device)
    evaluation_seed = config.seed + EVALUATION_SEED
    if job.algo in PEERS and PEERS[job.algo].takes_continuous:
        evaluation_env = make_continuous_vec(config, MAX_EVALUATION_ENVS, evaluation_seed)
        env = make_continuous_vec(config, config.num_envs, config.seed)
    else:
        evaluation_env = make_evaluation_vec(config, EPISODES, evaluation_seed, device)
        env = make_training_vec(config, device)
    if job.algo in PEERS:
        model, evaluation_env = make_peer(job.algo, config, env, evaluation_env, device)
    else:
        model = make_model(config, env, str(policy_name(env.observation_space)), device)
    return model, evaluation_env, config


class Watch(BaseCallback):
    """Looks at the mean return of the last episodes of training whenever one has ended.

    Args:
        threshold: a mean return; `reached` is the first step at which it was there, or None.
        total_timesteps: of the run; `curve` has a point in each hundredth of them.
        holding_cost: of a queueing network, the sum over its classes: the curve then has average
            costs, of all environments since the point before, whether or not episodes end. The
            rewards of a network average to minus these costs over this sum.
    """

    def __init__(
        self, threshold: float | None, total_timesteps: int, holding_cost: float | None = None
    ) -> None:
        super().__init__()
        self.threshold = threshold
        self.interval = total_timesteps / CURVE_POINTS
        self.reached: int | None = None
        self.curve: list[Row] = []
        self.holding_cost = holding_cost
        self._latest: object = None
        self._hundredth = 0.0
        self._costs: list[float] = []

    def _on_training_start(self) -> None:
        self._start = time.perf_counter()

    def _on_step(self) -> bool:
        if self.holding_cost is not None:
            self._costs.append(-self.holding_cost * float(np.mean(self.locals["rewards"])))
            hundredth = self.num_timesteps // self.interval
            if hundredth > self._hundredth:
                self._note(hundredth, float(np.mean(self._costs)))
                self._costs.clear()
        else:
            self._look()
        return True

    def _on_training_end(self) -> None:
        if self.holding_cost is None:
            self._look()

    def _look(self) -> None:
        episodes = self.model.ep_info_buffer or []
        if len(episodes) < EPISODES or episodes[-1] is self._latest:
            return
        self._latest = episodes[-1]  # an episode has ended since
        hundredth = self.num_timesteps // self.interval
        is_due = hundredth > self._hundredth
        if not is_due and (self.threshold is None or self.reached):
            return
        mean = float(np.mean([episode["r"] for episode in episodes]))
        if is_due:
            self._note(hundredth, mean)
        if self.threshold is not None and not self.reached and mean >= self.threshold:
            self.reached = self.num_timesteps

    def _note(self, hundredth: float, mean: float) -> None:
        """Add a point to the curve."""
        self._hundredth = hundredth
        seconds = round(time.perf_counter() - self._start, 2)
        self.curve.append(
            {"timesteps": self.num_timesteps, "seconds": seconds, "mean_return": mean}
        )


def measure(model: BaseAlgorithm, env: VecEnv, config: TrainConfig) -> Row:
    """Return the figures of the model by argmax and by sampled actions."""
    network = find_network(config)
    if network is not None:
        return measure_network(model, network, config.seed)
    sampled = evaluate_model(model, env, EPISODES, deterministic=False)
    row: Row = {"sampled": sampled.mean_reward, "sampled_std": sampled.std_reward}
    tabular = find_table(config)
    if tabular is not None:
        horizon = tabular.max_episode_steps or MAX_EPISODE_STEPS
        value = tabular.exact_return(argmax_policy(model, tabular), horizon)
        return row | {"protocol": "exact", "last": value}
    argmax = evaluate_model(model, env, EPISODES)
    return row | {
        "protocol": f"{EPISODES} episodes",
        "last": argmax.mean_reward,
        "last_std": argmax.std_reward,
        "last_length": argmax.mean_ep_length,
    }


def find_network(config: TrainConfig) -> QueueNetwork | None:
    """Return both hundreds of runs of a queueing network, if that is what is learned."""
    if find_torch_id(config.env) != "QueueNetwork-v0":
        return None
    env = make_torch_env("QueueNetwork-v0", 2 * EPISODES, **config.env_kwargs)
    assert isinstance(env, QueueNetwork)
    return env


def measure_network(model: BaseAlgorithm, env: QueueNetwork, seed: int) -> Row:
    """Return average holding costs of a network, lower is better, and deviations over the runs."""
    env.to(model.device).reset(seed=seed + EVALUATION_SEED)
    model.policy.set_training_mode(False)

    def act(obs: Obs, mask: torch.Tensor | None) -> torch.Tensor:
        policy = model.policy.distribution(obs, mask)
        # Both at once, which takes little longer than either.
        return torch.cat([policy.sample()[:EPISODES], policy.mode[EPISODES:]])

    sampled, argmax = average_cost(env, act, EVENTS).split(EPISODES)
    return {
        "protocol": f"average cost, {EVENTS} events",
        "sampled": float(sampled.mean()),
        "sampled_std": float(sampled.std()),
        "last": float(argmax.mean()),
        "last_std": float(argmax.std()),
    }


def find_table(config: TrainConfig) -> TabularEnv | None:
    """Return the environment of a run if it is a table."""
    torch_id = find_torch_id(config.env)
    if torch_id is None or config.env_wrappers:
        return None
    env = make_torch_env(torch_id, 1, **config.env_kwargs)
    return env if isinstance(env, TabularEnv) else None


def argmax_policy(model: BaseAlgorithm, env: TabularEnv) -> torch.Tensor:
    """Return `[S, A]`: 1 at the action that the model prefers given each observation."""
    shape = (int(env.observation_space.n), int(env.action_space.n))
    arguments = {}
    if takes_masks(model) and env.table.legal is not None:
        legal = torch.ones(shape, dtype=torch.bool)
        legal[env.table.observation] = env.table.legal
        arguments["action_masks"] = legal.numpy()
    actions, _ = model.predict(np.arange(shape[0]), deterministic=True, **arguments)
    return torch.nn.functional.one_hot(torch.as_tensor(actions), shape[1]).double()
