"""Pure functions from distributions and values to what an optimiser climbs or descends."""

import itertools
from collections.abc import Callable

import torch
from torch import Tensor

from rl_gumbel.actions import ActionLayout
from rl_gumbel.distributions import FactoredCategorical
from rl_gumbel.estimators import replace_gradient
from rl_gumbel.networks import hl_gauss

MAX_JOINT_ACTIONS = 256
"""Joint actions up to which `exact_value` is affordable."""

ValueFunction = Callable[[Tensor], Tensor]
"""One-hots `[M, B, K, N]` to values `[M, B]`."""


def soft_bellman_target(
    reward: Tensor, terminated: Tensor, discount: Tensor | float, next_value: Tensor
) -> Tensor:
    """Return the `[B]` regression target r + discount (1 - terminated) V(s')."""
    return reward + (1 - terminated) * discount * next_value


def aggregate(values: Tensor, aggregation: str) -> Tensor:
    """Return the `[B]` value of a target from the `[E, B]` values of an ensemble.

    Their `min`, their `mean`, or, for `subset_M`, the minimum over M members that are drawn at each
    call (REDQ: Chen et al. 2021, arXiv 2101.05982, algorithm 1).
    """
    if aggregation == "mean":
        return values.mean(0)
    if aggregation.startswith("subset_"):
        size = int(aggregation.removeprefix("subset_"))
        members = torch.rand(len(values), device=values.device).topk(size).indices
        values = values.index_select(0, members)
    return values.amin(0)


def critic_loss(values: Tensor, target: Tensor, weights: Tensor | None = None) -> Tensor:
    """Return half the squared error of `[E, B]` values, the mean over B and the sum over E.

    `weights` `[B]` multiply the errors of rows that are sampled more or less often than others.
    """
    return _weigh(0.5 * (values - target).square(), weights)


def categorical_critic_loss(
    logits: Tensor, target: Tensor, centers: Tensor, weights: Tensor | None = None
) -> Tensor:
    """Return the cross-entropy of `[E, B, bins]` logits to the HL-Gauss histogram of `[B]` targets.

    Farebrother et al. 2024 (arXiv 2403.03950), eq. 2; the mean over B and the sum over E, in nats.
    `weights` `[B]` as in `critic_loss`.
    """
    probs = hl_gauss(target, centers)
    return _weigh(-(probs * logits.log_softmax(-1)).sum(-1), weights)


def _weigh(errors: Tensor, weights: Tensor | None) -> Tensor:
    """Return the mean over B of `[E, B]` errors, weighted, and the sum over E."""
    return (errors if weights is None else weights * errors).mean(-1).sum()


def lambda_returns(
    reward: Tensor,
    terminated: Tensor,
    truncated: Tensor,
    next_value: Tensor,
    next_bonus: Tensor,
    discount: float,
    trace_decay: float,
) -> Tensor:
    """Return `[T, B]` soft TD(lambda) targets of Q at each step of a trajectory.

    G_t = r_t + discount (1 - terminated_t) (b_t + (1 - lambda) Q_t + lambda G_{t+1}), where Q_t and
    b_t, the value and entropy bonus of the state after step t, stand alone (lambda = 0) where the
    trajectory goes no further: at its last step and where it was truncated. The bonus of the state
    that the action was taken in is not part of Q.

    Args:
        reward: `[T, B]`.
        terminated: `[T, B]` bool.
        truncated: `[T, B]` bool.
        next_value: `[T, B]` action values of what followed each step; for a truncated one of the
            last observation, not of the next episode's first.
        next_bonus: `[T, B]` entropy coefficient times entropy of the same states.
        discount: per step, gamma.
        trace_decay: lambda in [0, 1].
    """
    decay = torch.full_like(reward, trace_decay).masked_fill_(truncated, 0.0)
    decay[-1] = 0.0
    ahead = discount * (1 - terminated.to(reward.dtype))
    fixed = reward + ahead * (next_bonus + (1 - decay) * next_value)
    return generalized_advantage(fixed, ahead * decay)  # the same recurrence


def restarting_discounts(ended: Tensor, discount: float) -> Tensor:
    """Return `[T, B]` discount ** age, the age being the steps since the last end, or the start.

    `ended` is `[T, B]` bool.
    """
    time = torch.arange(len(ended), device=ended.device).unsqueeze(-1)
    # The step after an end is the first of its episode; the last row starts nothing.
    start = torch.where(ended, time + 1, 0).cummax(0).values.roll(1, 0)
    start = torch.where(time == 0, 0, start)
    return discount ** (time - start)


def window_return(
    reward: Tensor,
    terminated: Tensor,
    truncated: Tensor,
    next_value: Tensor,
    discounts: Tensor,
    discount: float,
) -> Tensor:
    """Return the `[B]` objective of SHAC (Xu et al. 2022, arXiv 2204.07137, eq. 5) of a window.

    The discounted sum of the rewards of each episode in it, and of the value of what came last: of
    the last state of the window and of a truncated episode, and of nothing after a termination.

    Args:
        reward: `[T, B]`.
        terminated: `[T, B]` bool.
        truncated: `[T, B]` bool.
        next_value: `[T, B]` values of what followed each step, looked at where an episode was
            truncated and at the last step; see `following_values`.
        discounts: `[T, B]` of `restarting_discounts`.
        discount: per step, gamma.
    """
    is_last = torch.arange(len(reward), device=reward.device).unsqueeze(-1) == len(reward) - 1
    bootstrap = torch.where(truncated | (is_last & ~terminated), next_value, 0.0)
    return (discounts * (reward + discount * bootstrap)).sum(0)


def kl_constrained_loss(value: Tensor, kl: Tensor, kl_bound: float, kl_coef: Tensor) -> Tensor:
    """Return the scalar mean of -value, in rows beyond the bound of kl_coef * KL instead.

    REPPO (arXiv 2507.11019): inside the trust region climb the value, outside it go back.

    Args:
        value: `[B]` what the actor climbs, entropy bonus included.
        kl: `[B]` divergence of the new policy from the one that acted.
        kl_bound: in nats.
        kl_coef: scalar, without a gradient.
    """
    return torch.where(kl <= kl_bound, -value, kl_coef * kl).mean()


def multiplier_loss(log_coef: Tensor, slack: Tensor) -> Tensor:
    """Return the scalar whose descent moves a multiplier exp(log_coef) >= 0 for its constraint.

    Up where the constraint is violated (negative `slack`, of any shape, which gets no gradient),
    down where it is slack.
    """
    return log_coef.exp().squeeze() * slack.detach().mean()  # the constraint itself is the actor's


def generalized_advantage(delta: Tensor, carry: Tensor) -> Tensor:
    """Return `[T, B]` sums A_t = delta_t + carry_t A_{t+1}, from the last step back.

    With the TD errors delta_t = r_t + gamma V(s_{t+1}) - V(s_t), V = 0 after termination, and
    carry_t = gamma lambda within an episode, 0 at its end: the generalised advantage estimate
    (Schulman et al. 2016, arXiv 1506.02438, eq. 16).
    """
    advantage = torch.empty_like(delta)
    advantage[-1] = delta[-1]
    # One operation a step, written in place: at few environments this loop is all overhead.
    rows = list(zip(advantage.unbind(0), delta.unbind(0), carry.unbind(0), strict=True))
    for (later, _, _), (now, delta_t, carry_t) in itertools.pairwise(reversed(rows)):
        torch.addcmul(delta_t, carry_t, later, out=now)
    return advantage


def clipped_surrogate(ratio: Tensor, advantage: Tensor, clip_range: Tensor) -> Tensor:
    """Return the `[B]` objective min(ratio A, clip(ratio) A) of PPO (arXiv 1707.06347, eq. 7).

    `clip_range` is a scalar tensor.
    """
    return torch.minimum(ratio * advantage, ratio.clamp(1 - clip_range, 1 + clip_range) * advantage)


def explained_variance(prediction: Tensor, target: Tensor) -> Tensor:
    """Return the scalar 1 - Var(target - prediction) / Var(target); NaN for a constant target."""
    variance = target.var()
    return torch.where(variance > 0, 1 - (target - prediction).var() / variance, torch.nan)


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
