"""Between numpy on the host and tensors on a device, each way as one copy."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

Tree = Any
"""An array or tensor, None, or a dict of such."""


def to_numpy(tree: Tree) -> Tree:
    """Return the same tree of numpy arrays, all new; reads the device once."""
    return map_leaves(Tensor.numpy, _move(tree, torch.device("cpu")))


def to_torch(tree: Tree, device: torch.device) -> Tree:
    """Return the same tree of tensors on a device, all new; writes to the device once."""
    tensors = map_leaves(lambda array: torch.from_numpy(np.ascontiguousarray(array)), tree)
    return _move(tensors, device)


def map_leaves(function: Callable[[Any], Any], tree: Tree) -> Tree:
    """Return the tree of what the function returns for each leaf; None stays None."""
    if isinstance(tree, dict):
        return {name: map_leaves(function, value) for name, value in tree.items()}
    return None if tree is None else function(tree)


def _move(tree: Tree, device: torch.device) -> Tree:
    leaves: list[Tensor] = []
    map_leaves(leaves.append, tree)
    if all(leaf.device == device for leaf in leaves):
        return map_leaves(lambda leaf: leaf.detach().clone(), tree)  # numpy has no past
    moved = iter(unpack(pack(leaves).to(device), leaves))
    return map_leaves(lambda _: next(moved), tree)


def pack(tensors: Sequence[Tensor]) -> Tensor:
    """Return the bytes of all tensors side by side, `[total]` uint8."""
    # numpy, on either side, has no past.
    return torch.cat([tensors[i].detach().reshape(-1).view(torch.uint8) for i in _order(tensors)])


def unpack(packed: Tensor, tensors: Sequence[Tensor]) -> list[Tensor]:
    """Return views of packed bytes with the shapes and types of the tensors that were packed."""
    order = _order(tensors)
    pieces = packed.split([tensors[i].nbytes for i in order])
    views = list(tensors)
    for i, piece in zip(order, pieces, strict=True):
        views[i] = piece.view(tensors[i].dtype).view(tensors[i].shape)
    return views


def _order(tensors: Sequence[Tensor]) -> list[int]:
    """Return large elements first: then every one starts at a multiple of its size."""
    return sorted(range(len(tensors)), key=lambda i: -tensors[i].element_size())
