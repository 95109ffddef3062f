"""The action layout: exact round trips, rows that the space contains, errors by name."""

import copy
import itertools
import math
import pickle
import re

import numpy as np
import pytest
import torch
from gymnasium import spaces
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from rl_gumbel.actions import ActionLayout

SPACES = [
    spaces.Discrete(1),
    spaces.Discrete(5),
    spaces.Discrete(3, start=7),
    spaces.Discrete(4, start=-2),
    spaces.Discrete(3, start=-1, dtype=np.int8),
    spaces.Discrete(6, dtype=np.int32),
    spaces.MultiDiscrete([5]),
    spaces.MultiDiscrete([3, 3, 3]),
    spaces.MultiDiscrete([2, 5, 1, 3]),
    spaces.MultiDiscrete([2, 4], start=[-1, 10]),
    spaces.MultiDiscrete([4, 2, 3], dtype=np.int32),
    spaces.MultiDiscrete([2, 3], dtype=np.int8, start=[-3, 0]),
    spaces.MultiBinary(1),
    spaces.MultiBinary(4),
]
"""Starts of both signs, several dtypes, factors of equal and unequal size, padding and none."""

fewer_examples = settings(derandomize=True, max_examples=40, deadline=None, database=None)


@st.composite
def some_spaces(draw: st.DrawFn) -> spaces.Space:
    """Draw a Discrete, MultiDiscrete or MultiBinary space."""
    dtype = draw(st.sampled_from([np.int8, np.int16, np.int32, np.int64]))
    starts, sizes = st.integers(-50, 50), st.integers(1, 7)
    kind = draw(st.sampled_from(["discrete", "multi_discrete", "multi_binary"]))
    if kind == "discrete":
        return spaces.Discrete(draw(sizes), start=draw(starts), dtype=dtype)
    if kind == "multi_binary":
        return spaces.MultiBinary(draw(sizes))
    nvec = draw(st.lists(sizes, min_size=1, max_size=6))
    start = draw(st.lists(starts, min_size=len(nvec), max_size=len(nvec)))
    return spaces.MultiDiscrete(nvec, dtype=dtype, start=start)


def every_action(space: spaces.Space) -> np.ndarray:
    """Return all actions of a small space, written without the layout: `[M]` or `[M, K]`."""
    if isinstance(space, spaces.Discrete):
        return np.arange(int(space.n)).astype(space.dtype) + space.start
    if isinstance(space, spaces.MultiBinary):
        return np.array(list(itertools.product([0, 1], repeat=space.n)), dtype=space.dtype)
    ranges = [
        range(s, s + n) for n, s in zip(space.nvec.tolist(), space.start.tolist(), strict=True)
    ]
    return np.array(list(itertools.product(*ranges)), dtype=space.dtype)


def sampled_actions(space: spaces.Space, num_actions: int) -> np.ndarray:
    space.seed(0)
    return np.stack([space.sample() for _ in range(num_actions)])


def assert_rows_belong_to(space: spaces.Space, actions: Tensor) -> None:
    """Each row, as numpy, is in the space with the space's own dtype and shape."""
    for row in actions:
        as_numpy = row.numpy()
        assert as_numpy.dtype == space.dtype
        assert as_numpy.shape == space.shape
        assert space.contains(as_numpy)


@pytest.mark.parametrize("space", SPACES, ids=str)
def test_every_action_survives_the_round_trip(space: spaces.Space) -> None:
    """Action -> one-hot -> action, and by the index, without loss; every row is in the space."""
    layout = ActionLayout.from_space(space)
    actions = every_action(space)
    one_hot = layout.to_one_hot(actions)
    assert len(actions) == layout.num_joint
    assert one_hot.shape == (len(actions), layout.num_factors, layout.num_categories)
    assert one_hot.dtype == torch.float32
    for value in (one_hot, layout.to_index(actions)):
        back = layout.to_action(value)
        assert np.array_equal(back.numpy(), actions)
        assert_rows_belong_to(space, back)


@given(space=some_spaces())
@fewer_examples
def test_sampled_actions_of_any_space_survive_the_round_trip(space: spaces.Space) -> None:
    """The same for drawn spaces; a one-hot has one entry per factor, none of it in padding."""
    layout = ActionLayout.from_space(space)
    actions = sampled_actions(space, 8)
    one_hot = layout.to_one_hot(actions)
    assert torch.equal(one_hot.sum(-1), torch.ones(8, layout.num_factors))
    assert not bool(one_hot[:, ~layout.valid].any())
    back = layout.to_action(one_hot)
    assert np.array_equal(back.numpy(), actions)
    assert_rows_belong_to(space, back)


@given(space=some_spaces(), seed=st.integers(0, 100))
@fewer_examples
def test_flatten_and_unflatten_are_inverse(space: spaces.Space, seed: int) -> None:
    """Both ways, with any leading axes; padding comes back as zero."""
    layout = ActionLayout.from_space(space)
    flat = torch.randn(2, 3, sum(layout.sizes), generator=torch.Generator().manual_seed(seed))
    padded = layout.unflatten(flat)
    assert padded.shape == (2, 3, layout.num_factors, layout.num_categories)
    assert torch.equal(layout.flatten(padded), flat)
    assert not bool(padded[..., ~layout.valid].any())


@given(space=some_spaces())
@fewer_examples
def test_the_description_agrees_with_the_space(space: spaces.Space) -> None:
    """Sizes, starts, the number of joint actions and the entropy of the uniform distribution."""
    layout = ActionLayout.from_space(space)
    assert layout.num_factors == len(layout.sizes) == len(layout.starts)
    assert layout.num_categories == max(layout.sizes)
    assert layout.num_flat == sum(layout.sizes)
    assert layout.valid.sum(-1).tolist() == list(layout.sizes)
    assert layout.valid.shape == (layout.num_factors, layout.num_categories)
    assert layout.max_entropy == pytest.approx(math.log(layout.num_joint), abs=1e-9)
    assert (layout.mask is None) == bool(layout.valid.all())


def test_a_layout_by_hand() -> None:
    """MultiDiscrete([2, 3]) from (-1, 10): numbers one can read."""
    layout = ActionLayout.from_space(spaces.MultiDiscrete([2, 3], start=[-1, 10]))
    assert (layout.sizes, layout.starts) == ((2, 3), (-1, 10))
    assert torch.equal(layout.valid, torch.tensor([[True, True, False], [True, True, True]]))
    one_hot = layout.to_one_hot(np.array([[0, 12]]))
    assert torch.equal(one_hot, torch.tensor([[[0.0, 1.0, 0.0], [0.0, 0.0, 1.0]]]))
    assert torch.equal(layout.flatten(one_hot), torch.tensor([[0.0, 1.0, 0.0, 0.0, 1.0]]))
    assert torch.equal(layout.to_action(one_hot), torch.tensor([[0, 12]]))


def test_multi_binary_is_factors_of_two() -> None:
    """Category 1 is a set bit."""
    layout = ActionLayout.from_space(spaces.MultiBinary(3))
    assert (layout.sizes, layout.starts) == ((2, 2, 2), (0, 0, 0))
    one_hot = layout.to_one_hot(np.array([[1, 0, 1]], dtype=np.int8))
    assert torch.equal(one_hot[0, :, 1], torch.tensor([1.0, 0.0, 1.0]))


def test_joint_actions_of_a_large_space_are_counted_exactly() -> None:
    """2^2000 overflows a float; algorithms compare this number to a limit."""
    assert ActionLayout.from_space(spaces.MultiBinary(2000)).num_joint == 2**2000
    assert ActionLayout.from_space(spaces.MultiDiscrete([3] * 40)).num_joint == 3**40


@pytest.mark.parametrize(
    "action",
    [7, np.int64(7), np.array([7, 8]), np.array([[7], [8]]), torch.tensor([[7.0], [8.0]])],
    ids=["int", "scalar", "[B]", "[B, 1]", "float [B, 1]"],
)
def test_discrete_actions_are_read_in_every_shape_of_a_buffer(action: object) -> None:
    """SB3's buffers keep `[B, 1]`, PPO's as floats; `env.step` takes a scalar."""
    layout = ActionLayout.from_space(spaces.Discrete(3, start=7))
    index = layout.to_index(action)
    assert index.dtype == torch.int64
    assert index.tolist() == [[0], [1]][: len(index)]


def test_a_single_multi_discrete_action_is_a_batch_of_one() -> None:
    """`[K]` in, `[1, K]` out; a stack of batches `[T, B, K]` becomes rows."""
    layout = ActionLayout.from_space(spaces.MultiDiscrete([2, 3]))
    assert layout.to_index(np.array([1, 2])).tolist() == [[1, 2]]
    assert layout.to_index(np.zeros((4, 5, 2), dtype=np.int64)).shape == (20, 2)


def test_small_dtypes_do_not_wrap_around() -> None:
    """An int8 action of 127 with a start of -128 is category 255: the sum leaves int8."""
    space = spaces.MultiDiscrete([2, 2], dtype=np.int8, start=[-128, 126])
    layout = ActionLayout.from_space(space)
    actions = np.array([[-127, 127]], dtype=np.int8)
    assert layout.to_index(actions).tolist() == [[1, 1]]
    assert np.array_equal(layout.to_action(layout.to_one_hot(actions)).numpy(), actions)


def test_unflatten_carries_masks_and_gradients() -> None:
    """A flat mask of bools stays bool with False padding; a gradient passes both ways."""
    layout = ActionLayout.from_space(spaces.MultiDiscrete([2, 3]))
    mask = layout.unflatten(torch.tensor([True, False, True, True, False]))
    assert torch.equal(mask, torch.tensor([[True, False, False], [True, True, False]]))
    flat = torch.arange(5.0, requires_grad=True)
    layout.flatten(layout.unflatten(flat) * 3.0).sum().backward()
    assert torch.equal(flat.grad, torch.full((5,), 3.0))


def test_a_layout_is_copied_and_pickled() -> None:
    """SB3 saves and deep-copies what holds one, after its tensors were made."""
    layout = ActionLayout.from_space(spaces.MultiDiscrete([2, 3], start=[-1, 10]))
    layout.flatten(torch.zeros(1, 2, 3))
    for copied in (copy.deepcopy(layout), pickle.loads(pickle.dumps(layout))):
        assert copied == layout
        assert torch.equal(copied.valid, layout.valid)


# --- errors ---------------------------------------------------------------------------------------

DISCRETE = spaces.Discrete(2)


@pytest.mark.parametrize(
    "space",
    [
        spaces.MultiDiscrete([[2, 3], [4, 5]]),
        spaces.MultiBinary([2, 3]),
        spaces.Tuple((DISCRETE, spaces.MultiDiscrete([2, 3]))),
        spaces.Dict({"a": DISCRETE, "b": spaces.MultiBinary(2)}),
    ],
    ids=str,
)
def test_a_shaped_or_nested_space_is_sent_to_the_wrapper(space: spaces.Space) -> None:
    """The message has the space, what is supported, and what turns the one into the other."""
    with pytest.raises(TypeError) as error:
        ActionLayout.from_space(space)
    assert f"action space {space} is not supported" in str(error.value)
    assert "Discrete, MultiDiscrete (1-D) and MultiBinary(n)" in str(error.value)
    assert "rl_gumbel.FlattenActions" in str(error.value)


@pytest.mark.parametrize(
    "space",
    [
        spaces.Box(-1.0, 1.0, (2,)),
        spaces.Tuple((DISCRETE, spaces.Box(-1.0, 1.0, (2,)))),
        spaces.Tuple((DISCRETE, spaces.Tuple((DISCRETE, DISCRETE)))),
        spaces.Text(3),
        spaces.Sequence(DISCRETE),
    ],
    ids=str,
)
def test_a_space_that_cannot_be_flattened_is_not_sent_there(space: spaces.Space) -> None:
    """FlattenActions does not help a Box, nor deeper nesting: the message must not say so."""
    with pytest.raises(TypeError) as error:
        ActionLayout.from_space(space)
    assert f"action space {space} is not supported" in str(error.value)
    assert "Discrete, MultiDiscrete (1-D) and MultiBinary(n)" in str(error.value)
    assert "FlattenActions" not in str(error.value)


@pytest.mark.parametrize(
    ("space", "actions", "named"),
    [
        (spaces.Discrete(3), [0, 3], "action [3] in row 1"),
        (spaces.Discrete(3, start=7), [6], "action [6] in row 0"),
        (
            spaces.MultiDiscrete([2, 3], start=[-1, 10]),
            [[0, 12], [1, 10]],
            "action [1, 10] in row 1",
        ),
        (spaces.MultiBinary(2), [[0, 2]], "action [0, 2] in row 0"),
    ],
)
def test_an_action_outside_the_space_is_named(
    space: spaces.Space, actions: list[object], named: str
) -> None:
    """In the space's own numbers, with its row; padding does not make room for it."""
    message = re.escape(f"{named} is outside {space}")
    with pytest.raises(ValueError, match=message):
        ActionLayout.from_space(space).to_one_hot(np.array(actions))


@pytest.mark.parametrize("shape", [(2, 3), (6,), ()])
def test_actions_of_the_wrong_width_are_refused(shape: tuple[int, ...]) -> None:
    """Six numbers could be cut into three rows of two, but they were not meant so."""
    layout = ActionLayout.from_space(spaces.MultiDiscrete([2, 3]))
    message = re.escape(f"actions of shape {shape} do not hold the 2 factors")
    with pytest.raises(ValueError, match=message):
        layout.to_index(torch.zeros(shape, dtype=torch.int64))


def test_a_flat_vector_of_the_wrong_length_is_refused() -> None:
    """The message has the length wanted and the length got."""
    layout = ActionLayout.from_space(spaces.MultiDiscrete([2, 3]))
    with pytest.raises(ValueError, match="has 5 entries; got 6"):
        layout.unflatten(torch.zeros(1, 6))
