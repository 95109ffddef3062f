"""Steps of a rollout as an on-policy algorithm learns from them, in shuffled minibatches."""

from collections.abc import Iterator
from dataclasses import dataclass, fields
from typing import Any, Self

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from rl_gumbel.types import Obs


@dataclass(frozen=True)
class Samples:
    """M steps; an algorithm adds the tensors `[M, ...]` that it needs besides."""

    obs: Obs
    """`[M, *O]`."""
    mask: Tensor | None
    """`[M, K, N]` bool."""
    index: Tensor
    """`[M, K]` int64: what was chosen."""

    def __len__(self) -> int:
        return len(self.index)

    def take(self, rows: Tensor) -> Self:
        """Return the samples of some rows `[M']` int64."""

        def some(part: Any) -> Any:
            return None if part is None else part.index_select(0, rows)

        parts = (getattr(self, field.name) for field in fields(self))
        return type(self)(*(tree_map(some, part) for part in parts))

    def minibatches(self, size: int, count: int) -> Iterator[Self]:
        """Yield `count` disjoint minibatches of `size`, shuffled; the rest is left out."""
        return (self.take(rows) for rows in self.shuffled_rows(size, count))

    def shuffled_rows(self, size: int, count: int) -> Iterator[Tensor]:
        """Yield the rows of `minibatches`, `[size]` int64 each."""
        order = torch.randperm(len(self), device=self.index.device)
        return iter(order[: size * count].split(size))
