"""The policy of `BatchedPPO`: SB3's actor-critic networks, asked for tensors."""

from typing import Any

import torch
from gymnasium import spaces
from stable_baselines3.common.torch_layers import CombinedExtractor, NatureCNN
from stable_baselines3.common.type_aliases import PyTorchObs, Schedule
from torch import Tensor, nn

from rl_gumbel.actions import ActionLayout
from rl_gumbel.distributions import FactoredCategorical
from rl_gumbel.equivariant import EquivariantTorso, count_part
from rl_gumbel.extractors import DevicePreprocessing, make_normalizer
from rl_gumbel.networks import TanhLayers
from rl_gumbel.normalize import RunningMoments
from rl_gumbel.policies.masks import MaskedPrediction
from rl_gumbel.policies.on_policy import GumbelActorCriticPolicy


class SharedExtractor(nn.Module):
    """SB3's `MlpExtractor` for K alike units: latent policy `[B, K, H]`, latent value `[B, H]`."""

    def __init__(
        self,
        feature_dim: int,
        layout: ActionLayout,
        net_arch: list[int] | dict[str, list[int]],
        activation_fn: type[nn.Module],
    ) -> None:
        super().__init__()
        archs = net_arch if isinstance(net_arch, dict) else {"pi": net_arch, "vf": net_arch}
        width = count_part(feature_dim, layout)
        self.policy_net, self.value_net = (
            EquivariantTorso(1, layout.num_factors, [width, *archs[name]], activation_fn)
            for name in ("pi", "vf")
        )
        self.latent_dim_pi, self.latent_dim_vf = ([width, *archs[n]][-1] for n in ("pi", "vf"))

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """Return both latents."""
        return self.forward_actor(features), self.forward_critic(features)

    def forward_actor(self, features: Tensor) -> Tensor:
        """Return `[B, K, H]`."""
        latent: Tensor = self.policy_net(features)
        return latent.squeeze(0)

    def forward_critic(self, features: Tensor) -> Tensor:
        """Return `[B, H]`, the mean over the units."""
        latent: Tensor = self.value_net(features)
        return latent.squeeze(0).mean(1)


class BatchedActorCriticPolicy(MaskedPrediction, GumbelActorCriticPolicy, DevicePreprocessing):
    """SB3's actor-critic policy on discrete spaces, with nothing that waits for the device.

    Networks, initialisation and optimiser are those of SB3's `ActorCriticPolicy`, so that weights
    can be exchanged; the distribution is a `FactoredCategorical`.

    Args:
        observation_space: of the environment.
        action_space: `Discrete`, 1-D `MultiDiscrete` or 1-D `MultiBinary`.
        lr_schedule: progress remaining to learning rate.
        normalize_observations: subtract the running mean of observations and divide by their
            deviation, clipped to 10; only for `Box` observations that are no images.
        shared_factors: for an observation of K equal parts, one for each action factor: networks
            with the same weights for every part, see `rl_gumbel.equivariant`.
        activation_fn: between the layers.
        optimizer_class: of all parameters.
        optimizer_kwargs: without the learning rate; the default makes Adam fused, with SB3's eps.
        **kwargs: of `GumbelActorCriticPolicy`: `net_arch`, `ortho_init`,
            `features_extractor_class`, `share_features_extractor`, `normalize_images`, ...

    Raises:
        TypeError: for another action space.
        ValueError: for normalisation of observations that are not vectors of numbers.
    """

    normalizer: RunningMoments | None

    def __init__(
        self,
        observation_space: spaces.Space[Any],
        action_space: spaces.Space[Any],
        lr_schedule: Schedule,
        *args: Any,
        normalize_observations: bool = False,
        shared_factors: bool = False,
        activation_fn: type[nn.Module] = nn.Tanh,
        optimizer_class: type[torch.optim.Optimizer] = torch.optim.Adam,
        optimizer_kwargs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        if optimizer_kwargs is None and optimizer_class is torch.optim.Adam:
            optimizer_kwargs = {"eps": 1e-5, "fused": True}
        self.shared_factors = shared_factors
        normalizer = make_normalizer(observation_space) if normalize_observations else None
        super().__init__(
            observation_space,
            action_space,
            lr_schedule,
            *args,
            activation_fn=activation_fn,
            optimizer_class=optimizer_class,
            optimizer_kwargs=optimizer_kwargs,
            **kwargs,
        )
        self.normalize_observations = normalize_observations
        self.normalizer = normalizer
        self.register_buffer("padding", self.layout.mask, persistent=False)

    def _get_constructor_parameters(self) -> dict[str, Any]:
        parameters = super()._get_constructor_parameters()
        own = ("normalize_observations", "shared_factors")
        return {**parameters, **{name: getattr(self, name) for name in own}}

    def _build_mlp_extractor(self) -> None:
        super()._build_mlp_extractor()
        if self.shared_factors:
            self.mlp_extractor = SharedExtractor(
                self.features_dim, self.layout, self.net_arch, self.activation_fn
            )
            # SB3 asks it for the last layer of the policy: here that of one factor.
            self.action_dist.proba_distribution_net = self._make_shared_output
        elif self.activation_fn is nn.Tanh:
            for name in ("policy_net", "value_net"):
                layers = getattr(self.mlp_extractor, name)
                setattr(self.mlp_extractor, name, TanhLayers(*layers))

    def _make_shared_output(self, latent_dim: int) -> nn.Linear:
        is_binary = isinstance(self.action_space, spaces.MultiBinary)
        return nn.Linear(latent_dim, 1 if is_binary else self.layout.num_categories)

    def preprocess(self, obs: PyTorchObs) -> PyTorchObs:
        """Return what the features extractor takes; statistics stay as they are."""
        obs = super().preprocess(obs)
        return obs if self.normalizer is None else self.normalizer.normalize(obs)

    def distribution(self, obs: PyTorchObs, mask: Tensor | None = None) -> FactoredCategorical:
        """Return the distribution over actions; `mask` `[B, K, N]`, True where allowed."""
        extractor = self.pi_features_extractor
        features = DevicePreprocessing.extract_features(self, obs, extractor)
        latent = self.mlp_extractor.forward_actor(features)
        return self._distribution(latent, mask)

    def values(self, obs: PyTorchObs) -> Tensor:
        """Return the values `[B]`."""
        return self.predict_values(obs).squeeze(-1)

    def evaluate(
        self, obs: PyTorchObs, mask: Tensor | None = None
    ) -> tuple[FactoredCategorical, Tensor]:
        """Return distribution and values `[B]`, a shared features extractor asked once."""
        if not self.share_features_extractor:
            return self.distribution(obs, mask), self.values(obs)
        latent_pi, latent_vf = self.mlp_extractor(self.extract_features(obs))
        return self._distribution(latent_pi, mask), self.value_net(latent_vf).squeeze(-1)

    def act(self, obs: PyTorchObs, mask: Tensor | None = None) -> Tensor:
        """Return sampled categories `[B, K]`."""
        return self.distribution(obs, mask).sample()

    def _distribution(self, latent: Tensor, mask: Tensor | None) -> FactoredCategorical:
        logits = self.action_dist.pad(self.action_net(latent).flatten(1))
        mask = self.padding if mask is None else mask
        return FactoredCategorical(logits, mask, validate=False)


class BatchedActorCriticCnnPolicy(BatchedActorCriticPolicy):
    """`BatchedActorCriticPolicy` for images: SB3's `NatureCNN` extracts the features."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        kwargs.setdefault("features_extractor_class", NatureCNN)
        super().__init__(*args, **kwargs)


class BatchedMultiInputActorCriticPolicy(BatchedActorCriticPolicy):
    """`BatchedActorCriticPolicy` for `Dict` observations: SB3's `CombinedExtractor`."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        kwargs.setdefault("features_extractor_class", CombinedExtractor)
        super().__init__(*args, **kwargs)
