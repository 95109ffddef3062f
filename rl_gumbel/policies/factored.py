"""The native policy of `GumbelSAC`: a factored categorical actor and an ensemble critic."""

from collections.abc import Sequence
from numbers import Integral, Real
from typing import Any

import torch
from gymnasium import spaces
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.torch_layers import (
    BaseFeaturesExtractor,
    CombinedExtractor,
    FlattenExtractor,
    NatureCNN,
    get_actor_critic_arch,
)
from stable_baselines3.common.type_aliases import PyTorchObs, Schedule
from torch import Tensor, nn

from rl_gumbel.actions import ActionLayout
from rl_gumbel.distributions import FactoredCategorical
from rl_gumbel.equivariant import EquivariantCritic, EquivariantLogitNetwork
from rl_gumbel.extractors import DevicePreprocessing
from rl_gumbel.networks import CRITICS, CategoricalHead, LogitNetwork
from rl_gumbel.policies.masks import MaskedPrediction

DEFAULT_VALUE_RANGE = (-10.0, 10.0)


class FactoredActor(BasePolicy, DevicePreprocessing):
    """Observations to a factored categorical over a discrete action space."""

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
        normalize_images: bool = True,
        shared_factors: bool = False,
    ) -> None:
        super().__init__(
            observation_space,
            action_space,
            features_extractor=features_extractor,
            normalize_images=normalize_images,
        )
        self.layout = layout
        network_class = EquivariantLogitNetwork if shared_factors else LogitNetwork
        self.network = network_class(features_dim, layout, net_arch, activation_fn)

    def forward(self, obs: PyTorchObs, mask: Tensor | None = None) -> FactoredCategorical:
        """Return the distribution of the action, logits `[B, K, N]`.

        Args:
            obs: `[B, *O]`.
            mask: `[B, K, N]` bool, True where a category may be chosen; None allows all.
        """
        features = self.extract_features(obs, self.features_extractor)
        mask = self.network.mask if mask is None else mask
        # Unchecked: a check would wait for the device at every step.
        return FactoredCategorical(self.network(features), mask, validate=False)

    def _predict(self, observation: PyTorchObs, deterministic: bool = False) -> Tensor:
        distribution = self(observation)
        return self.layout.to_action(distribution.mode if deterministic else distribution.sample())


class FactoredCritic(DevicePreprocessing):
    """Observations and one-hot actions to the values of an ensemble."""

    features_extractor: BaseFeaturesExtractor

    def __init__(
        self,
        observation_space: spaces.Space[Any],
        action_space: spaces.Space[Any],
        layout: ActionLayout,
        critic: str,
        net_arch: list[int],
        features_extractor: BaseFeaturesExtractor,
        features_dim: int,
        activation_fn: type[nn.Module] = nn.SiLU,
        normalize_images: bool = True,
        shared_factors: bool = False,
        share_features_extractor: bool = False,
        **critic_kwargs: Any,
    ) -> None:
        super().__init__(
            observation_space,
            action_space,
            features_extractor=features_extractor,
            normalize_images=normalize_images,
        )
        self.layout = layout
        self.share_features_extractor = share_features_extractor
        network_class = EquivariantCritic if shared_factors else CRITICS[critic]
        self.network = network_class(features_dim, layout, net_arch, activation_fn, **critic_kwargs)

    def features(self, obs: PyTorchObs) -> Tensor:
        """Return the features `[B, F]`; a shared extractor learns from the actor's loss only."""
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.share_features_extractor):
            return self.extract_features(obs, self.features_extractor)

    def forward(self, obs: PyTorchObs, one_hot: Tensor) -> Tensor:
        """Return `[E, B]` values of actions `[B, K, N]`."""
        values: Tensor = self.network(self.features(obs), one_hot)
        return values


class FactoredPolicy(MaskedPrediction):
    """Actor, critic and target critic over a discrete action space.

    Args:
        observation_space: of the environment.
        action_space: one that `ActionLayout` supports.
        lr_schedule: progress remaining to learning rate.
        net_arch: hidden widths, one list for both networks or `{"pi": [...], "qf": [...]}`.
        activation_fn: between the layers.
        critic: `concat` or `multilinear`, see `rl_gumbel.networks`.
        n_critics: size of the critic's ensemble.
        layer_norm: whether the critic normalises its hidden layers.
        dropout: probability of a hidden unit of the critic to be dropped (Hiraoka et al. 2022,
            arXiv 2110.02034: 0.01 with layer normalisation lets many updates be made with each
            step); as there, also where targets are computed and the actor climbs.
        num_bins: of the critic's distribution over returns; None makes its value one number.
        value_range: returns at the centers of the first and the last bin; None is -10 to 10.
        rank: of the multilinear critic's interaction term; None is its default.
        action_layer: hidden layer of the concat critic at which the action enters, `last` or
            `first`; None is `last`.
        features_extractor_class: SB3 features extractor.
        features_extractor_kwargs: its keyword arguments.
        shared_factors: for an observation of K equal parts, one for each action factor: networks
            with the same weights for every part, see `rl_gumbel.equivariant`; the critic is
            `concat`.
        share_features_extractor: one extractor for both, trained by the actor's loss (as SB3 SAC).
        normalize_images: divide image observations by 255.
        optimizer_class: for actor and critic.
        optimizer_kwargs: without the learning rate; the default makes Adam fused.

    Raises:
        ValueError: for an unknown critic, no critics or rank, a dropout outside [0, 1), a rank,
            layer or range that would be ignored, and bins on a multilinear critic of several
            factors.
    """

    actor: FactoredActor
    critic: FactoredCritic
    critic_target: FactoredCritic

    def __init__(
        self,
        observation_space: spaces.Space[Any],
        action_space: spaces.Space[Any],
        lr_schedule: Schedule,
        net_arch: list[int] | dict[str, list[int]] | None = None,
        activation_fn: type[nn.Module] = nn.SiLU,
        critic: str = "concat",
        n_critics: int = 2,
        layer_norm: bool = True,
        dropout: float = 0.0,
        num_bins: int | None = None,
        value_range: Sequence[float] | None = None,
        rank: int | None = None,
        action_layer: str | None = None,
        shared_factors: bool = False,
        features_extractor_class: type[BaseFeaturesExtractor] = FlattenExtractor,
        features_extractor_kwargs: dict[str, Any] | None = None,
        share_features_extractor: bool = False,
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
        if critic not in CRITICS:
            raise ValueError(f"unknown critic {critic!r}; known: {', '.join(CRITICS)}")
        for name, count in (("n_critics", n_critics), ("rank", 1 if rank is None else rank)):
            if not isinstance(count, Integral) or count < 1:
                raise ValueError(f"{name} {count!r} must be an integer >= 1")
        if not isinstance(dropout, Real) or not 0 <= dropout < 1:
            raise ValueError(f"dropout {dropout!r} must be in [0, 1)")
        if num_bins is None and value_range is not None:
            raise ValueError(
                f"value_range {value_range!r} would be ignored: num_bins is None, the critic's "
                f"value is one number"
            )
        if rank is not None and critic != "multilinear":
            raise ValueError(f"rank {rank!r} would be ignored: only critic 'multilinear' has one")
        if action_layer is not None and critic != "concat":
            raise ValueError(
                f"action_layer {action_layer!r} would be ignored: only critic 'concat' has one"
            )
        if shared_factors and (critic != "concat" or action_layer is not None):
            name, value = ("action_layer", action_layer) if action_layer else ("critic", critic)
            raise ValueError(f"{name} {value!r} would be ignored: shared_factors has its own")
        # What _get_constructor_parameters adds to its parent's, so that load needs nothing.
        self.settings: dict[str, Any] = {
            "net_arch": net_arch if net_arch is not None else [256, 256],
            "activation_fn": activation_fn,
            "critic": critic,
            "n_critics": n_critics,
            "layer_norm": layer_norm,
            "dropout": dropout,
            "num_bins": num_bins,
            "value_range": value_range,
            "rank": rank,
            "action_layer": action_layer,
            "shared_factors": shared_factors,
            "features_extractor_class": features_extractor_class,
            "features_extractor_kwargs": features_extractor_kwargs,
            "share_features_extractor": share_features_extractor,
            "optimizer_class": optimizer_class,
            "optimizer_kwargs": optimizer_kwargs,
        }
        self.layout = self.make_layout()
        if rank is not None and self.layout.num_factors == 1:
            raise ValueError(
                f"rank {rank!r} would be ignored: {self.layout.space} has one factor, without "
                f"interactions"
            )
        self.actor_arch, self.critic_arch = get_actor_critic_arch(self.settings["net_arch"])
        self._build(lr_schedule)

    def make_layout(self) -> ActionLayout:
        """Return the factors of the action space."""
        return ActionLayout.from_space(self.action_space)

    def make_actor(self) -> FactoredActor:
        """Return a new actor."""
        return FactoredActor(**self._network_kwargs(None), net_arch=self.actor_arch)

    def make_critic(self, features_extractor: BaseFeaturesExtractor | None) -> FactoredCritic:
        """Return a new critic, with the given features extractor or one of its own."""
        return FactoredCritic(**self._network_kwargs(features_extractor), **self.critic_settings())

    def critic_settings(self) -> dict[str, Any]:
        """Return the keyword arguments that only the critic takes."""
        names = ("critic", "n_critics", "layer_norm", "dropout", "share_features_extractor")
        settings = {name: self.settings[name] for name in names}
        for name in ("rank", "action_layer"):  # each of one critic only
            if self.settings[name] is not None:
                settings[name] = self.settings[name]
        num_bins, value_range = self.settings["num_bins"], self.settings["value_range"]
        value_range = DEFAULT_VALUE_RANGE if value_range is None else value_range
        if num_bins is not None:
            settings["head"] = CategoricalHead(num_bins, value_range)
        return {**settings, "net_arch": self.critic_arch}

    def _network_kwargs(self, features_extractor: BaseFeaturesExtractor | None) -> dict[str, Any]:
        kwargs = {
            "observation_space": self.observation_space,
            "action_space": self.action_space,
            "layout": self.layout,
            "activation_fn": self.settings["activation_fn"],
            "normalize_images": self.normalize_images,
            "shared_factors": self.settings["shared_factors"],
        }
        return self._update_features_extractor(kwargs, features_extractor)

    def _build(self, lr_schedule: Schedule) -> None:
        self.actor = self.make_actor()
        shared = self.settings["share_features_extractor"]
        self.critic = self.make_critic(self.actor.features_extractor if shared else None)
        self._build_target()
        critic_parameters = [
            parameter
            for name, parameter in self.critic.named_parameters()
            if not (shared and name.startswith("features_extractor"))
        ]
        for module, parameters in (
            (self.actor, list(self.actor.parameters())),
            (self.critic, critic_parameters),
        ):
            module.optimizer = self.optimizer_class(
                parameters,
                lr=lr_schedule(1),  # type: ignore[call-arg]
                **self.optimizer_kwargs,
            )

    def _build_target(self) -> None:
        self.critic_target = self.make_critic(None)
        self.critic_target.load_state_dict(self.critic.state_dict())
        self.critic_target.set_training_mode(self.settings["dropout"] > 0)

    def _get_constructor_parameters(self) -> dict[str, Any]:
        data = super()._get_constructor_parameters()
        return {**data, **self.settings, "lr_schedule": self._dummy_schedule}

    def forward(self, obs: PyTorchObs, deterministic: bool = False) -> Tensor:
        """Return a batch of actions."""
        return self._predict(obs, deterministic)

    def distribution(self, obs: PyTorchObs, mask: Tensor | None = None) -> FactoredCategorical:
        """Return the distribution over actions; `mask` `[B, K, N]`, True where allowed."""
        distribution: FactoredCategorical = self.actor(obs, mask)
        return distribution

    def act(self, obs: PyTorchObs, mask: Tensor | None = None) -> Tensor:
        """Return sampled categories `[B, K]`."""
        return self.distribution(obs, mask).sample()

    def set_training_mode(self, mode: bool) -> None:
        """Set actor and critic to training or evaluation mode; the target stays as it is."""
        self.actor.set_training_mode(mode)
        self.critic.set_training_mode(mode)
        self.training = mode


class FactoredCnnPolicy(FactoredPolicy):
    """`FactoredPolicy` for images: SB3's `NatureCNN` extracts the features."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        kwargs.setdefault("features_extractor_class", NatureCNN)
        super().__init__(*args, **kwargs)


class FactoredMultiInputPolicy(FactoredPolicy):
    """`FactoredPolicy` for `Dict` observations: SB3's `CombinedExtractor` extracts the features."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        kwargs.setdefault("features_extractor_class", CombinedExtractor)
        super().__init__(*args, **kwargs)
