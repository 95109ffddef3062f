"""The learning benchmark: what a run measures, what identifies it, and how rows are shown."""

import csv
import sys
from collections import deque
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import VecNormalize

from rl_gumbel.cli.errors import UserError
from rl_gumbel.cli.training import EVALUATION_SEED
from rl_gumbel.config import load_config
from rl_gumbel.distributions import FactoredCategorical
from rl_gumbel.envs.frozen_lake import FrozenLake
from rl_gumbel.envs.queue_network import QueueNetwork
from rl_gumbel.envs.queue_rules import average_cost, c_mu
from rl_gumbel.envs.taxi import Taxi

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))

import learning
import learning_run
import sb3_peers
from learning_run import Job, Watch, argmax_policy, identify, measure, run_job

LEFT, DOWN, RIGHT = 0, 1, 2


# --- measuring ------------------------------------------------------------------------------------


def watch_returns(threshold, returns, total_timesteps=2000):
    """Return a `Watch` that was fed one episode of ten steps after the other."""
    watch = Watch(threshold, total_timesteps)
    model = SimpleNamespace(ep_info_buffer=deque(maxlen=100))
    watch.model = model
    watch._on_training_start()
    for number, episode_return in enumerate(returns, 1):
        model.ep_info_buffer.append({"r": episode_return})
        watch.num_timesteps = 10 * number
        assert watch._on_step()
    return watch


def test_the_threshold_is_reached_by_the_mean_of_the_last_hundred_episodes():
    # 100 episodes of return 0, then 1 each: the mean of the last 100 is 0.5 after 50 of them.
    assert watch_returns(0.5, [0.0] * 100 + [1.0] * 100).reached == 1500


def test_the_threshold_needs_a_hundred_episodes():
    assert watch_returns(0.5, [1.0] * 99).reached is None
    assert watch_returns(0.5, [1.0] * 100).reached == 1000


def test_a_threshold_that_is_lost_again_stays_reached():
    assert watch_returns(0.5, [1.0] * 100 + [0.0] * 100).reached == 1000


def test_without_a_threshold_none_is_reached():
    assert watch_returns(None, [1.0] * 200).reached is None


def test_a_curve_has_one_point_in_each_hundredth_of_the_budget():
    watch = watch_returns(None, [0.0] * 100 + [1.0] * 100, total_timesteps=10_000)
    assert [point["timesteps"] for point in watch.curve] == list(range(1000, 2001, 100))
    assert [point["mean_return"] for point in watch.curve] == pytest.approx(
        [0.1 * n for n in range(11)]
    )
    assert all(point["seconds"] >= 0 for point in watch.curve)


def test_a_curve_of_a_network_has_the_average_cost_since_the_point_before():
    watch = Watch(None, 100 * 4, holding_cost=3.0)  # a point for every second step of two runs
    watch.model = SimpleNamespace(ep_info_buffer=deque())
    watch._on_training_start()
    for step, rewards in enumerate([[-1.0, -3], [-5, -7], [-1, -1], [-2, -4], [0, 0]], 1):
        watch.num_timesteps = 2 * step
        watch.locals = {"rewards": np.array(rewards)}
        assert watch._on_step()
    watch._on_training_end()
    # 3 times the means of 1, 3, 5, 7 and of 1, 1, 2, 4.
    assert [(p["timesteps"], p["mean_return"]) for p in watch.curve] == [(4, 12.0), (8, 6.0)]


@pytest.mark.parametrize("system", ["criss-cross", "reentrant-1-2"])
def test_the_rewards_of_a_network_average_to_its_cost(system):
    env = QueueNetwork(100, None, system=system)
    env.reset(seed=0)
    cost = average_cost(env, partial(c_mu, env), 2000)
    env.reset(seed=0)
    rewards, obs = [], env.observe(env.state)
    for _ in range(2000):
        step = env.step(c_mu(env, obs, env.action_mask))
        obs = step.obs
        rewards.append(step.reward)
    expected = -sum(env.network.holding_costs) * torch.stack(rewards).mean()
    assert float(cost.mean()) == pytest.approx(float(expected), rel=0.03)


class Lookup:
    """A model that knows an action for each observation."""

    num_timesteps = 0

    def __init__(self, actions):
        self.actions = np.array(actions)

    def predict(self, obs, state=None, episode_start=None, deterministic=False):
        return self.actions[np.asarray(obs)], None


DOWN_THEN_RIGHT = Lookup([DOWN] * 4 + [DOWN] * 4 + [RIGHT, RIGHT, DOWN, DOWN] + [RIGHT] * 4)
"""Reaches the goal of the 4x4 lake if the ice does not slip: 0, 4, 8, 9, 10, 14, 15."""


@pytest.mark.parametrize(("is_slippery", "most"), [(False, 1.0), (True, 0.7442)])
def test_a_table_is_measured_exactly(is_slippery, most):
    overrides = {("env",): "FrozenLake-v1", ("env_kwargs",): {"is_slippery": is_slippery}}
    config = load_config(None, overrides)
    env = make_vec_env("FrozenLake-v1", 1, env_kwargs={"is_slippery": is_slippery}, seed=0)
    row = measure(DOWN_THEN_RIGHT, env, config)
    assert row["protocol"] == "exact"
    expected = FrozenLake(1, is_slippery=is_slippery).exact_return(
        argmax_policy(DOWN_THEN_RIGHT, FrozenLake(1))
    )
    assert row["last"] == expected
    assert (row["last"] == most) == (not is_slippery)
    assert 0 < row["last"] <= most


def test_what_is_no_table_is_measured_by_episodes():
    model = Lookup([0])
    model.predict = lambda obs, **_: (np.zeros(len(obs), np.int64), None)
    row = measure(model, make_vec_env("CartPole-v1", 10, seed=0), load_config())
    assert row["protocol"] == "100 episodes"
    assert 8 < row["last"] < 11  # pushed to one side, the pole falls within about 9 steps
    assert row["last"] == row["last_length"]


@pytest.mark.parametrize("preference", [30.0, 0.01])
def test_a_network_is_measured_by_the_average_costs_of_sampled_and_argmax_actions(
    monkeypatch, preference
):
    """A policy that prefers c mu: its samples are that rule too where it does so strongly."""
    monkeypatch.setattr(learning_run, "EVENTS", 300)
    overrides = {("env",): "QueueNetwork-v0", ("env_kwargs",): {"system": "n-model"}}
    config = load_config(None, overrides)
    env = QueueNetwork(200, system="n-model")

    class Policy:
        def set_training_mode(self, mode):
            pass

        def distribution(self, obs, mask):
            chosen = torch.nn.functional.one_hot(c_mu(env, obs, mask), mask.shape[-1])
            return FactoredCategorical(preference * chosen, mask)

    row = measure(SimpleNamespace(policy=Policy(), device="cpu"), None, config)
    env.reset(seed=config.seed + EVALUATION_SEED)
    first, second = average_cost(env, partial(c_mu, env), 300).split(100)
    assert row["protocol"] == "average cost, 300 events"
    # Each run draws its own events, so these are the same whatever the other hundred do.
    assert (row["last"], row["last_std"]) == (float(second.mean()), float(second.std()))
    assert (row["sampled"] == float(first.mean())) == (preference == 30.0)
    assert (row["sampled_std"] == float(first.std())) == (preference == 30.0)


def test_the_argmax_policy_of_a_masked_table_is_legal():
    class First:
        def predict(self, obs, deterministic, action_masks=None):
            return action_masks.argmax(1), None

    env = Taxi(1)
    policy = argmax_policy(First(), env)
    assert policy.shape == (500, 6)
    assert torch.equal(policy.sum(-1), torch.ones(500, dtype=torch.float64))
    assert (policy.bool() & ~env.table.legal).sum() == 0


QUICK = ("--total-timesteps=48", "--num-envs=8")


@pytest.mark.parametrize(
    ("algo", "options"),
    [
        ("ppo", ("--algorithm.n-steps=8",)),
        ("sb3-dqn", ()),
        ("sb3-qrdqn", ()),
        ("sb3-ppo", ()),
        ("decqn", ()),
    ],
)
def test_a_run_gives_a_complete_row(algo, options):
    row, curve = run_job(Job("CartPole-v1", algo, 3, 475.0, (*QUICK, *options)))
    assert row.keys() == set(learning.COLUMNS) - {"best", "midway_timesteps", "midway"}
    assert (row["env"], row["algo"], row["seed"]) == ("CartPole-v1", algo, 3)
    assert (row["total_timesteps"], row["num_envs"]) == (48, 8)
    assert row["seconds"] >= 0  # rounded, and 48 steps are few
    assert (row["threshold"], row["threshold_timesteps"]) == (475.0, "")
    assert 8 < row["sampled"] <= 500
    assert all(point.keys() == set(learning.CURVE_COLUMNS) for point in curve)


# --- identity -------------------------------------------------------------------------------------


def test_what_no_other_column_holds_identifies_a_run():
    job = Job("CartPole-v1", "sac", 0, None, ("--num-envs=2", "--algorithm.tau", "0.1"))
    assert identify(job)["options"] == "--algorithm.tau 0.1"
    assert identify(job)["num_envs"] == 2


def test_an_arm_of_the_actor_gradient_has_its_own_column():
    row = identify(Job("CartPole-v1", "sac", 0, None, ("--algorithm.actor-gradient=exact",)))
    assert (row["actor_gradient"], row["estimator"], row["options"]) == ("exact", "", "")


@pytest.mark.parametrize(
    ("options", "estimator"),
    [
        ((), "straight_through_gumbel"),
        (("--algorithm.estimator=reinmax",), "reinmax"),
        (("--algorithm.score-function-weight=1",), ""),
    ],
)
def test_estimators_of_shac_are_told_apart(options, estimator):
    assert identify(Job("PendulumBank-v0", "shac", 0, None, options))["estimator"] == estimator


def test_a_known_row_is_not_run_again(tmp_path, monkeypatch):
    path = tmp_path / "rows.csv"
    job = Job("CartPole-v1", "sac", 0)
    learning.append(path, learning.COLUMNS, [identify(job)])
    monkeypatch.setattr(learning, "run_job", None)  # which could not be called
    learning.run_all([job], path, tmp_path / "curves.csv", 1)
    assert len(learning.read_rows(path)) == 1


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--algo=sb3-dqn", "--algorithm.gamma=0.1"], "sb3-dqn has the settings of"),
        (["--algo=ppo", "--algorithm.gamma=2"], "--algorithm.gamma: must be at most 1"),
        (["--algo=ppo", "--algorithm.gama=2"], "did you mean --algorithm.gamma?"),
    ],
)
def test_a_mistake_is_told_in_a_line(tmp_path, capsys, words, message):
    path = tmp_path / "rows.csv"
    assert learning.main(["run", "--env=CartPole-v1", "--results", str(path), *words]) == 2
    err = capsys.readouterr().err
    assert message in err
    assert err.count("\n") == 1
    assert not path.exists()


# --- peers ----------------------------------------------------------------------------------------


def test_a_peer_has_the_published_settings_where_there_are_some():
    config = learning_run.read_config(Job("CartPole-v1", "sb3-ppo", 0))
    assert (config.num_envs, config.total_timesteps, config.backend) == (8, 100_000, "gymnasium")
    env = make_vec_env("CartPole-v1", 8)
    model, _ = sb3_peers.make_peer("sb3-ppo", config, env, env, "cpu")
    # rl-zoo: n_steps 32, gamma 0.98, 20 epochs, learning rate and clip range fall to 0.
    assert (model.n_steps, model.gamma, model.n_epochs) == (32, 0.98, 20)
    assert [model.lr_schedule(left) for left in (1.0, 0.5, 0.0)] == [1e-3, 5e-4, 0.0]
    assert [model.clip_range(left) for left in (1.0, 0.5, 0.0)] == [0.2, 0.1, 0.0]


def test_sac_of_sb3_runs_on_the_continuous_original(monkeypatch):
    monkeypatch.setattr(learning_run, "EPISODES", 3)
    row, _ = run_job(Job("Pendulum-v1", "sb3-sac", 0, None, ("--total-timesteps=40",)))
    assert row["last_length"] == 200
    assert row["last"] < 0
    with pytest.raises(UserError, match=r"sb3-sac on CartPole-v1: .*Box"):
        run_job(Job("CartPole-v1", "sb3-sac", 0, None, ("--total-timesteps=40",)))


LEVELS = "[{rl_gumbel.DiscretizeActions: {bins: [3]}}]"


@pytest.mark.parametrize("algo", ["sb3-ppo", "decqn"])
def test_peers_take_levels_of_continuous_actions(algo, monkeypatch):
    monkeypatch.setattr(learning_run, "EPISODES", 3)
    options = ("--total-timesteps=40", f"--env-wrappers={LEVELS}")
    row, _ = run_job(Job("Pendulum-v1", algo, 0, None, options))
    assert row["last_length"] == 200
    assert LEVELS.strip("[]{}").split(":")[0] in row["options"]


def test_maskable_ppo_runs_where_there_are_masks_and_nowhere_else():
    options = ("--total-timesteps=40", "--num-envs=2")
    row, _ = run_job(Job("Taxi-v4", "sb3-maskable-ppo", 0, None, options))
    assert row["protocol"] == "exact"
    with pytest.raises(UserError, match=r"sb3-maskable-ppo on CartPole-v1: .* no action masks"):
        run_job(Job("CartPole-v1", "sb3-maskable-ppo", 0, None, options))


def test_quantiles_have_the_settings_of_dqn_and_their_number():
    """rl-zoo's `qrdqn.yml` repeats those of `dqn.yml` on CartPole-v1."""
    dqn, qrdqn = sb3_peers.PEERS["sb3-dqn"], sb3_peers.PEERS["sb3-qrdqn"]
    ours = dict(qrdqn.find_settings("CartPole-v1").arguments)
    assert ours.pop("policy_kwargs") == {"net_arch": [256, 256], "n_quantiles": 10}
    theirs = dict(dqn.find_settings("CartPole-v1").arguments)
    assert theirs.pop("policy_kwargs") == {"net_arch": [256, 256]}
    assert ours == theirs


def test_a_normalised_peer_is_evaluated_with_the_statistics_of_training():
    config = learning_run.read_config(Job("Acrobot-v1", "sb3-ppo", 0, None, ("--num-envs=2",)))
    one, two = make_vec_env("Acrobot-v1", 2), make_vec_env("Acrobot-v1", 2)
    model, evaluation_env = sb3_peers.make_peer("sb3-ppo", config, one, two, "cpu")
    training_env = model.get_vec_normalize_env()
    training_env.reset()
    assert isinstance(evaluation_env, VecNormalize)
    assert evaluation_env.obs_rms is training_env.obs_rms
    assert training_env.obs_rms.count > 1
    assert not evaluation_env.training
    assert not evaluation_env.norm_reward


def test_a_peer_that_cannot_take_the_actions_says_so():
    config = load_config(None, {("env",): "CartPole-v1"})
    env = make_vec_env("Pendulum-v1", 1)
    with pytest.raises(UserError, match=r"sb3-dqn on CartPole-v1: .*Discrete"):
        sb3_peers.make_peer("sb3-dqn", config, env, env, "cpu")


# --- rows -----------------------------------------------------------------------------------------


def test_recorded_rows_have_the_columns_of_today():
    with learning.RESULTS.open(newline="") as file:
        rows = list(csv.reader(file))
    assert tuple(rows[0]) == learning.COLUMNS
    assert {len(row) for row in rows} == {len(learning.COLUMNS)}
    assert len(rows) > 20


def make_row(**columns):
    base = dict.fromkeys(learning.COLUMNS, "")
    return base | {"env": "E-v0", "algo": "ppo", "total_timesteps": "5000"} | columns


def test_a_line_of_the_table_has_mean_spread_and_every_seed():
    rows = [
        make_row(seed="1", last="3.0", seconds="4", threshold="2.5", threshold_timesteps="1000"),
        make_row(seed="0", last="1.0", seconds="2", threshold="2.5", sampled="0.5"),
    ]
    # Mean 2, sd sqrt(((3 - 2)^2 + (1 - 2)^2) / 1) = 1.4; seeds in order; one of two reached 2.5.
    expected = (
        "| E-v0 | ppo |  | 5,000 | 2 +- 1.4 | 1, 3 | 0.5 | 1,000 (1 of 2 reach 2.5) | 3 +- 1.4 |"
    )
    assert learning.table(rows).splitlines()[2:] == [expected]


def test_rows_that_differ_in_an_option_are_lines_of_their_own():
    rows = [make_row(seed="0", last="1", options=text) for text in ("", "--x 1")]
    assert len(learning.table(rows).splitlines()) == 4


def test_rows_of_the_earlier_protocol_are_shown():
    """They have no seconds, no threshold and no sampled episodes."""
    line = learning.table([make_row(seed="0", last="7", best="9")]).splitlines()[2]
    assert line == "| E-v0 | ppo |  | 5,000 | 7 | 7 |  |  |  |"
