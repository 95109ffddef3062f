"""GumbelSAC on environments of Gymnasium and SB3 with action masks: none is ever broken."""

from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces
from sb3_contrib.common.maskable.callbacks import MaskableEvalCallback
from stable_baselines3.common.buffers import ReplayBuffer
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize
from tiny_envs import Tiny
from torch import Tensor

from rl_gumbel import FlattenActions, GumbelSAC, MasksInInfo
from rl_gumbel.buffers import DeviceReplayBuffer
from rl_gumbel.callbacks import evaluate_model

FACTORED = spaces.MultiDiscrete([3, 2], start=[-1, 4])
WAYS = pytest.mark.parametrize("way", ["method", "info"])


def allowed(obs: Any) -> np.ndarray:
    """Flat masks of observations: at least one category of each factor is open."""
    x, y, z = np.moveaxis(np.asarray(obs), -1, 0)
    always = np.ones_like(x, bool)
    return np.stack([x > 0, always, (y > 0) & (x > -0.5), z > -0.3, z < 0.3], -1)


class Strict(Tiny):
    """`Tiny` that raises for an action which its mask forbids."""

    def __init__(self) -> None:
        super().__init__(FACTORED)

    def observe(self) -> Any:
        self.obs = super().observe()
        self.mask = allowed(self.obs)
        return self.obs

    def step(self, action: Any) -> Any:
        chosen = np.asarray(action) - FACTORED.start + [0, 3]  # positions in the flat mask
        if not self.mask[chosen].all():
            raise RuntimeError(f"{action} is forbidden by {self.mask}")
        return super().step(action)


class ByMethod(Strict):
    """Masks as sb3-contrib asks for them."""

    def action_masks(self) -> np.ndarray:
        return self.mask


class ByInfo(Strict):
    """Masks as Gymnasium's Taxi gives them."""

    def reset(self, **kwargs: Any) -> Any:
        obs, _ = super().reset(**kwargs)
        return obs, {"action_mask": self.mask.astype(np.int8)}

    def step(self, action: Any) -> Any:
        *rest, _ = super().step(action)
        return *rest, {"action_mask": self.mask.astype(np.int8)}


MASKED = {"method": ByMethod, "info": ByInfo}


def build(env: Any, **kwargs: Any) -> GumbelSAC:
    settings: dict[str, Any] = {"learning_starts": 100, "buffer_size": 400, "batch_size": 16}
    settings |= {"policy_kwargs": {"net_arch": [16]}, "seed": 0, "device": "cpu"}
    return GumbelSAC("MlpPolicy", env, **(settings | kwargs))


def everything(model: GumbelSAC) -> Any:
    assert isinstance(model.replay_buffer, DeviceReplayBuffer)
    return model.replay_buffer._get_samples(torch.arange(model.replay_buffer.size() * model.n_envs))


def flat(model: GumbelSAC, mask: Tensor) -> np.ndarray:
    return model.layout.flatten(mask).numpy()


@WAYS
def test_warm_up_and_policy_choose_what_is_allowed_and_the_replay_knows_it(way):
    """The environment raises otherwise; what the masks were is computed from the observations."""
    model = build(MASKED[way]()).learn(300)
    assert model._n_updates == 200
    batch = everything(model)
    np.testing.assert_array_equal(flat(model, batch.action_masks), allowed(batch.observations))
    # Of last observations too: episodes are cut after ten steps.
    last = flat(model, batch.next_action_masks)
    np.testing.assert_array_equal(last, allowed(batch.next_observations))
    assert model.replay_buffer.store["truncated"].sum() == 30
    assert not batch.action_masks[:, 0].all()


@pytest.mark.parametrize(
    ("make", "is_last_known"),
    [(ByInfo, True), (lambda: MasksInInfo(ByMethod()), True), (ByMethod, False)],
    ids=["info", "both", "method"],
)
def test_several_environments_of_sb3_keep_their_masks_apart(make, is_last_known):
    """Those with the method alone are asked in the next episode: the last allows everything."""
    model = build(DummyVecEnv([lambda: Monitor(make())] * 3)).learn(240)
    batch = everything(model)
    np.testing.assert_array_equal(flat(model, batch.action_masks), allowed(batch.observations))
    truncated = model.replay_buffer.store["truncated"][:80].flatten().numpy()
    assert truncated.sum() == 24
    last = allowed(batch.next_observations)
    last[truncated] |= not is_last_known
    np.testing.assert_array_equal(flat(model, batch.next_action_masks), last)
    assert {info["l"] for info in model.ep_info_buffer} == {10}


def test_masks_under_flatten_actions_are_in_the_order_of_the_factors():
    """Two parts of a `Dict`, whose flat mask the environment returns."""

    class Nested(ByMethod):
        def __init__(self) -> None:
            super().__init__()
            self.action_space = spaces.Dict({"a": spaces.Discrete(3), "b": spaces.Discrete(2)})

        def step(self, action: Any) -> Any:
            if not (self.mask[action["a"]] and self.mask[3 + action["b"]]):
                raise RuntimeError(f"{action} is forbidden by {self.mask}")
            self.steps += 1
            return self.observe(), 0.0, False, self.steps == 10, {}

    model = build(FlattenActions(Nested())).learn(160)
    batch = everything(model)
    np.testing.assert_array_equal(flat(model, batch.action_masks), allowed(batch.observations))


@WAYS
@pytest.mark.parametrize("deterministic", [True, False])
def test_evaluation_obeys_masks(way, deterministic):
    model = build(MASKED[way]()).learn(120)
    result = evaluate_model(
        model, DummyVecEnv([lambda: Monitor(MASKED[way]())] * 2), 20, deterministic=deterministic
    )
    assert result.mean_ep_length == 10


def test_sb3_contribs_evaluation_takes_the_model():
    callback = MaskableEvalCallback(
        Monitor(ByMethod()), eval_freq=50, n_eval_episodes=3, verbose=0, warn=False
    )
    build(ByMethod()).learn(120, callback=callback)
    assert callback.last_mean_reward > -np.inf
    monitor = callback.eval_env.envs[0]
    assert monitor.get_episode_lengths() == [10] * 3 * 2  # after 50 steps and after 100


@WAYS
def test_a_saved_model_goes_on_under_masks(way, tmp_path):
    build(MASKED[way]()).learn(120).save(tmp_path / "model")
    loaded = GumbelSAC.load(tmp_path / "model", env=MASKED[way](), device="cpu")
    loaded.learn(120)
    assert not everything(loaded).action_masks[:, 0].all()
    loaded.set_env(DummyVecEnv([lambda: Tiny(FACTORED)]))
    loaded.learn(120)
    assert loaded.replay_buffer.has_masks is False


def test_taxi_of_gymnasium_trains_under_its_masks():
    model = build(gym.make("Taxi-v4")).learn(150)
    batch = everything(model)
    chosen = batch.action_masks[:, 0].gather(-1, batch.actions.unsqueeze(-1))
    assert chosen.all()
    assert not batch.action_masks[:, 0, :6].all()


@WAYS
def test_masks_under_vec_normalize_are_refused(way):
    with pytest.raises(ValueError, match="masks of the environment would be ignored under VecNorm"):
        build(VecNormalize(DummyVecEnv([MASKED[way]]))).learn(20)


class OwnReplay(ReplayBuffer):
    """A replay of a user."""


@pytest.mark.parametrize(
    ("way", "kwargs", "message"),
    [
        ("method", {"replay_buffer_class": OwnReplay}, "replay_buffer_class .* would be ignored"),
        ("info", {"replay_buffer_class": OwnReplay}, "takes no replay_buffer_class"),
        ("info", {"optimize_memory_usage": True}, "takes no replay_buffer_class and no optimize"),
        ("info", {"train_freq": (1, "episode")}, "train_freq 1 episodes: .* in steps"),
    ],
    ids=str,
)
def test_what_needs_sb3s_replay_is_refused_with_masks(way, kwargs, message):
    if "optimize_memory_usage" in kwargs:
        kwargs = {**kwargs, "replay_buffer_kwargs": {"handle_timeout_termination": False}}
    with pytest.raises(ValueError, match=message):
        build(MASKED[way](), **kwargs).learn(20)
