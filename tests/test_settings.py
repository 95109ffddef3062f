"""Settings from Python that are of another kind, or that no run could have, end in one line."""

import math
import re
from typing import Any

import numpy as np
import pytest
from gymnasium import spaces
from tiny_envs import Tiny

from rl_gumbel import ALGORITHMS, GumbelSAC
from rl_gumbel.buffers import DeviceReplayBuffer
from rl_gumbel.envs.cartpole import CartPole

OTHER_KINDS = [
    ("batch_size", 2.5, "an integer"),
    ("batch_size", None, "an integer"),
    ("batch_size", True, "an integer"),
    ("gradient_steps", None, "an integer"),
    ("n_steps", "3", "an integer"),
    ("reset_interval", math.inf, "an integer"),
    ("reset_interval", math.nan, "an integer"),
    ("cosine_interval", 0.5, "an integer"),
    ("target_update_interval", 1.5, "an integer"),
    ("num_bins", 2.5, "an integer or None"),
    ("priority_exponent", "a", "a number"),
    ("tau", None, "a number"),
    ("gamma", [1], "a number"),
    ("max_grad_norm", "a", "a number or None"),
    ("compile", "yes", "True or False"),
    ("overlap", 1, "True or False"),
]
REFUSED = [
    ({"aggregation": 2}, "aggregation 2 must be 'min', 'mean' or"),
    ({"ent_coef": None}, "ent_coef None must be a number >= 0, 'auto' or"),
    ({"target_entropy": None}, "target_entropy None must be 'auto' or between"),
    ({"value_range": 3}, "value_range 3 would be ignored"),
    ({"num_bins": 9, "value_range": []}, r"value_range \[\] must be two numbers"),
    ({"policy_kwargs": {"n_critics": 0}}, "n_critics 0 must be an integer >= 1"),
    ({"policy_kwargs": {"n_critics": 2.5}}, r"n_critics 2\.5 must be an integer >= 1"),
    ({"critic": "multilinear", "policy_kwargs": {"rank": 0}}, "rank 0 must be an integer >= 1"),
    ({"policy_kwargs": {"dropout": "a"}}, r"dropout 'a' must be in \[0, 1\)"),
    ({"replay_buffer_class": DeviceReplayBuffer}, "DeviceReplayBuffer takes the steps of a Batch"),
]


def build(env: Any = None, **kwargs: Any) -> GumbelSAC:
    env = Tiny(spaces.MultiDiscrete([3, 2])) if env is None else env
    return GumbelSAC("MlpPolicy", env, device="cpu", **({"buffer_size": 100} | kwargs))


@pytest.mark.parametrize(("name", "value", "kind"), OTHER_KINDS)
def test_settings_of_another_kind_are_refused(name, value, kind):
    with pytest.raises(ValueError, match=f"^{name} {re.escape(repr(value))} must be {kind}$"):
        build(**{name: value})


@pytest.mark.parametrize("algorithm", ALGORITHMS.values(), ids=list(ALGORITHMS))
@pytest.mark.parametrize(("name", "value"), [("n_steps", 1.5), ("gamma", None)])
def test_every_algorithm_refuses_settings_of_another_kind(algorithm, name, value):
    with pytest.raises(ValueError, match=f"^{name} {re.escape(repr(value))} must be"):
        algorithm("MlpPolicy", CartPole(2), device="cpu", **{name: value})


@pytest.mark.parametrize(("kwargs", "message"), REFUSED, ids=str)
def test_settings_that_no_run_could_have_are_refused(kwargs, message):
    with pytest.raises(ValueError, match=message):
        build(**kwargs)


@pytest.mark.parametrize("env", [Tiny(spaces.Discrete(3)), CartPole(2)], ids=["SB3", "batched"])
@pytest.mark.parametrize("train_freq", [0, -1, (0, "step")], ids=str)
def test_a_collection_of_no_steps_is_refused(env, train_freq):
    """`learn` would never end."""
    with pytest.raises(ValueError, match=r"train_freq (0|-1) must be >= 1"):
        build(env, train_freq=train_freq)


def test_numbers_of_numpy_and_integers_for_numbers_are_taken():
    build(batch_size=np.int64(8), gamma=np.float32(0.9), tau=1, max_grad_norm=np.float64(1))


@pytest.mark.parametrize("algorithm", ALGORITHMS.values(), ids=list(ALGORITHMS))
def test_no_clipping_of_gradients_is_none_in_every_algorithm(algorithm):
    algorithm("MlpPolicy", CartPole(2), device="cpu", max_grad_norm=None)
