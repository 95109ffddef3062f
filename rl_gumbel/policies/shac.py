"""The policy of `GumbelSHAC`: a factored categorical actor and a critic of states."""

from typing import Any

import torch
from gymnasium import spaces
from stable_baselines3.common.torch_layers import (
    BaseFeaturesExtractor,
    CombinedExtractor,
    FlattenExtractor,
    NatureCNN,
)
from stable_baselines3.common.type_aliases import PyTorchObs, Schedule
from torch import Tensor, nn

from rl_gumbel.actions import ActionLayout
from rl_gumbel.distributions import FactoredCategorical
from rl_gumbel.equivariant import EquivariantValueNetwork
from rl_gumbel.extractors import DevicePreprocessing, make_normalizer
from rl_gumbel.networks import perceptron
from rl_gumbel.normalize import RunningMoments
from rl_gumbel.policies.factored import FactoredActor
from rl_gumbel.policies.masks import MaskedPrediction


class ValueCritic(DevicePreprocessing):
    """Observations to the values of states."""

    features_extractor: BaseFeaturesExtractor

    def __init__(
        self,
        observation_space: spaces.Space[Any],
        action_space: spaces.Space[Any],
        layout: ActionLayout,
        net_arch: list[int],
        features_extractor: BaseFeaturesExtractor,
        features_dim: int,
        activation_fn: type[nn.Module] = nn.SiLU,
        layer_norm: bool = True,
        normalize_images: bool = True,
        shared_factors: bool = False,
    ) -> None:
        super().__init__(
            observation_space,
            action_space,
            features_extractor=features_extractor,
            normalize_images=normalize_images,
        )
        self.layers: nn.Module
        if shared_factors:
            self.layers = EquivariantValueNetwork(
                features_dim, layout, net_arch, activation_fn, layer_norm
            )
        else:
            self.layers = perceptron([features_dim, *net_arch, 1], activation_fn, layer_norm)

    def forward(self, obs: PyTorchObs) -> Tensor:
        """Return values `[B]` of observations `[B, *O]`."""
        values: Tensor = self.layers(self.extract_features(obs, self.features_extractor))
        return values.squeeze(-1)


class SHACPolicy(MaskedPrediction):
    """Actor, critic and target critic over a discrete action space.

    Args:
        observation_space: of the environment.
        action_space: one that `ActionLayout` supports.
        lr_schedule: progress remaining to learning rate.
        net_arch: hidden widths, one list for both networks or `{"pi": [...], "vf": [...]}`; None
            is two layers of 256.
        activation_fn: between the layers. A smooth one: the actor learns from the critic's slope.
        layer_norm: whether the critic normalises its hidden layers.
        shared_factors: for an observation of K equal parts, one for each action factor: networks
            with the same weights for every part, see `rl_gumbel.equivariant`.
        normalize_observations: subtract the running mean of observations and divide by their
            deviation, clipped to 10; only for `Box` observations that are no images.
        features_extractor_class: SB3 features extractor, one for each network.
        features_extractor_kwargs: its keyword arguments.
        normalize_images: divide image observations by 255.
        optimizer_class: for actor and critic.
        optimizer_kwargs: without the learning rate; the default makes Adam fused.

    Raises:
        ValueError: for normalisation of observations that are not vectors of numbers.
        TypeError: for an action space that is not supported.
    """

    normalizer: RunningMoments | None

    def __init__(
        self,
        observation_space: spaces.Space[Any],
        action_space: spaces.Space[Any],
        lr_schedule: Schedule,
        net_arch: list[int] | dict[str, list[int]] | None = None,
        activation_fn: type[nn.Module] = nn.SiLU,
        layer_norm: bool = True,
        shared_factors: bool = False,
        normalize_observations: bool = False,
        features_extractor_class: type[BaseFeaturesExtractor] = FlattenExtractor,
        features_extractor_kwargs: dict[str, Any] | None = None,
        normalize_images: bool = True,
        optimizer_class: type[torch.optim.Optimizer] = torch.optim.Adam,
        optimizer_kwargs: dict[str, Any] | None = None,
    ) -> None:
        if optimizer_kwargs is None:
            optimizer_kwargs = {"fused": True} if optimizer_class is torch.optim.Adam else {}
        super().__init__(
            observation_space,
            action_space,
            features_extractor_class,
            features_extractor_kwargs,
            normalize_images=normalize_images,
            optimizer_class=optimizer_class,
            optimizer_kwargs=optimizer_kwargs,
        )
        net_arch = [256, 256] if net_arch is None else net_arch
        # What _get_constructor_parameters adds to its parent's, so that load needs nothing.
        self.settings: dict[str, Any] = {
            "net_arch": net_arch,
            "activation_fn": activation_fn,
            "layer_norm": layer_norm,
            "shared_factors": shared_factors,
            "normalize_observations": normalize_observations,
            "features_extractor_class": features_extractor_class,
            "features_extractor_kwargs": features_extractor_kwargs,
            "optimizer_class": optimizer_class,
            "optimizer_kwargs": optimizer_kwargs,
        }
        self.layout = ActionLayout.from_space(action_space)
        archs = net_arch if isinstance(net_arch, dict) else {"pi": net_arch, "vf": net_arch}
        self.actor = FactoredActor(**self._network_kwargs(), net_arch=archs["pi"])
        self.critic, self.critic_target = (
            ValueCritic(**self._network_kwargs(), net_arch=archs["vf"], layer_norm=layer_norm)
            for _ in range(2)
        )
        self.critic_target.load_state_dict(self.critic.state_dict())
        self.critic_target.requires_grad_(False)  # it moves by averaging alone
        self.critic_target.set_training_mode(False)
        for module in (self.actor, self.critic):
            module.optimizer = optimizer_class(
                module.parameters(),
                lr=lr_schedule(1),  # type: ignore[call-arg]
                **optimizer_kwargs,
            )
        self.normalizer = make_normalizer(observation_space) if normalize_observations else None

    def _network_kwargs(self) -> dict[str, Any]:
        kwargs = {
            "observation_space": self.observation_space,
            "action_space": self.action_space,
            "layout": self.layout,
            "shared_factors": self.settings["shared_factors"],
            "activation_fn": self.settings["activation_fn"],
            "normalize_images": self.normalize_images,
        }
        return self._update_features_extractor(kwargs, None)

    def _get_constructor_parameters(self) -> dict[str, Any]:
        data = super()._get_constructor_parameters()
        return {**data, **self.settings, "lr_schedule": self._dummy_schedule}

    def forward(self, obs: PyTorchObs, deterministic: bool = False) -> Tensor:
        """Return a batch of actions."""
        return self._predict(obs, deterministic)

    def normalize(self, obs: PyTorchObs) -> PyTorchObs:
        """Return observations as actor and critics take them; statistics stay as they are."""
        return obs if self.normalizer is None else self.normalizer.normalize(obs)

    def distribution(self, obs: PyTorchObs, mask: Tensor | None = None) -> FactoredCategorical:
        """Return the distribution over actions; `mask` `[B, K, N]`, True where allowed."""
        distribution: FactoredCategorical = self.actor(self.normalize(obs), mask)
        return distribution

    def act(self, obs: PyTorchObs, mask: Tensor | None = None) -> Tensor:
        """Return sampled categories `[B, K]`."""
        return self.distribution(obs, mask).sample()

    def set_training_mode(self, mode: bool) -> None:
        """Set actor and critic to training or evaluation mode; the target stays in evaluation."""
        self.actor.set_training_mode(mode)
        self.critic.set_training_mode(mode)
        self.training = mode


class SHACCnnPolicy(SHACPolicy):
    """`SHACPolicy` for images: SB3's `NatureCNN` extracts the features."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        kwargs.setdefault("features_extractor_class", NatureCNN)
        super().__init__(*args, **kwargs)


class SHACMultiInputPolicy(SHACPolicy):
    """`SHACPolicy` for `Dict` observations: SB3's `CombinedExtractor` extracts the features."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        kwargs.setdefault("features_extractor_class", CombinedExtractor)
        super().__init__(*args, **kwargs)
