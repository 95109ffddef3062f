"""Evaluation during training."""

import csv

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.logger import configure

from rl_gumbel import GumbelSAC, load_model
from rl_gumbel.callbacks import EvaluationCallback, evaluate_model
from rl_gumbel.envs.base import TorchEnv
from rl_gumbel.vec_env import SB3VecEnv


class Counter(gym.Env):
    """Episodes of 4 steps with reward 1; the returns of `returns` first, for control."""

    observation_space = spaces.Box(-1, 1, (1,))
    action_space = spaces.Discrete(2)

    def __init__(self, returns=()):
        self.returns = iter(returns)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.steps = 0
        self.total = next(self.returns, 4.0)
        return np.zeros(1, np.float32), {}

    def step(self, action):
        self.steps += 1
        return np.zeros(1, np.float32), self.total / 4, self.steps == 4, False, {}


def make_model(num_envs=1):
    env = make_vec_env(Counter, num_envs)
    return GumbelSAC(
        "MlpPolicy",
        env,
        learning_starts=8,
        batch_size=4,
        buffer_size=100,
        policy_kwargs={"net_arch": [4]},
        device="cpu",
    )


def run(tmp_path, *, steps=40, interval=10, returns=(), num_envs=1):
    model = make_model(num_envs)
    model.set_logger(configure(str(tmp_path), ["csv"]))
    callback = EvaluationCallback(make_vec_env(lambda: Counter(returns)), tmp_path, interval, 2)
    model.learn(steps, callback)
    model.logger.close()
    return model, callback


def rows(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_evaluations_have_exactly_the_promised_columns(tmp_path):
    run(tmp_path)
    header = (tmp_path / "evaluations.csv").read_text().splitlines()[0]
    assert header == "timesteps,mean_reward,std_reward,mean_ep_length"


def test_every_interval_and_the_end_are_evaluated(tmp_path):
    run(tmp_path, steps=35)
    timesteps = [row["timesteps"] for row in rows(tmp_path / "evaluations.csv")]
    assert timesteps == ["10", "20", "30", "35"]


def test_the_last_step_is_evaluated_once(tmp_path):
    run(tmp_path, steps=20)
    assert [row["timesteps"] for row in rows(tmp_path / "evaluations.csv")] == ["10", "20"]


def test_without_an_interval_only_the_end_is_evaluated(tmp_path):
    run(tmp_path, steps=20, interval=0)
    assert [row["timesteps"] for row in rows(tmp_path / "evaluations.csv")] == ["20"]


def test_several_environments_pass_more_than_one_mark_at_once(tmp_path):
    run(tmp_path, steps=60, interval=4, num_envs=10)
    timesteps = [row["timesteps"] for row in rows(tmp_path / "evaluations.csv")]
    assert timesteps == ["10", "20", "30", "40", "50", "60"]


def test_mean_and_spread_are_those_of_the_episodes(tmp_path):
    # Two episodes with returns 1 and 3: mean 2, standard deviation 1, four steps each. The
    # vectorised environment resets once more at the start, and once after each episode.
    env = make_vec_env(lambda: Counter([1.0, 3.0]))
    result = evaluate_model(make_model(), env, 2)
    assert (result.mean_reward, result.std_reward, result.mean_ep_length) == (2.0, 1.0, 4.0)


def test_the_best_model_is_kept(tmp_path):
    # Each evaluation resets, plays two episodes and is left reset: three values each time.
    returns = [1.0, 1.0, 0.0, 9.0, 9.0, 0.0, 5.0, 5.0, 0.0]
    _, callback = run(tmp_path, steps=30, returns=returns)
    assert [result.mean_reward for result in callback.results] == [1.0, 9.0, 5.0]
    assert callback.best.timesteps == 20
    assert load_model(tmp_path / "models/best", device="cpu").num_timesteps == 20


def test_the_first_of_equally_good_models_stays(tmp_path):
    _, callback = run(tmp_path, steps=30)
    assert callback.best.timesteps == 10
    assert load_model(tmp_path / "models/best", device="cpu").num_timesteps == 10


def test_evaluations_are_logged_under_the_names_of_sb3(tmp_path):
    run(tmp_path, steps=20)
    logged = [row for row in rows(tmp_path / "progress.csv") if row["eval/mean_reward"]]
    assert [row["time/total_timesteps"] for row in logged] == ["10", "20"]
    assert [float(row["eval/mean_reward"]) for row in logged] == [4.0, 4.0]
    assert [float(row["eval/mean_ep_length"]) for row in logged] == [4.0, 4.0]


class Masked(Counter):
    """Allows at each step the action that the info of the step before names."""

    action_space = spaces.Discrete(4)
    tells = "info"

    def reset(self, *, seed=None, options=None):
        obs, _ = super().reset(seed=seed)
        self.allowed = 1
        return obs, self._info()

    def step(self, action):
        assert action == self.allowed
        self.allowed = self.steps
        obs, reward, terminated, truncated, _ = super().step(action)
        return obs, reward, terminated, truncated, self._info()

    def _info(self):
        return {"action_mask": np.arange(4) == self.allowed} if self.tells == "info" else {}


class MaskedByMethod(Masked):
    tells = "method"

    def action_masks(self):
        return np.arange(4) == self.allowed


class OneOpen(TorchEnv):
    """Of three doors one is open; one step."""

    def __init__(self, num_envs):
        super().__init__(num_envs, spaces.Discrete(3), spaces.Discrete(3), None)

    def initial(self):
        return {"open": self.integers(3)}

    def transition(self, state, action):
        is_open = action.squeeze(-1) == state["open"]
        return state, is_open.float(), torch.ones_like(is_open)

    def observe(self, state):
        return torch.zeros_like(state["open"])

    def legal(self, state):
        return (state["open"][:, None] == torch.arange(3)).unsqueeze(1)


class FirstAllowed:
    """A model that looks at nothing but masks."""

    num_timesteps = 0

    def predict(self, obs, state=None, episode_start=None, deterministic=False, action_masks=None):
        return action_masks.argmax(1), None


@pytest.mark.parametrize("environment", [Masked, MaskedByMethod])
def test_masks_reach_a_model_that_takes_them(environment):
    """Those of the observation at hand, a new episode's first one too; the environment checks."""
    env = make_vec_env(environment, 2)
    assert evaluate_model(FirstAllowed(), env, 5).mean_ep_length == 4


def test_masks_of_batched_environments_reach_a_model_that_takes_them():
    env = SB3VecEnv(OneOpen(3))
    assert evaluate_model(FirstAllowed(), env, 6).mean_reward == 1.0


def test_a_model_that_takes_no_masks_gets_none():
    env = make_vec_env(Masked)
    model = FirstAllowed()
    model.predict = lambda obs, state=None, episode_start=None, deterministic=False: (
        np.array([env.get_attr("allowed")[0]]),
        None,
    )
    assert evaluate_model(model, env, 2).mean_reward == 4.0


@pytest.mark.parametrize("deterministic", [True, False])
def test_evaluation_takes_argmax_actions_unless_told(deterministic):
    """A policy of 51 % must look like one of 100 % by argmax."""
    model, seen = make_model(), []
    env = make_vec_env(Counter)
    step = env.step_async
    env.step_async = lambda actions: (seen.extend(actions.tolist()), step(actions))
    evaluate_model(model, env, 50, deterministic=deterministic)
    assert (len(set(seen)) == 1) == deterministic
