"""The factored categorical distribution: K independent factors, exact where exactness is free."""

import torch
from torch import Tensor

from rl_gumbel.estimators import ESTIMATORS, check_logits, masked_log_softmax
from rl_gumbel.types import Sample


class FactoredCategorical:
    """The product of K categorical factors, given by logits `[..., K, N]`.

    Args:
        logits: `[..., K, N]` unnormalised log-probabilities.
        mask: broadcastable to the logits, True where a category may be chosen (padding is False).
        validate: check logits and mask as the estimators do; training loops pass False.

    Raises:
        ValueError: for NaN or infinite logits or a row whose categories are all masked.
    """

    def __init__(self, logits: Tensor, mask: Tensor | None = None, validate: bool = True) -> None:
        if validate:
            check_logits(logits, mask)
        self.logits = logits
        self.mask = mask
        self.log_probs = masked_log_softmax(logits, mask)
        """`[..., K, N]`, at least float32; huge and negative, yet finite, where masked."""

    @property
    def probs(self) -> Tensor:
        """`[..., K, N]` probabilities; exactly zero where masked."""
        return self.log_probs.exp()

    def sample(self, generator: torch.Generator | None = None) -> Tensor:
        """Return `[..., K]` int64 categories, drawn exactly; no gradient.

        By inversion: one uniform draw a factor, where the Gumbel-max trick takes N and logarithms.
        """
        cumulative = self.probs.detach().cumsum(-1)  # a sample has no gradient
        draw = torch.rand(
            (*cumulative.shape[:-1], 1), device=cumulative.device, generator=generator
        )
        # Below the last sum even after rounding; a masked category adds nothing, so none is hit.
        draw = draw * (1 - 2**-22) * cumulative[..., -1:]
        return (cumulative <= draw).sum(-1)

    def rsample(
        self,
        estimator: str = "straight_through_gumbel",
        *,
        temperature: float | Tensor | None = None,
        generator: torch.Generator | None = None,
        noise: Tensor | None = None,
        validate: bool = False,
        **options: float,
    ) -> Sample:
        """Return a sample whose one-hot carries the gradient of the named estimator.

        Raises:
            ValueError: for an unknown estimator, and as the estimator does.
            TypeError: for an unknown option.
        """
        if estimator not in ESTIMATORS:
            raise ValueError(f"unknown estimator {estimator!r}; known: {', '.join(ESTIMATORS)}")
        return ESTIMATORS[estimator](
            self.logits,
            temperature=temperature,
            mask=self.mask,
            generator=generator,
            noise=noise,
            validate=validate,
            **options,
        )

    @property
    def mode(self) -> Tensor:
        """`[..., K]` int64: the most probable category of each factor, the first in a tie."""
        return self.log_probs.argmax(-1)

    def log_prob(self, value: Tensor) -> Tensor:
        """Return the `[...]` log-probabilities, in nats, of categories or one-hots.

        An integer tensor is read as categories `[..., K]`, a floating one as one-hots
        `[..., K, N]`. Given a straight-through one-hot the result carries a gradient through it as
        well; do not use that as an entropy bonus (the gradient is noisy, and biased for all but
        plain `straight_through`): `entropy` is exact.
        """
        if value.is_floating_point():
            return (value * self.log_probs).sum((-2, -1))
        return self.log_probs.gather(-1, value.long().unsqueeze(-1)).squeeze(-1).sum(-1)

    def entropy_per_factor(self) -> Tensor:
        """Return `[..., K]` entropies in nats, each with its exact gradient."""
        return -(self.probs * self.log_probs).sum(-1)

    def entropy(self) -> Tensor:
        """Return the `[...]` joint entropy in nats: the sum over factors."""
        return self.entropy_per_factor().sum(-1)

    def kl(self, other: "FactoredCategorical") -> Tensor:
        """Return the `[...]` Kullback-Leibler divergence KL(self || other) in nats."""
        return (self.probs * (self.log_probs - other.log_probs)).sum((-2, -1))
