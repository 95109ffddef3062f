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
    _masks: np.ndarray | None = None
    """Those of the prediction under way, since SB3's `predict` has no place for them."""

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

        Raises:
            ValueError: for masks of another shape, or where one allows nothing.
        """
        self._masks = None if action_masks is None else np.asarray(action_masks, np.bool_)
        try:
            return super().predict(observation, state, episode_start, deterministic)
        finally:
            self._masks = None

    def _predict(self, observation: PyTorchObs, deterministic: bool = False) -> Tensor:
        distribution = self._masked_distribution(observation)
        return self.layout.to_action(distribution.mode if deterministic else distribution.sample())

    def _masked_distribution(self, obs: PyTorchObs) -> FactoredCategorical:
        """Return the distribution under the masks of the prediction under way."""
        masks, size = self._masks, self.layout.num_flat
        if masks is None:
            return self.distribution(obs)
        num_obs = len(next(iter(obs.values())) if isinstance(obs, dict) else obs)
        if masks.size != size and (masks.shape[:1], masks.size) != ((num_obs,), num_obs * size):
            raise ValueError(
                f"action_masks of shape {masks.shape} must be [B, sum(sizes)], here "
                f"[{num_obs}, {size}], or one for all, [{size}]"
            )
        flat = torch.as_tensor(masks.reshape(-1, size))
        stuck = (~self.layout.unflatten(flat).any(-1)).nonzero().tolist()
        if stuck:
            raise ValueError(
                f"action_masks allow no action of factor {stuck[0][1]} in row {stuck[0][0]}"
            )
        return self.distribution(obs, self.layout.unflatten(flat.to(self.device)))


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
