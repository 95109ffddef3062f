"""`make_vec` and Gymnasium's facades: any id behind one contract, and ours behind Gymnasium's."""

import sys
import types
import warnings
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces
from gymnasium.utils.env_checker import check_env
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space
from stable_baselines3.common.env_checker import check_env as check_env_for_sb3
from stable_baselines3.common.env_util import make_vec_env
from tiny_batched import Bits, Ladder, Masked, play_batched, play_plain
from tiny_envs import Tiny, TinyDict

from rl_gumbel.envs import ENVS, registered_id
from rl_gumbel.envs.cartpole import CartPole
from rl_gumbel.vec_env import GymEnv, GymVectorEnv, SB3VecEnv, as_batched, make_vec

NUM_ENVS = 3
IDS = pytest.mark.parametrize("env_id", list(ENVS))
IN_BOTH = pytest.mark.parametrize("env_id", [
    spec.id for spec in gym.registry.values()
    if spec.id in ENVS and spec.entry_point.startswith("gymnasium.")
])  # fmt: skip


@pytest.fixture
def register(monkeypatch):
    """Register an environment class for one test."""

    def register_class(creator, **kwargs: Any) -> str:
        gym.register("Vectorised-v0", creator, **kwargs)
        return "Vectorised-v0"

    yield register_class
    gym.registry.pop("Vectorised-v0", None)


@pytest.fixture
def ladder(monkeypatch):
    """An id of ours with masks and a picture, for one test."""
    monkeypatch.setitem(ENVS, "Ladder-v0", ("tiny_batched:Ladder", {"max_episode_steps": 5}))
    gym.register(
        "rl_gumbel/Ladder-v0",
        "rl_gumbel.vec_env:GymEnv",
        max_episode_steps=5,
        vector_entry_point="rl_gumbel.vec_env:make_gym_vector_env",
        kwargs={"env_id": "Ladder-v0"},
    )
    yield "Ladder-v0"
    del gym.registry["rl_gumbel/Ladder-v0"]


# --- the ids ----------------------------------------------------------------------------------


@IDS
def test_every_id_is_made_reset_and_stepped(env_id):
    env = make_vec(env_id, NUM_ENVS, "cpu")
    assert env.backend == "torch"
    obs = env.reset(0)
    rng = np.random.default_rng(0)
    for _ in range(30):
        step = env.step(
            torch.from_numpy(
                rng.integers(env.layout.sizes, size=(NUM_ENVS, env.layout.num_factors))
            )
        )
        for row in step.final_obs.numpy():
            assert env.observation_space.contains(row)
    assert step.obs.shape == obs.shape
    assert step.reward.dtype == torch.float32


@IDS
def test_every_id_keeps_the_contract_of_gymnasium_and_sb3(env_id):
    env = gym.make(registered_id(env_id)).unwrapped
    assert type(env) is GymEnv
    with warnings.catch_warnings():
        warnings.filterwarnings("error")
        # Gymnasium warns of spaces without bounds, as those of its own CartPole, and SB3 of a start
        # that its own algorithms do not take.
        warnings.filterwarnings("ignore", message=".*(infinity|non-zero start)")
        # SB3 takes whatever has three dimensions for a photograph, and wonders at two.
        warnings.filterwarnings("ignore", message="Your observation .*unconventional shape")
        warnings.filterwarnings("ignore", message="It seems that your observation space.*image")
        warnings.filterwarnings("ignore", message="The minimal resolution for an image")
        check_env(env, skip_render_check=env.metadata["render_modes"] == [])
        check_env_for_sb3(env)


@IN_BOTH
def test_both_backends_have_equal_spaces_and_limits(env_id):
    ours, peer = make_vec(env_id, 2), make_vec(env_id, 2, backend="gymnasium")
    assert ours.observation_space == peer.observation_space
    assert ours.observation_space.dtype == peer.observation_space.dtype
    assert ours.action_space == peer.action_space
    assert ours.max_episode_steps == peer.max_episode_steps


@IDS
def test_bare_and_prefixed_ids_are_one(env_id):
    bare, prefixed = make_vec(env_id, 2, "cpu"), make_vec(registered_id(env_id), 2, "cpu")
    assert type(bare) is type(prefixed)
    assert gym.spec(registered_id(env_id)).max_episode_steps == bare.max_episode_steps
    assert torch.equal(bare.reset(1), prefixed.reset(1))


# --- make_vec ---------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["sync", "async"])
@pytest.mark.parametrize("env_id", ["CartPole-v1", "Taxi-v4"])
def test_gymnasium_backend_gives_the_transitions_of_the_plain_environment(env_id, mode):
    kwargs = {"max_episode_steps": 15}
    env = make_vec(env_id, NUM_ENVS, "cpu", backend="gymnasium", vectorization_mode=mode, **kwargs)
    actions = np.random.default_rng(0).integers(env.action_space.n, size=(60, NUM_ENVS))
    logs = play_batched(env, 5, actions)
    for i, log in enumerate(logs):
        assert log == play_plain(env_id, 5 + i, actions[:, i], **kwargs)
    assert any(row["truncated"] for log in logs for row in log)
    assert env.backend == f"gymnasium ({mode})"
    assert env.max_episode_steps == 15
    env.close()


def test_vector_entry_point_gives_the_transitions_of_the_environment_inside(ladder):
    """The batched environment itself against it behind both facades: masks and ends included."""
    env = make_vec("rl_gumbel/Ladder-v0", NUM_ENVS, "cpu", backend="gymnasium")
    assert env.backend == "gymnasium (vector)"
    actions = np.random.default_rng(0).integers(2, size=(60, NUM_ENVS))
    logs = play_batched(env, 3, actions)
    assert logs == play_batched(Ladder(NUM_ENVS), 3, actions)
    rows = [row for log in logs for row in log]
    assert any(row["truncated"] for row in rows)
    assert any(row["terminated"] for row in rows)
    assert any(row["mask"] != row["final_mask"] for row in rows)


def test_vector_entry_point_that_resets_in_the_next_step_is_not_used():
    """CartPole's own would give a transition without meaning between two episodes."""
    assert make_vec("CartPole-v1", 2, backend="gymnasium").backend == "gymnasium (sync)"
    with pytest.raises(ValueError, match="CartPole-v1 has no vector entry point that resets in"):
        make_vec("CartPole-v1", 2, backend="gymnasium", vectorization_mode="vector_entry_point")


class Switchable(VectorEnv):
    """A vector environment that can be asked to reset in the same step."""

    def __init__(self, num_envs: int, autoreset_mode: AutoresetMode = AutoresetMode.NEXT_STEP):
        self.metadata = {"autoreset_mode": autoreset_mode}
        self.num_envs = num_envs
        self.single_observation_space = spaces.Box(0, 1, (2,), np.float32)
        self.single_action_space = spaces.Discrete(2)
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = batch_space(self.single_action_space, num_envs)


def test_vector_entry_point_is_asked_to_reset_in_the_same_step(register):
    register(Tiny, vector_entry_point=Switchable)
    assert make_vec("Vectorised-v0", 2).backend == "gymnasium (vector)"


def test_blackjack_tuples_become_a_vector():
    env = make_vec("Blackjack-v1", NUM_ENVS, "cpu", backend="gymnasium")
    assert env.observation_space == spaces.MultiDiscrete([32, 11, 2])
    plain = gym.make("Blackjack-v1")
    expected = [list(plain.reset(seed=4 + i)[0]) for i in range(NUM_ENVS)]
    assert env.reset(4).tolist() == expected
    assert env.reset(4).dtype == torch.int64


class TinyTuple(Tiny):
    observation_space = spaces.Tuple([Tiny.observation_space, spaces.Discrete(2)])

    def __init__(self) -> None:
        super().__init__(spaces.Tuple([spaces.Discrete(2), spaces.MultiBinary(2)]))

    def observe(self) -> Any:
        return super().observe(), 1

    def step(self, action):
        self.steps += 1
        return self.observe(), float(action[0]), False, self.steps == 10, {}


def test_nested_spaces_are_flattened(register):
    env = make_vec(register(TinyTuple), 2, "cpu")
    assert env.observation_space.shape == (5,)
    assert env.action_space == spaces.MultiDiscrete([2, 2, 2])
    assert env.reset(0)[:, 3:].tolist() == [[0, 1]] * 2
    assert env.step(torch.tensor([[1, 0, 0], [0, 1, 1]])).reward.tolist() == [1, 0]


def test_dict_observations_and_random_stream_are_kept(register):
    env = make_vec(register(lambda: TinyDict(spaces.Discrete(2))), 2, "cpu")
    first = env.reset(0)["x"]
    steps = [env.step(torch.tensor([0, 1])) for _ in range(10)]
    assert steps[-1].truncated.tolist() == [True, True]
    assert not torch.equal(steps[-1].final_obs["x"], steps[-1].obs["x"])
    assert torch.equal(env.reset(0)["x"], first)


def test_mask_methods_are_heard(register):
    """What sb3-contrib asks for, in an environment whose infos have no mask."""
    env = make_vec(register(lambda: Masked(spaces.MultiDiscrete([2, 3]))), 2, "cpu")
    env.reset()
    assert env.masked
    assert env.action_mask[0].tolist() == [[True, True, False], [True, True, False]]
    steps = [env.step(torch.zeros(2, 2, dtype=torch.int64)) for _ in range(9)]
    assert steps[0].action_mask[0, 0].tolist() == [False, True, False]
    last = env.step(torch.zeros(2, 2, dtype=torch.int64))
    assert last.truncated.all()


def test_frames(ladder):
    env = make_vec(ladder, 2, "cpu", render_mode="rgb_array")
    env.reset()
    assert env.render(1).shape == (2, 3, 3)
    env = make_vec("CartPole-v1", 2, "cpu", "gymnasium", render_mode="rgb_array")
    env.reset()
    assert env.render(1).shape == (400, 600, 3)
    env.close()
    with pytest.raises(NotImplementedError, match="no picture"):
        make_vec("CartPole-v1", 2, "cpu", "gymnasium").render()


def test_arguments_reach_the_environment(register):
    assert make_vec("CartPole-v1", 2, "cpu", max_episode_steps=7).max_episode_steps == 7
    assert make_vec("CartPole-v1", 2, "cpu", dtype=torch.float64).dtype == torch.float64
    slow = {"backend": "gymnasium", "map_name": "8x8"}
    assert make_vec("FrozenLake-v1", 2, "cpu", **slow).observation_space == spaces.Discrete(64)


def test_module_in_front_of_an_id_is_imported(monkeypatch):
    module = types.ModuleType("my_envs")
    monkeypatch.setitem(sys.modules, "my_envs", module)
    assert make_vec("my_envs:CliffWalking-v1", 1, "cpu").action_space == spaces.Discrete(4)


@pytest.mark.parametrize(("call", "message"), [
    (lambda: make_vec("CartPol-v1", 2),
     "unknown environment 'CartPol-v1'; did you mean CartPole-v1"),
    (lambda: make_vec("CartPol-v1", 2, backend="torch"),
     "'CartPol-v1' has no torch version; did you mean CartPole-v1"),
    (lambda: make_vec("CartPole-v1", 2, backend="jax"),
     "backend 'jax' of CartPole-v1 must be one of .*'torch'"),
    (lambda: make_vec("CartPole-v1", 0), "num_envs 0 of CartPole-v1 must be an integer of at lea"),
    (lambda: make_vec("CartPole-v1", 2.5), r"num_envs 2\.5 of CartPole-v1 must be an integer"),
    (lambda: make_vec("CartPole-v1", 2, "cpu", max_episode_steps=2.5),
     r"max_episode_steps 2\.5 of CartPole-v1 must be an integer or None"),
    (lambda: make_vec("FrozenLake-v1", 2, "cpu", is_slippery="maybe"),
     "is_slippery 'maybe' of FrozenLake-v1 must be a bool"),
    (lambda: make_vec("FrozenLake-v1", 2, "cpu", is_slippery=1), "is_slippery 1 .* must be a bool"),
    (lambda: make_vec("FrozenLake-v1", 2, "cpu", success_rate=True),
     "success_rate True of FrozenLake-v1 must be a number"),
    (lambda: make_vec("PendulumBank-v0", 2, "cpu", n="8"),
     "n '8' of PendulumBank-v0 must be an integer"),
    (lambda: make_vec("CartPole-v1", 2, "cpu", gradients="yes"),
     "gradients 'yes' of CartPole-v1 must be a bool"),
    (lambda: make_vec("CartPole-v1", 2, max_episode_step=5),
     "CartPole-v1 has no argument 'max_episode_step'; did you mean max_episode_steps.* dtype,"),
    (lambda: make_vec("FrozenLake-v1", 2, backend="gymnasium", slippery=True),
     "FrozenLake-v1 has no argument 'slippery'; did you mean is_slippery"),
    (lambda: make_vec("CartPole-v1", 2, vectorization_mode="sync"), "needs backend='gymnasium'"),
    (lambda: make_vec("Taxi-v4", 2, backend="gymnasium", vectorization_mode="threads"),
     "vectorization_mode 'threads' of Taxi-v4 must be one of .*async"),
    (lambda: GymVectorEnv(Ladder(2), "human"), "'human' of Ladder: it has 'rgb_array'"),
    (lambda: GymEnv("Catchh-v0"), "'Catchh-v0' has no torch version"),
])  # fmt: skip
def test_what_is_wrong_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_arguments_of_torch_environments_may_be_numbers_of_numpy():
    env = make_vec("PendulumBank-v0", np.int64(2), "cpu", n=np.int64(3), max_episode_steps=None)
    assert env.action_space == spaces.MultiDiscrete([5] * 3)
    make_vec("FrozenLake-v1", 2, "cpu", success_rate=1, desc=["SG"], is_slippery=np.True_)


@pytest.mark.skipif(torch.cuda.is_available(), reason="for machines without CUDA")
def test_cuda_is_refused_by_name_where_there_is_none():
    for device in ("cuda", torch.device("cuda", 1)):
        with pytest.raises(ValueError, match=r"device 'cuda.* of CartPole-v1: CUDA is not availab"):
            make_vec("CartPole-v1", 2, device)


def test_environment_without_a_picture_is_not_rendered():
    """A `TypeError`, so that SB3's `make_vec_env`, which asks for frames, does without."""
    with pytest.raises(TypeError, match="render_mode 'rgb_array' of Bits: it has no picture"):
        GymVectorEnv(Bits(2), "rgb_array")


def test_continuous_actions_are_refused():
    with pytest.raises(TypeError, match=r"action space Box.* is not supported"):
        make_vec("Pendulum-v1", 2)


# --- GymVectorEnv -----------------------------------------------------------------------------


def test_gymnasium_finds_the_vector_environment(ladder):
    with warnings.catch_warnings():
        warnings.filterwarnings("error")
        env = gym.make_vec("rl_gumbel/Ladder-v0", 4, max_episode_steps=3)
    assert env.metadata["autoreset_mode"] is AutoresetMode.SAME_STEP
    assert env.unwrapped.batched.max_episode_steps == 3
    assert gym.make_vec("rl_gumbel/Ladder-v0").unwrapped.batched.max_episode_steps == 5
    assert env.action_space == spaces.MultiDiscrete([2] * 4)


def test_gym_vector_env_says_what_gymnasium_says(ladder):
    """The infos of Gymnasium's own vectorisation of the single environment have equal shapes."""
    env = gym.make_vec("rl_gumbel/Ladder-v0", 2, max_episode_steps=2)
    peer = gym.make_vec(
        "rl_gumbel/Ladder-v0",
        2,
        vectorization_mode="sync",
        vector_kwargs={"autoreset_mode": "SameStep"},
        max_episode_steps=2,
    )
    assert env.observation_space == peer.observation_space
    for vector_env in (env, peer):
        obs, info = vector_env.reset(seed=0)
        assert env.observation_space.contains(obs)
        assert describe(info) == {
            "action_mask": (np.int8, (2, 2)),
            "_action_mask": (np.bool_, (2,)),
        }
    for _ in range(2):
        *_, info = env.step(np.ones(2, np.int64))
        *_, peer_info = peer.step(np.ones(2, np.int64))
        assert describe(info) == describe(peer_info)
    assert info["_final_obs"].all()
    assert peer_info["_final_obs"].all()


def describe(info: dict[str, Any]) -> dict[str, Any]:
    return {
        name: describe(value) if isinstance(value, dict) else (value.dtype, value.shape)
        for name, value in info.items()
    }


def test_gymnasium_statistics_agree_with_ours():
    env = GymVectorEnv(CartPole(4, 30))
    recorded = gym.wrappers.vector.RecordEpisodeStatistics(env)
    recorded.reset(seed=0)
    lengths = []
    for _ in range(100):
        *_, info = recorded.step(recorded.action_space.sample())
        if "episode" in info:
            lengths.extend(info["episode"]["l"][info["_episode"]].tolist())
            assert (info["episode"]["r"] == info["episode"]["l"]).all()
    assert len(lengths) > 4
    assert 8 <= min(lengths) <= max(lengths) <= 30


def test_gym_vector_env_refuses_what_it_cannot_do():
    env = GymVectorEnv(CartPole(2))
    env.reset(seed=0)
    with pytest.raises(ValueError, match="takes one seed"):
        env.reset(seed=[1, 2])
    with pytest.raises(ValueError, match="takes no options"):
        env.reset(options={"reset_mask": np.ones(2, bool)})
    with pytest.raises(ValueError, match="action 2 of environment 1 is outside"):
        env.step(np.array([0, 2]))
    assert env.render() is None


def test_gym_vector_env_renders():
    env = GymVectorEnv(Ladder(2), "rgb_array")
    env.reset()
    assert [frame.shape for frame in env.render()] == [(2, 3, 3)] * 2


# --- GymEnv -----------------------------------------------------------------------------------


def test_gym_env_plays_the_batched_environment(ladder):
    """Every number, over several episodes, is that of the batched environment with B = 1."""
    env = GymEnv("Ladder-v0", max_episode_steps=5)
    actions = np.random.default_rng(1).integers(2, size=60)
    log = play_batched(Ladder(1), 7, actions[:, None])[0]
    obs, info = env.reset(seed=7)
    for action, row in zip(actions, log, strict=True):
        obs, reward, terminated, truncated, info = env.step(action)
        assert (obs, reward, terminated, truncated) == (
            row["final_obs"], row["reward"], row["terminated"], row["truncated"],
        )  # fmt: skip
        assert info["action_mask"].tolist() == row["final_mask"]
        if terminated or truncated:
            obs, info = env.reset()
        assert obs == row["obs"]
        assert info["action_mask"].tolist() == row["mask"]
        assert env.get_wrapper_attr("action_masks")().tolist() == row["mask"]
    assert sum(row["truncated"] for row in log) > 1


def test_gym_env_must_be_reset_between_episodes():
    env = GymEnv("CartPole-v1", max_episode_steps=2)
    with pytest.raises(gym.error.ResetNeeded):
        env.step(0)
    env.reset()
    env.step(0)
    assert env.step(0)[3]
    with pytest.raises(gym.error.ResetNeeded):
        env.step(0)


@pytest.mark.parametrize(("limit", "expected"), [
    (None, 5), (3, 3), (8, 8), (-1, None),
])  # fmt: skip
def test_gymnasium_sets_the_time_limit(ladder, limit, expected):
    """A limit inside the environment would make `gymnasium.make` ignore a longer one."""
    env = gym.make("rl_gumbel/Ladder-v0", max_episode_steps=limit)
    obs, _ = env.reset(seed=0)
    truncations = []
    for _ in range(expected or 20):
        obs, _, terminated, truncated, _ = env.step(int(obs == 0))  # up and down: no end
        assert not terminated
        truncations.append(truncated)
    assert truncations == [False] * (len(truncations) - 1) + [expected is not None]


def test_gym_env_has_masks_only_where_the_environment_has(ladder):
    assert hasattr(GymEnv("Ladder-v0"), "action_masks")
    assert not hasattr(GymEnv("CartPole-v1"), "action_masks")
    masked = as_batched(make_vec_env("rl_gumbel/Ladder-v0", 2, seed=0), "cpu")
    obs = masked.reset()
    assert masked.action_mask[:, 0, 0].tolist() == (obs > 0).tolist()
    assert not as_batched(make_vec_env("rl_gumbel/CartPole-v1", 2), "cpu").masked


def test_gym_env_renders(ladder):
    env = gym.make("rl_gumbel/Ladder-v0", render_mode="rgb_array")
    env.reset()
    assert env.render().shape == (2, 3, 3)
    with pytest.raises(ValueError, match="takes no options"):
        env.reset(options={"low": 0})


def test_sb3_facade_of_a_gymnasium_backend_trains():
    from stable_baselines3 import PPO

    env = SB3VecEnv(make_vec("FrozenLake-v1", 2, "cpu", backend="gymnasium"))
    PPO("MlpPolicy", env, n_steps=16, batch_size=16, n_epochs=1, device="cpu").learn(64)
