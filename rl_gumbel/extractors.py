"""Observations to what features extractors take, without waiting for the device."""

import torch
from gymnasium import spaces
from stable_baselines3.common.policies import BaseModel
from stable_baselines3.common.preprocessing import is_image_space
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from stable_baselines3.common.type_aliases import PyTorchObs
from torch import Tensor

from rl_gumbel.normalize import RunningMoments


def preprocess(obs: PyTorchObs, space: spaces.Space, normalize_images: bool) -> PyTorchObs:
    """Return observations as SB3's `preprocess_obs` does: images / 255, one-hots of categories.

    SB3's reads the largest category back from the device, for a check, at every call.
    """
    if isinstance(space, spaces.Dict):
        assert isinstance(obs, dict)
        parts = space.spaces.items()
        return {name: preprocess(obs[name], part, normalize_images) for name, part in parts}
    assert isinstance(obs, Tensor)
    if isinstance(space, spaces.Discrete):
        return _one_hot(obs - int(space.start), int(space.n))
    if isinstance(space, spaces.MultiDiscrete):
        index = obs.reshape(len(obs), -1).unbind(1)
        sizes = space.nvec.ravel().tolist()
        return torch.cat([_one_hot(i, n) for i, n in zip(index, sizes, strict=True)], -1)
    if normalize_images and is_image_space(space):
        return obs.float() / 255.0
    return obs.float()


def make_normalizer(space: spaces.Space) -> RunningMoments:
    """Return a normaliser of observations, at mean 0 and variance 1.

    Raises:
        ValueError: for observations that are not vectors of numbers.
    """
    if not isinstance(space, spaces.Box) or is_image_space(space):
        raise ValueError(
            f"normalize_observations is for Box observations that are no images; these are {space}"
        )
    return RunningMoments(space.shape)


class DevicePreprocessing(BaseModel):
    """A model that preprocesses on the device; a base to name behind SB3's."""

    def preprocess(self, obs: PyTorchObs) -> PyTorchObs:
        """Return what the features extractor takes."""
        return preprocess(obs, self.observation_space, self.normalize_images)

    def extract_features(
        self, obs: PyTorchObs, features_extractor: BaseFeaturesExtractor
    ) -> Tensor:
        """Return the features `[B, F]`."""
        features: Tensor = features_extractor(self.preprocess(obs))
        return features


def _one_hot(index: Tensor, size: int) -> Tensor:
    """Return `[B, size]` float32 of `[B]` or `[B, 1]` categories."""
    return (index.reshape(-1, 1) == torch.arange(size, device=index.device)).float()
