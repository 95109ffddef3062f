"""Replay storage on the device: filled and sampled by whole batches, without waiting for it."""

import os
import re
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from gymnasium import spaces
from stable_baselines3.common.buffers import BaseBuffer, ReplayBuffer
from stable_baselines3.common.utils import get_device
from torch import Tensor

from rl_gumbel.actions import ActionLayout
from rl_gumbel.types import Obs, Step


class DeviceReplaySamples(NamedTuple):
    """A batch of M transitions: SB3's `ReplayBufferSamples` and the masks."""

    observations: Obs
    """`[M, *O]`, in the dtype of the space."""
    actions: Tensor
    """`[M]` or `[M, K]`: what the space contains."""
    next_observations: Obs
    """`[M, *O]`: what the last of the `n_steps` led to; the end of the episode if it ended."""
    dones: Tensor
    """`[M, 1]` float32: 1 where that has no future (terminated); a truncation has one."""
    rewards: Tensor
    """`[M, 1]` float32: the discounted sum over the `n_steps`, or over those that there are."""
    discounts: Tensor | None
    """`[M, 1]` float32: of the value of `next_observations`; None for one step, gamma then."""
    action_masks: Tensor | None
    """`[M, K, N]` bool: what could be chosen on `observations`; None if everything always."""
    next_action_masks: Tensor | None
    """`[M, K, N]` bool: the same on `next_observations`."""
    weights: Tensor | None = None
    """`[M, 1]` float32 in (0, 1]: importance weights; None where samples are uniform."""
    positions: Tensor | None = None
    """`[M]` int64, for `update_priorities`; None where samples are uniform."""


class DeviceReplayBuffer(ReplayBuffer):
    """The last transitions of B environments in preallocated tensors.

    Samples are uniform, drawn by torch's generator of the device. The returns of `n_steps` are made
    when sampled: they stop where an episode ended, and at the newest transition, from where they
    bootstrap over fewer steps.

    With a `priority_exponent` a transition is drawn in proportion to its priority, the size of its
    TD error to that power (Schaul et al. 2016, arXiv 1511.05952, eq. 1), and until it has been
    sampled to the greatest one there is (there the greatest there ever was). All priorities are
    summed for each sample, on the device, where the paper descends a tree. `importance_exponent`,
    beta of its section 3.4, may be set at any time.

    Args:
        buffer_size: transitions in all; each environment has `buffer_size // n_envs` rows.
        observation_space: of one environment; `Dict` keys are stored one by one.
        action_space: one that `ActionLayout` supports.
        device: where everything is, `save_replay_buffer` aside.
        n_envs: B.
        optimize_memory_usage: must be False.
        n_steps: of the returns.
        gamma: their discount factor.
        has_masks: whether transitions come with action masks.
        priority_exponent: alpha in [0, 1]; 0 draws uniformly.

    Raises:
        ValueError: for `optimize_memory_usage`, or a number out of range.
        MemoryError: if the device has less memory than `nbytes`.
    """

    def __init__(
        self,
        buffer_size: int,
        observation_space: spaces.Space[Any],
        action_space: spaces.Space[Any],
        device: torch.device | str = "auto",
        n_envs: int = 1,
        optimize_memory_usage: bool = False,
        *,
        n_steps: int = 1,
        gamma: float = 0.99,
        has_masks: bool = False,
        priority_exponent: float = 0.0,
    ) -> None:
        if optimize_memory_usage:
            raise ValueError("optimize_memory_usage True is not supported by DeviceReplayBuffer")
        for name, value, least in (("buffer_size", buffer_size, n_envs), ("n_steps", n_steps, 1)):
            if value < least:
                raise ValueError(f"{name} {value!r} of DeviceReplayBuffer must be >= {least}")
        for name, share in (("gamma", gamma), ("priority_exponent", priority_exponent)):
            if not 0 <= share <= 1:
                raise ValueError(f"{name} {share!r} of DeviceReplayBuffer must be in [0, 1]")
        self.store: dict[str, Tensor] = {}
        # Not ReplayBuffer's constructor, which would allocate in numpy.
        BaseBuffer.__init__(
            self, buffer_size // n_envs, observation_space, action_space, device, n_envs
        )
        self.layout = ActionLayout.from_space(action_space)
        self.optimize_memory_usage = False
        self.handle_timeout_termination = True
        self.n_steps = n_steps
        self.gamma = gamma
        self.has_masks = has_masks
        self.priority_exponent = priority_exponent
        self.importance_exponent = 1.0
        shapes = self._shapes()
        self._check_memory(shapes)
        for name, (shape, dtype) in shapes.items():
            size = (self.buffer_size, n_envs, *shape)
            self.store[name] = torch.zeros(size, dtype=dtype, device=self.device)

    def _shapes(self) -> dict[str, tuple[tuple[int, ...], torch.dtype]]:
        """Return shape and dtype of each part of one transition."""
        num_factors, num_categories = self.layout.num_factors, self.layout.num_categories
        index_dtype = torch.uint8 if num_categories <= 256 else torch.int64
        shapes: dict[str, tuple[tuple[int, ...], torch.dtype]] = {}
        for prefix in ("obs", "next_obs"):
            for name, space in _parts(prefix, self.observation_space).items():
                shapes[name] = (space.shape, getattr(torch, np.dtype(space.dtype).name))
        shapes["index"] = ((num_factors,), index_dtype)
        shapes["reward"] = ((), torch.float32)
        shapes["terminated"] = shapes["truncated"] = ((), torch.bool)
        if self.has_masks:
            shapes["mask"] = shapes["next_mask"] = ((num_factors, num_categories), torch.bool)
        if self.priority_exponent:
            shapes["priority"] = ((), torch.float32)
        return shapes

    def _check_memory(self, shapes: dict[str, tuple[tuple[int, ...], torch.dtype]]) -> None:
        rows = self.buffer_size * self.n_envs
        sizes = {
            name: rows * int(np.prod(s)) * dtype.itemsize for name, (s, dtype) in shapes.items()
        }
        needed, free = sum(sizes.values()), _memory(self.device)
        if free is not None and needed > free:
            parts = ", ".join(f"{name} {size / 1e9:.2f}" for name, size in sizes.items())
            raise MemoryError(
                f"a replay buffer of {rows} transitions needs {needed / 1e9:.2f} GB ({parts}), and "
                f"{self.device} has {free / 1e9:.2f} GB free; lower buffer_size"
            )

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors, exactly."""
        return sum(tensor.nbytes for tensor in self.store.values())

    @property
    def device(self) -> torch.device:
        """Where the tensors are; to set it moves them."""
        return self._device

    @device.setter
    def device(self, device: torch.device | str) -> None:
        self._device = get_device(device)
        self.store = {name: tensor.to(self._device) for name, tensor in self.store.items()}

    def __getstate__(self) -> dict[str, Any]:
        # A file that holds tensors of a GPU cannot be read without one.
        store = {name: tensor.to("cpu") for name, tensor in self.store.items()}
        return {**self.__dict__, "store": store, "_device": torch.device("cpu")}

    def add(  # type: ignore[override]
        self, obs: Obs, action: Tensor, step: Step, action_mask: Tensor | None = None
    ) -> None:
        """Store one step of all B environments, over the oldest if the buffer is full.

        Args:
            obs: `[B, *O]`, what the actions were chosen on.
            action: `[B]` or `[B, K]`: what the space contains.
            step: what the actions led to; its `final_obs` is the next observation.
            action_mask: `[B, K, N]` bool, what could be chosen on `obs`.
        """
        row = {
            **_parts("obs", obs),
            **_parts("next_obs", step.final_obs),
            "index": self.layout.to_index(action),
            "reward": step.reward,
            "terminated": step.terminated,
            "truncated": step.truncated,
        }
        if self.has_masks:
            row |= {"mask": action_mask, "next_mask": step.final_action_mask}
        if self.priority_exponent:
            most = self.store["priority"].amax()
            row["priority"] = torch.where(most > 0, most, 1.0)  # nothing has been stored yet
        for name, tensor in self.store.items():
            tensor[self.pos].copy_(row[name])
        self.pos += 1
        if self.pos == self.buffer_size:
            self.full = True
            self.pos = 0

    def latest(self, num_steps: int) -> dict[str, Tensor]:
        """Return the last steps, `[T, B, ...]` by name; as many as there are, in their order."""
        count = min(num_steps, self.size())
        start = self.pos - count
        if start >= 0:
            return {name: tensor[start : self.pos] for name, tensor in self.store.items()}
        return {
            name: torch.cat([tensor[start:], tensor[: self.pos]])
            for name, tensor in self.store.items()
        }

    def sample(self, batch_size: int, env: None = None) -> DeviceReplaySamples:
        """Return `batch_size` transitions, drawn with replacement.

        With priorities the batch has importance weights (N P)^-beta over the greatest of them.

        Raises:
            ValueError: if nothing is stored, or with a `VecNormalize` as `env`.
        """
        if env is not None:
            raise ValueError("DeviceReplayBuffer does not normalise: env must be None")
        if self.size() == 0:
            raise ValueError("the replay buffer is empty")
        count = self.size() * self.n_envs
        if not self.priority_exponent:
            return self._get_samples(torch.randint(count, (batch_size,), device=self.device))
        # In double precision, since small priorities would vanish in a sum of a million.
        cumulative = self.store["priority"].flatten().double().cumsum(0)
        draw = torch.rand(batch_size, dtype=cumulative.dtype, device=self.device) * cumulative[-1]
        positions = torch.searchsorted(cumulative, draw, right=True).clamp_max(count - 1)
        share = self._gather("priority", positions) / cumulative[-1]
        weights = (count * share) ** -self.importance_exponent
        weights = (weights / weights.amax()).float().unsqueeze(-1)
        return self._get_samples(positions)._replace(weights=weights, positions=positions)

    def update_priorities(self, positions: Tensor, errors: Tensor) -> None:
        """Store the priorities of transitions at `positions` `[M]` with TD errors `[M]` >= 0."""
        errors = torch.where(errors.isfinite(), errors, 0.0)  # of an update that was skipped
        priority = (errors + 1e-6) ** self.priority_exponent  # so that none is lost for ever
        self.store["priority"].view(-1).index_copy_(0, positions, priority)

    def reset(self) -> None:
        """Forget all transitions."""
        super().reset()
        if self.priority_exponent:
            self.store["priority"].zero_()

    def _get_samples(self, first: Tensor, env: None = None) -> DeviceReplaySamples:  # type: ignore[override]
        """Return the transitions at flat positions `[M]`, row * B + environment."""
        if self.n_steps == 1:
            last, discounts, reward = first, None, self._gather("reward", first)
        else:
            last, discounts, reward = self._follow(first)
        return DeviceReplaySamples(
            observations=self._gather_obs("obs", first),
            actions=self.layout.to_action(self._gather("index", first).long()),
            next_observations=self._gather_obs("next_obs", last),
            dones=self._gather("terminated", last).float().unsqueeze(-1),
            rewards=reward.unsqueeze(-1),
            discounts=discounts,
            action_masks=self._gather("mask", first) if self.has_masks else None,
            next_action_masks=self._gather("next_mask", last) if self.has_masks else None,
        )

    def _follow(self, first: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the last positions, discounts `[M, 1]` and returns of up to `n_steps` steps."""
        total, newest = self.buffer_size * self.n_envs, (self.pos - 1) % self.buffer_size
        last, reward = first, self._gather("reward", first)
        discount = torch.full_like(reward, self.gamma)
        goes_on = torch.ones_like(reward, dtype=torch.bool)
        for _ in range(self.n_steps - 1):
            ended = self._gather("terminated", last) | self._gather("truncated", last)
            # What stands after the newest row is the oldest, of another time.
            goes_on = goes_on & ~ended & (last // self.n_envs != newest)
            last = torch.where(goes_on, (last + self.n_envs) % total, last)
            reward = reward + torch.where(goes_on, discount * self._gather("reward", last), 0.0)
            discount = torch.where(goes_on, discount * self.gamma, discount)
        return last, discount.unsqueeze(-1), reward

    def _gather(self, name: str, positions: Tensor) -> Tensor:
        return self.store[name].flatten(0, 1).index_select(0, positions)

    def _gather_obs(self, prefix: str, positions: Tensor) -> Obs:
        if not isinstance(self.observation_space, spaces.Dict):
            return self._gather(prefix, positions)
        keys = self.observation_space.spaces
        return {key: self._gather(f"{prefix}.{key}", positions) for key in keys}


def _parts(prefix: str, value: Any) -> dict[str, Any]:
    """Return the parts of observations, or of their space, by the names of the store."""
    if isinstance(value, spaces.Dict | dict):
        return {f"{prefix}.{key}": part for key, part in value.items()}
    return {prefix: value}


def _memory(device: torch.device) -> int | None:
    """Return the bytes that are free on a GPU, or that the process may have; None if not known."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    return _host_memory(Path("/")) if device.type == "cpu" else None


def _host_memory(root: Path) -> int | None:
    """Return the bytes that the machine has available, or a limit of cgroups if that is less.

    A limit may be set on the group of the process or on any above, of either version of cgroups; a
    container sees its own group at the top.
    """
    sizes = []
    if hasattr(os, "sysconf"):  # of all RAM, where nothing else is known
        sizes.append(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    available = re.findall(r"MemAvailable: *(\d+) kB", _read(root / "proc/meminfo"))
    sizes += [1024 * int(size) for size in available]
    for line in _read(root / "proc/self/cgroup").splitlines():
        _, controllers, group = line.split(":", 2)
        if controllers in ("", "memory"):  # of version 2 or 1
            path = root / "sys/fs/cgroup" / controllers / group.lstrip("/")
            name = "memory.limit_in_bytes" if controllers else "memory.max"
            limits = " ".join(_read(above / name) for above in (path, *path.parents))
            sizes += [int(size) for size in re.findall(r"\d+", limits)]  # not "max"
    return min(sizes, default=None)


def _read(path: Path) -> str:
    return path.read_text() if path.is_file() else ""
