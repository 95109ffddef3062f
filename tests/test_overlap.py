"""`GumbelSAC(overlap=True)`: when updates are made, on which replay, and what stays."""

from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces
from gymnasium.vector import AsyncVectorEnv, AutoresetMode, SyncVectorEnv
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv, VecNormalize
from tiny_envs import Tiny

from rl_gumbel import GumbelSAC
from rl_gumbel.checkpoint.state import get_state, set_state
from rl_gumbel.envs.cartpole import CartPole
from rl_gumbel.vec_env.from_gymnasium import GymnasiumEnv

FACTORED = spaces.MultiDiscrete([3, 2], start=[-1, 4])
FORKS = pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")  # from Python 3.12 on


class Masked(Tiny):
    """The first action of each factor is forbidden in every other step."""

    def action_masks(self) -> np.ndarray:
        is_odd = self.steps % 2
        return np.array([is_odd, True, True, is_odd, True], np.bool_)


def make() -> Monitor:
    return Monitor(Tiny(FACTORED))


def make_masked() -> Monitor:
    return Monitor(Masked(FACTORED))


def gymnasium_env(kind: Any, num_envs: int = 2) -> GymnasiumEnv:
    vector = kind([make] * num_envs, autoreset_mode=AutoresetMode.SAME_STEP, copy=False)
    return GymnasiumEnv(vector, None, torch.device("cpu"), "gymnasium")


def in_processes(functions: Any) -> SubprocVecEnv:
    return SubprocVecEnv(functions, start_method="fork")


ENVS = {
    "SB3": lambda kind: kind([make] * 2),
    "SB3, normalised": lambda kind: VecNormalize(kind([make] * 2)),
    "SB3, with masks": lambda kind: kind([make_masked] * 2),
    "Gymnasium": lambda kind: gymnasium_env(
        {DummyVecEnv: SyncVectorEnv, in_processes: AsyncVectorEnv}[kind]
    ),
}
EVERY_ENV = pytest.mark.parametrize("name", ENVS)


def build(env: Any, **kwargs: Any) -> GumbelSAC:
    settings = {
        "learning_starts": 4,
        "buffer_size": 200,
        "batch_size": 8,
        "policy_kwargs": {"net_arch": [8], "dropout": 0.2},
        "cosine_interval": 0,
        "overlap": True,
        "seed": 0,
        "device": "cpu",
    }
    return GumbelSAC("MlpPolicy", env, **(settings | kwargs))


def vector(model: GumbelSAC) -> torch.Tensor:
    return torch.cat([value.flatten() for value in model.policy.state_dict().values()])


@pytest.fixture
def trace(monkeypatch):
    """The order of what happens: `send` and `wait` for each step, `update` with the replay's rows.

    Nothing may act in training mode, with dropout for one.
    """
    events: list[Any] = []
    models: list[GumbelSAC] = []

    def record(owner: type, name: str, note: Any) -> None:
        original = getattr(owner, name)

        def wrapped(self, *args, **kwargs):
            events.append(note(self))
            return original(self, *args, **kwargs)

        monkeypatch.setattr(owner, name, wrapped)

    def send(_: Any) -> str:
        assert not models[0].policy.training
        return "send"

    for owner, begin, end in (
        (DummyVecEnv, "step_async", "step_wait"),
        (GymnasiumEnv, "send", "receive"),
    ):
        record(owner, begin, send)
        record(owner, end, lambda _: "wait")
    record(GumbelSAC, "update", lambda model: model.replay_buffer.size())

    def run(env: Any, total: int, callback: Any = None, **kwargs: Any) -> list[Any]:
        models[:] = [build(env, **kwargs)]
        models[0].learn(total, callback)
        return events

    return run


class StopAt(BaseCallback):
    """Ends training after so many steps."""

    def __init__(self, steps: int) -> None:
        super().__init__()
        self.steps = steps

    def _on_step(self) -> bool:
        return self.num_timesteps < self.steps


# --- when -------------------------------------------------------------------------------------


@EVERY_ENV
def test_updates_are_made_between_sending_actions_and_waiting_for_the_step(trace, name):
    """Two environments, so steps 2, 4, ..., 12; more than 4 of them before the first update.

    The updates after steps 6, 8, 10 are made in the step that follows, on the 3, 4, 5 rows that
    there were, those after step 12 at once.
    """
    events = trace(ENVS[name](DummyVecEnv), 12, gradient_steps=2)
    quiet = ["send", "wait"] * 3
    assert events == [
        *quiet,
        *("send", 3, 3, "wait"),
        *("send", 4, 4, "wait"),
        *("send", 5, 5, "wait"),
        *(6, 6),
    ]


@EVERY_ENV
def test_updates_are_shared_out_over_the_steps_of_a_collection(trace, name):
    """Collections of three steps of two environments, each followed by four updates: 2 + 1 + 1."""
    events = trace(ENVS[name](DummyVecEnv), 24, train_freq=3, gradient_steps=4)
    assert events == [
        *["send", "wait"] * 3,
        *("send", 3, 3, "wait", "send", 4, "wait", "send", 5, "wait"),
        *("send", 6, 6, "wait", "send", 7, "wait", "send", 8, "wait"),
        *("send", 9, 9, "wait", "send", 10, "wait", "send", 11, "wait"),
        *(12, 12, 12, 12),
    ]


def test_a_collection_of_an_episode_updates_in_its_first_step(trace):
    """Episodes of Tiny have ten steps; -1 is as many updates as steps."""
    events = trace(make(), 20, train_freq=(1, "episode"), gradient_steps=-1)
    later = ["send", "wait"] * 9
    assert events == ["send", "wait", *later, "send", *[10] * 10, "wait", *later, *[20] * 10]


@EVERY_ENV
def test_what_a_callback_leaves_of_a_collection_is_made_up_for(trace, name):
    """Training ends in the first of three steps, in which two of the four updates fall."""
    stop, kwargs = StopAt(8), {"train_freq": 3, "gradient_steps": 4}
    events = trace(ENVS[name](DummyVecEnv), 24, stop, **kwargs)
    rows = 4 if name in ("SB3, with masks", "Gymnasium") else 3  # SB3 does not store the last step
    assert events == [*["send", "wait"] * 3, "send", 3, 3, "wait", rows, rows]


@EVERY_ENV
@pytest.mark.parametrize(
    ("total", "stop", "kwargs"),
    [
        (30, None, {}),
        (30, None, {"gradient_steps": 3, "learning_starts": 13}),
        (34, None, {"train_freq": 4, "gradient_steps": -1}),
        (30, 16, {"train_freq": 4, "gradient_steps": 6}),
        (30, 18, {"gradient_steps": 2}),
        (30, None, {"gradient_steps": 0}),
        (4, None, {}),
    ],
)
def test_there_are_as_many_updates_and_steps_as_without(name, total, stop, kwargs):
    counts = []
    for flag in (False, True):
        model = build(ENVS[name](DummyVecEnv), overlap=flag, **kwargs)
        model.learn(total, None if stop is None else StopAt(stop))
        counts.append((model._n_updates, model.num_timesteps, model.replay_buffer.size()))
    assert counts[0] == counts[1]


@pytest.mark.parametrize("stop", [None, 8])
def test_updates_asked_for_outside_of_training_are_made_at_once(stop):
    model = build(make(), learning_starts=2).learn(12, None if stop is None else StopAt(stop))
    before = model._n_updates
    model.train(3, 8)
    assert model._n_updates == before + 3


def test_steps_of_somebody_else_make_no_update():
    """A run that failed owes updates, and its environments may be used again."""
    env = gymnasium_env(SyncVectorEnv)
    model = build(env).learn(20)
    model._deferred.owed = 5
    before = vector(model)
    env.step(torch.tensor([[0, 4], [0, 4]]))
    assert torch.equal(vector(model), before)


# --- the same numbers -------------------------------------------------------------------------


@FORKS
@EVERY_ENV
def test_environments_in_other_processes_give_the_same_weights(name):
    """And others than without the option, which would be no test of it."""
    results, updates = [], []
    for kind, flag in ((DummyVecEnv, False), (DummyVecEnv, True), (in_processes, True)):
        model = build(ENVS[name](kind), train_freq=2, gradient_steps=3, overlap=flag)
        model.learn(80)
        results.append(vector(model))
        updates.append(model._n_updates)
        model.env.close()
    assert torch.equal(results[1], results[2])
    assert not torch.equal(results[0], results[1])
    assert updates == [57, 57, 57]  # (80 - 4) / 4 collections of two steps of two environments


@FORKS
def test_an_error_in_an_update_leaves_no_step_under_way(monkeypatch):
    def fail(*args: Any) -> None:
        raise RuntimeError("no more memory")

    env = gymnasium_env(AsyncVectorEnv)
    model = build(env)
    with monkeypatch.context() as patch:
        patch.setattr(model, "update", fail)
        with pytest.raises(RuntimeError, match="no more memory"):
            model.learn(20)
    assert env.reset().shape == (2, 3)  # of an AsyncVectorEnv, which refuses it in a step
    model.learn(20)
    assert model._n_updates > 0
    env.close()


def test_an_error_in_an_update_leaves_no_step_of_sb3_under_way(trace, monkeypatch):
    monkeypatch.setattr(GumbelSAC, "update_critic", lambda self, batch: 1 / 0)
    env = DummyVecEnv([make] * 2)
    seen: list[str] = []
    wait = env.step_wait
    monkeypatch.setattr(env, "step_wait", lambda: (seen.append("wait"), wait())[1])
    with pytest.raises(ZeroDivisionError):
        trace(env, 20)
    assert seen == ["wait"] * 4


# --- checkpoints and refusals -----------------------------------------------------------------


class InterruptedRunError(Exception):
    pass


class InterruptAt(StopAt):
    """Raises between two collections, where checkpoints are written; keeps their state."""

    def _on_rollout_start(self) -> None:
        if self.num_timesteps >= self.steps:
            self.state = get_state(self.model)
            raise InterruptedRunError

    def _on_step(self) -> bool:
        return True


class GoOn(BaseCallback):
    def __init__(self, state: Any) -> None:
        super().__init__()
        self.state = state

    def _on_training_start(self) -> None:
        set_state(self.model, self.state)

    def _on_step(self) -> bool:
        return True


@EVERY_ENV
@pytest.mark.parametrize("flag", [True, False])
def test_a_run_that_goes_on_makes_what_was_deferred(name, flag):
    """Eight steps of two at the interruption, 6 updates for each 4 beyond 4, the last 6 put off.

    Also without the option, which a user may leave out then.
    """
    settings = {"train_freq": 2, "gradient_steps": 6}
    stop = InterruptAt(16)
    with pytest.raises(InterruptedRunError):
        build(ENVS[name](DummyVecEnv), **settings).learn(32, stop)
    assert stop.state["loop"]["_deferred.owed"] == 6
    assert stop.state["loop"]["_n_updates"] == 12
    other = build(ENVS[name](DummyVecEnv), overlap=flag, **settings).learn(32, GoOn(stop.state))
    assert other.num_timesteps == 32
    assert other._n_updates == 42
    assert other._deferred.owed == 0


def test_a_checkpoint_from_before_there_was_the_option_goes_on():
    stop = InterruptAt(16)
    with pytest.raises(InterruptedRunError):
        build(make(), overlap=False).learn(32, stop)
    del stop.state["loop"]["_deferred.owed"]
    other = build(make()).learn(32, GoOn(stop.state))
    assert other._n_updates == 32 - 4


def test_environments_in_torch_are_refused():
    message = "overlap True would be ignored: CartPole steps in this process, on the device"
    with pytest.raises(ValueError, match=message):
        build(CartPole(2))
    env = CartPole(2)
    model = build(
        GymnasiumEnv(
            SyncVectorEnv([lambda: Monitor(CartPoleLike(env))] * 2), None, torch.device("cpu"), "x"
        )
    )
    model.set_env(model._wrap_env(env))
    with pytest.raises(ValueError, match=message):
        model.learn(20)


class CartPoleLike(Tiny):
    """Of the same spaces."""

    def __init__(self, env: CartPole) -> None:
        super().__init__(env.action_space)
        self.observation_space = env.observation_space

    def observe(self) -> np.ndarray:
        return self.np_random.uniform(-1, 1, 4).astype(np.float32)


def test_a_saved_model_keeps_the_option(tmp_path):
    build(make()).learn(20).save(tmp_path / "model")
    loaded = GumbelSAC.load(tmp_path / "model", env=make(), device="cpu")
    assert loaded.overlap
    loaded.learn(20)
    assert loaded._n_updates == 32
