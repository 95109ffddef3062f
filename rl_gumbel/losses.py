"""Pure functions from distributions and values to what an optimiser climbs or descends."""

from collections.abc import Callable, Iterable

import torch
from torch import Tensor

from rl_gumbel.actions import ActionLayout
from rl_gumbel.distributions import FactoredCategorical
from rl_gumbel.estimators import replace_gradient

MAX_JOINT_ACTIONS = 256
"""Joint actions up to which `exact_value` is affordable."""

ValueFunction = Callable[[Tensor], Tensor]
"""One-hots `[M, B, K, N]` to values `[M, B]`."""


def soft_bellman_target(
    reward: Tensor, terminated: Tensor, discount: Tensor | float, next_value: Tensor
) -> Tensor:
    """Return the `[B]` regression target r + discount (1 - terminated) V(s')."""
    return reward + (1 - terminated) * discount * next_value


def critic_loss(values: Tensor, target: Tensor) -> Tensor:
    """Return half the squared error of `[E, B]` values, the mean over B and the sum over E."""
    return 0.5 * (values - target).square().mean(-1).sum()


def joint_one_hots(layout: ActionLayout, device: torch.device) -> Tensor:
    """Return every joint action as one-hots `[J, K, N]`, the last factor running fastest."""
    axes = [torch.arange(size, device=device) for size in layout.sizes]
    index = torch.stack(torch.meshgrid(*axes, indexing="ij"), -1).reshape(-1, layout.num_factors)
    return layout.index_to_one_hot(index)


def exact_value(distribution: FactoredCategorical, joint: Tensor, value: ValueFunction) -> Tensor:
    """Return the `[B]` expectation of the value over all joint actions `[J, K, N]`.

    The gradient to the logits is exact and has no variance.
    """
    batch = distribution.log_probs.shape[0]
    one_hot = joint.unsqueeze(1).expand(-1, batch, -1, -1)
    with torch.no_grad():  # the actor climbs its probabilities; the values are constants
        values = value(one_hot)
    return (distribution.log_prob(one_hot).exp() * values).sum(0)


def local_expectation_value(
    distribution: FactoredCategorical,
    index: Tensor,
    layout: ActionLayout,
    value: ValueFunction,
) -> Tensor:
    """Return `[B]` values of the sampled actions `index` `[B, K]` with a per-factor exact gradient.

    For each factor the expectation over its N categories is exact and the other factors stay as
    sampled (Titsias & Lazaro-Gredilla 2015, "Local expectation gradients"); K * N evaluations.
    Unbiased; for one factor it is `exact_value`.
    """
    sampled = layout.index_to_one_hot(index)  # [B, K, N]
    num_factors, num_categories = sampled.shape[1:]
    identity = torch.eye(num_categories, device=index.device)
    swapped = sampled.expand(num_factors, num_categories, *sampled.shape).clone()
    for factor in range(num_factors):
        swapped[factor, :, :, factor] = identity.unsqueeze(1)
    with torch.no_grad():  # as in exact_value
        values = value(swapped.flatten(0, 1)).unflatten(0, (num_factors, num_categories))
    values = values.permute(2, 0, 1)  # [B, K, N]
    expected = (distribution.probs * values).sum((-2, -1))
    return replace_gradient((sampled * values).sum((-2, -1)) / num_factors, expected)


def cosine(left: Iterable[Tensor], right: Iterable[Tensor]) -> Tensor:
    """Return the scalar cosine of two gradients, each given as a list of tensors."""
    a = torch.cat([tensor.flatten() for tensor in left])
    b = torch.cat([tensor.flatten() for tensor in right])
    return torch.nn.functional.cosine_similarity(a, b, dim=0)
