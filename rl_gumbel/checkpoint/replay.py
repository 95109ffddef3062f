"""The content of a replay buffer, ours or SB3's, as a tree and back."""

from typing import Any

import numpy as np
from stable_baselines3.common.buffers import ReplayBuffer

from rl_gumbel.buffers import DeviceReplayBuffer

ARRAYS = ("observations", "next_observations", "actions", "rewards", "dones", "timeouts")
"""Attributes of SB3's buffers; one that saves memory has no next observations."""


def get_replay(buffer: ReplayBuffer) -> dict[str, Any]:
    """Return position and stored rows, views of the buffer's own."""
    # One row more than is stored: where memory is saved it holds the last next observation.
    rows = buffer.buffer_size if buffer.full else buffer.pos + 1
    return {
        "pos": buffer.pos,
        "full": buffer.full,
        "rows": {name: part[:rows] for name, part in _parts(buffer).items()},
    }


def set_replay(buffer: ReplayBuffer, state: dict[str, Any], *, cut: bool) -> None:
    """Fill a buffer of the same shape with what `get_replay` returned.

    Args:
        buffer: to be filled.
        state: of the other one.
        cut: end the episodes that were going on, as truncated: what is added next is of others.

    Raises:
        ValueError: if the shapes differ.
    """
    parts, rows = _parts(buffer), state["rows"]
    if parts.keys() != rows.keys():
        raise ValueError(f"a replay of {', '.join(rows)} does not fit one of {', '.join(parts)}")
    for name, part in parts.items():
        if part.shape[1:] != rows[name].shape[1:] or len(rows[name]) > len(part):
            raise ValueError(
                f"replay {name} {tuple(rows[name].shape)} does not fit {tuple(part.shape)}"
            )
        part[: len(rows[name])] = rows[name]
    buffer.pos, buffer.full = state["pos"], state["full"]
    if cut and buffer.size():
        last = buffer.pos - 1
        if isinstance(buffer, DeviceReplayBuffer):
            buffer.store["truncated"][last] = ~buffer.store["terminated"][last]
        elif hasattr(buffer, "timeouts"):
            # Read by n-step returns; a time-out without an end does not change a single step.
            buffer.timeouts[last] = np.logical_or(buffer.timeouts[last], 1 - buffer.dones[last])


def _parts(buffer: ReplayBuffer) -> dict[str, Any]:
    """Return the tensors or arrays of a buffer, rows first."""
    if isinstance(buffer, DeviceReplayBuffer):
        return buffer.store
    parts: dict[str, Any] = {}
    for name in ARRAYS:
        value = getattr(buffer, name, None)
        if isinstance(value, dict):
            parts |= {f"{name}.{key}": part for key, part in value.items()}
        elif value is not None:
            parts[name] = value
    return parts
