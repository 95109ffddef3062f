"""On CUDA: no operation of collecting and updating waits for the device."""

import itertools

import pytest
import torch
from stable_baselines3.common.logger import configure

from rl_gumbel import make_vec
from rl_gumbel.algorithms import ALGORITHMS
from rl_gumbel.algorithms import ppo as ppo_module
from rl_gumbel.algorithms import reppo as reppo_module
from rl_gumbel.algorithms import shac as shac_module

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA"),
]


@pytest.fixture
def sync_is_an_error():
    """Make every synchronising operation of PyTorch raise."""
    yield lambda: torch.cuda.set_sync_debug_mode("error")
    torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize(
    ("algo", "env_id"),
    [
        *itertools.product(["ppo", "reppo"], ["CartPole-v1", "Taxi-v4", "MinAtar/Breakout-v1"]),
        ("shac", "PendulumBank-v0"),
    ],
)
def test_an_iteration_never_waits(algo, env_id, sync_is_an_error, monkeypatch):
    env = make_vec(env_id, 64, device="cuda")
    model = ALGORITHMS[algo]("MlpPolicy", env, n_steps=16, seed=0, device="cuda")
    model.learn(64 * 16)  # what is made once is made here
    model.set_logger(configure(None, []))
    for module in (ppo_module, reppo_module, shac_module):
        monkeypatch.setattr(module, "record", lambda logger, metrics: None)
    sync_is_an_error()
    model.rollout, _ = model.collect(model.n_steps, lambda step: True)
    model.train()


@pytest.mark.parametrize("algo", ["ppo", "reppo"])
def test_compiled_training_runs_as_cuda_graphs(algo):
    env = make_vec("CartPole-v1", 64, device="cuda")
    model = ALGORITHMS[algo]("MlpPolicy", env, n_steps=16, seed=0, device="cuda", compile=True)
    model.learn(64 * 16 * 4)
    assert all(value.isfinite().all() for value in model.policy.state_dict().values())
