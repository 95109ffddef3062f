"""Batched torch environments: B copies of one environment that step as tensors on one device.

`BatchedEnv` is what algorithms and facades see. `TorchEnv` is what an environment here extends: it
writes `initial`, `transition`, `observe` and perhaps `legal` and `frame`, all on whole batches and
without looking at a value, and gets autoreset, time limits, episode counts, seeds and exact state
from here.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, ClassVar, Self

import numpy as np
import torch
from gymnasium import spaces
from numpy.typing import NDArray
from torch import Tensor

from rl_gumbel.actions import ActionLayout
from rl_gumbel.types import Obs, Step

State = dict[str, Tensor]
"""The state of B environments: tensors whose first dimension is B, by name."""
Act = Callable[[Obs, Tensor | None], Tensor]
"""Observations `[B, *O]` and masks `[B, K, N]` (or None) to categories `[B, K]`."""
_STARTS = "starts/"
NONFINITE = ("raise", "reset", "zero")
"""What may be done about an infinity or NaN of an environment."""


class BatchedEnv(ABC):
    """B copies of one environment behind `reset` and `step`, tensors in and out."""

    differentiable: ClassVar[bool] = False
    """Whether rewards and observations can carry a gradient to a one-hot action."""
    backend: ClassVar[str] = "torch"
    """What steps the environments, in a word."""

    observation_space: spaces.Space[Any]
    """Of one environment."""
    action_space: spaces.Space[Any]
    """Of one environment."""
    layout: ActionLayout
    """The factors of the action space."""
    num_envs: int
    """B."""
    device: torch.device
    """Where every tensor is."""
    max_episode_steps: int | None
    """Steps after which an episode is truncated; None if never, or not known."""
    truncation_interval: int | None
    """Within so many steps in a row an environment is truncated once at most; None if it never is.
    The time limit, where it is known; else 1."""
    action_mask: Tensor | None = None
    """`[B, K, N]` bool: what may be chosen now; None if everything always may."""
    repairs: bool = False
    """Whether infinities and NaNs are replaced; `Step.repaired` then says where."""
    masked: bool = False
    """Whether there are action masks; for some numpy environments known from the first reset on."""
    render_mode: str | None = None
    """`rgb_array` if there is a picture of an environment, else None."""

    @abstractmethod
    def reset(self, seed: int | None = None) -> Obs:
        """Start an episode in every environment and return the observations `[B, *O]`.

        A seed makes all that follows repeat; without one the random stream goes on.
        """

    @abstractmethod
    def step(self, action: Tensor) -> Step:
        """Take one step in every environment.

        Args:
            action: what the space contains, `[B]` or `[B, K]` integers, or one-hots `[B, K, N]`.
        """

    def act_and_step(self, act: Act, obs: Obs) -> tuple[Tensor, Step]:
        """Return the categories `[B, K]` that `act` chooses on `obs`, and the step they lead to."""
        index = act(obs, self.action_mask)
        return index, self.step(self.layout.to_action(index))

    def get_state(self) -> State:
        """Return copies of all that decides the future; `set_state` goes back to it exactly.

        Raises:
            NotImplementedError: if the environments cannot be saved.
        """
        raise NotImplementedError(f"the state of {type(self).__name__} cannot be saved")

    def set_state(self, state: State) -> None:
        """Go back to a state that `get_state` returned.

        Raises:
            NotImplementedError: as `get_state`.
        """
        raise NotImplementedError(f"the state of {type(self).__name__} cannot be restored")

    def render(self, index: int = 0) -> NDArray[np.uint8]:
        """Return an RGB frame `[height, width, 3]` of one environment.

        Raises:
            NotImplementedError: if there is no picture of it.
        """
        raise NotImplementedError(f"{type(self).__name__} has no picture")

    def close(self) -> None:  # noqa: B027 (most have nothing to free)
        """Free what the environments hold."""


class TorchEnv(BatchedEnv):
    """An environment written in torch.

    A subclass draws random numbers by `uniform` and `integers` alone, for all B environments
    whether they need one or not: the stream then does not depend on the states, and nothing waits
    for the device. The first states of coming episodes are the exception: on the CPU, whose random
    numbers are serial and would be half the cost of a step, they are drawn once in
    `min_episode_steps` steps. No environment starts two episodes within so many steps, so each
    start is used once at most and all are independent, as if drawn at every step.

    Args:
        num_envs: B, at least 1.
        observation_space: of one environment.
        action_space: of one environment; one that `ActionLayout` supports.
        max_episode_steps: the time limit, or None.
        device: of every tensor.
        dtype: of the state's floating-point numbers; float64 follows a float64 original exactly.
            Observations have the dtype of their space.
        gradients: let rewards and observations carry a gradient to a one-hot action.

    `nonfinite` is an attribute: what a step does about an infinity or NaN in a reward or a last
    observation. `raise`, the default, does nothing, and algorithms raise when they read the log;
    `zero` makes them zero; `reset` cuts the episode before that step: truncated, with a reward of
    zero and the observation that the action was chosen on.

    Raises:
        ValueError: for a size or limit below 1, or gradients where there are none.
        TypeError: for an action space that is not supported.
    """

    _nonfinite: str = "raise"
    persistent: ClassVar[frozenset[str]] = frozenset()
    """Names in the state that an episode hands to the next one; `reset` starts them anew."""
    min_episode_steps: int = 1
    """No episode terminates in fewer steps (a time limit may still be shorter)."""

    def __init__(
        self,
        num_envs: int,
        observation_space: spaces.Space[Any],
        action_space: spaces.Space[Any],
        max_episode_steps: int | None,
        *,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
        gradients: bool = False,
    ) -> None:
        for name, value in (("num_envs", num_envs), ("max_episode_steps", max_episode_steps)):
            if value is not None and value < 1:
                raise ValueError(f"{name} {value!r} of {type(self).__name__} must be at least 1")
        if gradients and not self.differentiable:
            raise ValueError(
                f"{type(self).__name__} has no gradient through its step; gradients=True needs a "
                f"differentiable environment"
            )
        self.num_envs = num_envs
        self.observation_space = observation_space
        self.action_space = action_space
        self.layout = ActionLayout.from_space(action_space)
        self.max_episode_steps = self.truncation_interval = max_episode_steps
        self.dtype = dtype
        self.gradients = gradients
        self.masked = type(self).legal is not TorchEnv.legal
        self.render_mode = None if type(self).frame is TorchEnv.frame else "rgb_array"
        self.state: State = {}
        self._starts: State = {}
        self.to(device)

    # --- what an environment writes ---------------------------------------------------------------

    @abstractmethod
    def initial(self) -> State:
        """Return the states of B new episodes."""

    @abstractmethod
    def transition(self, state: State, action: Tensor) -> tuple[State, Tensor, Tensor]:
        """Return the next states, rewards `[B]` and terminations `[B]` bool; change nothing.

        Args:
            state: of B environments.
            action: categories `[B, K]` int64, or one-hots `[B, K, N]` if the caller gave those and
                the environment is differentiable; `choose` reads either.
        """

    @abstractmethod
    def observe(self, state: State) -> Tensor:
        """Return the observations `[B, *O]` of the states."""

    def legal(self, state: State) -> Tensor | None:
        """Return `[B, K, N]` bool, what may be chosen in the states; None if everything always."""
        return None

    def frame(self, state: State) -> NDArray[np.uint8]:
        """Return the picture `[height, width, 3]` of a state of one environment (B = 1)."""
        raise NotImplementedError(f"{type(self).__name__} has no picture")

    # --- what it uses -----------------------------------------------------------------------------

    def uniform(self, *shape: int) -> Tensor:
        """Return uniform draws from [0, 1), `[B, *shape]`, in the environment's dtype.

        B is last in memory, so that columns (`unbind(-1)`) are contiguous.
        """
        size = (*shape, self.num_envs)
        draws = torch.rand(size, device=self.device, dtype=self.dtype, generator=self.generator)
        return draws.movedim(-1, 0)

    def integers(self, high: int, *shape: int) -> Tensor:
        """Return uniform draws from 0 to `high - 1`, `[B, *shape]` int64; B is last in memory."""
        size = (*shape, self.num_envs)
        draws = torch.randint(high, size, device=self.device, generator=self.generator)
        return draws.movedim(-1, 0)

    def choose(self, action: Tensor, values: Tensor) -> Tensor:
        """Return `[B, K]`: for each factor the value, of `values` `[N]`, of its chosen category.

        Linear in a one-hot action, hence with a gradient to it.
        """
        if action.is_floating_point():
            return action @ values
        return values.index_select(0, action.flatten()).view(action.shape)

    def constant(self, values: Sequence[float]) -> Tensor:
        """Return the numbers as a tensor on the device, in the environment's dtype, made once."""
        key = tuple(values)
        if key not in self._constants:
            self._constants[key] = torch.tensor(key, dtype=self.dtype, device=self.device)
        return self._constants[key]

    # --- written once -----------------------------------------------------------------------------

    @property
    def nonfinite(self) -> str:
        """What a step does about an infinity or NaN: `raise`, `zero` or `reset`."""
        return self._nonfinite

    @nonfinite.setter
    def nonfinite(self, policy: str) -> None:
        if policy not in NONFINITE:
            raise ValueError(f"nonfinite {policy!r} must be one of {NONFINITE}")
        self._nonfinite = policy
        self.repairs = policy != "raise"
        if policy == "reset":  # an environment may be cut at any step, and start again
            self.truncation_interval, self.min_episode_steps = 1, 1
            self._set_starts_interval()

    def reset(self, seed: int | None = None) -> Tensor:
        """Start an episode in every environment and return the observations `[B, *O]`."""
        if seed is not None and self.generator is not None:
            self.generator.manual_seed(seed)
        with torch.no_grad():  # an episode starts without a past
            self.state = self.initial()
            self._starts_age = self._starts_interval  # the next step draws
            self.episode_return = torch.zeros(self.num_envs, device=self.device)
            self.episode_length = torch.zeros(self.num_envs, dtype=torch.int64, device=self.device)
            self.action_mask = self.legal(self.state)
            return self.observe(self.state)

    def step(self, action: Tensor) -> Step:
        """Take one step in every environment; see `BatchedEnv.step`.

        Raises:
            RuntimeError: before the first reset.
            ValueError: for an action of another shape.
        """
        return self.follow(*self.advance(*self.past(), action))

    def past(self) -> tuple[State, State, tuple[Tensor, Tensor]]:
        """Return what `advance` takes beside an action: states, starts and counts."""
        if not self.state:
            raise RuntimeError(f"{type(self).__name__} must be reset before its first step")
        self._starts_age += 1
        if self._starts_age >= self._starts_interval:
            with torch.no_grad():  # an episode starts without a past
                self._starts = self.initial()
            self._starts_age = 0
        return self.state, self._starts, (self.episode_return, self.episode_length)

    def follow(self, state: State, counts: tuple[Tensor, Tensor], step: Step) -> Step:
        """Make what `advance` returned the present; return the step."""
        self.state = state
        self.episode_return, self.episode_length = counts
        self.action_mask = step.action_mask
        return step

    def advance(
        self, state: State, starts: State, counts: tuple[Tensor, Tensor], action: Tensor
    ) -> tuple[State, tuple[Tensor, Tensor], Step]:
        """Return what follows `state`: states, counts and the step; changes nothing.

        This is what `compile=True` of an algorithm compiles.

        Args:
            state: of B environments.
            starts: states of new episodes, which take over where one ends.
            counts: returns and lengths of the episodes so far, `[B]` each.
            action: see `BatchedEnv.step`.
        """
        with torch.set_grad_enabled(self.gradients and torch.is_grad_enabled()):
            before = state
            state, reward, terminated = self.transition(before, self._read(action))
            final_obs = self.observe(state)
        reward = reward.float()
        final_mask, cut, repaired = self.legal(state), None, None
        if self.repairs:
            repaired = ~(final_obs.isfinite().flatten(1).all(-1) & reward.isfinite())
            if self.nonfinite == "reset":
                cut, terminated = repaired, terminated & ~repaired
                reward = reward.masked_fill(cut, 0.0)
                final_obs = _select(cut, self.observe(before), final_obs)
                legal_before = self.legal(before)
                if final_mask is not None and legal_before is not None:
                    final_mask = _select(cut, legal_before, final_mask)
            reward, final_obs = _finite(reward), _finite(final_obs)
        # The logged return carries no gradient.
        episode_return, length = counts[0] + reward.detach(), counts[1] + 1
        ended = terminated if cut is None else terminated | cut
        if self.max_episode_steps is not None:
            ended = ended | (length >= self.max_episode_steps)
        following = {}
        for name, value in state.items():
            anew = cut if name in self.persistent else ended
            # A new episode has no gradient to the action that ended the last one.
            following[name] = value if anew is None else _select(anew, starts[name], value)
        obs = self.observe(following)
        mask = self.legal(following)
        step = Step(
            obs=_finite(obs) if self.repairs else obs,
            reward=reward,
            terminated=terminated,
            truncated=ended ^ terminated,
            final_obs=final_obs,
            action_mask=mask,
            final_action_mask=final_mask,
            episode_return=episode_return,
            episode_length=length,
            repaired=repaired,
        )
        counts = episode_return.masked_fill(ended, 0.0), length.masked_fill(ended, 0)
        return following, counts, step

    def detach(self) -> None:
        """Cut what the present states know of the actions before; values stay."""
        self.state = {name: value.detach() for name, value in self.state.items()}

    def _read(self, action: Tensor) -> Tensor:
        """Return categories `[B, K]`, or the one-hots where their gradient may be wanted."""
        shape, pair = action.shape, (self.num_envs, self.layout.num_factors)
        if action.is_floating_point():
            fits = shape == (*pair, self.layout.num_categories)
        else:
            fits = shape == pair or (pair[1] == 1 and shape == pair[:1])
        if not fits:
            integers = f"{pair[:1]} or {pair}" if pair[1] == 1 else f"{pair}"
            raise ValueError(
                f"{action.dtype} action of shape {tuple(shape)} of {type(self).__name__} must be "
                f"integers of shape {integers} or floating-point one-hots of shape "
                f"{(*pair, self.layout.num_categories)}"
            )
        if not action.is_floating_point():
            return self.layout.to_index(action)
        return action.to(self.dtype) if self.differentiable else action.argmax(-1)

    def to(self, device: torch.device | str) -> Self:
        """Move everything to a device, with a new random stream, and return itself.

        A generator cannot be moved, so `reset(seed)` or `set_state` decides what follows.
        """
        self.device = torch.device(device)
        self._constants: dict[tuple[float, ...], Tensor] = {}
        self.generator = None
        if self.device.type != "meta":
            self.generator = torch.Generator(self.device)
            self.generator.seed()
        self._set_starts_interval()
        if self.state:
            self.state = {name: value.to(self.device) for name, value in self.state.items()}
            self.episode_return = self.episode_return.to(self.device)
            self.episode_length = self.episode_length.to(self.device)
            self.action_mask = self.legal(self.state)
        return self

    def _set_starts_interval(self) -> None:
        """Decide in how many steps first states are drawn once; the next step draws."""
        self._starts_interval = 1  # only the CPU saves by more; steps of a CUDA graph are the same
        if self.device.type == "cpu":
            limit = self.max_episode_steps or self.min_episode_steps
            self._starts_interval = min(self.min_episode_steps, limit)
        self._starts = {}
        self._starts_age = self._starts_interval

    def get_state(self) -> State:
        """Return copies of states, counts, random stream, and the next starts already drawn."""
        saved = {name: value.detach().clone() for name, value in self.state.items()}
        saved["episode_return"] = self.episode_return.clone()
        saved["episode_length"] = self.episode_length.clone()
        if self._starts_interval > 1:
            saved |= {f"{_STARTS}{name}": value.clone() for name, value in self._starts.items()}
            saved["starts_age"] = torch.full((self.num_envs,), self._starts_age)
        if self.generator is not None:
            saved["generator"] = self.generator.get_state()
        return saved

    def set_state(self, state: State) -> None:
        """Go back to a state that `get_state` returned."""
        saved = {name: value.clone() for name, value in state.items()}
        if self.generator is not None:
            self.generator.set_state(saved.pop("generator"))
        self.episode_return = saved.pop("episode_return")
        self.episode_length = saved.pop("episode_length")
        self._starts_age = 0
        if self._starts_interval > 1:
            self._starts_age = int(saved.pop("starts_age")[0])
            names = [name for name in saved if name.startswith(_STARTS)]
            self._starts = {name.removeprefix(_STARTS): saved.pop(name) for name in names}
        self.state = saved
        self.action_mask = self.legal(self.state)

    def render(self, index: int = 0) -> NDArray[np.uint8]:
        """Return an RGB frame `[height, width, 3]` of one environment."""
        row = slice(index, index + 1)
        return self.frame({name: value[row].detach().cpu() for name, value in self.state.items()})


def _finite(numbers: Tensor) -> Tensor:
    """Return zero where there is an infinity or NaN."""
    return torch.where(numbers.isfinite(), numbers, torch.zeros_like(numbers))


def _select(ended: Tensor, fresh: Tensor, going: Tensor) -> Tensor:
    """Return `fresh` in the rows that ended, else `going`."""
    return torch.where(ended.view(-1, *[1] * (going.ndim - 1)), fresh, going)
