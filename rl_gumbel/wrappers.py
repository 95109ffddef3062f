"""Gymnasium wrappers of the action space: shaped, nested and continuous spaces, one-hot vectors.

`FlattenActions` and `DiscretizeActions` make the spaces that `ActionLayout` refuses into ones that
it takes; `OneHotActions` makes a discrete space into the `Box` that stock SAC, TD3 and DDPG demand;
`MasksInInfo` tells what may be chosen where the environment is only asked for it.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from gymnasium.utils import RecordConstructorArgs
from numpy.typing import NDArray

from rl_gumbel.actions import ActionLayout

DISCRETE = (spaces.Discrete, spaces.MultiDiscrete, spaces.MultiBinary)


class FlattenActions(gym.ActionWrapper[Any, Any, Any], RecordConstructorArgs):
    """An environment whose action space is a flat `MultiDiscrete` or `MultiBinary`, from zero.

    It takes `Discrete`, `MultiDiscrete` and `MultiBinary` of any shape and start, and one level of
    `Tuple` or `Dict` of these. The factors follow one another in the order of the space (that of
    its keys for `Dict`), each part in C order. The flat space is `MultiBinary` if every part is,
    else `MultiDiscrete`. Masks, of an `action_masks` method of the environment or in
    `info["action_mask"]`, become flat in that order: a `dict` or a `tuple` as the space is, each
    entry an array or a `tuple` with one array for each factor; one array passes as it is.

    Args:
        env: with such an action space.

    Raises:
        TypeError: for any other action space, which is named.
    """

    def __init__(self, env: gym.Env[Any, Any]) -> None:
        RecordConstructorArgs.__init__(self)
        gym.ActionWrapper.__init__(self, env)
        self._parts = _parts(env.action_space)
        sizes = [_sizes(part) for part in self._parts]
        self._splits = np.cumsum([len(size) for size in sizes])[:-1]
        if all(isinstance(part, spaces.MultiBinary) for part in self._parts):
            self.action_space = spaces.MultiBinary(sum(len(size) for size in sizes))
        else:
            self.action_space = spaces.MultiDiscrete(np.concatenate(sizes))

    def action(self, action: Any) -> Any:
        """Return the action of the inner space for a flat one.

        Raises:
            ValueError: for an action outside the flat space.
        """
        if not self.action_space.contains(action):
            raise ValueError(f"action {action!r} is outside the flat space {self.action_space}")
        index = np.asarray(action, dtype=np.int64)
        values = [
            _to_action(part, piece)
            for part, piece in zip(self._parts, np.split(index, self._splits), strict=True)
        ]
        inner = self.env.action_space
        if isinstance(inner, spaces.Dict):
            return dict(zip(inner.spaces, values, strict=True))
        return tuple(values) if isinstance(inner, spaces.Tuple) else values[0]

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        """Start an episode."""
        obs, info = self.env.reset(seed=seed, options=options)
        return obs, self._flatten_info(info)

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        """Take one step."""
        obs, reward, terminated, truncated, info = super().step(action)
        return obs, reward, terminated, truncated, self._flatten_info(info)

    @property
    def action_masks(self) -> Callable[[], NDArray[np.bool_]]:
        """A function that returns the flat mask now, `[sum(sizes)]`.

        Raises:
            AttributeError: where the environment has no `action_masks`.
        """
        masks = self.env.get_wrapper_attr("action_masks")
        return lambda: self._flatten_mask(masks()).astype(np.bool_)

    def _flatten_info(self, info: dict[str, Any]) -> dict[str, Any]:
        if "action_mask" not in info:
            return info
        return {**info, "action_mask": self._flatten_mask(info["action_mask"])}

    def _flatten_mask(self, mask: Any) -> NDArray[Any]:
        inner = self.env.action_space
        if isinstance(mask, Mapping) and isinstance(inner, spaces.Dict):
            if mask.keys() != inner.spaces.keys():
                raise ValueError(f"action mask has the keys {list(mask)}, not those of {inner}")
            mask = tuple(mask[key] for key in inner.spaces)
        return flatten_mask(mask)


class DiscretizeActions(gym.ActionWrapper[Any, Any, Any], RecordConstructorArgs):
    """An environment whose `Box` actions are levels: a `MultiDiscrete`, one factor a dimension.

    Args:
        env: with a `Box` action space, whose dimensions are taken in C order.
        bins: a number of levels, evenly spaced from the lowest to the highest action, both
            included; `bang-bang` for these two alone; or a list with one entry for each dimension,
            which is one of these or the levels themselves, rising.

    Raises:
        TypeError: for any other action space.
        ValueError: for bins that are fewer than 2 or not one for each dimension, for levels that do
            not rise or that the space cannot hold, and for even spacing where an action has no
            bound.
    """

    def __init__(
        self, env: gym.Env[Any, Any], bins: int | str | Sequence[int | str | Sequence[float]]
    ) -> None:
        RecordConstructorArgs.__init__(self, bins=bins)
        gym.ActionWrapper.__init__(self, env)
        box = env.action_space
        if not isinstance(box, spaces.Box):
            raise TypeError(f"DiscretizeActions needs a Box action space, got {box}")
        is_for_all = isinstance(bins, str) or not np.iterable(bins)
        each: list[Any] = [bins] * box.low.size if is_for_all else list(bins)  # type: ignore[arg-type]
        if len(each) != box.low.size:
            raise ValueError(f"bins {bins!r} must have {box.low.size} entries, one a dimension")
        self.levels = list(map(_levels, each, box.low.ravel(), box.high.ravel()))
        """For each dimension its actions."""
        self._shape, self._dtype = box.shape, box.dtype
        self.action_space = spaces.MultiDiscrete([len(level) for level in self.levels])

    def action(self, action: NDArray[np.int64]) -> NDArray[Any]:
        """Return the `Box` action for one category of each dimension, `[K]`.

        Raises:
            ValueError: for an action outside the discrete space.
        """
        if not self.action_space.contains(action):
            raise ValueError(f"action {action!r} is outside {self.action_space}")
        values = [level[i] for level, i in zip(self.levels, action, strict=True)]
        return np.array(values, self._dtype).reshape(self._shape)


def _levels(bins: Any, low: np.number[Any], high: np.number[Any]) -> NDArray[Any]:
    """Return the levels of one dimension, in the dtype of its bounds."""
    count = 2 if isinstance(bins, str) and bins == "bang-bang" else bins
    if isinstance(count, int | np.integer) and count >= 2:
        if not np.isfinite([low, high]).all():
            raise ValueError(f"bins {bins!r} of a dimension from {low} to {high}: give its levels")
        exact = np.linspace(float(low), float(high), int(count))
    else:
        try:
            exact = np.array(bins, np.float64)
        except (TypeError, ValueError):  # of another kind
            exact = np.array(np.nan)
    if exact.ndim != 1 or len(exact) < 2:
        raise ValueError(
            f"bins {bins!r} of a dimension must be at least two levels: their number, 'bang-bang' "
            f"or a list of them"
        )
    with np.errstate(all="ignore"):  # what the dtype cannot hold is refused
        levels = exact.astype(low.dtype)
    is_held = np.isfinite(levels) & (low <= levels) & (levels <= high)
    if low.dtype.kind in "iu":
        is_held &= levels == exact
    if not (is_held.all() and (levels[:-1] < levels[1:]).all()):
        raise ValueError(
            f"bins {bins!r} of a dimension must be finite levels of {low.dtype} that rise, from "
            f"{low} to {high}"
        )
    return levels


class OneHotBox(spaces.Box):
    """The one-hot vectors of a discrete space, as a `Box` of zeros to ones.

    Stock SB3 sees a `Box`; `sample` and `contains` know exact one-hots only, and two are equal if
    they stand for the same discrete space.

    Args:
        space: one that `ActionLayout` supports.
        seed: of `sample`.

    Raises:
        TypeError: for a space that is not supported.
    """

    def __init__(self, space: spaces.Space[Any], seed: int | None = None) -> None:
        self.layout = ActionLayout.from_space(space)
        super().__init__(0.0, 1.0, (self.layout.num_flat,), np.float32, seed)

    def sample(self, mask: None = None, probability: None = None) -> NDArray[np.float32]:
        """Return one-hots, float32 `[sum(sizes)]`, every joint action equally likely.

        Raises:
            ValueError: if a mask or probabilities are given.
        """
        if mask is not None or probability is not None:
            raise ValueError(f"{self} samples uniformly; it takes no mask and no probability")
        one_hot = np.zeros(self.shape, np.float32)
        one_hot[self._offsets() + self.np_random.integers(self.layout.sizes)] = 1
        return one_hot

    def contains(self, x: Any) -> bool:
        """Return whether `x` is a vector with exactly one 1, and else 0, in every factor."""
        if not isinstance(x, np.ndarray) or x.shape != self.shape:
            return False
        return bool(((x == 0) | (x == 1)).all() and (self._ones_per_factor(x) == 1).all())

    def to_action(self, one_hot: NDArray[Any]) -> Any:
        """Return the action of the discrete space that a one-hot vector stands for.

        Raises:
            ValueError: if the vector is not one-hot in every factor.
        """
        if not self.contains(one_hot):
            raise ValueError(
                f"{one_hot!r} is not a one-hot vector of {self.layout.space}: every factor, sizes "
                f"{self.layout.sizes}, must hold one 1 and else 0 (to an algorithm that would add "
                f"noise pass action_noise=None)"
            )
        return _to_action(self.layout.space, np.flatnonzero(one_hot) - self._offsets())

    def _offsets(self) -> NDArray[np.int64]:
        """Return where each factor begins in the vector, `[K]`."""
        return np.cumsum((0, *self.layout.sizes[:-1]))

    def _ones_per_factor(self, x: NDArray[Any]) -> NDArray[Any]:
        return np.asarray(np.add.reduceat(x, self._offsets()))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, OneHotBox) and bool(self.layout.space == other.layout.space)

    def __repr__(self) -> str:
        return f"OneHotBox({self.layout.space})"


class OneHotActions(gym.ActionWrapper[Any, Any, Any], RecordConstructorArgs):
    """An environment that takes one-hot vectors for the actions of a discrete space.

    Its action space is a `OneHotBox`, which stock SAC, TD3 and DDPG accept; use it with
    `GumbelSACPolicy` or `GumbelTD3Policy`. The environment inside gets the true action, a
    `Discrete` start honoured.

    Args:
        env: with a `Discrete`, 1-D `MultiDiscrete` or 1-D `MultiBinary` action space.

    Raises:
        TypeError: for any other action space.
    """

    def __init__(self, env: gym.Env[Any, Any]) -> None:
        RecordConstructorArgs.__init__(self)
        gym.ActionWrapper.__init__(self, env)
        self._one_hots = OneHotBox(env.action_space)
        self.action_space = self._one_hots

    def action(self, action: NDArray[Any]) -> Any:
        """Return the action of the inner space for a one-hot vector `[sum(sizes)]`.

        Raises:
            ValueError: if the vector is not one-hot in every factor.
        """
        return self._one_hots.to_action(action)


class MasksInInfo(gym.Wrapper[Any, Any, Any, Any]):
    """What the environment's `action_masks` method returns, as `info["action_mask"]` too.

    So the masks on last observations are known: `make_vec_env(..., wrapper_class=MasksInInfo)`.
    """

    def reset(self, **kwargs: Any) -> tuple[Any, dict[str, Any]]:
        """Start an episode."""
        obs, info = self.env.reset(**kwargs)
        return obs, self._add(info)

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        """Take one step."""
        obs, reward, terminated, truncated, info = self.env.step(action)
        return obs, reward, terminated, truncated, self._add(info)

    def _add(self, info: dict[str, Any]) -> dict[str, Any]:
        mask = self.get_wrapper_attr("action_masks")()
        return {**info, "action_mask": flatten_mask(mask).astype(np.int8)}


def flatten_mask(mask: Any) -> NDArray[Any]:
    """Return the entries of an array, or of arrays in nested tuples, one after the other."""
    if isinstance(mask, tuple):
        return np.concatenate([flatten_mask(part) for part in mask])
    return np.asarray(mask).ravel()


def _parts(space: spaces.Space[Any]) -> list[spaces.Space[Any]]:
    """Return the discrete spaces that a space consists of."""
    parts: list[spaces.Space[Any]] = [space]
    if isinstance(space, spaces.Dict):
        parts = list(space.spaces.values())
    elif isinstance(space, spaces.Tuple):
        parts = list(space.spaces)
    if not parts or not all(isinstance(part, DISCRETE) for part in parts):
        raise TypeError(
            f"FlattenActions cannot flatten {space}: it takes Discrete, MultiDiscrete, MultiBinary "
            f"and one level of Tuple or Dict of these"
        )
    return parts


def _sizes(space: spaces.Space[Any]) -> NDArray[np.int64]:
    """Return the number of categories of each factor of a discrete space, flat."""
    if isinstance(space, spaces.Discrete):
        return np.array([space.n], np.int64)
    if isinstance(space, spaces.MultiDiscrete):
        return space.nvec.astype(np.int64).ravel()
    return np.full(np.prod(space.shape or (), dtype=int), 2, np.int64)


def _to_action(space: spaces.Space[Any], index: NDArray[np.int64]) -> Any:
    """Return the action of a discrete space for its flat zero-based categories."""
    dtype = np.dtype(space.dtype)
    if isinstance(space, spaces.Discrete):
        return dtype.type(index[0] + space.start)
    start = space.start if isinstance(space, spaces.MultiDiscrete) else 0
    return (index.reshape(space.shape or ()) + start).astype(dtype)
