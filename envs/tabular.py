"""Environments given by a transition table: sampled as a batch, and evaluated exactly."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import chain
from typing import Any, Self

import torch
from gymnasium import spaces
from torch import Tensor

from rl_gumbel.envs.base import State, TorchEnv

Outcome = tuple[float, int, float, bool]
"""Probability, next state, reward, terminated."""


@dataclass(frozen=True)
class Table:
    """A finite Markov decision process of S states, A actions and at most M outcomes of each."""

    probability: Tensor
    """`[S, A, M]` float64; a row with fewer outcomes repeats its last one with probability 0."""
    next_state: Tensor
    """`[S, A, M]` int64."""
    reward: Tensor
    """`[S, A, M]` float64."""
    terminated: Tensor
    """`[S, A, M]` bool."""
    initial: Tensor
    """`[S]` float64: probability that an episode starts in the state."""
    observation: Tensor
    """`[S]` int64: what is seen of the state."""
    legal: Tensor | None = None
    """`[S, A]` bool: what may be chosen; None if everything always may."""

    @classmethod
    def build(
        cls,
        outcomes: Callable[[int, int], Iterable[Outcome]],
        initial: Tensor,
        num_actions: int,
        observation: Tensor | None = None,
        legal: Tensor | None = None,
    ) -> "Table":
        """Return the table of what `outcomes(state, action)` lists, equal ones merged.

        Args:
            outcomes: what can follow, with probabilities that add up to 1.
            initial: `[S]`, not negative: the starting states' weights.
            num_actions: A.
            observation: `[S]`; the state itself by default.
            legal: `[S, A]`, as the field.
        """
        num_states = len(initial)
        rows = [_merged(outcomes(s, a)) for s in range(num_states) for a in range(num_actions)]
        width = max(map(len, rows))
        for row in rows:
            row.extend([(0.0, *row[-1][1:])] * (width - len(row)))
        probability, next_state, reward, terminated = zip(*chain(*rows), strict=True)
        shape = (num_states, num_actions, width)
        return cls(
            probability=torch.tensor(probability, dtype=torch.float64).view(shape),
            next_state=torch.tensor(next_state).view(shape),
            reward=torch.tensor(reward, dtype=torch.float64).view(shape),
            terminated=torch.tensor(terminated).view(shape),
            initial=initial.double() / initial.double().sum(),
            observation=torch.arange(num_states) if observation is None else observation,
            legal=legal,
        )


def _merged(outcomes: Iterable[Outcome]) -> list[Outcome]:
    """Return the outcomes that can happen, each once."""
    total: dict[tuple[int, float, bool], float] = {}
    for probability, following, reward, terminated in outcomes:
        if probability > 0:
            result = (following, reward, terminated)
            total[result] = total.get(result, 0.0) + probability
    return [(probability, *result) for result, probability in total.items()]


def _sums(probability: Tensor) -> Tensor:
    """Return how far up [0, 1) all but the last of `[..., M]` reach, laid end to end.

    The number of these sums that a uniform number reaches is the drawn one of the M. Divided by the
    last sum, so that rounding never lets it be one of probability 0.
    """
    sums = probability.cumsum(-1)
    return (sums / sums[..., -1:])[..., :-1]


class TabularEnv(TorchEnv):
    """An environment that samples a table, one uniform number for each environment and step.

    Args:
        num_envs: B.
        table: what can happen; its observations are those of a `Discrete` space.
        max_episode_steps: the time limit, or None.
        kwargs: `device` and `dtype` of `TorchEnv`.
    """

    def __init__(
        self, num_envs: int, table: Table, max_episode_steps: int | None, **kwargs: Any
    ) -> None:
        self.table = table
        num_observations = int(table.observation.max()) + 1
        super().__init__(
            num_envs,
            spaces.Discrete(num_observations),
            spaces.Discrete(table.reward.shape[1]),
            max_episode_steps,
            **kwargs,
        )
        self.masked = table.legal is not None

    def to(self, device: torch.device | str) -> Self:
        """Move everything to a device; see `TorchEnv.to`."""
        table, device = self.table, torch.device(device)
        self._num_actions, self._num_outcomes = table.reward.shape[1:]
        self._sums = _sums(table.probability).flatten(0, 1).to(device, self.dtype)
        self._start_sums = _sums(table.initial).to(device, self.dtype)
        self._next_state = table.next_state.flatten().to(device)
        self._reward = table.reward.flatten().to(device, torch.float32)
        self._terminated = table.terminated.flatten().to(device)
        self._observation = table.observation.to(device)
        self._legal = None if table.legal is None else table.legal.unsqueeze(1).to(device)
        return super().to(device)

    def initial(self) -> State:
        """Return states drawn from the table's initial distribution."""
        return {"state": torch.bucketize(self.uniform(), self._start_sums, right=True)}

    def transition(self, state: State, action: Tensor) -> tuple[State, Tensor, Tensor]:
        """Return a drawn outcome of each environment: next state, reward, termination."""
        row = state["state"] * self._num_actions + action.squeeze(-1)
        outcome = (self.uniform(1) >= self._sums[row]).sum(-1)
        entry = row * self._num_outcomes + outcome
        return {"state": self._next_state[entry]}, self._reward[entry], self._terminated[entry]

    def observe(self, state: State) -> Tensor:
        """Return what is seen of the states, `[B]` int64."""
        return self._observation[state["state"]]

    def legal(self, state: State) -> Tensor | None:
        """Return the table's legal actions, `[B, 1, A]` bool, or None."""
        return None if self._legal is None else self._legal[state["state"]]

    # --- exact evaluation, in float64 on the CPU --------------------------------------------------

    def exact_return(self, policy_probs: Tensor, horizon: int | None = None) -> float:
        """Return the expected sum of an episode's rewards under a stationary policy.

        Args:
            policy_probs: probabilities of the actions given each observation, `[S, A]` with S the
                size of the observation space.
            horizon: steps after which the episode is cut, instead of `max_episode_steps`.

        Raises:
            ValueError: for probabilities of another shape or that do not add up to 1, or without
                any horizon.
        """
        shape = (int(self.observation_space.n), self._num_actions)  # type: ignore[attr-defined]
        probs = policy_probs.detach().to("cpu", torch.float64)  # evaluated, never trained
        if probs.shape != shape:
            raise ValueError(f"policy_probs of shape {tuple(probs.shape)} must be {shape}")
        if not bool((probs >= 0).all() & ((probs.sum(-1) - 1).abs() < 1e-5).all()):
            raise ValueError("policy_probs must be at least 0 and add up to 1 in each row")
        probs = probs[self.table.observation]
        return self._return(lambda q: (probs * q).sum(-1), horizon)

    def optimal_return(self, horizon: int | None = None) -> float:
        """Return the largest expected sum of rewards that legal actions can reach.

        Args:
            horizon: as for `exact_return`.

        Raises:
            ValueError: without any horizon.
        """
        return self._return(lambda q: self._best(q).values, horizon)

    def optimal_policy(self, horizon: int | None = None) -> Tensor:
        """Return a best action for each step and state (not observation), `[T, S]` int64.

        With a time limit the best action depends on the step.

        Args:
            horizon: T, as for `exact_return`.

        Raises:
            ValueError: without any horizon.
        """
        actions: list[Tensor] = []

        def backup(q: Tensor) -> Tensor:
            best = self._best(q)
            actions.append(best.indices)
            return best.values

        self._return(backup, horizon)
        return torch.stack(actions[::-1])

    def _best(self, q: Tensor) -> torch.return_types.max:
        """Return the best legal values and actions of `[S, A]`."""
        legal = self.table.legal
        return (q if legal is None else q.masked_fill(~legal, -torch.inf)).max(-1)

    def _return(self, backup: Callable[[Tensor], Tensor], horizon: int | None) -> float:
        """Return the expected return, where `backup` makes `[S]` values of `[S, A]`."""
        steps = self.max_episode_steps if horizon is None else horizon
        if steps is None:
            raise ValueError(
                f"{type(self).__name__} has no max_episode_steps: give a horizon in steps"
            )
        table = self.table
        reward = (table.probability * table.reward).sum(-1)
        continues = table.probability * ~table.terminated
        value = torch.zeros_like(table.initial)
        for _ in range(steps):
            value = backup(reward + (continues * value[table.next_state]).sum(-1))
        return float(table.initial @ value)
