"""The policy of `GumbelREPPO`: a factored categorical actor and a critic without a target."""

from typing import Any

from stable_baselines3.common.torch_layers import CombinedExtractor, NatureCNN
from stable_baselines3.common.type_aliases import PyTorchObs
from torch import Tensor

from rl_gumbel.distributions import FactoredCategorical
from rl_gumbel.extractors import make_normalizer
from rl_gumbel.normalize import RunningMoments
from rl_gumbel.policies.factored import FactoredPolicy


class REPPOPolicy(FactoredPolicy):
    """Actor and critic over a discrete action space.

    Arguments not listed here are those of `FactoredPolicy`, with the same meaning.

    Args:
        n_critics: size of the critic's ensemble.
        normalize_observations: subtract the running mean of observations and divide by their
            deviation, clipped to 10; only for `Box` observations that are no images.

    Raises:
        ValueError: for observations to normalise that are no vectors, and as `FactoredPolicy`.
    """

    normalizer: RunningMoments | None

    def __init__(
        self,
        *args: Any,
        n_critics: int = 1,
        normalize_observations: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, n_critics=n_critics, **kwargs)
        self.settings["normalize_observations"] = normalize_observations
        self.normalizer = (
            make_normalizer(self.observation_space) if normalize_observations else None
        )

    def _build_target(self) -> None:
        """Build none: targets are computed once for each rollout, before the critic moves."""

    def normalize(self, obs: PyTorchObs) -> PyTorchObs:
        """Return observations as actor and critic take them; statistics stay as they are."""
        return obs if self.normalizer is None else self.normalizer.normalize(obs)

    def distribution(self, obs: PyTorchObs, mask: Tensor | None = None) -> FactoredCategorical:
        """Return the distribution over actions; `mask` `[B, K, N]`, True where allowed."""
        return super().distribution(self.normalize(obs), mask)


class REPPOCnnPolicy(REPPOPolicy):
    """`REPPOPolicy` for images: SB3's `NatureCNN` extracts the features."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        kwargs.setdefault("features_extractor_class", NatureCNN)
        super().__init__(*args, **kwargs)


class REPPOMultiInputPolicy(REPPOPolicy):
    """`REPPOPolicy` for `Dict` observations: SB3's `CombinedExtractor` extracts the features."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        kwargs.setdefault("features_extractor_class", CombinedExtractor)
        super().__init__(*args, **kwargs)
