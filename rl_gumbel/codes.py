"""Features extractors that turn an observation into a discrete code, or a Gaussian one.

A variational autoencoder as an SB3 features extractor: the features are the code, and `loss` is
minus its evidence lower bound. SB3 has no hook for such an auxiliary loss;
`rl_gumbel.codes_training` gives it one.
"""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from gymnasium import spaces
from stable_baselines3.common.preprocessing import is_image_space
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from torch import Tensor, nn

from rl_gumbel.codes_networks import make_coder
from rl_gumbel.distributions import FactoredCategorical
from rl_gumbel.estimators import ESTIMATORS, replace_gradient
from rl_gumbel.policies.estimation import check_estimator
from rl_gumbel.schedules import Schedule, make_schedule

LIKELIHOODS = ("bernoulli", "gaussian")


class Codes(BaseFeaturesExtractor):
    """Encoder, code and decoder; a subclass says what the code is.

    Observations arrive as the policy gives them to extractors: images divided by 255, everything a
    float. In training mode `loss` draws the code; in evaluation mode it is the most probable one,
    the same for the same observation.

    Args:
        observation_space: a `Box` of any shape. One of three axes is an image: its channels are the
            shorter of the first and the last axis, the last in a tie (SB3's images are always
            channels-first here).
        features_dim: length of the code's embedding.
        num_parameters: of the code's distribution.
        net_arch: hidden widths of the encoder; the decoder has the same in reverse.
        likelihood: of the reconstruction: `bernoulli`, for values in [0, 1], or `gaussian`, of unit
            variance. None takes the first where the space allows it.
        kl_weight: of the divergence from the prior; 1 makes `loss` minus the evidence lower bound,
            less keeps more of the observation in the code.
        sample_features: let the policy, too, see drawn codes in training mode. SB3 collects in
            evaluation mode, so PPO's probability ratios would start away from 1.
        policy_gradient: let the policy's losses reach encoder and codebook.

    Raises:
        TypeError: for another space.
        ValueError: for a setting out of range.
    """

    def __init__(
        self,
        observation_space: spaces.Space[Any],
        features_dim: int,
        num_parameters: int,
        *,
        net_arch: list[int] | None,
        likelihood: str | None,
        kl_weight: float,
        sample_features: bool,
        policy_gradient: bool,
    ) -> None:
        name = type(self).__name__
        if not isinstance(observation_space, spaces.Box):
            raise TypeError(f"{name} takes Box observations; these are {observation_space}")
        if not 0 <= kl_weight < math.inf:
            raise ValueError(f"kl_weight {kl_weight!r} of {name} must be >= 0 and finite")
        super().__init__(observation_space, features_dim)
        self.likelihood = _choose_likelihood(observation_space, likelihood)
        self.kl_weight = kl_weight
        self.sample_features = sample_features
        self.policy_gradient = policy_gradient
        self.is_frozen = False
        """Whether `freeze` was called; travels in the `state_dict`."""
        widths = [256] if net_arch is None else list(net_arch)
        shape = observation_space.shape
        self.encoder, self.decoder = make_coder(shape, num_parameters, features_dim, widths)

    def infer(self, observations: Tensor) -> Tensor:
        """Return the parameters of the code's distribution for observations `[B, *O]`."""
        raise NotImplementedError

    def embed(self, parameters: Tensor, *, sample: bool) -> Tensor:
        """Return features `[B, F]` of a drawn code or of the most probable one."""
        raise NotImplementedError

    def divergence(self, parameters: Tensor) -> Tensor:
        """Return `[B]`: KL divergence of the code's distribution from the prior, in nats."""
        raise NotImplementedError

    def usage(self, parameters: Tensor) -> dict[str, Tensor]:
        """Return what is logged of the codes of a batch."""
        raise NotImplementedError

    def set_progress(self, progress_remaining: float) -> None:
        """Move what follows a schedule to where `progress_remaining` of training, 1 to 0, is left.

        A `CodesCallback` and `pretrain_codes` call it; nothing else does.
        """

    def forward(self, observations: Tensor) -> Tensor:
        """Return the features `[B, F]`."""
        with torch.set_grad_enabled(torch.is_grad_enabled() and self.policy_gradient):
            parameters = self.infer(observations)
            return self.embed(parameters, sample=self.training and self.sample_features)

    def loss(self, observations: Tensor) -> Tensor:
        """Return the scalar reconstruction loss plus the weighted divergence, in nats.

        Both are summed over an observation, constants of the Gaussian left out, and averaged over
        the batch `[B, *O]`.
        """
        return self.measure(observations)["codes/loss"]

    def measure(self, observations: Tensor) -> dict[str, Tensor]:
        """Return the loss, with its gradient, and what else is logged, by the logged names."""
        parameters = self.infer(observations)
        decoded = self.decoder(self.embed(parameters, sample=self.training))
        if self.likelihood == "bernoulli":
            error = F.binary_cross_entropy_with_logits(decoded, observations, reduction="none")
        else:
            error = (decoded - observations).square() / 2
        reconstruction = error.flatten(1).sum(1).mean()
        kl = self.divergence(parameters).mean()
        return {
            "codes/loss": reconstruction + self.kl_weight * kl,
            "codes/reconstruction_loss": reconstruction,
            "codes/kl": kl,
            **self.usage(parameters),
        }

    def reconstruct(self, observations: Tensor) -> Tensor:
        """Return `[B, *O]`: the mean that the decoder makes of the most probable code."""
        decoded: Tensor = self.decoder(self.embed(self.infer(observations), sample=False))
        return decoded.sigmoid() if self.likelihood == "bernoulli" else decoded

    def freeze(self) -> None:
        """Let no optimiser change it from here on, also after the model is saved and loaded."""
        self.requires_grad_(False)
        self.is_frozen = True

    # SB3 builds a saved policy anew, with gradients; a tensor, which any file format holds.

    def get_extra_state(self) -> Tensor:
        """Return whether it is frozen, for the `state_dict`."""
        return torch.tensor(self.is_frozen)

    def set_extra_state(self, state: Tensor) -> None:
        """Freeze it if the state says so; what is frozen already stays so."""
        if bool(state):
            self.freeze()


class GumbelCodes(Codes):
    """An observation as K categories of N, each embedded by a codebook: a categorical VAE.

    Jang et al. 2017 (arXiv 1611.01144), section 4.2, with a codebook between code and decoder:
    encoder -> logits `[B, K, N]` -> one-hot that carries an estimator's gradient -> codebook
    `[K, N, D]` -> features `[B, K * D]` -> decoder. The prior is uniform.

    The features are those of the argmax code, whose gradient is that of softmax(logits /
    temperature), unless `sample_features`. In evaluation mode a relaxed estimator's code, too, is
    the argmax one: what its decoder was trained on is then not what it gets.

    Args:
        observation_space: see `Codes`.
        num_factors: K.
        num_categories: N.
        embedding_dim: D.
        estimator: of drawn codes, a name in `ESTIMATORS`; see `rl_gumbel.estimators`.
        temperature: of the estimator: a number, a `Schedule` (or its mapping) over training, or
            None for the estimator's default.
        estimator_kwargs: options of the estimator.
        net_arch: see `Codes`, as what follows.
        likelihood: of the reconstruction.
        kl_weight: of the divergence from the uniform code.
        sample_features: let the policy see drawn codes in training mode.
        policy_gradient: let the policy's losses reach encoder and codebook.

    Raises:
        TypeError: for another space, or an option that the estimator does not have.
        ValueError: for a setting that is unknown or out of range.
    """

    temperature: Tensor
    """Scalar: the present one; travels in the `state_dict`."""

    def __init__(
        self,
        observation_space: spaces.Space[Any],
        num_factors: int = 16,
        num_categories: int = 16,
        embedding_dim: int = 16,
        *,
        estimator: str = "straight_through_gumbel",
        temperature: float | Mapping[str, Any] | Schedule | None = None,
        estimator_kwargs: dict[str, float] | None = None,
        net_arch: list[int] | None = None,
        likelihood: str | None = None,
        kl_weight: float = 0.1,
        sample_features: bool = False,
        policy_gradient: bool = True,
    ) -> None:
        sizes = {"num_factors": (num_factors, 1), "embedding_dim": (embedding_dim, 1)}
        for name, (value, least) in {**sizes, "num_categories": (num_categories, 2)}.items():
            if value < least:
                raise ValueError(f"{name} {value!r} of GumbelCodes must be >= {least}")
        check_estimator(estimator, options=estimator_kwargs)
        if temperature is None:
            temperature = ESTIMATORS[estimator].default_temperature
        schedule = make_schedule(temperature)
        for progress_remaining in (1.0, 0.0):  # both ends, so that a bad one fails now
            check_estimator(estimator, schedule(progress_remaining), estimator_kwargs)
        super().__init__(
            observation_space,
            num_factors * embedding_dim,
            num_factors * num_categories,
            net_arch=net_arch,
            likelihood=likelihood,
            kl_weight=kl_weight,
            sample_features=sample_features,
            policy_gradient=policy_gradient,
        )
        self.num_factors = num_factors
        self.num_categories = num_categories
        self.estimator = ESTIMATORS[estimator]
        self.estimator_kwargs = estimator_kwargs or {}
        self.schedule = schedule
        self.codebook = nn.Parameter(torch.randn(num_factors, num_categories, embedding_dim))
        self.register_buffer("temperature", torch.tensor(float(schedule(1.0))))

    def set_progress(self, progress_remaining: float) -> None:
        """Set the temperature to that of the schedule."""
        self.temperature.fill_(self.schedule(progress_remaining))

    def codes(self, observations: Tensor) -> Tensor:
        """Return the most probable code of each observation, `[B, K]` int64."""
        return self.infer(observations).argmax(-1)

    def infer(self, observations: Tensor) -> Tensor:
        """Return logits `[B, K, N]` for observations `[B, *O]`."""
        return self.encoder(observations).unflatten(-1, (self.num_factors, self.num_categories))

    def draw(self, logits: Tensor, *, sample: bool) -> Tensor:
        """Return a one-hot `[B, K, N]` with a gradient: a draw of the estimator, or the argmax."""
        if sample:
            options = self.estimator_kwargs
            temperature = self.temperature
            return self.estimator(
                logits, temperature=temperature, validate=False, **options
            ).one_hot
        hard = torch.zeros_like(logits).scatter(-1, logits.argmax(-1, keepdim=True), 1.0)
        return replace_gradient(hard, (logits / self.temperature).softmax(-1))

    def embed(self, parameters: Tensor, *, sample: bool) -> Tensor:
        """Return features `[B, K * D]` for logits `[B, K, N]`."""
        one_hot = self.draw(parameters, sample=sample)
        return torch.einsum("bkn,knd->bkd", one_hot, self.codebook).flatten(1)

    def divergence(self, parameters: Tensor) -> Tensor:
        """Return `[B]`: KL divergence from the uniform code, in nats."""
        entropy = FactoredCategorical(parameters, validate=False).entropy()
        return self.num_factors * math.log(self.num_categories) - entropy

    def usage(self, parameters: Tensor) -> dict[str, Tensor]:
        """Return the perplexity, from 1 to N, of the argmax codes of a batch, and temperature.

        The exponential of the entropy of a factor's categories over the batch, mean over factors: N
        where all are used alike, 1 where one is. A batch of B rows shows B categories at most.
        """
        index = parameters.argmax(-1, keepdim=True)
        share = torch.zeros_like(parameters).scatter(-1, index, 1.0).mean(0)
        perplexity = torch.special.entr(share).sum(-1).exp().mean()
        return {"codes/perplexity": perplexity, "codes/temperature": self.temperature}


class GaussianCodes(Codes):
    """An observation as L Gaussian numbers: the reparameterised VAE, a reference.

    Kingma and Welling 2014 (arXiv 1312.6114), appendix B and C.2: features are a draw of
    N(mean, std^2), of which the mean is taken where `GumbelCodes` takes the argmax. The prior is
    the standard normal. Encoder and decoder are those of `GumbelCodes`.

    Args:
        observation_space: see `Codes`.
        latent_dim: L.
        net_arch: see `Codes`, as what follows.
        likelihood: of the reconstruction.
        kl_weight: of the divergence from the standard normal.
        sample_features: let the policy see drawn codes in training mode.
        policy_gradient: let the policy's losses reach the encoder.

    Raises:
        TypeError: for another space.
        ValueError: for a setting out of range.
    """

    def __init__(
        self,
        observation_space: spaces.Space[Any],
        latent_dim: int = 32,
        *,
        net_arch: list[int] | None = None,
        likelihood: str | None = None,
        kl_weight: float = 0.1,
        sample_features: bool = False,
        policy_gradient: bool = True,
    ) -> None:
        if latent_dim < 1:
            raise ValueError(f"latent_dim {latent_dim!r} of GaussianCodes must be >= 1")
        super().__init__(
            observation_space,
            latent_dim,
            2 * latent_dim,
            net_arch=net_arch,
            likelihood=likelihood,
            kl_weight=kl_weight,
            sample_features=sample_features,
            policy_gradient=policy_gradient,
        )

    def infer(self, observations: Tensor) -> Tensor:
        """Return mean and standard deviation `[B, 2, L]` for observations `[B, *O]`."""
        mean, raw = self.encoder(observations).chunk(2, -1)
        # The divergence takes the logarithm, and softplus may round to zero.
        return torch.stack([mean, F.softplus(raw) + 1e-6], 1)

    def embed(self, parameters: Tensor, *, sample: bool) -> Tensor:
        """Return features `[B, L]` for mean and deviation `[B, 2, L]`."""
        mean, std = parameters.unbind(1)
        return mean + std * torch.randn_like(std) if sample else mean

    def divergence(self, parameters: Tensor) -> Tensor:
        """Return `[B]`: KL divergence from the standard normal, in nats."""
        mean, std = parameters.unbind(1)
        return ((mean.square() + std.square() - 1) / 2 - std.log()).sum(-1)

    def usage(self, parameters: Tensor) -> dict[str, Tensor]:
        """Return nothing: there is no codebook."""
        return {}


def _choose_likelihood(space: spaces.Box, likelihood: str | None) -> str:
    """Return the likelihood that was asked for, or the one that fits the space."""
    if likelihood not in (None, *LIKELIHOODS):
        raise ValueError(f"unknown likelihood {likelihood!r}; known: {', '.join(LIKELIHOODS)}")
    is_unit = is_image_space(space) or bool(np.all(space.low >= 0) and np.all(space.high <= 1))
    if likelihood == "bernoulli" and not is_unit:
        raise ValueError(f"likelihood 'bernoulli' needs values in [0, 1]; these are {space}")
    return likelihood or ("bernoulli" if is_unit else "gaussian")
