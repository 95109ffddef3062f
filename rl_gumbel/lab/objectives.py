"""Functions of one-hot actions whose exact expectation is affordable, one for each of S instances.

An objective maps actions `[..., S, K, N]` to values `[..., S]`, each of the S instances by
coefficients of its own, and gives the expectation of its value under a policy, differentiable in
the logits: in closed form for any number of factors, or by a sum over the joint actions.
"""

import math
from collections.abc import Callable, Mapping
from typing import Protocol

import torch
from torch import Tensor, nn

from rl_gumbel.actions import ActionLayout
from rl_gumbel.distributions import FactoredCategorical
from rl_gumbel.losses import exact_value, joint_one_hots, local_expectation_value

MAX_EVALUATIONS = 2**20
"""Values (joint actions times instances) up to which an expectation is enumerated."""
CHUNK = 2**15
"""Values computed at once, for the sake of memory."""
REFERENCE_DRAWS = 64
"""Samples of the local expectation whose mean stands in where enumeration is too much."""


class Objective(Protocol):
    """What the estimators are asked for the gradient of."""

    reference: str
    """How the expectation is computed."""

    def __call__(self, one_hot: Tensor) -> Tensor:
        """Return values `[..., S]` of actions `[..., S, K, N]`, relaxed ones too."""

    def expectation(self, policy: FactoredCategorical) -> Tensor:
        """Return the `[S]` expectation of the value, with its gradient to the logits."""


class Linear:
    """f(x) = <w, x> / sqrt(K), w standard normal."""

    reference = "closed form: f at the probabilities"

    def __init__(self, shape: tuple[int, int, int], generator: torch.Generator) -> None:
        self.weight = torch.randn(shape, generator=generator) / math.sqrt(shape[1])

    def __call__(self, one_hot: Tensor) -> Tensor:
        """Return values `[..., S]`."""
        return (self.weight * one_hot).sum((-2, -1))

    def expectation(self, policy: FactoredCategorical) -> Tensor:
        """Return `[S]`."""
        return self(policy.probs)


class Quadratic:
    """f(x) = x^T A x / K, A standard normal over all pairs of factors and within each factor."""

    reference = "closed form: second moments"

    def __init__(self, shape: tuple[int, int, int], generator: torch.Generator) -> None:
        instances, self.num_factors, self.num_categories = shape
        size = self.num_factors * self.num_categories
        self.matrix = torch.randn((instances, size, size), generator=generator) / self.num_factors

    def __call__(self, one_hot: Tensor) -> Tensor:
        """Return values `[..., S]`."""
        x = one_hot.flatten(-2).movedim(-2, 0)  # [S, ..., KN]
        rows = x.flatten(1, -2) if x.ndim > 2 else x.unsqueeze(1)
        values = (torch.bmm(rows, self.matrix) * rows).sum(-1)
        return values.reshape(x.shape[:-1]).movedim(0, -1)

    def expectation(self, policy: FactoredCategorical) -> Tensor:
        """Return `[S]`: E[x x^T] is p p^T, but diag(p_k) within the block of factor k."""
        probs = policy.probs
        factors, categories = self.num_factors, self.num_categories
        matrix = self.matrix.reshape(-1, factors, categories, factors, categories)
        blocks = matrix.diagonal(dim1=1, dim2=3)  # [S, N, N, K]
        within = torch.einsum("skn,snmk,skm->s", probs, blocks, probs)
        diagonal = self.matrix.diagonal(dim1=1, dim2=2) * probs.flatten(1)
        return self(probs) - within + diagonal.sum(-1)


class Multilinear:
    """f(x) = sum_r prod_k <1 + u_rk / sqrt(K), x_k>, linear in each factor; u standard normal."""

    reference = "closed form: f at the probabilities"

    def __init__(
        self, shape: tuple[int, int, int], generator: torch.Generator, rank: int = 8
    ) -> None:
        instances, num_factors, num_categories = shape
        size = (instances, rank, num_factors, num_categories)
        self.factors = 1 + torch.randn(size, generator=generator) / math.sqrt(num_factors)

    def __call__(self, one_hot: Tensor) -> Tensor:
        """Return values `[..., S]`."""
        return (self.factors * one_hot.unsqueeze(-3)).sum(-1).prod(-1).sum(-1)

    def expectation(self, policy: FactoredCategorical) -> Tensor:
        """Return `[S]`."""
        return self(policy.probs)


class NeighbourMLP:
    """f(x) = sum_k h_k(x_k, x_{k+1}) / sqrt(K): a tanh perceptron on each pair of neighbours.

    Each h has one hidden layer. For K = 1 it is a perceptron on the one factor.
    """

    reference = "closed form: sum over the N^2 actions of each pair"

    def __init__(
        self, shape: tuple[int, int, int], generator: torch.Generator, width: int = 16
    ) -> None:
        instances, num_factors, num_categories = shape
        self.num_pairs = max(num_factors - 1, 1)
        size = (instances, self.num_pairs, num_categories, width)
        self.left = torch.randn(size, generator=generator)
        self.right = torch.randn(size, generator=generator)
        if num_factors == 1:
            self.right.zero_()  # the one factor has no neighbour
        self.bias = torch.randn((instances, self.num_pairs, 1, width), generator=generator)
        out = torch.randn((instances, self.num_pairs, width), generator=generator)
        self.out = out / math.sqrt(width * num_factors)

    def __call__(self, one_hot: Tensor) -> Tensor:
        """Return values `[..., S]`."""
        first, second = self._pairs(one_hot)
        hidden = _product(first, self.left) + _product(second, self.right) + self.bias.squeeze(-2)
        return (hidden.tanh() * self.out).sum((-2, -1))

    def expectation(self, policy: FactoredCategorical) -> Tensor:
        """Return `[S]`."""
        first, second = self._pairs(policy.probs)
        hidden = (self.left + self.bias).unsqueeze(-2) + self.right.unsqueeze(-3)
        table = (hidden.tanh() * self.out[:, :, None, None]).sum(-1)  # [S, pairs, N, N]
        return torch.einsum("spn,spnm,spm->s", first, table, second)

    def _pairs(self, one_hot: Tensor) -> tuple[Tensor, Tensor]:
        return one_hot[..., : self.num_pairs, :], one_hot[..., -self.num_pairs :, :]


def _product(x: Tensor, weight: Tensor) -> Tensor:
    """Return `[..., S, P, H]` products of `[..., S, P, N]` with `[S, P, N, H]`."""
    return torch.einsum("...spn,spnh->...sph", x, weight)


class CriticObjective:
    """The value that an actor climbs in a critic, at S states.

    Args:
        network: a critic of `rl_gumbel.networks` or `rl_gumbel.equivariant`.
        features: `[S, F]`, what it takes besides the action.
        layout: of the action space.
        use_mean: whether the actor climbs the mean of the ensemble, not its minimum.
    """

    def __init__(
        self, network: nn.Module, features: Tensor, layout: ActionLayout, use_mean: bool = False
    ) -> None:
        self.network, self.features, self.layout = network, features, layout
        self.use_mean = use_mean
        self.joint: Tensor | None = None
        self.is_exact = True
        if network.is_multilinear:
            self.reference = "closed form: the critic at the probabilities"
        elif layout.num_joint * len(features) <= MAX_EVALUATIONS:
            self.joint = joint_one_hots(layout, features.device)
            self.reference = f"enumeration of {layout.num_joint} joint actions"
        else:
            self.is_exact = False
            self.reference = f"local expectation, mean of {REFERENCE_DRAWS} samples"

    def __call__(self, one_hot: Tensor) -> Tensor:
        """Return values `[..., S]`."""
        before = one_hot.shape[:-3]
        rows = self.features.expand(math.prod(before), *self.features.shape).flatten(0, 1)
        actions = one_hot.reshape(-1, *one_hot.shape[-2:])
        value: Tensor = self.network.actor_value(rows, actions, self.use_mean)  # type: ignore[operator]
        return value.reshape(*before, len(self.features))

    def expectation(self, policy: FactoredCategorical) -> Tensor:
        """Return `[S]`; a mean over samples where `reference` says so."""
        if self.network.is_multilinear:
            return self(policy.probs)
        if self.joint is not None:
            return exact_value(policy, self.joint, self._in_chunks)
        samples = (
            local_expectation_value(policy, policy.sample(), self.layout, self._in_chunks)
            for _ in range(REFERENCE_DRAWS)
        )
        return torch.stack(list(samples)).mean(0)

    def _in_chunks(self, one_hot: Tensor) -> Tensor:
        size = max(CHUNK // len(self.features), 1)
        return torch.cat([self(part) for part in one_hot.split(size)])


OBJECTIVES: Mapping[str, Callable[[tuple[int, int, int], torch.Generator], Objective]] = {
    "linear": Linear,
    "multilinear": Multilinear,
    "quadratic": Quadratic,
    "mlp": NeighbourMLP,
}
"""Random objectives by name: `(shape (S, K, N), generator)` to an objective."""
