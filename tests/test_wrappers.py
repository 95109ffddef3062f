"""Shaped and nested actions to flat ones, discrete actions to one-hots, and exactly back."""

import pickle
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces
from stable_baselines3.common.env_checker import check_env
from stable_baselines3.common.utils import check_for_correct_spaces
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv

from rl_gumbel.actions import ActionLayout
from rl_gumbel.cli.environments import make_env
from rl_gumbel.config import ConfigError, dump_config, load_config
from rl_gumbel.wrappers import DiscretizeActions, FlattenActions, OneHotActions, OneHotBox

SHAPED = spaces.MultiDiscrete([[2, 3], [4, 1]], start=[[1, 0], [-2, 9]])
SUPPORTED = [
    spaces.Discrete(3),
    spaces.Discrete(4, start=-2),
    spaces.MultiDiscrete([3, 2, 5]),
    spaces.MultiDiscrete([2, 4], start=[1, -1], dtype=np.int32),
    spaces.MultiBinary(3),
]
NESTED = [
    *SUPPORTED,
    SHAPED,
    spaces.MultiBinary([2, 3]),
    spaces.Tuple([spaces.Discrete(3, start=5), SHAPED, spaces.MultiBinary(2)]),
    spaces.Dict({"b": spaces.MultiBinary([1, 2]), "a": spaces.Discrete(2), "c": SHAPED}),
    spaces.Tuple([spaces.MultiBinary(2), spaces.MultiBinary([2, 1])]),
]


class Recorder(gym.Env):
    """Remembers the action that reaches it; it must be in its space."""

    observation_space = spaces.Box(-1, 1, (2,), np.float32)

    def __init__(self, action_space: spaces.Space[Any]) -> None:
        self.action_space = action_space
        self.received: Any = None

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        return np.zeros(2, np.float32), {}

    def step(self, action: Any) -> Any:
        assert self.action_space.contains(action)
        self.received = action
        return np.zeros(2, np.float32), 0.0, False, False, {}


class Masked(Recorder):
    def action_masks(self) -> np.ndarray:
        return np.array([True, False, True, True, True])


def flat_actions(space: spaces.Space[Any]) -> list[np.ndarray]:
    """Every action of a flat space, smallest first."""
    sizes = space.nvec if isinstance(space, spaces.MultiDiscrete) else [2] * space.n
    return list(np.stack(np.unravel_index(np.arange(np.prod(sizes)), sizes), -1))


@pytest.mark.parametrize("space", NESTED, ids=str)
def test_flat_actions_reach_every_inner_action_once(space):
    """A bijection into the inner space, which checks type, dtype, shape and start itself."""
    env = FlattenActions(Recorder(space))
    received = set()
    for action in flat_actions(env.action_space):
        env.step(action)
        received.add(str(env.unwrapped.received))
    assert len(received) == len(flat_actions(env.action_space))


def test_flat_factors_follow_the_order_of_the_space():
    """By hand: keys in the order of the Dict, each part in C order, each start added."""
    space = spaces.Dict({"pair": spaces.Discrete(3, start=5), "grid": SHAPED})
    env = FlattenActions(Recorder(space))
    order = list(space.spaces)
    flat = {"pair": [2], "grid": [1, 2, 3, 0]}
    env.step(np.concatenate([flat[key] for key in order]))
    assert env.unwrapped.received["pair"] == 7
    np.testing.assert_array_equal(env.unwrapped.received["grid"], [[2, 2], [1, 9]])


def test_flat_space_is_binary_only_if_every_part_is():
    tuple_of = lambda *parts: FlattenActions(Recorder(spaces.Tuple(parts))).action_space  # noqa: E731
    assert tuple_of(spaces.MultiBinary(2), spaces.MultiBinary([2, 2])) == spaces.MultiBinary(6)
    mixed = tuple_of(spaces.MultiBinary(1), spaces.Discrete(3))
    assert mixed == spaces.MultiDiscrete([2, 3])


@pytest.mark.parametrize("space", NESTED, ids=str)
def test_flattened_spaces_have_a_layout(space):
    """`ActionLayout` recommends this wrapper for the spaces that it refuses."""
    ActionLayout.from_space(FlattenActions(Recorder(space)).action_space)


@pytest.mark.parametrize(
    "space",
    [
        spaces.Box(0, 1, (2,)),
        spaces.Tuple([spaces.Discrete(2), spaces.Box(0, 1, (2,))]),
        spaces.Tuple([spaces.Tuple([spaces.Discrete(2)])]),
        spaces.Tuple([]),
    ],
    ids=str,
)
def test_what_cannot_be_flattened_is_named(space):
    with pytest.raises(TypeError, match="FlattenActions cannot flatten") as error:
        FlattenActions(Recorder(space))
    assert str(space) in str(error.value)


LIGHTS = spaces.Dict(
    {
        "lamp": spaces.MultiBinary((2, 1)),
        "fan": spaces.Discrete(3),
        "tap": spaces.MultiDiscrete([2]),
    }
)
LAMP, FAN = np.array([[[1, 0]], [[1, 1]]], np.int8), np.array([0, 1, 1], np.int8)
TAP = (np.array([1, 0], np.int8),)


@pytest.mark.parametrize(
    ("space", "mask"),
    [
        (LIGHTS, {"tap": TAP, "lamp": LAMP, "fan": FAN}),
        (spaces.Tuple(LIGHTS.spaces.values()), (FAN, LAMP, TAP)),
        (LIGHTS, np.array([0, 1, 1, 1, 0, 1, 1, 1, 0], np.int8)),
    ],
    ids=["dict", "tuple", "array"],
)
def test_nested_masks_become_flat_in_the_order_of_the_factors(space, mask):
    """`Dict` sorts its keys: fan, lamp, tap."""

    class Nested(Recorder):
        def action_masks(self) -> Any:
            return mask

        def reset(self, **kwargs: Any) -> Any:
            return super().reset(**kwargs)[0], {"action_mask": mask}

        def step(self, action: Any) -> Any:
            return *super().step(action)[:4], {"action_mask": mask}

    env = FlattenActions(Nested(space))
    assert list(LIGHTS.spaces) == ["fan", "lamp", "tap"]
    flat = [0, 1, 1, 1, 0, 1, 1, 1, 0]
    first = env.reset()[1]["action_mask"]
    later = env.step(env.action_space.sample())[-1]["action_mask"]
    asked = env.get_wrapper_attr("action_masks")()
    for given in (first, later, asked):
        np.testing.assert_array_equal(given, flat)
    assert asked.dtype == np.bool_


def test_a_mask_with_other_keys_is_named():
    class Nested(Recorder):
        def action_masks(self) -> Any:
            return {"fan": FAN}

    with pytest.raises(ValueError, match=r"keys \['fan'\], not those of Dict"):
        FlattenActions(Nested(LIGHTS)).action_masks()


def test_flat_action_outside_the_space_is_refused():
    """Else an index out of range would become a wrong but valid inner action."""
    env = FlattenActions(Recorder(spaces.Discrete(3, start=5)))
    with pytest.raises(ValueError, match="outside the flat space"):
        env.step(np.array([3]))


@pytest.mark.parametrize("wrapper", [FlattenActions, OneHotActions])
def test_action_masks_pass_through(wrapper):
    """MaskablePPO asks the outermost environment, through `get_wrapper_attr`."""
    env = DummyVecEnv([lambda: wrapper(Masked(spaces.MultiDiscrete([3, 2])))])
    assert env.has_attr("action_masks")
    np.testing.assert_array_equal(env.env_method("action_masks"), [[1, 0, 1, 1, 1]])
    unmasked = DummyVecEnv([lambda: wrapper(Recorder(spaces.MultiDiscrete([3, 2])))])
    assert not unmasked.has_attr("action_masks")


@pytest.mark.parametrize("space", SUPPORTED, ids=str)
def test_one_hots_reach_every_inner_action_once(space):
    """The wrapper inverts `ActionLayout.to_one_hot`, on every action of the space."""
    env = OneHotActions(Recorder(space))
    layout = env.action_space.layout
    flat = FlattenActions(Recorder(space))
    for index in flat_actions(flat.action_space):
        action = flat.action(index)
        one_hot = layout.flatten(layout.to_one_hot(action))[0].numpy()
        env.step(one_hot)
        np.testing.assert_array_equal(env.unwrapped.received, action)


def test_one_hot_space_is_a_box_of_zeros_and_ones():
    space = OneHotBox(spaces.MultiDiscrete([3, 2]))
    assert isinstance(space, spaces.Box)
    assert space.shape == (5,)
    assert space.dtype == np.float32
    assert (space.low == 0).all()
    assert (space.high == 1).all()


@pytest.mark.parametrize("space", SUPPORTED, ids=str)
def test_samples_are_exact_one_hots_and_uniform(space):
    """SB3's warm-up fills the buffer with them; 4 sigma around the expected count."""
    box = OneHotBox(space, seed=0)
    draws = np.stack([box.sample() for _ in range(2000)])
    assert draws.dtype == np.float32
    assert all(box.contains(draw) for draw in draws)
    probability = np.concatenate([np.full(size, 1 / size) for size in box.layout.sizes])
    spread = np.sqrt(2000 * probability * (1 - probability))
    assert (np.abs(draws.sum(0) - 2000 * probability) <= 4 * spread).all()


def test_samples_repeat_with_the_seed():
    """SB3 seeds the action space; a run must repeat."""
    box = OneHotBox(spaces.MultiDiscrete([5, 7]))
    runs = []
    for _ in range(2):
        box.seed(3)
        runs.append(np.stack([box.sample() for _ in range(20)]))
    np.testing.assert_array_equal(*runs)


def test_sample_refuses_a_mask_that_it_would_ignore():
    with pytest.raises(ValueError, match="takes no mask"):
        OneHotBox(spaces.Discrete(2)).sample(mask=np.array([1, 0], np.int8))


@pytest.mark.parametrize(
    "vector",
    [
        [1.0, 0.0, 0.0, 1.0, 1.0],
        [1.0, 0.0, 0.0, 0.0, 0.0],
        [0.9, 0.1, 0.0, 1.0, 0.0],
        [2.0, -1.0, 0.0, 1.0, 0.0],
        [1.0, 0.0, 0.0, 1.0],
        [np.nan, 0.0, 0.0, 1.0, 0.0],
    ],
    ids=str,
)
def test_vectors_that_are_not_one_hot_are_refused(vector):
    """Else the argmax of noise would be played while the noise is stored."""
    env = OneHotActions(Recorder(spaces.MultiDiscrete([3, 2])))
    with pytest.raises(ValueError, match="not a one-hot vector of MultiDiscrete"):
        env.step(np.array(vector, np.float32))


def test_one_hot_wrapper_names_what_flattens_a_nested_space():
    with pytest.raises(TypeError, match="FlattenActions"):
        OneHotActions(Recorder(spaces.Tuple([spaces.Discrete(2), spaces.Discrete(3)])))


def test_nested_actions_become_one_hots_through_both_wrappers():
    space = spaces.Tuple([spaces.Discrete(3, start=5), spaces.MultiBinary(1)])
    env = OneHotActions(FlattenActions(Recorder(space)))
    env.step(np.array([0, 0, 1, 0, 1], np.float32))
    assert env.unwrapped.received == (7, np.array([1]))


def test_one_hot_spaces_are_equal_if_they_stand_for_the_same_actions():
    """SB3 compares spaces at load: five entries of one factor are not those of two."""
    one, two = OneHotBox(spaces.Discrete(5)), OneHotBox(spaces.MultiDiscrete([3, 2]))
    assert one == OneHotBox(spaces.Discrete(5))
    assert one != two
    assert one != spaces.Box(0.0, 1.0, (5,), np.float32)
    assert spaces.Box(0.0, 1.0, (5,), np.float32) != one


def test_one_hot_space_survives_pickling():
    """Also after its layout has been used, which caches tensors in it."""
    box = OneHotBox(spaces.MultiDiscrete([3, 2], start=[1, 1]))
    box.layout.flatten(box.layout.to_one_hot(np.array([1, 1])))
    copy = pickle.loads(pickle.dumps(box))
    assert copy == box
    assert copy.contains(copy.sample())


@pytest.mark.parametrize("vec_env", [DummyVecEnv, SubprocVecEnv])
def test_one_hot_space_survives_vec_envs(vec_env):
    make = lambda: OneHotActions(Recorder(spaces.MultiDiscrete([3, 2])))  # noqa: E731
    env = vec_env([make])
    check_for_correct_spaces(env, make().observation_space, make().action_space)
    env.reset()
    env.step(np.stack([env.action_space.sample()]))
    env.close()


@pytest.mark.parametrize("space", SUPPORTED, ids=str)
def test_sb3_env_checker_passes(space):
    """Without its advice, which is to scale a Box to [-1, 1]."""
    check_env(OneHotActions(Recorder(space)), warn=False)
    check_env(FlattenActions(Recorder(space)), warn=False)


def test_wrapped_environments_are_rebuilt_from_their_spec():
    """Gymnasium makes an environment again from its spec, wrappers included."""
    env = OneHotActions(gym.make("CartPole-v1"))
    copy = gym.make(env.spec)
    assert copy.action_space == env.action_space


# --- DiscretizeActions ------------------------------------------------------------------------

PLANE = spaces.Box(np.array([-1.0, 0.0], np.float32), np.array([1.0, 4.0], np.float32))


@pytest.mark.parametrize(
    ("bins", "expected"),
    [
        (3, [[-1, 0, 1], [0, 2, 4]]),
        ("bang-bang", [[-1, 1], [0, 4]]),
        ([2, 5], [[-1, 1], [0, 1, 2, 3, 4]]),
        ([[-0.5, 0.25], 3], [[-0.5, 0.25], [0, 2, 4]]),
        (["bang-bang", 3], [[-1, 1], [0, 2, 4]]),
        (np.int64(3), [[-1, 0, 1], [0, 2, 4]]),
        (np.array([2, 3]), [[-1, 1], [0, 2, 4]]),
        ([np.int8(2), (0, 3)], [[-1, 1], [0, 3]]),
        (np.array([[0, 1], [2, 3]]), [[0, 1], [2, 3]]),
    ],
    ids=str,
)
def test_levels_by_hand_reach_the_inner_space(bins, expected):
    env = DiscretizeActions(Recorder(PLANE), bins)
    assert env.action_space == spaces.MultiDiscrete([len(levels) for levels in expected])
    for action in flat_actions(env.action_space):
        env.step(action)
        received = env.unwrapped.received
        assert received.dtype == np.float32
        assert received.tolist() == [levels[i] for levels, i in zip(expected, action, strict=True)]


def test_levels_of_a_shaped_box_are_in_c_order():
    low = np.array([[0, 1], [2, 3]], np.float64)
    env = DiscretizeActions(Recorder(spaces.Box(low, low + 10, dtype=np.float64)), "bang-bang")
    env.step(np.array([1, 0, 0, 1]))
    assert env.unwrapped.received.tolist() == [[10, 1], [2, 13]]
    assert env.unwrapped.received.dtype == np.float64


def test_the_bounds_are_levels_as_the_space_holds_them():
    """0.7 as a float32 lies below 0.7."""
    env = DiscretizeActions(Recorder(spaces.Box(-0.7, 0.7, (1,))), [[-0.7, 0, 0.7]])
    for i in range(3):
        env.step(np.array([i]))
        assert env.unwrapped.received == np.float32([-0.7, 0, 0.7])[i]


@pytest.mark.parametrize(
    ("bins", "levels"), [(3, [0, 2, 4]), ([[0, 3]], [0, 3]), ("bang-bang", [0, 4])], ids=str
)
def test_levels_of_an_integer_box_are_integers(bins, levels):
    env = DiscretizeActions(Recorder(spaces.Box(0, 4, (1,), np.uint8)), bins)
    assert env.levels[0].tolist() == levels
    assert env.levels[0].dtype == np.uint8


@pytest.mark.parametrize(
    ("box", "bins"),
    [
        (spaces.Box(0, 4, (1,), np.uint8), 4),
        (spaces.Box(0, 4, (1,), np.uint8), [[0, 2.5]]),
        (spaces.Box(0, 255, (1,), np.uint8), [[0, 257]]),
        (spaces.Box(1, 1, (1,)), 3),
        (spaces.Box(1, 1, (1,)), [[1, 1]]),
        (spaces.Box(-np.inf, np.inf, (1,)), [[-np.inf, 0]]),
        (spaces.Box(-np.inf, np.inf, (1,)), [[0, 1e300]]),
    ],
    ids=str,
)
def test_levels_that_the_space_cannot_hold_are_refused(box, bins):
    with pytest.raises(ValueError, match=r"of a dimension must be finite levels of \w+ that rise"):
        DiscretizeActions(Recorder(box), bins)


def test_an_unbounded_dimension_takes_given_levels_only():
    box = spaces.Box(-np.inf, np.inf, (1,))
    assert DiscretizeActions(Recorder(box), [[-1, 0, 1]]).levels[0].tolist() == [-1, 0, 1]
    with pytest.raises(ValueError, match="bins 3 of a dimension from -inf to inf: give its levels"):
        DiscretizeActions(Recorder(box), 3)


@pytest.mark.parametrize(
    ("bins", "message"),
    [
        (1, "bins 1 of a dimension must be at least two levels"),
        ([[0.5], 2], r"bins \[0\.5\] of a dimension must be at least two"),
        ([3, 3, 3], r"bins \[3, 3, 3\] must have 2 entries"),
        ([[-2.0, 1.0], 2], r"bins \[-2\.0, 1\.0\] of .* float32 that rise, from -1\.0 to 1\.0"),
        ([[1, -1], 2], r"bins \[1, -1\] of a dimension must be finite levels of float32 that rise"),
        ([[0, 0], 2], r"bins \[0, 0\] of a dimension must be finite levels of float32 that rise"),
        ([[0, 1e-50], 2], r"bins \[0, 1e-50\] of a dimension must be finite levels of float32"),
        ([[np.nan, 1], 2], r"bins \[nan, 1\] of a dimension must be finite levels of float32"),
        ("uniform", "bins 'uniform' of .* two levels: their number, 'bang-bang' or a list of them"),
        (2.5, r"bins 2\.5 of a dimension must be at least two levels"),
        (None, "bins None of a dimension must be at least two levels"),
        (-3, "bins -3 of a dimension must be at least two levels"),
        ([3, "bang"], "bins 'bang' of a dimension must be at least two levels"),
        ([[0, "a"], 2], r"bins \[0, 'a'\] of a dimension must be at least two levels"),
    ],
    ids=str,
)
def test_bins_that_make_no_levels_are_refused(bins, message):
    with pytest.raises(ValueError, match=message):
        DiscretizeActions(Recorder(PLANE), bins)


def test_discrete_actions_are_not_discretised_again():
    with pytest.raises(TypeError, match="needs a Box action space, got Discrete"):
        DiscretizeActions(Recorder(spaces.Discrete(3)), 3)


def test_a_category_that_is_not_there_is_refused():
    env = DiscretizeActions(Recorder(PLANE), 3)
    with pytest.raises(ValueError, match=r"outside MultiDiscrete\(\[3 3\]\)"):
        env.step(np.array([-1, 0]))


def test_a_discretised_environment_is_remade_from_its_spec():
    env = DiscretizeActions(gym.make("Pendulum-v1"), 11)
    again = gym.make(env.spec)
    assert again.action_space == spaces.MultiDiscrete([11])
    check_env(again)


def test_the_command_line_takes_a_wrapper_with_arguments(tmp_path):
    overrides = {("env",): "Pendulum-v1", ("env_wrappers",): [
        {"rl_gumbel.DiscretizeActions": {"bins": 5}}, "gymnasium.wrappers.FlattenObservation"
    ]}  # fmt: skip
    config = load_config(None, overrides)
    env = make_env(config)
    assert env.action_space == spaces.MultiDiscrete([5])
    (tmp_path / "a.yaml").write_text(dump_config(config))
    assert load_config(tmp_path / "a.yaml") == config


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ([7], "--env-wrappers.*must be text or a mapping"),
        ([{"a.B": {}, "c.D": {}}], "--env-wrappers.*must have 1 entries"),
        ([{"a.B": 7}], "--env-wrappers.*must be a mapping"),
    ],
    ids=str,
)
def test_a_wrapper_of_another_form_is_refused(value, message):
    with pytest.raises(ConfigError, match=message):
        load_config(None, {("env_wrappers",): value})
