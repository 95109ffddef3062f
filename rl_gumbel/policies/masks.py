"""Prediction under action masks, as sb3-contrib's maskable policies offer it."""

from typing import Any

import numpy as np
import torch
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.type_aliases import PyTorchObs
from torch import Tensor

from rl_gumbel.actions import ActionLayout
from rl_gumbel.distributions import FactoredCategorical


class MaskedPrediction(BasePolicy):
    """A policy whose `predict` takes `action_masks`, which its `distribution` obeys."""

    layout: ActionLayout
    _mask: Tensor | None = None
    """That of the prediction under way, since SB3's `predict` has no place for it."""

    def distribution(self, obs: PyTorchObs, mask: Tensor | None = None) -> FactoredCategorical:
        """Return the distribution over actions; `mask` `[B, K, N]`, True where allowed."""
        raise NotImplementedError

    def predict(
        self,
        observation: np.ndarray | dict[str, np.ndarray],
        state: tuple[np.ndarray, ...] | None = None,
        episode_start: np.ndarray | None = None,
        deterministic: bool = False,
        action_masks: np.ndarray | None = None,
    ) -> tuple[np.ndarray, tuple[np.ndarray, ...] | None]:
        """Return actions for a batch of observations, or one action for one; as SB3's `predict`.

        Args:
            observation: `[B, *O]`, or one observation.
            state: passed through.
            episode_start: ignored.
            deterministic: take the most probable action of each factor instead of sampling.
            action_masks: flat, `[B, sum(sizes)]` or `[sum(sizes)]`, True where allowed.
        """
        if action_masks is not None:
            flat = torch.as_tensor(np.asarray(action_masks), dtype=torch.bool, device=self.device)
            self._mask = self.layout.unflatten(flat.reshape(-1, self.layout.num_flat))
        try:
            return super().predict(observation, state, episode_start, deterministic)
        finally:
            self._mask = None

    def _predict(self, observation: PyTorchObs, deterministic: bool = False) -> Tensor:
        distribution = self.distribution(observation, self._mask)
        return self.layout.to_action(distribution.mode if deterministic else distribution.sample())


class MaskedAlgorithm:
    """An SB3 algorithm whose `predict` passes `action_masks` on to its policy."""

    policy: Any

    def predict(
        self,
        observation: np.ndarray | dict[str, np.ndarray],
        state: tuple[np.ndarray, ...] | None = None,
        episode_start: np.ndarray | None = None,
        deterministic: bool = False,
        action_masks: np.ndarray | None = None,
    ) -> tuple[np.ndarray, tuple[np.ndarray, ...] | None]:
        """Return actions; see `MaskedPrediction.predict`."""
        actions: tuple[np.ndarray, tuple[np.ndarray, ...] | None] = self.policy.predict(
            observation, state, episode_start, deterministic, action_masks
        )
        return actions
