"""A Gymnasium action space as factors: its actions to one-hot vectors and back, exactly."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor

SUPPORTED = "Discrete, MultiDiscrete (1-D) and MultiBinary(n)"


@dataclass(frozen=True)
class ActionLayout:
    """The factors of an action space: `K` of them, each with its own number of categories."""

    space: spaces.Space[Any]
    """The space whose actions `to_action` returns."""
    sizes: tuple[int, ...]
    """Number of categories of each factor."""
    starts: tuple[int, ...]
    """The action value of each factor's first category."""

    def __post_init__(self) -> None:
        # Not a cached property: its lock cuts a compiled function in two.
        object.__setattr__(self, "_dtype", getattr(torch, np.dtype(self.space.dtype).name))

    @classmethod
    def from_space(cls, space: spaces.Space[Any]) -> "ActionLayout":
        """Return the layout of a `Discrete`, 1-D `MultiDiscrete` or 1-D `MultiBinary` space.

        Raises:
            TypeError: for any other space; the message names the wrapper that helps.
        """
        if isinstance(space, spaces.Discrete):
            return cls(space, (int(space.n),), (int(space.start),))
        if isinstance(space, spaces.MultiDiscrete) and space.nvec.ndim == 1:
            starts = tuple(int(start) for start in space.start)
            return cls(space, tuple(int(n) for n in space.nvec), starts)
        if isinstance(space, spaces.MultiBinary) and len(space.shape) == 1:
            return cls(space, (2,) * space.shape[0], (0,) * space.shape[0])
        raise TypeError(f"action space {space} is not supported: {_advice(space)}")

    @property
    def num_factors(self) -> int:
        """K, the number of factors."""
        return len(self.sizes)

    @property
    def num_categories(self) -> int:
        """N, the number of categories of the largest factor."""
        return max(self.sizes)

    @property
    def num_flat(self) -> int:
        """Length of the vector that `flatten` returns: the sum of `sizes`."""
        return sum(self.sizes)

    @property
    def num_joint(self) -> int:
        """Number of joint actions: the product of `sizes`."""
        return math.prod(self.sizes)

    @property
    def max_entropy(self) -> float:
        """Entropy in nats of the uniform distribution over the space."""
        return float(np.log(self.sizes).sum())

    @cached_property
    def valid(self) -> Tensor:
        """`[K, N]` bool: False where a factor has no such category (padding)."""
        return torch.arange(self.num_categories) < torch.tensor(self.sizes)[:, None]

    @property
    def mask(self) -> Tensor | None:
        """`valid`, or None where every factor has N categories and nothing is padded."""
        return None if self.num_flat == self.num_factors * self.num_categories else self.valid

    def to_index(self, action: Tensor | np.ndarray | int) -> Tensor:
        """Return the `[B, K]` int64 categories, counted from zero, of a batch of actions.

        A single action counts as a batch of one. The shape that SB3's buffers keep, `[B, K]` also
        for `Discrete`, is accepted.

        Raises:
            ValueError: if the last axis does not hold the K factors.
        """
        action = torch.as_tensor(action)
        if self.num_factors > 1 and action.shape[-1:] != (self.num_factors,):
            raise ValueError(
                f"actions of shape {tuple(action.shape)} do not hold the {self.num_factors} "
                f"factors of {self.space} in their last axis"
            )
        index = action.long().reshape(-1, self.num_factors)
        return index - self._starts(index.device) if any(self.starts) else index

    def to_one_hot(self, action: Tensor | np.ndarray | int) -> Tensor:
        """Return the float32 `[B, K, N]` one-hots of a batch of actions.

        Raises:
            ValueError: for an action outside the space, which is named.
        """
        index = self.to_index(action)
        sizes = torch.tensor(self.sizes, device=index.device)
        outside = ((index < 0) | (index >= sizes)).any(-1)
        if bool(outside.any()):
            row = int(outside.nonzero()[0])
            bad = (index[row] + self._starts(index.device)).tolist()
            raise ValueError(f"action {bad} in row {row} is outside {self.space}")
        return self.index_to_one_hot(index)

    def index_to_one_hot(self, index: Tensor) -> Tensor:
        """Return the float32 `[..., K, N]` one-hots of `[..., K]` categories, unchecked."""
        zeros = torch.zeros((*index.shape, self.num_categories), device=index.device)
        return zeros.scatter(-1, index.unsqueeze(-1), 1.0)

    def to_action(self, value: Tensor) -> Tensor:
        """Return actions that the space contains, row by row, in its dtype.

        Args:
            value: one-hots `[B, K, N]` (floating) or categories `[B, K]` (integer).

        Returns:
            `[B]` for `Discrete`, `[B, K]` for the others.
        """
        index = value.argmax(-1) if value.is_floating_point() else value
        action = index + self._starts(index.device) if any(self.starts) else index
        if isinstance(self.space, spaces.Discrete):
            action = action.squeeze(-1)
        return action.to(self._dtype)  # type: ignore[attr-defined]

    def flatten(self, padded: Tensor) -> Tensor:
        """Return `[..., sum(sizes)]`: the factors of `[..., K, N]` side by side, no padding."""
        flat = padded.flatten(-2)
        return flat if self.mask is None else flat[..., self._flat_positions(flat.device)]

    def unflatten(self, flat: Tensor) -> Tensor:
        """Return `[..., K, N]`, the inverse of `flatten`; padding is zero (False for a mask).

        Raises:
            ValueError: if the last axis has another length than `num_flat`.
        """
        if flat.shape[-1] != self.num_flat:
            raise ValueError(
                f"a flat vector of {self.space} has {self.num_flat} entries; got {flat.shape[-1]}"
            )
        shape = (*flat.shape[:-1], self.num_factors, self.num_categories)
        if self.mask is None:
            return flat.reshape(shape)
        padded = flat.new_zeros((*flat.shape[:-1], self.num_factors * self.num_categories))
        positions = self._flat_positions(flat.device)
        return padded.index_copy(-1, positions, flat).reshape(shape)

    def _starts(self, device: torch.device) -> Tensor:
        return self._copy("starts", device, lambda: torch.tensor(self.starts))

    def _flat_positions(self, device: torch.device) -> Tensor:
        return self._copy(
            "flat_positions", device, lambda: self.valid.flatten().nonzero().squeeze(-1)
        )

    def _copy(self, name: str, device: torch.device, make: Callable[[], Tensor]) -> Tensor:
        """Return a small tensor on a device, made once: a copy at each step would wait for it."""
        copies: dict[tuple[str, torch.device], Tensor] = self.__dict__.setdefault("_copies", {})
        if (name, device) not in copies:
            copies[name, device] = make().to(device)
        return copies[name, device]


def _advice(space: spaces.Space[Any]) -> str:
    """Return what a user of an unsupported space can do."""
    discrete = (spaces.Discrete, spaces.MultiDiscrete, spaces.MultiBinary)
    parts: list[spaces.Space[Any]] = []
    if isinstance(space, spaces.Dict):
        parts = list(space.spaces.values())
    elif isinstance(space, spaces.Tuple):
        parts = list(space.spaces)
    if isinstance(space, discrete) or (parts and all(isinstance(p, discrete) for p in parts)):
        return f"supported are {SUPPORTED}; wrap the environment in rl_gumbel.FlattenActions"
    return f"supported are {SUPPORTED}"
