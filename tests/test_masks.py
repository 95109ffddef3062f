"""Masks that environments on the host return: in every form that they may have, or by one line."""

import re
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from stable_baselines3.common.vec_env import DummyVecEnv
from tiny_envs import Tiny, TinyDict

from rl_gumbel import ActionLayout, BatchedPPO, GumbelSAC
from rl_gumbel.callbacks import MaskReader
from rl_gumbel.envs.base import BatchedEnv
from rl_gumbel.faults import EnvError
from rl_gumbel.vec_env import as_batched
from rl_gumbel.vec_env.from_gymnasium import GymnasiumEnv, adapt

SPACE = spaces.MultiDiscrete([3, 2])
FLAT = [True, False, True, False, True]
FORMS = {
    "flat": np.array(FLAT),
    "integers": np.array(FLAT, np.int8),
    "a tuple as Gymnasium's samplers take": (np.array(FLAT[:3], np.int8), np.array(FLAT[3:])),
}
PADDED = [[True, False, True], [False, True, False]]


class Masked(Tiny):
    """`Tiny` of which a mask is told in the infos of `tells`, or returned by the method."""

    def __init__(self, mask: Any, tells: tuple[str, ...] = ("reset", "step")) -> None:
        super().__init__(SPACE)
        self.mask, self.tells = mask, tells

    def reset(self, **kwargs: Any) -> Any:
        return super().reset(**kwargs)[0], self.info("reset")

    def step(self, action: Any) -> Any:
        return *super().step(action)[:4], self.info("step")

    def info(self, when: str) -> dict[str, Any]:
        return {"action_mask": self.mask} if when in self.tells else {}


class ByMethod(Masked):
    def __init__(self, mask: Any) -> None:
        super().__init__(mask, ())

    def action_masks(self) -> Any:
        return self.mask


def by_sb3(*envs: gym.Env) -> BatchedEnv:
    return as_batched(DummyVecEnv([lambda env=env: env for env in envs]), "cpu")


def by_gymnasium(*envs: gym.Env) -> BatchedEnv:
    vector = SyncVectorEnv(
        [lambda env=env: adapt(env) for env in envs], autoreset_mode=AutoresetMode.SAME_STEP
    )
    return GymnasiumEnv(vector, None, torch.device("cpu"), "sync")


HOSTS = pytest.mark.parametrize("host", [by_sb3, by_gymnasium])
NOTHING = torch.zeros(2, 2, dtype=torch.int64)


@HOSTS
@pytest.mark.parametrize("way", [Masked, ByMethod])
@pytest.mark.parametrize("form", FORMS)
def test_masks_of_every_form_become_the_padded_ones(host, way, form):
    env = host(way(FORMS[form]), way(FORMS[form]))
    env.reset()
    assert env.action_mask.tolist() == [PADDED] * 2
    steps = [env.step(NOTHING) for _ in range(10)]
    assert steps[-1].truncated.all()
    assert all(step.action_mask.tolist() == [PADDED] * 2 for step in steps)
    assert all(step.final_action_mask.tolist() == [PADDED] * 2 for step in steps[:-1])


@pytest.mark.parametrize("way", [Masked, ByMethod])
@pytest.mark.parametrize("form", FORMS)
def test_masks_of_every_form_reach_an_evaluation(way, form):
    env = MaskReader(DummyVecEnv([lambda: way(FORMS[form])]))
    env.reset()
    assert env.masks.tolist() == [FLAT]


def test_the_actions_of_a_tuple_mask_are_those_that_gymnasium_samples():
    masks = FORMS["a tuple as Gymnasium's samplers take"]
    mask = tuple(part.astype(np.int8) for part in masks)
    samples = np.stack([SPACE.sample(mask) for _ in range(20)])
    model = GumbelSAC("MlpPolicy", Masked(masks), learning_starts=40, device="cpu").learn(40)
    for actions in (samples, model.replay_buffer._get_samples(torch.arange(40)).actions.numpy()):
        assert set(actions[:, 0].tolist()) <= {0, 2}
        assert set(actions[:, 1].tolist()) == {1}


UNTOLD = r"info\['action_mask'\] came with a step but not with the reset; return it from reset\(\)"


@HOSTS
def test_masks_that_only_steps_tell_are_refused(host):
    env = host(*[Masked(FORMS["flat"], tells=("step",)) for _ in range(2)])
    env.reset()
    with pytest.raises(ValueError, match=UNTOLD):
        env.step(NOTHING)


def test_masks_that_only_steps_tell_are_refused_in_sb3s_own_way():
    """Where the reset told of none, the replay is SB3's, which would forget them."""
    with pytest.raises(ValueError, match=UNTOLD):
        GumbelSAC("MlpPolicy", Masked(FORMS["flat"], tells=("step",)), device="cpu").learn(5)


@HOSTS
@pytest.mark.parametrize("others", [("reset", "step"), ("reset",)])
def test_an_environment_whose_steps_lack_masks_is_named(host, others):
    flat = FORMS["flat"]
    env = host(Masked(flat, others), Masked(flat, ("reset",)))
    env.reset()
    with pytest.raises(ValueError, match=r"environment \d has no info\['action_mask'\]; it must"):
        env.step(NOTHING)


@HOSTS
def test_an_environment_whose_reset_lacks_masks_is_named(host):
    flat = FORMS["flat"]
    with pytest.raises(ValueError, match=r"environment 1 has no info\['action_mask'\]; it must"):
        host(Masked(flat), Masked(flat, ("step",))).reset()


class Closing(Masked):
    """Its mask allows nothing of the second factor from step `at` on; 0 is the reset."""

    def __init__(self, at: int) -> None:
        super().__init__(None)
        self.at = at

    def info(self, when: str) -> dict[str, Any]:
        is_open = self.steps < self.at
        return {"action_mask": np.array([True, True, False, is_open, is_open])}


@HOSTS
def test_a_mask_that_allows_nothing_is_named_before_the_next_action(host):
    env = host(Closing(20), Closing(3))
    env.reset()
    for _ in range(2):
        env.step(NOTHING)
    with pytest.raises(EnvError) as caught:
        env.step(torch.tensor([[0, 0], [1, 0]]))
    assert str(caught.value) == (
        "environment 1: the mask allows no action of factor 1 after step 3 of an episode, "
        "action [1, 0]"
    )
    with pytest.raises(EnvError, match=r"environment 0: .* no action of factor 1 at a reset"):
        host(Closing(0)).reset()


@HOSTS
def test_the_last_observation_of_an_episode_may_allow_nothing(host):
    env = host(Closing(10), Closing(10))
    env.reset()
    steps = [env.step(NOTHING) for _ in range(10)]
    assert steps[-1].truncated.all()
    assert not steps[-1].final_action_mask[:, 1].any()


@pytest.mark.parametrize("kind", [spaces.MultiBinary(2), spaces.MultiDiscrete([2, 3])], ids=str)
def test_a_mask_of_another_length_is_named(kind):
    """One entry for each bit would be a natural mistake: each bit has two categories."""
    env = Masked(np.ones(2, bool))
    env.action_space = kind
    message = rf"{sum(ActionLayout.from_space(kind).sizes)} entries, .* array of shape \(1, 2\)"
    with pytest.raises(ValueError, match=message):
        GumbelSAC("MlpPolicy", env, device="cpu").learn(5)


def test_gumbel_sac_learns_under_masks_of_bits():
    """Two entries a bit, off and on: the first of three bits stays off, the second on."""
    env = Masked(np.array([1, 0, 0, 1, 1, 1], bool))
    env.action_space = spaces.MultiBinary(3)
    model = GumbelSAC("MlpPolicy", env, learning_starts=30, device="cpu").learn(60)
    actions = model.replay_buffer._get_samples(torch.arange(60)).actions
    assert actions[:, 0].tolist() == [0] * 60
    assert actions[:, 1].tolist() == [1] * 60
    assert set(actions[:, 2].tolist()) == {0, 1}


def test_gumbel_sac_hears_of_masks_from_any_environment():
    env = DummyVecEnv([lambda: Tiny(SPACE), lambda: Masked(FORMS["flat"])])
    with pytest.raises(ValueError, match=r"environment 0 has no info\['action_mask'\]; it must"):
        GumbelSAC("MlpPolicy", env, device="cpu").learn(5)


OBS = np.zeros((2, 3), np.float32)


@pytest.mark.parametrize("algo", [GumbelSAC, BatchedPPO])
@pytest.mark.parametrize(
    ("masks", "message"),
    [
        (np.ones((2, 4)), r"shape (2, 4) must be [B, sum(sizes)], here [2, 5], or one for all, [5"),
        (np.ones((3, 5)), r"shape (3, 5) must be [B, sum(sizes)], here [2, 5]"),
        (np.ones((5, 2)), r"shape (5, 2) must be [B, sum(sizes)], here [2, 5]"),
        (np.ones(10), r"shape (10,) must be [B, sum(sizes)], here [2, 5]"),
        (True, r"shape () must be [B, sum(sizes)], here [2, 5]"),
        ([FLAT, [True] * 3 + [False] * 2], "action_masks allow no action of factor 1 in row 1"),
    ],
    ids=["length", "batch", "order", "flat", "scalar", "nothing allowed"],
)
def test_masks_that_predict_cannot_obey_are_named(algo, masks, message):
    model = algo("MlpPolicy", Tiny(SPACE), device="cpu")
    with pytest.raises(ValueError, match=re.escape(message)):
        model.predict(OBS, action_masks=masks)


@pytest.mark.parametrize("masks", [FLAT, [FLAT], [FLAT] * 2, [[FLAT]] * 2], ids=np.shape)
def test_one_mask_or_one_for_each_observation_is_obeyed(masks):
    env = TinyDict(SPACE)
    model = GumbelSAC("MultiInputPolicy", env, device="cpu")
    actions = [model.predict({"x": OBS}, action_masks=masks)[0] for _ in range(20)]
    assert set(np.stack(actions)[..., 0].ravel().tolist()) <= {0, 2}
    assert (np.stack(actions)[..., 1] == 1).all()
